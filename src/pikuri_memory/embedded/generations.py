"""Which index is the right one, and how one follows another.

The index directory holds generations, each a whole shard in a directory of its own, and a pointer
``current.json``. A generation is trusted only where the pointer says that it was closed cleanly,
with this fingerprint, this number of points, at this sequence number and with files of these
sizes; anything else is removed and made anew from the record, which takes about a second for
20,000 memories. Files of an unclean shard are never opened: a truncated one would kill the process
by SIGBUS.

The pointer is marked open (not clean) before the shard is loaded, so that a shard that kills the
process while loading is not tried twice.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikuri_memory.embedded.index import Index
from pikuri_memory.files import sync_directory, write_private


def _sizes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Expected:
    """What a generation must be to be trusted."""

    fingerprint: str
    count: int
    seq: int


class Generations:
    """The index directory of one owner.

    Args:
        directory: Made where it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pointer = directory / "current.json"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._pointer.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def _write(self, name: str, fingerprint: str, clean: dict[str, Any] | None) -> None:
        state = {"directory": name, "fingerprint": fingerprint, "clean": clean}
        write_private(self._pointer, json.dumps(state))

    def open(self, expected: Expected) -> Index | None:
        """The current index where it can be trusted, else None; everything else is removed."""
        state = self._read()
        index: Index | None = None
        name = ""
        if state is not None and self._trusted(state, expected):
            name = state["directory"]
            self._write(name, expected.fingerprint, None)
            try:
                index = Index.load(self.directory / name)
                if index.count() != expected.count:
                    index.close()
                    index = None
            except Exception:  # the engine raises many kinds; each means: make it anew
                index = None
        self._remove_all_but(name if index is not None else "")
        return index

    def _trusted(self, state: dict[str, Any], expected: Expected) -> bool:
        name, clean = state.get("directory"), state.get("clean")
        if not (isinstance(name, str) and name.startswith("generation-") and "/" not in name):
            return False
        if not isinstance(clean, dict) or state.get("fingerprint") != expected.fingerprint:
            return False
        if clean.get("count") != expected.count or clean.get("seq") != expected.seq:
            return False
        try:
            return bool(clean.get("files") == _sizes(self.directory / name))
        except OSError:
            return False

    def remove_others(self, directory: Path) -> None:
        """Remove every generation but one. Their shards must have been closed."""
        self._remove_all_but(directory.name)

    def _remove_all_but(self, name: str) -> None:
        for path in self.directory.glob("generation-*"):
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)

    def next_directory(self) -> Path:
        """A name for the next generation; nothing is there."""
        numbers = [
            int(suffix)
            for path in self.directory.glob("generation-*")
            if (suffix := path.name.removeprefix("generation-")).isdigit()
        ]
        return self.directory / f"generation-{max(numbers, default=0) + 1:06}"

    def switch(self, directory: Path, fingerprint: str) -> None:
        """Make a generation the current one, durably."""
        sync_directory(self.directory)
        self._write(directory.name, fingerprint, None)

    def close(self, index: Index, expected: Expected) -> None:
        """Close an index and write down what makes it trusted at the next start."""
        index.close()
        state = self._read()
        if state is None or not isinstance(state.get("directory"), str):
            return
        directory = self.directory / state["directory"]
        for path in directory.rglob("*"):
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        clean = {"count": expected.count, "seq": expected.seq, "files": _sizes(directory)}
        self._write(state["directory"], expected.fingerprint, clean)

    def abandon(self) -> None:
        """Remove every generation; the next start makes the index anew."""
        self._pointer.unlink(missing_ok=True)
        self._remove_all_but("")
