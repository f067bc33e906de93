from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pikuri_memory.embedded.engine import Engine, Pace
from pikuri_memory.embedded.index import Index
from pikuri_memory.embedded.model import Fact, SearchQuery, Turn
from pikuri_memory.embedded.reembedding import Source, Target
from pikuri_memory.embedded.serve import left_behind
from pikuri_memory.errors import (
    EmbedderMismatchError,
    EmbedderUnavailableError,
    InvalidRequestError,
    ModelNotOfferedError,
    ReembeddingUnderWayError,
)
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.record import UNSET
from pikuri_memory.waiting import Deadline

from .parts import ANNA, BEN, keep, open_engine
from .shelf import Shelf, Words

QUICK = Pace(retry_seconds=0.05)
TEXTS = [f"fact {n} of {word}" for n in range(40) for word in ("cheese", "chess", "chairs")]


@pytest.fixture
def old() -> Words:
    return Words("old", 32)


@pytest.fixture
def new() -> Words:
    return Words("new", 48)


@pytest.fixture
def shelf(old: Words, new: Words) -> Shelf:
    return Shelf(old, new)


@pytest.fixture
def engine(tmp_path: Path, old: Words, shelf: Shelf) -> Iterator[Engine]:
    with closing(opened(tmp_path, old, shelf)) as engine:
        asyncio.run(keep(engine, TEXTS))
        yield engine


def opened(directory: Path, embedder: Words, shelf: Shelf | None) -> Engine:
    return open_engine(directory, embedder, embedders=shelf, pace=QUICK)


def reembed(engine: Engine, model: str | None = "new") -> dict[str, Any]:
    return asyncio.run(engine.reembed(Target(model)))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.005)


def finished(engine: Engine) -> None:
    until(lambda: engine.status()["reembedding"] is None)


def state(engine: Engine) -> str | None:
    told = engine.status()["reembedding"]
    return None if told is None else str(told["state"])


def found(engine: Engine, text: str, **more: Any) -> list[str]:
    hits = asyncio.run(engine.search(SearchQuery(text, ANNA, **more)))
    return [hit.memory.text for hit in hits]


def stored(directory: Path, table: str = "vectors") -> dict[str, np.ndarray[Any, Any]]:
    """Vectors by text, as the record has them."""
    with closing(sqlite3.connect(directory / "memories.sqlite3")) as db:
        rows = db.execute(f"SELECT text, vector FROM memories JOIN {table} USING (rowid)")
        return {text: np.frombuffer(vector, "<f4") for text, vector in rows}


def count(directory: Path, table: str) -> int:
    with closing(sqlite3.connect(directory / "memories.sqlite3")) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def meta(directory: Path, key: str) -> str | None:
    with closing(sqlite3.connect(directory / "memories.sqlite3")) as db:
        row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])


def assert_is_embedded_by(directory: Path, embedder: Words, texts: list[str]) -> None:
    vectors = stored(directory)
    assert sorted(vectors) == sorted(texts)
    expected = embedder.embed_queries(list(vectors))
    for vector, wanted in zip(vectors.values(), expected, strict=True):
        assert np.array_equal(vector, wanted)


def test_everything_is_embedded_by_the_other_one(
    engine: Engine, tmp_path: Path, new: Words, shelf: Shelf
) -> None:
    assert reembed(engine) == {"result": "begun", "model": "new", "dimensions": 48}
    finished(engine)
    assert_is_embedded_by(tmp_path, new, TEXTS)
    told = engine.status()
    assert (told["embedder"]["model"], told["embedder"]["dimensions"]) == ("new", 48)
    assert told["index"]["state"] == "ready"
    for text in TEXTS[::17]:
        assert found(engine, text)[0] == text
    until(lambda: count(tmp_path, "next_vectors") == 0)
    assert meta(tmp_path, "embedder") == new.identity.to_json()
    until(lambda: bool(shelf.choices))
    assert [made.target for made in shelf.choices] == [Target("new", None)]


def test_the_next_start_uses_the_index_that_was_made(
    tmp_path: Path, engine: Engine, new: Words, shelf: Shelf
) -> None:
    reembed(engine)
    finished(engine)
    engine.close()
    with closing(opened(tmp_path, new, shelf)) as again:
        assert again.status()["index"]["state"] == "ready"
        assert found(again, TEXTS[5])[0] == TEXTS[5]
    with pytest.raises(EmbedderMismatchError) as raised:
        opened(tmp_path, Words("old", 32), shelf)
    assert raised.value.hint == "pikuri-memory reembed --embedder-model old"


