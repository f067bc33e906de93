from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory.models.builtin import DIMENSIONS
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import local
from tests.router.scripted import ScriptedRouter

from .conftest import Runner

BUILTIN = "all-MiniLM-L6-v2"


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    with ScriptedRouter(chat_models=(), dimensions=48) as router:
        yield router


@pytest.fixture
def filled(run: Runner, data_dir: Path) -> Path:
    """A data directory with two memories and a running server."""
    run("up")
    run("add", "Anna keeps goats", "--user", "anna")
    run("add", "Ben plays the cello", "--user", "ben")
    return data_dir


def job(run: Runner) -> Any:
    return run("status", "--json").document["reembedding"]


def embedder(run: Runner) -> Any:
    return run("status", "--json").document["embedder"]


def test_all_memories_are_embedded_by_a_model_of_the_router(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    told = run("reembed", "--router", router.url, "--embedder-model", "scripted-embed")
    assert told.code == 0, told.err
    assert "2 memories are embedded by scripted-embed (48 dimensions) now" in told.out
    assert embedder(run)["dimensions"] == 48
    assert "Anna keeps goats" in run("search", "goats", "--user", "anna").out
    run("down")
    assert run("up").code == 0  # without a word about models
    assert embedder(run)["model"] == "scripted-embed"
    assert "Ben plays the cello" in run("search", "cello", "--user", "ben").out


def test_the_best_model_is_taken_where_none_is_named(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    told = run("reembed", "--router", router.url, "--json").document
    assert {name: told[name] for name in ("result", "model", "dimensions", "memories")} == {
        "result": "done",
        "model": "scripted-embed",
        "dimensions": 48,
        "memories": 2,
    }


def test_without_a_server_one_is_started_and_stopped_again(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    run("down")
    told = run("reembed", "--router", router.url)
    assert told.code == 0, told.err
    assert run("status", "--json").document["state"] == "stopped"
    run("up")
    assert embedder(run)["model"] == "scripted-embed"


def test_the_embedder_in_use_is_left_alone(run: Runner, filled: Path) -> None:
    told = run("reembed", "--embedder-model", "builtin")
    assert told.code == 0, told.err
    assert f"embedded by {BUILTIN} ({DIMENSIONS} dimensions) already" in told.out


def test_the_way_back_to_the_builtin_one_needs_no_router(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    run("reembed", "--router", router.url)
    router.stop()
    told = run("reembed", "--embedder-model", "builtin")
    assert told.code == 0, told.err
    assert embedder(run)["dimensions"] == DIMENSIONS
    assert "Anna keeps goats" in run("search", "which animals?", "--user", "anna").out
    run("down")
    assert run("up").code == 0
    assert embedder(run)["model"] == BUILTIN


def test_a_router_that_is_away_begins_nothing(run: Runner, filled: Path) -> None:
    told = run("reembed", "--router", "http://127.0.0.1:9", "--embedder-model", "any")
    assert told.code == 9
    assert "hint: " in told.err
    assert job(run) is None


def test_without_a_router_it_asks_for_one(run: Runner, filled: Path) -> None:
    told = run("reembed")
    assert told.code == 2
    assert "reembed --router URL" in told.err


def test_a_model_that_is_not_offered_is_refused_with_those_that_are(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    told = run("reembed", "--router", router.url, "--embedder-model", "none-such")
    assert told.code == 9
    assert "scripted-embed" in told.err
    assert job(run) is None


def test_a_model_that_does_not_work_is_refused_with_what_is_wrong(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    router.rule("nan")
    named = run("reembed", "--router", router.url, "--embedder-model", "scripted-embed")
    assert named.code == 9
    assert "not finite" in named.err
    router.behave()
    router.rule("constant_vectors")
    best = run("reembed", "--router", router.url)
    assert best.code == 9
    assert "the same vector for every text" in best.err
    assert embedder(run)["model"] == BUILTIN


def test_the_hint_of_a_refused_start_is_the_command_that_helps(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    run("down")
    models = ("--embedder-model", "scripted-embed", "--router", router.url)
    refused = run("up", *models)
    assert refused.code == 5
    hint = refused.err.partition("hint: ")[2].strip()
    assert hint.startswith("pikuri-memory reembed ")
    assert run(*hint.split()[1:]).code == 0
    assert run("up", *models).code == 0
    assert embedder(run)["model"] == "scripted-embed"


def test_a_variable_that_names_another_embedder_does_not_stop_it(
    run: Runner, filled: Path, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("down")
    monkeypatch.setenv("PIKURI_MEMORY_EMBEDDER_MODEL", "scripted-embed")
    monkeypatch.setenv("PIKURI_MEMORY_ROUTER", router.url)
    assert run("up").code == 5
    assert run("reembed").code == 0
    assert run("up").code == 0
    assert embedder(run)["model"] == "scripted-embed"


def test_it_can_be_left_to_itself_joined_and_cancelled(
    run: Runner, filled: Path, router: ScriptedRouter
) -> None:
    wanted = ("reembed", "--router", router.url, "--embedder-model", "scripted-embed")
    router.latency = 1.0
    begun = run(*wanted, "--no-wait", "--json").document
    assert (begun["result"], begun["total"]) == ("begun", 2)
    assert job(run)["model"] == "scripted-embed"
    assert "scripted-embed" in run("status").out
    other = run("reembed", "--embedder-model", "builtin")
    assert other.code == 2
    assert "reembed --cancel" in other.err
    assert run("reembed", "--cancel", "--json").document == {"cancelled": True}
    assert job(run) is None
    assert run("reembed", "--cancel", "--json").document == {"cancelled": False}
    assert embedder(run)["model"] == BUILTIN
    router.latency = 0.0
    assert run(*wanted, "--no-wait", "--json").document["result"] == "begun"
    assert run("reembed").code == 0
    assert embedder(run)["model"] == "scripted-embed"


def test_ctrl_c_leaves_it_going(run: Runner, filled: Path, router: ScriptedRouter) -> None:
    router.latency = 1.0
    command = [sys.executable, "-m", "pikuri_memory", "reembed", "--router", router.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 30
        while job(run) is None:
            assert time.monotonic() < end
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"it goes on in the server; see how far: pikuri-memory reembed" in told
    assert run("reembed").code == 0
    assert embedder(run)["model"] == "scripted-embed"


def test_memories_go_out_and_come_in_meanwhile(
    run: Runner, filled: Path, router: ScriptedRouter, tmp_path: Path
) -> None:
    router.latency = 0.3
    run("reembed", "--router", router.url, "--no-wait")
    export = tmp_path / "export.jsonl"
    assert run("export", str(export)).code == 0
    run("delete", "--user", "anna", "--yes")
    assert run("import", str(export), "--json").document["added"] == 1
    assert job(run) is not None
    router.latency = 0.0
    assert run("reembed").code == 0
    assert "Anna keeps goats" in run("search", "goats", "--user", "anna").out


def test_a_pause_is_told_with_its_reason(run: Runner, filled: Path, router: ScriptedRouter) -> None:
    router.latency = 0.2
    with local.connected(DataPaths.at(filled)) as client:
        client.add_batch([{"text": f"fact {n}", "user_id": "ada"} for n in range(500)])
        run("reembed", "--router", router.url, "--no-wait")
        router.stop()
        end = time.monotonic() + 30
        while client.status()["reembedding"]["state"] != "paused":
            assert time.monotonic() < end
            time.sleep(0.05)
    shown = run("status").out
    assert "paused" in shown
    router.latency = 0.0
    router.start()
    told = run("reembed")
    assert told.code == 0, told.err
    assert embedder(run)["model"] == "scripted-embed"


def test_without_memories_there_is_nothing_to_do(run: Runner, data_dir: Path) -> None:
    told = run("reembed", "--embedder-model", "builtin")
    assert told.code == 2
    assert "pikuri-memory up" in told.err
    assert not data_dir.exists()
