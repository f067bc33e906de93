"""What goes wrong in a stack's life: after each fault the next start succeeds, nothing of ours is
left, nothing is lost, and nothing that is not ours is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pikuri_memory import Mem0Client, Mem0Server, lease, process
from pikuri_memory.errors import (
    BuildError,
    CheckoutError,
    DiskFullError,
    PatchError,
    PikuriMemoryError,
    StackStartError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.stack.plan import short_hash
from pikuri_memory.stack.state import read_state
from tests.robustness.test_full_disk import SmallDisk, small_disk
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack.conftest import (
    BUNDLE,
    Upstream,
    arguments,
    bundle,
    clean,
    container,
    docker,
    leftovers,
)
from tests.stack.ollama import ollama

ROOT = Path(__file__).parents[2]
FACT = "Ada keeps the spare key under the blue flowerpot"
PHASES = ("fetch", "patch", "relay", "build", "wait")
T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str, seconds: float = 60) -> T:
    """What a condition gives once it is neither None nor False."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class World:
    """A stack's directory with one memory in it, that every fault must leave.

    Attributes:
        home: Everything lies under it.
        given: The arguments of its servers.
        project: Name of its compose project.
    """

    def __init__(self, home: Path, given: dict[str, Any], router: ScriptedRouter) -> None:
        self.home = home
        self.given = given
        self.router = router
        self.paths = DataPaths.at(home / "data")
        self.project = f"{Mem0Server.COMPOSE_PROJECT}-{short_hash(str(self.paths.root))}"
        self.broken = home / "broken"
        router.answer = remembers(FACT)
        with self.server() as server, server.client() as memory:
            memory.add("The spare key is under the blue flowerpot.", user_id="ada")

    def server(self, **changes: Any) -> Mem0Server:
        """A server over the directory."""
        return Mem0Server(**{**self.given, **changes})

    def check(self) -> None:
        """The next start succeeds and the memory is there; then nothing is left."""
        with self.server() as server, server.client() as memory:
            assert [record.text for record in memory.get_all(user_id="ada")] == [FACT]
            assert memory.search("the spare key", user_id="ada")[0].text == FACT
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        assert leftovers(self.project) == []
        assert [
            found for found in process.find_by_argument(str(self.home)) if found.pid != os.getpid()
        ] == []
        assert lease.lock_owner(self.paths.owner_lock) is None

    def keeper(self) -> process.ProcessIdentity | None:
        """The process that owns the directory now."""
        pid = lease.lock_owner(self.paths.owner_lock)
        return process.identify(pid) if pid else None

    @contextmanager
    def user(self, path: str | None = None, **changes: Any) -> Iterator[subprocess.Popen[str]]:
        """A program of its own that uses the stack."""
        file = self.home / f"user-{time.monotonic_ns()}.json"
        given = {**self.given, **changes}
        file.write_text(json.dumps(given, default=str))
        environment = {**os.environ, **({"PATH": path} if path else {})}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        with subprocess.Popen(
            [sys.executable, "-m", "tests.stack.user", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as running:
            try:
                yield running
            finally:
                running.kill()
                file.unlink()

    def stuck_at(self, phase: str) -> tuple[str, dict[str, Any], Path]:
        """A PATH and arguments with which a start stands still in a phase, and the file that it
        makes when it has got there."""
        shutil.rmtree(self.broken, ignore_errors=True)
        self.broken.mkdir()
        mark = self.broken / "here"
        program, pattern = {
            "fetch": ("git", " fetch "),
            "patch": ("git", " apply "),
            "relay": ("socat", "UNIX-LISTEN"),
            "build": ("docker", " build mem0"),
            "wait": ("docker", "nothing"),
        }[phase]
        found = shutil.which(program)
        script = self.broken / program
        script.write_text(
            f'#!/bin/sh\ncase " $* " in *"{pattern}"*) touch {mark}; sleep 900;; esac\n'
            f'exec {found} "$@"\n'
        )
        script.chmod(0o755)
        changes: dict[str, Any] = {}
        if phase in ("fetch", "patch"):
            shutil.rmtree(self.home / "temp", ignore_errors=True)
            (self.home / "temp").mkdir()
            (self.home / "temp" / "git").mkdir()  # an empty one: so that it is not passed over
        if phase == "build":
            changes["patch_dir"] = self.more_patches()
        return f"{self.broken}:{os.environ['PATH']}", changes, mark

    def more_patches(self, text: str = "") -> Path:
        """Our patches and one more, so that there is no image of it."""
        directory = self.broken / "patches"
        shutil.copytree(self.given["patch_dir"], directory)
        (directory / "99-more.patch").write_text(text or new_file("more.py", "# nothing"))
        return directory

    def reached(self, phase: str, mark: Path, running: subprocess.Popen[str]) -> None:
        """Wait until a start stands in the phase."""

        def there() -> bool:
            assert running.poll() is None, running.stdout and running.stdout.read()
            state = read_state(self.paths)
            told = state is not None and state.phase == phase
            keeper = self.keeper()
            own = keeper is not None and state is not None and state.pid == keeper.pid
            return mark.exists() or (phase == "wait" and told and own)

        eventually(there, f"the phase {phase}")


def new_file(name: str, line: str) -> str:
    """A patch that puts a file of one line beside mem0's server."""
    return f"--- /dev/null\n+++ b/server/{name}\n@@ -0,0 +1 @@\n+{line}\n"


@pytest.fixture(scope="module")
def world(engine_ready: None, upstream: Upstream) -> Iterator[World]:
    home = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    with ollama() as router, pytest.MonkeyPatch.context() as patch:
        if path := bundle():
            patch.setenv(BUNDLE, path)
        yield World(home, arguments(upstream, router.url, home), router)
    clean(home / "data")
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def certificates(engine: None) -> None:
    """Of the build, in each test."""


@pytest.mark.parametrize("phase", PHASES)
def test_a_supervisor_that_is_killed_leaves_nothing(world: World, phase: str) -> None:
    path, changes, mark = world.stuck_at(phase)
    with world.user(path, **changes) as running:
        world.reached(phase, mark, running)
        running.kill()
        running.wait()
        eventually(lambda: world.keeper() is None, "the end of its keeper")
    world.nothing_is_left()
    world.check()


@pytest.mark.parametrize("phase", PHASES)
def test_a_keeper_that_is_killed_is_told_and_leaves_nothing(world: World, phase: str) -> None:
    path, changes, mark = world.stuck_at(phase)
    with world.user(path, **changes) as running:
        world.reached(phase, mark, running)
        keeper = world.keeper()
        assert keeper is not None
        process.signal_process(keeper.pid, keeper.start_time, signal.SIGKILL)
        assert running.wait(60) == 1
        assert running.stdout is not None
        told = json.loads(running.stdout.read())
        assert told["error"] == "ServerStartError"
    eventually(
        lambda: process.find_by_argument(str(world.broken)) == [], "the end of what it had started"
    )
    world.nothing_is_left()
    world.check()


def test_a_keeper_that_is_killed_while_it_runs_is_replaced_by_the_next_start(
    world: World,
) -> None:
    server = world.server().start()
    keeper = world.keeper()
    assert keeper is not None
    mem0 = container(server, "mem0")
    process.signal_process(keeper.pid, keeper.start_time, signal.SIGKILL)
    eventually(lambda: world.keeper() is None, "its end")
    eventually(
        lambda: process.find_by_argument(f"UNIX-LISTEN:{server.sock_dir}") == [],
        "the end of its relay",
    )
    with server.client() as memory:
        # The containers go on meanwhile.
        assert [record.text for record in memory.get_all(user_id="ada")] == [FACT]
    server.start()
    assert world.keeper() is not None
    assert mem0
    with server.client() as memory:
        assert memory.search("the spare key", user_id="ada")[0].text == FACT
    server.close()
    world.nothing_is_left()


def test_close_after_the_keeper_was_killed_takes_the_containers_down(world: World) -> None:
    server = world.server().start()
    keeper = world.keeper()
    assert keeper is not None
    process.signal_process(keeper.pid, keeper.start_time, signal.SIGKILL)
    eventually(lambda: world.keeper() is None, "its end")
    server.close()
    world.nothing_is_left()
    world.check()


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_supervisors_at_once_share_one_stack(world: World, first_out: int) -> None:
    with world.user() as one, world.user() as two:
        users = (one, two)
        for user in users:
            assert user.stdout is not None
            assert user.stdout.readline() == "ready\n"
        keeper = world.keeper()
        assert keeper is not None
        assert len(leftovers(world.project)) == 6
        first, last = users[first_out], users[1 - first_out]
        assert first.stdin is not None
        assert last.stdin is not None
        first.stdin.close()
        assert first.wait(60) == 0
        assert world.keeper() == keeper
        assert len(leftovers(world.project)) == 6
        last.stdin.close()
        assert last.wait(60) == 0
    world.nothing_is_left()
    world.check()


@pytest.mark.parametrize("how", ["kill", "remove"])
def test_row_25_services_that_die_come_back(world: World, how: str) -> None:
    with world.server() as server, server.client() as memory:
        for service in ("mem0", "qdrant", "front", "router-proxy"):
            before = container(server, service)
            docker(*(("kill", before) if how == "kill" else ("rm", "--force", before)))
            eventually(lambda: found_again(memory), f"the return of {service}")
            state = docker("inspect", "-f", "{{.State.Running}}", container(server, service))
            assert state == "true", service
    world.nothing_is_left()


def test_a_relay_that_is_broken_is_mended(world: World) -> None:
    with world.server() as server, server.client() as memory:
        assert found_again(memory)
        for what in ("directory", "socket", "socat"):
            if what == "directory":
                shutil.rmtree(server.sock_dir)
            elif what == "socket":
                (server.sock_dir / server.RELAY_SOCKET).unlink()
            else:
                for found in process.find_by_argument(f"UNIX-LISTEN:{server.sock_dir}"):
                    process.signal_process(found.pid, found.start_time, signal.SIGKILL)
            time.sleep(1)
            eventually(lambda: found_again(memory), f"the way to the router after the {what}")
    world.nothing_is_left()


def found_again(memory: Mem0Client) -> bool:
    """Whether the whole way works: the API, the router, the vector store."""
    try:
        return memory.search("the spare key", user_id="ada")[0].text == FACT
    except PikuriMemoryError:
        return False


@contextmanager
def one_more_patch(world: World, text: str) -> Iterator[Mem0Server]:
    """A server whose start fails for a patch of this text; the next one without it succeeds."""
    shutil.rmtree(world.broken, ignore_errors=True)
    world.broken.mkdir()
    yield world.server(patch_dir=world.more_patches(text))
    world.nothing_is_left()
    world.check()


def test_a_patch_that_no_longer_applies_stops_before_the_build(world: World) -> None:
    text = (
        "--- a/server/main.py\n+++ b/server/main.py\n@@ -1,3 +1,3 @@\n never\n-was\n+is\n there\n"
    )
    with (
        one_more_patch(world, text) as server,
        pytest.raises(PatchError, match=r"99-more.patch(.|\n)*server/main.py, hunk 1"),
    ):
        server.start()


def test_an_image_that_cannot_be_built_is_told_with_its_output(world: World) -> None:
    with (
        one_more_patch(world, new_file("broken.py", "this is no Python")) as server,
        pytest.raises(BuildError, match=r"(?i)broken.py|SyntaxError"),
    ):
        server.start()


def test_row_24_a_service_that_ends_at_once_is_told_with_its_last_lines(world: World) -> None:
    with (
        one_more_patch(
            world, new_file("dotenv.py", 'raise RuntimeError("I do not want to")')
        ) as server,
        pytest.raises(StackStartError, match=r"mem0(.|\n)*RuntimeError"),
    ):
        server.start()


def test_a_truncated_checkout_is_made_anew(world: World) -> None:
    with world.server():
        pass
    main = world.home / "temp" / "git" / "server" / "main.py"
    whole = main.read_bytes()
    os.truncate(main, 100)
    world.check()
    assert main.read_bytes() == whole


def test_a_cleaned_cache_costs_nothing(world: World) -> None:
    shutil.rmtree(world.home / "temp")
    world.check()
    assert not (world.home / "temp" / "git").exists()


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    home = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    with small_disk(home / "d", 256 * 2**20) as mounted:
        yield mounted
    shutil.rmtree(home)


@pytest.mark.parametrize("what", ["checkout", "data"])
def test_a_full_disk_is_told_and_the_next_start_succeeds(
    world: World, disk: SmallDisk, what: str, upstream: Upstream, tmp_path: Path
) -> None:
    given = arguments(upstream, world.router.url, disk.path)
    if what == "checkout":
        given["data_dir"] = tmp_path / "data"
    else:
        given["cache_dir"], given["data_dir"] = tmp_path / "cache", disk.path
        lease.prepare(DataPaths.at(disk.path))
    disk.fill()
    server = Mem0Server(**given)
    with pytest.raises((CheckoutError, DiskFullError, OSError), match=r"(?i)space|full"):
        server.start()
    project = f"{Mem0Server.COMPOSE_PROJECT}-{short_hash(str(server.data_dir))}"
    assert leftovers(project) == []
    disk.clear()
    with server, server.client() as memory:
        memory.add("The spare key is under the blue flowerpot.", user_id="ada")
        assert [record.text for record in memory.get_all(user_id="ada")] == [FACT]
    assert leftovers(project) == []
