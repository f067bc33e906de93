"""Leases, locks and the keeper's wait: who uses a server, who starts it, when it may stop.

Everything here is ``flock``: the kernel gives a lock back when its holder ends, however it ends.
Rules that keep it sound:

- a lock file is never unlinked and never unlocked, only closed (``LOCK_UN`` in a forked child
  would drop the parent's lock, and a new file under an old name is another lock);
- a lock is never converted (a failed shared-to-exclusive conversion loses the shared one);
- a forked child closes what it inherited before anything else runs in it: it holds nothing;
- shared locks are polled, because a blocking ``flock`` has no deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pikuri_memory import process
from pikuri_memory.errors import StorageError, UnsupportedFileSystemError
from pikuri_memory.files import write_private
from pikuri_memory.paths import DataPaths
from pikuri_memory.waiting import Deadline, wait_for

_STARTING, _USING = ".starting", ".using"
_KEEP_POLL_SECONDS = 0.5
_LEFTOVER_SECONDS = 60.0
_LOOKERS = 200

# File systems whose flock is emulated, ignored or lost on reconnection; FUSE ones by their name
# after "fuse.".
_NETWORK_FILE_SYSTEMS = """
    9p afpfs afs beegfs ceph cifs coda davfs drvfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4
    ocfs2 prl_fs smb smb2 smb3 smbfs vboxsf webdav
    fuse.ceph fuse.cifs fuse.curlftpfs fuse.davfs fuse.davfs2 fuse.gcsfuse fuse.glusterfs
    fuse.gvfsd-fuse fuse.nfs fuse.rclone fuse.s3fs fuse.smbnetfs fuse.sshfs fuse.vmhgfs-fuse
"""


class RunningProcess(Protocol):
    """Anything that names a process: a server's info or a process identity."""

    @property
    def pid(self) -> int: ...

    @property
    def start_time(self) -> float: ...


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        pid: Its id.
        name: The program, without arguments.
        since: When it took the lease, in seconds since 1970.
        using: False while it is still about to find or start the server.
    """

    pid: int
    name: str
    since: float
    using: bool

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


# ---------------------------------------------------------------- lock files


_guard = threading.RLock()
_open_files: set[_LockFile] = set()


class _LockFile:
    """An open lock file. Known to the module from the instant it is open, so that no fork in
    another thread can carry it into a child."""

    def __init__(self, path: Path) -> None:
        with _guard:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self.descriptor: int | None = os.open(path, flags, 0o600)
            _open_files.add(self)

    def try_lock(self, operation: int) -> bool:
        if self.descriptor is None:
            return False
        try:
            fcntl.flock(self.descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self, operation: int) -> None:
        if self.descriptor is not None:
            fcntl.flock(self.descriptor, operation)

    def close(self) -> None:
        with _guard:
            _open_files.discard(self)
            if self.descriptor is not None:
                os.close(self.descriptor)
                self.descriptor = None


def _before_fork() -> None:
    _guard.acquire()


def _after_fork_in_parent() -> None:
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for file in list(_open_files):
        if file.descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(file.descriptor)
            file.descriptor = None
    _open_files.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


# ---------------------------------------------------------------- the data directory


def prepare(paths: DataPaths) -> None:
    """Make the data directory (mode 0700) with its directories for locks and logs.

    Raises:
        UnsupportedFileSystemError: It lies on a network file system.
        StorageError: It cannot be made or written.
    """
    try:
        paths.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        check_file_system(paths.root)
        for directory in (paths.locks, paths.holders, paths.logs):
            directory.mkdir(mode=0o700, exist_ok=True)
        if not os.access(paths.root, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")
    except OSError as error:
        raise StorageError(
            f"the data directory {paths.root} cannot be used: {error.strerror or error}",
            hint=f"make it writable, or choose another with --data-dir; look: ls -ld {paths.root}",
        ) from error


def check_file_system(path: Path) -> None:
    """Refuse a directory whose locks cannot be trusted.

    Raises:
        UnsupportedFileSystemError: It lies on a network file system.
    """
    refuse_network(path, file_system_type(path, _mounts()))


def refuse_network(path: Path, kind: str) -> None:
    """Refuse the type of a network file system for a path.

    Raises:
        UnsupportedFileSystemError: It is one.
    """
    if kind in _NETWORK_FILE_SYSTEMS.split():
        raise UnsupportedFileSystemError(
            f"{path} lies on a network file system ({kind}), whose locks cannot be trusted",
            hint="choose a directory on a local disk with --data-dir",
        )


def file_system_type(path: Path, mounts: list[tuple[str, str]]) -> str:
    """The type of the file system that holds a path, lower case; empty if unknown.

    Args:
        path: Any path; links in it are followed.
        mounts: Mount points with their types, later ones on top of earlier ones.
    """
    real = Path(os.path.realpath(path))
    best, kind = -1, ""
    for point, name in mounts:
        depth = len(Path(point).parts)
        if depth >= best and real.is_relative_to(point):
            best, kind = depth, name.lower()
    return kind


def _mounts() -> list[tuple[str, str]]:
    import psutil

    try:
        return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    except (OSError, psutil.Error):  # a sandbox without a mount table: nothing to go by
        return []


# ---------------------------------------------------------------- leases


class Lease:
    """This process's share in a running server. Make one with :meth:`acquire`."""

    def __init__(self, lock: _LockFile, info: _LockFile, info_path: Path) -> None:
        self._lock = lock
        self._info = info
        self._info_path = info_path

    @classmethod
    def acquire(cls, paths: DataPaths, *, deadline: Deadline, what: str) -> Lease:
        """Take a lease; while a keeper stops, wait for its end.

        Args:
            paths: The data directory; made if need be.
            deadline: When to give up.
            what: For whom, as a noun, in the message of a timeout.

        Raises:
            WaitTimeoutError: A server is still stopping at the deadline.
            StorageError: The data directory cannot be used.
        """
        prepare(paths)
        lock = _LockFile(paths.lease_lock)
        try:
            wait_for(
                lambda: lock.try_lock(fcntl.LOCK_SH) or None,
                deadline,
                what=f"{what} (a server that is stopping still holds the lease)",
                describe=lambda: _owner_text(paths.owner_lock),
                hint="wait a moment and try again, or end it by force: pikuri-memory down --force",
            )
            info, info_path = _write_info(paths)
        except BaseException:
            lock.close()
            raise
        return cls(lock, info, info_path)

    @property
    def held(self) -> bool:
        """Whether it is neither released nor inherited by a fork."""
        return self._lock.descriptor is not None

    @property
    def name(self) -> str:
        """What tells this lease from others in :func:`holders`."""
        return self._info_path.stem

    def confirm(self) -> None:
        """Say that the server is in use from now on. To be called under the start lock."""
        if self.held and self._info_path.suffix == _STARTING:
            target = self._info_path.with_suffix(_USING)
            os.rename(self._info_path, target)
            self._info_path = target

    def release(self) -> None:
        """Give it back; again is fine, and in a forked child it does nothing."""
        if not self.held:
            return
        with contextlib.suppress(OSError):
            self._info_path.unlink()
        self._info.close()
        self._lock.close()


