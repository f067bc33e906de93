from __future__ import annotations

import os
from pathlib import Path

from pikuri_memory.servers.embedded import EmbeddedServer

from .conftest import Runner


def on_disk(directory: Path, text: str) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_a_purge_takes_deleted_text_off_the_disk(run: Runner, data_dir: Path) -> None:
    run("up")
    memory_id = run("add", "the word is xylophage", "--user", "ada", "--json").document["results"][
        0
    ]["id"]
    assert on_disk(data_dir, "xylophage")
    run("delete", memory_id)
    assert run("purge").code == 0
    assert on_disk(data_dir, "xylophage") == []


def test_a_reset_asks_and_then_deletes_everything(run: Runner, data_dir: Path) -> None:
    run("up")
    run("add", "one", "--user", "ada")
    run("add", "two", "--user", "grace")
    asked = run("reset", stdin="n\n")
    assert asked.code == 2
    assert "delete 2 memories" in asked.err
    assert run("reset").code == 2
    assert len(run("list").out.splitlines()) == 2
    assert run("reset", "--yes", "--json").document == {"deleted": 2}
    assert run("list").out == ""


def test_row_5_destroy_wants_the_name_typed(run: Runner, data_dir: Path) -> None:
    run("up")
    for words, stdin in (
        (["destroy"], ""),
        (["destroy"], "y\n"),
        (["destroy", "--yes-destroy", "other"], "memory\n"),
    ):
        told = run(*words, stdin=stdin)
        assert told.code == 2
        assert "memory" in told.err
    assert run("status", "--json").document["state"] == "running"
    told = run("destroy", stdin="memory\n")
    assert told.code == 0, told.err
    assert "the server was stopped" in told.out
    assert not data_dir.exists()
    assert run("destroy", "--yes-destroy", "memory").code == 2


def test_destroy_leaves_a_server_that_is_used(run: Runner, data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir) as server:
        told = run("destroy", "--yes-destroy", "memory")
        assert told.code == 6
        assert f"(pid {os.getpid()})" in told.err
        with server.client() as client:
            client.add("still here", user_id="ada")
    assert (data_dir / "memories.sqlite3").is_file()


def test_the_key_is_replaced_with_a_server_and_without(run: Runner, data_dir: Path) -> None:
    path = Path(run("key", "path").out.strip())
    assert path == data_dir / "api-key"
    assert not data_dir.exists()
    assert run("key", "rotate", "--json").document == {"api_key_file": str(path), "endpoint": None}
    first = path.read_text()
    endpoint = run("up", "--json").document["endpoint"]
    assert path.read_text() == first
    assert run("key", "rotate", "--json").document["endpoint"] == endpoint
    assert path.read_text() != first
    assert run("add", "with the new key", "--user", "ada").code == 0
