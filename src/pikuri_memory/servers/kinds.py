"""Whose memories a data directory holds, as far as its files tell; nothing is opened."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pikuri_memory import discovery
from pikuri_memory.discovery import EMBEDDED, STACK
from pikuri_memory.errors import InvalidRequestError
from pikuri_memory.paths import DataPaths


def held(paths: DataPaths) -> set[str]:
    """The kinds of servers that have had memories here."""
    found = set()
    if paths.record.is_file():
        found.add(EMBEDDED)
    if paths.stack_vectors.is_file():
        found.add(STACK)
    return found


def last(paths: DataPaths) -> str:
    """The kind that ran here last, or was tried; our own where none was."""
    record = max(_changed(path) for path in paths.record_files())
    return STACK if _changed(paths.stack_state) > record else EMBEDDED


def start_command(paths: DataPaths) -> str:
    """What a person types to start the server that has the memories of a directory."""
    return "pikuri-memory up" + (" --docker" if last(paths) == STACK else "") + _place(paths)


def refuse_embedded(paths: DataPaths) -> None:
    """Refuse to start an empty server where all memories are in containers.

    Raises:
        InvalidRequestError: They are.
    """
    if held(paths) == {STACK}:
        raise InvalidRequestError(
            f"the memories in {paths.root} are those of the container stack, which the embedded"
            " server does not see",
            hint=f"pikuri-memory up --docker{_place(paths)}; or use another directory: --data-dir",
        )


def _place(paths: DataPaths) -> str:
    """The option for a directory that is not the one of somebody who types no option."""
    usual = DataPaths.at(os.environ.get(discovery.DATA_DIR_VARIABLE) or None)
    return "" if usual.root == paths.root else f" --data-dir {shlex.quote(str(paths.root))}"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
