"""Who has no key, or keeps it in the wrong place, gets nothing (row 10 of the complaints)."""

from __future__ import annotations

import uuid

import httpx
import pytest

from pikuri_memory import discovery

from .target import GUEST, JSON, SECRETS, Target, json_of, leaks

ADD = b'{"messages": "planted by a stranger", "user_id": "alice"}'
SEARCH = b'{"query": "where is the key", "user_id": "alice"}'
ROUTES = [
    ("GET", "/memories", b""),
    ("GET", "/memories?user_id=alice", b""),
    ("GET", f"/memories/{uuid.UUID(int=1)}", b""),
    ("GET", f"/memories/{uuid.UUID(int=1)}/history", b""),
    ("POST", "/memories", ADD),
    ("POST", "/memories/batch", b'{"memories": [{"memory": "x", "user_id": "alice"}]}'),
    ("POST", "/search", SEARCH),
    ("PUT", f"/memories/{uuid.UUID(int=1)}", b'{"text": "x"}'),
    ("DELETE", f"/memories/{uuid.UUID(int=1)}", b""),
    ("DELETE", "/memories?user_id=alice", b""),
    ("DELETE", "/entities/user/alice", b""),
    ("GET", "/entities", b""),
    ("GET", "/configure", b""),
    ("POST", "/configure", b"{}"),
    ("GET", "/status", b""),
    ("GET", "/metrics", b""),
    ("POST", "/reset", b""),
    ("POST", "/purge", b""),
    ("GET", "/", b""),
    ("GET", "/no/such/route", b""),
    ("POST", "/health", b""),
    ("POST", "/docs", b""),
    ("OPTIONS", "/memories", b""),
    ("OPTIONS", "*", b""),
    ("TRACE", "/memories", b""),
    ("PROPFIND", "/memories", b""),
    ("PURGE", "/memories", b""),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_no_route_answers_without_a_key(
    target: Target, method: str, path: str, body: bytes
) -> None:
    status, answer = target.ask(f"{method} {path}", JSON if body else "", body)
    assert status == 401
    assert set(json_of(answer)) == {"detail", "hint", "code"}
    assert not leaks(answer)
    assert target.key.encode() not in answer


@pytest.mark.parametrize("method", ["FOO", "get", "GET/", "G\x00T", ""])
def test_a_method_that_is_none_is_refused(target: Target, method: str) -> None:
    status, answer = target.ask(f"{method} /memories")
    assert status in (400, 401)
    assert not leaks(answer)


@pytest.mark.parametrize(
    "shape",
    [
        "X-API-Key: ",
        "X-API-Key: wrong",
        "X-API-Key: {key}x",
        "X-API-Key: x{key}",
        "X-API-Key: {prefix}",
        "X-API-Key: {swapped}",
        "X-API-Key: {prefix}\x00{rest}",
        "X-API-Key: {prefix}\r\n {rest}",
        "X-API-Key: {prefix}\r\nX-API-Key: {rest}",
        "X-API-Key: {key},wrong",
        "X-API-Key: \xff\xfe",
        "X-API-Key: m0sk_\xff",
        "X-API-Key: m0sk_wrong",
        "X-API-Key: \xff\r\nX-API-Key: m0sk_wrong",
        "X-API-Key: None",
        "X-API-Key: null",
        "X-API-Key: *",
        "X-API-Key: " + "A" * 50_000,
        "X_API_Key: {key}",
        "X-API-Key : {key}",
        "X-Api: {key}",
        "Api-Key: {key}",
        "Cookie: X-API-Key={key}; api_key={key}; key={key}",
        "Authorization: {key}",
        "Authorization: Basic {key}",
        "Authorization: Bearer",
        "Authorization: Bearer {prefix}",
        "Authorization: Bearer \xff",
        "Authorization: Token {prefix}",
        "Authorization: BearerX {key}",
        "Proxy-Authorization: Bearer {key}",
        "Referer: http://127.0.0.1/?api_key={key}",
        "Forwarded: for=127.0.0.1;host=127.0.0.1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /health",
        "X-HTTP-Method-Override: GET",
    ],
)
def test_a_key_that_is_wrong_or_misplaced_is_none(target: Target, shape: str) -> None:
    key = target.key
    header = shape.format(key=key, prefix=key[:20], rest=key[20:], swapped=key.swapcase())
    for line in ("GET /memories", "GET /memories?user_id=alice", "POST /reset"):
        status, answer = target.ask(line, header + "\r\n")
        assert status in (400, 401), answer
        assert not leaks(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/memories?api_key={key}",
        "/memories?key={key}&X-API-Key={key}&access_token={key}&token={key}",
        "/{key}/memories",
        "/memories/{key}",
        "http://{key}@127.0.0.1/memories",
        "/memories#{key}",
    ],
)
def test_a_key_in_the_address_is_none(target: Target, path: str) -> None:
    status, answer = target.ask("GET " + path.format(key=target.key))
    assert status in (400, 401)
    assert not leaks(answer)


