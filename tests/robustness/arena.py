"""A data directory with an observed server that is started, stopped and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from pikuri_memory import discovery, process
from pikuri_memory.paths import DataPaths
from tests.robustness.watch import Watch

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


class Arena:
    """Starts servers over one data directory, one at a time; none outlives it.

    Args:
        directory: Where the data directory and other files are made.
        data: The data directory, where it must be elsewhere (a small disk).
        flush_changes: Changes after which the index is flushed.
        flush_seconds: Seconds after which it is flushed.
        settings: Settings of the server by name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        data: Path | None = None,
        flush_changes: int = 1000,
        flush_seconds: float = 30.0,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.paths = DataPaths.at(data or directory / "data")
        self.watch = Watch(directory / "phases")
        self.settings: dict[str, Any] = {
            "port": 0,
            "data_dir": self.paths.root,
            "log_level": "debug",
            "free_space_reserve": 0,
        } | settings
        self._pace = [str(flush_changes), str(flush_seconds)]
        self._server: process.Process | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()
        if self._server is not None:
            self._server.terminate(0.0)
        self.watch.close()

    # -- the server --------------------------------------------------------------------------------

    def spawn(self) -> process.Process:
        """Start a server and return at once."""
        self._let_go()
        self.watch.clear()
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items()]
        self._server = process.spawn_detached(
            [
                sys.executable,
                "-m",
                "tests.robustness.observed_server",
                str(self.directory / "phases"),
                *self._pace,
                *flags,
            ],
            output=self.output,
            cwd=ROOT,
        )
        return self._server

    @property
    def output(self) -> Path:
        """What the server printed."""
        return self.paths.output_log

    def start(self) -> None:
        """Start a server and wait until it is healthy.

        Raises:
            AssertionError: It did not start.
        """
        server = self.spawn()
        end = time.monotonic() + START_SECONDS
        while server.poll() is None and time.monotonic() < end:
            info = discovery.read_server_info(self.paths)
            if info is not None and info.pid == server.pid:
                self._client = httpx.Client(
                    base_url=info.endpoint,
                    headers={"X-API-Key": discovery.read_api_key(self.paths) or ""},
                    timeout=60,
                    trust_env=False,
                )
                with contextlib.suppress(httpx.TransportError):
                    if self._client.get("/health").status_code == 200:
                        return
            time.sleep(0.01)
        printed = self.output.read_text()[-2000:]
        raise AssertionError(f"the server did not start (code {server.poll()}): {printed}")

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""
        return self._server is not None and self._server.poll() is None

    def kill(self) -> None:
        """SIGKILL the server, and nothing else; what it started must die with it."""
        server = self._server
        assert server is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
        assert server.wait(30) is not None
        self._let_go()
        end = time.monotonic() + 10
        while left := self._helpers():
            assert time.monotonic() < end, f"{left} outlived its killed server"
            time.sleep(0.01)

    def _helpers(self) -> list[int]:
        """Processes that make an index of this data directory."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = each.cmdline()
                if str(self.paths.record) in words and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each.pid)
        return found

    def terminate(self) -> None:
        """Ask the server to stop, and return at once."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Stop the server cleanly."""
        self.terminate()
        self.ended()

    def ended(self) -> int:
        """Wait for the server to end; returns its exit code."""
        assert self._server is not None
        code = self._server.wait(60)
        assert code is not None, "the server did not stop"
        self._let_go()
        return code

    def _let_go(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- what it is asked --------------------------------------------------------------------------

    @property
    def client(self) -> httpx.Client:
        """A client with the key. Each thread may use it."""
        assert self._client is not None
        return self._client

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of a reply that must be 200."""
        reply = self.client.request(method, path, **more)
        assert reply.status_code == 200, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    def listed(self, user: str) -> list[dict[str, Any]]:
        """All memories of a user."""
        found: list[dict[str, Any]] = self.call("GET", "/memories", params={"user_id": user})[
            "results"
        ]
        return found

    def search(self, query: str, user: str, **more: Any) -> list[dict[str, Any]]:
        """What a search finds."""
        sent = {"query": query, "filters": {"user_id": user}, **more}
        found: list[dict[str, Any]] = self.call("POST", "/search", json=sent)["results"]
        return found

    def add(self, text: str, user: str, **more: Any) -> str:
        """Store one text; its id."""
        sent = {"messages": [{"role": "user", "content": text}], "user_id": user, **more}
        found: str = self.call("POST", "/memories", json=sent)["results"][0]["id"]
        return found

    def add_many(self, texts: list[str], user: str, **more: Any) -> list[str]:
        """Store texts in one request; their ids."""
        items = [{"memory": text, "user_id": user, **more} for text in texts]
        results = self.call("POST", "/memories/batch", json={"memories": items})["results"]
        return [result["id"] for result in results]

    def index_is_ready(self) -> bool:
        """Whether searches use the index."""
        return bool(self.call("GET", "/status")["index"]["state"] == "ready")


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is true.

    Raises:
        AssertionError: It did not become true.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)


def contents(root: Path) -> dict[Path, bytes]:
    """What is in each file below a directory, without long runs of zeros: an index is a hundred
    megabytes of holes. Files that go meanwhile are left out."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                found[path] = path.read_bytes().replace(bytes(1024), b"")
    return found


def files_with(root: Path, needles: list[bytes]) -> list[tuple[Path, bytes]]:
    """Every file below a directory that holds one of some strings of bytes, with the string."""
    return [
        (path, needle)
        for path, content in contents(root).items()
        for needle in needles
        if needle in content
    ]
