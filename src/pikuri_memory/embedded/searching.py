"""Answering a question: candidates from the index or the record, fused, ordered and explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded import exact, ranking
from pikuri_memory.embedded.index import Candidate, Index, Tokenizer
from pikuri_memory.embedded.model import Hit, Hits, SearchQuery, StoredMemory
from pikuri_memory.embedded.records import Records

FEW_ROWS: Final = 1000
"""Up to so many rows a filter's result goes to the index as ids; more are scored exactly."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a question's text is turned into, kept for when it is asked again.

    Without a vector (there is none to be had now) it is answered by words alone, and not kept.
    """

    vector: NDArray[np.float32] | None
    values: list[float]
    terms: list[int]
    space: str


class SpaceChangedError(Exception):
    """What is searched holds another embedder's vectors than the question has: ask it anew."""


class Searching:
    """Finds memories; for any thread.

    Args:
        records: The record.
        tokenizer: Makes terms of texts.
        index: Gives the index in use; None while there is none.
        failed: Told of an index that failed, and how.
    """

    def __init__(
        self,
        records: Records,
        tokenizer: Tokenizer,
        index: Callable[[], Index | None],
        failed: Callable[[Index, Exception], None],
    ) -> None:
        self._records = records
        self._tokenizer = tokenizer
        self._index = index
        self._failed = failed

    def find(self, query: SearchQuery, question: Question) -> Hits:
        """The memories that answer a question best, best first; fewer where some are gone.

        Raises:
            SpaceChangedError: There are vectors of another embedder by now.
        """
        terms = question.terms
        frequencies = self._records.document_frequencies(terms) if terms else {}
        weights = ranking.query_weights(terms, frequencies, self._records.count)
        candidates = self.candidates(query, question, weights)
        level = ranking.background(candidates)
        share = 1.0 if question.vector is None else ranking.word_share(level)
        best = ranking.shortlist(candidates, query.top_k, share)
        memories = self._records.by_rows([candidate.row for _, candidate in best])
        hits: list[tuple[float, int, Candidate, StoredMemory]] = []
        user, agent, run = query.scope.user_id, query.scope.agent_id, query.scope.run_id
        for score, candidate in best:
            memory = memories.get(candidate.row)
            # Gone since, or (were the index wrong) another's: not shown.
            if memory is None or score < query.threshold:
                continue
            scope = memory.scope
            if user is not None and scope.user_id != user:
                continue
            if agent is not None and scope.agent_id != agent:
                continue
            if run is not None and scope.run_id != run:
                continue
            hits.append((score, memory.created_at, candidate, memory))
        hits.sort(key=lambda hit: (-hit[0], -hit[1]))
        newer_of = self._records.links.newer_of
        if newer_of and not newer_of.keys().isdisjoint(memories):
            hits = self._with_successors(query, question, weights, hits[: query.top_k], candidates)
        return Hits(
            Hit(
                memory,
                score,
                self._explain(query, candidate, level, share, memory, terms, weights)
                if query.explain
                else None,
            )
            for score, _, candidate, memory in hits[: query.top_k]
        )

    def _with_successors(
        self,
        query: SearchQuery,
        question: Question,
        weights: Sequence[float],
        hits: Sequence[tuple[float, int, Candidate, StoredMemory]],
        candidates: Sequence[Candidate],
    ) -> list[tuple[float, int, Candidate, StoredMemory]]:
        """Hits with what supersedes them before them, pulled in where it was not found."""
        scores = {candidate.row: score for score, _, candidate, _ in hits}
        raised = ranking.raise_successors(scores, self._records.links.newer_of)
        more = self._records.passing(
            [row for row in raised if row not in scores], query.condition, query.show_expired
        )
        known = {candidate.row: candidate for candidate in candidates}
        lacking = [row for row in more if row not in known]
        if lacking and query.explain:
            known |= {
                c.row: c for c in self._score_exactly(lacking, question, weights, len(lacking))
            }
        found = [
            (raised[candidate.row], created_at, candidate, memory)
            for _, created_at, candidate, memory in hits
        ]
        # They are of exactly the scope of what was found.
        for row, memory in self._records.by_rows(more).items():
            candidate = known.get(row, Candidate(row, 0.0, 0.0))
            found.append((raised[row], memory.created_at, candidate, memory))
        found.sort(key=lambda hit: (-hit[0], -hit[1], -hit[2].row))
        return found

    def candidates(
        self, query: SearchQuery, question: Question, weights: Sequence[float]
    ) -> list[Candidate]:
        """What is near to a question or shares its terms, by row, in no order.

        Args:
            query: Its scope and its filter count, and how many are wanted; its text does not.
            question: The question.
            weights: One per term of it.

        Raises:
            SpaceChangedError: As of :meth:`find`.
        """
        limit = max(ranking.CANDIDATES, 2 * query.top_k)
        index = self._index()
        by_vector = question.vector is not None
        if by_vector and index is not None and index.space != question.space:
            raise SpaceChangedError
        rows: list[int] | None = None
        never: list[int] = []
        if query.condition is not None or index is None:
            rows = self._records.matching_rows(query.scope, query.condition, query.show_expired)
            if not rows:
                return []
        elif not query.show_expired and self._records.has_expiring():
            never = self._records.expired_rows(query.scope)
        if index is not None and (rows is None or len(rows) <= FEW_ROWS):
            try:
                return index.search(
                    question.values if by_vector else None,
                    question.terms,
                    weights,
                    query.scope,
                    limit=limit,
                    only=rows,
                    never=never,
                )
            except Exception as error:
                self._failed(index, error)
                rows = self._records.matching_rows(query.scope, query.condition, query.show_expired)
        assert rows is not None
        return self._score_exactly(rows, question, weights, limit)

    def _score_exactly(
        self, rows: Sequence[int], question: Question, weights: Sequence[float], limit: int
    ) -> list[Candidate]:
        """The candidates among some rows, without the index."""
        by_vector = question.vector is not None
        try:
            found = exact.candidates(
                rows,
                self._records.index_rows,
                question.vector,
                question.terms,
                weights,
                self._tokenizer.document,
                limit=limit,
            )
        except ValueError:  # the dimensions differ
            if self._records.meta("embedder") == question.space:
                raise
            raise SpaceChangedError from None
        # Asked after the vectors were read: they were this embedder's then.
        if by_vector and self._records.meta("embedder") != question.space:
            raise SpaceChangedError
        return found

    def _explain(
        self,
        query: SearchQuery,
        candidate: Candidate,
        level: float,
        share: float,
        memory: StoredMemory,
        terms: Sequence[int],
        weights: Sequence[float],
    ) -> dict[str, Any]:
        """The parts of a score. Terms are shown as the words of the question they come from.

        The score is the sum of cosine (0 where it is below) and coverage, each times its weight.
        """
        document = self._tokenizer.document(memory.text)
        held = dict(zip(document.ids, document.weights, strict=True))
        words: dict[int, str] = {}
        for word in query.text.split():
            for term in self._tokenizer.ids(word):
                words.setdefault(term, word)
        return {
            "cosine": round(candidate.cosine, 6),
            "coverage": round(min(candidate.coverage, 1.0), 6),
            "background": round(level, 6),
            "weights": {"cosine": round(1.0 - share, 6), "coverage": round(share, 6)},
            "unrounded_score": round(ranking.score(candidate.cosine, candidate.coverage, share), 6),
            "terms": [
                {
                    "term": words.get(term, f"#{term}"),
                    "weight": round(weight, 6),
                    "part": round(weight * held.get(term, 0.0), 6),
                }
                for term, weight in zip(terms, weights, strict=True)
            ],
        }
