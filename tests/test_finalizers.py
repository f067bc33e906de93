"""Work at the end of a process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from pikuri_memory.finalizers import Finalizers


def end_of(program: str, number: signal.Signals | None = None) -> tuple[int, list[str]]:
    """How a process with finalizers ends: its code, and the lines it printed."""
    search = os.pathsep.join(entry for entry in sys.path if entry)
    lines = [
        "import os, signal, sys, threading, time",
        # A test run in the background of a shell ignores Ctrl-C, and so would this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "from pikuri_memory import finalizers",
        "say = lambda word: os.write(1, (word + chr(10)).encode())",
        program,
        "say('ready')",
        "time.sleep(60)" if number is not None else "",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": search},
        text=True,
    ) as started:
        assert started.stdout is not None
        said: list[str] = []
        for line in started.stdout:
            said.append(line.strip())
            if line == "ready\n" and number is not None:
                started.send_signal(number)
        return started.wait(30), [word for word in said if word != "ready"]


TWO = "finalizers.register(lambda: say('one'), 'a'); finalizers.register(lambda: say('two'), 'b')"


def test_finalizers_run_last_first_and_once() -> None:
    ran: list[str] = []
    registry = Finalizers()
    registry.register(lambda: ran.append("first"), "first")
    registry.register(lambda: ran.append("second"), "second")
    registry.run()
    registry.run()
    assert ran == ["second", "first"]


def test_a_cancelled_finalizer_does_not_run() -> None:
    ran: list[str] = []
    registry = Finalizers()
    handle = registry.register(lambda: ran.append("first"), "first")
    registry.register(lambda: ran.append("second"), "second")
    handle.cancel()
    handle.cancel()
    registry.run()
    assert ran == ["second"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_one_that_fails_does_not_stop_the_next_and_its_text_is_not_logged(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    registry = Finalizers()
    registry.register(lambda: ran.append("first"), "first")

    def fail() -> None:
        raise error("a secret")

    registry.register(fail, "fails")
    with caplog.at_level(logging.DEBUG):
        registry.run()
    assert ran == ["first"]
    assert "fails" in caplog.text
    assert error.__name__ in caplog.text
    assert "secret" not in caplog.text


def test_a_finalizer_may_register_and_cancel_others() -> None:
    ran: list[str] = []
    registry = Finalizers()
    doomed = registry.register(lambda: ran.append("doomed"), "doomed")

    def act() -> None:
        doomed.cancel()
        registry.register(lambda: ran.append("late"), "late")

    registry.register(act, "acts")
    registry.run()
    assert ran == ["late"]


def test_they_run_at_the_end_of_the_interpreter() -> None:
    assert end_of(TWO) == (0, ["two", "one"])


def test_they_run_when_the_program_fails() -> None:
    assert end_of(TWO + "; raise ValueError") == (1, ["two", "one"])


def test_they_run_on_sigterm_and_the_process_ends_by_it() -> None:
    assert end_of(TWO, signal.SIGTERM) == (-signal.SIGTERM, ["two", "one"])


def test_they_run_on_ctrl_c() -> None:
    assert end_of(TWO, signal.SIGINT) == (-signal.SIGINT, ["two", "one"])


def test_they_run_on_a_sigint_that_would_end_the_process_at_once() -> None:
    program = "signal.signal(signal.SIGINT, signal.SIG_DFL); " + TWO
    assert end_of(program, signal.SIGINT) == (-signal.SIGINT, ["two", "one"])


def test_an_earlier_handler_is_called_and_decides_whether_the_process_ends() -> None:
    program = "signal.signal(signal.SIGTERM, lambda *_: (say('mine'), sys.exit(9))); " + TWO
    assert end_of(program, signal.SIGTERM) == (9, ["mine", "two", "one"])


def test_a_later_handler_that_hands_on_reaches_the_finalizers() -> None:
    program = TWO + (
        "\nearlier = signal.getsignal(signal.SIGTERM)"
        "\nsignal.signal(signal.SIGTERM, lambda *a: (say('later'), earlier(*a)))"
    )
    assert end_of(program, signal.SIGTERM) == (-signal.SIGTERM, ["later", "two", "one"])


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TWO + "\nos.kill(os.getpid(), 15)"
    assert end_of(program) == (0, ["two", "one"])


def test_ctrl_c_that_the_program_survives_runs_nothing() -> None:
    program = TWO + (
        "\ntry:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
        "\nexcept KeyboardInterrupt:\n    say('goes on')"
    )
    assert end_of(program) == (0, ["goes on", "two", "one"])


def test_a_thread_may_register_and_signals_are_taken_at_the_next_chance() -> None:
    program = (
        "t = threading.Thread(target=lambda: finalizers.register(lambda: say('one'), 'a'))"
        "\nt.start(); t.join()\nassert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
        "\nfinalizers.register(lambda: say('two'), 'b')"
    )
    assert end_of(program, signal.SIGTERM) == (-signal.SIGTERM, ["two", "one"])


def test_a_forked_child_does_not_run_its_parents_finalizers() -> None:
    program = TWO + (
        "\nif os.fork() == 0:"
        "\n    finalizers.register(lambda: say('child'), 'c')\n    sys.exit(0)\nos.wait()"
    )
    assert end_of(program) == (0, ["child", "two", "one"])


def test_installing_from_another_thread_takes_no_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=Finalizers().install_signals)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
