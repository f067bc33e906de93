"""Attacks from outside: nobody without the key gets in, and no web page does at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pikuri_memory.embedded.guard import PUBLIC, Guard

from .served import KEY, Served, serving

DATA = [
    ("GET", "/memories"),
    ("GET", "/memories/00000000-0000-0000-0000-000000000000"),
    ("GET", "/memories/00000000-0000-0000-0000-000000000000/history"),
    ("POST", "/memories"),
    ("POST", "/memories/batch"),
    ("PUT", "/memories/00000000-0000-0000-0000-000000000000"),
    ("DELETE", "/memories/00000000-0000-0000-0000-000000000000"),
    ("DELETE", "/memories?user_id=alice"),
    ("POST", "/search"),
    ("POST", "/reset"),
    ("POST", "/purge"),
    ("GET", "/entities"),
    ("DELETE", "/entities/user/alice"),
    ("GET", "/configure"),
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/nothing-here"),
    ("POST", "/health"),
    ("DELETE", "/docs"),
    ("OPTIONS", "/memories"),
    ("TRACE", "/memories"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("guard"), max_body_bytes=100_000) as served:
        served.add("the secret of alice")
        yield served


@pytest.fixture(autouse=True)
def nothing_was_changed(server: Served) -> Iterator[None]:
    yield
    found = server.client.get("/memories").json()["results"]
    assert [memory["memory"] for memory in found] == ["the secret of alice"]


@pytest.mark.parametrize(("method", "path"), DATA)
def test_every_route_that_touches_data_wants_the_key(
    server: Served, method: str, path: str
) -> None:
    reply = server.stranger.request(method, path)
    assert reply.status_code == 401
    assert reply.json()["code"] == "unauthenticated"
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "secret" not in reply.text


@pytest.mark.parametrize("path", sorted(PUBLIC))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_holds_no_data_needs_no_key(server: Served, method: str, path: str) -> None:
    reply = server.stranger.request(method, path)
    assert reply.status_code == 200
    assert bool(reply.content) == (method == "GET")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": "ключ".encode()},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Cookie": f"X-API-Key={KEY}"},
    ],
)
def test_a_wrong_key_is_refused(server: Served, headers: Any) -> None:
    assert server.stranger.get("/memories", headers=headers).status_code == 401
    assert server.stranger.get(f"/memories?api_key={KEY}", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Token {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
    ],
)
def test_the_key_may_come_in_each_of_the_usual_headers(
    server: Served, headers: dict[str, str]
) -> None:
    assert server.stranger.get("/memories", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//memories",
        "/memories/",
        "/./memories",
        "/health/../memories",
        "/health/%2e%2e/memories",
        "/health%2f..%2fmemories",
        "/docs/../memories",
        "/docs/docs.js/../../memories",
        "/docs/%2e%2e/memories",
        "/Memories",
        "/MEMORIES",
        "/%6demories",
        "/memories;/health",
        "/memories%00/health",
        "/memories?/health",
        "/memories#/health",
        "/health/",
        "/health%2e",
        "/%68ealth",
        "//health",
        "/docs/docs.js%3f",
        "/openapi.json/memories",
        "/HEALTH",
        "/health\\..\\memories",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(server: Served, path: str) -> None:
    line = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = server.raw(line.encode())
    assert answer.split(b" ")[1] in (b"400", b"401"), answer
    assert b"secret" not in answer


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.text(
        st.sampled_from("/.%2eEfFmemoriesheathdocpnj?#;\\:@é\x7f"), min_size=1, max_size=30
    )
)
def test_no_path_at_all_gets_around_the_key(server: Served, path: str) -> None:
    request = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = server.raw(request.encode())
    status = answer.split(b" ")[1]
    asked = f"/{path}".split("?")[0].split("#")[0]
    assert status in (b"400", b"401") or (status == b"200" and asked in PUBLIC), (path, answer)
    assert b"secret" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8888",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.localhost",
        "127.0.0.1@evil.example",
        "192.168.0.1",
        "0.0.0.0",
        "[::]",
        "[fe80::1]",
        "128.0.0.1",
        "127.1",
        "2130706433",
        "",
        "localhost:",
        "localhost:99999999",
        "localhost, evil.example",
        "local\u017fhost".encode().decode("latin-1"),
    ],
)
def test_a_name_that_is_not_the_loopback_is_refused(server: Served, host: str) -> None:
    for path in ("/memories", "/health", "/docs"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {KEY}\r\n"
        answer = server.raw((request + "Connection: close\r\n\r\n").encode("latin-1"))
        assert answer.split(b" ")[1] in (b"403", b"400"), answer
        assert b"secret" not in answer


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:65535", "127.8.9.10", "[::1]", "[::1]:8888"],
)
def test_every_name_of_the_loopback_is_accepted(server: Served, host: str) -> None:
    assert server.client.get("/memories", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "lines",
    ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nHost: evil.example\r\n"],
)
def test_there_is_exactly_one_host_header(server: Served, lines: str) -> None:
    request = f"GET /memories HTTP/1.1\r\n{lines}X-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
    assert server.raw(request.encode()).split(b" ")[1] in (b"403", b"400")


def test_the_host_of_an_absolute_target_does_not_stand_in_for_the_header(server: Served) -> None:
    request = (
        "GET http://localhost/memories HTTP/1.1\r\nHost: evil.example\r\n"
        f"X-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
    )
    assert server.raw(request.encode()).split(b" ")[1] == b"403"


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost:1",
        "http://127.0.0.1:1",
        "http://localhost",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}/",
        "file://",
        "chrome-extension://abcdef",
    ],
)
def test_a_page_of_another_origin_is_refused_whatever_it_knows(server: Served, origin: str) -> None:
    origin = origin.format(port=server.port)
    for method, path in [*DATA, ("GET", "/health"), ("GET", "/docs"), ("GET", "/openapi.json")]:
        reply = server.client.request(method, path, headers={"Origin": origin})
        assert reply.status_code == 403, (method, path)
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_page_of_the_server_itself_is_served(server: Served) -> None:
    own = {"Origin": server.endpoint, "Sec-Fetch-Site": "same-origin"}
    assert server.client.get("/memories", headers=own).status_code == 200
    named = {"Host": "localhost:5", "Origin": "http://localhost:5"}
    assert server.client.get("/memories", headers=named).status_code == 200


def test_two_origins_are_refused_if_one_is_foreign(server: Served) -> None:
    headers = [("Origin", server.endpoint), ("Origin", "https://evil.example")]
    assert server.client.get("/memories", headers=headers).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_that_the_browser_calls_foreign_is_refused(server: Served, site: str) -> None:
    for path in ("/memories", "/health", "/docs"):
        reply = server.client.get(path, headers={"Sec-Fetch-Site": site})
        assert reply.status_code == 403


def test_a_preflight_is_answered_without_any_permission(server: Served) -> None:
    asks = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,content-type",
    }
    reply = server.stranger.options("/memories", headers=asks)
    assert reply.status_code == 403
    reply = server.client.options("/memories")
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json, text/plain",
        "text/json",
    ],
)
@pytest.mark.parametrize("path", ["/memories", "/search", "/reset", "/memories?user_id=alice"])
def test_a_body_that_is_not_said_to_be_json_is_refused(
    server: Served, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    method = "DELETE" if "?" in path else "POST"
    reply = server.client.request(method, path, content=b"{}", headers=headers)
    assert reply.status_code == 415
    assert reply.json()["code"] == "unsupported_media_type"


def test_a_compressed_body_is_refused(server: Served) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert server.client.post("/search", content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON;charset=UTF-8", "application/merge-patch+json"],
)
def test_every_way_to_say_json_is_understood(server: Served, content_type: str) -> None:
    body = b'{"query": "secret", "user_id": "alice"}'
    reply = server.client.post("/search", content=body, headers={"Content-Type": content_type})
    assert reply.status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server: Served) -> None:
    request = (
        "POST /memories HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {KEY}\r\nContent-Length: 99999999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_who_sends_too_much_at_once_gets_to_read_why(server: Served) -> None:
    reply = server.client.post("/memories", json={"messages": "x" * 5_000_000, "user_id": "a"})
    assert reply.status_code == 413
    assert reply.json()["code"] == "too_large"
    assert reply.headers["connection"] == "close"


def test_an_endless_body_is_cut_at_the_limit(server: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b"x" * 10_000

    # The refusal comes while we still send; who never stops is cut off, and may read it then.
    with suppress(httpx.TransportError):
        reply = server.client.post(
            "/memories", content=endless(), headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 413
    assert sent >= 100_000


def test_a_chunked_body_over_the_limit_is_refused(server: Served) -> None:
    parts = iter([b"x" * 60_000] * 3)
    reply = server.client.post(
        "/memories", content=parts, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 413


def test_a_stranger_cannot_make_the_server_read_a_body(server: Served) -> None:
    request = "POST /memories HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_body_that_never_comes_ends_at_its_deadline(tmp_path: Path) -> None:
    with serving(tmp_path, body_deadline=0.1) as server:
        request = (
            "POST /memories HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {KEY}\r\nContent-Length: 50\r\n\r\n{{"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"slow_body" in answer


def test_five_hundred_idle_connections_leave_the_server_alive(server: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(500)]
    try:
        for number, connection in enumerate(idle):
            if number % 2:
                connection.sendall(b"POST /memories HTTP/1.1\r\nHost: localhost\r\n")
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/memories").status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_web_socket_is_closed_at_once() -> None:
    async def inner(*_: Any) -> None:
        raise AssertionError("it got in")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    told: list[Any] = []

    async def send(message: Any) -> None:
        told.append(message)

    guard = Guard(inner, api_key=lambda: KEY, max_body_bytes=1000)
    asyncio.run(guard({"type": "websocket", "path": "/health"}, receive, send))
    assert told == [{"type": "websocket.close", "code": 1008}]


def test_an_empty_key_lets_nobody_in() -> None:
    async def inner(*_: Any) -> None:
        raise AssertionError("it got in")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    told: list[Any] = []

    async def send(message: Any) -> None:
        told.append(message)

    guard = Guard(inner, api_key=lambda: "", max_body_bytes=1000)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/memories",
        "raw_path": b"/memories",
        "headers": [(b"host", b"localhost"), (b"x-api-key", b"")],
    }
    asyncio.run(guard(scope, receive, send))
    assert told[0]["status"] == 401
