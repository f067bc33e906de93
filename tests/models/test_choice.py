"""Which models are used, decided against a scripted router."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.router.scripted import ScriptedRouter

from pikuri_memory.errors import (
    EmbedderMismatchError,
    EmbeddingError,
    MissingExtraError,
    ModelAnswerError,
    ModelNotOfferedError,
    RouterUnreachableError,
    SettingError,
)
from pikuri_memory.models import choice as choices
from pikuri_memory.models.choice import BUILTIN, Choice, Stored
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.models.router import Patience, Router
from pikuri_memory.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOBODY = "http://127.0.0.1:1"
IDENTITY = EmbedderIdentity("scripted-embed", 64, True, "", "0")


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    with ScriptedRouter() as scripted:
        yield scripted


def choose(
    remembered: Choice | None = None,
    stored: Stored = Stored(),  # noqa: B008  # frozen
    *,
    installed: bool = True,
    **given: Any,
) -> Choice:
    """Decide as a server does at its start."""
    opened: list[Router] = []

    def open_router(url: str, key_file: str | None) -> Router:
        opened.append(Router(url, patience=Patience(total=20)))
        return opened[-1]

    try:
        return choices.choose(
            Settings.resolve(given, {}),
            remembered,
            stored,
            open_router,
            now=NOW,
            installed=lambda: installed,
        )
    finally:
        for client in opened:
            client.close()


def embedded(choice: Choice) -> Stored:
    """A record whose memories were embedded as a choice says."""
    assert choice.embedding is not None
    return Stored(
        True,
        IDENTITY,
        choice.embedder_model,
        choice.embedder_url,
        choices.embedding_to_text(choice.embedding),
    )


def test_without_a_router_the_built_in_embedder_is_used_and_texts_stay_as_they_are() -> None:
    assert choose() == Choice()
    assert choose(installed=False) == Choice()


def test_a_router_alone_is_enough_and_what_it_offers_is_used(router: ScriptedRouter) -> None:
    found = choose(router=router.url + "/v1/")
    assert (found.router, found.llm_model, found.embedder_model) == (
        router.url,
        "scripted-instruct",
        "scripted-embed",
    )
    assert found.chat is not None
    assert found.embedding is not None
    assert found.embedding.dimensions == 64
    assert found.embedder_url == router.url


def test_what_was_decided_holds_and_the_router_is_not_asked_again(router: ScriptedRouter) -> None:
    first = choose(router=router.url)
    router.stop()
    options: list[dict[str, Any]] = [
        {},
        {"router": first.router},
        {"router": f"{first.router}/v1", "llm_model": "scripted-instruct"},
        {"embedder_model": "scripted-embed"},
    ]
    for given in options:
        assert choose(first, embedded(first), **given) == first
        assert choose(first, **given) == first


def test_another_model_of_a_known_router_is_tried_first(router: ScriptedRouter) -> None:
    router.chat_models = ("scripted-instruct", "other-chat")
    first = choose(router=router.url, llm_model="scripted-instruct")
    embeddings = router.count("embedding")
    second = choose(first, embedded(first), llm_model="other-chat")
    assert second.llm_model == "other-chat"
    assert second.chat is not None
    assert second.embedding == first.embedding
    assert router.count("embedding") == embeddings, "the embedder was known"


def test_a_router_that_is_new_and_away_is_told_at_once() -> None:
    with pytest.raises(RouterUnreachableError) as caught:
        choose(router=NOBODY)
    assert "pikuri-memory up" in caught.value.hint


def test_models_that_are_named_must_be_offered(router: ScriptedRouter) -> None:
    with pytest.raises(ModelNotOfferedError, match="scripted-instruct"):
        choose(router=router.url, llm_model="gpt-9")
    with pytest.raises(ModelNotOfferedError):
        choose(router=router.url, embedder_model="gpt-9")


@pytest.mark.parametrize("given", [{"llm_model": "x"}, {"embedder_model": "x"}])
def test_a_model_without_a_router_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        choose(**given)
    assert "--router" in caught.value.hint


def test_none_and_builtin_do_without_and_the_router_is_not_asked() -> None:
    found = choose(router=NOBODY, llm_model="none", embedder_model="builtin", installed=False)
    assert found == Choice(router=NOBODY)
    assert choose(found) == found


def test_extraction_that_is_not_installed_is_refused_before_the_router_is_asked() -> None:
    with pytest.raises(MissingExtraError) as caught:
        choose(router=NOBODY, installed=False)
    assert "pip install 'pikuri-memory[extraction]'" in caught.value.hint
    with pytest.raises(MissingExtraError):
        choose(Choice(router=NOBODY, llm_model="x"), installed=False)


def test_a_router_without_a_chat_model_keeps_texts_as_they_are_and_says_so() -> None:
    with ScriptedRouter(chat_models=()) as router:
        found = choose(router=router.url)
    assert found.llm_model is None
    assert found.probe is not None
    assert any(one.subject == "chat" and one.level != "ok" for one in found.probe.findings)
    assert choose(found) == found, "it is away now, and nothing is worse than before"


def test_a_chat_model_that_did_not_work_is_tried_again_at_the_next_start(
    router: ScriptedRouter,
) -> None:
    router.rule("context_llama_cpp")
    router.embedding_models = ()
    first = choose(router=router.url)
    assert first.llm_model is None
    assert choose(first).llm_model is None
    router.behave()
    second = choose(first)
    assert second.llm_model == "scripted-instruct"
    assert second.chat is not None
    assert choose(first, llm_model="none").llm_model is None
    assert choose(first, installed=False) == first


def test_a_small_context_is_looked_at_again_at_the_next_start() -> None:
    with ScriptedRouter(flavour="ollama", context_tokens=4096) as router:
        first = choose(router=router.url)
        assert first.chat is not None
        assert first.chat.fits is False
        router.context_tokens = 32_768
        second = choose(first, embedded(first))
        assert second.chat is not None
        assert second.chat.fits
        assert second.probe is not None
        assert not any(one.level == "problem" for one in second.probe.findings)
        assert any(one.subject == "embedding" for one in second.probe.findings), "told before"
        with pytest.raises(MissingExtraError):
            choose(first, installed=False)
    assert choose(first, embedded(first)) == first, "it is away now, and nothing is worse"


def test_a_chat_model_with_a_problem_is_exchanged_for_no_other_by_itself() -> None:
    with ScriptedRouter(flavour="ollama", context_tokens=4096) as router:
        first = choose(router=router.url)
        router.chat_models = ("other-instruct",)
        assert choose(first).llm_model == "scripted-instruct"


def test_who_wants_no_chat_model_any_more_is_told_no_more_of_it(router: ScriptedRouter) -> None:
    router.rule("wrong_schema")
    first = choose(router=router.url)
    assert first.probe is not None
    assert any(one.subject == "chat" and one.level == "note" for one in first.probe.findings)
    second = choose(first, llm_model="none")
    assert second.llm_model is None
    assert second.probe is not None
    assert not any(one.subject == "chat" for one in second.probe.findings)
    assert choose(second) == second, "nor given it at the next start"


def test_who_wants_no_chat_model_is_not_given_one_later(router: ScriptedRouter) -> None:
    first = choose(router=router.url, llm_model="none")
    chats = router.count("chat")
    assert choose(first) == first
    assert router.count("chat") == chats


def test_a_router_without_an_embedding_model_leaves_the_built_in_one() -> None:
    with ScriptedRouter(embedding_models=()) as router:
        found = choose(router=router.url)
    assert found.embedder_model == BUILTIN
    assert found.embedding is None


def test_a_chat_model_that_was_named_and_does_not_work_is_an_error(router: ScriptedRouter) -> None:
    router.rule("empty_content")
    with pytest.raises(ModelAnswerError) as caught:
        choose(router=router.url, llm_model="scripted-instruct")
    assert caught.value.hint
    found = choose(router=router.url)
    assert found.llm_model is None, "one that was only found is a finding"


def test_an_embedder_that_was_named_and_does_not_work_is_an_error(router: ScriptedRouter) -> None:
    router.rule("nan")
    with pytest.raises(EmbeddingError):
        choose(router=router.url, embedder_model="scripted-embed")


def test_an_embedder_that_cannot_find_what_it_stored_is_not_taken_by_itself(
    router: ScriptedRouter,
) -> None:
    for name in ("token_vectors", "constant_vectors"):
        router.behave()
        router.rule(name)
        found = choose(router=router.url)
        assert found.embedder_model == BUILTIN
        assert found.llm_model == "scripted-instruct"


def test_memories_keep_their_embedder_whatever_the_router_offers(router: ScriptedRouter) -> None:
    found = choose(stored=Stored(True, IDENTITY, None), router=router.url)
    assert found.embedder_model == BUILTIN
    assert found.llm_model == "scripted-instruct"
    assert router.count("embedding") == 0


def test_row_1_another_embedder_than_that_of_the_memories_is_refused(
    router: ScriptedRouter,
) -> None:
    first = choose(router=router.url)
    options: list[tuple[dict[str, Any], str]] = [
        ({"embedder_model": "builtin"}, "pikuri-memory reembed --embedder-model builtin"),
        ({"embedder_model": "other"}, "pikuri-memory reembed --embedder-model other"),
        ({"router": "none"}, "pikuri-memory reembed --embedder-model builtin"),
    ]
    for given, hint in options:
        with pytest.raises(EmbedderMismatchError) as caught:
            choose(first, embedded(first), **given)
        assert hint in caught.value.hint
    with pytest.raises(EmbedderMismatchError) as caught:
        choose(None, Stored(True, None, None), router=router.url, embedder_model="scripted-embed")
    assert f"--embedder-model scripted-embed --router {router.url}" in caught.value.hint


def test_the_embedder_of_a_re_embedding_that_is_under_way_may_be_named(
    router: ScriptedRouter,
) -> None:
    first = choose(router=router.url)
    stored = replace(embedded(first), next_model="builtin")
    assert choose(first, stored, embedder_model="builtin").embedder_model == "scripted-embed"


def test_memories_know_their_embedder_where_the_choice_was_lost(router: ScriptedRouter) -> None:
    first = choose(router=router.url)
    stored = embedded(first)
    router.stop()
    found = choose(None, stored)
    assert (found.router, found.embedder_router) == (None, router.url)
    assert found.embedding == first.embedding
    router.start()
    again = choose(None, stored, router=router.url)
    assert again.embedder_url == router.url
    assert again.embedding == first.embedding, "the same vectors under their first name"


def test_without_any_address_memories_of_a_router_cannot_be_served() -> None:
    with pytest.raises(EmbedderMismatchError, match="no router is known"):
        choose(None, Stored(True, IDENTITY, "scripted-embed"))


def test_a_router_that_moved_shows_that_it_makes_the_same_vectors(router: ScriptedRouter) -> None:
    first = choose(router=router.url)
    with ScriptedRouter() as moved:
        found = choose(first, embedded(first), router=moved.url)
        assert (found.router, found.embedding) == (moved.url, first.embedding)
        assert found.embedder_url == moved.url
        moved.seed = "other weights"
        with pytest.raises(EmbedderMismatchError, match="other vectors") as caught:
            choose(first, embedded(first), router=moved.url)
    assert "reembed --embedder-model scripted-embed" in caught.value.hint


def test_a_chat_model_of_before_is_preferred_at_another_router(router: ScriptedRouter) -> None:
    router.chat_models = ("aaa-7b-instruct", "scripted-instruct")
    first = Choice(router=NOBODY, llm_model="scripted-instruct")
    assert choose(first, router=router.url).llm_model == "scripted-instruct"
    router.chat_models = ("aaa-7b-instruct",)
    assert choose(first, router=router.url).llm_model == "aaa-7b-instruct"


def test_an_embedder_at_another_router_stays_where_it_is(router: ScriptedRouter) -> None:
    with ScriptedRouter(chat_models=()) as other:
        at_other = choose(router=other.url)
        first = replace(
            choose(router=router.url, embedder_model="builtin"),
            embedder_model="scripted-embed",
            embedder_router=other.url,
            embedding=at_other.embedding,
        )
        other.stop()
        found = choose(first, embedded(first), router=router.url)
        assert found.embedder_url == other.url
        assert found.llm_model == "scripted-instruct"


def test_the_key_file_is_remembered_for_its_router_only(router: ScriptedRouter) -> None:
    found = choose(
        router=router.url, router_key_file="/key", llm_model="none", embedder_model="builtin"
    )
    assert found.router_key_file == "/key"
    assert choose(found).router_key_file == "/key"
    given: dict[str, Any] = {"router": NOBODY, "llm_model": "none", "embedder_model": "builtin"}
    assert choose(found, **given).router_key_file is None


def test_a_choice_is_written_privately_and_read_again(
    router: ScriptedRouter, tmp_path: Path
) -> None:
    path = tmp_path / "models.json"
    assert choices.read(path) is None
    found = choose(router=router.url)
    choices.write(path, found)
    assert choices.read(path) == found
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat().st_mtime_ns
    choices.write(path, found)
    assert path.stat().st_mtime_ns == before, "what is there already is not written again"
    choices.write(path, Choice())
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"router": 5}', json.dumps({"router": "x"})]
)
def test_a_choice_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.json"
    path.write_text(text)
    assert choices.read(path) is None
