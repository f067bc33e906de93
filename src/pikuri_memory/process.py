"""The one place that starts, finds and signals processes.

A process is named by its id *and* its start time: ids are used again, and a signal or a decision
must never reach the wrong process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pikuri_memory.errors import (
    AccessError,
    CommandFailedError,
    CommandNotFoundError,
    CommandTimeoutError,
)

_TAIL_LINES = 20
_POLL_SECONDS = 0.02
_STOP_SECONDS = 5.0
_KEPT_LINES = 400

# Runs "$@" and ends with its code. Its standard input is a pipe that only this process holds: when
# that ends, however this process ended, the whole process group is killed. When the command ends
# by itself, what it left in the group is ended too. A signal to the group reaches the command;
# the shell outlives it to collect its children.
_TIED = """
exec 3<&0
trap : TERM INT HUP
{ read -r _ <&3; kill -KILL 0; } & watch=$!
"$@" 3<&- </dev/null & child=$!
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
kill -KILL $watch
trap '' TERM
kill -TERM 0
wait
exit $code
"""

# Detached processes that this one started: kept so that they are reaped when they end (a zombie
# would keep its id) and so that subprocess does not warn about objects it lost sight of.
_detached: list[subprocess.Popen[bytes]] = []
_detached_guard = threading.Lock()


@dataclass(frozen=True)
class Completed:
    """A command that ran to its end.

    Attributes:
        returncode: Exit code; minus the signal's number where a signal ended it.
        stdout: Its output as text, undecodable bytes replaced.
        stderr: Its error output, likewise.
    """

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same id.

    Attributes:
        pid: Process id.
        start_time: Seconds; comparable only with start times that this module gave on this
            machine since its last boot (it is no date on Linux).
        name: Short name of the program.
    """

    pid: int
    start_time: float
    name: str


class Process:
    """A process started by this module, leader of its own process group."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        # Our unreaped child: the id cannot have passed to another process yet.
        self.start_time = _start_time(popen.pid) or 0.0

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None if it still runs after ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self, grace: float) -> int:
        """End the whole process group: SIGTERM, up to ``grace`` seconds, SIGKILL.

        Returns:
            The exit code of the leader.
        """
        return _terminate_group(self._popen, grace)


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    check: bool = True,
) -> Completed:
    """Run a command to its end, in a process group of its own, with its output captured.

    Args:
        argv: Program and arguments; never a shell line.
        timeout: Seconds until the whole group is killed.
        cwd: Working directory.
        env: The complete environment; by default this process's.
        input: Text for standard input; without it, the command reads an end of file.
        check: Whether an exit code other than 0 is an error.

    Raises:
        CommandNotFoundError: There is no such program.
        CommandFailedError: It ended with another code than 0; carries the end of its output.
        CommandTimeoutError: It did not end in time; carries the end of its output.
    """
    popen = _popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        out, err = popen.communicate(None if input is None else input.encode(), timeout)
    except subprocess.TimeoutExpired:
        _terminate_group(popen, 0.0)
        # What left the group may still hold the pipes: the rest of the output is not worth a hang.
        try:
            out, err = popen.communicate(timeout=1.0)
        except subprocess.TimeoutExpired as late:
            out, err = late.stdout or b"", late.stderr or b""
        raise CommandTimeoutError(
            f"{argv[0]} did not end within {timeout:g} s" + _quoted(out, err),
            hint=f"run it by hand to see why: {_typed(argv)}",
        ) from None
    except BaseException:
        _terminate_group(popen, 0.0)
        raise
    finally:
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    if check and popen.returncode != 0:
        raise CommandFailedError(
            f"{argv[0]} ended with code {popen.returncode}" + _quoted(out, err),
            hint=f"run it by hand to see why: {_typed(argv)}",
        )
    return Completed(popen.returncode, _text(out), _text(err))


def spawn_detached(
    argv: Sequence[str],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start a process that outlives this one: own session, no terminal, files private to the user.

    Args:
        argv: Program and arguments.
        output: File (mode 0600, emptied first) for what it prints; its directory must exist.
        env: The complete environment; by default this process's.
        cwd: Working directory; by default ``/``, so that no directory of the caller's is kept busy.

    Raises:
        CommandNotFoundError: There is no such program.
    """
    descriptor = _open_output(output)
    try:
        # The session also makes a process group. No preexec_fn: it is unsafe with threads. No
        # parent-death signal: it would fire when the *thread* that started it ends.
        popen = _popen(
            argv,
            cwd=cwd or Path("/"),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            umask=0o077,
        )
    finally:
        os.close(descriptor)
    with _detached_guard:
        _detached[:] = [earlier for earlier in _detached if earlier.poll() is None]
        _detached.append(popen)
    return Process(popen)


