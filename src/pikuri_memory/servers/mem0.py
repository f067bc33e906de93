"""mem0's own server in a sealed container stack: its supervisor.

The stack runs while any process holds a share in it. The keeper, a detached process, makes it,
looks after it and takes it down (``pikuri_memory.stack``).
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pikuri_memory import discovery, lease
from pikuri_memory._version import __version__
from pikuri_memory.discovery import ServerInfo
from pikuri_memory.errors import (
    MissingToolError,
    PikuriMemoryError,
    ServerNotRunningError,
    SettingError,
    StackTimeoutError,
)
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.paths import DataPaths
from pikuri_memory.process import Process, spawn_detached
from pikuri_memory.servers import lifecycle
from pikuri_memory.servers.embedded import keeper_environment
from pikuri_memory.servers.lifecycle import ServerLifecycle, Stopped
from pikuri_memory.servers.share import Share
from pikuri_memory.stack import compose, health, relay
from pikuri_memory.stack import plan as plans
from pikuri_memory.stack.plan import StackPlan
from pikuri_memory.stack.state import read_state

if TYPE_CHECKING:
    import httpx

    from pikuri_memory.client.aio import AsyncMem0Client
    from pikuri_memory.client.sync import Mem0Client

_log = logging.getLogger(__name__)

_START_MARGIN: Final = 300.0  # the engine's answers, the services' start, the way to this process
_STOP_SECONDS: Final = 120.0
_PROGRESS_SECONDS: Final = 0.2

Progress = Callable[[str, str], object]


class Mem0Server(Share):
    """A share in mem0's own server, isolated in containers; the first share starts it.

    The containers reach the model endpoint through a unix socket and nothing else of the host.
    Needs docker with compose, git and socat.

    Args:
        router_url: OpenAI-compatible model endpoint as the host reaches it, ``http://``.
        llm_model: Its chat model, which extracts facts.
        embedder_model: Its embedding model.
        container_router_url: The endpoint as a container reaches it without the relay, for one
            that is ``https://``; mem0 then has a way out, and the stack is not sealed.
        port: TCP port of the API on 127.0.0.1; 0 takes a free one. A stack that already runs
            keeps its own: see :attr:`endpoint`.
        qdrant_port: TCP port of the vector store on 127.0.0.1, for inspection.
        embedding_dims: Length of the embedder's vectors; measured where the endpoint answers.
        collection: Name of the memories in the vector store.
        qdrant_image: Image of the vector store.
        cache_dir: Directory that everything lies under (``temp/git``, ``data``, ``sock``); by
            default only the source lies under :meth:`default_cache_dir`.
        data_dir: Directory of the memories; by default the user's own.
        healthcheck_timeout: Seconds until the started services must answer.
        build_timeout: Seconds for the download of the source, and again for the build.
        keep: Leave the stack running without shares, until ``pikuri-memory down``.
        http_client: For :meth:`client` and the health poll; stays the caller's to close.
        mem0_repo_url: Where the source is fetched from: URL or local path.
        mem0_ref: Full id of the commit.
        patch_dir: Directory of the patches for that commit.

    Raises:
        SettingError: A value is impossible (a ``ValueError``).

    A server object may be used by threads. A forked child has no share until it calls
    :meth:`start` itself.
    """

    MEM0_REPO_URL: Final = "https://github.com/mem0ai/mem0.git"
    MEM0_REF: Final = "a3154d59e52386d4e1189c1f5f44819868f76514"  # library 2.0.4
    COMPOSE_PROJECT: Final = plans.PROJECT
    COMPOSE_FILE: Final = compose.FILE
    PATCH_DIR: Final = plans.PATCHES
    DEFAULT_PORT: Final = 8888
    DEFAULT_QDRANT_PORT: Final = 6333
    DEFAULT_EMBEDDING_DIMS: Final = 768  # nomic-embed-text-v1.5
    DEFAULT_COLLECTION: Final = "pikuri_memory"
    DEFAULT_QDRANT_IMAGE: Final = "qdrant/qdrant:v1.12.4"
    DEFAULT_HEALTHCHECK_TIMEOUT: Final = 60
    DEFAULT_BUILD_TIMEOUT: Final = 1800
    SOCAT_IMAGE: Final = "alpine/socat:1.8.0.3"
    RELAY_SOCKET: Final = plans.RELAY_SOCKET
    RELAY_BIND_TIMEOUT: Final = 5

    def __init__(
        self,
        *,
        router_url: str,
        llm_model: str,
        embedder_model: str,
        container_router_url: str | None = None,
        port: int = DEFAULT_PORT,
        qdrant_port: int = DEFAULT_QDRANT_PORT,
        embedding_dims: int = DEFAULT_EMBEDDING_DIMS,
        collection: str = DEFAULT_COLLECTION,
        qdrant_image: str = DEFAULT_QDRANT_IMAGE,
        cache_dir: str | os.PathLike[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        healthcheck_timeout: float = DEFAULT_HEALTHCHECK_TIMEOUT,
        build_timeout: float = DEFAULT_BUILD_TIMEOUT,
        keep: bool = False,
        http_client: httpx.Client | None = None,
        mem0_repo_url: str = MEM0_REPO_URL,
        mem0_ref: str = MEM0_REF,
        patch_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        plans.checked_router(router_url, container_router_url)
        for name, text in {
            "llm_model": llm_model,
            "embedder_model": embedder_model,
            "collection": collection,
            "qdrant_image": qdrant_image,
            "mem0_repo_url": mem0_repo_url,
            "mem0_ref": mem0_ref,
        }.items():
            _check_text(name, text)
        for name, number, low, high in (
            ("port", port, 0, 65535),
            ("qdrant_port", qdrant_port, 0, 65535),
            ("embedding_dims", embedding_dims, 1, 65536),
            ("healthcheck_timeout", healthcheck_timeout, 0.1, 86_400),
            ("build_timeout", build_timeout, 0.1, 86_400),
        ):
            _check_number(name, number, low, high)
        if port == qdrant_port and port != 0:
            raise SettingError(
                f"port and qdrant_port are both {port}", hint="give them different ports"
            )
        self._cache = _absolute(cache_dir) if cache_dir is not None else self.default_cache_dir()
        self._paths = _data_paths(cache_dir, data_dir)
        self._sock_dir = _sock_dir(self._cache, self._paths, explicit=cache_dir is not None)
        own = DataPaths.at(None).root == self._paths.root
        project = plans.PROJECT
        if not own:
            project += "-" + plans.short_hash(str(self._paths.root))
        self._plan = StackPlan(
            router_url=router_url,
            container_router_url=container_router_url,
            llm_model=llm_model,
            embedder_model=embedder_model,
            embedding_dims=embedding_dims,
            port=port,
            qdrant_port=qdrant_port,
            collection=collection,
            qdrant_image=qdrant_image,
            socat_image=self.SOCAT_IMAGE,
            repo_url=mem0_repo_url,
            ref=mem0_ref,
            patch_dir=str(self.PATCH_DIR / mem0_ref if patch_dir is None else _absolute(patch_dir)),
            checkout_dir=str(self.checkout_dir),
            sock_dir=str(self._sock_dir),
            healthcheck_timeout=float(healthcheck_timeout),
            build_timeout=float(build_timeout),
            relay_bind_timeout=float(self.RELAY_BIND_TIMEOUT),
            project=project,
        )
        self._http = http_client
        self._sick_since: float | None = None
        self._lifecycle = ServerLifecycle(
            self._paths,
            kind=discovery.STACK,
            version=__version__,
            spawn=self._spawn,
            healthy=self._answers,
            start_timeout=2 * build_timeout + healthcheck_timeout + _START_MARGIN,
            stop_timeout=_STOP_SECONDS,
            keep=keep,
        )

    def start(self, progress: Progress | None = None) -> Self:
        """Take a share, and return when a scoped read is answered; again is fine.

        Args:
            progress: Told of the phases (``check``, ``fetch``, ``patch``, ``relay``, ``build``,
                ``start``, ``wait``, ``ready``), each with a detail, from another thread.

        Raises:
            StackError: A step failed; its kinds say which.
            PortInUseError: Something else listens on a port; names it.
            DataDirectoryInUseError: Another kind of server owns the data directory.
            StorageError: The directory or a file in it cannot be used.
            ServerStartError: The keeper ended for another reason; quotes it.
            WaitTimeoutError: It was not healthy in time.
        """
        self._sick_since = None
        try:
            with _Watch(self._paths, progress):
                self._lifecycle.start()
        except BaseException:
            self._clean_up()
            raise
        running = StackPlan.read(self._paths)
        if running is not None and self._differs(running):
            _log.warning(
                "the stack was running with other values, which it keeps: %s",
                ", ".join(self._differs(running)),
            )
        return self

    def close(self) -> None:
        """Give the share back; after the last one, return when the stack is down. Best effort."""
        info = self._lifecycle.info
        self._lifecycle.close()
        if info is not None and not info.is_running():
            self._clean_up()

    @property
    def endpoint(self) -> str:
        """Base URL of the API: of the running stack, else where it will be."""
        info = self._lifecycle.info
        if info is not None:
            return info.endpoint
        return f"http://127.0.0.1:{self._plan.port}"

    @property
    def port(self) -> int:
        """TCP port of the API: of the running stack, else the one that was asked for."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def checkout_dir(self) -> Path:
        """The absolute directory of the source; regenerable."""
        return self._cache / "temp" / "git"

    @property
    def sock_dir(self) -> Path:
        """The absolute directory of the relay's socket."""
        return self._sock_dir

    @staticmethod
    def default_cache_dir() -> Path:
        """The user's cache directory for the stack (XDG: ``~/.cache/pikuri/mem0``)."""
        import platformdirs

        return Path(platformdirs.user_cache_dir("pikuri", appauthor=False)) / "mem0"

    def client(self, *, timeout: float | None = None) -> Mem0Client:
        """A client, to be closed by the caller. If the keeper dies, its next call revives it.

        With the ``http_client`` of the constructor, calls go through that, and nothing is revived.

        Args:
            timeout: Seconds to wait for a reply; by default the client's own.

        Raises:
            ServerNotRunningError: The stack was not started, or is closed.
        """
        endpoint = self._running().endpoint
        if self._http is not None:
            from pikuri_memory.client.sync import Mem0Client

            return Mem0Client(endpoint, self._key, self._http, timeout=timeout)
        from pikuri_memory.servers import revival

        return revival.client(self._lifecycle, endpoint, self._key, timeout)

    def async_client(self, *, timeout: float | None = None) -> AsyncMem0Client:
        """An asynchronous client, to be closed by the caller; as :meth:`client`."""
        from pikuri_memory.servers import revival

        return revival.async_client(self._lifecycle, self._running().endpoint, self._key, timeout)

    # ------------------------------------------------------------ inside

    def _clean_up(self) -> None:
        """Take down what a keeper left that was killed; not while others need it."""
        try:
            take_down_leftovers(self._paths)
        except PikuriMemoryError as error:
            _log.warning("containers may have been left: %s", error.message)

    def _running(self) -> ServerInfo:
        info = self._lifecycle.info
        if info is None:
            raise ServerNotRunningError(
                f"the stack of {self._paths.root} is not started by this object",
                hint="call start() first, or use it as a context manager",
            )
        return info

    def _spawn(self, keep: bool) -> Process:
        self._plan.write(self._paths)
        command = [sys.executable, "-m", "pikuri_memory", "stack-keeper"]
        command += ["--data-dir", str(self._paths.root), *(["--keep"] if keep else [])]
        return spawn_detached(command, output=self._paths.output_log, env=keeper_environment())

    def _answers(self, info: ServerInfo) -> bool:
        """Whether a published stack answers a scoped read. One that does not for too long is told
        with its services: its keeper repairs it, but nobody knows when that will work."""
        wrong = health.problem(info.endpoint, self._key(), self._http)
        if wrong is None:
            self._sick_since = None
            return True
        now = time.monotonic()
        self._sick_since = self._sick_since or now
        if now - self._sick_since > self._plan.healthcheck_timeout:
            state = read_state(self._paths)
            plan = StackPlan.read(self._paths) or self._plan
            trouble = f"\nits keeper says: {state.trouble}" if state and state.trouble else ""
            found = compose.services(plan.project, ())
            raise StackTimeoutError(
                f"the stack at {info.endpoint} runs, and {wrong}{trouble}\n"
                + compose.last_lines(found, 8),
                hint="stop it and start it again: pikuri-memory down",
            )
        time.sleep(_PROGRESS_SECONDS)
        return False

    def _differs(self, running: StackPlan) -> list[str]:
        own, other = plans.as_fields(self._plan), plans.as_fields(running)
        # Those that change nothing about what runs.
        free = {"port", "qdrant_port"} if self._plan.port == 0 else set()
        quiet = {"healthcheck_timeout", "build_timeout", "checkout_dir", "relay_bind_timeout"}
        return [name for name in own if own[name] != other[name] and name not in free | quiet]


