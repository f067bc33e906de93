"""Values that the parts of the embedded server hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.record import Event, Scope
from pikuri_memory.waiting import Deadline


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a turn, as posted."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory to be stored as it is: an import, or an item of a batch.

    Attributes:
        text: The fact.
        scope: Whose it is; at least one id.
        metadata: A JSON object.
        expiration_date: Last day (UTC) on which it is found.
        id: A UUID to keep; None makes a new one.
        created_at: Microseconds since the epoch; None is now.
        updated_at: Microseconds since the epoch; None is ``created_at``.
        history: Older entries to keep with it, oldest first.
        supersedes: Ids of older memories of the same scope that it replaces; others are ignored.
        superseded_by: Ids of later ones that replace it; others are ignored.
    """

    text: str
    scope: Scope
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expiration_date: date | None = None
    id: str | None = None
    created_at: int | None = None
    updated_at: int | None = None
    history: Sequence[HistoryEntry] = ()
    supersedes: Sequence[str] = ()
    superseded_by: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """One row of the record. Times are microseconds since the epoch (UTC).

    ``supersedes`` and ``superseded_by`` are ids of memories of exactly the same scope.
    """

    id: str
    text: str
    scope: Scope
    metadata: dict[str, Any]
    created_at: int
    updated_at: int
    expiration_date: date | None
    supersedes: tuple[str, ...] = ()
    superseded_by: tuple[str, ...] = ()
    rendered: list[bytes] = field(default_factory=list, compare=False, repr=False)
    """At most one: its JSON, kept by :mod:`pikuri_memory.embedded.replies` with the value."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that a search found, with its score in [0, 1] and, when asked, its parts."""

    memory: StoredMemory
    score: float
    explanation: dict[str, Any] | None = None


class Hits(list[Hit]):
    """What a search found, best first.

    Attributes:
        degraded: Why it had to do without vectors, as ``code``, ``detail`` and ``hint``; None
            where all was well.
    """

    degraded: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of one text: stored (``ADD``) or already there (``NONE``)."""

    id: str
    text: str
    event: Event


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of a memory; after a delete the texts are None."""

    id: str
    memory_id: str
    event: Event
    old_text: str | None
    new_text: str | None
    at: int


@dataclass(frozen=True, slots=True)
class Entity:
    """A user, agent or run that has memories. Times in microseconds since the epoch."""

    type: Literal["user", "agent", "run"]
    id: str
    total_memories: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key with what it belongs to, and a digest of the body that came with it."""

    key: str
    method: str
    path: str
    scope: str
    body_digest: bytes


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One search.

    Attributes:
        text: The question.
        scope: At least one id.
        condition: Further filter, as :func:`pikuri_memory.embedded.filters.parse` gives it.
        top_k: Most hits.
        threshold: Least score of a hit, in [0, 1].
        explain: Whether hits carry the parts of their scores.
        show_expired: Whether expired memories are found too.
    """

    text: str
    scope: Scope
    condition: Condition | None = None
    top_k: int = 20
    threshold: float = 0.0
    explain: bool = False
    show_expired: bool = False


class Condition(Protocol):
    """A filter over rows of the record."""

    def sql(self) -> tuple[str, list[Any]]:
        """A boolean SQL expression over the alias ``m`` of ``memories``, and its parameters."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors.

    ``immediate`` says that neither way to embed ever takes longer than a fraction of a millisecond
    (a look-up), so that both may be called from the event loop.
    """

    @property
    def identity(self) -> EmbedderIdentity: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def immediate(self) -> bool: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts to be found, shape (len(texts), dimensions), rows of unit length.

        Raises:
            EmbedderUnavailableError: They cannot be had now.
            EmbeddingError: What came back are no vectors of this embedder.
        """
        ...

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of questions; otherwise as :meth:`embed`."""
        ...


@dataclass(frozen=True, slots=True)
class Fact:
    """What an extraction made of a turn.

    Attributes:
        text: The fact.
        metadata: What the extraction says of it (``attributed_to``), beside the caller's.
        vector: Of the text, where the pipeline has made it already.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Turn:
    """What an extraction is told.

    Attributes:
        messages: As posted, in their order.
        scope: Whose memories it becomes.
        recent: Messages of the same scope before it, oldest first.
        existing: The memories nearest to a vector (of unit length) in the scope, best first; at
            most as many as asked.
        prompt: Instructions of the caller; None where there are none.
    """

    messages: Sequence[Message]
    scope: Scope
    recent: Sequence[Message]
    existing: Callable[[NDArray[np.float32], int], Sequence[StoredMemory]]
    prompt: str | None = None


class Extractor(Protocol):
    """Turns a turn into facts. Used by several threads at once."""

    def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
        """The facts of a turn, in the order of the pipeline; empty only when the model said so.

        Raises:
            ModelError: The model did not do its part: the turn has no facts yet, and is to be
                tried again.
        """
        ...
