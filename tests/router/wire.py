"""How the scripted endpoint hears requests and sends replies, in all the ways they are played."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.router.misbehaviours import Reply

if TYPE_CHECKING:
    from tests.router.scripted import ScriptedRouter


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; ``kind`` says what it was for."""

    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def model(self) -> str | None:
        """The model that it asked for."""
        return self.body.get("model") if isinstance(self.body, dict) else None


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512  # many clients come at once

    def __init__(self, address: Any, router: ScriptedRouter) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, type("Handler", (_Handler,), {"router": router}))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that are open."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up, or a handshake that failed


class TcpServer(_Server):
    """Listens on a port of 127.0.0.1."""

    allow_reuse_address = True

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


class UnixServer(_Server):
    """Listens on a socket in the file system."""

    address_family = socket.AF_UNIX


class _Handler(BaseHTTPRequestHandler):
    router: ScriptedRouter
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # small writes of head and body would wait for each other

    def setup(self) -> None:
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            self._send(Reply.error(400, "no JSON", "invalid_request_error"))
            return
        seen = Seen(_kind(self.command, self.path), self.command, self.path, headers, body)
        self.router.enter(seen.kind)
        left = False
        try:
            reply = self.router.reply(seen)
            if seen.kind == "chat":
                self.router.gate.wait()
            if reply.delay > 0:
                self.router.released.wait(reply.delay)
            self.router.leave(seen.kind)
            left = True
            self._send(reply)
        finally:
            if not left:
                self.router.leave(seen.kind)

    do_GET = do_POST = _serve

    def _send(self, reply: Reply) -> None:
        if reply.reset_after == 0:
            self._reset()
            return
        length = {"Content-Length": str(len(reply.body))}
        headers = {"Content-Type": "application/json", **length, **reply.headers}
        head = f"HTTP/1.1 {reply.status} Scripted\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self.wfile.write(head.encode("latin-1"))
        if reply.reset_after is not None:
            self.wfile.write(reply.body[: reply.reset_after])
            self.wfile.flush()
            self._reset()
        elif reply.stop_after is not None:
            self.wfile.write(reply.body[: reply.stop_after])
            self.wfile.flush()
            self.router.released.wait()
            self.close_connection = True
        elif reply.drip > 0:
            for number in range(len(reply.body)):
                self.wfile.write(reply.body[number : number + 1])
                self.wfile.flush()
                if self.router.released.wait(reply.drip):
                    break
        else:
            self.wfile.write(reply.body)
            self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()


def _kind(method: str, path: str) -> str:
    bare = path.partition("?")[0].rstrip("/")
    for end, kind in (
        ("/chat/completions", "chat"),
        ("/embeddings", "embedding"),
        ("/v1/models", "list"),
    ):
        if bare.endswith(end):
            return kind
    return "list" if bare == "/models" else "native"
