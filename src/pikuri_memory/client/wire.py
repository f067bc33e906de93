"""What both senders share about httpx: how it is set up, and what its errors mean."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from pikuri_memory.client.protocol import Failure, Outgoing, Reply, Session

FAILURES = (httpx.RequestError, httpx.InvalidURL)


def client_options(session: Session) -> dict[str, Any]:
    """Arguments for an ``httpx.Client`` or ``httpx.AsyncClient`` of our own.

    No variable of the environment (proxies, certificates) can redirect memories anywhere.
    """
    options: dict[str, Any] = {"trust_env": False, "follow_redirects": False}
    if session.endpoint.startswith("http:"):
        # Nothing is encrypted and redirects are not followed: an empty context, which trusts no
        # one, saves reading all certificates of the machine.
        options["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return options


def request_options(outgoing: Outgoing) -> dict[str, Any]:
    """Arguments for ``request`` of either kind of client."""
    return {
        "method": outgoing.method,
        "url": outgoing.url,
        "headers": dict(outgoing.headers),
        "content": outgoing.content,
        "timeout": httpx.Timeout(outgoing.read_seconds, connect=outgoing.connect_seconds),
        "follow_redirects": False,  # a client that was handed in may have been set to follow them
    }


def reply_of(response: httpx.Response) -> Reply:
    """The reply as a value of the protocol."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, response.content)


def failure_of(error: Exception) -> Failure:
    """The failure as a value of the protocol, without anything of the request."""
    match error:
        case httpx.ConnectTimeout():
            return Failure("connect", "no connection in time")
        case httpx.ConnectError() | httpx.ProxyError():
            # Nothing has been sent yet: this is the text of the system or of the TLS library.
            return Failure("connect", str(error) or "no connection")
        case httpx.PoolTimeout():
            return Failure("connect", "all connections are in use")
        case httpx.TimeoutException():
            return Failure("lost", "no reply in time")
        case httpx.RemoteProtocolError() | httpx.NetworkError():
            return Failure("lost", "the connection was lost")
        case httpx.DecodingError():
            return Failure("garbled", "its encoding is damaged")
        case _:
            return Failure("unusable", f"httpx refuses it ({type(error).__name__})")
