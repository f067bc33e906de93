"""Where files lie. The only module that knows names in a data directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


def default_data_dir() -> Path:
    """The user's data directory for memories (XDG: ``~/.local/share/pikuri/memory``)."""
    import platformdirs

    return Path(platformdirs.user_data_dir("pikuri", appauthor=False)) / "memory"


@dataclass(frozen=True)
class DataPaths:
    """Names in one data directory.

    Attributes:
        root: The absolute data directory.
    """

    root: Path

    @classmethod
    def at(cls, data_dir: str | Path | None) -> DataPaths:
        """The paths under ``data_dir`` (``~`` is expanded), or under the default one."""
        root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        return cls(Path(root).absolute())

    @property
    def record(self) -> Path:
        """The SQLite file that holds the memories."""
        return self.root / "memories.sqlite3"

    def record_files(self) -> list[Path]:
        """The record, with SQLite's own files beside it."""
        parts = ("", "-wal", "-shm", "-journal")
        return [self.record.with_name(self.record.name + part) for part in parts]

    @property
    def index(self) -> Path:
        """The directory of the index; may be removed at any time while no server runs."""
        return self.root / "index"

    @property
    def api_key(self) -> Path:
        """The API key, mode 0600."""
        return self.root / "api-key"

    @property
    def server_info(self) -> Path:
        """What runs here: kind, pid, start time, endpoint, version (mode 0600)."""
        return self.root / "server.json"

    @property
    def models(self) -> Path:
        """Which models are used, and what the probe found out about them (mode 0600)."""
        return self.root / "models.json"

    @property
    def stack_plan(self) -> Path:
        """What container stack runs here, and with which values (mode 0600)."""
        return self.root / "stack.json"

    @property
    def stack_state(self) -> Path:
        """How far the stack's keeper is, and how it is sealed (mode 0600)."""
        return self.root / "stack-state.json"

    @property
    def stack_vectors(self) -> Path:
        """By collection of the stack's vector store, which embedder made its vectors."""
        return self.root / "stack-vectors.json"

    @property
    def stack_secrets(self) -> Path:
        """The directory of the stack's own secrets (mode 0700)."""
        return self.root / "secrets"

    @property
    def qdrant(self) -> Path:
        """The memories of the stack: what its vector store keeps."""
        return self.root / "qdrant"

    @property
    def history(self) -> Path:
        """The history and the application tables of the stack."""
        return self.root / "history"

    @property
    def locks(self) -> Path:
        """The directory of lock files, which are never unlinked."""
        return self.root / "locks"

    @property
    def lease_lock(self) -> Path:
        """Held shared by users of the server, exclusively by a keeper that stops."""
        return self.locks / "lease"

    @property
    def start_lock(self) -> Path:
        """Held exclusively by whoever starts or stops a server."""
        return self.locks / "start"

    @property
    def owner_lock(self) -> Path:
        """Held exclusively by the process that owns record and index."""
        return self.locks / "owner"

    @property
    def holders(self) -> Path:
        """One small file per lease, telling who holds it; information only."""
        return self.locks / "holders"

    @property
    def keep_marker(self) -> Path:
        """There while the running server is to stay up without leases."""
        return self.root / "keep"

    @property
    def logs(self) -> Path:
        """The directory of the server's logs."""
        return self.root / "logs"

    @property
    def server_log(self) -> Path:
        """The server's own log; rotated."""
        return self.logs / "server.log"

    @property
    def output_log(self) -> Path:
        """What the server process printed since its start."""
        return self.logs / "output.log"

    def present(self) -> list[Path]:
        """What is there of all that this package makes in the directory, and nothing else."""
        files = (
            *(self.record, self.api_key, self.server_info, self.models, self.keep_marker),
            *(self.stack_plan, self.stack_state, self.stack_vectors),
        )
        directories = (
            *(self.index, self.locks, self.logs),
            *(self.stack_secrets, self.qdrant, self.history),
        )
        # SQLite's own beside the record, and what a crash left of a file that was being replaced.
        names = {path.name for path in self.record_files()}
        names |= {path.name for path in (*files, *directories)}
        replaced = "|".join(re.escape(path.name) for path in files)
        scratch = re.compile(rf"\.(?:{replaced})\.[0-9a-f]{{12}}")
        try:
            entries = sorted(self.root.iterdir())
        except OSError:
            return []
        return [path for path in entries if path.name in names or scratch.fullmatch(path.name)]
