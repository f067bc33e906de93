"""What an extraction costs beyond the model's own time, and what it does to reads.

The model is the scripted router of the tests, a process of its own that waits as long as it is
told before it answers: its time is known, and everything else is ours.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import servers
from benchmarks.corpus import Corpus
from benchmarks.load import write_requests
from benchmarks.servers import BenchmarkError, Ours, Workspace
from pikuri_memory import process

MODEL_SECONDS: Final = 0.1
"""How long the model takes for one answer while the overhead is measured."""

SLOW_MODEL_SECONDS: Final = 1.0
"""The same while reads are measured: all extractions are then under way nearly all the time."""

AT_ONCE: Final = 8
PROMPT_CHARACTERS: Final = 34_000
"""Of a request straight to the model: about as long as mem0's extraction prompt."""

STORED: Final = 10_000
LLM: Final = "tiny-instruct"


@dataclass(frozen=True)
class Extraction:
    """Seconds. Rounds alternate, figures are medians over them.

    Attributes:
        model: Median latency of the same model asked directly.
        add: Median latency of an add with extraction through one client.
        quiet: Median latency of a search by one client while nothing else is done.
        busy: The same while :data:`AT_ONCE` extractions are under way.
        extracted: Adds that ended meanwhile.
    """

    model: float
    add: float
    quiet: float
    busy: float
    extracted: int

    @property
    def overhead(self) -> float:
        """Seconds of an add beyond the model's own time."""
        return self.add - self.model

    @property
    def slowdown(self) -> float:
        """How many times longer a search takes while extractions are under way."""
        return self.busy / self.quiet


class WithModels(Ours):
    """The server as it is shipped: built-in embedder, extraction by the scripted router."""

    def __init__(self, workspace: Workspace, label: str, router: str) -> None:
        super().__init__(workspace, label)
        self._router = router

    def argv(self) -> list[str]:
        """How it is started."""
        return [
            *(sys.executable, "-m", "pikuri_memory", "serve", "--keep", "--port", "0"),
            *("--data-dir", str(self.data_dir), "--router", self._router),
            *("--llm-model", LLM, "--embedder-model", "builtin"),
            *("--router-concurrency", str(AT_ONCE)),
        ]

    def turn(self, text: str, user: str) -> bytes:
        """A turn that is to become facts."""
        body = {"messages": [{"role": "user", "content": text}], "user_id": user}
        return servers.request("/memories", body, self._headers())


@contextmanager
def model(workspace: Workspace, seconds: float) -> Iterator[int]:
    """The scripted router as a process; its port."""
    port = servers.free_port()
    running = process.spawn_child(
        [
            *(sys.executable, "-m", "tests.router.scripted", "--stay", "--port", str(port)),
            *("--latency", str(seconds), "--chat-model", LLM),
        ],
        output=workspace.root / "model.log",
        env=workspace.environment(),
    )
    try:
        end = time.monotonic() + 30
        while True:
            try:
                servers.fetch(port, "/v1/models")
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError("the scripted router did not start") from None
                time.sleep(0.05)
        yield port
    finally:
        running.terminate(2.0)


def measure(workspace: Workspace, corpus: Corpus, *, rounds: int, seconds: float) -> Extraction:
    """Measure both.

    Args:
        workspace: Where files go.
        corpus: Memories and questions.
        rounds: How often each is measured.
        seconds: Of one measurement.
    """
    direct: list[float] = []
    added: list[float] = []
    quiet: list[float] = []
    busy: list[float] = []
    extracted = 0
    with _filled(workspace, corpus, MODEL_SECONDS) as (server, port):
        asked = workspace.root / "model.requests"
        write_requests(asked, [_straight(text) for text in ("one", "two", "three")])
        for number in range(rounds):
            direct.append(drive(workspace, port, asked, 1, seconds, warm_up=2)["p50"])
            turns = _turns(workspace, server, corpus, number)
            added.append(drive(workspace, server.port, turns, 1, seconds, warm_up=3)["p50"])
    with _filled(workspace, corpus, SLOW_MODEL_SECONDS) as (server, _):
        questions = workspace.root / "questions.requests"
        write_requests(questions, [server.search(q, filtered=False) for q in corpus.questions])
        for number in range(rounds):
            start = number * 500
            quiet.append(
                drive(workspace, server.port, questions, 1, seconds, warm_up=20, start=start)["p50"]
            )
            turns = _turns(workspace, server, corpus, number)
            done: list[dict[str, Any]] = []

            def extract(turns: Path = turns, done: list[dict[str, Any]] = done) -> None:
                done.append(drive(workspace, server.port, turns, AT_ONCE, seconds + 2.0))

            thread = threading.Thread(target=extract)
            thread.start()
            time.sleep(1.0)  # until all of them are under way
            busy.append(
                drive(workspace, server.port, questions, 1, seconds, warm_up=20, start=start)["p50"]
            )
            thread.join()
            if not done or done[0]["failed"]:
                raise BenchmarkError("an extraction failed while reads were measured")
            extracted += done[0]["count"]
    return Extraction(
        statistics.median(direct),
        statistics.median(added),
        statistics.median(quiet),
        statistics.median(busy),
        extracted,
    )


@contextmanager
def _filled(
    workspace: Workspace, corpus: Corpus, seconds: float
) -> Iterator[tuple[WithModels, int]]:
    """A server with memories, and the port of its model."""
    with model(workspace, seconds) as port:
        server = WithModels(
            workspace, f"extraction-{seconds:g}", f"http://{servers.HOST}:{port}/v1"
        )
        try:
            server.start()
            size = min(STORED, corpus.stored)
            for start in range(0, size, 500):
                servers.exchange(
                    server.port, server.batch(start, corpus.facts[start : min(start + 500, size)])
                )
            yield server, port
        finally:
            server.stop()
            servers.remove(server)


def _turns(workspace: Workspace, server: WithModels, corpus: Corpus, number: int) -> Path:
    """Turns that were not sent before, all of one user, as a chat is."""
    path = workspace.root / "turns.requests"
    texts = [f"{fact.text}, as I said on day {number} of it" for fact in corpus.facts[:600]]
    write_requests(path, [server.turn(text, f"chat-{number}") for text in texts])
    return path


def _straight(text: str) -> bytes:
    prompt = ("You extract facts. " * (PROMPT_CHARACTERS // 19 + 1))[:PROMPT_CHARACTERS]
    body = {
        "model": LLM,
        "messages": [
            {"role": "system", "content": prompt},
            {"role": "user", "content": text},
        ],
    }
    return servers.request("/v1/chat/completions", body)


def drive(
    workspace: Workspace,
    port: int,
    requests: Path,
    clients: int,
    seconds: float,
    *,
    warm_up: int = 0,
    start: int = 0,
) -> dict[str, Any]:
    """What the load generator measured; every request must be answered with success."""
    done = process.run(
        [sys.executable, "-I", str(Path(__file__).with_name("load.py"))],
        timeout=seconds + 180.0,
        env=workspace.environment(),
        input=json.dumps(
            {
                "host": servers.HOST,
                "port": port,
                "requests": str(requests),
                "start": start,
                "count": sys.maxsize,
                "repeat": True,
                "clients": clients,
                "seconds": seconds,
                "warm_up": warm_up,
            }
        ),
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if result["failed"]:
        raise BenchmarkError(f"{result['failed']} requests failed")
    return result
