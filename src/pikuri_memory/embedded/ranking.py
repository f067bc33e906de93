"""What is the best answer? Pure functions over candidates.

The score of a candidate is ``(1 - share) * cosine + share * coverage``, in [0, 1]. *Coverage* is
the share of the question's idf that the memory's terms cover; a term that no memory has still
counts in the whole, so that a question about something unknown is covered badly by everything.
Cosine and coverage mean the same in every list, unlike reciprocal ranks or normalised BM25.

How much words count is asked of each query's own candidates, because no one weight fits all. Most
candidates are no answer, so the cosine in their middle, the *background*, tells how alike the model
finds texts that have little to do with each other: .1 to .3 in English, which it knows, .45 to .6
in Finnish and Japanese, which it does not. Up to :data:`KNOWN` the meaning decides and words hardly
more than break ties (answers in other words share none, and a word shared by accident must not beat
them); from :data:`UNKNOWN` on the words decide; in between their share rises in a line. Many
memories raise the background too, for more of them are near: from .14 in scopes of 36 to 214
English facts to .26 when all thousand of them are in one.

The constants come from ``make evaluate``, tuned on one half of its questions and reported on the
other (``docs/evaluation.md``). They hold for the built-in embedder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from pikuri_memory.embedded.index import Candidate

LEAST_SHARE: Final = 0.08
"""The least share of the words in a score, and the least share of the meaning."""

KNOWN: Final = 0.3
UNKNOWN: Final = 0.55
"""Backgrounds up to which the model knows a language, and from which it does not."""

ENOUGH: Final = 10
"""With fewer candidates than this the missing ones count as cosines of 0: the middle of a handful
may well be an answer."""

NEAR_EQUAL: Final = 0.001
"""Scores are reported in steps of this size; among equals the newer memory comes first."""

CANDIDATES: Final = 20
"""Candidates of each list, or twice ``top_k`` where that is more; 100 found nothing more."""


@dataclass(frozen=True, slots=True)
class Formula:
    """The constants of the score as a value, so that ``make evaluate`` can try others.

    Attributes:
        least_share: As :data:`LEAST_SHARE`, from 0 to .5.
        known: As :data:`KNOWN`, below ``unknown``.
        unknown: As :data:`UNKNOWN`.
        near_equal: Step of the reported scores.
    """

    least_share: float = LEAST_SHARE
    known: float = KNOWN
    unknown: float = UNKNOWN
    near_equal: float = NEAR_EQUAL


FORMULA: Final = Formula()
_number = itemgetter(0)


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


def background(candidates: Sequence[Candidate]) -> float:
    """How alike the model finds texts that are no answer: the cosine in the middle of candidates.

    Args:
        candidates: All of one query. Below :data:`ENOUGH` the missing ones count as 0.

    Returns:
        The lower median of their cosines, in [0, 1].
    """
    middle = max(len(candidates), ENOUGH) // 2
    if middle >= len(candidates):
        return 0.0
    cosines = sorted([candidate.cosine for candidate in candidates], reverse=True)
    return min(max(cosines[middle], 0.0), 1.0)


def word_share(level: float, formula: Formula = FORMULA) -> float:
    """The share of coverage in the scores of a query.

    Args:
        level: The :func:`background` of its candidates.
        formula: The constants.
    """
    rise = (level - formula.known) / (formula.unknown - formula.known)
    return formula.least_share + (1.0 - 2.0 * formula.least_share) * min(max(rise, 0.0), 1.0)


def score(cosine: float, coverage: float, share: float) -> float:
    """The score in [0, 1] of a candidate, before rounding to :data:`NEAR_EQUAL`.

    It never falls when the cosine or the coverage rises. Below 0 and above 1 (BM25's weight of a
    repeated term) both count as 0 and 1.

    Args:
        cosine: Of the candidate.
        coverage: Of the candidate.
        share: The :func:`word_share` of its query.
    """
    closeness = min(max(cosine, 0.0), 1.0)
    return (1.0 - share) * closeness + share * min(max(coverage, 0.0), 1.0)


def rounded(value: float, formula: Formula = FORMULA) -> float:
    """A score in steps of :data:`NEAR_EQUAL`, never above 1."""
    return _steps(int(value / formula.near_equal + 0.5), formula)


def _steps(number: int, formula: Formula) -> float:
    return min(round(number * formula.near_equal, 6), 1.0)


def raise_successors(
    scores: Mapping[int, float], newer_of: Mapping[int, Sequence[int]]
) -> dict[int, float]:
    """The scores with every successor raised to that of what it supersedes, where its is lower.

    Args:
        scores: By row, of what was found.
        newer_of: The rows that supersede a row.

    Returns:
        The scores of the same rows, and of their successors that were not found.
    """
    raised = dict(scores)
    waiting = list(scores)
    while waiting:
        row = waiting.pop()
        for newer in newer_of.get(row, ()):
            if raised.get(newer, -1.0) < raised[row]:
                raised[newer] = raised[row]
                waiting.append(newer)
    return raised


def shortlist(
    candidates: Sequence[Candidate], top_k: int, share: float, formula: Formula = FORMULA
) -> list[tuple[float, Candidate]]:
    """The best candidates with their rounded scores, best first.

    All that tie with the last of ``top_k`` are kept: which of them is newer is known only once
    they are read.

    Args:
        candidates: All of one query.
        top_k: How many are wanted.
        share: Their :func:`word_share`.
        formula: The constants.
    """
    # The same as score() and rounded(), written out: this is done for every candidate.
    words = share / formula.near_equal
    meaning = (1.0 - share) / formula.near_equal
    scored: list[tuple[int, Candidate]] = []
    for candidate in candidates:
        _, cosine, coverage = candidate
        value = 0.5
        if cosine > 0.0:
            value += meaning * cosine if cosine < 1.0 else meaning
        if coverage > 0.0:
            value += words * coverage if coverage < 1.0 else words
        scored.append((int(value), candidate))
    scored.sort(key=_number, reverse=True)
    if len(scored) > top_k:
        least = scored[top_k - 1][0]
        end = top_k
        while end < len(scored) and scored[end][0] == least:
            end += 1
        del scored[end:]
    return [(_steps(number, formula), candidate) for number, candidate in scored]
