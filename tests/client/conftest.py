"""One suite for both clients: the asynchronous one is driven through a runner of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from pikuri_memory.client import AsyncMem0Client, Mem0Client

from .played import Kind, PlayedServer

KEY = "k-3f9c0e7a51d84b62"

MakeClient = Callable[..., Mem0Client]


class Driven:
    """An asynchronous client that is called like the synchronous one."""

    def __init__(self, client: AsyncMem0Client, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not callable(member):
            return member

        def call(*args: Any, **options: Any) -> Any:
            result = member(*args, **options)
            if inspect.isasyncgen(result):
                return self._iterate(result)
            return self._runner.run(result)

        return call

    def __repr__(self) -> str:
        return repr(self._client)

    def __enter__(self) -> Driven:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._client.__aexit__(*error))

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(items, StopIteration)

        while (item := self._runner.run(following())) is not StopIteration:
            yield item


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of either kind, to be used alike; closes them."""
    made: list[Mem0Client] = []
    with asyncio.Runner() as runner:

        def make(*args: Any, **options: Any) -> Mem0Client:
            if request.param == "sync":
                client = Mem0Client(*args, **options)
            else:
                client = cast(Mem0Client, Driven(AsyncMem0Client(*args, **options), runner))
            made.append(client)
            return client

        yield make
        for client in made:
            client.close()


def _played(kind: Kind) -> Iterator[PlayedServer]:
    server = PlayedServer(kind, KEY)
    yield server
    server.close()


@pytest.fixture
def ours() -> Iterator[PlayedServer]:
    """Our server, played."""
    yield from _played("ours")


@pytest.fixture
def mem0() -> Iterator[PlayedServer]:
    """mem0's server, played."""
    yield from _played("mem0")


@pytest.fixture(params=["ours", "mem0"])
def server(request: pytest.FixtureRequest) -> Iterator[PlayedServer]:
    """Each of the two servers."""
    yield from _played(request.param)


@pytest.fixture
def client(make_client: MakeClient, server: PlayedServer) -> Mem0Client:
    """A client of each kind at each server."""
    return make_client(server.endpoint, KEY)
