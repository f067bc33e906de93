"""A container engine, what its stacks are made of, and servers that are gone after the test."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory import Mem0Server, StackError, process
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import mem0
from pikuri_memory.stack import engine as engines
from pikuri_memory.stack.plan import StackPlan
from tests.router.scripted import ScriptedRouter
from tests.stack import images
from tests.stack.ollama import DIMENSIONS, EMBEDDER, LLM, ollama

REPOSITORY = "PIKURI_MEM0_REPO"
BUNDLE = "PIKURI_MEMORY_CA_BUNDLE"
_BUNDLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Upstream:
    """What stands for mem0's repository: a real mirror, or one that the tests make.

    Attributes:
        url: Path of the repository.
        ref: The commit.
    """

    url: str
    ref: str


@contextmanager
def alone(name: str, *, shared: bool = False) -> Iterator[None]:
    """One test process at a time, also under xdist; ``shared`` ones exclude only the others."""
    path = Path(tempfile.gettempdir()) / f"pikuri-test-{os.geteuid()}-{name}.lock"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def bundle() -> str | None:
    """Certificates that a build on this machine needs."""
    for name in _BUNDLES:
        if (path := os.environ.get(name)) and Path(path).is_file():
            return path
    return _SYSTEM_BUNDLE if Path(_SYSTEM_BUNDLE).is_file() else None


def ensure_engine() -> None:
    """A running engine with the base images; else the test is skipped."""
    try:
        engines.look()
    except StackError as error:
        pytest.skip(f"no container engine (scripts/docker_engine.sh start): {error.message[:200]}")
    with alone("images"):
        images.ensure()


@pytest.fixture(scope="session")
def engine_ready() -> None:
    """The same, once."""
    ensure_engine()


@pytest.fixture
def engine(engine_ready: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same, for one test, in which nobody restarts it."""
    if path := bundle():
        monkeypatch.setenv(BUNDLE, path)
    with alone("engine", shared=True):
        yield


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """The source of mem0's server."""
    return source(tmp_path_factory.mktemp("upstream") / "mem0")


def source(directory: Path) -> Upstream:
    """A mirror where one is given, else a repository that is made in ``directory``."""
    if mirror := os.environ.get(REPOSITORY):
        return Upstream(mirror, Mem0Server.MEM0_REF)
    from tests.stack import upstream as stand_in

    with alone("upstream"):
        return Upstream(str(directory), stand_in.make(directory))


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    """The user's models: on the loopback, only ``/v1``, no foreign Host names."""
    with ollama() as running:
        yield running


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name, for a stack and its socket."""
    path = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


Make = Callable[..., Mem0Server]


def arguments(upstream: Upstream, router_url: str, home: Path) -> dict[str, Any]:
    """What a server of the tests is built with."""
    return {
        "router_url": router_url,
        "llm_model": LLM,
        "embedder_model": EMBEDDER,
        "embedding_dims": DIMENSIONS,
        "port": 0,
        "qdrant_port": 0,
        "cache_dir": home,
        "healthcheck_timeout": 240,  # a busy machine, many tests at once
        "mem0_repo_url": upstream.url,
        "mem0_ref": upstream.ref,
        "patch_dir": Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF,
    }


@pytest.fixture
def make(engine: None, upstream: Upstream, router: ScriptedRouter, home: Path) -> Iterator[Make]:
    """Builds servers over ``home``; after the test nothing of theirs is there any more."""
    made: list[Mem0Server] = []

    def build(**changes: Any) -> Mem0Server:
        server = Mem0Server(**{**arguments(upstream, router.url, home), **changes})
        made.append(server)
        return server

    yield build
    for server in made:
        server.close()
    for root in {server.data_dir for server in made}:
        clean(root)


def clean(root: Path) -> None:
    """Stop what runs in a data directory, and say if anything of it is left."""
    paths = DataPaths.at(root)
    plan = StackPlan.read(paths)
    mem0.stop(paths, force=True, timeout=60)
    if plan is None:
        return
    assert leftovers(plan.project) == []
    with suppress(FileNotFoundError):
        assert list(Path(plan.sock_dir).iterdir()) == []


def docker(*words: str, check: bool = True) -> str:
    """What a docker command says."""
    return process.run(["docker", *words], timeout=120, check=check).stdout.strip()


def logs(container: str) -> str:
    """All that a container has said."""
    done = process.run(["docker", "logs", container], timeout=60)
    return done.stdout + done.stderr


def leftovers(project: str) -> list[str]:
    """Containers and networks of a project, and relays of it."""
    label = f"label=com.docker.compose.project={project}"
    found = docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()
    return found + docker("network", "ls", "--filter", label, "--format", "{{.Name}}").split()


def project_of(server: Mem0Server) -> str:
    """The compose project of a server that was started."""
    plan = StackPlan.read(DataPaths.at(server.data_dir))
    assert plan is not None
    return plan.project


def container(server: Mem0Server, service: str) -> str:
    """The container of a service."""
    return docker(
        *("ps", "--all", "--quiet", "--no-trunc"),
        *("--filter", f"label=com.docker.compose.project={project_of(server)}"),
        *("--filter", f"label=com.docker.compose.service={service}"),
    )


@pytest.fixture
def name() -> str:
    """Somebody without memories."""
    return f"user-{uuid.uuid4().hex[:8]}"
