"""The protocol without its I/O: requests as values, and what follows from each reply.

A function for each thing that a server can be asked makes a :class:`Request`. A :class:`Session`
(one per client) turns it into a generator of steps; a sender carries the steps out: it transmits
an :class:`Outgoing` and sends back a :class:`Reply` or a :class:`Failure`, sleeps for a
:class:`Pause`, and gets the decoded value, or a typed error, at the end. The synchronous and the
asynchronous sender are a few lines each, and every rule about keys, retries and errors is here.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from pikuri_memory.client import replies
from pikuri_memory.client.replies import Entity, Health, HistoryEntry, Page, ShapeError
from pikuri_memory.errors import (
    AuthenticationError,
    InvalidRequestError,
    MemoryNotFoundError,
    ModelError,
    PikuriMemoryError,
    ScopeRequiredError,
    ServerUnavailableError,
    UnexpectedReplyError,
    error_for,
)
from pikuri_memory.record import SCOPE_FIELDS, UNSET, Matches, Record, Scope, Unset

T = TypeVar("T")

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:8888"
VERSION_HEADER: Final = "pikuri-memory-version"
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
ADD_SECONDS: Final = 60.0
UNKNOWN_ADD_SECONDS: Final = 660.0  # mem0's server does not tell how long its model may take
PAGE_SIZE: Final = 1000  # the most that mem0's newer servers take
PAUSES: Final = (0.1, 0.3)  # seconds before the second and the third try
LONGEST_RETRY_AFTER: Final = 5.0
# The key is read again this often, so that it is not sent on and on to whatever takes the port
# after our server has left it.
KEY_SECONDS: Final = 1.0
_LONGEST_DETAIL: Final = 500
_SHORTEST_SECRET: Final = 8

KeySource: TypeAlias = Callable[[], str | None]
Retry: TypeAlias = Literal["safe", "keyed", "never"]
When: TypeAlias = datetime | str

log = logging.getLogger(__name__)


# -- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request(Generic[T]):
    """One thing to ask a server.

    Attributes:
        method: HTTP method.
        path: Path below the endpoint, quoted.
        decode: Makes the value of the reply's JSON; raises ``ShapeError`` or a typed error.
        params: Query parameters.
        json: The body; UNSET for none.
        headers: Further headers.
        retry: Whether it may be sent again when its reply was lost: ``safe`` always, ``keyed`` to
            a server that is known to honour its Idempotency-Key, ``never`` not.
        slow: Whether the server may work on it for long (models).
        with_key: Whether the API key goes with it.
        gone: The value where a repetition meets 404, because the lost first try was carried out.
    """

    method: str
    path: str
    decode: Callable[[Any], T]
    params: Mapping[str, str] = field(default_factory=dict, repr=False)
    json: Any = field(default=UNSET, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    retry: Retry = "safe"
    slow: bool = False
    with_key: bool = True
    gone: T | Unset = UNSET


@dataclass(frozen=True)
class Outgoing:
    """What a sender transmits. Times in seconds; headers and content never show in a repr."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)
    connect_seconds: float
    read_seconds: float


@dataclass(frozen=True)
class Pause:
    """A sender waits this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """What a server answered; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def content_type(self) -> str:
        """The media type without parameters; ``no content type`` where there is none."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip()
        return media_type or "no content type"


@dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    Attributes:
        kind: ``connect``: nothing was sent; ``lost``: the request may have been carried out;
            ``garbled``: a reply that cannot be read; ``unusable``: it cannot be sent at all.
        reason: For a person; never part of a request.
    """

    kind: Literal["connect", "lost", "garbled", "unusable"]
    reason: str


Steps: TypeAlias = Generator[Outgoing | Pause, Reply | Failure | None, T]


# -- requests -------------------------------------------------------------------------------------


