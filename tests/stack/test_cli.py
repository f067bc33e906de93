"""The container stack on the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pikuri_memory import EmbeddedServer, discovery, process
from pikuri_memory.paths import DataPaths
from tests.cli.conftest import Runner
from tests.cli.conftest import run as run
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack.conftest import Upstream, clean, docker, leftovers
from tests.stack.ollama import EMBEDDER, LLM

FACT = "Ada is allergic to walnuts"


@pytest.fixture
def flags(
    engine: None,
    upstream: Upstream,
    router: ScriptedRouter,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[str]]:
    """What `up --docker` is given; the data directory is known to all verbs."""
    from pikuri_memory import Mem0Server

    data = home / "data"
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(data))
    yield [
        *("up", "--docker", "--router", router.url, "--llm-model", LLM),
        *("--embedder-model", EMBEDDER, "--port", "0", "--qdrant-port", "0"),
        *("--cache-dir", str(home), "--mem0-repo-url", upstream.url),
        *("--mem0-ref", upstream.ref, "--healthcheck-timeout", "240"),
        *("--patch-dir", str(Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF)),
    ]
    clean(data)


def test_up_use_status_logs_repair_and_down(
    run: Runner, flags: list[str], router: ScriptedRouter, home: Path
) -> None:
    router.answer = remembers(FACT)
    up = run(*flags)
    assert up.code == 0, up.err
    assert up.out.startswith("the stack is up\n")
    for step in ("checking", "starting the services", "ready"):
        assert step in up.err
    assert run("add", "I am allergic to walnuts", "--user", "ada").code == 0
    assert FACT in run("search", "walnuts", "--user", "ada").out

    status = run("status")
    assert status.code == 0
    for words in ("state:    running", "sealed:   yes", "mem0: Up", "router-proxy: Up", "stays up"):
        assert words in status.out
    told = run("status", "--json").document
    assert told["server"] == "mem0"
    assert told["stack"]["sealed"] is True
    assert {row["name"] for row in told["stack"]["services"]} == {
        *("front", "mem0", "qdrant", "router-proxy")
    }

    assert "POST /search" in run("logs", "mem0", "-n", "500").out
    assert "the stack answers on" in run("logs").out
    assert FACT not in run("logs", "mem0", "-n", "5000").out
    unknown = run("logs", "nobody")
    assert unknown.code == 2
    assert "mem0, qdrant, front" in unknown.err

    assert run("key", "rotate").code == 0
    # It counts when the command returns.
    assert FACT in run("search", "walnuts", "--user", "ada").out
    assert run("purge").code == 2
    assert [row["text"] for row in run("list", "--json").lines] == [FACT]

    # Half of it is dead, its keeper too.
    info = discovery.read_server_info(DataPaths.at(home / "data"))
    assert info is not None
    process.signal_process(info.pid, info.start_time, signal.SIGKILL)
    names = docker("ps", "--format", "{{.Names}}").split()
    [mem0] = [name for name in names if name.endswith("-mem0-1") and name in str(told)] or [
        name for name in names if name.endswith("-mem0-1") and _of(name, home)
    ]
    docker("rm", "--force", mem0)
    again = run(*flags)
    assert again.code == 0, again.err
    assert FACT in run("search", "walnuts", "--user", "ada").out
    assert run(*flags, "--json").document["was_running"] is True

    assert run("reset", "--yes", "--json").document == {"deleted": 1}
    assert run("list").out == ""
    down = run("down")
    assert down.code == 0, down.err
    assert f"its memories are in {home / 'data'}" in down.out
    assert run("status", "--json").document["state"] == "stopped"


def _status(endpoint: str, key: str | None) -> int:
    headers = {"X-API-Key": key or ""}
    found = httpx.get(f"{endpoint}/memories?user_id=ada", headers=headers, trust_env=False)
    return found.status_code


def _of(name: str, home: Path) -> bool:
    label = '{{index .Config.Labels "pikuri-internal.data-dir"}}'
    return docker("inspect", "--format", label, name) == str(home / "data")


def test_an_export_goes_into_a_stack_that_starts_as_it_was(
    run: Runner, flags: list[str], home: Path, tmp_path: Path
) -> None:
    assert run(*flags).code == 0
    assert run("down").code == 0
    refused = run("up", "--port", "0")
    assert refused.code == 2
    assert "hint: pikuri-memory up --docker" in refused.err
    again = run("up", "--docker", *flags[flags.index("--port") :])
    assert again.code == 0, again.err
    file = tmp_path / "memories.jsonl"
    lines = [
        {"text": FACT, "user_id": "ada", "metadata": {"k": 1}, "created_at": "2020-05-01T08:00Z"},
        {"text": "Ada plays the cello", "scope": {"user_id": "ada", "agent_id": "helper"}},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for added, known in ((2, 0), (0, 2)):
        told = run("import", str(file), "--json").document
        assert (told["added"], told["known"], told["refused"]) == (added, known, [])
    found = {row["text"]: row for row in run("list", "--json").lines}
    assert set(found) == {FACT, "Ada plays the cello"}
    assert found[FACT]["created_at"] == "2020-05-01T08:00:00+00:00"
    assert found[FACT]["metadata"] == {"k": 1}
    assert found["Ada plays the cello"]["agent_id"] == "helper"


def test_row_27_down_removes_what_a_killed_keeper_left(
    run: Runner, flags: list[str], home: Path
) -> None:
    assert run(*flags).code == 0
    info = discovery.read_server_info(DataPaths.at(home / "data"))
    assert info is not None
    process.signal_process(info.pid, info.start_time, signal.SIGKILL)
    from pikuri_memory.stack.plan import StackPlan

    plan = StackPlan.read(DataPaths.at(home / "data"))
    assert plan is not None
    assert leftovers(plan.project) != []
    told = run("status", "--json").document
    assert told["state"] == "stopped"
    assert told["stack"]["services"][0]["actual"] == "running"
    # Whoever had the key is out, though nobody looks after the containers.
    old = discovery.read_api_key(DataPaths.at(home / "data"))
    assert _status(info.endpoint, old) == 200
    assert run("key", "rotate").code == 0
    assert _status(info.endpoint, old) == 401
    again = run(*flags)
    assert again.code == 0, again.err
    assert run("list").code == 0
    info = discovery.read_server_info(DataPaths.at(home / "data"))
    assert info is not None
    assert _status(info.endpoint, old) == 401
    assert run("down").code == 0
    assert leftovers(plan.project) == []


def test_what_is_missing_is_said_with_a_line_to_type(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(tmp_path / "data"))
    bare = run("up", "--docker")
    assert bare.code == 2
    assert "--router http://127.0.0.1:8080 --llm-model NAME" in bare.err
    https = run(
        *("up", "--docker", "--router", "https://x.example", "--llm-model", "a"),
        *("--embedder-model", "b"),
    )
    assert https.code == 2
    assert "container_router_url" in https.err
    odd = run("up", "--qdrant-port", "7000")
    assert odd.code == 2
    assert "add --docker" in odd.err
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    down = run(
        *("up", "--docker", "--router", "http://127.0.0.1:9", "--llm-model", "a"),
        *("--embedder-model", "b", "--port", "0", "--qdrant-port", "0"),
    )
    assert down.code == 10
    assert "hint: " in down.err
    assert run("logs", "mem0").code in (2, 10)
    assert run("down").code == 0


def test_beside_an_embedded_server_it_is_refused(run: Runner, flags: list[str], home: Path) -> None:
    with EmbeddedServer(port=0, data_dir=home / "data") as server:
        same_data = run(*flags)
        assert same_data.code == 5
        assert "pikuri-memory down" in same_data.err
        port = server.endpoint.rpartition(":")[2]
        same_port = run(*flags, "--data-dir", str(home / "other"), "--port", port)
        assert same_port.code == 6
        assert f"port {port} on 127.0.0.1 is in use by" in same_port.err
        assert "--port" in same_port.err
    assert os.environ["PIKURI_MEMORY_DATA_DIR"] == str(home / "data")
