"""The evaluation measures what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pikuri_memory.embedded.index import Candidate
from pikuri_memory.embedded.ranking import Formula

from .dataset import PARTS, Question, load
from .evaluate import (
    Case,
    Difference,
    by_cosine,
    by_coverage,
    differences,
    figures,
    hybrid,
    interval,
    is_fresh,
    newer_first,
    parts_of,
    tuning_half,
)

QUESTIONS = [question for scope in load() for question in scope.questions]


def case(*candidates: tuple[int, float, float], answer: int, outdated: int = 0) -> Case:
    """Row numbers are also the times at which the memories were made."""
    return Case(
        Question("q", "chat", "?", ("a",)),
        [Candidate(*values) for values in candidates],
        {row: float(row) for row, _, _ in candidates},
        (answer,),
        (outdated,) if outdated else (),
    )


def test_figures_count_the_share_of_answers_and_the_rank_of_the_first() -> None:
    assert figures([5, 7, 9], [7]) == [0.0, 1.0, 1.0, 0.5]
    assert figures([5, 7], [5, 8]) == [0.5, 0.5, 0.5, 1.0]
    assert figures([], [1]) == [0.0, 0.0, 0.0, 0.0]


def test_dense_and_bm25_order_by_their_own_part_and_bm25_finds_no_stranger() -> None:
    found = case((1, 0.9, 0.0), (2, 0.1, 0.5), (3, 0.1, 0.8), answer=1)
    assert by_cosine(found) == [1, 3, 2]
    assert by_coverage(found) == [3, 2]


def test_the_hybrid_puts_the_newer_of_near_equals_first() -> None:
    found = case((1, 0.5005, 0.5), (2, 0.5, 0.5), answer=2, outdated=1)
    assert hybrid(Formula(near_equal=0.25))(found) == [2, 1]
    assert hybrid(Formula(near_equal=0.00001))(found) == [1, 2]
    assert newer_first([found], hybrid(Formula(near_equal=0.25))) == (1.0, 1)
    assert newer_first([found], by_cosine) == (0.0, 1)


@pytest.mark.parametrize("part", PARTS)
def test_the_halves_of_each_part_are_equal_but_for_one(part: str) -> None:
    chosen = tuning_half(QUESTIONS)
    of_part = [q.id for q in QUESTIONS if q.part == part and not is_fresh(q)]
    tuned = sum(id_ in chosen for id_ in of_part)
    assert 0 <= 2 * tuned - len(of_part) <= 1


def test_the_split_does_not_depend_on_the_order_of_questions() -> None:
    assert tuning_half(QUESTIONS) == tuning_half(QUESTIONS[::-1])


def test_fresh_questions_are_of_the_reported_half_and_move_no_other_into_it() -> None:
    old = [question for question in QUESTIONS if not is_fresh(question)]
    fresh = [Question(f"marta-n{number:03}", "correction", "?", ("a",)) for number in range(20)] + [
        Question(f"finnish-2-q{number:03}", "finnish", "?", ("a",)) for number in range(20)
    ]
    assert all(is_fresh(question) for question in fresh)
    assert tuning_half([*old, *fresh]) == tuning_half(old)


def test_other_questions_are_not_taken_for_fresh_ones() -> None:
    for id_ in ("chat-nora-q01", "finnish-q022", "marta-q201"):
        assert not is_fresh(Question(id_, "chat", "?", ("a",)))


def test_fresh_questions_have_a_line_of_their_own_and_are_in_that_of_their_part() -> None:
    old = case((1, 0.9, 0.0), answer=1)
    new = replace(old, question=Question("nora-n1", "chat", "?", ("a",)))
    masks = {part: mask.tolist() for part, mask in parts_of([old, new])}
    assert masks == {"chat": [True, True], "chat, fresh": [False, True]}


def test_an_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    values = np.array([0.0, 1.0] * 20)
    low, high = interval(values)
    assert 0 < low < 0.5 < high < 1
    assert interval(values) == (low, high)
    assert interval(np.ones(5)) == (1.0, 1.0)


def test_a_difference_is_taken_from_the_better_of_the_two() -> None:
    found = case((1, 0.9, 0.0), (2, 0.1, 0.5), answer=1)
    assert {difference.reference for difference in differences([found])} == {"dense"}


def test_a_part_may_be_a_little_behind_and_the_whole_must_be_ahead() -> None:
    def missed(part: str, metric: str, mean: float) -> bool:
        return Difference(part, metric, "dense", mean, mean, mean).missed

    assert not missed("chat", "MRR", -0.019)
    assert missed("chat", "MRR", -0.021)
    assert missed("all", "recall@5", 0.0)
    assert not missed("chat", "recall@1", -0.5)
