from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory.paths import DataPaths
from tests.router.scripted import ScriptedRouter

from .conftest import Runner

TURN = "I moved from Turku to Oulu last week. My dog Rocco fears thunder."


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    with ScriptedRouter(
        chat_models=("small-1b-instruct", "right-7b-instruct"),
        other_models=("whisper-large",),
        flavour="llama.cpp-router",
    ) as scripted:
        yield scripted


def test_models_tells_what_is_offered_and_what_each_would_be_used_for(
    run: Runner, data_dir: Path, router: ScriptedRouter
) -> None:
    told = run("models", "--router", router.url, "--json").document
    assert told["router"] == router.url
    assert {model["id"]: (model["kind"], model["used_for"]) for model in told["models"]} == {
        "small-1b-instruct": ("chat", None),
        "right-7b-instruct": ("chat", "extraction"),
        "scripted-embed": ("embedding", "embedding"),
        "whisper-large": ("unknown", None),
    }
    assert told["extraction"]["model"] == "right-7b-instruct"
    assert told["extraction"]["why"]
    assert told["embedding"]["model"] == "scripted-embed"
    assert {finding["level"] for finding in told["findings"]} <= {"ok", "note"}
    assert router.count("chat", "small-1b-instruct") == 0, "one chat model is loaded at most"

    shown = run("models", "--router", router.url)
    assert "right-7b-instruct\tchat\t" in shown.out
    assert "extraction: right-7b-instruct (" in shown.out
    named = run("models", "--router", router.url, "--llm-model", "small-1b-instruct", "--json")
    assert named.document["extraction"] == {"model": "small-1b-instruct", "why": "asked for"}
    assert not data_dir.exists(), "no server was started, and nothing was remembered"


def test_models_without_a_router_says_how_to_name_one(run: Runner, data_dir: Path) -> None:
    told = run("models")
    assert told.code == 2
    assert "hint: say where your models answer: pikuri-memory models --router" in told.err


def test_a_router_that_is_away_or_lacks_a_model_is_told_with_code_9(
    run: Runner, data_dir: Path, router: ScriptedRouter
) -> None:
    away = run("models", "--router", "http://127.0.0.1:1")
    assert (away.code, "hint: " in away.err) == (9, True)
    absent = run("up", "--router", router.url, "--llm-model", "gpt-9", "--json")
    assert absent.code == 9
    error = json.loads(absent.err)["error"]
    assert error["code"] == "model_not_offered"
    assert "right-7b-instruct" in error["message"] + error["hint"]
    assert run("status", "--json").document["state"] == "stopped"


def test_up_says_which_models_it_picked_and_the_rest_follows(
    run: Runner, data_dir: Path, router: ScriptedRouter
) -> None:
    up = run("up", "--router", router.url)
    assert up.code == 0, up.err
    assert f"router:     {router.url}\n" in up.out
    assert "extraction: by right-7b-instruct\n" in up.out
    assert "embedder:   scripted-embed\n" in up.out

    added = run("add", TURN, "--user", "ada", "--json").document["results"]
    assert [one["text"] for one in added] == [
        "I moved from Turku to Oulu last week.",
        "My dog Rocco fears thunder.",
    ]
    kept = run("add", TURN, "--user", "ben", "--no-infer", "--json").document["results"]
    assert [one["text"] for one in kept] == [TURN]
    run("add", "I have a cat now.", "--user", "ada", "--infer", "--prompt", "Only animals.")
    assert "Only animals." in json.dumps(router.seen("chat")[-1].body)
    nothing = run("add", "Hi!", "--user", "ada")
    assert nothing.code == 0
    assert "no fact" in nothing.err

    status = run("status")
    assert "by right-7b-instruct, ready: 0 waiting, 0 running, 3 done, 0 failed" in status.out
    document = run("status", "--json").document
    assert document["router"] == router.url
    assert document["embedder"]["state"] == "ok"
    assert document["extraction"]["model"] == "right-7b-instruct"

    again = run("up", "--router", "http://127.0.0.1:1", "--llm-model", "small-1b-instruct")
    assert again.code == 0
    assert (
        "pikuri-memory down && pikuri-memory up --router http://127.0.0.1:1 --llm-model"
        " small-1b-instruct" in again.err
    )
    same = run("up", "--router", router.url + "/v1", "--llm-model", "right-7b-instruct")
    assert "was not used" not in same.err
    listed = run("models", "--json").document
    assert listed["embedding"]["why"] == "the memories are embedded by it"
    assert listed["extraction"]["why"] == "chosen before"


def test_a_search_that_had_to_do_with_words_says_so(
    run: Runner, data_dir: Path, router: ScriptedRouter
) -> None:
    run("up", "--router", router.url)
    run("add", TURN, "--user", "ada")
    assert run("search", "thunder", "--user", "ada", "--json").document["degraded"] is None
    router.stop()
    found = run("search", "what does the dog fear", "--user", "ada")
    assert "My dog Rocco fears thunder." in found.out
    assert found.err.startswith("note: searched by words alone, because ")
    assert "hint: " in found.err
    degraded = run("search", "has the dog fear", "--user", "ada", "--json").document["degraded"]
    assert degraded["code"] == "embedder_unavailable"
    failed = run("add", TURN, "--user", "ben", "--json")
    assert failed.code == 9
    assert json.loads(failed.err)["error"]["code"] in ("embedder_unavailable", "router_unreachable")
    status = run("status")
    assert status.code == 0
    assert "scripted-embed, unavailable since " in status.out
    assert "last error, at " in status.out


def test_extraction_that_was_asked_for_in_vain_says_how_to_have_it(
    run: Runner, server: Path, user: str
) -> None:
    told = run("add", "I have a cat", "--user", user, "--infer")
    assert told.code == 2
    assert "pikuri-memory up --router URL" in told.err


def test_findings_are_told_by_up_with_what_to_type(run: Runner, data_dir: Path) -> None:
    with ScriptedRouter(context_tokens=2000, flavour="llama.cpp") as router:
        up = run("up", "--router", router.url)
        assert up.code == 0, up.err
        assert "problem: " in up.err
        assert "-c 16384" in up.err
        assert run("status").err.count("problem: ") == up.err.count("problem: ")


def test_a_key_file_that_others_may_read_is_refused(
    run: Runner, data_dir: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-the-router\n")
    key.chmod(0o644)
    with ScriptedRouter(api_key="secret-of-the-router") as router:
        words = ("--router", router.url, "--router-key-file", os.path.relpath(key))
        refused = run("up", *words)
        assert refused.code == 4
        assert f"chmod 600 {key}" in refused.err
        key.chmod(0o600)
        assert run("up", *words).code == 0
        assert "secret" not in DataPaths.at(data_dir).models.read_text()
