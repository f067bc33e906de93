"""Trying an embedding model: dimensions, length, steadiness and sense of its vectors."""

from __future__ import annotations

import hashlib
import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.errors import EmbeddingError
from pikuri_memory.models.families import family_of
from pikuri_memory.models.findings import EmbeddingAbility, Finding
from pikuri_memory.models.router import Router
from pikuri_memory.waiting import Deadline

REFERENCE_TEXTS: Final = (
    "The user moved from Turku to Oulu in March.",
    "The user has lived in Oulu since the spring.",
    "The user's cat is called Bella and is nine years old.",
    "Der Zug nach Hamburg fährt um halb acht.",
)
"""Fixed for ever: their vectors are what a store of memories recognises its embedder by."""

_DIGITS: Final = 5
_STEADY: Final = 0.999
_UNIT: Final = 1e-3
_SAME: Final = 0.9999
"""Least cosine of texts that have nothing in common, from which on their vectors are one."""


def try_embedding(
    router: Router, model: str, deadline: Deadline
) -> tuple[EmbeddingAbility, list[Finding]]:
    """Measure a model with the reference texts.

    Raises:
        EmbeddingError: It gives no vectors that can be used.
    """
    family = family_of(model)
    query_prefix = family.query_prefix if family else ""
    document_prefix = family.document_prefix if family else ""
    texts = [document_prefix + text for text in REFERENCE_TEXTS]
    raw = router.embed(model, texts, deadline=deadline)
    # In another order and other company, as in daily use.
    again = np.concatenate(
        [router.embed(model, [text], deadline=deadline) for text in (texts[2], texts[0])]
    )
    dimensions = raw.shape[1]
    if again.shape[1] != dimensions:
        raise EmbeddingError(
            f"{model} gave vectors of {dimensions} numbers, and then of {again.shape[1]}",
            hint="choose another embedding model: pikuri-memory models lists them, then"
            " pikuri-memory up --embedder-model NAME",
        )
    lengths = np.linalg.norm(raw.astype(np.float64), axis=1)
    unit = raw.astype(np.float64) / lengths[:, None]
    same = _cosines(unit[[2, 0]], again.astype(np.float64))
    reference = tuple(tuple(round(float(number), _DIGITS) for number in row) for row in unit)
    ability = EmbeddingAbility(
        model=model,
        dimensions=dimensions,
        normalised=bool(np.abs(lengths - 1.0).max() < _UNIT),
        deterministic=bool(same.min() >= _STEADY),
        query_prefix=query_prefix,
        document_prefix=document_prefix,
        reference=reference,
        fingerprint=fingerprint(model, reference),
    )
    return ability, _findings(ability, unit, float(same.min()))


def fingerprint(model: str, reference: tuple[tuple[float, ...], ...]) -> str:
    """16 hexadecimal digits that name a model by its reference vectors."""
    told = json.dumps([model, reference], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=1) / lengths
    return cosines


def _findings(
    ability: EmbeddingAbility, unit: NDArray[np.float64], steadiness: float
) -> list[Finding]:
    model = ability.model
    family = family_of(model)
    told = f"{model} embeds in {ability.dimensions} dimensions"
    if family is not None and (ability.query_prefix or ability.document_prefix):
        told += f", with the prefixes of {family.name}"
    if not ability.normalised:
        told += "; its vectors are brought to unit length here"
    found = [Finding("ok", "embedding", told)]
    other = (
        "take another: pikuri-memory models lists them, then pikuri-memory reembed"
        " --embedder-model NAME"
    )
    if not ability.deterministic:
        found.append(
            Finding(
                "problem",
                "embedding",
                f"{model} gives another vector each time for the same text (cosine"
                f" {steadiness:.3f}): it cannot find what it stored",
                other,
            )
        )
        return found
    near, far = float(unit[0] @ unit[1]), max(float(unit[0] @ unit[3]), float(unit[2] @ unit[3]))
    if float((unit @ unit.T).min()) >= _SAME:
        found.append(
            Finding(
                "problem",
                "embedding",
                f"{model} gives the same vector for every text (cosine {far:.3f} for two about"
                " different things): it can find nothing",
                other,
            )
        )
    elif near - far < 0.01:
        found.append(
            Finding(
                "note",
                "embedding",
                f"{model} does not tell like from unlike: two texts about one thing have a cosine"
                f" of {near:.2f}, two about different things {far:.2f}",
                other,
            )
        )
    return found
