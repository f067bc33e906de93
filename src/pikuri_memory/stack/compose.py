"""The services of a stack: their one set of values, and what compose is told to do with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pikuri_memory import process
from pikuri_memory.errors import (
    BuildError,
    CommandFailedError,
    CommandNotFoundError,
    CommandTimeoutError,
    EngineAccessError,
    EngineDownError,
    ForeignStackError,
    MissingToolError,
    PortInUseError,
    StackStartError,
    StackTimeoutError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.stack import engine as engines
from pikuri_memory.stack import plan as plans
from pikuri_memory.stack.credentials import Secrets
from pikuri_memory.stack.engine import PROGRAM, Engine, docker, environment
from pikuri_memory.stack.plan import StackPlan

FILE: Final = plans.HERE / "docker-compose.yml"
IMAGE: Final = "pikuri-internal-mem0"
UID_LABEL: Final = "pikuri-internal.uid"
DATA_LABEL: Final = "pikuri-internal.data-dir"
SERVICES: Final = ("mem0", "qdrant", "front")
SIDECAR: Final = "router-proxy"
_UP_SECONDS: Final = 180.0
_DOWN_SECONDS: Final = 90.0
_GRACE_SECONDS: Final = 10
_RESTARTS: Final = 2  # of a service that was not up before: the third time will not be better
_FIELDS: Final = (
    "{{.ID}}",
    "{{.State}}",
    "{{.Status}}",
    '{{.Label "com.docker.compose.service"}}',
    f'{{{{.Label "{UID_LABEL}"}}}}',
    f'{{{{.Label "{DATA_LABEL}"}}}}',
    '{{.Label "com.docker.compose.oneoff"}}',
    "{{.Names}}",
)


@dataclass(frozen=True)
class Service:
    """One service, as it is.

    Attributes:
        name: ``mem0``, ``qdrant``, ``front`` or ``router-proxy``.
        expected: Whether it belongs to the stack.
        state: The container's state in the engine's words; ``missing`` where there is none.
        health: ``healthy``, ``unhealthy``, ``starting``, or empty where it has no check.
        status: The engine's own line about it.
        container: The container's id.
    """

    name: str
    expected: bool
    state: str
    health: str
    status: str
    container: str

    @property
    def runs(self) -> bool:
        """Whether its container runs."""
        return self.state == "running"

    @property
    def right(self) -> bool:
        """Whether it is as it should be. The sidecar's health is that of the user's router."""
        if not self.expected:
            return not self.runs
        return self.runs and (self.health != "unhealthy" or self.name == SIDECAR)


@dataclass(frozen=True)
class Surroundings:
    """Everything that the compose file takes from outside, in one place.

    Attributes:
        plan: The stack's values.
        paths: Its data directory.
        engine: The engine that runs it.
        port: The API's port; never 0.
        qdrant_port: The vector store's port; never 0.
        image: Name and tag of the built image.
        uid: User id of the supervisor.
        gid: Group id of the supervisor.
        ca_bundle: Certificates for the build.
    """

    plan: StackPlan
    paths: DataPaths
    engine: Engine
    port: int
    qdrant_port: int
    image: str
    uid: int
    gid: int
    ca_bundle: Path

    @property
    def relayed(self) -> bool:
        """Whether the containers reach the router through the relay."""
        return self.plan.container_router_url is None and not self.engine.desktop

    @property
    def services(self) -> tuple[str, ...]:
        """The services that the stack should have."""
        return (*SERVICES, SIDECAR) if self.relayed else SERVICES

    def reasons(self) -> tuple[str, ...]:
        """Why the stack is not sealed; empty where it is."""
        if self.plan.container_router_url is not None:
            return ("mem0 has a way out, because container_router_url is given",)
        if self.engine.desktop:
            return ("mem0 has a way out, because Docker Desktop cannot mount the relay's socket",)
        return ()

    def warnings(self) -> tuple[str, ...]:
        """What weakens a stack that is sealed otherwise."""
        found = []
        if not self.engine.isolated:
            found.append(
                f"engine {self.engine.version} leaves services that listen on all of the host's"
                " addresses within the containers' reach; engine 28 does not"
            )
        if not self.engine.limits:
            found.append("the engine applies no memory or process limits here")
        return tuple(found)

    def openai_base(self) -> str:
        """Where mem0 finds the models."""
        plan = self.plan
        if plan.container_router_url is not None:
            return plans.api_base(plan.container_router_url)
        if self.engine.desktop:
            address = plans.router_address(plan.router_url)
            path = plans.api_base(plan.router_url).partition("://")[2].partition("/")[2]
            return f"http://host.docker.internal:{address.port}/{path}"
        return plans.relayed_base(plan.router_url)

    def variables(self) -> dict[str, str]:
        """The compose file's variables. No secret among them, only the secrets' files."""
        plan, secrets = self.plan, Secrets.at(self.paths)
        user = self.engine.container_user(self.uid, self.gid)
        relay_user = self.engine.relay_user(self.uid, self.gid)
        values = {
            "MEM0_CONTEXT": plan.checkout_dir,
            "MEM0_IMAGE": self.image,
            "STACK_DIR": plans.HERE,
            "EMBEDDED_DIR": plans.EMBEDDED,
            "QDRANT_IMAGE": plan.qdrant_image,
            "SOCAT_IMAGE": plan.socat_image,
            "USER": f"{user[0]}:{user[1]}",
            "RELAY_USER": f"{relay_user[0]}:{relay_user[1]}",
            "PORT": self.port,
            "QDRANT_PORT": self.qdrant_port,
            "QDRANT_DIR": self.paths.qdrant,
            "HISTORY_DIR": self.paths.history,
            "SOCK_DIR": plan.sock_dir,
            "ADMIN_KEY_FILE": secrets.admin_key,
            "JWT_SECRET_FILE": secrets.jwt,
            "QDRANT_KEY_FILE": secrets.qdrant_key,
            "LLM_MODEL": plan.llm_model,
            "EMBEDDER_MODEL": plan.embedder_model,
            "EMBEDDING_DIMS": plan.embedding_dims,
            "COLLECTION": plan.collection,
            "OPENAI_BASE_URL": self.openai_base(),
            "ROUTER_URL": plan.container_router_url or plan.router_url,
            "LABEL_UID": self.uid,
            "LABEL_DATA_DIR": self.paths.root,
            "CA_BUNDLE": self.ca_bundle,
        }
        return {f"PIKURI_{name}": str(value) for name, value in values.items()}

    def files(self) -> tuple[Path, ...]:
        """The compose files, the first one the base."""
        names = ["relay" if self.relayed else "direct"]
        if self.engine.isolated:
            names.append("isolated")
        return (FILE, *(FILE.with_name(f"docker-compose.{name}.yml") for name in names))


class Compose:
    """The services of one stack.

    Args:
        around: Their values.
        stop: Ends what is going on.
    """

    def __init__(self, around: Surroundings, stop: threading.Event | None = None) -> None:
        self.around = around
        self._stop = stop

    def refuse_foreign(self) -> None:
        """Leave alone what belongs to somebody else.

        Raises:
            ForeignStackError: Containers of that name carry another user or data directory.
        """
        own = (str(self.around.uid), str(self.around.paths.root))
        for service, labels, names in _containers(self.around.plan.project):
            if labels != ("", "") and labels != own:
                raise ForeignStackError(
                    f"the containers {self.around.plan.project} ({names}) belong to the user with"
                    f" id {labels[0]} and the data directory {labels[1]}",
                    hint="stop them there, or use another data directory: --data-dir",
                )
            del service

    def has_image(self) -> bool:
        """Whether the image of this very source is there."""
        done = docker(("image", "inspect", "--format", "{{.Id}}", self.around.image), check=False)
        return done.returncode == 0

    def build(self, on_line: Callable[[str], object]) -> None:
        """Build the image.

        Raises:
            BuildError: It failed; carries the end of its output.
            StackTimeoutError: It did not end in time.
        """
        seconds = self.around.plan.build_timeout
        try:
            self._run(("--progress", "plain", "build", "mem0"), seconds, on_line)
        except CommandTimeoutError as error:
            raise StackTimeoutError(
                f"the image was not built within {seconds:g} s: {error.message}",
                hint="give it longer: --build-timeout; what is done already is kept",
            ) from None
        except CommandFailedError as error:
            raise BuildError(
                f"the image cannot be built: {_trimmed(error.message)}",
                hint="see the lines above; a company proxy's certificates are given by"
                " PIKURI_MEMORY_CA_BUNDLE (docs/docker.md)",
            ) from None

    def remove_older_images(self) -> None:
        """Remove the images that this data directory had built before the present one.

        One that a container uses stays: the engine refuses. What the builds have kept stays too,
        so that an image that is wanted again is made in seconds.
        """
        labels = {UID_LABEL: self.around.uid, DATA_LABEL: self.around.paths.root}
        filters = [f"reference={IMAGE}:*", *(f"label={key}={it}" for key, it in labels.items())]
        wanted = [word for found in filters for word in ("--filter", found)]
        done = docker(("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", *wanted), check=False)
        for image in set(done.stdout.split()) - {self.around.image}:
            docker(("image", "rm", image), check=False)

    def up(self, on_line: Callable[[str], object]) -> None:
        """Make the services what they should be, and start them.

        Raises:
            PortInUseError: A port is taken; names the owner where the system tells.
            StackStartError: It failed; carries the end of its output.
            StackTimeoutError: It did not end in time.
        """
        try:
            self._run(
                ("--progress", "plain", "up", "--detach", "--no-build", "--remove-orphans"),
                _UP_SECONDS,
                on_line,
            )
        except CommandTimeoutError as error:
            raise StackTimeoutError(error.message, hint=error.hint) from None
        except CommandFailedError as error:
            text = error.message.lower()
            if "already allocated" in text or "address already in use" in text:
                for port in (self.around.port, self.around.qdrant_port):
                    if owner := process.port_owner(port):
                        raise port_in_use(port, owner) from None
            if "cannot connect to the docker daemon" in text:
                raise EngineDownError(
                    "the container engine went away while it started the services",
                    hint="start it: sudo systemctl start docker",
                ) from None
            raise StackStartError(
                f"the services cannot be started: {_trimmed(error.message)}",
                hint="see the lines above, and: pikuri-memory status",
            ) from None

    def restart(self, *services: str) -> None:
        """Stop and start services: mounts are looked up anew."""
        self._quiet(("restart", "--timeout", str(_GRACE_SECONDS), *services), _UP_SECONDS)

    def down(self) -> None:
        """Stop and remove the services and networks; never a volume, never data.

        Raises:
            StackError: It failed.
        """
        down(self.around.plan.project, self.around.uid, self.around.paths)

    def services(self) -> list[Service]:
        """The services as they should be and as they are."""
        return services(self.around.plan.project, self.around.services)

    def failing(self) -> str:
        """Names of the services that have ended for good, or that end again and again."""
        found = [service for service in self.services() if service.expected]
        gone = {one.name for one in found if one.state in ("exited", "dead", "missing")}
        for service in found:
            if service.container:
                done = docker(
                    ("inspect", "--format", "{{.RestartCount}}", service.container), check=False
                )
                count = done.stdout.strip()
                if count.isdigit() and int(count) >= _RESTARTS:
                    gone.add(service.name)
        return ", ".join(sorted(gone))

    def last_lines(self, count: int = 8) -> str:
        """The last lines of every service that is not as it should be, for an error."""
        return last_lines(self.services(), count)

    def _quiet(self, arguments: Sequence[str], seconds: float) -> None:
        try:
            self._run(arguments, seconds, lambda line: None)
        except CommandTimeoutError as error:
            raise StackTimeoutError(error.message, hint=error.hint) from None
        except CommandFailedError as error:
            raise StackStartError(_trimmed(error.message), hint=error.hint) from None

    def _run(
        self, arguments: Sequence[str], seconds: float, on_line: Callable[[str], object]
    ) -> None:
        around = self.around
        files = [word for path in around.files() for word in ("--file", str(path))]
        # No file of the user's may change the values, neither by name nor by place.
        own = ["--env-file", os.devnull, "--project-name", around.plan.project, *files]
        try:
            process.run_tied(
                [PROGRAM, "compose", *own, *arguments],
                timeout=seconds,
                cwd=plans.HERE,
                env={**environment(), **around.variables()},
                on_line=on_line,
                stop=self._stop,
            )
        except CommandNotFoundError:
            raise MissingToolError(
                "docker is not installed or not on PATH",
                hint="install it: https://docs.docker.com/engine/install/",
            ) from None


def image_tag(plan: StackPlan, patches: str) -> str:
    """Name and tag of the image of a source: the same parts, the same tag."""
    return f"{IMAGE}:{plan.ref[:12]}-{plans.short_hash(patches, plans.build_digest())}"


def services(project: str, expected: Sequence[str]) -> list[Service]:
    """The services of a project as they should be and as they are.

    Raises:
        StackError: The engine does not tell.
    """
    found: dict[str, Service] = {}
    for row in _rows(project):
        identifier, state, status, name, _, _, oneoff, _ = row
        if oneoff == "True":
            continue
        health = ""
        for word in ("unhealthy", "healthy", "health: starting"):
            if f"({word})" in status:
                health = word.rpartition(" ")[2]
                break
        found[name] = Service(name, name in expected, state, health, status, identifier)
    for name in expected:
        found.setdefault(name, Service(name, True, "missing", "", "", ""))
    return [found[name] for name in sorted(found)]


def last_lines(found: Sequence[Service], count: int) -> str:
    """The states of services, and the last lines of those that are not right."""
    told = []
    for service in found:
        told.append(f"{service.name}: {service.status or service.state}")
        if service.container and (not service.right or service.health == "starting"):
            done = docker(("logs", "--tail", str(count), service.container), check=False)
            lines = (done.stdout + done.stderr).splitlines()
            told += [f"    {line[:200]}" for line in lines[-count:]]
    return "\n".join(told)


def present(project: str, uid: int, data_dir: Path) -> bool:
    """Whether there are containers of a project, of this user and data directory.

    Raises:
        StackError: The engine does not tell.
    """
    own = (str(uid), str(data_dir))
    return any(labels in (own, ("", "")) for _, labels, _ in _containers(project))


def down(project: str, uid: int, paths: DataPaths) -> None:
    """Stop and remove the containers and networks of a project, if they are ours; never a volume.

    Raises:
        StackError: The engine failed to.
    """
    if not present(project, uid, paths.root):
        leftovers = docker(
            ("network", "ls", "-q", "--filter", f"label=com.docker.compose.project={project}")
        )
        if not leftovers.stdout.strip():
            return
    arguments = ("compose", "--env-file", os.devnull, "--project-name", project, "down")
    done = process.run_tied(
        [PROGRAM, *arguments, "--remove-orphans", "--timeout", str(_GRACE_SECONDS)],
        timeout=_DOWN_SECONDS,
        # Away from any compose file: the project is known by its labels alone.
        cwd=Path("/"),
        env=environment(),
        check=False,
    )
    if done.returncode != 0:
        raise engines.error_of(("compose down",), done)


def port_in_use(port: int, owner: str) -> PortInUseError:
    """The error about a port that somebody has."""
    return PortInUseError(
        f"port {port} on 127.0.0.1 is in use by {owner}",
        hint=f"stop that, or take another one: --port {port + 1 if port < 65535 else 8888}"
        " (--qdrant-port for the vector store)",
    )


def publisher(port: int) -> str | None:
    """The container that publishes a port, for a message."""
    done = docker(
        ("ps", "--filter", f"publish={port}", "--format", "{{.Names}} ({{.Image}})"), check=False
    )
    names = done.stdout.split("\n")[0].strip()
    return f"the container {names}" if done.returncode == 0 and names else None


def publishes(project: str, port: int) -> bool:
    """Whether a container of the project publishes the port."""
    done = docker(
        (
            *("ps", "-q", "--filter", f"publish={port}"),
            *("--filter", f"label=com.docker.compose.project={project}"),
        ),
        check=False,
    )
    return bool(done.stdout.strip())


def _rows(project: str) -> list[list[str]]:
    done = docker(
        (
            *("ps", "--all", "--no-trunc"),
            *("--filter", f"label=com.docker.compose.project={project}"),
            *("--format", "\t".join(_FIELDS)),
        )
    )
    return [
        row.split("\t") for row in done.stdout.splitlines() if row.count("\t") == len(_FIELDS) - 1
    ]


def _containers(project: str) -> list[tuple[str, tuple[str, str], str]]:
    return [(row[3], (row[4], row[5]), row[7]) for row in _rows(project)]


def _trimmed(text: str) -> str:
    return text if len(text) <= 4000 else text[:300] + "\n...\n" + text[-3600:]


# What an engine's error means for whoever repairs: wait for the engine, do not give up.
ENGINE_AWAY: Final = (EngineDownError, EngineAccessError)
