"""Processes: start, output, end, identity."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pikuri_memory import process
from pikuri_memory.errors import (
    CommandFailedError,
    CommandNotFoundError,
    CommandTimeoutError,
)
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.waiting import Deadline, wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# A leader that ignores SIGTERM, with a child that does so as well.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    os.write(1, f"{os.getpid()} {child}\\n".encode())
time.sleep(600)
"""


def until(condition: Callable[[], object]) -> None:
    wait_for(lambda: condition() or None, Deadline(30), what="the state", hint="see the test")


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


# ---------------------------------------------------------------- run


def test_run_gives_code_output_and_error_output() -> None:
    done = process.run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        timeout=30,
        check=False,
    )
    assert done == process.Completed(3, "out\n", "err\n")


def test_run_passes_input_directory_and_environment(tmp_path: Path) -> None:
    program = "import os, sys; print(sys.stdin.read(), os.getcwd(), os.environ['WORD'])"
    done = process.run(python(program), timeout=30, cwd=tmp_path, env={"WORD": "é"}, input="given")
    assert done.stdout.split() == ["given", str(tmp_path), "é"]


def test_run_without_input_reads_an_end_of_file() -> None:
    assert process.run(python("print(repr(input.__self__ and open(0).read()))"), timeout=30)


def test_undecodable_output_is_no_error() -> None:
    program = "import sys; sys.stdout.buffer.write(bytes([255, 65]))"
    assert process.run(python(program), timeout=30).stdout == "\ufffdA"


def test_a_failed_command_quotes_its_last_output_and_says_how_to_repeat_it() -> None:
    with pytest.raises(CommandFailedError, match=r"code 7(.|\n)*no such planet") as failed:
        process.run(python("import sys; print('no such planet'); sys.exit(7)"), timeout=30)
    assert sys.executable in failed.value.hint


def test_a_missing_command_is_told_apart() -> None:
    with pytest.raises(CommandNotFoundError, match="no-such-program-9"):
        process.run(["no-such-program-9"], timeout=5)


def test_a_command_that_may_not_be_run_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    with pytest.raises(CommandNotFoundError, match="may not be run"):
        process.run([str(tmp_path / "data")], timeout=5)


def test_a_command_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(CommandTimeoutError, match=r"within 1 s") as failed:
        process.run(python(STUBBORN), timeout=1)
    pids = [int(word) for word in str(failed.value).split() if word.isdigit() and len(word) > 1]
    assert pids
    until(lambda: all(process.identify(pid) is None for pid in pids))


# ---------------------------------------------------------------- detached and child processes


def test_a_detached_process_has_its_own_session_and_private_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("what an earlier one printed")
    program = (
        "import os, sys; print(os.getsid(0) == os.getpid(), os.getcwd(), sys.stdin.read() == '');"
        f"open({str(tmp_path / 'made')!r}, 'w'); print('oh', file=sys.stderr)"
    )
    started = process.spawn_detached(python(program), output=output)
    assert started.wait(30) == 0
    assert started.poll() == 0
    assert sorted(output.read_text().splitlines()) == ["True / True", "oh"]
    assert output.stat().st_mode & 0o077 == 0
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0


def test_a_detached_process_outlives_its_starter(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from pikuri_memory import process; import sys;"
        f"started = process.spawn_detached({SLEEP!r}, output=Path({str(tmp_path / 'o')!r}));"
        "print(started.pid, started.start_time)"
    )
    search = os.pathsep.join(entry for entry in sys.path if entry)
    done = process.run(python(program), timeout=30, env={**os.environ, "PYTHONPATH": search})
    pid, start_time = int(done.stdout.split()[0]), float(done.stdout.split()[1])
    assert done.stderr == ""
    assert process.is_alive(pid, start_time)
    assert process.signal_process(pid, start_time, signal.SIGKILL)
    until(lambda: not process.is_alive(pid, start_time))


def test_a_detached_process_inherits_no_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    started = process.spawn_detached(SLEEP, output=tmp_path / "out")
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    started.terminate(5)


