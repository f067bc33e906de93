"""The REST application: mem0's routes over the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from pikuri_memory.embedded import docs_page, openapi, schemas
from pikuri_memory.embedded.guard import ASGIApp, Guard
from pikuri_memory.embedded.metrics import CONTENT_TYPE, Metrics, Monitor
from pikuri_memory.embedded.model import StoredMemory
from pikuri_memory.embedded.reembedding import Target
from pikuri_memory.embedded.replies import (
    added_shape,
    entity_shape,
    history_shape,
    hits_json,
    memory_shape,
    to_json,
)
from pikuri_memory.embedded.routing import Reply, Request, Route, Router, json_reply
from pikuri_memory.errors import InvalidRequestError, SettingError
from pikuri_memory.record import Scope
from pikuri_memory.settings import Settings

if TYPE_CHECKING:
    from pikuri_memory.embedded.engine import Engine

_CHUNK: Final = 500


def create_app(
    engine: Engine,
    *,
    api_key: Callable[[], str],
    settings: Settings,
    version: str,
    body_deadline: float = 30.0,
) -> ASGIApp:
    """The whole application, guarded and measured.

    Args:
        engine: What does the work; its owner opens and closes it.
        api_key: Gives the current key; called for each request that needs one.
        settings: The limits.
        version: This package's version, for replies.
        body_deadline: Seconds until a request body must have arrived.
    """
    metrics = Metrics(engine.status, version)
    handlers = Handlers(engine, settings, metrics, version)
    routes = [
        Route(row.method, row.path, getattr(handlers, row.name)) for row in openapi.OPERATIONS
    ]
    routes += [
        Route("GET", "/", handlers.home),
        Route("GET", "/openapi.json", handlers.openapi),
        *(Route("GET", path, handlers.page) for path in docs_page.PATHS),
    ]
    guarded = Guard(
        Router(routes),
        api_key=api_key,
        max_body_bytes=settings.max_body_bytes,
        body_deadline=body_deadline,
    )
    return Monitor(guarded, metrics, version)


class Handlers:
    """One method a route, named as in the table of ``openapi.py``."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, version: str) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._version = version
        self._document: bytes | None = None

    async def search(self, request: Request) -> Reply:
        """``POST /search``."""
        query = schemas.parse_search(request.body, self._settings)
        hits = await self._engine.search(query)
        return Reply(hits_json(hits))

    async def add(self, request: Request) -> Reply:
        """``POST /memories``."""
        sent = schemas.parse_add(request.body, self._settings)
        results = await self._engine.add(
            sent.messages,
            sent.scope,
            metadata=sent.metadata,
            infer=sent.infer,
            prompt=sent.prompt,
            expiration_date=sent.expiration_date,
            idempotency=schemas.idempotency_key(
                request.header(b"idempotency-key"), "/memories", sent.scope, sent.digest
            ),
        )
        return json_reply(added_shape(results))

    async def add_batch(self, request: Request) -> Reply:
        """``POST /memories/batch``. Its key belongs to no scope: the items have one each."""
        sent = schemas.parse_batch(request.body, self._settings)
        results = await self._engine.add_batch(
            sent.items,
            idempotency=schemas.idempotency_key(
                request.header(b"idempotency-key"),
                "/memories/batch",
                Scope(),
                sent.digest,
            ),
        )
        return json_reply(added_shape(results))

    async def list_memories(self, request: Request) -> Reply:
        """``GET /memories``."""
        sent = schemas.parse_list(request.query())
        memories, following = self._engine.page(
            sent.scope,
            limit=sent.limit or _CHUNK,
            cursor=sent.cursor,
            show_expired=sent.show_expired,
        )
        if sent.limit is not None or following is None:
            reply: dict[str, Any] = {"results": [memory_shape(memory) for memory in memories]}
            if sent.limit is not None:
                reply["next"] = following
            return json_reply(reply)
        if request.method == "HEAD":
            return Reply(b"")
        return Reply(self._whole_scope(sent.scope, memories, following, sent.show_expired))

    async def _whole_scope(
        self, scope: Scope, memories: list[StoredMemory], cursor: str | None, show_expired: bool
    ) -> AsyncIterator[bytes]:
        opening = b'{"results":['
        while True:
            # The list's own brackets are cut off.
            yield opening + to_json([memory_shape(memory) for memory in memories])[1:-1]
            if cursor is None:
                break
            memories, cursor = self._engine.page(
                scope, limit=_CHUNK, cursor=cursor, show_expired=show_expired
            )
            opening = b"," if memories else b""
        yield b"]}"

    async def delete_scope(self, request: Request) -> Reply:
        """``DELETE /memories``."""
        scope = schemas.parse_scope(request.query())
        await self._engine.delete_scope(scope)
        return _done("All relevant memories deleted")

    async def get_memory(self, request: Request) -> Reply:
        """``GET /memories/{memory_id}``."""
        return json_reply(memory_shape(self._engine.get(request.parts["memory_id"])))

    async def update_memory(self, request: Request) -> Reply:
        """``PUT /memories/{memory_id}``."""
        sent = schemas.parse_update(request.body, self._settings)
        await self._engine.update(
            request.parts["memory_id"],
            text=sent.text,
            metadata=sent.metadata,
            expiration_date=sent.expiration_date,
        )
        return _done("Memory updated successfully!")

    async def delete_memory(self, request: Request) -> Reply:
        """``DELETE /memories/{memory_id}``."""
        await self._engine.delete(request.parts["memory_id"])
        return _done("Memory deleted successfully")

    async def history(self, request: Request) -> Reply:
        """``GET /memories/{memory_id}/history``."""
        entries = self._engine.history(request.parts["memory_id"])
        return json_reply([history_shape(entry) for entry in entries])

    async def entities(self, request: Request) -> Reply:
        """``GET /entities``."""
        return json_reply([entity_shape(entity) for entity in self._engine.entities()])

    async def delete_entity(self, request: Request) -> Reply:
        """``DELETE /entities/{entity_type}/{entity_id}``."""
        scope = schemas.entity_scope(request.parts["entity_type"], request.parts["entity_id"])
        await self._engine.delete_scope(scope)
        return _done("Entity deleted")

    async def reset(self, request: Request) -> Reply:
        """``POST /reset``."""
        await self._engine.reset()
        return _done("All memories reset")

    async def purge(self, request: Request) -> Reply:
        """``POST /purge``."""
        await self._engine.purge()
        return _done("Deleted memories purged from the disk")

    async def reembed(self, request: Request) -> Reply:
        """``POST /reembed``."""
        sent = schemas.parse_reembed(request.body)
        try:
            begun = await self._engine.reembed(Target(sent.embedder_model, sent.router))
        except SettingError as error:
            raise InvalidRequestError(error.message, hint=error.hint) from None
        return json_reply(begun)

    async def cancel_reembedding(self, request: Request) -> Reply:
        """``DELETE /reembed``."""
        there = await self._engine.cancel_reembedding()
        return _done("The re-embedding is given up" if there else "There was none to give up")

    async def configuration(self, request: Request) -> Reply:
        """``GET /configure``: mem0's keys, and nothing in it that is secret."""
        status = self._engine.status()
        settings = self._settings
        return json_reply(
            {
                "version": "v1.1",
                "vector_store": {"provider": "qdrant_edge", "config": {}},
                "llm": _llm(status["extraction"]),
                "embedder": {
                    "provider": self._engine.embedder_provider,
                    "config": status["embedder"],
                },
                "settings": {
                    "language": settings.language,
                    "max_body_bytes": settings.max_body_bytes,
                    "max_messages": settings.max_messages,
                    "max_text_length": settings.max_text_length,
                    "purge_hours": settings.purge_hours,
                    "free_space_reserve": settings.free_space_reserve,
                },
            }
        )

    async def status(self, request: Request) -> Reply:
        """``GET /status``."""
        return json_reply({"version": self._version, **self._engine.status()})

    async def metrics(self, request: Request) -> Reply:
        """``GET /metrics``."""
        return Reply(self._metrics.text(), headers=((b"content-type", CONTENT_TYPE),))

    async def health(self, request: Request) -> Reply:
        """``GET /health``."""
        told = {"status": "ok", "server": "pikuri-memory", "version": self._version}
        seconds = self._engine.add_seconds
        return json_reply(told if seconds is None else {**told, "add_seconds": seconds})

    async def openapi(self, request: Request) -> Reply:
        """``GET /openapi.json``."""
        if self._document is None:
            self._document = to_json(openapi.document(self._version))
        return Reply(self._document)

    async def page(self, request: Request) -> Reply:
        """``GET /docs`` and what it loads."""
        found = docs_page.load(request.path)
        return Reply(found.content, headers=found.headers)

    async def home(self, request: Request) -> Reply:
        """``GET /``."""
        return Reply(b"", 307, ((b"location", b"/docs"),))


def _llm(extraction: dict[str, Any] | None) -> dict[str, Any] | None:
    """As mem0 shows it: a provider and its configuration."""
    if extraction is None:
        return None
    config = {"model": extraction["model"], "openai_base_url": extraction["router"]}
    return {"provider": "openai", "config": config}


def _done(message: str) -> Reply:
    return json_reply({"message": message})
