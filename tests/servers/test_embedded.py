"""The embedded server as a whole: a real process, real clients, a real data directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory import EmbeddedServer, Mem0Client, lease
from pikuri_memory.discovery import read_server_info
from pikuri_memory.errors import (
    DataDirectoryInUseError,
    PortInUseError,
    ServerNotRunningError,
    SettingError,
)
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.paths import DataPaths, default_data_dir
from pikuri_memory.servers.lifecycle import stop
from pikuri_memory.waiting import Deadline, wait_for
from tests.servers.soak import REAL_SOAK_SECONDS, soak


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose server is gone after the test."""
    data_dir = tmp_path / "data"
    yield data_dir
    stop(DataPaths.at(data_dir), force=True, timeout=30)


def pid_of(data_dir: Path) -> int:
    info = read_server_info(DataPaths.at(data_dir))
    assert info is not None
    return info.pid


def gone(data_dir: Path) -> None:
    def look() -> bool | None:
        info = read_server_info(DataPaths.at(data_dir))
        return True if info is None or not info.is_running() else None

    wait_for(look, Deadline(30), what="the end of the server", hint="see the test")


def test_a_memory_outlives_the_server(data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir) as server:
        assert server.data_dir == data_dir
        assert server.endpoint.startswith("http://127.0.0.1:")
        with server.client() as memory:
            memory.add("I keep two donkeys", user_id="ada")
    gone(data_dir)
    with EmbeddedServer(port=0, data_dir=data_dir) as server, server.client() as memory:
        assert [found.text for found in memory.get_all(user_id="ada")] == ["I keep two donkeys"]


def test_start_is_idempotent_and_close_too(data_dir: Path) -> None:
    server = EmbeddedServer(port=0, data_dir=data_dir)
    server.close()
    assert server.start() is server
    endpoint = server.start().endpoint
    assert server.endpoint == endpoint
    server.close()
    server.close()
    with pytest.raises(ServerNotRunningError):
        _ = server.endpoint
    assert server.start().endpoint
    server.close()


def test_row_20_two_objects_share_one_server(data_dir: Path) -> None:
    first = EmbeddedServer.ensure_running(port=0, data_dir=data_dir)
    second = EmbeddedServer.ensure_running(port=0, data_dir=data_dir)
    assert first.endpoint == second.endpoint
    first.close()
    with second.client() as memory:
        memory.add("I sing", user_id="ada")
    second.close()
    gone(data_dir)


def test_async_with_shares_and_gives_back(data_dir: Path) -> None:
    async def use() -> list[str]:
        async with (
            EmbeddedServer(port=0, data_dir=data_dir) as server,
            server.async_client() as memory,
        ):
            await memory.add("I sail on Fridays", user_id="ada")
            return [found.text for found in await memory.search("sail", user_id="ada")]

    assert asyncio.run(use()) == ["I sail on Fridays"]
    gone(data_dir)


def test_a_client_closes_its_connections_and_further_calls_raise(data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir) as server:
        memory = server.client()
        memory.health()
        memory.close()
        with pytest.raises(Exception, match="closed"):
            memory.health()


def test_a_client_call_brings_back_a_server_that_died_with_its_memories(data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir) as server, server.client() as memory:
        memory.add("I am allergic to walnuts", user_id="ada")
        first = pid_of(data_dir)
        os.kill(first, signal.SIGKILL)
        gone(data_dir)
        assert [found.text for found in memory.get_all(user_id="ada")] == [
            "I am allergic to walnuts"
        ]
        assert pid_of(data_dir) != first
        with Mem0Client(
            server.endpoint, api_key=server.data_dir.joinpath("api-key").read_text().strip()
        ) as plain:
            assert len(plain.get_all(user_id="ada")) == 1


def test_a_port_in_use_is_an_error_that_names_its_owner_and_leaves_nothing(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"{port}.*pid {os.getpid()}") as failed:
            EmbeddedServer(port=port, data_dir=data_dir).start()
    assert "--port" in failed.value.hint
    paths = DataPaths.at(data_dir)
    assert lease.holders(paths) == []
    assert lease.lock_owner(paths.owner_lock) is None


def test_a_directory_owned_by_another_process_is_an_error_that_names_it(data_dir: Path) -> None:
    paths = DataPaths.at(data_dir)
    lease.prepare(paths)
    owner = ExclusiveLock(paths.owner_lock)
    assert owner.try_acquire()
    server = EmbeddedServer(port=0, data_dir=data_dir, start_timeout=0.3, stop_timeout=0.3)
    with pytest.raises(DataDirectoryInUseError, match=f"pid {os.getpid()}"):
        server.start()
    owner.release()


def test_a_kept_server_runs_until_it_is_stopped(data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir, keep=True):
        first = pid_of(data_dir)
    with EmbeddedServer(port=0, data_dir=data_dir):
        assert pid_of(data_dir) == first
    info = read_server_info(DataPaths.at(data_dir))
    assert info is not None
    assert info.is_running()
    stopped = stop(DataPaths.at(data_dir), force=False, timeout=30)
    assert stopped.server == info
    assert not stopped.killed
    assert not info.is_running()


def test_the_server_ends_when_its_user_is_killed(data_dir: Path) -> None:
    program = (
        "import sys, time; from pikuri_memory import EmbeddedServer;"
        "EmbeddedServer.ensure_running(port=0, data_dir=sys.argv[1]);"
        "print('up', flush=True); time.sleep(600)"
    )
    search = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"up\n"
        pid_of(data_dir)
        user.kill()
    gone(data_dir)


def test_a_relative_directory_is_the_callers(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with EmbeddedServer(port=0, data_dir="data") as server:
        assert server.data_dir == data_dir
        assert pid_of(data_dir)


def test_without_arguments_the_users_own_directory_is_used() -> None:
    assert EmbeddedServer().data_dir == default_data_dir()


def test_the_environment_and_the_table_of_settings_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(tmp_path / "elsewhere"))
    assert EmbeddedServer().data_dir == tmp_path / "elsewhere"
    with pytest.raises(SettingError, match="port"):
        EmbeddedServer(port=70000)
    with pytest.raises(SettingError, match="colour"):
        EmbeddedServer(colour="green")


def test_building_one_has_no_effect(tmp_path: Path) -> None:
    server = EmbeddedServer(data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert "not started" in repr(server)
    with pytest.raises(ServerNotRunningError) as failed:
        server.client()
    assert "start()" in failed.value.hint


def test_many_processes_that_come_and_go_never_meet_a_stopping_server(data_dir: Path) -> None:
    outcome = soak(data_dir, "embedded", REAL_SOAK_SECONDS)
    assert outcome.failures == []
    gone(data_dir)
    log = DataPaths.at(data_dir).server_log.read_text()
    servers = log.count("serving on")
    print(f"{outcome.rounds} rounds, {outcome.kills} kills, {servers} servers")
    # A process that kills itself never kills the server: every one has stopped in good order.
    assert log.count("INFO pikuri_memory.embedded.serve stopped") == servers
    assert "died" not in log
    assert servers >= 2
    assert outcome.rounds >= 20
