"""Turns become facts through mem0's pipeline, over real HTTP, and nothing is lost on the way."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pikuri_memory import process
from pikuri_memory.embedded.extraction import VERSION, MemoryExtractor
from pikuri_memory.embedded.model import Fact, Message, StoredMemory, Turn
from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbedderUnavailableError,
    EmbeddingError,
    InvalidRequestError,
    ModelAnswerError,
    ModelError,
    RouterBusyError,
    RouterRefusedError,
    RouterTimeoutError,
    RouterUnreachableError,
    StorageError,
)
from pikuri_memory.models.chat_trial import PROMPT_CHARACTERS
from pikuri_memory.models.probe import ChatAbility
from pikuri_memory.models.router import Patience, Router
from pikuri_memory.record import Scope
from pikuri_memory.waiting import Deadline
from tests.conftest import require
from tests.embedded.parts import HashEmbedder
from tests.robustness.connections import SYSCALLS, addresses, outside
from tests.router.scripted import ScriptedRouter
from tests.temptations import TEMPTATIONS

ROOT = Path(__file__).parents[2]
CHAT = "scripted-instruct"
ABLE = ChatAbility(
    model=CHAT,
    output_mode="json_schema",
    thinks=False,
    thinking_off=None,
    context_tokens=32_768,
    prompt_tokens=9_000,
    fits=True,
    canary=True,
)
TEXTS = ["User moved from Turku to Oulu", "User's sister is called <think>Aino</think>"]


def completion(
    content: str | None,
    *,
    reasoning: str | None = None,
    finish: str = "stop",
    usage: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A chat completion, word for word."""
    message = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    told: dict[str, Any] = {"choices": [{"message": message, "finish_reason": finish}]}
    if usage is not None:
        told["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return told


def said(*facts: str | tuple[str, str | None]) -> dict[str, Any]:
    """The completion of a model that keeps to what it was asked."""
    memory = []
    for number, fact in enumerate(facts):
        text, by = (fact, "user") if isinstance(fact, str) else fact
        memory.append({"id": str(number), "text": text, "attributed_to": by})
    return completion(json.dumps({"memory": memory}))


Script = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Answering(ScriptedRouter):
    """A router whose chat model says one thing after the other, and goes on with the last."""

    def __init__(self, *script: Script) -> None:
        super().__init__(context_tokens=1_000_000)
        self.script = list(script)

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What is next in the script."""
        next_one = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return dict(next_one(body) if callable(next_one) else next_one)

    @property
    def asked(self) -> list[Any]:
        """Bodies of the chat requests."""
        return [seen.body for seen in self.seen("chat")]

    def prompt(self, role: str = "user") -> str:
        """What the last request said in a role."""
        (content,) = [m["content"] for m in self.asked[-1]["messages"] if m["role"] == role]
        return str(content)


def nothing_known(vector: NDArray[np.float32], count: int) -> Sequence[StoredMemory]:
    return []


def turn(*texts: str, **changes: Any) -> Turn:
    given = Turn(
        messages=[Message("user", text) for text in texts or ("I moved to Oulu.",)],
        scope=Scope("anna"),
        recent=[],
        existing=nothing_known,
    )
    return replace(given, **changes)


def stored(memory_id: str, text: str) -> StoredMemory:
    return StoredMemory(memory_id, text, Scope("anna"), {}, 1, 1, None)


class Embedder(HashEmbedder):
    """Counts, and fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.failure: Exception | None = None
        self.wrong: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda rows: rows

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As told; the first call is for the turn, to look up what is known."""
        self.asked.append(list(texts))
        rows = super().embed(texts)
        if len(self.asked) == 1:
            return rows
        if self.failure is not None:
            raise self.failure
        return self.wrong(rows)


def extract(
    answering: ScriptedRouter,
    given: Turn | None = None,
    *,
    able: ChatAbility = ABLE,
    embedder: Any = None,
    seconds: float = 60.0,
) -> list[Fact]:
    with closing(Router(answering.url, patience=Patience(total=30.0))) as router:
        extractor = MemoryExtractor(router, able, embedder or Embedder())
        extractor.warm_up()
        return extractor.extract(given or turn(), Deadline(seconds))


# ------------------------------------------------------------------ what comes out


def test_facts_have_the_models_order_its_attribution_and_the_embedders_vectors() -> None:
    answer = said(TEXTS[0], (TEXTS[1], "assistant"), ("User is well", None))
    with Answering(answer) as answering:
        found = extract(answering)
    assert [fact.text for fact in found] == [*TEXTS, "User is well"]
    assert [dict(fact.metadata) for fact in found] == [
        {"attributed_to": "user"},
        {"attributed_to": "assistant"},
        {},
    ]
    wanted = HashEmbedder().embed([fact.text for fact in found])
    for fact, row in zip(found, wanted, strict=True):
        assert fact.vector is not None
        np.testing.assert_array_equal(fact.vector, row)


def test_the_turn_is_embedded_and_then_all_facts_in_one_call() -> None:
    embedder = Embedder()
    with Answering(said(*TEXTS)) as answering:
        extract(answering, turn("Hello", "I moved."), embedder=embedder)
    assert embedder.asked == [["user: Hello\nuser: I moved.\n"], TEXTS]


def test_a_long_turn_is_looked_up_by_its_start() -> None:
    embedder = Embedder()
    long = "word " * 20_000
    with Answering(said()) as answering:
        extract(answering, turn(long), embedder=embedder)
        assert long in answering.prompt()
    assert [[len(text) for text in texts] for texts in embedder.asked] == [[1000]]


def test_no_facts_when_the_model_says_that_there_are_none() -> None:
    with Answering(said()) as answering:
        assert extract(answering) == []
    assert len(answering.asked) == 1


def test_a_text_that_comes_twice_in_an_answer_is_one_fact() -> None:
    with Answering(said("User likes tea", "User likes rye", "User likes tea")) as answering:
        found = extract(answering)
    assert [fact.text for fact in found] == ["User likes tea", "User likes rye"]


def test_a_fact_that_is_known_already_comes_out_for_the_record_to_judge() -> None:
    known = [stored("a", TEXTS[0])]
    with Answering(said(TEXTS[0])) as answering:
        found = extract(answering, turn(existing=lambda vector, count: known))
    assert [fact.text for fact in found] == [TEXTS[0]]


def test_texts_survive_whatever_is_in_them() -> None:
    texts = ["```json\n{}\n```", "<think>x</think>", "a\x00b", "line\u2028break", "🧖‍♀️ \\u003c"]
    with Answering(said(*texts)) as answering:
        assert [fact.text for fact in extract(answering)] == texts


# ------------------------------------------------------------------ what the model is shown


def test_the_whole_turn_is_shown_with_what_was_before_and_what_is_known() -> None:
    asked: list[tuple[NDArray[np.float32], int]] = []

    def existing(vector: NDArray[np.float32], count: int) -> Sequence[StoredMemory]:
        asked.append((vector, count))
        return [stored("8d0c", "User lives in Turku"), stored("7f1e", "User has a cat")]

    given = turn(
        messages=[
            Message("system", "Be kind."),
            Message("user", "I moved to Oulu."),
            Message("assistant", "How is the sauna there?"),
        ],
        recent=[Message("user", f"earlier {number}") for number in range(12)],
        existing=existing,
    )
    with Answering(said(TEXTS[0])) as answering:
        extract(answering, given)
        prompt = answering.prompt()
    assert "system: Be kind.\nuser: I moved to Oulu.\nassistant: How is the sauna there?" in prompt
    assert "earlier 1\n" not in prompt
    assert "user: earlier 2\n" in prompt
    assert prompt.index("earlier 2\n") < prompt.index("earlier 11\n")
    assert '{"id": "0", "text": "User lives in Turku"}' in prompt
    assert '{"id": "1", "text": "User has a cat"}' in prompt
    ((vector, count),) = asked
    assert count == 10
    assert vector.shape == (64,)
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5


@pytest.mark.parametrize(
    ("scope", "agents"),
    [
        (Scope(user_id="anna"), False),
        (Scope(run_id="r"), False),
        (Scope(user_id="anna", agent_id="helper"), False),
        (Scope(agent_id="helper"), True),
        (Scope(agent_id="an agent with spaces", run_id="run 1"), True),
    ],
)
def test_memories_of_an_agent_are_asked_for_from_its_side(scope: Scope, agents: bool) -> None:
    with Answering(said(TEXTS[0])) as answering:
        assert len(extract(answering, turn(scope=scope))) == 1
        assert ("The primary entity is an AI agent" in answering.prompt("system")) == agents
        for value in scope.as_dict().values():
            assert value not in answering.prompt() or len(value) == 1, "ids stay here"


def test_an_own_prompt_reaches_the_model() -> None:
    with Answering(said()) as answering:
        extract(answering, turn(prompt="Only what is about saunas."))
        assert "## Custom Instructions\nOnly what is about saunas." in answering.prompt()


def test_the_answers_form_is_asked_for_as_the_endpoint_can() -> None:
    asked = {}
    for mode in ("json_schema", "json_object", "prompt"):
        with Answering(said()) as answering:
            extract(answering, able=replace(ABLE, output_mode=mode))
            asked[mode] = answering.asked[0].get("response_format")
    assert asked["prompt"] is None
    assert asked["json_object"] == {"type": "json_object"}
    assert asked["json_schema"]["type"] == "json_schema"
    # Strict mode wants it, and a grammar made of it leaves no way to leave a text out.
    schema = asked["json_schema"]["json_schema"]["schema"]
    item = schema["properties"]["memory"]["items"]
    assert set(item["required"]) == set(item["properties"])
    assert schema["additionalProperties"] is item["additionalProperties"] is False


def test_thinking_is_switched_off_as_the_probe_found() -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    with Answering(said()) as answering:
        extract(answering, able=replace(ABLE, thinks=True, thinking_off=off))
        assert answering.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_thinking_is_switched_off_by_a_word_where_only_that_helps() -> None:
    able = replace(ABLE, thinks=True, prompt_suffix=" /no_think")
    with ScriptedRouter() as router:
        router.rule("thinks_unless_no_think")
        assert len(extract(router, able=able)) == 1
        router.play("wrong_schema")
        assert len(extract(router, able=able)) == 1
        ends = [seen.body["messages"][-1]["content"][-10:] for seen in router.seen("chat")]
    assert ends == [" /no_think"] * 3


def test_answers_are_bounded_but_never_beyond_the_context() -> None:
    limits = []
    for context in (None, 1_000_000, 14_500, 9_000):
        with Answering(said()) as answering:
            extract(answering, able=replace(ABLE, context_tokens=context))
            limits.append(answering.asked[0].get("max_tokens"))
    assert limits[:2] == [4096, 4096]
    assert 1024 <= limits[2] < 4096
    assert limits[3] is None, "the router knows its own end best"


# ------------------------------------------------------------------ answers that are none

BROKEN = {
    "empty": completion(""),
    "no content": completion(None),
    "reasoning only": completion("", reasoning="The user moved, so " + TEXTS[0]),
    "thoughts in the text": completion(f"<think>{TEXTS[0]}</think>"),
    "cut": completion(json.dumps({"memory": [{"text": TEXTS[0]}]})[:-9], finish="length"),
    "cut without a word": completion(json.dumps({"memory": [{"text": TEXTS[0]}]})[:-2]),
    "cut while thinking": completion("", reasoning=TEXTS[0], finish="length"),
    "prose": completion("The user moved from Turku to Oulu."),
    "wrong schema": completion(json.dumps({"facts": TEXTS})),
    "strings": completion(json.dumps({"memory": TEXTS})),
    "an empty text": completion(json.dumps({"memory": [{"text": TEXTS[0]}, {"text": ""}]})),
    "two answers": completion('{"memory": []} ' + json.dumps({"memory": [{"text": "x"}]})),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_asked_for_once_more(name: str) -> None:
    with Answering(BROKEN[name], said(TEXTS[0])) as answering:
        found = extract(answering)
        first, second = answering.asked
    assert [fact.text for fact in found] == [TEXTS[0]]
    before, after = (request["messages"] for request in (first, second))
    assert [m["role"] for m in after] == ["system", "user"], "some templates allow nothing else"
    assert after[0] == before[0]
    assert after[1]["content"].startswith(before[1]["content"]), "what was read need not be again"
    correction = after[1]["content"][len(before[1]["content"]) :]
    assert "could not be used, for it" in correction
    assert "Turku" not in correction
    assert {k: v for k, v in first.items() if k not in ("messages", "max_tokens")} == {
        k: v for k, v in second.items() if k not in ("messages", "max_tokens")
    }


@pytest.mark.parametrize("name", BROKEN)
def test_row_2_a_broken_answer_that_stays_so_is_an_error_and_never_nothing(name: str) -> None:
    with Answering(BROKEN[name]) as answering, pytest.raises(ModelAnswerError) as caught:
        extract(answering)
    assert len(answering.asked) == 2
    error = caught.value
    assert CHAT in error.message
    assert "pikuri-memory " in error.hint
    for secret in ("Turku", "Oulu", "moved", "Aino"):
        assert secret not in error.message + error.hint


def test_an_answer_that_was_cut_gets_more_room_the_second_time() -> None:
    with Answering(BROKEN["cut"], said(TEXTS[0])) as answering:
        extract(answering)
        assert [request["max_tokens"] for request in answering.asked] == [4096, 8192]


def test_an_answer_that_filled_the_context_says_so() -> None:
    full = completion('{"memory": [{"te', finish="length", usage=(8_500, 1_500))
    with Answering(full) as answering, pytest.raises(ContextTooSmallError) as caught:
        extract(answering, able=replace(ABLE, context_tokens=10_000))
    assert "10000" in caught.value.message
    assert "-c 16384" in caught.value.hint


def test_the_hint_names_another_model_that_is_offered() -> None:
    with ScriptedRouter(chat_models=(CHAT, "other-7b-instruct")) as router:
        router.rule("empty_content")
        with pytest.raises(ModelAnswerError) as caught:
            extract(router)
    assert caught.value.hint == (
        "take another chat model: pikuri-memory down && pikuri-memory up --llm-model"
        " other-7b-instruct"
    )


def test_a_model_that_only_thinks_is_told_from_one_that_is_silent() -> None:
    with Answering(BROKEN["reasoning only"]) as answering, pytest.raises(ModelAnswerError) as one:
        extract(answering)
    assert "only thoughts" in one.value.message
    assert "--reasoning-budget 0" in one.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        "Here you are:\n\n{}\n\nAnything else?",
        "<think>Let me see.</think>\n{}",
        "still thinking\n</think>\n{}",
    ],
)
def test_what_stands_around_an_answer_costs_no_second_question(text: str) -> None:
    answer = json.dumps({"memory": [{"id": "0", "text": TEXTS[0]}]})
    with Answering(completion(text.replace("{}", answer))) as answering:
        assert [fact.text for fact in extract(answering)] == [TEXTS[0]]
        assert len(answering.asked) == 1


# ------------------------------------------------------------------ failures of others


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("server_error", RouterRefusedError),
        ("error_with_200", RouterRefusedError),
        ("loading", RouterBusyError),
        ("never_answers", RouterTimeoutError),
        ("context_llama_cpp", ContextTooSmallError),
        ("no_choices", ModelAnswerError),
        ("reset_in_the_middle", RouterUnreachableError),
    ],
)
def test_the_routers_errors_come_out_as_they_are(name: str, kind: type[ModelError]) -> None:
    with ScriptedRouter() as router:
        router.rule(name)
        with pytest.raises(ModelError) as caught:
            extract(router, seconds=2.0)
    assert type(caught.value) is kind
    assert caught.value.hint


def test_a_router_that_is_not_there_is_told_at_once() -> None:
    with closing(Router("http://127.0.0.1:9")) as router, pytest.raises(RouterUnreachableError):
        MemoryExtractor(router, ABLE, Embedder()).extract(turn(), Deadline(60))


def test_a_router_that_fails_at_the_second_question_is_that() -> None:
    with ScriptedRouter() as router:
        router.play("empty_content", "server_error", "server_error")
        with pytest.raises(RouterRefusedError):
            extract(router)


@pytest.mark.parametrize("name", ["no_json_schema", "no_response_format"])
def test_a_router_that_takes_no_schema_any_more_is_asked_without(name: str) -> None:
    with ScriptedRouter() as router:
        router.rule(name)
        assert [fact.text for fact in extract(router)] == ["I moved to Oulu."]
        router.play("wrong_schema")
        assert [fact.text for fact in extract(router)] == ["I moved to Oulu."]


@pytest.mark.parametrize(
    "failure",
    [EmbedderUnavailableError("gone", hint="h", retry_after=3.0), EmbeddingError("no", hint="h")],
)
def test_a_failed_embedding_drops_no_text(failure: Exception) -> None:
    embedder = Embedder()
    embedder.failure = failure
    with Answering(said(*TEXTS)) as answering, pytest.raises(type(failure)) as caught:
        extract(answering, embedder=embedder)
    assert caught.value is failure
    assert len(embedder.asked) == 2, "mem0 would try each text alone, and drop it"


@pytest.mark.parametrize(
    "wrong",
    [lambda rows: rows[:-1], lambda rows: rows[0]],
    ids=["one missing", "one alone"],
)
def test_vectors_of_another_shape_are_an_error(wrong: Any) -> None:
    embedder = Embedder()
    embedder.wrong = wrong
    with Answering(said(*TEXTS)) as answering, pytest.raises(EmbeddingError):
        extract(answering, embedder=embedder)


def test_an_embedder_that_fails_at_once_costs_no_question_to_the_model() -> None:
    class Gone(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise EmbedderUnavailableError("gone", hint="h", retry_after=3.0)

    with Answering(said(*TEXTS)) as answering:
        with pytest.raises(EmbedderUnavailableError):
            extract(answering, embedder=Gone())
        assert answering.asked == []


def test_a_failed_look_up_comes_out_as_it_is_and_the_model_is_not_asked() -> None:
    def existing(vector: NDArray[np.float32], count: int) -> Sequence[StoredMemory]:
        raise StorageError("gone", hint="h")

    with Answering(said(*TEXTS)) as answering:
        with pytest.raises(StorageError):
            extract(answering, turn(existing=existing))
        assert answering.asked == []


@pytest.mark.parametrize("messages", [[], [Message("tool", "x")], [Message("user", " \n")]])
def test_a_turn_without_words_is_refused(messages: list[Message]) -> None:
    with Answering(said()) as answering:
        with pytest.raises(InvalidRequestError):
            extract(answering, turn(messages=messages))
        assert answering.asked == []


# ------------------------------------------------------------------ side by side, and shut in


def test_many_turns_at_once_never_mix() -> None:
    """Each answer repeats what its own prompt said, so that a mixed-up one would be seen."""

    def echo(request: Any) -> Any:
        prompt = request["messages"][-1]["content"]
        name = prompt.split("user: I am ")[1].split("\n")[0]
        assert f"known of {name}" in prompt
        assert f"before {name}" in prompt
        return said(f"User is {name}", f"User said so as {name}")

    with Answering(echo) as answering, closing(Router(answering.url, concurrency=8)) as router:
        extractor = MemoryExtractor(router, ABLE, Embedder())
        found: dict[str, list[str]] = {}
        failed: list[BaseException] = []

        def work(first: int) -> None:
            for number in range(first, 48, 8):
                name = f"N{number}"
                given = turn(
                    f"I am {name}",
                    recent=[Message("user", f"before {name}")],
                    existing=lambda v, k, name=name: [stored("x", f"known of {name}")],
                )
                try:
                    found[name] = [f.text for f in extractor.extract(given, Deadline(60))]
                except BaseException as error:
                    failed.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert found == {
        f"N{number}": [f"User is N{number}", f"User said so as N{number}"] for number in range(48)
    }


def test_nothing_of_a_turn_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    embedder = Embedder()
    embedder.failure = EmbeddingError(TEXTS[0], hint="h")
    secret = turn("SECRET words", prompt="SECRET prompt")
    with Answering(said(*TEXTS)) as answering, pytest.raises(EmbeddingError):
        extract(answering, secret, embedder=embedder)
    with ScriptedRouter() as router:
        router.rule("server_error")
        with pytest.raises(RouterRefusedError):
            extract(router, secret)
    with Answering(said("SECRET fact", "SECRET fact")) as answering:
        extract(answering)
    told = [record.getMessage() for record in caplog.records]
    assert not any("SECRET" in line or "Turku" in line for line in told)
    assert not any(record.name.startswith("mem0") for record in caplog.records)


def alone(router: ScriptedRouter, home: Path, *before: str) -> Any:
    """An extraction in a process of its own, for the library looks at its environment once."""
    home.mkdir()
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(home))
    done = process.run(
        [*before, sys.executable, "-m", "tests.embedded.extracting", router.url],
        timeout=200,
        cwd=ROOT,
        env={**os.environ, **TEMPTATIONS, **places, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return json.loads(done.stdout)


def test_nothing_is_written_beside_the_record_and_no_variable_is_looked_at(tmp_path: Path) -> None:
    home = tmp_path / "bare"
    with ScriptedRouter() as router:
        told = alone(router, home)
    assert told["facts"] == ["I moved from Turku to Oulu."]
    assert told["looked_at"] == []
    assert told["mem0_dir"] == [None, None]
    assert told["clients"] == []
    assert told["threads"] == ["MainThread"]
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []


def refused(planted: Path) -> str:
    """What is said when a process finds a planted package before the installed ones."""
    code = (
        "from pikuri_memory.embedded.extraction import MemoryExtractor\n"
        "from pikuri_memory.errors import MissingExtraError\n"
        "try: MemoryExtractor(None, None, None).warm_up()\n"
        "except MissingExtraError as error: print(error.message, '|', error.hint)"
    )
    environment = {**os.environ, "PYTHONPATH": str(planted)}
    return process.run([sys.executable, "-c", code], timeout=60, env=environment).stdout.strip()


def test_another_version_of_the_library_is_refused(tmp_path: Path) -> None:
    """The adapters know the inside of one."""
    planted = tmp_path / "mem0ai-9.9.9.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: mem0ai\nVersion: 9.9.9\n")
    assert refused(tmp_path) == (
        "mem0ai 9.9.9 is installed, and extraction works with 2.2.1 only |"
        " pip install 'pikuri-memory[extraction]'"
    )


def test_a_library_of_which_a_part_is_broken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "posthog.py").write_text("")
    said = refused(tmp_path)
    assert "posthog is missing" in said
    assert said.endswith("| pip install 'pikuri-memory[extraction]'")


def test_the_version_that_is_checked_is_the_one_that_is_installed_with_us() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extra["extraction"] == [f"mem0ai=={VERSION}"]


def test_the_probe_reckons_with_the_prompt_that_is_sent() -> None:
    with Answering(said()) as answering:
        extract(answering, turn("x", scope=Scope(agent_id="helper")))
        sent = sum(len(message["content"]) for message in answering.asked[0]["messages"])
    assert abs(sent - PROMPT_CHARACTERS) < 100


def test_nobody_but_the_router_is_talked_to(tmp_path: Path) -> None:
    require("strace", "strace")
    if process.run(["strace", "-f", "true"], timeout=20, check=False).returncode != 0:
        pytest.skip("strace may not trace on this system")
    trace = tmp_path / "trace"
    with ScriptedRouter() as router:
        told = alone(
            router, tmp_path / "bare", "strace", "-f", "-o", str(trace), "-e", f"trace={SYSCALLS}"
        )
        port = int(router.url.rpartition(":")[2])
    assert told["facts"] == ["I moved from Turku to Oulu."]
    lines = trace.read_text(errors="replace").splitlines()
    assert outside(lines) == []
    talked = {found for line in lines for found in addresses(line)}
    assert {found for found in talked if found[0] != "bind"} == {("connect", "127.0.0.1", port)}
