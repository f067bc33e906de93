"""What a container stack is made of: the values that a supervisor gives its keeper."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pikuri_memory.errors import SettingError, StackError
from pikuri_memory.files import write_private
from pikuri_memory.paths import DataPaths

HERE: Final = Path(__file__).parent
EMBEDDED: Final = HERE.parent / "embedded"
SHARED: Final = ("connection.py", "static/docs.css", "static/docs.html", "static/docs.js")
"""Files of the embedded server that mem0's server has too, in its image."""
PATCHES: Final = HERE / "patches"
PROJECT: Final = "pikuri-internal-mem0"
RELAY_SOCKET: Final = "router.sock"
SOCKET_PATH_BYTES: Final = 107  # what a unix socket's address holds, its final zero apart
RELAY_ADDRESS: Final = "http://router-proxy.internal:8080"
DEFAULT_PATH: Final = "/v1"


@dataclass(frozen=True)
class StackPlan:
    """All values of one stack. Nothing in it is secret.

    Attributes:
        router_url: The model endpoint as the host reaches it.
        container_router_url: The same as a container reaches it without the relay, or None.
        llm_model: Chat model of the endpoint.
        embedder_model: Embedding model of the endpoint.
        embedding_dims: Length of its vectors.
        port: The API's port on 127.0.0.1; 0 takes a free one.
        qdrant_port: The vector store's port on 127.0.0.1, for inspection; 0 takes a free one.
        collection: Name of the memories in the vector store.
        qdrant_image: Image of the vector store.
        socat_image: Image of the relay's sidecar and the front.
        repo_url: Where the source is fetched from.
        ref: Full id of the commit.
        patch_dir: Directory of the patches.
        checkout_dir: Where the source lies; regenerable.
        sock_dir: Directory of the relay's socket.
        healthcheck_timeout: Seconds until the started services must answer.
        build_timeout: Seconds for the download of the source, and again for the build.
        relay_bind_timeout: Seconds until the relay must have bound its socket.
        project: Name of the compose project.
    """

    router_url: str
    container_router_url: str | None
    llm_model: str
    embedder_model: str
    embedding_dims: int
    port: int
    qdrant_port: int
    collection: str
    qdrant_image: str
    socat_image: str
    repo_url: str
    ref: str
    patch_dir: str
    checkout_dir: str
    sock_dir: str
    healthcheck_timeout: float
    build_timeout: float
    relay_bind_timeout: float
    project: str

    @property
    def socket(self) -> Path:
        """The relay's socket."""
        return Path(self.sock_dir) / RELAY_SOCKET

    def write(self, paths: DataPaths) -> None:
        """Leave it to the keeper that is started next."""
        write_private(paths.stack_plan, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, paths: DataPaths) -> StackPlan | None:
        """What was left in a data directory; None where no stack ever ran.

        Raises:
            StackError: The file cannot be used.
        """
        try:
            fields = json.loads(paths.stack_plan.read_bytes())
            return cls(**fields)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StackError(
                f"{paths.stack_plan} cannot be used: {type(error).__name__}",
                hint=f"remove it and start again: rm {paths.stack_plan}",
            ) from None


@dataclass(frozen=True)
class RouterAddress:
    """Where a relay connects to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def checked_url(url: object, name: str, schemes: tuple[str, ...]) -> SplitResult:
    """A model endpoint's URL, taken apart.

    Args:
        url: What was given.
        name: Of the argument, for the message.
        schemes: Which are allowed.

    Raises:
        SettingError: It cannot be used; a password in it is not quoted.
    """
    problem = ""
    parts = SplitResult("", "", "", "", "")
    try:
        parts = urlsplit(str(url))
        port = parts.port
    except ValueError:
        problem = "it cannot be read"
    else:
        if "@" in parts.netloc:
            problem = "it has a user name or a password in it"
        elif parts.scheme not in schemes or not parts.hostname or port == 0:
            problem = f"it is no {' or '.join(schemes)} URL with a host: {url}"
        elif parts.query or parts.fragment:
            problem = f"it has a query or a fragment: {url}"
        elif not str(url).isprintable() or any(sign in str(url) for sign in " \\\"'$`,"):
            problem = "it has a character in it that no URL has"
    if problem:
        raise SettingError(
            f"{name} cannot be used: {problem}", hint="use one such as http://127.0.0.1:8080"
        )
    return parts


def checked_router(url: object, container_url: str | None) -> None:
    """Refuse a router that the stack cannot reach.

    Raises:
        SettingError: ``https://`` without ``container_router_url``, or no usable URL.
    """
    if container_url is not None:
        checked_url(container_url, "container_router_url", ("http", "https"))
        checked_url(url, "router_url", ("http", "https"))
        return
    if checked_url(url, "router_url", ("http", "https")).scheme == "https":
        raise SettingError(
            f"router_url {url} is https://, and the relay carries plain TCP:"
            " container_router_url is needed too",
            hint="give --container-router-url, the endpoint's URL as a container reaches it (the"
            " stack is then not sealed), or use an http:// endpoint",
        )


def router_address(url: str) -> RouterAddress:
    """Host and port of an endpoint."""
    parts = checked_url(url, "router_url", ("http", "https"))
    return RouterAddress(
        parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    )


def api_base(url: str) -> str:
    """The base URL of an endpoint's OpenAI API: with ``/v1`` where the URL has no path."""
    parts = checked_url(url, "router_url", ("http", "https"))
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or DEFAULT_PATH}"


def relayed_base(url: str) -> str:
    """The base URL that reaches an endpoint through the relay."""
    path = checked_url(url, "router_url", ("http",)).path.rstrip("/")
    return RELAY_ADDRESS + (path or DEFAULT_PATH)


def short_hash(*words: str) -> str:
    """Ten hexadecimal digits that tell two of them apart."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:10]


def fits_socket(path: Path) -> bool:
    """Whether a path is short enough for a unix socket."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES


def build_digest() -> str:
    """What our part of the image is made of, as a hash: another one means another image."""
    found = hashlib.sha256()
    own = [path for path in HERE.iterdir() if path.name.startswith("Dockerfile")]
    own += [path for path in (HERE / "image").rglob("*") if "__pycache__" not in path.parts]
    for path in sorted(own + [EMBEDDED / name for name in SHARED]):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(HERE.parent)
            found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def as_fields(plan: StackPlan) -> dict[str, Any]:
    """Its values by name, for comparing two."""
    return asdict(plan)
