"""Bodies that are too large, too slow, too deep or no JSON, with the key and without."""

from __future__ import annotations

import json
import select
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest

from .target import BODY_LIMIT, GUEST, JSON, Target, json_of, leaks, status_of


def head(target: Target, *lines: str, path: str = "/memories", key: bool = True) -> bytes:
    """The head of a POST."""
    fixed = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{target.port}", JSON.strip()]
    if key:
        fixed.append(f"X-API-Key: {target.key}")
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


@pytest.mark.parametrize("length", [BODY_LIMIT + 1, 2**31, 2**63 - 1, 10**18])
def test_a_body_that_says_it_is_too_large_is_refused_unsent(target: Target, length: int) -> None:
    answer = target.raw(head(target, f"Content-Length: {length}"))
    assert status_of(answer) == 413, answer
    assert set(json_of(answer)) == {"detail", "hint", "code"}


@pytest.mark.parametrize("key", [True, False])
def test_a_body_without_end_is_cut_off(target: Target, key: bool) -> None:
    """In chunks, so that no length tells of it: read no further than the limit, then let go."""
    before = target.process.memory_info().rss
    end = time.monotonic() + 20
    with target.connect() as connection:
        connection.sendall(head(target, "Transfer-Encoding: chunked", key=key))
        answer = b""
        cut_off = False
        while not cut_off:
            assert time.monotonic() < end
            time.sleep(0.01)
            try:
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            except ConnectionError:
                cut_off = True
        with suppress(OSError):
            while part := connection.recv(65536):
                answer += part
    assert status_of(answer) in (0, 401, 413)
    assert target.process.memory_info().rss - before < 30_000_000


def test_a_stranger_s_body_is_not_read(target: Target) -> None:
    answer = target.raw(head(target, f"Content-Length: {BODY_LIMIT}", key=False))
    assert status_of(answer) == 401


def test_bodies_that_come_slowly_keep_nobody_waiting(target: Target) -> None:
    slow = []
    for number in range(60):
        connection = target.connect()
        connection.sendall(head(target, "Content-Length: 1000", key=number % 2 == 0) + b"{")
        slow.append(connection)
    for _ in range(5):
        for connection in slow:
            with suppress(OSError):
                connection.sendall(b" ")
        start = time.monotonic()
        target.check()
        assert time.monotonic() - start < 20
    for connection in slow:
        connection.close()


