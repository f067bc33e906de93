from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Runner

HEAVY = {"rich", "httpx", "numpy", "psutil", "onnxruntime", "qdrant_edge", "uvicorn", "starlette"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from pikuri_memory.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: pikuri-memory" in told.stdout
    assert not HEAVY & set(json.loads(told.stderr))


def test_help_names_every_verb(run: Runner) -> None:
    told = run("--help").out
    for verb in (
        "up down status logs serve add search list get update delete history export import purge"
        " reset destroy key"
    ).split():
        assert f"\n  {verb} " in told
    assert "..." not in told.split("Commands:")[1], "a first sentence is too long for its line"


def test_without_a_verb_the_help_is_shown(run: Runner) -> None:
    assert run().out == run("--help").out
    assert "rotate" in run("key").out


def test_the_version_is_told(run: Runner) -> None:
    from pikuri_memory import __version__

    assert run("--version").out == f"pikuri-memory {__version__}\n"
    assert run("--version", "--json").document == {"version": __version__}


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "--limit", "many"],
        ["add"],
        ["list", "--limit"],
    ],
)
def test_a_mistake_in_the_command_line_is_an_error_with_a_hint(
    run: Runner, words: list[str]
) -> None:
    told = run(*words)
    assert told.code == 2
    assert told.out == ""
    error, hint = told.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: pikuri-memory ")
    assert hint.endswith("--help")


def test_with_json_an_error_is_json_on_standard_error(run: Runner, data_dir: Path) -> None:
    told = run("list", "--json")
    assert told.code == 6
    assert told.out == ""
    assert json.loads(told.err) == {
        "error": {
            "code": "not_running",
            "message": f"no server runs for {data_dir}",
            "hint": "start it: pikuri-memory up",
        }
    }
    assert not data_dir.exists()


def test_json_and_data_dir_may_stand_before_the_verb(run: Runner, tmp_path: Path) -> None:
    told = run("--json", "--data-dir", str(tmp_path / "elsewhere"), "status")
    assert told.document["data_dir"] == str(tmp_path / "elsewhere")


def test_an_impossible_setting_is_refused_with_its_words(run: Runner, data_dir: Path) -> None:
    told = run("up", "--log-level", "loud")
    assert told.code == 2
    assert "debug, info, warning, error" in told.err
    assert not data_dir.exists()


def test_a_pipe_that_breaks_is_no_error(server: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as broken:
        told = subprocess.run(
            [sys.executable, "-m", "pikuri_memory", "status"],
            stdout=broken,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert told.returncode == 141
    assert told.stderr == b""


def test_ctrl_c_ends_with_130_and_without_a_traceback(data_dir: Path) -> None:
    logs = data_dir / "logs"
    logs.mkdir(parents=True)
    (logs / "server.log").write_text("a line\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pikuri_memory", "logs", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background process of a shell ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"a line\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_completion_knows_the_verbs() -> None:
    environment = {
        **os.environ,
        "_PIKURI_MEMORY_COMPLETE": "complete_bash",
        "COMP_WORDS": "pikuri-memory s",
        "COMP_CWORD": "1",
    }
    told = subprocess.run(
        [sys.executable, "-m", "pikuri_memory"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(told.stdout.split()) == {"status", "serve", "search"}
