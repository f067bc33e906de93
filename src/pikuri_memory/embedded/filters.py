"""mem0's filter language: from the JSON of a request to a scope and a SQL condition.

``docs/filters.md`` is the definition of what a filter means. In short::

    {"user_id": "ada", "city": "Paris", "stars": {"gte": 3, "lt": 5}, "tags": ["food", "work"],
     "OR": [{"visited": "*"}, {"NOT": [{"note": {"icontains": "closed"}}]}]}

==============  ==================================================================================
``eq``          equal and of one type; 1 and 1.0 are equal, true and 1 are not; null is equal to
                a null or missing field; a list that has such an item counts too
``in``          equal (as ``eq``) to one of the list
``ne``, ``nin`` exactly where ``eq``, ``in`` is false: a missing field satisfies ``ne "x"``
``gt`` ...      between numbers, or between texts (by code point); two ISO 8601 dates or
                date-times compare as instants; other types never match
``contains``    a text has this part, or a list has this item (as ``eq``)
``icontains``   the same for text without regard to case (Unicode casefold)
bare value      ``eq``; a bare list ``in``; a bare ``"*"``: the field is there and not null
==============  ==================================================================================

How it runs: what concerns ``created_at`` and ``updated_at`` becomes plain SQL; what concerns
metadata becomes one call of a Python function per row, about 2 µs. SQLite's ``json_each`` takes
0.7 µs per condition (1,000 rows, 6 keys each, SQLite 3.40.1), but bends the meaning: a text, and a
key, ends at an escaped NUL, integers beyond 64 bits turn into floats, a lone surrogate cannot be
read; ``json_extract`` does not find a key that was written with an escape. A test by ``instr`` goes
before the call, so that rows which cannot match are mostly left out without being parsed.
"""

from __future__ import annotations

import json
import math
import operator as op
import re
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, NoReturn, TypeAlias

from pikuri_memory.errors import FilterError
from pikuri_memory.record import SCOPE_FIELDS, Scope

OPERATORS: Final = (
    "eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains", "icontains",
)  # fmt: skip
LOGICAL: Final = ("AND", "OR", "NOT")
MAX_DEPTH: Final = 16
MAX_CONDITIONS: Final = 200
MAX_LIST: Final = 1000
MAX_SIZE: Final = 1024 * 1024
# 4,096 bits are 1,234 digits: more than any float, less than where Python refuses to print.
_MAX_INTEGER_BITS: Final = 4096

_EXISTS: Final = "exists"  # the bare "*"; no operator that can be written
_RANGES: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": op.gt,
    "gte": op.ge,
    "lt": op.lt,
    "lte": op.le,
}
_RANGE_SQL: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

# Fields of the memory, in SQL. A scope id that a memory does not have is '' in the record.
_TEXT_FIELDS: Final = {
    "id": "m.id",
    **{name: f"nullif(m.{name}, '')" for name in SCOPE_FIELDS},
}
_TIME_FIELDS: Final = {"created_at": "m.created_at", "updated_at": "m.updated_at"}
_DATE_FIELDS: Final = {"expiration_date": "m.expires"}
MEMORY_FIELDS: Final = (*_TEXT_FIELDS, *_TIME_FIELDS, *_DATE_FIELDS)

_HINT_OPERATORS: Final = "operators: " + ", ".join(OPERATORS) + "; logic: " + ", ".join(LOGICAL)
_HINT_DATE: Final = 'write a date or date-time: "2025-05-01" or "2025-05-01T18:30:00+02:00"'

_Predicate: TypeAlias = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Test:
    field: str
    operator: str
    operand: Any


@dataclass(frozen=True, slots=True)
class _All:
    children: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Any:
    children: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Not:
    child: _Node


