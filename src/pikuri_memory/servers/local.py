"""The server of a data directory as somebody sees it who only wants to use it or ask how it is."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pikuri_memory import discovery, lease
from pikuri_memory.client.protocol import Request
from pikuri_memory.client.replies import ShapeError, done
from pikuri_memory.client.sync import Mem0Client
from pikuri_memory.discovery import STACK, ServerInfo
from pikuri_memory.errors import InvalidRequestError, PikuriMemoryError, ServerNotRunningError
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import kinds, lifecycle
from pikuri_memory.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from pikuri_memory.stack.status import StackStatus

State: TypeAlias = Literal["running", "starting", "stopping", "unresponsive", "stopped"]

_LEASE_SECONDS: Final = 10.0
_STATUS_SECONDS: Final = 3.0
_PURGE_SECONDS: Final = 3600.0
_NEW_KEY_SECONDS: Final = 60.0


class LocalClient(Mem0Client):
    """A client with what only our own server can do."""

    def status(self) -> dict[str, Any]:
        """How the server is: counts, embedder, index, disk; no names and no texts."""
        return self._send(Request("GET", "/status", _mapping))

    def purge(self) -> None:
        """Remove deleted text from the disk; returns when it is gone."""
        self._send(Request("POST", "/purge", done, json={}))

    def reembed(self, model: str | None, router: str | None) -> dict[str, Any]:
        """Embed every memory anew; returns when the embedder has been tried.

        Args:
            model: As its endpoint calls it, or ``builtin``; None is the job that is under way,
                else the best one that the endpoint offers.
            router: URL of the endpoint; None is the one in use.

        Returns:
            ``result`` (``begun``, ``joined`` or ``unchanged``), ``model``, ``dimensions``.

        Raises:
            ReembeddingUnderWayError: Another one is under way.
            ModelError: The embedder cannot be had.
        """
        sent = {"embedder_model": model, "router": router}
        # Not again by itself: whoever asks is told at once what the endpoint says.
        return self._send(Request("POST", "/reembed", _mapping, json=sent, retry="never"))

    def cancel_reembedding(self) -> None:
        """Give a re-embedding up; where there is none, nothing happens."""
        self._send(Request("DELETE", "/reembed", done))


@dataclass(frozen=True)
class Status:
    """What is known about the server of a data directory.

    Attributes:
        state: ``running`` (it answers), ``starting``, ``stopping``, ``unresponsive`` (it runs but
            does not answer) or ``stopped``.
        detail: More about the state, for a person; empty where there is nothing to say.
        info: The server, if one runs.
        keep: Whether it stays up when nobody uses it.
        holders: Who uses it.
        told: What it tells about itself; empty unless it is running.
        data_bytes: Size of the data directory on disk; 0 if there is none.
        free_bytes: Free space on its disk; None where that cannot be told.
        stack: The container stack, where one runs or ran here; else None.
    """

    paths: DataPaths
    state: State
    detail: str
    info: ServerInfo | None
    keep: bool
    holders: tuple[lease.Holder, ...]
    told: dict[str, Any]
    data_bytes: int
    free_bytes: int | None
    stack: StackStatus | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON: the names and types are stable."""
        info, told = self.info, self.told
        return {
            "state": self.state,
            "detail": self.detail or None,
            "server": info.kind if info else None,
            "endpoint": info.endpoint if info else None,
            "api_key_file": str(self.paths.api_key),
            "data_dir": str(self.paths.root),
            "log_file": str(self.paths.server_log),
            "pid": info.pid if info else None,
            "version": info.version if info else None,
            "memories": told.get("memories"),
            "router": told.get("router"),
            "embedder": told.get("embedder"),
            "extraction": told.get("extraction"),
            "findings": told.get("findings"),
            "reembedding": told.get("reembedding"),
            "language": told.get("language"),
            "index": told.get("index"),
            "disk": {
                "free_bytes": self.free_bytes,
                "data_bytes": self.data_bytes,
                **(told.get("disk") or {}),
            },
            "read_only": told.get("read_only"),
            "purge_pending": told.get("purge_pending"),
            "keep": self.keep,
            "stack": self.stack.as_dict() if self.stack is not None else None,
            "leases": [
                {
                    "pid": holder.pid,
                    "name": holder.name,
                    "since": datetime.fromtimestamp(holder.since, UTC).isoformat(),
                }
                for holder in self.holders
            ],
        }


def running_server(paths: DataPaths) -> ServerInfo:
    """The server that runs for a data directory.

    Raises:
        ServerNotRunningError: None does.
    """
    info = discovery.read_server_info(paths)
    if info is not None and info.is_running():
        return info
    ended = " any more: it ended without being stopped" if info is not None else ""
    raise ServerNotRunningError(
        f"no server runs for {paths.root}{ended}", hint=f"start it: {kinds.start_command(paths)}"
    )


def client_of(paths: DataPaths, info: ServerInfo, *, timeout: float | None = None) -> LocalClient:
    """A client of a server of a data directory; its key is read anew when it changes."""

    def key() -> str | None:
        return discovery.key_for_endpoint(info.endpoint, paths)

    return LocalClient(info.endpoint, key, timeout=timeout)


@contextlib.contextmanager
def connected(paths: DataPaths, *, timeout: float | None = None) -> Iterator[LocalClient]:
    """A client of the running server, which does not leave for want of users meanwhile.

    Raises:
        ServerNotRunningError: None runs; none is started.
    """
    # Looked at before the lease is taken, because that would make the directory.
    running_server(paths)
    share = lease.Lease.acquire(paths, deadline=Deadline(_LEASE_SECONDS), what="the server")
    try:
        # It may have stopped while the lease was waited for.
        with client_of(paths, running_server(paths), timeout=timeout) as client:
            yield client
    finally:
        share.release()


