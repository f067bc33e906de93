"""What is measured, in which order. Figures are seconds, bytes and counts a second."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import servers
from benchmarks.corpus import Corpus
from benchmarks.extraction import Extraction
from benchmarks.load import write_requests
from benchmarks.servers import BenchmarkError, Limit, MemoryUse, Ours, Server, Workspace
from benchmarks.stack import Stack
from pikuri_memory import process
from pikuri_memory.errors import PikuriMemoryError

CLIENTS: Final = (1, 16)
BATCH: Final = 500
_CHECKED: Final = 100
_INDEX_SECONDS: Final = 180.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long it is measured.

    Attributes:
        rounds: Rounds, each with every server once for every kind of request.
        slow_rounds: Of which slow servers take part in so many.
        seconds: Of one kind of request at a server with one number of clients.
        slow_seconds: The same for a slow server.
        adds: Additions by one client in a round; 16 clients make four times as many.
        restarts: How often a start is repeated.
    """

    rounds: int
    slow_rounds: int
    seconds: float
    slow_seconds: float
    adds: int
    restarts: int


FULL: Final = Effort(5, 3, 1.5, 3.0, 150, 3)
QUICK: Final = Effort(2, 1, 0.5, 1.5, 30, 1)


@dataclass(frozen=True)
class Run:
    """One kind of request with one number of clients: medians over the rounds.

    Attributes:
        p50: Median latency.
        p99: 99th percentile of the latency.
        per_second: Replies a second.
        count: Replies in all rounds.
        failed: Replies that were no success, in all rounds.
        generator: Share of a core that the load generator used.
    """

    p50: float
    p99: float
    per_second: float
    count: int
    failed: int
    generator: float

    @classmethod
    def of(cls, rounds: Sequence[dict[str, Any]]) -> Run:
        """From the results of the load generator."""

        def median(name: str) -> float:
            return statistics.median(float(result[name]) for result in rounds)

        return cls(
            median("p50"),
            median("p99"),
            median("per_second"),
            sum(result["count"] for result in rounds),
            sum(result["failed"] for result in rounds),
            median("generator_cpu"),
        )


@dataclass
class Figures:
    """Of one server at one size. What is None or missing was not measured."""

    start: float | None = None
    imported: float | None = None
    """Memories a second."""
    found: float | None = None
    """Share of questions whose answer is in the reply."""
    search: dict[int, Run] = field(default_factory=dict)
    filtered: dict[int, Run] = field(default_factory=dict)
    add: dict[int, Run] = field(default_factory=dict)
    memory: MemoryUse | None = None
    disk: int | None = None


@dataclass
class Life:
    """Of our server as it is shipped, at one size, with the real embedder."""

    ready: float
    stop: float
    search: Run
    memory: MemoryUse
    after_kill: float | None = None
    index_after_kill: float | None = None
    rebuild: float | None = None


@dataclass
class Results:
    """Everything that one run measured."""

    sizes: dict[int, dict[str, Figures]] = field(default_factory=dict)
    lives: dict[int, Life] = field(default_factory=dict)
    embedder: dict[str, float] = field(default_factory=dict)
    help_cpu: float | None = None
    extraction: Extraction | None = None
    stack: Stack | None = None
    versions: list[str] = field(default_factory=list)
    seconds: float = 0.0
    quick: bool = False