def add_messages(
    messages: Sequence[Mapping[str, str]],
    *,
    user_id: str | None,
    agent_id: str | None,
    run_id: str | None,
    metadata: Mapping[str, Any] | None,
    expiration_date: date | str | None,
    infer: bool | None,
    prompt: str | None,
    idempotency_key: str | None,
) -> Request[list[Record]]:
    """``POST /memories``."""
    if isinstance(messages, str | Mapping):
        raise InvalidRequestError(
            f"messages must be a list, not {type(messages).__name__}",
            hint='use add(text), or add_messages([{"role": "user", "content": "..."}])',
        )
    body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
    body |= _scope(user_id, agent_id, run_id).required().as_dict()
    optional = {
        "metadata": None if metadata is None else dict(metadata),
        "expiration_date": None if expiration_date is None else _day(expiration_date),
        "infer": infer,
        "prompt": prompt,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    return _addition("/memories", body, idempotency_key)


def add(text: str, **options: Any) -> Request[list[Record]]:
    """``POST /memories`` with one message of the user's."""
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"the text must be text, not {type(text).__name__}",
            hint="use add_messages for a list of messages",
        )
    return add_messages([{"role": "user", "content": text}], **options)


def add_batch(
    memories: Iterable[Mapping[str, object]], *, idempotency_key: str | None
) -> Request[list[Record]]:
    """``POST /memories/batch``, which only our own server has."""
    return _addition(
        "/memories/batch", {"memories": [_item(item) for item in memories]}, idempotency_key
    )


def search(
    query: str,
    *,
    user_id: str | None,
    agent_id: str | None,
    run_id: str | None,
    filters: Mapping[str, Any] | None,
    top_k: int | None,
    threshold: float | None,
    explain: bool,
    show_expired: bool,
) -> Request[Matches]:
    """``POST /search``."""
    merged = dict(filters or {})
    for name, value in _scope(user_id, agent_id, run_id).as_dict().items():
        if merged.setdefault(name, value) != value:
            raise InvalidRequestError(
                f"{name} and filters[{name!r}] differ",
                hint=f"give {name} once",
            )
    if not merged:
        Scope().required()
    body: dict[str, Any] = {"query": query, "filters": merged}
    optional = {"top_k": top_k, "threshold": threshold}
    body |= {name: value for name, value in optional.items() if value is not None}
    flags = {"explain": explain, "show_expired": show_expired}
    body |= {name: True for name, given in flags.items() if given}
    return Request("POST", "/search", replies.matches, json=body)


def list_page(
    *,
    user_id: str | None,
    agent_id: str | None,
    run_id: str | None,
    show_expired: bool,
    top_k: int | None,
    cursor: str | None,
) -> Request[Page]:
    """``GET /memories``: one page of a scope, or of everything."""
    if top_k is not None and top_k < 1:
        raise InvalidRequestError(f"cannot list {top_k} memories", hint="give a number from 1 on")
    params = _scope(user_id, agent_id, run_id).as_dict()
    if top_k is not None:
        params["top_k"] = str(top_k)
    if show_expired:
        params["show_expired"] = "true"
    if cursor is not None:
        params["cursor"] = cursor
    return Request("GET", "/memories", lambda payload: replies.page(payload, cursor), params=params)


def get(memory_id: str) -> Request[Record]:
    """``GET /memories/{id}``."""

    def decode(payload: object) -> Record:
        if payload is None:  # mem0's server answers 200 and null
            raise _no_memory(memory_id)
        return replies.record(payload)

    return Request("GET", _memory_path(memory_id), decode)


def update(
    memory_id: str,
    *,
    text: str | Unset,
    metadata: Mapping[str, Any] | Unset,
    expiration_date: date | str | Unset | None,
) -> Request[None]:
    """``PUT /memories/{id}``."""
    body: dict[str, Any] = {}
    if not isinstance(text, Unset):
        body["text"] = text
    if not isinstance(metadata, Unset):
        body["metadata"] = dict(metadata)
    if not isinstance(expiration_date, Unset):
        body["expiration_date"] = None if expiration_date is None else _day(expiration_date)
    if not body:
        raise InvalidRequestError(
            "an update that changes nothing",
            hint="give text=..., metadata=... or expiration_date=...",
        )
    return Request("PUT", _memory_path(memory_id), replies.done, json=body)


def delete(memory_id: str) -> Request[None]:
    """``DELETE /memories/{id}``."""
    return Request("DELETE", _memory_path(memory_id), replies.done, gone=None)


def delete_all(*, user_id: str | None, agent_id: str | None, run_id: str | None) -> Request[None]:
    """``DELETE /memories`` for a scope, which must name something."""
    scope = _scope(user_id, agent_id, run_id).required()
    return Request("DELETE", "/memories", replies.done, params=scope.as_dict())


