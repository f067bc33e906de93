"""The engine, over a real record and a real index."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from pikuri_memory.embedded import filters
from pikuri_memory.embedded.engine import Engine
from pikuri_memory.embedded.model import IdempotencyKey, Message, NewMemory, SearchQuery
from pikuri_memory.embedded.searching import FEW_ROWS
from pikuri_memory.errors import (
    DiskFullError,
    DuplicateTextError,
    EmbedderMismatchError,
    ExtractionUnavailableError,
    IdempotencyConflictError,
    InvalidRequestError,
    MemoryNotFoundError,
    ScopeRequiredError,
)
from pikuri_memory.record import Scope
from tests.embedded.parts import ANNA, BEN, HashEmbedder, OtherEmbedder, Time, keep, open_engine

NOWHERE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_engine(tmp_path / "data")
    yield opened
    opened.close()


def texts_of(engine: Engine, scope: Scope = ANNA, *, show_expired: bool = False) -> list[str]:
    return [memory.text for memory in engine.page(scope, limit=1000, show_expired=show_expired)[0]]


async def found(engine: Engine, text: str, scope: Scope = ANNA, **options: object) -> list[str]:
    query = SearchQuery(text, scope, **options)  # type: ignore[arg-type]  # options of the test
    return [hit.memory.text for hit in await engine.search(query)]


def a_key(key: str, body: str, scope: str = "anna") -> IdempotencyKey:
    return IdempotencyKey(key, "POST", "/memories", scope, hashlib.sha256(body.encode()).digest())


async def until_ready(engine: Engine) -> None:
    end = time.monotonic() + 30
    while engine.status()["index"]["state"] != "ready":
        assert time.monotonic() < end, "the index was not made anew"
        await asyncio.sleep(0.02)


async def test_what_is_added_is_found_read_and_listed(engine: Engine) -> None:
    [result] = await keep(engine, "Rocco the dog fears thunder", metadata={"topic": "pets"})
    assert result.event == "ADD"
    memory = engine.get(result.id)
    assert memory.text == "Rocco the dog fears thunder"
    assert memory.scope == ANNA
    assert memory.metadata == {"topic": "pets"}
    assert await found(engine, "thunder") == [memory.text]
    assert texts_of(engine) == [memory.text]


async def test_only_user_turns_become_memories(engine: Engine) -> None:
    turn = [
        Message("system", "be kind"),
        Message("user", "I live in Oulu"),
        Message("assistant", "Noted: you live in Oulu"),
    ]
    results = await engine.add(
        turn, ANNA, metadata={}, infer=None, prompt=None, expiration_date=None, idempotency=None
    )
    assert [result.text for result in results] == ["I live in Oulu"]


async def test_a_turn_without_user_text_is_refused_not_swallowed(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="role user"):
        await keep(engine, "   ")


async def test_extraction_without_a_model_is_refused_with_a_hint(engine: Engine) -> None:
    with pytest.raises(ExtractionUnavailableError) as caught:
        await keep(engine, "I live in Oulu", infer=True)
    assert caught.value.hint


async def test_row_15_the_same_text_in_the_same_scope_is_not_stored_twice(engine: Engine) -> None:
    [first] = await keep(engine, "Käsi on kipeä")
    [again] = await keep(engine, "  Ka\u0308si on kipea\u0308\n")
    assert (again.id, again.event) == (first.id, "NONE")
    [other] = await keep(engine, "Käsi on kipeä", BEN)
    [narrower] = await keep(engine, "Käsi on kipeä", Scope("anna", run_id="r"))
    assert {other.event, narrower.event} == {"ADD"}


async def test_the_same_text_twice_in_one_turn_is_stored_once(engine: Engine) -> None:
    first, second = await keep(engine, ["I like tea", "I like tea "])
    assert (second.id, second.event) == (first.id, "NONE")


async def test_many_adds_of_the_same_text_at_once_store_it_once(engine: Engine) -> None:
    results = await asyncio.gather(*(keep(engine, "I like tea") for _ in range(20)))
    assert len({result.id for [result] in results}) == 1
    assert sorted(result.event for [result] in results) == ["ADD"] + ["NONE"] * 19


async def test_an_expired_memory_is_hidden_and_does_not_count_as_known(tmp_path: Path) -> None:
    clock = Time()
    engine = open_engine(tmp_path / "data", clock=clock)
    [old] = await keep(engine, "The gate code is on the note", expiration_date=date(2025, 6, 16))
    assert await found(engine, "gate code")
    clock.pass_days(3)
    assert await found(engine, "gate code") == []
    assert texts_of(engine) == []
    assert await found(engine, "gate code", show_expired=True)
    assert len(texts_of(engine, show_expired=True)) == 1
    [new] = await keep(engine, "The gate code is on the note")
    assert new.event == "ADD"
    assert new.id != old.id
    assert len(await found(engine, "gate code")) == 1
    engine.close()


async def test_expired_memories_do_not_crowd_out_others(tmp_path: Path) -> None:
    clock = Time()
    engine = open_engine(tmp_path / "data", clock=clock)
    for i in range(60):
        await keep(engine, f"umbrella umbrella {i}", expiration_date=date(2025, 6, 16))
    await keep(engine, "an umbrella stands in the hall by the old mirror")
    clock.pass_days(3)
    assert await found(engine, "umbrella", top_k=3) == [
        "an umbrella stands in the hall by the old mirror"
    ]
    engine.close()


async def test_one_scope_never_finds_another_s_memories(engine: Engine) -> None:
    await keep(engine, "I live in Oulu", ANNA)
    await keep(engine, "I live in Turku", BEN)
    await keep(engine, "I live in Espoo", Scope("anna", agent_id="shop"))
    assert set(await found(engine, "live", ANNA)) == {"I live in Oulu", "I live in Espoo"}
    assert await found(engine, "live", Scope("anna", "shop")) == ["I live in Espoo"]
    assert await found(engine, "live", Scope(agent_id="shop")) == ["I live in Espoo"]
    assert await found(engine, "live", Scope("anna", "other")) == []


async def test_row_23_an_empty_scope_is_refused(engine: Engine) -> None:
    with pytest.raises(ScopeRequiredError):
        await found(engine, "live", Scope())
    with pytest.raises(ScopeRequiredError):
        await keep(engine, "I live in Oulu", Scope())
    with pytest.raises(ScopeRequiredError):
        await engine.delete_scope(Scope())


async def test_an_update_changes_what_is_found_and_keeps_the_history(engine: Engine) -> None:
    [result] = await keep(engine, "I live in Turku")
    await engine.update(result.id, text="I live in Oulu", metadata={"sure": True})
    assert await found(engine, "Oulu") == ["I live in Oulu"]
    assert engine.get(result.id).metadata == {"sure": True}
    events = [(e.event, e.old_text, e.new_text) for e in engine.history(result.id)]
    assert events == [
        ("ADD", None, "I live in Turku"),
        ("UPDATE", "I live in Turku", "I live in Oulu"),
    ]
    [again] = await keep(engine, "I live in Turku")
    assert again.event == "ADD"


async def test_an_update_keeps_what_it_does_not_name(engine: Engine) -> None:
    [result] = await keep(engine, "I live in Turku", metadata={"a": 1})
    await engine.update(result.id, expiration_date=date(2099, 1, 1))
    memory = engine.get(result.id)
    assert (memory.text, memory.metadata) == ("I live in Turku", {"a": 1})
    assert memory.expiration_date == date(2099, 1, 1)
    await engine.update(result.id, expiration_date=None)
    assert engine.get(result.id).expiration_date is None


async def test_an_update_to_what_another_memory_says_is_refused(engine: Engine) -> None:
    await keep(engine, "I live in Oulu")
    [turku] = await keep(engine, "I live in Turku")
    with pytest.raises(DuplicateTextError):
        await engine.update(turku.id, text="I live in Oulu ")
    assert engine.get(turku.id).text == "I live in Turku"


async def test_a_blank_or_empty_update_is_refused(engine: Engine) -> None:
    [result] = await keep(engine, "I live in Oulu")
    with pytest.raises(InvalidRequestError):
        await engine.update(result.id, text=" ")
    with pytest.raises(InvalidRequestError):
        await engine.update(result.id)


async def test_a_deleted_memory_is_gone_from_every_interface_at_once(engine: Engine) -> None:
    [result] = await keep(engine, "I live in Oulu", key=a_key("k", "b"))
    await engine.delete(result.id)
    assert await found(engine, "Oulu") == []
    assert texts_of(engine) == []
    assert engine.entities() == []
    with pytest.raises(MemoryNotFoundError):
        engine.get(result.id)
    with pytest.raises(MemoryNotFoundError):
        await engine.delete(result.id)
    entries = engine.history(result.id)
    assert [entry.event for entry in entries] == ["ADD", "DELETE"]
    assert all(entry.old_text is None and entry.new_text is None for entry in entries)
    # The key stays spent: a late retry does not bring the memory back.
    assert await keep(engine, "I live in Oulu", key=a_key("k", "b")) == []
    assert texts_of(engine) == []


@pytest.mark.parametrize("bad", ["", "x", "../etc/passwd", NOWHERE, "%00", "1" * 500])
async def test_an_unknown_id_is_not_found(engine: Engine, bad: str) -> None:
    for call in (engine.get, engine.history):
        with pytest.raises(MemoryNotFoundError):
            call(bad)
    with pytest.raises(MemoryNotFoundError):
        await engine.delete(bad)
    with pytest.raises(MemoryNotFoundError):
        await engine.update(bad, text="x")


async def test_deleting_a_scope_deletes_all_of_it_and_nothing_else(engine: Engine) -> None:
    for i in range(150):
        await keep(engine, f"fact {i}", Scope("anna", run_id=f"r{i % 3}"))
    await keep(engine, "fact of ben", BEN)
    assert await engine.delete_scope(Scope("anna", run_id="r0")) == 50
    assert await engine.delete_scope(ANNA) == 100
    assert texts_of(engine, Scope()) == ["fact of ben"]
    assert await found(engine, "fact", BEN) == ["fact of ben"]


async def test_a_reset_leaves_nothing_and_the_server_usable(engine: Engine) -> None:
    [result] = await keep(engine, "I live in Oulu", key=a_key("k", "b"))
    await engine.reset()
    assert engine.status()["memories"] == 0
    assert await found(engine, "Oulu") == []
    with pytest.raises(MemoryNotFoundError):
        engine.history(result.id)
    await keep(engine, "I live in Turku", key=a_key("k", "other"))
    assert await found(engine, "Turku") == ["I live in Turku"]


async def test_pages_follow_each_other_newest_first(engine: Engine) -> None:
    for i in range(25):
        await keep(engine, f"fact {i}")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        memories, cursor = engine.page(ANNA, limit=10, cursor=cursor)
        seen += [memory.text for memory in memories]
        if cursor is None:
            break
    assert seen == [f"fact {i}" for i in reversed(range(25))]


@pytest.mark.parametrize("bad", ["x", "AAAA", "é", "MTox", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk6MQ"])
def test_a_cursor_of_somebody_else_is_refused(engine: Engine, bad: str) -> None:
    if bad == "MTox":  # 1:1 is a cursor of ours
        assert engine.page(ANNA, limit=1, cursor=bad) == ([], None)
    else:
        with pytest.raises(InvalidRequestError):
            engine.page(ANNA, limit=1, cursor=bad)


async def test_entities_are_counted_with_their_times(engine: Engine) -> None:
    await keep(engine, "a", Scope("anna", "shop"))
    await keep(engine, "b", Scope("anna"))
    entities = {(e.type, e.id): e for e in engine.entities()}
    assert entities["user", "anna"].total_memories == 2
    assert entities["agent", "shop"].total_memories == 1
    assert entities["user", "anna"].created_at <= entities["user", "anna"].updated_at


async def test_the_same_key_and_body_get_the_same_reply(engine: Engine) -> None:
    first = await keep(engine, "I like tea", key=a_key("k", "b"))
    assert await keep(engine, "I like tea", key=a_key("k", "b")) == first
    assert first[0].event == "ADD"


async def test_a_stored_reply_reads_texts_anew(engine: Engine) -> None:
    [first] = await keep(engine, "I like tea", key=a_key("k", "b"))
    await engine.update(first.id, text="I like coffee")
    [again] = await keep(engine, "I like tea", key=a_key("k", "b"))
    assert (again.id, again.text, again.event) == (first.id, "I like coffee", "ADD")


async def test_the_same_key_with_another_body_is_refused(engine: Engine) -> None:
    await keep(engine, "I like tea", key=a_key("k", "b"))
    with pytest.raises(IdempotencyConflictError):
        await keep(engine, "I like coffee", key=a_key("k", "c"))


async def test_a_key_belongs_to_its_scope(engine: Engine) -> None:
    await keep(engine, "I like tea", key=a_key("k", "b"))
    [other] = await keep(engine, "I like cake", BEN, key=a_key("k", "c", "ben"))
    assert other.event == "ADD"


async def test_a_key_that_is_still_running_joins_the_first(engine: Engine) -> None:
    replies = await asyncio.gather(
        *(keep(engine, "I like tea", key=a_key("k", "b")) for _ in range(10))
    )
    assert all(reply == replies[0] for reply in replies)
    assert replies[0][0].event == "ADD"
    with pytest.raises(IdempotencyConflictError):
        await asyncio.gather(
            keep(engine, "I like jam", key=a_key("l", "b")),
            keep(engine, "I like ham", key=a_key("l", "c")),
        )


async def test_who_joined_is_not_cancelled_with_the_first(engine: Engine) -> None:
    first = asyncio.create_task(keep(engine, "I like tea", key=a_key("k", "b")))
    await asyncio.sleep(0)
    second = asyncio.create_task(keep(engine, "I like tea", key=a_key("k", "b")))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].event == "ADD"


async def test_a_key_is_forgotten_after_seven_days(tmp_path: Path) -> None:
    clock = Time()
    engine = open_engine(tmp_path / "data", clock=clock)
    await keep(engine, "I like tea", key=a_key("k", "b"))
    clock.pass_days(6.9)
    assert (await keep(engine, "I like tea", key=a_key("k", "b")))[0].event == "ADD"
    clock.pass_days(0.2)
    [again] = await keep(engine, "I like ham", key=a_key("k", "c"))
    assert again.event == "ADD"
    engine.close()


async def test_a_failed_call_leaves_no_key(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data", free_space_reserve=2**60)
    with pytest.raises(DiskFullError) as caught:
        await keep(engine, "I like tea", key=a_key("k", "b"))
    assert "df" in caught.value.hint
    engine.close()
    engine = open_engine(tmp_path / "data")
    [result] = await keep(engine, "I like ham", key=a_key("k", "c"))
    assert result.event == "ADD"
    engine.close()


async def test_reads_and_deletes_go_on_while_the_disk_is_full(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    [result] = await keep(engine, "I like tea")
    engine.close()
    engine = open_engine(tmp_path / "data", free_space_reserve=2**60)
    assert engine.status()["read_only"]
    assert await found(engine, "tea") == ["I like tea"]
    with pytest.raises(DiskFullError):
        await engine.update(result.id, text="I like ham")
    await engine.delete(result.id)
    assert texts_of(engine) == []
    engine.close()


async def test_a_batch_keeps_ids_dates_and_metadata(engine: Engine) -> None:
    item = NewMemory(
        "I like tea",
        ANNA,
        metadata={"n": 1},
        id="7d3c6d2e-8a3f-4a6e-9c53-3f8f6b0d8a11",
        created_at=1_600_000_000_000_000,
        updated_at=1_600_000_001_000_000,
    )
    [result] = await engine.add_batch([item], idempotency=None)
    memory = engine.get(item.id or "")
    assert result.event == "ADD"
    assert (memory.created_at, memory.updated_at) == (item.created_at, item.updated_at)
    [again] = await engine.add_batch([item], idempotency=None)
    assert again.event == "NONE"


async def test_an_imported_id_that_is_another_s_loses_nothing(engine: Engine) -> None:
    [mine] = await keep(engine, "I like tea")
    items = [NewMemory("I like jam", BEN, id=mine.id), NewMemory("I like ham", ANNA, id=mine.id)]
    other, same = await engine.add_batch(items, idempotency=None)
    assert (other.event, engine.get(other.id).text) == ("ADD", "I like jam")
    assert other.id != mine.id
    # The same memory of the same scope, changed since: what it says now stays.
    assert (same.event, same.id, same.text) == ("NONE", mine.id, "I like tea")


async def test_everything_is_there_after_a_clean_restart(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    for i in range(100):
        await keep(engine, f"fact number {i}")
    engine.close()
    engine = open_engine(tmp_path / "data")
    assert engine.status()["index"]["state"] == "ready"
    assert await found(engine, "number 42", top_k=1) == ["fact number 42"]
    engine.close()


async def test_without_an_index_searches_are_exact_until_it_is_made_anew(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    for i in range(300):
        await keep(engine, f"fact number {i}", Scope(f"u{i % 3}"))
    before = await engine.search(SearchQuery("number 42", Scope("u0"), top_k=5, explain=True))
    engine.close()
    (tmp_path / "data" / "index" / "current.json").unlink()
    engine = open_engine(tmp_path / "data")
    first = await engine.search(SearchQuery("number 42", Scope("u0"), top_k=5, explain=True))
    await until_ready(engine)
    later = await engine.search(SearchQuery("number 42", Scope("u0"), top_k=5, explain=True))
    assert [hit.score for hit in first] == [hit.score for hit in before]
    assert [hit.memory.id for hit in later] == [hit.memory.id for hit in before]
    engine.close()


async def test_changes_during_a_rebuild_are_in_the_new_index(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    await engine.add_batch([NewMemory(f"fact {i}", ANNA) for i in range(3000)], idempotency=None)
    engine.close()
    (tmp_path / "data" / "index" / "current.json").unlink()
    engine = open_engine(tmp_path / "data")
    added = 0
    while engine.status()["index"]["state"] != "ready":
        [result] = await keep(engine, f"meanwhile {added}")
        if added % 2:
            await engine.delete(result.id)
        added += 1
    assert added > 1
    assert await found(engine, "meanwhile 0", top_k=1) == ["meanwhile 0"]
    assert "meanwhile 1" not in await found(engine, "meanwhile 1", top_k=50)
    engine.close()
    engine = open_engine(tmp_path / "data")
    assert engine.status()["index"]["state"] == "ready"
    engine.close()


async def test_few_and_many_filtered_rows_are_scored_alike(engine: Engine) -> None:
    items = [
        NewMemory(f"walk {i} in the wood", ANNA, metadata={"half": i % 2, "all": True})
        for i in range(2 * FEW_ROWS + 10)
    ]
    await engine.add_batch(items, idempotency=None)

    async def ask(wanted: dict[str, object]) -> list[tuple[str, float]]:
        _, condition = filters.parse(wanted)
        query = SearchQuery("walk 77 wood", ANNA, condition=condition, top_k=8)
        return [(hit.memory.text, hit.score) for hit in await engine.search(query)]

    many = await ask({"all": True})
    few = await ask({"half": 1, "all": True, "created_at": {"gt": "2000-01-01"}})
    assert many[0] == few[0]
    assert many[0][0] == "walk 77 in the wood"
    unfiltered = await engine.search(SearchQuery("walk 77 wood", ANNA, top_k=8))
    assert [hit.score for hit in unfiltered] == [score for _, score in many]


async def test_a_filter_is_never_applied_to_a_finished_top_k(engine: Engine) -> None:
    await engine.add_batch(
        [NewMemory(f"tea tea tea {i}", ANNA) for i in range(200)], idempotency=None
    )
    await keep(engine, "a rare thing about nothing", metadata={"rare": True})
    _, condition = filters.parse({"rare": True})
    assert await found(engine, "tea", condition=condition, top_k=1) == [
        "a rare thing about nothing"
    ]


async def test_explanations_add_up(engine: Engine) -> None:
    await keep(engine, "Rocco the dog fears thunder")
    await keep(engine, "the cat is called Misu")
    [hit, _] = await engine.search(SearchQuery("dog thunder zebra", ANNA, explain=True))
    parts = hit.explanation
    assert parts is not None
    assert {term["term"] for term in parts["terms"]} == {"dog", "thunder", "zebra"}
    assert sum(term["part"] for term in parts["terms"]) == pytest.approx(
        parts["coverage"], abs=1e-4
    )
    assert sum(term["weight"] for term in parts["terms"]) == pytest.approx(1, abs=1e-4)
    assert parts["unrounded_score"] == pytest.approx(hit.score, abs=0.02)


async def test_row_16_among_equals_the_newer_comes_first(engine: Engine) -> None:
    scope = Scope("anna")
    await keep(engine, "I live in Turku", Scope("anna", run_id="1"))
    await keep(engine, "I live in Turku", Scope("anna", run_id="2"))
    hits = await engine.search(SearchQuery("live in Turku", scope))
    assert [hit.memory.scope.run_id for hit in hits] == ["2", "1"]
    assert hits[0].score == hits[1].score


async def test_scores_never_rise_down_the_list_and_the_threshold_cuts(engine: Engine) -> None:
    for i in range(30):
        await keep(engine, f"word{i % 5} and word{i % 7} number {i}")
    hits = await engine.search(SearchQuery("word1 word3", ANNA, top_k=30))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    cut = await engine.search(SearchQuery("word1 word3", ANNA, top_k=30, threshold=scores[3]))
    assert [hit.score for hit in cut] == [score for score in scores if score >= scores[3]]


async def test_row_1_another_embedder_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    await keep(engine, "I live in Oulu")
    engine.close()
    with pytest.raises(EmbedderMismatchError) as caught:
        open_engine(tmp_path / "data", OtherEmbedder())
    assert caught.value.hint == "pikuri-memory reembed --embedder-model other"
    engine = open_engine(tmp_path / "data")
    assert await found(engine, "Oulu") == ["I live in Oulu"]
    engine.close()


def test_row_29_the_embedder_of_the_first_start_is_that_of_the_tenth(tmp_path: Path) -> None:
    for _ in range(10):
        engine = open_engine(tmp_path / "data", HashEmbedder())
        assert engine.status()["embedder"]["model"] == "hash"
        engine.close()


def test_an_empty_record_takes_any_embedder(tmp_path: Path) -> None:
    open_engine(tmp_path / "data").close()
    engine = open_engine(tmp_path / "data", OtherEmbedder())
    assert engine.status()["embedder"]["model"] == "other"
    engine.close()


async def test_another_language_makes_index_and_frequencies_anew(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    await keep(engine, "Talot ovat vanhoja")
    engine.close()
    engine = open_engine(tmp_path / "data", language="finnish")
    await until_ready(engine)
    [hit] = await engine.search(SearchQuery("talo", ANNA, explain=True))
    assert hit.explanation is not None
    assert hit.explanation["coverage"] > 0.9
    engine.close()


async def test_closing_twice_is_fine(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    await keep(engine, "I live in Oulu")
    engine.close()
    engine.close()
