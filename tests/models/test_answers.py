"""Replies of routers, whatever they hold: they are understood, or an error of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.errors import EmbeddingError, ModelError
from pikuri_memory.models.answers import chat_answer, object_of, vectors_of
from pikuri_memory.models.endpoint import Endpoint
from pikuri_memory.models.offers import names, offers, properties
from pikuri_memory.models.ranking import rank
from pikuri_memory.models.trouble import Reply, busy, passes, refuse, retry_after

ENDPOINT = Endpoint.parse("http://127.0.0.1:8080")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "error code type message object detail choices content usage data index embedding"
                " id owned_by meta status args value capabilities models name model n_ctx"
                " context_length details family max_model_len prompt_tokens finish_reason"
                " reasoning_content default_generation_settings model_info state".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
OBJECTS = st.dictionaries(
    st.sampled_from("error choices data models usage object detail message".split()), VALUES
)


T = TypeVar("T")
ROWS = st.lists(
    VALUES | st.fixed_dictionaries({}, optional={"id": VALUES | st.just("a"), "name": VALUES}),
    max_size=3,
)
NATIVE = VALUES | st.fixed_dictionaries(
    {}, optional={"data": VALUES | ROWS, "models": VALUES | ROWS, "model_info": VALUES}
)


def attempt(call: Callable[[], T]) -> T | ModelError:
    """What a call gives, or the error of ours that it raises, which has a hint."""
    try:
        return call()
    except ModelError as error:
        failure = error
    assert failure.hint
    return failure


@given(VALUES, st.integers(100, 599), st.text(max_size=8))
def test_any_reply_is_understood_or_an_error_of_ours(value: Any, status: int, after: str) -> None:
    reply = Reply(status, {"retry-after": after}, json.dumps(value).encode())
    for model in ("m", None):
        if attempt(partial(refuse, reply, ENDPOINT, model=model)) is None:
            assert reply.problem is None
    attempt(lambda: object_of(reply, ENDPOINT))
    passes(reply)
    assert str(busy(reply, ENDPOINT, 1.0, retry_after(reply)))


@given(st.binary(max_size=50), st.integers(100, 599))
def test_any_bytes_are_an_error_of_ours_or_nothing(content: bytes, status: int) -> None:
    reply = Reply(status, {}, content)
    attempt(lambda: refuse(reply, ENDPOINT, model=None))
    attempt(lambda: object_of(reply, ENDPOINT))


@given(OBJECTS)
def test_any_object_is_a_chat_or_an_error_of_ours(value: Mapping[str, Any]) -> None:
    answer = attempt(lambda: chat_answer(value, "m"))
    assert isinstance(answer, ModelError) or isinstance(answer.text, str)


@given(VALUES)
def test_any_message_is_an_answer_or_an_error_of_ours(message: Any) -> None:
    attempt(lambda: chat_answer({"choices": [{"message": message}]}, "m"))


@given(OBJECTS | st.builds(lambda rows: {"data": rows}, st.lists(VALUES, max_size=3)))
def test_any_object_is_vectors_or_an_error_of_ours(value: Mapping[str, Any]) -> None:
    for count in (1, 2):
        vectors = attempt(partial(vectors_of, value, "m", count))
        if isinstance(vectors, ModelError):
            assert isinstance(vectors, EmbeddingError)
        else:
            assert len(vectors) == count
            assert np.isfinite(vectors).all()
            assert vectors.any(axis=1).all()


@given(
    st.fixed_dictionaries({"data": ROWS}, optional={"models": VALUES | ROWS}),
    st.dictionaries(
        st.sampled_from(["/api/v0/models", "/api/tags", "/api/ps", "/api/show", "/props"]), NATIVE
    ),
)
def test_any_list_gives_models(listing: Mapping[str, Any], native: Mapping[str, Any]) -> None:
    def ask(method: str, path: str, body: Any) -> Any:
        return native.get(path.partition("?")[0])

    found = offers(listing, ask)
    assert [model.id for model in found] == names(listing)
    rank(found)
    for model in [*names(listing), "x"]:
        context = properties(model, listing, ask).get("context_tokens")
        assert context is None or isinstance(context, int)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("1", 1.0), ("0.5", 0.5), ("120", 120.0), ("", None), ("soon", None), ("-1", None)],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(told: str, seconds: float | None) -> None:
    assert retry_after(Reply(503, {"retry-after": told}, b"")) == seconds


def test_only_names_of_errors_are_repeated_where_a_text_was_sent() -> None:
    body = {"error": {"message": "secret words", "type": "bad_request", "code": "secret words"}}
    reply = Reply(422, {}, json.dumps(body).encode())
    with pytest.raises(ModelError) as caught:
        refuse(reply, ENDPOINT, model="m")
    assert "bad_request" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(ModelError, match="secret words"):
        refuse(reply, ENDPOINT, model=None)


def test_a_quoted_message_is_short_and_of_one_line() -> None:
    body = {"error": {"message": "long\n" * 500}}
    with pytest.raises(ModelError) as caught:
        refuse(Reply(500, {}, json.dumps(body).encode()), ENDPOINT, model=None)
    assert len(str(caught.value)) < 400
    assert re.search(r"[\r\n]", str(caught.value)) is None
