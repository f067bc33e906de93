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
    vector: NDArray[np.float32] | None,
    terms: Sequence[int],
    weights: Sequence[float],
    document: Callable[[str], Terms],
    *,
    limit: int,
) -> list[Candidate]:
    """The union of the nearest and the best covered of some rows, as the index finds them.

    Args:
        rows: Rows of the record.
        read: Reads what is needed of some rows.
        vector: Of the query, shape (dimensions,), unit length; None finds by terms alone.
        terms: Term ids of the query.
        weights: One per term.
        document: The tokenizer for memories.
        limit: Most candidates of each kind.
    """
    weight_of = dict(zip(terms, weights, strict=True))
    nearest: list[Candidate] = []
    covered: list[Candidate] = []
    for start in range(0, len(rows), BATCH):
        part = read(rows[start : start + BATCH])
        if not part:
            continue
        cosines = np.zeros(len(part), np.float32) if vector is None else _matrix(part) @ vector
        found = [
            Candidate(row.row, float(cosine), coverage(document(row.text), weight_of))
            for row, cosine in zip(part, cosines, strict=True)
        ]
        if vector is not None:
            nearest = heapq.nlargest(limit, nearest + found, key=lambda c: c.cosine)
        covered += [candidate for candidate in found if candidate.coverage > 0.0]
        covered = heapq.nlargest(limit, covered, key=lambda c: c.coverage)
    return list({candidate.row: candidate for candidate in (*nearest, *covered)}.values())


def _matrix(rows: Sequence[IndexRow]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(row.vector for row in rows), "<f4").reshape(len(rows), -1)


def coverage(document: Terms, weight_of: dict[int, float]) -> float:
    """The share of a question that a memory's terms cover, as the index computes it."""
    return sum(
        weight_of[term] * weight
        for term, weight in zip(document.ids, document.weights, strict=True)
        if term in weight_of
    )
