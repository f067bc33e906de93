"""Which models are used: what was asked for, what was decided before, what the memories need.

A decision is made once for a router and kept in ``models.json``, so that a server is up at once the
next time, whatever its router does then. Only a router that is new, or a model that was not tried
yet, is probed first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pikuri_memory.errors import (
    EmbedderMismatchError,
    EmbeddingError,
    MissingExtraError,
    ModelAnswerError,
    ModelError,
    SettingError,
)
from pikuri_memory.files import write_private
from pikuri_memory.models.endpoint import Endpoint
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.settings import Settings
from pikuri_memory.waiting import Deadline

if TYPE_CHECKING:
    from pikuri_memory.models.findings import (
        ChatAbility,
        EmbeddingAbility,
        Finding,
        Probe,
        Subject,
    )
    from pikuri_memory.models.router import Router

log = logging.getLogger(__name__)

BUILTIN: Final = "builtin"
"""As a name of an embedder: the one in the wheel."""

NONE: Final = "none"
"""As a router or a chat model: do without."""

AGAIN_SECONDS: Final = 30.0
"""That a start may wait for a chat model that did not work the last time."""

LIBRARY: Final = "mem0"
INSTALL: Final = "pip install 'pikuri-memory[extraction]'"

OpenRouter = Callable[[str, str | None], "Router"]
"""Makes a client of a router's URL, with the name of a file that holds its key."""


@dataclass(frozen=True)
class Stored:
    """What the record says of the embedder that made its vectors.

    Attributes:
        memories: Whether there are any; without, nothing holds us to their embedder.
        identity: Of the embedder; None in a new record.
        model: What its endpoint calls it; None and ``builtin`` are the one in the wheel.
        router: URL of that endpoint.
        details: Its :class:`EmbeddingAbility`, as :func:`embedding_to_text` wrote it; or empty.
        next_model: The embedder that a re-embedding is at work for.
        next_details: As ``details``, of that one.
    """

    memories: bool = False
    identity: EmbedderIdentity | None = None
    model: str | None = None
    router: str | None = None
    details: str = ""
    next_model: str | None = None
    next_details: str = ""

    @property
    def embedder(self) -> str:
        """``builtin``, or the name of a router's model."""
        return self.model or BUILTIN


@dataclass(frozen=True)
class Choice:
    """What is used.

    Attributes:
        router: URL of the model endpoint; None where there is none.
        router_key_file: Where its key is; None where it needs none.
        llm_model: The chat model that extracts facts; None keeps texts as they are.
        embedder_model: ``builtin``, or the name of a router's model.
        embedder_router: URL of the embedder's endpoint where that is another one than ``router``.
        embedding: What that model of a router can do; None for the built-in one.
        probe: What ``router`` was seen to do; None where it was not asked.
    """

    router: str | None = None
    router_key_file: str | None = None
    llm_model: str | None = None
    embedder_model: str = BUILTIN
    embedder_router: str | None = None
    embedding: EmbeddingAbility | None = None
    probe: Probe | None = None

    @property
    def chat(self) -> ChatAbility | None:
        """What the chat model can do; None where there is none."""
        found = None if self.probe is None else self.probe.chat
        return found if found is not None and found.model == self.llm_model else None

    @property
    def embedder_url(self) -> str | None:
        """Where the embedder answers; None for the built-in one."""
        return None if self.embedder_model == BUILTIN else self.embedder_router or self.router


