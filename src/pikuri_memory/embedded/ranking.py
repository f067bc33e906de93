"""What is the best answer? Pure functions over candidates.

The score of a candidate is ``(W * cosine + C * coverage) / (W + C)``, each part clamped to [0, 1].
*Cosine* compares meanings. *Coverage* is the share of the question's idf that the memory's terms
cover; a term that no memory has still counts in the whole, so that a question about something
unknown is covered badly by everything. Unlike reciprocal ranks or normalised BM25, both parts mean
the same in every list. The weights come from ``make evaluate`` (tuned on one half of its
questions, reported on the other).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pikuri_memory.embedded.index import Candidate

COSINE_WEIGHT: Final = 1.0
COVERAGE_WEIGHT: Final = 0.5
NEAR_EQUAL: Final = 0.01
"""Scores are reported in steps of this size; among equals the newer memory comes first."""

CANDIDATES: Final = 40
"""Candidates of each list, or four times ``top_k`` where that is more."""


def idf(documents: int, of: int) -> float:
    """BM25's inverse document frequency, never negative.

    Args:
        documents: In how many memories the term occurs.
        of: How many memories there are.
    """
    return math.log(1 + (of - min(documents, of) + 0.5) / (documents + 0.5))


def query_weights(
    terms: Sequence[int], frequencies: Mapping[int, int], memories: int
) -> list[float]:
    """The weight of each term of a question: its idf divided by the sum of all idf.

    Args:
        terms: Term ids of the question, each once.
        frequencies: In how many memories each occurs; absent is none.
        memories: How many memories there are.
    """
    values = [idf(frequencies.get(term, 0), memories) for term in terms]
    total = sum(values)
    return [value / total for value in values] if total > 0 else [0.0] * len(values)


def score(cosine: float, coverage: float) -> float:
    """The score in [0, 1] of a candidate, before rounding to :data:`NEAR_EQUAL`."""
    cosine = min(max(cosine, 0.0), 1.0)
    coverage = min(max(coverage, 0.0), 1.0)
    return (COSINE_WEIGHT * cosine + COVERAGE_WEIGHT * coverage) / (COSINE_WEIGHT + COVERAGE_WEIGHT)


def rounded(value: float) -> float:
    """A score in steps of :data:`NEAR_EQUAL`."""
    return round(round(value / NEAR_EQUAL) * NEAR_EQUAL, 6)


def shortlist(candidates: Sequence[Candidate], top_k: int) -> list[tuple[float, Candidate]]:
    """The best candidates with their rounded scores, best first.

    All that tie with the last of ``top_k`` are kept: which of them is newer is known only once
    they are read.
    """
    scored = sorted(
        ((rounded(score(c.cosine, c.coverage)), c) for c in candidates),
        key=lambda pair: -pair[0],
    )
    if len(scored) <= top_k:
        return scored
    least = scored[top_k - 1][0]
    return [pair for pair in scored if pair[0] >= least]
