"""Filters: against a plain reference evaluation, through the record's real tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pikuri_memory.embedded.filters import (
    LOGICAL,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_LIST,
    MAX_SIZE,
    MEMORY_FIELDS,
    OPERATORS,
    instant,
    parse,
    register_functions,
)
from pikuri_memory.embedded.schema import MIGRATIONS
from pikuri_memory.errors import FilterError, InvalidRequestError, ScopeRequiredError
from pikuri_memory.record import SCOPE_FIELDS, Scope

from .filter_reference import matches, moment

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Table:
    """The record's ``memories``, and the rows that a filter finds in it."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for _, script in MIGRATIONS:
            self.connection.executescript(script)
        register_functions(self.connection)

    def clear(self) -> None:
        self.connection.execute("DELETE FROM memories")

    def put(self, row: Mapping[str, Any], metadata: str | None = None) -> None:
        """Store a row of the reference; ``metadata`` is its JSON, written in some way."""
        day = row["expiration_date"]
        self.connection.execute(
            "INSERT INTO memories (id, user_id, agent_id, run_id, text, metadata, created_at,"
            " updated_at, expires) VALUES (?, ?, ?, ?, 'text', ?, ?, ?, ?)",
            (
                row["id"],
                *(row[name] or "" for name in SCOPE_FIELDS),
                json.dumps(row["metadata"]) if metadata is None else metadata,
                *((row[name] - EPOCH) // timedelta(microseconds=1) for name in TIMES),
                None if day is None else day.isoformat(),
            ),
        )

    def find(self, filters: Mapping[str, Any]) -> list[str]:
        """The ids that match, in order."""
        scope, condition = parse(filters)
        where, parameters = ("1", []) if condition is None else condition.sql()
        ids = scope.as_dict()
        rows = self.connection.execute(
            f"SELECT m.id, {where} FROM memories m"
            + "".join(f" {'AND' if i else 'WHERE'} m.{name} = ?" for i, name in enumerate(ids))
            + " ORDER BY m.id",
            [*parameters, *ids.values()],
        ).fetchall()
        assert {outcome for _, outcome in rows} <= {0, 1}
        # As a condition it must choose the same as it tells as a value.
        chosen = self.connection.execute(
            f"SELECT m.id FROM memories m WHERE {where} AND m.id IN "
            f"(SELECT value FROM json_each(?)) ORDER BY m.id",
            [*parameters, json.dumps([identity for identity, _ in rows])],
        ).fetchall()
        found = [identity for identity, outcome in rows if outcome]
        assert found == [identity for (identity,) in chosen]
        return found


TIMES = ("created_at", "updated_at")


def a_row(identity: str = "1", **fields: Any) -> dict[str, Any]:
    start = datetime(2024, 5, 1, 12, tzinfo=UTC)
    defaults: dict[str, Any] = dict.fromkeys((*SCOPE_FIELDS, "expiration_date"))
    defaults |= {"id": identity, "created_at": start, "updated_at": start, "metadata": {}}
    return defaults | fields


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.connection.close()


@pytest.fixture(scope="module")
def shared_table() -> Iterator[Table]:
    made = Table()
    yield made
    made.connection.close()


def holds(table: Table, metadata: Mapping[str, Any] | str, condition: Any, key: str = "k") -> bool:
    """Whether metadata (or its JSON text) satisfies one condition on ``key``."""
    table.clear()
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    table.put(a_row(), text)
    return table.find({key: condition}) == ["1"]


# --- against the reference ---------------------------------------------------------------------

KEYS = ("k", "a.b", 'q"uote', "back\\slash", "nul\0x", "nul\0y", "é", "", "日本", "\ud800", "and")
TEXTS = (
    "", "a", "A", "ab", "b", "straße", "STRASSE", "nul\0x", "nul\0y", "\0", "\ud800", "\U0001f600",
    "é", "e\u0301", "*", "%", "_", "İ", "ẞ", '"', "\\", "\\u0041", "k", '"k"', "null", "true", "1",
)  # fmt: skip
DATES = (
    "2024-05-01", "2024-05-01T00:00:00Z", "2024-05-01 02:00+02:00", "2024-04-30T23:59:59.999999",
    "2024-05-01T12:00", "2024-05-01t12:00:00.000000z", "2024-05-01T14:00:00,0000009+0200",
    "2024-05-01T12:00:00.5", "2024-04-30T19:00-05",
    "0001-01-01T00:00+23:59", "9999-12-31T23:59:59-23:59",
)  # fmt: skip
NEARLY_DATES = ("2024-5-1", "2024-05", "2024-02-30", "0000-01-01", "2024-05-01T24:00", "20240501")
NUMBERS = (
    0, 1, -1, 2, 1.0, -0.0, 0.5, 0.1, 0.1 + 0.2, 0.3, 2**53 + 1, float(2**53), 2**63 - 1, 2**63,
    -(2**63), -(2**63) - 1, float(2**63), 2**64, 2**70, float(2**70), 10**400, 1e308, 5e-324,
)  # fmt: skip

texts = st.sampled_from((*TEXTS, *DATES, *NEARLY_DATES)) | st.text(max_size=3)
numbers = (
    st.sampled_from(NUMBERS)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**66), 2**66)
)
scalars = st.none() | st.booleans() | numbers | texts
moments = st.datetimes(
    datetime(2024, 4, 30), datetime(2024, 5, 2), timezones=st.just(UTC)
) | st.sampled_from([made for text in DATES[:8] if (made := moment(text)) is not None])
IDS = ("ada", "bob", "2024-05-01", "Zoë")
ODD_IDS = (" ada ", "nobody", "\ud800", "\0", "AD")


