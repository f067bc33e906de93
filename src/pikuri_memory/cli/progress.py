"""Telling a person what takes long: on a terminal one line that changes, elsewhere one now and
then. Nothing in the first second."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

_FIRST: Final = (1.0, 5.0)
_NEXT: Final = (0.2, 15.0)


class Progress:
    """A step that may take long; to be used as a context manager.

    Args:
        what: The step, as "importing".
        quiet: Say nothing at all.
    """

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what = what
        self._quiet = quiet
        self._state = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = False

    def at(self, state: str) -> None:
        """How far it is, as "2,000 memories"."""
        self._state = state

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _run(self) -> None:
        terminal = sys.stderr.isatty()
        begun = time.monotonic()
        pause = _FIRST[0 if terminal else 1]
        while not self._ended.wait(pause):
            pause = _NEXT[0 if terminal else 1]
            state = f": {self._state}" if self._state else ""
            line = f"{self._what}{state} ({time.monotonic() - begun:.0f} s)"
            try:
                sys.stderr.write(f"\r{line}\x1b[K" if terminal else line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):  # nobody reads it any more
                return
            self._drawn = terminal
