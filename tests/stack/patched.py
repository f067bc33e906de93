"""mem0's server with some of the patches, in the image that the stack runs, without the stack.

The image's dependencies and entrypoint are the real ones. Library and server come from a checkout
with the patches that a test asks for, mounted over those of the image: seven builds would tell
nothing more. Its Qdrant is the stand-in, a process of the tests; nothing leaves the loopback.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from pikuri_memory.stack.checkout import Checkout, Source
from tests.router.scripted import ScriptedRouter
from tests.stack import images
from tests.stack.ollama import DIMENSIONS, EMBEDDER, LLM

SITE: Final = "/opt/mem0/lib/python3.11/site-packages"
COLLECTION: Final = "pikuri_memory"
ROUTER_NAME: Final = "http://127.0.0.1:4321/as-the-user-knows-it"
_START_SECONDS = 60


class DidNotStartError(AssertionError):
    """The server ended, or did not answer in time."""


@dataclass
class Served:
    """A running server.

    Attributes:
        endpoint: Its base URL.
        api: A client with the administrator's key.
        key: That key.
        qdrant: A client of the vector store, with its key.
        history: The directory that it keeps its files in.
        secrets: The directory that its secrets are in.
        container: Its name.
    """

    endpoint: str
    api: httpx.Client
    key: str
    qdrant: httpx.Client
    history: Path
    secrets: Path
    container: str

    def add(self, text: str, user: str, **more: Any) -> httpx.Response:
        """Send one turn."""
        messages = [{"role": "user", "content": text}]
        return self.api.post("/memories", json={"messages": messages, "user_id": user, **more})

    def memories(self, **scope: Any) -> list[dict[str, Any]]:
        """What is listed."""
        listed: list[dict[str, Any]] = self.api.get("/memories", params=scope).json()["results"]
        return listed

    def log(self) -> str:
        """What it has written so far."""
        return _log(self.container)


def patch_names(patch_dir: Path) -> list[str]:
    """The patches of the pin, by name."""
    return [path.stem for path in sorted(patch_dir.glob("*.patch"))]


def checkout(directory: Path, url: str, ref: str, patches: Iterable[Path]) -> Path:
    """A source with these patches, made as the supervisor makes it."""
    made = Checkout(directory / "git", fetch_timeout=120)
    with made.locked(60):
        made.prepare(Source(url, ref, tuple(patches)))
    return made.directory


def build(tag: str, context: Path, ca_bundle: str | None) -> None:
    """Build the image as compose does."""
    command = [
        *(images.docker_command(), "build", "--progress", "plain", "--tag", tag),
        *("--file", str(images.STACK / "Dockerfile"), "--build-context", f"stack={images.STACK}"),
        *("--build-context", f"embedded={images.STACK.parent / 'embedded'}"),
        *("--secret", f"id=ca_bundle,src={ca_bundle or os.devnull}", str(context)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@contextmanager
def qdrant(directory: Path, key: str, **variables: str) -> Iterator[str]:
    """The stand-in for Qdrant; its base URL."""
    process = subprocess.Popen(
        [sys.executable, str(images.STAND_IN / "server.py")],
        env={
            **os.environ,
            "QDRANT__STORAGE__STORAGE_PATH": str(directory),
            "QDRANT__SERVICE__API_KEY": key,
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": "0",
            **variables,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", line)
        assert found, line
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@contextmanager
def served(
    image: str, source: Path, router: ScriptedRouter, variables: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A server with the code of a checkout.

    Raises:
        DidNotStartError: With what it wrote.
    """
    key, store_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    name = f"pikuri-test-{uuid.uuid4().hex[:12]}"
    port = _free_port()
    home = Path(tempfile.mkdtemp(prefix="pk-patched-"))
    held, history = home / "secrets", home / "history"
    (home / "qdrant").mkdir()
    for directory in (held, history):
        directory.mkdir()
    for secret, value in (
        ("admin_api_key", key),
        ("jwt_secret", secrets.token_urlsafe(32)),
        ("qdrant_api_key", store_key),
    ):
        (held / secret).write_text(value + "\n")
    with qdrant(home / "qdrant", store_key) as store:
        environment = {
            "QDRANT_URL": store,
            "QDRANT_COLLECTION": COLLECTION,
            "MEM0_EMBEDDING_DIMS": str(DIMENSIONS),
            "MEM0_DEFAULT_LLM_MODEL": LLM,
            "MEM0_DEFAULT_EMBEDDER_MODEL": EMBEDDER,
            "MEM0_ROUTER_NAME": ROUTER_NAME,
            "MEM0_HEALTHCHECK_HOST": "healthcheck.pikuri.internal",
            "OPENAI_BASE_URL": f"{router.url}/v1",
            "OPENAI_API_KEY": "none",
            "HISTORY_DB_PATH": "/app-history/history.db",
            "APP_DB_PATH": "/app-history/app.db",
            "PIKURI_LISTEN_HOST": "127.0.0.1",
            "PIKURI_LISTEN_PORT": str(port),
            **(variables or {}),
        }
        owner = f"{os.geteuid()}:{os.getegid()}"
        command = [
            *(images.docker_command(), "run", "--detach", "--name", name, "--network", "host"),
            *("--user", owner, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
            *("--volume", f"{source / 'mem0'}:{SITE}/mem0:ro"),
            *("--volume", f"{source / 'server'}:/app:ro"),
            *("--volume", f"{held}:/run/secrets:ro", "--volume", f"{history}:/app-history"),
            *(word for pair in environment.items() for word in ("--env", "=".join(pair))),
            image,
        ]
        subprocess.run(command, check=True, capture_output=True)
        endpoint = f"http://127.0.0.1:{port}"
        api = httpx.Client(base_url=endpoint, timeout=60, trust_env=False)
        api.headers["X-API-Key"] = key
        store_client = httpx.Client(base_url=store, timeout=60, trust_env=False)
        store_client.headers["api-key"] = store_key
        try:
            with api, store_client:
                _await(name, api)
                yield Served(endpoint, api, key, store_client, history, held, name)
        finally:
            subprocess.run(
                [images.docker_command(), "rm", "--force", name], check=True, capture_output=True
            )
    shutil.rmtree(home, ignore_errors=True)


def _await(container: str, api: httpx.Client) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            if api.get("/openapi.json").status_code == 200:
                return
        except httpx.TransportError:
            pass
        shown = subprocess.run(
            [images.docker_command(), "inspect", "--format", "{{.State.Running}}", container],
            capture_output=True,
            text=True,
            check=True,
        )
        if shown.stdout.strip() != "true":
            raise DidNotStartError(_log(container)[-2000:])
        time.sleep(0.1)
    raise DidNotStartError(f"no answer in {_START_SECONDS} s: {_log(container)[-2000:]}")


def _log(container: str) -> str:
    shown = subprocess.run(
        [images.docker_command(), "logs", container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return shown.stdout


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
