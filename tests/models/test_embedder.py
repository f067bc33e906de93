"""The router's embedding model as an embedder of memories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
from tests.router.scripted import ScriptedRouter, embedding

from pikuri_memory.errors import EmbedderUnavailableError, EmbeddingError
from pikuri_memory.models.embedder import MAX_CHARACTERS, RouterEmbedder
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.models.probe import probe
from pikuri_memory.models.router import Patience, Router
from pikuri_memory.waiting import Deadline

NOMIC = "nomic-embed-text:latest"


@contextmanager
def embedder(endpoint: ScriptedRouter, **given: Any) -> Iterator[RouterEmbedder]:
    """The embedder that a probe finds at an endpoint, with what it asked forgotten."""
    with closing(Router(endpoint.url, patience=Patience(total=5.0, interval=0.01))) as router:
        found = probe(router, want_chat=False, deadline=Deadline(30))
        assert found.embedding is not None
        endpoint.requests.clear()
        yield RouterEmbedder(router, found.embedding, **given)


def test_vectors_have_unit_length_whatever_the_model_gives() -> None:
    with ScriptedRouter() as endpoint:
        with embedder(endpoint) as plain:
            expected = plain.embed(["I live in Oulu", "Bella is a cat"])
        endpoint.rule("not_normalised")
        with embedder(endpoint) as scaled:
            assert not scaled.ability.normalised
            vectors = scaled.embed(["I live in Oulu", "Bella is a cat"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_questions_and_texts_begin_as_the_model_wants() -> None:
    with ScriptedRouter(embedding_models=[NOMIC]) as endpoint, embedder(endpoint) as nomic:
        nomic.embed(["I live in Oulu"])
        vectors = nomic.embed_queries(["where does she live?"])
        sent = [seen.body["input"] for seen in endpoint.seen("embedding")]
        assert sent == [["search_document: I live in Oulu"], ["search_query: where does she live?"]]
        expected = embedding("search_query: where does she live?", 64)
        np.testing.assert_allclose(vectors[0], expected, atol=1e-6)


def test_the_identity_tells_what_decides_about_vectors() -> None:
    with ScriptedRouter(embedding_models=[NOMIC], dimensions=128) as endpoint:
        with embedder(endpoint) as nomic:
            identity = nomic.identity
            assert nomic.dimensions == identity.dimensions == 128
            assert nomic.immediate is False
        assert (identity.model, identity.normalised) == (NOMIC, True)
        assert identity.prefix == "search_query: |search_document: "
        assert identity.fingerprint == nomic.ability.fingerprint
        assert EmbedderIdentity.from_json(identity.to_json()) == identity
        assert json.loads(identity.to_json())["dimensions"] == 128
    with ScriptedRouter() as endpoint, embedder(endpoint) as plain:
        assert plain.identity.prefix == ""


def test_many_texts_and_none_keep_their_order() -> None:
    texts = [f"text number {number}" for number in range(50)]
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        vectors = found.embed(texts)
        assert vectors.shape == (50, 64)
        np.testing.assert_allclose(vectors[49], embedding(texts[49], 64), atol=1e-6)
        assert found.embed([]).shape == (0, 64)


def test_one_text_is_no_sequence_of_texts() -> None:
    with (
        ScriptedRouter() as endpoint,
        embedder(endpoint) as found,
        pytest.raises(TypeError, match="sequence"),
    ):
        found.embed("text")


def test_another_model_by_the_same_name_is_refused_with_both_dimensions() -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.dimensions = 32
        for ask in (found.embed, found.embed_queries):
            with pytest.raises(EmbeddingError) as caught:
                ask(["text"])
            assert not isinstance(caught.value, EmbedderUnavailableError)
            assert "32" in str(caught.value)
            assert "64" in str(caught.value)
            assert "pikuri-memory reembed --embedder-model scripted-embed" in caught.value.hint


@pytest.mark.parametrize("name", ["nan", "zero_vectors", "changing_dimension", "missing_vector"])
def test_what_is_no_vector_is_an_embedding_error(name: str) -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.rule(name)
        with pytest.raises(EmbeddingError) as caught:
            found.embed(["one", "two"])
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("reset_at_once", True),
        ("reset_in_the_middle", True),
        ("retry_much_later", True),
        ("bad_gateway", True),
        ("server_error", True),
        ("no_money", False),
        ("no_json_at_all", False),
    ],
)
def test_a_router_in_trouble_is_an_embedder_that_is_unavailable(name: str, again: bool) -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.rule(name)
        for ask in (found.embed, found.embed_queries):
            with pytest.raises(EmbedderUnavailableError) as caught:
                ask(["a secret about axolotls"])
            assert (caught.value.retry_after is not None) == again
            assert caught.value.hint
            assert "axolotl" not in f"{caught.value} {caught.value.hint}"
        endpoint.behave()
        assert found.embed(["text"]).shape == (1, 64)


def test_a_router_that_is_gone_is_an_embedder_that_is_unavailable() -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.stop()
        with pytest.raises(EmbedderUnavailableError) as caught:
            found.embed(["text"])
        assert caught.value.retry_after is not None
        # The memories hold the router: it cannot be forgotten as it is.
        assert "--router none" not in caught.value.hint
        assert "pikuri-memory reembed --embedder-model builtin" in caught.value.hint
        endpoint.start()
        assert found.embed(["text"]).shape == (1, 64)


def test_a_model_that_was_taken_away_is_an_embedder_that_is_unavailable() -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.embedding_models = ("other-embed",)
        with pytest.raises(EmbedderUnavailableError, match="other-embed"):
            found.embed(["text"])


def test_a_question_waits_less_than_a_text() -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint, query_seconds=0.3) as found:
        endpoint.rule("never_answers")
        with pytest.raises(EmbedderUnavailableError, match=r"0\.3 s"):
            found.embed_queries(["text"])


def test_of_a_text_that_is_too_long_the_beginning_counts() -> None:
    with ScriptedRouter(embedding_characters=2_000) as endpoint, embedder(endpoint) as found:
        long = " ".join(f"word{number}" for number in range(2_000))
        vectors = found.embed(["short", long, "also short"])
        start = long[: len(long[:MAX_CHARACTERS]) // 16]
        assert 500 < len(start) <= 2_000
        np.testing.assert_allclose(vectors[1], embedding(start, 64), atol=1e-6)
        np.testing.assert_allclose(vectors[0], embedding("short", 64), atol=1e-6)
        np.testing.assert_array_equal(found.embed([long])[0], vectors[1])


def test_a_model_that_reads_nothing_at_all_is_unavailable() -> None:
    with ScriptedRouter() as endpoint, embedder(endpoint) as found:
        endpoint.rule("context_embedding_ollama")
        with pytest.raises(EmbedderUnavailableError):
            found.embed(["some text " * 50])
