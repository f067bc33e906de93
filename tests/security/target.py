"""A real server process to attack, and the proof that an attack did nothing."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from pikuri_memory import EmbeddedServer, Mem0Server
from pikuri_memory.discovery import read_server_info
from pikuri_memory.embedded.openapi import OPERATIONS
from pikuri_memory.paths import DataPaths

SECRETS = {
    "alice": ["Alice keeps the spare key under the blue flowerpot.", "Alice drinks green tea."],
    "bob": ["Bob's safe opens with 31-17-42."],
}
WORDS = ("flowerpot", "green tea", "31-17-42")
"""A word of each secret."""
GUEST = "guest"
"""Whose memories an attack with the key may leave."""

JSON = "Content-Type: application/json\r\n"
BODY_LIMIT = 1_000_000


class Target:
    """A running server with secrets, seen from outside.

    Attributes:
        port: Where it listens.
        ports: All ports where it listens.
        endpoint: Its base URL.
        paths: Its data directory.
        pid: Its process.
        owner: An HTTP client with the key.
        stranger: One without.
        own: Whether it is our own server.
        doors: Headers that open it, for the key to be put in.
        public: A path that needs no key.
        readers: Paths that read a body.
        levels: How deep a body may be.
    """

    own = True
    public = "/health"
    levels = 200
    readers: tuple[str, ...] = ("/memories", "/memories/batch", "/search")
    doors: tuple[str, ...] = (
        *("X-API-Key: {}", "x-api-key: {}", "X-API-Key: wrong\r\nX-API-Key: {}"),
        *("Authorization: Bearer {}", "authorization: bearer  {} ", "Authorization: Token {}"),
        "X-API-Key: m0sk_wrong\r\nAuthorization: Bearer {}",
    )

    def __init__(self, server: EmbeddedServer | Mem0Server) -> None:
        self.endpoint = server.endpoint
        self.port = int(server.endpoint.rsplit(":", 1)[1])
        self.ports = {self.port}
        self.paths = DataPaths.at(server.data_dir)
        info = read_server_info(self.paths)
        assert info is not None
        self.pid = info.pid
        self.owner = httpx.Client(base_url=self.endpoint, timeout=60, trust_env=False)
        self.owner.headers["X-API-Key"] = self.key
        self.stranger = httpx.Client(base_url=self.endpoint, timeout=60, trust_env=False)
        for user, texts in SECRETS.items():
            for text in texts:
                sent = {"messages": text, "user_id": user, "metadata": {"secret": True}}
                assert self.owner.post("/memories", json=sent).status_code == 200
        self._planted = self._memories()

    def close(self) -> None:
        """Close the clients."""
        self.owner.close()
        self.stranger.close()

    @property
    def key(self) -> str:
        """The key as it stands in its file."""
        return self.paths.api_key.read_text().strip()

    @property
    def process(self) -> psutil.Process:
        """The server process: whose memory and open files an attack may exhaust."""
        return psutil.Process(self.pid)

    def connect(self, timeout: float = 30) -> socket.socket:
        """A connection of its own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, request: bytes | str, *, timeout: float = 30) -> bytes:
        """All that the server answers to these very bytes until it closes the connection.

        A reset counts as the end: a server may close while it is still being sent to.
        """
        with self.connect(timeout) as connection:
            answer = b""
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request.encode() if isinstance(request, str) else request)
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
            return answer

    def ask(
        self,
        line: str,
        headers: str = "",
        body: bytes = b"",
        *,
        host: str | None = None,
        key: bool = False,
    ) -> tuple[int, bytes]:
        """Status (0 for none) and whole answer to one raw request, after which it closes.

        Args:
            line: Method and target.
            headers: Lines that end with CRLF.
            body: Sent after them; its length is told unless the headers tell of it.
            host: The whole Host line; by default the right one.
            key: Whether the right key comes along.
        """
        told = headers.lower()
        if body and "content-length:" not in told and "transfer-encoding:" not in told:
            headers += f"Content-Length: {len(body)}\r\n"
        head = (
            f"{line} HTTP/1.1\r\n"
            + (f"Host: 127.0.0.1:{self.port}\r\n" if host is None else host)
            + (f"X-API-Key: {self.key}\r\n" if key else "")
            + f"{headers}Connection: close\r\n\r\n"
        )
        answer = self.raw(head.encode("latin-1") + body)
        return status_of(answer), answer

    def await_key(self, key: str) -> None:
        """Return when a new key counts: here at once."""

    def await_shut(self, key: str) -> None:
        """Return when a key that counted does so no more: here at once."""

    def family(self) -> set[psutil.Process]:
        """Its processes: those that serve, and those that look after them."""
        first = {self.process, psutil.Process(self.pid)}
        return first.union(*(each.children(recursive=True) for each in first))

    def listening(self) -> set[tuple[str, int]]:
        """Where anything of it listens or takes datagrams, in the host's own network."""
        pids = {each.pid for each in self.family()}
        return {
            (found.laddr.ip, found.laddr.port)
            for found in psutil.net_connections(kind="inet")
            if found.status == psutil.CONN_LISTEN or found.type.name == "SOCK_DGRAM"
            # What an engine publishes is held by processes of the engine's own.
            if found.laddr and (found.pid in pids or found.laddr.port in self.ports)
        }

    def check(self) -> None:
        """Nobody changed a thing, the server lives, finds, and met nothing unforeseen."""
        assert self.stranger.get("/health").json()["status"] == "ok"
        found = self.owner.post("/search", json={"query": "opening the safe", "user_id": "bob"})
        assert found.status_code == 200
        assert [hit["memory"] for hit in found.json()["results"]] == SECRETS["bob"]
        assert self._memories() == self._planted
        assert psutil.pid_exists(self.pid)
        assert self.failures() == []
        log = "".join(path.read_text() for path in self.paths.logs.iterdir())
        assert not leaks(log)
        assert self.key not in log
        assert "Traceback" not in log
        assert "internal error" not in log

    def operations(self) -> set[tuple[str, str]]:
        """Method and path of each route that it has."""
        return {(row.method, row.template) for row in OPERATIONS}

    def failures(self) -> list[str]:
        """The lines of /metrics that count replies of 5xx, but 503 and 507."""
        text = self.owner.get("/metrics").text
        pattern = r'^pikuri_memory_requests_total\{.*status="5(?!03|07)\d\d".*$'
        return re.findall(pattern, text, re.MULTILINE)

    def refusals(self) -> float:
        """How many requests were answered with 401 or 403 so far."""
        text = self.owner.get("/metrics").text
        pattern = r'^pikuri_memory_requests_total\{.*status="40[13]".*\} (\S+)$'
        return sum(float(count) for count in re.findall(pattern, text, re.MULTILINE))

    def forget_guest(self) -> None:
        """Take away what an attack with the key may have stored."""
        assert self.owner.delete(f"/memories?user_id={GUEST}").status_code == 200

    def _memories(self) -> list[dict[str, Any]]:
        everything: list[dict[str, Any]] = self.owner.get("/memories").json()["results"]
        return [memory for memory in everything if memory["user_id"] != GUEST]


