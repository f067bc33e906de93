"""Scoring without the index finds what the index finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pikuri_memory.embedded import exact, ranking
from pikuri_memory.embedded.index import Candidate, Index, Point, Tokenizer
from pikuri_memory.embedded.records import IndexRow
from pikuri_memory.record import Scope

ANNA = Scope("anna")
DIMENSIONS = 16
WORDS = ("tea", "dog", "harbour", "piano", "winter", "bicycle", "garden", "letter")
TOKENIZER = Tokenizer()


def rows(count: int) -> list[IndexRow]:
    random = np.random.default_rng(7)
    vectors = random.normal(size=(count, DIMENSIONS)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        IndexRow(
            number,
            ANNA,
            f"{' '.join(random.choice(WORDS, 3))} {number}",
            vectors[number - 1].tobytes(),
        )
        for number in range(1, count + 1)
    ]


def scored_exactly(
    found: Sequence[IndexRow], query: NDArray[np.float32], terms: Sequence[int], limit: int
) -> list[Candidate]:
    by_number = {row.row: row for row in found}
    return exact.candidates(
        list(by_number),
        lambda numbers: [by_number[number] for number in numbers],
        query,
        terms,
        weights(terms),
        TOKENIZER.document,
        limit=limit,
    )


def weights(terms: Sequence[int]) -> list[float]:
    return ranking.query_weights(terms, {}, 100)


@pytest.mark.parametrize("question", ["the dog in the harbour", "zebra", ""])
def test_both_ways_give_the_same_candidates_and_so_the_same_scores(
    tmp_path: Path, question: str
) -> None:
    stored = rows(60)
    index = Index.create(tmp_path / "index", DIMENSIONS)
    index.upsert(
        [Point(row.row, row.vector, TOKENIZER.document(row.text), row.scope) for row in stored]
    )
    query = np.frombuffer(stored[3].vector, "<f4")
    terms = TOKENIZER.ids(question)
    # So many that no list is cut among equals.
    theirs = index.search(query.tolist(), terms, weights(terms), ANNA, limit=60)
    index.close()
    ours = scored_exactly(stored, query, terms, 60)
    assert {c.row: (c.cosine, c.coverage) for c in ours} == {
        c.row: pytest.approx((c.cosine, c.coverage), abs=1e-5) for c in theirs
    }
    assert ranking.background(ours) == pytest.approx(ranking.background(theirs), abs=1e-5)


def test_the_nearest_and_the_best_covered_are_found_however_many_there_are() -> None:
    stored = rows(3 * exact.BATCH)
    query = np.frombuffer(stored[-1].vector, "<f4")
    terms = TOKENIZER.ids("7")
    found = scored_exactly(stored, query, terms, 5)
    by_cosine = max(found, key=lambda candidate: candidate.cosine)
    by_coverage = max(found, key=lambda candidate: candidate.coverage)
    assert by_cosine.row == stored[-1].row
    assert by_coverage.row == 7
    assert len(found) <= 10
    assert len({candidate.row for candidate in found}) == len(found)
