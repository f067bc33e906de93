"""Leases, locks and the keeper's wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pikuri_memory import lease, process
from pikuri_memory.errors import StorageError, UnsupportedFileSystemError, WaitTimeoutError
from pikuri_memory.lease import ExclusiveLock, Keeper, Lease
from pikuri_memory.paths import DataPaths
from pikuri_memory.waiting import Deadline, wait_for

KEEPER = """
import sys, threading
from pathlib import Path
from pikuri_memory.lease import Keeper
from pikuri_memory.paths import DataPaths
keeper = Keeper(DataPaths.at(Path(sys.argv[1])), keep="keep" in sys.argv)
print("waiting", flush=True)
print(keeper.wait_until_unused(threading.Event()), flush=True)
sys.stdin.read()
"""
HOLDER = """
import sys
from pathlib import Path
from pikuri_memory.lease import Lease
from pikuri_memory.paths import DataPaths
from pikuri_memory.waiting import Deadline
lease = Lease.acquire(DataPaths.at(Path(sys.argv[1])), deadline=Deadline(30), what="a test")
print("held", flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that runs one of the programs above until it is told to end."""

    def __init__(self, program: str, root: Path, *words: str) -> None:
        search = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(root), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search},
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.communicate()


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return DataPaths.at(tmp_path / "data")


def take(paths: DataPaths, seconds: float = 30) -> Lease:
    return Lease.acquire(paths, deadline=Deadline(seconds), what="a test")


def until(condition: Callable[[], object]) -> None:
    wait_for(lambda: condition() or None, Deadline(30), what="the state", hint="see the test")


def is_stopping(paths: DataPaths) -> bool:
    """Whether somebody holds the lease lock exclusively."""
    return lease.lock_owner(paths.lease_lock) is not None


# ---------------------------------------------------------------- the data directory


def test_the_data_directory_is_private(paths: DataPaths) -> None:
    lease.prepare(paths)
    for directory in (paths.root, paths.locks, paths.holders, paths.logs):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file") as failed:
        lease.prepare(DataPaths.at(tmp_path / "file"))
    assert "--data-dir" in failed.value.hint


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ada/memory", "ext4"),
        ("/home/ada/net/memory", "nfs4"),
        ("/home/ada/network/memory", "ext4"),
        ("/home/ada/net", "nfs4"),
        ("/over", "tmpfs"),
        ("/", "ext4"),
    ],
)
def test_the_innermost_and_latest_mount_counts(path: str, expected: str) -> None:
    mounts = [
        ("/", "ext4"),
        ("/home/ada/net", "NFS4"),
        ("/over", "cifs"),
        ("/over", "tmpfs"),
    ]
    assert lease.file_system_type(Path(path), mounts) == expected


def test_a_path_under_no_known_mount_has_no_type() -> None:
    assert lease.file_system_type(Path("/x"), []) == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smbfs", "9p", "fuse.sshfs"])
def test_network_file_systems_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFileSystemError, match=kind) as refused:
        lease.refuse_network(tmp_path, kind)
    assert "--data-dir" in refused.value.hint


@pytest.mark.parametrize(
    "kind", ["ext4", "btrfs", "apfs", "overlay", "tmpfs", "fuse.gocryptfs", ""]
)
def test_local_and_unknown_file_systems_are_taken(kind: str, tmp_path: Path) -> None:
    lease.refuse_network(tmp_path, kind)
    lease.check_file_system(tmp_path)


# ---------------------------------------------------------------- leases


def test_leases_are_shared_and_listed(paths: DataPaths) -> None:
    before = time.time()
    first, second = take(paths), take(paths)
    with Other(HOLDER, paths.root) as other:
        assert other.line() == "held"
        found = lease.holders(paths)
        assert [holder.pid for holder in found] == [os.getpid(), os.getpid(), other.process.pid]
        assert all(before - 1 < holder.since < time.time() + 1 for holder in found)
        assert not any(holder.using for holder in found)
        assert str(found[-1]).endswith(f"(pid {other.process.pid})")
        assert len(lease.holders(paths, but=first)) == 2
    first.release()
    second.release()
    assert lease.holders(paths) == []


def test_a_confirmed_lease_is_listed_as_using(paths: DataPaths) -> None:
    held = take(paths)
    held.confirm()
    held.confirm()
    assert [holder.using for holder in lease.holders(paths)] == [True]
    held.release()
    assert list(paths.holders.iterdir()) == []


def test_release_may_be_called_twice(paths: DataPaths) -> None:
    held = take(paths)
    assert held.held
    held.release()
    held.release()
    assert not held.held


def test_a_killed_holder_is_listed_no_more_and_its_file_is_removed(paths: DataPaths) -> None:
    with Other(HOLDER, paths.root) as other:
        assert other.line() == "held"
        assert len(lease.holders(paths)) == 1
        other.process.kill()
        other.process.wait()
        assert len(list(paths.holders.iterdir())) == 1
        assert lease.holders(paths) == []
        assert list(paths.holders.iterdir()) == []


def test_what_is_no_holders_file_is_not_listed(paths: DataPaths) -> None:
    lease.prepare(paths)
    (paths.holders / ".1-just-being-made").touch()
    (paths.holders / "1-stale.using").touch()
    old = paths.holders / ".2-left-over"
    old.touch()
    os.utime(old, (1, 1))
    assert lease.holders(paths) == []
    assert [path.name for path in paths.holders.iterdir()] == [".1-just-being-made"]


def test_holders_of_a_directory_that_is_not_there_are_none(paths: DataPaths) -> None:
    assert lease.holders(paths) == []


def test_lock_files_are_never_unlinked(paths: DataPaths) -> None:
    held = take(paths)
    number = paths.lease_lock.stat().st_ino
    held.release()
    take(paths).release()
    assert paths.lease_lock.stat().st_ino == number


def test_a_lease_waits_for_a_keeper_that_stops_and_tells_whom_it_waited_for(
    paths: DataPaths,
) -> None:
    lease.prepare(paths)
    with Other(KEEPER, paths.root) as keeper:
        assert keeper.line() == "waiting"
        assert keeper.line() == "True"
        with pytest.raises(WaitTimeoutError, match="a test") as failed:
            take(paths, seconds=0.1)
        assert "down --force" in failed.value.hint
        taken: list[Lease] = []
        waiting = threading.Thread(target=lambda: taken.append(take(paths)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        keeper.end()
        waiting.join(30)
    assert taken[0].held
    taken[0].release()


# ---------------------------------------------------------------- exclusive locks


def test_an_exclusive_lock_has_one_owner_who_is_told(tmp_path: Path) -> None:
    first, second = ExclusiveLock(tmp_path / "lock"), ExclusiveLock(tmp_path / "lock")
    assert first.owner() is None
    assert first.try_acquire()
    assert first.try_acquire()
    assert not second.try_acquire()
    assert second.owner() == os.getpid()
    with pytest.raises(WaitTimeoutError, match=f"the lock.*pid {os.getpid()}"):
        second.acquire(Deadline(0.05), what="the lock")
    first.release()
    first.release()
    with second.acquire(Deadline(5), what="the lock"):
        assert second.held
    assert not second.held
    assert second.owner() is None


def test_looking_at_a_lock_never_takes_it_away_from_its_next_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lease.lock_owner(path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            lock = ExclusiveLock(path)
            assert lock.try_acquire()
            lock.release()
    finally:
        over.set()
        for looker in lookers:
            looker.join()


# ---------------------------------------------------------------- the keeper


def test_a_keeper_waits_for_the_last_lease(paths: DataPaths) -> None:
    held = take(paths)
    with Other(KEEPER, paths.root) as keeper, Other(HOLDER, paths.root) as other:
        assert keeper.line() == "waiting"
        assert other.line() == "held"
        held.release()
        time.sleep(0.1)
        assert not is_stopping(paths)
        other.process.kill()
        assert keeper.line() == "True"
        assert is_stopping(paths)


def test_newcomers_keep_a_waiting_keeper_from_stopping(paths: DataPaths) -> None:
    """A keeper that sleeps in flock must not stand before newcomers who share the lock."""
    held = take(paths)
    with Other(KEEPER, paths.root) as keeper:
        assert keeper.line() == "waiting"
        for _ in range(20):
            newcomer = take(paths, seconds=0)
            held.release()
            held = newcomer
        assert not is_stopping(paths)
        held.release()
        assert keeper.line() == "True"


def test_a_kept_keeper_waits_until_the_marker_is_gone(paths: DataPaths) -> None:
    held = take(paths)
    with Other(KEEPER, paths.root, "keep") as keeper:
        assert keeper.line() == "waiting"
        held.release()
        time.sleep(0.1)
        take(paths, seconds=1).release()
        lease.clear_keep(paths)
        assert keeper.line() == "True"


def test_a_keep_marker_that_is_set_later_counts(paths: DataPaths) -> None:
    held = take(paths)
    with Other(KEEPER, paths.root) as keeper:
        assert keeper.line() == "waiting"
        found = process.identify(keeper.process.pid)
        assert found is not None
        lease.set_keep(paths, found)
        held.release()
        time.sleep(0.1)
        assert not is_stopping(paths)
        assert paths.keep_marker.stat().st_mode & 0o777 == 0o600


def test_a_marker_of_another_keeper_is_removed(paths: DataPaths) -> None:
    lease.prepare(paths)
    ours = process.identify(os.getpid())
    assert ours is not None
    other = process.ProcessIdentity(ours.pid, ours.start_time - 5, "earlier")
    lease.set_keep(paths, other)
    assert lease.is_kept(paths, other)
    assert not lease.is_kept(paths, ours)
    Keeper(paths, keep=False)
    assert not paths.keep_marker.exists()
    Keeper(paths, keep=True)
    assert lease.is_kept(paths, ours)


def test_a_damaged_marker_keeps_nothing(paths: DataPaths) -> None:
    lease.prepare(paths)
    ours = process.identify(os.getpid())
    assert ours is not None
    for content in ("", "[]", '{"pid": 1}', '{"pid": "x", "start_time": "y"}'):
        paths.keep_marker.write_text(content)
        assert not lease.is_kept(paths, ours)
    lease.clear_keep(paths)
    lease.clear_keep(paths)


def test_a_keeper_that_is_told_to_stop_does_not_wait_for_leases(paths: DataPaths) -> None:
    held = take(paths)
    stop = threading.Event()
    answers: list[bool] = []
    keeper = Keeper(paths, keep=False)
    waiting = threading.Thread(target=lambda: answers.append(keeper.wait_until_unused(stop)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    stop.set()
    waiting.join(30)
    assert answers == [False]
    held.release()


# ---------------------------------------------------------------- forks


FORK = """
import os, signal, sys, threading, time
from pathlib import Path
from pikuri_memory.lease import ExclusiveLock, Lease, holders
from pikuri_memory.paths import DataPaths
from pikuri_memory.waiting import Deadline
paths = DataPaths.at(Path(sys.argv[1]))
lease = Lease.acquire(paths, deadline=Deadline(30), what="a test")
lock = ExclusiveLock(paths.start_lock)
assert lock.try_acquire()
child = os.fork()
if child == 0:
    assert not lease.held and not lock.held
    lease.release()
    lock.release()
    assert not ExclusiveLock(paths.start_lock).try_acquire()
    assert [holder.pid for holder in holders(paths)] == [os.getppid()]
    own = Lease.acquire(paths, deadline=Deadline(30), what="the child")
    own.release()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert lease.held and lock.held
assert [holder.pid for holder in holders(paths)] == [os.getpid()]
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(600)
print(child, flush=True)
sys.stdin.read()
"""


def test_a_forked_child_holds_nothing_and_drops_nothing(paths: DataPaths) -> None:
    with Other(FORK, paths.root) as parent:
        child = int(parent.line())
        try:
            assert len(lease.holders(paths)) == 1
            parent.process.kill()
            parent.process.wait()
            # The child lives, and yet everything is free (as soon as it has run at all).
            until(lambda: lease.holders(paths) == [])
            until(ExclusiveLock(paths.start_lock).try_acquire)
            with Other(KEEPER, paths.root) as keeper:
                assert keeper.line() == "waiting"
                assert keeper.line() == "True"
            assert process.identify(child) is not None
        finally:
            os.kill(child, signal.SIGKILL)


FORK_STORM = """
import os, sys, threading, time
from pathlib import Path
from pikuri_memory.lease import Lease, holders, lock_owner
from pikuri_memory.paths import DataPaths
from pikuri_memory.waiting import Deadline
paths = DataPaths.at(Path(sys.argv[1]))
over = threading.Event()
def churn():
    while not over.is_set():
        Lease.acquire(paths, deadline=Deadline(30), what="a test").release()
threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    children.append(child)
over.set()
for thread in threads:
    thread.join()
print(*children, flush=True)
sys.stdin.read()
"""


def test_forks_in_the_middle_of_taking_leases_carry_none_away(paths: DataPaths) -> None:
    with Other(FORK_STORM, paths.root) as parent:
        children = [int(word) for word in parent.line().split()]
        try:
            assert len(children) == 30
            with Other(KEEPER, paths.root) as keeper:
                assert keeper.line() == "waiting"
                assert keeper.line() == "True"
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
