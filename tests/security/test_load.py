"""Connections that idle, dawdle or vanish: whoever asks properly is still answered."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from pikuri_memory import EmbeddedServer
from pikuri_memory.embedded.connection import Connection, allow_connections

from .target import JSON, SECRETS, Target, attacked, status_of

IDLE = 500


@pytest.fixture(scope="module", autouse=True)
def files() -> None:
    """The attacker is this process, and needs as many open files as the server."""
    allow_connections()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Connections that are kept open until the end of the test."""
    with ExitStack() as stack:
        yield stack


def test_five_hundred_idle_connections_keep_nobody_out(target: Target, held: ExitStack) -> None:
    for number in range(IDLE):
        connection = held.enter_context(target.connect())
        # Silent, dawdling with the first line, or with the headers.
        beginning = (b"", b"GET /mem", b"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        connection.sendall(beginning[number % 3])
    target.check()
    assert target.ask("GET /memories", key=True)[0] == 200
    target.check()


def test_more_connections_than_there_is_room_for_push_out_the_idle(
    target: Target, held: ExitStack
) -> None:
    """The one that has been idle longest goes; whoever comes and asks is answered."""
    first = held.enter_context(target.connect())
    for _ in range(Connection.most + 300):
        held.enter_context(target.connect())
    target.check()
    assert target.ask("GET /memories", key=True)[0] == 200
    first.settimeout(20)
    assert first.recv(1) == b""
    assert target.process.num_fds() < Connection.most + 200


def test_headers_that_come_slowly_keep_nobody_waiting(target: Target, held: ExitStack) -> None:
    slow = [held.enter_context(target.connect()) for _ in range(50)]
    for byte in b"GET /memories HTTP/1.1\r\n":
        for connection in slow:
            connection.sendall(bytes([byte]))
        assert target.ask(f"GET {target.public}")[0] == 200


def test_two_hundred_connections_that_reset_do_no_harm(target: Target) -> None:
    heads = (
        b"",
        b"GET /memories HTTP/1.1\r\n",
        f"GET /memories HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {target.key}\r\n\r\n".encode(),
        f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {target.key}\r\n{JSON}"
        "Content-Length: 44\r\n\r\n".encode()
        + b'{"query": "where is the',
        f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {target.key}\r\n{JSON}"
        "Content-Length: 34\r\n\r\n".encode()
        + b'{"query": "key", "user_id": "bob"}',
    )
    for number in range(200):
        with target.connect() as connection:
            connection.sendall(heads[number % len(heads)])
            # Closing then sends a reset at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    target.check()


def test_a_reader_that_does_not_read_keeps_nobody_waiting(target: Target, held: ExitStack) -> None:
    request = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n\r\n".encode()
    before = target.process.memory_info().rss
    for _ in range(10):
        connection = held.enter_context(target.connect(5))
        connection.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):
            for _ in range(2000):
                connection.sendall(request * 20)
    target.check()
    assert target.process.memory_info().rss - before < 100_000_000


def test_half_closed_connections_are_answered_and_closed(target: Target) -> None:
    with target.connect() as connection:
        head = f"GET {target.public} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nConnection: close"
        connection.sendall(f"{head}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert status_of(answer) in (0, 200)


def test_closed_connections_leave_nothing_open(target: Target) -> None:
    before = target.process.num_fds()
    for _ in range(200):
        assert target.ask("GET /memories")[0] == 401
    end = time.monotonic() + 20
    while target.process.num_fds() > before + 20 and time.monotonic() < end:
        time.sleep(0.05)
    assert target.process.num_fds() <= before + 20


def test_connections_that_are_held_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    """And what was stored before is there after it."""
    with ExitStack() as held:
        with attacked(tmp_path) as target:
            for number in range(100):
                connection = held.enter_context(target.connect())
                connection.sendall((b"", b"GET /mem", b"GET / HTTP/1.1\r\nX: y")[number % 3])
            process = target.process
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        with EmbeddedServer(port=0, data_dir=tmp_path / "data") as server:
            found = server.client().get_all(user_id="bob")
            assert [memory.text for memory in found] == SECRETS["bob"]
