"""What runs in a data directory, and its key."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pikuri_memory import discovery, process
from pikuri_memory.discovery import ApiKeyFile, ServerInfo
from pikuri_memory.errors import AccessError
from pikuri_memory.paths import DataPaths, default_data_dir

ENDPOINT = "http://127.0.0.1:8888"


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    paths = DataPaths.at(tmp_path / "data")
    paths.root.mkdir(mode=0o700)
    return paths


@pytest.fixture
def ours() -> ServerInfo:
    found = process.identify(os.getpid())
    assert found is not None
    return ServerInfo("embedded", found.pid, found.start_time, ENDPOINT, "1.0")


# ---------------------------------------------------------------- server.json


def test_a_published_server_is_read_back_and_private(paths: DataPaths, ours: ServerInfo) -> None:
    discovery.write_server_info(paths, ours)
    assert discovery.read_server_info(paths) == ours
    assert ours.is_running()
    assert paths.server_info.stat().st_mode & 0o777 == 0o600


def test_without_a_file_there_is_no_server(paths: DataPaths) -> None:
    assert discovery.read_server_info(paths) is None
    discovery.clear_server_info(paths, os.getpid())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"kind": "embedded", "pid": 1',
        b'{"kind": 1, "pid": 1, "start_time": 1.0, "endpoint": "x", "version": "1"}',
        b'{"kind": "e", "pid": "1", "start_time": 1.0, "endpoint": "x", "version": "1"}',
        b'{"kind": "e", "pid": 1, "start_time": null, "endpoint": "x", "version": "1"}',
    ],
)
def test_a_damaged_file_is_no_server(paths: DataPaths, content: bytes) -> None:
    paths.server_info.write_bytes(content)
    assert discovery.read_server_info(paths) is None


def test_a_file_that_others_may_write_is_not_trusted(paths: DataPaths, ours: ServerInfo) -> None:
    discovery.write_server_info(paths, ours)
    paths.server_info.chmod(0o660)
    assert discovery.read_server_info(paths) is None


def test_a_server_withdraws_only_its_own_file(paths: DataPaths, ours: ServerInfo) -> None:
    discovery.write_server_info(paths, ours)
    discovery.clear_server_info(paths, ours.pid + 1)
    assert discovery.read_server_info(paths) == ours
    discovery.clear_server_info(paths, ours.pid)
    assert discovery.read_server_info(paths) is None


# ---------------------------------------------------------------- the key


def test_a_key_is_made_once_long_and_private(paths: DataPaths) -> None:
    assert discovery.read_api_key(paths) is None
    key = discovery.ensure_api_key(paths)
    assert len(key) == 43
    assert discovery.ensure_api_key(paths) == key
    assert discovery.read_api_key(paths) == key
    assert paths.api_key.stat().st_mode & 0o777 == 0o600


def test_many_at_once_agree_on_one_key(paths: DataPaths) -> None:
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(discovery.ensure_api_key(paths)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_an_empty_key_file_is_replaced(paths: DataPaths) -> None:
    paths.api_key.touch(mode=0o600)
    assert discovery.read_api_key(paths) is None
    assert len(discovery.ensure_api_key(paths)) == 43


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_may_read_is_refused(paths: DataPaths, mode: int) -> None:
    discovery.ensure_api_key(paths)
    paths.api_key.chmod(mode)
    for use in (discovery.read_api_key, discovery.ensure_api_key):
        with pytest.raises(AccessError) as refused:
            use(paths)
        assert f"chmod 600 {paths.api_key}" in refused.value.hint
        assert "rotate" in refused.value.hint


def test_rotation_makes_another_key_and_mends_the_mode(paths: DataPaths) -> None:
    old = discovery.ensure_api_key(paths)
    paths.api_key.chmod(0o644)
    new = discovery.rotate_api_key(paths)
    assert new != old
    assert discovery.read_api_key(paths) == new
    assert paths.api_key.stat().st_mode & 0o777 == 0o600


def test_a_running_server_sees_a_rotated_key(paths: DataPaths) -> None:
    key = ApiKeyFile(paths)
    first = key()
    assert key() == first
    assert discovery.read_api_key(paths) == first
    second = discovery.rotate_api_key(paths)
    assert key() == second


def test_a_key_goes_only_to_the_endpoint_of_the_running_server(
    paths: DataPaths, ours: ServerInfo
) -> None:
    key = discovery.ensure_api_key(paths)
    assert discovery.key_for_endpoint(ENDPOINT, paths) is None
    discovery.write_server_info(paths, ours)
    assert discovery.key_for_endpoint(ENDPOINT, paths) == key
    assert discovery.key_for_endpoint(ENDPOINT + "/", paths) == key
    for other in ("http://127.0.0.1:8889", "http://localhost:8888", "https://127.0.0.1:8888", ""):
        assert discovery.key_for_endpoint(other, paths) is None


def test_no_key_goes_to_the_port_of_a_server_that_died(paths: DataPaths, ours: ServerInfo) -> None:
    discovery.ensure_api_key(paths)
    dead = ServerInfo(ours.kind, ours.pid, ours.start_time - 9, ENDPOINT, ours.version)
    discovery.write_server_info(paths, dead)
    assert discovery.key_for_endpoint(ENDPOINT, paths) is None


def test_the_directory_is_the_variables_or_the_default_one(
    paths: DataPaths, ours: ServerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = discovery.ensure_api_key(paths)
    discovery.write_server_info(paths, ours)
    assert discovery.key_for_endpoint(ENDPOINT) is None
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(paths.root))
    assert discovery.key_for_endpoint(ENDPOINT) == key
    monkeypatch.delenv("PIKURI_MEMORY_DATA_DIR")
    default = default_data_dir()
    default.parent.mkdir(parents=True)
    paths.root.rename(default)
    assert discovery.key_for_endpoint(ENDPOINT) == key
