"""The server process: ``pikuri-memory serve``.

It owns the data directory, answers on 127.0.0.1 and is its own keeper: when nobody holds a lease
any more, it stops accepting, flushes and exits while it holds the lease lock exclusively.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pikuri_memory import discovery, lease, process
from pikuri_memory._version import __version__
from pikuri_memory.errors import PortInUseError
from pikuri_memory.keeping import exit_code, start_logging, take_directory
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings

if TYPE_CHECKING:
    from pikuri_memory.embedded.engine import Engine, Pace
    from pikuri_memory.embedded.model import Embedder
    from pikuri_memory.embedded.models_used import ModelsUsed
    from pikuri_memory.embedded.observer import Observer

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BACKLOG = 1024
_MAY_BE_LEFT = (
    *("extraction-", "texts-", "questions-", "looks-", "embedder-watch", "warm-up"),
    "reembed",  # the job, those who ask for one, and the last memories of one
)


def bind(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1.

    Raises:
        PortInUseError: Another process listens there; it is named where the system tells.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        owner = process.port_owner(port)
        by = f" by {owner}" if owner else ""
        raise PortInUseError(
            f"port {port} on {HOST} is in use{by} ({error.strerror})",
            hint=f"take another one: pikuri-memory up --port {port + 1 if port < 65535 else 8888}",
        ) from None
    return listener


def builtin_embedder() -> Embedder:
    """The embedder of the wheel."""
    from pikuri_memory.models.builtin import BuiltinEmbedder

    return BuiltinEmbedder()


def run(
    settings: Settings,
    *,
    keep: bool,
    make_embedder: Callable[[], Embedder] = builtin_embedder,
    observer: Observer | None = None,
    pace: Pace | None = None,
) -> int:
    """Serve until stopped by a signal, or until nobody holds a lease.

    Args:
        settings: Of this server.
        keep: Whether it stays up without leases.
        make_embedder: Makes the embedder.
        observer: Told of every phase; for tests.
        pace: When the background work is done; for tests.

    Returns:
        The exit code: 0, or that of an error, which is printed to standard error as one line of
        JSON for whoever started the process.
    """
    paths = DataPaths.at(settings.data_dir)
    return exit_code(
        lambda: _serve(settings, paths, keep, make_embedder, observer, pace),
        paths,
        name="the server",
        disk=str(paths.root),
    )


def left_behind() -> list[str]:
    """Names of threads that still wait for the user's models, after the server has closed.

    They hold nothing. But an interpreter that ends while a thread is deep in a library's code may
    crash, so a process that has some is to be ended without its last rites.
    """
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_MAY_BE_LEFT)]


def _serve(
    settings: Settings,
    paths: DataPaths,
    keep: bool,
    make_embedder: Callable[[], Embedder],
    observer: Observer | None,
    pace: Pace | None,
) -> None:
    os.umask(0o077)
    lease.prepare(paths)
    start_logging(paths, settings)
    take_directory(paths)
    # Made while the owner lock is held, for it removes the marker of an earlier keeper.
    keeper = lease.Keeper(paths, keep=keep)
    # Bound before the slow part, so that a port in use is told at once; answers come later.
    listener = bind(settings.port)

    from pikuri_memory.embedded.engine import Engine
    from pikuri_memory.embedded.models_used import Maker, ModelsUsed, stored_in
    from pikuri_memory.embedded.turns import Limits

    # A router that is new is asked now: what it cannot do is to be told by the start.
    models = ModelsUsed(settings, paths, stored_in(paths), Maker(make_embedder))
    try:
        engine = Engine(
            paths,
            models.vectors,
            extractor=models.extractor,
            # One more than the router takes: its turn is prepared while another one is answered.
            limits=Limits(settings.router_concurrency + 1, seconds=settings.extraction_timeout),
            about=models.about,
            source=models.source(),
            language=settings.language,
            free_space_reserve=settings.free_space_reserve,
            purge_seconds=settings.purge_hours * 3600,
            embedders=models,
            observer=observer,
            pace=pace,
        )
    except BaseException:
        models.close()
        raise
    try:
        discovery.ensure_api_key(paths)
        models.remember()
        models.start(engine)
        _listen(settings, paths, keeper, engine, models, listener)
    finally:
        models.close()
        engine.close()
        discovery.clear_server_info(paths, os.getpid())
        if lease.is_kept(paths, keeper.identity):
            lease.clear_keep(paths)
        log.info("stopped")


def _listen(
    settings: Settings,
    paths: DataPaths,
    keeper: lease.Keeper,
    engine: Engine,
    models: ModelsUsed,
    listener: socket.socket,
) -> None:
    import uvicorn

    from pikuri_memory.embedded.app import create_app
    from pikuri_memory.embedded.connection import Connection, allow_connections

    allow_connections()
    app = create_app(
        engine,
        api_key=discovery.ApiKeyFile(paths),
        settings=settings,
        version=__version__,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        loop="uvloop",
        http=Connection,
        ws="none",
        # Nobody stands in front of us whose word on a caller's address would count.
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(max(1, settings.stop_timeout / 2)),
    )

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Nobody can say how long a model takes: those who wait for one are told now.
            engine.abandon()
            models.hang_up()
            await super().shutdown(sockets)

    server = Server(config)

    info = discovery.ServerInfo(
        kind=discovery.EMBEDDED,
        pid=keeper.identity.pid,
        start_time=keeper.identity.start_time,
        endpoint=f"http://{HOST}:{listener.getsockname()[1]}",
        version=__version__,
    )
    stopped = threading.Event()

    def stop_when_unused() -> None:
        if keeper.wait_until_unused(stopped):
            log.info("nobody holds a lease: stopping")
            server.should_exit = True

    discovery.write_server_info(paths, info)
    log.info("serving on %s with %d memories", info.endpoint, engine.status()["memories"])
    threading.Thread(target=stop_when_unused, name="keeper", daemon=True).start()

    # uvicorn hands a signal on to the default handler after its shutdown; ours must be one that
    # lets the engine close.
    # One that comes before uvicorn listens to signals counts as well.
    def stop(*_: object) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        server.run(sockets=[listener])
    finally:
        stopped.set()
