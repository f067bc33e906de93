"""The stack's secrets: random, files of mode 0600, mounted into the containers that need them.

They are copies with the containers' owner: a container user that is not the supervisor's could
not read the supervisor's own key file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pikuri_memory import discovery
from pikuri_memory.files import create_private, write_private
from pikuri_memory.paths import DataPaths


@dataclass(frozen=True)
class Secrets:
    """Files, each with one secret.

    Attributes:
        admin_key: A copy of the data directory's API key.
        jwt: What mem0's server signs its tokens with.
        qdrant_key: The key of the vector store.
    """

    admin_key: Path
    jwt: Path
    qdrant_key: Path

    @classmethod
    def at(cls, paths: DataPaths) -> Secrets:
        """Where they lie in a data directory."""
        root = paths.stack_secrets
        return cls(root / "admin-api-key", root / "jwt-secret", root / "qdrant-api-key")


def prepare(paths: DataPaths, owner: tuple[int, int] | None) -> Secrets:
    """Make what is missing, and the copy of the API key anew where it differs.

    Args:
        paths: The data directory.
        owner: User and group id of the container that reads them; None for this process's own.

    Raises:
        AccessError: The API key may be read by others.
        OSError: The directory cannot be written.
    """
    found = Secrets.at(paths)
    root = paths.stack_secrets
    root.mkdir(mode=0o700, exist_ok=True)
    root.chmod(0o700)
    for path in (found.jwt, found.qdrant_key):
        if not content(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            create_private(path, secrets.token_urlsafe(48))
    key = discovery.ensure_api_key(paths)
    if content(found.admin_key) != key:
        write_private(found.admin_key, key)
    for path in (found.admin_key, found.jwt, found.qdrant_key):
        path.chmod(0o600)
        if owner is not None:
            os.chown(path, *owner)
    return found


def shut(paths: DataPaths) -> None:
    """Let nobody in until :func:`prepare` and a restart.

    The copy is emptied in place: the container has this very file, and looks at it each time.

    Raises:
        OSError: It cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        os.truncate(Secrets.at(paths).admin_key, 0)


def content(path: Path) -> str:
    """What a secret's file holds; empty where there is nothing to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
