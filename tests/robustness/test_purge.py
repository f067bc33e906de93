"""After a purge no file below the data directory holds what was deleted; what lives on is there."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embedded.parts import HashEmbedder
from tests.robustness.arena import Arena, contents, files_with, until
from tests.robustness.load_client import CANARY

ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")


class Life:
    """Memories that are added, changed and deleted, with a note of which words must be gone.

    Every text, query, piece of metadata and key has words of its own, so that one can be looked
    for alone.

    Args:
        arena: A server that runs.
        seed: Of what happens.
    """

    def __init__(self, arena: Arena, seed: int) -> None:
        self._arena = arena
        self._random = random.Random(seed)
        self.alive: dict[str, tuple[str, str]] = {}
        """User and text by id."""
        self._written: dict[str, list[str]] = {}
        """All words and texts that a memory ever had, by its id."""
        self.gone: list[str] = []
        """Words and texts that must not be found any more."""

    def _words(self) -> str:
        return " ".join(f"{CANARY}{uuid.uuid4().hex[:12]}" for _ in range(3)) + " prunkwinde ø 東京"

    def add(self, user: str, run: str, times: int) -> None:
        """Store memories, each with what a turn may have."""
        for _ in range(times):
            said, answered, noted = self._words(), self._words(), self._words()
            sent = {
                "messages": [
                    {"role": "user", "content": said},
                    {"role": "assistant", "content": answered},
                ],
                "user_id": user,
                "run_id": run,
                "metadata": {"note": noted, noted: 1},
            }
            key = f"{CANARY}-{uuid.uuid4().hex}"
            reply = self._arena.call(
                "POST", "/memories", json=sent, headers={"Idempotency-Key": key}
            )
            id_ = reply["results"][0]["id"]
            self.alive[id_] = (user, said)
            self._written[id_] = [said, answered, noted]

    def change(self, times: int) -> None:
        """Give memories other texts and metadata, some of them several times."""
        for id_ in self._random.choices(sorted(self.alive), k=times):
            user, _ = self.alive[id_]
            text, noted = self._words(), self._words()
            self._arena.call(
                "PUT", f"/memories/{id_}", json={"text": text, "metadata": {"note": noted}}
            )
            self.alive[id_] = (user, text)
            self._written[id_] += [text, noted]

    def delete(self, times: int) -> None:
        """Delete some memories, one by one."""
        for id_ in self._random.sample(sorted(self.alive), times):
            self._arena.call("DELETE", f"/memories/{id_}")
            self._forget(id_)

    def delete_all_of(self, user: str, run: str) -> None:
        """Delete a run's memories at once."""
        where = {"user_id": user, "run_id": run}
        found = self._arena.call("GET", "/memories", params=where)["results"]
        self._arena.call("DELETE", "/memories", params=where)
        for memory in found:
            self._forget(memory["id"])

    def reset(self) -> None:
        """Delete everything."""
        self._arena.call("POST", "/reset")
        for id_ in list(self.alive):
            self._forget(id_)

    def _forget(self, id_: str) -> None:
        del self.alive[id_]
        texts = self._written.pop(id_)
        self.gone += texts
        self.gone += [word for text in texts for word in text.split() if CANARY in word]

    def ask(self) -> None:
        """Search for some of what is there and of what is not."""
        for id_, (user, text) in self._random.sample(sorted(self.alive.items()), 10):
            assert id_ in [hit["id"] for hit in self._arena.search(text, user, top_k=2)]
        for word in self._random.sample(self.gone, min(10, len(self.gone))):
            for user in ("anna", "ben"):
                found = self._arena.search(word, user, top_k=5)
                assert word not in str(found)

    def live(self) -> None:
        """Hundreds of changes."""
        self.add("anna", "monday", 60)
        self.add("anna", "tuesday", 60)
        self.add("ben", "monday", 60)
        for _ in range(3):
            self.change(50)
            self.delete(20)
            self.ask()
        self.delete_all_of("anna", "tuesday")
        self.change(30)
        self.ask()

    def remnants(self) -> list[tuple[Path, bytes]]:
        """Files that hold what must be gone, as text in any encoding or as a vector."""
        root = self._arena.paths.root
        # One pass over the files: a canary's words all begin alike.
        gone = {word for word in self.gone if " " not in word}
        found = [
            (path, word.encode())
            for path, words in canaries(root).items()
            for word in sorted(words & gone)
        ]
        whole = [text for text in self.gone if " " in text][::9]
        needles = [text.encode(code) for text in whole for code in ENCODINGS]
        needles += [vector.tobytes() for vector in HashEmbedder().embed(whole)]
        return found + files_with(root, needles)

    def check(self) -> None:
        """What must be gone is gone, everything else is there."""
        assert self.remnants() == []
        for user in ("anna", "ben"):
            listed = {m["id"]: (user, m["memory"]) for m in self._arena.listed(user)}
            assert listed == {i: each for i, each in self.alive.items() if each[0] == user}
        if self.alive:
            self.ask()