def status_of(answer: bytes) -> int:
    """The status of a raw answer, 0 where there is none."""
    match = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(match[1]) if match else 0


def leaks(text: str | bytes) -> bool:
    """Whether a secret is in it."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return any(word in text for word in WORDS)


def json_of(answer: bytes) -> Any:
    """The JSON body of a raw answer."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


class StackTarget(Target):
    """mem0's own server in the sealed stack: looked at through its own log and routes."""

    own = False
    public = "/openapi.json"
    levels = 100
    readers = ("/memories", "/search")

    def __init__(self, server: Mem0Server) -> None:
        from tests.stack.conftest import container, docker

        self._container = container(server, "mem0")
        super().__init__(server)
        published = docker("port", container(server, "front")).split()[2::3]
        self.ports |= {int(address.rpartition(":")[2]) for address in published}
        assert len(self.ports) == 2  # the store's as well

    @property
    def process(self) -> psutil.Process:
        """The server process: in its container, and not the keeper."""
        from tests.stack.conftest import docker

        return psutil.Process(int(docker("inspect", "-f", "{{.State.Pid}}", self._container)))

    def check(self) -> None:
        """Nobody changed a thing, the server lives, finds, and met nothing unforeseen."""
        from pikuri_memory.stack import health

        assert health.problem(self.endpoint, self.key) is None
        assert self._memories() == self._planted
        assert psutil.pid_exists(self.pid)
        assert self.failures() == []
        log = self._log()
        assert not leaks(log)
        assert self.key not in log
        assert "Traceback" not in log

    def await_key(self, key: str) -> None:
        """Return when a new key counts: its container is started again by the keeper."""
        self._await_status(key, 200, 120)

    def operations(self) -> set[tuple[str, str]]:
        """Method and path of each route that it has: what it says itself."""
        paths = self.stranger.get("/openapi.json").json()["paths"]
        found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        assert {
            ("POST", "/memories"),
            ("POST", "/search"),
            ("DELETE", "/memories/{memory_id}"),
        } <= found
        return found

    def await_shut(self, key: str) -> None:
        """Return when a key that counted does so no more: the keeper looks every few seconds."""
        self._await_status(key, 401, 60)

    def failures(self) -> list[str]:
        """The lines of its log that tell of replies of 5xx, but 503 and 507."""
        return re.findall(r'^.*" 5(?!03|07)\d\d\b.*$', self._log(), re.MULTILINE)

    def refusals(self) -> float:
        """How many requests were answered with 401 or 403 so far."""
        return len(re.findall(r'" 40[13]\b', self._log()))

    def _await_status(self, key: str, status: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError):
                reply = self.stranger.get("/entities", headers={"X-API-Key": key})
                if reply.status_code == status:
                    return
            assert time.monotonic() < end
            time.sleep(0.2)

    def _log(self) -> str:
        from tests.stack.conftest import logs

        return logs(self._container)


@contextmanager
def attacked_stack(directory: Path) -> Iterator[StackTarget]:
    """A target in containers, over a new directory."""
    from tests.contract.subjects import stack_server

    with stack_server(directory) as server, closing(StackTarget(server)) as target:
        yield target


@contextmanager
def attacked(directory: Path, **settings: Any) -> Iterator[Target]:
    """A target over a new data directory."""
    given = {"max_body_bytes": BODY_LIMIT, **settings}
    with (
        EmbeddedServer(port=0, data_dir=directory / "data", **given) as server,
        closing(Target(server)) as target,
    ):
        yield target
