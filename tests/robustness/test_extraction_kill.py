"""Routers that fail in every way and servers that are killed: no turn is lost, and none is halved.

Clients post turns of known facts, each with a key of its own. A turn that got no answer is sent
again with its key until it has one. In the end every turn that was answered with success is there
whole and once, with its key and its messages, and of every turn whose last answer was an error
nothing is there. Then all are sent once more: the same answer for those, and success for these.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pikuri_memory import discovery
from pikuri_memory.embedded.records import RECENT_MESSAGES
from tests.robustness.arena import Arena, files_with, until
from tests.router.scripted import ScriptedRouter

KILLS: Final = 20
CLIENTS: Final = 3
CANARY: Final = "axolotl"
FACTS: Final = ("Pets", "Trips", "Meals", "Books")

CHATS: Final = (
    "reasoning_only",
    "empty_content",
    "null_content",
    "no_choices",
    "cut_json",
    "code_fence",
    "prose_around",
    "prose_only",
    "wrong_schema",
    "wrong_types",
    "too_many_requests",
    "loading",
    "server_error",
    "bad_gateway",
    "error_with_200",
    "reset_at_once",
    "reset_in_the_middle",
    "no_json_at_all",
    "context_llama_cpp",
    "thinks_always",
    "no_response_format",
)
EMBEDDINGS: Final = (
    "nan",
    "zero_vectors",
    "wrong_dimension",
    "changing_dimension",
    "missing_vector",
    "reset_at_once",
    "server_error",
    "loading",
    "base64",
    "not_normalised",
)


@dataclass
class Turn:
    """A turn and what became of it.

    Attributes:
        texts: Its facts, as the router will extract them.
        user: Whose it is.
        infer: Whether facts are extracted, or its messages are kept as they are.
        key: Of the request.
        answers: All answers: ``stored``, the code of an error, or ``lost`` where none came.
        ids: Of the memories, once it is stored.
        stored_at: When that was first told (monotonic).
    """

    texts: list[str]
    user: str
    infer: bool
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    answers: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    stored_at: float = 0.0

    @property
    def said(self) -> list[str]:
        """Its messages."""
        return [" ".join(self.texts)] if self.infer else self.texts

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        return {
            "messages": [{"role": "user", "content": text} for text in self.said],
            "user_id": self.user,
            "infer": self.infer,
        }


class Poster(threading.Thread):
    """A client that posts turns until it is told to stop, and settles each."""

    def __init__(self, arena: Arena, number: int, seed: int) -> None:
        super().__init__(name=f"poster-{number}", daemon=True)
        self.turns: list[Turn] = []
        self.wrong: list[str] = []
        self.ending = threading.Event()
        self._arena = arena
        self._number = number
        self._random = random.Random(seed)
        self._http = httpx.Client(timeout=60, trust_env=False)

    def run(self) -> None:
        while not self.ending.is_set():
            turn = self._turn()
            self.turns.append(turn)
            self._settle(turn)
        self._http.close()

    def _turn(self) -> Turn:
        number = len(self.turns)
        topics = self._random.sample(FACTS, self._random.randint(1, len(FACTS)))
        texts = [
            f"{topic} of {CANARY} {self._number}, turn {number}, are {self._random.random()}."
            for topic in topics
        ]
        return Turn(texts, f"{CANARY}-{self._number}", self._random.random() < 0.8)

    def _settle(self, turn: Turn) -> None:
        while True:
            answer = self.post(turn)
            turn.answers.append(answer)
            if answer == "stored":
                # The key brings the same answer, whenever it is asked again.
                if self._random.random() < 0.2:
                    self.post(turn)
                return
            if answer != "lost" and (self.ending.is_set() or self._random.random() < 0.5):
                return
            time.sleep(0.1)

    def post(self, turn: Turn) -> str:
        """The answer to a turn, sent once."""
        info = discovery.read_server_info(self._arena.paths)
        if info is None:
            return "lost"
        try:
            reply = self._http.post(
                f"{info.endpoint}/memories",
                json=turn.body,
                headers={
                    "X-API-Key": discovery.read_api_key(self._arena.paths) or "",
                    "Idempotency-Key": turn.key,
                },
            )
        except httpx.TransportError:
            return "lost"
        told = reply.json()
        if reply.status_code == 200:
            ids = [result["id"] for result in told["results"]]
            if turn.ids and turn.ids != ids:
                self.wrong.append(f"another answer to the same key: {turn}")
            turn.ids = ids
            turn.stored_at = turn.stored_at or time.monotonic()
            return "stored"
        if reply.status_code == 503 and "retry-after" not in reply.headers:
            self.wrong.append(f"503 without Retry-After: {told}")
        if not told["hint"]:
            self.wrong.append(f"an error without a hint: {told}")
        return str(told["code"])


class Trouble(threading.Thread):
    """Makes the router fail, and be away now and then."""

    def __init__(self, router: ScriptedRouter, seed: int) -> None:
        super().__init__(name="trouble", daemon=True)
        self.ending = threading.Event()
        self.made: Counter[str] = Counter()
        self._router = router
        self._random = random.Random(seed)

    def run(self) -> None:
        while not self.ending.wait(self._random.uniform(0.1, 0.8)):
            chance = self._random.random()
            if chance < 0.1:
                self._router.stop()
                self.made["away"] += 1
                self.ending.wait(self._random.uniform(0.1, 1.0))
                self._router.start()
            elif chance < 0.15:
                self._router.hold_chats()
                self.made["hangs"] += 1
                self.ending.wait(self._random.uniform(0.1, 2.5))
                self._router.release_chats()
            else:
                name = self._random.choice([*CHATS, *EMBEDDINGS])
                self._router.play(name)
                self.made[name] += 1


def complaints(database: Path, turns: list[Turn]) -> list[str]:
    """What is wrong with what the record holds of the turns."""
    with closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT text, user_id, id FROM memories").fetchall()
        said = db.execute("SELECT user_id, content FROM messages ORDER BY rowid").fetchall()
        spent = {key for (key,) in db.execute("SELECT key FROM idempotency")}
    there = Counter((text, user) for text, user, _ in rows)
    ids = {(text, user): id_ for text, user, id_ in rows}
    wrong = [f"stored {count} times: {key}" for key, count in there.items() if count > 1]
    expected = set()
    for turn in turns:
        found = [text for text in turn.texts if (text, turn.user) in there]
        if turn.answers[-1] == "stored":
            expected |= {(text, turn.user) for text in turn.texts}
            if len(found) != len(turn.texts):
                wrong.append(f"acknowledged, and {len(found)} facts are there: {turn}")
            elif {ids[text, turn.user] for text in turn.texts} != set(turn.ids):
                wrong.append(f"stored under other ids than was said: {turn}")
        elif found:
            wrong.append(f"answered with an error, and {len(found)} facts are there: {turn}")
    wrong += [f"nobody posted {key}" for key in set(there) - expected if not wrong]
    stored = sorted(
        (turn for turn in turns if turn.answers[-1] == "stored"), key=lambda turn: turn.stored_at
    )
    if spent != {turn.key for turn in stored}:
        wrong.append("the spent keys are not those of the turns that are stored")
    for user in {turn.user for turn in turns}:
        # A user's turns come one after the other.
        messages = [text for turn in stored if turn.user == user for text in turn.said]
        if [text for whose, text in said if whose == user] != messages[-RECENT_MESSAGES:]:
            wrong.append(f"the recent messages of {user} are not those of the turns stored last")
    return wrong


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    with ScriptedRouter() as scripted:
        yield scripted


def test_row_3_every_turn_is_stored_whole_or_answered_with_an_error_whatever_fails(
    tmp_path: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("PIKURI_SEED", str(random.randrange(2**31))))
    print(f"PIKURI_SEED={seed}")
    chance = random.Random(seed)
    settings: dict[str, Any] = {"router": router.url, "router_timeout": 3, "extraction_timeout": 5}
    with Arena(tmp_path, flush_changes=25, flush_seconds=1.0, **settings) as arena:
        arena.start()
        posters = [Poster(arena, n, seed + n) for n in range(CLIENTS)]
        trouble = Trouble(router, seed - 1)
        for thread in (*posters, trouble):
            thread.start()
        try:
            for _ in range(KILLS):
                _await_progress(posters, chance)
                _strike(arena, router, chance)
                arena.start()
        finally:
            trouble.ending.set()
            trouble.join(30)
            router.behave()
            for poster in posters:
                poster.ending.set()
            for poster in posters:
                poster.join(90)
        assert not any(poster.is_alive() for poster in posters), "a turn was never settled"
        arena.stop()
        turns = [turn for poster in posters for turn in poster.turns]
        assert [wrong for poster in posters for wrong in poster.wrong] == []
        assert complaints(arena.paths.record, turns) == []
        answers = Counter(answer for turn in turns for answer in turn.answers)
        arena.start()
        until(lambda: arena.call("GET", "/status")["embedder"]["state"] == "ok")
        again = Poster(arena, CLIENTS, seed)
        for turn in turns:
            turn.answers.append(again.post(turn))
            assert turn.answers[-1] == "stored", turn
        assert again.wrong == []
        arena.stop()
        assert complaints(arena.paths.record, turns) == []
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []
        told = (
            f"{KILLS} kills, {trouble.made.total()} failures of the router of"
            f" {len(trouble.made)} kinds, {len(turns)} turns: {dict(answers)}"
        )
        with capsys.disabled():
            print(f"\n{told}")
        assert answers["stored"] >= KILLS, "too little was stored to be told from nothing"
        assert answers["lost"], "no kill met a request"
        assert len(answers) > 4, "hardly anything failed"


def _await_progress(posters: list[Poster], chance: random.Random) -> None:
    """Half of the time, let a turn be stored first: the first one waits for mem0's import."""

    def stored() -> int:
        return sum(turn.answers[-1:] == ["stored"] for each in posters for turn in each.turns)

    end = time.monotonic() + (15 if chance.random() < 0.5 else 0)
    before = stored()
    while stored() == before and time.monotonic() < end:
        time.sleep(0.01)


def _strike(arena: Arena, router: ScriptedRouter, chance: random.Random) -> None:
    """Kill the server at a random time, or just when a chat or an embedding is under way."""
    kind = chance.choice(["time", "chat", "embedding"])
    if kind == "time":
        time.sleep(chance.uniform(0.0, 3.0))
    else:
        end = time.monotonic() + 8
        before = router.count(kind)
        while router.count(kind) == before and time.monotonic() < end:
            time.sleep(0.002)
        # While it is answered, stored, or answered for.
        time.sleep(chance.uniform(0.0, 0.1))
    assert arena.running, "the server ended by itself"
    arena.kill()
