"""The container stack: how long it takes to come up, what the relay costs, what patches cost.

It needs a container engine with the base images (``scripts/docker_engine.sh``); without one nothing
of it is measured. The source of mem0's server is that of the tests: what stands in for its
repository, or a mirror of it (``PIKURI_MEM0_REPO``).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import servers
from benchmarks.extraction import drive
from benchmarks.load import write_requests
from benchmarks.servers import BenchmarkError, Workspace
from pikuri_memory import process

CLIENTS: Final = 8
AT_ONCE: Final = 200
STREAMED: Final = 128 * 2**20
REMEMBERED: Final = 200
LEFT_OUT: Final = (
    *("06-guard", "07-requests", "12-errors"),
    *("04-whole-scope", "13-filters", "14-expiry"),
)
"""Patches that every request passes, and those that change what a list or a search does. Without
the first two the server starts nowhere here: they take the place of pgvector and Postgres."""

OWN_ENGINE: Final = "pikuri-test-docker"
"""In the address of the engine that ``scripts/docker_engine.sh`` starts."""

ASK: Final = """
import http.client, json, statistics, sys, threading, time
host, port, streamed, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def ask(connection, path="/v1/models"):
    connection.request("GET", path)
    reply = connection.getresponse()
    assert reply.status == 200, reply.status
    return reply
kept, new = [], []
connection = http.client.HTTPConnection(host, port)
for number in range(1020):
    begun = time.perf_counter()
    ask(connection).read()
    kept.append(time.perf_counter() - begun)
connection.close()
for number in range(220):
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(host, port)
    ask(connection).read()
    new.append(time.perf_counter() - begun)
    connection.close()
connection = http.client.HTTPConnection(host, port)
begun = time.perf_counter()
reply = ask(connection, "/stream")
size = 0
while part := reply.read(1 << 20):
    size += len(part)
rate = size / (time.perf_counter() - begun)
assert size == streamed, size
connection.close()
answered = []
gate = threading.Barrier(at_once)
def one():
    gate.wait()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    ask(connection, "/slow").read()
    answered.append(time.perf_counter())
    connection.close()
threads = [threading.Thread(target=one) for _ in range(at_once)]
for thread in threads:
    thread.start()
begun = time.perf_counter()
for thread in threads:
    thread.join()
print(json.dumps({
    "kept": statistics.median(kept[20:]), "new": statistics.median(new[20:]), "rate": rate,
    "answered": len(answered), "all": max(answered) - begun,
}))
"""
"""Asks a server from wherever it is run, with the standard library alone: HOST PORT BYTES AT_ONCE.
``/slow`` takes 0.5 s, so that all are under way at once."""

BARE: Final = f"""
import asyncio, sys, uvicorn
async def app(scope, receive, send):
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(0.5)
    await send({{"type": "http.response.start", "status": 200,
                 "headers": [(b"content-type", b"application/json")]}})
    if path == "/stream":
        part = b"x" * 65536
        for _ in range({STREAMED} // len(part)):
            await send({{"type": "http.response.body", "body": part, "more_body": True}})
        await send({{"type": "http.response.body", "body": b""}})
    else:
        await send({{"type": "http.response.body", "body": b'{{"object":"list","data":[]}}'}})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False,
            lifespan="off", ws="none", backlog=1024)
