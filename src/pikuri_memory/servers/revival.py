"""Clients of a server that this process shares: a server that died is started again.

Only a refused connection leads here, so nothing of the request has been sent: sending it to the
new server cannot carry it out twice. A server that was stopped on purpose stays stopped.
"""

from __future__ import annotations

import ssl

import httpx

from pikuri_memory.client.aio import AsyncMem0Client
from pikuri_memory.client.protocol import KeySource
from pikuri_memory.client.sync import Mem0Client
from pikuri_memory.servers.lifecycle import ServerLifecycle


class RevivingTransport(httpx.BaseTransport):
    """Sends requests to the shared server wherever it listens now; once more after a revival."""

    def __init__(self, lifecycle: ServerLifecycle, transport: httpx.BaseTransport) -> None:
        self._lifecycle = lifecycle
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it.

        Raises:
            ServerNotRunningError: The server was stopped on purpose.
            ServerError: The server died and could not be started again.
        """
        _aim(request, self._lifecycle)
        try:
            return self._transport.handle_request(request)
        except httpx.ConnectError:
            self._lifecycle.revive()
        _aim(request, self._lifecycle)
        return self._transport.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncRevivingTransport(httpx.AsyncBaseTransport):
    """As :class:`RevivingTransport`; the revival runs in a thread."""

    def __init__(self, lifecycle: ServerLifecycle, transport: httpx.AsyncBaseTransport) -> None:
        self._lifecycle = lifecycle
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it.

        Raises:
            ServerNotRunningError: The server was stopped on purpose.
            ServerError: The server died and could not be started again.
        """
        import anyio.to_thread

        _aim(request, self._lifecycle)
        try:
            return await self._transport.handle_async_request(request)
        except httpx.ConnectError:
            await anyio.to_thread.run_sync(self._lifecycle.revive)
        _aim(request, self._lifecycle)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class SharedServerClient(Mem0Client):
    """A client that owns the connections which revive its server."""

    def close(self) -> None:
        """Close the connections; further calls raise."""
        super().close()
        self._http.close()


class AsyncSharedServerClient(AsyncMem0Client):
    """A client that owns the connections which revive its server."""

    async def close(self) -> None:
        """Close the connections; further calls raise."""
        await super().close()
        await self._http.aclose()


def client(
    lifecycle: ServerLifecycle, endpoint: str, key: KeySource, timeout: float | None
) -> Mem0Client:
    """A client of the server that ``lifecycle`` shares."""
    transport = httpx.HTTPTransport(verify=_no_certificates(), trust_env=False)
    http = httpx.Client(transport=RevivingTransport(lifecycle, transport), trust_env=False)
    return SharedServerClient(endpoint, key, http, timeout=timeout)


def async_client(
    lifecycle: ServerLifecycle, endpoint: str, key: KeySource, timeout: float | None
) -> AsyncMem0Client:
    """An asynchronous client of the server that ``lifecycle`` shares."""
    transport = httpx.AsyncHTTPTransport(verify=_no_certificates(), trust_env=False)
    http = httpx.AsyncClient(
        transport=AsyncRevivingTransport(lifecycle, transport), trust_env=False
    )
    return AsyncSharedServerClient(endpoint, key, http, timeout=timeout)


def _aim(request: httpx.Request, lifecycle: ServerLifecycle) -> None:
    """Point a request at the endpoint of now: a server on a free port comes back on another."""
    info = lifecycle.info
    if info is None:
        return
    now = httpx.URL(info.endpoint)
    if (request.url.host, request.url.port) != (now.host, now.port):
        request.url = request.url.copy_with(host=now.host, port=now.port)
        request.headers["Host"] = now.netloc.decode("ascii")


def _no_certificates() -> ssl.SSLContext:
    """Trusts nobody: the server is spoken to in plain HTTP on the loopback, and reading all
    certificates of the machine takes longer than a search."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
