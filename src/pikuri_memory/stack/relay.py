"""The host's end of the relay: a unix socket that leads to the router and to nothing else.

socat listens on it. Whoever can open the socket reaches the router, so the directory is private,
and only the sidecar's container mounts it. A lock beside the directory keeps a second relay from
taking the path over, which would unlink it when it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pikuri_memory import process
from pikuri_memory.errors import (
    CommandNotFoundError,
    MissingToolError,
    RelayError,
    WaitTimeoutError,
)
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.stack.plan import SOCKET_PATH_BYTES, RouterAddress, fits_socket
from pikuri_memory.waiting import Deadline, wait_for

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 2.0
_TAIL_BYTES: Final = 4096
_LOCK_SECONDS: Final = 2.0


class Relay:
    """One socket, its socat, and the watch over both.

    Args:
        path: The socket; its directory is made.
        target: The router.
        output: File for what socat prints.
        bind_timeout: Seconds until the socket must be there.
        on_replaced: Called, from the watch, when the directory had to be made anew: whoever
            mounts it still has the old one.
    """

    def __init__(
        self,
        path: Path,
        target: RouterAddress,
        *,
        output: Path,
        bind_timeout: float,
        on_replaced: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = path
        self._target = target
        self._output = output
        self._bind_timeout = bind_timeout
        self._on_replaced = on_replaced
        self._lock = _lock_of(path)
        self._child: process.Process | None = None
        # Open as long as it is ours: the number of a removed directory can be given to the next.
        self._directory: int | None = None
        self._socket: tuple[int, int] | None = None
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self._replaced = False
        self.restarts = 0
        # Big blocks for streams, below no delay for tokens; the mode is also the umask's.
        self._listen = f"UNIX-LISTEN:{path},fork,mode=600,backlog=1024"

    def start(self) -> None:
        """Bind the socket, and keep it bound until :meth:`stop`.

        Raises:
            MissingToolError: socat is not installed.
            RelayError: The socket cannot be bound, or is another's; in socat's own words.
        """
        if not fits_socket(self.path):
            raise RelayError(
                f"the socket's path {self.path} is longer than {SOCKET_PATH_BYTES} bytes",
                hint="give a shorter cache_dir",
            )
        self._take_lock()
        try:
            self._bring_up()
        except BaseException:
            self.stop()
            raise
        self._watch = threading.Thread(target=self._look_after, name="relay", daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """End socat with all its connections, remove the socket, give the path free."""
        self._ended.set()
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join()
        self._end_child()
        if self._lock.held:
            with contextlib.suppress(OSError):
                if _identity(self.path.lstat()) == self._socket:
                    self.path.unlink()
            self._lock.release()
        self._close_directory()

    @property
    def running(self) -> bool:
        """Whether socat runs now."""
        return self._child is not None and self._child.poll() is None

    # ------------------------------------------------------------ inside

    def _take_lock(self) -> None:
        try:
            self._lock.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire(
                Deadline(_LOCK_SECONDS), what=f"the lock of the relay at {self.path}"
            )
        except WaitTimeoutError:
            pid = self._lock.owner()
            found = process.identify(pid) if pid else None
            by = f"{found.name} (pid {found.pid})" if found else "another process"
            raise RelayError(
                f"the relay's path {self.path} is taken by {by}",
                hint="stop that stack, or give this one a cache_dir of its own",
            ) from None
        except OSError as error:
            raise RelayError(
                f"the relay's directory {self.path.parent} cannot be used: {error.strerror}",
                hint=f"make it writable: ls -ld {self.path.parent.parent}",
            ) from None

    def _bring_up(self) -> None:
        self._end_strays()
        self._make_directory()
        self._make_way()
        connect = f"TCP:{self._target},nodelay,connect-timeout=30,keepalive"
        try:
            self._child = process.spawn_tied(
                ["socat", "-b", "65536", self._listen, connect], output=self._output
            )
        except CommandNotFoundError:
            raise MissingToolError(
                "socat is not installed or not on PATH", hint="install it: sudo apt install socat"
            ) from None
        try:
            wait_for(
                self._bound,
                Deadline(self._bind_timeout),
                what=f"the relay to bind {self.path}",
                describe=self._last_words,
                hint=f"see what is at {self.path}",
            )
        except WaitTimeoutError as error:
            self._end_child()
            raise RelayError(error.message, hint=error.hint) from None

    def _bound(self) -> bool | None:
        assert self._child is not None
        if (code := self._child.poll()) is not None:
            raise RelayError(
                f"the relay to {self._target} could not be started: socat ended with code {code}"
                f"{self._last_words()}",
                hint=f"see what is at {self.path}: ls -ld {self.path}",
            )
        try:
            found = self.path.lstat()
        except OSError:
            return None
        if not stat.S_ISSOCK(found.st_mode):
            return None
        self._socket = _identity(found)
        return True

    def _make_directory(self) -> None:
        directory = self.path.parent
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise RelayError(
                    f"the relay's directory {directory} is no directory of this user's own",
                    hint=f"look: ls -ld {directory}",
                )
            directory.chmod(0o700)
            if not self._same_directory():
                self._close_directory()
                self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RelayError(
                f"the relay's directory {directory} cannot be used: {error.strerror}",
                hint=f"look: ls -ld {directory.parent}",
            ) from None

    def _make_way(self) -> None:
        """Remove a socket that nobody listens on; anything else is not ours to remove."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise RelayError(
                f"{self.path} is there and is no socket",
                hint=f"move it away: mv {self.path} {self.path}.old",
            )
        if _is_served(self.path):
            raise RelayError(
                f"another process listens on {self.path}",
                hint="end it, or give this stack a cache_dir of its own",
            )
        self.path.unlink(missing_ok=True)

    def _end_strays(self) -> None:
        """End what an earlier relay of this very path left (we hold its lock)."""
        for found in process.find_by_argument(self._listen):
            _log.info("ending a relay that was left (pid %d)", found.pid)
            process.kill_group(found.pid, found.start_time)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.terminate(_STOP_SECONDS)
            self._child = None

    def _look_after(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                if self._intact():
                    continue
                self._replaced = self._replaced or not self._same_directory()
                self._end_child()
                self._bring_up()
                self.restarts += 1
                _log.warning("the relay was gone: started it again")
                if self._replaced:
                    self._replaced = False
                    self._on_replaced()
            except (RelayError, MissingToolError) as error:
                _log.warning("the relay cannot be started: %s", error.message)
                self._ended.wait(_LOOK_SECONDS * 4)
            except Exception as error:
                _log.warning("the relay's watch met %s", type(error).__name__)

    def _intact(self) -> bool:
        if not self.running:
            return False
        try:
            return self._same_directory() and _identity(self.path.lstat()) == self._socket
        except OSError:
            return False

    def _same_directory(self) -> bool:
        if self._directory is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._directory), self.path.parent.lstat())
        except OSError:
            return False

    def _close_directory(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def _last_words(self) -> str:
        try:
            text = self._output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
        except OSError:
            text = ""
        return f"; its last output:\n{text}" if text else ""


def remove_stale(path: Path) -> None:
    """Remove a socket that a killed relay left, unless somebody uses the path."""
    lock = _lock_of(path)
    with lock, contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode) and lock.try_acquire() and not _is_served(path):
            path.unlink()


def _lock_of(path: Path) -> ExclusiveLock:
    return ExclusiveLock(path.parent.with_name(path.parent.name + ".lock"))


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _identity(found: os.stat_result) -> tuple[int, int]:
    # The number of a removed file can be given to the next.
    return (found.st_ino, found.st_ctime_ns)
