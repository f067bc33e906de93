"""Links are right often enough to be written at all, and the data of changes is sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from pikuri_memory.embedded import succession
from pikuri_memory.embedded.succession import Older

from . import changes
from .changes import (
    CHANGES,
    Decision,
    Part,
    corrected_by,
    decide,
    figures,
    load_changes,
    part_of,
    table,
    wilson,
)
from .dataset import Fact, Scope, load
from .evaluate import Vectors

SCOPES = load_changes()
each_scope = pytest.mark.parametrize("scope", load(CHANGES), ids=lambda scope: scope.name)


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    return decide(SCOPES, Vectors(SCOPES).__getitem__)


def of(decisions: Sequence[Decision], part: Part) -> list[Decision]:
    parts = part_of(decisions)
    return [decision for decision in decisions if parts[decision.fact.id] == part]


def test_links_of_the_reported_half_are_right_at_least_95_times_in_100(
    decisions: list[Decision],
) -> None:
    found = figures(of(decisions, "reported"))
    assert found.precision >= succession.LEAST_PRECISION
    assert found.links >= 50
    # What the product goes by is not more than what is measured.
    assert pytest.approx(found.precision, abs=0.0005) == succession.PRECISION


def test_links_of_facts_that_were_written_later_are_right_as_often(
    decisions: list[Decision],
) -> None:
    found = figures(of(decisions, "fresh"))
    assert found.precision >= succession.LEAST_PRECISION
    assert found.links >= 30


def test_a_quarter_of_the_corrections_at_least_is_recognised(decisions: list[Decision]) -> None:
    assert figures(of(decisions, "reported")).recall >= 0.25
    assert figures(of(decisions, "fresh")).recall >= 0.25


def test_there_are_eighty_corrections_and_a_hundred_and_fifty_look_alikes() -> None:
    facts = [fact for scope in SCOPES for fact in scope.facts]
    assert sum(fact.corrects is not None for fact in facts) >= 80
    assert sum(fact.resembles is not None for fact in facts) >= 150


def test_ids_are_unique_over_all_scopes() -> None:
    ids = Counter(fact.id for scope in SCOPES for fact in scope.facts)
    assert [id_ for id_, count in ids.items() if count > 1] == []


@each_scope
def test_what_is_corrected_or_resembled_is_older_and_of_the_scope(scope: Scope) -> None:
    for fact in scope.facts:
        assert [fact.corrects, fact.resembles, fact.repeats].count(None) >= 2, fact.id
        for other in (fact.corrects, fact.resembles, fact.repeats):
            assert other is None or scope.by_id[other].at < fact.at, fact.id


@each_scope
def test_no_text_occurs_twice_in_a_scope(scope: Scope) -> None:
    texts = Counter(" ".join(fact.text.lower().split()) for fact in scope.facts)
    assert [text for text, count in texts.items() if count > 1] == []


def fact(number: int, corrects: int | None = None, scope: str = "a") -> Fact:
    return Fact(
        f"{scope}-{number:03}",
        f"fact {number}",
        datetime(2025, 1, number, tzinfo=UTC),
        corrects=None if corrects is None else f"{scope}-{corrects:03}",
    )


CHAIN = Scope("a", (fact(1), fact(2), fact(3, 1), fact(4, 3)), ())


def same(text: str) -> np.typing.NDArray[np.float32]:
    return np.ones(1, np.float32)


def oldest(new: str, older: Sequence[Older]) -> int | None:
    times = [one.created_at for one in older]
    return times.index(min(times)) if times else None


def test_each_fact_is_compared_with_those_before_it_and_an_earlier_link_of_a_chain_is_right() -> (
    None
):
    assert corrected_by(CHAIN, CHAIN.facts[3]) == {"a-003", "a-001"}
    found = decide([CHAIN], same, recogniser=oldest)
    assert [d.chosen and d.chosen.id for d in found] == [None, "a-001", "a-001", "a-001"]
    assert [d.right for d in found] == [False, False, True, True]
    counted = figures(found)
    assert (counted.facts, counted.links, counted.right, counted.corrections) == (4, 3, 2, 2)
    assert counted.precision == pytest.approx(2 / 3)
    assert counted.recall == 1.0


def test_without_what_it_corrects_every_link_of_a_correction_is_wrong() -> None:
    found = decide([CHAIN], same, recogniser=oldest, without_predecessor=True)
    assert [(d.fact.id, d.chosen and d.chosen.id, d.right) for d in found] == [
        ("a-003", "a-002", False),
        ("a-004", "a-002", False),
    ]


def test_the_halves_of_each_kind_are_about_equal_and_fresh_facts_are_of_neither(
    decisions: list[Decision],
) -> None:
    parts = part_of(decisions)
    assert parts == part_of(decisions[::-1])
    for kind in changes.KINDS:
        counts = Counter(parts[d.fact.id] for d in decisions if d.kind == kind)
        assert 0 <= counts["tuning"] - counts["reported"] <= 2
    assert {d.scope for d in decisions if parts[d.fact.id] == "fresh"} == {
        "beacon",
        "imani",
        "ruben",
        "yusuf",
    }


def test_an_interval_of_a_share_holds_it_and_is_no_point_where_all_are_right() -> None:
    low, high = wilson(59, 61)
    assert 0.88 < low < 59 / 61 < high < 1.0
    low, high = wilson(39, 39)
    assert 0.9 < low < 0.95
    assert high == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_table_names_what_is_wrong() -> None:
    found = decide([CHAIN], same, recogniser=oldest)
    wrong = [d.fact.id for d in found if d.chosen is not None and not d.right]
    lines = table(found, decide([CHAIN], same, recogniser=oldest, without_predecessor=True))
    reported = part_of(found)[wrong[0]] == "reported"
    assert lines[-1].endswith("a-002 (other) to a-001" if reported else "none")
