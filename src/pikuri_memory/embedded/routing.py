"""From a path to a handler, and from what it returns to ASGI messages.

A framework would do: this is written out because a search is to cost little more than its query
of the index. Measured in a process, a route that reads one body and writes ten memories: 8 µs as a
bare ASGI function, 9 µs here, 16 µs under Starlette, 42 µs under FastAPI, whose import takes 0.2 s
of the 1.5 s in which a server must be ready.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from pikuri_memory.embedded.guard import ASGIScope, Receive, Send
from pikuri_memory.embedded.replies import JSON_HEADER, error_shape, to_json, unexpected
from pikuri_memory.errors import (
    MemoryNotFoundError,
    MethodNotAllowedError,
    PikuriMemoryError,
)

Header: TypeAlias = tuple[bytes, bytes]
ROUTE: Final = "pikuri_memory.route"
"""Key in the ASGI scope: the template of the route that was found."""


class Request:
    """What a handler is told.

    Attributes:
        method: ``GET``, ``POST`` ...
        body: The whole body.
        parts: The values of the path's ``{names}``, decoded.
    """

    __slots__ = ("_scope", "body", "method", "parts")

    def __init__(self, scope: ASGIScope, body: bytes, parts: dict[str, str]) -> None:
        self._scope = scope
        self.method: str = scope["method"]
        self.body = body
        self.parts = parts

    @property
    def path(self) -> str:
        """The decoded path."""
        path: str = self._scope["path"]
        return path

    def query(self) -> list[tuple[str, str]]:
        """The query's parameters, in their order, repeated ones too."""
        text = self._scope["query_string"].decode("latin-1")
        return parse_qsl(text, keep_blank_values=True) if text else []

    def header(self, name: bytes) -> list[str]:
        """The values of a header, by its lower-case name."""
        return [value.decode("latin-1") for key, value in self._scope["headers"] if key == name]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler returns.

    Attributes:
        body: The bytes, or parts of them that are made while the reply is sent.
        status: HTTP status.
        headers: Without the length.
    """

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    headers: Sequence[Header] = (JSON_HEADER,)


Handler: TypeAlias = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path template: ``{name}`` is one part, ``{name:path}`` the rest."""

    method: str
    path: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class _Place:
    """Everything that is known about one path template."""

    template: str
    pattern: re.Pattern[str] | None
    handlers: dict[str, Handler]


class Router:
    """An ASGI application that calls handlers. It wants bodies whole, as the guard gives them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        places: dict[str, _Place] = {}
        for route in routes:
            place = places.get(route.path)
            if place is None:
                place = places[route.path] = _Place(
                    route.path.replace(":path}", "}"), _pattern(route.path), {}
                )
            place.handlers[route.method] = route.handler
            if route.method == "GET":
                place.handlers["HEAD"] = route.handler
        self._exact = {path: place for path, place in places.items() if place.pattern is None}
        self._patterns = [place for place in places.values() if place.pattern is not None]

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = b""
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            body = (await receive()).get("body", b"")
        reply = await self._answer(scope, body)
        if isinstance(reply.body, bytes):
            headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        else:
            await _stream(reply, reply.body, receive, send)

    async def _answer(self, scope: ASGIScope, body: bytes) -> Reply:
        try:
            handler, parts = self._find(scope)
            return await handler(Request(scope, body, parts))
        except PikuriMemoryError as error:
            return _error(error)
        except Exception as error:
            return _error(unexpected(error))

    def _find(self, scope: ASGIScope) -> tuple[Handler, dict[str, str]]:
        path: str = scope["path"]
        parts: dict[str, str] = {}
        place = self._exact.get(path)
        if place is None:
            for candidate in self._patterns:
                assert candidate.pattern is not None
                match = candidate.pattern.fullmatch(path)
                if match is not None:
                    place, parts = candidate, match.groupdict()
                    break
            else:
                raise MemoryNotFoundError(
                    "there is no route of this path", hint="see /docs for the routes"
                )
        scope[ROUTE] = place.template
        handler = place.handlers.get(scope["method"])
        if handler is None:
            raise MethodNotAllowed(sorted(place.handlers))
        return handler, parts


class MethodNotAllowed(MethodNotAllowedError):
    """Carries what the ``Allow`` header must say."""

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = ", ".join(methods)
        super().__init__("this path knows other methods only", hint=f"use {self.methods}")


def json_reply(value: Any) -> Reply:
    """A reply of one JSON value."""
    return Reply(to_json(value))


def _error(error: PikuriMemoryError) -> Reply:
    status, headers, body = error_shape(error)
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.methods.encode()))
    return Reply(body, status, headers)


def _pattern(path: str) -> re.Pattern[str] | None:
    if "{" not in path:
        return None
    rest = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", path)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", rest), re.DOTALL)


async def _stream(reply: Reply, parts: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    # Without a look at the connection, a list of everything would be read for nobody.
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": [*reply.headers]}
        )
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # a long reply must not keep the others waiting
            if gone.done():
                return
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
