"""Threads for work that waits for somebody else: they never keep the process from ending.

An executor of the standard library joins its threads when the interpreter ends, so that one call
to a model endpoint that hangs would keep a stopped server alive for as long as it hangs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """A few threads, started when there is something to do.

    Args:
        count: Most threads.
        name: Of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._open: set[Future[Any]] = set()
        self._running = 0
        self._closed: Exception | None = None

    @property
    def running(self) -> int:
        """Pieces of work that are under way."""
        return self._running

    @property
    def open(self) -> int:
        """Pieces of work that are not done."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return max(0, len(self._open) - self._running)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have something done.

        Raises:
            Exception: What :meth:`abandon` was told; it has been called.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._open.add(done)
            if len(self._threads) < min(self._count, len(self._open)):
                thread = threading.Thread(
                    target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._queue.put((done, work))
        return done

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            done, work = item
            with self._lock:
                if done.done():  # cancelled, or abandoned
                    self._open.discard(done)
                    continue
                self._running += 1
            try:
                result = work()
            except BaseException as error:
                self._end(done)
                with contextlib.suppress(InvalidStateError):  # abandoned meanwhile
                    done.set_exception(error)
            else:
                self._end(done)
                with contextlib.suppress(InvalidStateError):
                    done.set_result(result)
            # Neither the result nor the work is kept while the thread waits.
            del item, done, work
            result = None

    def _end(self, done: Future[Any]) -> None:
        with self._lock:
            self._running -= 1
            self._open.discard(done)

    def abandon(self, error: Exception) -> None:
        """Whatever waits or runs fails now for those who wait for it; nothing more is taken.

        Args:
            error: What they are told.
        """
        with self._lock:
            if self._closed is not None:
                return
            self._closed = error
            left, self._open = self._open, set()
            threads = len(self._threads)
        for done in left:
            with contextlib.suppress(InvalidStateError):
                done.set_exception(error)
        for _ in range(threads):
            self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the threads to end, after :meth:`abandon`; whether they did."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