"""
"""What is asked: the port is the argument."""


@dataclass(frozen=True)
class Way:
    """How a server is reached. Seconds and bytes a second.

    Attributes:
        kept: Median latency on a kept connection.
        new: Median latency with a new connection for each request.
        rate: Throughput of one long reply.
        answered: Of :data:`AT_ONCE` requests at the same time.
        all: Until the last of them was answered; each takes 0.5 s.
    """

    kept: float
    new: float
    rate: float
    answered: int
    all: float


@dataclass
class Stack:
    """Of the container stack.

    Attributes:
        cold: Seconds of a start without checkout and image (base images are there).
        warm: Of a start with both.
        down: Of a stop.
        direct: To the bare server by itself.
        relayed: From inside mem0's container, through sidecar, socket and socat.
        per_second: Requests a second by kind and by the patch that is left out (``""``: none).
    """

    cold: float
    warm: float
    down: float
    direct: Way
    relayed: Way
    per_second: dict[str, dict[str, float]] = field(default_factory=dict)


def available() -> str | None:
    """Why it cannot be measured here; None where it can."""
    from pikuri_memory.errors import StackError
    from pikuri_memory.stack import engine

    try:
        engine.look()
    except StackError as error:
        return error.message
    return None


def measure(workspace: Workspace, *, rounds: int, seconds: float) -> Stack:
    """Measure all of it.

    Args:
        workspace: Where files go.
        rounds: How often starts and throughputs are measured.
        seconds: Of one measurement of throughput.
    """
    from tests.stack import conftest, images

    images.ensure()
    if path := conftest.bundle():
        os.environ[conftest.BUNDLE] = path
    upstream = conftest.source(workspace.root / "upstream")
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pk-", dir="/tmp") as home:
        stack = _life(workspace, upstream, Path(home), rounds)
    stack.per_second = _throughput(workspace, upstream, rounds, seconds)
    return stack


def _life(workspace: Workspace, upstream: Any, home: Path, rounds: int) -> Stack:
    from tests.stack import conftest

    from pikuri_memory import Mem0Server

    warm: list[float] = []
    down: list[float] = []
    with _bare(workspace) as port:
        server = Mem0Server(
            router_url=f"http://127.0.0.1:{port}",
            llm_model="any",
            embedder_model="any",
            port=0,
            qdrant_port=0,
            cache_dir=home,
            mem0_repo_url=upstream.url,
            mem0_ref=upstream.ref,
            patch_dir=Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF,
        )
        _forget_image(server)
        try:
            cold = _timed(server.start)
            container = conftest.container(server, "mem0")
            relayed = _asked(["docker", "exec", "-i", container, "python"], "router-proxy", 8080)
            direct = _asked([sys.executable], "127.0.0.1", port)
            down.append(_timed(server.close))
            for _ in range(rounds):
                warm.append(_timed(server.start))
                down.append(_timed(server.close))
        finally:
            server.close()
            conftest.clean(server.data_dir)
    return Stack(cold, statistics.median(warm), statistics.median(down), direct, relayed)


def _forget_image(server: Any) -> None:
    """Images of earlier runs, and what their builds have kept."""
    found = process.run(
        ["docker", "images", "--quiet", "pikuri-internal-mem0"], timeout=60
    ).stdout.split()
    if found:
        process.run(["docker", "image", "rm", "--force", *found], timeout=120, check=False)
    # What the builds of somebody's own engine have kept is not ours to remove.
    if OWN_ENGINE in os.environ.get("DOCKER_HOST", ""):
        process.run(["docker", "builder", "prune", "--all", "--force"], timeout=300)


def _timed(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _asked(python: list[str], host: str, port: int) -> Way:
    done = process.run(
        [*python, "-", host, str(port), str(STREAMED), str(AT_ONCE)], timeout=300, input=ASK
    )
    return Way(**json.loads(done.stdout))


@contextmanager
def _bare(workspace: Workspace) -> Iterator[int]:
    port = servers.free_port()
    running = process.spawn_child(
        [sys.executable, "-c", BARE, str(port)],
        output=workspace.root / "bare.log",
        env=workspace.environment(),
    )
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                servers.fetch(port, "/v1/models")
                break
            if running.poll() is not None or time.monotonic() > end:
                raise BenchmarkError("the bare server did not start")
            time.sleep(0.05)
        yield port
    finally:
        running.terminate(2.0)


def _throughput(
    workspace: Workspace, upstream: Any, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    from tests.stack import conftest, patched
    from tests.stack.ollama import ollama

    from pikuri_memory import Mem0Server

    patches = sorted((Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF).glob("*.patch"))
    tag = "pikuri-test-mem0:measured"
    seen: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as running:
        models = running.enter_context(ollama())
        targets: dict[str, Any] = {}
        for left_out in ("", *LEFT_OUT):
            source = patched.checkout(
                workspace.root / f"source-{left_out}",
                upstream.url,
                upstream.ref,
                [patch for patch in patches if patch.stem != left_out],
            )
            if not left_out:
                patched.build(tag, source, conftest.bundle())
            served = targets[left_out] = running.enter_context(patched.served(tag, source, models))
            for number in range(REMEMBERED):
                text = f"Ada put number {number} on shelf {number % 7}"
                if served.add(text, f"user-{number % 10}", infer=False).status_code != 200:
                    raise BenchmarkError(f"mem0 without {left_out or 'nothing'} stores nothing")
        for number in range(rounds):
            order = list(targets.items())
            for left_out, served in order[number % len(order) :] + order[: number % len(order)]:
                for kind, requests in _requests(served.key).items():
                    path = workspace.root / "stack.requests"
                    write_requests(path, requests)
                    port = int(served.endpoint.rpartition(":")[2])
                    result = drive(workspace, port, path, CLIENTS, seconds, warm_up=10)
                    seen.setdefault(kind, {}).setdefault(left_out, []).append(result["per_second"])
    return {
        kind: {left_out: statistics.median(values) for left_out, values in group.items()}
        for kind, group in seen.items()
    }


def _requests(key: str) -> dict[str, list[bytes]]:
    headers = {"X-API-Key": key}
    searches = []
    for number in range(50):
        asked = {
            "query": f"where is number {number}?",
            "filters": {"user_id": f"user-{number % 10}"},
        }
        searches.append(servers.request("/search", asked, headers))
    get = ["GET /memories?user_id=user-1 HTTP/1.1", f"Host: {servers.HOST}", f"X-API-Key: {key}"]
    return {"list": ["\r\n".join([*get, "", ""]).encode()], "search": searches}
