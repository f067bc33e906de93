"""Starting, sharing and stopping a server: the part that every kind of server has in common.

The order is what makes it safe (DESIGN.md, decision 6). A starter takes its lease first, so that
no keeper can decide to stop from then on; then the start lock, so that only one process looks and
acts; only then it looks, adopts or spawns, and waits until the server is healthy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pikuri_memory import finalizers, lease, process
from pikuri_memory.discovery import ServerInfo, clear_server_info, read_server_info
from pikuri_memory.errors import (
    DataDirectoryInUseError,
    LeasesHeldError,
    PikuriMemoryError,
    ServerNotRunningError,
    ServerStartError,
    WaitTimeoutError,
    error_for,
)
from pikuri_memory.lease import ExclusiveLock, Holder, Lease
from pikuri_memory.paths import DataPaths
from pikuri_memory.process import Process, identify, is_alive, kill_group, signal_process
from pikuri_memory.waiting import Deadline, wait_for

_log = logging.getLogger(__name__)
_TAIL_LINES = 20
_TAIL_BYTES = 16384
_TERMINATE_SECONDS = 5.0
_LAST_BREATH_SECONDS = 1.5
_POLL_SECONDS = 0.03


@dataclass(frozen=True)
class Stopped:
    """What :func:`stop` did.

    Attributes:
        server: The server that was stopped; None if none was published.
        killed: Whether something had to be ended by force.
        holders: Who still held leases (only with ``force``).
    """

    server: ServerInfo | None
    killed: bool = False
    holders: tuple[Holder, ...] = ()


class ServerLifecycle:
    """One user's share in a server. Thread-safe; a forked child starts from nothing.

    Args:
        paths: The data directory.
        kind: ``embedded`` or ``mem0``.
        version: The version that a server must have.
        spawn: Starts the keeper as a detached process, told whether to stay without leases; its
            output goes to ``paths.output_log``.
        healthy: Whether a published server answers; called again and again, must not block long.
        start_timeout: Seconds until a spawned server must be healthy.
        stop_timeout: Seconds until a stopping server is ended by force.
        keep: Leave the server running without leases.
    """

    def __init__(
        self,
        paths: DataPaths,
        *,
        kind: str,
        version: str,
        spawn: Callable[[bool], Process],
        healthy: Callable[[ServerInfo], bool],
        start_timeout: float,
        stop_timeout: float,
        keep: bool = False,
    ) -> None:
        self.paths = paths
        self._kind = kind
        self._version = version
        self._spawn = spawn
        self._healthy = healthy
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._keep = keep
        self._guard = threading.RLock()
        self._guard_pid = os.getpid()
        self._lease: Lease | None = None
        self._info: ServerInfo | None = None
        self._finalizer: finalizers.Handle | None = None

    @property
    def info(self) -> ServerInfo | None:
        """The server that this object shares; None before start, after close, in a fork."""
        return self._info if self._lease is not None and self._lease.held else None

    def start(self) -> ServerInfo:
        """Take a lease and return when the server is healthy; again is fine.

        Raises:
            ServerStartError: The new server ended; or the error it told.
            WaitTimeoutError: It was not healthy in time, or an earlier one did not end.
            DataDirectoryInUseError: Something else owns the data directory.
            StorageError: The data directory cannot be used.
        """
        with self._locked():
            if self.info is not None and self.info.is_running():
                return self.info
            held = self._lease
            if held is None or not held.held:
                held = Lease.acquire(
                    self.paths,
                    deadline=self._patient(),
                    what=f"the server of {self.paths.root}",
                )
            try:
                with self._start_lock():
                    self._info = self._bring_up(held)
                    held.confirm()
            except BaseException:
                held.release()
                self._forget()
                raise
            self._lease = held
            if self._finalizer is None:
                self._finalizer = finalizers.register(self._give_back, "give the lease back")
            return self._info

    def revive(self) -> ServerInfo:
        """The server after a connection was refused: started again if it died.

        Raises:
            ServerNotRunningError: It was stopped on purpose, or this object is closed.
            ServerStartError: The new server ended; or the error it told.
            WaitTimeoutError: It was not healthy in time.
        """
        with self._locked():
            held = self._lease
            if held is None or not held.held:
                raise ServerNotRunningError(
                    f"this server object is not started (data directory {self.paths.root})",
                    hint="call start() first, or use it as a context manager",
                )
            with self._start_lock():
                found = read_server_info(self.paths)
                if found is None:
                    raise ServerNotRunningError(
                        f"the server of {self.paths.root} was stopped",
                        hint="start it again: pikuri-memory up",
                    )
                died = not found.is_running()
                self._info = self._bring_up(held)
                held.confirm()
            if died:
                _log.warning(
                    "the server (pid %d) had died; started it again (pid %d)",
                    found.pid,
                    self._info.pid,
                )
            return self._info

    def close(self) -> None:
        """Give the lease back; if it was the last one, return when the server has ended.

        A server that does not end in time is ended by force. Again is fine.
        """
        with self._locked():
            info = self.info
            self._give_back()
            if info is not None and not lease.is_kept(self.paths, info):
                self._await_end(info)

    # ------------------------------------------------------------ starting

    def _bring_up(self, held: Lease) -> ServerInfo:
        """Find or make a healthy server. Called under the start lock, with a lease."""
        deadline = self._patient()
        keep = self._keep
        beaten = False
        while True:
            found = self._settled(deadline)
            if found is None:
                # A crash is no "down": what was to be kept is kept by the next server as well.
                died = read_server_info(self.paths)
                keep = keep or (died is not None and lease.is_kept(self.paths, died))
                try:
                    return self._spawn_and_wait(keep)
                except DataDirectoryInUseError:
                    # A server that somebody started by hand (without the start lock) was faster.
                    if beaten:
                        raise
                    beaten = True
                    continue
            if found.kind != self._kind:
                raise DataDirectoryInUseError(
                    f"{self.paths.root} is served by a {found.kind} server (pid {found.pid})",
                    hint="stop it first: pikuri-memory down",
                )
            others = [h for h in lease.holders(self.paths, but=held) if h.using]
            if found.version == self._version or others:
                if found.version != self._version:
                    _log.warning(
                        "using a server of version %s (this is %s), because others use it: %s",
                        found.version,
                        self._version,
                        ", ".join(map(str, others)),
                    )
                if keep:
                    lease.set_keep(self.paths, found)
                return found
            _log.info("replacing the server of version %s (pid %d)", found.version, found.pid)
            keep = keep or lease.is_kept(self.paths, found)
            _end(self.paths, found, self._stop_timeout)

    def _settled(self, deadline: Deadline) -> ServerInfo | None:
        """A healthy server, or None when it is certain that none runs."""
        seen: ServerInfo | None = None
        breath: Deadline | None = None

        def look() -> tuple[ServerInfo | None] | None:
            nonlocal seen, breath
            # The lock before the file: a server that has just ended withdrew its file before.
            owner = lease.lock_owner(self.paths.owner_lock)
            seen = read_server_info(self.paths)
            if seen is not None and seen.is_running():
                # Another kind answers in another way, and is refused whether it does or not.
                return (seen,) if seen.kind != self._kind or self._healthy(seen) else None
            if owner is None:
                return (None,)
            # Somebody owns the data and serves nothing: a server that is starting, or has
            # withdrawn its file and ends at once. What is too old for the one and does not do
            # the other is no server, and not worth the whole wait.
            breath = breath or Deadline(_LAST_BREATH_SECONDS)
            if breath.expired and (process.age(owner) or 0) > self._start_timeout:
                raise _owned(self.paths, owner)
            return None

        try:
            return wait_for(
                look,
                deadline,
                what=f"the running server of {self.paths.root} to answer or to end",
                describe=lambda: _state(self.paths, seen),
                hint="end it by force: pikuri-memory down --force",
                interval=_POLL_SECONDS,
            )[0]
        except WaitTimeoutError:
            if seen is not None and seen.is_running():
                raise
            raise _owned(self.paths, lease.lock_owner(self.paths.owner_lock)) from None

    def _spawn_and_wait(self, keep: bool) -> ServerInfo:
        child = self._spawn(keep)

        def ready() -> ServerInfo | None:
            if child.poll() is not None:
                raise _child_error(child, self.paths.output_log)
            found = read_server_info(self.paths)
            if found is None or found.pid != child.pid or not self._healthy(found):
                return None
            return found

        try:
            return wait_for(
                ready,
                Deadline(self._start_timeout),
                what=f"the server (pid {child.pid}) to become healthy",
                describe=lambda: _last_output(self.paths.output_log),
                hint=f"read {self.paths.server_log}, or give it longer with --start-timeout",
                interval=_POLL_SECONDS,
            )
        except BaseException:
            child.terminate(_TERMINATE_SECONDS)
            clear_server_info(self.paths, child.pid)
            raise

    def _start_lock(self) -> ExclusiveLock:
        return ExclusiveLock(self.paths.start_lock).acquire(
            self._patient(),
            what=f"another process that starts or stops the server of {self.paths.root}",
        )

    def _patient(self) -> Deadline:
        """Long enough for another one's stop and start before our own."""
        return Deadline(self._start_timeout + self._stop_timeout)

    # ------------------------------------------------------------ leaving

    def _give_back(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._forget()

    def _forget(self) -> None:
        self._lease = None
        self._info = None
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None

    def _await_end(self, info: ServerInfo) -> None:
        try:
            wait_for(
                lambda: not info.is_running() or bool(lease.holders(self.paths)) or None,
                Deadline(self._stop_timeout),
                what="the server to end",
                hint="",
                interval=_POLL_SECONDS,
            )
        except WaitTimeoutError:
            lock = ExclusiveLock(self.paths.start_lock)
            # Whoever has the start lock looks after the server now. With it, nobody can adopt
            # the server between the look and the signal.
            if lock.try_acquire():
                with lock:
                    if not lease.holders(self.paths) and not lease.is_kept(self.paths, info):
                        _log.warning("the server (pid %d) did not end: killing it", info.pid)
                        kill_group(info.pid, info.start_time)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._guard_pid != os.getpid():
            # A fork may have copied the guard while another thread held it.
            self._guard = threading.RLock()
            self._guard_pid = os.getpid()
        with self._guard:
            if self._lease is not None and not self._lease.held:
                self._forget()
            yield


def stop(paths: DataPaths, *, force: bool, timeout: float) -> Stopped:
    """Stop the server of a data directory, kept or not.

    Args:
        paths: The data directory; nothing in it but locks is made.
        force: Also while others use it, whose next call then fails.
        timeout: Seconds until it is ended by force.

    Raises:
        LeasesHeldError: Others use it, and ``force`` is not given; names them.
        WaitTimeoutError: Another process starts or stops it all the time.
        AccessError: It belongs to another user.
    """
    if not paths.root.is_dir():
        return Stopped(None)
    lease.prepare(paths)
    with ExclusiveLock(paths.start_lock).acquire(
        Deadline(timeout),
        what=f"another process that starts or stops the server of {paths.root}",
    ):
        info = read_server_info(paths)
        users = tuple(holder for holder in lease.holders(paths) if holder.using)
        if info is not None and users and not force:
            raise LeasesHeldError(
                f"the server (pid {info.pid}) is in use by {_listed(users)}",
                hint="end those programs, or stop it all the same: pikuri-memory down --force",
            )
        lease.clear_keep(paths)
        if info is None or not info.is_running():
            if info is not None:
                # It died; withdrawn, its users will not start it again.
                clear_server_info(paths, info.pid)
            killed = _end_unpublished(paths, force=force, timeout=timeout)
            return Stopped(None, killed=killed, holders=users)
        return Stopped(info, killed=_end(paths, info, timeout), holders=users)


def _end_unpublished(paths: DataPaths, *, force: bool, timeout: float) -> bool:
    """End what owns the data but has published no server: one that hangs in its start."""
    with contextlib.suppress(WaitTimeoutError):
        wait_for(
            lambda: lease.lock_owner(paths.owner_lock) is None or None,
            # One that has withdrawn its file is about to end.
            Deadline(min(timeout, _LAST_BREATH_SECONDS)),
            what="the owner of the data directory to end",
            hint="",
        )
        return False
    pid = lease.lock_owner(paths.owner_lock)
    found = identify(pid) if pid else None
    if found is None:
        return False
    if not force:
        raise _owned(paths, pid)
    return _end(paths, found, timeout)


def _end(paths: DataPaths, info: lease.RunningProcess, timeout: float) -> bool:
    """End a server under the start lock; True if it took force."""

    def ended() -> bool | None:
        return not is_alive(info.pid, info.start_time) or None

    signal_process(info.pid, info.start_time, signal.SIGTERM)
    try:
        wait_for(
            ended,
            Deadline(timeout),
            what="the server to end",
            hint="",
            interval=_POLL_SECONDS,
        )
        killed = False
    except WaitTimeoutError:
        _log.warning("the server (pid %d) did not end: killing it", info.pid)
        kill_group(info.pid, info.start_time)
        wait_for(
            ended,
            Deadline(_TERMINATE_SECONDS),
            what=f"the killed server (pid {info.pid}) to end",
            hint=f"look at it: ps -p {info.pid}",
        )
        killed = True
    # Withdrawn on purpose, so that nobody takes it for a server that died.
    clear_server_info(paths, info.pid)
    return killed


def _owned(paths: DataPaths, pid: int | None) -> DataDirectoryInUseError:
    found = identify(pid) if pid else None
    by = f"{found.name} (pid {found.pid})" if found else "another process"
    return DataDirectoryInUseError(
        f"the data directory {paths.root} is owned by {by}, which serves nothing",
        hint="end that process (pikuri-memory down --force), or choose another with --data-dir",
    )


def _child_error(child: Process, output: Path) -> PikuriMemoryError:
    """The error that a server told in its last lines, or one that quotes them."""
    for line in reversed(_last_lines(output)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            return error_for(str(told["code"]), 500)(
                str(told["message"]), hint=str(told.get("hint") or "")
            )
    return ServerStartError(
        f"the server ended with code {child.poll()} before it was healthy: " + _last_output(output),
        hint="read the lines above; the whole output is in " + str(output),
    )


def _last_lines(output: Path) -> Sequence[str]:
    try:
        with open(output, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _last_output(output: Path) -> str:
    lines = _last_lines(output)
    return "its last output:\n" + "\n".join(lines) if lines else "it printed nothing"


def _state(paths: DataPaths, seen: ServerInfo | None) -> str:
    if seen is not None and seen.is_running():
        return f"pid {seen.pid} runs but does not answer; {_last_output(paths.output_log)}"
    return "nothing is published yet"


def _listed(users: Sequence[Holder]) -> str:
    return ", ".join(map(str, users))
