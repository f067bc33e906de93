from __future__ import annotations

import json
from pathlib import Path

from pikuri_memory.discovery import read_server_info
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.embedded import EmbeddedServer

from .conftest import Runner


def test_what_is_exported_can_be_imported_elsewhere_and_is_the_same(
    run: Runner, server: Path, user: str, tmp_path: Path
) -> None:
    run("add", "kept [b]as it is[/b] \x1b\u2028 猫", "--user", user, "--metadata", '{"a": [1]}')
    run("add", "it ends", "--user", user, "--run", "r", "--expires", "2199-12-31")
    run("add", "it has ended", "--user", user, "--expires", "2001-01-01")
    changed = run("add", "before", "--user", user, "--json").document["results"][0]["id"]
    run("update", changed, "after")
    run("add", "The user lives in Turku", "--user", user)
    run("add", "The user moved from Turku to Oulu", "--user", user)
    file = tmp_path / "export.jsonl"
    told = run("export", str(file), "--user", user)
    assert told.out == f"exported 6 memories to {file}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".*")) == []

    other = tmp_path / "other"
    with EmbeddedServer(port=0, data_dir=other, free_space_reserve=0):
        at = ["--data-dir", str(other)]
        assert run("import", str(file), *at).out == "6 added, 0 known already, 0 refused\n"
        assert run("import", str(file), *at).out == "0 added, 6 known already, 0 refused\n"
        again = run("export", "--json", *at).lines
    header, *memories = [json.loads(line) for line in file.read_text().splitlines()]
    assert header["format"] == "pikuri-memory-export"
    assert header["version"] == 1
    assert header["scope"] == {"user_id": user}
    assert memories == again[1:]
    assert [row["new_text"] for row in memories[2]["history"]] == ["before", "after"]
    assert memories[0]["supersedes"] == [memories[1]["id"]]
    assert memories[1]["superseded_by"] == [memories[0]["id"]]


def test_a_bad_line_costs_nothing_else(run: Runner, server: Path, user: str) -> None:
    good = [json.dumps({"memory": f"good {number}", "user_id": user}) for number in range(5)]
    lines = [*good[:2], "{", "", '{"text": "whose?"}', *good[2:], good[0]]
    told = run("import", "-", "--json", stdin="\n".join(lines))
    assert told.code == 2
    assert (told.document["added"], told.document["known"]) == (5, 1)
    assert [row["place"] for row in told.document["refused"]] == [3, 5]
    plain = run("import", "-", stdin="\n".join(lines))
    assert plain.code == 2
    assert plain.out == "0 added, 6 known already, 2 refused\n"
    assert "refused line 3: it is not JSON" in plain.err
    assert "whose?" not in plain.err


def test_memories_are_imported_from_a_running_server(
    run: Runner, server: Path, user: str, tmp_path: Path
) -> None:
    run("add", "one", "--user", user)
    run("add", "two", "--user", user, "--agent", "helper")
    info = read_server_info(DataPaths.at(server))
    assert info is not None
    other = tmp_path / "other"
    with EmbeddedServer(port=0, data_dir=other, free_space_reserve=0):
        words = ["--from", info.endpoint, "--data-dir", str(other), "--user", user, "--json"]
        words += ["--api-key-file", str(server / "api-key")]
        assert run("import", *words).document["added"] == 2
        assert run("import", *words).document["known"] == 2
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong")
        refused = run("import", *words[:-1], str(wrong))
        assert refused.code == 4
        there = run("list", "--data-dir", str(other), "--json").lines
    here = run("list", "--user", user, "--json").lines
    assert there == here


def test_an_import_needs_one_source(run: Runner, server: Path, tmp_path: Path) -> None:
    for words in (
        [],
        ["-", "--from", "http://127.0.0.1:1"],
        ["-", "--user", "ada"],
        [str(tmp_path / "missing")],
    ):
        told = run("import", *words)
        assert told.code == 2
        assert "hint: " in told.err


def test_an_export_that_fails_leaves_the_old_file(
    run: Runner, data_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text("old")
    assert run("export", str(file)).code == 6
    assert file.read_text() == "old"
