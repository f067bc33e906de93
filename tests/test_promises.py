"""What users of such software suffer, and what is promised instead: one test a promise.

The rows are those of the project's list of complaints that the embedded server answers for. Other
rows have their test where their subject is tested (``grep -rn "def test_row_" tests``).
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pikuri_memory
from pikuri_memory import (
    DataDirectoryInUseError,
    EmbeddedServer,
    ExtractionUnavailableError,
    Mem0Client,
    PikuriMemoryError,
    PortInUseError,
    ServerUnavailableError,
    process,
)
from pikuri_memory.paths import DataPaths


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(port=0, data_dir=tmp_path / "data") as started:
        yield started


def command(*words: str, data_dir: Path, check: bool = True) -> process.Completed:
    return process.run(
        [sys.executable, "-m", "pikuri_memory", *words, "--data-dir", str(data_dir)],
        timeout=60,
        check=check,
    )


def test_row_3_a_turn_is_stored_or_answered_with_an_error_never_neither(
    server: EmbeddedServer,
) -> None:
    memory = server.client()
    assert memory.add("I live in Oulu", user_id="anna")
    before = len(memory.get_all(user_id="anna"))
    for messages in (
        [{"role": "user", "content": "   "}],
        [{"role": "assistant", "content": "noted"}],
    ):
        with pytest.raises(PikuriMemoryError) as caught:
            memory.add_messages(messages, user_id="anna")
        assert caught.value.hint
    with pytest.raises(ExtractionUnavailableError):
        memory.add("I live in Turku", user_id="anna", infer=True)
    assert len(memory.get_all(user_id="anna")) == before


def test_row_4_what_is_reported_as_added_can_be_read_in_the_record(server: EmbeddedServer) -> None:
    memory = server.client()
    added = [memory.add(f"fact number {i}", user_id="anna")[0] for i in range(30)]
    with closing(sqlite3.connect(DataPaths(server.data_dir).record)) as record:
        stored = {id_ for (id_,) in record.execute("SELECT id FROM memories")}
    assert {each.id for each in added} == stored
    assert {memory.get(each.id).text for each in added} == {f"fact number {i}" for i in range(30)}


def test_row_5_down_removes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command("up", "--port", "0", data_dir=data)
    try:
        command("add", "I live in Oulu", "--user", "anna", data_dir=data)
    finally:
        command("down", data_dir=data)
    with EmbeddedServer(port=0, data_dir=data) as server:
        assert [m.text for m in server.client().get_all(user_id="anna")] == ["I live in Oulu"]


def test_row_30_the_data_lies_in_the_data_directory_and_status_says_where() -> None:
    data = Path(os.environ["XDG_DATA_HOME"]) / "pikuri" / "memory"
    run = [sys.executable, "-m", "pikuri_memory"]
    process.run([*run, "up", "--port", "0"], timeout=60)
    try:
        process.run([*run, "add", "I live in Oulu", "--user", "anna"], timeout=60)
        shown = json.loads(process.run([*run, "status", "--json"], timeout=60).stdout)
        assert Path(shown["data_dir"]) == data
    finally:
        process.run([*run, "down"], timeout=60)
    assert DataPaths(data).record.is_file()


def test_row_8_no_key_no_account_no_network(server: EmbeddedServer) -> None:
    assert not [name for name in os.environ if name.startswith(("OPENAI_", "OPENROUTER_"))]
    server.client().add("I live in Oulu", user_id="anna")
    [best] = server.client().search("Where is home?", user_id="anna")
    assert best.text == "I live in Oulu"


def test_row_10_the_key_is_there_by_default_and_found_by_our_clients(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DataPaths(server.data_dir).api_key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(server.data_dir))
    with Mem0Client(server.endpoint) as found_by_itself:
        found_by_itself.add("I live in Oulu", user_id="anna")
    with Mem0Client(server.endpoint, api_key="wrong") as wrong, pytest.raises(PikuriMemoryError):
        wrong.get_all(user_id="anna")


def test_row_13_a_second_owner_is_refused_and_told_who_has_the_data(tmp_path: Path) -> None:
    with EmbeddedServer(port=0, data_dir=tmp_path / "data") as server:
        second = command("serve", "--port", "0", "--json", data_dir=server.data_dir, check=False)
        assert second.returncode == DataDirectoryInUseError.exit_code
        assert "pid" in second.stderr
        server.client().add("I live in Oulu", user_id="anna")


def test_row_14_many_writers_at_once_never_meet_a_locked_database(server: EmbeddedServer) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with server.client() as memory:
                for i in range(25):
                    memory.add(f"fact {number} {i}", user_id="anna")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(server.client().get_all(user_id="anna")) == 200


def test_row_18_the_embedder_is_in_the_package_and_nothing_comes_to_lie_beside_it(
    server: EmbeddedServer,
) -> None:
    shipped = Path(pikuri_memory.__file__).parent
    assert [path.name for path in shipped.rglob("*.onnx")] == ["minilm.onnx"]
    server.client().add("I live in Oulu", user_id="anna")
    assert server.client().search("Where is home?", user_id="anna")
    status = json.loads(command("status", "--json", data_dir=server.data_dir).stdout)
    assert status["embedder"]["model"] == "all-MiniLM-L6-v2"
    home = Path(os.environ["HOME"])
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_row_20_one_server_serves_all(server: EmbeddedServer) -> None:
    with EmbeddedServer(port=0, data_dir=server.data_dir) as second:
        assert second.endpoint == server.endpoint
        second.client().add("I live in Oulu", user_id="anna")
    assert [m.text for m in server.client().get_all(user_id="anna")] == ["I live in Oulu"]


def test_row_21_an_export_is_verified_by_importing_it(tmp_path: Path) -> None:
    with EmbeddedServer(port=0, data_dir=tmp_path / "one") as one:
        memory = one.client()
        kept = memory.add("I live in Turku", user_id="anna", metadata={"sure": True})[0]
        memory.update(kept.id, text="I live in Oulu")
        before = memory.get_all()
        changes = [(c.event, c.old_text, c.new_text) for c in memory.history(kept.id)]
        command("export", str(tmp_path / "all.jsonl"), data_dir=one.data_dir)
    with EmbeddedServer(port=0, data_dir=tmp_path / "two") as two:
        command("import", str(tmp_path / "all.jsonl"), data_dir=two.data_dir)
        command("import", str(tmp_path / "all.jsonl"), data_dir=two.data_dir)
        assert two.client().get_all() == before
        again = [(c.event, c.old_text, c.new_text) for c in two.client().history(kept.id)]
        assert again == changes


def test_row_24_a_failed_start_tells_the_reason_and_a_hint(tmp_path: Path) -> None:
    data = DataPaths(tmp_path / "data")
    data.root.mkdir()
    data.record.write_bytes(b"this is no database" * 1000)
    with pytest.raises(PikuriMemoryError) as caught:
        EmbeddedServer(port=0, data_dir=data.root).start()
    assert caught.value.code == "damaged_record"
    assert str(data.record) in caught.value.message
    assert caught.value.hint
    assert data.record.read_bytes() == b"this is no database" * 1000


def test_row_26_a_port_in_use_is_told_with_its_owner_and_the_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            EmbeddedServer(port=port, data_dir=tmp_path / "data").start()
    assert f"pid {os.getpid()}" in caught.value.message
    assert "--port" in caught.value.hint


def test_row_27_a_killed_user_leaves_no_server_behind(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal\n"
        "from pikuri_memory import EmbeddedServer\n"
        "server = EmbeddedServer(port=0, data_dir=sys.argv[1]).start()\n"
        "print(open(sys.argv[1] + '/server.json').read(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = process.run(
        [sys.executable, "-c", script, str(tmp_path / "data")], timeout=60, check=False
    )
    info = json.loads(done.stdout)
    from pikuri_memory.waiting import Deadline, wait_for

    wait_for(
        lambda: not process.is_alive(info["pid"], info["start_time"]) or None,
        Deadline(30),
        what="the server to stop by itself",
        describe=lambda: f"pid {info['pid']}",
        hint="",
    )


def test_row_31_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    with (
        Mem0Client(endpoint, api_key="k") as memory,
        pytest.raises(ServerUnavailableError) as caught,
    ):
        memory.search("anything", user_id="anna")
    assert endpoint in caught.value.message
    assert "pikuri-memory" in caught.value.hint
