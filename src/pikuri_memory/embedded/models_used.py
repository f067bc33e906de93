"""The user's models at work in a server: made from a choice, warmed up, looked at again.

What is slow about them is done in a thread of its own after the server answers: the import of the
extraction's library, and another look at the router, whose models may have changed since they were
chosen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from pikuri_memory.embedded import records
from pikuri_memory.embedded.model import Embedder, Extractor, Fact, Turn
from pikuri_memory.embedded.reembedding import EMBEDDER_SOURCE, Made, Source, Target
from pikuri_memory.embedded.vectors import Vectors
from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbeddingError,
    ModelError,
    ModelNotOfferedError,
    PikuriMemoryError,
    SettingError,
)
from pikuri_memory.models import choice as choices
from pikuri_memory.models.choice import BUILTIN, Choice, Stored
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.models.keyfile import KeyFile
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import Settings
from pikuri_memory.waiting import Deadline

if TYPE_CHECKING:
    from pikuri_memory.models.findings import EmbeddingAbility, Finding, Probe, Subject
    from pikuri_memory.models.offers import OfferedModel
    from pikuri_memory.models.router import Router

log = logging.getLogger(__name__)

QUESTION_SECONDS: Final = 3.0
"""That a question waits for its vector; then it is answered by its words."""

STALE: Final = timedelta(days=1)
"""Age from which on a probe of the chat model is made anew, though the router offers the same."""

_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 60.0
_LONGEST_DOUBT: Final = 3600.0
_JOIN_SECONDS: Final = 3.0


class Watched(Protocol):
    """What is told when the embedder turns out to be another one."""

    def distrust_embedder(self, fingerprint: str, error: EmbeddingError) -> bool: ...


class CurrentExtractor:
    """The extractor in use, exchanged when the model can do something else than it could.

    Args:
        inner: The first one.
        seen: Called after each turn with the error of the model, or None.
    """

    def __init__(self, inner: Extractor, seen: Callable[[ModelError | None], None]) -> None:
        self.inner = inner
        self._seen = seen

    def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
        """As the one in use."""
        try:
            facts = self.inner.extract(turn, deadline)
        except ModelError as error:
            self._seen(error)
            raise
        self._seen(None)
        return facts


@dataclass(frozen=True)
class Maker:
    """How the parts are made.

    Attributes:
        builtin: The embedder of the wheel.
        now: The time.
    """

    builtin: Callable[[], Embedder]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


def stored_in(paths: DataPaths) -> Stored:
    """What a record says of its embedder; nothing is changed."""
    filled, meta = records.peek(paths.record)
    source = Source.from_json(meta.get(EMBEDDER_SOURCE))
    job: Any = {}
    identity = None
    with contextlib.suppress(ValueError):
        job = json.loads(meta.get("reembedding") or "{}")
        identity = EmbedderIdentity.from_json(meta["embedder"]) if "embedder" in meta else None
    return Stored(
        memories=filled,
        identity=identity,
        model=None if source is None else source.target.model,
        router=None if source is None else source.target.router,
        details="" if source is None else source.details,
        next_model=job.get("model"),
        next_details=job.get("details") or "",
    )


def router_at(settings: Settings, url: str, key_file: str | None) -> Router:
    """A client of a router, as patient as the settings say."""
    from pikuri_memory.models.router import Patience, Router

    options: dict[str, Any] = {} if key_file is None else {"api_key": KeyFile(key_file)}
    return Router(
        url,
        patience=Patience(total=settings.router_timeout),
        concurrency=settings.router_concurrency,
        **options,
    )


@contextlib.contextmanager
def open_router(settings: Settings, url: str, key_file: str | None) -> Iterator[Router]:
    """As :func:`router_at`, closed in the end."""
    router = router_at(settings, url, key_file)
    try:
        yield router
    finally:
        router.close()


class ModelsUsed:
    """The models of one server. An :class:`~pikuri_memory.embedded.reembedding.Embedders`.

    Args:
        settings: Of the server.
        paths: Where the choice is remembered.
        stored: What the record says of its embedder.
        maker: How the parts are made.

    Raises:
        ModelError: A router had to be asked, and could not.
        MissingExtraError: The library of the extraction is not installed.
        EmbedderMismatchError: The memories need another embedder than was asked for.
        SettingError: An address is impossible, or models are named without one.
    """

    def __init__(self, settings: Settings, paths: DataPaths, stored: Stored, maker: Maker) -> None:
        self._settings = settings
        self._paths = paths
        self._maker = maker
        self._lock = threading.Lock()
        self._routers: dict[str, Router] = {}
        self._stop = threading.Event()
        self._doubt = threading.Event()
        self._thread: threading.Thread | None = None
        self._troubles: dict[str, Finding] = {}
        before = choices.read(paths.models)
        now = maker.now()
        try:
            self._choice = choices.choose(settings, before, stored, self._open, now=now)
            self._known = [
                ability
                for ability in (
                    self._choice.embedding,
                    choices.embedding_from_text(stored.next_details),
                )
                if ability is not None
            ]
            self._asked_now = self._choice.probe is not None and (
                before is None or before.probe != self._choice.probe
            )
            self.vectors = Vectors(self._make_embedder(self._choice))
            self._extractor = self._make_extractor(self._choice)
        except BaseException:
            self.close()
            raise
        self._warming = self._extractor is not None

    # -- what the engine is made of ----------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        """What is used now."""
        return self._choice

    @property
    def extractor(self) -> Extractor | None:
        """Makes facts of turns; None without a chat model."""
        return self._extractor

    def source(self) -> Source:
        """Where the embedder in use is had, and what it can do, to be kept beside its vectors."""
        choice = self._choice
        target = Target(choice.embedder_model, choice.embedder_url)
        return Source(target, _details(choice.embedding))

    def about(self) -> dict[str, Any]:
        """What the status tells of the models, beside what the engine knows itself."""
        choice = self._choice
        probe = choice.probe
        findings = [*(() if probe is None else probe.findings), *self._troubles.values()]
        url = choice.embedder_url
        return {
            "router": choice.router,
            "llm_model": choice.llm_model,
            "warming": self._warming,
            "embedder_router": url,
            "embed_seconds": None if url is None else self._settings.router_timeout,
            "findings": [
                {"level": one.level, "subject": one.subject, "text": one.text, "hint": one.hint}
                for one in findings
            ],
        }

    def _open(self, url: str, key_file: str | None) -> Router:
        with self._lock:
            router = self._routers.get(url)
            if router is None:
                router = self._routers[url] = router_at(self._settings, url, key_file)
            return router

    def _router_of(self, url: str) -> Router:
        """The client of a router. The key goes to the one that it was given for, to no other."""
        choice = self._choice
        return self._open(url, choice.router_key_file if url == choice.router else None)

    def _make_embedder(self, choice: Choice) -> Embedder:
        if choice.embedder_model == BUILTIN or choice.embedding is None:
            return self._maker.builtin()
        assert choice.embedder_url is not None
        return self._embedder_of(self._router_of(choice.embedder_url), choice.embedding)

    @staticmethod
    def _embedder_of(router: Router, ability: EmbeddingAbility) -> Embedder:
        from pikuri_memory.models.embedder import RouterEmbedder

        return RouterEmbedder(router, ability, query_seconds=QUESTION_SECONDS)

    def _make_extractor(self, choice: Choice) -> CurrentExtractor | None:
        if choice.router is None or choice.chat is None:
            return None
        from pikuri_memory.embedded.extraction import MemoryExtractor

        router = self._router_of(choice.router)
        return CurrentExtractor(MemoryExtractor(router, choice.chat, self.vectors), self._seen)

    def _seen(self, error: ModelError | None) -> None:
        """Have the chat model looked at again where a turn went otherwise than what is told of it:
        its context may have changed."""
        probe = self._choice.probe
        told = probe is not None and any(
            one.subject == "chat" and one.level == "problem" for one in probe.findings
        )
        if told if error is None else not told and isinstance(error, ContextTooSmallError):
            self._doubt.set()

    # -- another embedder --------------------------------------------------------------------------

    def make(self, target: Target) -> Made:
        """Look for an embedder and try it; may take as long as its model needs to be loaded.

        Raises:
            ModelError: It cannot be had now, or never.
            SettingError: The target is impossible.
        """
        if target.model == BUILTIN:
            return Made(self._maker.builtin(), Target(BUILTIN, None))
        from pikuri_memory.models.endpoint import Endpoint

        choice = self._choice
        url = choice.embedder_router or choice.router
        if target.router is not None:
            url = Endpoint.parse(target.router).url
        if url is None:
            raise SettingError(
                "no router is known that could have an embedding model",
                hint="say where it answers: pikuri-memory reembed --router URL",
            )
        router = self._router_of(url)
        found = self._probe(router, embedder=target.model)
        if found.embedding is None:
            for one in found.findings:
                if one.subject == "embedding" and one.level == "problem":
                    raise ModelNotOfferedError(one.text, hint=one.hint)
            raise ModelNotOfferedError(
                f"the router at {url} offers no embedding model",
                hint=f"see what it has: pikuri-memory models --router {url}",
            )
        if target.model is None:
            for one in found.findings:
                if one.subject == "embedding" and one.level == "problem":
                    raise EmbeddingError(one.text, hint=one.hint)
        ability = self._recognised(found.embedding)
        embedder = self._embedder_of(router, ability)
        return Made(embedder, Target(ability.model, url), _details(ability))

    def _recognised(self, found: EmbeddingAbility) -> EmbeddingAbility:
        """The ability under its first name, where the same model was met before: a model that is
        not quite deterministic would be another one each time."""
        from pikuri_memory.models.findings import same_vectors

        for known in self._known:
            if known.model == found.model and same_vectors(known, found):
                return known
        self._known.append(found)
        return found

    def chosen(self, made: Made) -> None:
        """The record's vectors are its own by now: the next start is to use it."""
        with self._lock:
            choice = self._choice
            url = made.target.router
            router = choice.router or url
            self._choice = replace(
                choice,
                router=router,
                embedder_model=made.target.model or BUILTIN,
                embedder_router=None if url == router else url,
                embedding=choices.embedding_from_text(made.details) if made.details else None,
            )
            self._troubles.pop("embedding", None)
        self.remember()

    # -- life --------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Write down what is used."""
        choices.write(self._paths.models, self._choice)

    def start(self, engine: Watched) -> None:
        """Warm up in the background."""
        if self._choice.router is None and self._choice.embedder_router is None:
            return
        self._thread = threading.Thread(
            target=self._warm_up, args=(engine,), name="warm-up", daemon=True
        )
        self._thread.start()

    def hang_up(self) -> None:
        """Cut the connections to routers: what waits for an answer fails now."""
        self._stop.set()
        self._doubt.set()
        with self._lock:
            routers = list(self._routers.values())
        for router in routers:
            router.close()

    def close(self) -> bool:
        """End what is done in the background; whether it has ended."""
        self.hang_up()
        if self._thread is None:
            return True
        self._thread.join(_JOIN_SECONDS)
        return not self._thread.is_alive()

    def _warm_up(self, engine: Watched) -> None:
        inner = None if self._extractor is None else self._extractor.inner
        try:
            if inner is not None and (warm_up := getattr(inner, "warm_up", None)) is not None:
                warm_up()
        except Exception as error:
            self._trouble("chat", error)
        finally:
            self._warming = False
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            try:
                self._look_again(engine)
                break
            except Exception as error:
                if self._stop.is_set():
                    return
                self._trouble("router", error)
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._look_when_in_doubt()

    def _look_when_in_doubt(self) -> None:
        """Until the stop. A doubt that does not go away costs the model a few questions an hour."""
        pause = _LONGEST_PAUSE
        while self._doubt.wait() and not self._stop.is_set():
            self._doubt.clear()
            try:
                self._look_at_router(doubted=True)
            except Exception as error:
                if not self._stop.is_set():
                    log.warning("the router could not be looked at (%s)", type(error).__name__)
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_DOUBT)

    def _trouble(self, subject: Subject, error: Exception) -> None:
        from pikuri_memory.models.findings import Finding

        if isinstance(error, PikuriMemoryError):
            text, hint = error.message, error.hint
        else:
            text, hint = f"unexpected {type(error).__name__}", "see `pikuri-memory logs`"
        if subject not in self._troubles or self._troubles[subject].text != text:
            log.warning("%s", text)
        self._troubles[subject] = Finding("problem", subject, text, hint)

    def _look_again(self, engine: Watched) -> None:
        """Whether the models are still what they were when they were chosen."""
        if not self._asked_now:
            self._look_at_embedder(engine)
            self._look_at_router()
        self._troubles.pop("router", None)

    def _look_at_embedder(self, engine: Watched) -> None:
        from pikuri_memory.models.findings import same_vectors

        choice = self._choice
        if choice.embedding is None or choice.embedder_url is None:
            return
        found = self._probe(
            self._router_of(choice.embedder_url), embedder=choice.embedder_model
        ).embedding
        if found is None or same_vectors(choice.embedding, found):
            return
        error = EmbeddingError(
            f"the router's {found.model} makes other vectors ({found.dimensions} dimensions) than"
            f" those that the memories have ({choice.embedding.dimensions} dimensions)",
            hint=f"pikuri-memory reembed --embedder-model {found.model}",
        )
        # It may have been exchanged meanwhile.
        if engine.distrust_embedder(choice.embedding.fingerprint, error):
            self._trouble("embedding", error)

    def _look_at_router(self, *, doubted: bool = False) -> None:
        choice = self._choice
        if choice.router is None:
            return
        router = self._router_of(choice.router)
        before = choice.probe
        offered = router.models(Deadline(self._settings.router_timeout))
        same = before is not None and _is_same(before.offered, offered)
        if same and not doubted and before is not None and not self._is_stale(before):
            return
        if choice.llm_model is None:
            self._suggest(before, offered)
            return
        found = self._probe(router, llm=choice.llm_model)
        if found.chat is None:
            # Why stands in its findings; what was known of it still is the best guess.
            found = replace(found, chat=choice.chat)
        if before is not None:
            kept = tuple(one for one in before.findings if one.subject == "embedding")
            found = replace(found, embedding=before.embedding, findings=(*found.findings, *kept))
        with self._lock:
            self._choice = replace(self._choice, probe=found)
        fresh = self._make_extractor(self._choice)
        if fresh is not None and self._extractor is not None:
            self._extractor.inner = fresh.inner
        self.remember()

    def _suggest(self, before: Probe | None, offered: Sequence[OfferedModel]) -> None:
        """Where no chat model was to be had and now there is one: say so."""
        from pikuri_memory.models.findings import Finding
        from pikuri_memory.models.ranking import rank

        lacking = before is not None and any(
            one.subject == "chat" and one.level != "ok" for one in before.findings
        )
        best = rank(offered).chat
        if lacking and best is not None:
            self._troubles["chat"] = Finding(
                "note",
                "chat",
                f"texts are kept as they are; {best} could extract facts",
                f"pikuri-memory down && pikuri-memory up --llm-model {best}",
            )

    def _is_stale(self, probe: Probe) -> bool:
        try:
            return self._maker.now() - datetime.fromisoformat(probe.taken_at) > STALE
        except (ValueError, TypeError):
            return True

    def _probe(
        self, router: Router, *, llm: str | None = None, embedder: str | None = None
    ) -> Probe:
        from pikuri_memory.models.probe import probe

        return probe(
            router,
            llm_model=llm,
            embedder_model=embedder,
            want_chat=llm is not None,
            want_embedding=llm is None,
            deadline=Deadline(self._settings.router_timeout),
            now=self._maker.now(),
        )


def _details(ability: EmbeddingAbility | None) -> str:
    return "" if ability is None else choices.embedding_to_text(ability)


def _is_same(before: Sequence[OfferedModel], now: Sequence[OfferedModel]) -> bool:
    """Whether a router offers the same models with the same context; what is loaded changes."""

    def of(models: Sequence[OfferedModel]) -> set[tuple[str, str, int | None]]:
        return {(model.id, model.kind, model.context_tokens) for model in models}

    return of(before) == of(now)
