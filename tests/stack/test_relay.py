"""The relay: a socket of the host that leads to the router, and ends with whoever made it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pikuri_memory import process
from pikuri_memory.errors import MissingToolError, RelayError
from pikuri_memory.stack.plan import RouterAddress, router_address
from pikuri_memory.stack.relay import Relay
from tests.conftest import require


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Path]:
    """A directory with a short name: the path of a socket has room for 107 bytes."""
    require("socat", "socat")
    path = Path("/tmp") / f"pikuri-relay-{os.getpid()}-{threading.get_ident() % 10_000}"
    path.mkdir(mode=0o700)
    yield path / "sock"
    shutil.rmtree(path)


@pytest.fixture
def router() -> Iterator[socket.socket]:
    """Answers every line with itself."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield listener
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


Make = Callable[..., Relay]


@pytest.fixture
def make(sockets: Path, router: socket.socket, tmp_path: Path) -> Iterator[Make]:
    made = []

    def build(**more: object) -> Relay:
        values = {
            "path": sockets / "router.sock",
            "target": RouterAddress("127.0.0.1", router.getsockname()[1]),
            "output": tmp_path / "relay.log",
            "bind_timeout": 5.0,
            **more,
        }
        relay = Relay(**values)  # type: ignore[arg-type]
        made.append(relay)
        return relay

    yield build
    for relay in made:
        relay.stop()


def asked(path: Path, text: bytes = b"hello\n") -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(text)
        return connection.recv(65536)


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def works(path: Path) -> bool:
    try:
        return asked(path) == b"hello\n"
    except OSError:
        return False


def left(path: Path) -> list[process.ProcessIdentity]:
    return process.find_by_argument(str(path))


def test_it_leads_to_the_router_and_is_private(make: Make) -> None:
    relay = make()
    relay.start()
    assert relay.running
    assert asked(relay.path) == b"hello\n"
    assert stat.S_IMODE(relay.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(relay.path.parent.stat().st_mode) == 0o700
    relay.stop()
    assert not relay.path.exists()
    assert left(relay.path) == []
    relay.stop()


def test_stopping_ends_connections_that_are_open(make: Make) -> None:
    relay = make()
    relay.start()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(relay.path))
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        assert len(left(relay.path)) >= 2
        relay.stop()
        assert left(relay.path) == []
        assert connection.recv(1) == b""


def test_a_router_that_is_down_is_no_reason_not_to_start(make: Make, router: socket.socket) -> None:
    port = router.getsockname()[1]
    relay = make()
    router.shutdown(socket.SHUT_RDWR)
    router.close()
    relay.start()
    with contextlib.suppress(ConnectionResetError):
        assert asked(relay.path) == b""
    with (
        socket.create_server(("127.0.0.1", port)) as again,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(str(relay.path))
        connection.sendall(b"back")
        accepted, _ = again.accept()
        with accepted:
            assert accepted.recv(4) == b"back"


@pytest.mark.parametrize("whom", ["socat", "all", "socket", "directory"])
def test_what_dies_or_vanishes_is_made_again(make: Make, whom: str) -> None:
    replaced = threading.Event()
    relay = make(on_replaced=replaced.set)
    relay.start()
    if whom == "socket":
        relay.path.unlink()
    elif whom == "directory":
        relay.path.parent.rename(relay.path.parent.with_name("old"))
        relay.path.parent.mkdir(mode=0o755)
    else:
        for found in left(relay.path):
            if whom == "all" or found.name == "socat":
                process.signal_process(found.pid, found.start_time, signal.SIGKILL)
    eventually(lambda: relay.restarts == 1 and works(relay.path))
    assert replaced.is_set() == (whom == "directory")
    assert stat.S_IMODE(relay.path.parent.stat().st_mode) == 0o700


def test_a_second_relay_does_not_steal_the_path(make: Make) -> None:
    first, second = make(), make()
    first.start()
    with pytest.raises(RelayError, match=f"is taken by .* \\(pid {os.getpid()}\\)"):
        second.start()
    second.stop()
    assert works(first.path)


def test_a_stranger_on_the_path_is_left_alone(make: Make) -> None:
    relay = make()
    relay.path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(relay.path))
        stranger.listen()
        with pytest.raises(RelayError, match="another process listens"):
            relay.start()
        relay.stop()
        assert relay.path.exists()
    make().start()
    assert works(relay.path)


def test_a_file_in_the_way_is_left_alone(make: Make) -> None:
    relay = make()
    relay.path.parent.mkdir()
    relay.path.write_text("mine")
    with pytest.raises(RelayError, match="is no socket"):
        relay.start()
    assert relay.path.read_text() == "mine"


def test_socats_own_words_are_in_the_error(make: Make, sockets: Path) -> None:
    relay = make(target=RouterAddress("127.0.0.1", 99_999_999))
    relay.start()  # the address is looked at for each connection
    relay.stop()
    odd = make(path=sockets / "a,nosuchoption=1,b.sock")
    with pytest.raises(RelayError, match="nosuchoption"):
        odd.start()


def test_a_socat_that_does_not_bind_is_given_up(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "socat"
    fake.write_text("#!/bin/sh\necho I think\nsleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    relay = make(bind_timeout=0.3)
    with pytest.raises(RelayError, match=r"waited 0.3 s(.|\n)*I think"):
        relay.start()
    assert left(relay.path) == []


def test_missing_socat_is_an_error_of_its_own(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="socat is not installed"):
        make().start()


def test_a_path_that_is_too_long_is_told(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RelayError, match="107 bytes"):
        make(path=tmp_path / ("x" * 100) / "router.sock").start()


def test_it_is_gone_when_its_maker_is_killed(
    sockets: Path, router: socket.socket, tmp_path: Path, make: Make
) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from pikuri_memory.stack.plan import RouterAddress
        from pikuri_memory.stack.relay import Relay
        relay = Relay(Path({str(sockets / "router.sock")!r}),
            RouterAddress("127.0.0.1", {router.getsockname()[1]}),
            output=Path({str(tmp_path / "victim.log")!r}), bind_timeout=5)
        relay.start()
        print("started", flush=True)
        time.sleep(600)
    """
    path = sockets / "router.sock"
    with (
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE
        ) as running,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        assert running.stdout is not None
        assert running.stdout.readline() == b"started\n"
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        running.send_signal(signal.SIGKILL)
        running.wait()
        # Its open connections too.
        assert connection.recv(1) == b""
    eventually(lambda: left(path) == [])
    relay = make()
    relay.start()
    assert works(relay.path)


def test_many_connections_at_once_pass(make: Make) -> None:
    relay = make()
    relay.start()
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(asked(relay.path, b"%d\n" % n)))
        for n in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(b"%d\n" % n for n in range(100))


def test_an_address_is_read_from_a_url() -> None:
    assert str(router_address("http://127.0.0.1:11434/v1")) == "127.0.0.1:11434"
    assert str(router_address("http://localhost")) == "localhost:80"
    assert str(router_address("http://[::1]:8080/api/v1")) == "[::1]:8080"
