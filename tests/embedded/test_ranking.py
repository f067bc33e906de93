"""Properties of the score and of the order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.embedded.index import Candidate
from pikuri_memory.embedded.ranking import (
    ENOUGH,
    KNOWN,
    LEAST_SHARE,
    NEAR_EQUAL,
    UNKNOWN,
    background,
    idf,
    query_weights,
    rounded,
    score,
    shortlist,
    word_share,
)

cosines = st.floats(-1.0, 1.0)
coverages = st.floats(0.0, 2.2)
"""BM25's weight of a repeated term goes up to k + 1."""
shares = st.floats(0.0, 1.0)
candidate_lists = st.lists(st.builds(Candidate, st.integers(1, 10**6), cosines, coverages))
term_lists = st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=20)


def with_cosines(*values: float) -> list[Candidate]:
    return [Candidate(row, value, 0.0) for row, value in enumerate(values)]


@given(cosines, coverages, shares)
def test_a_score_is_between_zero_and_one(cosine: float, coverage: float, share: float) -> None:
    assert 0.0 <= score(cosine, coverage, share) <= 1.0
    assert 0.0 <= rounded(score(cosine, coverage, share)) <= 1.0


@given(cosines, cosines, coverages, shares)
def test_a_score_never_falls_when_the_cosine_rises(
    one: float, two: float, cov: float, share: float
) -> None:
    assert score(min(one, two), cov, share) <= score(max(one, two), cov, share)


@given(cosines, coverages, coverages, shares)
def test_a_score_never_falls_when_the_coverage_rises(
    cosine: float, one: float, two: float, share: float
) -> None:
    assert score(cosine, min(one, two), share) <= score(cosine, max(one, two), share)


@given(shares)
def test_nothing_in_common_scores_zero_and_everything_scores_one(share: float) -> None:
    assert score(-0.3, 0.0, share) == 0.0
    assert score(1.0, 1.0, share) == 1.0
    assert score(1.0, 2.2, share) == 1.0


@given(candidate_lists)
def test_the_background_is_between_zero_and_one(candidates: list[Candidate]) -> None:
    assert 0.0 <= background(candidates) <= 1.0


@given(candidate_lists, st.randoms(use_true_random=False))
def test_the_background_does_not_depend_on_the_order(
    candidates: list[Candidate], random: Random
) -> None:
    shuffled = candidates.copy()
    random.shuffle(shuffled)
    assert background(shuffled) == background(candidates)


def test_the_background_is_the_cosine_in_the_middle_whatever_a_few_outliers_say() -> None:
    assert background(with_cosines(1.0, -1.0, *[0.4] * 8)) == 0.4
    assert background(with_cosines(*[value / 100 for value in range(20)])) == 0.09


def test_a_handful_of_candidates_has_no_background() -> None:
    assert background([]) == 0.0
    assert background(with_cosines(*[0.8] * (ENOUGH // 2))) == 0.0
    assert background(with_cosines(0.9, 0.8, 0.7, 0.6, 0.5, 0.4)) == 0.4


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_words_count_more_where_the_model_knows_less_but_neither_is_ever_silent(
    one: float, two: float
) -> None:
    assert word_share(min(one, two)) <= word_share(max(one, two))
    assert LEAST_SHARE <= word_share(one) <= 1 - LEAST_SHARE + 1e-12


def test_the_share_of_words_rises_from_known_to_unknown() -> None:
    assert word_share(KNOWN) == LEAST_SHARE
    assert word_share((KNOWN + UNKNOWN) / 2) == pytest.approx(0.5)
    assert word_share(UNKNOWN) == pytest.approx(1 - LEAST_SHARE)


def test_meaning_decides_where_the_model_knows_the_language_and_words_where_not() -> None:
    meant, worded = Candidate(1, 0.7, 0.0), Candidate(2, 0.6, 0.5)
    others = [Candidate(row, 0.1, 0.0) for row in range(3, 23)]
    known = word_share(background([meant, worded, *others]))
    assert shortlist([meant, worded], 2, known)[0][1] is meant
    others = [Candidate(row, 0.55, 0.0) for row in range(3, 23)]
    unknown = word_share(background([meant, worded, *others]))
    assert shortlist([meant, worded], 2, unknown)[0][1] is worded


@given(st.floats(0.0, 1.0))
def test_rounding_moves_a_score_by_half_a_step_at_most(value: float) -> None:
    assert abs(rounded(value) - value) <= NEAR_EQUAL / 2 + 1e-6


@given(term_lists, st.integers(1, 10**6), st.data())
def test_the_weights_of_a_question_sum_to_one(
    terms: list[int], memories: int, data: st.DataObject
) -> None:
    frequencies = {term: data.draw(st.integers(0, memories)) for term in terms}
    weights = query_weights(terms, frequencies, memories)
    assert len(weights) == len(terms)
    assert all(weight >= 0 for weight in weights)
    assert sum(weights) == pytest.approx(1.0 if terms else 0.0)


def test_no_terms_have_no_weights() -> None:
    assert query_weights([], {}, 10) == []


@given(st.integers(1, 10**6), st.data())
def test_a_term_that_no_memory_has_counts_most_in_the_sum(
    memories: int, data: st.DataObject
) -> None:
    frequency = data.draw(st.integers(1, memories))
    alone = query_weights([1], {1: frequency}, memories)
    with_unknown = query_weights([1, 2], {1: frequency}, memories)
    assert alone == [1.0]
    assert with_unknown[0] < with_unknown[1]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_idf_is_never_negative_even_with_stale_frequencies(documents: int, of: int) -> None:
    assert idf(documents, of) >= 0.0


@given(candidate_lists, st.integers(1, 30), shares)
def test_the_shortlist_is_best_first_and_leaves_nothing_better_out(
    candidates: list[Candidate], top_k: int, share: float
) -> None:
    best = shortlist(candidates, top_k, share)
    scores = [value for value, _ in best]
    assert scores == sorted(scores, reverse=True)
    assert len(best) >= min(top_k, len(candidates))
    kept = {id(candidate) for _, candidate in best}
    for candidate in candidates:
        if id(candidate) not in kept:
            assert rounded(score(candidate.cosine, candidate.coverage, share)) < scores[-1]


def test_the_shortlist_keeps_all_that_tie_with_the_last() -> None:
    candidates = [Candidate(row, 0.5, 0.5) for row in range(5)]
    candidates.append(Candidate(9, 0.1, 0.0))
    assert [c.row for _, c in shortlist(candidates, 2, 0.5)] == [0, 1, 2, 3, 4]