def holders(paths: DataPaths, *, but: Lease | None = None) -> list[Holder]:
    """The live processes that hold a lease, oldest first; files of dead ones are removed.

    Args:
        paths: The data directory.
        but: A lease that is not listed.
    """
    found: list[Holder] = []
    try:
        entries = sorted(paths.holders.iterdir())
    except OSError:
        return found
    for path in entries:
        if but is not None and but.held and path.stem == but.name:
            continue
        holder = _read_info(path)
        if holder is not None:
            found.append(holder)
    return sorted(found, key=lambda holder: holder.since)


def _write_info(paths: DataPaths) -> tuple[_LockFile, Path]:
    stem = f"{os.getpid()}-{secrets.token_hex(6)}"
    # Locked before it appears under its name: nobody takes a fresh one for a dead holder's.
    scratch, path = paths.holders / f".{stem}", paths.holders / (stem + _STARTING)
    file = _LockFile(scratch)
    try:
        file.try_lock(fcntl.LOCK_EX)
        content = {"pid": os.getpid(), "name": _own_name(), "since": time.time()}
        assert file.descriptor is not None
        os.write(file.descriptor, json.dumps(content).encode())
        os.rename(scratch, path)
    except BaseException:
        file.close()
        raise
    return file, path


def _read_info(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if path.suffix not in (_STARTING, _USING):
                return None
            fields = json.loads(os.read(descriptor, 4096))
            return Holder(
                int(fields["pid"]),
                str(fields["name"]),
                float(fields["since"]),
                path.suffix == _USING,
            )
        # Nobody has it locked: its process is dead, unless it is just being made.
        fresh = time.time() - os.fstat(descriptor).st_mtime < _LEFTOVER_SECONDS
        if not (path.name.startswith(".") and fresh):
            path.unlink(missing_ok=True)
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(descriptor)


def _own_name() -> str:
    """The program without arguments, which may carry private text."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.name == "__main__.py":
        return program.parent.name
    return program.name if program.name not in ("", "-c", "-") else Path(sys.executable).name


# ---------------------------------------------------------------- exclusive locks


class ExclusiveLock:
    """A lock that one process (and in it, one object) holds: the start lock, the owner lock.

    As a context manager it only releases: ``with lock.acquire(deadline, what=...):``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: _LockFile | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._file is not None and self._file.descriptor is not None

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        if self.held:
            return True
        for _ in range(_LOOKERS):
            file = _LockFile(self.path)
            if file.try_lock(fcntl.LOCK_EX):
                assert file.descriptor is not None
                os.ftruncate(file.descriptor, 0)
                os.pwrite(file.descriptor, str(os.getpid()).encode(), 0)
                self._file = file
                return True
            # Shared means that somebody just looks (lock_owner): he is gone in an instant.
            looked_at = file.try_lock(fcntl.LOCK_SH)
            file.close()
            if not looked_at:
                return False
            time.sleep(0.001)
        return False

    def acquire(
        self, deadline: Deadline, *, what: str, hint: str = "try again in a moment"
    ) -> ExclusiveLock:
        """Take it, waiting for its present owner.

        Raises:
            WaitTimeoutError: Somebody else, who is named, still has it at the deadline.
        """
        wait_for(
            lambda: self.try_acquire() or None,
            deadline,
            what=what,
            describe=lambda: _owner_text(self.path),
            hint=hint,
        )
        return self

    def release(self) -> None:
        """Give it back; again is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def owner(self) -> int | None:
        """The process id of whoever holds it now; None if nobody does, 0 if it did not tell."""
        return lock_owner(self.path)

    def __enter__(self) -> ExclusiveLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_owner(path: Path) -> int | None:
    """The process id of an exclusive lock's holder; None if it is free, 0 if it did not tell.

    Looking takes a shared lock for an instant, which :class:`ExclusiveLock` knows how to tell
    from an owner.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _owner_text(path: Path) -> str:
    pid = lock_owner(path)
    if pid is None:
        return "nobody holds the lock now"
    found = process.identify(pid)
    return f"held by {found.name} (pid {pid})" if found else "held by a process of unknown id"


# ---------------------------------------------------------------- the keeper


def set_keep(paths: DataPaths, keeper: RunningProcess) -> None:
    """Let the running server stay up without leases. The caller holds a lease or is the keeper.

    The marker names the keeper: it means nothing to a later one.
    """
    content = {"pid": keeper.pid, "start_time": keeper.start_time}
    write_private(paths.keep_marker, json.dumps(content))


def clear_keep(paths: DataPaths) -> None:
    """Let the running server stop when its last lease is gone."""
    paths.keep_marker.unlink(missing_ok=True)


def is_kept(paths: DataPaths, keeper: RunningProcess) -> bool:
    """Whether the very keeper is to stay up without leases."""
    try:
        fields = json.loads(paths.keep_marker.read_bytes())
        return bool(
            fields["pid"] == keeper.pid and abs(fields["start_time"] - keeper.start_time) < 0.005
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Keeper:
    """The wait of the process that owns a running server until nobody uses it.

    To be made after the owner lock is taken, because it removes a marker of an earlier keeper.

    Args:
        paths: The data directory.
        keep: Stay up without leases from the start.
    """

    def __init__(self, paths: DataPaths, *, keep: bool) -> None:
        self._paths = paths
        found = process.identify(os.getpid())
        assert found is not None
        self.identity = found
        self._lock: _LockFile | None = None
        if keep:
            set_keep(paths, found)
        elif not is_kept(paths, found):
            clear_keep(paths)

    def wait_until_unused(self, stop: threading.Event) -> bool:
        """Block until nobody holds a lease and no keep marker is there, or ``stop`` is set.

        Once True the lease lock is held exclusively until this process ends: newcomers wait for
        its end and start afresh. Call it once, from a thread of its own.

        Returns:
            False if ``stop`` came first.
        """
        answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def locked() -> None:
            self._take_lease_lock(stop)
            answers.put(True)

        def stopped() -> None:
            stop.wait()
            answers.put(False)

        # Neither polls: one sleeps in flock, one in the event. Daemons, because a blocked flock
        # cannot be woken and must not delay the end of the process.
        for target in (locked, stopped):
            threading.Thread(target=target, name=f"keeper-{target.__name__}", daemon=True).start()
        return answers.get()

    def _take_lease_lock(self, stop: threading.Event) -> None:
        while True:
            while is_kept(self._paths, self.identity):
                if stop.wait(_KEEP_POLL_SECONDS):
                    return
            file = _LockFile(self._paths.lease_lock)
            file.lock(fcntl.LOCK_EX)
            # Whoever set the marker held a lease then, so it is there by now if it is to count.
            if not is_kept(self._paths, self.identity):
                self._lock = file
                return
            file.close()