_Node: TypeAlias = _Test | _All | _Any | _Not


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter, as :class:`pikuri_memory.embedded.model.Condition`.

    Its ``repr`` tells no values, so that it can be logged.
    """

    _root: _Node = field(repr=False)

    def sql(self) -> tuple[str, list[Any]]:
        """A boolean SQL expression over the alias ``m`` of ``memories``, and its parameters.

        The expression is 0 or 1, never NULL, in parentheses where it needs them, and has at most
        a few hundred parameters. The connection must have gone through
        :func:`register_functions`.
        """
        return _sql(self._root)


def parse(filters: Mapping[str, Any]) -> tuple[Scope, Filter | None]:
    """Split a filter into whose memories it is about, and what else must hold.

    An id (``user_id``, ``agent_id``, ``run_id``) with one text, at the top or directly in an
    ``AND`` at the top, is the scope; anywhere else, or with another operator, it is a condition
    like any other. The scope may come out empty: whether it is required is the caller's matter.

    Args:
        filters: The decoded JSON object.

    Returns:
        The scope, and the condition or None where nothing but the scope was asked for.

    Raises:
        FilterError: An unknown operator, an operand of a wrong type, two different scopes, or more
            than 16 levels of logic, 200 conditions, 1,000 items in a list, or 1 MiB in all. The
            message names field and operator, never a value.
        ScopeRequiredError: An id that should be the scope is empty, blank or ``*``.
        InvalidRequestError: Such an id is too long or has control characters.
    """
    parser = _Parser()
    root = parser.group(filters, depth=0, scoped=True)
    scope = Scope.of(parser.scope)
    if isinstance(root, _All) and not root.children:
        return scope, None
    if len(json.dumps(_tree(root))) > MAX_SIZE:
        raise FilterError(
            f"the filter is over {MAX_SIZE} bytes long",
            hint="use shorter texts or lists in the filter",
        )
    return scope, Filter(root)


# --- reading ---------------------------------------------------------------------------------


class _Parser:
    def __init__(self) -> None:
        self.scope: dict[str, str] = {}
        self._conditions = 0

    def group(self, filters: Any, *, depth: int, scoped: bool) -> _Node:
        """One object: a conjunction. ``scoped`` says whether ids in it are the scope."""
        if not isinstance(filters, Mapping):
            raise FilterError(
                f"a filter must be an object, not {_kind(filters)}",
                hint='write it as {"field": "value"} or {"field": {"operator": "value"}}',
            )
        if not filters and depth:
            self._count()
        children: list[_Node] = []
        for key, value in filters.items():
            if not isinstance(key, str):
                raise FilterError(
                    f"a field of a filter must be text, not {_kind(key)}", hint=_HINT_OPERATORS
                )
            if key in LOGICAL:
                children.append(self._logical(key, value, depth))
            else:
                children.extend(self._field(key, value, scoped))
        return _all(children)

    def _logical(self, name: str, value: Any, depth: int) -> _Node:
        if depth >= MAX_DEPTH:
            raise FilterError(
                f"{name} is nested more than {MAX_DEPTH} levels deep",
                hint="put conditions that belong together into one object",
            )
        items = [value] if isinstance(value, Mapping) else value
        if not isinstance(items, list | tuple):
            raise FilterError(
                f"{name} needs a list of objects, not {_kind(value)}",
                hint=f'write it as {{"{name}": [{{"field": "value"}}, ...]}}',
            )
        if not items:
            self._count()
            if name != "AND":
                raise FilterError(
                    f"{name} has no conditions",
                    hint=f"give {name} at least one object, or leave it out",
                )
        scoped = name == "AND" and depth == 0
        # One by one, so that a list too long ends at the 201st condition.
        nodes = [self.group(item, depth=depth + 1, scoped=scoped) for item in items]
        if name == "AND":
            return _all(nodes)
        either = nodes[0] if len(nodes) == 1 else _Any(tuple(nodes))
        return either if name == "OR" else _Not(either)

    def _field(self, name: str, value: Any, scoped: bool) -> Iterator[_Node]:
        scoped = scoped and name in SCOPE_FIELDS
        pairs: list[tuple[Any, Any]]
        if isinstance(value, Mapping):
            if not value:
                raise FilterError(f"field {_quoted(name)} has no operator", hint=_HINT_OPERATORS)
            if len(value) > len(OPERATORS):
                raise FilterError(
                    f"field {_quoted(name)}: an object there holds operators, and has too many",
                    hint=_HINT_OPERATORS,
                )
            pairs = list(value.items())
        elif isinstance(value, list | tuple):
            pairs = [("in", value)]
        elif isinstance(value, str) and value == "*" and not scoped:
            self._count()
            yield _Test(name, _EXISTS, None)
            return
        else:
            pairs = [("eq", value)]
        for operator, operand in pairs:
            self._count()
            if scoped and operator == "eq" and isinstance(operand, str):
                self._take(name, operand)
            else:
                yield _Test(name, *_checked(name, operator, operand))

    def _take(self, name: str, value: str) -> None:
        """Note an id of the scope."""
        taken = Scope.of({name: value}).as_dict()[name]
        if self.scope.setdefault(name, taken) != taken:
            raise FilterError(
                f"{name} is given twice with different values, which no memory can have",
                hint=f'give one {name}, or an "OR" of conditions within one scope',
            )

    def _count(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(
                f"the filter has more than {MAX_CONDITIONS} conditions",
                hint='one "in" with a list replaces many "eq"',
            )


def _all(nodes: list[_Node]) -> _Node:
    """Their conjunction, without those that always hold."""
    kept = tuple(node for node in nodes if node != _All(()))
    return kept[0] if len(kept) == 1 else _All(kept)


def _checked(name: str, operator: Any, operand: Any) -> tuple[str, Any]:
    """The operator and its operand in the form the evaluation wants.

    Lists keep their order; an operand of ``created_at`` and its like becomes microseconds.
    """
    if operator not in OPERATORS:
        raise FilterError(
            f"field {_quoted(name)}: unknown operator {_quoted(operator)}", hint=_HINT_OPERATORS
        )
    if operator in ("in", "nin"):
        if not isinstance(operand, list | tuple):
            _refuse(name, operator, "a list", operand)
        if len(operand) > MAX_LIST:
            raise FilterError(
                f"field {_quoted(name)}: {operator} has a list of {len(operand)}, "
                f"more than {MAX_LIST}",
                hint="ask in several searches",
            )
        return operator, [_scalar(name, operator, item) for item in operand]
    if operator in ("eq", "ne"):
        return operator, _scalar(name, operator, operand)
    if name in _TIME_FIELDS or name in _DATE_FIELDS:
        if operator not in _RANGES:
            raise FilterError(
                f"field {_quoted(name)} is a date and knows no {operator}",
                hint="use eq, ne, gt, gte, lt, lte, in or nin",
            )
        return operator, _instant_operand(name, operator, operand)
    if operator == "icontains" or name in _TEXT_FIELDS:
        if not isinstance(operand, str):
            _refuse(name, operator, "a text", operand)
        return operator, operand
    if operator == "contains":
        if operand is None:
            _refuse(name, operator, "a text, a number, true or false", operand)
        return operator, _scalar(name, operator, operand)
    if isinstance(operand, bool) or not isinstance(operand, str | int | float):
        _refuse(name, operator, "a number, a text or a date", operand)
    return operator, _scalar(name, operator, operand)


def _scalar(name: str, operator: str, value: Any) -> Any:
    """One value to be equal to, checked and, for a field of the memory, converted."""
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(name, operator, "a finite number", value)
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        _refuse(name, operator, f"an integer of at most {_MAX_INTEGER_BITS} bits", value)
    if value is not None and not isinstance(value, str | bool | int | float):
        _refuse(name, operator, "a text, a number, true, false or null", value)
    if value is None:
        return None
    if name in _TIME_FIELDS or name in _DATE_FIELDS:
        return _instant_operand(name, operator, value)
    if name in _TEXT_FIELDS:
        if not isinstance(value, str):
            _refuse(name, operator, "a text or null", value)
        # Ids are stored trimmed, and trimmed where they are the scope.
        return value.strip() if name in SCOPE_FIELDS else value
    return value


def _instant_operand(name: str, operator: str, value: Any) -> int:
    found = instant(value) if isinstance(value, str) else None
    if found is None:
        raise FilterError(
            f"field {_quoted(name)}: {operator} needs a date or date-time in ISO 8601"
            + ("" if isinstance(value, str) else f", not {_kind(value)}"),
            hint=_HINT_DATE,
        )
    return found


def _refuse(name: str, operator: str, wanted: str, value: Any) -> NoReturn:
    raise FilterError(
        f"field {_quoted(name)}: {operator} needs {wanted}, not {_kind(value)}",
        hint=_HINT_OPERATORS,
    )


def _kind(value: Any) -> str:
    """The JSON type of a value, for a message that may not tell the value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            return "an infinite number or NaN"
        return "a number" if not isinstance(value, int) else "such an integer"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a Python {type(value).__name__}"


