"""The oracle of the kill tests must see what it is there to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.embedded.parts import ANNA, keep, open_engine, wait
from tests.robustness.oracle import Book, autopsy


def item(text: str, run: str = "r") -> dict[str, Any]:
    return {"text": text, "metadata": {}, "run": run}


def book(tmp_path: Path, *lines: dict[str, Any]) -> Book:
    path = tmp_path / "anna.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Book(path)
    found.read()
    return found


ADD = {"n": 1, "do": "add", "items": [item("a"), item("b")], "key": None}
ADDED = {"n": 1, "ok": True, "ids": ["1", "2"]}
A, B = {"id": "1", **item("a")}, {"id": "2", **item("b")}


@pytest.mark.parametrize("found", [[], [A], [A, A, B], [A, {**B, "metadata": {"x": 1}}], [A, B, B]])
def test_it_sees_that_something_acknowledged_is_lost_or_changed_or_twice(
    tmp_path: Path, found: list[Any]
) -> None:
    seen = book(tmp_path, ADD, ADDED)
    assert seen.complaints([A, B]) == []
    assert seen.complaints(found) != []


def test_it_sees_that_half_of_a_request_was_done(tmp_path: Path) -> None:
    for seen in (book(tmp_path, ADD), book(tmp_path, ADD, {"n": 1, "lost": True})):
        assert seen.complaints([A, B]) == []
        assert seen.complaints([]) == []
        assert seen.complaints([B]) != []


def test_it_sees_that_something_deleted_is_back(tmp_path: Path) -> None:
    delete = {"n": 2, "do": "delete", "id": "1"}
    pending = book(tmp_path, ADD, ADDED, delete)
    assert pending.complaints([A, B]) == []
    assert pending.complaints([B]) == []
    assert pending.complaints([A]) != []
    done = book(tmp_path, ADD, ADDED, delete, {"n": 2, "ok": True})
    assert done.complaints([B]) == []
    assert done.complaints([A, B]) != []
    assert done.complaints([{**A, "text": "another"}, B]) != []


def test_it_sees_that_a_run_was_deleted_by_half(tmp_path: Path) -> None:
    delete = {"n": 2, "do": "delete_run", "run": "r"}
    pending = book(tmp_path, ADD, ADDED, delete)
    assert pending.complaints([A, B]) == []
    assert pending.complaints([]) == []
    assert pending.complaints([A]) != []


def test_it_sees_that_an_update_is_lost_or_was_done_by_half(tmp_path: Path) -> None:
    new = {"text": "c", "metadata": {"n": 1}, "run": "r"}
    update = {"n": 2, "do": "update", "id": "1", "item": new}
    pending = book(tmp_path, ADD, ADDED, update)
    assert pending.complaints([A, B]) == []
    assert pending.complaints([{"id": "1", **new}, B]) == []
    assert pending.complaints([{"id": "1", **new, "metadata": {}}, B]) != []
    done = book(tmp_path, ADD, ADDED, update, {"n": 2, "ok": True})
    assert done.complaints([{"id": "1", **new}, B]) == []
    assert done.complaints([A, B]) != []


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        ("UPDATE memories SET text = 'other'", "history"),
        ("DELETE FROM vectors WHERE rowid = 1", "vectors"),
        ("UPDATE terms SET documents = documents + 1", "frequencies"),
        ("INSERT INTO changes (memory, deleted) VALUES (1, 1)", "change log"),
        ("UPDATE meta SET value = 100 WHERE key = 'indexed_seq'", "indexed"),
        ("DELETE FROM memories WHERE rowid = 2", "history of a deleted"),
        ("INSERT INTO replies VALUES (77, 0, 'nobody', 'ADD')", "foreign keys"),
    ],
)
def test_it_sees_a_record_that_is_not_sound(tmp_path: Path, harm: str, name: str) -> None:
    engine = open_engine(tmp_path / "data")
    for text in ("likes tea", "likes coffee", "likes water"):
        wait(keep(engine, text, ANNA))
    engine.close()
    import sqlite3

    record = tmp_path / "data" / "memories.sqlite3"
    assert autopsy(record, tmp_path / "copy", []) == []
    with sqlite3.connect(record) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute(harm)
    db.close()
    assert name in str(autopsy(record, tmp_path / "copy", []))
