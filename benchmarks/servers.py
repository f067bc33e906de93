"""The servers that are measured: how each is started, filled and asked."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.corpus import Corpus, Fact, Question
from benchmarks.environments import CHROMA, MEM0, python_of
from pikuri_memory import discovery, process
from pikuri_memory.paths import DataPaths

HOST: Final = "127.0.0.1"
TOP_K: Final = 10
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0
_ROOT: Final = Path(__file__).parent.parent
_FOREIGN: Final = ("OPENAI_", "OPENROUTER_", "PIKURI_MEMORY_", "MEM0_", "CHROMA_", "QDRANT_")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})


class BenchmarkError(Exception):
    """A measurement could not be made, or would not mean anything."""


@dataclass(frozen=True)
class Workspace:
    """Where one run keeps its files.

    Attributes:
        root: A temporary directory.
        corpus: The files of the look-up.
        cache: Where the environments of other products are.
    """

    root: Path
    corpus: Path
    cache: Path

    def environment(self) -> dict[str, str]:
        """This process's variables without any that steers a product, a home of its own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_FOREIGN) and name.lower() not in _PROXIES
        }
        return kept | {
            "HOME": str(self.root),
            "PYTHONPATH": str(_ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "MEM0_TELEMETRY": "False",
            "MEM0_DIR": str(self.root / "mem0-home"),
            "ANONYMIZED_TELEMETRY": "False",
        }


class Server(Protocol):
    """A server with its data."""

    name: str
    slow: bool
    """Whether one request takes so long that it takes part in fewer rounds."""

    port: int
    running: process.Process | None

    @property
    def data_dir(self) -> Path:
        """What its disk use is counted in."""
        ...

    def start(self) -> float:
        """Start it; the seconds until it was healthy."""
        ...

    def stop(self) -> float:
        """Stop it in its own way; the seconds that took."""
        ...

    def search(self, question: Question, *, filtered: bool) -> bytes:
        """A request of the best :data:`TOP_K` for a user (and a topic)."""
        ...

    def add(self, row: int, fact: Fact) -> bytes:
        """A request that adds one memory."""
        ...

    def batch(self, start: int, facts: Sequence[Fact]) -> bytes:
        """A request that adds many."""
        ...

    def found(self, reply: Any) -> list[str]:
        """The texts in the reply to a search."""
        ...


def request(path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a ``POST``."""
    content = json.dumps(body, ensure_ascii=False).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {HOST}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def exchange(port: int, sent: bytes) -> Any:
    """Send one request, read the JSON of the reply.

    Raises:
        BenchmarkError: The reply is no success.
    """
    with socket.create_connection((HOST, port), START_SECONDS) as connection:
        connection.sendall(sent)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        body = reply.read()
    if not 200 <= reply.status < 300:
        raise BenchmarkError(f"{sent.split(b' ')[1].decode()} gave {reply.status}: {body[:300]!r}")
    return json.loads(body) if body else None


def fetch(port: int, path: str, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON behind a ``GET``."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return exchange(port, "\r\n".join([*lines, "", ""]).encode())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class _Base:
    """Starting and stopping, the same for all."""

    name = ""
    slow = False
    health = "/health"

    def __init__(self, workspace: Workspace, label: str) -> None:
        self.workspace = workspace
        self.port = 0
        self.running: process.Process | None = None
        self._dir = workspace.root / f"{self.name}-{label}"
        self._dir.mkdir(exist_ok=True)
        self._log = workspace.root / f"{self.name}-{label}.log"

    @property
    def data_dir(self) -> Path:
        """What its disk use is counted in."""
        return self._dir

    def argv(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def start(self) -> float:
        """Start it; the seconds until it was healthy."""
        self.port = free_port()
        return self._run(self.argv())

    def _run(self, argv: Sequence[str]) -> float:
        started = time.perf_counter()
        # Dies with this process; its working directory is scratch.
        self.running = process.spawn_child(
            argv, output=self._log, env=self.workspace.environment(), cwd=self.workspace.root
        )
        while not self._healthy():
            if self.running.poll() is not None:
                raise BenchmarkError(f"{self.name} ended: {self._log.read_text()[-1000:]}")
            if time.perf_counter() - started > START_SECONDS:
                self.stop()
                raise BenchmarkError(f"{self.name} was not healthy in {START_SECONDS:g} s")
            time.sleep(0.003)
        return time.perf_counter() - started

    def _healthy(self) -> bool:
        try:
            fetch(self.port, self.health)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def stop(self) -> float:
        """Stop it in its own way; the seconds that took."""
        started = time.perf_counter()
        if self.running is not None:
            self.running.terminate(STOP_SECONDS)
            self.running = None
        return time.perf_counter() - started

    def kill(self) -> None:
        """End it as a crash would."""
        if self.running is not None:
            self.running.terminate(0.0)
            self.running = None


class Ours(_Base):
    """The embedded server, with the look-up or as it is shipped."""

    name = "ours"

    def __init__(self, workspace: Workspace, label: str) -> None:
        super().__init__(workspace, label)
        self.paths = DataPaths.at(self._dir)
        self.shipped = False
        """Whether :meth:`start` runs the server as it is shipped, with the real embedder."""

    def argv(self) -> list[str]:
        """How it is started."""
        if self.shipped:
            words = ["pikuri_memory", "serve", "--keep", "--port", "0"]
            words += ["--data-dir", str(self._dir)]
        else:
            words = ["benchmarks.ours_main", str(self._dir), str(self.workspace.corpus)]
        return [sys.executable, "-m", *words]

    def _healthy(self) -> bool:
        info = discovery.read_server_info(self.paths)
        if self.running is None or info is None or info.pid != self.running.pid:
            return False
        self.port = int(info.endpoint.rpartition(":")[2])
        return super()._healthy()

    def _headers(self) -> dict[str, str]:
        return {"X-API-Key": discovery.ensure_api_key(self.paths)}

    def index_is_ready(self) -> bool:
        """Whether searches go to the index."""
        status = fetch(self.port, "/status", self._headers())
        return bool(status["index"]["state"] == "ready")

    def search(self, question: Question, *, filtered: bool) -> bytes:
        """A request of the best :data:`TOP_K` for a user (and a topic)."""
        filters = {"user_id": question.user} | ({"topic": question.topic} if filtered else {})
        body = {"query": question.text, "filters": filters, "top_k": TOP_K}
        return request("/search", body, self._headers())

    def add(self, row: int, fact: Fact) -> bytes:
        """A request that adds one memory."""
        return request(
            "/memories",
            {
                "messages": [{"role": "user", "content": fact.text}],
                "user_id": fact.user,
                "metadata": metadata(fact),
                "infer": False,
            },
            self._headers(),
        )

    def batch(self, start: int, facts: Sequence[Fact]) -> bytes:
        """A request that adds many."""
        items = [
            {"memory": fact.text, "user_id": fact.user, "metadata": metadata(fact)}
            for fact in facts
        ]
        return request("/memories/batch", {"memories": items}, self._headers())

    def found(self, reply: Any) -> list[str]:
        """The texts in the reply to a search."""
        return [hit["memory"] for hit in reply["results"]]


class Limit(_Base):
    """The limit. It takes no additions and knows no metadata."""

    name = "limit"
    health = "/"

    def __init__(self, workspace: Workspace, label: str, corpus: Corpus, stored: int) -> None:
        super().__init__(workspace, label)
        self._corpus = corpus
        self._stored = stored
        self._frequencies = workspace.root / f"{self.name}-{label}.json"

    @property
    def data_dir(self) -> Path:
        """What its disk use is counted in."""
        return self._dir / "index"

    def build(self) -> None:
        """Make its index."""
        facts = self.workspace.root / f"{self._dir.name}-facts.jsonl"
        with facts.open("w", encoding="utf-8") as file:
            for fact in self._corpus.facts[: self._stored]:
                file.write(json.dumps([fact.text, fact.user]) + "\n")
        done = process.run(
            [
                *(sys.executable, "-m", "benchmarks.limit_main", "build"),
                *(str(self.data_dir), str(facts), str(self.workspace.corpus)),
            ],
            timeout=300,
            env=self.workspace.environment(),
        )
        self._frequencies.write_text(done.stdout)

    def argv(self) -> list[str]:
        """How it is started."""
        return [
            *(sys.executable, "-m", "benchmarks.limit_main", "serve"),
            *(str(self.data_dir), str(self.workspace.corpus)),
            *(str(self._frequencies), str(self.port)),
        ]

    def search(self, question: Question, *, filtered: bool) -> bytes:
        """A request of the best :data:`TOP_K` for a user."""
        body = {"query": question.text, "filters": {"user_id": question.user}, "top_k": TOP_K}
        return request("/search", body)

    def add(self, row: int, fact: Fact) -> bytes:
        """Not there."""
        raise NotImplementedError

    def batch(self, start: int, facts: Sequence[Fact]) -> bytes:
        """Not there."""
        raise NotImplementedError

    def found(self, reply: Any) -> list[str]:
        """The texts behind the ids of both lists."""
        return [self._corpus.facts[row - 1].text for ids in reply for row in ids]


class Mem0(_Base):
    """mem0's library with its default local store."""

    name = "mem0"
    slow = True

    def argv(self) -> list[str]:
        """How it is started."""
        return [
            *(str(python_of(self.workspace.cache, MEM0)), "-m", "benchmarks.mem0_main"),
            *(str(self._dir), str(self.workspace.corpus), str(self.port)),
        ]

    def search(self, question: Question, *, filtered: bool) -> bytes:
        """A request of the best :data:`TOP_K` for a user (and a topic)."""
        filters = {"user_id": question.user} | ({"topic": question.topic} if filtered else {})
        return request("/search", {"query": question.text, "filters": filters, "top_k": TOP_K})

    def add(self, row: int, fact: Fact) -> bytes:
        """A request that adds one memory."""
        return request("/memories", {**self._item(fact), "infer": False})

    def batch(self, start: int, facts: Sequence[Fact]) -> bytes:
        """A request that adds many."""
        return request("/memories/batch", {"memories": [self._item(fact) for fact in facts]})

    def _item(self, fact: Fact) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": fact.text}],
            "user_id": fact.user,
            "metadata": metadata(fact),
        }

    def found(self, reply: Any) -> list[str]:
        """The texts in the reply to a search."""
        return [hit["memory"] for hit in reply["results"]]


class Chroma(_Base):
    """Chroma's own server, asked over its REST API with the vectors in the requests."""

    name = "chroma"
    health = "/api/v2/heartbeat"

    def __init__(self, workspace: Workspace, label: str, corpus: Corpus) -> None:
        super().__init__(workspace, label)
        self._corpus = corpus
        self._places = {question: place for place, question in enumerate(corpus.questions)}
        self._collection = ""

    def argv(self) -> list[str]:
        """How it is started."""
        program = python_of(self.workspace.cache, CHROMA).with_name("chroma")
        return [
            *(str(program), "run", "--path", str(self._dir)),
            *("--host", HOST, "--port", str(self.port)),
        ]

    def start(self) -> float:
        """Start it; the seconds until it was healthy."""
        taken = super().start()
        made = exchange(
            self.port,
            request(
                self._path("collections"),
                {
                    "name": "memories",
                    "get_or_create": True,
                    "configuration": {"hnsw": {"space": "cosine"}},
                },
            ),
        )
        self._collection = made["id"]
        return taken

    def _path(self, rest: str) -> str:
        return f"/api/v2/tenants/default_tenant/databases/default_database/{rest}"

    def search(self, question: Question, *, filtered: bool) -> bytes:
        """A request of the best :data:`TOP_K` for a user (and a topic)."""
        where: dict[str, Any] = {"user_id": question.user}
        if filtered:
            where = {"$and": [where, {"topic": question.topic}]}
        vector = self._corpus.vectors[len(self._corpus.facts) + self._places[question]]
        return request(
            self._path(f"collections/{self._collection}/query"),
            {
                "query_embeddings": [_short(vector.tolist())],
                "n_results": TOP_K,
                "where": where,
                "include": ["documents", "metadatas", "distances"],
            },
        )

    def add(self, row: int, fact: Fact) -> bytes:
        """A request that adds one memory."""
        return self.batch(row, [fact])

    def batch(self, start: int, facts: Sequence[Fact]) -> bytes:
        """A request that adds many."""
        vectors = self._corpus.vectors[start : start + len(facts)]
        return request(
            self._path(f"collections/{self._collection}/add"),
            {
                "ids": [f"memory-{start + place}" for place in range(len(facts))],
                "embeddings": [_short(vector) for vector in vectors.tolist()],
                "documents": [fact.text for fact in facts],
                "metadatas": [{"user_id": fact.user, **metadata(fact)} for fact in facts],
            },
        )

    def found(self, reply: Any) -> list[str]:
        """The texts in the reply to a search."""
        texts: list[str] = reply["documents"][0]
        return texts


def metadata(fact: Fact) -> dict[str, Any]:
    """What is stored beside a text."""
    return {"topic": fact.topic, "importance": fact.importance}


def _short(vector: list[float]) -> list[float]:
    """As many digits as a float32 has."""
    return [float(f"{value:.8g}") for value in vector]


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on the disk."""
    return sum(
        path.lstat().st_blocks * 512 for path in directory.rglob("*") if not path.is_symlink()
    )


@dataclass(frozen=True)
class MemoryUse:
    """Of a process, in bytes: what is its own, and all that is in memory."""

    anonymous: int
    resident: int


def memory_use(pid: int) -> MemoryUse:
    """The memory of a process with its children.

    Where the system does not tell anonymous memory apart, both are the resident memory.
    """
    import psutil

    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    anonymous = resident = 0
    for member in family:
        rss = int(member.memory_info().rss)
        resident += rss
        status = Path(f"/proc/{member.pid}/status")
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            anonymous += int(fields["RssAnon"].split()[0]) * 1024
        else:
            anonymous += rss
    return MemoryUse(anonymous, resident)


def remove(server: Server) -> None:
    """Free the disk."""
    shutil.rmtree(server.data_dir, ignore_errors=True)