def relatives(value: Any) -> list[Any]:
    """Values that a condition could confuse with this one."""
    if isinstance(value, bool):
        return [value, int(value), str(value).lower()]
    if isinstance(value, int | float):
        return [value, value + 1, -value, str(value)[:99], value == 1]
    if value in DATES:
        return [*DATES[:4], value, value[:-1]]
    if isinstance(value, str):
        return [value, value.swapcase(), value.casefold(), value[:1], value[1:], f"<{value}>"]
    return [value, "null", 0, False]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A filter and rows, from few keys and values, so that some rows match and others do not."""
    keys = [*draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)), *MEMORY_FIELDS[:2]]
    pool = [
        relative
        for value in draw(st.lists(scalars, min_size=1, max_size=3))
        for relative in relatives(value)
    ]
    scalar = st.sampled_from(pool)
    items = scalar | st.just([pool[0]]) | st.just({keys[0]: pool[0]})
    value = scalar | scalar | st.lists(items, max_size=3) | st.just({keys[0]: pool[0]})
    moments = [datetime(2024, 5, 1, 12, tzinfo=UTC) + timedelta(hours=12 * i) for i in range(3)]
    row = st.fixed_dictionaries(
        {
            **dict.fromkeys(SCOPE_FIELDS, st.none() | st.sampled_from(IDS)),
            "user_id": st.sampled_from(IDS[:2]),
            **dict.fromkeys(TIMES, st.sampled_from(moments)),
            "expiration_date": st.none() | st.dates(date(2024, 4, 30), date(2024, 5, 2)),
            "metadata": st.fixed_dictionaries({}, optional=dict.fromkeys(keys, value)),
        }
    )
    made = draw(st.lists(row, min_size=3, max_size=6))
    numbered = [fields | {"id": f"ada-{number}"} for number, fields in enumerate(made)]

    texts = st.sampled_from([*(v for v in pool if isinstance(v, str)), "", "a"])
    ordered = st.sampled_from([*(v for v in pool if type(v) in (str, int, float)), 0])
    ids = st.sampled_from([*IDS, *ODD_IDS, "ada-0", "ada-1"])
    dates = st.sampled_from(DATES) | st.sampled_from(moments).map(str)
    kinds: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
        **dict.fromkeys(keys, (scalar, ordered, scalar.filter(lambda v: v is not None), texts)),
        **dict.fromkeys(("id", *SCOPE_FIELDS), (ids | st.none(), ids, ids, ids)),
        **dict.fromkeys((*TIMES, "expiration_date"), (dates | st.none(), dates)),
    }

    def condition(name: str) -> Any:
        equal, ordered, *contained = kinds[name]
        shape = draw(st.sampled_from(["operators"] * 4 + ["bare", "list", "*"]))
        if shape == "bare":
            return draw(equal)
        if shape == "list":
            return draw(st.lists(equal, max_size=3))
        if shape == "*":
            return "*"
        known = OPERATORS if contained else OPERATORS[:-2]
        chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))
        return {
            operator: draw(
                equal
                if operator in ("eq", "ne")
                else st.lists(equal, max_size=3)
                if operator in ("in", "nin")
                else ordered
                if operator in ("gt", "gte", "lt", "lte")
                else contained[operator == "icontains"]
            )
            for operator in chosen
        }

    def group(levels: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for _ in range(draw(st.integers(0 if levels < 3 else 1, 2))):
            if levels and draw(st.integers(0, 2)) == 0:
                inner = [group(levels - 1) for _ in range(draw(st.integers(1, 3)))]
                single = len(inner) == 1 and draw(st.booleans())
                made[draw(st.sampled_from(LOGICAL))] = inner[0] if single else inner
            else:
                name = draw(st.sampled_from([*keys[:-2] * 4, *kinds]))
                made[name] = condition(name)
        return made

    return group(3), numbered


def is_plain(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parts(filters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The filter and, since a whole seldom tells what a part gets wrong, all in it."""
    yield filters
    for key, value in filters.items():
        if key not in LOGICAL:
            yield {key: value}
        else:
            for item in value if isinstance(value, list) else [value]:
                yield from parts(item)


