"""What comes in is understood or refused by name, and never repeated in an error."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.embedded import schemas
from pikuri_memory.embedded.model import Message
from pikuri_memory.errors import (
    FilterError,
    InvalidRequestError,
    PikuriMemoryError,
    ScopeRequiredError,
    TooLargeError,
)
from pikuri_memory.record import UNSET, Scope
from pikuri_memory.settings import Settings

SETTINGS = Settings.resolve({"max_messages": 3, "max_text_length": 100}, {})
ID = "7b0c7a52-5f0e-4a51-9f39-1c4f0a3c1b11"


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def adding(**more: Any) -> bytes:
    return encoded({"messages": [{"role": "user", "content": "hello"}], "user_id": "a", **more})


def batch(**item: Any) -> bytes:
    return encoded({"memories": [{"memory": "hello", "user_id": "a", **item}]})


# ------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"{} {}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x00"}',
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_what_is_no_clean_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        schemas.parse_object(body)


def test_of_a_repeated_name_the_last_one_counts() -> None:
    assert schemas.parse_object(b'{"a": 1, "a": 2}') == {"a": 2}


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    for parse in (
        schemas.parse_add,
        schemas.parse_batch,
        schemas.parse_update,
        schemas.parse_search,
    ):
        with pytest.raises(PikuriMemoryError):
            parse(body, SETTINGS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
NAMES = "messages user_id agent_id run_id metadata infer prompt expiration_date memories query"
FIELDS = st.sampled_from([*NAMES.split(), *"filters top_k threshold explain text id".split()])


@given(st.dictionaries(FIELDS, JSON, max_size=8))
def test_any_json_is_understood_or_refused(value: dict[str, Any]) -> None:
    for parse in (
        schemas.parse_add,
        schemas.parse_batch,
        schemas.parse_update,
        schemas.parse_search,
    ):
        refused: PikuriMemoryError | None = None
        try:
            parse(encoded(value), SETTINGS)
        except PikuriMemoryError as error:
            refused = error
        assert refused is None or (refused.hint and 400 <= refused.status < 500)


# ------------------------------------------------------------------ add


def test_an_add_is_read_whole() -> None:
    body = encoded(
        {
            "messages": [
                {"role": "user", "content": "hello", "name": "ignored"},
                {"role": "assistant", "content": ""},
            ],
            "user_id": " alice ",
            "run_id": "r",
            "metadata": {"n": 2**63 - 1, "deep": [{"x": None}]},
            "infer": False,
            "prompt": "p",
            "expiration_date": "2030-02-28",
            "memory_type": "ignored",
        }
    )
    sent = schemas.parse_add(body, SETTINGS)
    assert sent.messages == [Message("user", "hello"), Message("assistant", "")]
    assert sent.scope == Scope(user_id="alice", run_id="r")
    assert sent.metadata == {"n": 2**63 - 1, "deep": [{"x": None}]}
    assert (sent.infer, sent.prompt) == (False, "p")
    assert sent.expiration_date == date(2030, 2, 28)


def test_a_plain_string_is_one_message_of_the_user() -> None:
    sent = schemas.parse_add(adding(messages="hello"), SETTINGS)
    assert sent.messages == [Message("user", "hello")]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ["SECRET"]}]}, "messages.0.content"),
        ({"messages": ["SECRET"]}, "messages.0"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "a" * 513}, "user_id"),
        ({"user_id": "a\nSECRET"}, "user_id"),
        ({"metadata": ["SECRET"]}, "metadata"),
        ({"metadata": {"SECRET": 2**63}}, "metadata"),
        ({"metadata": {"a": [{"b": -(2**63) - 1}]}}, "metadata"),
        ({"infer": "SECRET"}, "infer"),
        ({"infer": 1}, "infer"),
        ({"prompt": {"SECRET": 1}}, "prompt"),
        ({"expiration_date": "SECRET"}, "expiration_date"),
        ({"expiration_date": "2030-02-30"}, "expiration_date"),
        ({"expiration_date": "20300228"}, "expiration_date"),
        ({"expiration_date": "2030-W01-1"}, "expiration_date"),
        ({"expiration_date": "２０３０-01-01"}, "expiration_date"),
    ],
)
def test_a_wrong_field_is_named_and_not_repeated(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        schemas.parse_add(adding(**change), SETTINGS)
    assert caught.value.status == 422
    assert named in caught.value.message
    assert "SECRET" not in caught.value.message + caught.value.hint


def test_a_number_that_reads_as_infinity_is_refused() -> None:
    body = adding(metadata={"a": 0}).replace(b'"a": 0', b'"a": 1e999')
    with pytest.raises(InvalidRequestError, match="metadata"):
        schemas.parse_add(body, SETTINGS)


@pytest.mark.parametrize(
    "ids", [{}, {"user_id": ""}, {"user_id": "  "}, {"user_id": "*"}, {"user_id": None}]
)
def test_a_scope_is_required(ids: dict[str, Any]) -> None:
    message = [{"role": "user", "content": "hello"}]
    with pytest.raises(ScopeRequiredError):
        schemas.parse_add(encoded({"messages": message, **ids}), SETTINGS)
    with pytest.raises(ScopeRequiredError, match=r"memories\.0"):
        schemas.parse_batch(encoded({"memories": [{"memory": "hello", **ids}]}), SETTINGS)
    with pytest.raises(ScopeRequiredError):
        schemas.parse_search(encoded({"query": "hello", **ids}), SETTINGS)


@pytest.mark.parametrize(
    "body",
    [
        adding(messages="x" * 101),
        adding(messages=[{"role": "user", "content": "x"}] * 4),
        adding(prompt="x" * 101),
    ],
)
def test_what_is_over_a_limit_is_refused_as_too_large(body: bytes) -> None:
    with pytest.raises(TooLargeError) as caught:
        schemas.parse_add(body, SETTINGS)
    assert caught.value.status == 413


def test_the_digest_knows_the_content_and_not_its_spelling() -> None:
    one = schemas.parse_add(b'{"messages":"hi","user_id":"a"}', SETTINGS)
    same = schemas.parse_add(b' {"user_id" : "\\u0061", "messages":"hi"}', SETTINGS)
    other = schemas.parse_add(b'{"messages":"ho","user_id":"a"}', SETTINGS)
    assert one.digest == same.digest
    assert one.digest != other.digest


# ------------------------------------------------------------------ batch


def test_an_item_of_a_batch_has_the_shape_of_a_listed_memory() -> None:
    sent = schemas.parse_batch(
        batch(
            id=ID.upper(),
            hash="ignored",
            agent_id=None,
            metadata=None,
            created_at="2026-01-02T03:04:05.000006+00:00",
            updated_at="2026-01-02T05:04:05.000006+02:00",
            history=[
                {
                    "id": "h",
                    "event": "ADD",
                    "old_memory": None,
                    "new_memory": "hi",
                    "created_at": "2026-01-01T00:00:00Z",
                }
            ],
        ),
        SETTINGS,
    )
    (item,) = sent.items
    assert item.id == ID
    assert item.created_at == item.updated_at == 1_767_323_045_000_006
    (entry,) = item.history
    assert (entry.memory_id, entry.event, entry.new_text) == (ID, "ADD", "hi")
    assert entry.at == 1_767_225_600_000_000


def test_a_time_without_a_zone_is_utc() -> None:
    (item,) = schemas.parse_batch(batch(created_at="2026-01-01T00:00:00"), SETTINGS).items
    assert item.created_at == 1_767_225_600_000_000


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"memory": " \n"}, "memories.0.memory"),
        ({"id": "SECRET"}, "memories.0.id"),
        ({"id": "{" + ID + "}"}, "memories.0.id"),
        ({"created_at": "SECRET"}, "memories.0.created_at"),
        ({"created_at": 1}, "memories.0.created_at"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "memories.0.created_at"),
        ({"created_at": "9999-12-31T23:59:59-14:00"}, "memories.0.created_at"),
        ({"history": [{"event": "SECRET"}]}, "memories.0.history.0.event"),
        ({"user_id": "\x00"}, "memories.0: user_id"),
    ],
)
def test_a_wrong_item_of_a_batch_is_named(item: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        schemas.parse_batch(batch(**item), SETTINGS)
    assert named in caught.value.message
    assert "SECRET" not in caught.value.message


# ------------------------------------------------------------------ update


def test_an_update_tells_absent_from_null_where_it_matters() -> None:
    sent = schemas.parse_update(b'{"text": "new", "metadata": null}', SETTINGS)
    assert (sent.text, sent.metadata, sent.expiration_date) == ("new", UNSET, UNSET)
    sent = schemas.parse_update(b'{"metadata": {}, "expiration_date": null}', SETTINGS)
    assert (sent.text, sent.metadata, sent.expiration_date) == (UNSET, {}, None)


@pytest.mark.parametrize("body", [b"{}", b'{"text": null}', b'{"text": ""}', b'{"text": " "}'])
def test_an_update_that_changes_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        schemas.parse_update(body, SETTINGS)


# ------------------------------------------------------------------ search


def test_a_search_has_its_scope_in_the_filters_or_beside_them() -> None:
    inside = schemas.parse_search(encoded({"query": "q", "filters": {"user_id": "a"}}), SETTINGS)
    beside = schemas.parse_search(encoded({"query": "q", "user_id": "a", "filters": {}}), SETTINGS)
    both = schemas.parse_search(
        encoded({"query": "q", "user_id": "a", "filters": {"user_id": "a", "run_id": "r"}}),
        SETTINGS,
    )
    assert inside == beside
    assert inside.scope == Scope("a")
    assert (inside.top_k, inside.threshold, inside.explain) == (20, 0.0, False)
    assert both.scope == Scope(user_id="a", run_id="r")


def test_two_scopes_that_differ_are_refused() -> None:
    body = encoded({"query": "q", "user_id": "a", "filters": {"user_id": "b"}})
    with pytest.raises(InvalidRequestError, match="user_id"):
        schemas.parse_search(body, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"query": ""},
        {"query": "  "},
        {"query": None},
        {"top_k": 0},
        {"top_k": 1001},
        {"top_k": "5"},
        {"top_k": True},
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": "0"},
        {"explain": "true"},
        {"filters": []},
        {"filters": {"user_id": "a", "n": 2**64}},
    ],
)
def test_a_wrong_search_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        schemas.parse_search(encoded({"query": "q", "user_id": "a", **change}), SETTINGS)


def test_a_wrong_filter_is_a_filter_error() -> None:
    body = encoded({"query": "q", "filters": {"user_id": "a", "n": {"near": 1}}})
    with pytest.raises(FilterError):
        schemas.parse_search(body, SETTINGS)


# ------------------------------------------------------------------ query and headers


def test_a_list_is_whole_unless_a_page_is_asked_for() -> None:
    whole = schemas.parse_list([("user_id", "a"), ("other", "x"), ("other", "y")])
    assert (whole.scope, whole.limit, whole.cursor) == (Scope("a"), None, None)
    assert schemas.parse_list([("top_k", "7")]).limit == 7
    assert schemas.parse_list([("cursor", "c")]).limit == schemas.PAGE
    assert schemas.parse_list([("show_expired", "True")]).show_expired


@pytest.mark.parametrize(
    "query",
    [
        [("top_k", "0")],
        [("top_k", "1001")],
        [("top_k", "x")],
        [("top_k", "")],
        [("top_k", "-1")],
        [("top_k", "1e2")],
        [("top_k", "٣")],
        [("show_expired", "perhaps")],
        [("user_id", "a"), ("user_id", "b")],
        [("user_id", "a"), ("user_id", "a")],
    ],
)
def test_a_wrong_query_is_refused(query: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        schemas.parse_list(query)
    assert caught.value.status == 422


@pytest.mark.parametrize("value", ["", " ", "*"])
def test_an_empty_id_is_no_wider_scope(value: str) -> None:
    with pytest.raises(ScopeRequiredError):
        schemas.parse_list([("user_id", value)])
    with pytest.raises(ScopeRequiredError):
        schemas.parse_scope([("user_id", value), ("run_id", "r")])
    with pytest.raises(ScopeRequiredError):
        schemas.entity_scope("user", value)


def test_a_scope_to_delete_is_required() -> None:
    with pytest.raises(ScopeRequiredError):
        schemas.parse_scope([])


def test_an_entity_is_a_scope() -> None:
    assert schemas.entity_scope("run", "a/b") == Scope(run_id="a/b")
    with pytest.raises(InvalidRequestError):
        schemas.entity_scope("app", "x")


def test_an_idempotency_key_belongs_to_route_and_scope() -> None:
    key = schemas.idempotency_key(["k-1"], "/memories", Scope("a", run_id="ö"), b"digest")
    assert key is not None
    assert (key.key, key.method, key.path) == ("k-1", "POST", "/memories")
    assert key.scope == '{"run_id":"ö","user_id":"a"}'
    assert key.body_digest == b"digest"
    assert schemas.idempotency_key([], "/memories", Scope("a"), b"digest") is None


@pytest.mark.parametrize("values", [[""], ["a b"], ["a\t"], ["x" * 256], ["ö"], ["a", "a"]])
def test_a_wrong_idempotency_key_is_refused(values: list[str]) -> None:
    with pytest.raises(InvalidRequestError):
        schemas.idempotency_key(values, "/memories", Scope("a"), b"")
