"""What callers may send, and how it becomes what the engine takes.

The models say it for ``/openapi.json`` too. Unknown fields are ignored, as mem0's server does;
types are strict, because a "1" that silently becomes true or 1 is a mistake that nobody sees.
No message of an error here repeats what was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from pikuri_memory.embedded import filters
from pikuri_memory.embedded.model import HistoryEntry, IdempotencyKey, NewMemory, SearchQuery
from pikuri_memory.embedded.model import Message as StoredMessage
from pikuri_memory.errors import InvalidRequestError, TooLargeError
from pikuri_memory.record import SCOPE_FIELDS, UNSET, Scope, Unset
from pikuri_memory.settings import Settings

MAX_TOP_K: Final = 1000
DEFAULT_TOP_K: Final = 20
PAGE: Final = 100
"""Memories on a page of a list that was asked for with ``cursor`` alone."""

ENTITY_FIELDS: Final[Mapping[str, str]] = {"user": "user_id", "agent": "agent_id", "run": "run_id"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


# ------------------------------------------------------------------ what may be sent


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


def _one_message(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class MessageIn(_Model):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=64, description="`user`, `assistant`, `system` ...")
    content: str = Field(description="What was said.")


# An empty id is refused later, as a missing scope (400).
_Id = Annotated[str | None, Field(max_length=512, json_schema_extra={"minLength": 1})]
_Metadata = Annotated[
    dict[str, Any] | None,
    Field(description="A JSON object of the caller's own; integers of at most 64 bits."),
]
_Date = Annotated[
    str | None,
    Field(
        json_schema_extra={"format": "date"},
        description="Last day (UTC, YYYY-MM-DD) on which it is found; null for ever.",
    ),
]
_Time = Annotated[
    str | None,
    Field(
        description="ISO 8601; without a time zone it is UTC.",
        json_schema_extra={"format": "date-time"},
    ),
]


class AddIn(_Model):
    """``POST /memories``. At least one of the three ids is required."""

    messages: Annotated[
        list[MessageIn],
        BeforeValidator(
            _one_message,
            json_schema_input_type=list[MessageIn] | Annotated[str, Field(min_length=1)],
        ),
    ] = Field(min_length=1, description="Messages; a plain string is one message of the user.")
    user_id: _Id = None
    agent_id: _Id = None
    run_id: _Id = None
    metadata: _Metadata = None
    infer: bool | None = Field(
        None,
        description="true: facts are extracted by an LLM, refused where there is none. false: each"
        " user message is stored as it is. Absent: extracted where there is an LLM.",
    )
    prompt: str | None = Field(None, description="Own instructions for the extraction.")
    expiration_date: _Date = None


class HistoryIn(_Model):
    """One older change of an imported memory, as ``GET /memories/{id}/history`` shows it."""

    id: str | None = Field(None, max_length=64)
    event: Literal["ADD", "UPDATE", "DELETE", "NONE"]
    old_memory: str | None = None
    new_memory: str | None = None
    created_at: _Time = None
    updated_at: _Time = None


_Links = Annotated[
    list[Annotated[str, Field(max_length=64)]] | None,
    Field(description="Ids of memories of the same scope; unknown ones are ignored."),
]


class ItemIn(_Model):
    """One memory of a batch, in the shape in which ``GET /memories`` shows it."""

    memory: str = Field(min_length=1, description="The fact.")
    user_id: _Id = None
    agent_id: _Id = None
    run_id: _Id = None
    metadata: _Metadata = None
    expiration_date: _Date = None
    id: str | None = Field(
        None, description="A UUID to keep.", json_schema_extra={"format": "uuid"}
    )
    created_at: _Time = None
    updated_at: _Time = None
    history: list[HistoryIn] | None = Field(None, description="Older changes, oldest first.")
    supersedes: _Links = None
    superseded_by: _Links = None


class BatchIn(_Model):
    """``POST /memories/batch``: memories that are stored as they are, all or none."""

    memories: list[ItemIn] = Field(min_length=1)


class UpdateIn(_Model):
    """``PUT /memories/{id}``: what is absent stays."""

    text: str | None = Field(None, min_length=1, description="The new text.")
    metadata: _Metadata = None
    expiration_date: _Date = None


class ReembedIn(_Model):
    """``POST /reembed``."""

    embedder_model: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="As its endpoint calls it, or `builtin`. Absent: the job under way, else the"
        " best one that the endpoint offers.",
    )
    router: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="URL of the model endpoint. Absent: the one in use.",
    )


def _beside_filters() -> Any:
    # Not pydantic's own `deprecated`, which warns each time that we read the field.
    return Field(
        None,
        json_schema_extra={"deprecated": True, "minLength": 1},
        description="mem0 prefers it inside `filters`.",
    )


class SearchIn(_Model):
    """``POST /search``. A scope is required, in ``filters`` or beside it."""

    query: str = Field(min_length=1, description="The question.")
    user_id: _Id = _beside_filters()
    agent_id: _Id = _beside_filters()
    run_id: _Id = _beside_filters()
    filters: dict[str, Any] | None = Field(
        None, description='`{"user_id": "alice", "city": {"in": ["Oslo", "Bergen"]}}`'
    )
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K, description="Most results; 20 if absent.")
    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Least score of a result; 0 if absent."
    )
    explain: bool | None = Field(None, description="Whether results carry `explanation`.")
    show_expired: bool | None = Field(None, description="Whether expired memories are found.")


# ------------------------------------------------------------------ what is answered


class _Answer(BaseModel):
    # For the document alone: replies are made by hand, so nothing is built at the start.
    model_config = ConfigDict(defer_build=True)


class MemoryOut(_Answer):
    """A memory."""

    id: str
    memory: str
    hash: str
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    expiration_date: date | None
    supersedes: list[str] = Field(
        default_factory=list,
        description="Ids of older memories that this one replaces; absent where there are none.",
    )
    superseded_by: list[str] = Field(
        default_factory=list,
        description="Ids of later memories that replace this one; absent where there are none.",
    )


class HitOut(MemoryOut):
    """A memory that was found."""

    score: float = Field(ge=0, le=1)
    explanation: dict[str, Any] = Field(
        default_factory=dict, description="There when `explain` asked for it."
    )


class DegradedOut(_Answer):
    """Why a search had to do without vectors, and what to do next."""

    code: str
    detail: str
    hint: str


class SearchOut(_Answer):
    """What was found, best first."""

    results: list[HitOut]
    degraded: DegradedOut | None = Field(
        None,
        description="There where it was found by words alone, because no vector could be had.",
    )


class ListOut(_Answer):
    """Memories, newest first."""

    results: list[MemoryOut]
    next: str | None = Field(
        None, description="The `cursor` of the next page; absent where the whole scope was sent."
    )


class AddedOut(_Answer):
    """What became of one text: `ADD`, or `NONE` if the scope had it already."""

    id: str
    memory: str
    event: Literal["ADD", "UPDATE", "DELETE", "NONE"]


class AddOut(_Answer):
    """What became of each text or fact, in their order; empty where a model found no fact."""

    results: list[AddedOut]


class HistoryOut(_Answer):
    """One change of a memory; the texts are null once it has been deleted."""

    id: str
    memory_id: str
    old_memory: str | None
    new_memory: str | None
    event: Literal["ADD", "UPDATE", "DELETE", "NONE"]
    created_at: datetime
    updated_at: datetime
    is_deleted: bool
    actor_id: str | None
    role: str | None


class EntityOut(_Answer):
    """A user, agent or run that has memories."""

    id: str
    type: Literal["user", "agent", "run"]
    total_memories: int
    created_at: datetime
    updated_at: datetime


class MessageOut(_Answer):
    """That it was done."""

    message: str


class ReembedOut(_Answer):
    """What became of it, and the embedder that is changed to."""

    result: Literal["begun", "joined", "unchanged"]
    model: str
    dimensions: int


class HealthOut(_Answer):
    """That the server answers, and which."""

    status: Literal["ok"]
    server: Literal["pikuri-memory"]
    version: str
    add_seconds: float | None = Field(
        None,
        description="Seconds that a client should wait for an added memory; there only where a"
        " model endpoint has a part in it.",
    )


class ErrorOut(_Answer):
    """What failed, what to do next, and a word for programs."""

    detail: str
    hint: str
    code: str


# ------------------------------------------------------------------ from one to the other


@dataclass(frozen=True, slots=True)
class AddRequest:
    """A checked ``POST /memories``."""

    messages: list[StoredMessage]
    scope: Scope
    metadata: Mapping[str, Any]
    infer: bool | None
    prompt: str | None
    expiration_date: date | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A checked ``POST /memories/batch``."""

    items: list[NewMemory]
    digest: bytes


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """A checked ``PUT /memories/{id}``."""

    text: str | Unset
    metadata: Mapping[str, Any] | Unset
    expiration_date: date | Unset | None


