"""A data directory whose memories are those of the container stack, on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pikuri_memory import EmbeddedServer
from pikuri_memory.errors import InvalidRequestError
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import kinds
from tests.cli.conftest import Runner
from tests.cli.conftest import run as run
from tests.stack.plans import PLAN


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataPaths:
    """A directory in which a stack has run, and stopped."""
    paths = DataPaths.at(tmp_path / "data")
    paths.root.mkdir(mode=0o700)
    paths.stack_plan.write_text(json.dumps(PLAN))
    paths.stack_state.write_text("{}")
    paths.stack_vectors.write_text('{"pikuri_memory": ["an-embedder", 64]}')
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(paths.root))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    return paths


def test_an_empty_server_does_not_take_the_place_of_a_stack_with_memories(
    run: Runner, paths: DataPaths
) -> None:
    refused = run("up", "--port", "0")
    assert refused.code == 2
    assert str(paths.root) in refused.err
    assert "hint: pikuri-memory up --docker" in refused.err
    assert not paths.record.exists()


def test_no_way_of_starting_it_makes_an_empty_server_there(run: Runner, paths: DataPaths) -> None:
    served = run("serve")
    assert served.code == 2
    assert "up --docker" in served.err
    with pytest.raises(InvalidRequestError, match="container stack"):
        EmbeddedServer(port=0, data_dir=paths.root).start()
    assert not paths.record.exists()


def test_a_hint_names_the_directory_where_one_has_to_be_named(
    run: Runner, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIKURI_MEMORY_DATA_DIR")
    status = run("status", "--data-dir", str(paths.root))
    assert f"start it: pikuri-memory up --docker --data-dir {paths.root}\n" in status.err
    assert kinds.start_command(DataPaths.at(None)) == "pikuri-memory up"


def test_every_hint_of_a_stopped_stack_starts_the_stack(run: Runner, paths: DataPaths) -> None:
    status = run("status")
    assert status.code == 0
    assert "state:    stopped" in status.out
    assert "sealed" not in status.out
    assert "should be running" not in status.out
    assert "start it: pikuri-memory up --docker\n" in status.err
    listed = run("list", "--user", "ada")
    assert listed.code == 6
    assert "hint: start it: pikuri-memory up --docker\n" in listed.err


def test_a_stack_is_asked_to_start_as_it_was(run: Runner, paths: DataPaths) -> None:
    """It comes as far as the engine, which is not there: nothing of the models is missing."""
    again = run("up", "--docker")
    assert again.code == 10
    assert "model endpoint" not in again.err
    kept = json.loads(paths.stack_plan.read_text())
    for name in ("router_url", "llm_model", "embedder_model", "embedding_dims", "repo_url"):
        assert kept[name] == PLAN[name]
    other = run("up", "--docker", "--embedder-model", "another")
    assert other.code == 10
    kept = json.loads(paths.stack_plan.read_text())
    assert (kept["embedder_model"], kept["embedding_dims"]) == ("another", 768)


def test_memories_of_a_stack_are_not_embedded_anew(run: Runner, paths: DataPaths) -> None:
    refused = run("reembed")
    assert refused.code == 2
    assert "pikuri-memory export" in refused.err
    assert not paths.record.exists()


def test_the_models_of_a_stacks_router_are_asked_for(run: Runner, paths: DataPaths) -> None:
    asked = run("models", "--router-timeout", "1")
    assert asked.code != 0
    assert "http://127.0.0.1:9" in asked.err


def test_the_server_that_ran_last_is_the_one_to_start_again(paths: DataPaths) -> None:
    paths.stack_vectors.rename(paths.root / "aside")
    with EmbeddedServer(port=0, data_dir=paths.root) as server, server.client() as memory:
        memory.add("Ada plays the cello.", user_id="ada")
    (paths.root / "aside").rename(paths.stack_vectors)
    assert kinds.held(paths) == {"embedded", "mem0"}
    assert kinds.start_command(paths) == "pikuri-memory up"
    kinds.refuse_embedded(paths)
    os.utime(paths.stack_state)
    assert kinds.start_command(paths) == "pikuri-memory up --docker"
