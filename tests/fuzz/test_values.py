"""What was accepted is read back exactly, whatever it is; what is not is refused with a reason."""

from __future__ import annotations

import json
import math
import unicodedata
import urllib.parse
import uuid
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.security.target import GUEST, Target

quick = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

REFUSED = (400, 404, 409, 413, 422)
USER_IDS = st.text(max_size=40)

# Everything that JSON can carry: no lone surrogates.
characters = st.characters(exclude_categories=["Cs"])
awkward = st.sampled_from(
    [
        "\x00",
        "\x01\x02\x1b[31m",
        "\x7f\x80\x9f",
        "\r\n\t\v\f",
        "\u2028\u2029\u0085",
        "\ufeff",
        "\ufffe\uffff",
        "\U0001f469\u200d\U0001f4bb",
        "\U0010ffff",
        "e\u0301\u0301\u0301",
        "Å\u212b",
        "ﷺ",
        "\u202eevil\u202c",
        "שלום עולם",
        "مرحبا",
        "日本語の文",
        "ßẞſ",
        "'; DROP TABLE memories; --",
        '"\\"',
        "%s %n %00 {0} ${x}",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "\u00ad\u200b\u2060",
        "NULL",
        "𝔘𝔫𝔦",
    ]
)
texts = st.lists(st.one_of(st.text(characters, max_size=60), awkward), max_size=6).map("".join)


@pytest.fixture(scope="module")
def owner(target: Target) -> httpx.Client:
    """A client with the key."""
    return target.owner


@pytest.fixture(scope="module", autouse=True)
def unharmed(target: Target) -> Any:
    """At the end of it all: nothing else has changed, nothing unforeseen has happened."""
    yield
    target.forget_guest()
    target.check()


def ok(reply: httpx.Response) -> bool:
    """Whether it was accepted; if not, that it was refused properly."""
    if reply.status_code == 200:
        return True
    assert reply.status_code in REFUSED, (reply.status_code, reply.text[:300])
    told = reply.json()
    assert set(told) == {"detail", "hint", "code"}
    assert told["detail"]
    assert told["hint"]
    return False


def send(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    """JSON with everything beyond ASCII as it is, as most clients send it."""
    return client.request(
        method,
        path,
        content=json.dumps(body, ensure_ascii=False).encode(),
        headers={"Content-Type": "application/json"},
    )


@quick
@given(text=texts, escaped=st.booleans())
@example(text="\x00", escaped=False)
@example(text=" \u00a0\u3000 ", escaped=False)
def test_any_text_is_read_back_exactly_or_refused(
    owner: httpx.Client, text: str, escaped: bool
) -> None:
    body = json.dumps({"messages": text, "user_id": GUEST}, ensure_ascii=escaped).encode()
    reply = owner.post("/memories", content=body, headers={"Content-Type": "application/json"})
    if not ok(reply):
        assert not text.strip()
        return
    results = reply.json()["results"]
    if not results:
        assert not text.strip()
        return
    [result] = results
    memory = owner.get(f"/memories/{result['id']}").json()
    assert memory["memory"] == result["memory"]
    same = unicodedata.normalize("NFC", text).strip()
    assert unicodedata.normalize("NFC", memory["memory"]).strip() == same
    if result["event"] == "ADD":
        assert memory["memory"] in (text, text.strip())
    # And it is stored once.
    again = send(owner, "POST", "/memories", {"messages": text, "user_id": GUEST})
    assert again.json()["results"] == [{**result, "event": "NONE"}]
    # And searching for it is possible.
    assert ok(send(owner, "POST", "/search", {"query": text, "user_id": GUEST, "top_k": 3}))


@quick
@given(text=texts)
def test_an_update_is_read_back_exactly(owner: httpx.Client, text: str) -> None:
    first = {"messages": f"to be changed {uuid.uuid4()}", "user_id": GUEST}
    memory_id = send(owner, "POST", "/memories", first).json()["results"][0]["id"]
    before = owner.get(f"/memories/{memory_id}").json()
    reply = send(owner, "PUT", f"/memories/{memory_id}", {"text": text})
    after = owner.get(f"/memories/{memory_id}").json()
    if ok(reply):
        assert after["memory"] in (text, text.strip())
        changes = owner.get(f"/memories/{memory_id}/history").json()
        assert changes[-1]["new_memory"] == after["memory"]
    else:
        assert after == before
    assert owner.delete(f"/memories/{memory_id}").status_code == 200


SIZES = [100_000, 400_000, 1_048_576]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "piece", ["word ", "x", "茶", "\U0001f600", "\x00", "e\u0301", "\u202e", "a-", "\n"]
)
def test_a_very_long_text_is_read_back_exactly(owner: httpx.Client, piece: str, size: int) -> None:
    """Up to a megabyte, of words, of one word, of what are no words."""
    text = piece * (size // len(piece.encode()))
    reply = send(owner, "POST", "/memories", {"messages": text, "user_id": GUEST})
    if piece == "\n":
        assert not ok(reply) or reply.json()["results"] == []
        return
    assert reply.status_code == 200, reply.text[:300]
    [result] = reply.json()["results"]
    memory = owner.get(f"/memories/{result['id']}").json()
    assert memory["memory"].strip() == text.strip()
    if size == SIZES[0]:
        assert ok(send(owner, "POST", "/search", {"query": text, "user_id": GUEST, "top_k": 1}))
    assert owner.delete(f"/memories/{result['id']}").status_code == 200


numbers = st.one_of(
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 1e308, 5e-324, -0.0, 0.1]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)