def _quoted(name: Any) -> str:
    """A field or an operator in a message: printable ASCII and short."""
    text = ascii(name) if isinstance(name, str) else _kind(name)
    return text if len(text) <= 80 else text[:76] + "...'"


_INSTANT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?)?"
)
_EPOCH: Final = date(1970, 1, 1).toordinal()


def instant(text: str) -> int | None:
    """Microseconds since the epoch of an ISO 8601 date or date-time; None for any other text.

    A date is its midnight in UTC, a time without offset is UTC, digits after the sixth of a
    second's fraction are cut off.
    """
    if len(text) < 10 or text[4] != "-" or (match := _INSTANT.fullmatch(text)) is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
    seconds = days * 86_400
    if hour is not None:
        seconds += int(hour) * 3600 + int(minute) * 60 + int(second or 0)
        if sign is not None:
            offset = int(off_hour) * 3600 + int(off_minute or 0) * 60
            seconds += -offset if sign == "+" else offset
    return seconds * 1_000_000 + int((fraction or "")[:6].ljust(6, "0"))


# --- to SQL ----------------------------------------------------------------------------------


def _on_metadata(node: _Node) -> bool:
    """Whether it concerns nothing but metadata."""
    if isinstance(node, _Test):
        return node.field not in MEMORY_FIELDS
    if isinstance(node, _Not):
        return _on_metadata(node.child)
    return all(_on_metadata(child) for child in node.children)


