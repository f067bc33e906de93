"""Requests whose ends are a matter of opinion, and headers that should not be."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from .target import GUEST, JSON, Target, leaks, status_of

ADD = b'{"messages": "smuggled", "user_id": "alice"}'


def head(target: Target, line: str, *lines: str, key: bool = True) -> bytes:
    """A request's head, with the key or without."""
    fixed = [f"Host: 127.0.0.1:{target.port}"]
    if key:
        fixed.append(f"X-API-Key: {target.key}")
    return "\r\n".join([f"{line} HTTP/1.1", *fixed, *lines, "", ""]).encode("latin-1")


def replies(answer: bytes) -> list[int]:
    """The statuses of all replies in an answer."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answer)]


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 44"),
        ("Content-Length: 44", "Content-Length: 5"),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 44"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, gzip",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding:\r\n chunked",),
        ("X: y", "Content-Length : 44"),
        ("Content-Length: +44",),
        ("Content-Length: -1",),
        ("Content-Length: 0x2c",),
        ("Content-Length: 4 4",),
        ("Content-Length: 99999999999999999999999999",),
        ("Content-Length: \xb2",),
        ("Content_Length: 44",),
        ("Content-Length:44\rX: y",),
        ("Content-Length: 44\nTransfer-Encoding: chunked",),
    ],
)
def test_a_body_of_doubtful_length_smuggles_nothing_in(
    target: Target, lines: tuple[str, ...]
) -> None:
    """A second request hidden in what may be a body is never served without a key of its own."""
    hidden = head(target, "GET /memories?user_id=alice", "Connection: close", key=False)
    for body in (b"0\r\n\r\n" + hidden, hidden, ADD + hidden, b"2c\r\n" + ADD + b"\r\n" + hidden):
        for key in (True, False):
            request = head(
                target, "POST /memories", JSON.strip(), *lines, "Connection: close", key=key
            )
            answer = target.raw(request + body)
            assert 200 not in replies(answer), answer
            assert not leaks(answer)
            assert all(status < 500 for status in replies(answer)), answer


def test_a_length_that_is_told_twice_is_refused(target: Target) -> None:
    hidden = head(target, "GET /memories?user_id=alice", "Connection: close", key=False)
    request = head(
        target, "POST /memories", JSON.strip(), "Content-Length: 44, 44", "Connection: close"
    )
    answer = target.raw(request + ADD + hidden)
    assert 200 not in replies(answer), answer
    assert not leaks(answer)


def test_a_hidden_request_is_not_served_with_the_key_of_the_one_before(target: Target) -> None:
    hidden = head(target, "GET /memories?user_id=alice", "Connection: close", key=False)
    answer = target.raw(
        head(target, "POST /search", JSON.strip(), "Transfer-Encoding: chunked")
        + b"0\r\n\r\n"
        + hidden
    )
    assert replies(answer) == [422, 401]
    assert not leaks(answer)


def test_what_follows_a_refused_body_is_no_request(target: Target) -> None:
    hidden = head(target, "POST /reset", "Connection: close")
    answer = target.raw(
        head(target, "POST /memories", "Content-Type: text/plain", f"Content-Length: {len(hidden)}")
        + hidden
    )
    assert replies(answer) == [415]


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\nx\r\n",
        b"ffffffffffffffffff\r\nx\r\n",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"1\nx\n0\n\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5;" + b"e" * 200_000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 40_000 + b"\r\n",
        b"0\r\n" + b"X" * 200_000,
    ],
)
def test_a_body_in_broken_chunks_is_refused(target: Target, chunks: bytes) -> None:
    answer = target.raw(
        head(
            target,
            "POST /memories",
            JSON.strip(),
            "Transfer-Encoding: chunked",
            "Connection: close",
        )
        + chunks,
        timeout=90,  # some wait for the rest until the server's 30 s are over
    )
    assert set(replies(answer)) <= {400, 408, 422, 431}, answer


def test_a_body_in_good_chunks_is_taken(target: Target) -> None:
    """So that the tests above can fail."""
    body = ADD.replace(b"alice", GUEST.encode())
    parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Trailer: y\r\n\r\n"
    status, answer = target.ask(
        "POST /memories", JSON + "Transfer-Encoding: chunked\r\n", parts, key=True
    )
    assert status == 200, answer


def test_a_protocol_that_is_not_ours_is_not_spoken(target: Target) -> None:
    websocket = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    for path in ("/", "/memories", target.public, "/docs"):
        answer = target.raw(head(target, f"GET {path}", *websocket, key=False))
        assert b"101" not in answer[:20]
        assert not leaks(answer)
    # What follows on such a connection is thrown away, and the connection ends.
    answer = target.raw(
        head(target, f"GET {target.public}", *websocket, key=False) + head(target, "GET /memories")
    )
    assert replies(answer) == [200]
    for line in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03"):
        assert status_of(target.raw(line)) == 400


def test_a_body_beside_an_upgrade_is_refused_and_not_taken_for_empty(target: Target) -> None:
    """Some HTTP clients offer HTTP/2 with each request; the parser then drops the body."""
    status, answer = target.ask(
        "POST /search",
        f"{JSON}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n",
        b'{"query": "x", "user_id": "alice"}',
        key=True,
    )
    assert status == 422
    assert b"Upgrade" in answer


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-%d: y\r\n" * 100_000,
        b"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 3_000_000,
        b"GET /" + b"a" * 3_000_000,
        b"GET /memories?" + b"a=b&" * 800_000,
        b"G" * 3_000_000,
        b"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X" * 3_000_000,
        b"\r\n" * 1_000_000,
        b"\x00" * 1_000_000,
    ],
)
def test_headers_without_end_are_cut_off(target: Target, request_head: bytes) -> None:
    """None of it may be kept: a stranger could fill the memory with it."""
    before = target.process.memory_info().rss
    for _ in range(4):
        answer = target.raw(request_head)
        assert status_of(answer) in (0, 400, 431), answer[:200]
    grown = target.process.memory_info().rss - before
    assert grown < 8_000_000


def test_an_endless_header_is_cut_off_while_it_is_sent(target: Target) -> None:
    sent = 0
    with target.connect() as connection:
        connection.sendall(b"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with suppress(ConnectionError):
            while sent < 50_000_000:
                sent += connection.send(b"y" * 65536)
    assert sent < 20_000_000  # what the buffers of the system hold


@pytest.mark.parametrize(
    "header",
    [
        "X: a\r\n\r\nGET /memories HTTP/1.1",
        "X: a\rX-API-Key: b",
        "X: a\nHost: evil.example",
        "X\x00Y: a",
        "X Y: a",
        ": a",
        "X",
        " X: a",
        "\tfolded: a",
        "X: \x01\x02\x7f",
        "X: \xff\xfe",
        "Idempotency-Key: a\x00b",
    ],
)
def test_a_header_that_is_none_gets_nothing(target: Target, header: str) -> None:
    status, answer = target.ask("GET /memories?user_id=alice", header + "\r\n")
    # The newest parsers refuse continued lines; others add them to the line before.
    assert status in (400, 401, 403), answer
    assert not leaks(answer)


def test_nothing_of_a_request_is_repeated_in_a_header_of_the_reply(target: Target) -> None:
    mark = "INJECTED"
    for line, header in (
        (f"GET /%0d%0a{mark}:x", ""),
        (f"GET /memories?cursor=%0d%0a{mark}", ""),
        ("GET /", f"Host-X: {mark}\r\n"),
        (f"{mark} /memories", ""),
        (f"DELETE /entities/user/%0d%0a{mark}:%20x", ""),
    ):
        _, answer = target.ask(line, header, key=True)
        assert mark.encode() not in answer.partition(b"\r\n\r\n")[0], answer


def test_an_idempotency_key_of_a_stranger_tells_nothing(target: Target) -> None:
    for key in ("a", "a" * 300, "\xff", "a b"):
        status, _ = target.ask("POST /memories", f"{JSON}Idempotency-Key: {key}\r\n", ADD)
        assert status in (400, 401)
        status, _ = target.ask(
            "POST /memories",
            f"{JSON}Idempotency-Key: {key}\r\n",
            ADD.replace(b"alice", GUEST.encode()),
            key=True,
        )
        assert status in (200, 422)
