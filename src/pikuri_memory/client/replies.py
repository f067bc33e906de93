"""What the JSON of a reply means, as values. Pure: no I/O, no HTTP.

The shapes are those of mem0's self-hosted server (at a3154d59e52386d4e1189c1f5f44819868f76514),
which ours follows; where the two differ, both are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeVar, cast, get_args

from pikuri_memory.record import Degraded, Event, Matches, Record

T = TypeVar("T")

_EVENTS = frozenset(get_args(Event))
EntityType = Literal["user", "agent", "run"]
_ENTITY_TYPES = frozenset(get_args(EntityType))


class ShapeError(Exception):
    """A reply has another shape than it should. Its text names fields and types, never values."""


@dataclass(frozen=True)
class HistoryEntry:
    """One change of a memory.

    Attributes:
        id: Of the entry.
        memory_id: Of the memory; a deleted one still has a history.
        event: What happened.
        old_text: The text before; None for an ``ADD``, and after an erasure.
        new_text: The text after; None for a ``DELETE``, and after an erasure.
        at: When, with time zone; None where the server does not tell.
    """

    id: str
    memory_id: str
    event: Event
    old_text: str | None = None
    new_text: str | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Entity:
    """A user, agent or run that has memories.

    Attributes:
        type: ``user``, ``agent`` or ``run``.
        id: Its id in the scope.
        total_memories: How many memories it has.
        created_at: When the first of them was learnt.
        updated_at: When one of them was last changed.
    """

    type: EntityType
    id: str
    total_memories: int
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class Health:
    """What answers at an endpoint.

    Attributes:
        status: ``ok`` when it serves.
        server: ``pikuri-memory``, or the title that mem0's server gives itself.
        version: Of the server; None where it tells none.
        add_seconds: Seconds that an addition may take, models of the user's included; None where
            it tells none.
    """

    status: str
    server: str
    version: str | None = None
    add_seconds: float | None = None


@dataclass(frozen=True)
class Page:
    """Some memories of a scope.

    Attributes:
        records: Newest first.
        next: Cursor of the next page; None on the last one, or where a server has no pages.
        paged: Whether the server has pages at all (mem0's has not).
    """

    records: list[Record]
    next: str | None
    paged: bool


def records(payload: object) -> list[Record]:
    """Memories in ``{"results": [...]}`` or in a list."""
    return [record(row) for row in _rows(payload)]


def matches(payload: object) -> Matches:
    """What a search found: as :func:`records`, and whether it was degraded."""
    found = Matches(records(payload))
    told = payload.get("degraded") if isinstance(payload, dict) else None
    if told is not None:
        row = _mapping(told, "'degraded'")
        found.degraded = Degraded(
            _text(row, "code"), _text(row, "detail"), _optional_text(row, "hint") or ""
        )
    return found


def record(payload: object) -> Record:
    """One memory."""
    row = _mapping(payload, "a memory")
    return Record(
        id=_text(row, "id"),
        text=_optional_text(row, "memory") or "",
        score=_number(row, "score"),
        created_at=_time(row, "created_at"),
        updated_at=_time(row, "updated_at"),
        metadata=_optional_mapping(row, "metadata") or {},
        event=_event(row) if row.get("event") is not None else None,
        user_id=_optional_text(row, "user_id"),
        agent_id=_optional_text(row, "agent_id"),
        run_id=_optional_text(row, "run_id"),
        expiration_date=_date(row, "expiration_date"),
        explanation=_optional_mapping(row, "explanation"),
        supersedes=_texts(row, "supersedes"),
        superseded_by=_texts(row, "superseded_by"),
    )


def page(payload: object, cursor: str | None) -> Page:
    """One page of a listing; ``cursor`` is the one that was sent."""
    paged = isinstance(payload, dict) and "next" in payload
    following = _optional_text(cast("dict[str, Any]", payload), "next") if paged else None
    if following is not None and (not following.isprintable() or following in ("", cursor)):
        # The same cursor again would be an endless listing.
        raise ShapeError("'next' is no cursor that leads on")
    return Page(records(payload), following, paged)


def history(payload: object) -> list[HistoryEntry]:
    """The changes of a memory, oldest first."""
    return [_history_entry(_mapping(row, "a change")) for row in _rows(payload)]


def entities(payload: object) -> list[Entity]:
    """All users, agents and runs that have memories."""
    return [_entity(_mapping(row, "an entity")) for row in _rows(payload)]


def health(payload: object) -> Health:
    """The reply of ``/health``."""
    row = _mapping(payload, "the reply")
    return Health(
        _text(row, "status"),
        _text(row, "server"),
        _optional_text(row, "version"),
        _number(row, "add_seconds"),
    )


def openapi(payload: object) -> Health:
    """The reply of ``/openapi.json``, which is how mem0's server shows that it is up."""
    row = _mapping(payload, "the reply")
    _text(row, "openapi")
    info = _mapping(row.get("info"), "'info'")
    return Health("ok", _text(info, "title"), _optional_text(info, "version"))


def done(payload: object) -> None:
    """A reply that only says that something was done: ``{"message": ...}``."""
    _mapping(payload, "the reply")


def _history_entry(row: Mapping[str, Any]) -> HistoryEntry:
    return HistoryEntry(
        id=_text(row, "id"),
        memory_id=_text(row, "memory_id"),
        event=_event(row),
        old_text=_optional_text(row, "old_memory"),
        new_text=_optional_text(row, "new_memory"),
        # mem0's created_at is the memory's own; the time of the change is updated_at.
        at=_time(row, "updated_at") or _time(row, "created_at"),
    )


def _entity(row: Mapping[str, Any]) -> Entity:
    kind = row.get("type")
    if not isinstance(kind, str) or kind not in _ENTITY_TYPES:
        raise ShapeError("'type' is none of user, agent, run")
    total = row.get("total_memories")
    if not isinstance(total, int) or isinstance(total, bool):
        raise ShapeError(f"'total_memories' is {_kind(total)}, not a count")
    return Entity(
        type=cast(EntityType, kind),
        id=_text(row, "id"),
        total_memories=total,
        created_at=_time(row, "created_at"),
        updated_at=_time(row, "updated_at"),
    )


def _rows(payload: object) -> list[object]:
    rows = payload.get("results") if isinstance(payload, dict) else payload
    if not isinstance(rows, list):
        raise ShapeError("neither a list nor an object with a list 'results'")
    return rows


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"{what} is {_kind(value)}, not an object")
    return value


