"""The tables of the record, as migrations that are recorded by name.

A migration is never changed once released; a new one is added at the end. A record that has
recorded a name unknown here was written by a newer version and is refused unchanged.

The tables:

* ``memories``: one row a memory. ``rowid`` is its point id in the index and is never used again
  (AUTOINCREMENT). Absent scope ids are ``''``, because a unique index tells NULLs apart. ``digest``
  identifies the text after NFC and trimming; it is NULL on an expired row whose text came again.
* ``vectors``: apart from ``memories``, so that lists and filters do not read 1.5 KB a row.
* ``history``: texts become NULL when the memory is deleted.
* ``messages``: the recent messages of a scope, for extraction.
* ``idempotency``, ``replies``: spent keys and the ids that were answered. ``digest`` becomes NULL
  when a memory of the reply is deleted: the key stays spent, and nothing tells what was sent.
* ``terms``: document frequency by term id (Qdrant's hash of a stemmed token).
* ``changes``: what the index has yet to learn, in order; ``deleted`` rows are tombstones.
* ``next_vectors``: what a re-embedding has made so far; a memory that changes loses its row. What
  is there while ``meta`` knows of no re-embedding is left over, and is removed.
* ``successions``: which memory supersedes which, by row. A memory that changes loses its links.
* ``meta``: ``indexed_seq``, ``embedder`` (the identity of what made ``vectors``),
  ``embedder_source`` (where it was had), ``reembedding`` (the job), ``terms``, ``purge_due``.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, str], ...]] = (
    (
        "0001-first",
        """
        CREATE TABLE memories (
            rowid INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            user_id TEXT NOT NULL DEFAULT '',
            agent_id TEXT NOT NULL DEFAULT '',
            run_id TEXT NOT NULL DEFAULT '',
            text TEXT NOT NULL,
            digest BLOB,
            metadata TEXT NOT NULL DEFAULT '{}',
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            expires TEXT
        );
        CREATE UNIQUE INDEX memories_once ON memories (user_id, agent_id, run_id, digest);
        CREATE INDEX memories_user ON memories (user_id, created_at, rowid) WHERE user_id != '';
        CREATE INDEX memories_agent ON memories (agent_id, created_at, rowid) WHERE agent_id != '';
        CREATE INDEX memories_run ON memories (run_id, created_at, rowid) WHERE run_id != '';
        CREATE INDEX memories_time ON memories (created_at, rowid);
        CREATE INDEX memories_expiring ON memories (user_id, agent_id, run_id, expires)
            WHERE expires IS NOT NULL;
        CREATE TABLE vectors (rowid INTEGER PRIMARY KEY, vector BLOB NOT NULL);
        CREATE TABLE history (
            rowid INTEGER PRIMARY KEY,
            id TEXT NOT NULL,
            memory_id TEXT NOT NULL,
            event TEXT NOT NULL,
            old_text TEXT,
            new_text TEXT,
            at INTEGER NOT NULL
        );
        CREATE INDEX history_memory ON history (memory_id);
        CREATE TABLE messages (
            rowid INTEGER PRIMARY KEY,
            user_id TEXT NOT NULL,
            agent_id TEXT NOT NULL,
            run_id TEXT NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            at INTEGER NOT NULL
        );
        CREATE INDEX messages_scope ON messages (user_id, agent_id, run_id);
        CREATE TABLE idempotency (
            rowid INTEGER PRIMARY KEY,
            method TEXT NOT NULL,
            path TEXT NOT NULL,
            scope TEXT NOT NULL,
            key TEXT NOT NULL,
            digest BLOB,
            at INTEGER NOT NULL,
            UNIQUE (method, path, scope, key)
        );
        CREATE INDEX idempotency_age ON idempotency (at);
        CREATE TABLE replies (
            key INTEGER NOT NULL REFERENCES idempotency (rowid) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            memory_id TEXT NOT NULL,
            event TEXT NOT NULL,
            PRIMARY KEY (key, position)
        ) WITHOUT ROWID;
        CREATE INDEX replies_memory ON replies (memory_id);
        CREATE TABLE terms (term INTEGER PRIMARY KEY, documents INTEGER NOT NULL);
        CREATE TABLE changes (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            memory INTEGER NOT NULL,
            deleted INTEGER NOT NULL
        );
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        """,
    ),
    (
        "0002-next-vectors",
        """
        CREATE TABLE next_vectors (rowid INTEGER PRIMARY KEY, vector BLOB NOT NULL);
        """,
    ),
    (
        "0003-successions",
        """
        CREATE TABLE successions (
            newer INTEGER NOT NULL,
            older INTEGER NOT NULL,
            PRIMARY KEY (newer, older)
        ) WITHOUT ROWID;
        CREATE INDEX successions_older ON successions (older);
        """,
    ),
)
