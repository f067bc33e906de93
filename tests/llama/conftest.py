"""The models and a server that only answers, for all tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.llama.offers import (
    CHAT,
    EMBEDDER,
    OTHER_EMBEDDER,
    SMALL,
    SMALL_CONTEXT,
    STUBBORN,
    THINKER,
    preset,
    write_models,
)
from tests.llama.server import LlamaServer, require_llama_server

StartRouter = Callable[..., LlamaServer]
SingleModel = Callable[..., LlamaServer]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the models."""
    directory = tmp_path_factory.mktemp("models")
    write_models(directory)
    return directory


@pytest.fixture(scope="module")
def llama(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A llama-server in router mode that offers every model, for tests that leave it running."""
    home = tmp_path_factory.mktemp("llama")
    offered = (CHAT, THINKER, STUBBORN, SMALL_CONTEXT, EMBEDDER, OTHER_EMBEDDER)
    with _router(home, models, offered) as server:
        yield server


@pytest.fixture
def start_llama(models: Path, tmp_path: Path) -> Iterator[StartRouter]:
    """Starts llama-servers in router mode: the models to offer, further arguments, its host."""
    started: list[LlamaServer] = []

    def start(
        *offered: str,
        arguments: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        small: int = SMALL,
    ) -> LlamaServer:
        home = tmp_path / f"llama-{len(started)}"
        server = _router(home, models, offered, *arguments, small=small)
        server.host = host
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def single_llama(models: Path, tmp_path: Path) -> SingleModel:
    """Makes a llama-server of one model, that is not started yet: its name, further arguments."""

    def make(model: str, *arguments: str) -> LlamaServer:
        words = ["-m", str(models / f"{model}.gguf"), "--threads", "1", *arguments]
        return LlamaServer(require_llama_server(), words, tmp_path / "single")

    return make


def _router(
    home: Path, models: Path, offered: tuple[str, ...], *arguments: str, small: int = SMALL
) -> LlamaServer:
    program = require_llama_server()
    home.mkdir(exist_ok=True)
    (home / "preset.ini").write_text(preset(models, offered, small))
    return LlamaServer(program, ["--models-preset", str(home / "preset.ini"), *arguments], home)
