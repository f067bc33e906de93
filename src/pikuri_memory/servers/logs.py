"""Reading the server's log: its end, and what is added to it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Final

from pikuri_memory.paths import DataPaths

_POLL_SECONDS: Final = 0.25


def last_lines(paths: DataPaths, count: int) -> list[str]:
    """The last lines of the log, rotated files included, oldest first.

    Where there is no log, what the server printed when it ended.
    """
    lines: deque[str] = deque(maxlen=max(count, 0))
    rotated = sorted(
        (path for path in paths.logs.glob(f"{paths.server_log.name}.*")),
        key=lambda path: path.name,
        reverse=True,
    )
    for path in (*rotated, paths.server_log):
        lines.extend(_lines(path))
    if not lines:
        lines.extend(_lines(paths.output_log))
    return list(lines)


def follow(
    paths: DataPaths, *, pause: Callable[[float], object] = time.sleep
) -> Generator[str, None, None]:
    """The lines that are added to the log from now on, across rotations; without end.

    Args:
        paths: The data directory.
        pause: Waits for a number of seconds.
    """
    path = paths.server_log
    try:
        file = open(path, "rb")  # noqa: SIM115 - it is changed for its successor below
        file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        file = open(os.devnull, "rb")  # noqa: SIM115
    rest = b""
    try:
        while True:
            if part := file.read():
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8", "replace")
                continue
            try:
                now = os.stat(path)
            except FileNotFoundError:
                now = None
            if now is not None and now.st_ino != os.fstat(file.fileno()).st_ino:
                # Once more, for what was written between the last read and the rotation.
                if part := file.read():
                    *whole, rest = (rest + part).split(b"\n")
                    for line in whole:
                        yield line.decode("utf-8", "replace")
                file.close()
                file = open(path, "rb")  # noqa: SIM115
                continue
            pause(_POLL_SECONDS)
    finally:
        file.close()


def _lines(path: os.PathLike[str]) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                yield line.rstrip("\n")
    except OSError:
        return


def service_lines(paths: DataPaths, service: str, *, lines: int, follow: bool) -> Iterator[str]:
    """The last lines of the log of one service of the container stack; without end to follow.

    Raises:
        InvalidRequestError: There is no such service, or no stack.
        StackError: The engine does not tell.
    """
    from pikuri_memory.stack import logs as stack_logs

    return stack_logs.lines(paths, service, lines=lines, follow=follow)
