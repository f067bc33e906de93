"""mem0's library behind HTTP, as its own server does it: DATA_DIR CORPUS PORT.

Runs in an environment of its own, which has mem0 and lacks our package. The default local store
(Qdrant's local mode, on disk), ``infer=False``, no model: the look-up is registered as a provider
of vectors, and no LLM is ever asked. The variables that keep mem0 quiet are set by whoever starts
this, before the import.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from mem0 import Memory  # type: ignore[import-not-found, unused-ignore]
from mem0.configs.base import MemoryConfig  # type: ignore[import-not-found, unused-ignore]
from mem0.embeddings.configs import EmbedderConfig  # type: ignore[import-not-found, unused-ignore]
from mem0.llms.configs import LlmConfig  # type: ignore[import-not-found, unused-ignore]
from mem0.utils.factory import (  # type: ignore[import-not-found, unused-ignore]
    EmbedderFactory,
    LlmFactory,
)
from mem0.vector_stores.configs import (  # type: ignore[import-not-found, unused-ignore]
    VectorStoreConfig,
)

from benchmarks.lookup import Lookup


class LookupEmbedding:
    """The look-up, as mem0 wants an embedder."""

    corpus = Path()

    def __init__(self, config: Any) -> None:
        self.config = config
        self._lookup = Lookup(self.corpus)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of a known text."""
        vector: list[float] = self._lookup.vectors([text])[0].tolist()
        return vector

    def embed_batch(self, texts: list[str], memory_action: str = "add") -> list[list[float]]:
        """The vectors of known texts."""
        return [self.embed(text) for text in texts]


class NoModel:
    """An LLM that is never asked."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def generate_response(self, *given: Any, **named: Any) -> str:
        """Not reached with ``infer=False``."""
        raise RuntimeError("the benchmark has no model")


def make_memory(data_dir: Path, corpus: Path) -> Any:
    """mem0's memory with the look-up."""
    LookupEmbedding.corpus = corpus
    # The module runs as __main__: that is where the class with the corpus is found.
    EmbedderFactory.provider_to_class["lookup"] = "__main__.LookupEmbedding"
    LlmFactory.register_provider("none", "__main__.NoModel")
    config = MemoryConfig()
    config.embedder = EmbedderConfig.model_construct(provider="lookup", config={})
    config.llm = LlmConfig.model_construct(provider="none", config={})
    config.vector_store = VectorStoreConfig(
        provider="qdrant",
        config={"path": str(data_dir / "qdrant"), "embedding_model_dims": 384},
    )
    config.history_db_path = str(data_dir / "history.db")
    return Memory(config)


def make_app(memory: Any) -> FastAPI:
    """The routes of mem0's server that are measured, and a batch for the import."""
    app = FastAPI()
    # The local store shares one SQLite connection, and two writers at once end the process
    # (seen with qdrant-client 1.20.0).
    writing = threading.Lock()

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({})

    @app.post("/memories")
    def add(sent: dict[str, Any]) -> JSONResponse:
        with writing:
            return JSONResponse(memory.add(**sent))

    @app.post("/search")
    def search(sent: dict[str, Any]) -> JSONResponse:
        return JSONResponse(memory.search(**sent))

    @app.post("/memories/batch")
    async def add_batch(request: Request) -> JSONResponse:
        items = (await request.json())["memories"]

        def store() -> int:
            with writing:
                for item in items:
                    memory.add(infer=False, **item)
            return len(items)

        return JSONResponse({"stored": await run_in_threadpool(store)})

    return app


def main(arguments: list[str]) -> int:
    """Serve until stopped."""
    logging.disable(logging.WARNING)  # it warns at every search that fastembed is not there
    data_dir, corpus, port = arguments
    uvicorn.run(
        make_app(make_memory(Path(data_dir), Path(corpus))),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
