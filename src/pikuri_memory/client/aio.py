"""The asynchronous client: the methods of the synchronous one, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import date
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from pikuri_memory.client import protocol, wire
from pikuri_memory.client.listing import Listing
from pikuri_memory.client.protocol import Failure, KeySource, Outgoing, Reply, Request, Session
from pikuri_memory.client.replies import Entity, Health, HistoryEntry
from pikuri_memory.errors import AuthenticationError, InvalidRequestError, MemoryNotFoundError
from pikuri_memory.record import UNSET, Matches, Record, Unset

T = TypeVar("T")


class AsyncMem0Client:
    """As :class:`~pikuri_memory.client.sync.Mem0Client`, for ``asyncio``.

    Belongs to the event loop in which it is first used, and may be shared by its tasks.

    Args:
        endpoint: URL of the server. Redirects are never followed.
        api_key: The key, a function that gives it, or None: as there.
        http_client: An ``httpx.AsyncClient`` to use, which stays the caller's to close.
        timeout: Seconds to wait for a reply: as there.

    Raises:
        InvalidRequestError: An argument cannot be used.
    """

    def __init__(
        self,
        endpoint: str = protocol.DEFAULT_ENDPOINT,
        api_key: str | KeySource | None = None,
        http_client: httpx.AsyncClient | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self._session = Session(endpoint, api_key, timeout)
        self._own_http = http_client is None
        self._http = http_client or httpx.AsyncClient(**wire.client_options(self._session))

    @property
    def endpoint(self) -> str:
        """URL of the server, without a slash at its end."""
        return self._session.endpoint

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; further calls raise. An ``http_client`` given stays open."""
        if self._own_http:
            await self._http.aclose()

    async def add(
        self,
        text: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: date | str | None = None,
        infer: bool | None = None,
        prompt: str | None = None,
        idempotency_key: str | None = None,
    ) -> list[Record]:
        """Add what a user said, as one message of the role ``user``.

        See :meth:`.Mem0Client.add`.
        """
        return await self._send(
            protocol.add(
                text,
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                metadata=metadata,
                expiration_date=expiration_date,
                infer=infer,
                prompt=prompt,
                idempotency_key=idempotency_key,
            )
        )

    async def add_messages(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: date | str | None = None,
        infer: bool | None = None,
        prompt: str | None = None,
        idempotency_key: str | None = None,
    ) -> list[Record]:
        """Add a piece of a conversation: messages with ``role`` and ``content``.

        See :meth:`.Mem0Client.add_messages`.
        """
        return await self._send(
            protocol.add_messages(
                messages,
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                metadata=metadata,
                expiration_date=expiration_date,
                infer=infer,
                prompt=prompt,
                idempotency_key=idempotency_key,
            )
        )

    async def add_batch(
        self, memories: Iterable[Mapping[str, object]], *, idempotency_key: str | None = None
    ) -> list[Record]:
        """Add finished memories as they are, all or none, in one request. Only our own server can.

        See :meth:`.Mem0Client.add_batch`.
        """
        return await self._send(protocol.add_batch(memories, idempotency_key=idempotency_key))

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        filters: Mapping[str, Any] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        explain: bool = False,
        show_expired: bool = False,
    ) -> Matches:
        """Find memories of a scope, best first. See :meth:`.Mem0Client.search`."""
        return await self._send(
            protocol.search(
                query,
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                filters=filters,
                top_k=top_k,
                threshold=threshold,
                explain=explain,
                show_expired=show_expired,
            )
        )

    async def iterate(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        show_expired: bool = False,
        limit: int | None = None,
        page_size: int = protocol.PAGE_SIZE,
    ) -> AsyncIterator[Record]:
        """The memories of a scope, newest first, fetched page by page as they are used.

        See :meth:`.Mem0Client.iterate`.
        """
        listing = Listing(
            user_id=user_id,
            agent_id=agent_id,
            run_id=run_id,
            show_expired=show_expired,
            limit=limit,
            page_size=page_size,
        )
        while (request := listing.request()) is not None:
            for record in listing.take(await self._send(request)):
                yield record

    async def get_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        show_expired: bool = False,
        limit: int | None = None,
        page_size: int = protocol.PAGE_SIZE,
    ) -> list[Record]:
        """The memories of a scope, newest first, as a list. See :meth:`.Mem0Client.get_all`."""
        return [
            record
            async for record in self.iterate(
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                show_expired=show_expired,
                limit=limit,
                page_size=page_size,
            )
        ]

    async def get(self, memory_id: str) -> Record:
        """One memory. See :meth:`.Mem0Client.get`."""
        return await self._send(protocol.get(memory_id))

    async def update(
        self,
        memory_id: str,
        text: str | Unset = UNSET,
        *,
        metadata: Mapping[str, Any] | Unset = UNSET,
        expiration_date: date | str | Unset | None = UNSET,
    ) -> None:
        """Change a memory; what is not given stays as it is. See :meth:`.Mem0Client.update`."""
        await self._send(
            protocol.update(
                memory_id, text=text, metadata=metadata, expiration_date=expiration_date
            )
        )

    async def delete(self, memory_id: str) -> None:
        """Delete a memory. See :meth:`.Mem0Client.delete`."""
        await self._send(protocol.delete(memory_id))

    async def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Delete all memories of a scope. See :meth:`.Mem0Client.delete_all`."""
        await self._send(protocol.delete_all(user_id=user_id, agent_id=agent_id, run_id=run_id))

    async def history(self, memory_id: str) -> list[HistoryEntry]:
        """The changes of a memory, oldest first; also of one that has been deleted.

        See :meth:`.Mem0Client.history`.
        """
        return await self._send(protocol.history(memory_id))

    async def entities(self) -> list[Entity]:
        """All users, agents and runs that have memories. See :meth:`.Mem0Client.entities`."""
        return await self._send(protocol.entities())

    async def reset(self) -> None:
        """Delete everything of everyone, history too. See :meth:`.Mem0Client.reset`."""
        await self._send(protocol.reset())

    async def health(self) -> Health:
        """Whether the server serves, what it is and its version; sends no key.

        See :meth:`.Mem0Client.health`.
        """
        try:
            return await self._send(protocol.health())
        # mem0's server has no /health, and behind a guard it does not even say so.
        except (MemoryNotFoundError, AuthenticationError):
            return await self._send(protocol.openapi())

    async def _send(self, request: Request[T]) -> T:
        steps = self._session.exchange(request)
        outcome: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(step, Outgoing):
                outcome = await self._transmit(step)
            else:
                await asyncio.sleep(step.seconds)
                outcome = None

    async def _transmit(self, outgoing: Outgoing) -> Reply | Failure:
        if self._http.is_closed:
            raise InvalidRequestError("this client has been closed", hint="make a new one")
        try:
            return wire.reply_of(await self._http.request(**wire.request_options(outgoing)))
        except wire.FAILURES as error:
            return wire.failure_of(error)
