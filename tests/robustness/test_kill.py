"""SIGKILL at any moment, under load: what was acknowledged is there, what was deleted is not."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import httpx
import pytest

from pikuri_memory import process
from pikuri_memory.embedded.observer import Phase
from tests.robustness.arena import ROOT, Arena, files_with, until
from tests.robustness.load_client import CANARY, FIRST, GATE, STOP, control
from tests.robustness.oracle import Book, autopsy, shape

SOAK_SECONDS: Final = float(os.environ.get("PIKURI_SOAK_SECONDS", "0"))
"""With it, the killing goes on for so long; without, until there were enough kills."""

KILLS: Final = 50
KILLS_A_PHASE: Final = 5
CLIENTS: Final = 4
PHASES: Final[tuple[Phase, ...]] = (
    "commit",
    "index",
    "flush",
    "rebuild",
    "switch",
    "start",
    "stop",
    "idle",
)
COUNTED: Final[tuple[Phase, ...]] = ("commit", "index", "flush", "rebuild", "switch", "start")


class Siege:
    """Clients that never rest, and a server that is killed again and again.

    Args:
        arena: The server.
        seed: Of when and what.
    """

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena = arena
        self.kills: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self._random = random.Random(seed)
        (arena.directory / "control").write_bytes(bytes(64))
        self._control = control(arena.directory)
        self.books = [Book(arena.directory / f"{CANARY}-{n}.jsonl") for n in range(CLIENTS)]
        self._clients: list[process.Process] = []
        for n, book in enumerate(self.books):
            self._clients.append(
                process.spawn_detached(
                    [
                        sys.executable,
                        "-m",
                        "tests.robustness.load_client",
                        book.name,
                        str(n),
                        str(arena.directory),
                        str(seed + n),
                    ],
                    output=arena.directory / f"client-{n}.out",
                    cwd=ROOT,
                )
            )

    def close(self) -> None:
        """End the clients."""
        self._control[STOP] = 1
        for client in self._clients:
            if client.wait(20) is None:
                client.terminate(0.0)

    # -- looking -----------------------------------------------------------------------------------

    def close_gate(self) -> None:
        """Make the clients stand still between two attempts, and read their books."""
        self._control[GATE] = 1
        for n, client in enumerate(self._clients):
            end = time.monotonic() + 90
            while not self._control[FIRST + n]:
                output = self.arena.directory / f"client-{n}.out"
                assert client.poll() is None, f"a client ended: {output.read_text()[-2000:]}"
                assert time.monotonic() < end, "a client does not come to rest"
                time.sleep(0.002)
        for book in self.books:
            book.read()

    def open_gate(self) -> None:
        """Let the clients go on."""
        self._control[GATE] = 0

    def look_at_the_dead(self) -> None:
        """The record of a server that does not run has what it must have, and nothing else."""
        scratch = self.arena.directory / "autopsy"
        assert autopsy(self.arena.paths.record, scratch, self.books) == []

    def ask_the_living(self) -> None:
        """A server that runs lists and finds what it must."""
        for book in self.books:
            found = [shape(memory) for memory in self.arena.listed(book.name)]
            assert book.complaints(found) == []
            for item in self._random.sample(sorted(book.there.values(), key=str), 8):
                if book.pending and item["id"] == book.pending.get("id"):
                    continue
                if book.pending and item["run"] == book.pending.get("run"):
                    continue
                hits = self.arena.search(item["text"], book.name, top_k=3)
                assert item["id"] in [hit["id"] for hit in hits], item
                history = self.arena.call("GET", f"/memories/{item['id']}/history")
                assert history[-1]["new_memory"] == item["text"]
            for id_ in self._random.sample(sorted(book.deleted), min(8, len(book.deleted))):
                assert self.arena.client.get(f"/memories/{id_}").status_code == 404

    # -- killing -----------------------------------------------------------------------------------

    def strike(self, wanted: Phase) -> None:
        """Kill the server in a phase, if it comes by; count the phase in which it died."""
        if wanted == "start":
            self._strike_at_start()
        else:
            self._strike_at_work(wanted)
        died_in = self.arena.watch.now()
        self.busy.update(died_in)
        for phase in (wanted, "switch", "flush", "index", "commit", "rebuild", "stop", "start"):
            if phase in died_in:
                self.kills[phase] += 1
                return
        self.kills["idle"] += 1

    def _strike_at_start(self) -> None:
        if self.arena.running:
            self.arena.kill()
        self.arena.spawn()
        until(lambda: self.arena.watch.sees("start"))
        # Anywhere in it: imports, locks, the port, the record, the index.
        end = time.monotonic() + self._random.uniform(0.0, 0.7)
        while time.monotonic() < end and self.arena.watch.sees("start"):
            time.sleep(0.001)
        self.arena.kill()

    def _strike_at_work(self, wanted: Phase) -> None:
        asking: threading.Thread | None = None
        first = wanted in ("rebuild", "switch") and self._random.random() < 0.5
        if not first:  # the rebuild that follows a crash; otherwise let it pass
            time.sleep(self._random.uniform(0.1, 0.5))
        if wanted in ("rebuild", "switch", "idle") and not first:
            asking = threading.Thread(target=self._purge, args=(self.arena.client,))
            asking.start()
        if wanted == "stop":
            self.arena.terminate()
        if wanted == "idle":
            time.sleep(self._random.uniform(0.0, 0.2))
        else:
            self._await(wanted, {"rebuild": 0.4, "flush": 0.004, "stop": 0.2}.get(wanted, 0.0))
        alive = self.arena.running
        self.arena.kill()
        assert alive or wanted == "stop", "the server ended by itself"
        if asking is not None:
            asking.join()

    def _await(self, wanted: Phase, within: float) -> None:
        """Wait for a phase, and then for a random part of it."""
        watch = self.arena.watch
        end = time.monotonic() + 8
        delay = self._random.uniform(0.0, within)
        while time.monotonic() < end and self.arena.running:
            while not watch.sees(wanted):
                if time.monotonic() > end or not self.arena.running:
                    return
            seen = time.monotonic()
            while watch.sees(wanted):
                if time.monotonic() - seen >= delay:
                    return
            delay /= 2

    @staticmethod
    def _purge(client: httpx.Client) -> None:
        try:
            client.post("/purge")
        except httpx.HTTPError:
            pass
        except RuntimeError:  # the client was closed
            pass

    def shuffled(self, phases: Sequence[Phase]) -> list[Phase]:
        """The phases in any order."""
        return self._random.sample(phases, len(phases))

    def report(self) -> str:
        """Kills per phase."""
        told = ", ".join(f"{phase} {self.kills[phase]}" for phase in PHASES)
        acknowledged = sum(book.acknowledged for book in self.books)
        alive = sum(len(book.there) for book in self.books)
        return (
            f"{self.kills.total()} kills: {told}; {acknowledged} acknowledged changes, {alive}"
            f" memories at the end, {sum(len(book.replies) for book in self.books)} keys"
        )


@pytest.fixture
def siege(tmp_path: Path) -> Iterator[Siege]:
    seed = int(os.environ.get("PIKURI_SEED", str(random.randrange(2**31))))
    print(f"PIKURI_SEED={seed}")
    with Arena(tmp_path, flush_changes=25, flush_seconds=1.0) as arena:
        siege = Siege(arena, seed)
        try:
            yield siege
        finally:
            siege.close()


def test_nothing_acknowledged_is_lost_and_nothing_deleted_returns_by_kill_9(
    siege: Siege, capsys: pytest.CaptureFixture[str]
) -> None:
    arena = siege.arena
    end = time.monotonic() + SOAK_SECONDS
    plan: list[Phase] = []
    arena.start()
    time.sleep(2.0)  # something to lose
    while True:
        if not plan:
            lacking = [phase for phase in COUNTED if siege.kills[phase] < KILLS_A_PHASE]
            if not lacking and siege.kills.total() >= KILLS and time.monotonic() > end:
                break
            assert lacking == [] or siege.kills.total() < 3 * KILLS, siege.report()
            plan = siege.shuffled(lacking or PHASES)
        wanted = plan.pop()
        siege.strike(wanted)
        siege.close_gate()
        siege.look_at_the_dead()
        # The rebuild that follows a crash is struck only with the clients at it.
        upcoming = plan[-1] if plan else "commit"
        if upcoming == "start":
            siege.open_gate()
            continue
        if upcoming in ("rebuild", "switch"):
            siege.open_gate()
            arena.start()
        else:
            arena.start()
            siege.ask_the_living()
            siege.open_gate()
    siege.close_gate()
    until(arena.index_is_ready)
    siege.ask_the_living()
    arena.stop()
    siege.look_at_the_dead()
    arena.start()
    assert arena.index_is_ready(), "a clean stop leaves an index that is used again"
    siege.ask_the_living()
    arena.stop()
    print(siege.report())  # for `-rA`, and for test processes whose terminal nobody sees
    with capsys.disabled():
        print(f"\n{siege.report()}")
    assert files_with(arena.paths.logs, [CANARY.encode()]) == []
