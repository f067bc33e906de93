"""Running the command line, in this process and against a real server."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory.cli.main import main
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import lifecycle
from pikuri_memory.servers.embedded import EmbeddedServer


@dataclass(frozen=True)
class Ran:
    """A command line that was run."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON documents that it printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Runner = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run a command line; ``stdin`` is what it reads."""

    def runner(*words: str, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        code = main(words)
        told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return runner


@pytest.fixture(scope="module")
def shared_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory with a running server, for all tests of a module."""
    data_dir = tmp_path_factory.mktemp("shared") / "memory"
    with EmbeddedServer(port=0, data_dir=data_dir, free_space_reserve=0):
        yield data_dir


@pytest.fixture
def server(shared_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a running server, which the command line uses by itself."""
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(shared_data_dir))
    return shared_data_dir


@pytest.fixture
def user() -> str:
    """Somebody who has no memories yet."""
    return f"user-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory of the test's own, not made yet; its server is stopped in the end."""
    path = tmp_path / "memory"
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(path))
    monkeypatch.setenv("PIKURI_MEMORY_PORT", "0")
    yield path
    lifecycle.stop(DataPaths.at(path), force=True, timeout=20)
