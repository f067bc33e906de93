"""The server of a data directory, seen from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pikuri_memory import discovery, lease, process
from pikuri_memory.discovery import ServerInfo
from pikuri_memory.errors import ServerNotRunningError
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import local
from pikuri_memory.stack.state import Teller
from tests.stack.plans import PLAN


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return DataPaths.at(tmp_path / "memory")


def published(paths: DataPaths, *, dead: bool = False) -> ServerInfo:
    """This process as a server that answers nothing."""
    me = process.identify(os.getpid())
    assert me is not None
    start = me.start_time - (100 if dead else 0)
    info = ServerInfo("embedded", me.pid, start, "http://127.0.0.1:1", "0")
    discovery.write_server_info(paths, info)
    return info


def test_without_a_directory_it_is_stopped(paths: DataPaths) -> None:
    found = local.describe(paths)
    assert (found.state, found.info, found.holders) == ("stopped", None, ())
    assert found.as_dict()["memories"] is None
    assert not paths.root.exists()


def test_who_owns_the_data_but_is_not_published_is_starting_or_stopping(paths: DataPaths) -> None:
    lease.prepare(paths)
    owner, unused = ExclusiveLock(paths.owner_lock), ExclusiveLock(paths.lease_lock)
    with owner:
        owner.try_acquire()
        assert local.describe(paths).state == "starting"
        with unused:
            unused.try_acquire()
            assert local.describe(paths).state == "stopping"


def test_a_stack_that_was_here_is_not_shown_while_another_kind_of_server_starts(
    paths: DataPaths,
) -> None:
    lease.prepare(paths)
    paths.stack_plan.write_text(json.dumps(PLAN))
    owner = ExclusiveLock(paths.owner_lock)
    with owner:
        owner.try_acquire()
        for pid, shown in ((os.getpid() + 1, False), (os.getpid(), True)):
            Teller(paths, pid).tell(trouble="some")
            found = local.describe(paths)
            assert (found.state, found.stack is not None) == ("starting", shown)


def test_a_process_that_does_not_answer_is_unresponsive(paths: DataPaths) -> None:
    lease.prepare(paths)
    info = published(paths)
    found = local.describe(paths)
    assert (found.state, found.info) == ("unresponsive", info)
    assert found.detail


def test_a_dead_server_is_stopped_and_told(paths: DataPaths) -> None:
    lease.prepare(paths)
    published(paths, dead=True)
    found = local.describe(paths)
    assert (found.state, found.info) == ("stopped", None)
    assert "without being stopped" in found.detail
    with pytest.raises(ServerNotRunningError, match="without being stopped"):
        local.running_server(paths)


def test_asking_for_a_client_makes_no_directory(paths: DataPaths) -> None:
    with pytest.raises(ServerNotRunningError), local.connected(paths):
        pass
    assert not paths.root.exists()
