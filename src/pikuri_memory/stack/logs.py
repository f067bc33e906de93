"""Reading the logs of a stack's services."""

from __future__ import annotations

from collections.abc import Iterator

from pikuri_memory import process
from pikuri_memory.errors import InvalidRequestError
from pikuri_memory.paths import DataPaths
from pikuri_memory.stack import compose
from pikuri_memory.stack.engine import PROGRAM, docker, environment
from pikuri_memory.stack.plan import StackPlan
from pikuri_memory.stack.status import RELAY_LOG

RELAY = "relay"


def lines(paths: DataPaths, service: str, *, lines: int, follow: bool) -> Iterator[str]:
    """The last lines of a service's log; without end to follow.

    Raises:
        InvalidRequestError: There is no such service, or no stack.
        StackError: The engine does not tell.
    """
    plan = StackPlan.read(paths)
    if plan is None:
        raise InvalidRequestError(
            f"there is no container stack in {paths.root}", hint="pikuri-memory logs"
        )
    if service == RELAY:
        try:
            text = (paths.logs / RELAY_LOG).read_text(errors="replace")
        except OSError:
            text = ""
        yield from text.splitlines()[-lines:] if lines else ()
        return
    known = (*compose.SERVICES, compose.SIDECAR)
    container = next(
        (found.container for found in compose.services(plan.project, ()) if found.name == service),
        None,
    )
    if container is None:
        if service in known:
            raise InvalidRequestError(
                f"the service {service} has no container now, and so no log",
                hint="pikuri-memory logs shows what its keeper did; pikuri-memory up --docker",
            )
        raise InvalidRequestError(
            f"the stack has no service {service!r}",
            hint="one of: " + ", ".join((*known, RELAY)),
        )
    if not follow:
        done = docker(("logs", "--tail", str(lines), container))
        yield from (done.stdout + done.stderr).splitlines()
        return
    yield from process.follow(
        [PROGRAM, "logs", "--tail", str(lines), "--follow", container], env=environment()
    )