def large(value: Any) -> bool:
    """Whether it has an integer that not every reader of JSON keeps."""
    if isinstance(value, dict):
        return any(large(part) for part in value.values())
    if isinstance(value, list):
        return any(large(part) for part in value)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type: 1 is neither 1.0 nor true."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@quick
@given(metadata=st.dictionaries(texts, values, max_size=5))
@example(metadata={"a": 1.0, "b": 1, "c": True, "d": -0.0})
@example(metadata={"a": 2**63})
@example(metadata={"": {"": [[], {}, None]}})
def test_any_metadata_is_read_back_exactly_or_refused(
    owner: httpx.Client, metadata: dict[str, Any]
) -> None:
    text = f"with metadata {uuid.uuid4()}"
    body = {"messages": text, "user_id": GUEST, "metadata": metadata}
    reply = send(owner, "POST", "/memories", body)
    if not ok(reply):
        assert large(metadata)
        return
    memory_id = reply.json()["results"][0]["id"]
    assert same(owner.get(f"/memories/{memory_id}").json()["metadata"], metadata)
    listed = owner.get("/memories", params={"user_id": GUEST, "top_k": 1}).json()["results"][0]
    assert same(listed["metadata"], metadata)
    # Every top-level value that a filter can name finds its memory.
    for name, value in metadata.items():
        if isinstance(value, dict | list):
            continue
        sent = {"query": "with metadata", "filters": {"user_id": GUEST, name: {"eq": value}}}
        found = send(owner, "POST", "/search", {**sent, "top_k": 1000})
        if ok(found):
            assert memory_id in [hit["id"] for hit in found.json()["results"]]
    assert owner.delete(f"/memories/{memory_id}").status_code == 200


@pytest.mark.parametrize("levels", [1, 50, 150, 190, 250, 1000])
@pytest.mark.parametrize("kind", ["lists", "objects"])
def test_deep_metadata_is_read_back_or_refused(owner: httpx.Client, kind: str, levels: int) -> None:
    opening, closing = ("[", "]") if kind == "lists" else ('{"a":', "}")
    value = opening * levels + "1" + closing * levels
    said = f'"messages": "deep {levels} {kind}", "user_id": "{GUEST}"'
    body = f'{{{said}, "metadata": {{"m": {value}}}}}'
    reply = owner.post("/memories", content=body, headers={"Content-Type": "application/json"})
    if not ok(reply):
        assert levels > 150
        return
    memory_id = reply.json()["results"][0]["id"]
    stored = owner.get(f"/memories/{memory_id}").json()["metadata"]["m"]
    assert json.dumps(stored) == json.dumps(json.loads(value))
    filters = {"user_id": GUEST, "m": {"ne": 1}}
    assert ok(send(owner, "POST", "/search", {"query": "deep", "filters": filters}))


@quick
@given(user=USER_IDS, agent=st.none() | USER_IDS)
@example(user="*", agent=None)
@example(user="a/b?c#d%2F", agent="..")
@example(user="x" * 512, agent=None)
@example(user="x" * 513, agent=None)
def test_any_id_of_a_scope_means_itself_or_is_refused(
    owner: httpx.Client, user: str, agent: str | None
) -> None:
    # The ids of this test are its own: whatever is deleted here is of nobody else.
    assume(user.strip() not in ("alice", "bob", GUEST))
    text = f"whose is it? {uuid.uuid4()}"
    body = {"messages": text, "user_id": user, "agent_id": agent}
    reply = send(owner, "POST", "/memories", body)
    if not ok(reply):
        return
    memory_id = reply.json()["results"][0]["id"]
    memory = owner.get(f"/memories/{memory_id}").json()
    assert memory["user_id"] == user.strip()
    assert memory["agent_id"] == (None if agent is None else agent.strip())
    found = send(owner, "POST", "/search", {"query": text, "filters": {"user_id": user}})
    assert ok(found)
    assert [hit["id"] for hit in found.json()["results"]] == [memory_id]
    listed = owner.get("/memories", params={"user_id": user})
    assert [each["id"] for each in listed.json()["results"]] == [memory_id]
    if user.strip() in (".", ".."):
        # Clients take such a part out of a path before they send it.
        gone = owner.delete("/memories", params={"user_id": user})
    else:
        gone = owner.delete(f"/entities/user/{urllib.parse.quote(user.strip(), safe='')}")
    assert gone.status_code == 200
    assert owner.get(f"/memories/{memory_id}").status_code == 404