def spawn_child(
    argv: Sequence[str],
    *,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start a process that belongs to this one, in a process group of its own.

    On Linux with util-linux it is killed when the *thread* that calls this ends, so also when this
    process is killed: call it from a thread that lives as long as the child should. Elsewhere
    it is the caller's to end (a child should also leave when it finds its parent gone).

    Args:
        argv: Program and arguments.
        output: File (mode 0600, emptied first) for what it prints; by default nothing is kept.
        env: The complete environment; by default this process's.
        cwd: Working directory.

    Raises:
        CommandNotFoundError: There is no such program.
    """
    command = [*_parent_death_prefix(), *argv]
    return _start(command, output, env, cwd, stdin=subprocess.DEVNULL)


def spawn_tied(
    argv: Sequence[str],
    *,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start a process that cannot outlive this one, and neither can what it forks.

    The group is killed when this process ends, also by SIGKILL; and when the command itself ends,
    what is left of its group is ended.

    Args:
        argv: Program and arguments.
        output: File (mode 0600, emptied first) for what it prints; by default nothing is kept.
        env: The complete environment; by default this process's.
        cwd: Working directory.

    Raises:
        CommandNotFoundError: There is no such program.
    """
    _require_program(argv[0], env)
    return _start(_tied(argv), output, env, cwd, stdin=subprocess.PIPE)


def run_tied(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    on_line: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
    umask: int = -1,
) -> Completed:
    """Run a long command that cannot outlive this process, and hear its lines as they come.

    Args:
        argv: Program and arguments; never a shell line.
        timeout: Seconds until the whole group is killed.
        cwd: Working directory.
        env: The complete environment; by default this process's.
        check: Whether an exit code other than 0 is an error.
        on_line: Called with every line of its output.
        stop: When it is set, the whole group is ended; the exit code is that of the signal.
        umask: For the files that it makes; by default this process's.

    Returns:
        With both outputs, the last 400 lines of them, in ``stdout``.

    Raises:
        CommandNotFoundError: There is no such program.
        CommandFailedError: It ended with another code than 0; carries the end of its output.
        CommandTimeoutError: It did not end in time; carries the end of its output.
    """
    import selectors

    _require_program(argv[0], env)
    popen = _popen_tied(argv, cwd, env, umask)
    assert popen.stdout is not None
    assert popen.stdin is not None
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    rest = b""

    def take(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            # What a carriage return ends is progress, which the next piece replaces.
            pieces = [text for piece in line.split(b"\r") if (text := _text(piece).rstrip())]
            if pieces:
                kept.append(pieces[-1])
                hear(pieces)
        if b"\r" in rest:
            progress, _, rest = rest.rpartition(b"\r")
            hear([text for piece in progress.split(b"\r") if (text := _text(piece).rstrip())])

    def hear(lines: Sequence[str]) -> None:
        if on_line is not None:
            for line in lines:
                on_line(line)

    end = time.monotonic() + timeout
    try:
        os.set_blocking(popen.stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(popen.stdout, selectors.EVENT_READ)
            while True:
                if stop is not None and stop.is_set():
                    _terminate_group(popen, _STOP_SECONDS)
                    break
                if time.monotonic() >= end:
                    _terminate_group(popen, 0.0)
                    raise CommandTimeoutError(
                        f"{argv[0]} did not end within {timeout:g} s"
                        + _quoted("\n".join(kept).encode(), rest),
                        hint=f"run it by hand to see why: {_typed(argv)}",
                    )
                if selector.select(0.1):
                    data = popen.stdout.read(65536)
                    if data == b"":
                        break
                    take(data or b"")
                elif popen.poll() is not None:
                    break  # something that left the group holds the pipe
        take(b"\n")
        popen.wait()
    except BaseException:
        _terminate_group(popen, 0.0)
        raise
    finally:
        for pipe in (popen.stdin, popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
    output = "\n".join(kept)
    if check and popen.returncode != 0:
        raise CommandFailedError(
            f"{argv[0]} ended with code {popen.returncode}" + _quoted(output.encode(), b""),
            hint=f"run it by hand to see why: {_typed(argv)}",
        )
    return Completed(popen.returncode, output, "")


def follow(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None
) -> Generator[str, None, None]:
    """The lines of a command's output, errors among them, as they come, until it ends.

    Closing the iterator ends the command; so does the end of this process.

    Raises:
        CommandNotFoundError: There is no such program.
    """
    _require_program(argv[0], env)
    popen = _popen_tied(argv, None, env)
    assert popen.stdout is not None
    assert popen.stdin is not None
    try:
        for line in popen.stdout:
            yield _text(line).rstrip("\r\n")
    finally:
        _terminate_group(popen, 0.0)
        popen.stdin.close()
        popen.stdout.close()


def identify(pid: int) -> ProcessIdentity | None:
    """Who runs under an id now; None if nobody does, or only a process that has already ended."""
    import psutil

    if pid <= 0:
        return None
    start_time = _start_time(pid)
    if start_time is None:
        return None
    try:
        name = psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        name = "unknown"
    return ProcessIdentity(pid, start_time, name)


def find_by_argument(part: str) -> list[ProcessIdentity]:
    """This user's processes with ``part`` in one of their arguments, but for this one."""
    import psutil

    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.pid == os.getpid() or candidate.uids().effective != os.geteuid():
                continue
            if any(part in argument for argument in candidate.cmdline()):
                identity = identify(candidate.pid)
                if identity is not None:
                    found.append(identity)
    return found


def is_alive(pid: int, start_time: float) -> bool:
    """Whether the very process still runs: not ended, not a zombie, not another of that id."""
    found = _start_time(pid)
    # Half a clock tick of Linux, microseconds elsewhere; JSON keeps floats exactly.
    return found is not None and abs(found - start_time) < 0.005


def age(pid: int) -> float | None:
    """Seconds since a process started; None if there is none."""
    found = _start_time(pid)
    if found is None:
        return None
    if sys.platform == "linux":
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - found)
    return max(0.0, time.time() - found)


def signal_process(pid: int, start_time: float, sig: signal.Signals) -> bool:
    """Send a signal to the very process.

    Returns:
        False if it does not run (any more).

    Raises:
        AccessError: It belongs to another user.
    """
    try:
        if hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return False
            except PermissionError:
                raise
            except OSError:  # an old kernel, or a sandbox that does not know the call
                pass
            else:
                try:
                    # The descriptor is bound to whoever has the id now: look who, then send.
                    if not is_alive(pid, start_time):
                        return False
                    signal.pidfd_send_signal(descriptor, sig)
                    return True
                finally:
                    os.close(descriptor)
        if not is_alive(pid, start_time):
            return False
        os.kill(pid, sig)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        raise AccessError(
            f"process {pid} belongs to another user: it cannot be sent {sig.name}",
            hint="run the command as the user who started it",
        ) from None


def kill_group(pid: int, start_time: float) -> bool:
    """SIGKILL a process and, where it leads a process group, the whole group.

    Returns:
        False if it does not run (any more).

    Raises:
        AccessError: It belongs to another user.
    """
    group = None
    with contextlib.suppress(OSError):
        group = os.getpgid(pid)
    sent = signal_process(pid, start_time, signal.SIGKILL)
    if sent and group == pid and group != os.getpgrp():
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    return sent


def port_owner(port: int) -> str | None:
    """Who listens on a TCP port of this machine, for a message: ``python3 (pid 123)``.

    Returns:
        None if nobody does; "another user's process" where the system does not tell.
    """
    import psutil

    try:
        connections = [
            (c.laddr, c.status, c.pid) for c in psutil.net_connections(kind="tcp") if c.laddr
        ]
    except (psutil.AccessDenied, OSError):  # macOS tells root only: look at one's own processes
        connections = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                connections += [
                    (c.laddr, c.status, process.pid)
                    for c in process.net_connections(kind="tcp")
                    if c.laddr
                ]
    listening = [
        pid
        for address, status, pid in connections
        if address.port == port and status == psutil.CONN_LISTEN
    ]
    for pid in listening:
        if pid is not None and (found := identify(pid)) is not None:
            return f"{found.name} (pid {pid})"
    return "another user's process" if listening else None


def _tied(argv: Sequence[str]) -> list[str]:
    return ["sh", "-c", _TIED, "sh", *argv]


def _popen_tied(
    argv: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None, umask: int = -1
) -> subprocess.Popen[bytes]:
    """A tied command whose whole output is read by this process."""
    return _popen(
        _tied(argv),
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        umask=umask,
    )


def _start(
    command: Sequence[str],
    output: Path | None,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    *,
    stdin: int,
) -> Process:
    """A command in a process group of its own, which prints into a file or to nobody."""
    descriptor = (
        os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if output is None else _open_output(output)
    )
    try:
        popen = _popen(
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=descriptor,
            stderr=descriptor,
            process_group=0,
        )
    finally:
        os.close(descriptor)
    return Process(popen)


def _popen(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdin: int,
    stdout: int,
    stderr: int,
    start_new_session: bool = False,
    process_group: int | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
            process_group=process_group,
            umask=umask,
            close_fds=True,
        )
    except FileNotFoundError:
        if cwd is not None and not cwd.is_dir():
            raise
        raise CommandNotFoundError(
            f"the program {argv[0]} is not installed or not on PATH",
            hint=f"install {Path(argv[0]).name}, or add its directory to PATH",
        ) from None
    except PermissionError:
        raise CommandNotFoundError(
            f"the program {argv[0]} may not be run by this user",
            hint=f"ls -l {argv[0]}",
        ) from None


def _require_program(program: str, env: Mapping[str, str] | None) -> None:
    import shutil

    if shutil.which(program, path=None if env is None else env.get("PATH")) is None:
        raise CommandNotFoundError(
            f"the program {program} is not installed or not on PATH",
            hint=f"install {Path(program).name}, or add its directory to PATH",
        )


def _open_output(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # an older file keeps its mode
    return descriptor


def _terminate_group(popen: subprocess.Popen[bytes], grace: float) -> int:
    group = popen.pid
    end = time.monotonic() + grace

    def send(sig: int) -> bool:
        """False when the group is empty. Its id stays taken while one member is left."""
        try:
            os.killpg(group, sig)
        except OSError:  # ESRCH; EPERM from macOS when only zombies are left
            return False
        return True

    if grace > 0:
        alive = send(signal.SIGTERM)
        while time.monotonic() < end:
            if popen.poll() is not None and not (alive and send(0) and _has_living(group)):
                return popen.returncode
            time.sleep(_POLL_SECONDS)
    send(signal.SIGKILL)
    return popen.wait()


def _has_living(group: int) -> bool:
    """Whether a process group has a member that has not ended. An orphan that nobody collects
    keeps the group's id for as long as it likes."""
    if sys.platform != "linux":
        return True
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if len(fields) > 2 and int(fields[2]) == group and fields[0] not in b"ZXx":
                    return True
    return False


def _start_time(pid: int) -> float | None:
    """Start time of a process that has not ended; None if there is none (zombies count as none)."""
    if sys.platform == "linux":
        # Straight from the kernel, in ticks since boot: psutil adds the boot time, which moves
        # when the clock is set, so that two processes could differ about a third one's.
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        if len(fields) < 20 or fields[0] in (b"X", b"x"):
            return None
        # The first thread is a zombie as soon as it has ended itself; the process still has its
        # files open, and so its locks and ports, until its other threads have ended too.
        if fields[0] == b"Z" and int(fields[17]) <= 1:
            return None
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return float(process.create_time())
    except psutil.Error:
        return None


@functools.cache
def _parent_death_prefix() -> tuple[str, ...]:
    if sys.platform != "linux":
        return ()
    # Busybox has a setpriv without the option: ask by trying.
    prefix = ("setpriv", "--pdeathsig", "KILL", "--")
    try:
        run([*prefix, "true"], timeout=5)
    except (CommandNotFoundError, CommandFailedError, CommandTimeoutError):
        return ()
    return prefix


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def _typed(argv: Sequence[str]) -> str:
    import shlex

    return shlex.join(argv)


def _quoted(out: bytes, err: bytes) -> str:
    lines = (_text(out) + "\n" + _text(err)).split("\n")
    tail = "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:])
    return f"; its last output:\n{tail}" if tail else ", without output"
