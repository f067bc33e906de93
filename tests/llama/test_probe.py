"""What the probe says of the real llama-server; and what its hints are worth when typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pikuri_memory.errors import ModelNotOfferedError
from pikuri_memory.models.probe import Probe, probe, same_vectors
from pikuri_memory.models.router import Router
from pikuri_memory.waiting import Deadline
from tests.llama.conftest import SingleModel, StartRouter
from tests.llama.offers import CHAT, EMBEDDER, OTHER_EMBEDDER, SMALL_CONTEXT, STUBBORN, THINKER
from tests.llama.server import LlamaServer


def looked(
    server: LlamaServer, *, llm_model: str | None = None, embedder_model: str | None = None
) -> Probe:
    router = Router(server.url)
    try:
        return probe(
            router,
            llm_model=llm_model,
            embedder_model=embedder_model,
            want_chat=True,
            want_embedding=True,
            deadline=Deadline(120),
        )
    finally:
        router.close()


def test_without_names_one_model_of_each_kind_is_found_and_measured(
    start_llama: StartRouter,
) -> None:
    server = start_llama(CHAT, SMALL_CONTEXT, OTHER_EMBEDDER, EMBEDDER)
    found = looked(server)
    assert found.embedding is not None
    assert (found.embedding.model, found.embedding.dimensions) == (EMBEDDER, 32)
    assert found.embedding.normalised
    assert found.embedding.deterministic
    assert found.chat is not None
    assert found.chat.output_mode == "json_schema"
    assert not found.chat.thinks
    assert not found.problems
    assert Probe.from_json(found.to_json()) == found
    # Of each kind one, and no more, was loaded for it.
    router = Router(server.url)
    assert sorted(model.id for model in router.models() if model.loaded) == sorted(
        (found.chat.model, EMBEDDER)
    )
    router.close()


def test_models_that_are_named_are_taken(llama: LlamaServer) -> None:
    found = looked(llama, llm_model=THINKER, embedder_model=EMBEDDER)
    assert found.chat is not None
    assert found.embedding is not None
    assert (found.chat.model, found.embedding.model) == (THINKER, EMBEDDER)
    with pytest.raises(ModelNotOfferedError, match=CHAT):
        looked(llama, llm_model="larger-chat")


def test_a_model_is_recognised_by_its_vectors(llama: LlamaServer) -> None:
    one, again = (looked(llama, embedder_model=EMBEDDER).embedding for _ in range(2))
    other = looked(llama, embedder_model=OTHER_EMBEDDER).embedding
    assert one is not None
    assert again is not None
    assert other is not None
    assert same_vectors(one, again)
    assert one.fingerprint == again.fingerprint
    assert not same_vectors(one, other)


@pytest.mark.parametrize("model", [THINKER, STUBBORN])
def test_thinking_is_noticed_and_switched_off(llama: LlamaServer, model: str) -> None:
    chat = looked(llama, llm_model=model).chat
    assert chat is not None
    assert chat.thinks
    assert chat.thinking_off
    assert chat.output_mode == "json_schema"
    router = Router(llama.url)
    answer = router.chat(
        model, [{"role": "user", "content": "I live in Vaasa."}], extra=chat.thinking_off
    )
    assert (answer.reasoning, answer.text) == ("", "The user lives in Vaasa.")
    router.close()


def test_a_context_that_is_too_small_is_told_with_what_to_type(
    single_llama: SingleModel,
) -> None:
    with single_llama(CHAT, "-c", "2000") as server:
        found = looked(server)
    assert found.chat is not None
    assert found.chat.context_tokens == 2048
    assert found.chat.fits is False
    (problem,) = found.problems
    assert "2048" in problem.text
    typed = re.search(r"llama-server (-c \d+.*?) \.\.\.", problem.hint)
    assert typed is not None
    with single_llama(CHAT, *shlex.split(typed.group(1))) as server:
        found = looked(server)
    assert found.chat is not None
    assert found.chat.fits is True
    assert not found.problems


def test_a_model_that_does_not_embed_does_when_the_hints_are_typed(
    start_llama: StartRouter,
) -> None:
    server = start_llama(CHAT)
    preset = Path(server.arguments[1])
    for typed in ("embeddings = true", "pooling = mean"):
        found = looked(server, embedder_model=CHAT)
        assert found.embedding is None
        assert any(typed in problem.hint for problem in found.problems)
        server.stop()
        preset.write_text(preset.read_text().replace(f"[{CHAT}]", f"[{CHAT}]\n{typed}"))
        server.start()
    found = looked(server, embedder_model=CHAT)
    assert found.embedding is not None
    assert found.embedding.dimensions == 64
