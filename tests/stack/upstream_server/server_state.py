"""The library's instance and its settings, which outlive the process."""

import json
import logging
from copy import deepcopy
from typing import Any, Callable, Dict

from mem0 import Memory

_config: Dict[str, Any] = {}
_memory: Memory | None = None
_session_factory: Callable | None = None


def set_session_factory(factory: Callable) -> None:
    global _session_factory
    _session_factory = factory


def _load_overrides() -> Dict[str, Any]:
    try:
        from models import Settings

        with _session_factory() as session:
            row = session.get(Settings, "config_overrides")
            return json.loads(row.value) if row else {}
    except Exception:
        return {}


def _save_overrides(overrides: Dict[str, Any]) -> None:
    try:
        from models import Settings
        from sqlalchemy.dialects.postgresql import insert

        with _session_factory() as session:
            value = json.dumps(overrides)
            row = insert(Settings).values(key="config_overrides", value=value)
            session.execute(row.on_conflict_do_update(index_elements=[Settings.key], set_={"value": value}))
            session.commit()
    except Exception:
        logging.warning("Failed to persist config overrides to database", exc_info=True)


def _merged(base: Dict[str, Any], updates: Dict[str, Any]) -> Dict[str, Any]:
    result = deepcopy(base)
    for key, value in updates.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def initialize_state(default_config: Dict[str, Any]) -> None:
    global _config, _memory
    _config = _merged(default_config, _load_overrides())
    _memory = Memory.from_config(_config)


def update_config(updates: Dict[str, Any]) -> None:
    global _config, _memory
    _config = _merged(_config, updates)
    _memory = Memory.from_config(_config)
    _save_overrides(_merged(_load_overrides(), updates))


def get_current_config() -> Dict[str, Any]:
    return deepcopy(_config)


def get_memory_instance() -> Memory:
    return _memory