class Bench:
    """Measures at one size after the other.

    Args:
        workspace: Where files go.
        corpus: Memories and questions.
        effort: How long.
        names: The servers besides ours that take part.
        say: Told what is being done.
    """

    def __init__(
        self,
        workspace: Workspace,
        corpus: Corpus,
        effort: Effort,
        names: Iterable[str],
        say: Say,
    ) -> None:
        self._workspace = workspace
        self._corpus = corpus
        self._effort = effort
        self._names = frozenset(names)
        self._say = say
        self._position = random.Random(1)

    # -- one size --------------------------------------------------------------------------------

    def size(self, stored: int, *, all_products: bool) -> dict[str, Figures]:
        """Measure servers side by side.

        Args:
            stored: Memories.
            all_products: Whether mem0 and Chroma take part.
        """
        label = str(stored)
        taking_part: list[Server] = [Ours(self._workspace, label)]
        limit = Limit(self._workspace, label, self._corpus, stored)
        if "limit" in self._names:
            taking_part.append(limit)
        if all_products and "chroma" in self._names:
            taking_part.append(servers.Chroma(self._workspace, label, self._corpus))
        if all_products and "mem0" in self._names:
            taking_part.append(servers.Mem0(self._workspace, label))
        figures = {server.name: Figures() for server in taking_part}
        try:
            for server in taking_part:
                self._fill(server, stored, figures[server.name])
            self._rounds_of_search(taking_part, figures)
            for server in taking_part:
                assert server.running is not None
                figures[server.name].memory = servers.memory_use(server.running.pid)
                figures[server.name].disk = servers.disk_bytes(server.data_dir)
            self._rounds_of_adds([s for s in taking_part if s is not limit], figures)
        finally:
            for server in taking_part:
                server.stop()
        for server in taking_part:
            if not isinstance(server, Ours):
                servers.remove(server)
        return figures

    def _fill(self, server: Server, stored: int, figures: Figures) -> None:
        self._say(f"{server.name}: start and import of {stored} memories")
        if isinstance(server, Limit):
            server.build()
            figures.start = server.start()
        else:
            figures.start = server.start()
            facts = self._corpus.facts
            requests = [
                server.batch(start, facts[start : min(start + BATCH, stored)])
                for start in range(0, stored, BATCH)
            ]
            done = self._load(server, requests, clients=1, seconds=900.0)
            if done["failed"] or done["count"] != len(requests):
                raise BenchmarkError(f"{server.name}: {done['failed']} imports failed")
            figures.imported = stored / done["seconds"]
        found = 0
        questions = self._corpus.questions[:_CHECKED]
        for question in questions:
            reply = servers.exchange(server.port, server.search(question, filtered=False))
            found += self._corpus.facts[question.answer].text in server.found(reply)
        figures.found = found / len(questions)

    def _rounds_of_search(self, taking_part: list[Server], figures: dict[str, Figures]) -> None:
        effort = self._effort
        kinds = [(filtered, clients) for filtered in (False, True) for clients in CLIENTS]
        collected: dict[tuple[str, bool, int], list[dict[str, Any]]] = {}
        files: dict[tuple[str, bool], Path] = {}
        for server in taking_part:
            for filtered in (False, True):
                path = self._workspace.root / f"{server.name}-{filtered}.requests"
                write_requests(
                    path, [server.search(q, filtered=filtered) for q in self._corpus.questions]
                )
                files[server.name, filtered] = path
        for number in range(effort.rounds):
            self._say(f"search: round {number + 1} of {effort.rounds}")
            for filtered, clients in kinds:
                # Another order every round: nobody is always the first after a pause.
                order = taking_part[number % len(taking_part) :]
                order += taking_part[: number % len(taking_part)]
                for server in order:
                    if server.slow and number >= effort.slow_rounds:
                        continue
                    if filtered and isinstance(server, Limit):
                        continue
                    result = self._drive(
                        server,
                        files[server.name, filtered],
                        clients=clients,
                        seconds=effort.slow_seconds if server.slow else effort.seconds,
                        start=self._position.randrange(len(self._corpus.questions)),
                        warm_up=2 if server.slow else 40,
                    )
                    collected.setdefault((server.name, filtered, clients), []).append(result)
        for (name, filtered, clients), rounds in collected.items():
            group = figures[name].filtered if filtered else figures[name].search
            group[clients] = Run.of(rounds)

    def _rounds_of_adds(self, taking_part: list[Server], figures: dict[str, Figures]) -> None:
        collected: dict[tuple[str, int], list[dict[str, Any]]] = {}
        first = self._corpus.stored
        rounds = max(1, self._effort.slow_rounds)
        for number in range(rounds):
            self._say(f"add: round {number + 1} of {rounds}")
            for clients in CLIENTS:
                count = self._effort.adds * (1 if clients == 1 else 4)
                if first + count > len(self._corpus.facts):
                    raise BenchmarkError("the corpus has too few memories to add")
                for server in taking_part:
                    requests = [
                        server.add(row, self._corpus.facts[row])
                        for row in range(first, first + count)
                    ]
                    result = self._load(
                        server,
                        requests,
                        clients=clients,
                        seconds=4 * self._effort.slow_seconds,
                    )
                    collected.setdefault((server.name, clients), []).append(result)
                first += count
        for (name, clients), results in collected.items():
            figures[name].add[clients] = Run.of(results)

    # -- our server's life -----------------------------------------------------------------------

    def life(self, stored: int, *, crash: bool) -> Life:
        """Starts, stops, memory and rebuild of our server as it is shipped.

        Args:
            stored: A size that :meth:`size` has filled.
            crash: Whether it is killed, and its index made anew.
        """
        ours = Ours(self._workspace, str(stored))
        ours.shipped = True
        ready: list[float] = []
        stops: list[float] = []
        for number in range(self._effort.restarts):
            self._say(f"start with {stored} memories and the real embedder ({number + 1})")
            ready.append(ours.start())
            if not ours.index_is_ready():
                raise BenchmarkError("the index was not ready after a clean stop")
            if number < self._effort.restarts - 1:
                stops.append(ours.stop())
        try:
            searched = self._load(
                ours,
                [ours.search(q, filtered=False) for q in self._corpus.questions],
                clients=1,
                seconds=max(2.0, self._effort.seconds),
                warm_up=20,
                repeat=True,
            )
            last = len(self._corpus.facts)
            self._load(
                ours,
                [ours.add(row, self._corpus.facts[row]) for row in range(last - 32, last)],
                clients=16,
                seconds=30.0,
            )
            assert ours.running is not None
            memory = servers.memory_use(ours.running.pid)
            life = Life(0.0, 0.0, Run.of([searched]), memory)
            if crash:
                self._say("kill -9, then start again")
                ours.kill()
                started = time.perf_counter()
                life.after_kill = ours.start()
                while not ours.index_is_ready():
                    if time.perf_counter() - started > _INDEX_SECONDS:
                        raise BenchmarkError("the index was not made anew")
                    time.sleep(0.05)
                life.index_after_kill = time.perf_counter() - started
        finally:
            stops.append(ours.stop())
        life.ready = statistics.median(ready)
        life.stop = statistics.median(stops)
        if crash:
            self._say("rebuild of the index")
            life.rebuild = self._rebuild(ours)
        servers.remove(ours)
        return life

    def _rebuild(self, ours: Ours) -> float:
        target = self._workspace.root / "rebuilt"
        started = time.perf_counter()
        process.run(
            [
                *(sys.executable, "-m", "pikuri_memory.embedded.rebuild", str(ours.paths.record)),
                *(str(target), "english", str(self._corpus.vectors.shape[1]), "vectors"),
                str(os.getpid()),
            ],
            timeout=_INDEX_SECONDS,
            env=self._workspace.environment(),
        )
        taken = time.perf_counter() - started
        shutil.rmtree(target)
        return taken

    # -- load ------------------------------------------------------------------------------------

    def _load(
        self,
        server: Server,
        requests: list[bytes],
        *,
        clients: int,
        seconds: float,
        warm_up: int = 0,
        repeat: bool = False,
    ) -> dict[str, Any]:
        path = self._workspace.root / f"{server.name}.requests"
        write_requests(path, requests)
        return self._drive(
            server, path, clients=clients, seconds=seconds, warm_up=warm_up, repeat=repeat
        )

    def _drive(
        self,
        server: Server,
        requests: Path,
        *,
        clients: int,
        seconds: float,
        start: int = 0,
        warm_up: int = 0,
        repeat: bool | None = None,
    ) -> dict[str, Any]:
        specification = {
            "host": servers.HOST,
            "port": server.port,
            "requests": str(requests),
            "start": start,
            "count": sys.maxsize,
            "repeat": warm_up > 0 if repeat is None else repeat,
            "clients": clients,
            "seconds": seconds,
            "warm_up": warm_up,
        }
        try:
            done = process.run(
                [sys.executable, "-I", str(Path(__file__).with_name("load.py"))],
                timeout=seconds + 180.0,
                env=self._workspace.environment(),
                input=json.dumps(specification),
            )
        except PikuriMemoryError as error:
            raise BenchmarkError(f"load on {server.name}: {error.message}") from None
        result: dict[str, Any] = json.loads(done.stdout)
        return result


def embedder(workspace: Workspace, corpus: Corpus, count: int) -> dict[str, float]:
    """Times of the real embedder, in a process of its own."""
    given = {
        "questions": [question.text for question in corpus.questions[:count]],
        "facts": [fact.text for fact in corpus.facts[: 4 * count]],
    }
    done = process.run(
        [sys.executable, "-m", "benchmarks.embedder_main"],
        timeout=300,
        env=workspace.environment(),
        input=json.dumps(given),
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def help_cpu(workspace: Workspace, times: int) -> float:
    """CPU seconds of ``pikuri-memory --help``, the median of some."""
    taken: list[float] = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process.run(
            [sys.executable, "-m", "pikuri_memory", "--help"],
            timeout=60,
            env=workspace.environment(),
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken)
