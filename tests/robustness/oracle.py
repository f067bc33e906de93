"""What must be there, from the clients' own logs, and whether it is.

A client writes down each request before it sends it and each answer after it came, and has one
request on the way at most. So its log tells what must be there (what was answered), and what may be
there, wholly or not at all (the request without an answer, and adds that it gave up).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pikuri_memory.embedded.index import Tokenizer

Item = dict[str, Any]
"""``text``, ``metadata``, ``run`` and, once it is known, ``id``."""


@dataclass
class Book:
    """What one client's log says.

    Attributes:
        path: The log.
        there: What must be there, by text.
        maybe: Adds that were given up: each wholly there or not at all.
        pending: The request that has no answer yet.
        deleted: Ids of which none may be there.
        updates: How many updates of an id were acknowledged.
        replies: Ids by spent key.
        wrong: What the client itself found wrong.
    """

    path: Path
    there: dict[str, Item] = field(default_factory=dict)
    maybe: list[list[Item]] = field(default_factory=list)
    pending: Item | None = None
    deleted: set[str] = field(default_factory=set)
    updates: Counter[str] = field(default_factory=Counter)
    replies: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    acknowledged: int = 0
    _read: int = 0

    @property
    def name(self) -> str:
        """The client's user id."""
        return self.path.stem

    def read(self) -> None:
        """Take in what the client has written since. It must be standing still."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for line in lines:
            self._take(json.loads(line))

    def _take(self, line: Item) -> None:
        if "wrong" in line:
            self.wrong.append(line["wrong"])
        elif "do" in line:
            assert self.pending is None
            self.pending = line
        else:
            assert self.pending is not None
            assert self.pending["n"] == line["n"]
            asked, self.pending = self.pending, None
            if "lost" in line:
                self.maybe.append(asked["items"])
            else:
                self.acknowledged += 1
                self._settle(asked, line)

    def _settle(self, asked: Item, answer: Item) -> None:
        if asked["do"] == "add":
            for item, id_ in zip(asked["items"], answer["ids"], strict=True):
                self.there[item["text"]] = {**item, "id": id_}
            if asked["key"] is not None:
                self.replies[asked["key"]] = answer["ids"]
        elif asked["do"] == "update":
            self.there = {
                item["text"]: item
                for item in (
                    {**asked["item"], "id": old["id"]} if old["id"] == asked["id"] else old
                    for old in self.there.values()
                )
            }
            self.updates[asked["id"]] += 1
        elif asked["do"] == "delete":
            self.there = {t: item for t, item in self.there.items() if item["id"] != asked["id"]}
            self.deleted.add(asked["id"])
        else:
            self.deleted |= {i["id"] for i in self.there.values() if i["run"] == asked["run"]}
            self.there = {t: item for t, item in self.there.items() if item["run"] != asked["run"]}
            self.maybe = [items for items in self.maybe if items[0]["run"] != asked["run"]]

    def complaints(self, found: list[Item]) -> list[str]:
        """What is wrong with what was found of this client's memories.

        Args:
            found: All that is there: ``id``, ``text``, ``metadata``, ``run``.
        """
        wrong = list(self.wrong)
        actual = {item["text"]: item for item in found}
        if len(actual) != len(found):
            twice = [text for text, n in Counter(item["text"] for item in found).items() if n > 1]
            wrong.append(f"stored twice: {twice}")
        expected, either = self._expected()
        for text, item in expected.items():
            if actual.get(text) != item:
                wrong.append(f"acknowledged is {item}, there is {actual.get(text)}")
        known = set(expected)
        for worlds in either:
            texts = {text for world in worlds for text in world}
            known |= texts
            there = {text: actual[text] for text in texts if text in actual}
            if not any(_same(there, world) for world in worlds):
                wrong.append(f"neither wholly there nor not at all: {there} of {worlds}")
        wrong += [f"not known, or deleted: {actual[text]}" for text in actual.keys() - known]
        back = self.deleted & {item["id"] for item in found}
        if back:
            wrong.append(f"deleted and there: {sorted(back)}")
        return wrong

    def _expected(self) -> tuple[dict[str, Item], list[list[dict[str, Item]]]]:
        """What must be there, and groups of which one of several worlds must be."""
        expected = dict(self.there)
        either: list[list[dict[str, Item]]] = [
            [{}, {item["text"]: item for item in items}] for items in self.maybe
        ]
        asked = self.pending
        if asked is None:
            return expected, either
        if asked["do"] == "add":
            either.append([{}, {item["text"]: item for item in asked["items"]}])
            return expected, either
        touched = {
            text: item
            for text, item in expected.items()
            if item["run"] == asked.get("run") or item["id"] == asked.get("id")
        }
        for text in touched:
            del expected[text]
        if asked["do"] == "update":
            (old,) = touched.values()
            new = {**asked["item"], "id": old["id"]}
            either.append([touched, {new["text"]: new}])
        else:
            either.append([touched, {}])
        return expected, either


def _same(there: dict[str, Item], world: dict[str, Item]) -> bool:
    """Whether a world is there; the id of what was never answered is not known."""
    return there.keys() == world.keys() and all(
        there[text] == {"id": there[text]["id"], **world[text]} for text in world
    )


def shape(memory: dict[str, Any]) -> Item:
    """A memory as REST shows it, as the books have it."""
    return {
        "id": memory["id"],
        "text": memory["memory"],
        "metadata": memory["metadata"],
        "run": memory["run_id"],
    }


def autopsy(record: Path, scratch: Path, books: list[Book]) -> list[str]:
    """Look into a dead server's record, in a copy, so that it stays as it was left.

    Args:
        record: The SQLite file.
        scratch: A directory for the copy; made anew.
        books: What must be there; all read.
    """
    if not record.exists() or record.stat().st_size == 0:
        return ["there is no record"]
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path in record.parent.glob(f"{record.name}*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, scratch / path.name)
    with closing(sqlite3.connect(scratch / record.name, isolation_level=None)) as db:
        return _sound(db) + [wrong for book in books for wrong in _kept(db, book)]


def _sound(db: sqlite3.Connection) -> list[str]:
    """What is wrong with the record in itself."""
    wrong: list[str] = []

    def check(what: str, sql: str) -> None:
        if rows := db.execute(sql).fetchmany(3):
            wrong.append(f"{what}: {rows}")

    check("integrity", "SELECT * FROM pragma_integrity_check(5) WHERE integrity_check != 'ok'")
    check("foreign keys", "SELECT * FROM pragma_foreign_key_check")
    check(
        "memories without vectors",
        "SELECT id FROM memories WHERE rowid NOT IN (SELECT rowid FROM vectors)",
    )
    check(
        "vectors without memories",
        "SELECT rowid FROM vectors WHERE rowid NOT IN (SELECT rowid FROM memories)",
    )
    check(
        "next vectors without memories",
        "SELECT rowid FROM next_vectors WHERE rowid NOT IN (SELECT rowid FROM memories)",
    )
    newest = "(SELECT max(rowid) FROM history GROUP BY memory_id)"
    check(
        "history that does not end with the text",
        f"SELECT m.id FROM memories m LEFT JOIN history h ON h.memory_id = m.id AND h.rowid IN"
        f" {newest} WHERE h.new_text IS NOT m.text",
    )
    check(
        "history that does not begin with ADD",
        "SELECT memory_id FROM history WHERE rowid IN (SELECT min(rowid) FROM history"
        " GROUP BY memory_id) AND event != 'ADD'",
    )
    check(
        "history with a gap",
        "SELECT memory_id FROM (SELECT memory_id, old_text, event, lag(new_text) OVER"
        " (PARTITION BY memory_id ORDER BY rowid) AS before FROM history) h"
        " WHERE event = 'UPDATE' AND old_text IS NOT before",
    )
    check(
        "history of a deleted memory with texts, or without an end",
        "SELECT memory_id FROM history h WHERE memory_id NOT IN (SELECT id FROM memories) AND"
        f" (old_text IS NOT NULL OR new_text IS NOT NULL OR (rowid IN {newest}"
        " AND event != 'DELETE'))",
    )
    check(
        "replies of memories that are gone",
        "SELECT memory_id FROM replies WHERE memory_id NOT IN (SELECT id FROM memories)",
    )
    latest = "(SELECT max(seq) FROM changes GROUP BY memory)"
    check(
        "change log that does not end with how it is",
        f"SELECT seq, memory, deleted FROM changes WHERE seq IN {latest}"
        " AND deleted = (memory IN (SELECT rowid FROM memories))",
    )
    check(
        "change log beyond its own count, or before what is indexed",
        "SELECT seq FROM changes WHERE seq > (SELECT seq FROM sqlite_sequence WHERE name ="
        " 'changes') OR seq <= (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'indexed_seq')",
    )
    check(
        "more is indexed than ever changed",
        "SELECT value FROM meta WHERE key = 'indexed_seq' AND CAST(value AS INTEGER) >"
        " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0)",
    )
    tokenizer = Tokenizer()
    counted: Counter[int] = Counter()
    for (text,) in db.execute("SELECT text FROM memories"):
        counted.update(tokenizer.ids(text))
    if dict(db.execute("SELECT term, documents FROM terms")) != dict(counted):
        wrong.append("the document frequencies are not those of the texts")
    return wrong


def _kept(db: sqlite3.Connection, book: Book) -> list[str]:
    """What the record lacks of a client's book."""
    found = [
        {"id": id_, "text": text, "metadata": json.loads(metadata), "run": run}
        for id_, text, metadata, run in db.execute(
            "SELECT id, text, metadata, run_id FROM memories WHERE user_id = ?", (book.name,)
        )
    ]
    wrong = book.complaints(found)
    updates = dict(
        db.execute(
            "SELECT memory_id, count(*) FROM history WHERE event = 'UPDATE' GROUP BY memory_id"
        )
    )
    wrong += [
        f"{id_} has a history of {updates.get(id_, 0)} updates, {n} were acknowledged"
        for id_, n in book.updates.items()
        if updates.get(id_, 0) < n
    ]
    alive = {item["id"] for item in found}
    stored: dict[str, list[str]] = {}
    for key, id_ in db.execute(
        "SELECT i.key, r.memory_id FROM idempotency i JOIN replies r ON r.key = i.rowid"
        " WHERE i.key IS NOT NULL ORDER BY r.key, r.position"
    ):
        stored.setdefault(key, []).append(id_)
    wrong += [
        f"the reply of a key is {stored.get(key, [])}, not {ids}"
        for key, ids in book.replies.items()
        if stored.get(key, []) != [id_ for id_ in ids if id_ in alive]
    ]
    return wrong
