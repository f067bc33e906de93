"""The page at ``/docs``: the routes of ``/openapi.json``, to read and to try.

A page of our own, from files in the wheel. The packages that bring Swagger UI want a web framework
beside it or are years behind OpenAPI 3.1, and Swagger UI needs inline styles; this one runs under
a policy that lets nothing but its own two files run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        b" img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_FILES: Final = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
PATHS: Final = tuple(_FILES)


@dataclass(frozen=True)
class Page:
    """A file that is sent as it is."""

    content: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@cache
def load(path: str) -> Page:
    """The file of one of :data:`PATHS`."""
    from importlib import resources  # slow, and not needed to be ready

    name, media = _FILES[path]
    content = resources.files(__package__).joinpath("static", name).read_bytes()
    return Page(content, ((b"content-type", media.encode()), *_HEADERS))
