"""A model router of the user's: OpenAI-compatible, on the host's loopback, scripted.

It serves ``/v1`` alone and refuses foreign Host names, as Ollama does. Its vectors say which words
a text has, so that the nearest memory is the one that shares most words with a question.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

DIMENSIONS: Final = 768
LLM: Final = "scripted-chat"
EMBEDDER: Final = "scripted-embedder"
ALIAS: Final = "router-proxy.internal"
"""The name by which the container calls it: what Ollama lets in beside the loopback's."""

_STOP = frozenset("a an and are at for he her his in is it its of on she the their they to".split())
_LOCAL = re.compile(
    r"(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9-]+\.(internal|localhost|local))(:\d+)?"
)

Reply = Callable[[dict[str, Any]], str]


def remembers(*facts: str) -> Reply:
    """An extraction that finds these facts."""
    content = json.dumps({"memory": [{"id": str(i), "text": fact} for i, fact in enumerate(facts)]})
    return lambda _: content


def embedding(text: str) -> list[float]:
    """A unit vector in which each word has a few places of its own."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        if word in _STOP:
            continue
        digest = hashlib.sha256(word.rstrip("s").encode()).digest()
        for start in range(0, 16, 4):
            place = int.from_bytes(digest[start : start + 4], "big")
            vector[place % DIMENSIONS] += 1.0 if place >> 31 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    if length == 1.0 and not any(vector):
        vector[0] = 1.0
    return [value / length for value in vector]


@dataclass
class Script:
    """What the router does, and what it was asked.

    Attributes:
        chat: Makes the content of a chat answer from the request.
        embed: Makes the vector of a text.
        chat_status: Of chat answers; anything but 200 is an error.
        embedding_status: Of answers to embeddings, likewise.
        refused_texts: Texts with one of these words are not embedded.
        requests: Path and body of everything that was asked.
        hosts: The Host header of each request.
    """

    chat: Reply = field(default_factory=lambda: remembers())
    embed: Callable[[str], list[float]] = embedding
    chat_status: int = 200
    embedding_status: int = 200
    refused_texts: tuple[str, ...] = ()
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests."""
        return [body for path, body in self.requests if path.endswith("/chat/completions")]


class Router:
    """A running router.

    Attributes:
        script: May be changed at any time.
        port: Stays the same over :meth:`stop` and :meth:`start`.
    """

    def __init__(self, port: int = 0) -> None:
        self.script = Script()
        self.port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """As a user would give it, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; idempotent."""
        if self._server is not None:
            return
        router = self

        class Handler(_Handler):
            script = router.script

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more; idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None


@contextmanager
def running(port: int = 0) -> Iterator[Router]:
    """A router for a while."""
    router = Router(port)
    router.start()
    try:
        yield router
    finally:
        router.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that are open: a router that has stopped has none."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    script: Script

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in (LLM, EMBEDDER)]
            self._send(200, {"object": "list", "data": models})
        else:
            self._send(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if self._refused():
            return
        self.script.requests.append((self.path, body))
        if self.path == "/v1/embeddings":
            self._embed(body)
        elif self.path == "/v1/chat/completions":
            self._chat(body)
        else:
            self._send(404, {"error": {"message": "not found"}})

    def _embed(self, body: dict[str, Any]) -> None:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        status = self.script.embedding_status
        if any(word in text for word in self.script.refused_texts for text in texts):
            status = 400
        if status != 200 or "dimensions" in body:
            self._send(status if status != 200 else 400, {"error": {"message": "no embedding"}})
            return
        data = [
            {"object": "embedding", "index": place, "embedding": self.script.embed(text)}
            for place, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        self._send(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _chat(self, body: dict[str, Any]) -> None:
        if self.script.chat_status != 200:
            self._send(self.script.chat_status, {"error": {"message": "no answer"}})
            return
        message = {"role": "assistant", "content": self.script.chat(body)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        shown = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._send(200, {**shown, "choices": [choice], "usage": usage})

    def _refused(self) -> bool:
        host = self.headers.get("Host") or ""
        self.script.hosts.append(host)
        if _LOCAL.fullmatch(host):
            return False
        self._send(403, {"error": {"message": "forbidden host"}})
        return True

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