class _Watch:
    """Tells a caller what the keeper tells, while a start goes on."""

    def __init__(self, paths: DataPaths, progress: Progress | None) -> None:
        self._paths = paths
        self._progress = progress
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._progress is not None:
            self._thread = threading.Thread(target=self._run, name="stack-progress", daemon=True)
            self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._progress is not None
        before = read_state(self._paths)
        while True:
            over = self._over.wait(_PROGRESS_SECONDS)
            state = read_state(self._paths)
            if state is not None and state != before:
                before = state
                self._progress(state.phase, state.detail)
            if over:
                return


def stop(paths: DataPaths, *, force: bool, timeout: float) -> Stopped:
    """Stop the server of a data directory, of either kind, with what a killed keeper left.

    Args:
        paths: The data directory.
        force: Also while others use it.
        timeout: Seconds until it is ended by force.

    Raises:
        LeasesHeldError: Others use it, and ``force`` is not given; names them.
        WaitTimeoutError: Another process starts or stops it all the time.
        AccessError: It belongs to another user.
        StackError: Containers that were left could not be removed.
    """
    info = discovery.read_server_info(paths)
    if info is not None and info.kind == discovery.STACK:
        timeout = max(timeout, _STOP_SECONDS)
    done = lifecycle.stop(paths, force=force, timeout=timeout)
    take_down_leftovers(paths, force=force)
    return done


