from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pikuri_memory import discovery, process
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.embedded import EmbeddedServer

from .conftest import Runner

STATUS = set(
    "state detail server endpoint api_key_file data_dir log_file pid version memories embedder"
    " extraction router findings reembedding language index disk read_only purge_pending keep"
    " leases stack".split()
)


def test_up_status_and_down_belong_together(run: Runner, data_dir: Path) -> None:
    up = run("up")
    assert up.code == 0, up.err
    assert up.out.startswith("the server is up\n")
    assert str(data_dir) in up.out
    assert 'pikuri-memory add "' in up.out

    status = run("status", "--json").document
    assert set(status) == STATUS
    assert status["state"] == "running"
    assert status["server"] == "embedded"
    assert status["memories"] == 0
    assert status["extraction"] is None
    assert status["embedder"]["model"] == "all-MiniLM-L6-v2"
    assert status["keep"] is True
    assert status["leases"] == []
    assert status["endpoint"] in up.out
    assert stat.S_IMODE(os.stat(status["api_key_file"]).st_mode) == 0o600

    again = run("up", "--json").document
    assert again["was_running"] is True
    assert again["pid"] == status["pid"]
    moved = run("up", "--port", "9999")
    assert moved.code == 0
    assert "--port 9999 was not used" in moved.err

    run("add", "I have a cat", "--user", "ada")
    down = run("down")
    assert f"(pid {status['pid']}) is stopped" in down.out
    assert run("down", "--json").document["stopped"] is False
    assert run("status", "--json").document["state"] == "stopped"
    assert run("up", "--json").document["memories"] == 1


def test_status_of_nothing_makes_nothing(run: Runner, data_dir: Path) -> None:
    told = run("status")
    assert told.code == 0
    assert "stopped" in told.out
    assert "pikuri-memory up" in told.err
    assert set(run("status", "--json").document) == STATUS
    assert run("down").code == 0
    assert not data_dir.exists()


def test_down_names_who_uses_the_server_and_needs_force(run: Runner, data_dir: Path) -> None:
    with EmbeddedServer(port=0, data_dir=data_dir):
        refused = run("down")
        assert refused.code == 6
        assert f"(pid {os.getpid()})" in refused.err
        assert "--force" in refused.err
        assert str(os.getpid()) in run("status").out
        forced = run("down", "--force", "--json").document
        assert forced["stopped"] is True
        assert [row["pid"] for row in forced["leases"]] == [os.getpid()]


def test_a_server_that_was_killed_is_told_and_started_again(run: Runner, data_dir: Path) -> None:
    first = run("up", "--json").document
    run("add", "I have a cat", "--user", "ada")
    info = discovery.read_server_info(DataPaths.at(data_dir))
    assert info is not None
    process.signal_process(info.pid, info.start_time, signal.SIGKILL)
    while info.is_running():
        time.sleep(0.02)
    status = run("status", "--json").document
    assert (status["state"], status["pid"]) == ("stopped", None)
    assert "ended without being stopped" in status["detail"]
    refused = run("list")
    assert refused.code == 6
    assert "ended without being stopped" in refused.err
    second = run("up", "--json").document
    assert second["was_running"] is False
    assert second["pid"] != first["pid"]
    assert [row["text"] for row in run("list", "--json").lines] == ["I have a cat"]


def test_the_log_is_shown_from_its_end(run: Runner, data_dir: Path) -> None:
    assert "no log yet" in run("logs").err
    logs = data_dir / "logs"
    logs.mkdir(parents=True)
    (logs / "server.log.1").write_text("one\ntwo\n")
    (logs / "server.log").write_text("three\n\x1b[2Jfour\n")
    assert run("logs").out == "one\ntwo\nthree\n\\x1b[2Jfour\n"
    assert run("logs", "-n", "2").out == "three\n\\x1b[2Jfour\n"
    assert run("logs", "-n", "1", "--json").lines == [{"line": "\x1b[2Jfour"}]


@pytest.mark.parametrize("kept", [True, False])
def test_serve_runs_in_the_foreground(data_dir: Path, kept: bool) -> None:
    words = [sys.executable, "-m", "pikuri_memory", "serve", *(["--keep"] if kept else [])]
    server = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        if kept:
            paths = DataPaths.at(data_dir)
            while discovery.read_server_info(paths) is None and server.poll() is None:
                time.sleep(0.05)
            assert server.poll() is None
            server.send_signal(signal.SIGTERM)
        # Without --keep it ends by itself, because nobody uses it.
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, errors) == (0, b"")


def test_serve_and_up_have_a_flag_for_every_setting(run: Runner) -> None:
    from pikuri_memory.settings import SETTINGS

    for verb in ("serve", "up"):
        told = run(verb, "--help").out
        for row in SETTINGS.values():
            assert row.flag in told
