"""Whoever types the hint of an error has solved what it tells of."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pikuri_memory import process
from tests.router.scripted import MISBEHAVIOURS, Call, Reply, ScriptedRouter, Seen

SAID = "I moved to Oulu in spring. My cat is called Bella."
DEEP, CALM = "deep-8b-instruct", "calm-8b-instruct"

Type = Callable[[str], process.Completed]


@pytest.fixture
def type_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Type]:
    """Runs a line of shell as a person would; whatever it started is stopped at the end."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PIKURI_MEMORY_PORT", "0")
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", str(tmp_path / "memory"))
    monkeypatch.setenv("PIKURI_MEMORY_ROUTER_TIMEOUT", "20")

    def run(line: str) -> process.Completed:
        return process.run(["bash", "-c", line], timeout=120, check=False)

    yield run
    run("pikuri-memory down")


def typed(text: str, pattern: str) -> str:
    """The part of a hint that is a command."""
    assert "hint: " in text, text
    found = re.search(pattern, text)
    assert found, text
    return found.group()


class DeepAndCalm(ScriptedRouter):
    """Two chat models, of which one thinks and never comes to an answer."""

    def reply(self, seen: Seen) -> Reply:
        """As told, but for what the deep one says."""
        reply = super().reply(seen)
        if seen.kind != "chat" or seen.model != DEEP:
            return reply
        call = Call(self, seen.kind, seen.method, seen.path, seen.headers, seen.body)
        return MISBEHAVIOURS["thinks_always"].apply(call, reply)


def test_a_thinking_model_is_exchanged_by_the_hint(type_in: Type) -> None:
    with DeepAndCalm(chat_models=(DEEP, CALM)) as router:
        up = type_in(f"pikuri-memory up --router {router.url} --llm-model {DEEP}")
        assert up.returncode == 0, up.stderr
        failed = type_in(f"pikuri-memory add --user anna '{SAID}'")
        assert failed.returncode == 9
        assert "ends while it still thinks" in failed.stderr
        assert type_in("pikuri-memory list --user anna --json").stdout.count("Oulu") == 0
        solved = type_in(typed(failed.stderr, rf"pikuri-memory down && [^;]* {CALM}"))
        assert solved.returncode == 0, solved.stderr
        added = type_in(f"pikuri-memory add --user anna '{SAID}'")
        assert added.returncode == 0, added.stderr
        assert "Bella" in type_in("pikuri-memory list --user anna").stdout


def test_a_context_that_is_too_small_is_enlarged_by_the_hint(type_in: Type) -> None:
    with ScriptedRouter(context_tokens=2000, flavour="llama.cpp-router") as router:
        up = type_in(f"pikuri-memory up --router {router.url}")
        assert up.returncode == 0, up.stderr
        status = type_in("pikuri-memory status")
        assert "2000 tokens" in status.stdout + status.stderr
        failed = type_in(f"pikuri-memory add --user anna '{SAID}'")
        assert failed.returncode == 9
        assert "reads 2000 tokens at once" in failed.stderr
        # The router's side of the hint, typed where the router is started.
        router.context_tokens = int(typed(failed.stderr, r"(?<=llama-server -c )\d+"))
        added = type_in(f"pikuri-memory add --user anna '{SAID}'")
        assert added.returncode == 0, added.stderr
        assert "Bella" in type_in("pikuri-memory list --user anna").stdout


def test_vectors_of_another_dimension_are_made_anew_by_the_hint(type_in: Type) -> None:
    with ScriptedRouter() as router:
        up = type_in(f"pikuri-memory up --router {router.url}")
        assert up.returncode == 0, up.stderr
        assert type_in(f"pikuri-memory add --user anna '{SAID}'").returncode == 0
        router.dimensions = 96
        failed = type_in("pikuri-memory add --user anna 'I took up rowing last week.'")
        assert failed.returncode == 9
        assert "vectors of 96 numbers, and the memories have 64" in failed.stderr
        solved = type_in(typed(failed.stderr, r"pikuri-memory reembed [^\n]*"))
        assert solved.returncode == 0, solved.stderr
        added = type_in("pikuri-memory add --user anna 'I took up rowing last week.'")
        assert added.returncode == 0, added.stderr
        found = type_in("pikuri-memory search --user anna 'what is the cat called'")
        assert "Bella" in found.stdout
        assert "words" not in found.stderr