@given(world=worlds(), escaped=st.booleans(), indent=st.none() | st.just(1))
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_filter_finds_what_the_reference_finds(
    shared_table: Table,
    world: tuple[dict[str, Any], list[dict[str, Any]]],
    escaped: bool,
    indent: int | None,
) -> None:
    filters, rows = world
    shared_table.clear()
    for row in rows:
        ascii_only = escaped or not is_plain(row["metadata"])
        text = json.dumps(row["metadata"], ensure_ascii=ascii_only, indent=indent)
        shared_table.put(row, text)
    for part in parts(filters):
        expected = [row["id"] for row in rows if matches(part, row)]
        try:
            parse(part)
        except FilterError as error:  # two scopes, which no row can have
            assert ("twice" in error.message, expected) == (True, [])  # noqa: PT017
            continue
        except InvalidRequestError:  # an id that is no scope
            continue
        event("part: some" if 0 < len(expected) < len(rows) else "part: all or none")
        assert shared_table.find(part) == expected


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([*DATES, "*", " "]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from([*OPERATORS, *LOGICAL, *MEMORY_FIELDS, "k"]) | st.text(max_size=2),
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


@given(filters=st.dictionaries(st.sampled_from([*LOGICAL, *MEMORY_FIELDS, "k"]), junk) | junk)
@settings(max_examples=500, deadline=None)
def test_any_json_is_a_filter_that_runs_or_an_error_with_a_hint(
    shared_table: Table, filters: Any
) -> None:
    shared_table.clear()
    shared_table.put(a_row(metadata={"k": "a", "": [1]}))
    try:
        parse(filters)
    except InvalidRequestError as error:
        assert error.hint  # noqa: PT017
    else:
        shared_table.find(filters)


@given(st.sampled_from((*DATES, *NEARLY_DATES)) | texts | st.datetimes().map(str))
def test_an_instant_is_what_the_reference_says(text: str) -> None:
    expected = moment(text)
    exact = None if expected is None else (expected - EPOCH) // timedelta(microseconds=1)
    assert instant(text) == exact


# --- scope -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "scope"),
    [
        ({}, Scope()),
        ({"user_id": "ada"}, Scope(user_id="ada")),
        ({"user_id": " ada "}, Scope(user_id="ada")),
        ({"user_id": {"eq": "ada"}}, Scope(user_id="ada")),
        ({"AND": [{"user_id": "ada"}, {"run_id": "r"}]}, Scope(user_id="ada", run_id="r")),
        ({"AND": {"agent_id": "bot"}, "user_id": "ada"}, Scope("ada", "bot")),
        ({"user_id": "ada", "AND": [{"user_id": "ada"}]}, Scope(user_id="ada")),
        ({"AND": []}, Scope()),
    ],
)
def test_plain_ids_at_the_top_or_in_its_and_are_the_scope(
    filters: dict[str, Any], scope: Scope
) -> None:
    assert parse(filters) == (scope, None)


