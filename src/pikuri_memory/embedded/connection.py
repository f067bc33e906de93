"""One connection, with the bounds that uvicorn leaves to a proxy in front of it.

Whoever reaches the port, without any key, could otherwise send headers without end (each byte was
kept: 80 MB of headers took 80 MB of memory), leave half a request open for ever, or take every
file descriptor of the process.

Of the package it knows nothing: this very file also serves mem0's server, in its container.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OPEN_FILES: Final = 4096
# Not the loop's time, which many connections have in common.
_turns: Final = itertools.count()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol for httptools, bounded.

    Attributes:
        head_bytes: Most bytes of a request line with its headers, of trailers or of what a chunk
            may carry beside its data; a little more if they come at once.
        head_seconds: Time for a request line with its headers, from their first byte.
        most: Connections at once; the next one takes the place of the one idle longest.
        most_queued: Requests of one connection that wait for the reply to the one before.
    """

    head_bytes: ClassVar[int] = 64 * 1024
    head_seconds: ClassVar[float] = 15.0
    most: ClassVar[int] = 800
    most_queued: ClassVar[int] = 100

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unparsed = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = next(_turns)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn counts the time between two requests, and not that before the first one.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if len(self.connections) > self.most:
            _make_room(self.connections, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # The parser's callbacks set it back: it counts what is part of no body.
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self.head_bytes:
            self._refuse(431, "the request line and the headers are too long", "send less in them")
        elif not self._in_head:
            self._stop_timer()
            if self.idle_since is not None and self.timeout_keep_alive_task is None:
                # Empty lines before a request: uvicorn has stopped to count the time.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come as headers too, after what looks at the headers has begun or ended.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unparsed = 0
        if len(self.pipeline) >= self.most_queued:
            # uvicorn reads on after each reply; a waiting request takes 12 times its own size.
            raise OverflowError("too many requests at once")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = next(_turns)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the shape of every other error."""
        self._refuse(400, "this is no HTTP request", "send HTTP/1.1 without an encryption")

    @property
    def idle_since(self) -> int | None:
        """The turn since which nothing is asked, the least being the earliest; None while a
        request is under way."""
        return self._idle_since if self.cycle is None or self.cycle.response_complete else None

    def _unsupported_upgrade_warning(self) -> None:
        # The parser takes everything after such a request for another protocol.
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(
            408,
            f"the headers did not arrive within {self.head_seconds:g} seconds",
            "send the whole request at once",
        )

    def _refuse(self, status: int, detail: str, hint: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if not self.pipeline and (
            cycle is None or cycle.response_complete or not cycle.response_started
        ):
            error = {"detail": detail, "hint": hint, "code": "invalid_request"}
            body = json.dumps(error, separators=(",", ":")).encode()
            phrase = HTTPStatus(status).phrase
            self.transport.write(
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
        # Otherwise a reply is under way, and nothing may come in between.
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def allow_connections() -> None:
    """Let this process have as many open files as :attr:`Connection.most` needs, if it may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _make_room(connections: Iterable[Any], newcomer: Connection) -> None:
    idle = [
        (since, other)
        for other in connections
        if isinstance(other, Connection)
        and other is not newcomer
        and not other.transport.is_closing()
        and (since := other.idle_since) is not None
    ]
    # No two have the same turn.
    (min(idle)[1] if idle else newcomer).transport.close()
