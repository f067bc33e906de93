"""The built-in embedder: all-MiniLM-L6-v2, shipped in the package, run by ONNX Runtime.

Nothing is downloaded and nothing is sent. ``scripts/build_embedder.py`` made the model file and
tells how; ``data/minilm.sha256`` holds its sum, its size and those of the tokenizer.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.errors import DamagedInstallationError
from pikuri_memory.models.identity import EmbedderIdentity

DIMENSIONS: Final = 384
MAX_TOKENS: Final = 256
"""What the model was trained for; later tokens of a text are not seen."""

MAX_CHARACTERS: Final = 32_768
"""What lies beyond is cut off before the tokenizer sees it: it reads a text to its end, and only
then cuts it to :data:`MAX_TOKENS`. Prose of that many tokens has 1,000 to 2,000 characters."""

MAX_ROWS: Final = 32
"""Most texts in one run."""

TOKEN_BUDGET: Final = 512
"""Most tokens in one run, padding included (a text alone has at most 256).

Attention takes 12 x tokens^2 floats a text, so memory follows this number and not the count of
texts: 32 texts of 256 tokens in one run took 540 MB, in runs of 512 tokens 75 MB, and no longer.
"""

CONCURRENT_RUNS: Final = 2
"""Runs at the same time, over all threads: each needs memory of its own (about 20 MB)."""

_DATA: Final = Path(__file__).parent / "data"
_MODEL: Final = "minilm.onnx"
_TOKENIZER: Final = "tokenizer.json"
_SUMS: Final = "minilm.sha256"
_REINSTALL: Final = "reinstall the package: pip install --force-reinstall pikuri-memory"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What ``minilm.sha256`` says of one file; the size is in bytes."""

    sha256: str
    size: int


def _recorded(directory: Path) -> dict[str, _Recorded]:
    """The sums and sizes of model and tokenizer. Lines of sizes are comments to ``sha256sum``."""
    path = directory / _SUMS
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedInstallationError(
            f"cannot read {path}: {type(error).__name__}", hint=_REINSTALL
        ) from error
    sums = {name: digest for digest, name in re.findall(r"(?m)^([0-9a-f]{64})  (\S+)$", text)}
    sizes = {name: int(size) for name, size in re.findall(r"(?m)^# (\S+) (\d+) bytes$", text)}
    missing = [name for name in (_MODEL, _TOKENIZER) if name not in sums or name not in sizes]
    if missing:
        raise DamagedInstallationError(f"{path} says nothing of {missing}", hint=_REINSTALL)
    return {name: _Recorded(sums[name], sizes[name]) for name in (_MODEL, _TOKENIZER)}


def _check_sizes(directory: Path) -> None:
    for name, recorded in _recorded(directory).items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DamagedInstallationError(
                f"the embedder's file {path} is missing", hint=_REINSTALL
            ) from error
        if size != recorded.size:
            raise DamagedInstallationError(
                f"the embedder's file {path} has {size} bytes instead of {recorded.size}",
                hint=_REINSTALL,
            )


def verify(directory: Path = _DATA) -> None:
    """Compare the SHA-256 of the model and the tokenizer with the recorded ones (0.05 s).

    Args:
        directory: Where the files are; the package's own by default.

    Raises:
        DamagedInstallationError: A file is missing or changed.
    """
    _check_sizes(directory)
    for name, recorded in _recorded(directory).items():
        path = directory / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != recorded.sha256:
            raise DamagedInstallationError(
                f"the embedder's file {path} has changed: SHA-256 {digest} instead of "
                f"{recorded.sha256}",
                hint=_REINSTALL,
            )