@pytest.mark.parametrize(
    "filters",
    [
        {"OR": [{"user_id": "ada"}]},
        {"NOT": [{"user_id": "ada"}]},
        {"AND": [{"AND": [{"user_id": "ada"}]}]},
        {"AND": [{"OR": [{"user_id": "ada"}, {"user_id": "*"}]}]},
        {"user_id": ["ada"]},
        {"user_id": {"ne": "ada"}},
        {"user_id": None},
    ],
)
def test_ids_elsewhere_are_conditions(filters: dict[str, Any]) -> None:
    scope, condition = parse(filters)
    assert not scope
    assert condition is not None


@pytest.mark.parametrize("value", ["*", "", "  ", {"eq": "*"}])
def test_a_wildcard_or_blank_id_is_no_scope(value: Any) -> None:
    with pytest.raises(ScopeRequiredError):
        parse({"user_id": value})
    with pytest.raises(ScopeRequiredError):
        parse({"AND": [{"user_id": value}], "agent_id": "bot"})


def test_two_different_scopes_are_an_error() -> None:
    with pytest.raises(FilterError, match="user_id is given twice"):
        parse({"user_id": "ada", "AND": [{"user_id": "bob"}]})


def test_an_id_that_a_memory_lacks_is_null_and_not_an_empty_text(table: Table) -> None:
    table.put(a_row("1", user_id="ada"))
    table.put(a_row("2", user_id="ada", run_id="r"))
    assert table.find({"run_id": None}) == ["1"]
    assert table.find({"OR": [{"run_id": ""}]}) == []
    assert table.find({"OR": [{"run_id": "*"}]}) == ["2"]
    assert table.find({"run_id": {"lt": "s"}}) == ["2"]
    assert table.find({"run_id": {"ne": "r"}}) == ["1"]


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "condition", "expected"),
    [
        (1, 1.0, True),
        (1.0, 1, True),
        (True, 1, False),
        (1, True, False),
        (False, 0, False),
        (False, False, True),
        ("1", 1, False),
        (None, None, True),
        (0, None, False),
        ("", None, False),
        (False, None, False),
        ([None], None, False),
        (["a", 1], "a", True),
        (["a", 1], 1.0, True),
        (["a", True], 1, False),
        ([["a"]], "a", False),
        ({"k": "a"}, "a", False),
        (["a"], {"ne": "a"}, False),
        (None, {"ne": "a"}, True),
        ("b", ["a", "b"], True),
        ("b", {"in": []}, False),
        ("b", {"nin": []}, True),
        (None, {"in": ["a", None]}, True),
        ([], "*", True),
        (None, "*", False),
        ("*", {"eq": "*"}, True),
        ("a", {"eq": "*"}, False),
        (2, {"gt": 1, "lt": 3}, True),
        (3, {"gt": 1, "lt": 3}, False),
        (True, {"gt": 0}, False),
        ("2", {"gt": 1}, False),
        ([2], {"gt": 1}, False),
        ("b", {"gt": "a"}, True),
        ("B", {"gt": "a"}, False),
        ("\U0001f600", {"gt": "\uffff"}, True),
        ("2024-05-01T01:00+02:00", {"lt": "2024-05-01"}, True),
        ("2024-05-01", {"gte": "2024-05-01T00:00:00Z", "lte": "2024-05-01T02:00+02"}, True),
        ("2024-05-01", "2024-05-01T00:00:00Z", False),
        (20240501, {"gt": "2024-01-01"}, False),
        ("straße", {"contains": "aß"}, True),
        ("straße", {"contains": "ASS"}, False),
        ("straße", {"icontains": "ASS"}, True),
        (["straße"], {"icontains": "STRASSE"}, True),
        (["straße"], {"icontains": "ASS"}, False),
        (["straße"], {"contains": "aß"}, False),
        (["food", 5], {"contains": 5}, True),
        (5, {"contains": 5}, False),
        ("5", {"contains": 5}, False),
        ("a", {"contains": ""}, True),
        (2**63, 2**63, True),
        (2**63 + 1, 2**63, False),
        (2**53 + 1, float(2**53), False),
        (10**400, {"gt": 1e308}, True),
        (1.5, {"lt": 10**400}, True),
        (0.1 + 0.2, 0.3, False),
    ],
)
def test_a_value_meets_a_condition_as_documented(
    table: Table, value: Any, condition: Any, expected: bool
) -> None:
    assert holds(table, {"k": value}, condition) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [(None, True), ({"ne": "x"}, True), ({"nin": ["x"]}, True), ("*", False), ({"gt": 0}, False)],
)
def test_a_missing_field_is_null(table: Table, condition: Any, expected: bool) -> None:
    assert holds(table, {"other": 1}, condition) is expected