def history(memory_id: str) -> Request[list[HistoryEntry]]:
    """``GET /memories/{id}/history``."""
    return Request("GET", _memory_path(memory_id) + "/history", replies.history)


def entities() -> Request[list[Entity]]:
    """``GET /entities``."""
    return Request("GET", "/entities", replies.entities)


def reset() -> Request[None]:
    """``POST /reset``."""
    # With a body, because ours takes no POST without a JSON content type.
    return Request("POST", "/reset", replies.done, json={}, retry="never")


def health() -> Request[Health]:
    """``GET /health``; without the key, which it does not need."""
    return Request("GET", "/health", replies.health, with_key=False)


def openapi() -> Request[Health]:
    """``GET /openapi.json``: what to ask a server that has no ``/health``."""
    return Request("GET", "/openapi.json", replies.openapi, with_key=False)


def _addition(path: str, body: object, idempotency_key: str | None) -> Request[list[Record]]:
    key = secrets.token_hex(16) if idempotency_key is None else idempotency_key
    if not isinstance(key, str) or not _is_header_value(key):
        raise InvalidRequestError(
            "the idempotency key is not plain ASCII without spaces",
            hint="use a random one such as uuid.uuid4().hex",
        )
    headers = {"Idempotency-Key": key}
    return Request(
        "POST", path, replies.records, json=body, headers=headers, retry="keyed", slow=True
    )


def _item(item: Mapping[str, object]) -> dict[str, object]:
    known = {"id", "text", "metadata", "created_at", "updated_at", "expiration_date", "history"}
    known |= {"supersedes", "superseded_by"}
    if unknown := sorted(set(item) - known - set(SCOPE_FIELDS)):
        raise InvalidRequestError(
            f"unknown fields in a memory: {', '.join(map(str, unknown))}",
            hint="known fields: " + ", ".join(sorted(known | set(SCOPE_FIELDS))),
        )
    given = {name: value for name, value in item.items() if value is not None}
    result: dict[str, object] = Scope.of(given).required().as_dict() | {
        # The server takes memories in the shape in which it shows them.
        "memory" if name == "text" else name: value
        for name, value in given.items()
        if name not in SCOPE_FIELDS
    }
    for name in ("created_at", "updated_at"):
        if name in result:
            result[name] = _moment(result[name])
    if "expiration_date" in result:
        result["expiration_date"] = _day(result["expiration_date"])
    changes = result.get("history")
    if isinstance(changes, Iterable) and not isinstance(changes, str | Mapping):
        result["history"] = [_change(change) for change in changes]
    return result


def _change(change: object) -> object:
    if isinstance(change, HistoryEntry):
        change = {
            "id": change.id,
            "event": change.event,
            "old_memory": change.old_text,
            "new_memory": change.new_text,
            "created_at": change.at,
        }
    if isinstance(change, Mapping):
        return {
            name: _moment(value) if isinstance(value, datetime) else value
            for name, value in change.items()
        }
    return change


def _scope(user_id: str | None, agent_id: str | None, run_id: str | None) -> Scope:
    return Scope.of({"user_id": user_id, "agent_id": agent_id, "run_id": run_id})


def _moment(value: object) -> object:
    if not isinstance(value, datetime):
        return value  # text: the server judges it
    if value.tzinfo is None:
        raise InvalidRequestError(
            "a time has no time zone", hint="use datetime.now(timezone.utc) or .astimezone()"
        )
    return value.isoformat()


def _day(value: object) -> object:
    if isinstance(value, datetime):
        # The day in UTC, because that is the day an expiration date means.
        value = (value if value.tzinfo is None else value.astimezone(UTC)).date()
    return value.isoformat() if isinstance(value, date) else value


def _memory_path(memory_id: str) -> str:
    # What is no single segment of a path would reach another route; there is no such memory.
    if not isinstance(memory_id, str):
        raise InvalidRequestError(
            f"a memory id must be text, not {type(memory_id).__name__}", hint="use str(id)"
        )
    if memory_id in ("", ".", "..") or "/" in memory_id or not memory_id.isprintable():
        raise _no_memory(memory_id)
    return "/memories/" + quote(memory_id, safe="")


