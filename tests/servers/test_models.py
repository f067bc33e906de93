"""The user's own models: a real server process before a scripted router over real HTTP."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory import EmbeddedServer, Mem0Client, discovery
from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbedderMismatchError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelAnswerError,
    ModelNotOfferedError,
    RouterUnreachableError,
    ServerError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import local
from tests.router.scripted import ScriptedRouter

TURN = "I moved from Turku to Oulu last week. My dog Rocco fears thunder."
FACTS = ["I moved from Turku to Oulu last week.", "My dog Rocco fears thunder."]


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    with ScriptedRouter() as scripted:
        yield scripted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def serving(
    data: Path, router: ScriptedRouter | str | None = None, **settings: Any
) -> Iterator[Mem0Client]:
    """A client of a server of its own."""
    if router is not None:
        settings["router"] = router if isinstance(router, str) else router.url
    with EmbeddedServer(port=0, data_dir=data, **settings) as server, server.client() as client:
        yield client


def told(data: Path) -> dict[str, Any]:
    """What the running server says of itself."""
    return local.describe(DataPaths.at(data)).told


def texts(client: Mem0Client, user: str = "ada") -> list[str]:
    return sorted(record.text for record in client.get_all(user_id=user))


def until(condition: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def test_a_router_alone_gives_facts_and_vectors_and_is_remembered(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data, router) as client:
        added = client.add(TURN, user_id="ada")
        assert [record.text for record in added] == FACTS
        found = client.search("which dog fears thunder?", user_id="ada", top_k=1)
        assert found[0].text == FACTS[1]
        assert found.degraded is None
        assert found[0].metadata["attributed_to"] == "user"
        state = told(data)
        assert state["router"] == router.url
        assert state["extraction"]["model"] == "scripted-instruct"
        assert (state["embedder"]["model"], state["embedder"]["dimensions"]) == (
            "scripted-embed",
            64,
        )
        assert state["embedder"]["router"] == router.url
        assert [one["level"] for one in state["findings"]].count("problem") == 0
        assert client.health().add_seconds == pytest.approx(600 + 300 + 30)
    with serving(data) as client:
        assert [record.text for record in client.add(TURN, user_id="ben")] == FACTS
        assert told(data)["extraction"]["router"] == router.url


def test_a_known_router_that_is_away_delays_no_start_and_no_search(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data, router) as client:
        client.add(TURN, user_id="ada")
    router.stop()
    with serving(data) as client:
        found = client.search("does the dog fear thunder?", user_id="ada")
        assert [record.text for record in found] == [FACTS[1]]
        assert found.degraded is not None
        assert found.degraded.code == "embedder_unavailable"
        assert found.degraded.hint
        for infer in (None, False):
            with pytest.raises(EmbedderUnavailableError) as caught:
                client.add("My cat is old.", user_id="ada", infer=infer)
            assert caught.value.retry_after
            assert caught.value.hint
        memory_id = found[0].id
        with pytest.raises(EmbedderUnavailableError):
            client.update(memory_id, "My dog Rocco likes thunder.")
        assert texts(client) == sorted(FACTS)
        state = told(data)
        assert state["embedder"]["state"] == "unavailable"
        assert state["embedder"]["why"]["code"] == "embedder_unavailable"
        until(lambda: any(one["subject"] == "router" for one in told(data)["findings"]))
        router.start()
        until(lambda: told(data)["embedder"]["state"] == "ok")
        assert client.search("does the dog fear thunder?", user_id="ada").degraded is None
        assert len(client.add("My cat is old.", user_id="ada")) == 1
        until(lambda: not [one for one in told(data)["findings"] if one["level"] == "problem"], 60)


def test_a_new_router_that_is_away_ends_the_start_at_once(data: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(RouterUnreachableError) as caught, serving(data, "http://127.0.0.1:1"):
        pass
    assert time.monotonic() - begun < 20
    assert "--router" in caught.value.hint
    assert not DataPaths.at(data).models.exists()
    with serving(data) as client:
        assert len(client.add(TURN, user_id="ada")) == 1, "without a router, as before"


def test_a_model_that_is_not_offered_ends_the_start_and_names_those_that_are(
    data: Path, router: ScriptedRouter
) -> None:
    named = serving(data, router, llm_model="gpt-9")
    with pytest.raises(ModelNotOfferedError, match="scripted-instruct"), named:
        pass


def test_row_1_an_embedder_that_makes_other_vectors_is_told_and_not_used(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data, router) as client:
        client.add(TURN, user_id="ada")
    router.seed = "other weights"
    with serving(data) as client:
        until(lambda: told(data)["embedder"]["state"] == "unavailable")
        found = client.search("does the dog fear thunder?", user_id="ada")
        assert found.degraded is not None
        assert "reembed" in found.degraded.hint
        with pytest.raises(EmbeddingError) as caught:
            client.add("My cat is old.", user_id="ada")
        assert "pikuri-memory reembed" in caught.value.hint
        assert any(
            one["level"] == "problem" and one["subject"] == "embedding"
            for one in told(data)["findings"]
        )
    router.seed = ""
    with serving(data) as client:
        assert client.search("does the dog fear thunder?", user_id="ada").degraded is None


def test_row_1_another_embedder_is_refused_with_the_command_that_helps(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data) as client:
        client.add("My cat is old.", user_id="ada")
    other = serving(data, router, embedder_model="scripted-embed")
    with pytest.raises(EmbedderMismatchError) as caught, other:
        pass
    assert "pikuri-memory reembed --embedder-model scripted-embed" in caught.value.hint
    with serving(data, router) as client:
        state = told(data)
        assert state["embedder"]["model"] == "all-MiniLM-L6-v2"
        assert state["embedder"]["router"] is None
        assert len(client.add(TURN, user_id="ada")) == 2, "facts by the router, vectors by us"


def test_a_failed_extraction_is_an_error_and_the_same_call_again_succeeds(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data, router) as client:
        router.rule("empty_content")
        with pytest.raises(ModelAnswerError) as caught:
            client.add(TURN, user_id="ada", idempotency_key="k")
        assert caught.value.hint
        assert texts(client) == []
        state = told(data)["extraction"]
        assert (state["failed"], state["state"]) == (1, "failing")
        assert state["last_error"]["code"] == "model_answer"
        router.behave()
        assert len(client.add(TURN, user_id="ada", idempotency_key="k")) == 2
        assert len(client.add(TURN, user_id="ada", idempotency_key="k")) == 2
        assert texts(client) == sorted(FACTS)


def test_the_prompt_reaches_the_model(data: Path, router: ScriptedRouter) -> None:
    with serving(data, router) as client:
        client.add(TURN, user_id="ada", prompt="Only what concerns animals.")
    assert "Only what concerns animals." in json.dumps(router.seen("chat")[-1].body)


def test_a_stop_in_the_middle_of_an_extraction_is_quick_and_stores_nothing(
    data: Path, router: ScriptedRouter
) -> None:
    with serving(data, router) as client:
        client.add("My bicycle is green.", user_id="ada")
    errors: list[BaseException] = []
    with EmbeddedServer(port=0, data_dir=data, stop_timeout=10) as server:
        client = server.client(timeout=60)
        router.hold_chats()
        before = router.count("chat")

        def add() -> None:
            try:
                client.add(TURN, user_id="ada", idempotency_key="k")
            except ServerError as error:
                errors.append(error)

        thread = threading.Thread(target=add)
        thread.start()
        router.wait_for("chat", before + 1, 60)
        begun = time.monotonic()
        info = discovery.read_server_info(DataPaths.at(data))
        assert info is not None
        os.kill(info.pid, signal.SIGTERM)
        thread.join(30)
        until(lambda: not info.is_running())
        assert time.monotonic() - begun < 10
        client.close()
    assert len(errors) == 1
    router.release_chats()
    with serving(data) as client:
        assert texts(client) == ["My bicycle is green."]
        assert len(client.add(TURN, user_id="ada", idempotency_key="k")) == 2


def test_the_key_of_the_router_is_read_from_its_file_each_time(data: Path, tmp_path: Path) -> None:
    key = tmp_path / "router-key"
    key.write_text("first\n")
    key.chmod(0o600)
    with ScriptedRouter(api_key="first") as router:
        with serving(data, router, router_key_file=str(key)) as client:
            assert len(client.add(TURN, user_id="ada")) == 2
            router.api_key = "second"
            with pytest.raises(EmbedderUnavailableError):
                client.add("My cat is old.", user_id="ada")
            key.write_text("second\n")
            assert len(client.add("My cat is old.", user_id="ada")) == 1
            key.chmod(0o644)
            with pytest.raises(EmbedderUnavailableError, match="may be read by other users"):
                client.add("My cat is young.", user_id="ada")
        assert b"first" not in DataPaths.at(data).models.read_bytes()
        assert b"second" not in DataPaths.at(data).models.read_bytes()


def test_what_is_told_of_a_context_is_taken_back_when_a_turn_goes_otherwise(data: Path) -> None:
    def problems(place: Path) -> list[str]:
        return [one["text"] for one in told(place)["findings"] if one["level"] == "problem"]

    # Ollama's list of models tells no context: only a look at the model does.
    with (
        ScriptedRouter(flavour="ollama") as router,
        serving(data, router) as client,
    ):
        assert problems(data) == []
        router.context_tokens = 4096
        with pytest.raises(ContextTooSmallError):
            client.add(TURN, user_id="ada")
        until(lambda: problems(data))
    router = ScriptedRouter(flavour="ollama", context_tokens=4096)
    with router, serving(data / "other", router) as client:
        assert "4096" in problems(data / "other")[0]
        router.context_tokens = 32_768
        client.add(TURN, user_id="ada")
        until(lambda: not problems(data / "other"))
        assert texts(client) == sorted(FACTS)


def test_none_forgets_the_router(data: Path, router: ScriptedRouter) -> None:
    with serving(data, router, embedder_model="builtin") as client:
        client.add(TURN, user_id="ada")
    with serving(data, "none"):
        assert told(data)["extraction"] is None
    with serving(data) as client:
        assert told(data)["router"] is None
        assert len(client.add(TURN, user_id="ben")) == 1