@quick
@given(memory_id=st.one_of(texts, st.uuids().map(str), st.uuids().map(lambda value: value.hex)))
def test_any_id_of_a_memory_is_found_or_not(owner: httpx.Client, memory_id: str) -> None:
    part = urllib.parse.quote(memory_id, safe="")
    assume(memory_id not in ("", ".", ".."))
    for method, path, body in (
        ("GET", f"/memories/{part}", None),
        ("GET", f"/memories/{part}/history", None),
        ("PUT", f"/memories/{part}", {"text": "x"}),
        ("DELETE", f"/memories/{part}", None),
    ):
        reply = owner.request(method, path, json=body)
        assert reply.status_code in (404, 405), (reply.status_code, reply.text)
        assert "code" in reply.json()


operators = st.sampled_from(
    "eq ne gt gte lt lte in nin contains icontains like AND OR NOT * $ne".split()
)
conditions = st.recursive(
    values,
    lambda inner: st.dictionaries(st.one_of(operators, texts), inner, max_size=3),
    max_leaves=8,
)
groups = st.dictionaries(
    st.one_of(
        texts,
        st.sampled_from(
            ["AND", "OR", "NOT", "user_id", "agent_id", "run_id", "created_at", "updated_at", "id"]
        ),
    ),
    st.one_of(conditions, st.lists(st.dictionaries(texts, conditions, max_size=2), max_size=3)),
    max_size=4,
)


@settings(quick, max_examples=120)
@given(filters=groups, query=texts, more=st.booleans())
@example(filters={"a": {"contains": ""}}, query="x", more=True)
@example(filters={"NOT": []}, query="x", more=True)
@example(filters={"a": {"in": []}}, query="x", more=True)
@example(filters={"a": {"eq": "\x00"}}, query="x", more=True)
@example(filters={'"$[0]': {"gt": 1}}, query="x", more=True)
def test_any_filter_stays_in_its_scope_or_is_refused(
    owner: httpx.Client, filters: dict[str, Any], query: str, more: bool
) -> None:
    """Equal to a plain evaluation: tests/embedded/test_filters.py. Here: through everything."""
    sent = {"query": query, "filters": {**filters, "user_id": GUEST}, "explain": more}
    reply = send(owner, "POST", "/search", sent)
    if ok(reply):
        for hit in reply.json()["results"]:
            assert hit["user_id"] == GUEST
            assert 0 <= hit["score"] <= 1


@quick
@given(
    body=st.dictionaries(
        st.sampled_from(
            "query user_id agent_id run_id filters top_k threshold explain show_expired messages"
            " metadata infer prompt expiration_date memories text".split()
        ),
        st.one_of(
            values, st.sampled_from(["guest", "x", 1, 0, -1, 10**9, 0.5, True, "2030-01-01"])
        ),
        max_size=6,
    )
)
def test_any_object_is_served_or_refused(owner: httpx.Client, body: dict[str, Any]) -> None:
    body = {name: value for name, value in body.items() if not name.endswith("_id")}
    for method, path in (
        ("POST", "/search"),
        ("POST", "/memories"),
        ("POST", "/memories/batch"),
        ("PUT", f"/memories/{uuid.UUID(int=1)}"),
    ):
        ok(send(owner, method, path, {**body, "user_id": GUEST}))


@quick
@given(
    body=st.one_of(st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode()))
)
def test_any_bytes_are_refused_or_served(owner: httpx.Client, body: bytes) -> None:
    for path in ("/search", "/memories", "/memories/batch"):
        ok(owner.post(path, content=body, headers={"Content-Type": "application/json"}))


@quick
@given(
    query=st.lists(
        st.tuples(
            st.sampled_from("user_id agent_id run_id top_k cursor show_expired x".split()), texts
        ),
        max_size=4,
    )
)
def test_any_query_of_a_list_is_served_or_refused(
    owner: httpx.Client, query: list[tuple[str, Any]]
) -> None:
    assert ok(owner.get("/memories", params=httpx.QueryParams(query))) in (True, False)


@quick
@given(raw=st.binary(max_size=60))
def test_any_bytes_in_a_query_are_served_or_refused(target: Target, raw: bytes) -> None:
    escaped = urllib.parse.quote_from_bytes(raw)
    for name in ("user_id", "cursor", "top_k", "show_expired"):
        ok(target.owner.get(f"/memories?{name}={escaped}"))


@quick
@given(key=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=300))
def test_any_idempotency_key_is_taken_or_refused(owner: httpx.Client, key: str) -> None:
    assume(key == key.strip(" "))  # clients send no other
    reply = owner.post(
        "/memories",
        json={"messages": f"once {key!r}", "user_id": GUEST},
        headers={b"Idempotency-Key": key.encode("latin-1")},
    )
    ok(reply)
