"""Links between memories, through the engine: where they come from, what they do, how they go."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest

from pikuri_memory.embedded import filters, ranking
from pikuri_memory.embedded.engine import Engine
from pikuri_memory.embedded.model import (
    AddResult,
    Fact,
    Hit,
    IdempotencyKey,
    NewMemory,
    SearchQuery,
    Turn,
)
from pikuri_memory.embedded.records import Records
from pikuri_memory.models.builtin import BuiltinEmbedder
from pikuri_memory.record import Scope
from pikuri_memory.waiting import Deadline

from .parts import ANNA, BEN, Time, keep, open_engine

TURKU, OULU = "User lives in Turku", "User moved from Turku to Oulu"
IDS = [str(uuid.UUID(int=number)) for number in range(1, 10)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_engine(tmp_path / "data")
    yield opened
    opened.close()


async def put(
    engine: Engine, texts: Sequence[str], *, linked: bool = True, scope: Scope = ANNA
) -> list[str]:
    """Memories of which each supersedes the one before it; their ids."""
    items = [
        NewMemory(
            text,
            scope,
            id=id_,
            created_at=number,
            supersedes=IDS[number - 2 : number - 1] if linked and number > 1 else (),
        )
        for number, (id_, text) in enumerate(zip(IDS, texts, strict=False), start=1)
    ]
    return [result.id for result in await engine.add_batch(items, idempotency=None)]


def links(engine: Engine, memory_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    memory = engine.get(memory_id)
    return memory.supersedes, memory.superseded_by


async def hits(engine: Engine, text: str, scope: Scope = ANNA, **options: object) -> list[Hit]:
    return await engine.search(SearchQuery(text, scope, **options))  # type: ignore[arg-type]  # of the test


def texts(found: Sequence[Hit]) -> list[str]:
    return [hit.memory.text for hit in found]


def rows_of(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("SELECT count(*) FROM successions").fetchone()[0])


# -- recognised ------------------------------------------------------------------------------------


async def test_a_fact_that_replaces_an_older_one_is_linked_to_it(engine: Engine) -> None:
    [old] = await keep(engine, TURKU)
    await keep(engine, "User has a cat named Mirri")
    [new] = await keep(engine, OULU)
    assert links(engine, new.id) == ((old.id,), ())
    assert links(engine, old.id) == ((), (new.id,))
    assert [len(memory.superseded_by) for memory in engine.page(ANNA, limit=9)[0]] == [0, 0, 1]


async def test_the_built_in_embedder_recognises_the_same(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data", BuiltinEmbedder())
    [old] = await keep(engine, TURKU)
    await keep(engine, "User's mother lives in Kuopio")
    [new] = await keep(engine, OULU)
    assert links(engine, new.id) == ((old.id,), ())
    engine.close()


class Said:
    """An extractor to which every message is a fact, of the user."""

    def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
        return [Fact(message.content) for message in turn.messages]


async def test_extracted_facts_are_linked_as_well(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data", extractor=Said())
    [old] = await keep(engine, TURKU)
    cat, new = await keep(engine, ["User has a cat named Mirri", OULU])
    assert links(engine, new.id) == ((old.id,), ())
    assert links(engine, cat.id) == ((), ())
    engine.close()


async def test_only_memories_of_exactly_the_same_scope_are_replaced(engine: Engine) -> None:
    await keep(engine, TURKU, BEN)
    await keep(engine, TURKU, Scope("anna", agent_id="a"))
    await keep(engine, TURKU, Scope("anna", run_id="r"))
    [new] = await keep(engine, OULU)
    assert links(engine, new.id) == ((), ())
    [old] = await keep(engine, TURKU, Scope("anna", agent_id="b"))
    [other] = await keep(engine, OULU, Scope("anna", agent_id="b"))
    assert links(engine, other.id) == ((old.id,), ())


async def test_a_turn_that_is_sent_again_links_no_more_than_the_first_time(
    engine: Engine, tmp_path: Path
) -> None:
    [old] = await keep(engine, TURKU)
    key = IdempotencyKey("k", "POST", "/memories", "anna", b"body")
    results: list[AddResult] = []
    for _ in range(2):
        results += await keep(engine, OULU, key=key)
    results += await keep(engine, OULU)
    assert {result.id for result in results} == {results[0].id}
    assert links(engine, results[0].id) == ((old.id,), ())
    # Once it was taken away, the same text again does not bring it back.
    await engine.update(old.id, metadata={"n": 1})
    await keep(engine, OULU)
    assert links(engine, results[0].id) == ((), ())


async def test_an_expired_memory_is_not_replaced(tmp_path: Path) -> None:
    clock = Time()
    engine = open_engine(tmp_path / "data", clock=clock)
    await keep(engine, TURKU, expiration_date=date(2025, 6, 16))
    clock.pass_days(3)
    [new] = await keep(engine, OULU)
    assert links(engine, new.id) == ((), ())
    engine.close()


async def test_a_batch_is_not_looked_through_for_successors(engine: Engine) -> None:
    await keep(engine, TURKU)
    [new] = await engine.add_batch([NewMemory(OULU, ANNA)], idempotency=None)
    assert links(engine, new.id) == ((), ())


async def test_of_many_adds_at_once_each_has_at_most_what_was_there_before(
    engine: Engine,
) -> None:
    [old] = await keep(engine, TURKU)
    towns = ["Oulu", "Vaasa", "Kemi", "Kotka", "Lahti"]
    added = await asyncio.gather(*(keep(engine, f"User moved from Turku to {t}") for t in towns))
    for [new] in added:
        assert set(links(engine, new.id)[0]) <= {old.id, *(result.id for [result] in added)}
    assert set(links(engine, old.id)[1]) <= {result.id for [result] in added}


# -- given -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_a_batch_brings_its_links_in_whatever_order_it_comes(
    engine: Engine, newest_first: bool, together: bool
) -> None:
    items = [
        NewMemory(TURKU, ANNA, id=IDS[0], created_at=1, superseded_by=[IDS[1]]),
        NewMemory(OULU, ANNA, id=IDS[1], created_at=2, supersedes=[IDS[0]]),
    ]
    items = items[::-1] if newest_first else items
    for part in [items] if together else [[item] for item in items]:
        await engine.add_batch(part, idempotency=None)
    assert links(engine, IDS[1]) == ((IDS[0],), ())
    assert links(engine, IDS[0]) == ((), (IDS[1],))


async def test_links_to_the_unknown_to_other_scopes_to_itself_and_backwards_are_ignored(
    engine: Engine,
) -> None:
    [ben] = await put(engine, ["User lives in Kemi"], scope=BEN)
    items = [
        NewMemory("one", ANNA, id=IDS[3], created_at=5, supersedes=[IDS[3], IDS[8], ben]),
        NewMemory("two", ANNA, id=IDS[4], created_at=4, supersedes=[IDS[3]]),
    ]
    await engine.add_batch(items, idempotency=None)
    assert [links(engine, id_) for id_ in (ben, IDS[3], IDS[4])] == [((), ())] * 3


async def test_an_id_that_becomes_another_keeps_its_links(engine: Engine) -> None:
    await put(engine, ["User lives in Kemi"], scope=BEN)
    first, second = await put(engine, [TURKU, OULU])
    assert first != IDS[0]
    assert links(engine, second) == ((first,), ())


# -- what they do ----------------------------------------------------------------------------------


async def test_a_successor_stands_before_what_it_supersedes_with_its_score(
    engine: Engine,
) -> None:
    await put(engine, ["red apples in the old garden", "pears", "blue plums"], linked=False)
    before = await hits(engine, "red apples in the old garden")
    assert texts(before)[0] == "red apples in the old garden"
    await engine.reset()
    await put(engine, ["red apples in the old garden", "pears", "blue plums"])
    found = await hits(engine, "red apples in the old garden")
    assert texts(found) == ["blue plums", "pears", "red apples in the old garden"]
    assert [hit.score for hit in found] == [before[0].score] * 3


async def test_a_successor_is_pulled_in_and_top_k_holds(engine: Engine) -> None:
    await put(engine, ["red apples in the old garden", "pears"])
    await keep(engine, ["an old garden", "the old garden wall"])
    found = await hits(engine, "red apples in the old garden", top_k=1)
    assert texts(found) == ["pears"]
    found = await hits(engine, "red apples in the old garden", top_k=2)
    assert texts(found) == ["pears", "red apples in the old garden"]
    scores = [hit.score for hit in await hits(engine, "red apples in the old garden")]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)


async def test_a_successor_counts_with_its_raised_score_at_a_threshold(engine: Engine) -> None:
    await put(engine, ["red apples in the old garden", "pears"])
    found = await hits(engine, "red apples in the old garden", threshold=0.9)
    assert texts(found) == ["pears", "red apples in the old garden"]


async def test_a_filter_keeps_a_successor_out(engine: Engine) -> None:
    [old, new] = await put(engine, ["red apples in the old garden", "pears"])
    for id_, kind in ((old, "fruit"), (new, "other")):
        await engine.update(id_, metadata={"kind": kind})
    assert links(engine, new) == ((), ())
    await engine.reset()
    items = [
        NewMemory("red apples", ANNA, {"kind": "fruit"}, id=IDS[0], created_at=1),
        NewMemory("pears", ANNA, {"kind": "x"}, id=IDS[1], created_at=2, supersedes=[IDS[0]]),
        NewMemory("plums", ANNA, {"kind": "fruit"}, id=IDS[2], created_at=3, supersedes=[IDS[1]]),
    ]
    await engine.add_batch(items, idempotency=None)
    _, condition = filters.parse({"user_id": "anna", "kind": "fruit"})
    # What supersedes the one that is kept out still stands before the first.
    found = await hits(engine, "red apples", condition=condition)
    assert texts(found) == ["plums", "red apples"]


async def test_an_expired_successor_stays_out_unless_asked_for(tmp_path: Path) -> None:
    clock = Time()
    engine = open_engine(tmp_path / "data", clock=clock)
    items = [
        NewMemory("red apples", ANNA, id=IDS[0], created_at=1),
        NewMemory("pears", ANNA, {}, date(2020, 1, 1), IDS[1], 2, supersedes=[IDS[0]]),
    ]
    await engine.add_batch(items, idempotency=None)
    assert texts(await hits(engine, "red apples")) == ["red apples"]
    assert texts(await hits(engine, "red apples", show_expired=True)) == ["pears", "red apples"]
    engine.close()


async def test_a_successor_that_was_pulled_in_is_explained_by_its_own_parts(
    engine: Engine,
) -> None:
    await put(engine, ["red apples in the old garden", "pears"])
    await keep(engine, [f"the old garden {number}" for number in range(50)])
    found = await hits(engine, "red apples in the old garden", top_k=2, explain=True)
    assert texts(found) == ["pears", "red apples in the old garden"]
    assert found[0].explanation is not None
    assert found[1].explanation is not None
    assert -1 <= found[0].explanation["cosine"] < found[1].explanation["cosine"]
    assert found[0].explanation["cosine"] != 0


def test_raising_reaches_what_was_not_found_and_ends_in_a_circle() -> None:
    newer_of = {1: (2, 3), 2: (4,), 5: (6,)}
    scores = {1: 0.5, 3: 0.9, 7: 0.1}
    raised = ranking.raise_successors(scores, newer_of)
    assert raised == {1: 0.5, 2: 0.5, 3: 0.9, 4: 0.5, 7: 0.1}
    assert ranking.raise_successors({1: 0.5}, {1: (2,), 2: (1,)}) == {1: 0.5, 2: 0.5}
    assert ranking.raise_successors(scores, {}) == scores


# -- how they go -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed", [{"text": "plums"}, {"metadata": {"n": 1}}, {"expiration_date": None}]
)
@pytest.mark.parametrize("which", [0, 1])
async def test_a_change_of_either_removes_the_link(
    engine: Engine, tmp_path: Path, which: int, changed: dict[str, object]
) -> None:
    ids = await put(engine, [TURKU, OULU])
    await engine.update(ids[which], **changed)  # type: ignore[arg-type]  # of the test
    assert [links(engine, id_) for id_ in ids] == [((), ())] * 2
    assert rows_of(tmp_path / "data" / "memories.sqlite3") == 0


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_deleting_one_removes_its_links_and_leaves_the_others(
    engine: Engine, which: int
) -> None:
    ids = await put(engine, ["one", "two", "three"])
    await engine.delete(ids[which])
    left = [id_ for id_ in ids if id_ != ids[which]]
    known = {id_ for pair in (links(engine, id_) for id_ in left) for id_ in (*pair[0], *pair[1])}
    assert known == (set() if which == 1 else set(left))
    for query in ("one", "two", "three"):
        assert ids[which] not in {hit.memory.id for hit in await hits(engine, query)}


async def test_deleting_a_scope_or_everything_removes_its_links(
    engine: Engine, tmp_path: Path
) -> None:
    record = tmp_path / "data" / "memories.sqlite3"
    await put(engine, [TURKU, OULU])
    await engine.add_batch(
        [
            NewMemory("tea", BEN, id=IDS[5], created_at=1),
            NewMemory("coffee", BEN, id=IDS[6], created_at=2, supersedes=[IDS[5]]),
        ],
        idempotency=None,
    )
    await engine.delete_scope(ANNA)
    assert rows_of(record) == 1
    assert links(engine, IDS[6]) == ((IDS[5],), ())
    await engine.reset()
    assert rows_of(record) == 0
    assert await hits(engine, "tea", BEN) == []


async def test_links_are_there_after_a_restart(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    ids = await put(engine, ["red apples", "pears"])
    engine.close()
    engine = open_engine(tmp_path / "data")
    assert links(engine, ids[1]) == ((ids[0],), ())
    assert texts(await hits(engine, "red apples")) == ["pears", "red apples"]
    engine.close()


async def test_a_change_that_fails_takes_no_link_away_and_leaves_none(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    ids = await put(engine, ["red apples", "pears", "plums"])
    engine.close()
    records = Records(tmp_path / "data" / "memories.sqlite3", terms_of=lambda text: ())
    with records.transaction(), suppress(ZeroDivisionError), records.part() as change:
        change.delete(ids[0])
        raise ZeroDivisionError
    assert records.get(ids[1]).supersedes == (ids[0],)
    with suppress(ZeroDivisionError), records.transaction():
        with records.part() as change:
            change.delete(ids[2])
        raise ZeroDivisionError
    assert records.get(ids[1]).superseded_by == (ids[2],)
    with records.transaction(), records.part() as change:
        change.supersede(ids[2], ids[0], saying="green apples")
        change.supersede(ids[2], ids[0], saying="red apples")
    assert records.get(ids[2]).supersedes == (ids[0], ids[1])
    records.close()


async def test_whatever_is_done_what_is_known_of_links_is_what_the_record_holds(
    engine: Engine, tmp_path: Path
) -> None:
    ids = await put(engine, ["one", "two", "three", "four", "five"])
    for number, id_ in enumerate([ids[1], ids[4]]):
        await (engine.delete(id_) if number else engine.update(id_, metadata={}))
    with sqlite3.connect(tmp_path / "data" / "memories.sqlite3") as db:
        stored = db.execute(
            "SELECT n.id, o.id FROM successions s JOIN memories n ON n.rowid = s.newer"
            " JOIN memories o ON o.rowid = s.older"
        ).fetchall()
    there, _ = engine.page(ANNA, limit=9)
    assert {(m.id, old) for m in there for old in m.supersedes} == set(stored)
    assert {(new, m.id) for m in there for new in m.superseded_by} == set(stored)
    assert len(stored) == 1
    assert list(itertools.chain.from_iterable(stored)) == [ids[3], ids[2]]
