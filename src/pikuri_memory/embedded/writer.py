"""The one thread that writes. Changes that wait together share a transaction, and so an fsync."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pikuri_memory.embedded.records import Change, Records
from pikuri_memory.errors import ServerUnavailableError

T = TypeVar("T")
GROUP = 64
"""Most jobs that share a transaction."""


@dataclass
class _Job(Generic[T]):
    work: Callable[[Change], T]
    done: Future[T]


@dataclass
class _Task(Generic[T]):
    """Work that is no part of a shared transaction: a purge, a switch of the index."""

    work: Callable[[], T]
    done: Future[T]


class Writer:
    """Runs changes, one transaction after the other, in the order in which they came.

    Args:
        records: The record.
        committed: Called after each commit, in this thread, with the rows that changed (True:
            deleted) before anybody is told.
        entering: Called with "commit" before each transaction, and with "idle" after it and after
            each task.
    """

    def __init__(
        self,
        records: Records,
        committed: Callable[[dict[int, bool]], None],
        entering: Callable[[Any], None],
    ) -> None:
        self._records = records
        self._committed = committed
        self._entering = entering
        self._queue: queue.SimpleQueue[_Job[Any] | _Task[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Change], T]) -> Future[T]:
        """Run changes; the future is done when they are on the disk and in the index."""
        done: Future[T] = Future()
        self._put(_Job(work, done))
        return done

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Run something in this thread between two transactions."""
        done: Future[T] = Future()
        self._put(_Task(work, done))
        return done

    def _put(self, item: _Job[Any] | _Task[Any]) -> None:
        with self._lock:
            if self._closed:
                raise ServerUnavailableError("the server is stopping", hint="try again")
            self._queue.put(item)

    def close(self) -> None:
        """Finish what was submitted and stop; idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            item = self._queue.get()
            jobs: list[_Job[Any]] = []
            task: _Task[Any] | None = None
            while True:
                if item is None:
                    ended = True
                elif isinstance(item, _Task):
                    task = item
                elif item.done.set_running_or_notify_cancel():
                    jobs.append(item)
                if ended or task is not None or len(jobs) >= GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._transact(jobs)
            if task is not None and task.done.set_running_or_notify_cancel():
                try:
                    task.done.set_result(task.work())
                except BaseException as error:
                    task.done.set_exception(error)
                finally:
                    self._entering("idle")

    def _transact(self, jobs: list[_Job[Any]]) -> None:
        results: list[tuple[_Job[Any], Any]] = []
        failures: list[tuple[_Job[Any], BaseException]] = []
        changed: dict[int, bool] = {}
        self._entering("commit")
        try:
            with self._records.transaction() as db:
                for job in jobs:
                    try:
                        with self._records.part() as change:
                            result = job.work(change)
                    except BaseException as error:
                        failures.append((job, error))
                        if not db.in_transaction:  # SQLite gave up the whole transaction
                            raise
                    else:
                        results.append((job, result))
                        changed |= change.rows
            if changed:
                self._committed(changed)
        except BaseException as error:
            for job in jobs:
                job.done.set_exception(error)
            return
        finally:
            self._entering("idle")
        for job, failure in failures:
            job.done.set_exception(failure)
        for job, result in results:
            job.done.set_result(result)