def test_terminate_ends_a_group_that_ignores_sigterm(tmp_path: Path) -> None:
    output = tmp_path / "out"
    started = process.spawn_child(python(STUBBORN), output=output)
    until(lambda: len(output.read_text().split()) == 2)
    assert started.terminate(0.2) == -signal.SIGKILL
    pids = {int(word) for word in output.read_text().split()}
    until(lambda: all(process.identify(pid) is None for pid in pids))


def test_terminate_ends_the_children_of_a_leader_that_has_gone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    program = f"import subprocess; print(subprocess.Popen({SLEEP!r}).pid)"
    started = process.spawn_child(python(program), output=output)
    assert started.wait(30) == 0
    assert started.terminate(5) == 0
    child = int(output.read_text())
    until(lambda: process.identify(child) is None)


def test_terminate_after_the_end_gives_the_code() -> None:
    started = process.spawn_child(python("raise SystemExit(4)"))
    assert started.wait(30) == 4
    assert started.terminate(1) == 4


def test_wait_gives_none_while_it_runs() -> None:
    started = process.spawn_child(SLEEP)
    assert started.wait(0.01) is None
    assert started.poll() is None
    started.terminate(5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "from pikuri_memory import process; import time;"
        f"print(process.spawn_child({SLEEP!r}).pid, flush=True); time.sleep(600)"
    )
    search = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        python(program), stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": search}
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: (found := process.identify(child)) and "python" in found.name)
        parent.kill()
        parent.wait()
        until(lambda: process.identify(child) is None)


# ---------------------------------------------------------------- identity and signals


def test_a_process_is_known_by_id_and_start_time() -> None:
    ours = process.identify(os.getpid())
    assert ours is not None
    assert ours.name == psutil.Process().name()
    assert process.is_alive(ours.pid, ours.start_time)
    assert not process.is_alive(ours.pid, ours.start_time - 1)
    assert not process.is_alive(ours.pid, ours.start_time + 0.01)


def test_a_zombie_counts_as_ended() -> None:
    ended = subprocess.Popen(python(""))
    until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    assert process.identify(ended.pid) is None
    assert not process.signal_process(ended.pid, 0.0, signal.SIGTERM)
    ended.wait()
    assert process.identify(ended.pid) is None


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_an_impossible_id_is_nobody(pid: int) -> None:
    assert process.identify(pid) is None
    assert not process.is_alive(pid, 1.0)
    assert not process.signal_process(pid, 1.0, signal.SIGTERM)


def test_a_signal_reaches_only_the_very_process() -> None:
    started = process.spawn_child(SLEEP)
    assert not process.signal_process(started.pid, started.start_time - 5, signal.SIGKILL)
    assert started.wait(0.1) is None
    assert process.signal_process(started.pid, started.start_time, signal.SIGKILL)
    assert started.wait(30) == -signal.SIGKILL
    assert not process.signal_process(started.pid, started.start_time, signal.SIGKILL)


def test_kill_group_ends_the_leader_and_its_children(tmp_path: Path) -> None:
    output = tmp_path / "out"
    started = process.spawn_child(python(STUBBORN), output=output)
    until(lambda: len(output.read_text().split()) == 2)
    assert process.kill_group(started.pid, started.start_time)
    pids = {int(word) for word in output.read_text().split()}
    until(lambda: all(process.identify(pid) is None for pid in pids))
    assert not process.kill_group(started.pid, started.start_time)
    started.wait(30)


def test_the_owner_of_a_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert process.port_owner(port) is None
        listener.listen()
        owner = process.port_owner(port)
    assert owner is not None
    assert owner.endswith(f"(pid {os.getpid()})")


def test_a_start_time_does_not_change_while_a_process_runs() -> None:
    first = process.identify(os.getpid())
    time.sleep(0.05)
    assert process.identify(os.getpid()) == first