def take_down_leftovers(paths: DataPaths, *, force: bool = False) -> None:
    """Remove the containers that a killed keeper left, unless a keeper or a user is there.

    Args:
        paths: The data directory.
        force: Also while programs use them.

    Raises:
        StackError: There are some, and they could not be removed.
    """
    if not paths.stack_plan.is_file():
        return
    plan = StackPlan.read(paths)
    # With both, nobody starts a keeper meanwhile; whoever has one of them sees to it himself.
    starting, owner = ExclusiveLock(paths.start_lock), ExclusiveLock(paths.owner_lock)
    with starting, owner:
        if plan is None or not (starting.try_acquire() and owner.try_acquire()):
            return
        if lease.holders(paths) and not force:
            return
        relay.remove_stale(plan.socket)
        try:
            compose.down(plan.project, os.geteuid(), paths)
        except (*compose.ENGINE_AWAY, MissingToolError):
            return  # no engine runs, so no container does


def _data_paths(
    cache_dir: str | os.PathLike[str] | None, data_dir: str | os.PathLike[str] | None
) -> DataPaths:
    if data_dir is not None:
        return DataPaths.at(os.fspath(data_dir))
    if cache_dir is not None:
        return DataPaths.at(_absolute(cache_dir) / "data")
    return DataPaths.at(os.environ.get(discovery.DATA_DIR_VARIABLE) or None)


