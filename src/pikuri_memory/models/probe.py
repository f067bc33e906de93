"""What can the user's router do? Found out by asking it, once, with texts of our own.

Lists and metadata come first and load nothing; then at most one chat and one embedding model are
asked: those named, else the best ranked. Nothing of the user's is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbeddingError,
    ModelAnswerError,
    ModelError,
    ModelNotOfferedError,
    RouterRefusedError,
)
from pikuri_memory.models.chat_trial import restart, try_chat
from pikuri_memory.models.embedding_trial import try_embedding
from pikuri_memory.models.findings import (
    ChatAbility,
    EmbeddingAbility,
    Finding,
    Probe,
    Subject,
    same_vectors,
)
from pikuri_memory.models.offers import OfferedModel
from pikuri_memory.models.ranking import Ranking, rank
from pikuri_memory.models.router import Router
from pikuri_memory.models.trouble import not_offered
from pikuri_memory.waiting import Deadline

__all__ = [
    "ChatAbility",
    "EmbeddingAbility",
    "Finding",
    "OfferedModel",
    "Probe",
    "Ranking",
    "probe",
    "rank",
    "same_vectors",
]

_BROKEN = (
    RouterRefusedError,
    ModelNotOfferedError,
    ModelAnswerError,
    EmbeddingError,
    ContextTooSmallError,
)
"""Errors that say something of a model; the others say that the router is away or busy."""


def probe(
    router: Router,
    *,
    llm_model: str | None = None,
    embedder_model: str | None = None,
    want_chat: bool = True,
    want_embedding: bool = True,
    deadline: Deadline,
    now: datetime | None = None,
) -> Probe:
    """Ask a router what it can do.

    A model that is there and does not work is a finding, and its ability None.

    Args:
        router: Whom to ask.
        llm_model: The chat model to try; None takes the best ranked.
        embedder_model: The embedding model to try; None takes the best ranked.
        want_chat: Whether a chat model is to be tried at all.
        want_embedding: Whether an embedding model is.
        deadline: For all of it, loading of models included.
        now: When it is; by default asked of the clock.

    Raises:
        ModelNotOfferedError: A model that was named is not in the router's list.
        RouterUnreachableError: The router is away.
        RouterBusyError: It was loading for all of the time.
        RouterTimeoutError: It was silent for all of the time.
        RouterRefusedError: It gives no list: a wrong key, or no model endpoint.
    """
    offered = router.models(deadline)
    ranking = rank(offered)
    chat_model = _chosen(router, offered, llm_model, ranking.chat) if want_chat else None
    embedding_model = (
        _chosen(router, offered, embedder_model, ranking.embedding) if want_embedding else None
    )
    findings: list[Finding] = [_listed(router, offered)]
    embedding: EmbeddingAbility | None = None
    chat: ChatAbility | None = None
    if want_embedding and embedding_model is None:
        findings.append(_missing("embedding", router))
    elif embedding_model is not None:
        try:
            embedding, found = try_embedding(router, embedding_model, deadline)
            findings += found
        except _BROKEN as error:
            findings.append(_broken("embedding", error))
    if want_chat and chat_model is None:
        findings.append(_missing("chat", router))
    elif chat_model is not None:
        try:
            chat, found = try_chat(router, chat_model, offered, deadline)
            findings += found
        except _BROKEN as error:
            findings.append(_broken("chat", error))
    taken_at = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    return Probe(router.endpoint.url, taken_at, offered, chat, embedding, tuple(findings))


def _chosen(
    router: Router, offered: Sequence[OfferedModel], named: str | None, best: str | None
) -> str | None:
    """The id in the list that a name means; ``x`` means ``x:latest`` too, as for Ollama."""
    if named is None:
        return best
    ids = [model.id for model in offered]
    for candidate in (named, f"{named}:latest"):
        if candidate in ids:
            return candidate
    raise not_offered(named, ids, router.endpoint)


def _listed(router: Router, offered: Sequence[OfferedModel]) -> Finding:
    server = next((str(m.details["server"]) for m in offered if "server" in m.details), "")
    count = "1 model" if len(offered) == 1 else f"{len(offered)} models"
    text = f"{router.endpoint} offers {count}" + (f" ({server})" if server else "")
    if offered:
        return Finding("ok", "router", text)
    return Finding(
        "problem",
        "router",
        f"{text.replace('0 models', 'no models')}",
        "give it one: llama-server --models-dir DIRECTORY, or ollama pull NAME, or lms get NAME",
    )


def _missing(subject: Subject, router: Router) -> Finding:
    if subject == "chat":
        return Finding(
            "note",
            "chat",
            "no chat model is offered: texts are kept as they are",
            "give the router one (ollama pull NAME, or llama-server -m FILE.gguf), then name it: "
            + restart(router.endpoint.url, "--llm-model"),
        )
    return Finding(
        "note",
        "embedding",
        "no embedding model is offered: the built-in one is used",
        "give the router one (ollama pull nomic-embed-text, or llama-server --embeddings -m"
        " FILE.gguf), then: pikuri-memory reembed --embedder-model NAME",
    )


def _broken(subject: Subject, error: ModelError) -> Finding:
    return Finding("problem", subject, error.message, error.hint)
