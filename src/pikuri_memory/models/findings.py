"""What a probe found out about a router: frozen values that are kept with the choice of models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import numpy as np

from pikuri_memory.models.offers import Kind, OfferedModel

Level = Literal["ok", "note", "problem"]
Subject = Literal["router", "chat", "embedding"]
OutputMode = Literal["json_schema", "json_object", "prompt"]

SAME_COSINE = 0.99
"""Least cosine of two vectors of one text by one model: another quantisation or machine gives
.995 and more, another model near 0."""


@dataclass(frozen=True)
class Finding:
    """One sentence about a router, and what to type where it is no good news.

    Attributes:
        level: ``ok``; ``note``: works, and could work better; ``problem``: does not work.
        subject: What it is about.
        text: The sentence.
        hint: What to type; empty where nothing is to be done.
    """

    level: Level
    subject: Subject
    text: str
    hint: str = ""


@dataclass(frozen=True)
class EmbeddingAbility:
    """An embedding model, as measured.

    Attributes:
        model: Its id.
        dimensions: Length of a vector.
        normalised: Whether its vectors have unit length by themselves.
        deterministic: Whether the same text gave the same vector twice.
        query_prefix: What its family wants before a question.
        document_prefix: What its family wants before a text.
        reference: Vectors of fixed texts, of unit length, rounded.
        fingerprint: A name made of the reference vectors at first sight. Another machine gives
            slightly other ones: :func:`same_vectors` compares, this only names.
    """

    model: str
    dimensions: int
    normalised: bool
    deterministic: bool
    query_prefix: str
    document_prefix: str
    reference: tuple[tuple[float, ...], ...]
    fingerprint: str


@dataclass(frozen=True)
class ChatAbility:
    """A chat model, as measured.

    Attributes:
        model: Its id.
        output_mode: What makes it answer in JSON: a schema that is enforced, JSON that is
            enforced, or nothing but the prompt.
        thinks: Whether it thinks before it answers, when nothing is said about it.
        thinking_off: Members of a request's body that switch that off; None where nothing does
            or nothing is needed.
        context_tokens: What it reads and writes at once, as it runs now; None where not told.
        prompt_tokens: Estimated need of an extraction: prompt and answer.
        fits: Whether that fits; None where it could not be found out.
        canary: Whether it found the facts of a test turn; None where that was not tried.
        prompt_suffix: Text that switches thinking off at the end of the last message (Qwen3's
            ``/no_think``), where only that does; with a blank before it.
    """

    model: str
    output_mode: OutputMode
    thinks: bool
    thinking_off: Mapping[str, Any] | None
    context_tokens: int | None
    prompt_tokens: int
    fits: bool | None
    canary: bool | None
    prompt_suffix: str = ""

    def messages(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """The messages as they are to be sent: with ``prompt_suffix`` after the last one."""
        sent = [dict(message) for message in messages]
        if self.prompt_suffix and sent:
            sent[-1]["content"] = sent[-1].get("content", "") + self.prompt_suffix
        return sent


@dataclass(frozen=True)
class Probe:
    """All that a probe found out.

    Attributes:
        router: The endpoint's address.
        taken_at: When, in ISO 8601 (UTC).
        offered: The models in the router's list.
        chat: The chat model that was tried; None where none was wanted, is offered, or works.
        embedding: Likewise.
        findings: For people.
    """

    router: str
    taken_at: str
    offered: tuple[OfferedModel, ...]
    chat: ChatAbility | None
    embedding: EmbeddingAbility | None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that say that something does not work."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    def to_json(self) -> dict[str, Any]:
        """As an object for ``json.dumps``; :meth:`from_json` reads it."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, value: Any) -> Probe:
        """The probe that :meth:`to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            chat, embedding = value["chat"], value["embedding"]
            if embedding is not None:
                rows = embedding["reference"]
                embedding = EmbeddingAbility(
                    **{**embedding, "reference": tuple(tuple(map(float, row)) for row in rows)}
                )
            return cls(
                router=str(value["router"]),
                taken_at=str(value["taken_at"]),
                offered=tuple(_offered(each) for each in value["offered"]),
                chat=None if chat is None else ChatAbility(**chat),
                embedding=embedding,
                findings=tuple(Finding(**each) for each in value["findings"]),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no findings of a probe: {type(error).__name__}") from None


def _offered(value: Mapping[str, Any]) -> OfferedModel:
    kind: Kind = value["kind"]
    return OfferedModel(
        str(value["id"]), kind, value["context_tokens"], value["loaded"], dict(value["details"])
    )


def same_vectors(a: EmbeddingAbility, b: EmbeddingAbility) -> bool:
    """Whether two abilities are of one model, so that their vectors may be compared.

    True when every reference text has vectors of a cosine of at least .99, with equal prefixes.
    """
    if (a.query_prefix, a.document_prefix) != (b.query_prefix, b.document_prefix):
        return False
    if a.dimensions != b.dimensions or len(a.reference) != len(b.reference):
        return False
    try:
        left = np.asarray(a.reference, dtype=np.float64)
        right = np.asarray(b.reference, dtype=np.float64)
    except ValueError:
        return False
    if left.ndim != 2 or left.shape != right.shape:
        return False
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    if not lengths.all():
        return False
    return bool(((left * right).sum(axis=1) / lengths >= SAME_COSINE).all())
