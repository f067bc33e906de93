"""The built-in embedder, on the files that are shipped."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pikuri_memory.errors import DamagedInstallationError
from pikuri_memory.models import builtin
from pikuri_memory.models.builtin import BuiltinEmbedder, batches, builtin_identity, verify
from pikuri_memory.models.identity import EmbedderIdentity

DATA = Path(builtin.__file__).parent / "data"
REFERENCE = Path(__file__).parent / "reference.npz"

TEXTS = [
    "I am allergic to peanuts.",
    "My sister Ana works as a nurse in Lisbon.",
    "The billing service went down because a certificate had expired.",
    "a",
    "Моя сестра живёт в Казани.",
    "We moved the Monday meeting to Tuesday at 9:30. " * 12,
    "",
]

PARAPHRASES = [
    ("Which foods make the user ill?", "I am allergic to peanuts and walnuts."),
    ("Where is their home?", "I live in a small flat in Lisbon."),
    ("What is the name of their pet?", "Our dog is called Ramen."),
    ("When do they not want to be phoned?", "Please never call me before ten in the morning."),
    ("What do they do for a living?", "I work as a nurse in a children's hospital."),
    ("Why did the payments break?", "The billing service failed: its certificate had expired."),
]


@pytest.fixture(scope="module")
def embedder() -> BuiltinEmbedder:
    return BuiltinEmbedder()


@pytest.fixture
def copy_of_data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data"))


def assert_unit_rows(vectors: NDArray[np.float32], count: int) -> None:
    assert vectors.shape == (count, 384)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_have_unit_length_and_the_stated_dimensions(embedder: BuiltinEmbedder) -> None:
    assert_unit_rows(embedder.embed(TEXTS), len(TEXTS))
    assert embedder.dimensions == embedder.identity.dimensions == 384


def test_no_texts_give_no_vectors(embedder: BuiltinEmbedder) -> None:
    assert_unit_rows(embedder.embed([]), 0)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\x00", "\u200b", "\ud800"])
def test_a_text_without_words_has_a_vector_too(embedder: BuiltinEmbedder, text: str) -> None:
    assert_unit_rows(embedder.embed([text]), 1)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_any_unicode_text_has_a_finite_vector(embedder: BuiltinEmbedder, texts: list[str]) -> None:
    assert_unit_rows(embedder.embed(texts), len(texts))


def test_a_vector_does_not_depend_on_the_texts_beside_it(embedder: BuiltinEmbedder) -> None:
    texts = [*TEXTS, *(f"Note {number}: " + "and so on " * number for number in range(70))]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    backwards = embedder.embed(texts[::-1])[::-1]
    assert (together * alone).sum(axis=1).min() > 0.999
    assert (together * backwards).sum(axis=1).min() > 0.999


def test_the_nearest_fact_is_the_one_that_answers(embedder: BuiltinEmbedder) -> None:
    questions = embedder.embed([question for question, _ in PARAPHRASES])
    facts = embedder.embed([fact for _, fact in PARAPHRASES])
    assert (questions @ facts.T).argmax(axis=1).tolist() == list(range(len(PARAPHRASES)))


def test_what_follows_token_256_is_not_seen(embedder: BuiltinEmbedder) -> None:
    first, same, other = embedder.embed(
        ["word " * 254, "word " * 254 + "peanuts " * 100, "word " * 200 + "peanuts " * 54]
    )
    np.testing.assert_allclose(first, same, atol=1e-5)
    assert float(first @ other) < 0.99


def test_a_text_of_ten_million_characters_is_no_burden(embedder: BuiltinEmbedder) -> None:
    head = "The harbour was quiet. " * 2_000
    first, same = embedder.embed([head, head + "x" * 10_000_000])
    np.testing.assert_allclose(first, same, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_get_the_vectors_that_one_caller_gets(threads: int) -> None:
    embedder = BuiltinEmbedder(threads)
    expected = embedder.embed(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(embedder.embed, [TEXTS] * 32):
            assert (vectors * expected).sum(axis=1).min() > 0.999


def test_vectors_are_close_to_those_of_the_original_model(embedder: BuiltinEmbedder) -> None:
    with np.load(REFERENCE) as reference:
        texts = [str(text) for text in reference["texts"]]
        vectors = reference["vectors"].astype(np.float32)
    assert len(texts) >= 40
    cosines = (embedder.embed(texts) * vectors).sum(axis=1)
    assert cosines.mean() >= 0.99
    assert cosines.min() >= 0.97


def test_one_text_instead_of_a_list_is_refused(embedder: BuiltinEmbedder) -> None:
    with pytest.raises(TypeError, match="sequence of texts"):
        embedder.embed("peanuts")


def test_something_else_than_a_text_is_refused(embedder: BuiltinEmbedder) -> None:
    with pytest.raises(TypeError, match="must be str, not int"):
        embedder.embed(["peanuts", 1])  # type: ignore[list-item]


def test_no_threads_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BuiltinEmbedder(0)


@given(lengths=st.lists(st.integers(1, 256), max_size=200))
def test_batches_hold_every_text_once_and_keep_their_limits(lengths: list[int]) -> None:
    found = list(batches(lengths))
    assert sorted(position for batch in found for position in batch) == list(range(len(lengths)))
    for batch in found:
        assert 1 <= len(batch) <= builtin.MAX_ROWS
        assert len(batch) * max(lengths[position] for position in batch) <= builtin.TOKEN_BUDGET


def test_the_shipped_files_have_the_recorded_sums() -> None:
    verify()
    for line in (DATA / "minilm.sha256").read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            digest, name = line.split("  ")
            assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest


def test_the_model_file_has_at_most_25_megabytes() -> None:
    assert (DATA / "minilm.onnx").stat().st_size <= 25_000_000


def test_the_licence_of_the_model_is_shipped_with_it() -> None:
    text = (DATA / "LICENSE-all-MiniLM-L6-v2").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "What was changed" in text


def _remove(path: Path) -> None:
    path.unlink()


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["minilm.onnx", "tokenizer.json", "minilm.sha256"])
@pytest.mark.parametrize("damage", [_remove, _halve, _empty, _overwrite])
def test_a_damaged_installation_is_told_apart_and_how_to_mend_it(
    copy_of_data: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copy_of_data / name)
    with pytest.raises(DamagedInstallationError, match=name) as caught:
        BuiltinEmbedder(directory=copy_of_data)
    assert "reinstall" in caught.value.hint


def test_verify_finds_one_changed_byte(copy_of_data: Path) -> None:
    path = copy_of_data / "minilm.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedInstallationError, match=r"minilm\.onnx has changed"):
        verify(copy_of_data)


def test_the_fingerprint_is_known_without_loading_and_changes_with_the_files(
    embedder: BuiltinEmbedder, copy_of_data: Path
) -> None:
    assert builtin_identity() == embedder.identity == builtin_identity(copy_of_data)
    assert len(embedder.identity.fingerprint) == 16
    sums = copy_of_data / "minilm.sha256"
    digest = hashlib.sha256((DATA / "minilm.onnx").read_bytes()).hexdigest()
    sums.write_text(sums.read_text(encoding="ascii").replace(digest, "0" * 64), encoding="ascii")
    assert builtin_identity(copy_of_data).fingerprint != embedder.identity.fingerprint


def test_an_identity_survives_json() -> None:
    identity = EmbedderIdentity("modèle", 3, False, "query: ", "0123456789abcdef")
    assert EmbedderIdentity.from_json(identity.to_json()) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model": "m", "dimensions": true, "normalised": true, "prefix": "", "fingerprint": ""}',
        '{"model": "m", "dimensions": 3, "normalised": true, "prefix": null, "fingerprint": ""}',
    ],
)
def test_json_that_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"identity|Expecting value"):
        EmbedderIdentity.from_json(text)


def test_it_works_with_an_empty_environment_and_imports_nothing_heavy_before_it_is_made() -> None:
    script = (
        "import sys\n"
        "from pikuri_memory.models.builtin import BuiltinEmbedder, builtin_identity\n"
        "builtin_identity()\n"
        "assert not {'onnxruntime', 'tokenizers'} & set(sys.modules)\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "print(BuiltinEmbedder().embed(['peanuts']).shape)\n"
    )
    source = Path(builtin.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{script}"],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 384)\n", "")
