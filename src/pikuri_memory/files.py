"""Small private files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that a reader, or a crash, sees the old or the new one.

    Raises:
        OSError: The directory cannot be written.
    """
    with _scratch(path, text) as scratch:
        os.replace(scratch, path)
    sync_directory(path.parent)


def create_private(path: Path, text: str) -> bool:
    """Make a file of mode 0600 with its content in one step; False if there is one already.

    Raises:
        OSError: The directory cannot be written.
    """
    # A plain O_EXCL would show an empty file between creation and write, or for ever after a
    # crash in between; a hard link puts the finished file under its name, or fails.
    with _scratch(path, text) as scratch:
        try:
            os.link(scratch, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            os.replace(scratch, path)
    sync_directory(path.parent)
    return True


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _scratch(path: Path, text: str) -> Iterator[Path]:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield scratch
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write to (mode 0600, UTF-8) that takes its name only when it is complete.

    What is no regular file, such as a pipe, is written to directly.

    Raises:
        OSError: The directory cannot be written.
    """
    if path.exists() and not path.is_file():
        with open(path, "w", encoding="utf-8") as direct:
            yield direct
        return
    # The file itself, where the name is a link to it.
    path = path.resolve()
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
    sync_directory(path.parent)