def _sql(node: _Node) -> tuple[str, list[Any]]:
    if _on_metadata(node):
        return _metadata_sql(node)
    if isinstance(node, _Test):
        return _field_sql(node)
    if isinstance(node, _Not):
        inner, parameters = _sql(node.child)
        return f"(NOT {inner})", parameters
    # All that concerns metadata goes into one call, after what needs no call.
    rest = [child for child in node.children if not _on_metadata(child)]
    rest.sort(key=lambda child: not (isinstance(child, _Test) and child.field in _TIME_FIELDS))
    parts = [_sql(child) for child in rest]
    metadata = tuple(child for child in node.children if _on_metadata(child))
    if metadata:
        parts.append(_metadata_sql(type(node)(metadata)))
    joiner = " AND " if isinstance(node, _All) else " OR "
    return "(" + joiner.join(part for part, _ in parts) + ")", [p for _, ps in parts for p in ps]


def _field_sql(test: _Test) -> tuple[str, list[Any]]:
    if (column := _TIME_FIELDS.get(test.field)) is not None:
        return _time_sql(column, test.operator, test.operand)
    if (column := _DATE_FIELDS.get(test.field)) is not None:
        return _call(column, ["date", test.operator, test.operand])
    return _call(_TEXT_FIELDS[test.field], ["value", test.operator, test.operand])


def _time_sql(column: str, operator: str, operand: Any) -> tuple[str, list[Any]]:
    if operator in _RANGE_SQL:
        return f"({column} {_RANGE_SQL[operator]} ?)", [operand]
    if operator == _EXISTS:
        return "1", []
    # The column is never null, so that null equals nothing here. One parameter, however long the
    # list: SQLite takes 32,766 of them.
    values = [value for value in _operands(operator, operand) if value is not None]
    negation = "NOT " if operator in ("ne", "nin") else ""
    return f"({column} {negation}IN (SELECT value FROM json_each(?)))", [json.dumps(values)]


def _metadata_sql(node: _Node) -> tuple[str, list[Any]]:
    call, parameters = _call("m.metadata", ["metadata", _tree(node)])
    guard = _guard(node)
    if guard is None:
        return call, parameters
    return f"(({guard[0]} OR instr(m.metadata, '\\')) AND {call})", [*guard[1], *parameters]


