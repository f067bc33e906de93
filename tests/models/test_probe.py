"""What can a router do? Asked of an endpoint that plays all kinds of them."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.router.clocks import Clock
from tests.router.scripted import ScriptedRouter

from pikuri_memory.errors import (
    ModelNotOfferedError,
    RouterBusyError,
    RouterRefusedError,
    RouterTimeoutError,
    RouterUnreachableError,
)
from pikuri_memory.models import chat_trial
from pikuri_memory.models.embedding_trial import REFERENCE_TEXTS
from pikuri_memory.models.probe import ChatAbility, EmbeddingAbility, Probe, probe, same_vectors
from pikuri_memory.models.router import Patience, Router
from pikuri_memory.waiting import Deadline

CHAT = "scripted-instruct"
EMBED = "scripted-embed"
FLAVOURS = ("plain", "llama.cpp", "llama.cpp-router", "ollama", "lmstudio", "vllm")
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def probed(endpoint: ScriptedRouter, *rules: str, **given: Any) -> Probe:
    """What a probe finds at an endpoint that misbehaves by some rules."""
    endpoint.rule(*rules)
    patience = Patience(total=20.0, interval=0.01)
    with closing(Router(endpoint.url, patience=patience)) as router:
        return probe(router, **{"deadline": Deadline(60), "now": NOW, **given})


def chat_of(found: Probe) -> ChatAbility:
    assert found.chat is not None
    return found.chat


def embedding_of(found: Probe) -> EmbeddingAbility:
    assert found.embedding is not None
    return found.embedding


def hints(found: Probe, subject: str) -> str:
    return " ".join(
        finding.hint
        for finding in found.findings
        if finding.subject == subject and finding.level != "ok"
    )


# -- the good case


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_good_router_of_every_kind_has_no_problem(flavour: Any) -> None:
    with ScriptedRouter(flavour=flavour) as endpoint:
        found = probed(endpoint)
    assert {finding.level for finding in found.findings} == {"ok"}
    assert found.router == endpoint.url
    assert found.taken_at == "2026-03-04T05:06:07+00:00"
    assert [model.id for model in found.offered] == [CHAT, EMBED]
    chat = chat_of(found)
    assert (chat.model, chat.output_mode, chat.thinks) == (CHAT, "json_schema", False)
    assert (chat.fits, chat.canary) == (True, True)
    embedding = embedding_of(found)
    assert (embedding.model, embedding.dimensions) == (EMBED, 64)
    assert embedding.normalised
    assert embedding.deterministic


def test_what_was_found_out_can_be_kept() -> None:
    with ScriptedRouter(flavour="ollama") as endpoint:
        found = probed(endpoint, "thinks_unless_effort")
    text = json.dumps(found.to_json())
    assert Probe.from_json(json.loads(text)) == found


@pytest.mark.parametrize("value", [None, [], {}, {"router": "x"}, "text", 7])
def test_something_else_is_no_probe(value: Any) -> None:
    with pytest.raises(ValueError, match="no findings of a probe"):
        Probe.from_json(value)


# -- what is asked


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_at_most_one_model_of_each_kind_is_loaded(flavour: Any) -> None:
    given: Any = {
        "flavour": flavour,
        "chat_models": [f"chat-{number}b-instruct" for number in range(3, 20)],
        "embedding_models": ["all-minilm", "nomic-embed-text", "bge-m3", "unknown-embed"],
        "other_models": ["bge-reranker-v2-m3", "whisper-large"],
    }
    with ScriptedRouter(**given) as endpoint:
        found = probed(endpoint)
        loaded = Counter(
            seen.model for kind in ("chat", "embedding") for seen in endpoint.seen(kind)
        )
        assert set(loaded) == {chat_of(found).model, "bge-m3"}
        first = [seen.kind for seen in endpoint.requests]
        assert "list" in first[:2]
        assert first.index("embedding") > first.index("list")


def test_a_look_without_a_wish_loads_nothing() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, want_chat=False, want_embedding=False)
        assert (found.chat, found.embedding) == (None, None)
        assert endpoint.count("chat") == endpoint.count("embedding") == 0
        assert len(found.offered) == 2


def test_named_models_are_the_ones_that_are_asked() -> None:
    given: Any = {
        "chat_models": ["big-70b-instruct", "tiny-0.5b"],
        "embedding_models": ["bge-m3", "all-minilm"],
    }
    with ScriptedRouter(**given) as endpoint:
        found = probed(endpoint, llm_model="tiny-0.5b", embedder_model="all-minilm")
        assert (chat_of(found).model, embedding_of(found).model) == ("tiny-0.5b", "all-minilm")
        assert endpoint.count("chat", "big-70b-instruct") == 0
        assert endpoint.count("embedding", "bge-m3") == 0


def test_a_name_without_a_tag_means_the_latest() -> None:
    given: Any = {"flavour": "ollama", "chat_models": ["llama3.1:latest"]}
    with ScriptedRouter(**given) as endpoint:
        assert chat_of(probed(endpoint, llm_model="llama3.1")).model == "llama3.1:latest"


@pytest.mark.parametrize("which", ["llm_model", "embedder_model"])
def test_a_named_model_that_is_not_there_is_an_error_that_names_what_is(which: str) -> None:
    with ScriptedRouter() as endpoint:
        with pytest.raises(ModelNotOfferedError) as caught:
            probed(endpoint, **{which: "gone:7b"})
        assert "gone:7b" in str(caught.value)
        assert CHAT in str(caught.value)
        assert "pikuri-memory models" in caught.value.hint
        assert endpoint.count("chat") == endpoint.count("embedding") == 0


def test_a_router_that_is_away_is_an_error() -> None:
    with ScriptedRouter() as endpoint:
        url = endpoint.url
    with closing(Router(url)) as router, pytest.raises(RouterUnreachableError):
        probe(router, deadline=Deadline(20))


def test_a_router_that_wants_a_key_is_an_error() -> None:
    with ScriptedRouter(api_key="sk-1") as endpoint, pytest.raises(RouterRefusedError) as caught:
        probed(endpoint)
    assert "--router-key-file" in caught.value.hint


def test_a_model_that_loads_for_too_long_is_an_error_and_no_finding() -> None:
    clock = Clock()
    with ScriptedRouter() as endpoint:
        endpoint.rule("loading")
        with (
            closing(Router(endpoint.url, patience=clock.patience())) as router,
            pytest.raises(RouterBusyError),
        ):
            probe(router, deadline=router.patience.deadline(60))
    with ScriptedRouter() as endpoint, pytest.raises(RouterTimeoutError):
        probed(endpoint, "never_answers", deadline=Deadline(0.4))


def test_a_cold_start_is_waited_for() -> None:
    clock = Clock()
    with ScriptedRouter() as endpoint:
        endpoint.play("loading_all", *["loading"] * 8)
        with closing(Router(endpoint.url, patience=clock.patience())) as router:
            found = probe(router, deadline=router.patience.deadline(60))
    assert found.problems == ()


def test_a_router_without_models_is_told() -> None:
    with ScriptedRouter(chat_models=(), embedding_models=()) as endpoint:
        found = probed(endpoint)
    assert (found.chat, found.embedding) == (None, None)
    assert [finding.level for finding in found.findings] == ["problem", "note", "note"]
    assert all(finding.hint for finding in found.findings)


def test_a_router_with_one_kind_only_gets_by() -> None:
    with ScriptedRouter(chat_models=()) as endpoint:
        found = probed(endpoint)
        assert found.chat is None
        assert embedding_of(found).dimensions == 64
        assert "--llm-model" in hints(found, "chat")
    with ScriptedRouter(embedding_models=()) as endpoint:
        found = probed(endpoint)
        assert found.embedding is None
        assert chat_of(found).canary
        assert "reembed" in hints(found, "embedding")


def test_a_broken_model_is_a_finding_and_the_other_is_tried() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, llm_model=EMBED)  # it embeds and does not chat
        assert found.chat is None
        assert [finding.subject for finding in found.problems] == ["chat"]
        assert embedding_of(found).dimensions == 64


# -- embedding


@pytest.mark.parametrize("dimensions", [8, 384, 1024])
def test_dimensions_are_measured(dimensions: int) -> None:
    with ScriptedRouter(dimensions=dimensions) as endpoint:
        assert embedding_of(probed(endpoint)).dimensions == dimensions


def test_vectors_of_any_length_are_told_and_work() -> None:
    with ScriptedRouter() as endpoint:
        plain = embedding_of(probed(endpoint))
        found = probed(endpoint, "not_normalised")
    assert not embedding_of(found).normalised
    assert found.problems == ()
    assert same_vectors(plain, embedding_of(found))


def test_an_unsteady_model_is_a_problem() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, "unsteady")
    assert not embedding_of(found).deterministic
    assert [finding.subject for finding in found.problems] == ["embedding"]
    assert "--embedder-model" in hints(found, "embedding")


def test_a_model_that_tells_nothing_apart_is_a_problem() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, "constant_vectors")
    assert [finding.subject for finding in found.problems] == ["embedding"]
    assert "the same vector for every text" in found.problems[0].text
    assert "reembed --embedder-model" in hints(found, "embedding")


@pytest.mark.parametrize("name", ["nan", "zero_vectors", "token_vectors", "changing_dimension"])
def test_vectors_that_are_none_are_a_problem_with_a_hint(name: str) -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, name)
    assert found.embedding is None
    assert [finding.subject for finding in found.problems] == ["embedding"]
    assert hints(found, "embedding")
    assert chat_of(found).canary


def test_base64_is_as_good_as_numbers() -> None:
    with ScriptedRouter() as endpoint:
        plain = embedding_of(probed(endpoint))
        found = embedding_of(probed(endpoint, "base64"))
    assert same_vectors(plain, found)
    assert found.fingerprint == plain.fingerprint


def test_the_prefixes_of_the_family_are_used() -> None:
    with ScriptedRouter(embedding_models=["nomic-embed-text:latest"]) as endpoint:
        found = embedding_of(probed(endpoint))
        sent = endpoint.seen("embedding")[0].body["input"]
    assert (found.query_prefix, found.document_prefix) == ("search_query: ", "search_document: ")
    assert sent == ["search_document: " + text for text in REFERENCE_TEXTS]


def test_the_same_model_is_recognised_and_another_is_not() -> None:
    with ScriptedRouter() as endpoint:
        one = embedding_of(probed(endpoint))
        again = embedding_of(probed(endpoint))
        endpoint.seed = "another model by the same name "
        other = embedding_of(probed(endpoint))
    assert one == again
    assert same_vectors(one, again)
    assert not same_vectors(one, other)
    assert one.fingerprint != other.fingerprint
    noisy = tuple(tuple(number * 1.01 + 0.002 for number in row) for row in one.reference)
    assert same_vectors(one, replace(one, reference=noisy))
    assert not same_vectors(one, replace(one, document_prefix="passage: "))
    with ScriptedRouter(dimensions=32) as endpoint:
        assert not same_vectors(one, embedding_of(probed(endpoint)))


def test_odd_references_are_never_the_same() -> None:
    with ScriptedRouter() as endpoint:
        one = embedding_of(probed(endpoint))
    for rows in ((), ((0.0,) * 64,) * 4, ((1.0,), (1.0, 2.0), (1.0,), (1.0,))):
        assert not same_vectors(one, replace(one, reference=rows))


# -- chat: JSON


@pytest.mark.parametrize(
    ("rules", "mode"),
    [
        ((), "json_schema"),
        (("no_json_schema",), "json_object"),
        (("no_response_format",), "prompt"),
        (("code_fence",), "prompt"),
        (("prose_around",), "prompt"),
        (("unknown_field",), "json_schema"),
    ],
)
def test_the_strictest_way_to_json_is_found_by_trying(rules: tuple[str, ...], mode: str) -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, *rules)
    assert chat_of(found).output_mode == mode
    assert found.problems == ()
    assert chat_of(found).canary


@pytest.mark.parametrize("name", ["prose_only", "cut_json"])
def test_a_model_that_gives_no_json_is_a_problem(name: str) -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, name)
    assert [finding.subject for finding in found.problems] == ["chat"]
    assert "JSON" in found.problems[0].text
    assert "--llm-model" in hints(found, "chat")


@pytest.mark.parametrize("name", ["empty_content", "no_choices", "error_with_200", "server_error"])
def test_a_model_that_says_nothing_is_a_problem(name: str) -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, name)
    assert found.chat is None
    assert "chat" in {finding.subject for finding in found.problems}
    assert hints(found, "chat")


# -- chat: thinking


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("name", "off", "suffix"),
    [
        ("thinks_unless_template", {"chat_template_kwargs": {"enable_thinking": False}}, ""),
        ("thinks_unless_effort", {"reasoning_effort": "none"}, ""),
        ("thinks_unless_think_false", {"think": False}, ""),
        ("thinks_unless_no_think", None, " /no_think"),
    ],
)
def test_row_2_how_to_switch_thinking_off_is_found_by_trying(
    flavour: Any, name: str, off: Any, suffix: str
) -> None:
    with ScriptedRouter(flavour=flavour) as endpoint:
        found = probed(endpoint, name)
        chat = chat_of(found)
        assert chat.thinks
        assert (chat.thinking_off, chat.prompt_suffix) == (off, suffix)
        assert (chat.output_mode, chat.canary) == ("json_schema", True)
        assert found.problems == ()
        with closing(Router(endpoint.url)) as router:
            answer = router.chat(
                CHAT,
                chat.messages([{"role": "user", "content": "I live in Oulu."}]),
                extra=chat.thinking_off,
            )
        assert "I live in Oulu." in answer.text
        assert answer.reasoning == ""


def test_switches_that_are_refused_are_passed_over() -> None:
    with ScriptedRouter() as endpoint:
        found = chat_of(probed(endpoint, "thinks_unless_no_think", "unknown_field"))
    assert (found.thinking_off, found.prompt_suffix) == (None, " /no_think")


def test_a_model_that_thinks_and_answers_is_noted_and_used() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint, "thinks_and_answers")
    chat = chat_of(found)
    assert (chat.thinks, chat.thinking_off, chat.output_mode) == (True, None, "json_schema")
    assert chat.canary
    assert found.problems == ()
    assert any("thinks" in finding.text and finding.hint for finding in found.findings)


def test_thoughts_in_the_text_are_thoughts() -> None:
    with ScriptedRouter() as endpoint:
        chat = chat_of(probed(endpoint, "think_tags"))
    assert (chat.thinks, chat.thinking_off, chat.canary) == (True, None, True)


@pytest.mark.parametrize("name", ["thinks_always", "reasoning_only", "think_tag_open"])
def test_row_2_a_model_that_only_thinks_is_a_problem_whose_hint_solves_it(name: str) -> None:
    with ScriptedRouter(chat_models=[CHAT, "plain-7b-instruct"]) as endpoint:
        found = probed(endpoint, name, llm_model=CHAT)
        assert [finding.subject for finding in found.problems] == ["chat"]
        assert "thinks" in found.problems[0].text
        hint = found.problems[0].hint
        assert f"pikuri-memory down && pikuri-memory up --router {endpoint.url} --llm-model" in hint
        endpoint.behave()
        assert probed(endpoint, llm_model=hint.split()[-1]).problems == ()
    with ScriptedRouter() as endpoint:
        assert "--reasoning-budget 0" in hints(probed(endpoint, name), "chat")


def test_a_switch_is_not_looked_for_where_nothing_thinks() -> None:
    with ScriptedRouter(flavour="llama.cpp") as endpoint:
        probed(endpoint)
        assert endpoint.count("chat") == 2  # the question and the test turn


# -- chat: context


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_context_of_2000_tokens_is_a_problem_whose_hint_solves_it(flavour: Any) -> None:
    given: Any = {"flavour": flavour, "context_tokens": 2_000}
    with ScriptedRouter(**given) as endpoint:
        found = probed(endpoint)
        chat = chat_of(found)
        assert chat.fits is False
        assert chat.context_tokens == 2_000
        assert 9_000 < chat.prompt_tokens < 16_384
        assert [finding.subject for finding in found.problems] == ["chat"]
        assert "2000 tokens" in found.problems[0].text
        typed = {
            "llama.cpp": "llama-server -c 16384 -np 1",
            "llama.cpp-router": "llama-server -c 16384 -np 1",
            "ollama": "OLLAMA_CONTEXT_LENGTH=16384 ollama serve",
            "lmstudio": f"lms load {CHAT} --context-length 16384",
            "vllm": f"vllm serve {CHAT} --max-model-len 16384",
            "plain": "16384",
        }
        assert typed[flavour] in found.problems[0].hint
        endpoint.context_tokens = 16_384
        assert probed(endpoint).problems == ()


def test_a_model_made_for_less_is_not_given_more() -> None:
    given: Any = {
        "flavour": "ollama",
        "context_tokens": 2_048,
        "trained_tokens": {"old-7b": 4_096},
        "chat_models": ["old-7b", "roomy-8b"],
        "loaded": ["old-7b"],
    }
    with ScriptedRouter(**given) as endpoint:
        found = probed(endpoint)
    assert chat_of(found).model == "old-7b"
    assert "4096" in found.problems[0].text
    assert found.problems[0].hint.endswith(" --llm-model roomy-8b")


def test_the_routers_own_tokenizer_counts_where_there_is_one() -> None:
    with ScriptedRouter(flavour="llama.cpp", characters_per_token=2) as endpoint:
        chat = chat_of(probed(endpoint))
    assert chat.prompt_tokens > 20_000
    assert chat.fits


def test_a_hint_asks_for_no_less_than_is_needed() -> None:
    given: Any = {"flavour": "llama.cpp", "characters_per_token": 2, "context_tokens": 16_384}
    with ScriptedRouter(**given) as endpoint:
        found = probed(endpoint)
    assert "llama-server -c 32768 -np 1" in found.problems[0].hint


def test_where_nothing_tells_the_context_a_long_prompt_does() -> None:
    with ScriptedRouter() as endpoint:
        found = probed(endpoint)
        longest = max(
            sum(len(message["content"]) for message in seen.body["messages"])
            for seen in endpoint.seen("chat")
        )
    assert chat_of(found).fits is True
    assert chat_of(found).context_tokens is None
    assert longest > 40_000


def test_the_size_of_the_prompt_is_that_of_the_pinned_library() -> None:
    pytest.importorskip("mem0", reason="the extra 'extraction' is not installed")
    from mem0.configs import prompts

    texts = (
        prompts.ADDITIVE_EXTRACTION_PROMPT,
        prompts.AGENT_CONTEXT_SUFFIX,
        prompts.generate_additive_extraction_prompt(),
    )
    assert sum(map(len, texts)) <= chat_trial.PROMPT_CHARACTERS
    assert 33_000 < chat_trial.PROMPT_CHARACTERS < 36_000


# -- chat: the test turn


def test_a_model_that_misses_facts_is_noted_and_used() -> None:
    def dull(body: Any) -> str:
        return '{"memory": [{"id": "0", "text": "User moved.", "attributed_to": "user"}]}'

    with ScriptedRouter(answer=dull) as endpoint:
        found = probed(endpoint)
    assert chat_of(found).canary is False
    assert found.problems == ()
    assert any("missed facts" in finding.text and finding.hint for finding in found.findings)


@pytest.mark.parametrize("said", ["[]", '{"memory": "x"}', '{"memory": [7, {"text": null}]}'])
def test_an_odd_answer_to_the_test_turn_is_no_crash(said: str) -> None:
    def odd(body: Any) -> str:
        asked = body["messages"][-1]["content"]
        return said if "Bella" in asked else '{"answer": "yes"}'

    with ScriptedRouter(answer=odd) as endpoint:
        endpoint.rule("no_json_schema")
        assert chat_of(probed(endpoint)).canary is False
