"""Whatever an endpoint does, no turn is lost, and what the user sees stands in docs/models.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.router.scripted import MISBEHAVIOURS
from tests.router.table import LASTING, Bench, bench_for, written


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A server that started with a good endpoint."""
    with Bench(tmp_path_factory.mktemp("bench")) as bench:
        yield bench


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_no_turn_is_lost_and_what_is_seen_stands_in_the_table(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """See :meth:`Bench.see` for what is asserted on the way."""
    common = None if name in LASTING else request.getfixturevalue("common")
    with bench_for(name, tmp_path, common) as bench:
        row = bench.see(name).markdown()
    assert written().get(MISBEHAVIOURS[name].what) == row, (
        "docs/models.md is not what is seen: python -m tests.router.misbehaviours --write"
    )


@pytest.mark.parametrize("name", sorted(LASTING))
def test_no_turn_is_lost_where_it_begins_while_the_server_runs(name: str, common: Bench) -> None:
    common.see(name)


def test_the_table_has_every_misbehaviour_once_and_in_order() -> None:
    assert list(written()) == [each.what for each in MISBEHAVIOURS.values()]
    assert set(MISBEHAVIOURS) >= LASTING