@pytest.mark.parametrize("key", [*KEYS, "$", "$.k", "k[0]", "👩‍🚀", "x" * 10_000, "eq", "memory"])
def test_any_text_can_be_a_key(table: Table, key: str) -> None:
    assert holds(table, {key: "v"}, "v", key)
    assert holds(table, {"nested": {key: "v"}}, {"ne": "v"}, key)


@pytest.mark.parametrize("text", [*TEXTS, *NEARLY_DATES, "x" * 100_000, "\0" * 1000])
def test_any_text_can_be_a_value(table: Table, text: str) -> None:
    assert holds(table, {"k": text}, {"eq": text})
    assert holds(table, {"k": f"<{text}>"}, {"contains": text, "icontains": text})
    assert not holds(table, {"k": text + "x"}, {"eq": text})


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('{"k": 1, "k": 2}', 2),
        (' {"\\u006b" : "\\u0061"} ', "a"),
        ('{"k":1E2}', 100),
        ('{"k":"Paris","tags":["x"]}', {"icontains": "paRIS"}),
        ('{"k":["Paris","x"]}', {"icontains": "paris", "contains": "x"}),
        ('{"k":1e999}', {"gt": 10**300}),
        ('{"k":' + "9" * 5000 + "}", {"gt": 10**1000}),
        ('{"k":"a","deep":' + "[" * 100_000 + "]" * 100_000 + "}", "a"),
        ('{"k":["]","b",' + '{"k":' * 100_000 + "1" + "}" * 100_000 + ',"a"]}', "a"),
    ],
)
def test_json_is_read_however_it_is_written(table: Table, text: str, condition: Any) -> None:
    assert holds(table, text, condition)
    assert not holds(table, text, {"ne": 2} if condition == 2 else {"eq": "z"})


# --- fields of the memory ----------------------------------------------------------------------


def test_dates_of_the_memory_are_compared_as_instants(table: Table) -> None:
    table.put(a_row("1", created_at=datetime(2024, 5, 1, 12, tzinfo=UTC)))
    table.put(a_row("2", created_at=datetime(2024, 5, 2, tzinfo=UTC)))
    assert table.find({"created_at": {"gte": "2024-05-02"}}) == ["2"]
    assert table.find({"created_at": "2024-05-01T14:00:00+02:00"}) == ["1"]
    assert table.find({"created_at": {"nin": ["2024-05-01T12:00Z", None]}}) == ["2"]
    assert table.find({"created_at": None}) == []
    assert table.find({"updated_at": "*"}) == ["1", "2"]


