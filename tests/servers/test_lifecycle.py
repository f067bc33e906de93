"""Shared servers, with a stand-in keeper and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pikuri_memory import discovery, lease, process
from pikuri_memory.discovery import ServerInfo
from pikuri_memory.errors import (
    DataDirectoryInUseError,
    LeasesHeldError,
    PortInUseError,
    ServerNotRunningError,
    ServerStartError,
    WaitTimeoutError,
)
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.lifecycle import stop
from pikuri_memory.waiting import Deadline, wait_for
from tests.servers import stand_in
from tests.servers.soak import SOAK_SECONDS, soak
from tests.servers.user import User, call


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose server is gone after the test."""
    root = tmp_path / "data"
    yield root
    stop(DataPaths.at(root), force=True, timeout=10)


def until(condition: Callable[[], object]) -> None:
    wait_for(
        lambda: condition() or None, Deadline(30), what="the expected state", hint="see the test"
    )


def server_of(root: Path) -> ServerInfo | None:
    info = discovery.read_server_info(DataPaths.at(root))
    return info if info is not None and info.is_running() else None


# ---------------------------------------------------------------- sharing


def test_two_processes_share_one_server(root: Path) -> None:
    with User(root) as first, User(root) as second:
        assert first.ask("start") == second.ask("start")
        assert first.ask("call")["pid"] == second.ask("call")["pid"]
    assert stand_in.events(root).count("start") == 1


@pytest.mark.parametrize("way", ["close", "leave", "kill"])
def test_the_server_outlives_its_first_user_and_ends_with_its_last(root: Path, way: str) -> None:
    with User(root) as first, User(root) as second:
        pid = first.ask("start")["pid"]
        second.ask("start")
        for user, is_last in ((first, False), (second, True)):
            if way == "close":
                assert user.ask("close") == {"closed": True}
            else:
                getattr(user, way)()
            if is_last:
                until(lambda: server_of(root) is None)
            else:
                # It had every chance to end: the last one's end takes a fraction of this.
                time.sleep(0.3)
                assert second.ask("call")["pid"] == pid
    assert stand_in.events(root) == ["start", "stop"]


def test_close_of_the_last_user_returns_when_the_server_has_ended(root: Path) -> None:
    server = stand_in.lifecycle(root, faults=("--slow-stop", "0.5"))
    info = server.start()
    server.close()
    assert not info.is_running()


def test_a_starter_that_stays_does_not_stand_in_the_way_of_the_end(root: Path) -> None:
    """The process that spawned the server lives on: its unreaped child counts as ended."""
    with User(root) as spawner, User(root) as other:
        pid = spawner.ask("start")["pid"]
        other.ask("start")
        spawner.ask("close")
        other.ask("close")
        assert process.identify(pid) is None


def test_start_is_idempotent_and_close_may_be_called_twice(root: Path) -> None:
    server = stand_in.lifecycle(root)
    assert server.start() == server.start()
    assert len(lease.holders(server.paths)) == 1
    server.close()
    server.close()
    assert lease.holders(server.paths) == []
    assert server.info is None


def test_start_after_close_starts_afresh(root: Path) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()
    server.close()
    second = server.start()
    assert second.pid != first.pid
    assert call(second.endpoint)["pid"] == second.pid
    server.close()


def test_close_before_start_does_nothing(root: Path) -> None:
    stand_in.lifecycle(root).close()
    assert not root.exists()


def test_two_objects_of_one_process_hold_a_lease_each(root: Path) -> None:
    first, second = stand_in.lifecycle(root), stand_in.lifecycle(root)
    assert first.start() == second.start()
    first.close()
    info = second.info
    assert info is not None
    assert call(info.endpoint)["pid"] == info.pid
    second.close()
    assert not info.is_running()


def test_two_starters_at_once_start_one_server(root: Path) -> None:
    with User(root) as first, User(root) as second, User(root) as third:
        users = (first, second, third)
        for user in users:
            user.send("start")
        assert len({user.reply()["pid"] for user in users}) == 1
    assert stand_in.events(root).count("start") == 1


