"""Memories out of a server and into one: JSON Lines, one memory a line (docs/export-import.md).

An import may be repeated: what is there already, by its id or by its text, is not stored twice.
A line that cannot be used costs nothing but itself.
"""

from __future__ import annotations

import itertools
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final, TypeAlias

from pikuri_memory._version import __version__
from pikuri_memory.client.one_by_one import OneByOne, settled
from pikuri_memory.client.replies import HistoryEntry
from pikuri_memory.client.sync import Mem0Client
from pikuri_memory.errors import (
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    UnexpectedReplyError,
)
from pikuri_memory.record import Event, Record, Scope

FORMAT: Final = "pikuri-memory-export"
VERSION: Final = 1

_CHUNK_ITEMS: Final = 250
_CHUNK_CHARACTERS: Final = 2_000_000  # of JSON: well below the server's limit in bytes
_HISTORY_THREADS: Final = 4
_HISTORY_WINDOW: Final = 200
_EVENTS: Final = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE", "NONE": "NONE"}


@dataclass(frozen=True)
class Item:
    """A memory that is to be stored.

    Attributes:
        place: Where it came from: a line's number, or a memory's id on another server.
        memory: As ``Mem0Client.add_batch`` takes it.
    """

    place: int | str
    memory: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Refusal:
    """What cannot be stored, and why; the reason never holds the text."""

    place: int | str
    reason: str


Parsed: TypeAlias = Item | Refusal


@dataclass
class Report:
    """What became of an import.

    Attributes:
        added: How many memories were stored.
        known: How many were there already.
        different: Places of those whose id is there with another text, which stays.
        refused: What was not stored.
    """

    added: int = 0
    known: int = 0
    different: list[int | str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many memories were dealt with."""
        return self.added + self.known + len(self.different) + len(self.refused)


# -- out ------------------------------------------------------------------------------------------


def export(client: Mem0Client, scope: Scope) -> Iterator[dict[str, Any]]:
    """The header and then each memory of a scope, newest first, expired ones too.

    Args:
        client: Of the server.
        scope: Whose memories; an empty one means everybody's.
    """
    yield {
        "format": FORMAT,
        "version": VERSION,
        "exported_at": datetime.now(UTC),
        "exported_by": f"pikuri-memory {__version__}",
        "scope": scope.as_dict(),
    }
    records = client.iterate(
        user_id=scope.user_id, agent_id=scope.agent_id, run_id=scope.run_id, show_expired=True
    )
    for record, changes in _with_history(client, records):
        # Deleted between the listing and now: it is to be nowhere any more.
        deleted = changes[-1].event == "DELETE" if changes else not _is_there(client, record.id)
        if deleted:
            continue
        yield {
            "id": record.id,
            "text": record.text,
            "scope": _scope_of(record).as_dict(),
            "metadata": record.metadata,
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "expiration_date": record.expiration_date,
            "history": [
                {
                    "event": change.event,
                    "old_text": change.old_text,
                    "new_text": change.new_text,
                    "at": change.at,
                }
                for change in changes
            ],
            **_links_of(record),
        }


def _is_there(client: Mem0Client, memory_id: str) -> bool:
    """Whether a memory without any history is there: mem0's server may have lost it."""
    try:
        client.get(memory_id)
        return True
    except MemoryNotFoundError:
        return False


def _links_of(record: Record) -> dict[str, list[str]]:
    """What supersedes what, from both sides: whichever is imported later makes the link."""
    links = {
        "supersedes": list(record.supersedes),
        "superseded_by": list(record.superseded_by),
    }
    return {name: ids for name, ids in links.items() if ids}


def _with_history(
    client: Mem0Client, records: Iterable[Record]
) -> Iterator[tuple[Record, list[HistoryEntry]]]:
    """Each memory with its changes; with none where the server knows none."""

    def changes(record: Record) -> list[HistoryEntry]:
        try:
            return client.history(record.id)
        except (MemoryNotFoundError, UnexpectedReplyError):
            return []

    source = iter(records)
    with ThreadPoolExecutor(_HISTORY_THREADS, thread_name_prefix="history") as pool:
        while window := list(itertools.islice(source, _HISTORY_WINDOW)):
            yield from zip(window, pool.map(changes, window), strict=True)


# -- in: from a file ------------------------------------------------------------------------------


def parse(lines: Iterable[bytes]) -> Iterator[Parsed]:
    """The memories in the lines of a file, in their order; blank lines are none.

    Besides our own format it reads lines without a header, mem0's name ``memory`` for the text,
    and ``user_id``, ``agent_id`` and ``run_id`` beside the text instead of a ``scope``.

    Raises:
        InvalidRequestError: The header is another format's, or a later version's.
    """
    first = True
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            row = _object(line)
            if first and "format" in row:
                _check_header(row)
                continue
            yield Item(number, _memory(row))
        except _Unusable as error:
            yield Refusal(number, str(error))
        finally:
            first = False


class _Unusable(Exception):
    """Why a line holds no memory."""


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Unusable("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Unusable(f"it is not JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError):
        raise _Unusable("it is JSON that is nested too deeply, or has too long a number") from None
    if not isinstance(row, dict):
        raise _Unusable("it is not a JSON object")
    return row


def _check_header(row: Mapping[str, Any]) -> None:
    found, version = row.get("format"), row.get("version")
    if found != FORMAT:
        raise InvalidRequestError(
            "line 1 is the header of another format than ours",
            hint=f'the header of an export is {{"format": "{FORMAT}", "version": {VERSION}}}',
        )
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InvalidRequestError(
            f"this export has version {version!r} of the format; this program reads {VERSION}",
            hint="import it with the version of pikuri-memory that wrote it, or a later one",
        )


def _memory(row: Mapping[str, Any]) -> dict[str, Any]:
    text = row.get("text", row.get("memory"))
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("it has no text")
    scope = row.get("scope", row)
    if not isinstance(scope, Mapping):
        raise _Unusable("its scope is not an object")
    try:
        ids = Scope.of(scope).required().as_dict()
    except InvalidRequestError as error:
        raise _Unusable(error.message) from None
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise _Unusable("its metadata is not an object")
    memory = {
        "text": text,
        **ids,
        "id": _id(row.get("id")),
        "metadata": metadata or None,
        "created_at": _moment(row, "created_at"),
        "updated_at": _moment(row, "updated_at"),
        "expiration_date": _day(row.get("expiration_date")),
        "history": _changes(row.get("history")),
        "supersedes": _linked(row, "supersedes"),
        "superseded_by": _linked(row, "superseded_by"),
    }
    return {name: value for name, value in memory.items() if value is not None}


def _linked(row: Mapping[str, Any], name: str) -> list[str] | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(id_, str) for id_ in value):
        raise _Unusable(f"its {name} is no list of ids")
    # What is no id is no memory's, and so of no use.
    return [id_ for id_ in value if _uuid_or_none(id_)] or None


