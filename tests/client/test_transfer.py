"""Memories out of a server and into one. Against real servers: tests/cli/test_moving.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.client import Mem0Client, transfer
from pikuri_memory.client.transfer import Item, Refusal
from pikuri_memory.errors import InvalidRequestError, ServerUnavailableError
from pikuri_memory.record import Scope

from .conftest import KEY
from .played import Fault, PlayedServer

ID = "0b8a2f5e-6a0c-4f3e-9a53-6a7a3bd0c001"


@pytest.fixture
def target(ours: PlayedServer) -> Iterator[Mem0Client]:
    with Mem0Client(ours.endpoint, KEY) as client:
        yield client


@pytest.fixture
def other(mem0: PlayedServer) -> Iterator[Mem0Client]:
    with Mem0Client(mem0.endpoint, KEY) as client:
        yield client


def parsed(*rows: Any) -> list[Item | Refusal]:
    return list(transfer.parse(json.dumps(row).encode() for row in rows))


def items(count: int) -> list[Item]:
    return [Item(n, {"text": f"fact {n}", "user_id": "ada"}) for n in range(1, count + 1)]


def test_a_line_may_name_text_and_scope_in_our_way_or_in_mem0s() -> None:
    ours, mem0s = parsed(
        {"text": "one", "scope": {"user_id": "ada", "run_id": "r"}},
        {"memory": "one", "user_id": "ada", "run_id": "r", "hash": "x", "score": 1},
    )
    assert isinstance(ours, Item)
    assert isinstance(mem0s, Item)
    assert dict(ours.memory) == dict(mem0s.memory)
    assert dict(ours.memory) == {"text": "one", "user_id": "ada", "run_id": "r"}


def test_a_line_may_say_what_it_supersedes_and_what_is_no_id_is_left_out() -> None:
    one, other = parsed(
        {"text": "one", "user_id": "ada", "supersedes": [ID, "none"], "superseded_by": []},
        {"text": "two", "user_id": "ada", "supersedes": ["none"], "superseded_by": None},
    )
    assert isinstance(one, Item)
    assert isinstance(other, Item)
    assert dict(one.memory) == {"text": "one", "user_id": "ada", "supersedes": [ID]}
    assert dict(other.memory) == {"text": "two", "user_id": "ada"}


def test_a_header_is_no_memory_and_may_be_missing() -> None:
    header = {"format": transfer.FORMAT, "version": 1}
    row = {"text": "one", "user_id": "ada"}
    assert [item.place for item in parsed(header, row)] == [2]
    assert [item.place for item in parsed(row)] == [1]


@pytest.mark.parametrize(
    "header",
    [
        {"format": "another", "version": 1},
        {"format": transfer.FORMAT, "version": 2},
        {"format": transfer.FORMAT},
    ],
)
def test_another_format_or_a_later_version_is_refused_as_a_whole(header: Any) -> None:
    with pytest.raises(InvalidRequestError):
        parsed(header, {"text": "one", "user_id": "ada"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["a"], "not a JSON object"),
        ({"user_id": "ada"}, "no text"),
        ({"text": " ", "user_id": "ada"}, "no text"),
        ({"text": 5, "user_id": "ada"}, "no text"),
        ({"text": "x"}, "no scope"),
        ({"text": "x", "scope": "ada"}, "scope"),
        ({"text": "x", "user_id": "*"}, "wildcard"),
        ({"text": "x", "user_id": "ada", "id": "7"}, "UUID"),
        ({"text": "x", "user_id": "ada", "id": 7}, "UUID"),
        ({"text": "x", "user_id": "ada", "metadata": []}, "metadata"),
        ({"text": "x", "user_id": "ada", "created_at": "yesterday"}, "created_at"),
        ({"text": "x", "user_id": "ada", "updated_at": 5}, "updated_at"),
        ({"text": "x", "user_id": "ada", "expiration_date": "2026-13-01"}, "expiration_date"),
        ({"text": "x", "user_id": "ada", "history": {}}, "history"),
        ({"text": "x", "user_id": "ada", "supersedes": ID}, "supersedes"),
        ({"text": "x", "user_id": "ada", "superseded_by": [7]}, "superseded_by"),
        ({"text": "x", "user_id": "ada", "history": [{"event": "BURN"}]}, "history"),
        ({"text": "x", "user_id": "ada", "history": [{"event": "ADD", "new_text": 1}]}, "history"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_by_its_number(row: Any, reason: str) -> None:
    good, bad = parsed({"text": "good", "user_id": "ada"}, row)
    assert isinstance(good, Item)
    assert isinstance(bad, Refusal)
    assert bad.place == 2
    assert reason in bad.reason


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_line_ends_the_reading(lines: list[bytes]) -> None:
    header = json.dumps({"format": transfer.FORMAT, "version": 1}).encode()
    for item in transfer.parse([header, *lines]):
        assert isinstance(item, Item | Refusal)


def test_deep_json_and_long_numbers_are_refused() -> None:
    lines = [b"[" * 100_000, b'{"text": ' + b"9" * 10_000 + b"}", b"\xff\xfe"]
    assert [type(item) for item in transfer.parse(lines)] == [Refusal] * 3


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line() -> None:
    line = b"\xef\xbb\xbf" + json.dumps({"text": "x", "user_id": "ada"}).encode()
    assert isinstance(next(transfer.parse([line])), Item)


def test_what_is_there_is_counted_by_whether_it_says_the_same(
    target: Mem0Client, ours: PlayedServer
) -> None:
    told = [
        {"id": ID, "memory": "fact 1", "event": "ADD"},
        {"id": ID, "memory": "fact 2 ", "event": "NONE"},
        {"id": ID, "memory": "something else", "event": "NONE"},
    ]
    body = json.dumps({"results": told}).encode()
    ours.faults.append(Fault("answer", 200, {"Content-Type": "application/json"}, body))
    report = transfer.store(target, items(3))
    assert (report.added, report.known, report.different, report.total) == (1, 1, [3], 3)


def test_memories_go_in_chunks(target: Mem0Client, ours: PlayedServer) -> None:
    seen = []
    report = transfer.store(target, items(600), progress=lambda report: seen.append(report.total))
    assert report.added == 600
    assert seen == [250, 500, 600]
    assert [len(request.body["memories"]) for request in ours.tries("POST")] == [250, 250, 100]


def test_a_memory_that_the_server_refuses_costs_nothing_else(
    target: Mem0Client, ours: PlayedServer
) -> None:
    # Half of a surrogate pair is refused before anything is sent, and with it the whole chunk.
    bad: list[Item | Refusal] = [
        Item(70, {"text": "\ud800", "user_id": "ada"}),
        Refusal(71, "it is not JSON"),
    ]
    lines: list[Item | Refusal] = [*items(60), *bad, *items(61)[60:]]
    report = transfer.store(target, lines)
    assert report.added == 61
    assert [one.place for one in report.refused] == [71, 70]
    assert len(ours.memories) == 61


def test_a_failing_server_ends_the_import_and_the_report_says_how_far_it_was(
    target: Mem0Client, ours: PlayedServer
) -> None:
    down = Fault("answer", 507, {"Content-Type": "application/json"}, b'{"detail": "full"}')

    def fail_from_now_on(report: transfer.Report) -> None:
        ours.faults.append(down)

    report = transfer.Report()
    with pytest.raises(Exception, match="full"):
        transfer.store(target, items(300), report, progress=fail_from_now_on)
    assert report.added == len(ours.memories) == 250


def test_memories_come_from_mem0s_server_with_their_history(
    target: Mem0Client, other: Mem0Client, ours: PlayedServer, mem0: PlayedServer
) -> None:
    one = mem0.store("one", user_id="ada", metadata={"k": 1})
    both = mem0.store("two", user_id="ada", agent_id="helper")
    report = transfer.store(target, transfer.fetch(other))
    assert (report.added, report.refused) == (2, [])
    assert set(ours.memories) == {one, both}
    assert ours.memories[one]["metadata"] == {"k": 1}
    assert ours.memories[both]["agent_id"] == "helper"


def test_memories_go_into_mem0s_server_one_by_one_and_none_twice(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    mem0.store("fact 2 ", user_id="ada")
    mem0.store("fact 3", user_id="ada", agent_id="helper")
    report = transfer.store(other, items(4))
    assert (report.added, report.known, report.refused) == (3, 1, [])
    posted = [request.body for request in mem0.tries("POST")]
    assert {body["infer"] for body in posted} == {False}
    again = transfer.store(other, items(4))
    assert (again.added, again.known) == (0, 4)
    assert len(mem0.tries("POST")) == 3


def test_a_memory_whose_history_mem0s_server_lost_is_exported_all_the_same(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    kept = mem0.store("one", user_id="ada")
    mem0.changes[kept].clear()
    _, *rows = transfer.export(other, Scope(user_id="ada"))
    assert [(row["id"], row["text"], row["history"]) for row in rows] == [(kept, "one", [])]


def test_a_large_scope_of_the_stack_is_exported_whole_and_imported_once(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    mem0.whole = True
    assert transfer.store(other, items(1100)).added == 1100
    assert len(list(transfer.export(other, Scope(user_id="ada")))) == 1 + 1100
    again = transfer.store(other, items(1100))
    assert (again.added, again.known) == (0, 1100)


def test_a_field_that_mem0s_server_would_take_for_its_own_is_refused_by_its_line(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    row = {"text": "one", "user_id": "ada", "metadata": {"created_at": "2001-01-01T00:00:00Z"}}
    report = transfer.store(other, parsed(row))
    assert (report.added, [one.place for one in report.refused]) == (0, [1])
    assert "created_at" in report.refused[0].reason


def test_the_day_on_which_a_memory_was_learnt_goes_along_to_mem0s_server(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    row = {
        "text": "one",
        "user_id": "ada",
        "metadata": {"k": 1},
        "created_at": "2020-05-01T10:00:00+02:00",
        "expiration_date": "2031-01-01",
    }
    report = transfer.store(other, parsed(row, {"text": "two", "user_id": "ada"}))
    assert report.added == 2
    first, second = (request.body for request in mem0.tries("POST"))
    assert first["metadata"] == {"k": 1, "created_at": "2020-05-01T08:00:00+00:00"}
    assert first["expiration_date"] == "2031-01-01"
    assert "metadata" not in second


def test_what_mem0s_server_refuses_costs_nothing_else(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    bad: list[Item | Refusal] = [Item(70, {"text": "\ud800", "user_id": "ada"})]
    report = transfer.store(other, [*items(1), *bad, *items(2)[1:]])
    assert report.added == 2
    assert [one.place for one in report.refused] == [70]


def test_of_mem0s_server_only_some_users_may_be_taken(
    other: Mem0Client, mem0: PlayedServer
) -> None:
    mem0.store("one", user_id="ada")
    mem0.store("two", user_id="grace")
    (item,) = transfer.fetch(other, [Scope(user_id="grace")])
    assert isinstance(item, Item)
    assert item.memory["text"] == "two"


def test_a_server_that_tells_no_users_is_to_be_asked_for_them(other: Mem0Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        list(transfer.fetch(other))
    assert "--user" in caught.value.hint


def test_an_export_has_a_header_and_leaves_out_what_is_deleted_meanwhile(
    target: Mem0Client, ours: PlayedServer
) -> None:
    ours.store("one", user_id="ada")
    gone = ours.store("two", user_id="ada")
    ours.changes[gone].append({**ours.changes[gone][-1], "event": "DELETE"})
    header, *rows = transfer.export(target, Scope(user_id="ada"))
    assert header["scope"] == {"user_id": "ada"}
    assert [row["text"] for row in rows] == ["one"]


def test_nothing_is_imported_from_nobody(target: Mem0Client) -> None:
    with Mem0Client("http://127.0.0.1:1", KEY) as nobody, pytest.raises(ServerUnavailableError):
        transfer.store(target, transfer.fetch(nobody))