def test_threads_of_one_process_start_one_server(root: Path) -> None:
    server = stand_in.lifecycle(root)
    found: list[ServerInfo] = []
    threads = [threading.Thread(target=lambda: found.append(server.start())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(lease.holders(server.paths)) == 1
    server.close()


def test_a_starter_during_a_stop_waits_and_starts_afresh(root: Path) -> None:
    leaver = stand_in.lifecycle(root, faults=("--slow-stop", "1"))
    first = leaver.start()
    with User(root) as user:
        assert user.ask("close") == {"closed": True}  # it is up
        leaving = threading.Thread(target=leaver.close)
        leaving.start()
        until(lambda: lease.lock_owner(leaver.paths.lease_lock) is not None)
        second = user.ask("start")["pid"]
        assert not first.is_running()
        assert second != first.pid
        assert user.ask("call")["pid"] == second
        leaving.join()
    assert stand_in.events(root)[:3] == ["start", "stop", "start"]


def test_a_user_that_is_killed_while_it_starts_a_server_leaves_none(root: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path\n"
        "from tests.servers import stand_in\n"
        "stand_in.lifecycle(Path(sys.argv[1]), faults=('--slow-start', '1')).start()",
    ]
    starter = subprocess.Popen([*command, str(root)], env=stand_in.environment())
    owner = DataPaths.at(root).owner_lock
    until(lambda: lease.lock_owner(owner))
    starter.kill()
    starter.wait()
    until(lambda: stand_in.events(root) == ["start", "stop"])


def test_many_processes_that_come_and_go_never_meet_a_stopping_server(root: Path) -> None:
    outcome = soak(root, "stand-in", SOAK_SECONDS)
    assert outcome.failures == []
    until(lambda: server_of(root) is None)
    happened = stand_in.events(root)
    print(f"{outcome.rounds} rounds, {outcome.kills} kills, {happened.count('start')} servers")
    assert happened == ["start", "stop"] * (len(happened) // 2)
    assert happened.count("start") >= 3
    assert outcome.rounds >= 30


# ---------------------------------------------------------------- forks and ends


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_forked_child_holds_no_lease_and_does_not_drop_its_parents(root: Path, way: str) -> None:
    with User(root) as user:
        pid = user.ask("start")["pid"]
        seen = user.ask(way)
        assert seen == {"child_info": False, "holders": [user.process.pid]}
        assert user.ask("call")["pid"] == pid


def test_a_forked_child_that_lives_on_does_not_keep_the_server(root: Path) -> None:
    with User(root) as user:
        user.ask("start")
        child = user.ask("orphan")["child"]
        try:
            user.kill()
            until(lambda: server_of(root) is None)
            assert process.identify(child) is not None
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_sigterm_of_the_user_gives_its_lease_back(root: Path) -> None:
    with User(root) as user:
        user.ask("start")
        user.process.terminate()
        assert user.process.wait(30) == -signal.SIGTERM
        # The finalizer ran: a killed process leaves its file to be found and removed by others.
        assert list(DataPaths.at(root).holders.iterdir()) == []
        until(lambda: server_of(root) is None)


def test_an_exit_without_close_gives_the_lease_back(root: Path) -> None:
    with User(root) as user:
        user.ask("start")
        assert user.leave() == 0
        assert list(DataPaths.at(root).holders.iterdir()) == []
        until(lambda: server_of(root) is None)


# ---------------------------------------------------------------- what was found


def test_a_published_server_that_is_dead_is_not_trusted(root: Path) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not first.is_running())
    assert discovery.read_server_info(server.paths) == first
    assert stand_in.lifecycle(root).start().pid != first.pid


def test_a_published_server_whose_process_id_was_used_again_is_not_trusted(root: Path) -> None:
    server = stand_in.lifecycle(root)
    lease.prepare(server.paths)
    ours = process.identify(os.getpid())
    assert ours is not None
    stale = ServerInfo(stand_in.KIND, ours.pid, ours.start_time - 60, "http://127.0.0.1:1", "1")
    discovery.write_server_info(server.paths, stale)
    info = server.start()
    assert info.pid != os.getpid()
    server.close()


def test_a_damaged_server_file_is_no_obstacle(root: Path) -> None:
    server = stand_in.lifecycle(root)
    lease.prepare(server.paths)
    server.paths.server_info.write_text('{"pid": ')
    assert server.start().is_running()
    server.close()


def test_a_server_of_another_version_is_replaced_when_nobody_uses_it(root: Path) -> None:
    kept = stand_in.lifecycle(root, version="1", keep=True)
    old = kept.start()
    kept.close()
    assert old.is_running()
    newer = stand_in.lifecycle(root, version="2")
    new = newer.start()
    assert not old.is_running()
    assert new.version == "2"
    newer.close()
    assert new.is_running(), "what was to be kept stays kept through a replacement"


def test_a_server_of_another_version_is_shared_while_somebody_uses_it(root: Path) -> None:
    older = stand_in.lifecycle(root, version="1")
    newer = stand_in.lifecycle(root, version="2")
    old = older.start()
    assert newer.start() == old
    newer.close()
    older.close()
    assert newer.start().version == "2"
    newer.close()


def test_two_starters_of_a_new_version_do_not_take_each_other_for_users(root: Path) -> None:
    kept = stand_in.lifecycle(root, version="1", keep=True)
    kept.start()
    kept.close()
    with User(root, "2") as first, User(root, "2") as second:
        first.send("start")
        second.send("start")
        assert first.reply() == second.reply()
        info = server_of(root)
        assert info is not None
        assert info.version == "2"


def test_another_kind_of_server_in_the_directory_is_an_error(root: Path) -> None:
    server = stand_in.lifecycle(root)
    lease.prepare(server.paths)
    ours = process.identify(os.getpid())
    assert ours is not None
    with User(root) as user:
        user.ask("start")
        found = server_of(root)
        assert found is not None
        other = ServerInfo("mem0", found.pid, found.start_time, found.endpoint, "1")
        discovery.write_server_info(server.paths, other)
        with pytest.raises(DataDirectoryInUseError, match="mem0"):
            server.start()
        discovery.write_server_info(server.paths, found)


def test_an_owner_that_serves_nothing_is_named(root: Path) -> None:
    server = stand_in.lifecycle(root, start_timeout=0.3, stop_timeout=0.3)
    lease.prepare(server.paths)
    owner = ExclusiveLock(server.paths.owner_lock)
    assert owner.try_acquire()
    with pytest.raises(DataDirectoryInUseError, match=f"pid {os.getpid()}"):
        server.start()
    owner.release()
    assert lease.holders(server.paths) == []


def test_an_owner_too_old_to_be_starting_is_not_waited_for_to_the_end(root: Path) -> None:
    with User(root) as owner:
        found = process.identify(owner.process.pid)
        assert found is not None
        assert owner.ask("own") == {"owned": True}
        until(lambda: (process.age(owner.process.pid) or 0) > 0.2)
        server = stand_in.lifecycle(root, start_timeout=0.2, stop_timeout=3600)
        with pytest.raises(DataDirectoryInUseError, match=f"pid {owner.process.pid}"):
            server.start()


def test_a_server_that_is_still_starting_is_waited_for(root: Path) -> None:
    """Its starter was killed: nobody holds the start lock, and nothing is published yet."""
    paths = DataPaths.at(root)
    lease.prepare(paths)
    command = [sys.executable, "-m", "tests.servers.stand_in", str(root), "--slow-start", "0.7"]
    by_hand = process.spawn_detached(command, output=paths.output_log, env=stand_in.environment())
    until(lambda: lease.lock_owner(paths.owner_lock))
    server = stand_in.lifecycle(root)
    assert server.start().pid == by_hand.pid
    server.close()


# ---------------------------------------------------------------- failing starts


def test_the_error_that_a_new_server_tells_is_raised_and_nothing_is_left(root: Path) -> None:
    told = json.dumps({"code": "port_in_use", "message": "port 1 is in use", "hint": "--port 2"})
    server = stand_in.lifecycle(root, faults=("--tell", told))
    with pytest.raises(PortInUseError, match="port 1 is in use") as failed:
        server.start()
    assert failed.value.hint == "--port 2"
    assert lease.holders(server.paths) == []
    assert lease.lock_owner(server.paths.owner_lock) is None
    assert server.info is None


def test_the_last_lines_of_a_server_that_crashes_are_quoted(root: Path) -> None:
    server = stand_in.lifecycle(root, faults=("--tell", "Traceback: broken"))
    with pytest.raises(ServerStartError, match=r"code 5(.|\n)*Traceback: broken"):
        server.start()


def test_a_server_that_does_not_become_healthy_is_ended(root: Path) -> None:
    server = stand_in.lifecycle(root, faults=("--hang",), start_timeout=1.5)
    with pytest.raises(WaitTimeoutError, match="thinking"):
        server.start()
    assert lease.lock_owner(server.paths.owner_lock) is None
    assert lease.holders(server.paths) == []


def test_a_failed_start_may_be_tried_again(root: Path) -> None:
    with pytest.raises(ServerStartError):
        stand_in.lifecycle(root, faults=("--tell", "no")).start()
    server = stand_in.lifecycle(root)
    assert server.start().is_running()
    server.close()


# ---------------------------------------------------------------- keep, stop, revive


def test_a_kept_server_stays_until_it_is_stopped(root: Path) -> None:
    server = stand_in.lifecycle(root, keep=True)
    info = server.start()
    server.close()
    time.sleep(0.3)
    assert info.is_running()
    stopped = stop(server.paths, force=False, timeout=30)
    assert stopped.server == info
    assert not stopped.killed
    assert not info.is_running()
    assert discovery.read_server_info(server.paths) is None


def test_keep_of_a_later_user_counts_for_the_running_server(root: Path) -> None:
    first, second = stand_in.lifecycle(root), stand_in.lifecycle(root, keep=True)
    info = first.start()
    second.start()
    second.close()
    first.close()
    time.sleep(0.3)
    assert info.is_running()


def test_a_stopped_server_is_not_kept_the_next_time(root: Path) -> None:
    kept = stand_in.lifecycle(root, keep=True)
    kept.start()
    kept.close()
    stop(kept.paths, force=False, timeout=30)
    server = stand_in.lifecycle(root)
    info = server.start()
    server.close()
    assert not info.is_running()


def test_stop_names_the_users_and_needs_force(root: Path) -> None:
    with User(root) as user:
        pid = user.ask("start")["pid"]
        with pytest.raises(LeasesHeldError, match=f"pid {user.process.pid}") as refused:
            stop(DataPaths.at(root), force=False, timeout=30)
        assert "--force" in refused.value.hint
        assert user.ask("call")["pid"] == pid
        stopped = stop(DataPaths.at(root), force=True, timeout=30)
        assert stopped.server is not None
        assert stopped.server.pid == pid
        assert [holder.pid for holder in stopped.holders] == [user.process.pid]
        assert server_of(root) is None


def test_stop_without_a_server_says_so(root: Path) -> None:
    assert stop(DataPaths.at(root), force=False, timeout=1).server is None
    assert not root.exists()
    lease.prepare(DataPaths.at(root))
    assert stop(DataPaths.at(root), force=False, timeout=1).server is None


def test_stop_ends_a_server_that_ignores_the_signal_by_force(root: Path) -> None:
    server = stand_in.lifecycle(root, faults=("--deaf",), keep=True)
    info = server.start()
    server.close()
    assert stop(server.paths, force=False, timeout=0.5).killed
    assert not info.is_running()


def test_close_ends_a_server_that_does_not_stop_by_force(root: Path) -> None:
    server = stand_in.lifecycle(root, faults=("--stuck",), stop_timeout=0.5)
    info = server.start()
    server.close()
    until(lambda: not info.is_running())


def test_stop_with_force_ends_a_server_that_hangs_in_its_start(root: Path) -> None:
    paths = DataPaths.at(root)
    lease.prepare(paths)
    command = [sys.executable, "-m", "tests.servers.stand_in", str(root), "--hang", "--deaf"]
    hanging = process.spawn_detached(command, output=paths.output_log, env=stand_in.environment())
    until(lambda: lease.lock_owner(paths.owner_lock) and "thinking" in paths.output_log.read_text())
    with pytest.raises(DataDirectoryInUseError, match=str(hanging.pid)):
        stop(paths, force=False, timeout=0.2)
    assert stop(paths, force=True, timeout=0.2).killed
    assert hanging.wait(5) is not None


def test_a_server_that_died_is_revived(root: Path) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not first.is_running())
    second = server.revive()
    assert second.pid != first.pid
    assert server.info == second
    assert call(second.endpoint)["pid"] == second.pid
    assert server.revive() == second
    server.close()


def test_start_brings_back_a_server_that_died(root: Path) -> None:
    server = stand_in.lifecycle(root)
    first = server.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not first.is_running())
    assert server.start().pid != first.pid
    assert len(lease.holders(server.paths)) == 1
    server.close()


