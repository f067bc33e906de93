"""A record that cannot be used is refused with a hint, and left exactly as it was."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory.embedded.records import Records
from pikuri_memory.errors import DamagedRecordError, NewerSchemaError
from tests.embedded.parts import ANNA, keep, open_engine, wait
from tests.robustness.arena import Arena
from tests.robustness.load_client import CANARY

PAGE = 4096


def half(record: Path) -> None:
    os.truncate(record, record.stat().st_size // 2)


def a_page_less(record: Path) -> None:
    os.truncate(record, record.stat().st_size - PAGE)


def a_byte_less(record: Path) -> None:
    os.truncate(record, record.stat().st_size - 1)


def only_the_header(record: Path) -> None:
    os.truncate(record, 100)


def a_few_bytes(record: Path) -> None:
    os.truncate(record, 10)


def garbage(record: Path) -> None:
    record.write_bytes(os.urandom(record.stat().st_size))


def text(record: Path) -> None:
    record.write_text("these are not the bytes you are looking for\n" * 1000)


def garbage_within(record: Path) -> None:
    with open(record, "r+b") as file:
        file.seek(3 * PAGE)
        file.write(os.urandom(30 * PAGE))


def zeros_within(record: Path) -> None:
    with open(record, "r+b") as file:
        file.seek(3 * PAGE)
        file.write(bytes(30 * PAGE))


def a_garbled_root(record: Path) -> None:
    with open(record, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(400))


DAMAGES = [
    half,
    a_page_less,
    a_byte_less,
    only_the_header,
    a_few_bytes,
    garbage,
    text,
    garbage_within,
    zeros_within,
    a_garbled_root,
]


def made(directory: Path) -> Path:
    """A record with memories, closed cleanly."""
    engine = open_engine(directory)
    wait(keep(engine, [f"{CANARY} likes thing{n}" for n in range(200)], ANNA))
    engine.close()
    return directory / "memories.sqlite3"


def opened(record: Path) -> None:
    Records(record, terms_of=lambda text: []).close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused_with_a_hint_and_left_as_it_was(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    record = made(tmp_path)
    opened(record)
    damage(record)
    before = record.read_bytes()
    with pytest.raises(DamagedRecordError) as told:
        opened(record)
    assert str(record) in told.value.message
    assert "cp " in told.value.hint
    assert CANARY not in told.value.message + told.value.hint
    assert record.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_after_a_crash_is_refused_unless_the_log_repairs_it(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """What was damaged may still stand in the write-ahead log, which puts it right."""
    with Arena(tmp_path) as arena:
        record = arena.paths.record
        made(arena.paths.root)
        arena.start()
        arena.add_many([f"{CANARY} likes another{n}" for n in range(5)], "anna")
        arena.kill()
        assert record.with_name(record.name + "-wal").stat().st_size > 0
        damage(record)
        before = record.read_bytes()
        try:
            arena.start()
        except AssertionError:
            printed = arena.output.read_text()
            assert json.loads(printed.splitlines()[-1])["code"] == "damaged_record"
            assert CANARY not in printed
            assert record.read_bytes() == before
        else:
            assert damage in (a_page_less, a_byte_less, a_garbled_root)
            assert len(arena.listed("anna")) == 205
            arena.stop()
            with closing(sqlite3.connect(record)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_server_refuses_a_damaged_record_in_one_line_and_touches_nothing(tmp_path: Path) -> None:
    with Arena(tmp_path) as arena:
        record = made(arena.paths.root)
        half(record)
        before = record.read_bytes()
        for _ in range(2):
            server = arena.spawn()
            assert server.wait(60) == 5
            (line,) = arena.output.read_text().splitlines()
            told: dict[str, Any] = json.loads(line)
            assert told["code"] == "damaged_record"
            assert ".recover" in told["hint"]
            assert record.read_bytes() == before
            assert not arena.paths.server_info.exists()
        assert (arena.paths.index / "current.json").exists()


def test_a_record_of_a_newer_version_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    record = made(tmp_path / "data")
    with closing(sqlite3.connect(record)) as db:
        db.execute("INSERT INTO migrations VALUES ('0999-later', 1)")
        db.execute("ALTER TABLE memories ADD COLUMN colour TEXT")
        db.commit()
    before = record.read_bytes()
    with pytest.raises(NewerSchemaError) as told:
        opened(record)
    assert "0999-later" in told.value.message
    assert "pip install --upgrade" in told.value.hint
    assert record.read_bytes() == before
    with Arena(tmp_path) as arena:
        server = arena.spawn()
        assert server.wait(60) == 5
        assert json.loads(arena.output.read_text())["code"] == "newer_schema"
        assert record.read_bytes() == before


@pytest.mark.parametrize("clean", [True, False])
def test_a_record_that_was_removed_leaves_an_empty_server_that_works(
    tmp_path: Path, clean: bool
) -> None:
    with Arena(tmp_path) as arena:
        arena.start()
        arena.add_many([f"{CANARY} likes thing{n}" for n in range(50)], "anna")
        if clean:
            arena.stop()
        else:
            arena.kill()
        arena.paths.record.unlink()  # and not what SQLite may have left beside it
        arena.start()
        assert arena.listed("anna") == []
        assert arena.search(f"{CANARY} likes thing7", "anna") == []
        id_ = arena.add(f"{CANARY} begins anew", "anna")
        assert [hit["id"] for hit in arena.search("begins anew", "anna")] == [id_]
        arena.kill()
        arena.start()
        assert [memory["id"] for memory in arena.listed("anna")] == [id_]
        arena.stop()


def test_an_empty_file_is_a_new_record(tmp_path: Path) -> None:
    """A server that is killed in its first moment leaves one behind."""
    (tmp_path / "memories.sqlite3").touch()
    engine = open_engine(tmp_path)
    assert len(wait(keep(engine, "likes tea", ANNA))) == 1
    engine.close()
