"""The record: one SQLite file that holds every memory. The index can be lost, this cannot.

One thread writes (see :mod:`pikuri_memory.embedded.writer`), through :class:`Change` objects, each
inside a transaction that is on the disk before anybody is told (WAL, ``synchronous=FULL``). Any
thread reads, through a connection of its own, and never waits for the writer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import sqlite3
import threading
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pikuri_memory.embedded import filters
from pikuri_memory.embedded.links import Link, Links
from pikuri_memory.embedded.model import (
    AddResult,
    Condition,
    Entity,
    HistoryEntry,
    IdempotencyKey,
    Message,
    NewMemory,
    StoredMemory,
)
from pikuri_memory.embedded.schema import MIGRATIONS
from pikuri_memory.errors import (
    DamagedRecordError,
    DiskFullError,
    DuplicateTextError,
    IdempotencyConflictError,
    InvalidRequestError,
    MemoryNotFoundError,
    NewerSchemaError,
    PikuriMemoryError,
    StorageError,
)
from pikuri_memory.record import Event, Scope, Unset

RECENT_MESSAGES: Final = 10
"""Messages kept per scope, as many as mem0's extraction reads."""

IDEMPOTENCY_DAYS: Final = 7

CHECKED_BYTES: Final = 64 * 2**20
"""A record up to this size is read whole at each start, in 0.2 s; a larger one only after a crash,
at 3.5 ms a megabyte."""

_DAY: Final = 86_400_000_000
_COLUMNS: Final = (
    "m.rowid, m.id, m.text, m.user_id, m.agent_id, m.run_id, m.metadata,"
    " m.created_at, m.updated_at, m.expires"
)
_SAME: Final = (
    "SELECT id, text FROM memories WHERE user_id = ? AND agent_id = ? AND run_id = ?"
    " AND digest = ? AND (expires IS NULL OR expires >= ?)"
)
_BATCH: Final = 500
_CACHED: Final = 16_384
"""Memories, and document frequencies, that are kept after they were read: about 20 MB of facts."""

_SHORT: Final = 1000
"""Characters of text and metadata up to which a memory is kept so (at most 50 MB in all)."""

_TABLES: Final = (  # all that a reset empties
    "memories",
    "vectors",
    "next_vectors",
    "history",
    "messages",
    "replies",
    "idempotency",
    "terms",
    "changes",
    "successions",
)


class NoVectorError(Exception):
    """A memory that was thought to be known is not, or its vector is another embedder's by now: it
    is to come again with its vector."""


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for texts that are equal after NFC and trimming."""
    return hashlib.blake2b(
        unicodedata.normalize("NFC", text.strip()).encode(), digest_size=16
    ).digest()


def today(now: int) -> str:
    """The UTC day of a time in microseconds since the epoch, as YYYY-MM-DD."""
    return datetime.fromtimestamp(now / 1e6, UTC).date().isoformat()


class Clock:
    """Microseconds since the epoch, never the same value twice and never backwards."""

    def __init__(self, source: Callable[[], int] = time.time_ns) -> None:
        self._source = source
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """The time now."""
        with self._lock:
            self._last = max(self._source() // 1000, self._last + 1)
            return self._last


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What the index holds of one memory, and the text that its terms come from."""

    row: int
    scope: Scope
    text: str
    vector: bytes


VectorTable: TypeAlias = Literal["vectors", "next_vectors"]
"""The vectors that are searched, or those that a re-embedding makes."""


def _scope(user_id: str, agent_id: str, run_id: str) -> Scope:
    return Scope(user_id or None, agent_id or None, run_id or None)


def _key(scope: Scope) -> tuple[str, str, str]:
    return (scope.user_id or "", scope.agent_id or "", scope.run_id or "")


def _memory(row: tuple[Any, ...]) -> StoredMemory:
    _, id_, text, user_id, agent_id, run_id, metadata, created, updated, expires = row
    return StoredMemory(
        id=id_,
        text=text,
        scope=Scope(user_id or None, agent_id or None, run_id or None),
        metadata={} if metadata == "{}" else json.loads(metadata),
        created_at=created,
        updated_at=updated,
        expiration_date=None if expires is None else date.fromisoformat(expires),
    )


def _where(scope: Scope) -> tuple[str, list[Any]]:
    """A condition on ``m`` for a scope; each id that is set must be equal."""
    ids = scope.as_dict()
    # The repeated != '' lets SQLite use the partial indexes.
    clauses = [f"m.{name} = ? AND m.{name} != ''" for name in ids]
    return " AND ".join(clauses) or "1", list(ids.values())


def translate(error: sqlite3.Error, path: Path) -> PikuriMemoryError:
    """The error of ours for one of SQLite's. SQLite's own words carry no data of the user."""
    text = str(error).lower()
    if "full" in text or "disk i/o" in text:
        return DiskFullError(
            f"the disk that holds {path} is full or failing ({error})",
            hint=f"free some space: df -h {path.parent}",
        )
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return DamagedRecordError(
            f"{path} is damaged ({error}); nothing was changed",
            hint=f"keep a copy (cp {path} {path}.damaged), then rescue what can be read with "
            f"`sqlite3 {path} .recover | sqlite3 rescued.sqlite3`, or import an export",
        )
    return StorageError(f"{path} cannot be used ({error})", hint=f"ls -l {path.parent}")


