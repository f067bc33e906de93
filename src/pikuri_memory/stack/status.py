"""How a stack is, for whoever asks: what its keeper told, and each service as the engine has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pikuri_memory.errors import StackError
from pikuri_memory.paths import DataPaths
from pikuri_memory.stack import compose
from pikuri_memory.stack.compose import Service
from pikuri_memory.stack.plan import StackPlan
from pikuri_memory.stack.state import read_state

RELAY_LOG: Final = "relay.log"


@dataclass(frozen=True)
class StackStatus:
    """A stack.

    Attributes:
        phase: What its keeper does, or did last (``state.PHASES``).
        detail: More about it.
        sealed: Whether containers reach the router and nothing else; None where nobody told.
        reasons: Why not, or what weakens it.
        trouble: What the keeper tries to repair, or why nothing is known about the services.
        services: Each, as it should be and as it is.
        router_url: The model endpoint.
        llm_model: Its chat model.
        embedder_model: Its embedding model.
    """

    phase: str
    detail: str
    sealed: bool | None
    reasons: tuple[str, ...]
    trouble: str
    services: tuple[Service, ...]
    router_url: str
    llm_model: str
    embedder_model: str

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "phase": self.phase,
            "detail": self.detail or None,
            "sealed": self.sealed,
            "reasons": list(self.reasons),
            "trouble": self.trouble or None,
            "router": self.router_url,
            "llm_model": self.llm_model,
            "embedder_model": self.embedder_model,
            "services": [
                {
                    "name": service.name,
                    "expected": "running" if service.expected else "absent",
                    "actual": service.state,
                    "health": service.health or None,
                    "detail": service.status or None,
                }
                for service in self.services
            ],
        }


def describe(paths: DataPaths, *, wanted: bool) -> StackStatus | None:
    """How the stack of a data directory is; None where none is or was. Changes nothing.

    Args:
        paths: The data directory.
        wanted: Whether it should run, because somebody keeps it.
    """
    try:
        plan = StackPlan.read(paths)
    except StackError:
        return None
    if plan is None:
        return None
    state = read_state(paths) if wanted else None
    relayed = plan.container_router_url is None
    expected: tuple[str, ...] = ()
    if wanted:
        expected = (*compose.SERVICES, compose.SIDECAR) if relayed else compose.SERVICES
    trouble = state.trouble if state is not None else ""
    found: tuple[Service, ...] = ()
    try:
        found = tuple(compose.services(plan.project, expected))
    except StackError as error:
        trouble = trouble or error.message
    return StackStatus(
        phase=state.phase if state is not None else "",
        detail=state.detail if state is not None else "",
        sealed=state.sealed if state is not None else None,
        reasons=state.reasons if state is not None else (),
        trouble=trouble,
        services=found,
        router_url=plan.router_url,
        llm_model=plan.llm_model,
        embedder_model=plan.embedder_model,
    )
