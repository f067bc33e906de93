"""Bounded waits: one deadline, an injected clock, a message that tells what was waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pikuri_memory.errors import WaitTimeoutError

T = TypeVar("T")


class Deadline:
    """A point in time that all waits of one operation share.

    Args:
        seconds: How long from now.
        clock: Seconds that never go back.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0.0

    def pause(self, seconds: float) -> None:
        """Sleep for ``seconds``, but not beyond the deadline."""
        self._sleep(min(seconds, self.remaining()))


def wait_for(
    condition: Callable[[], T | None],
    deadline: Deadline,
    *,
    what: str,
    describe: Callable[[], str] = lambda: "",
    hint: str,
    interval: float = 0.02,
) -> T:
    """Call ``condition`` until it gives something other than None, and return that.

    The condition is asked at least once, and once more after the last pause, so that a deadline
    of 0 is a plain look and a slow last pause is no failure.

    Args:
        condition: None means "not yet"; an error it raises ends the wait.
        deadline: When to give up.
        what: What is waited for, as a noun: "the server at ...".
        describe: State and last output, for the message of a timeout.
        hint: What to do or to type after a timeout.
        interval: Seconds between two looks.

    Raises:
        WaitTimeoutError: The deadline passed; carries ``what``, the time and the state.
    """
    while True:
        over = deadline.expired
        if (found := condition()) is not None:
            return found
        if over:
            state = describe().strip()
            raise WaitTimeoutError(
                f"waited {deadline.seconds:g} s for {what}" + (f": {state}" if state else ""),
                hint=hint,
            )
        deadline.pause(interval)