def read(path: Path) -> Choice | None:
    """The choice that was remembered; None where there is none that can be read."""
    from pikuri_memory.models.findings import Probe

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        probe, embedding = told["probe"], told["embedding"]
        texts = {name: told[name] for name in _TEXTS}
        if not all(text is None or isinstance(text, str) for text in texts.values()):
            raise TypeError
        return Choice(
            **{**texts, "embedder_model": texts["embedder_model"] or BUILTIN},
            embedding=None if embedding is None else embedding_from_text(embedding),
            probe=None if probe is None else Probe.from_json(probe),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # All of it can be found out again.
        log.warning("%s cannot be read (%s): choosing anew", path, type(error).__name__)
        return None


_TEXTS: Final = ("router", "router_key_file", "llm_model", "embedder_model", "embedder_router")


def write(path: Path, choice: Choice) -> None:
    """Remember a choice (mode 0600, atomic); one that names nothing is none."""
    if choice == Choice():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    told: dict[str, Any] = {name: getattr(choice, name) for name in _TEXTS}
    told["embedding"] = None if choice.embedding is None else embedding_to_text(choice.embedding)
    told["probe"] = None if choice.probe is None else choice.probe.to_json()
    text = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_private(path, text)


def embedding_to_text(embedding: EmbeddingAbility) -> str:
    """One text, to be kept beside the vectors that it made."""
    from pikuri_memory.models.findings import Probe

    return json.dumps(Probe("", "", (), None, embedding, ()).to_json(), ensure_ascii=False)


def embedding_from_text(text: str) -> EmbeddingAbility | None:
    """What :func:`embedding_to_text` wrote; None for any other text."""
    from pikuri_memory.models.findings import Probe

    try:
        return Probe.from_json(json.loads(text)).embedding
    except ValueError:
        return None


def extraction_is_installed() -> bool:
    """Whether the library of the extra is there; it is not imported."""
    return importlib.util.find_spec(LIBRARY) is not None


@dataclass(frozen=True)
class Wanted:
    """What a start needs, before any router is asked.

    Attributes:
        router: URL; None for none.
        router_key_file: Where its key is.
        known: Whether ``router`` is the one that was decided about before.
        llm_model: None for none, or where nothing is decided.
        llm_decided: Whether ``llm_model`` is what it has to be, None included.
        embedder_model: ``builtin``, a name, or None where nothing is decided.
        embedder_router: As of :class:`Choice`.
        again: Whether a chat model is wanted that did not work before, or with which something
            was wrong: if it still is, or the router is away, things stay as they are.
    """

    router: str | None
    router_key_file: str | None
    known: bool
    llm_model: str | None
    llm_decided: bool
    embedder_model: str | None
    embedder_router: str | None
    again: bool = False

    @property
    def may_extract(self) -> bool:
        """Whether there may be extraction in the end."""
        return self.llm_model is not None or not self.llm_decided


def want(settings: Settings, remembered: Choice | None, stored: Stored) -> Wanted:
    """What settings, an earlier choice and the memories ask for, in this order.

    Raises:
        SettingError: A model is named and no router, or the router's address is impossible.
        EmbedderMismatchError: Another embedder is asked for than that of the memories, or the
            router that they need is to be forgotten.
    """
    before = remembered or Choice()
    forget = settings.router == NONE
    router = before.router if settings.router is None else None
    if settings.router is not None and not forget:
        router = Endpoint.parse(settings.router).url
    known = remembered is not None and before.router == router
    key_file = settings.router_key_file or (before.router_key_file if known else None)
    if router is None:
        key_file = None
    embedder, elsewhere = _wanted_embedder(settings, before, stored, router, known)
    llm, decided = _wanted_llm(settings, before, router, known)
    again = router is not None and settings.llm_model is None and known and _is_amiss(before)
    return Wanted(router, key_file, known, llm, decided and not again, embedder, elsewhere, again)


def _is_amiss(before: Choice) -> bool:
    """Whether no chat model was there that works, or the one that is used has a problem."""
    told = {one.level for one in _about_chat(before.probe)}
    return "problem" in told or (before.llm_model is None and "note" in told)


def _about_chat(probe: Probe | None) -> list[Finding]:
    return [] if probe is None else [one for one in probe.findings if one.subject == "chat"]


def _without_chat(probe: Probe | None) -> Probe | None:
    """A probe that says nothing of chat models: none is wanted, so none is to be had later."""
    if probe is None:
        return None
    kept = tuple(one for one in probe.findings if one.subject != "chat")
    return replace(probe, chat=None, findings=kept)


def _wanted_embedder(
    settings: Settings, before: Choice, stored: Stored, router: str | None, known: bool
) -> tuple[str | None, str | None]:
    asked = settings.embedder_model
    if stored.memories:
        own = stored.embedder
        if asked is not None and not _is_called(own, asked) and asked != stored.next_model:
            given = f" --router {settings.router}" if settings.router else ""
            raise EmbedderMismatchError(
                f"the memories are embedded by {own}, and {asked} was asked for",
                hint=f"pikuri-memory reembed --embedder-model {asked}{given}",
            )
        if own == BUILTIN:
            return BUILTIN, None
        if settings.router == NONE:
            raise EmbedderMismatchError(
                f"the memories are embedded by {own} of the router, which cannot be forgotten",
                hint="embed them by the built-in embedder first:"
                " pikuri-memory reembed --embedder-model builtin",
            )
        apart = before.router is not None and stored.router not in (None, before.router)
        elsewhere = stored.router if apart or router is None else None
        if elsewhere is None and router is None:
            raise EmbedderMismatchError(
                f"the memories are embedded by {own} of a router, and no router is known",
                hint="say where it answers: pikuri-memory up --router URL",
            )
        return own, elsewhere
    if asked is None and router is not None:
        return (before.embedder_model, before.embedder_router) if known else (None, None)
    if asked not in (None, BUILTIN) and router is None:
        raise _no_router("--embedder-model", asked)
    return asked or BUILTIN, None


def _wanted_llm(
    settings: Settings, before: Choice, router: str | None, known: bool
) -> tuple[str | None, bool]:
    asked = settings.llm_model
    if router is None:
        if asked not in (None, NONE):
            raise _no_router("--llm-model", asked)
        return None, True
    if asked is None:
        return before.llm_model, known
    if known and before.llm_model is not None and _is_called(before.llm_model, asked):
        return before.llm_model, True
    return (None if asked == NONE else asked), True


def _is_called(model: str, name: str) -> bool:
    """Whether a name means a model; ``x`` means ``x:latest`` too, as for Ollama."""
    return model in (name, f"{name}:latest")


def _no_router(flag: str, model: str | None) -> SettingError:
    return SettingError(
        f"{flag} {model} names a model, and no router is known that could have it",
        hint="say where it answers: pikuri-memory up --router http://127.0.0.1:8080"
        f" {flag} {model}",
    )


def choose(
    settings: Settings,
    remembered: Choice | None,
    stored: Stored,
    open_router: OpenRouter,
    *,
    now: datetime,
    installed: Callable[[], bool] = extraction_is_installed,
) -> Choice:
    """Decide what is used. Asks routers only for what is not known yet.

    Args:
        settings: What was asked for.
        remembered: The choice before.
        stored: What the memories need.
        open_router: Makes a client of a router.
        now: The time of a probe.
        installed: Whether the library of the extra is there.

    Raises:
        MissingExtraError: There may be extraction, and its library is not installed.
        EmbedderMismatchError: The memories need another embedder; or theirs changed.
        ModelError: The router cannot be asked, or does not have what it should.
        SettingError: As of :func:`want`.
    """
    wanted = want(settings, remembered, stored)
    lacking = wanted.again and wanted.llm_model is None
    if wanted.may_extract and not lacking and not installed():
        without = shlex.join(["--router", wanted.router or "URL", "--llm-model", NONE])
        raise MissingExtraError(
            f"extraction needs the library {LIBRARY}ai, which is not installed",
            hint=f"{INSTALL}; or do without: pikuri-memory up {without}",
        )
    choice = Choice(
        router=wanted.router,
        router_key_file=wanted.router_key_file,
        llm_model=wanted.llm_model,
        embedder_model=wanted.embedder_model or BUILTIN,
        embedder_router=wanted.embedder_router,
        embedding=_known_embedding(wanted, remembered, stored),
        probe=remembered.probe if remembered is not None and wanted.known else None,
    )
    if settings.llm_model == NONE:
        choice = replace(choice, probe=_without_chat(choice.probe))
    if wanted.again:
        with contextlib.suppress(ModelError):
            if installed():
                choice = _ask_router(settings, wanted, choice, stored, open_router, now)
    elif choice.router is not None:
        choice = _ask_router(settings, wanted, choice, stored, open_router, now)
    if choice.embedder_router is not None and choice.embedding is None:
        choice = replace(
            choice, embedding=_probed_elsewhere(settings, choice, stored, open_router, now)
        )
    return choice if choice.embedder_model != BUILTIN else replace(choice, embedding=None)


def _known_embedding(
    wanted: Wanted, remembered: Choice | None, stored: Stored
) -> EmbeddingAbility | None:
    """What is known of the wanted embedder: first from beside the vectors that it made."""
    name = wanted.embedder_model
    candidates = [embedding_from_text(stored.details) if stored.details else None]
    candidates.append(None if remembered is None else remembered.embedding)
    return next((one for one in candidates if one is not None and one.model == name), None)


def _ask_router(
    settings: Settings,
    wanted: Wanted,
    choice: Choice,
    stored: Stored,
    open_router: OpenRouter,
    now: datetime,
) -> Choice:
    """The choice with what its router had to be asked."""
    from pikuri_memory.models.probe import probe

    assert choice.router is not None
    here = choice.embedder_router is None
    want_chat = not wanted.llm_decided or (choice.llm_model is not None and choice.chat is None)
    want_embedding = wanted.embedder_model is None or (
        here
        and choice.embedder_model != BUILTIN
        # One that moved to another address has to show that it makes the same vectors.
        and (choice.embedding is None or not wanted.known)
    )
    if not (want_chat or want_embedding):
        return choice
    router = open_router(choice.router, choice.router_key_file)
    seconds = settings.router_timeout
    deadline = Deadline(min(seconds, AGAIN_SECONDS) if wanted.again else seconds)
    llm = choice.llm_model
    if not (wanted.llm_decided or wanted.again) and llm is not None:  # it was another router's
        llm = llm if llm in {model.id for model in router.models(deadline)} else None
    found = probe(
        router,
        llm_model=llm,
        embedder_model=wanted.embedder_model if want_embedding else None,
        want_chat=want_chat,
        want_embedding=want_embedding,
        deadline=deadline,
        now=now,
    )
    if want_chat:
        if found.chat is None and wanted.llm_decided:  # it was asked for by name
            message, hint = _problem(found, "chat", f"{llm} does not work")
            raise ModelAnswerError(message, hint=hint)
        if found.chat is None and wanted.again:
            found = replace(found, chat=choice.chat)  # what was known of it is the best guess
        else:
            choice = replace(choice, llm_model=None if found.chat is None else found.chat.model)
    elif choice.probe is not None:
        found = replace(found, chat=choice.probe.chat)
    if not want_embedding and choice.probe is not None:
        kept = (one for one in choice.probe.findings if one.subject == "embedding")
        found = replace(found, embedding=choice.probe.embedding, findings=(*found.findings, *kept))
    if want_embedding:
        unfit = wanted.embedder_model is None and any(
            one.subject == "embedding" and one.level == "problem" for one in found.findings
        )
        if unfit:
            # Nobody asked for it by name; why it is not used stands in the findings.
            choice = replace(choice, embedder_model=BUILTIN, embedding=None)
        elif found.embedding is not None:
            choice = replace(
                choice,
                embedder_model=found.embedding.model,
                embedding=settled(choice.embedding, found.embedding, stored),
            )
        elif wanted.embedder_model is not None:
            raise _broken_embedding(found, wanted.embedder_model)
        else:
            choice = replace(choice, embedder_model=BUILTIN, embedding=None)
    return replace(choice, probe=found)


def _broken_embedding(found: Probe, model: str) -> EmbeddingError:
    message, hint = _problem(found, "embedding", f"{model} does not work")
    return EmbeddingError(message, hint=hint)


def _problem(found: Probe, subject: Subject, otherwise: str) -> tuple[str, str]:
    """Message and hint of what a probe found wrong."""
    for finding in found.findings:
        if finding.subject == subject and finding.level != "ok":
            return finding.text, finding.hint
    return otherwise, f"see what the router offers: pikuri-memory models --router {found.router}"


def _probed_elsewhere(
    settings: Settings,
    choice: Choice,
    stored: Stored,
    open_router: OpenRouter,
    now: datetime,
) -> EmbeddingAbility:
    from pikuri_memory.models.probe import probe

    assert choice.embedder_router is not None
    found = probe(
        open_router(choice.embedder_router, None),
        llm_model=None,
        embedder_model=choice.embedder_model,
        want_chat=False,
        want_embedding=True,
        deadline=Deadline(settings.router_timeout),
        now=now,
    )
    if found.embedding is None:
        raise _broken_embedding(found, choice.embedder_model)
    return settled(None, found.embedding, stored)


def settled(
    before: EmbeddingAbility | None, found: EmbeddingAbility, stored: Stored
) -> EmbeddingAbility:
    """The ability to go on with: the one that made the stored vectors, if it makes such vectors.

    Raises:
        EmbedderMismatchError: The model of that name makes other vectors now.
    """
    from pikuri_memory.models.findings import same_vectors

    if before is None or before.model != found.model:
        return found
    if same_vectors(before, found):
        return before
    if not stored.memories:
        return found
    raise EmbedderMismatchError(
        f"the router's {found.model} makes other vectors ({found.dimensions} dimensions) than those"
        f" that the memories have ({before.dimensions} dimensions)",
        hint=f"pikuri-memory reembed --embedder-model {found.model}",
    )