def canaries(root: Path) -> dict[Path, set[str]]:
    """The words with a canary in each file, whatever their encoding."""
    found: dict[Path, set[str]] = {}
    for path, content in contents(root).items():
        for code in ENCODINGS:
            start = CANARY.encode(code)
            length = len(f"{CANARY}{'0' * 12}".encode(code))
            at = content.find(start)
            while at >= 0:
                word = content[at : at + length].decode(code, "replace")
                found.setdefault(path, set()).add(word)
                at = content.find(start, at + 1)
    return found


def asked_for(arena: Arena) -> None:
    arena.call("POST", "/purge")
    until(arena.index_is_ready)


def stopped(arena: Arena) -> None:
    arena.stop()


def killed_and_asked_for(arena: Arena) -> None:
    arena.kill()
    arena.start()
    asked_for(arena)


@pytest.mark.parametrize("purge", [asked_for, stopped, killed_and_asked_for])
def test_what_was_deleted_is_in_no_file_after_a_purge(
    tmp_path: Path, purge: Callable[[Arena], None]
) -> None:
    with Arena(tmp_path, flush_changes=50) as arena:
        arena.start()
        life = Life(arena, seed=1)
        life.live()
        assert life.remnants() != [], "before the purge there is something to find"
        purge(arena)
        assert life.remnants() == []
        if not arena.running:
            arena.start()
        life.check()
        # A second life: what the first purge made can be purged as well.
        life.change(20)
        life.delete(10)
        purge(arena)
        if not arena.running:
            arena.start()
        life.check()
        arena.stop()
        life_goes_on = {text for _, text in life.alive.values()}
        kept = arena.paths.record.read_bytes()
        assert all(text.encode() in kept for text in life_goes_on)
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []


def test_a_reset_purges_at_once_and_leaves_a_server_that_works(tmp_path: Path) -> None:
    with Arena(tmp_path, flush_changes=50) as arena:
        arena.start()
        life = Life(arena, seed=2)
        life.live()
        life.reset()
        life.check()
        assert canaries(arena.paths.root) == {}
        life.add("anna", "wednesday", 20)
        life.check()
        arena.kill()
        arena.start()
        life.check()
        arena.stop()
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []


def test_a_purge_that_is_due_comes_by_itself(tmp_path: Path) -> None:
    with Arena(tmp_path, flush_seconds=0.2, purge_hours=0.001) as arena:  # 3.6 seconds
        arena.start()
        life = Life(arena, seed=3)
        life.add("anna", "monday", 20)
        life.add("ben", "monday", 5)
        life.delete(10)
        assert arena.call("GET", "/status")["purge_pending"] is True
        until(lambda: not arena.call("GET", "/status")["purge_pending"])
        until(lambda: life.remnants() == [])
        life.check()
        arena.stop()
