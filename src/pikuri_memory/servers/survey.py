"""What a router offers, and what would be used for what; no server is needed, none is changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pikuri_memory.errors import SettingError
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings
from pikuri_memory.waiting import Deadline

if TYPE_CHECKING:
    from pikuri_memory.models.choice import Stored, Wanted
    from pikuri_memory.models.findings import Finding, Probe
    from pikuri_memory.models.ranking import Ranking


@dataclass(frozen=True)
class Use:
    """What would do a task.

    Attributes:
        model: Its name; ``builtin`` for the embedder of the wheel; None for nothing.
        why: A few words.
    """

    model: str | None
    why: str


@dataclass(frozen=True)
class Survey:
    """What was found out about a router.

    Attributes:
        probe: All that it offers and can do.
        extraction: What would make facts of turns.
        embedding: What would embed the memories.
        kinds: What each offered model is for, by its id: ``chat``, ``embedding`` or ``unknown``.
    """

    probe: Probe
    extraction: Use
    embedding: Use
    kinds: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        used = {self.extraction.model: "extraction", self.embedding.model: "embedding"}
        return {
            "router": self.probe.router,
            "models": [
                {
                    "id": model.id,
                    "kind": self.kinds[model.id],
                    "context_tokens": model.context_tokens,
                    "loaded": model.loaded,
                    "used_for": used.get(model.id),
                }
                for model in self.probe.offered
            ],
            "extraction": {"model": self.extraction.model, "why": self.extraction.why},
            "embedding": {"model": self.embedding.model, "why": self.embedding.why},
            "findings": [
                {"level": one.level, "subject": one.subject, "text": one.text, "hint": one.hint}
                for one in self.probe.findings
            ],
        }


def _as_stack(settings: Settings, paths: DataPaths) -> Settings:
    """The settings, with the router and the models of a container stack where none are given."""
    from pikuri_memory.stack.plan import StackPlan

    plan = StackPlan.read(paths)
    if plan is None or settings.router is not None:
        return settings
    return replace(
        settings,
        router=plan.router_url,
        llm_model=settings.llm_model or plan.llm_model,
        embedder_model=settings.embedder_model or plan.embedder_model,
    )


def survey(settings: Settings, paths: DataPaths) -> Survey:
    """Ask a router what it offers, and try what would be used of it.

    Args:
        settings: ``router``, or else the one that was used last; ``llm_model`` and
            ``embedder_model`` where others than the best are wanted.
        paths: The data directory, for what its memories need.

    Raises:
        SettingError: No router is given or known.
        EmbedderMismatchError: The memories need another embedder than was asked for.
        ModelError: The router cannot be asked, or does not have what was named.
    """
    from pikuri_memory.embedded.models_used import open_router, stored_in
    from pikuri_memory.models import choice
    from pikuri_memory.models.probe import probe
    from pikuri_memory.models.ranking import rank, use

    stored = stored_in(paths)
    remembered = choice.read(paths.models)
    if remembered is None:
        settings = _as_stack(settings, paths)
    wanted = choice.want(settings, remembered, stored)
    if wanted.router is None:
        raise SettingError(
            "no router is given, and none was used before",
            hint="say where your models answer: pikuri-memory models --router"
            " http://127.0.0.1:8080",
        )
    with open_router(settings, wanted.router, wanted.router_key_file) as router:
        deadline = Deadline(settings.router_timeout)
        names = {model.id for model in router.models(deadline)}
        llm = wanted.llm_model
        if not wanted.llm_decided and llm not in names:
            llm = None
        here = wanted.embedder_router is None and wanted.embedder_model != choice.BUILTIN
        found = probe(
            router,
            llm_model=llm,
            embedder_model=wanted.embedder_model if here else None,
            want_chat=llm is not None or not wanted.llm_decided,
            want_embedding=here,
            deadline=deadline,
        )
    ranking = rank(found.offered)
    return Survey(
        probe=replace(found, findings=(*found.findings, *_more(wanted, stored, found, ranking))),
        extraction=_extraction(settings, wanted, found, ranking),
        embedding=_embedding(settings, wanted, stored, found, ranking),
        kinds={model.id: use(model) for model in found.offered},
    )


def _extraction(settings: Settings, wanted: Wanted, found: Probe, ranking: Ranking) -> Use:
    if found.chat is None:
        declined = wanted.llm_decided and wanted.llm_model is None
        return Use(None, "not wanted" if declined else "none is offered that works")
    if settings.llm_model is not None:
        return Use(found.chat.model, "asked for")
    chosen = found.chat.model == wanted.llm_model
    return Use(found.chat.model, "chosen before" if chosen else ranking.why_chat)


def _embedding(
    settings: Settings, wanted: Wanted, stored: Stored, found: Probe, ranking: Ranking
) -> Use:
    from pikuri_memory.models.choice import BUILTIN

    name = found.embedding.model if found.embedding is not None else wanted.embedder_model
    if stored.memories:
        return Use(stored.embedder, "the memories are embedded by it")
    if settings.embedder_model is not None:
        return Use(name, "asked for")
    if found.embedding is None:
        return Use(BUILTIN, "none is offered that works")
    chosen = found.embedding.model == wanted.embedder_model
    return Use(name, "chosen before" if chosen else ranking.why_embedding)


def _more(wanted: Wanted, stored: Stored, found: Probe, ranking: Ranking) -> list[Finding]:
    """What the router itself does not know."""
    from pikuri_memory.models.choice import BUILTIN, INSTALL, extraction_is_installed
    from pikuri_memory.models.findings import Finding

    findings = []
    if found.chat is not None and not extraction_is_installed():
        findings.append(
            Finding("problem", "chat", "what extracts facts with it is not installed", INSTALL)
        )
    if stored.memories and stored.embedder == BUILTIN and ranking.embedding is not None:
        findings.append(
            Finding(
                "note",
                "embedding",
                f"the memories are embedded by the built-in embedder; {ranking.embedding} could"
                " find more",
                f"pikuri-memory reembed --router {wanted.router} --embedder-model"
                f" {ranking.embedding}",
            )
        )
    return findings
