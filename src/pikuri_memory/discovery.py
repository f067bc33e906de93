"""What runs in a data directory, and the key to it.

``server.json`` is written by a keeper after it has bound its port. Starters, the command line and
clients trust it together with the process it names, never a port that happens to answer, and send
the key only to the endpoint it names.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pikuri_memory import process
from pikuri_memory.errors import AccessError, StorageError
from pikuri_memory.files import create_private, write_private
from pikuri_memory.paths import DataPaths

DATA_DIR_VARIABLE = "PIKURI_MEMORY_DATA_DIR"
EMBEDDED: Final = "embedded"
"""The kind of our own server."""

STACK: Final = "mem0"
"""The kind of mem0's own server, in containers."""


@dataclass(frozen=True)
class ServerInfo:
    """A server that has bound its port.

    Attributes:
        kind: :data:`EMBEDDED` or :data:`STACK`.
        pid: Process id of its keeper.
        start_time: The keeper's start time (see ``process.ProcessIdentity``).
        endpoint: Base URL, as ``http://127.0.0.1:8888``.
        version: Version of the package that runs it.
    """

    kind: str
    pid: int
    start_time: float
    endpoint: str
    version: str

    def is_running(self) -> bool:
        """Whether the very process still runs."""
        return process.is_alive(self.pid, self.start_time)


def write_server_info(paths: DataPaths, info: ServerInfo) -> None:
    """Publish a server; atomic, mode 0600."""
    write_private(paths.server_info, json.dumps(asdict(info)))


def read_server_info(paths: DataPaths) -> ServerInfo | None:
    """What was published last; None if there is nothing, or nothing that can be trusted."""
    try:
        with open(paths.server_info, "rb") as file:
            found = os.fstat(file.fileno())
            # Whoever may write it could have the key sent to himself.
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            fields = json.loads(file.read(65536))
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    texts = [fields.get(name) for name in ("kind", "endpoint", "version")]
    numbers = [fields.get(name) for name in ("pid", "start_time")]
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(number, int | float) for number in numbers):
        return None
    return ServerInfo(
        kind=fields["kind"],
        pid=int(fields["pid"]),
        start_time=float(fields["start_time"]),
        endpoint=fields["endpoint"],
        version=fields["version"],
    )


def clear_server_info(paths: DataPaths, pid: int) -> None:
    """Withdraw what the process of that id published; another's stays."""
    info = read_server_info(paths)
    if info is not None and info.pid == pid:
        paths.server_info.unlink(missing_ok=True)


def read_api_key(paths: DataPaths) -> str | None:
    """The key of a data directory; None if there is none yet.

    Raises:
        AccessError: Other users may read it, or this one may not.
    """
    path = paths.api_key
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise AccessError(
                    f"the key file {path} may be read by other users",
                    hint=f"chmod 600 {path} && pikuri-memory key rotate",
                )
            return file.read(4096).strip() or None
    except FileNotFoundError:
        return None
    except AccessError:
        raise
    except PermissionError:
        raise AccessError(
            f"the key file {path} cannot be read by this user", hint=f"ls -l {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"the key file {path} cannot be read: {type(error).__name__}",
            hint="make a new one: pikuri-memory key rotate",
        ) from None


def ensure_api_key(paths: DataPaths) -> str:
    """The key of a data directory, made at random (256 bits) if there is none.

    Raises:
        AccessError: Other users may read the file, or this one may not.
        OSError: The directory cannot be written.
    """
    for _ in range(100):
        if (key := read_api_key(paths)) is not None:
            return key
        key = secrets.token_urlsafe(32)
        if create_private(paths.api_key, key + "\n"):
            return key
        # Somebody was faster, or the file is empty (an editor's or a full disk's doing).
        with contextlib.suppress(FileNotFoundError):
            if paths.api_key.stat().st_size == 0:
                paths.api_key.unlink()
    raise StorageError(
        f"the key file {paths.api_key} is there but holds no key",
        hint="make a new one: pikuri-memory key rotate",
    )


def rotate_api_key(paths: DataPaths) -> str:
    """Replace the key; servers and clients that read it anew use the new one from now on."""
    key = secrets.token_urlsafe(32)
    write_private(paths.api_key, key + "\n")
    return key


class ApiKeyFile:
    """The present key of a data directory, to be called; reads the file again when it changes.

    Args:
        paths: The data directory.
    """

    def __init__(self, paths: DataPaths) -> None:
        self._paths = paths
        self._name = os.fspath(paths.api_key)
        # One value, so that threads never see the stamp of one file with the key of another.
        self._known: tuple[tuple[int, int, int], str] | None = None

    def __call__(self) -> str:
        """The key; made if there is none.

        Raises:
            AccessError: Other users may read the file, or this one may not.
        """
        try:
            found = os.stat(self._name)  # asked for every request: as text, it costs a third
        except OSError:
            return ensure_api_key(self._paths)
        stamp = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known
        if known is None or known[0] != stamp:
            known = (stamp, ensure_api_key(self._paths))
            self._known = known
        return known[1]


def key_for_endpoint(endpoint: str, paths: DataPaths | None = None) -> str | None:
    """The key for a server of this user, found by its endpoint.

    Args:
        endpoint: Base URL, exactly as the server published it (a final ``/`` apart).
        paths: Where to look; by default ``$PIKURI_MEMORY_DATA_DIR``, else the user's own.

    Returns:
        None unless a running server of that data directory published that endpoint.

    Raises:
        AccessError: The key file may be read by other users.
    """
    if paths is None:
        given = os.environ.get(DATA_DIR_VARIABLE)
        paths = DataPaths.at(Path(given) if given else None)
    info = read_server_info(paths)
    if info is None or info.endpoint.rstrip("/") != endpoint.rstrip("/"):
        return None
    # After a crash anybody could listen on that port.
    return read_api_key(paths) if info.is_running() else None
