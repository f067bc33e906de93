"""Embedding the memories of a data directory anew, as somebody sees it who asks for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pikuri_memory import discovery
from pikuri_memory.errors import InvalidRequestError
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import kinds, local
from pikuri_memory.servers.local import LocalClient

_POLL_SECONDS: Final = 0.25
_MORE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        done: Memories that are embedded by the new one.
        total: All memories.
        state: ``starting``, ``embedding``, ``building`` or ``paused``.
        last_error: Why it pauses: ``code``, ``detail``, ``hint``, ``at``; else None.
        per_second: Memories a second since it was first looked at; None where that is not known.
    """

    done: int
    total: int
    state: str
    last_error: dict[str, Any] | None
    per_second: float | None

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None where there is none."""
        return (self.total - self.done) / self.per_second if self.per_second else None


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        client: Asks it.
        patient: Asks it what may take as long as a model needs to be loaded.
        stays: Whether it runs on when we are done; otherwise it was started for us.
    """

    client: LocalClient
    patient: LocalClient
    stays: bool


@contextlib.contextmanager
def server_of(paths: DataPaths, *, router_timeout: float) -> Iterator[Server]:
    """The server of a data directory; where none runs, one is started until this is left.

    It is started with the embedder that the memories have, whatever settings name another.

    Args:
        paths: The data directory.
        router_timeout: Seconds that the model endpoint may take.

    Raises:
        InvalidRequestError: It is mem0's own server, which cannot.
    """
    with contextlib.ExitStack() as stack:
        info = discovery.read_server_info(paths)
        stays = info is not None and info.is_running()
        if (info.kind if info is not None and stays else kinds.last(paths)) == discovery.STACK:
            raise InvalidRequestError(
                "mem0's own server keeps the embedder that its memories have",
                hint="pikuri-memory export FILE; then start a stack with the other embedder and"
                " another --data-dir, and there: pikuri-memory import FILE",
            )
        if stays:
            client = stack.enter_context(local.connected(paths))
        else:
            stack.enter_context(_started(paths))
            client = stack.enter_context(local.client_of(paths, local.running_server(paths)))
        patient = stack.enter_context(
            local.client_of(
                paths, local.running_server(paths), timeout=router_timeout + _MORE_SECONDS
            )
        )
        yield Server(client, patient, stays)


def _started(paths: DataPaths) -> contextlib.AbstractContextManager[Any]:
    from pikuri_memory.embedded.models_used import stored_in
    from pikuri_memory.models import choice
    from pikuri_memory.servers.embedded import EmbeddedServer

    settings: dict[str, Any] = {}
    if paths.record.exists():
        stored = stored_in(paths)
        if stored.memories:
            settings["embedder_model"] = stored.embedder
    remembered = choice.read(paths.models)
    if remembered is not None and remembered.router is not None:
        settings["router"] = remembered.router
        settings["llm_model"] = remembered.llm_model or choice.NONE
    # Whoever wants it at its usual address starts it with `up`.
    return EmbeddedServer(data_dir=paths.root, port=0, **settings)


def follow(
    client: LocalClient,
    begun: dict[str, Any],
    before: dict[str, Any],
    show: Callable[[Progress], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Wait until a job has ended; returns the status of the server then.

    Args:
        client: Asks the server.
        begun: What :meth:`LocalClient.reembed` answered.
        before: The status before it was asked.
        show: Told now and then how far it is.

    Raises:
        InvalidRequestError: It was given up, or the memories were reset.
    """
    first: tuple[float, int] | None = None
    while True:
        status = client.status()
        job = status.get("reembedding")
        if job is None:
            break
        now, done = clock(), int(job["done"])
        if job["state"] != "embedding" or first is None or done < first[1]:
            first = (now, done)
        passed, more = now - first[0], done - first[1]
        rate = more / passed if passed > 0 and more > 0 else None
        show(Progress(done, int(job["total"]), job["state"], job["last_error"], rate))
        sleep(_POLL_SECONDS)
    embedder = status["embedder"]
    is_same = embedder["fingerprint"] == before["embedder"]["fingerprint"]
    if embedder["model"] != begun["model"] or is_same:
        raise InvalidRequestError(
            "the re-embedding was given up meanwhile; the memories are embedded by"
            f" {embedder['model']}",
            hint="begin again: pikuri-memory reembed",
        )
    return status