def test_the_age_of_a_process_is_told_in_seconds() -> None:
    started = process.spawn_child(SLEEP)
    age = process.age(started.pid)
    assert age is not None
    assert 0 <= age < 30
    assert (process.age(os.getpid()) or 0) >= age
    started.terminate(5)
    assert process.age(started.pid) is None


LOCKED_THREADS = """
import sys, threading, time
from pathlib import Path
from pikuri_memory.lease import ExclusiveLock
for _ in range(60):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
lock = ExclusiveLock(Path(sys.argv[1]))
assert lock.try_acquire()
print("locked", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("attempt", range(5))
def test_a_process_that_counts_as_ended_has_given_back_its_locks(
    tmp_path: Path, attempt: int
) -> None:
    search = os.pathsep.join(entry for entry in sys.path if entry)
    output = tmp_path / "out"
    started = process.spawn_detached(
        [*python(LOCKED_THREADS), str(tmp_path / "lock")],
        output=output,
        env={**os.environ, "PYTHONPATH": search},
    )
    until(lambda: "locked" in output.read_text())
    assert process.signal_process(started.pid, started.start_time, signal.SIGKILL)
    while process.is_alive(started.pid, started.start_time):
        pass
    assert ExclusiveLock(tmp_path / "lock").try_acquire()


# ------------------------------------------------------------------ tied to this process


def test_a_tied_command_tells_its_lines_as_they_come() -> None:
    heard: list[str] = []
    done = process.run_tied(
        ["sh", "-c", "echo one; printf '10%%\\r20%%\\r'; echo two; echo three >&2"],
        timeout=10,
        on_line=heard.append,
    )
    assert heard == ["one", "10%", "20%", "two", "three"]
    assert (done.returncode, done.stdout) == (0, "one\ntwo\nthree")


def test_a_tied_command_that_fails_is_quoted() -> None:
    with pytest.raises(CommandFailedError, match=r"code 3(.|\n)*told"):
        process.run_tied(["sh", "-c", "echo told; exit 3"], timeout=10)
    assert process.run_tied(["sh", "-c", "exit 3"], timeout=10, check=False).returncode == 3
    with pytest.raises(CommandNotFoundError, match="nosuchprogram"):
        process.run_tied(["nosuchprogram"], timeout=10)


def test_a_tied_command_is_ended_in_time_and_when_it_is_stopped() -> None:
    with pytest.raises(CommandTimeoutError, match=r"0.3 s(.|\n)*begun"):
        process.run_tied(["sh", "-c", "echo begun; sleep 4711"], timeout=0.3)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    begun = time.monotonic()
    done = process.run_tied(["sleep", "4712"], timeout=60, stop=stop, check=False)
    assert done.returncode != 0
    assert time.monotonic() - begun < 10
    assert process.find_by_argument("4711") == process.find_by_argument("4712") == []


@pytest.mark.parametrize("how", ["spawn_tied", "run_tied"])
def test_what_is_tied_ends_with_its_maker_and_all_that_it_forked(how: str) -> None:
    nap = "471300" if how == "spawn_tied" else "471301"
    more = "" if how == "spawn_tied" else ", timeout=600"
    script = (
        "import sys, time\nfrom pikuri_memory import process\n"
        f"p = process.{how}(['sh', '-c', 'sleep {nap} & sleep {nap}; true']{more})\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as maker:
        end = time.monotonic() + 20
        while len([p for p in process.find_by_argument(nap) if p.name == "sleep"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        maker.send_signal(signal.SIGKILL)
    while process.find_by_argument(nap):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_tied_command_leaves_behind_is_ended_with_it() -> None:
    process.run_tied(["sh", "-c", "sleep 471400 >/dev/null 2>&1 & true"], timeout=10)
    end = time.monotonic() + 10
    while process.find_by_argument("471400"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_lines_are_followed_until_nobody_listens() -> None:
    lines = process.follow(["sh", "-c", "echo one; echo two >&2; sleep 471500"])
    assert [next(lines), next(lines)] == ["one", "two"]
    lines.close()
    assert process.find_by_argument("471500") == []
