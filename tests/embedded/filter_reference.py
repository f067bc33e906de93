"""What a filter means, in plain Python over dicts: the oracle of ``test_filters.py``.

Written from ``docs/filters.md``, slow and simple on purpose, and sharing no code with
``pikuri_memory.embedded.filters``. It judges valid filters only. A row is
``{"id", "user_id", "agent_id", "run_id", "created_at", "updated_at", "expiration_date",
"metadata"}``; absent ids are None, times are aware datetimes, the day is a date or None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

IDS = ("user_id", "agent_id", "run_id")
MOMENTS = ("created_at", "updated_at", "expiration_date")


def matches(filters: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the row satisfies the whole filter, its scope included."""
    return all(_entry(key, value, row) for key, value in filters.items())


def _entry(key: str, value: Any, row: Mapping[str, Any]) -> bool:
    if key in ("AND", "OR", "NOT"):
        outcomes = [matches(item, row) for item in (value if isinstance(value, list) else [value])]
        if key == "AND":
            return all(outcomes)
        if key == "OR":
            return any(outcomes)
        return not any(outcomes)
    found = row[key] if key in (*IDS, *MOMENTS, "id") else row["metadata"].get(key)
    if isinstance(value, dict):
        return all(_holds(key, found, name, operand) for name, operand in value.items())
    if isinstance(value, list):
        return _holds(key, found, "in", value)
    if value == "*":
        return found is not None
    return _holds(key, found, "eq", value)


def _holds(key: str, found: Any, operator: str, operand: Any) -> bool:
    if operator == "ne":
        return not _holds(key, found, "eq", operand)
    if operator == "nin":
        return not _holds(key, found, "in", operand)
    if operator == "in":
        return any(_holds(key, found, "eq", item) for item in operand)
    if key in MOMENTS:
        found = None if found is None else _as_moment(found)
        operand = None if operand is None else moment(operand)
    if operator == "eq":
        if key in IDS and operand is not None:
            operand = operand.strip()
        if operand is None:
            return found is None
        return _same(found, operand) or _has_item(found, operand)
    if operator == "contains":
        if isinstance(found, str) and isinstance(operand, str):
            return operand in found
        return _has_item(found, operand)
    if operator == "icontains":
        if isinstance(found, str):
            return operand.casefold() in found.casefold()
        if isinstance(found, list):
            texts = [item for item in found if isinstance(item, str)]
            return operand.casefold() in [item.casefold() for item in texts]
        return False
    return _ordered(found, operator, operand)


def _ordered(found: Any, operator: str, operand: Any) -> bool:
    kind = _type(found)
    if kind != _type(operand) or kind not in ("number", "text", "moment"):
        return False
    if kind == "text" and moment(found) is not None and moment(operand) is not None:
        found, operand = moment(found), moment(operand)
    if operator == "gt":
        return bool(found > operand)
    if operator == "gte":
        return bool(found >= operand)
    if operator == "lt":
        return bool(found < operand)
    return bool(found <= operand)


def _has_item(found: Any, operand: Any) -> bool:
    return isinstance(found, list) and any(_same(item, operand) for item in found)


def _same(one: Any, other: Any) -> bool:
    scalar = ("number", "text", "truth", "moment")
    return _type(one) == _type(other) and _type(one) in scalar and bool(one == other)


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime):
        return "moment"
    return "other"


def _as_moment(value: date) -> datetime:
    if isinstance(value, datetime):
        return value
    return datetime.combine(value, time(), tzinfo=UTC)


def moment(text: str) -> datetime | None:
    """The instant of a date or date-time in ISO 8601; None for another text."""
    # fromisoformat knows more shapes (weeks, 20250501), and which ones depends on the version.
    day, clock = r"\d{4}-\d\d-\d\d", r"(?!24)\d\d:\d\d(:\d\d([.,]\d{1,9})?)?"
    shape = rf"{day}([T ]{clock}(Z|[+-]\d\d(:?[0-5]\d)?)?)?"
    if not re.fullmatch(shape, text.upper(), re.ASCII):
        return None
    try:
        parsed = datetime.fromisoformat(text.upper().replace(",", "."))
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
