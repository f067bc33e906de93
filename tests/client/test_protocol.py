"""The rules of an exchange, driven step by step: no I/O, and no pause is slept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.client import protocol
from pikuri_memory.client.protocol import Failure, Outgoing, Pause, Reply, Request, Session
from pikuri_memory.client.replies import Entity, Health, HistoryEntry, Page
from pikuri_memory.errors import (
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    ServerUnavailableError,
    UnexpectedReplyError,
)
from pikuri_memory.record import UNSET, Record

T = TypeVar("T")

ENDPOINT = "http://127.0.0.1:8888"
KEY = "k-3f9c0e7a51d84b62"
NOBODY: Any = {"user_id": None, "agent_id": None, "run_id": None}
ADA: Any = {**NOBODY, "user_id": "ada"}
LOST = Failure("lost", "the connection was lost")
REFUSED = Failure("connect", "connection refused")


def add() -> Request[list[Record]]:
    return protocol.add(
        "walnuts",
        **ADA,
        metadata=None,
        expiration_date=None,
        infer=None,
        prompt=None,
        idempotency_key=None,
    )


def search() -> Request[list[Record]]:
    return protocol.search(
        "walnuts",
        **ADA,
        filters=None,
        top_k=None,
        threshold=None,
        explain=False,
        show_expired=False,
    )


def listing(cursor: str | None = None) -> Request[Page]:
    return protocol.list_page(**NOBODY, show_expired=False, top_k=10, cursor=cursor)


REQUESTS: dict[str, tuple[Request[Any], type]] = {
    "add": (add(), list),
    "search": (search(), list),
    "list": (listing("c"), Page),
    "get": (protocol.get("1"), Record),
    "update": (protocol.update("1", text="x", metadata=UNSET, expiration_date=UNSET), type(None)),
    "delete": (protocol.delete("1"), type(None)),
    "delete_all": (protocol.delete_all(**ADA), type(None)),
    "history": (protocol.history("1"), list),
    "entities": (protocol.entities(), list),
    "reset": (protocol.reset(), type(None)),
    "health": (protocol.health(), Health),
    "openapi": (protocol.openapi(), Health),
}


def reply(value: Any, status: int = 200, ours: bool = True, **headers: str) -> Reply:
    named = {"content-type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    if ours:
        named["pikuri-memory-version"] = "0.1.0"
    return Reply(status, named, json.dumps(value).encode())


def run(
    session: Session, request: Request[T], outcomes: Iterable[Reply | Failure]
) -> tuple[T, list[Outgoing | Pause]]:
    """Play the sender; what the exchange gave, and every step it took."""
    steps = session.exchange(request)
    left = iter(outcomes)
    taken: list[Outgoing | Pause] = []
    outcome: Reply | Failure | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value, taken
        taken.append(step)
        outcome = next(left) if isinstance(step, Outgoing) else None


def pauses(taken: Iterable[Outgoing | Pause]) -> list[float]:
    return [step.seconds for step in taken if isinstance(step, Pause)]


def test_a_refused_connection_is_tried_again_after_short_pauses() -> None:
    for request, _ in REQUESTS.values():
        session = Session(ENDPOINT, KEY)
        steps = session.exchange(request)
        taken = [next(steps)]
        for outcome in (REFUSED, None, REFUSED, None):
            taken.append(steps.send(outcome))
        assert pauses(taken) == [0.1, 0.3]
        with pytest.raises(ServerUnavailableError):
            steps.send(REFUSED)


def test_the_time_that_a_busy_server_names_is_waited() -> None:
    busy = reply({}, 503, retry_after="2")
    _, taken = run(Session(ENDPOINT, KEY), search(), [busy, busy, reply([])])
    assert pauses(taken) == [2.0, 2.0]


def test_a_busy_reply_without_json_is_an_unavailable_server() -> None:
    busy = Reply(503, {"content-type": "text/plain"}, b"busy")
    with pytest.raises(ServerUnavailableError):
        run(Session(ENDPOINT, KEY), search(), [busy])


@pytest.mark.parametrize("failure", ["garbled", "unusable"])
def test_what_cannot_be_mended_is_not_tried_again(failure: Any) -> None:
    kinds: Mapping[str, type[PikuriMemoryError]] = {
        "garbled": UnexpectedReplyError,
        "unusable": InvalidRequestError,
    }
    with pytest.raises(kinds[failure]) as caught:
        run(Session(ENDPOINT, KEY), search(), [Failure(failure, "because")])
    assert "because" in str(caught.value)
    assert caught.value.hint


def test_a_server_that_is_no_longer_ours_gets_no_addition_twice() -> None:
    session = Session(ENDPOINT, KEY)
    run(session, search(), [reply([])])
    run(session, add(), [LOST, reply([])])
    run(session, search(), [reply([], ours=False)])
    with pytest.raises(ServerUnavailableError):
        run(session, add(), [LOST])


def test_a_delete_is_done_when_its_repetition_finds_nothing() -> None:
    gone = reply({"detail": "no", "code": "not_found"}, 404)
    assert run(Session(ENDPOINT, KEY), protocol.delete("1"), [LOST, gone])[0] is None
    with pytest.raises(MemoryNotFoundError):
        run(Session(ENDPOINT, KEY), protocol.delete("1"), [REFUSED, gone])
    with pytest.raises(MemoryNotFoundError):
        run(Session(ENDPOINT, KEY), REQUESTS["update"][0], [LOST, gone])


def test_a_reply_may_take_thirty_seconds_an_addition_sixty_and_a_connection_five() -> None:
    def times(session: Session, request: Request[Any]) -> tuple[float, float]:
        step = next(session.exchange(request))
        assert isinstance(step, Outgoing)
        return step.connect_seconds, step.read_seconds

    assert times(Session(ENDPOINT, KEY), search()) == (5, 30)
    assert times(Session(ENDPOINT, KEY), add()) == (5, 60)
    assert times(Session(ENDPOINT, KEY, 2.0), add()) == (2, 2)
    assert times(Session(ENDPOINT, KEY, 90.0), search()) == (5, 90)


def sent_keys(taken: Iterable[Outgoing | Pause]) -> list[str | None]:
    return [step.headers.get("X-API-Key") for step in taken if isinstance(step, Outgoing)]


def test_a_source_of_keys_is_asked_lazily_and_at_most_once_a_second() -> None:
    asked: list[float] = []
    times = [10.0]

    def source() -> str | None:
        asked.append(times[-1])
        return KEY

    session = Session(ENDPOINT, source, clock=lambda: times[-1])
    assert asked == []
    for time in (10.0, 10.5, 10.9, 11.0, 11.5):
        times.append(time)
        run(session, search(), [reply([])])
    assert asked == [10.0, 11.0]


def test_a_key_that_its_source_has_withdrawn_is_not_sent_any_more() -> None:
    keys = {0.0: KEY, 5.0: None}
    now = 0.0
    session = Session(ENDPOINT, lambda: keys[now], clock=lambda: now)
    assert sent_keys(run(session, search(), [reply([])])[1]) == [KEY]
    now = 5.0
    assert sent_keys(run(session, search(), [reply([])])[1]) == [None]


def test_a_refused_key_is_looked_up_once_and_anything_is_sent_again_with_the_new_one() -> None:
    refused = reply({"detail": "no", "code": "unauthenticated"}, 401)
    for request, _ in REQUESTS.values():
        if not request.with_key:
            continue
        keys = iter(["old", "new"])
        steps = Session(ENDPOINT, lambda keys=keys: next(keys)).exchange(request)  # type: ignore[misc]
        first = next(steps)
        second = steps.send(refused)
        assert sent_keys([first, second]) == ["old", "new"]
        with pytest.raises(PikuriMemoryError):
            steps.send(refused)


def test_a_key_that_is_still_the_refused_one_is_not_sent_again() -> None:
    refused = reply({"detail": "no"}, 401)
    with pytest.raises(PikuriMemoryError):
        run(Session(ENDPOINT, lambda: KEY), search(), [refused])
    with pytest.raises(PikuriMemoryError):
        run(Session(ENDPOINT, KEY), search(), [refused])


def test_no_representation_shows_key_text_or_query() -> None:
    session = Session(ENDPOINT, KEY)
    for request, _ in REQUESTS.values():
        outgoing = next(session.exchange(request))
        for shown in (repr(session), repr(request), repr(outgoing), repr(reply(["walnuts"]))):
            assert KEY not in shown
            assert "walnuts" not in shown
            assert "ada" not in shown


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("http://127.0.0.1:8888/", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:8888", True),
        ("http://localhost:8888", True),
        ("https://memory.example", False),
        ("http://127.0.0.1.example:1", False),
        ("http://10.0.0.1", False),
    ],
)
def test_hints_name_commands_of_this_machine_for_this_machine_only(
    endpoint: str, loopback: bool
) -> None:
    session = Session(endpoint, KEY)
    assert session.endpoint == endpoint.rstrip("/")
    with pytest.raises(ServerUnavailableError) as caught:
        run(session, search(), [REFUSED] * 3)
    assert ("pikuri-memory up" in caught.value.hint) == loopback


# -- anything may come back -------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(lambda at: at.isoformat())
FIELDS = {
    "id": st.text(min_size=1),
    "memory": st.text(),
    "score": st.floats(0, 1),
    "created_at": TIMES,
    "updated_at": TIMES,
    "metadata": st.dictionaries(st.text(), JSON, max_size=3),
    "event": st.sampled_from(["ADD", "UPDATE", "DELETE", "NONE"]),
    "user_id": st.text(),
    "expiration_date": st.dates().map(lambda day: day.isoformat()),
    "explanation": st.dictionaries(st.text(), st.floats(), max_size=2),
    "memory_id": st.text(min_size=1),
    "old_memory": st.text(),
    "new_memory": st.text(),
    "type": st.sampled_from(["user", "agent", "run"]),
    "total_memories": st.integers(),
    "status": st.text(),
    "server": st.text(),
    "version": st.text(),
    "openapi": st.text(),
    "info": st.dictionaries(st.sampled_from(["title", "version"]), st.text()),
    "next": st.text(),
    "detail": st.text() | st.lists(JSON, max_size=2),
    "hint": st.text(),
    "code": st.text() | st.sampled_from(["not_found", "error", "timeout", "forbidden"]),
}
# Rows that are right, or nearly: now and then a field has any value at all.
ROWS = st.fixed_dictionaries(
    {}, optional={name: st.one_of(right, right, right, JSON) for name, right in FIELDS.items()}
)
PAYLOADS = (
    JSON
    | ROWS
    | st.lists(ROWS, max_size=3)
    | st.fixed_dictionaries({"results": st.lists(ROWS, max_size=3)}, optional={"next": JSON})
)
STATUS = st.sampled_from([200, 201, 204, 301, 400, 401, 404, 405, 409, 422, 500, 502, 503, 599])


def check(session: Session, name: str, answer: Reply) -> None:
    request, kind = REQUESTS[name]
    failed: PikuriMemoryError | None
    try:
        value, _ = run(session, request, [answer] * 5)
    except PikuriMemoryError as error:
        failed = error
    else:
        failed = None
    if failed is not None:
        assert failed.hint
        assert str(failed).isprintable()
        assert failed.__context__ is None
        return
    assert isinstance(value, kind)
    rows = value.records if isinstance(value, Page) else value
    if isinstance(rows, list):
        assert all(isinstance(row, Record | HistoryEntry | Entity) for row in rows)
    if isinstance(value, Page):
        # The next request can be built from it.
        next(session.exchange(listing(value.next)))


@given(st.sampled_from(sorted(REQUESTS)), PAYLOADS, STATUS, st.booleans())
def test_any_json_gives_records_or_a_typed_error(
    name: str, payload: Any, status: int, ours: bool
) -> None:
    check(Session(ENDPOINT, KEY), name, reply(payload, status, ours))


@given(
    st.sampled_from(sorted(REQUESTS)),
    st.binary(),
    STATUS,
    st.dictionaries(
        st.sampled_from(["content-type", "retry-after", "location"]),
        st.text() | st.sampled_from(["application/json", "application/problem+json", "0", "nan"]),
    ),
)
def test_any_bytes_under_any_headers_give_a_value_or_a_typed_error(
    name: str, body: bytes, status: int, headers: dict[str, str]
) -> None:
    check(Session(ENDPOINT, KEY), name, Reply(status, headers, body))


@given(st.text(), st.sampled_from([400, 401, 403, 404, 422, 500]))
def test_the_key_never_shows_in_an_error_whatever_is_around_it(around: str, status: int) -> None:
    said = {"detail": around + KEY + around, "hint": KEY * 40}
    with pytest.raises(PikuriMemoryError) as caught:
        run(Session(ENDPOINT, KEY), search(), [reply(said, status)])
    assert KEY[:10] not in str(caught.value) + caught.value.hint
