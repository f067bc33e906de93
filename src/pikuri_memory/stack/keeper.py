"""The process that owns a running stack: ``pikuri-memory stack-keeper``, hidden.

It makes the source, the image, the relay and the services, publishes the stack when it answers,
repairs what dies, and takes all of it down when nobody holds a lease. Whatever it starts ends with
it, however it ends; the containers go on then, and the next keeper takes them over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import threading
from pathlib import Path
from typing import Final

from pikuri_memory import discovery, lease, process
from pikuri_memory._version import __version__
from pikuri_memory.errors import (
    AccessError,
    PikuriMemoryError,
    ServerStartError,
    StackError,
    StackStartError,
    StackTimeoutError,
    StorageError,
)
from pikuri_memory.keeping import exit_code, start_logging, take_directory
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings
from pikuri_memory.stack import compose, credentials, engine, health
from pikuri_memory.stack.checkout import Checkout, Source
from pikuri_memory.stack.compose import Compose, Surroundings
from pikuri_memory.stack.plan import StackPlan, router_address
from pikuri_memory.stack.relay import Relay
from pikuri_memory.stack.state import Teller
from pikuri_memory.waiting import Deadline

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
CA_VARIABLE: Final = "PIKURI_MEMORY_CA_BUNDLE"
_LOOK_SECONDS: Final = 5.0
_WAIT_SECONDS: Final = 0.5
_PATIENCE: Final = 3  # looks at which a service is ill before something is done about it
_LONGEST_PAUSE: Final = 60.0


class Stopped(Exception):
    """Nobody wants the stack any more, or a signal came, in the middle of its start."""


def run(paths: DataPaths, *, keep: bool) -> int:
    """Keep the stack of a data directory until a signal, or until nobody holds a lease.

    Args:
        paths: The data directory; the plan lies in it.
        keep: Whether the stack stays up without leases.

    Returns:
        The exit code: 0, or that of an error, which is printed to standard error as one line of
        JSON for whoever started the process.
    """

    def body() -> None:
        try:
            _keep(paths, keep)
        except Stopped:
            raise ServerStartError(
                "the start of the stack was given up: nobody wants it any more, or it was stopped",
                hint="start it again: pikuri-memory up --docker",
            ) from None

    return exit_code(
        body, paths, name="the stack's keeper", disk=f"{paths.root} or of the checkout"
    )


def _keep(paths: DataPaths, keep: bool) -> None:
    os.umask(0o077)
    lease.prepare(paths)
    start_logging(paths, Settings.resolve({}))
    take_directory(paths)
    keeper = lease.Keeper(paths, keep=keep)
    plan = StackPlan.read(paths)
    if plan is None:
        raise StackError(
            f"there is no plan of a stack in {paths.root}", hint="pikuri-memory up --docker"
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def stop_when_unused() -> None:
        if keeper.wait_until_unused(stop):
            log.info("nobody holds a lease: stopping")
            stop.set()

    threading.Thread(target=stop_when_unused, name="keeper", daemon=True).start()
    stack = Stack(paths, plan, stop)
    try:
        stack.bring_up()
        info = discovery.ServerInfo(
            kind=discovery.STACK,
            pid=keeper.identity.pid,
            start_time=keeper.identity.start_time,
            endpoint=stack.endpoint,
            version=__version__,
        )
        discovery.write_server_info(paths, info)
        log.info("the stack answers on %s", info.endpoint)
        stack.look_after()
    finally:
        # The services first: withdrawn only when they are gone, so that whoever waits for the
        # end of this process waits for theirs.
        stack.take_down()
        discovery.clear_server_info(paths, os.getpid())
        if lease.is_kept(paths, keeper.identity):
            lease.clear_keep(paths)
        log.info("stopped")


class Stack:
    """One stack, from its source to its end. All of it happens in one thread.

    Args:
        paths: The data directory.
        plan: What it is made of.
        stop: Set when it is to end.
    """

    def __init__(self, paths: DataPaths, plan: StackPlan, stop: threading.Event) -> None:
        self._paths = paths
        self._plan = plan
        self._stop = stop
        self._teller = Teller(paths, os.getpid())
        self._relay: Relay | None = None
        self._compose: Compose | None = None
        self._begun = False
        self._key = ""
        self._renew_key = False
        self._key_stamp: tuple[int, int] | None = None
        self._seen_stamp: tuple[int, int] | None = None
        self._shut = False
        self._renew_sidecar = threading.Event()
        self.endpoint = ""

    # ------------------------------------------------------------ start

    def bring_up(self) -> None:
        """Start everything, and return when a scoped read is answered.

        Raises:
            PikuriMemoryError: A step failed. What was begun is for :meth:`take_down`.
            Stopped: The end came first.
        """
        try:
            self._bring_up()
        except PikuriMemoryError:
            if self._stop.is_set():
                raise Stopped from None
            raise

    def _bring_up(self) -> None:
        plan, paths, report = self._plan, self._paths, self._teller.report
        report("check", "the container engine")
        found = engine.look()
        around = self._surroundings(found)
        self._compose = services = Compose(around, self._stop)
        self._teller.tell(sealed=not around.reasons(), reasons=around.reasons() + around.warnings())
        services.refuse_foreign()
        # What a killed keeper left is taken over now, and taken down if this start fails.
        self._begun = compose.present(plan.project, around.uid, paths.root)
        for port in (around.port, around.qdrant_port):
            self._check_port(port)
        report("check", f"the embedder {plan.embedder_model}")
        embedder = (plan.collection, plan.embedder_model, plan.embedding_dims)
        health.check_embedder(paths, *embedder)
        health.check_dimensions(plan.router_url, plan.embedder_model, plan.embedding_dims)
        self._go_on()

        checkout = Checkout(
            Path(plan.checkout_dir),
            fetch_timeout=plan.build_timeout,
            report=report,
            stop=self._stop,
        )
        source = Source.of(plan.repo_url, plan.ref, Path(plan.patch_dir))
        # Held until the image is built, so that nobody changes the source meanwhile.
        with checkout.locked(plan.build_timeout):
            has_image = services.has_image()
            # A cleaned cache is no reason to fetch what is built already.
            if not has_image or checkout.directory.exists():
                checkout.prepare(source)
            self._go_on()
            self._make_mounts(found)
            if around.relayed:
                report("relay", f"to {router_address(plan.router_url)}")
                self._start_relay()
            if not has_image:
                report("build", around.image)
                services.build(lambda line: report("build", line))
        self._go_on()
        report("start", "")
        self._begun = True
        services.up(lambda line: report("start", line.strip()))
        if self._renew_key:
            services.restart("mem0")
        self._go_on()
        self._await_answer()
        health.remember_embedder(paths, *embedder)
        if not has_image:
            with contextlib.suppress(StackError):  # a slow disk is no reason to stop what answers
                services.remove_older_images()
        report("ready", self.endpoint)

    def _surroundings(self, found: engine.Engine) -> Surroundings:
        plan = self._plan
        port = plan.port or _free_port()
        qdrant_port = plan.qdrant_port or _free_port(but=port)
        self.endpoint = f"http://{HOST}:{port}"
        patches = Source.of(plan.repo_url, plan.ref, Path(plan.patch_dir)).digest()
        bundle = os.environ.get(CA_VARIABLE)
        return Surroundings(
            plan=plan,
            paths=self._paths,
            engine=found,
            port=port,
            qdrant_port=qdrant_port,
            image=compose.image_tag(plan, patches),
            uid=os.geteuid(),
            gid=os.getegid(),
            ca_bundle=Path(bundle) if bundle else Path(os.devnull),
        )

    def _check_port(self, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return
            except OSError:
                pass
        # A keeper that was killed leaves its services, which are ours to take over.
        if not compose.publishes(self._plan.project, port):
            owner = compose.publisher(port) or process.port_owner(port)
            raise compose.port_in_use(port, owner or "another process")

    def _make_mounts(self, found: engine.Engine) -> None:
        """The directories that containers mount, before the engine makes them root's."""
        owner = found.secrets_owner(os.geteuid(), os.getegid())
        for directory in (self._paths.qdrant, self._paths.history):
            directory.mkdir(mode=0o700, exist_ok=True)
            if owner is not None:
                _give(directory, owner)
        sockets = Path(self._plan.sock_dir)
        sockets.mkdir(parents=True, mode=0o700, exist_ok=True)
        copy = credentials.Secrets.at(self._paths).admin_key
        had = credentials.content(copy)
        discovery.ensure_api_key(self._paths)
        # Before the copy is made: of two keys the later one is seen afterwards.
        self._key_stamp = self._seen_stamp = self._stamp()
        credentials.prepare(self._paths, owner)
        self._key = credentials.content(copy)
        # Containers of a keeper that was killed may have an older one.
        self._renew_key = self._begun and had != self._key

    def _start_relay(self) -> None:
        relay = Relay(
            self._plan.socket,
            router_address(self._plan.router_url),
            output=self._paths.logs / "relay.log",
            bind_timeout=self._plan.relay_bind_timeout,
            on_replaced=self._renew_sidecar.set,
        )
        relay.start()
        self._relay = relay

    def _await_answer(self) -> None:
        assert self._compose is not None
        looks = 0
        deadline = Deadline(self._plan.healthcheck_timeout)
        while True:
            over = deadline.expired
            wrong = health.problem(self.endpoint, self._key)
            if wrong is None:
                return
            self._teller.report("wait", wrong)
            self._go_on()
            if over:
                raise StackTimeoutError(
                    f"waited {self._plan.healthcheck_timeout:g} s for the stack at"
                    f" {self.endpoint}: {wrong}\n{self._compose.last_lines()}",
                    hint="see the lines above, or give it longer: --healthcheck-timeout",
                )
            # Twice, because a service that has ended may be about to be started again.
            looks = looks + 1 if (failing := self._compose.failing()) else 0
            if looks > 1:
                raise StackStartError(
                    f"a service of the stack ended: {failing}\n{self._compose.last_lines()}",
                    hint="see the lines above",
                )
            if self._stop.wait(min(_WAIT_SECONDS, deadline.remaining())):
                raise Stopped

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped

    # ------------------------------------------------------------ while it runs

    def look_after(self) -> None:
        """Repair what dies, until the end."""
        pause = _LOOK_SECONDS
        unhealthy: dict[str, int] = {}
        while not self._paused(pause):
            try:
                if not self._follow_key():
                    continue
                pause = _LOOK_SECONDS
                if self._look(unhealthy):
                    self._teller.tell(trouble="")
                    continue
            except compose.ENGINE_AWAY as error:
                self._teller.tell(trouble=error.message[:300])
                log.warning("the container engine is away")
            except PikuriMemoryError as error:
                self._teller.tell(trouble=error.message[:300])
                log.warning("the stack cannot be repaired: %s", error.message[:1000])
                pause = min(_LONGEST_PAUSE, pause * 2)
            except Exception as error:
                log.warning("the keeper met %s", type(error).__name__)
        self._teller.report("stop", "")

    def _paused(self, seconds: float) -> bool:
        """Wait for so long, or until there is another key; whether the end has come."""
        deadline = Deadline(seconds)
        while not deadline.expired:
            if self._stop.wait(min(_WAIT_SECONDS, deadline.remaining())):
                return True
            if self._stamp() != self._seen_stamp:
                return False
        return False

    def _look(self, unhealthy: dict[str, int]) -> bool:
        """Compare with what should be, and repair; whether all was right."""
        assert self._compose is not None
        if self._renew_sidecar.is_set():
            self._renew_sidecar.clear()
            log.warning("the relay's directory was replaced: restarting the sidecar")
            self._compose.restart(compose.SIDECAR)
        found = self._compose.services()
        wrong = [service for service in found if service.expected and not service.runs]
        if wrong:
            names = ", ".join(f"{service.name} ({service.state})" for service in wrong)
            self._teller.tell(trouble=f"starting again: {names}")
            log.warning("not running: %s; starting the services again", names)
            self._compose.up(lambda line: None)
            return False
        sick = []
        for service in found:
            if service.right:
                unhealthy.pop(service.name, None)
                continue
            unhealthy[service.name] = unhealthy.get(service.name, 0) + 1
            if unhealthy[service.name] >= _PATIENCE:
                sick.append(service.name)
        if sick:
            self._teller.tell(trouble=f"restarting: {', '.join(sick)}")
            log.warning("unhealthy: %s; restarting", ", ".join(sick))
            for name in sick:
                unhealthy.pop(name, None)
            self._compose.restart(*sick)
        return not unhealthy and not sick

    def _follow_key(self) -> bool:
        """Whether there is a key that nobody else may read; without one, nobody gets in.

        The container reads its copy when it starts: after ``key rotate`` it is started again.
        """
        assert self._compose is not None
        stamp = self._seen_stamp = self._stamp()
        wrong = f"the key file {self._paths.api_key} is missing or empty"
        try:
            found = discovery.read_api_key(self._paths)
        except (AccessError, StorageError) as error:
            found, wrong = None, error.message
        if found is None:
            self._teller.tell(trouble=f"nobody gets in: {wrong}"[:300])
            if not self._shut:
                log.warning("nobody gets in: %s", wrong)
                credentials.shut(self._paths)
                self._shut = True
            return False
        if self._shut or stamp != self._key_stamp:
            around = self._compose.around
            credentials.prepare(self._paths, around.engine.secrets_owner(around.uid, around.gid))
            log.info("there is a new key: restarting the API")
            self._compose.restart("mem0")
            self._key_stamp, self._shut = stamp, False
        return True

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._paths.api_key.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns)

    # ------------------------------------------------------------ end

    def take_down(self) -> None:
        """Services, then relay. A failure is a warning: nothing of it costs a memory."""
        if self._begun and self._compose is not None:
            try:
                self._compose.down()
            except PikuriMemoryError as error:
                log.warning("the services could not be stopped: %s", error.message)
        if self._relay is not None:
            self._relay.stop()


def _free_port(but: int = 0) -> int:
    """A port that is free, and stays so while an image is built: below those that the system
    gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port != but:
            return port


def _give(directory: Path, owner: tuple[int, int]) -> None:
    """Make a directory another user's, with what is in it, where it is not yet."""
    found = directory.stat()
    if (found.st_uid, found.st_gid) == owner:
        return
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(root) / name, *owner, follow_symlinks=False)
    os.chown(directory, *owner)
