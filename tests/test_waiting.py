"""Waits with one deadline."""

from __future__ import annotations

import pytest

from pikuri_memory.errors import WaitTimeoutError
from pikuri_memory.waiting import Deadline, wait_for


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def deadline(clock: Clock, seconds: float) -> Deadline:
    return Deadline(seconds, clock=clock, sleep=clock.sleep)


def test_a_deadline_counts_down_and_stays_at_zero(clock: Clock) -> None:
    end = deadline(clock, 2)
    assert end.remaining() == 2
    clock.now += 1.5
    assert end.remaining() == 0.5
    assert not end.expired
    clock.now += 5
    assert end.remaining() == 0
    assert end.expired


def test_a_wait_returns_what_the_condition_gives(clock: Clock) -> None:
    answers = iter([None, None, 0])
    assert wait_for(lambda: next(answers), deadline(clock, 5), what="it", hint="") == 0
    assert clock.slept == [0.02, 0.02]


def test_a_wait_never_sleeps_beyond_its_deadline_and_looks_once_more_at_it(clock: Clock) -> None:
    def condition() -> bool | None:
        return True if clock.now >= 100.5 else None

    assert wait_for(condition, deadline(clock, 0.5), what="it", hint="", interval=0.2)
    assert clock.slept == pytest.approx([0.2, 0.2, 0.1])


def test_a_deadline_of_zero_is_one_look(clock: Clock) -> None:
    assert wait_for(lambda: "there", deadline(clock, 0), what="it", hint="") == "there"
    with pytest.raises(WaitTimeoutError):
        wait_for(lambda: None, deadline(clock, 0), what="it", hint="")
    assert clock.slept == []


def test_row_24_a_timeout_tells_what_how_long_in_which_state_and_what_to_type(clock: Clock) -> None:
    with pytest.raises(WaitTimeoutError, match="waited 3 s for the moon: still rising") as failed:
        wait_for(
            lambda: None,
            deadline(clock, 3),
            what="the moon",
            describe=lambda: "still rising\n",
            hint="look east",
            interval=1,
        )
    assert failed.value.hint == "look east"
    assert isinstance(failed.value, TimeoutError)


def test_an_error_of_the_condition_ends_the_wait(clock: Clock) -> None:
    def condition() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError):
        wait_for(condition, deadline(clock, 3), what="it", hint="")
    assert clock.slept == []