def _examine(path: Path) -> None:
    """Look at a record before anything is changed.

    An empty file is a new one: a server that was killed in its first moment leaves it behind.

    Raises:
        DamagedRecordError: SQLite found damage, or the file is shorter than it says.
        NewerSchemaError: A newer version wrote it.
        sqlite3.Error: It cannot be read.
    """
    with open(path, "rb") as file:
        header = file.read(100)
        size = os.fstat(file.fileno()).st_size
    wal = path.with_name(path.name + "-wal")
    # A record has a rollback journal only while it is made; SQLite rolls it back.
    if not header or path.with_name(path.name + "-journal").exists():
        return
    unclean = wal.exists() and wal.stat().st_size > 0
    # Without a write-ahead log nothing but the file is looked at, and no file is made beside it.
    mode = "mode=ro" if unclean else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=10)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "migrations" in tables:
            known = {name for name, _ in MIGRATIONS}
            unknown = sorted({n for (n,) in db.execute("SELECT name FROM migrations")} - known)
            if unknown:
                raise NewerSchemaError(
                    f"{path} was written by a newer version (it has {', '.join(unknown)})",
                    hint="pip install --upgrade pikuri-memory",
                )
        page = int.from_bytes(header[16:18], "big")
        page = 65_536 if page == 1 else page
        if not unclean and size < page * int.from_bytes(header[28:32], "big"):
            raise sqlite3.DatabaseError(f"malformed: {size} bytes are not what its header says")
        if unclean or size <= CHECKED_BYTES:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed: {' '.join(str(found).split())}")


def peek(path: Path) -> tuple[bool, dict[str, str]]:
    """Whether a record has memories, and its ``meta`` table; nothing is changed.

    Of one that is not there, or cannot be read, that is nothing: whoever opens it is told why.
    """
    wal = path.with_name(path.name + "-wal")
    try:
        if not path.stat().st_size:
            return False, {}
        unclean = wal.exists() and wal.stat().st_size > 0
        mode = "mode=ro" if unclean else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=10)) as db:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            return bool(db.execute("SELECT EXISTS (SELECT 1 FROM memories)").fetchone()[0]), meta
    except (OSError, sqlite3.Error):
        return False, {}


