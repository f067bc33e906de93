"""The embedded server: one detached process of our own, shared by all who use its directory."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any, Self

from pikuri_memory import discovery
from pikuri_memory._version import __version__
from pikuri_memory.discovery import ServerInfo
from pikuri_memory.errors import ServerNotRunningError
from pikuri_memory.paths import DataPaths
from pikuri_memory.process import Process, spawn_detached
from pikuri_memory.servers import kinds
from pikuri_memory.servers.lifecycle import ServerLifecycle
from pikuri_memory.servers.share import Share
from pikuri_memory.settings import Settings

if TYPE_CHECKING:
    from pikuri_memory.client.aio import AsyncMem0Client
    from pikuri_memory.client.sync import Mem0Client

_HEALTH_SECONDS = 2.0


class EmbeddedServer(Share):
    """A share in the memory server of a data directory; the first share starts it.

    The server is a process of its own. It runs while any process holds a share (until its
    :meth:`close`, or its end) and stops after the last one, unless somebody asked to keep it.

    Args:
        port: TCP port on 127.0.0.1 for a server that is started, by default 8888; 0 takes a free
            one. A server that already runs keeps its own: see :attr:`endpoint`.
        data_dir: Directory of the memories; by default the user's own.
        keep: Leave the server running without shares, until ``pikuri-memory down``.
        **settings: Other settings by name (``pikuri_memory.settings``), for a server that is
            started. ``router`` is the URL of the user's own models, which are used from then on,
            by later starts too; ``llm_model`` and ``embedder_model`` choose among them.

    Raises:
        SettingError: A setting is unknown or impossible.

    A server object may be used by threads. A forked child has no share until it calls
    :meth:`start` itself.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        keep: bool = False,
        **settings: Any,
    ) -> None:
        given = {**settings, "port": port, "data_dir": data_dir and os.fspath(data_dir)}
        resolved = Settings.resolve(given)
        self._paths = DataPaths.at(resolved.data_dir)
        # Absolute: the server does not run in our working directory.
        key_file = resolved.router_key_file
        self._settings = dataclasses.replace(
            resolved,
            data_dir=str(self._paths.root),
            router_key_file=key_file and os.path.abspath(os.path.expanduser(key_file)),
        )
        self._lifecycle = ServerLifecycle(
            self._paths,
            kind=discovery.EMBEDDED,
            version=__version__,
            spawn=self._spawn,
            healthy=answers,
            start_timeout=resolved.start_timeout + self._probe_seconds(),
            stop_timeout=resolved.stop_timeout,
            keep=keep,
        )

    def start(self) -> Self:
        """Take a share, and return when the server is healthy; again is fine.

        Raises:
            PortInUseError: Something else listens on the port; names it.
            DataDirectoryInUseError: Something else owns the data directory.
            StorageError: The directory or a file in it cannot be used.
            ModelError: A router that was not used before cannot be asked, or lacks a model.
            MissingExtraError: Extraction is wanted, and its library is not installed.
            EmbedderMismatchError: The memories are embedded by another model than is asked for.
            ServerStartError: The server ended for another reason; quotes it.
            InvalidRequestError: The memories there are those of a container stack.
            WaitTimeoutError: It was not healthy in time.
        """
        kinds.refuse_embedded(self._paths)
        self._lifecycle.start()
        return self

    def close(self) -> None:
        """Give the share back; after the last one, return when the server has stopped."""
        self._lifecycle.close()

    @property
    def endpoint(self) -> str:
        """Base URL of the running server, as ``http://127.0.0.1:8888``.

        Raises:
            ServerNotRunningError: It was not started, or is closed.
        """
        info = self._lifecycle.info
        if info is None:
            raise ServerNotRunningError(
                f"the server of {self._paths.root} is not started by this object",
                hint="call start() first, or use it as a context manager",
            )
        return info.endpoint

    def client(self, *, timeout: float | None = None) -> Mem0Client:
        """A client, to be closed by the caller. If the server dies, its next call revives it.

        Args:
            timeout: Seconds to wait for a reply; by default the client's own.

        Raises:
            ServerNotRunningError: The server was not started, or is closed.
        """
        from pikuri_memory.servers import revival

        return revival.client(self._lifecycle, self.endpoint, self._key, timeout)

    def async_client(self, *, timeout: float | None = None) -> AsyncMem0Client:
        """An asynchronous client, to be closed by the caller; as :meth:`client`."""
        from pikuri_memory.servers import revival

        return revival.async_client(self._lifecycle, self.endpoint, self._key, timeout)

    def _probe_seconds(self) -> float:
        """How much longer a start may take, because the server may have to ask a router first."""
        asks = self._settings.router is not None or self._paths.models.exists()
        return self._settings.router_timeout if asks else 0.0

    def _spawn(self, keep: bool) -> Process:
        command = [sys.executable, "-m", "pikuri_memory", "serve", *self._settings.flags()]
        if keep:
            command.append("--keep")
        return spawn_detached(command, output=self._paths.output_log, env=keeper_environment())


def answers(info: ServerInfo) -> bool:
    """Whether a published server answers ``GET /health`` with 200, within 2 seconds.

    Asked without a key, and past any proxy: the port is the server's own, because the process
    that published it still runs.
    """
    import http.client
    from urllib.parse import urlsplit

    address = urlsplit(info.endpoint)
    try:
        port = address.port
    except ValueError:
        return False
    connection = http.client.HTTPConnection(address.hostname or "", port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def keeper_environment() -> dict[str, str]:
    """Ours, with a relative ``PYTHONPATH`` made absolute: the server runs in ``/``."""
    environment = dict(os.environ)
    if search := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(entry) for entry in search.split(os.pathsep) if entry
        )
    return environment
