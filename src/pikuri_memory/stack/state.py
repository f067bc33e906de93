"""How far a keeper is and how its stack is sealed: a small file that others read."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Final

from pikuri_memory.files import write_private
from pikuri_memory.paths import DataPaths

PHASES: Final = ("check", "fetch", "patch", "relay", "build", "start", "wait", "ready", "stop")
_DETAIL_SECONDS: Final = 0.5
_DETAIL_LENGTH: Final = 120


@dataclass(frozen=True)
class StackState:
    """What a keeper tells.

    Attributes:
        pid: The keeper's process id.
        phase: One of ``PHASES``.
        detail: More about it, for a person.
        since: When the phase began, in seconds since 1970.
        sealed: Whether containers reach the router and nothing else; None before that is known.
        reasons: Why not, or what weakens it.
        trouble: What the keeper is trying to repair; empty where all is well.
    """

    pid: int
    phase: str
    detail: str = ""
    since: float = 0.0
    sealed: bool | None = None
    reasons: tuple[str, ...] = field(default=())
    trouble: str = ""


def read_state(paths: DataPaths) -> StackState | None:
    """What the last keeper told; None where there is nothing that can be read."""
    try:
        fields = json.loads(paths.stack_state.read_bytes())
        fields["reasons"] = tuple(fields["reasons"])
        return StackState(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Teller:
    """Writes the state; from several threads, and not for every line of a build."""

    def __init__(self, paths: DataPaths, pid: int) -> None:
        self._paths = paths
        self._guard = threading.Lock()
        self._state = StackState(pid, PHASES[0], since=time.time())
        self._written = 0.0

    @property
    def state(self) -> StackState:
        """What was told last."""
        return self._state

    def report(self, phase: str, detail: str = "") -> None:
        """Tell the phase, with a detail."""
        with self._guard:
            before = self._state
            since = before.since if phase == before.phase else time.time()
            self._state = StackState(
                **{
                    **asdict(before),
                    "phase": phase,
                    "detail": detail[:_DETAIL_LENGTH],
                    "since": since,
                }
            )
            late = time.monotonic() - self._written > _DETAIL_SECONDS
            if phase != before.phase or (detail != before.detail and late):
                self._write()

    def tell(self, **fields: object) -> None:
        """Change other fields."""
        with self._guard:
            before = asdict(self._state)
            self._state = StackState(**{**before, **fields})
            if asdict(self._state) != before:
                self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk: the error itself is told elsewhere
            write_private(self._paths.stack_state, json.dumps(asdict(self._state)))
