"""Turns that become facts: a bounded queue before the user's model, and what is known about it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pikuri_memory.embedded.model import Extractor, Fact, Turn
from pikuri_memory.embedded.workers import Workers
from pikuri_memory.errors import (
    AccessError,
    ModelError,
    PikuriMemoryError,
    RouterBusyError,
    RouterRefusedError,
    RouterTimeoutError,
    ServerUnavailableError,
    SettingError,
)
from pikuri_memory.waiting import Deadline

log = logging.getLogger(__name__)

WAITING: Final = 32
"""Turns that may wait. A local model needs seconds for each, and all share one deadline."""

_JOIN_SECONDS: Final = 2.0
_FIRST_GUESS: Final = 5.0
_LONGEST_RETRY: Final = 60.0


@dataclass(frozen=True)
class Limits:
    """How much extraction is done.

    Attributes:
        workers: Turns that are worked on at once.
        waiting: Turns that may wait beside them.
        seconds: That one may take in all, its wait included.
        grace: Seconds more for an extractor that does not keep its deadline by itself.
    """

    workers: int = 1
    waiting: int = WAITING
    seconds: float = 600.0
    grace: float = 5.0


class Turns:
    """Extractions, in threads of their own.

    Args:
        extractor: Does it.
        limits: How much at once.
    """

    def __init__(self, extractor: Extractor, limits: Limits) -> None:
        self._extractor = extractor
        self._limits = limits
        self._workers = Workers(limits.workers, "extraction")
        self._lock = threading.Lock()
        self._done = 0
        self._failed = 0
        self._last: dict[str, Any] | None = None
        self._succeeded_last = True
        self._seconds = _FIRST_GUESS

    async def facts(self, begin: Callable[[], Turn]) -> list[Fact]:
        """The facts of a turn.

        Args:
            begin: Makes the turn when it is its turn, in the thread that works on it: messages
                that were stored while it waited are recent ones then.

        Raises:
            RouterBusyError: Too many wait already, or it waited until its deadline.
            RouterTimeoutError: It took too long.
            ModelError: The model did not do its part.
            ServerUnavailableError: The server is stopping.
        """
        self._refuse_if_full()
        deadline = Deadline(self._limits.seconds)
        found = asyncio.wrap_future(self._workers.submit(lambda: self._work(begin, deadline)))
        found.add_done_callback(_look_at)
        # The extractor keeps the deadline; this is for one that does not.
        await asyncio.wait({found}, timeout=self._limits.seconds + self._limits.grace)
        if found.done():
            return found.result()
        found.cancel()
        raise RouterTimeoutError(
            f"the extraction did not end within {self._limits.seconds:g} s; nothing was stored",
            hint="try again, with a smaller model or a larger --extraction-timeout",
        )

    def _refuse_if_full(self) -> None:
        # Not those that wait: a thread may not have taken up yet what it could.
        waiting = self._workers.open - self._limits.workers
        if waiting < self._limits.waiting:
            return
        raise RouterBusyError(
            f"{waiting} turns wait for the model already; this one was not stored",
            hint="send it again later, with the same Idempotency-Key",
            retry_after=self._estimate(waiting),
        )

    def _estimate(self, waiting: int) -> float:
        """Seconds until there is room again, roughly."""
        rounds = max(1, waiting) / max(1, self._limits.workers)
        return float(min(_LONGEST_RETRY, max(1, math.ceil(self._seconds * rounds / 4))))

    def _work(self, begin: Callable[[], Turn], deadline: Deadline) -> list[Fact]:
        started = time.monotonic()
        try:
            if deadline.expired:
                raise RouterBusyError(
                    f"the turn waited {deadline.seconds:g} s for the model, which was busy with"
                    " others; it was not stored",
                    hint="send it again later, with the same Idempotency-Key",
                    retry_after=self._estimate(self._workers.waiting),
                )
            facts = self._extractor.extract(begin(), deadline)
        except (AccessError, SettingError) as error:  # of the file with the router's key
            refused = RouterRefusedError(error.message, hint=error.hint)
            self._count_failure(refused)
            raise refused from None
        except Exception as error:
            self._count_failure(error)
            raise
        with self._lock:
            self._done += 1
            self._succeeded_last = True
            self._seconds += 0.3 * (time.monotonic() - started - self._seconds)
        return facts

    def _count_failure(self, error: Exception) -> None:
        with self._lock:
            self._failed += 1
            self._succeeded_last = False
            self._last = _told(error)

    @property
    def succeeded_last(self) -> bool:
        """Whether the last extraction went well; True before the first."""
        return self._succeeded_last

    def status(self) -> dict[str, Any]:
        """Counts, and the last error without anything of a turn."""
        return {
            "waiting": self._workers.waiting,
            "running": self._workers.running,
            "done": self._done,
            "failed": self._failed,
            "last_error": self._last,
        }

    def abandon(self) -> None:
        """Fail what is under way for those who wait for it, and take nothing more."""
        self._workers.abandon(
            ServerUnavailableError(
                "the server is stopping; this turn was not stored",
                hint="send it again when the server is up: pikuri-memory up",
            )
        )

    def close(self) -> bool:
        """As :meth:`abandon`, and wait a little for the threads; whether they have ended."""
        self.abandon()
        return self._workers.join(_JOIN_SECONDS)


def _told(error: Exception) -> dict[str, Any]:
    """An error for the status. Messages of others' exceptions may quote a turn: only their type."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    if isinstance(error, PikuriMemoryError):
        if not isinstance(error, ModelError):
            log.warning("an extraction failed (%s)", error.message)
        return {"code": error.code, "detail": error.message, "hint": error.hint, "at": at}
    log.error("an extraction met an unexpected %s", type(error).__name__)
    return {
        "code": PikuriMemoryError.code,
        "detail": f"an unexpected {type(error).__name__}",
        "hint": "see `pikuri-memory logs`",
        "at": at,
    }


def _look_at(found: asyncio.Future[Any]) -> None:
    if not found.cancelled():
        found.exception()  # seen, even where nobody waits any more
