"""What every keeper process does alike, whichever server it keeps: its log, its data directory,
and an end that whoever started it can read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from pikuri_memory import lease, process
from pikuri_memory.errors import (
    DataDirectoryInUseError,
    DiskFullError,
    PikuriMemoryError,
    ServerStartError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings

log = logging.getLogger(__name__)

LOG_FILES: Final = 3


class LocationsOnly(logging.Formatter):
    """Formats an exception as its type and the places it passed, without its message.

    Messages of other people's exceptions may quote what they choked on, and no memory text, query
    or key may reach a log.
    """

    def formatException(self, ei: Any) -> str:
        kind, _, trace = ei
        places = [
            f"  {os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(trace)
        ]
        return "\n".join([f"{kind.__name__ if kind else 'error'} at", *places])


def start_logging(paths: DataPaths, settings: Settings) -> None:
    """Log to a rotated file in the data directory, and nowhere else."""
    paths.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.handlers.RotatingFileHandler(
        paths.server_log, maxBytes=settings.log_bytes, backupCount=LOG_FILES - 1
    )
    paths.server_log.chmod(0o600)
    handler.setFormatter(LocationsOnly("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    # Other libraries may log what they handle; only their warnings are let through.
    root.setLevel(logging.WARNING)
    logging.getLogger("pikuri_memory").setLevel(settings.log_level.upper())
    logging.captureWarnings(True)


def take_directory(paths: DataPaths) -> None:
    """Become the owner of a data directory until this process ends.

    Raises:
        DataDirectoryInUseError: Another process has it; names it.
    """
    owner = lease.ExclusiveLock(paths.owner_lock)
    if owner.try_acquire():
        return
    pid = owner.owner()
    found = process.identify(pid) if pid else None
    by = f"{found.name} (pid {found.pid})" if found else "another process"
    raise DataDirectoryInUseError(
        f"the data directory {paths.root} is in use by {by}",
        hint="use that server (pikuri-memory status), or stop it: pikuri-memory down",
    )


def exit_code(body: Callable[[], None], paths: DataPaths, *, name: str, disk: str) -> int:
    """Run a keeper to its end.

    Args:
        body: What it does.
        paths: The data directory.
        name: What the process is, for a message: "the server".
        disk: What lies on the disk that may be full, for a message: "of the data directory".

    Returns:
        0, or the exit code of an error, which is logged, and printed to standard error as one line
        of JSON for whoever started the process.
    """
    try:
        try:
            body()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"the disk of {disk} is full", hint=f"free some space: df -h {paths.root}"
            ) from None
        except PikuriMemoryError:
            raise
        except Exception as error:
            # Its message might quote a memory: only where it happened is told.
            log.exception("unexpected")
            raise ServerStartError(
                f"{name} met an unexpected {type(error).__name__}",
                hint=f"where it happened stands in {paths.server_log}; please report it",
            ) from None
    except PikuriMemoryError as error:
        line = {"code": error.code, "message": error.message, "hint": error.hint}
        with contextlib.suppress(OSError):  # on a full disk there is no room for it either
            print(json.dumps(line), file=sys.stderr, flush=True)
        log.error("%s", error.message)
        return error.exit_code
    return 0
