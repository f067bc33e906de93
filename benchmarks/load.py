"""The load generator: a process of its own that does as little as it can.

Reads a specification (JSON) from standard input and prints a result (JSON). Requests are complete
bytes in a file, each after its length; every client has one kept connection and sends the next
request when the reply to its last one is whole. The standard library only.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
"""Seconds that a reply may take."""


def write_requests(path: Path, requests: Sequence[bytes]) -> None:
    """Store requests for :func:`read_requests`."""
    with path.open("wb") as file:
        for request in requests:
            file.write(len(request).to_bytes(4, "little"))
            file.write(request)


def read_requests(path: Path) -> list[bytes]:
    """The requests of a file."""
    data = path.read_bytes()
    requests: list[bytes] = []
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        requests.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    return requests


def reply_length(head: bytes) -> int | None:
    """The length of a body by its head, None where it comes in chunks."""
    lower = head.lower()
    start = lower.find(b"content-length:")
    if start >= 0:
        return int(lower[start + 15 : lower.find(b"\r\n", start)])
    if b"transfer-encoding: chunked" in lower:
        return None
    return 0


class Client:
    """One connection."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.wanted: int | None = 0
        self.sent_at = 0.0
        self.status = b""

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.received = b""
        self.wanted = 0
        self.status = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what is there; whether the reply is whole.

        Raises:
            ConnectionError: The server closed the connection.
        """
        part = self.socket.recv(262_144)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received = self.received + part if self.received else part
        if not self.status:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self.received[: end + 2]
            self.status = head[9:12]
            length = reply_length(head)
            self.wanted = None if length is None else end + 4 + length
        if self.wanted is None:
            return self.received.endswith(b"0\r\n\r\n")
        return len(self.received) >= self.wanted


@dataclass
class Measured:
    """Latencies in seconds, by order of completion."""

    latencies: list[float]
    failed: int
    seconds: float


def drive(clients: list[Client], requests: Iterator[bytes], until: float) -> Measured:
    """Keep every client busy until a time or the end of the requests."""
    selector = selectors.DefaultSelector()
    latencies: list[float] = []
    failed = 0
    busy = 0
    started = time.perf_counter()
    last = started
    for client in clients:
        request = next(requests, None)
        if request is not None:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(request)
            busy += 1
    while busy:
        ready = selector.select(TIMEOUT)
        if not ready:
            raise TimeoutError(f"no reply within {TIMEOUT:g} s")
        for key, _ in ready:
            client = key.data
            if not client.receive():
                continue
            last = time.perf_counter()
            if client.status.startswith(b"2"):
                latencies.append(last - client.sent_at)
            else:
                failed += 1
            request = next(requests, None) if last < until else None
            if request is None:
                selector.unregister(client.socket)
                busy -= 1
            else:
                client.send(request)
    selector.close()
    return Measured(latencies, failed, last - started)


def drive_one(client: Client, requests: Iterator[bytes], until: float) -> Measured:
    """As :func:`drive` for a single client, without a selector between reply and reader."""
    latencies: list[float] = []
    failed = 0
    started = last = time.perf_counter()
    for request in requests:
        client.send(request)
        while not client.receive():
            pass
        last = time.perf_counter()
        if client.status.startswith(b"2"):
            latencies.append(last - client.sent_at)
        else:
            failed += 1
        if last >= until:
            break
    return Measured(latencies, failed, last - started)


def run(specification: dict[str, Any]) -> dict[str, Any]:
    """Warm up, measure, and tell.

    The keys of a specification: ``host``, ``port``, ``requests`` (a file), ``start`` (the first
    one to send), ``count`` (how many at most), ``repeat`` (whether to begin again at the end),
    ``clients``, ``seconds``, ``warm_up`` (requests that do not count).
    """
    stored = read_requests(Path(specification["requests"]))
    start = specification["start"] % len(stored)
    order = stored[start:] + stored[:start]

    def unending() -> Iterator[bytes]:
        while True:
            yield from order

    source = unending() if specification["repeat"] else iter(order[: specification["count"]])
    clients = [
        Client(specification["host"], specification["port"])
        for _ in range(specification["clients"])
    ]
    gc.disable()
    try:
        for number in range(specification["warm_up"]):
            client = clients[number % len(clients)]
            client.send(next(source))
            while not client.receive():
                pass
        used = time.process_time()
        until = time.perf_counter() + specification["seconds"]
        if len(clients) == 1:
            measured = drive_one(clients[0], source, until)
        else:
            measured = drive(clients, source, until)
        used = time.process_time() - used
    finally:
        for client in clients:
            client.socket.close()
    ordered = sorted(measured.latencies)

    def quantile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    return {
        "count": len(ordered),
        "failed": measured.failed,
        "seconds": measured.seconds,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "per_second": len(ordered) / measured.seconds if measured.seconds else 0.0,
        "generator_cpu": used / measured.seconds if measured.seconds else 0.0,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
