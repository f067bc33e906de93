"""The rules of an exchange, driven step by step: no I/O, and no pause is slept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.client import protocol
from pikuri_memory.client.protocol import Failure, Outgoing, Pause, Reply, Request, Session, Steps
from pikuri_memory.client.replies import Entity, Health, HistoryEntry, Page
from pikuri_memory.errors import (
    EmbedderUnavailableError,
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    ServerUnavailableError,
    UnexpectedReplyError,
)
from pikuri_memory.record import UNSET, Degraded, Matches, Record

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


def search() -> Request[Matches]:
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
        if isinstance(step, Outgoing) and asks_for_time(request, step):
            outcome = reply({"status": "ok", "server": "another"}, ours=False)
            continue
        taken.append(step)
        outcome = next(left) if isinstance(step, Outgoing) else None


def asks_for_time(request: Request[Any], step: Outgoing | Pause) -> bool:
    """Whether a step asks how long an addition may take, before the addition itself."""
    return isinstance(step, Outgoing) and step.url.endswith("/health") and request.slow


def begun(session: Session, request: Request[T]) -> tuple[Steps[T], Outgoing | Pause]:
    """The steps of a request, and the first that is its own."""
    steps = session.exchange(request)
    first = next(steps)
    if asks_for_time(request, first):
        first = steps.send(REFUSED)
    return steps, first


def pauses(taken: Iterable[Outgoing | Pause]) -> list[float]:
    return [step.seconds for step in taken if isinstance(step, Pause)]


def test_a_refused_connection_is_tried_again_after_short_pauses() -> None:
    for request, _ in REQUESTS.values():
        steps, first = begun(Session(ENDPOINT, KEY), request)
        taken = [first]
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
    run(session, add(), [reply([])])
    run(session, add(), [LOST, reply([])])
    run(session, search(), [reply([], ours=False)])
    with pytest.raises(ServerUnavailableError):
        run(session, add(), [LOST])


def test_the_first_addition_to_our_server_that_is_lost_is_sent_again() -> None:
    steps = Session(ENDPOINT, KEY).exchange(add())
    next(steps)
    first = steps.send(reply({"status": "ok", "server": "pikuri-memory", "version": "1"}))
    assert steps.send(LOST) == Pause(0.1)
    assert steps.send(None) == first
    with pytest.raises(StopIteration) as end:
        steps.send(reply([]))
    assert end.value.value == []


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
    assert times(Session(ENDPOINT, KEY, 2.0), add()) == (2, 2)
    assert times(Session(ENDPOINT, KEY, 90.0), search()) == (5, 90)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (reply({"status": "ok", "server": "pikuri-memory", "version": "1"}), 60),
        (reply({"status": "ok", "server": "pikuri-memory", "add_seconds": 900.5}), 900.5),
        (reply({"status": "ok", "server": "pikuri-memory", "add_seconds": 3}), 60),
        (reply({"status": "ok", "server": "pikuri-memory", "add_seconds": "x"}), 60),
        (reply({"detail": "Not Found"}, 404, ours=False), 660),
        (reply({"status": "ok", "add_seconds": 1}, ours=False), 660),
        (REFUSED, 660),
    ],
)
def test_an_addition_may_take_what_the_server_says(told: Any, seconds: float) -> None:
    session = Session(ENDPOINT, KEY)
    steps = session.exchange(add())
    asked = next(steps)
    assert isinstance(asked, Outgoing)
    assert (asked.method, asked.url) == ("GET", ENDPOINT + "/health")
    assert "X-API-Key" not in asked.headers
    assert asked.content is None
    step = steps.send(told)
    assert isinstance(step, Outgoing)
    assert step.read_seconds == seconds


def test_how_long_an_addition_may_take_is_asked_once_and_again_after_one_was_lost() -> None:
    session = Session(ENDPOINT, KEY)
    told = reply({"status": "ok", "server": "pikuri-memory", "add_seconds": 100})
    steps = session.exchange(add())
    next(steps)
    steps.send(told)
    with pytest.raises(StopIteration):
        steps.send(reply([]))
    first = next(session.exchange(add()))
    assert not asks_for_time(add(), first)
    run(session, search(), [reply([], ours=False)])
    with pytest.raises(ServerUnavailableError):
        run(session, add(), [LOST])
    assert asks_for_time(add(), next(session.exchange(add())))


def test_an_error_of_the_user_s_models_is_not_repeated_and_says_when_to_come_back() -> None:
    away = reply(
        {"detail": "nobody there", "hint": "start it", "code": "embedder_unavailable"},
        503,
        retry_after="4",
    )
    session = Session(ENDPOINT, KEY)
    run(session, search(), [reply([])])
    requests: list[Request[Any]] = [add(), search()]
    for request in requests:
        with pytest.raises(EmbedderUnavailableError) as caught:
            run(session, request, [away])
        assert caught.value.retry_after == 4
        assert caught.value.hint == "start it"


def test_a_search_tells_that_it_had_to_do_with_words() -> None:
    told = {"code": "embedder_unavailable", "detail": "by words", "hint": "start it"}
    found, _ = run(Session(ENDPOINT, KEY), search(), [reply({"results": [], "degraded": told})])
    assert found == []
    assert found.degraded == Degraded("embedder_unavailable", "by words", "start it")
    found, _ = run(Session(ENDPOINT, KEY), search(), [reply({"results": []})])
    assert found.degraded is None


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
        session = Session(ENDPOINT, lambda keys=keys: next(keys))  # type: ignore[misc]
        steps, first = begun(session, request)
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
        _, outgoing = begun(session, request)
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