def _id(value: object) -> str | None:
    if value is None:
        return None
    try:
        return str(uuid.UUID(value if isinstance(value, str) else ""))
    except ValueError:
        raise _Unusable("its id is no UUID") from None


def _moment(row: Mapping[str, Any], name: str) -> datetime | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise _Unusable(f"its {name} is no time in ISO 8601") from None


def _day(value: object) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)  # type: ignore[arg-type]  # a TypeError is caught
    except (TypeError, ValueError):
        raise _Unusable("its expiration_date is no date of the form YYYY-MM-DD") from None


def _changes(value: object) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _Unusable("its history is not a list")
    return [_change(entry) for entry in value] or None


def _change(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("event") not in _EVENTS:
        raise _Unusable("its history has an entry without a known event")
    texts = {
        "old_memory": entry.get("old_text", entry.get("old_memory")),
        "new_memory": entry.get("new_text", entry.get("new_memory")),
    }
    if any(text is not None and not isinstance(text, str) for text in texts.values()):
        raise _Unusable("its history has an entry whose text is no text")
    at = next(
        (
            moment
            for name in ("at", "updated_at", "created_at")
            if (moment := _moment(entry, name)) is not None
        ),
        None,
    )
    change = {"event": entry["event"], **texts, "created_at": at}
    return {name: value for name, value in change.items() if value is not None}


# -- in: from another server ----------------------------------------------------------------------


def fetch(client: Mem0Client, scopes: Sequence[Scope] = ()) -> Iterator[Parsed]:
    """The memories of another server, ours or mem0's, with their history where it tells it.

    Args:
        client: Of the other server.
        scopes: Whose memories; by default everybody's whom the server tells.

    Raises:
        InvalidRequestError: The server does not tell whose memories it has.
    """
    seen: set[str] = set()
    for scope in scopes or _scopes_of(client):
        records = client.iterate(
            user_id=scope.user_id, agent_id=scope.agent_id, run_id=scope.run_id, show_expired=True
        )
        fresh = (record for record in records if not (record.id in seen or seen.add(record.id)))  # type: ignore[func-returns-value]
        for record, changes in _with_history(client, fresh):
            try:
                yield Item(record.id, _memory(_row(record, scope, changes)))
            except _Unusable as error:
                yield Refusal(record.id, str(error))


def _scopes_of(client: Mem0Client) -> list[Scope]:
    if _is_ours(client):
        return [Scope()]  # everything, in pages
    try:
        entities = client.entities()
    except (MemoryNotFoundError, UnexpectedReplyError):
        entities = []
    if not entities:
        # Seen with mem0's server on Qdrant: it lists no entities, whatever it holds.
        raise InvalidRequestError(
            f"the server at {client.endpoint} does not tell whose memories it has",
            hint="name them: --user ada, once for each (or --agent, --run)",
        )
    return [Scope(**{f"{entity.type}_id": entity.id}) for entity in entities]


def _row(record: Record, scope: Scope, changes: Sequence[HistoryEntry]) -> dict[str, Any]:
    # A listing of mem0's may leave out the ids that it was asked by.
    ids = scope.as_dict() | _scope_of(record).as_dict()
    # Of one that is there now, only how it came to be.
    kept: list[tuple[Event, HistoryEntry]] = [
        (change.event, change) for change in changes if change.event in ("ADD", "UPDATE")
    ]
    return {
        "id": _uuid_or_none(record.id),
        "text": record.text,
        "scope": ids,
        "metadata": dict(record.metadata),
        "created_at": _iso(record.created_at),
        "updated_at": _iso(record.updated_at),
        "expiration_date": None
        if record.expiration_date is None
        else record.expiration_date.isoformat(),
        "history": [
            {
                "event": event,
                "old_text": change.old_text,
                "new_text": change.new_text,
                "at": _iso(change.at),
            }
            for event, change in kept
        ],
        **_links_of(record),
    }


def _uuid_or_none(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _scope_of(record: Record) -> Scope:
    return Scope(record.user_id, record.agent_id, record.run_id)


# -- in: storing ----------------------------------------------------------------------------------


def store(
    client: Mem0Client,
    items: Iterable[Parsed],
    report: Report | None = None,
    *,
    progress: Callable[[Report], object] = lambda report: None,
) -> Report:
    """Store memories, a chunk in a transaction; in mem0's server, one by one.

    Args:
        client: Of the server.
        items: What :func:`parse` or :func:`fetch` gives.
        report: Filled as it goes; so it is right even when an error ends the import.
        progress: Told after every chunk.

    Raises:
        PikuriMemoryError: The server failed. What the report counts is stored; repeat the rest.
    """
    report = Report() if report is None else report
    singly = None if _is_ours(client) else OneByOne(client)
    for chunk in _chunks(items, report):
        if singly is None:
            _store(client, chunk, report)
            progress(report)
            continue
        for item in chunk:
            _store_one(singly, item, report)
            progress(report)
    return report


def _chunks(items: Iterable[Parsed], report: Report) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    length = 0
    for item in items:
        if isinstance(item, Refusal):
            report.refused.append(item)
            continue
        size = _length(item.memory)
        if chunk and (len(chunk) == _CHUNK_ITEMS or length + size > _CHUNK_CHARACTERS):
            yield chunk
            chunk, length = [], 0
        chunk.append(item)
        length += size
    if chunk:
        yield chunk


def _length(memory: Mapping[str, Any]) -> int:
    return len(json.dumps(memory, ensure_ascii=False, default=str))


def _store(client: Mem0Client, chunk: Sequence[Item], report: Report) -> None:
    try:
        results = client.add_batch([item.memory for item in chunk])
    except InvalidRequestError as error:
        # The batch is all or none, and one of it is bad: halving finds it in a few requests.
        if len(chunk) == 1:
            report.refused.append(Refusal(chunk[0].place, error.message))
            return
        middle = math.ceil(len(chunk) / 2)
        _store(client, chunk[:middle], report)
        _store(client, chunk[middle:], report)
        return
    if len(results) != len(chunk):
        raise PikuriMemoryError(
            f"the server told of {len(results)} memories where {len(chunk)} were sent",
            hint="look at its log: pikuri-memory logs",
        )
    for item, result in zip(chunk, results, strict=True):
        if result.event == "ADD":
            report.added += 1
        elif settled(result.text) == settled(item.memory["text"]):
            report.known += 1
        else:
            report.different.append(item.place)


def _store_one(singly: OneByOne, item: Item, report: Report) -> None:
    try:
        if singly.store(item.memory):
            report.added += 1
        else:
            report.known += 1
    except InvalidRequestError as error:
        report.refused.append(Refusal(item.place, error.message))


def _is_ours(client: Mem0Client) -> bool:
    return client.health().server == "pikuri-memory"