def test_the_record_tells_where_its_embedder_was_had(tmp_path: Path, engine: Engine) -> None:
    assert Source.from_json(meta(tmp_path, "embedder_source")) is None
    reembed(engine)
    finished(engine)
    source = Source.from_json(meta(tmp_path, "embedder_source"))
    assert source == Source(Target("new", None), "of new")


def test_the_embedder_in_use_is_not_changed_for_itself(engine: Engine, shelf: Shelf) -> None:
    assert reembed(engine, "old") == {"result": "unchanged", "model": "old", "dimensions": 32}
    assert engine.status()["reembedding"] is None
    assert shelf.choices == []


def test_a_model_that_is_not_offered_begins_nothing(engine: Engine) -> None:
    with pytest.raises(ModelNotOfferedError):
        reembed(engine, "none such")
    assert engine.status()["reembedding"] is None


def test_a_server_without_other_embedders_says_so(tmp_path: Path, old: Words) -> None:
    with closing(opened(tmp_path, old, None)) as engine, pytest.raises(InvalidRequestError):
        reembed(engine)


def test_an_empty_record_changes_its_embedder(tmp_path: Path, old: Words, shelf: Shelf) -> None:
    with closing(opened(tmp_path, old, shelf)) as engine:
        reembed(engine)
        finished(engine)
        assert engine.status()["embedder"]["model"] == "new"
        asyncio.run(keep(engine, "the first one"))
        assert found(engine, "the first one") == ["the first one"]


def test_the_old_one_serves_meanwhile(engine: Engine, tmp_path: Path, new: Words) -> None:
    new.gate.clear()
    reembed(engine)
    until(lambda: state(engine) == "embedding")
    told = engine.status()
    assert told["embedder"]["model"] == "old"
    assert told["reembedding"] == {
        "model": "new",
        "dimensions": 48,
        "done": 0,
        "total": len(TEXTS),
        "state": "embedding",
        "last_error": None,
    }
    assert found(engine, TEXTS[3])[0] == TEXTS[3]
    asyncio.run(keep(engine, "said meanwhile"))
    assert found(engine, "said meanwhile")[0] == "said meanwhile"
    new.gate.set()
    finished(engine)
    assert_is_embedded_by(tmp_path, new, [*TEXTS, "said meanwhile"])
    assert found(engine, "said meanwhile")[0] == "said meanwhile"


def test_what_changes_meanwhile_is_embedded_as_it_is_in_the_end(
    engine: Engine, tmp_path: Path, new: Words
) -> None:
    reembed_halted(engine, new, tmp_path)
    memories, _ = engine.page(ANNA, limit=200)
    by_text = {memory.text: memory.id for memory in memories}
    asyncio.run(engine.update(by_text[TEXTS[0]], text="another text"))
    asyncio.run(engine.update(by_text[TEXTS[-1]], text="yet another text"))
    asyncio.run(engine.update(by_text[TEXTS[1]], metadata={"only": "metadata"}))
    asyncio.run(engine.delete(by_text[TEXTS[2]]))
    asyncio.run(engine.delete(by_text[TEXTS[-2]]))
    done = engine.status()["reembedding"]["done"]
    assert done == count(tmp_path, "next_vectors")
    new.gate.set()
    finished(engine)
    expected = set(TEXTS) - {TEXTS[n] for n in (0, -1, 2, -2)}
    texts = [*expected, "another text", "yet another text"]
    assert_is_embedded_by(tmp_path, new, texts)
    assert found(engine, "yet another text")[0] == "yet another text"
    assert TEXTS[2] not in found(engine, TEXTS[2], top_k=200)
    assert len(found(engine, "fact", top_k=200)) == len(texts)


def reembed_halted(engine: Engine, new: Words, directory: Path) -> None:
    """Begin, and let the first of two batches through."""
    new.halt.set()
    reembed(engine)
    until(lambda: count(directory, "next_vectors") == 64)


def files_with(directory: Path, needle: bytes) -> str:
    """Names of files that hold some bytes; looked for by another process, because SQLite loses its
    locks where its own process closes a file of its."""
    code = (
        "import pathlib, sys\n"
        "for path in pathlib.Path(sys.argv[1]).rglob('*'):\n"
        "    if path.is_file() and bytes.fromhex(sys.argv[2]) in path.read_bytes(): print(path)"
    )
    command = [sys.executable, "-c", code, str(directory), needle.hex()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_deleted_memories_leave_no_vector_behind(
    engine: Engine, tmp_path: Path, new: Words
) -> None:
    reembed_halted(engine, new, tmp_path)
    assert count(tmp_path, "next_vectors") == 64
    asyncio.run(engine.delete_scope(ANNA))
    assert count(tmp_path, "next_vectors") == 0
    vector = new.embed_queries([TEXTS[0]])[0].tobytes()
    assert files_with(tmp_path, vector) != ""
    asyncio.run(engine.purge())
    assert files_with(tmp_path, vector) == ""
    new.gate.set()
    finished(engine)
    assert engine.status()["embedder"]["model"] == "new"


def test_a_reset_ends_it(engine: Engine, tmp_path: Path, new: Words) -> None:
    reembed_halted(engine, new, tmp_path)
    asyncio.run(engine.reset())
    assert engine.status()["reembedding"] is None
    new.gate.set()
    asyncio.run(keep(engine, "after the reset"))
    assert found(engine, "after the reset") == ["after the reset"]
    assert engine.status()["embedder"]["model"] == "old"
    assert count(tmp_path, "next_vectors") == 0


def test_it_can_be_cancelled_and_begun_again(engine: Engine, tmp_path: Path, new: Words) -> None:
    reembed_halted(engine, new, tmp_path)
    assert asyncio.run(engine.cancel_reembedding()) is True
    assert engine.status()["reembedding"] is None
    assert count(tmp_path, "next_vectors") == 0
    new.gate.set()
    assert asyncio.run(engine.cancel_reembedding()) is False
    assert found(engine, TEXTS[3])[0] == TEXTS[3]
    assert reembed(engine)["result"] == "begun"
    finished(engine)
    assert_is_embedded_by(tmp_path, new, TEXTS)


def test_the_same_one_joins_and_another_one_is_refused(engine: Engine, new: Words) -> None:
    new.gate.clear()
    assert reembed(engine)["result"] == "begun"
    assert reembed(engine)["result"] == "joined"
    assert reembed(engine, None)["result"] == "joined"
    with pytest.raises(ReembeddingUnderWayError) as raised:
        reembed(engine, "old")
    assert "reembed --cancel" in raised.value.hint
    new.gate.set()
    finished(engine)


def test_it_goes_on_after_a_restart_with_what_is_missing(
    tmp_path: Path, engine: Engine, old: Words, new: Words, shelf: Shelf
) -> None:
    reembed_halted(engine, new, tmp_path)
    stop = threading.Thread(target=engine.close)
    stop.start()
    stop.join()
    new.gate.set()
    fresh = Words("new", 48)
    shelf.put("new", fresh)
    with closing(opened(tmp_path, old, shelf)) as again:
        finished(again)
        assert fresh.embedded == len(TEXTS) - 64
        assert again.status()["embedder"]["model"] == "new"
        assert found(again, TEXTS[7])[0] == TEXTS[7]
    assert_is_embedded_by(tmp_path, fresh, TEXTS)


def test_an_embedder_that_cannot_be_had_at_the_start_is_waited_for(
    tmp_path: Path, engine: Engine, old: Words, new: Words, shelf: Shelf
) -> None:
    reembed_halted(engine, new, tmp_path)
    engine.close()
    shelf.away = True
    with closing(opened(tmp_path, old, shelf)) as again:
        until(lambda: state(again) == "paused")
        told = again.status()["reembedding"]
        assert (told["done"], told["total"], told["model"]) == (64, len(TEXTS), "new")
        assert told["last_error"]["code"] == EmbedderUnavailableError.code
        assert told["last_error"]["detail"] == "the shelf is away"
        assert found(again, TEXTS[3])[0] == TEXTS[3]
        assert reembed(again)["result"] == "joined"
        shelf.away = False
        new.gate.set()
        finished(again)
    assert_is_embedded_by(tmp_path, new, TEXTS)


def test_an_embedder_that_is_gone_is_replaced_while_words_serve(
    engine: Engine, tmp_path: Path, old: Words, new: Words
) -> None:
    old.gone = True
    new.gate.clear()
    reembed(engine)
    until(lambda: state(engine) == "embedding")
    hits = asyncio.run(engine.search(SearchQuery(TEXTS[3], ANNA)))
    assert hits.degraded is not None
    assert TEXTS[3] in [hit.memory.text for hit in hits]
    with pytest.raises(EmbedderUnavailableError):
        asyncio.run(keep(engine, "no vector for this"))
    new.gate.set()
    finished(engine)
    hits = asyncio.run(engine.search(SearchQuery(TEXTS[3], ANNA)))
    assert hits.degraded is None
    assert hits[0].memory.text == TEXTS[3]
    assert engine.status()["embedder"]["state"] == "ok"
    asyncio.run(keep(engine, "a vector for this"))
    assert_is_embedded_by(tmp_path, new, [*TEXTS, "a vector for this"])


def test_failures_on_the_way_are_waited_out(engine: Engine, tmp_path: Path, new: Words) -> None:
    new.failing = True
    reembed(engine)
    until(lambda: state(engine) == "paused")
    assert engine.status()["reembedding"]["last_error"]["detail"] == "it is told to fail"
    new.failing = False
    finished(engine)
    assert_is_embedded_by(tmp_path, new, TEXTS)


def test_an_unforeseen_failure_tells_only_its_type(engine: Engine, new: Words) -> None:
    embed = new.embed
    secret = TEXTS[0]

    def fail(texts: Any) -> Any:
        raise KeyError(secret)

    new.embed = fail  # type: ignore[method-assign]  # the test's own double
    reembed(engine)
    until(lambda: engine.status()["reembedding"]["last_error"] is not None)
    told = engine.status()["reembedding"]["last_error"]
    new.embed = embed  # type: ignore[method-assign]  # the test's own double
    assert told["detail"] == "an unexpected KeyError"
    assert secret not in json.dumps(told)
    finished(engine)


def test_another_model_under_the_same_name_begins_anew(
    tmp_path: Path, engine: Engine, old: Words, new: Words, shelf: Shelf
) -> None:
    reembed_halted(engine, new, tmp_path)
    engine.close()
    other = Words("new", 80)
    shelf.put("new", other)
    with closing(opened(tmp_path, old, shelf)) as again:
        finished(again)
        assert again.status()["embedder"]["dimensions"] == 80
    assert other.embedded == len(TEXTS)
    assert_is_embedded_by(tmp_path, other, TEXTS)


def test_what_a_cancelled_one_left_over_is_removed_at_the_start(
    tmp_path: Path, engine: Engine, old: Words, new: Words, shelf: Shelf
) -> None:
    reembed_halted(engine, new, tmp_path)
    engine.close()
    with closing(sqlite3.connect(tmp_path / "memories.sqlite3")) as db:
        db.execute("DELETE FROM meta WHERE key = 'reembedding'")
        db.commit()
    with closing(opened(tmp_path, old, shelf)) as again:
        assert again.status()["reembedding"] is None
        until(lambda: count(tmp_path, "next_vectors") == 0)


def test_another_identity_of_the_same_dimensions_is_changed_to(
    tmp_path: Path, engine: Engine, shelf: Shelf
) -> None:
    like = Words("like", 32)
    shelf.put("like", like)
    found(engine, TEXTS[9])  # the question is remembered with its vector
    reembed(engine, "like")
    finished(engine)
    assert_is_embedded_by(tmp_path, like, TEXTS)
    hits = asyncio.run(engine.search(SearchQuery(TEXTS[9], ANNA, explain=True)))
    assert hits[0].explanation is not None
    assert hits[0].explanation["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_no_search_and_no_addition_ever_mixes_embedders(
    tmp_path: Path, engine: Engine, old: Words, shelf: Shelf
) -> None:
    """The cosine of a text with itself is 1 where both vectors are of one embedder."""
    embedders = [Words(f"model {n}", dimensions) for n, dimensions in enumerate((32, 48, 32, 20))]
    for each in embedders:
        shelf.put(each.identity.model, each)
    ended = threading.Event()
    wrong: list[Any] = []
    added: list[str] = []
    searches = 0

    async def ask() -> None:
        nonlocal searches
        n = 0
        while not ended.is_set():
            n += 1
            condition = n % 3 == 0
            text = TEXTS[n % len(TEXTS)]
            query = SearchQuery(text, ANNA, explain=True, top_k=3)
            if condition:  # scored exactly, from the record
                query = SearchQuery(text, ANNA, Everything(), explain=True, top_k=3)
            hits = await engine.search(query)
            searches += 1
            cosine = hits[0].explanation and hits[0].explanation["cosine"]
            if hits[0].memory.text != text or abs(float(cosine or 0) - 1.0) > 1e-4:
                wrong.append((text, hits[0]))
            if n % 5 == 0:
                added.append(f"added {len(added)} meanwhile")
                await keep(engine, added[-1], BEN)
            await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    thread.start()
    try:
        for each in [*embedders, old]:
            engine.reembedding.begin(Target(each.identity.model))
            finished(engine)
            assert engine.status()["embedder"]["model"] == each.identity.model
    finally:
        ended.set()
        thread.join()
    assert wrong == []
    assert searches > 20
    assert_is_embedded_by(tmp_path, old, [*TEXTS, *added])


def test_a_stop_waits_for_no_model_and_knows_who_still_does(engine: Engine, new: Words) -> None:
    before = left_behind().count("reembedding")  # of other tests
    new.gate.clear()
    reembed(engine)
    until(lambda: state(engine) == "embedding")
    engine.close()
    assert left_behind().count("reembedding") > before
    new.gate.set()
    until(lambda: left_behind().count("reembedding") <= before)


def test_a_turn_that_two_changes_overtake_has_the_vectors_of_the_last(
    tmp_path: Path, old: Words, new: Words, shelf: Shelf
) -> None:
    last = Words("last", 24)
    shelf.put("last", last)
    extracts, goes_on = threading.Event(), threading.Event()

    class Slow:
        def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
            extracts.set()
            goes_on.wait(90)
            return [Fact("Anna has a dog", vector=old.embed_queries(["Anna has a dog"])[0])]

    engine = open_engine(tmp_path, old, embedders=shelf, pace=QUICK, extractor=Slow())
    with closing(engine), ThreadPoolExecutor(1) as pool:
        adding = pool.submit(lambda: asyncio.run(keep(engine, "I have a dog")))
        assert extracts.wait(90)
        engine.reembedding.begin(Target("new"))
        finished(engine)
        new.halt.set()  # it is asked again, for it was begun with the old one, and that waits
        goes_on.set()
        until(lambda: not new.gate.is_set())
        engine.reembedding.begin(Target("last"))
        finished(engine)
        new.gate.set()
        assert [result.event for result in adding.result()] == ["ADD"]
    assert_is_embedded_by(tmp_path, last, ["Anna has a dog"])


class Everything:
    """A filter that everything passes."""

    def sql(self) -> tuple[str, list[Any]]:
        return "1", []


def test_a_crash_between_the_record_and_the_index_ends_with_the_new_one(
    tmp_path: Path, engine: Engine, old: Words, new: Words, shelf: Shelf
) -> None:
    reembed(engine)
    finished(engine)
    engine.close()
    # As the switch of the record leaves it: the pointer still names the index of the old one.
    pointer = json.loads((tmp_path / "index" / "current.json").read_text())
    stale = tmp_path / "index" / "generation-0000"
    Index.create(stale, old.dimensions).close()
    pointer |= {"directory": stale.name, "fingerprint": "of the old one", "clean": None}
    (tmp_path / "index" / "current.json").write_text(json.dumps(pointer))
    with closing(opened(tmp_path, new, shelf)) as again:
        until(lambda: bool(again.status()["index"]["state"] == "ready"))
        assert found(again, TEXTS[7])[0] == TEXTS[7]
        assert not stale.exists()


def test_additions_without_end_do_not_keep_it_from_ending(
    tmp_path: Path, engine: Engine, new: Words
) -> None:
    ended = threading.Event()
    texts: list[str] = []

    async def add() -> None:
        while not ended.is_set():
            texts.append(f"text {len(texts)} without end")
            await keep(engine, texts[-1])

    thread = threading.Thread(target=lambda: asyncio.run(add()))
    thread.start()
    try:
        reembed(engine)
        finished(engine)
    finally:
        ended.set()
        thread.join()
    assert_is_embedded_by(tmp_path, new, [*TEXTS, *texts])


def test_an_update_of_the_text_just_after_the_switch_has_its_vector(
    engine: Engine, tmp_path: Path, new: Words
) -> None:
    reembed(engine)
    finished(engine)
    (memory,) = engine.page(ANNA, limit=1)[0]
    asyncio.run(engine.update(memory.id, text="changed", metadata=UNSET))
    assert np.array_equal(stored(tmp_path)["changed"], new.embed_queries(["changed"])[0])


def test_the_identity_of_a_job_is_one_line_of_json(engine: Engine, new: Words) -> None:
    new.gate.clear()
    reembed(engine)
    kept = json.loads(engine.reembedding._records.meta("reembedding") or "")
    assert EmbedderIdentity.from_json(kept["identity"]) == new.identity
    new.gate.set()
    finished(engine)
