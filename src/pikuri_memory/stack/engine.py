"""The container engine: is it there, may we use it, is it new enough, and as whom does it run?"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pikuri_memory import process
from pikuri_memory.errors import (
    CommandNotFoundError,
    CommandTimeoutError,
    EngineAccessError,
    EngineDownError,
    EngineTooOldError,
    MissingToolError,
    StackError,
    StackTimeoutError,
)

PROGRAM: Final = "docker"
# Build contexts beside the main one need compose 2.17, quick first health checks engine 25.
LEAST_ENGINE: Final = (25, 0)
LEAST_COMPOSE: Final = (2, 17)
# From here on a network can be made whose gateway is no address of the host.
ISOLATED_ENGINE: Final = (28, 0)
UNPRIVILEGED: Final = (65532, 65532)
_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Engine:
    """What ``docker info`` says, as far as it matters.

    Attributes:
        version: Of the engine, as text.
        compose: Version of compose, as text.
        rootless: Whether root in a container is this user on the host.
        desktop: Whether it runs in a virtual machine, where no unix socket can be mounted.
        isolated: Whether networks can be cut off from the host's gateway too.
        limits: Whether memory and pid limits work.
    """

    version: str
    compose: str
    rootless: bool
    desktop: bool
    isolated: bool
    limits: bool

    def container_user(self, uid: int, gid: int) -> tuple[int, int]:
        """User and group of the containers, for a supervisor of this user and group."""
        if self.rootless:
            return (0, 0)
        return UNPRIVILEGED if uid == 0 else (uid, gid)

    def relay_user(self, uid: int, gid: int) -> tuple[int, int]:
        """User and group of the sidecar: whoever may open the relay's socket."""
        return (0, 0) if self.rootless else (uid, gid)

    def secrets_owner(self, uid: int, gid: int) -> tuple[int, int] | None:
        """Who must own what the containers read, where that is not the supervisor."""
        return UNPRIVILEGED if uid == 0 and not self.rootless else None


def look() -> Engine:
    """Ask the engine.

    Raises:
        MissingToolError: docker or its compose is not installed.
        EngineDownError: The daemon does not answer.
        EngineAccessError: This user may not speak to it.
        EngineTooOldError: The engine or compose is too old.
        StackError: It says something else; quoted.
    """
    info = _info()
    compose = _compose_version()
    version = str(info.get("ServerVersion") or "")
    if _number(version) < LEAST_ENGINE:
        raise EngineTooOldError(
            f"the container engine is {version or 'of unknown version'}; it must be"
            f" {_dotted(LEAST_ENGINE)} or newer",
            hint="install a newer engine: https://docs.docker.com/engine/install/",
        )
    if _number(compose) < LEAST_COMPOSE:
        raise EngineTooOldError(
            f"docker compose is {compose}; it must be {_dotted(LEAST_COMPOSE)} or newer",
            hint="install a newer compose plugin: https://docs.docker.com/compose/install/",
        )
    security = " ".join(map(str, info.get("SecurityOptions") or ()))
    return Engine(
        version=version,
        compose=compose,
        rootless="name=rootless" in security,
        desktop="Docker Desktop" in str(info.get("OperatingSystem") or ""),
        isolated=_number(version) >= ISOLATED_ENGINE,
        limits=bool(info.get("MemoryLimit", True)) and bool(info.get("PidsLimit", True)),
    )


def answers() -> bool:
    """Whether the daemon answers now."""
    try:
        return docker(("version", "--format", "{{.Server.Version}}"), check=False).returncode == 0
    except StackError:
        return False


def docker(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = _SECONDS,
    check: bool = True,
) -> process.Completed:
    """Run a short docker command.

    Raises:
        MissingToolError: docker is not installed.
        StackTimeoutError: It did not end in time.
        StackError: It failed (only with ``check``); of the class that fits.
    """
    try:
        done = process.run(
            [PROGRAM, *arguments], timeout=timeout, env=env or environment(), check=False
        )
    except CommandNotFoundError:
        raise MissingToolError(
            "docker is not installed or not on PATH",
            hint="install it: https://docs.docker.com/engine/install/",
        ) from None
    except CommandTimeoutError as error:
        raise StackTimeoutError(
            error.message, hint="see whether the engine hangs: docker info"
        ) from None
    if check and done.returncode != 0:
        raise error_of(arguments, done)
    return done


def error_of(arguments: Sequence[str], done: process.Completed) -> StackError:
    """The error that a failed docker command means, with its own words."""
    said = (done.stderr.strip() or done.stdout.strip())[-2000:]
    text = said.lower()
    if "permission denied" in text and ("socket" in text or "connect" in text):
        return EngineAccessError(
            f"this user may not use the container engine: {said}",
            hint="join its group, then log in again: sudo usermod -aG docker $USER",
        )
    if (
        "cannot connect to the docker daemon" in text
        or "is the docker daemon running" in text
        or "failed to connect to the docker api" in text
    ):
        return EngineDownError(
            f"the container engine does not answer: {said}",
            hint="start it: sudo systemctl start docker",
        )
    return StackError(
        f"docker {arguments[0]} failed with code {done.returncode}: {said}",
        hint=f"run it by hand to see why: docker {arguments[0]}",
    )


def environment() -> dict[str, str]:
    """The user's environment without what would change what compose does."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COMPOSE_", "PIKURI_"))
    } | {"DOCKER_CLI_HINTS": "false", "LC_ALL": "C"}


def _info() -> dict[str, Any]:
    arguments = ("info", "--format", "{{json .}}")
    done = docker(arguments, check=False)
    try:
        info = json.loads(done.stdout)
        if not isinstance(info, dict):
            raise ValueError
    except ValueError:
        raise error_of(arguments, done) from None
    if problems := info.get("ServerErrors"):
        raise error_of(
            arguments, process.Completed(done.returncode, "", "\n".join(map(str, problems)))
        )
    if done.returncode != 0 or not info.get("ServerVersion"):
        raise error_of(arguments, done)
    return info


def _compose_version() -> str:
    done = docker(("compose", "version", "--short"), check=False)
    found = done.stdout.strip()
    if done.returncode != 0 or not _number(found) > (0, 0):
        raise MissingToolError(
            f"docker compose is not installed: {(done.stderr or done.stdout).strip()[-500:]}",
            hint="install its plugin: https://docs.docker.com/compose/install/",
        )
    return found


def _number(version: str) -> tuple[int, int]:
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
