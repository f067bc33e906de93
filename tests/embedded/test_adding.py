"""Adding with extraction, and everything while the user's models are away: over a real record."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pikuri_memory.embedded.engine import Engine
from pikuri_memory.embedded.model import Fact, Hits, IdempotencyKey, Message, SearchQuery, Turn
from pikuri_memory.embedded.turns import Limits
from pikuri_memory.embedded.vectors import TEXT_THREADS, Vectors
from pikuri_memory.errors import (
    EmbedderUnavailableError,
    EmbeddingError,
    ExtractionUnavailableError,
    IdempotencyConflictError,
    InvalidRequestError,
    ModelAnswerError,
    RouterBusyError,
    RouterTimeoutError,
    ServerUnavailableError,
)
from pikuri_memory.record import Scope
from pikuri_memory.waiting import Deadline
from tests.embedded.parts import ANNA, BEN, HashEmbedder, OtherEmbedder, keep, open_engine


def sentences(turn: Turn) -> list[Fact]:
    """A fact for each sentence of the user."""
    said = ". ".join(message.content for message in turn.messages if message.role == "user")
    return [
        Fact(text.strip(), {"attributed_to": "user"}) for text in said.split(".") if text.strip()
    ]


class Played:
    """An extractor that does what it is told.

    Attributes:
        facts: Makes them.
        error: What it raises instead.
        gate: Closed, it holds every turn.
        turns: What it was told.
    """

    def __init__(self) -> None:
        self.facts: Callable[[Turn], list[Fact]] = sentences
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.turns: list[Turn] = []
        self.begun = threading.Semaphore(0)

    def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
        self.turns.append(turn)
        self.begun.release()
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.facts(turn)


class Remote(HashEmbedder):
    """An embedder that may be away, or change.

    Attributes:
        error: What it raises.
        asked: The texts that it was to embed.
        embedded: The texts that it has embedded.
    """

    immediate = False

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.embedded += texts
        return super().embed(texts)


AWAY = EmbedderUnavailableError("nobody there", hint="start it", retry_after=5.0)


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def engine(tmp_path: Path, played: Played, remote: Remote) -> Iterator[Engine]:
    opened = open_engine(tmp_path / "data", Vectors(remote, rest_seconds=0.05), extractor=played)
    yield opened
    played.gate.set()
    remote.gate.set()
    opened.close()


def key(name: str, body: str = "body") -> IdempotencyKey:
    return IdempotencyKey(name, "POST", "/memories", "anna", hashlib.sha256(body.encode()).digest())


def texts_of(engine: Engine, scope: Scope = ANNA) -> list[str]:
    return sorted(memory.text for memory in engine.page(scope, limit=1000)[0])


def rows(engine: Engine, sql: str) -> list[Any]:
    """What the record says, read past the engine."""
    with closing(sqlite3.connect(engine._records.path)) as db:
        return db.execute(sql).fetchall()


async def find(engine: Engine, text: str, scope: Scope = ANNA, **options: Any) -> Hits:
    return await engine.search(SearchQuery(text, scope, **options))


# -- extraction ---------------------------------------------------------------------------------


async def test_the_facts_of_a_turn_become_memories(engine: Engine, played: Played) -> None:
    results = await keep(engine, "I live in Oulu. I have a dog", metadata={"source": "chat"})
    assert [(result.text, result.event) for result in results] == [
        ("I live in Oulu", "ADD"),
        ("I have a dog", "ADD"),
    ]
    memory = engine.get(results[0].id)
    assert memory.metadata == {"attributed_to": "user", "source": "chat"}
    assert (await find(engine, "dog"))[0].memory.text == "I have a dog"
    assert engine.status()["extraction"] == {
        "router": None,
        "model": None,
        "state": "ready",
        "waiting": 0,
        "running": 0,
        "done": 1,
        "failed": 0,
        "last_error": None,
    }


async def test_infer_decides_between_facts_and_texts(engine: Engine, played: Played) -> None:
    assert len(await keep(engine, "One fact. Another fact", infer=True)) == 2
    assert len(await keep(engine, "A third. A fourth", infer=False)) == 1
    assert len(played.turns) == 1


async def test_what_the_caller_says_of_a_memory_counts_more_than_what_the_model_says(
    engine: Engine,
) -> None:
    [result] = await keep(engine, "I live in Oulu", metadata={"attributed_to": "me"})
    assert engine.get(result.id).metadata == {"attributed_to": "me"}


async def test_the_prompt_and_the_recent_messages_of_the_scope_are_passed_on(
    engine: Engine, played: Played
) -> None:
    await keep(engine, ["first", "second"], infer=False)
    await keep(engine, "of somebody else", BEN)
    await keep(engine, "of a conversation", Scope("anna", run_id="r"))
    await keep(engine, [f"third {n}" for n in range(9)], prompt="only food")
    turn = played.turns[-1]
    assert turn.prompt == "only food"
    assert [message.content for message in turn.recent] == ["first", "second"]
    await keep(engine, "fourth")
    recent = [message.content for message in played.turns[-1].recent]
    assert recent == ["second", *(f"third {n}" for n in range(9))]


async def test_the_nearest_memories_of_the_scope_can_be_looked_up(
    engine: Engine, played: Played
) -> None:
    await keep(engine, ["I live in Oulu", "my dog is old"], infer=False)
    await keep(engine, "my dog is young", BEN, infer=False)
    near: list[str] = []

    def look(turn: Turn) -> list[Fact]:
        vector = HashEmbedder().embed(["how old is my dog"])[0]
        near.extend(memory.text for memory in turn.existing(vector, 5))
        return []

    played.facts = look
    assert await keep(engine, "anything") == []
    assert near == ["my dog is old", "I live in Oulu"]


async def test_vectors_that_were_made_already_are_used(
    engine: Engine, played: Played, remote: Remote
) -> None:
    played.facts = lambda turn: [
        Fact("I live in Oulu", vector=HashEmbedder().embed(["I live in Oulu"])[0]),
        Fact("I have a dog"),
        Fact("I have a cat", vector=np.zeros(3, np.float32)),
    ]
    await keep(engine, "anything")
    assert sorted(remote.embedded) == ["I have a cat", "I have a dog"]


async def test_row_15_a_fact_that_is_there_already_is_not_stored_twice(engine: Engine) -> None:
    [first] = await keep(engine, "I live in Oulu")
    [again] = await keep(engine, "I live in Oulu. ")
    assert (again.id, again.event) == (first.id, "NONE")


async def test_no_facts_are_no_error_and_key_and_messages_are_kept(
    engine: Engine, played: Played
) -> None:
    played.facts = lambda turn: []
    assert await keep(engine, "Hello there", key=key("k")) == []
    assert rows(engine, "SELECT content FROM messages") == [("Hello there",)]
    assert await keep(engine, "Hello there", key=key("k")) == []
    assert len(played.turns) == 1, "the key was spent"
    with pytest.raises(IdempotencyConflictError):
        await keep(engine, "Hello there", key=key("k", "another body"))


async def test_a_turn_without_any_text_is_refused_before_the_model_is_asked(
    engine: Engine, played: Played
) -> None:
    with pytest.raises(InvalidRequestError):
        await keep(engine, "  ")
    assert played.turns == []


async def test_row_3_a_failed_extraction_stores_nothing_and_may_be_tried_again(
    engine: Engine, played: Played
) -> None:
    played.error = ModelAnswerError("half an answer", hint="try another model")
    with pytest.raises(ModelAnswerError):
        await keep(engine, "I live in Oulu", key=key("k"))
    for table in ("memories", "messages", "idempotency", "changes"):
        assert rows(engine, f"SELECT * FROM {table}") == []
    status = engine.status()["extraction"]
    assert (status["state"], status["failed"]) == ("failing", 1)
    assert status["last_error"]["code"] == "model_answer"
    assert "Oulu" not in str(status)
    played.error = None
    assert len(await keep(engine, "I live in Oulu", key=key("k"))) == 1
    assert engine.status()["extraction"]["state"] == "ready"


async def test_an_unforeseen_error_is_told_by_its_type_alone(
    engine: Engine, played: Played
) -> None:
    played.error = ValueError("I live in Oulu")
    with pytest.raises(ValueError, match="Oulu"):
        await keep(engine, "I live in Oulu")
    assert "Oulu" not in str(engine.status())
    assert "ValueError" in engine.status()["extraction"]["last_error"]["detail"]


async def test_the_same_key_joins_the_extraction_that_is_under_way(
    engine: Engine, played: Played
) -> None:
    played.gate.clear()
    first = asyncio.create_task(keep(engine, "I live in Oulu", key=key("k")))
    await asyncio.to_thread(played.begun.acquire)
    second = asyncio.create_task(keep(engine, "I live in Oulu", key=key("k")))
    with pytest.raises(IdempotencyConflictError):
        await keep(engine, "I live in Turku", key=key("k", "another"))
    played.gate.set()
    assert await first == await second
    assert len(played.turns) == 1


@pytest.mark.parametrize("name", ["k", None])
async def test_a_caller_that_goes_away_cancels_nothing(
    engine: Engine, played: Played, name: str | None
) -> None:
    played.gate.clear()
    used = None if name is None else key(name)
    caller = asyncio.create_task(keep(engine, "I live in Oulu", key=used))
    await asyncio.to_thread(played.begun.acquire)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    played.gate.set()
    while not texts_of(engine):
        await asyncio.sleep(0.01)
    assert texts_of(engine) == ["I live in Oulu"]


async def test_reads_and_other_adds_go_on_beside_an_extraction(
    engine: Engine, played: Played
) -> None:
    await keep(engine, "my dog is old", infer=False)
    played.gate.clear()
    slow = asyncio.create_task(keep(engine, "I live in Oulu"))
    await asyncio.to_thread(played.begun.acquire)
    assert len(await find(engine, "dog")) == 1
    await keep(engine, "my cat is young", infer=False)
    assert engine.status()["extraction"]["running"] == 1
    played.gate.set()
    await slow


async def test_too_many_turns_are_refused_at_once(tmp_path: Path, played: Played) -> None:
    engine = open_engine(
        tmp_path / "few", extractor=played, limits=Limits(workers=1, waiting=2, seconds=30)
    )
    played.gate.clear()
    tasks = [asyncio.create_task(keep(engine, f"turn {n}")) for n in range(3)]
    while engine.status()["extraction"]["waiting"] < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(RouterBusyError) as caught:
        await keep(engine, "one too many")
    assert caught.value.retry_after is not None
    assert 1 <= caught.value.retry_after <= 60
    assert "turn" not in caught.value.hint
    played.gate.set()
    await asyncio.gather(*tasks)
    assert texts_of(engine) == ["turn 0", "turn 1", "turn 2"]
    engine.close()


async def test_the_wait_for_others_counts_into_the_deadline(tmp_path: Path, played: Played) -> None:
    engine = open_engine(
        tmp_path / "late", extractor=played, limits=Limits(workers=1, waiting=9, seconds=0.2)
    )
    played.gate.clear()
    first = asyncio.create_task(keep(engine, "first"))
    await asyncio.to_thread(played.begun.acquire)
    second = asyncio.create_task(keep(engine, "second"))
    await asyncio.sleep(0.3)
    played.gate.set()
    assert len(await first) == 1
    with pytest.raises(RouterBusyError):
        await second
    assert len(played.turns) == 1
    engine.close()


async def test_an_extractor_that_keeps_no_deadline_is_left_behind(
    tmp_path: Path, played: Played
) -> None:
    limits = Limits(seconds=0.1, grace=0.1)
    engine = open_engine(tmp_path / "stuck", extractor=played, limits=limits)
    played.gate.clear()
    with pytest.raises(RouterTimeoutError):
        await keep(engine, "first")
    assert texts_of(engine) == []
    played.gate.set()
    engine.close()


async def test_a_stop_fails_what_is_under_way_at_once_and_stores_nothing_of_it(
    tmp_path: Path, played: Played
) -> None:
    engine = open_engine(tmp_path / "data", extractor=played)
    played.gate.clear()
    tasks = [asyncio.create_task(keep(engine, f"turn {n}", key=key(str(n)))) for n in range(3)]
    await asyncio.to_thread(played.begun.acquire)
    begun = time.monotonic()
    engine.abandon()
    for task in tasks:
        with pytest.raises(ServerUnavailableError):
            await task
    with pytest.raises(ServerUnavailableError):
        await keep(engine, "afterwards")
    await asyncio.to_thread(engine.close)
    assert time.monotonic() - begun < 10
    again = open_engine(tmp_path / "data", extractor=played)
    played.gate.set()
    await asyncio.sleep(0.05)
    assert again.status()["memories"] == 0
    assert rows(again, "SELECT * FROM idempotency") == []
    assert len(await keep(again, "turn 1", key=key("1"))) == 1
    again.close()


async def test_without_a_model_the_refusal_says_how_to_get_one(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    with pytest.raises(ExtractionUnavailableError) as caught:
        await keep(engine, "I live in Oulu", infer=True)
    assert "pikuri-memory up --router" in caught.value.hint
    engine.close()


# -- the embedder is away -----------------------------------------------------------------------


async def until_back(engine: Engine) -> None:
    end = time.monotonic() + 10
    while engine.status()["embedder"]["state"] != "ok":
        assert time.monotonic() < end, "nobody looked whether it is back"
        await asyncio.sleep(0.01)


async def test_a_search_finds_by_words_while_the_embedder_is_away_and_says_so(
    engine: Engine, remote: Remote
) -> None:
    await keep(engine, ["my dog is old", "I live in Oulu", "the dog of Ben"], infer=False)
    remote.error = AWAY
    found = await find(engine, "how old is the dog?")
    assert found.degraded is not None
    assert found.degraded["code"] == "embedder_unavailable"
    assert "nobody there" in found.degraded["detail"]
    assert found.degraded["hint"] == "start it"
    assert [hit.memory.text for hit in found] == ["my dog is old", "the dog of Ben"]
    assert all(0 < hit.score <= 1 for hit in found)
    assert found[0].score > found[1].score
    status = engine.status()["embedder"]
    assert status["state"] == "unavailable"
    assert status["why"]["code"] == "embedder_unavailable"
    remote.error = None
    await until_back(engine)
    assert (await find(engine, "how old is the dog?")).degraded is None


async def test_words_alone_keep_to_scope_filter_expiry_and_threshold(
    engine: Engine, remote: Remote
) -> None:
    from pikuri_memory.embedded import filters

    await keep(engine, "my dog is old", infer=False, metadata={"year": 2020})
    await keep(engine, "my dog is brown", infer=False, metadata={"year": 2021})
    await keep(engine, "my dog is young", BEN, infer=False)
    remote.error = AWAY
    assert [hit.memory.text for hit in await find(engine, "young dog", BEN)] == ["my dog is young"]
    _, condition = filters.parse({"user_id": "anna", "year": {"gte": 2021}})
    filtered = await find(engine, "old dog", condition=condition)
    assert [hit.memory.text for hit in filtered] == ["my dog is brown"]
    assert filtered.degraded is not None
    assert len(await find(engine, "old dog", threshold=0.6)) == 1
    assert await find(engine, "aeroplane") == []
    explained = await find(engine, "old dog", explain=True)
    explanation = explained[0].explanation
    assert explanation is not None
    assert explanation["weights"] == {"cosine": 0.0, "coverage": 1.0}


async def test_words_alone_are_found_without_an_index_too(engine: Engine, remote: Remote) -> None:
    await keep(engine, ["my dog is old", "I live in Oulu"], infer=False)
    remote.error = AWAY
    by_index = await find(engine, "old dog")
    engine._index = None
    exactly = await find(engine, "old dog")
    assert [(hit.memory.id, hit.score) for hit in exactly] == [
        (hit.memory.id, hit.score) for hit in by_index
    ]


async def test_a_question_that_was_asked_before_needs_no_embedder(
    engine: Engine, remote: Remote
) -> None:
    await keep(engine, "my dog is old", infer=False)
    await find(engine, "old dog")
    remote.error = AWAY
    assert (await find(engine, "another question")).degraded is not None
    assert (await find(engine, "old dog")).degraded is None


async def test_row_3_nothing_is_stored_without_vectors(
    engine: Engine, remote: Remote, played: Played
) -> None:
    from pikuri_memory.embedded.model import NewMemory

    [kept] = await keep(engine, "my dog is old", infer=False)
    remote.error = AWAY
    for write in (
        keep(engine, "my cat is old", infer=False, key=key("a")),
        keep(engine, "my cat is old", key=key("b")),
        engine.add_batch([NewMemory("my cat is old", ANNA)], idempotency=key("c")),
        engine.update(kept.id, text="my cat is old"),
    ):
        with pytest.raises(EmbedderUnavailableError) as caught:
            await write
        assert caught.value.retry_after == 5.0
        assert caught.value.hint
    assert texts_of(engine) == ["my dog is old"]
    assert rows(engine, "SELECT * FROM idempotency") == []
    # What needs no vector goes on.
    assert (await keep(engine, "my dog is old ", infer=False))[0].event == "NONE"
    await engine.update(kept.id, metadata={"a": 1})
    await engine.delete(kept.id)


async def test_while_the_embedder_hangs_only_the_first_questions_wait(
    engine: Engine, remote: Remote
) -> None:
    await keep(engine, "my dog is old", infer=False)
    remote.gate.clear()
    waiting = [asyncio.create_task(find(engine, f"question {n}")) for n in range(12)]
    await asyncio.sleep(0.1)
    remote.error = AWAY
    remote.gate.set()  # the deadline of the first ones, as it were
    found = await asyncio.gather(*waiting)
    assert all(hits.degraded is not None for hits in found)
    remote.gate.clear()
    begun = time.monotonic()
    assert (await find(engine, "and now?")).degraded is not None
    assert time.monotonic() - begun < 5, "it did not wait"


async def test_texts_that_wait_behind_others_are_refused_with_them(
    engine: Engine, remote: Remote
) -> None:
    remote.gate.clear()
    waiting = [
        asyncio.create_task(keep(engine, f"fact {n}", infer=False)) for n in range(3 * TEXT_THREADS)
    ]
    while len(remote.asked) < TEXT_THREADS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    remote.error = AWAY
    remote.gate.set()  # the deadline of the first ones, as it were
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in refused} == {EmbedderUnavailableError}
    asked = [text for text in remote.asked if text.startswith("fact")]
    assert len(asked) == TEXT_THREADS, "nobody waited for the embedder once more"
    remote.error = None
    await keep(engine, "fact 0", infer=False)


async def test_an_embedder_that_became_another_one_is_not_trusted(
    engine: Engine, remote: Remote
) -> None:
    await keep(engine, "my dog is old", infer=False)
    await find(engine, "old dog")
    error = EmbeddingError("other vectors", hint="pikuri-memory reembed")
    assert not engine.distrust_embedder("that of the one before", error)
    assert (await find(engine, "old dog")).degraded is None
    assert engine.distrust_embedder(remote.identity.fingerprint, error)
    found = await find(engine, "old dog")
    assert found.degraded is not None
    assert found.degraded["code"] == "embedding"
    assert found.degraded["hint"] == "pikuri-memory reembed"
    with pytest.raises(EmbeddingError):
        await keep(engine, "my cat is old", infer=False)
    await asyncio.sleep(0.2)
    assert engine.status()["embedder"]["state"] == "unavailable", "only a person can end that"


def test_an_extractor_that_shares_the_vectors_gets_the_embedder_of_now() -> None:
    vectors = Vectors(HashEmbedder())
    vectors.use(OtherEmbedder())
    assert vectors.identity == OtherEmbedder.identity
    vectors.close()


def test_messages_of_a_turn_are_values() -> None:
    assert Message("user", "x") == Message("user", "x")