def deep(opening: str, closing: str, count: int) -> bytes:
    return (
        f'{{"messages": "deep", "user_id": "{GUEST}", "metadata": {{"a": '
        + opening * count
        + "1"
        + closing * count
        + "}}"
    ).encode()


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "white space": b"  \n ",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"x"',
    "cut short": b'{"messages": "x", "user_id": "gu',
    "two values": b'{"messages": "x", "user_id": "guest"}{}',
    "a comment": b'{"messages": "x", /* */ "user_id": "guest"}',
    "single quotes": b"{'messages': 'x', 'user_id': 'guest'}",
    "a trailing comma": b'{"messages": "x", "user_id": "guest",}',
    "NaN": b'{"messages": "x", "user_id": "guest", "metadata": {"a": NaN}}',
    "infinity": b'{"messages": "x", "user_id": "guest", "metadata": {"a": -Infinity}}',
    "1e999": b'{"messages": "x", "user_id": "guest", "metadata": {"a": 1e999}}',
    "2**64": b'{"messages": "x", "user_id": "guest", "metadata": {"a": 18446744073709551616}}',
    "5000 digits": b'{"messages": "x", "user_id": "guest", "metadata": {"a": '
    + b"9" * 5000
    + b"}}",
    "exponent": b'{"messages": "x", "user_id": "guest", "metadata": {"a": 1e' + b"9" * 500 + b"}}",
    "a lone surrogate": rb'{"messages": "\ud800", "user_id": "guest"}',
    "a lone low surrogate": rb'{"messages": "\udfff x", "user_id": "guest"}',
    "surrogates swapped": rb'{"messages": "\udc00\ud800", "user_id": "guest"}',
    "a surrogate in a name": rb'{"messages": "x", "user_id": "guest", "metadata": {"\ud800": 1}}',
    "a surrogate in UTF-8": b'{"messages": "\xed\xa0\x80", "user_id": "guest"}',
    "no UTF-8": b'{"messages": "\xff\xfe", "user_id": "guest"}',
    "overlong": b'{"messages": "\xc0\xaf", "user_id": "guest"}',
    "beyond Unicode": b'{"messages": "\xf4\x90\x80\x80", "user_id": "guest"}',
    "UTF-16": '{"messages": "x", "user_id": "guest"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"messages": "x", "user_id": "guest"}',
    "a raw control character": b'{"messages": "a\x01b", "user_id": "guest"}',
    "a raw line end": b'{"messages": "a\nb", "user_id": "guest"}',
    "NUL after it": b'{"messages": "x", "user_id": "guest"}\x00',
    "a NUL in an id": rb'{"messages": "x", "user_id": "gu\u0000est"}',
    "200 levels and more": deep("[", "]", 300),
    "100,000 lists": deep("[", "]", 100_000),
    "100,000 objects": deep('{"a":', "}", 100_000),
    "100,000 openings": b"[" * 100_000,
    "a list for an id": b'{"messages": "x", "user_id": ["guest"]}',
    "an object for an id": b'{"messages": "x", "user_id": {"$ne": null}}',
    "a long id": b'{"messages": "x", "user_id": "' + b"g" * 100_000 + b'"}',
    "a long prompt": b'{"messages": "x", "user_id": "guest", "prompt": "' + b"p" * 100_001 + b'"}',
    "no content": b'{"messages": [{"role": "user"}], "user_id": "guest"}',
    "content as a list": b'{"messages": [{"role": "user", "content": []}], "user_id": "guest"}',
    "too many messages": json.dumps(
        {"messages": [{"role": "user", "content": "x"}] * 1001, "user_id": GUEST}
    ).encode(),
}
DATES = {
    "February 30": b'{"messages": "x", "user_id": "guest", "expiration_date": "2026-02-30"}',
    "the year 10000": b'{"messages": "x", "user_id": "guest", "expiration_date": "10000-01-01"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_a_malformed_request(target: Target, name: str) -> None:
    for path in target.readers:
        status, answer = target.ask(f"POST {path}", JSON, HOSTILE[name], key=True)
        assert status in (413, 415, 422), answer
        assert set(json_of(answer)) >= {"detail", "hint", "code"}
        assert b"guest" not in answer.partition(b"\r\n\r\n")[2]
    found = target.owner.get(f"/memories?user_id={GUEST}").json()["results"]
    assert found == []


@pytest.mark.parametrize("name", DATES)
def test_a_date_that_is_none_is_a_malformed_request(target: Target, name: str) -> None:
    status, answer = target.ask("POST /memories", JSON, DATES[name], key=True)
    assert status == 422, answer
    assert target.owner.get(f"/memories?user_id={GUEST}").json()["results"] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_of_a_stranger_is_not_even_read(target: Target, name: str) -> None:
    status, answer = target.ask("POST /memories", JSON, HOSTILE[name])
    assert status == 401
    assert not leaks(answer)


def test_of_two_fields_of_one_name_the_last_one_counts_everywhere(target: Target) -> None:
    """No two readers of one request may differ on whose memory it is."""
    body = b'{"messages": "said twice", "user_id": "alice", "user_id": "guest"}'
    assert target.ask("POST /memories", JSON, body, key=True)[0] == 200
    found = target.owner.get(f"/memories?user_id={GUEST}").json()["results"]
    assert [memory["memory"] for memory in found] == ["said twice"]
    body = b'{"query": "spare key", "user_id": "alice", "user_id": "guest"}'
    status, answer = target.ask("POST /search", JSON, body, key=True)
    assert status == 200
    assert not leaks(answer)
    reply = target.owner.get("/memories?user_id=guest&user_id=alice")
    assert reply.status_code == 422


@pytest.mark.parametrize(
    "value",
    [
        {"a": 2**63 - 1, "b": -(2**63), "c": 1.7976931348623157e308, "d": 5e-324, "e": -0.0},
        {"\u0000": "\u0000", "": "", "a.b": 1, '"': "'", "$where": "1", "__proto__": {"x": 1}},
        {"text": "x" * 300_000},
        {str(number): number for number in range(5000)},
    ],
)
def test_odd_metadata_comes_back_as_it_went_in(target: Target, value: dict[str, Any]) -> None:
    sent = {"messages": "odd metadata", "user_id": GUEST, "metadata": value}
    reply = target.owner.post("/memories", json=sent)
    assert reply.status_code == 200, reply.text
    memory_id = reply.json()["results"][0]["id"]
    assert target.owner.get(f"/memories/{memory_id}").json()["metadata"] == value


def test_metadata_are_kept_as_deep_as_a_body_may_be_and_refused_beyond(target: Target) -> None:
    """What is too deep for a store makes all of it unreadable."""

    def add(levels: int) -> httpx.Response:
        # Beside the lists: the body, the metadata, the number.
        value = {"a": json.loads("[" * (levels - 2) + "1" + "]" * (levels - 2))}
        sent = {"messages": "deep metadata", "user_id": GUEST, "metadata": value}
        return target.owner.post("/memories", json=sent)

    kept = add(target.levels)
    assert kept.status_code == 200, kept.text
    assert add(target.levels + 1).status_code == 422
    [found] = target.owner.get(f"/memories?user_id={GUEST}").json()["results"]
    assert json.dumps(found["metadata"]).count("[") == target.levels - 2


def test_a_compressed_body_is_not_unpacked(target: Target) -> None:
    import gzip

    bomb = gzip.compress(b"0" * 50_000_000)
    for header in (
        "Content-Encoding: gzip",
        "Content-Encoding: br",
        "Content-Encoding: identity, gzip",
    ):
        status, answer = target.ask("POST /memories", f"{JSON}{header}\r\n", bomb, key=True)
        assert status == 415, answer


def test_a_body_that_stops_in_the_middle_stores_nothing(target: Target) -> None:
    body = json.dumps({"messages": "half a request", "user_id": GUEST}).encode()
    for cut in (1, len(body) // 2, len(body) - 1):
        with target.connect() as connection:
            connection.sendall(head(target, f"Content-Length: {len(body)}") + body[:cut])
    target.check()
    assert target.owner.get(f"/memories?user_id={GUEST}").json()["results"] == []


def test_a_large_text_is_taken_or_refused_and_never_an_error(target: Target) -> None:
    for text, status in (
        ("tea " * 24_999, 200),
        ("x" * 100_000, 200),
        ("茶" * 100_000, 200),
        ("x" * 100_001, 413),
        ("x" * 999_000, 413),
    ):
        sent = {"messages": text, "user_id": GUEST}
        reply = target.owner.post("/memories", json=sent)
        assert reply.status_code == status, reply.text[:300]
        if status == 200:
            memory = target.owner.get(f"/memories/{reply.json()['results'][0]['id']}").json()
            assert memory["memory"].strip() == text.strip()
        reply = target.owner.post("/search", json={"query": text, "user_id": "bob"})
        assert reply.status_code == status, reply.text[:300]


def test_a_refusal_can_be_read_by_an_ordinary_client(target: Target) -> None:
    with httpx.Client(base_url=target.endpoint, timeout=60, trust_env=False) as client:
        reply = client.post("/memories", json={"messages": "x" * 3_000_000, "user_id": GUEST})
        assert reply.status_code == 401
        client.headers["X-API-Key"] = target.key
        reply = client.post("/memories", json={"messages": "x" * 3_000_000, "user_id": GUEST})
        assert reply.status_code == 413


@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.parametrize("key", [False, True])
def test_a_refusal_reaches_even_who_sends_all_before_reading(
    target: Target, key: bool, expects: bool
) -> None:
    """A connection that is closed while it is sent to is reset, and takes the reply with it."""
    more = ("Expect: 100-continue",) if expects else ()
    with target.connect() as connection:
        connection.sendall(head(target, "Content-Length: 3000000", *more, key=key) + b"x" * 1000)
        # The refusal is on its way: whoever sends it has no more to say.
        assert select.select([connection], [], [], 30)[0]
        time.sleep(0.2)
        for _ in range(2999):
            connection.sendall(b"x" * 1000)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert status_of(answer) == (413 if key else 401)
    assert set(json_of(answer)) == {"detail", "hint", "code"}
