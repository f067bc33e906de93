"""The servers that the contract is held against, and where each may differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory import AsyncMem0Client, EmbeddedServer, Mem0Client, Mem0Server
from pikuri_memory.discovery import read_api_key
from pikuri_memory.paths import DataPaths


@dataclass(frozen=True)
class Subject:
    """A running server.

    Attributes:
        endpoint: Its base URL.
        key: Its API key.
        client: Makes a synchronous client as the server's own class does.
        async_client: The same for the asynchronous one.
    """

    endpoint: str
    key: str
    client: Callable[[], Mem0Client]
    async_client: Callable[[], AsyncMem0Client]


@dataclass(frozen=True)
class Kind:
    """A server to test.

    Attributes:
        name: In the names of the tests.
        running: Starts one over a new directory, and stops it.
        differences: By the name of a feature (``@pytest.mark.feature``) the reason why this
            server lacks it. A test of such a feature is not run against this server.
    """

    name: str
    running: Callable[[Path], AbstractContextManager[Subject]]
    differences: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def embedded(directory: Path) -> Iterator[Subject]:
    """Our own server, as a process of its own."""
    with EmbeddedServer(port=0, data_dir=directory / "data") as server:
        key = read_api_key(DataPaths.at(server.data_dir))
        assert key is not None
        yield Subject(server.endpoint, key, server.client, server.async_client)


def verbatim(request: Mapping[str, Any]) -> str:
    """An extraction that finds each message of the user's, as it is."""
    prompt = str(request["messages"][-1]["content"])
    new = prompt.rpartition("## New Messages\n")[2].partition("\n## ")[0]
    said = [part.partition("user: ")[2] for part in new.splitlines() if "user: " in part]
    facts = [{"id": str(n), "text": text.strip()} for n, text in enumerate(said) if text.strip()]
    return json.dumps({"memory": facts})


@contextmanager
def stack(directory: Path) -> Iterator[Subject]:
    """mem0's own server in the sealed stack."""
    with stack_server(directory) as server:
        key = read_api_key(DataPaths.at(server.data_dir))
        assert key is not None
        yield Subject(server.endpoint, key, server.client, server.async_client)


@contextmanager
def stack_server(directory: Path) -> Iterator[Mem0Server]:
    """A running stack, with a router whose embedder knows meanings."""
    from pikuri_memory.models.builtin import BuiltinEmbedder
    from tests.stack import conftest as world
    from tests.stack.ollama import ollama

    world.ensure_engine()
    upstream = world.source(directory / "upstream")
    embedder = BuiltinEmbedder()
    with (
        world.alone("engine", shared=True),
        ollama(answer=verbatim, embed=lambda text: embedder.embed([text])[0].tolist()) as router,
        pytest.MonkeyPatch.context() as patch,
    ):
        if bundle := world.bundle():
            patch.setenv(world.BUNDLE, bundle)
        given = world.arguments(upstream, router.url, directory)
        with Mem0Server(**{**given, "embedding_dims": 384}) as server:
            yield server


KINDS = (
    Kind("embedded", embedded),
    Kind(
        "mem0",
        stack,
        {
            "batch": "it has no route for finished memories",
            "duplicates": "it stores the same text again",
            "explain": "it does not tell the parts of its scores",
            "idempotency": "it does not know the header `Idempotency-Key`",
            "pages": "its list is whole or cut at `top_k`, without pages",
            "succession": "ranking: a link only marks results and orders them, and it has no links",
        },
    ),
)

FEATURES = {
    "batch": "several finished memories in one request",
    "duplicates": "the same text of the same scope is stored once",
    "entities": "users, agents and runs are listed and deleted",
    "explain": "a search tells the parts of its scores",
    "history": "the changes of a memory are told, without its text once it is deleted",
    "idempotency": "the same Idempotency-Key gets the same reply",
    "pages": "lists come in pages",
    "partial_update": "what an update does not name stays",
    "scope_required": "an empty scope is refused",
    "succession": "a memory that replaces an older one is marked, and stands before it",
}
