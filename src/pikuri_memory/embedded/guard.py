"""Who may come in: one ASGI layer that looks at every request before anything else does.

A memory server on the loopback is reachable by every web page that the user has open and by every
name that resolves to 127.0.0.1. So, in this order:

* ``Host`` must be a loopback name or address: a rebound DNS name is refused.
* ``Origin`` and ``Sec-Fetch-Site``, which browsers add and pages cannot forge, must be the
  server's own: no other page, sandboxed or not, gets an answer it could use. There are no CORS
  headers at all.
* The key, compared in constant time, on everything but :data:`PUBLIC`. The paths are compared
  as they are, so there is nothing to normalise and no way around.
* A body must be JSON by its content type (a page can send ``text/plain`` without asking), within
  the limit of size, and there within a deadline.

Refused requests are answered before their body is read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, TypeAlias

from pikuri_memory.embedded.replies import error_shape
from pikuri_memory.errors import (
    AccessError,
    AuthenticationError,
    InvalidRequestError,
    PikuriMemoryError,
    SlowBodyError,
    TooLargeError,
    UnsupportedMediaTypeError,
)

ASGIScope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

PUBLIC: Final = frozenset({"/health", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json"})
"""Paths that hold no data: ``GET`` and ``HEAD`` of them need no key."""

_BODY_DEADLINE: Final = 30.0
_LINGER: Final = 2.0
_HOST = re.compile(
    r"(?:(?P<name>localhost)|(?P<v4>[0-9.]+)|\[(?P<v6>[0-9a-f:]+)\])(?::[0-9]{1,5})?"
)
_JSON_TYPE = re.compile(
    rb"application/(?:json|[a-z0-9!#$&^_.-]+\+json)\s*(?:;\s*charset\s*=\s*\"?utf-?8\"?\s*)?;?\s*",
    re.IGNORECASE,
)
_json_type = lru_cache(maxsize=64)(_JSON_TYPE.fullmatch)
_NO_SITE: Final = frozenset({b"same-origin", b"none"})


class Guard:
    """Lets through what may come in; answers everything else by itself.

    Args:
        app: The ASGI application behind it. It gets each body whole, in one message.
        api_key: Gives the current key; called for each request that needs one.
        max_body_bytes: Largest body.
        body_deadline: Seconds until a body must have arrived.
        linger: Seconds for which what a refused caller still sends is thrown away, so that it
            gets to read the refusal instead of a connection reset.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: Callable[[], str],
        max_body_bytes: int,
        body_deadline: float = _BODY_DEADLINE,
        linger: float = _LINGER,
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._limit = max_body_bytes
        self._deadline = body_deadline
        self._linger = linger

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection scope of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A web socket knows no same-origin rule, and we have no use for one.
            await send({"type": "websocket.close", "code": 1008})
            return
        unread = True
        try:
            unread = self._admit(scope)
            if unread:
                body = await self._read(receive)
                if body is None:
                    return
                receive = _Replay(body, receive)
        except PikuriMemoryError as error:
            await self._refuse(error, scope, receive, send, unread=unread)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: ASGIScope) -> bool:
        """Whether a body follows.

        Raises:
            PikuriMemoryError: The request may not come in.
        """
        hosts: list[bytes] = []
        origins: list[bytes] = []
        keys: list[bytes] = []
        types: list[bytes] = []
        sites: list[bytes] = []
        length = 0
        body = encoded = upgrade = False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"x-api-key":
                keys.append(value)
            elif name == b"authorization":
                scheme, _, credentials = value.partition(b" ")
                if scheme.lower() in (b"bearer", b"token"):
                    keys.append(credentials.strip())
            elif name == b"content-type":
                types.append(value)
            elif name == b"content-length":
                length = _length(value)
                body = body or value != b"0"
            elif name == b"transfer-encoding":
                body = True
            elif name == b"content-encoding":
                encoded = value.strip().lower() != b"identity"
            elif name == b"upgrade":
                upgrade = True
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site":
                sites.append(value)
        if len(hosts) != 1 or not _is_loopback(hosts[0]):
            raise AccessError(
                "the Host header is missing, repeated or no loopback name",
                hint="call the server as http://127.0.0.1:PORT or http://localhost:PORT",
            )
        if origins and any(origin.lower() != b"http://" + hosts[0].lower() for origin in origins):
            raise AccessError(
                "the request comes from a web page of another origin",
                hint="pages of other origins may not use this server; call it from a program",
            )
        if sites and not _NO_SITE.issuperset(sites):
            raise AccessError(
                "the request was made by a web page of another site",
                hint="open the address by typing it, or call the server from a program",
            )
        method = scope["method"]
        open_to_all = method in ("GET", "HEAD") and _is_public(scope)
        if not open_to_all:
            self._check_key(keys)
        if body or (types and method not in ("GET", "HEAD")):
            if len(types) != 1 or _json_type(types[0]) is None or encoded:
                raise UnsupportedMediaTypeError(
                    "a request body must be plain JSON in UTF-8 and say so",
                    hint="send the header Content-Type: application/json",
                )
            if length > self._limit:
                raise self._too_large()
            if upgrade:
                # The parser takes what follows for the other protocol: the body would be empty.
                raise InvalidRequestError(
                    "a request with a body asks for another protocol than HTTP/1.1",
                    hint="send no Upgrade header: switch HTTP/2 off in the calling program",
                )
        return body

    def _check_key(self, keys: list[bytes]) -> None:
        expected = self._api_key().encode()
        if expected and any(hmac.compare_digest(key, expected) for key in keys):
            return
        raise AuthenticationError(
            "the API key is wrong" if keys else "no API key came with the request",
            hint="send the header X-API-Key with the content of the file that"
            " `pikuri-memory status` names as api_key_file",
        )

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None if the caller went away."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._deadline):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    if size > self._limit:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join((*parts, part)) if parts else part
                    parts.append(part)
        except TimeoutError:
            raise SlowBodyError(
                f"the request body did not arrive within {self._deadline:g} seconds",
                hint="send the whole body at once, or less of it",
            ) from None

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the request body is larger than {self._limit} bytes",
            hint="send less at once, or start the server with a larger --max-body-bytes",
        )

    async def _refuse(
        self,
        error: PikuriMemoryError,
        scope: ASGIScope,
        receive: Receive,
        send: Send,
        *,
        unread: bool,
    ) -> None:
        status, headers, body = error_shape(error)
        headers.append((b"content-length", b"%d" % len(body)))
        unread = unread and _announces_body(scope)
        if unread:
            # What is still on its way is no request: nothing may follow on this connection.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if unread:
            # A connection that is closed with data unread is reset, and the reset can destroy the
            # reply in the caller's buffer before it is read.
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(self._linger):
                    while (await receive()).get("more_body", False):
                        pass
        await send({"type": "http.response.body", "body": body})


class _Replay:
    """The body once, then whatever the connection says."""

    __slots__ = ("_body", "_receive")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


def _length(value: bytes) -> int:
    if not value.isdigit():
        return 0  # the count while reading decides
    return int(value) if len(value) < 19 else 2**63


@lru_cache(maxsize=64)
def _is_loopback(host: bytes) -> bool:
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    if match is None:
        return False
    if match["name"]:
        return True
    try:
        return ipaddress.ip_address(match["v4"] or match["v6"]).is_loopback
    except ValueError:
        return False


def _is_public(scope: ASGIScope) -> bool:
    # Both spellings: the one that was sent and the one that will be routed.
    path = scope["path"]
    return path in PUBLIC and scope.get("raw_path", path.encode()) == path.encode()


def _announces_body(scope: ASGIScope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
