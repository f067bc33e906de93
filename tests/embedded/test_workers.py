"""Threads that never keep a process from ending."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

from pikuri_memory.embedded.workers import Workers
from pikuri_memory.errors import ServerUnavailableError

STOPPING = ServerUnavailableError("stopping", hint="start it again")


def test_work_is_done_by_so_many_threads_at_once_and_errors_come_back() -> None:
    workers = Workers(2, "test")
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def work() -> str:
        begun.release()
        gate.wait(10)
        return threading.current_thread().name

    futures = [workers.submit(work) for _ in range(5)]
    for _ in range(2):
        assert begun.acquire(timeout=10)
    assert not begun.acquire(timeout=0.1)
    assert (workers.running, workers.waiting, workers.open) == (2, 3, 5)
    gate.set()
    assert {future.result(10) for future in futures} == {"test-0", "test-1"}
    failed: Future[float] = workers.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    workers.abandon(STOPPING)
    assert workers.join(10)


def test_what_is_abandoned_fails_at_once_and_nothing_more_is_taken() -> None:
    workers = Workers(1, "test")
    gate = threading.Event()
    begun = threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        gate.wait(10)
        done.append("first")

    futures = [workers.submit(work), workers.submit(lambda: done.append("second"))]
    begun.wait(10)
    workers.abandon(STOPPING)
    workers.abandon(STOPPING)
    for future in futures:
        with pytest.raises(ServerUnavailableError):
            future.result(0)
    with pytest.raises(ServerUnavailableError):
        workers.submit(lambda: None)
    assert not workers.join(0.05), "it cannot be stopped, and is not waited for"
    gate.set()
    assert workers.join(10)
    assert done == ["first"]


def test_what_is_cancelled_while_it_waits_is_not_done() -> None:
    workers = Workers(1, "test")
    gate = threading.Event()
    done: list[str] = []
    first = workers.submit(lambda: gate.wait(10))
    second = workers.submit(lambda: done.append("second"))
    second.cancel()
    third = workers.submit(lambda: done.append("third"))
    gate.set()
    first.result(10)
    third.result(10)
    assert done == ["third"]
    assert workers.open == 0
    workers.abandon(STOPPING)


def test_a_process_ends_although_a_thread_hangs() -> None:
    code = (
        "import threading; from pikuri_memory.embedded.workers import Workers;"
        "Workers(1, 'test').submit(threading.Event().wait)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