def test_a_key_in_the_body_is_none(target: Target) -> None:
    sent = {"query": "key", "user_id": "alice", "api_key": target.key, "X-API-Key": target.key}
    assert target.stranger.post("/search", json=sent).status_code == 401
    assert target.stranger.post("/search", data=sent).status_code == 401


def test_a_key_in_a_trailer_comes_too_late(target: Target) -> None:
    body = f"0\r\nX-API-Key: {target.key}\r\n\r\n".encode()
    status, answer = target.ask("GET /memories", "Transfer-Encoding: chunked\r\n", body)
    assert status == 401
    assert not leaks(answer)


def test_one_right_key_does_not_open_the_connection_for_the_next_request(target: Target) -> None:
    host = f"Host: 127.0.0.1:{target.port}\r\n"
    answer = target.raw(
        f"GET /entities HTTP/1.1\r\n{host}X-API-Key: {target.key}\r\n\r\n"
        f"GET /memories HTTP/1.1\r\n{host}Connection: close\r\n\r\n"
    )
    first, second = answer.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert second.startswith(b"401")
    assert not leaks(answer)


def test_the_right_key_opens_every_usual_door(target: Target) -> None:
    """So that the tests above can fail."""
    for header in target.doors:
        status, answer = target.ask("GET /memories", header.format(target.key) + "\r\n")
        assert status == 200
        assert leaks(answer)


def test_an_answer_tells_the_same_whatever_is_wrong_with_the_key(target: Target) -> None:
    """Not even its length: the comparison takes constant time and the reply says nothing."""
    key = target.key
    answers = {
        target.stranger.get("/memories", headers={"X-API-Key": wrong}).content
        for wrong in ("x", key[:-1], key[:-1] + "!", key + "!", key.upper(), "x" * len(key))
    }
    assert len(answers) == 1


def test_a_rotated_key_counts_at_once_and_the_old_one_no_more(target: Target) -> None:
    old = target.key
    with httpx.Client(base_url=target.endpoint, trust_env=False, timeout=30) as kept:
        kept.headers["X-API-Key"] = old
        assert kept.get("/entities").status_code == 200
        new = discovery.rotate_api_key(target.paths)
        try:
            assert new != old
            target.await_key(new)
            # On the open connection too.
            assert kept.get("/memories").status_code == 401
            kept.headers["X-API-Key"] = new
            assert kept.get("/memories").status_code == 200
        finally:
            target.owner.headers["X-API-Key"] = new


@pytest.mark.parametrize("user", ["", "*", "%2A", "%20", "%00", "alice%00", "ALICE", "alice%20x"])
def test_no_wildcard_and_no_odd_id_reads_another_scope(target: Target, user: str) -> None:
    """Row 23 of the complaints, for whoever has the key and mistakes the scope."""
    reply = target.owner.get(f"/memories?user_id={user}")
    assert reply.status_code in (200, 400, 422)
    assert not leaks(reply.text)
    reply = target.owner.delete(f"/memories?user_id={user}")
    assert reply.status_code in (200, 400, 422)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"user_id": "*"},
        {"user_id": {"ne": "nobody"}},
        {"user_id": {"in": ["alice", "bob"]}},
        {"user_id": {"contains": ""}},
        {"OR": [{"user_id": "alice"}, {"user_id": "bob"}]},
        {"NOT": [{"user_id": "nobody"}]},
        {"user_id": GUEST, "OR": [{"user_id": "alice"}, {"secret": True}]},
        {"user_id": GUEST, "AND": [{"user_id": "alice"}]},
        {"user_id": GUEST, "NOT": [{"user_id": GUEST}]},
        {"user_id": "guest' OR '1'='1"},
        {"user_id": GUEST, "') OR 1=1 --": "x"},
        {"user_id": GUEST, 'secret") IS NOT NULL OR ("1': {"ne": "x"}},
        {"user_id": GUEST, "$.secret": True},
    ],
)
def test_no_filter_reaches_beyond_its_scope(target: Target, filters: dict[str, object]) -> None:
    sent = {"query": SECRETS["alice"][0], "filters": filters, "show_expired": True}
    reply = target.owner.post("/search", json=sent)
    assert reply.status_code in (200, 400, 422)
    assert not leaks(reply.text)