@dataclass(frozen=True, slots=True)
class ListRequest:
    """A checked ``GET /memories``; ``limit`` is None where the whole scope is wanted."""

    scope: Scope
    limit: int | None
    cursor: str | None
    show_expired: bool


_Body = TypeVar("_Body", bound=BaseModel)
_ADD: Final = TypeAdapter(AddIn)
_BATCH: Final = TypeAdapter(BatchIn)
_UPDATE: Final = TypeAdapter(UpdateIn)
_SEARCH: Final = TypeAdapter(SearchIn)
_REEMBED: Final = TypeAdapter(ReembedIn)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds.

    Duplicate names: the last one counts. Lone surrogates, NaN, infinities, integers beyond what
    Python reads and more than 200 levels are refused by the parser.

    Raises:
        InvalidRequestError: It holds none.
    """
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        # The parser's message gives a reason and a place, nothing of the text.
        reason = str(error) if body else "it is empty"
        raise InvalidRequestError(
            f"the request body is no JSON: {reason}", hint="send a JSON object in UTF-8"
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequestError(
            "the request body is JSON but no object", hint='send a JSON object: {"...": ...}'
        )
    return value


def parse_add(body: bytes, settings: Settings) -> AddRequest:
    """A ``POST /memories``.

    Raises:
        InvalidRequestError: It is malformed (422), too large (413) or has no scope (400).
    """
    raw = parse_object(body)
    sent = _validate(_ADD, raw)
    _check_count(len(sent.messages), "messages", settings)
    for number, message in enumerate(sent.messages):
        _check_length(message.content, f"messages.{number}.content", settings)
    if sent.prompt is not None:
        _check_length(sent.prompt, "prompt", settings)
    return AddRequest(
        messages=[StoredMessage(message.role, message.content) for message in sent.messages],
        scope=_scope(sent),
        metadata=_metadata(sent.metadata, "metadata"),
        infer=sent.infer,
        prompt=sent.prompt,
        expiration_date=_date(sent.expiration_date, "expiration_date"),
        digest=_digest(raw),
    )


def parse_batch(body: bytes, settings: Settings) -> BatchRequest:
    """A ``POST /memories/batch``; errors as of :func:`parse_add`, naming the item."""
    raw = parse_object(body)
    sent = _validate(_BATCH, raw)
    _check_count(len(sent.memories), "memories", settings)
    items = [
        _item(item, f"memories.{number}", settings) for number, item in enumerate(sent.memories)
    ]
    return BatchRequest(items=items, digest=_digest(raw))


def parse_update(body: bytes, settings: Settings) -> UpdateRequest:
    """A ``PUT /memories/{id}``; errors as of :func:`parse_add`.

    As in mem0, a null ``text`` or ``metadata`` counts as absent; a null ``expiration_date`` takes
    the date away.
    """
    sent = _validate(_UPDATE, parse_object(body))
    given = sent.model_fields_set
    if sent.text is None and sent.metadata is None and "expiration_date" not in given:
        raise InvalidRequestError(
            "nothing to change: text, metadata and expiration_date are all absent",
            hint='send the new text: {"text": "..."}',
        )
    if sent.text is not None:
        _check_text(sent.text, "text", settings)
    return UpdateRequest(
        text=UNSET if sent.text is None else sent.text,
        metadata=UNSET if sent.metadata is None else _metadata(sent.metadata, "metadata"),
        expiration_date=(
            _date(sent.expiration_date, "expiration_date") if "expiration_date" in given else UNSET
        ),
    )


def parse_reembed(body: bytes) -> ReembedIn:
    """A ``POST /reembed``; errors as of :func:`parse_add`."""
    return _validate(_REEMBED, parse_object(body))


def parse_search(body: bytes, settings: Settings) -> SearchQuery:
    """A ``POST /search``; errors as of :func:`parse_add`."""
    sent = _validate(_SEARCH, parse_object(body))
    _check_text(sent.query, "query", settings)
    scope = _optional_scope(sent)
    condition = None
    if sent.filters:
        _check_numbers(sent.filters, "filters")
        inner, condition = filters.parse(sent.filters)
        scope = _merge(scope, inner)
    return SearchQuery(
        text=sent.query,
        scope=scope.required(),
        condition=condition,
        top_k=DEFAULT_TOP_K if sent.top_k is None else sent.top_k,
        threshold=0.0 if sent.threshold is None else sent.threshold,
        explain=bool(sent.explain),
        show_expired=bool(sent.show_expired),
    )


def parse_list(parameters: Sequence[tuple[str, str]]) -> ListRequest:
    """The query of ``GET /memories``.

    Raises:
        InvalidRequestError: A parameter is repeated or malformed.
        ScopeRequiredError: An id is empty or ``*``.
    """
    given = _once(parameters)
    top_k, cursor = given.get("top_k"), given.get("cursor")
    limit: int | None = None
    if top_k is not None:
        limit = int(top_k) if re.fullmatch(r"[0-9]{1,9}", top_k) else 0
        if not 1 <= limit <= MAX_TOP_K:
            raise InvalidRequestError(
                f"top_k must be a whole number from 1 to {MAX_TOP_K}",
                hint="leave top_k out to get the whole scope",
            )
    elif cursor is not None:
        limit = PAGE
    show_expired = _BOOLEANS.get(given.get("show_expired", "false").lower())
    if show_expired is None:
        raise InvalidRequestError(
            "show_expired must be true or false", hint="send show_expired=true, or leave it out"
        )
    return ListRequest(Scope.of(given), limit, cursor, show_expired)


def parse_scope(parameters: Sequence[tuple[str, str]]) -> Scope:
    """The scope in the query of ``DELETE /memories``.

    Raises:
        InvalidRequestError: An id is repeated or malformed.
        ScopeRequiredError: There is none, or it is empty or ``*``.
    """
    return Scope.of(_once(parameters)).required()


def entity_scope(entity_type: str, entity_id: str) -> Scope:
    """The scope that an entity is.

    Raises:
        InvalidRequestError: The type is none of user, agent and run.
        ScopeRequiredError: The id is empty or ``*``.
    """
    field = ENTITY_FIELDS.get(entity_type)
    if field is None:
        raise InvalidRequestError(
            "the entity's type must be user, agent or run",
            hint="call DELETE /entities/user/NAME, for example",
        )
    return Scope.of({field: entity_id}).required()


def idempotency_key(
    values: Sequence[str], path: str, scope: Scope, digest: bytes
) -> IdempotencyKey | None:
    """The ``Idempotency-Key`` of a ``POST``, None where the header is absent.

    Args:
        values: The header's values.
        path: The route's path.
        scope: Whose memories the request writes.
        digest: SHA-256 of the body.

    Raises:
        InvalidRequestError: It is repeated, empty, over 255 characters or not visible ASCII.
    """
    if not values:
        return None
    if len(values) > 1 or _IDEMPOTENCY_KEY.fullmatch(values[0]) is None:
        raise InvalidRequestError(
            "Idempotency-Key must be one value of 1 to 255 visible ASCII characters",
            hint="use a UUID",
        )
    return IdempotencyKey(values[0], "POST", path, _canonical(scope.as_dict()).decode(), digest)


# ------------------------------------------------------------------ parts


def _validate(adapter: TypeAdapter[_Body], raw: dict[str, Any]) -> _Body:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the request body"
        reason = first["msg"]
        more = error.error_count() - 1
        raise InvalidRequestError(
            f"{place}: {reason[:1].lower()}{reason[1:]}" + (f" (and {more} more)" if more else ""),
            hint="see /docs for what this route takes",
        ) from None


def _item(item: ItemIn, place: str, settings: Settings) -> NewMemory:
    _check_text(item.memory, f"{place}.memory", settings)
    if item.id is not None and _UUID.fullmatch(item.id) is None:
        raise InvalidRequestError(
            f"{place}.id is no UUID", hint="leave id out, and the memory gets a new one"
        )
    try:
        scope = _scope(item)
    except InvalidRequestError as error:
        raise type(error)(f"{place}: {error.message}", hint=error.hint) from None
    created = _time(item.created_at, f"{place}.created_at")
    memory_id = item.id and str(uuid.UUID(item.id))
    history: list[HistoryEntry] = []
    for number, entry in enumerate(item.history or ()):
        where = f"{place}.history.{number}"
        for name, text in (("old_memory", entry.old_memory), ("new_memory", entry.new_memory)):
            if text is not None:
                _check_length(text, f"{where}.{name}", settings)
        at = _time(entry.updated_at or entry.created_at, f"{where}.updated_at")
        history.append(
            HistoryEntry(
                id=entry.id or str(uuid.uuid4()),
                memory_id=memory_id or "",
                event=entry.event,
                old_text=entry.old_memory,
                new_text=entry.new_memory,
                at=at if at is not None else created or 0,
            )
        )
    return NewMemory(
        text=item.memory,
        scope=scope,
        metadata=_metadata(item.metadata, f"{place}.metadata"),
        expiration_date=_date(item.expiration_date, f"{place}.expiration_date"),
        id=memory_id,
        created_at=created,
        updated_at=_time(item.updated_at, f"{place}.updated_at"),
        history=history,
        supersedes=_ids(item.supersedes),
        superseded_by=_ids(item.superseded_by),
    )


def _ids(sent: Sequence[str] | None) -> list[str]:
    """The ids in their usual form; what is none is no id of a memory, and so unknown."""
    return [str(uuid.UUID(id_)) for id_ in sent or () if _UUID.fullmatch(id_)]


def _optional_scope(sent: AddIn | ItemIn | SearchIn) -> Scope:
    return Scope.of({"user_id": sent.user_id, "agent_id": sent.agent_id, "run_id": sent.run_id})


def _scope(sent: AddIn | ItemIn) -> Scope:
    return _optional_scope(sent).required()


def _merge(outer: Scope, inner: Scope) -> Scope:
    if not outer:
        return inner
    ids = inner.as_dict()
    for name, value in outer.as_dict().items():
        if ids.setdefault(name, value) != value:
            raise InvalidRequestError(
                f"{name} says one thing in filters and another beside it",
                hint=f"give {name} once, in filters",
            )
    return Scope(**ids)


def _once(parameters: Sequence[tuple[str, str]]) -> dict[str, str]:
    known = (*SCOPE_FIELDS, "top_k", "cursor", "show_expired")
    given: dict[str, str] = {}
    for name, value in parameters:
        if name not in known:
            continue
        if name in given:
            raise InvalidRequestError(
                f"{name} came more than once", hint=f"give {name} once; make one request for each"
            )
        given[name] = value
    return given


def _check_count(count: int, name: str, settings: Settings) -> None:
    if count > settings.max_messages:
        raise TooLargeError(
            f"{name} has {count} items, more than {settings.max_messages}",
            hint="send fewer at once, or start the server with a larger --max-messages",
        )


def _check_length(text: str, name: str, settings: Settings) -> None:
    if len(text) > settings.max_text_length:
        raise TooLargeError(
            f"{name} has {len(text)} characters, more than {settings.max_text_length}",
            hint="split the text, or start the server with a larger --max-text-length",
        )


def _check_text(text: str, name: str, settings: Settings) -> None:
    _check_length(text, name, settings)
    if not text.strip():
        raise InvalidRequestError(
            f"{name} has nothing but white space", hint=f"put some words into {name}"
        )


def _metadata(metadata: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if not metadata:
        return {}
    _check_numbers(metadata, name)
    return metadata


def _check_numbers(value: Any, name: str) -> None:
    """Refuse what other readers of JSON, SQLite among them, would silently change."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidRequestError(
                f"{name} has an integer of more than 64 bits", hint="send it as a string"
            )
        elif isinstance(value, float) and value - value != 0:
            # 1e999 is good JSON and reads as infinity.
            raise InvalidRequestError(
                f"{name} has a number that is too large", hint="send it as a string"
            )


def _date(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidRequestError(
        f"{name} is no date of the form YYYY-MM-DD", hint=f'send "{name}": "2030-12-31"'
    )


def _time(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # Through UTC, so that what cannot be written there is refused here.
        return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"{name} is no time in ISO 8601",
            hint='send it like "2026-01-31T12:00:00.000000+00:00"',
        ) from None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(raw: dict[str, Any]) -> bytes:
    return hashlib.sha256(_canonical(raw)).digest()
