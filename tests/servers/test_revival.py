"""Clients of a shared server that dies, with a stand-in keeper."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pikuri_memory.discovery import ServerInfo
from pikuri_memory.errors import ServerNotRunningError, ServerStartError
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.lifecycle import ServerLifecycle, stop
from pikuri_memory.servers.revival import AsyncRevivingTransport, RevivingTransport
from pikuri_memory.waiting import Deadline, wait_for
from tests.servers import stand_in


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose server is gone after the test."""
    root = tmp_path / "data"
    yield root
    stop(DataPaths.at(root), force=True, timeout=10)


def die(info: ServerInfo) -> None:
    os.kill(info.pid, signal.SIGKILL)
    wait_for(
        lambda: not info.is_running() or None, Deadline(30), what="its end", hint="see the test"
    )


def sender(server: ServerLifecycle) -> httpx.Client:
    transport = RevivingTransport(server, httpx.HTTPTransport(trust_env=False))
    return httpx.Client(transport=transport, trust_env=False)


def test_a_request_to_a_server_that_died_starts_it_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()
    with sender(server) as http, caplog.at_level(logging.WARNING, "pikuri_memory"):
        address = first.endpoint + "/memories"
        assert http.get(address).json()["pid"] == first.pid
        die(first)
        told = http.get(address, headers={"X-API-Key": "k"}).json()
        # The port is another one now: the request went where the new server listens.
        assert server.info is not None
        assert told["pid"] == server.info.pid != first.pid
        assert told["path"] == "/memories"
        assert told["key"] == "k"
        assert server.info.endpoint.endswith(told["host"])
        assert http.get(address).json()["pid"] == server.info.pid
    assert [str(first.pid) in line for line in caplog.messages] == [True]
    server.close()


def test_an_async_request_to_a_server_that_died_starts_it_again(root: Path) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()

    async def use() -> list[int]:
        transport = AsyncRevivingTransport(server, httpx.AsyncHTTPTransport(trust_env=False))
        async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
            await http.get(first.endpoint)
            die(first)
            replies = await asyncio.gather(*(http.get(first.endpoint) for _ in range(5)))
            return [reply.json()["pid"] for reply in replies]

    pids = asyncio.run(use())
    assert server.info is not None
    assert set(pids) == {server.info.pid}
    assert stand_in.events(root).count("start") == 2
    server.close()


def test_a_request_to_a_server_that_was_stopped_is_an_error(root: Path) -> None:
    server = stand_in.lifecycle(root)
    info = server.start()
    with sender(server) as http:
        stop(server.paths, force=True, timeout=30)
        with pytest.raises(ServerNotRunningError) as failed:
            http.get(info.endpoint)
        assert "pikuri-memory up" in failed.value.hint
    assert stand_in.events(root).count("start") == 1
    server.close()


def test_a_request_after_close_starts_nothing(root: Path) -> None:
    server = stand_in.lifecycle(root)
    info = server.start()
    with sender(server) as http:
        server.close()
        with pytest.raises(ServerNotRunningError, match="not started"):
            http.get(info.endpoint)
    assert stand_in.events(root) == ["start", "stop"]


def test_a_server_that_cannot_be_started_again_is_told(root: Path) -> None:
    helper = stand_in.lifecycle(root)
    server = stand_in.lifecycle(root, faults=("--tell", "the disk is gone"))
    info = helper.start()
    assert server.start() == info
    helper.close()
    with sender(server) as http:
        die(info)
        with pytest.raises(ServerStartError, match="the disk is gone"):
            http.get(info.endpoint)
    server.close()
