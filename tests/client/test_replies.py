"""What each shape of a reply becomes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.client import replies
from pikuri_memory.client.replies import Entity, Health, HistoryEntry, Page, ShapeError
from pikuri_memory.record import Record


def test_a_memory_of_ours_is_read_whole() -> None:
    row = {
        "id": "1",
        "memory": "text",
        "hash": "0",
        "user_id": "ada",
        "agent_id": None,
        "run_id": "r",
        "metadata": {"a": [1, None]},
        "created_at": "2026-01-02T03:04:05.000006+00:00",
        "updated_at": "2026-01-02T03:04:05Z",
        "expiration_date": "2027-01-02",
        "score": 1,
        "explanation": {"cosine": 0.5},
        "supersedes": ["2", "3"],
        "superseded_by": ["4"],
    }
    assert replies.record(row) == Record(
        id="1",
        text="text",
        score=1.0,
        created_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        updated_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        metadata={"a": [1, None]},
        user_id="ada",
        run_id="r",
        expiration_date=date(2027, 1, 2),
        explanation={"cosine": 0.5},
        supersedes=("2", "3"),
        superseded_by=("4",),
    )


def test_a_memory_of_mem0_is_read_without_what_it_lacks() -> None:
    row = {
        "id": "1",
        "memory": "text",
        "hash": None,
        "created_at": "2026-01-02T03:04:05-08:00",
        "updated_at": None,
        "score": 0.25,
        "role": "user",
    }
    record = replies.record(row)
    assert record.created_at == datetime(2026, 1, 2, 11, 4, 5, tzinfo=UTC)
    assert (record.updated_at, record.metadata, record.user_id) == (None, {}, None)


def test_a_time_without_a_zone_is_utc() -> None:
    at = replies.record({"id": "1", "created_at": "2026-01-02T03:04:05"}).created_at
    assert at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_date_that_a_user_of_mem0_made_up_hides_no_memory() -> None:
    row = {"id": "1", "memory": "x", "created_at": "1:56 pm on 8 May", "expiration_date": "never"}
    record = replies.record(row)
    assert (record.text, record.created_at, record.expiration_date) == ("x", None, None)


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"results": rows, "extra": 1}])
def test_results_come_in_a_list_or_under_their_name(wrap: Any) -> None:
    rows = [{"id": "1", "memory": "a", "event": "ADD"}, {"id": "2", "memory": "b", "event": "NONE"}]
    records = replies.records(wrap(rows))
    assert [(r.id, r.text, r.event) for r in records] == [("1", "a", "ADD"), ("2", "b", "NONE")]


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        "x",
        {},
        {"id": None, "memory": None},  # what mem0 lists without a scope on Qdrant
        {"id": ""},
        {"id": 1},
        {"id": "1", "memory": 1},
        {"id": "1", "score": "1"},
        {"id": "1", "score": True},
        {"id": "1", "score": float("inf")},
        {"id": "1", "score": 10**400},
        {"id": "1", "metadata": []},
        {"id": "1", "event": "MAYBE"},
        {"id": "1", "supersedes": "2"},
        {"id": "1", "superseded_by": [2]},
        {"id": "1", "event": []},
        {"id": "1", "created_at": 1},
    ],
)
def test_what_is_no_memory_is_refused_by_field_and_type(row: Any) -> None:
    with pytest.raises(ShapeError) as caught:
        replies.record(row)
    assert "MAYBE" not in str(caught.value)


def test_a_page_tells_the_last_one_from_a_server_without_pages() -> None:
    assert replies.page({"results": [], "next": "b"}, "a") == Page([], "b", paged=True)
    assert replies.page({"results": [], "next": None}, "a") == Page([], None, paged=True)
    assert replies.page({"results": []}, None) == Page([], None, paged=False)
    assert replies.page([], None) == Page([], None, paged=False)


@pytest.mark.parametrize("cursor", ["a", "", "\ud800", "\n", 1, {}])
def test_a_cursor_that_leads_nowhere_is_refused(cursor: Any) -> None:
    with pytest.raises(ShapeError):
        replies.page({"results": [], "next": cursor}, "a")


def test_a_change_is_dated_by_when_it_happened() -> None:
    row = {
        "id": "h",
        "memory_id": "1",
        "event": "UPDATE",
        "old_memory": "a",
        "new_memory": "b",
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-02-01T00:00:00Z",
        "is_deleted": False,
    }
    at = datetime(2026, 2, 1, tzinfo=UTC)
    assert replies.history([row]) == [HistoryEntry("h", "1", "UPDATE", "a", "b", at)]
    [first] = replies.history([{**row, "updated_at": None}])
    assert first.at == datetime(2026, 1, 1, tzinfo=UTC)


def test_entities_and_health_are_read() -> None:
    row = {"type": "run", "id": "r", "total_memories": 2, "created_at": None}
    assert replies.entities([row]) == [Entity("run", "r", 2)]
    health = {"status": "ok", "server": "pikuri-memory", "version": "1"}
    assert replies.health(health) == Health("ok", "pikuri-memory", "1")
    info = {"openapi": "3.1.0", "info": {"title": "T", "version": "2"}}
    assert replies.openapi(info) == Health("ok", "T", "2")


@pytest.mark.parametrize("payload", [None, {}, {"status": "ok"}, {"status": "ok", "server": 1}])
def test_another_product_s_health_is_not_taken_for_ours(payload: Any) -> None:
    with pytest.raises(ShapeError):
        replies.health(payload)


@given(
    st.datetimes(timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))))
)
def test_every_time_survives_the_wire(at: datetime) -> None:
    assert replies.record({"id": "1", "created_at": at.isoformat()}).created_at == at