def _call(value: str, prepared: list[Any]) -> tuple[str, list[Any]]:
    # A scalar subquery without reference to the row runs once per statement; the second argument
    # of coalesce only where the first is NULL. ASCII, because a lone surrogate is no SQLite text.
    text = json.dumps(prepared)
    return (
        f"coalesce(pikuri_matches((SELECT pikuri_prepare(?)), {value}),"
        f" pikuri_matches_text(?, {value}))",
        [text, text],
    )


def _tree(node: _Node) -> list[Any]:
    if isinstance(node, _Test):
        return ["test", node.field, node.operator, node.operand]
    if isinstance(node, _Not):
        return ["not", _tree(node.child)]
    return ["and" if isinstance(node, _All) else "or", [_tree(child) for child in node.children]]


def _guard(node: _Node) -> tuple[str, list[Any]] | None:
    """A cheap test that every row passes which matches and whose JSON has no backslash.

    JSON without a backslash writes every text as it is, in quotes. So a key, or a text that a
    value must be equal to, is found in it by ``instr``; one with a backslash is always evaluated.
    """
    if isinstance(node, _Test):
        needle = _needle(node)
        return None if needle is None else ("instr(m.metadata, ?)", [needle])
    if isinstance(node, _Not):
        return None
    guards = [_guard(child) for child in node.children]
    known = [guard for guard in guards if guard is not None]
    if isinstance(node, _All):
        known, joiner = known[:2], " AND "
    elif len(known) < len(guards) or len(known) > 4:
        return None  # more of them cost as much as they save
    else:
        joiner = " OR "
    if not known:
        return None
    return "(" + joiner.join(sql for sql, _ in known) + ")", [p for _, ps in known for p in ps]


def _needle(test: _Test) -> str | None:
    operator, operand = test.operator, test.operand
    if operator in ("ne", "nin") or (operator == "eq" and operand is None):
        return None  # a missing field can match
    if operator == "in" and None in operand:
        return None
    if operator == "eq" and isinstance(operand, str) and _literal(operand):
        return f'"{operand}"'
    if operator == "contains" and isinstance(operand, str) and operand and _literal(operand):
        return operand
    return f'"{test.field}"' if _literal(test.field) else None


def _literal(text: str) -> bool:
    """Whether JSON can hold it without a backslash, and SQLite can be given it."""
    return not any(c < " " or c in '"\\' or "\ud800" <= c <= "\udfff" for c in text)


# --- evaluation ------------------------------------------------------------------------------


def _operands(operator: str, operand: Any) -> list[Any]:
    return operand if operator in ("in", "nin") else [operand]


def _compile(prepared: list[Any]) -> _Predicate:
    """A predicate over what the SQL hands in: JSON text, a text, or a day."""
    if prepared[0] == "metadata":
        on_object = _compile_tree(prepared[1])
        return lambda text: on_object(_decoded(text))
    test = _compile_test(prepared[1], prepared[2])
    if prepared[0] == "date":
        return lambda day: test(None if day is None else instant(day))
    return test


def _compile_tree(tree: list[Any]) -> _Predicate:
    kind = tree[0]
    if kind == "test":
        key = tree[1]
        test = _compile_test(tree[2], tree[3])
        return lambda metadata: test(metadata.get(key))
    if kind == "not":
        child = _compile_tree(tree[1])
        return lambda metadata: not child(metadata)
    children = [_compile_tree(child) for child in tree[1]]
    stop = kind == "or"  # the outcome of a child that settles it

    def group(metadata: Any) -> bool:
        # A loop: all() and any() over a generator take twice as long.
        for child in children:
            if child(metadata) is stop:
                return stop
        return not stop

    return group


def _compile_test(operator: str, operand: Any) -> _Predicate:
    """A predicate over one value; None stands for null and for a missing field."""
    if operator == _EXISTS:
        return lambda value: value is not None
    if operator in _RANGES:
        return _ranged(_RANGES[operator], operand)
    if operator == "contains":
        return _containing(operand)
    if operator == "icontains":
        return _containing_folded(operand.casefold())
    test = _equal_to_one(_operands(operator, operand))
    if operator in ("ne", "nin"):
        return lambda value: not test(value)
    return test