def builtin_identity(directory: Path = _DATA) -> EmbedderIdentity:
    """The identity of the built-in embedder, without loading it.

    The fingerprint is a hash of the recorded SHA-256 of model and tokenizer and of the length at
    which texts are cut: it changes when vectors may, and is the same on every machine.

    Raises:
        DamagedInstallationError: The file of sums is missing or damaged.
    """
    recorded = _recorded(directory)
    parts = [recorded[_MODEL].sha256, recorded[_TOKENIZER].sha256, str(MAX_TOKENS)]
    return EmbedderIdentity(
        model="all-MiniLM-L6-v2",
        dimensions=DIMENSIONS,
        normalised=True,
        prefix="",
        fingerprint=hashlib.sha256("\n".join(parts).encode("ascii")).hexdigest()[:16],
    )


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of texts, longest first, in groups that are run together.

    A group has at most :data:`MAX_ROWS` texts and, padded to its longest, at most
    :data:`TOKEN_BUDGET` tokens; texts of like length meet, so that little is padding.

    Args:
        lengths: Tokens of every text, each at least 1.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    start = 0
    while start < len(order):
        rows = max(1, min(MAX_ROWS, TOKEN_BUDGET // lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


class BuiltinEmbedder:
    """all-MiniLM-L6-v2 in this process: vectors of 384 dimensions and unit length.

    One object serves all threads. It is loaded when it is made (about 0.05 s, and 0.1 s once for
    the imports) and holds about 75 MB. The vector of a text does not depend on the texts that
    are embedded with it.

    Args:
        threads: Threads that one run computes with. One is as fast as two for a single text and
            leaves the other cores to the server; many texts take 1.7 times as long as with two.
        directory: Where the model's files are; the package's own by default.

    Raises:
        DamagedInstallationError: A file is missing, has another size or cannot be loaded.
        ValueError: ``threads`` is less than 1.
    """

    dimensions: Final = DIMENSIONS
    immediate: Final = False

    def __init__(self, threads: int = 1, *, directory: Path = _DATA) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        _check_sizes(directory)
        self._directory = directory
        self._session = _load_session(directory / _MODEL, threads)
        self._tokenizer = _load_tokenizer(directory / _TOKENIZER)
        self._runs = threading.BoundedSemaphore(CONCURRENT_RUNS)

    @cached_property
    def identity(self) -> EmbedderIdentity:
        """What vectors of this embedder may be compared with."""
        return builtin_identity(self._directory)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; safe to call from several threads.

        Args:
            texts: Any texts, empty ones too. Of each, the first 256 tokens count (254 of the
                text itself), and no more than its first 32,768 characters.

        Returns:
            Shape (len(texts), 384), one row of unit length for every text, in their order.

        Raises:
            TypeError: ``texts`` is itself a text, or one of them is none.
        """
        if isinstance(texts, str):
            raise TypeError("embed takes a sequence of texts, not one text")
        tokens = [self._tokens(text) for text in texts]
        vectors = np.empty((len(tokens), DIMENSIONS), dtype=np.float32)
        for batch in batches([len(ids) for ids in tokens]):
            vectors[batch] = self._run([tokens[position] for position in batch])
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As :meth:`embed`: this model embeds questions as it does facts."""
        return self.embed(texts)

    def _tokens(self, text: str) -> NDArray[np.int64]:
        if not isinstance(text, str):
            raise TypeError(f"a text to embed must be str, not {type(text).__name__}")
        # A lone surrogate is no UTF-8, which the tokenizer wants; json.loads lets them in.
        clean = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        # One by one: encode_batch starts a thread pool of its own, and a fork after it warns.
        return np.array(self._tokenizer.encode(clean).ids, dtype=np.int64)

    def _run(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        shape = (len(batch), max(len(ids) for ids in batch))
        input_ids = np.zeros(shape, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        with self._runs:
            (vectors,) = self._session.run(
                ["vector"], {"input_ids": input_ids, "attention_mask": attention_mask}
            )
        result: NDArray[np.float32] = vectors
        return result


def _load_session(path: Path, threads: int) -> Any:
    # From 1.29 on, onnxruntime uploads telemetry on Linux and macOS as well. Its function that
    # turns it off comes too late for the first event, the uploader and the device id that it keeps
    # in the user's cache; only this variable, set before it is loaded, stops all of them.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # 0.1 s

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning would burn a core between runs that the server needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of memory for every shape that was seen grows with the shapes: 91 instead of 103 MB.
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own errors have no common base
        raise DamagedInstallationError(
            f"the embedder's file {path} cannot be loaded: {error}", hint=_REINSTALL
        ) from error


def _load_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise DamagedInstallationError(
            f"the embedder's file {path} cannot be loaded: {error}", hint=_REINSTALL
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer
