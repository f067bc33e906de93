"""SIGKILL at any moment of a re-embedding: it goes on, and searches are right all the while."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from pikuri_memory.embedded.index import Index
from pikuri_memory.models import choice
from tests.robustness.arena import ROOT, Arena, until
from tests.router.scripted import embedding

MEMORIES: Final = int(os.environ.get("PIKURI_REEMBED_MEMORIES", "20000"))
USERS: Final = 200
DIMENSIONS: Final = 96
MODEL: Final = "scripted-embed"
PLAN: Final = (
    *("embedding",) * 4,
    *("building",) * 3,
    *("switch",) * 2,
    "swap",
)
"""Where the ten kills strike."""

_SUBJECTS: Final = "goats bees maps boats knots tides clocks cellos stamps ferns".split()
_VERBS: Final = "keeps sells paints counts mends draws lends finds hides films".split()
_PLACES: Final = "Turku Oulu Bergen Graz Lyon Porto Gdansk Cork Bath Ghent".split()


def text(n: int) -> str:
    """A memory that no other one says in the same words."""
    words = _VERBS[n // 10 % 10], _SUBJECTS[n % 10], _PLACES[n // 100 % 10]
    return f"Anna {words[0]} {words[1]} in {words[2]} since week {n}"


def user(n: int) -> str:
    return f"user-{n % USERS}"


class Searcher:
    """A client that asks all the time, for a known memory of a known scope.

    Args:
        arena: Whom it asks.
        seed: Of what it asks.
    """

    def __init__(self, arena: Arena, seed: int) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._arena = arena
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join()

    def has_answered(self, more_than: int) -> bool:
        """Whether there were more right answers than so many."""
        return self.answered > more_than

    def _run(self) -> None:
        while not self._ended.is_set():
            n = self._random.randrange(MEMORIES)
            try:
                hits = self._arena.search(text(n), user(n), top_k=3)
            except (httpx.TransportError, RuntimeError, AssertionError) as error:
                # Killed, or not yet there again.
                if isinstance(error, AssertionError) and "503" not in str(error) and str(error):
                    self.wrong.append(str(error))
                time.sleep(0.02)
                continue
            if not hits or hits[0]["memory"] != text(n) or hits[0]["user_id"] != user(n):
                self.wrong.append(f"{text(n)}: {hits[:1]}")
            self.answered += 1
            time.sleep(0.005)


@pytest.fixture
def router() -> Iterator[str]:
    """A model endpoint, in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.router.scripted", "--dimensions", str(DIMENSIONS)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"]
        # It ends with its standard input, which is closed now.


class Siege:
    """Ten kills, and a look at what each left behind.

    Args:
        arena: The server.
        router: URL of the model endpoint.
        seed: Of when.
    """

    def __init__(self, arena: Arena, router: str, seed: int) -> None:
        self.arena = arena
        self.kills: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._done = 0
        self._old: tuple[str, str | None, int] = ("builtin", None, 64)
        self._new: tuple[str, str | None, int] = (MODEL, router, DIMENSIONS)

    def fill(self) -> None:
        """Store the memories."""
        for start in range(0, MEMORIES, 1000):
            items = [{"memory": text(n), "user_id": user(n)} for n in range(start, start + 1000)]
            self.arena.call("POST", "/memories/batch", json={"memories": items})

    def begin(self) -> None:
        """Ask for the re-embedding."""
        model, router, _ = self._new
        sent = {"embedder_model": model, "router": router}
        assert self.arena.call("POST", "/reembed", json=sent)["result"] == "begun"

    def go_on(self) -> None:
        """Where a kill came too late and everything is done, begin the way back."""
        if self.job() is None:
            self._old, self._new = self._new, self._old
            self._done = 0
            self.begin()

    def finish(self) -> None:
        """Wait for the end, at the new embedder."""
        until(lambda: self.job() is None)
        if self._new[0] != MODEL:
            self.go_on()
            until(lambda: self.job() is None)

    def job(self) -> dict[str, Any] | None:
        """What the status tells of it."""
        told: dict[str, Any] | None = self.arena.call("GET", "/status")["reembedding"]
        return told

    def strike(self, wanted: str) -> None:
        """Wait for a moment of the job, and kill the server in it."""
        if wanted == "embedding":
            self._until_embedded(self._random.uniform(0.05, 0.25))
        elif wanted == "building":
            until(lambda: self._state() == "building")
            time.sleep(self._random.uniform(0.0, 1.0))
        else:
            until(lambda: self._state() == "building")
            watch = self.arena.watch
            end = time.monotonic() + 60
            while not watch.sees("swap") and (wanted == "swap" or not watch.sees("switch")):
                assert time.monotonic() < end
                time.sleep(0.0005)
        died_in = self.arena.watch.now()
        self.arena.kill()
        self.kills[wanted] += 1
        self._look_at_the_dead(died_in)

    def _state(self) -> str | None:
        told = self.job()
        return None if told is None else str(told["state"])

    def _until_embedded(self, share: float) -> None:
        """Wait until so much more of the memories is embedded."""
        wanted = min(self._done + int(share * MEMORIES), MEMORIES - 500)

        def enough() -> bool:
            told = self.job()
            return told is None or int(told["done"]) >= wanted

        until(enough)

    def _look_at_the_dead(self, died_in: object) -> None:
        """Whatever was committed stays, and no vector is of another embedder than the rest."""
        scratch = self.arena.directory / "autopsy"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        record = self.arena.paths.record
        for path in record.parent.glob(f"{record.name}*"):  # to be opened elsewhere only
            if not path.name.endswith("-shm"):
                shutil.copy(path, scratch / path.name)
        with closing(sqlite3.connect(scratch / record.name)) as db:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            sizes = {
                table: {n for (n,) in db.execute(f"SELECT DISTINCT length(vector) FROM {table}")}
                for table in ("vectors", "next_vectors")
            }
            (done,) = db.execute("SELECT count(*) FROM next_vectors").fetchone()
            (whole,) = db.execute("SELECT count(*) FROM vectors").fetchone()
        assert whole == MEMORIES
        old, new = {self._old[2] * 4}, {self._new[2] * 4}
        if "reembedding" not in meta:
            assert sizes["vectors"] == new
            assert sizes["next_vectors"] <= old
        elif json.loads(meta["reembedding"])["clean"]:
            assert sizes["vectors"] == old
            assert sizes["next_vectors"] <= new
            assert done >= self._done, f"embedded ones were lost, in {died_in}"
            self._done = done


def test_row_22_a_re_embedding_survives_kill_9_and_searches_are_right_throughout(
    tmp_path: Path, router: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("PIKURI_SEED", str(random.randrange(2**31))))
    print(f"PIKURI_SEED={seed}")
    with Arena(tmp_path, free_space_reserve=0) as arena:
        siege = Siege(arena, router, seed)
        arena.start()
        siege.fill()
        siege.begin()
        searcher = Searcher(arena, seed)
        try:
            for wanted in PLAN:
                siege.go_on()
                answered = searcher.answered
                siege.strike(wanted)
                arena.start()
                until(partial(searcher.has_answered, answered))
            siege.finish()
            told = arena.call("GET", "/status")
            assert (told["embedder"]["model"], told["embedder"]["dimensions"]) == (
                MODEL,
                DIMENSIONS,
            )
            answered = searcher.answered
            until(lambda: searcher.answered > answered + 50)
        finally:
            searcher.close()
        assert searcher.wrong == []
        until(arena.index_is_ready)
        assert {hit["memory"] for hit in arena.search(text(7), user(7), top_k=1)} == {text(7)}
        arena.stop()
        assert_complete(arena)
        arena.start()  # without a word about models
        assert arena.index_is_ready()
        assert arena.call("GET", "/status")["embedder"]["model"] == MODEL
        assert arena.search(text(9), user(9))[0]["memory"] == text(9)
        arena.stop()
        report = f"{dict(siege.kills)}; {searcher.answered} searches meanwhile"
    print(report)
    with capsys.disabled():
        print(f"\n{report}")


def assert_complete(arena: Arena) -> None:
    """Every memory has the vector that the new embedder gives, in the record and in the index."""
    with closing(sqlite3.connect(arena.paths.record)) as db:
        rows = db.execute("SELECT text, vector FROM memories JOIN vectors USING (rowid)").fetchall()
        assert db.execute("SELECT count(*) FROM next_vectors").fetchone() == (0,)
    assert {said for said, _ in rows} == {text(n) for n in range(MEMORIES)}
    for said, vector in rows:
        wanted = np.array(embedding(said, DIMENSIONS))
        assert np.allclose(np.frombuffer(vector, "<f4"), wanted, atol=1e-5), said
    chosen = choice.read(arena.paths.models)
    assert chosen is not None
    assert chosen.embedder_model == MODEL
    pointer = json.loads((arena.paths.index / "current.json").read_text())
    assert pointer["clean"]["count"] == MEMORIES
    assert MODEL in pointer["fingerprint"]
    directories = list(arena.paths.index.glob("generation-*"))
    assert [path.name for path in directories] == [pointer["directory"]]
    with closing(Index.load(directories[0])) as index:
        assert index.count() == MEMORIES
