"""Removing a data directory for good: the one thing here that cannot be undone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from pikuri_memory import lease
from pikuri_memory.errors import DataDirectoryInUseError, InvalidRequestError, StorageError
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import local
from pikuri_memory.waiting import Deadline


@dataclass(frozen=True)
class Removed:
    """What :func:`destroy` did.

    Attributes:
        names: What was removed, relative to the directory.
        left: What was found beside it and left alone; the directory stays then.
        stopped: Whether a server was stopped for it.
    """

    names: tuple[str, ...]
    left: tuple[str, ...]
    stopped: bool


def check_removable(paths: DataPaths) -> None:
    """Refuse what is no data directory of ours.

    Raises:
        InvalidRequestError: It is a symbolic link, not there, or holds nothing of ours.
    """
    root = paths.root
    if root.is_symlink():
        raise InvalidRequestError(
            f"{root} is a symbolic link, and links are not followed",
            hint=f"name the directory itself: --data-dir {os.path.realpath(root)}",
        )
    if not root.is_dir():
        raise InvalidRequestError(
            f"there is no data directory {root}", hint="look where it is: pikuri-memory status"
        )
    if not (paths.locks.is_dir() or paths.record.is_file()):
        raise InvalidRequestError(
            f"{root} is no data directory of pikuri-memory: nothing was removed",
            hint="look where it is: pikuri-memory status",
        )


def destroy(paths: DataPaths, *, timeout: float) -> Removed:
    """Remove all memories of a data directory, and the directory if nothing else is in it.

    Only what this package makes is removed, known by its name. A symbolic link among it is
    removed itself, never what it points to.

    Args:
        paths: The data directory. A server that nobody uses is stopped first.
        timeout: Seconds until a stopping server is ended by force.

    Raises:
        InvalidRequestError: It is no data directory of ours.
        LeasesHeldError: Others use its server; names them. Nothing was removed.
        DataDirectoryInUseError: Something else owns it. Nothing was removed.
        StorageError: A part could not be removed; again is fine.
    """
    check_removable(paths)
    stopped = local.stop(paths, force=False, timeout=timeout).server is not None
    with ExclusiveLock(paths.start_lock).acquire(
        Deadline(timeout), what=f"another process that starts or stops the server of {paths.root}"
    ):
        owner = ExclusiveLock(paths.owner_lock)
        # Whoever has taken a lease since waits for the start lock: not from under its feet.
        unused = ExclusiveLock(paths.lease_lock)
        with unused, owner:
            if not (unused.try_acquire() and owner.try_acquire()):
                users = ", ".join(map(str, lease.holders(paths))) or f"pid {owner.owner()}"
                raise DataDirectoryInUseError(
                    f"{paths.root} is in use by {users}: nothing was removed",
                    hint="end those programs, then try again",
                )
            return _remove(paths, stopped)


def _remove(paths: DataPaths, stopped: bool) -> Removed:
    names = []
    # The locks go last: as long as the rest is there, they guard it.
    for path in sorted(paths.present(), key=lambda path: path == paths.locks):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)  # follows no links, and knows of races with them
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(
                f"{path} could not be removed: {error.strerror or error}",
                hint=f"make it removable (ls -ld {path}) and try again",
            ) from None
        names.append(path.name)
    left = tuple(sorted(path.name for path in paths.root.iterdir()))
    if not left:
        paths.root.rmdir()
    return Removed(tuple(names), left, stopped)
