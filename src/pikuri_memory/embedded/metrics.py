"""Counts, times and logs requests: by route, never by user, and never what was said."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pikuri_memory.embedded.guard import ASGIApp, ASGIScope, Message, Receive, Send
from pikuri_memory.embedded.replies import error_shape, unexpected
from pikuri_memory.embedded.routing import ROUTE

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_INDEX_STATES: Final = ("ready", "rebuilding", "absent")

logger = logging.getLogger(__name__)


class _State(Collector):
    """Asks the engine when Prometheus asks us."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges of this moment."""
        status = self._status()
        yield GaugeMetricFamily(
            "pikuri_memory_memories", "Memories in the record", value=status["memories"]
        )
        index = GaugeMetricFamily(
            "pikuri_memory_index_state", "1 for the state the index is in", labels=["state"]
        )
        current = str(status["index"].get("state", ""))
        for state in _INDEX_STATES:
            index.add_metric([state], float(state == current))
        yield index
        for name, text in (
            ("read_only", "Whether writes are refused because the disk is nearly full"),
            ("purge_pending", "Whether deleted text is still on the disk"),
        ):
            yield GaugeMetricFamily(f"pikuri_memory_{name}", text, value=float(status[name]))
        yield GaugeMetricFamily(
            "pikuri_memory_embedder_available",
            "Whether vectors can be had; searches go by words where not",
            value=float(status["embedder"].get("state", "ok") == "ok"),
        )
        extraction = status.get("extraction")
        if extraction is not None:
            turns = GaugeMetricFamily(
                "pikuri_memory_extractions",
                "Turns that wait, are worked on, are done and have failed since the start",
                labels=["state"],
            )
            for state in ("waiting", "running", "done", "failed"):
                turns.add_metric([state], float(extraction[state]))
            yield turns


class Metrics:
    """The figures of one application.

    Args:
        status: The engine's status.
        version: The server's version.
    """

    def __init__(self, status: Callable[[], dict[str, Any]], version: str) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pikuri_memory_requests",
            "Requests by route, method and status",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pikuri_memory_request_seconds",
            "Time until the last byte was handed to the network",
            ["route", "method"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        Gauge(
            "pikuri_memory_info", "1, with the version", ["version"], registry=self._registry
        ).labels(version).set(1)
        self._registry.register(_State(status))
        ProcessCollector(registry=self._registry)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is a template, ``status`` 0 where none was sent."""
        children = self._children.get((route, method, status))
        if children is None:
            children = self._children[route, method, status] = (
                self._requests.labels(route, method, str(status)),
                self._seconds.labels(route, method),
            )
        children[0].inc()
        children[1].observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class Monitor:
    """The outermost ASGI layer: measures and logs, adds the headers that every reply has, and is
    the last to catch what nobody caught.

    Args:
        app: The ASGI application behind it.
        metrics: Where the figures go.
        version: The server's version.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, version: str) -> None:
        self._app = app
        self._metrics = metrics
        self._headers = (
            (b"pikuri-memory-version", version.encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection scope of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        start = time.perf_counter()
        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            told = unexpected(error)
            if status == 0:
                code, headers, body = error_shape(told)
                headers.append((b"content-length", b"%d" % len(body)))
                await watch({"type": "http.response.start", "status": code, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            # Otherwise a reply is under way; left unfinished, the server cuts the connection,
            # and no caller takes the part for the whole.
        finally:
            seconds = time.perf_counter() - start
            template = scope.get(ROUTE, "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(template, method, status, seconds)
            level = logging.DEBUG if 0 < status < 400 else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "%s %s %d %.1f ms", method, template, status, seconds * 1000)
