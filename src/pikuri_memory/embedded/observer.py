"""What the server is doing at this moment, told to whoever watches.

The server itself watches nothing; the kill tests hand in an observer, so that they can strike in
each phase and count where they struck.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

Phase: TypeAlias = Literal[
    "start", "idle", "commit", "index", "flush", "rebuild", "switch", "stop", "embed", "swap"
]


class Observer(Protocol):
    """Is told of every phase that begins. Must return at once and never raise."""

    def enter(self, phase: Phase) -> None: ...


class Unobserved:
    """The observer that watches nothing."""

    def enter(self, phase: Phase) -> None:
        """Do nothing."""