def _no_memory(memory_id: str) -> MemoryNotFoundError:
    return MemoryNotFoundError(
        f"there is no memory {_clean(memory_id)!r}", hint="`pikuri-memory list` shows the ids"
    )


# -- exchanges ------------------------------------------------------------------------------------


class Session:
    """What a client knows about the server it talks to; shared by all of its requests.

    Args:
        endpoint: ``http://`` or ``https://`` URL, without user name, query and fragment.
        api_key: The key; or where to get it, asked again every second and after a 401; or None:
            the key of the local server, if that is what answers at the endpoint.
        timeout: Seconds to wait for a reply; None is 30, and for additions what the server says
            that they may take, asked before the first one.
        clock: Monotonic seconds.

    Raises:
        InvalidRequestError: An argument cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        api_key: str | KeySource | None = None,
        timeout: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self.loopback = _checked_endpoint(endpoint)
        if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
            raise InvalidRequestError(
                f"the timeout of {timeout} seconds is impossible", hint="use a number such as 30"
            )
        self._timeout = timeout
        self._clock = clock
        self._source: KeySource | None = None
        self._key: str | None = None
        self._key_until = math.inf
        # Whether the last reply came from our own server, which honours Idempotency-Key.
        self._ours = False
        # What an addition may take; None where it is not known (any more).
        self._add_seconds: float | None = None
        if isinstance(api_key, str):
            self._key = _checked_key(api_key)
        else:
            self._source = api_key or self._find_key
            self._key_until = -math.inf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    def exchange(self, request: Request[T]) -> Steps[T]:
        """The steps that lead to the value of ``request``.

        Raises:
            PikuriMemoryError: The class that fits, with a hint.
        """
        content = _encode(request.json)
        pauses = iter(PAUSES)
        lost = renewed = False
        if request.slow and self._timeout is None and self._add_seconds is None:
            self._learn((yield self._outgoing(health(), None, None)))
        while True:
            key = self._current_key() if request.with_key else None
            outcome = yield self._outgoing(request, key, content)
            if isinstance(outcome, Failure):
                lost = lost or outcome.kind == "lost"
                pause = next(pauses, None)
                if pause is None or not self._may_repeat(request, outcome):
                    self._add_seconds = None  # the next server there may need another time
                    raise self._unavailable(request, outcome)
                log.info("%s: %s; trying again", self.endpoint, outcome.reason)
                yield Pause(pause)
                continue
            assert outcome is not None  # a sender answers an Outgoing with an outcome
            self._ours = VERSION_HEADER in outcome.headers
            if outcome.status == 401 and request.with_key and not renewed:
                # The key may have been rotated. Nothing was carried out, so anything may go again.
                renewed = True
                if self._renew_key(key):
                    continue
            if outcome.status == 404 and lost and not isinstance(request.gone, Unset):
                return request.gone
            if outcome.status == 503 and self._may_repeat(request, outcome):
                wait = _retry_after(outcome)
                if wait is not None and next(pauses, None) is not None:
                    log.info("%s is busy; trying again in %g s", self.endpoint, wait)
                    yield Pause(wait)
                    continue
            return self._value(request, outcome, key)

    def _outgoing(self, request: Request[Any], key: str | None, content: bytes | None) -> Outgoing:
        headers = {"Accept": "application/json", **request.headers}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["X-API-Key"] = key
        query = "?" + urlencode(request.params) if request.params else ""
        read = READ_SECONDS
        if request.slow:
            read = UNKNOWN_ADD_SECONDS if self._add_seconds is None else self._add_seconds
        return Outgoing(
            method=request.method,
            url=self.endpoint + request.path + query,
            headers=headers,
            content=content,
            connect_seconds=min(CONNECT_SECONDS, self._timeout or CONNECT_SECONDS),
            read_seconds=self._timeout or read,
        )

    def _learn(self, outcome: Reply | Failure | None) -> None:
        """Take in whose server it is and how long an addition may take, from ``GET /health``."""
        if not isinstance(outcome, Reply):
            return
        self._ours = VERSION_HEADER in outcome.headers
        self._add_seconds = UNKNOWN_ADD_SECONDS
        if outcome.status == 200 and self._ours:
            told = _json(outcome)
            seconds = told.get("add_seconds") if isinstance(told, dict) else None
            self._add_seconds = ADD_SECONDS
            if isinstance(seconds, int | float) and ADD_SECONDS < seconds < math.inf:
                self._add_seconds = float(seconds)

    def _may_repeat(self, request: Request[Any], outcome: Reply | Failure) -> bool:
        if isinstance(outcome, Failure) and outcome.kind != "lost":
            return outcome.kind == "connect"
        if isinstance(outcome, Reply) and _is_of_models(outcome):
            # The server has waited as long as that could help; more is for the caller to decide.
            return False
        return request.retry == "safe" or (request.retry == "keyed" and self._ours)

    # -- key --

    def _find_key(self) -> str | None:
        from pikuri_memory.discovery import key_for_endpoint

        return key_for_endpoint(self.endpoint)

    def _current_key(self) -> str | None:
        if self._source is not None and self._clock() >= self._key_until:
            found = self._source()
            self._key = None if found is None else _checked_key(found)
            self._key_until = self._clock() + KEY_SECONDS
        return self._key

    def _renew_key(self, refused: str | None) -> bool:
        """Look the key up again; whether there is now another than the refused one."""
        self._key_until = -math.inf if self._source is not None else math.inf
        return self._current_key() not in (refused, None)

    # -- replies --

    def _value(self, request: Request[T], reply: Reply, key: str | None) -> T:
        payload = _json(reply)
        if 200 <= reply.status < 300 and not isinstance(payload, Unset):
            try:
                return request.decode(payload)
            except ShapeError as error:
                problem = str(error)
            raise self._unexpected(reply, problem, key)
        if reply.status < 400:
            redirect = 300 <= reply.status < 400
            problem = "redirects are not followed" if redirect else "that is not JSON"
            raise self._unexpected(reply, problem, key)
        if isinstance(payload, dict) or reply.status == 503:
            raise self._error(request, reply, payload if isinstance(payload, dict) else {}, key)
        raise self._unexpected(reply, "that is no error of this protocol", key)

    def _error(
        self, request: Request[Any], reply: Reply, payload: Mapping[str, Any], key: str | None
    ) -> PikuriMemoryError:
        code = payload.get("code")
        kind = error_for(code if isinstance(code, str) else None, reply.status)
        detail = _said(_detail(payload.get("detail")), key)
        hint = _said(payload.get("hint"), key)
        if request.path == "/memories/batch" and reply.status in (404, 405) and not self._ours:
            detail, hint = "it has no batches", "add one memory at a time with add()"
        if not detail:
            detail = f"it answered {request.method} {request.path} with status {reply.status}"
        # Our own server's words stand by themselves; of another one, say whose they are.
        message = detail if self._ours else f"{self.endpoint}: {detail}"
        error = kind(message, hint=hint or self._default_hint(kind))
        error.retry_after = _told_seconds(reply)
        return error

    def _default_hint(self, kind: type[PikuriMemoryError]) -> str:
        if issubclass(kind, AuthenticationError):
            return (
                "give api_key=...; the key of a server started by `pikuri-memory up` is found by"
                " itself"
            )
        if issubclass(kind, ScopeRequiredError):
            return "give user_id=..., agent_id=... or run_id=..."
        if issubclass(kind, MemoryNotFoundError):
            return "`pikuri-memory list` shows the ids"
        if issubclass(kind, InvalidRequestError):
            return "correct the call and try again"
        if issubclass(kind, ModelError):
            return "see whether the model endpoint runs and has the models, then try again"
        return self._server_hint()

    def _server_hint(self) -> str:
        if self.loopback:
            return "`pikuri-memory up` starts a server, `pikuri-memory status` tells how it is"
        return f"see whether a server runs at {self.endpoint}, and its log"

    def _unexpected(self, reply: Reply, problem: str, key: str | None) -> UnexpectedReplyError:
        content_type = _said(reply.content_type, key)
        return UnexpectedReplyError(
            f"{self.endpoint} answered with status {reply.status} and {content_type}: {problem}",
            hint="check that the endpoint is a memory server: "
            + ("`pikuri-memory status` tells where yours is" if self.loopback else self.endpoint),
        )

    def _unavailable(self, request: Request[Any], failure: Failure) -> PikuriMemoryError:
        if failure.kind == "unusable":
            return InvalidRequestError(
                f"nothing can be sent to {self.endpoint}: {failure.reason}",
                hint=f"check the endpoint; it is usually {DEFAULT_ENDPOINT}",
            )
        if failure.kind == "garbled":
            return UnexpectedReplyError(
                f"{self.endpoint} sent a reply that cannot be read: {failure.reason}",
                hint="check that the endpoint is a memory server",
            )
        message = f"no server answers at {self.endpoint}: {failure.reason}"
        if failure.kind == "lost":
            message = f"{self.endpoint} did not answer {request.method}: {failure.reason}"
            if request.retry != "safe":
                message += " (it may have been carried out)"
        return ServerUnavailableError(message, hint=self._server_hint())


def _checked_endpoint(endpoint: str) -> tuple[str, bool]:
    """The endpoint without a slash at its end, and whether it is this machine's loopback."""
    problem = ""
    host = ""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        problem = "it cannot be read"
    else:
        if parts.scheme not in ("http", "https") or not host:
            problem = "it is no http:// or https:// URL with a host"
        elif "@" in parts.netloc:
            problem = "it has a user name or a password in it; the key goes into api_key"
        elif parts.query or parts.fragment or "?" in endpoint or "#" in endpoint:
            problem = "it has a query or a fragment"
        elif not endpoint.isprintable() or " " in endpoint or "\\" in endpoint:
            problem = "it has a space, a backslash or a control character in it"
    if problem:
        # Without the endpoint itself: a password could be in it.
        raise InvalidRequestError(
            f"the endpoint cannot be used: {problem}", hint=f"use one such as {DEFAULT_ENDPOINT}"
        )
    return endpoint.rstrip("/"), _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _checked_key(key: object) -> str:
    if isinstance(key, str) and _is_header_value(key):
        return key
    raise InvalidRequestError(
        "the API key is not plain ASCII without spaces",
        hint="give the text of the key file, without the end of its line",
    )