def _equal_to_one(operands: list[Any]) -> _Predicate:
    # One set a type, because Python holds True and 1 equal. Within numbers its equality and
    # hash are exact between int and float, however large.
    texts = frozenset(o for o in operands if isinstance(o, str))
    truths = frozenset(o for o in operands if isinstance(o, bool))
    numbers = frozenset(o for o in operands if type(o) in (int, float))
    null = None in operands

    def scalar(value: Any) -> bool:
        kind = type(value)
        if kind is str:
            return value in texts
        if kind is int or kind is float:
            return value in numbers
        return kind is bool and value in truths

    def test(value: Any) -> bool:
        if value is None:
            return null
        if type(value) is list:
            return any(map(scalar, value))
        return scalar(value)

    return test


def _ranged(compare: Callable[[Any, Any], bool], operand: Any) -> _Predicate:
    if not isinstance(operand, str):
        return lambda value: type(value) in (int, float) and compare(value, operand)
    moment = instant(operand)
    if moment is None:
        return lambda value: type(value) is str and compare(value, operand)

    def test(value: Any) -> bool:
        if type(value) is not str:
            return False
        other = instant(value)
        return compare(value, operand) if other is None else compare(other, moment)

    return test


def _containing(operand: Any) -> _Predicate:
    item = _equal_to_one([operand])
    if not isinstance(operand, str):
        return lambda value: type(value) is list and item(value)
    return lambda value: operand in value if type(value) is str else item(value)


def _containing_folded(folded: str) -> _Predicate:
    def test(value: Any) -> bool:
        if type(value) is str:
            return folded in value.casefold()
        if type(value) is list:
            return any(type(item) is str and item.casefold() == folded for item in value)
        return False

    return test


_decode = json.JSONDecoder().raw_decode


def _decoded(text: str) -> dict[str, Any]:
    try:
        decoded = _decode(text)[0]
    except (ValueError, RecursionError):
        decoded = json.loads(_flattened(text), parse_int=_integer)
    return decoded if type(decoded) is dict else {}


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # Python refuses more than 4,300 digits
        return float(digits)


_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def _flattened(text: str) -> str:
    """The same JSON, with ``{}`` for every list and object in a list or object of the metadata.

    Those never match anything, and nested some thousand deep they would end the decoder.
    """
    parts: list[str] = []
    depth = kept = 0
    for token in _BRACKETS.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == 3:
                parts.append(text[kept : token.start()])
        elif token[0] in ("]", "}"):
            if depth == 3:
                parts.append("{}")
                kept = token.end()
            depth -= 1
    return "".join([*parts, text[kept:]])


class _Prepared:
    """The compiled predicates of a connection, the newest ones, by a number.

    A number rather than the filter's text goes into the call for each row: a list of 1,000 items
    would be copied and hashed for each.
    """

    _MOST: Final = 1024
    _MOST_BYTES: Final = 8 * MAX_SIZE

    def __init__(self) -> None:
        self._predicates: OrderedDict[int, tuple[_Predicate, int]] = OrderedDict()
        self._bytes = 0
        self._next = 0

    def prepare(self, text: str) -> int:
        self._next += 1
        self._predicates[self._next] = (_compile(json.loads(text)), len(text))
        self._bytes += len(text)
        while len(self._predicates) > self._MOST or self._bytes > self._MOST_BYTES:
            self._bytes -= self._predicates.popitem(last=False)[1][1]
        return self._next

    def matches(self, number: int, value: str | None) -> bool | None:
        """None when other statements have pushed it out."""
        found = self._predicates.get(number)
        return None if found is None else found[0](value)


def _matches_text(text: str, value: str | None) -> bool:
    return _compile(json.loads(text))(value)


def register_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that :meth:`Filter.sql` calls. Once per connection."""
    prepared = _Prepared()
    connection.create_function("pikuri_prepare", 1, prepared.prepare)
    connection.create_function("pikuri_matches", 2, prepared.matches, deterministic=True)
    connection.create_function("pikuri_matches_text", 2, _matches_text, deterministic=True)
