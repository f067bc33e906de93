"""A clock that only moves when somebody sleeps by it."""

from __future__ import annotations

from typing import Any

from pikuri_memory.models.router import Patience


class Clock:
    """Seconds, and the sleeps that made them pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def read(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, **given: Any) -> Patience:
        """A patience by this clock."""
        return Patience(clock=self.read, sleep=self.sleep, **given)
