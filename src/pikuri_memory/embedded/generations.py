"""Which index is the right one, and how one follows another.

The index directory holds generations, each a whole shard in a directory of its own, and a pointer
``current.json``. A generation is trusted only where the pointer says that it was closed cleanly,
with this fingerprint, this number of points, at this sequence number and with files of these
sizes and checksums; anything else is removed and made anew from the record, which takes about a
second for 20,000 memories. Files of an unclean shard are never opened: a truncated one would kill
the process by SIGBUS. A checksum costs 2 ms a megabyte and is needed: of 45 files of a shard,
each overwritten with as many other bytes, 27 were loaded as if nothing had happened, and some of
those shards then found nothing.

The pointer is marked open (not clean) before the shard is loaded, so that a shard that kills the
process while loading is not tried twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pikuri_memory.embedded.index import Index
from pikuri_memory.files import sync_directory, write_private

_BLOCK: Final = 65_536
_ZEROS: Final = bytes(_BLOCK)


def _files(directory: Path) -> dict[str, list[int]]:
    """Size and checksum of every file below a directory."""
    found: dict[str, list[int]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                found[str(path.relative_to(directory))] = [size, _checksum(file.fileno(), size)]
    return found


def _checksum(descriptor: int, size: int) -> int:
    """CRC-32 of the blocks that are not all zeros, and of where they lie.

    Nine tenths of a shard's files are holes; they are skipped, and count as the zeros they are.
    """
    checksum = 0
    for start, end in _written(descriptor, size):
        for at in range(start, end, _BLOCK):
            block = os.pread(descriptor, _BLOCK, at)
            if block != _ZEROS[: len(block)]:
                checksum = zlib.crc32(block, zlib.crc32(at.to_bytes(8, "big"), checksum))
    return checksum


def _written(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file is no hole, in whole blocks."""
    at = 0
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            end = os.lseek(descriptor, data, os.SEEK_HOLE)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:  # ENXIO: only a hole from here on
                yield at, size  # a system that does not tell
            return
        yield data // _BLOCK * _BLOCK, end
        at = -(-end // _BLOCK) * _BLOCK


def _remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
        if not directory.is_dir():
            _remove(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._pointer.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return state if isinstance(state, dict) else None

    def _write(self, name: str, fingerprint: str, clean: dict[str, Any] | None) -> None:
        state = {"directory": name, "fingerprint": fingerprint, "clean": clean}
        if self._pointer.is_dir():
            _remove(self._pointer)
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
            return bool(clean.get("files") == _files(self.directory / name))
        except (OSError, ValueError):  # ValueError: a name with a NUL
            return False

    def remove_others(self, directory: Path) -> None:
        """Remove every generation but one. Their shards must have been closed."""
        self._remove_all_but(directory.name)

    def _remove_all_but(self, name: str) -> None:
        # Beside generations: the output of a process that made one, and what a crash left of a
        # pointer that was being replaced.
        for pattern in ("generation-*", ".current.json.*"):
            for path in self.directory.glob(pattern):
                if path.name != name:
                    with contextlib.suppress(OSError):
                        _remove(path)

    def next_directory(self) -> Path:
        """A name for the next generation that no other was or will be given.

        Two may be in the making at once (a rebuild, and a reset meanwhile), and a rebuild may have
        outlived its killed server for a moment.
        """
        return self.directory / f"generation-{secrets.token_hex(8)}"

    def switch(self, directory: Path, fingerprint: str) -> None:
        """Make a generation the current one, durably."""
        sync_directory(self.directory)
        self._write(directory.name, fingerprint, None)

    def is_current(self, directory: Path) -> bool:
        """Whether the pointer names a generation."""
        state = self._read()
        return state is not None and state.get("directory") == directory.name

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
        clean = {"count": expected.count, "seq": expected.seq, "files": _files(directory)}
        self._write(state["directory"], expected.fingerprint, clean)

    def abandon(self) -> None:
        """Remove every generation; the next start makes the index anew."""
        _remove(self._pointer)
        self._remove_all_but("")