class Records:
    """The record in one file.

    Args:
        path: The SQLite file; made with mode 0600 where there is none.
        terms_of: Term ids of a text, each once, for the document frequencies; None opens the file
            for reading only.
        clock: Microseconds since the epoch.

    Raises:
        DamagedRecordError: The file is no sound SQLite database.
        NewerSchemaError: A newer version wrote it.
        StorageError: It cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        terms_of: Callable[[str], Sequence[int]] | None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.path = path
        self.clock = clock or Clock()
        self._terms_of = terms_of or (lambda text: ())
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._count = 0
        self._next_count = 0
        # What was read lately. A writer forgets what it changed after the commit and before
        # anybody is told; a reader keeps nothing that it began to read before that.
        self._memories: dict[int, StoredMemory] = {}
        self._frequencies: dict[int, int] = {}
        self._expiring: bool | None = None
        self._generation = 0
        self._cache_lock = threading.Lock()
        self._touched: set[int] | None = set()
        self._relinked: list[Link | tuple[int, int] | None] = []
        self.links = Links()
        """Which memories supersede which, as it is on the disk."""
        if terms_of is None:
            return
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StorageError(
                f"{path} cannot be opened ({error.strerror})", hint=f"ls -l {path.parent}"
            ) from None
        try:
            _examine(path)
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA secure_delete = ON")
            self._migrate()
            self._count = int(self._writer.execute("SELECT count(*) FROM memories").fetchone()[0])
            self.links = Links(self._stored_links())
            self._next_count = int(
                self._writer.execute("SELECT count(*) FROM next_vectors").fetchone()[0]
            )
        except sqlite3.Error as error:
            self.close()
            raise translate(error, path) from None
        except PikuriMemoryError:
            self.close()
            raise

    # -- connections ---------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=10, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA foreign_keys = ON")
        filters.register_functions(connection)
        with self._connections_lock:
            self._connections.append(connection)
        return connection

    def _read(self) -> sqlite3.Connection:
        """This thread's own reading connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Close every connection; idempotent."""
        with self._connections_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _migrate(self) -> None:
        db = self._writer
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(
                "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, at INTEGER NOT NULL)"
            )
            done = {name for (name,) in db.execute("SELECT name FROM migrations")}
            for name, script in MIGRATIONS:
                if name not in done:
                    for statement in script.split(";"):
                        if statement.strip():
                            db.execute(statement)
                    db.execute("INSERT INTO migrations VALUES (?, ?)", (name, self.clock()))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _stored_links(self) -> list[Link]:
        return [
            Link(*row)
            for row in self._writer.execute(
                "SELECT s.newer, s.older, n.id, o.id FROM successions s"
                " JOIN memories n ON n.rowid = s.newer JOIN memories o ON o.rowid = s.older"
                " ORDER BY s.newer, s.older"
            )
        ]

    # -- reading -------------------------------------------------------------------------------

    def check(self) -> None:
        """Read the whole file.

        Raises:
            DamagedRecordError: SQLite found damage.
        """
        try:
            found = self._read().execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise translate(error, self.path) from None
        if found != "ok":
            raise translate(sqlite3.DatabaseError(f"malformed: {found}"), self.path)

    @property
    def count(self) -> int:
        """How many memories there are, expired ones included."""
        return self._count

    @property
    def next_count(self) -> int:
        """How many memories have a vector of the next embedder; left-overs count too."""
        return self._next_count

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._read().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self.path) from None

    def meta(self, key: str) -> str | None:
        """A value of the ``meta`` table."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def get(self, memory_id: str) -> StoredMemory:
        """One memory.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        rows = self._rows(f"SELECT {_COLUMNS} FROM memories m WHERE m.id = ?", (memory_id,))
        if not rows:
            raise _unknown(memory_id)
        return self._linked(rows[0][0], _memory(rows[0]))

    def _linked(self, row: int, memory: StoredMemory) -> StoredMemory:
        """A memory with its links, where it has any."""
        if not self.links:
            return memory
        supersedes, superseded_by = self.links.ids_of(row)
        if not supersedes and not superseded_by:
            return memory
        return replace(memory, supersedes=supersedes, superseded_by=superseded_by, rendered=[])

    def by_rows(self, rows: Sequence[int]) -> dict[int, StoredMemory]:
        """Memories by their row; rows that are gone are left out."""
        known = self._memories
        found = {row: memory for row in rows if (memory := known.get(row)) is not None}
        if len(found) == len(rows):
            return found
        missing = [row for row in rows if row not in found]
        generation = self._generation
        short: dict[int, StoredMemory] = {}
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            for row in self._rows(
                f"SELECT {_COLUMNS} FROM memories m WHERE m.rowid IN ({marks})", part
            ):
                memory = found[row[0]] = self._linked(row[0], _memory(row))
                if len(row[2]) + len(row[6]) <= _SHORT:
                    short[row[0]] = memory
        with self._cache_lock:
            if generation == self._generation:  # else a change may have overtaken the reading
                known.update(short)
                while len(known) > _CACHED:
                    del known[next(iter(known))]  # the one that was read first
        return found

    def _forget(self, rows: Iterable[int] | None) -> None:
        """Forget what was read of changed rows (None: of all), before anybody is told."""
        with self._cache_lock:
            self._generation += 1
            for change in self._relinked:
                if change is None:
                    self.links.clear()
                elif isinstance(change, Link):
                    self.links.add(change)
                else:
                    self.links.remove(*change)
            self._relinked = []
            if rows is None:
                self._memories.clear()
            else:
                for row in rows:
                    self._memories.pop(row, None)
            self._frequencies.clear()
            self._expiring = None

    def recent_messages(self, scope: Scope) -> list[Message]:
        """The most recent messages of exactly this scope, oldest first."""
        return [
            Message(role, content)
            for role, content in self._rows(
                "SELECT role, content FROM messages"
                " WHERE user_id = ? AND agent_id = ? AND run_id = ? ORDER BY rowid DESC LIMIT ?",
                (*_key(scope), RECENT_MESSAGES),
            )
        ][::-1]

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Which of the ids are there, read by another connection than the writer's."""
        found: set[str] = set()
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            found.update(
                row[0] for row in self._rows(f"SELECT id FROM memories WHERE id IN ({marks})", part)
            )
        return found

    def knows(self, new: NewMemory) -> bool:
        """Whether adding a memory would find it known (now; another moment may differ)."""
        digest = text_digest(new.text)
        return bool(self._rows(_SAME, (*_key(new.scope), digest, today(self.clock()))))

    def history(self, memory_id: str) -> list[HistoryEntry]:
        """All changes of a memory, oldest first.

        Raises:
            MemoryNotFoundError: There never was one of that id.
        """
        rows = self._rows(
            "SELECT id, memory_id, event, old_text, new_text, at FROM history"
            " WHERE memory_id = ? ORDER BY rowid",
            (memory_id,),
        )
        if not rows:
            raise _unknown(memory_id)
        return [HistoryEntry(*row) for row in rows]

    def page(
        self, scope: Scope, *, limit: int, cursor: str | None, show_expired: bool
    ) -> tuple[list[StoredMemory], str | None]:
        """Memories of a scope, newest first, from ``cursor`` on, and the next cursor."""
        where, parameters = _where(scope)
        if cursor is not None:
            where += " AND (m.created_at, m.rowid) < (?, ?)"
            parameters += _read_cursor(cursor)
        if not show_expired:
            where += " AND (m.expires IS NULL OR m.expires >= ?)"
            parameters.append(today(self.clock()))
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM memories m WHERE {where}"
            " ORDER BY m.created_at DESC, m.rowid DESC LIMIT ?",
            [*parameters, limit + 1],
        )
        more = len(rows) > limit
        rows = rows[:limit]
        following = _write_cursor(rows[-1][7], rows[-1][0]) if more else None
        return [self._linked(row[0], _memory(row)) for row in rows], following

    def entities(self) -> list[Entity]:
        """Every user, agent and run that has memories, by type and id."""
        found: list[Entity] = []
        for kind in ("agent", "run", "user"):
            column = f"{kind}_id"
            found += [
                Entity(kind, *row)
                for row in self._rows(
                    f"SELECT {column}, count(*), min(created_at), max(updated_at) FROM memories"
                    f" WHERE {column} != '' GROUP BY {column} ORDER BY {column}"
                )
            ]
        return found

    def document_frequencies(self, terms: Sequence[int]) -> dict[int, int]:
        """In how many memories each term occurs, 0 included."""
        known = self._frequencies
        found = {term: documents for term in terms if (documents := known.get(term)) is not None}
        if len(found) == len(terms):
            return found
        missing = [term for term in terms if term not in found]
        generation = self._generation
        marks = ",".join("?" * len(missing))
        read = dict.fromkeys(missing, 0) | dict(
            self._rows(f"SELECT term, documents FROM terms WHERE term IN ({marks})", missing)
        )
        with self._cache_lock:
            if generation == self._generation:
                if len(known) > _CACHED:
                    known.clear()
                known.update(read)
        return found | read

    def has_expiring(self) -> bool:
        """Whether any memory has an expiration date."""
        expiring = self._expiring
        if expiring is None:
            generation = self._generation
            expiring = bool(self._rows("SELECT 1 FROM memories WHERE expires IS NOT NULL LIMIT 1"))
            with self._cache_lock:
                if generation == self._generation:
                    self._expiring = expiring
        return expiring

    def expired_rows(self, scope: Scope) -> list[int]:
        """Rows of the scope that are expired today."""
        where, parameters = _where(scope)
        return [
            row[0]
            for row in self._rows(
                f"SELECT m.rowid FROM memories m WHERE m.expires < ? AND {where}",
                [today(self.clock()), *parameters],
            )
        ]

    def matching_rows(
        self, scope: Scope, condition: Condition | None, show_expired: bool
    ) -> list[int]:
        """Rows of the scope that satisfy a condition."""
        return self._rows_where(*_where(scope), condition, show_expired)

    def passing(
        self, rows: Sequence[int], condition: Condition | None, show_expired: bool
    ) -> list[int]:
        """Those of some rows that satisfy a condition."""
        if not rows or (condition is None and show_expired):
            return list(rows)
        where = f"m.rowid IN ({','.join('?' * len(rows))})"
        return self._rows_where(where, [*rows], condition, show_expired)

    def _rows_where(
        self, where: str, parameters: list[Any], condition: Condition | None, show_expired: bool
    ) -> list[int]:
        if not show_expired:
            where += " AND (m.expires IS NULL OR m.expires >= ?)"
            parameters.append(today(self.clock()))
        if condition is not None:
            sql, more = condition.sql()
            where += f" AND ({sql})"
            parameters += more
        return [
            row[0]
            for row in self._rows(f"SELECT m.rowid FROM memories m WHERE {where}", parameters)
        ]

    def index_rows(self, rows: Sequence[int], vectors: VectorTable = "vectors") -> list[IndexRow]:
        """What the index needs of some rows; rows that are gone are left out."""
        found: list[IndexRow] = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            found += [
                IndexRow(row, _scope(user, agent, run), text, vector)
                for row, user, agent, run, text, vector in self._rows(
                    "SELECT m.rowid, m.user_id, m.agent_id, m.run_id, m.text, v.vector"
                    f" FROM memories m JOIN {vectors} v USING (rowid) WHERE m.rowid IN ({marks})",
                    part,
                )
            ]
        return found

    def all_index_rows(
        self, batch: int = _BATCH, vectors: VectorTable = "vectors"
    ) -> Iterator[list[IndexRow]]:
        """What the index needs of everything, in batches by ascending row."""
        last = 0
        while True:
            rows = self._rows(
                "SELECT m.rowid, m.user_id, m.agent_id, m.run_id, m.text, v.vector"
                f" FROM memories m JOIN {vectors} v USING (rowid)"
                " WHERE m.rowid > ? ORDER BY m.rowid LIMIT ?",
                (last, batch),
            )
            if not rows:
                return
            last = rows[-1][0]
            yield [IndexRow(row, _scope(u, a, r), text, v) for row, u, a, r, text, v in rows]

    def without_next_vector(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Row and text of memories after a row that the next embedder has not embedded."""
        return [
            (row, text)
            for row, text in self._rows(
                "SELECT m.rowid, m.text FROM memories m WHERE m.rowid > ?"
                " AND NOT EXISTS (SELECT 1 FROM next_vectors n WHERE n.rowid = m.rowid)"
                " ORDER BY m.rowid LIMIT ?",
                (after, limit),
            )
        ]

    def changes_after(self, seq: int) -> list[tuple[int, int, bool]]:
        """Changes after a sequence number, in order: (seq, row, deleted)."""
        return [
            (s, row, bool(deleted))
            for s, row, deleted in self._rows(
                "SELECT seq, memory, deleted FROM changes WHERE seq > ? ORDER BY seq", (seq,)
            )
        ]

    def last_seq(self) -> int:
        """The newest sequence number that was ever given, 0 where none was."""
        rows = self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")
        return int(rows[0][0]) if rows else 0

    def reply_of(self, key: IdempotencyKey) -> list[AddResult] | None:
        """The stored reply of a key that was used before, texts read anew; None where it is new.

        Raises:
            IdempotencyConflictError: It came with another body then.
        """
        rows = self._rows(
            "SELECT rowid, digest FROM idempotency"
            " WHERE method = ? AND path = ? AND scope = ? AND key = ? AND at > ?",
            (key.method, key.path, key.scope, key.key, self.clock() - IDEMPOTENCY_DAYS * _DAY),
        )
        if not rows:
            return None
        row, digest = rows[0]
        if digest is not None and digest != key.body_digest:
            raise conflicting_key()
        return [
            AddResult(memory_id, text, event)
            for memory_id, text, event in self._rows(
                "SELECT r.memory_id, m.text, r.event FROM replies r"
                " JOIN memories m ON m.id = r.memory_id WHERE r.key = ? ORDER BY r.position",
                (row,),
            )
        ]

    # -- writing (the writer's thread only) ----------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction of the writer, rolled back on any error."""
        db = self._writer
        count, next_count = self._count, self._next_count
        self._touched = set()
        self._relinked = []
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            self._count, self._next_count = count, next_count
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._relinked = []
            self._forget(None)  # where a commit failed, nobody knows how far it got
            with suppress(sqlite3.Error):
                self.links = Links(self._stored_links())
            if isinstance(error, sqlite3.Error):
                raise translate(error, self.path) from None
            raise
        if self._touched is None or self._touched:
            self._forget(self._touched)

    @contextmanager
    def part(self) -> Iterator[Change]:
        """One caller's changes within the transaction: all of them, or none."""
        db = self._writer
        count, next_count = self._count, self._next_count
        db.execute("SAVEPOINT part")
        try:
            change = Change(self, db, self._terms_of)
            yield change
            change.finish()
            db.execute("RELEASE part")
        except BaseException as error:
            self._count, self._next_count = count, next_count
            if db.in_transaction:  # SQLite gives up the whole of it where the disk is full
                db.execute("ROLLBACK TO part")
                db.execute("RELEASE part")
            if isinstance(error, sqlite3.Error):
                raise translate(error, self.path) from None
            raise
        self._count += change.added - change.removed
        self._next_count += change.next_added - change.next_removed
        self._relinked += change.relinked
        if change.touched is None or self._touched is None:
            self._touched = None
        else:
            self._touched |= change.touched

    def set_meta(self, db: sqlite3.Connection, key: str, value: str | None) -> None:
        """Write or remove a value of the ``meta`` table."""
        if value is None:
            db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def recount_terms(self, terms_of: Callable[[str], Sequence[int]]) -> None:
        """Make the document frequencies anew (after a change of tokenizer)."""
        counts: Counter[int] = Counter()
        for batch in self.all_index_rows():
            for row in batch:
                counts.update(terms_of(row.text))
        with self.transaction() as db:
            db.execute("DELETE FROM terms")
            db.executemany("INSERT INTO terms VALUES (?, ?)", counts.items())

    def forget_changes(self, up_to: int) -> None:
        """Drop change log entries that the index holds for good."""
        with self.transaction() as db:
            db.execute("DELETE FROM changes WHERE seq <= ?", (up_to,))
            self.set_meta(db, "indexed_seq", str(up_to))
            db.execute(
                "DELETE FROM idempotency WHERE at <= ?",
                (self.clock() - IDEMPOTENCY_DAYS * _DAY,),
            )

    def swap_vectors(self, db: sqlite3.Connection) -> None:
        """Put the next vectors in place of the others, which become what is left over.

        Tables change their names, in no time at any size. Each memory must have a next vector.
        """
        self._next_count = self._count
        db.execute("ALTER TABLE vectors RENAME TO last_vectors")
        db.execute("ALTER TABLE next_vectors RENAME TO vectors")
        db.execute("ALTER TABLE last_vectors RENAME TO next_vectors")

    def vacuum(self) -> None:
        """Write the file anew without what was deleted, and empty the write-ahead log.

        ``secure_delete`` alone was seen to leave rows behind.
        """
        try:
            self._writer.execute("VACUUM")
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise translate(error, self.path) from None
        if busy:
            raise StorageError(
                f"the write-ahead log of {self.path} is in use by a reader",
                hint="try again: pikuri-memory purge",
            )


class Change:
    """Changes that belong together, made by the writer inside :meth:`Records.part`."""

    def __init__(
        self, records: Records, db: sqlite3.Connection, terms_of: Callable[[str], Sequence[int]]
    ) -> None:
        self._records = records
        self._db = db
        self._terms_of = terms_of
        self._terms: Counter[int] = Counter()
        self.added = 0
        self.removed = 0
        self.next_added = 0
        self.next_removed = 0
        self.rows: dict[int, bool] = {}
        """Rows whose text changed, True where they were deleted, in order."""
        self.touched: set[int] | None = set()
        """Rows of which anything changed; None for all."""
        self.relinked: list[Link | tuple[int, int] | None] = []
        """Links that were made, and, as (newer, older), those that were removed; None for all."""

    def finish(self) -> None:
        """Write what is written once for all: document frequencies and the change log."""
        db = self._db
        if self.touched is not None:
            self.touched.update(self.rows)
        db.executemany(
            "INSERT INTO terms VALUES (?, ?)"
            " ON CONFLICT (term) DO UPDATE SET documents = documents + excluded.documents",
            [(term, n) for term, n in self._terms.items() if n > 0],
        )
        lost = [(-n, term) for term, n in self._terms.items() if n < 0]
        if lost:
            db.executemany("UPDATE terms SET documents = documents - ? WHERE term = ?", lost)
            db.executemany(
                "DELETE FROM terms WHERE term = ? AND documents <= 0", [(t,) for _, t in lost]
            )
        db.executemany(
            "INSERT INTO changes (memory, deleted) VALUES (?, ?)",
            [(row, int(deleted)) for row, deleted in self.rows.items()],
        )

    def _log(self, memory_id: str, event: Event, old: str | None, new: str | None, at: int) -> None:
        self._db.execute(
            "INSERT INTO history (id, memory_id, event, old_text, new_text, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (str(uuid.uuid4()), memory_id, event, old, new, at),
        )

    def find(self, scope: Scope, digest: bytes) -> tuple[str, str] | None:
        """Id and text of the memory of exactly this scope that says the same and is not expired."""
        row: tuple[str, str] | None = self._db.execute(
            _SAME, (*_key(scope), digest, today(self._records.clock()))
        ).fetchone()
        return row

    def add(self, new: NewMemory, vector: bytes | None) -> AddResult:
        """Store a memory, unless its scope has one that says the same.

        Args:
            new: The memory.
            vector: Little-endian float32 values; None where it is thought to be known.

        Raises:
            NoVectorError: It is not known, and came without a vector.
        """
        db = self._db
        digest = text_digest(new.text)
        known = self.find(new.scope, digest)
        if known is not None:
            return AddResult(known[0], known[1], "NONE")
        memory_id = new.id or str(uuid.uuid4())
        if new.id is not None:
            taken = db.execute(
                "SELECT text, user_id, agent_id, run_id FROM memories WHERE id = ?", (new.id,)
            ).fetchone()
            if taken is not None and tuple(taken[1:]) == _key(new.scope):
                # The same memory, changed since it was exported: what it says now is newer.
                return AddResult(new.id, taken[0], "NONE")
            if taken is not None:
                memory_id = str(uuid.uuid4())  # another's id: nothing may be lost for it
        if vector is None:
            raise NoVectorError
        now = self._records.clock()
        created = now if new.created_at is None else new.created_at
        updated = created if new.updated_at is None else new.updated_at
        # An expired memory that says the same gives way.
        db.execute(
            "UPDATE memories SET digest = NULL WHERE user_id = ? AND agent_id = ? AND run_id = ?"
            " AND digest = ?",
            (*_key(new.scope), digest),
        )
        cursor = db.execute(
            "INSERT INTO memories (id, user_id, agent_id, run_id, text, digest, metadata,"
            " created_at, updated_at, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                memory_id,
                *_key(new.scope),
                new.text,
                digest,
                _json(new.metadata),
                created,
                updated,
                None if new.expiration_date is None else new.expiration_date.isoformat(),
            ),
        )
        row = int(cursor.lastrowid or 0)
        db.execute("INSERT INTO vectors VALUES (?, ?)", (row, vector))
        if new.history:
            db.execute("DELETE FROM history WHERE memory_id = ?", (memory_id,))
            for entry in new.history:
                self._log(memory_id, entry.event, entry.old_text, entry.new_text, entry.at)
        else:
            self._log(memory_id, "ADD", None, new.text, created)
        self._terms.update(self._terms_of(new.text))
        self.rows[row] = False
        self.added += 1
        return AddResult(memory_id, new.text, "ADD")

    def supersede(self, newer: str, older: str, *, saying: str | None = None) -> None:
        """Note that a memory supersedes another one; ordering two is all that it does.

        Passed over where one of them is unknown, they are not of exactly the same scope, or the
        one that supersedes is not the one that was learnt later.

        Args:
            newer: Id of the successor.
            older: Id of what it replaces.
            saying: What the older one must say still; None where that does not matter.
        """
        found = {
            row[1]: row
            for row in self._db.execute(
                "SELECT rowid, id, user_id, agent_id, run_id, created_at, text FROM memories"
                " WHERE id IN (?, ?)",
                (newer, older),
            )
        }
        if len(found) < 2:
            return
        new, old = found[newer], found[older]
        # In the order of time, so that no chain of links leads back to where it began.
        if new[2:5] != old[2:5] or (new[5], new[0]) <= (old[5], old[0]):
            return
        if saying is not None and old[6] != saying:
            return
        made = self._db.execute(
            "INSERT OR IGNORE INTO successions VALUES (?, ?)", (new[0], old[0])
        ).rowcount
        if made:
            self.relinked.append(Link(new[0], old[0], newer, older))
            if self.touched is not None:
                self.touched |= {new[0], old[0]}

    def _unlink(self, row: int) -> None:
        """Remove the links of a memory, which is not what it was any more."""
        links = self._db.execute(
            "SELECT newer, older FROM successions WHERE newer = ?1"
            " UNION SELECT newer, older FROM successions WHERE older = ?1",
            (row,),
        ).fetchall()
        for newer, older in links:
            self._db.execute(
                "DELETE FROM successions WHERE newer = ? AND older = ?", (newer, older)
            )
            self.relinked.append((newer, older))
            if self.touched is not None:
                self.touched |= {newer, older}

    def update(
        self,
        memory_id: str,
        *,
        text: str | Unset,
        vector: bytes | None,
        metadata: Mapping[str, Any] | Unset,
        expiration_date: date | Unset | None,
    ) -> None:
        """Change a memory.

        Args:
            memory_id: Which.
            text: New text; ``vector`` comes with it.
            vector: Little-endian float32 values of the new text.
            metadata: Replaces the metadata.
            expiration_date: New last day; None for ever.

        Raises:
            MemoryNotFoundError: There is none of that id.
            DuplicateTextError: Another one of its scope says the same.
        """
        db = self._db
        found = db.execute(
            "SELECT rowid, text, user_id, agent_id, run_id FROM memories WHERE id = ?",
            (memory_id,),
        ).fetchone()
        if found is None:
            raise _unknown(memory_id)
        row, old, *ids = found
        now = self._records.clock()
        if not isinstance(expiration_date, Unset):
            expires = None if expiration_date is None else expiration_date.isoformat()
            db.execute("UPDATE memories SET expires = ? WHERE rowid = ?", (expires, row))
        if not isinstance(metadata, Unset):
            db.execute("UPDATE memories SET metadata = ? WHERE rowid = ?", (_json(metadata), row))
        if not isinstance(text, Unset) and text != old:
            digest = text_digest(text)
            other = self.find(_scope(*ids), digest)
            if other is not None and other[0] != memory_id:
                raise DuplicateTextError(
                    f"memory {other[0]} of the same scope says the same already",
                    hint=f"pikuri-memory delete {memory_id}",
                )
            db.execute(
                "UPDATE memories SET digest = NULL WHERE user_id = ? AND agent_id = ?"
                " AND run_id = ? AND digest = ?",
                (*ids, digest),
            )
            db.execute(
                "UPDATE memories SET text = ?, digest = ? WHERE rowid = ?", (text, digest, row)
            )
            db.execute("UPDATE vectors SET vector = ? WHERE rowid = ?", (vector, row))
            self._forget_next(row)
            self._terms.subtract(self._terms_of(old))
            self._terms.update(self._terms_of(text))
            self.rows[row] = False
        new = old if isinstance(text, Unset) else text
        db.execute("UPDATE memories SET updated_at = ? WHERE rowid = ?", (now, row))
        self._unlink(row)
        self._log(memory_id, "UPDATE", old, new, now)
        if self.touched is not None:
            self.touched.add(row)

    def delete(self, memory_id: str) -> None:
        """Forget a memory: its row, its texts in the history, recent messages, stored replies.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        found = self._db.execute(
            "SELECT rowid, id, text, user_id, agent_id, run_id FROM memories WHERE id = ?",
            (memory_id,),
        ).fetchone()
        if found is None:
            raise _unknown(memory_id)
        self._forget([found])

    def delete_scope(self, scope: Scope) -> int:
        """Forget every memory of a scope, and its recent messages. Returns how many."""
        where, parameters = _where(scope.required())
        rows = self._db.execute(
            "SELECT m.rowid, m.id, m.text, m.user_id, m.agent_id, m.run_id FROM memories m"
            f" WHERE {where}",
            parameters,
        ).fetchall()
        self._forget(rows)
        self._db.execute(f"DELETE FROM messages AS m WHERE {where}", parameters)
        return len(rows)

    def _forget(self, rows: Iterable[tuple[Any, ...]]) -> None:
        db = self._db
        now = self._records.clock()
        for row, memory_id, text, *ids in rows:
            db.execute("DELETE FROM memories WHERE rowid = ?", (row,))
            db.execute("DELETE FROM vectors WHERE rowid = ?", (row,))
            self._forget_next(row)
            self._unlink(row)
            db.execute(
                "UPDATE history SET old_text = NULL, new_text = NULL WHERE memory_id = ?",
                (memory_id,),
            )
            self._log(memory_id, "DELETE", None, None, now)
            db.execute(
                "UPDATE idempotency SET digest = NULL WHERE rowid IN"
                " (SELECT key FROM replies WHERE memory_id = ?)",
                (memory_id,),
            )
            db.execute("DELETE FROM replies WHERE memory_id = ?", (memory_id,))
            db.execute(
                "DELETE FROM messages WHERE user_id = ? AND agent_id = ? AND run_id = ?", ids
            )
            self._terms.subtract(self._terms_of(text))
            self.rows[row] = True
            self.removed += 1
        if self.removed:
            self._records.set_meta(db, "purge_due", str(now))

    def add_next(self, items: Iterable[tuple[int, str, bytes]]) -> None:
        """Store vectors of the next embedder: row, text and little-endian float32 values.

        A memory that is gone, or says something else by now, is passed over.
        """
        for row, text, vector in items:
            self.next_added += self._db.execute(
                "INSERT INTO next_vectors SELECT m.rowid, ? FROM memories m"
                " WHERE m.rowid = ? AND m.text = ?"
                " AND NOT EXISTS (SELECT 1 FROM next_vectors n WHERE n.rowid = m.rowid)",
                (vector, row, text),
            ).rowcount

    def remove_next(self, limit: int) -> None:
        """Remove some of the vectors of the next embedder."""
        self.next_removed += self._db.execute(
            "DELETE FROM next_vectors WHERE rowid IN (SELECT rowid FROM next_vectors LIMIT ?)",
            (limit,),
        ).rowcount

    def _forget_next(self, row: int) -> None:
        """A vector of the next embedder, too, is made of the text."""
        self.next_removed += self._db.execute(
            "DELETE FROM next_vectors WHERE rowid = ?", (row,)
        ).rowcount

    def set_meta(self, key: str, value: str | None) -> None:
        """Write or remove a value of the ``meta`` table."""
        self._records.set_meta(self._db, key, value)

    def meta(self, key: str) -> str | None:
        """A value of the ``meta`` table, as it is within the transaction."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, messages: Sequence[Message], scope: Scope) -> None:
        """Keep the most recent messages of a scope, for extraction."""
        db = self._db
        now = self._records.clock()
        db.executemany(
            "INSERT INTO messages (user_id, agent_id, run_id, role, content, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(*_key(scope), m.role, m.content, now) for m in messages[-RECENT_MESSAGES:]],
        )
        db.execute(
            "DELETE FROM messages WHERE user_id = ?1 AND agent_id = ?2 AND run_id = ?3"
            " AND rowid NOT IN (SELECT rowid FROM messages WHERE user_id = ?1 AND agent_id = ?2"
            " AND run_id = ?3 ORDER BY rowid DESC LIMIT ?4)",
            (*_key(scope), RECENT_MESSAGES),
        )

    def spend(self, key: IdempotencyKey, results: Sequence[AddResult]) -> None:
        """Store the reply of a key, ids only, in the same transaction as what it did."""
        db = self._db
        db.execute(
            "DELETE FROM idempotency WHERE method = ? AND path = ? AND scope = ? AND key = ?",
            (key.method, key.path, key.scope, key.key),
        )
        row = db.execute(
            "INSERT INTO idempotency (method, path, scope, key, digest, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key.method, key.path, key.scope, key.key, key.body_digest, self._records.clock()),
        ).lastrowid
        db.executemany(
            "INSERT INTO replies VALUES (?, ?, ?, ?)",
            [(row, i, result.id, result.event) for i, result in enumerate(results)],
        )

    def reset(self) -> None:
        """Forget everything, spent keys and history included."""
        db = self._db
        self.removed = self._records.count
        self.next_removed = self._records.next_count
        self.touched = None
        self.relinked = [None]
        for table in _TABLES:
            db.execute(f"DELETE FROM {table}")
        self._records.set_meta(db, "reembedding", None)
        self._records.set_meta(db, "purge_due", str(self._records.clock()))


def _unknown(memory_id: str) -> MemoryNotFoundError:
    shown = memory_id if len(memory_id) <= 64 and memory_id.isprintable() else "of that id"
    return MemoryNotFoundError(
        f"there is no memory {shown}", hint="see `pikuri-memory list --user NAME` for the ids"
    )


def conflicting_key() -> IdempotencyConflictError:
    """The error for a key that comes again with another body."""
    return IdempotencyConflictError(
        "this Idempotency-Key was used with another body",
        hint="use a new key for a new request",
    )


def _json(metadata: Mapping[str, Any]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _write_cursor(created_at: int, row: int) -> str:
    return base64.urlsafe_b64encode(f"{created_at}:{row}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> list[int]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        created, _, row = base64.urlsafe_b64decode(padded.encode("ascii")).decode().partition(":")
        values = [int(created), int(row)]
        if any(abs(value) >= 2**63 for value in values):
            raise ValueError
        return values
    except (ValueError, binascii.Error):
        raise InvalidRequestError(
            "cursor is not one that this server gave",
            hint="use the value of `next` from the page before, unchanged",
        ) from None
