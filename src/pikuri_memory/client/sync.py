"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class Mem0Client:
    """A client of one memory server: ours, mem0's own, or another that speaks its REST API.

    It may be shared by threads. Requests are repeated (twice at most) only where that is safe: when
    no connection was made; when a reply was lost, for reads, updates and deletes, and for
    additions to our own server, which knows them by their ``Idempotency-Key``.

    Args:
        endpoint: URL of the server. Redirects are never followed.
        api_key: The key; or a function that gives it, asked again from time to time and after a
            refusal; None finds the key of a local server of ours, and sends none elsewhere.
        http_client: An ``httpx.Client`` to use, which stays the caller's to close. By default the
            client has its own, which no proxy variable can redirect.
        timeout: Seconds to wait for a reply; by default 30, and for additions what the server
            says that they may take (60, or the deadline of its extraction), which is asked before
            the first one; 660 where it does not say. A connection has 5 seconds, or ``timeout`` if
            that is less.

    Raises:
        InvalidRequestError: An argument cannot be used.

    Every method raises :class:`~pikuri_memory.errors.PikuriMemoryError` of the class that fits:
    ``ServerUnavailableError`` when nothing answers, ``AuthenticationError`` for a wrong key,
    ``InvalidRequestError`` and its kinds for a request that cannot be served, ``ModelError`` and
    its kinds when the user's models did not do their part (nothing was stored; ``retry_after``
    tells when another try may help),
    ``UnexpectedReplyError`` when what answers is no memory server, and as told below.
    """

    def __init__(
        self,
        endpoint: str = protocol.DEFAULT_ENDPOINT,
        api_key: str | KeySource | None = None,
        http_client: httpx.Client | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self._session = Session(endpoint, api_key, timeout)
        self._own_http = http_client is None
        self._http = http_client or httpx.Client(**wire.client_options(self._session))

    @property
    def endpoint(self) -> str:
        """URL of the server, without a slash at its end."""
        return self._session.endpoint

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; further calls raise. An ``http_client`` given stays open."""
        if self._own_http:
            self._http.close()

    def add(
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

        Args:
            text: The user's words. An agent's own words and the output of tools are no memories.
            user_id: The person; at least one of the three ids is required.
            agent_id: The agent.
            run_id: The conversation or task.
            metadata: Fields of the caller's own: a JSON object.
            expiration_date: Last day (UTC) on which it is found, or ``YYYY-MM-DD``. mem0's server
                of 2.0.4 ignores it, unless ``Mem0Server`` runs it.
            infer: Whether a model extracts facts; None leaves it to the server: ours extracts
                where it has a model and else keeps the text as it is, mem0's extracts.
            prompt: Instructions for the extraction.
            idempotency_key: Two calls with the same key are one; by default a random one.

        Returns:
            The memories with ``id``, ``text`` and ``event``: ``ADD``, or ``NONE`` where the scope
            had it already. Empty where a model found nothing to remember.
        """
        return self._send(
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

    def add_messages(
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
        """Add a piece of a conversation: messages with ``role`` and ``content``; as :meth:`add`."""
        return self._send(
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

    def add_batch(
        self, memories: Iterable[Mapping[str, object]], *, idempotency_key: str | None = None
    ) -> list[Record]:
        """Add finished memories as they are, all or none, in one request. Only our own server can.

        Args:
            memories: Each with ``text`` and at least one of ``user_id``, ``agent_id``, ``run_id``;
                optionally ``metadata``, ``expiration_date``, ``created_at`` and ``updated_at``
                (``datetime`` with time zone, or ISO 8601), ``id`` (a UUID to keep) and
                ``history`` (entries as :meth:`history` gives them, or as objects of the API),
                ``supersedes`` and ``superseded_by`` (ids of memories of the same scope). How many
                go into one request is a setting of the server: 1000 by default.
            idempotency_key: As in :meth:`add`.

        Returns:
            A record with ``id``, ``text`` and ``event`` for each, in the same order.
        """
        return self._send(protocol.add_batch(memories, idempotency_key=idempotency_key))

    def search(
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
        """Find memories of a scope, best first.

        Args:
            query: The question, in any words.
            user_id: The person; at least one of the three ids is required, here or in ``filters``.
            agent_id: The agent.
            run_id: The conversation or task.
            filters: Conditions on metadata in mem0's form, such as ``{"year": {"gte": 2020}}``.
            top_k: Most memories; None leaves it to the server (20).
            threshold: Least score; None leaves it to the server (ours 0, mem0's 0.1).
            explain: Whether records carry the parts of their scores (``explanation``).
            show_expired: Whether expired memories are found too.

        Returns:
            Records with ``score``, as a list. Its ``degraded`` is None, or tells why they were
            found by words alone (our own server does so while the user's embedder is away).
        """
        return self._send(
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

    def iterate(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        show_expired: bool = False,
        limit: int | None = None,
        page_size: int = protocol.PAGE_SIZE,
    ) -> Iterator[Record]:
        """The memories of a scope, newest first, fetched page by page as they are used.

        Args:
            user_id: The person; without any of the three ids, the memories of everyone.
            agent_id: The agent.
            run_id: The conversation or task.
            show_expired: Whether expired memories are listed too.
            limit: Most memories; None for all. mem0's server lists no more than it likes (20 in
                version 2.0.4, 1000 in newer ones): a warning in the log tells when that may be.
            page_size: Memories per request.
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
            yield from listing.take(self._send(request))

    def get_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        show_expired: bool = False,
        limit: int | None = None,
        page_size: int = protocol.PAGE_SIZE,
    ) -> list[Record]:
        """The memories of a scope, newest first, as a list; as :meth:`iterate`."""
        return list(
            self.iterate(
                user_id=user_id,
                agent_id=agent_id,
                run_id=run_id,
                show_expired=show_expired,
                limit=limit,
                page_size=page_size,
            )
        )

    def get(self, memory_id: str) -> Record:
        """One memory.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        return self._send(protocol.get(memory_id))

    def update(
        self,
        memory_id: str,
        text: str | Unset = UNSET,
        *,
        metadata: Mapping[str, Any] | Unset = UNSET,
        expiration_date: date | str | Unset | None = UNSET,
    ) -> None:
        """Change a memory; what is not given stays as it is.

        Args:
            memory_id: Its id.
            text: The new text. mem0's server up to 2.0.4 needs it in every update, and forgets
                the metadata that is not given with it.
            metadata: The new metadata, instead of the old.
            expiration_date: The last day (UTC) on which it is found; None for ever.

        Raises:
            MemoryNotFoundError: There is none of that id.
            DuplicateTextError: Another memory of the scope says the same.
        """
        self._send(
            protocol.update(
                memory_id, text=text, metadata=metadata, expiration_date=expiration_date
            )
        )

    def delete(self, memory_id: str) -> None:
        """Delete a memory.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        self._send(protocol.delete(memory_id))

    def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Delete all memories of a scope.

        Raises:
            ScopeRequiredError: None of the three ids is given, or one is empty. :meth:`reset`
                deletes everything.
        """
        self._send(protocol.delete_all(user_id=user_id, agent_id=agent_id, run_id=run_id))

    def history(self, memory_id: str) -> list[HistoryEntry]:
        """The changes of a memory, oldest first; also of one that has been deleted.

        Raises:
            MemoryNotFoundError: There never was one of that id. mem0's server answers with an
                empty list instead.
        """
        return self._send(protocol.history(memory_id))

    def entities(self) -> list[Entity]:
        """All users, agents and runs that have memories."""
        return self._send(protocol.entities())

    def reset(self) -> None:
        """Delete everything of everyone, history too."""
        self._send(protocol.reset())

    def health(self) -> Health:
        """Whether the server serves, what it is and its version; sends no key."""
        try:
            return self._send(protocol.health())
        # mem0's server has no /health, and behind a guard it does not even say so.
        except (MemoryNotFoundError, AuthenticationError):
            return self._send(protocol.openapi())

    def _send(self, request: Request[T]) -> T:
        steps = self._session.exchange(request)
        outcome: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(step, Outgoing):
                outcome = self._transmit(step)
            else:
                time.sleep(step.seconds)
                outcome = None

    def _transmit(self, outgoing: Outgoing) -> Reply | Failure:
        if self._http.is_closed:
            raise InvalidRequestError("this client has been closed", hint="make a new one")
        try:
            return wire.reply_of(self._http.request(**wire.request_options(outgoing)))
        except wire.FAILURES as error:
            return wire.failure_of(error)