def _sock_dir(cache: Path, paths: DataPaths, *, explicit: bool) -> Path:
    """Where the socket lies: one directory a stack, with a path that a socket can have."""
    own = DataPaths.at(None).root == paths.root
    tail = plans.short_hash(str(cache), str(paths.root))
    found = cache / ("sock" if explicit or own else f"sock-{tail}")
    if plans.fits_socket(found / plans.RELAY_SOCKET):
        return found
    import platformdirs

    runtime = Path(platformdirs.user_runtime_dir("pikuri", appauthor=False))
    if not runtime.parent.is_dir():
        runtime = Path(tempfile.gettempdir()) / f"pikuri-{os.geteuid()}"
    found = runtime / f"mem0-{tail}"
    if plans.fits_socket(found / plans.RELAY_SOCKET):
        return found
    return Path("/tmp") / f"pikuri-{os.geteuid()}" / f"mem0-{tail}"


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser().absolute()


def _check_text(name: str, text: object) -> None:
    # What goes into the containers' environment and into compose's interpolation.
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise SettingError(f"{name} is {text!r}: it must be a text", hint=f"give {name}")


def _check_number(name: str, number: object, low: float, high: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
        raise SettingError(
            f"{name} is {number!r}: it must be between {low:g} and {high:g}",
            hint=f"give another {name}",
        )
