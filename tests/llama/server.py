"""Runs llama.cpp's llama-server, in its router mode or with a single model."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pikuri_memory.process import Process, spawn_child

# Before any test has a home of its own.
_CACHES = (Path("/var/cache"), Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")))


def require_llama_server() -> Path:
    """The program; skips the test where it is missing."""
    root = os.environ.get("PIKURI_LLAMA_ROOT")
    roots = [Path(root)] if root else [each / "pikuri-memory-tests/llama.cpp" for each in _CACHES]
    for each in roots:
        if (each / ".complete").exists():
            return each / "usr/bin/llama-server"
    pytest.skip("llama-server is missing (bash scripts/llama_cpp.sh)")


def free_port() -> int:
    """A port that nobody listens on now, and that keeps its number over restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LlamaServer:
    """A llama-server on one address, which may be stopped and started again.

    Attributes:
        program: The program.
        arguments: What it is told, without the address.
        home: A directory of its own, for its log.
        host: An address, or the path of a unix socket.
        port: Its port; of no meaning with a unix socket.
    """

    program: Path
    arguments: list[str]
    home: Path
    host: str = "127.0.0.1"
    port: int = 0
    process: Process | None = None

    @property
    def url(self) -> str:
        """What a user gives as ``--router``."""
        if self.host.startswith("/"):
            return f"unix:{self.host}"
        return f"http://{self.host}:{self.port}/v1"

    @property
    def log(self) -> str:
        """What it printed since its last start."""
        return (self.home / "llama-server.log").read_text(errors="replace")

    def start(self, *, ready: bool = True) -> LlamaServer:
        """Start it.

        Args:
            ready: Whether to wait until it answers.
        """
        assert self.process is None
        self.home.mkdir(parents=True, exist_ok=True)
        address = ["--host", self.host]
        if not self.host.startswith("/"):
            self.port = self.port or free_port()
            address += ["--port", str(self.port)]
        self.process = spawn_child(
            [str(self.program), *self.arguments, *address, "--offline"],
            output=self.home / "llama-server.log",
            env={**os.environ, "HOME": str(self.home)},
        )
        if ready:
            self.wait()
        return self

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process is not None
            assert self.process.poll() is None, f"llama-server ended:\n{self.log[-2000:]}"
            assert time.monotonic() < end, f"llama-server is not ready:\n{self.log[-2000:]}"
            time.sleep(0.02)

    def stop(self, grace: float = 10.0) -> None:
        """End it and the servers of its models; with ``grace`` 0 by SIGKILL."""
        if self.process is not None:
            self.process.terminate(grace)
            self.process = None

    def __enter__(self) -> LlamaServer:
        return self if self.process else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        unix = self.host if self.host.startswith("/") else None
        url = f"http://{'localhost' if unix else f'{self.host}:{self.port}'}/health"
        with httpx.Client(transport=httpx.HTTPTransport(uds=unix), trust_env=False) as http:
            try:
                return http.get(url, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False
