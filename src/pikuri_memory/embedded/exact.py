"""Scoring without the index: every memory of a list, one by one, from the record.

Slower than the index by the number of memories (some 10 microseconds each), and exact. It serves
filters that leave many memories, and every search while there is no index.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded.index import Candidate, Terms
from pikuri_memory.embedded.records import IndexRow

BATCH = 1000


def candidates(
    rows: Sequence[int],
    read: Callable[[Sequence[int]], list[IndexRow]],
    vector: NDArray[np.float32],
    terms: Sequence[int],
    weights: Sequence[float],
    document: Callable[[str], Terms],
    score: Callable[[float, float], float],
    *,
    limit: int,
) -> list[Candidate]:
    """The best of some rows, scored by the record's own vectors and texts.

    Args:
        rows: Rows of the record.
        read: Reads what is needed of some rows.
        vector: Of the query, shape (dimensions,), unit length.
        terms: Term ids of the query.
        weights: One per term.
        document: The tokenizer for memories.
        score: From cosine and coverage.
        limit: Most candidates.
    """
    weight_of = dict(zip(terms, weights, strict=True))
    best: list[Candidate] = []
    for start in range(0, len(rows), BATCH):
        part = read(rows[start : start + BATCH])
        if not part:
            continue
        matrix = np.frombuffer(b"".join(row.vector for row in part), "<f4").reshape(len(part), -1)
        cosines = matrix @ vector
        found = [
            Candidate(row.row, float(cosine), coverage(document(row.text), weight_of))
            for row, cosine in zip(part, cosines, strict=True)
        ]
        best = heapq.nlargest(limit, best + found, key=lambda c: score(c.cosine, c.coverage))
    return best


def coverage(document: Terms, weight_of: dict[int, float]) -> float:
    """The share of a question that a memory's terms cover, as the index computes it."""
    return sum(
        weight_of[term] * weight
        for term, weight in zip(document.ids, document.weights, strict=True)
        if term in weight_of
    )
