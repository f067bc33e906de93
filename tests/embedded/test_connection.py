"""The bounds of a connection, with smaller ones than a real server has.

What no bound may break is tested against the real server in ``tests/security``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvicorn

from pikuri_memory.embedded.connection import Connection

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Serve = Callable[..., int]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the names of the headers, after the body has come."""
    while (await receive()).get("more_body", False):
        pass
    body = b" ".join(name for name, _ in scope["headers"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs a server with connections of a class; gives its port."""
    with ExitStack() as stack:

        @contextmanager
        def running(kind: Any, keep_alive: int) -> Iterator[int]:
            listener = socket.create_server(("127.0.0.1", 0))
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    lifespan="off",
                    http=kind,
                    ws="none",
                    timeout_keep_alive=keep_alive,
                    timeout_graceful_shutdown=1,
                )
            )
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.005)
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()
                listener.close()

        def start(kind: Any, keep_alive: int = 60) -> int:
            return stack.enter_context(running(kind, keep_alive))

        yield start


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_ordinary_requests_follow_each_other_on_a_connection(serve: Serve) -> None:
    with connect(serve(Connection)) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert connection.recv(65536).endswith(b"host")


def test_half_a_request_is_given_up(serve: Serve) -> None:
    class Impatient(Connection):
        head_seconds = 0.1

    port = serve(Impatient)
    for beginning in (b"G", GET[:-2], GET + b"GET /", b"GET / HTTP/1.1\r\nX: " + b"y" * 1000):
        with connect(port) as connection:
            connection.sendall(beginning)
            last = rest(connection).rpartition(b"HTTP/1.1 408")[2]
            assert b'"code":"invalid_request"' in last


def test_a_body_may_take_longer_than_the_headers(serve: Serve) -> None:
    class Impatient(Connection):
        head_seconds = 0.1

    with connect(serve(Impatient)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
        time.sleep(0.4)
        connection.sendall(b"b")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_that_asks_for_nothing_is_closed(serve: Serve) -> None:
    with connect(serve(Connection, 1)) as connection:
        assert rest(connection) == b""


def test_headers_beyond_the_bound_are_refused(serve: Serve) -> None:
    class Narrow(Connection):
        head_bytes = 1000

    with connect(serve(Narrow)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2000)
        assert rest(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_a_large_body_is_not_taken_for_headers(serve: Serve) -> None:
    class Narrow(Connection):
        head_bytes = 1000

    with connect(serve(Narrow)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n")
        connection.sendall(b"x" * 900_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"500\r\n" + b"x" * 0x500 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_trailers_are_no_headers_and_have_the_same_bound(serve: Serve) -> None:
    class Narrow(Connection):
        head_bytes = 1000

    port = serve(Narrow)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with connect(port) as connection:
        connection.sendall(head + b"X-API-Key: k\r\n\r\n")
        assert connection.recv(65536).endswith(b"host transfer-encoding")
    with connect(port) as connection:
        # More than is read at once: what comes with the end of the headers is not counted.
        with suppress(ConnectionError):
            connection.sendall(head + b"X: " + b"y" * 1_000_000)
        with suppress(ConnectionError):
            answer = rest(connection)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431")


def test_what_is_no_http_is_told_in_json(serve: Serve) -> None:
    with connect(serve(Connection)) as connection:
        connection.sendall(b"\x16\x03\x01")
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
    assert b'"hint"' in answer


def test_who_asks_for_another_protocol_gets_one_answer(serve: Serve) -> None:
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connect(serve(Connection)) as connection:
        connection.sendall(upgrade + GET)
        assert rest(connection).count(b"HTTP/1.1 200") == 1


def test_empty_lines_keep_no_connection_open(serve: Serve) -> None:
    port = serve(Connection, 1)
    for beginning in (b"", b"\r\n", GET + b"\r\n"):
        with connect(port) as connection:
            connection.sendall(beginning)
            assert rest(connection).count(b"HTTP/1.1 200") == beginning.count(b"GET")


def test_the_longest_idle_connection_makes_room(serve: Serve) -> None:
    class Few(Connection):
        most = 3

    port = serve(Few)
    with ExitStack() as stack:
        first, second, third, fourth = (stack.enter_context(connect(port)) for _ in range(4))
        assert rest(first) == b""
        for connection in (second, third, fourth):
            connection.sendall(GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_that_are_sent_ahead_are_answered_up_to_a_bound(serve: Serve) -> None:
    class Short(Connection):
        most_queued = 10

    port = serve(Short)
    with connect(port) as connection:
        connection.sendall(GET * 9 + GET[:-2] + b"Connection: close\r\n\r\n")
        assert rest(connection).count(b"HTTP/1.1 200") == 10
    with connect(port) as connection:
        connection.sendall(GET * 1000)
        try:
            answer = rest(connection)
        except ConnectionResetError:
            answer = b""
        assert answer.count(b"HTTP/1.1 200") <= 11


def test_the_limit_of_open_files_is_raised_where_it_may_be() -> None:
    script = (
        "import resource\n"
        "from pikuri_memory.embedded.connection import allow_connections\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "allow_connections()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 4096))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "allow_connections()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 128)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split() == ["True", "True"]