def purge(paths: DataPaths) -> None:
    """Remove deleted text from the disk, through the running server.

    Raises:
        ServerNotRunningError: None runs.
        StorageError: It could not be done now; nothing was lost.
        InvalidRequestError: It is mem0's own, which cannot.
    """
    if running_server(paths).kind == STACK:
        raise InvalidRequestError(
            "mem0's own server has no purge: its vector store gives the room back by itself",
            hint="to remove everything: pikuri-memory destroy",
        )
    with connected(paths, timeout=_PURGE_SECONDS) as client:
        client.purge()


def memory_count(paths: DataPaths, client: LocalClient) -> int:
    """How many memories a running server holds."""
    if running_server(paths).kind == STACK:
        return len(client.get_all())
    return int(client.status()["memories"])


def rotate_key(paths: DataPaths) -> ServerInfo | None:
    """Replace the API key, with a running server or without.

    Returns:
        The running server, which takes only the new key from now on; None if none runs.

    Raises:
        WaitTimeoutError: The containers of a stack still have the old one.
    """
    lease.prepare(paths)
    discovery.rotate_api_key(paths)
    info = discovery.read_server_info(paths)
    if info is None or not info.is_running():
        if paths.stack_plan.is_file() and lease.lock_owner(paths.owner_lock) is None:
            from pikuri_memory.stack import credentials

            # Containers that a killed keeper left may run on: they let nobody in now.
            credentials.shut(paths)
        return None
    if info.kind == STACK:
        _await_key(paths, info)
    return info


def _await_key(paths: DataPaths, info: ServerInfo) -> None:
    from pikuri_memory.stack import health

    key = discovery.read_api_key(paths)

    wait_for(
        lambda: health.problem(info.endpoint, key) is None or None,
        Deadline(_NEW_KEY_SECONDS),
        what="the containers to take the new key",
        hint=f"start them again: pikuri-memory down --force && {kinds.start_command(paths)}",
        interval=0.2,
    )


def describe(paths: DataPaths) -> Status:
    """How the server of a data directory is. Starts and changes nothing; a refusal is no error."""
    info = discovery.read_server_info(paths)
    alive = info if info is not None and info.is_running() else None
    told: dict[str, Any] = {}
    state: State = "stopped"
    detail = ""
    if alive is not None and alive.kind == STACK:
        state, detail = _stack_state(paths, alive)
    elif alive is not None:
        try:
            with client_of(paths, alive, timeout=_STATUS_SECONDS) as client:
                told = client.status()
            state = "running"
        except PikuriMemoryError as error:
            state, detail = "unresponsive", f"{error.message}; {error.hint}"
            if lease.lock_owner(paths.lease_lock) is not None:
                state, detail = "stopping", "nobody uses it any more"
    elif (owner := lease.lock_owner(paths.owner_lock)) is not None:
        # It publishes itself when it has bound its port, and withdraws before it ends.
        stopping = lease.lock_owner(paths.lease_lock) is not None
        state = "stopping" if stopping else "starting"
        detail = f"pid {owner}" if owner else ""
    elif info is not None:
        detail = f"the last server (pid {info.pid}) ended without being stopped"
    elif not paths.root.is_dir():
        detail = "there is no data directory yet"
    return Status(
        paths=paths,
        state=state,
        detail=detail,
        info=alive,
        keep=alive is not None and lease.is_kept(paths, alive),
        holders=tuple(lease.holders(paths)),
        told=told,
        data_bytes=_size(paths),
        free_bytes=_free(paths.root),
        stack=_stack(paths, state) if alive is None or alive.kind == STACK else None,
    )


def _stack_state(paths: DataPaths, info: ServerInfo) -> tuple[State, str]:
    from pikuri_memory.stack import health

    wrong = health.problem(info.endpoint, discovery.read_api_key(paths))
    if wrong is None:
        return "running", ""
    if lease.lock_owner(paths.lease_lock) is not None:
        return "stopping", "nobody uses it any more"
    return "unresponsive", wrong


def stop(paths: DataPaths, *, force: bool, timeout: float) -> lifecycle.Stopped:
    """Stop the server of a data directory, whatever kind it is; see ``lifecycle.stop``."""
    if not paths.stack_plan.is_file():
        return lifecycle.stop(paths, force=force, timeout=timeout)
    from pikuri_memory.servers import mem0

    return mem0.stop(paths, force=force, timeout=timeout)


def _stack(paths: DataPaths, state: State) -> StackStatus | None:
    """How the container stack of a data directory is; None where none is or was."""
    if not paths.stack_plan.is_file():
        return None
    from pikuri_memory.stack import status
    from pikuri_memory.stack.state import read_state

    if state in ("starting", "stopping"):
        told = read_state(paths)
        # Another kind of server may be about to start here.
        if told is None or told.pid != lease.lock_owner(paths.owner_lock):
            return None
    elif state == "stopped" and kinds.last(paths) != STACK:
        return None

    return status.describe(paths, wanted=state != "stopped")


def _mapping(payload: object) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise ShapeError("the reply is no object")
    return payload


def _size(paths: DataPaths) -> int:
    """Bytes on disk of what is ours; what vanishes meanwhile does not count."""
    total = 0
    waiting = paths.present()
    while waiting:
        path = waiting.pop()
        try:
            if path.is_dir() and not path.is_symlink():
                waiting.extend(path.iterdir())
            else:
                total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def _free(root: Path) -> int | None:
    for directory in (root, *root.parents):
        try:
            return shutil.disk_usage(directory).free
        except OSError:
            continue
    return None
