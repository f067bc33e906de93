"""What the REST routes answer: JSON bytes, the shapes of the values, the shape of an error."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final

import pydantic_core

from pikuri_memory.embedded.model import AddResult, Entity, HistoryEntry, Hits, StoredMemory
from pikuri_memory.errors import PikuriMemoryError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RETRY_AFTER: Final = {503: 1.0, 507: 60.0}
"""Seconds, where an error does not know better."""

JSON_HEADER: Final = (b"content-type", b"application/json")

logger = logging.getLogger(__name__)


def to_json(value: Any) -> bytes:
    """UTF-8 JSON without NaN and infinities, which become null."""
    return pydantic_core.to_json(value, inf_nan_mode="null")


@lru_cache(maxsize=8192)
def iso_time(microseconds: int) -> str:
    """ISO 8601 with microseconds and ``+00:00`` for a time since the epoch in microseconds."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")


def memory_shape(memory: StoredMemory) -> dict[str, Any]:
    """A memory as mem0's server shows it; ``hash`` is the MD5 of the text, as mem0 computes it.

    ``supersedes`` and ``superseded_by``, which mem0 does not know, are there where they hold ids.
    """
    scope = memory.scope
    expires = memory.expiration_date
    links: dict[str, Any] = {}
    if memory.supersedes:
        links["supersedes"] = list(memory.supersedes)
    if memory.superseded_by:
        links["superseded_by"] = list(memory.superseded_by)
    return {
        "id": memory.id,
        "memory": memory.text,
        "hash": hashlib.md5(memory.text.encode(), usedforsecurity=False).hexdigest(),
        "user_id": scope.user_id,
        "agent_id": scope.agent_id,
        "run_id": scope.run_id,
        "metadata": memory.metadata,
        "created_at": iso_time(memory.created_at),
        "updated_at": iso_time(memory.updated_at),
        "expiration_date": None if expires is None else expires.isoformat(),
        **links,
    }


def hits_json(hits: Hits) -> bytes:
    """The reply to a search: memories with their scores and, where asked for, the scores' parts.

    A memory that is found again and again is rendered once: its JSON is kept with the value, which
    the record gives out until the memory is changed.
    """
    parts: list[bytes] = []
    for hit in hits:
        rendered = hit.memory.rendered
        if not rendered:
            rendered.append(to_json(memory_shape(hit.memory))[:-1])
        explanation = b""
        if hit.explanation is not None:
            explanation = b',"explanation":' + to_json(hit.explanation)
        parts.append(b'%b,"score":%b%b}' % (rendered[0], repr(hit.score).encode(), explanation))
    degraded = b""
    if hits.degraded is not None:
        degraded = b',"degraded":' + to_json(hits.degraded)
    return b'{"results":[%b]%b}' % (b",".join(parts), degraded)


def added_shape(results: Sequence[AddResult]) -> dict[str, Any]:
    """The reply to an ``add``."""
    return {
        "results": [
            {"id": result.id, "memory": result.text, "event": result.event} for result in results
        ]
    }


def history_shape(entry: HistoryEntry) -> dict[str, Any]:
    """A change as mem0's history shows it. We know no actor and no role."""
    at = iso_time(entry.at)
    return {
        "id": entry.id,
        "memory_id": entry.memory_id,
        "old_memory": entry.old_text,
        "new_memory": entry.new_text,
        "event": entry.event,
        "created_at": at,
        "updated_at": at,
        "is_deleted": entry.event == "DELETE",
        "actor_id": None,
        "role": None,
    }


def entity_shape(entity: Entity) -> dict[str, Any]:
    """A user, agent or run with what it has."""
    return {
        "id": entity.id,
        "type": entity.type,
        "total_memories": entity.total_memories,
        "created_at": iso_time(entity.created_at),
        "updated_at": iso_time(entity.updated_at),
    }


def error_shape(error: PikuriMemoryError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers (without the length) and body of an error's reply."""
    status = error.status
    body = to_json({"detail": error.message, "hint": error.hint, "code": error.code})
    headers = [JSON_HEADER]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="pikuri-memory"'))
    seconds = error.retry_after
    if seconds is None:
        seconds = _RETRY_AFTER.get(status)
    if seconds is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
    return status, headers, body


def unexpected(error: BaseException) -> PikuriMemoryError:
    """Log an error that nobody foresaw, and make the one that the caller is told.

    Both carry the same id. The log gets types and places in the code only: a message or a value
    might hold somebody's memories.
    """
    reference = secrets.token_hex(6)
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        places = " < ".join(
            f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in reversed(traceback.extract_tb(cause.__traceback__, limit=-12))
        )
        causes.append(f"{type(cause).__name__} at {places or 'an unknown place'}")
        cause = cause.__cause__ or cause.__context__
    logger.error("internal error %s: %s", reference, "; from ".join(causes))
    return PikuriMemoryError(
        f"internal error {reference}",
        hint=f"look for {reference} in the output of `pikuri-memory logs`",
    )
