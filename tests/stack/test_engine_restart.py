"""The engine's daemon is killed and started again, with a stack on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory import Mem0Server, PikuriMemoryError, process
from pikuri_memory.stack import engine as engines
from tests.conftest import MARKER
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack.conftest import BUNDLE, Upstream, alone, arguments, bundle, clean

SCRIPT = Path(__file__).parents[2] / "scripts" / "docker_engine.sh"
FACT = "Ada keeps the spare key under the blue flowerpot"


@pytest.fixture
def daemon(engine_ready: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The process of an engine that the script started, and that no other test uses now."""
    home = Path(os.environ.get("PIKURI_TEST_DOCKER", "/var/lib/pikuri-test-docker"))
    if os.environ.get("DOCKER_HOST") != f"unix://{home}/docker.sock":
        pytest.skip("the engine is not the one of scripts/docker_engine.sh")
    if path := bundle():
        monkeypatch.setenv(BUNDLE, path)
    with alone("engine"):
        yield int((home / "docker.pid").read_text())
        start()


def start() -> None:
    """Start the daemon, unless it runs; it is no process of the tests'."""
    environment = {name: value for name, value in os.environ.items() if name != MARKER}
    process.run(["bash", str(SCRIPT), "start"], timeout=120, env=environment)


def test_a_daemon_that_is_killed_and_comes_back_finds_its_stack_mended(
    daemon: int, upstream: Upstream, router: ScriptedRouter, home: Path
) -> None:
    router.answer = remembers(FACT)
    server = Mem0Server(**arguments(upstream, router.url, home))
    try:
        with server, server.client() as memory:
            memory.add("The spare key is under the blue flowerpot.", user_id="ada")
            found = process.identify(daemon)
            assert found is not None
            process.signal_process(found.pid, found.start_time, signal.SIGKILL)
            while process.is_alive(found.pid, found.start_time):
                time.sleep(0.05)
            assert not engines.answers()
            start()
            end = time.monotonic() + 240
            while True:
                try:
                    assert memory.search("the spare key", user_id="ada")[0].text == FACT
                    break
                except PikuriMemoryError:
                    assert time.monotonic() < end
                    time.sleep(0.5)
        with server, server.client() as memory:
            assert [record.text for record in memory.get_all(user_id="ada")] == [FACT]
    finally:
        server.close()
        clean(server.data_dir)