def test_two_users_revive_one_server(root: Path) -> None:
    with User(root) as first, User(root) as second:
        pid = first.ask("start")["pid"]
        second.ask("start")
        os.kill(pid, signal.SIGKILL)
        until(lambda: server_of(root) is None)
        first.send("revive")
        second.send("revive")
        assert first.reply() == second.reply()
    assert stand_in.events(root).count("start") == 2


def test_a_server_that_was_stopped_is_not_revived(root: Path) -> None:
    server = stand_in.lifecycle(root)
    server.start()
    stop(server.paths, force=True, timeout=30)
    with pytest.raises(ServerNotRunningError, match="was stopped"):
        server.revive()
    assert server.start().is_running()
    server.close()
    with pytest.raises(ServerNotRunningError, match="not started"):
        server.revive()


def test_a_kept_server_that_died_is_kept_again(root: Path) -> None:
    kept = stand_in.lifecycle(root, keep=True)
    first = kept.start()
    kept.close()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not first.is_running())
    server = stand_in.lifecycle(root)
    second = server.start()
    server.close()
    time.sleep(0.3)
    assert second.is_running()


def test_stop_of_a_server_that_died_keeps_its_users_from_reviving_it(root: Path) -> None:
    with User(root) as user:
        pid = user.ask("start")["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: server_of(root) is None)
        with pytest.raises(LeasesHeldError, match=f"pid {user.process.pid}"):
            stop(DataPaths.at(root), force=False, timeout=30)
        assert stop(DataPaths.at(root), force=True, timeout=30).server is None
        assert user.ask("revive")["error"] == "ServerNotRunningError"