def _optional_mapping(row: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = row.get(name)
    return None if value is None else _mapping(value, f"'{name}'")


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _optional_text(row, name)
    if not value:
        raise ShapeError(f"'{name}' is missing")
    return value


def _optional_text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ShapeError(f"'{name}' is {_kind(value)}, not text")
    return value


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ShapeError(f"'{name}' is no list of texts")
    return tuple(value)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ShapeError(f"'{name}' is {_kind(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ShapeError(f"'{name}' is not finite")
    return number


def _event(row: Mapping[str, Any]) -> Event:
    value = row.get("event")
    if not isinstance(value, str) or value not in _EVENTS:
        raise ShapeError("'event' is none of ADD, UPDATE, DELETE, NONE")
    return cast(Event, value)


def _parsed(row: Mapping[str, Any], name: str, parse: Callable[[str], T]) -> T | None:
    # mem0 lets a caller's metadata overwrite created_at with any text: one such row must not make
    # its whole scope unreadable.
    value = _optional_text(row, name)
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError:
        return None


def _time(row: Mapping[str, Any], name: str) -> datetime | None:
    value = _parsed(row, name, datetime.fromisoformat)
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _date(row: Mapping[str, Any], name: str) -> date | None:
    return _parsed(row, name, lambda text: datetime.fromisoformat(text).date())
