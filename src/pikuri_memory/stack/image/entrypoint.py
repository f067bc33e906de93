"""Starts mem0's server inside its container.

The secrets are files of compose: they are read here and live in this process alone, so neither
``docker inspect`` nor a command line nor ``/proc/1/environ`` shows them. What is logged is decided
here too, before upstream's code can: no memory, no query, no message of a model.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

SECRETS: Final = {
    "ADMIN_API_KEY": "admin_api_key",
    "JWT_SECRET": "jwt_secret",
    "QDRANT_API_KEY": "qdrant_api_key",
}
"""Variable that mem0 reads, and the compose secret it comes from."""

HEALTH_USER: Final = "user_id=pikuri-memory-health"
"""In the query of requests that only ask whether the server works."""

_SECRETS_DIR = Path("/run/secrets")
_PORT = 8000
_KNOWN = re.compile(
    r"/(api-keys|auth|configure|docs|entities|memories|openapi\.json|reset|search)\b"
)
# The OpenAI client obeys them, and they would lead memories elsewhere. The Docker client can put
# its own proxies into every container.
_UNWANTED = ("_PROXY", "OPENROUTER_", "OPENAI_API_BASE", "OPENAI_ORG", "OPENAI_PROJECT")


class _NoMessages(logging.Formatter):
    """Exceptions by type and place: a message can quote what a model or a caller said."""

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        lines = []
        error = ei[1]
        while error is not None:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            status = getattr(error, "status_code", None)
            lines.append(f"{type(error).__name__}{f' {status}' if status else ''} at {places}")
            error = error.__cause__ or error.__context__
        return "\n".join(lines)


class _QuietAccess(logging.Filter):
    """What kind of request it was, and none of the health check's.

    No path and no query as they were sent: names are in them, and a key by mistake.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, tuple) and len(args) == 5:
            client, method, target, version, status = args
            if HEALTH_USER in str(target) and status == 200:
                return False
            known = _KNOWN.match(str(target))
            record.args = (client, method, known[0] if known else "/", version, status)
        return True


def _read_secrets() -> None:
    for variable, name in SECRETS.items():
        path = _SECRETS_DIR / name
        try:
            value = path.read_text("utf-8").strip()
        except OSError as error:
            sys.exit(f"error: the secret {name} cannot be read: {error.strerror}")
        if not value:
            sys.exit(f"error: the secret {name} is empty")
        os.environ[variable] = value


def _clean_environment() -> None:
    for variable in list(os.environ):
        upper = variable.upper()
        if any(upper.startswith(word) or upper.endswith(word) for word in _UNWANTED):
            del os.environ[variable]
    # Set before the library is imported, or it is too late.
    os.environ["MEM0_TELEMETRY"] = "False"
    # The library asks for a model of fastembed's, and a hub would be asked for it.
    os.environ["HF_HUB_OFFLINE"] = "1"


def _set_up_logs() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_NoMessages("%(asctime)s %(levelname)s %(name)s %(message)s"))
    # Upstream's basicConfig does nothing where the root logger has a handler.
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # The library writes memories at INFO and a model's words at ERROR.
    logging.getLogger("mem0").setLevel(logging.CRITICAL)
    for name in ("httpx", "httpcore", "openai", "qdrant_client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(_QuietAccess())


def main() -> None:
    """Run until a signal."""
    # What it stores is its user's alone, also where the directory is opened by mistake.
    os.umask(0o077)
    _read_secrets()
    _clean_environment()
    _set_up_logs()
    import uvicorn

    # The embedded server's own, beside this file in the image.
    importlib.import_module("connection").allow_connections()
    # One process, no reload, no X-Forwarded-* taken from anybody.
    uvicorn.run(
        "main:app",
        host=os.environ.get("PIKURI_LISTEN_HOST", "0.0.0.0"),
        port=int(os.environ.get("PIKURI_LISTEN_PORT", _PORT)),
        app_dir=os.environ.get("PIKURI_APP_DIR", "/app"),
        http="connection:Connection",
        ws="none",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        # Longer than clients keep theirs: a request never meets a connection that is just closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=8,
    )


if __name__ == "__main__":
    main()
