"""Both clients against both servers: one suite, over real HTTP."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import socket
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pikuri_memory import discovery, process
from pikuri_memory.client import AsyncMem0Client, Entity, Health, HistoryEntry, Mem0Client
from pikuri_memory.errors import (
    AuthenticationError,
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    ScopeRequiredError,
    ServerError,
    ServerUnavailableError,
    UnexpectedReplyError,
)
from pikuri_memory.paths import DataPaths

from .conftest import KEY, MakeClient
from .played import START, Fault, PlayedServer

JSON = {"Content-Type": "application/json"}
BUSY = Fault("answer", 503, {**JSON, "Retry-After": "0"}, b'{"detail": "stopping"}')


NAN = float("nan")
LOOP: dict[str, Any] = {}
LOOP["self"] = LOOP


# -- what every server can do -----------------------------------------------------------------


def test_what_is_added_is_found_again(client: Mem0Client) -> None:
    [added] = client.add("I live in Turku", user_id="ada", metadata={"source": "chat"})
    assert (added.text, added.event) == ("I live in Turku", "ADD")
    [found] = client.search("who can live in peace", user_id="ada")
    assert (found.id, found.text, found.metadata) == (added.id, added.text, {"source": "chat"})
    assert found.score is not None
    assert 0 < found.score <= 1
    assert found.created_at == found.updated_at == START
    assert (found.user_id, found.agent_id, found.event) == ("ada", None, None)
    assert client.get(added.id).text == "I live in Turku"
    assert client.search("who can live in peace", user_id="bo") == []


def test_add_sends_exactly_one_message_of_the_user(
    client: Mem0Client, server: PlayedServer
) -> None:
    client.add("hello", agent_id="a", run_id="r")
    assert server.seen[-1].body == {
        "messages": [{"role": "user", "content": "hello"}],
        "agent_id": "a",
        "run_id": "r",
    }


def test_every_option_of_an_addition_reaches_the_server(
    client: Mem0Client, server: PlayedServer
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    added = client.add_messages(
        messages,
        user_id="ada",
        metadata={"n": 1},
        expiration_date=date(2027, 1, 2),
        infer=False,
        prompt="names only",
        idempotency_key="once",
    )
    assert [record.text for record in added] == ["a", "b"]
    seen = server.seen[-1]
    assert seen.headers["idempotency-key"] == "once"
    assert seen.body == {
        "messages": messages,
        "user_id": "ada",
        "metadata": {"n": 1},
        "expiration_date": "2027-01-02",
        "infer": False,
        "prompt": "names only",
    }


def test_every_addition_has_an_idempotency_key_of_its_own(
    client: Mem0Client, server: PlayedServer
) -> None:
    client.add("one", user_id="ada")
    client.add("two", user_id="ada")
    keys = [seen.headers["idempotency-key"] for seen in server.tries("POST")]
    assert len(set(keys)) == 2
    assert min(map(len, keys)) >= 32


def test_every_option_of_a_search_reaches_the_server(
    client: Mem0Client, server: PlayedServer
) -> None:
    client.search(
        "q",
        user_id="ada",
        run_id="r",
        filters={"year": {"gte": 2020}},
        top_k=3,
        threshold=0.25,
        explain=True,
        show_expired=True,
    )
    assert server.seen[-1].body == {
        "query": "q",
        "filters": {"year": {"gte": 2020}, "user_id": "ada", "run_id": "r"},
        "top_k": 3,
        "threshold": 0.25,
        "explain": True,
        "show_expired": True,
    }


def test_a_search_leaves_to_the_server_what_is_not_given(
    client: Mem0Client, server: PlayedServer
) -> None:
    client.search("q", filters={"user_id": "ada"})
    assert server.seen[-1].body == {"query": "q", "filters": {"user_id": "ada"}}


def test_an_explained_search_carries_the_parts_of_its_scores(client: Mem0Client) -> None:
    client.add("red", user_id="ada")
    assert client.search("red", user_id="ada")[0].explanation is None
    assert client.search("red", user_id="ada", explain=True)[0].explanation == {"coverage": 1.0}


def test_an_update_sends_only_what_is_given(client: Mem0Client, server: PlayedServer) -> None:
    memory_id = server.store("old", user_id="ada", metadata={"a": 1})
    client.update(memory_id, "new")
    assert server.seen[-1].body == {"text": "new"}
    client.update(memory_id, metadata={}, expiration_date=None)
    assert server.seen[-1].body == {"metadata": {}, "expiration_date": None}
    record = client.get(memory_id)
    assert (record.text, record.metadata) == ("new", {})


def test_a_deleted_memory_is_not_found_and_its_history_is(client: Mem0Client) -> None:
    [added] = client.add("first", user_id="ada")
    client.update(added.id, text="second")
    client.delete(added.id)
    with pytest.raises(MemoryNotFoundError):
        client.get(added.id)
    changes = client.history(added.id)
    assert all(isinstance(change, HistoryEntry) for change in changes)
    assert [(c.event, c.old_text, c.new_text) for c in changes] == [
        ("ADD", None, "first"),
        ("UPDATE", "first", "second"),
        ("DELETE", "second", None),
    ]
    assert [c.at for c in changes] == [START + timedelta(days=n) for n in range(3)]
    assert {c.memory_id for c in changes} == {added.id}


def test_a_scope_is_deleted_and_no_other(client: Mem0Client) -> None:
    client.add("a", user_id="ada")
    client.add("b", user_id="bo")
    client.delete_all(user_id="ada")
    assert [record.text for record in client.get_all()] == ["b"]


def test_reset_leaves_nothing(client: Mem0Client, server: PlayedServer) -> None:
    client.add("a", user_id="ada")
    client.reset()
    assert client.get_all() == []
    assert server.tries("POST")[-1].headers["content-type"] == "application/json"


def test_entities_are_listed_with_their_counts(client: Mem0Client) -> None:
    client.add("a", user_id="ada", agent_id="helper")
    client.add("b", user_id="ada")
    assert client.entities() == [
        Entity("agent", "helper", 1, START, START),
        Entity("user", "ada", 2, START, START),
    ]


def test_health_tells_what_answers_and_sends_no_key(
    client: Mem0Client, server: PlayedServer
) -> None:
    expected = {
        "ours": Health("ok", "pikuri-memory", "0.1.0"),
        "mem0": Health("ok", "Mem0 REST APIs", "1.0.0"),
    }
    assert client.health() == expected[server.kind]
    assert server.looked
    assert all("x-api-key" not in seen.headers for seen in [*server.seen, *server.looked])


def test_a_missing_memory_is_the_same_error_at_both_servers(client: Mem0Client) -> None:
    with pytest.raises(MemoryNotFoundError) as caught:
        client.get("00000000-0000-0000-0000-000000000000")
    assert caught.value.hint


@pytest.mark.parametrize("memory_id", ["", ".", "..", "a/history", "x\n", "\ud800", "../reset"])
def test_an_id_that_is_no_segment_of_a_path_reaches_no_other_route(
    client: Mem0Client, server: PlayedServer, memory_id: str
) -> None:
    for act in (client.get, client.delete, client.history, lambda i: client.update(i, "x")):
        with pytest.raises(MemoryNotFoundError):
            act(memory_id)
    assert server.seen == []


def test_an_odd_id_arrives_as_it_is(client: Mem0Client, server: PlayedServer) -> None:
    odd = "50% of é?#&+=;"
    server.store("odd", id=odd, user_id="ada")
    assert client.get(odd).text == "odd"
    client.delete(odd)
    assert server.memories == {}


def test_text_in_any_script_and_with_control_characters_survives(client: Mem0Client) -> None:
    text = 'naïve 東京 🦆 "quoted" \\ \x00\x1b[31m\r\n\u2028'
    [added] = client.add(text, user_id="ädä & co")
    assert client.get(added.id).text == text
    assert [record.id for record in client.get_all(user_id="ädä & co")] == [added.id]


# -- listing ----------------------------------------------------------------------------------


def fill(server: PlayedServer, count: int) -> None:
    for number in range(count):
        server.store(f"fact {number}", user_id="ada")


def test_get_all_follows_the_pages_to_the_end(make_client: MakeClient, ours: PlayedServer) -> None:
    fill(ours, 25)
    client = make_client(ours.endpoint, KEY)
    texts = [record.text for record in client.get_all(user_id="ada", page_size=10)]
    assert texts == [f"fact {number}" for number in reversed(range(25))]
    assert [seen.params.get("cursor") for seen in ours.seen] == [None, "10", "20"]


def test_iterate_fetches_a_page_when_it_is_needed(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    fill(ours, 25)
    records = iter(make_client(ours.endpoint, KEY).iterate(user_id="ada", page_size=10))
    assert [next(records).text for _ in range(10)][-1] == "fact 15"
    assert len(ours.seen) == 1
    assert next(records).text == "fact 14"
    assert len(ours.seen) == 2


def test_a_limit_ends_the_listing(make_client: MakeClient, ours: PlayedServer) -> None:
    fill(ours, 25)
    client = make_client(ours.endpoint, KEY)
    assert len(client.get_all(user_id="ada", limit=12, page_size=10)) == 12
    assert [seen.params["top_k"] for seen in ours.seen] == ["10", "2"]
    assert client.get_all(limit=0) == []


def test_expired_memories_are_asked_for_by_name(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    client = make_client(ours.endpoint, KEY)
    client.get_all(user_id="ada")
    client.get_all(user_id="ada", show_expired=True)
    assert [seen.params.get("show_expired") for seen in ours.seen] == [None, "true"]


def test_a_server_without_pages_is_asked_once(make_client: MakeClient, mem0: PlayedServer) -> None:
    fill(mem0, 5)
    client = make_client(mem0.endpoint, KEY)
    assert len(client.get_all(user_id="ada", page_size=2)) == 5
    assert len(client.get_all(user_id="ada")) == 5
    assert len(mem0.seen) == 2
    assert len(client.get_all(user_id="ada", limit=3)) == 3


def test_a_server_without_pages_that_cuts_at_the_number_is_asked_for_all(
    make_client: MakeClient, mem0: PlayedServer, caplog: pytest.LogCaptureFixture
) -> None:
    mem0.whole = True
    fill(mem0, 25)
    client = make_client(mem0.endpoint, KEY)
    for page_size in (5, 24, 25, 26):
        listed = [record.text for record in client.get_all(user_id="ada", page_size=page_size)]
        assert len(listed) == len(set(listed)) == 25
    assert len(client.get_all(user_id="ada", page_size=5, limit=12)) == 5


def test_a_listing_that_mem0_may_have_cut_short_is_told_in_the_log(
    make_client: MakeClient, mem0: PlayedServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(mem0.endpoint, KEY)
    fill(mem0, 19)
    client.get_all(user_id="ada")
    assert caplog.records == []
    fill(mem0, 6)
    client.get_all(user_id="ada")
    assert "20" in caplog.records[-1].getMessage()


def test_a_cursor_that_leads_nowhere_is_an_error_and_no_endless_listing(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    page = json.dumps({"results": [{"id": "1", "memory": "x"}], "next": "same"}).encode()
    ours.faults.extend(Fault("answer", 200, JSON, page) for _ in range(10))
    with pytest.raises(UnexpectedReplyError):
        make_client(ours.endpoint, KEY).get_all()


# -- batches ----------------------------------------------------------------------------------


def test_a_batch_keeps_ids_dates_and_history(make_client: MakeClient, ours: PlayedServer) -> None:
    client = make_client(ours.endpoint, KEY)
    at = datetime(2024, 5, 6, 7, 8, 9, 10, timezone(timedelta(hours=2)))
    change = HistoryEntry("h", "m", "UPDATE", "old", "new", at)
    added = client.add_batch(
        [
            {
                "id": "8c6d4d0e-5c4f-4a32-9a4c-0b5e3b0e7c11",
                "text": "kept",
                "user_id": " ada ",
                "agent_id": None,
                "metadata": {"a": [1]},
                "created_at": at,
                "updated_at": "2025-01-01T00:00:00+00:00",
                "expiration_date": date(2030, 1, 1),
                "history": [change, {"event": "ADD", "created_at": at}],
            },
            {"text": "second", "run_id": "r"},
        ]
    )
    assert [(record.text, record.event) for record in added] == [("kept", "ADD"), ("second", "ADD")]
    iso = "2024-05-06T07:08:09.000010+02:00"
    assert ours.seen[-1].body["memories"] == [
        {
            "user_id": "ada",
            "id": "8c6d4d0e-5c4f-4a32-9a4c-0b5e3b0e7c11",
            "memory": "kept",
            "metadata": {"a": [1]},
            "created_at": iso,
            "updated_at": "2025-01-01T00:00:00+00:00",
            "expiration_date": "2030-01-01",
            "history": [
                {
                    "id": "h",
                    "event": "UPDATE",
                    "old_memory": "old",
                    "new_memory": "new",
                    "created_at": iso,
                },
                {"event": "ADD", "created_at": iso},
            ],
        },
        {"run_id": "r", "memory": "second"},
    ]
    assert client.get(added[0].id).created_at == at


def test_a_server_without_batches_is_named_with_the_way_around(
    make_client: MakeClient, mem0: PlayedServer
) -> None:
    with pytest.raises(PikuriMemoryError) as caught:
        make_client(mem0.endpoint, KEY).add_batch([{"text": "x", "user_id": "ada"}])
    assert "add()" in caught.value.hint


# -- what is refused before it is sent --------------------------------------------------------


REFUSED: dict[str, tuple[type[PikuriMemoryError], Callable[[Any], Any]]] = {
    "add without a scope": (ScopeRequiredError, lambda c: c.add("x")),
    "add for an empty user": (ScopeRequiredError, lambda c: c.add("x", user_id=" ")),
    "add of a list": (InvalidRequestError, lambda c: c.add(["x"], user_id="a")),
    "add of a NaN": (InvalidRequestError, lambda c: c.add("x", user_id="a", metadata={"n": NAN})),
    "add of a date": (
        InvalidRequestError,
        lambda c: c.add("x", user_id="a", metadata={"d": START}),
    ),
    "add of a surrogate": (InvalidRequestError, lambda c: c.add("\ud800", user_id="a")),
    "add of a loop": (InvalidRequestError, lambda c: c.add("x", user_id="a", metadata=LOOP)),
    "add with a bad key": (
        InvalidRequestError,
        lambda c: c.add("x", user_id="a", idempotency_key="a\r\nb"),
    ),
    "messages as text": (InvalidRequestError, lambda c: c.add_messages("x", user_id="a")),
    "search without a scope": (ScopeRequiredError, lambda c: c.search("x")),
    "search for anyone": (ScopeRequiredError, lambda c: c.search("x", user_id="*")),
    "search for two users": (
        InvalidRequestError,
        lambda c: c.search("x", user_id="a", filters={"user_id": "b"}),
    ),
    "delete all of nobody": (ScopeRequiredError, lambda c: c.delete_all()),
    "delete all of an empty user": (ScopeRequiredError, lambda c: c.delete_all(user_id="")),
    "update of nothing": (InvalidRequestError, lambda c: c.update("1")),
    "a number for an id": (InvalidRequestError, lambda c: c.get(1)),
    "pages of nothing": (InvalidRequestError, lambda c: c.get_all(page_size=0)),
    "batch with an unknown field": (
        InvalidRequestError,
        lambda c: c.add_batch([{"text": "x", "user_id": "a", "memory": "y"}]),
    ),
    "batch without a scope": (ScopeRequiredError, lambda c: c.add_batch([{"text": "x"}])),
    "batch with a local time": (
        InvalidRequestError,
        lambda c: c.add_batch([{"text": "x", "user_id": "a", "created_at": datetime(2020, 1, 1)}]),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_with_a_hint_and_not_sent(
    make_client: MakeClient, ours: PlayedServer, case: str
) -> None:
    kind, act = REFUSED[case]
    with pytest.raises(kind) as caught:
        act(make_client(ours.endpoint, KEY))
    assert caught.value.hint
    assert caught.value.__context__ is None or case == "a number for an id"
    assert ours.seen == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:8888",
        "ftp://127.0.0.1",
        "http://",
        "http://host:99999",
        "http://host:port",
        "http://ada:secret-word@127.0.0.1",
        "http://127.0.0.1?key=secret-word",
        "http://127.0.0.1/#secret-word",
        "http://127.0.0.1/ secret-word",
        "http://127.0.0.1\\@evil",
        "http://[::1",
        "",
        None,
    ],
)
def test_an_endpoint_that_is_none_is_refused_without_being_repeated(
    make_client: MakeClient, endpoint: Any
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_client(endpoint)
    assert caught.value.hint
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, NAN, float("inf")])
def test_an_impossible_timeout_is_refused(make_client: MakeClient, timeout: float) -> None:
    with pytest.raises(InvalidRequestError):
        make_client(timeout=timeout)


# -- errors -----------------------------------------------------------------------------------


def test_an_error_of_ours_arrives_as_its_class_with_message_and_hint(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    with pytest.raises(MemoryNotFoundError) as caught:
        make_client(ours.endpoint, KEY).delete("00000000-0000-0000-0000-000000000000")
    assert str(caught.value) == "there is no such memory"
    assert caught.value.hint == "list them"


def test_an_error_of_mem0_arrives_with_its_detail_and_a_hint_of_the_client(
    make_client: MakeClient, mem0: PlayedServer
) -> None:
    with pytest.raises(ServerError) as caught:
        make_client(mem0.endpoint, KEY).delete("00000000-0000-0000-0000-000000000000")
    assert "Upstream provider error." in str(caught.value)
    assert caught.value.hint


def test_a_validation_error_names_the_fields_and_never_their_values(
    make_client: MakeClient, mem0: PlayedServer
) -> None:
    problem = {"loc": ["body", "top_k"], "msg": "should be a number", "input": "walnuts"}
    body = json.dumps({"detail": [problem, "odd"]}).encode()
    mem0.faults.append(Fault("answer", 422, JSON, body))
    with pytest.raises(InvalidRequestError) as caught:
        make_client(mem0.endpoint, KEY).search("walnuts", user_id="ada")
    assert "body.top_k: should be a number" in str(caught.value)
    assert "walnuts" not in str(caught.value)


def test_control_characters_of_an_error_do_not_reach_the_terminal(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    body = json.dumps({"detail": "red\x1b[31m\nalert" + "!" * 9000, "hint": "\x07"}).encode()
    ours.faults.append(Fault("answer", 422, JSON, body))
    with pytest.raises(InvalidRequestError) as caught:
        make_client(ours.endpoint, KEY).entities()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500
    assert caught.value.hint


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "text/html", b"<p>walnuts</p>"),
        (200, "application/json", b"walnuts"),
        (200, "application/json", b'"walnuts"'),
        (200, "application/json", b'{"results": "walnuts"}'),
        (200, "application/json", b'{"results": [{"memory": "walnuts"}]}'),
        (200, "application/json", b'{"results": [{"id": null, "memory": null}]}'),
        (200, "application/json", b"[" * 100_000),
        (200, "application/json", b'[{"id": "1", "score": ' + b"9" * 5000 + b"}]"),
        (200, "application/json", b'[{"id": "1", "score": NaN}]'),
        (200, "application/json", b"\xff\xfe\xfa"),
        (204, "", b""),
        (404, "text/html", b"walnuts"),
        (500, "text/plain", b"walnuts"),
        (502, "application/json", b'["walnuts"]'),
    ],
)
def test_what_is_no_reply_of_a_memory_server_is_named_by_status_and_type_only(
    make_client: MakeClient, ours: PlayedServer, status: int, content_type: str, body: bytes
) -> None:
    ours.faults.append(Fault("answer", status, {"Content-Type": content_type}, body))
    with pytest.raises(UnexpectedReplyError) as caught:
        make_client(ours.endpoint, KEY).search("walnuts", user_id="ada")
    message = str(caught.value)
    assert ours.endpoint in message
    assert str(status) in message
    assert (content_type or "no content type") in message
    assert "walnuts" not in message
    assert caught.value.hint


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(
    make_client: MakeClient, ours: PlayedServer, mem0: PlayedServer, status: int
) -> None:
    client = make_client(ours.endpoint, KEY)
    ours.faults.append(Fault("answer", status, {"Location": mem0.endpoint + "/memories"}))
    with pytest.raises(UnexpectedReplyError, match="redirect"):
        client.add("walnuts", user_id="ada")
    assert mem0.seen == []


def test_a_redirect_is_not_followed_by_a_client_that_was_set_to(
    ours: PlayedServer, mem0: PlayedServer
) -> None:
    ours.faults.append(Fault("answer", 307, {"Location": mem0.endpoint + "/memories"}))
    with httpx.Client(follow_redirects=True) as http:
        client = Mem0Client(ours.endpoint, KEY, http)
        with pytest.raises(UnexpectedReplyError):
            client.get_all()
    assert mem0.seen == []


def test_no_server_is_one_error_with_what_to_type(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # not listening: connections are refused
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError) as caught:
            make_client(endpoint, KEY).add("walnuts", user_id="ada")
    assert endpoint in str(caught.value)
    assert "pikuri-memory up" in caught.value.hint
    assert "pikuri-memory status" in caught.value.hint
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # no httpx error, which carries the request


def test_a_server_that_never_answers_is_given_up(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    ours.faults.append(Fault("hang"))
    with pytest.raises(ServerUnavailableError, match="in time"):
        make_client(ours.endpoint, KEY, timeout=0.1).reset()


# -- retries ----------------------------------------------------------------------------------


SAFE: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "get": ("GET", lambda c, i: c.get(i)),
    "search": ("POST", lambda c, i: c.search("old", user_id="ada")),
    "get_all": ("GET", lambda c, i: c.get_all(user_id="ada")),
    "history": ("GET", lambda c, i: c.history(i)),
    "entities": ("GET", lambda c, i: c.entities()),
    "update": ("PUT", lambda c, i: c.update(i, "new")),
    "delete_all": ("DELETE", lambda c, i: c.delete_all(user_id="ada")),
}


@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("fault", [Fault("lose"), BUSY], ids=["lost", "busy"])
def test_a_safe_request_is_sent_again(
    client: Mem0Client, server: PlayedServer, name: str, fault: Fault
) -> None:
    memory_id = server.store("old", user_id="ada")
    method, act = SAFE[name]
    server.faults.extend([fault, fault])
    act(client, memory_id)
    assert len(server.tries(method)) == 3


def test_a_safe_request_is_given_up_after_three_tries(
    client: Mem0Client, server: PlayedServer
) -> None:
    server.faults.extend([Fault("lose")] * 5)
    with pytest.raises(ServerUnavailableError) as caught:
        client.get_all()
    assert caught.value.hint
    assert len(server.seen) == 3


def test_a_server_that_stays_busy_is_given_up_after_three_tries(
    client: Mem0Client, server: PlayedServer
) -> None:
    server.faults.extend([BUSY] * 5)
    with pytest.raises(ServerUnavailableError, match="stopping"):
        client.get_all()
    assert len(server.seen) == 3


def test_a_delete_whose_reply_was_lost_counts_as_done(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    memory_id = ours.store("old", user_id="ada")
    ours.faults.append(Fault("lose"))
    make_client(ours.endpoint, KEY).delete(memory_id)
    assert len(ours.tries("DELETE")) == 2
    assert ours.memories == {}


def test_a_delete_of_nothing_is_an_error_also_after_a_busy_reply(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    ours.faults.append(BUSY)
    with pytest.raises(MemoryNotFoundError):
        make_client(ours.endpoint, KEY).delete("00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("fault", [Fault("lose"), BUSY], ids=["lost", "busy"])
def test_an_addition_to_our_server_is_sent_again_with_its_key_and_stored_once(
    make_client: MakeClient, ours: PlayedServer, fault: Fault
) -> None:
    client = make_client(ours.endpoint, KEY)
    ours.faults.append(fault)
    [added] = client.add("once", user_id="ada")
    first, second = ours.tries("POST")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body
    assert list(ours.memories) == [added.id]
    assert added.event == "ADD"


def test_an_addition_is_not_repeated_where_the_server_is_not_known_to_be_ours(
    make_client: MakeClient, mem0: PlayedServer
) -> None:
    client = make_client(mem0.endpoint, KEY)
    for tries in (1, 2):
        mem0.faults.append(Fault("lose"))
        with pytest.raises(ServerUnavailableError, match="may have been carried out"):
            client.add("once", user_id="ada")
        assert len(mem0.tries("POST")) == tries
        client.get_all()


def test_a_reset_is_never_repeated(make_client: MakeClient, ours: PlayedServer) -> None:
    client = make_client(ours.endpoint, KEY)
    client.health()
    ours.faults.append(Fault("lose"))
    with pytest.raises(ServerUnavailableError, match="may have been carried out"):
        client.reset()
    ours.faults.append(BUSY)
    with pytest.raises(ServerUnavailableError):
        client.reset()
    assert len(ours.tries("POST")) == 2


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3600"}, {"Retry-After": "soon"}])
def test_a_busy_server_that_names_no_near_time_is_not_asked_again(
    make_client: MakeClient, ours: PlayedServer, headers: dict[str, str]
) -> None:
    ours.faults.append(Fault("answer", 503, {**JSON, **headers}, b'{"detail": "stopping"}'))
    with pytest.raises(ServerUnavailableError, match="stopping"):
        make_client(ours.endpoint, KEY).get_all()
    assert len(ours.seen) == 1


# -- the key ----------------------------------------------------------------------------------


def publish(paths: DataPaths, endpoint: str, key: str) -> None:
    """What a server that runs in this process would publish."""
    paths.root.mkdir(parents=True, exist_ok=True)
    me = psutil.Process()
    start = process.identify(me.pid)
    assert start is not None
    discovery.write_server_info(
        paths, discovery.ServerInfo("embedded", me.pid, start.start_time, endpoint, "0.1.0")
    )
    paths.api_key.unlink(missing_ok=True)
    paths.api_key.touch(mode=0o600)
    paths.api_key.write_text(key + "\n")


@pytest.fixture
def default_paths() -> DataPaths:
    return DataPaths.at(None)


def test_the_key_of_a_local_server_is_found_at_first_use(
    make_client: MakeClient, ours: PlayedServer, default_paths: DataPaths
) -> None:
    client = make_client(ours.endpoint)
    publish(default_paths, ours.endpoint, KEY)
    assert client.get_all() == []
    assert ours.seen[-1].headers["x-api-key"] == KEY


def test_the_key_is_found_in_the_data_directory_that_the_environment_names(
    make_client: MakeClient,
    ours: PlayedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(tmp_path / "elsewhere"))
    publish(DataPaths.at(tmp_path / "elsewhere"), ours.endpoint, KEY)
    assert make_client(ours.endpoint + "/").get_all() == []


def test_no_key_goes_to_an_endpoint_that_our_server_did_not_publish(
    make_client: MakeClient, ours: PlayedServer, mem0: PlayedServer, default_paths: DataPaths
) -> None:
    publish(default_paths, ours.endpoint, KEY)
    with pytest.raises(AuthenticationError) as caught:
        make_client(mem0.endpoint).add("x", user_id="ada")
    assert all("x-api-key" not in seen.headers for seen in mem0.seen)
    assert "api_key" in caught.value.hint


def test_a_rotated_key_is_looked_up_again(
    make_client: MakeClient, ours: PlayedServer, default_paths: DataPaths
) -> None:
    publish(default_paths, ours.endpoint, KEY)
    client = make_client(ours.endpoint)
    client.get_all()
    ours.key = "another-" + KEY
    publish(default_paths, ours.endpoint, ours.key)
    [added] = client.add("kept", user_id="ada")
    assert client.get(added.id).text == "kept"
    assert list(ours.memories) == [added.id]


def test_a_wrong_key_is_tried_once_and_refused(make_client: MakeClient, ours: PlayedServer) -> None:
    with pytest.raises(AuthenticationError) as caught:
        make_client(ours.endpoint, "wrong").add("x", user_id="ada")
    assert caught.value.hint == "look it up"
    assert len(ours.seen) == 1


def test_a_source_of_keys_is_asked_again_after_a_refusal(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    keys = iter(["old", KEY])
    assert make_client(ours.endpoint, lambda: next(keys)).get_all() == []
    assert [seen.headers["x-api-key"] for seen in ours.seen] == ["old", KEY]


@pytest.mark.parametrize("key", ["", "two words", "naïve", "line\n", "\r\nX-Evil: 1"])
def test_a_key_that_would_break_a_header_is_refused_without_being_shown(
    make_client: MakeClient, ours: PlayedServer, key: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_client(ours.endpoint, key)
    assert not key or key not in str(caught.value)
    with pytest.raises(InvalidRequestError):
        make_client(ours.endpoint, lambda: key).get_all()
    assert ours.seen == []


def test_neither_key_nor_texts_nor_queries_show_anywhere(
    make_client: MakeClient, server: PlayedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = make_client(server.endpoint, KEY)
    errors: list[PikuriMemoryError] = []
    echo = json.dumps({"detail": f"bad key {KEY}", "hint": f"not {KEY}"}).encode()
    failing = [
        [Fault("lose")] * (3 if server.kind == "ours" else 1),
        [Fault("answer", 401, JSON, echo)],
        [Fault("answer", 403, JSON, ("x" * 490).join(echo.decode().split("bad")).encode())],
        [Fault("answer", 500, {"Content-Type": "text/plain"}, KEY.encode())],
    ]
    for faults in failing:
        server.faults.extend(faults)
        try:
            client.add("walnuts", user_id="ada")
        except PikuriMemoryError as error:
            errors.append(error)
    client.search("walnuts", user_id="ada")
    assert len(errors) == len(failing)
    shown = [repr(client), caplog.text]
    for failure in errors:
        shown += [str(failure), repr(failure), failure.hint]
    assert repr(client).endswith(f"Mem0Client('{server.endpoint}')")
    for text in shown:
        assert KEY[:12] not in text
        assert "walnuts" not in text


def test_a_key_that_a_server_echoes_in_its_content_type_is_not_shown(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    ours.faults.append(Fault("answer", 200, {"Content-Type": "text/" + KEY}))
    with pytest.raises(UnexpectedReplyError) as caught:
        make_client(ours.endpoint, KEY).get_all()
    assert KEY not in str(caught.value)


# -- connections ------------------------------------------------------------------------------


def test_proxy_variables_redirect_nothing(
    make_client: MakeClient,
    ours: PlayedServer,
    mem0: PlayedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, mem0.endpoint)
    client = make_client(ours.endpoint, KEY)
    client.add("private", user_id="ada")
    with pytest.raises(ServerUnavailableError):
        make_client("http://memory.invalid", KEY).add("private", user_id="ada")
    assert len(ours.seen) == 1
    assert mem0.seen == []


def test_an_endpoint_may_have_a_path(make_client: MakeClient, ours: PlayedServer) -> None:
    with pytest.raises(MemoryNotFoundError):
        make_client(ours.endpoint + "/api/v1/", KEY).entities()
    assert ours.seen[-1].path == "/api/v1/entities"


def test_a_closed_client_says_so(make_client: MakeClient, ours: PlayedServer) -> None:
    with make_client(ours.endpoint, KEY) as client:
        client.get_all()
    with pytest.raises(InvalidRequestError, match="closed"):
        client.get_all()
    client.close()


def test_an_http_client_that_was_given_is_used_and_stays_open(ours: PlayedServer) -> None:
    with httpx.Client(headers={"X-Mark": "mine"}) as http:
        with Mem0Client(ours.endpoint, KEY, http) as client:
            client.get_all()
        assert not http.is_closed
    assert ours.seen[-1].headers["x-mark"] == "mine"
    with pytest.raises(InvalidRequestError, match="closed"):
        client.get_all()


def test_an_asynchronous_http_client_that_was_given_is_used_and_stays_open(
    ours: PlayedServer,
) -> None:
    async def use() -> bool:
        async with httpx.AsyncClient(headers={"X-Mark": "mine"}) as http:
            async with AsyncMem0Client(ours.endpoint, KEY, http) as client:
                await client.get_all()
            return http.is_closed

    assert asyncio.run(use()) is False
    assert ours.seen[-1].headers["x-mark"] == "mine"


def test_a_connection_is_used_again(make_client: MakeClient, ours: PlayedServer) -> None:
    client = make_client(ours.endpoint, KEY)
    for _ in range(3):
        client.get_all()
    assert len({seen.client_port for seen in ours.seen}) == 1


def test_the_two_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def public(kind: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: list(inspect.signature(member).parameters.values())
            for name, member in vars(kind).items()
            if not name.startswith("_") and callable(member)
        }

    assert public(Mem0Client) == public(AsyncMem0Client)
    listed = (
        "add add_messages add_batch search get_all iterate get update delete delete_all history"
        " entities reset health close"
    )
    assert sorted(public(Mem0Client)) == sorted(listed.split())


def test_a_memory_without_dates_and_metadata_is_read(
    make_client: MakeClient, ours: PlayedServer
) -> None:
    body = json.dumps([{"id": "1", "memory": "x", "created_at": None, "extra": 1}]).encode()
    ours.faults.append(Fault("answer", 200, JSON, body))
    [record] = make_client(ours.endpoint, KEY).search("x", user_id="ada")
    assert (record.created_at, record.metadata, record.score) == (None, {}, None)
