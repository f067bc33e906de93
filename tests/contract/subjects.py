"""The servers that the contract is held against, and where each may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pikuri_memory import AsyncMem0Client, EmbeddedServer, Mem0Client
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


KINDS = (Kind("embedded", embedded),)

FEATURES = {
    "batch": "several finished memories in one request",
    "duplicates": "the same text of the same scope is stored once",
    "entities": "users, agents and runs are listed and deleted",
    "error_shape": "errors carry detail, hint and code",
    "expiry": "memories expire",
    "explain": "a search tells the parts of its scores",
    "history": "the changes of a memory are told, without its text once it is deleted",
    "idempotency": "the same Idempotency-Key gets the same reply",
    "pages": "lists come in pages",
    "partial_update": "what an update does not name stays",
    "scope_required": "an empty scope is refused",
    "succession": "a memory that replaces an older one is marked, and stands before it",
}
