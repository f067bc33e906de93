"""Where the user's models answer: an address, checked once, without anything secret in it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from pikuri_memory.errors import SettingError

_HINT: Final = (
    "give a URL such as http://127.0.0.1:8080, https://models.example:8443/v1 or"
    " unix:/run/user/1000/llama.sock"
)
_PATH: Final = re.compile(r"[A-Za-z0-9/._~%+@=,-]*")
_HOST: Final = re.compile(
    r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
)
"""A name, whose labels Python's resolver takes, or an IPv6 address without its brackets."""

_LONGEST_NAME: Final = 253
_SOCKET_LIMIT: Final = 107
"""Bytes of a socket's path that Linux takes (``sun_path`` has 108 with its last NUL)."""


@dataclass(frozen=True)
class Endpoint:
    """An address of a router: ``http://host:port``, ``https://...`` or ``unix:/path``.

    Attributes:
        url: Its one spelling: no slash at the end, no ``/v1``, no user, query or fragment.
        scheme: How it is reached.
        host: Name or address, without brackets; ``localhost`` for a socket.
        port: TCP port; None for a socket and for the scheme's own port.
        socket: Path of a unix socket; None for TCP.
        prefix: Path before ``/v1``, empty or with a slash in front.
        versioned: Whether the given address ended with ``/v1``: the routes are there then.
    """

    url: str
    scheme: Literal["http", "https", "unix"]
    host: str
    port: int | None
    socket: str | None
    prefix: str
    versioned: bool

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint of a URL, with or without ``/v1``; ``unix:/socket:/prefix`` has a path.

        Raises:
            SettingError: It is none of the three kinds, or holds a user, a query or a fragment.
        """
        text = text.strip()
        if text.startswith("unix:"):
            return cls._of_socket(text)
        return cls._of_web(text)

    @classmethod
    def _of_socket(cls, text: str) -> Endpoint:
        path, _, prefix = text.removeprefix("unix:").partition(":")
        if path.startswith("//"):
            path = "/" + path.lstrip("/")
        path = path.rstrip("/")
        if not path.startswith("/") or "\0" in path:
            raise SettingError(f"{text!r} names no socket: its path must be absolute", hint=_HINT)
        if len(path.encode("utf-8", "surrogateescape")) > _SOCKET_LIMIT:
            raise SettingError(
                f"the socket's path {path!r} is longer than {_SOCKET_LIMIT} bytes",
                hint=f"a shorter link to it helps: ln -s {path} /tmp/router.sock",
            )
        prefix, versioned = _prefix(prefix, text)
        url = f"unix:{path}" + (f":{prefix}" if prefix else "")
        return cls(url, "unix", "localhost", None, path, prefix, versioned)

    @classmethod
    def _of_web(cls, text: str) -> Endpoint:
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise SettingError("the router's address is no URL", hint=_HINT) from None
        if parts.username is not None or parts.password is not None:
            # Not quoted: this is where people put passwords.
            raise SettingError(
                "the router's address holds a user or a password",
                hint="leave it out and give a key with --router-key-file",
            )
        if parts.scheme not in ("http", "https"):
            raise SettingError(f"{text!r} is no address of a router", hint=_HINT)
        if parts.query or parts.fragment:
            raise SettingError(
                "the router's address holds a query or a fragment",
                hint="leave it out and give a key with --router-key-file",
            )
        host = parts.hostname or ""
        if len(host) > _LONGEST_NAME or not _HOST.fullmatch(host):
            raise SettingError(f"{text!r} names no host", hint=_HINT)
        prefix, versioned = _prefix(parts.path, text)
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        if port == (443 if scheme == "https" else 80):
            port = None
        shown = f"[{host}]" if ":" in host else host
        url = f"{scheme}://{shown}" + (f":{port}" if port is not None else "") + prefix
        return cls(url, scheme, host, port, None, prefix, versioned)

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        if self.socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def origin(self) -> str:
        """Scheme, host and port as HTTP wants them: ``http://localhost`` for a socket."""
        if self.socket is not None:
            return "http://localhost"
        return self.url.removesuffix(self.prefix) if self.prefix else self.url

    def __str__(self) -> str:
        return self.url


def _prefix(path: str, text: str) -> tuple[str, bool]:
    """The path without slashes at its end and without ``/v1``, and whether that was there."""
    path = re.sub(r"/{2,}", "/", path).rstrip("/")
    if path and not (path.startswith("/") and _PATH.fullmatch(path)):
        raise SettingError(f"the path of {text!r} cannot be used", hint=_HINT)
    if path.endswith("/v1"):
        return path.removesuffix("/v1"), True
    return path, False