def test_the_expiration_date_is_a_midnight_or_null(table: Table) -> None:
    table.put(a_row("1", expiration_date=date(2024, 5, 1)))
    table.put(a_row("2"))
    assert table.find({"expiration_date": "2024-05-01"}) == ["1"]
    assert table.find({"expiration_date": {"lt": "2024-05-01T00:00:01"}}) == ["1"]
    assert table.find({"expiration_date": {"ne": "2024-05-01"}}) == ["2"]
    assert table.find({"expiration_date": None}) == ["2"]
    assert table.find({"expiration_date": "*"}) == ["1"]


def test_a_field_of_the_memory_shadows_a_metadata_key_of_its_name(table: Table) -> None:
    table.put(a_row("1", user_id="ada", metadata={"id": "x", "user_id": "bob", "text": "t"}))
    assert table.find({"id": "1", "user_id": "ada"}) == ["1"]
    assert table.find({"OR": [{"id": "x"}, {"user_id": "bob"}]}) == []
    assert table.find({"text": "t"}) == ["1"]


# --- errors and limits -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"city": {"regex": "x"}}, "field 'city': unknown operator 'regex'"),
        ({"city": {"AND": "x"}}, "field 'city': unknown operator 'AND'"),
        ({"city": {"*": "x"}}, "field 'city': unknown operator '\\*'"),
        ({"city": {}}, "field 'city' has no operator"),
        ({"city": {"eq": {"a": 1}}}, "field 'city': eq needs .* not an object"),
        ({"city": {"eq": ["a"]}}, "field 'city': eq needs .* not a list"),
        ({"city": {"in": "a"}}, "field 'city': in needs a list, not a text"),
        ({"city": {"in": [{"a": 1}]}}, "field 'city': in needs .* not an object"),
        ({"city": {"gt": None}}, "field 'city': gt needs .* not null"),
        ({"city": {"gte": True}}, "field 'city': gte needs .* not true or false"),
        ({"city": {"contains": None}}, "field 'city': contains needs .* not null"),
        ({"city": {"icontains": 5}}, "field 'city': icontains needs a text"),
        ({"city": float("nan")}, "field 'city': eq needs a finite number"),
        ({"city": {"lt": float("inf")}}, "field 'city': lt needs a finite number"),
        ({"city": {"lt": 10**5000}}, "field 'city': lt needs an integer of at most 4096 bits"),
        ({"city": {"eq": b"x"}}, "field 'city': eq needs .* not a Python bytes"),
        ({5: 5}, "a field of a filter must be text"),
        ({"user_id": 5}, "field 'user_id': eq needs a text or null"),
        ({"id": {"gt": 5}}, "field 'id': gt needs a text"),
        ({"created_at": {"gt": "yesterday"}}, "field 'created_at': gt needs a date"),
        ({"created_at": 5}, "field 'created_at': eq needs a date .* not such an integer"),
        ({"created_at": {"contains": "2024"}}, "field 'created_at' is a date"),
        ({"OR": []}, "OR has no conditions"),
        ({"NOT": []}, "NOT has no conditions"),
        ({"AND": "x"}, "AND needs a list of objects, not a text"),
        ({"OR": ["x"]}, "a filter must be an object, not a text"),
        ({"or": [{"a": 1}]}, "field 'or': in needs"),
        ({"$and": [{"a": 1}]}, "field '\\$and': in needs"),
        ("x", "a filter must be an object"),
        (None, "a filter must be an object"),
    ],
)
def test_a_malformed_filter_is_an_error_that_names_field_and_operator(
    filters: Any, message: str
) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        parse(filters)
    assert caught.value.hint


@pytest.mark.parametrize(
    "filters",
    [
        {"k": {"in": "s3cret"}},
        {"k": {"gt": ["s3cret"]}},
        {"created_at": "s3cret"},
        {"k": ["s3cret", {}]},
        {"AND": "s3cret"},
        {"user_id": "s3cret", "AND": [{"user_id": "s3cret-2"}]},
    ],
)
def test_no_error_tells_a_value(filters: dict[str, Any]) -> None:
    with pytest.raises(FilterError) as caught:
        parse(filters)
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_no_representation_tells_a_value() -> None:
    _, condition = parse({"k": "s3cret"})
    assert "s3cret" not in repr(condition)


