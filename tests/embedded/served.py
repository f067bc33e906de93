"""The REST application over the real engine, behind a real uvicorn, on a port of its own."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from pikuri_memory.embedded.app import create_app
from pikuri_memory.embedded.engine import Engine
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings

KEY = "a-key-of-the-tests"
VERSION = "1.2.3"


class WordEmbedder:
    """A bag of hashed words: quick, the same everywhere, alike for texts that share words."""

    identity = EmbedderIdentity("words", 64, True, "", "tests")
    dimensions = 64
    immediate = True

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.full((len(texts), self.dimensions), 0.01, dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[zlib.crc32(word.encode()) % self.dimensions] += 1.0
        found: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As :meth:`embed`: this model embeds questions as it does facts."""
        return self.embed(texts)


class Served:
    """A running server and a client with the key."""

    def __init__(self, app: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                loop="uvloop",
                http="httptools",
                ws="none",
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.client = httpx.Client(
            base_url=self.endpoint, headers={"X-API-Key": KEY}, timeout=30, trust_env=False
        )
        self.stranger = httpx.Client(base_url=self.endpoint, timeout=30, trust_env=False)

    def close(self) -> None:
        self.client.close()
        self.stranger.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def raw(self, request: bytes, *, close: bool = True) -> bytes:
        """Whatever the server answers to these very bytes, until it closes or is quiet."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            answer = b""
            while part := connection.recv(65536):
                answer += part
            return answer

    def add(self, text: str, user: str = "alice", **more: Any) -> dict[str, Any]:
        """Store one text; its result."""
        sent = {"messages": [{"role": "user", "content": text}], "user_id": user, **more}
        reply = self.client.post("/memories", json=sent)
        assert reply.status_code == 200, reply.text
        result: dict[str, Any] = reply.json()["results"][0]
        return result


@contextmanager
def serving(
    directory: Path,
    *,
    reserve: int = 0,
    body_deadline: float = 30.0,
    wrap: Callable[[Engine], Any] = lambda engine: engine,
    engine: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """A server over a new data directory.

    Args:
        directory: The data directory.
        reserve: Free space below which writes are refused.
        body_deadline: Seconds until a body must be there.
        wrap: Puts something before the engine.
        engine: Arguments of the engine that are not the usual ones.
        settings: Settings that are not the defaults.
    """
    directory.mkdir(parents=True, exist_ok=True)
    options = {"embedder": WordEmbedder(), "free_space_reserve": reserve, **(engine or {})}
    opened = Engine(DataPaths.at(directory), **options)
    try:
        served = Served(
            create_app(
                wrap(opened),
                api_key=lambda: KEY,
                settings=Settings.resolve(settings, {}),
                version=VERSION,
                body_deadline=body_deadline,
            )
        )
        try:
            yield served
        finally:
            served.close()
    finally:
        opened.close()
