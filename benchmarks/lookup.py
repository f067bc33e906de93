"""A look-up in place of an embedder: the same precomputed vectors for every server.

Used in our own process and in mem0's: numpy and the standard library only. Texts are found by a
hash in a mapped file, so that 100,000 texts cost a server no memory of its own. The questions are
kept in memory (3 MB), so that a search does not pay for the look-up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VECTORS = "vectors.npy"
HASHES = "hashes.npy"
ROWS = "rows.npy"
QUESTIONS = "questions.json"


def text_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def write(
    directory: Path, texts: Sequence[str], questions: Sequence[str], vectors: NDArray[np.float32]
) -> None:
    """Store texts (as hashes) with their vectors, row by row; those of the questions come last."""
    (directory / QUESTIONS).write_text(json.dumps(questions), encoding="utf-8")
    texts = [*texts, *questions]
    hashes = np.array([text_hash(text) for text in texts], dtype=np.uint64)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) != len(texts):
        raise ValueError("two texts are equal")
    np.save(directory / VECTORS, vectors.astype(np.float32, copy=False))
    np.save(directory / HASHES, hashes[order])
    np.save(directory / ROWS, order.astype(np.int64))


class Lookup:
    """Vectors by text.

    Args:
        directory: Where :func:`write` put them.
    """

    def __init__(self, directory: Path) -> None:
        self._vectors: NDArray[np.float32] = np.load(directory / VECTORS, mmap_mode="r")
        self._hashes: NDArray[np.uint64] = np.load(directory / HASHES, mmap_mode="r")
        self._rows: NDArray[np.int64] = np.load(directory / ROWS, mmap_mode="r")
        questions: list[str] = json.loads((directory / QUESTIONS).read_text(encoding="utf-8"))
        last = np.array(self._vectors[len(self._vectors) - len(questions) :])
        self._questions = {text: last[row : row + 1] for row, text in enumerate(questions)}

    def rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The rows of texts.

        Raises:
            KeyError: A text has no vector.
        """
        wanted = np.array([text_hash(text) for text in texts], dtype=np.uint64)
        places = np.searchsorted(self._hashes, wanted)
        if not np.array_equal(self._hashes[np.minimum(places, len(self._hashes) - 1)], wanted):
            raise KeyError("a text has no precomputed vector")
        rows: NDArray[np.int64] = self._rows[places]
        return rows

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), dimensions), of unit length."""
        if len(texts) == 1 and (known := self._questions.get(texts[0])) is not None:
            return known
        found: NDArray[np.float32] = self._vectors[self.rows(texts)]
        return found