def test_a_long_or_odd_field_is_cut_and_escaped_in_a_message() -> None:
    with pytest.raises(FilterError) as caught:
        parse({"\x1b[31m\n\ud800" + "x" * 10_000: {"like": 1}})
    assert len(caught.value.message) < 200
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"k": "a"}
    for level in range(levels):
        inner = {LOGICAL[level % 3]: [inner, {"k": "b"}]}
    return inner


def test_limits_are_exact(table: Table) -> None:
    table.put(a_row(metadata={"k": "a"}))
    many = [{f"k{i}": {"ne": i}} for i in range(MAX_CONDITIONS)]
    table.find(nested(MAX_DEPTH))
    assert table.find({"AND": many}) == ["1"]
    assert table.find({"k": {"in": ["a", *range(MAX_LIST - 1)]}}) == ["1"]
    with pytest.raises(FilterError, match="16 levels"):
        parse(nested(MAX_DEPTH + 1))
    with pytest.raises(FilterError, match="200 conditions"):
        parse({"AND": many, "k": 1})
    with pytest.raises(FilterError, match="list of 1001"):
        parse({"k": list(range(MAX_LIST + 1))})
    with pytest.raises(FilterError, match="bytes"):
        parse({"k": "x" * MAX_SIZE})


@pytest.mark.parametrize(
    "filters",
    [
        {"AND": [{}] * 1_000_000},
        {"OR": [{"AND": []}] * 1_000_000},
        {"k": dict.fromkeys(map(str, range(100_000)), 1)},
        nested(500),
    ],
)
def test_a_huge_filter_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(FilterError):
        parse(filters)


def test_the_largest_filters_run(table: Table) -> None:
    table.put(a_row("1", user_id="ada", metadata={"k": "a", "n": 999}))
    table.put(a_row("2", user_id="bob", metadata={"k": "b", "n": 999}))
    moments = [f"2024-05-01T12:00:00.{i:06}Z" for i in range(MAX_LIST)]
    each: list[dict[str, Any]] = [
        {"created_at": moments},
        {"user_id": ["ada", *map(str, range(MAX_LIST - 1))]},
        {"expiration_date": {"nin": moments}},
        {"n": {"in": list(range(MAX_LIST))}},
    ]
    some = [each[i % 4] | {"k": {"contains": "a"}} for i in range(32)]
    assert table.find({"AND": some}) == ["1"]
    assert table.find({"OR": [{"NOT": some}]}) == ["2"]
    mixed = [{"run_id": {"gt": "x"}}, {"created_at": {"gt": "2025-01-01"}}, {"k": "b"}]
    deep: dict[str, Any] = {"OR": mixed * 50}
    for _ in range(MAX_DEPTH - 1):
        deep = {"NOT": [deep, {"run_id": "*"}]}
    assert table.find(deep) == ["1"]


def test_a_statement_survives_many_others_on_its_connection(table: Table) -> None:
    for number in range(50):
        table.put(a_row(f"{number:02}", metadata={"n": number}))
    _, condition = parse({"n": {"gte": 25}})
    assert condition is not None
    where, parameters = condition.sql()
    reader = table.connection.execute(f"SELECT id FROM memories m WHERE {where}", parameters)
    found = []
    for (identity,) in reader:
        found.append(identity)
        for number in range(30):
            table.find({"n": {"lt": number}})
    assert found == [f"{number:02}" for number in range(25, 50)]


def test_the_documentation_names_every_operator_field_and_limit() -> None:
    text = (Path(__file__).parents[2] / "docs" / "filters.md").read_text(encoding="utf-8")
    for name in (*OPERATORS, *LOGICAL, *MEMORY_FIELDS):
        assert f"`{name}`" in text or f'"{name}"' in text
    assert f"At most {MAX_DEPTH} levels of logic, {MAX_CONDITIONS} conditions" in text
    assert f"{MAX_LIST:,} items in one list, {MAX_SIZE // 2**20} MiB" in text
