"""The filters of the patched mem0 mean what those of our own server mean: ``docs/filters.md``.

The language is a file that a patch adds. It is read from the patch, and judged by the same oracle
and the same filters as the one of the embedded server (``tests/embedded/test_filters.py``).
"""

from __future__ import annotations

import types
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pikuri_memory import Mem0Server
from pikuri_memory.embedded.filters import LOGICAL, MEMORY_FIELDS
from pikuri_memory.embedded.filters import parse as own_parse
from pikuri_memory.errors import FilterError, InvalidRequestError
from tests.embedded.filter_reference import matches
from tests.embedded.test_filters import junk, parts, worlds

PATCH = Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF / "13-filters.patch"
FILE = "mem0/vector_stores/filter_language.py"


@pytest.fixture(scope="module")
def language() -> types.ModuleType:
    """The module that the patch adds."""
    _, _, added = PATCH.read_text("utf-8").partition(f"+++ b/{FILE}\n")
    lines = added.partition("\ndiff --git ")[0].splitlines()
    assert lines[0].startswith("@@ -0,0 +1,")
    module = types.ModuleType("filter_language")
    exec(compile("\n".join(line[1:] for line in lines[1:]), FILE, "exec"), vars(module))
    return module


def found(language: types.ModuleType, filters: Any, rows: list[dict[str, Any]]) -> list[str]:
    """The ids that it finds, among memories as mem0 keeps them: everything beside the metadata."""
    scope, conditions = language.parse(filters)
    fits = language.predicate(conditions)
    result = []
    for row in rows:
        payload: dict[str, Any] = dict(row["metadata"])
        for name in MEMORY_FIELDS[1:]:
            payload.pop(name, None)
            if (value := row[name]) is not None:
                payload[name] = value if isinstance(value, str) else value.isoformat()
        in_scope = all(payload.get(name) == value for name, value in scope.items())
        if in_scope and fits(row["id"], payload):
            result.append(row["id"])
    return result


@given(world=worlds())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_finds_what_the_reference_finds(
    language: types.ModuleType, world: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    filters, rows = world
    for part in parts(filters):
        try:
            own_parse(part)
        except FilterError:
            with pytest.raises(ValueError, match="twice"):
                language.parse(part)
            continue
        except InvalidRequestError:  # an id that is no scope, which is refused before
            continue
        expected = [row["id"] for row in rows if matches(part, row)]
        event("part: some" if 0 < len(expected) < len(rows) else "part: all or none")
        assert found(language, part, rows) == expected


@given(filters=st.dictionaries(st.sampled_from([*LOGICAL, *MEMORY_FIELDS, "k"]), junk))
@settings(max_examples=400, deadline=None)
def test_it_refuses_what_our_own_server_refuses(
    language: types.ModuleType, filters: dict[str, Any]
) -> None:
    try:
        own_parse(filters)
    except FilterError:
        with pytest.raises(language.FilterError):
            language.parse(filters)
    except InvalidRequestError:  # an id that is no scope, which is refused before
        pass
    else:
        language.parse(filters)


@pytest.mark.parametrize(
    "filters",
    [
        {"k": {"in": ["x"] * 1001}},
        {"OR": [{"k": "x"}] * 201},
        {"k": ["x" * 2000] * 600},
        {"k": {"gt": "secret", "like": "secret"}},
        {"NOT": "secret"},
        {"created_at": "secret"},
    ],
)
def test_a_refusal_tells_no_value(language: types.ModuleType, filters: dict[str, Any]) -> None:
    with pytest.raises(language.FilterError) as caught:
        language.parse(filters)
    with pytest.raises(FilterError):
        own_parse(filters)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200
