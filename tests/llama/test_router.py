"""The client of a model endpoint, against the real llama-server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pikuri_memory.errors import (
    ContextTooSmallError,
    ModelNotOfferedError,
    RouterRefusedError,
    RouterUnreachableError,
)
from pikuri_memory.models.router import Endpoint, Patience, Router
from tests.llama.conftest import SingleModel, StartRouter
from tests.llama.offers import CHAT, EMBEDDER, OTHER_EMBEDDER, SMALL_CONTEXT, STUBBORN, THINKER
from tests.llama.server import LlamaServer

FACTS: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "facts",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "memory": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "text": {"type": "string"},
                            "attributed_to": {"enum": ["user", "assistant"]},
                        },
                        "required": ["text", "attributed_to"],
                        "additionalProperties": False,
                    },
                }
            },
            "required": ["memory"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def router(llama: LlamaServer) -> Iterator[Router]:
    router = Router(llama.url)
    yield router
    router.close()


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_list_has_every_model_and_loads_none(llama: LlamaServer) -> None:
    router = Router(llama.url)
    offered = {model.id: model for model in router.models()}
    router.close()
    assert set(offered) == {CHAT, THINKER, STUBBORN, SMALL_CONTEXT, EMBEDDER, OTHER_EMBEDDER}
    assert {name for name, model in offered.items() if model.kind == "embedding"} == {
        EMBEDDER,
        OTHER_EMBEDDER,
    }
    assert offered[SMALL_CONTEXT].context_tokens in (2000, 2048)


@pytest.mark.parametrize("spelling", ["{origin}", "{origin}/", "{origin}/v1", "{origin}/v1/"])
def test_the_address_may_be_written_with_and_without_its_version(
    llama: LlamaServer, spelling: str
) -> None:
    router = Router(spelling.format(origin=llama.url.removesuffix("/v1")))
    assert router.embed(EMBEDDER, ["the user likes tea"]).shape == (1, 32)
    router.close()


@pytest.mark.parametrize(("model", "dimensions"), [(EMBEDDER, 32), (OTHER_EMBEDDER, 48)])
def test_embeddings_have_their_model_s_dimensions_and_know_shared_words(
    router: Router, model: str, dimensions: int
) -> None:
    texts = ["the user likes kantele", "the user likes the kantele", "what is the date today"]
    vectors = router.embed(model, texts)
    assert vectors.shape == (3, dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.array_equal(vectors, router.embed(model, texts))


def test_many_texts_come_back_in_their_order(router: Router) -> None:
    texts = [f"{number} people" for number in range(70)]
    together = router.embed(EMBEDDER, texts)
    assert np.allclose(together[69], router.embed(EMBEDDER, texts[69:])[0], atol=1e-3)


def test_a_chat_answers_by_the_schema(router: Router) -> None:
    answer = router.chat(CHAT, said("In my free time I play the kantele."), response_format=FACTS)
    (fact,) = json.loads(answer.text)["memory"]
    assert fact["text"] == "The user likes kantele."
    assert fact["attributed_to"] in ("user", "assistant")
    assert answer.finish_reason == "stop"
    assert answer.prompt_tokens
    assert answer.completion_tokens


def test_thoughts_are_kept_apart_from_the_answer(router: Router) -> None:
    answer = router.chat(THINKER, said("I live in Oulu."), response_format=FACTS)
    assert answer.reasoning.split() == "hmm ponder mull muse brood perhaps aha so-so".split()
    assert json.loads(answer.text)["memory"][0]["text"] == "The user lives in Oulu."
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = router.chat(THINKER, said("I live in Oulu."), response_format=FACTS, extra=off)
    assert answer.reasoning == ""
    assert json.loads(answer.text)["memory"]


def test_thoughts_without_an_end_leave_an_empty_answer_unless_their_tokens_are_counted(
    router: Router,
) -> None:
    turn = said("I live in Oulu.")
    answer = router.chat(STUBBORN, turn, response_format=FACTS, max_tokens=100)
    assert (answer.text, answer.finish_reason) == ("", "length")
    assert answer.reasoning
    none = {"thinking_budget_tokens": 0}
    answer = router.chat(STUBBORN, turn, response_format=FACTS, extra=none, max_tokens=100)
    assert json.loads(answer.text)["memory"]


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(router: Router) -> None:
    with pytest.raises(ContextTooSmallError, match=r"2048.*\d{4}") as refusal:
        router.chat(SMALL_CONTEXT, said("the user likes tea and other things. " * 400))
    assert "llama-server -c" in refusal.value.hint
    assert "tea" not in str(refusal.value)


def test_a_text_that_is_too_long_to_embed_is_a_matter_of_the_context(router: Router) -> None:
    with pytest.raises(ContextTooSmallError):
        router.embed(EMBEDDER, ["short", "the user likes tea " * 400])


def test_what_is_loaded_tells_its_properties(router: Router) -> None:
    router.chat(SMALL_CONTEXT, said("hello"), max_tokens=4)
    assert router.properties(SMALL_CONTEXT)["context_tokens"] == 2048
    router.chat(THINKER, said("hello"), max_tokens=4)
    assert router.properties(THINKER)["thinks"] is True


def test_an_unknown_model_is_told_with_what_there_is(router: Router) -> None:
    for ask in (
        lambda: router.chat("large-chat", said("hello")),
        lambda: router.embed("large-chat", ["hello"]),
    ):
        with pytest.raises(ModelNotOfferedError, match=f"large-chat.*{CHAT}"):
            ask()


def test_a_chat_model_does_not_embed(router: Router) -> None:
    with pytest.raises(RouterRefusedError) as refusal:
        router.embed(CHAT, ["hello"])
    assert "--embeddings" in refusal.value.hint


def test_a_unix_socket_serves_as_an_address(start_llama: StartRouter, tmp_path: Path) -> None:
    path = tmp_path / "router.sock"
    server = start_llama(CHAT, EMBEDDER, host=str(path))
    router = Router(f"unix:{path}")
    assert {model.id for model in router.models()} == {CHAT, EMBEDDER}
    assert router.embed(EMBEDDER, ["tea"]).shape == (1, 32)
    assert router.chat(CHAT, said("I live in Vaasa.")).text == "The user lives in Vaasa."
    server.stop()
    with pytest.raises(RouterUnreachableError):
        router.embed(EMBEDDER, ["tea"])
    router.close()


def test_a_server_with_one_model_needs_no_name_and_tells_its_context(
    single_llama: SingleModel,
) -> None:
    with single_llama(CHAT, "-c", "4096") as server:
        router = Router(server.url)
        (model,) = router.models()
        assert model.context_tokens == 4096
        assert router.chat(model.id, said("I live in Turku.")).text == "The user lives in Turku."
        router.close()


def test_an_embedding_server_is_not_taken_for_a_chat(single_llama: SingleModel) -> None:
    # It lists the capability "completion" all the same.
    with single_llama(EMBEDDER, "--embeddings") as server:
        router = Router(server.url)
        (model,) = router.models()
        assert model.kind != "chat"
        assert router.embed(model.id, ["tea"]).shape == (1, 32)
        router.close()


def test_a_key_is_asked_for_and_taken(start_llama: StartRouter, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    server = start_llama(EMBEDDER, arguments=("--api-key-file", str(keys)))
    without, wrong = Router(server.url), Router(server.url, api_key=lambda: "open")
    for router in (without, wrong):
        with pytest.raises(RouterRefusedError) as refusal:
            router.models()
        assert "--router-key-file" in refusal.value.hint
        router.close()
    router = Router(server.url, api_key=lambda: "sesame")
    assert router.embed(EMBEDDER, ["tea"]).shape == (1, 32)
    router.close()


def test_a_restart_is_waited_out(start_llama: StartRouter) -> None:
    server = start_llama(EMBEDDER)
    router = Router(server.url)
    before = router.embed(EMBEDDER, ["tea"])
    server.stop()
    with pytest.raises(RouterUnreachableError):
        router.embed(EMBEDDER, ["tea"])
    server.start()
    # Over connections that the old one has closed.
    assert np.allclose(router.embed(EMBEDDER, ["tea"]), before, atol=1e-3)
    router.close()


def test_a_model_that_is_loading_is_waited_for(single_llama: SingleModel) -> None:
    server = single_llama(EMBEDDER, "--embeddings")
    with server:
        pass
    server.start(ready=False)
    try:
        # From its first open port on it says 503 until the model is there.
        router = Router(server.url, patience=Patience(interval=0.02))
        shape = None
        while shape is None:
            try:
                shape = router.embed("any", ["tea"]).shape
            except RouterUnreachableError:
                assert server.process is not None
                assert server.process.poll() is None
                time.sleep(0.005)
        assert shape == (1, 32)
        router.close()
    finally:
        server.stop()


def test_a_model_that_dies_under_a_request_is_asked_again(start_llama: StartRouter) -> None:
    server = start_llama(STUBBORN)
    router = Router(server.url)
    router.chat(STUBBORN, said("hello"), max_tokens=1)
    assert server.process is not None
    (child,) = psutil.Process(server.process.pid).children()
    answers: list[str] = []
    asking = threading.Thread(
        target=lambda: answers.append(
            router.chat(STUBBORN, said("hello"), max_tokens=3000).finish_reason
        )
    )
    asking.start()
    while server.log.count("processing task") < 2:
        assert asking.is_alive()
        time.sleep(0.005)
    child.kill()
    asking.join(60)
    assert answers == ["length"]
    router.close()


def test_loaded_models_take_turns_where_only_one_may_be(start_llama: StartRouter) -> None:
    server = start_llama(CHAT, EMBEDDER, arguments=("--models-max", "1"))
    router = Router(server.url)
    for _ in range(2):
        assert router.chat(CHAT, said("I live in Oulu.")).text == "The user lives in Oulu."
        assert router.embed(EMBEDDER, ["tea"]).shape == (1, 32)
    assert Endpoint.parse(server.url).is_loopback
    router.close()
