"""What the server is doing, seen from another process: phases in a file that both have mapped."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Final, get_args

from pikuri_memory.embedded.observer import Phase

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
_IDLE: Final = PHASES.index("idle") + 1
_THREADS: Final = 32


def _map(path: Path) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), _THREADS)


class PhaseFile:
    """The server's side, an observer: one byte a thread. The kernel keeps what a killed one wrote.

    Args:
        path: Made by :meth:`Watch.__init__`.
    """

    def __init__(self, path: Path) -> None:
        self._map = _map(path)
        self._slots: dict[int, int] = {}

    def enter(self, phase: Phase) -> None:
        """Note the phase of the calling thread."""
        thread = threading.get_ident()
        slot = self._slots.setdefault(thread, len(self._slots) % _THREADS)
        self._map[slot] = PHASES.index(phase) + 1


class Watch:
    """The killer's side.

    Args:
        path: The file; made anew.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_THREADS))
        self._map = _map(path)

    def clear(self) -> None:
        """Forget what another server did."""
        self._map[:] = bytes(_THREADS)

    def now(self) -> set[Phase]:
        """The phases of all threads that are not idle."""
        return {PHASES[byte - 1] for byte in self._map[:] if byte not in (0, _IDLE)}

    def sees(self, phase: Phase) -> bool:
        """Whether some thread is in a phase; quick enough for one of 100 microseconds."""
        return PHASES.index(phase) + 1 in self._map[:]

    def close(self) -> None:
        """Let the file go."""
        self._map.close()