def _is_header_value(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable() and " " not in value


def _encode(body: object) -> bytes | None:
    if isinstance(body, Unset):
        return None
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode()
    except UnicodeEncodeError:
        problem = "a text has half of a surrogate pair in it"
    except (TypeError, ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    # Outside of the except: the exception that holds the text must not travel with this one.
    raise InvalidRequestError(
        f"the request is not valid JSON: {problem}",
        hint="use text, finite numbers, true, false, null, lists and objects",
    )


def _json(reply: Reply) -> Any:
    """What the body says; UNSET where it is no JSON or does not claim to be."""
    media_type = reply.content_type.lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        return UNSET
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return UNSET


def _detail(detail: object) -> str:
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list):  # FastAPI's validation errors; their `input` holds texts
        problems = []
        for problem in detail:
            if isinstance(problem, dict) and isinstance(problem.get("msg"), str):
                where = problem.get("loc")
                where = ".".join(map(str, where)) if isinstance(where, list) else ""
                problems.append(f"{where}: {problem['msg']}" if where else problem["msg"])
        return "; ".join(problems)
    return ""


def _clean(text: str) -> str:
    """One line of bounded length that does nothing to a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * _LONGEST_DETAIL]).strip()
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"


def _said(text: object, key: str | None) -> str:
    """A server's words, fit to be shown; a key that it echoes is taken out."""
    if not isinstance(text, str):
        return ""
    # A shorter one is no secret, and may be a word of the message: "the key is wrong".
    if key is not None and len(key) >= _SHORTEST_SECRET:
        text = text.replace(key, "[key]")
    return _clean(text)


def _is_of_models(reply: Reply) -> bool:
    """Whether a reply is an error of the user's models, which stand behind the server."""
    payload = _json(reply)
    code = payload.get("code") if isinstance(payload, dict) else None
    return isinstance(code, str) and issubclass(error_for(code, reply.status), ModelError)


def _told_seconds(reply: Reply) -> float | None:
    """What ``Retry-After`` says in seconds; None where it says nothing that can be read."""
    try:
        seconds = float(reply.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _retry_after(reply: Reply) -> float | None:
    """Seconds to wait; None where the server names no time, or one that is too long."""
    seconds = _told_seconds(reply)
    return seconds if seconds is not None and seconds <= LONGEST_RETRY_AFTER else None
