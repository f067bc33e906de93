"""The engine: adds, finds, changes and forgets memories. The REST app is a thin face of it.

Reads that take a fraction of a millisecond run where they are called (the event loop): handing
them to a thread costs more than they do. Embedding, exact scoring and writing run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import threading
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory import process
from pikuri_memory.embedded import exact, ranking, rebuild
from pikuri_memory.embedded.generations import Expected, Generations
from pikuri_memory.embedded.index import Candidate, Index, Point, Tokenizer
from pikuri_memory.embedded.model import (
    AddResult,
    Embedder,
    Entity,
    HistoryEntry,
    Hit,
    IdempotencyKey,
    Message,
    NewMemory,
    SearchQuery,
    StoredMemory,
)
from pikuri_memory.embedded.observer import Observer, Unobserved
from pikuri_memory.embedded.records import (
    Change,
    Clock,
    NoVectorError,
    Records,
    conflicting_key,
)
from pikuri_memory.embedded.writer import Writer
from pikuri_memory.errors import (
    DiskFullError,
    EmbedderMismatchError,
    ExtractionUnavailableError,
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    ServerUnavailableError,
    StorageError,
)
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.paths import DataPaths
from pikuri_memory.record import UNSET, Scope, Unset

log = logging.getLogger(__name__)

FLUSH_CHANGES: Final = 1000
"""Changes after which the index is flushed: 25 ms at 100,000 memories."""

FLUSH_SECONDS: Final = 30.0
FEW_ROWS: Final = 1000
"""Up to so many rows a filter's result goes to the index as ids; more are scored exactly."""

QUICK_REBUILD: Final = 20_000
"""Up to so many memories an index is made anew within a second, so also while stopping."""

CACHED_QUESTIONS: Final = 512
EMBED_BATCH: Final = 32

INDEX_ROOM: Final = 16 * 2**20
"""Bytes of free disk below which the index is left alone: it writes into mapped files, and where
the disk is full, that kills the process. Searches are scored exactly until there is room again."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a question's text is turned into, kept for when it is asked again."""

    vector: NDArray[np.float32]
    values: list[float]
    terms: list[int]


@dataclass(frozen=True)
class Pace:
    """When the background work is done; other than usual only in tests.

    Attributes:
        flush_changes: Changes after which the index is flushed.
        flush_seconds: Seconds after which it is flushed, and a purge that is due is made.
        retry_seconds: Seconds until a rebuild that failed is tried again.
    """

    flush_changes: int = FLUSH_CHANGES
    flush_seconds: float = FLUSH_SECONDS
    retry_seconds: float = 30.0


class Engine:
    """One open data directory. The caller holds its owner lock.

    Args:
        paths: The data directory.
        embedder: Makes vectors; its identity must be the one of the record.
        language: Of stop words and stemming.
        free_space_reserve: Bytes of free disk below which writes are refused.
        purge_seconds: Age at which erased text is purged from the disk.
        observer: Told of every phase.
        pace: When the background work is done.
        clock: Microseconds since the epoch.

    Raises:
        StorageError: Record or directory cannot be used; see its subclasses.
    """

    def __init__(
        self,
        paths: DataPaths,
        embedder: Embedder,
        *,
        language: str = "english",
        free_space_reserve: int = 0,
        purge_seconds: float = 86_400.0,
        observer: Observer | None = None,
        pace: Pace | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._paths = paths
        self._embedder = embedder
        self._language = language
        self._reserve = free_space_reserve
        self._purge_seconds = purge_seconds
        self._observer = observer or Unobserved()
        self._pace = pace or Pace()
        self._observer.enter("start")
        self._tokenizer = Tokenizer(language)
        self._records = Records(paths.record, terms_of=self._tokenizer.ids, clock=clock or Clock())
        self._running: dict[tuple[str, str, str, str], tuple[bytes, asyncio.Task[Any]]] = {}
        self._questions: OrderedDict[str, Question] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="engine")
        self._stopping = threading.Event()
        self._rebuild_wanted = threading.Event()
        self._rebuilding = False
        self._unflushed = 0
        self._rebuild_lock = threading.Lock()
        self._index: Index | None = None
        try:
            self._settle_identity()
            self._generations = Generations(paths.index)
            self._index = self._generations.open(self._expected())
        except BaseException:
            self._records.close()
            raise
        self._writer = Writer(self._records, self._apply, self._observer.enter)
        if self._index is None:
            self._first_index()
        self._keeper = threading.Thread(target=self._tend, name="index-keeper", daemon=True)
        self._keeper.start()
        self._observer.enter("idle")

    # -- identity of vectors and terms -----------------------------------------------------------

    @property
    def _fingerprint(self) -> str:
        return f"{self._embedder.identity.to_json()} {self._tokenizer.fingerprint}"

    def _settle_identity(self) -> None:
        """The embedder of the first start is the embedder of every start."""
        mine = self._embedder.identity
        stored = self._records.meta("embedder")
        if stored is None:
            with self._records.transaction() as db:
                self._records.set_meta(db, "embedder", mine.to_json())
        elif stored != mine.to_json():
            theirs = EmbedderIdentity.from_json(stored)
            if self._records.count:
                raise EmbedderMismatchError(
                    f"{self._paths.record} was embedded by {theirs.model}"
                    f" ({theirs.dimensions} dimensions, {theirs.fingerprint}), and this server"
                    f" embeds by {mine.model} ({mine.dimensions} dimensions, {mine.fingerprint})",
                    hint="re-embed: start the version that wrote it, `pikuri-memory export`, and"
                    " `pikuri-memory import` into an empty data directory",
                )
            with self._records.transaction() as db:
                self._records.set_meta(db, "embedder", mine.to_json())
        if self._records.meta("terms") != self._tokenizer.fingerprint:
            self._records.recount_terms(self._tokenizer.ids)
            with self._records.transaction() as db:
                self._records.set_meta(db, "terms", self._tokenizer.fingerprint)

    def _expected(self) -> Expected:
        return Expected(self._fingerprint, self._records.count, self._records.last_seq())

    # -- the index in the background -------------------------------------------------------------

    def _first_index(self) -> None:
        """Where there is nothing to find an empty index is made at once, else in the background."""
        if self._records.count == 0:
            self._install_empty()
        else:
            self._rebuild_wanted.set()

    def _install_empty(self) -> None:
        """An index without points; where that fails, one is made in the background."""
        if not self._has_room():
            self._do_without("the disk is nearly full")
            return
        try:
            directory = self._generations.next_directory()
            fresh = Index.create(directory, self._embedder.dimensions)
            self._put_in_place(fresh, directory)
        except Exception as error:
            self._drop_index(error)

    def _put_in_place(self, fresh: Index, directory: Path) -> None:
        """Switch to another index, durably, and remove the one before."""
        fresh.flush()
        self._generations.switch(directory, self._fingerprint)
        old, self._index = self._index, fresh
        self._unflushed = 0
        # The new one counts from here on, whatever happens to the old one.
        if old is not None:
            try:
                old.close()
            except Exception as error:
                log.warning("the index before could not be closed (%s)", _reason(error))
        self._generations.remove_others(directory)

    def _has_room(self) -> bool:
        return shutil.disk_usage(self._paths.root).free >= INDEX_ROOM

    def _apply(self, changed: Mapping[int, bool]) -> None:
        """Bring committed changes into the index. Never raises: the record has them already."""
        index = self._index
        if index is None:
            return
        self._observer.enter("index")
        try:
            if not self._has_room():
                self._do_without("the disk is nearly full")
                return
            self._apply_to(index, changed)
        except Exception as error:
            self._drop_index(error)
            return
        self._unflushed += len(changed)
        if self._unflushed >= self._pace.flush_changes:
            try:
                self._flush()
            except Exception as error:  # of the record: the next flush tries again
                log.warning("the change log could not be cut (%s)", _reason(error))

    def _apply_to(self, index: Index, changed: Mapping[int, bool]) -> None:
        gone = [row for row, deleted in changed.items() if deleted]
        rows = self._records.index_rows([row for row, deleted in changed.items() if not deleted])
        if gone:
            index.delete(gone)
        if rows:
            index.upsert(
                [
                    Point(row.row, row.vector, self._tokenizer.document(row.text), row.scope)
                    for row in rows
                ]
            )

    def _drop_index(self, error: Exception) -> None:
        self._do_without(f"the index failed: {type(error).__name__}")

    def _do_without(self, why: str) -> None:
        """Do without the index until a new one is made; searches are scored exactly meanwhile."""
        log.error("%s; the index is made anew", why)
        self._index = None
        self._rebuild_wanted.set()

    def _flush(self) -> None:
        """In the writer's thread: the index holds everything up to here, durably."""
        index = self._index
        if index is None or not self._unflushed:
            return
        self._observer.enter("flush")
        seq = self._records.last_seq()
        try:
            index.flush()
        except Exception as error:
            self._drop_index(error)
            return
        self._unflushed = 0
        if not self._rebuilding:  # a rebuild still needs the log from where it began
            self._records.forget_changes(seq)

    def _tend(self) -> None:
        """The background thread: flushes, rebuilds, purges."""
        while not self._stopping.is_set():
            wanted = self._rebuild_wanted.wait(self._pace.flush_seconds)
            if self._stopping.is_set():
                return
            try:
                if wanted:
                    self._rebuild_wanted.clear()
                    if self._index is None:
                        self._rebuild()
                else:
                    if self._purge_is_due():
                        self._writer.run(self._purge_record).result()
                        self._rebuild()
                    self._writer.run(self._flush).result()
            except Exception as error:
                if self._stopping.is_set():
                    return
                log.error("making the index failed (%s); trying again", _reason(error))
                self._stopping.wait(self._pace.retry_seconds)
                self._rebuild_wanted.set()

    def _rebuild(self) -> None:
        """Make a new index in a child process while the old one answers, then switch."""
        with self._rebuild_lock:
            if not self._has_room():
                raise DiskFullError(
                    f"less than {INDEX_ROOM // 2**20} MiB are free on the disk of"
                    f" {self._paths.root}, too little to make the index anew",
                    hint=f"free some space: df -h {self._paths.root}",
                )
            # The change log must be whole from before the child reads until the switch.
            self._rebuilding = True
            self._observer.enter("rebuild")
            directory = self._generations.next_directory()
            output = directory.with_suffix(".log")
            try:
                seq = self._build(directory, output)
                self._writer.run(partial(self._switch, directory, seq)).result()
            except BaseException:
                if not self._generations.is_current(directory):
                    shutil.rmtree(directory, ignore_errors=True)
                raise
            finally:
                output.unlink(missing_ok=True)
                self._rebuilding = False
                self._observer.enter("idle")

    def _rebuild_surely(self) -> None:
        """As :meth:`_rebuild`; a reset meanwhile makes one fail that it overtakes."""
        for attempt in range(3):
            try:
                self._rebuild()
                return
            except DiskFullError:
                raise
            except StorageError:
                if attempt == 2:
                    raise

    def _build(self, directory: Path, output: Path) -> int:
        """Run the child; returns the sequence number up to which its index is complete."""
        child = process.spawn_child(
            [
                sys.executable,
                "-m",
                "pikuri_memory.embedded.rebuild",
                str(self._paths.record),
                str(directory),
                self._language,
                str(self._embedder.dimensions),
                str(os.getpid()),
            ],
            output=output,
        )
        while child.poll() is None:
            if self._stopping.wait(0.02):
                child.terminate(0.0)
                raise ServerUnavailableError("the server is stopping", hint="start it again")
        printed = output.read_text().strip()
        if child.poll() != 0 or not printed.isdigit():
            # The type of the exception; what follows the colon might quote something.
            last = printed.rpartition("\n")[2].partition(":")[0]
            log.error("making the index ended with code %s: %.80s", child.poll(), last)
            raise StorageError(
                f"the process that makes the index ended with code {child.poll()}",
                hint=f"see {self._paths.server_log}; the free space: df -h {self._paths.root}",
            )
        return int(printed)

    def _switch(self, directory: Path, seq: int) -> None:
        """In the writer's thread: bring the new index up to date and put it in place."""
        self._observer.enter("switch")
        done = self._records.last_seq()
        fresh = Index.load(directory)
        latest: dict[int, bool] = {}
        for _, row, deleted in self._records.changes_after(seq):
            latest[row] = deleted
        self._apply_to(fresh, latest)
        found = fresh.count()
        if found != self._records.count:
            fresh.close()
            raise StorageError(f"a new index has {found} points for {self._records.count} memories")
        self._put_in_place(fresh, directory)
        self._records.forget_changes(done)

    # -- purge -------------------------------------------------------------------------------------

    def _purge_is_due(self) -> bool:
        due = self._records.meta("purge_due")
        return due is not None and (
            self._records.clock() - int(due) >= self._purge_seconds * 1_000_000
        )

    def _purge_record(self) -> None:
        """In the writer's thread."""
        self._records.vacuum()
        with self._records.transaction() as db:
            self._records.set_meta(db, "purge_due", None)

    async def purge(self) -> None:
        """Remove erased text from the disk: the record is written anew, then the index.

        Raises:
            StorageError: It could not be done now; nothing was lost.
        """
        self._check_space()
        await asyncio.wrap_future(self._writer.run(self._purge_record))
        if self._index is not None or self._rebuilding:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._rebuild_surely)

    def _purge_index(self) -> None:
        """At the end: make the index anew where that is quick, else leave it to the next start."""
        if self._index is not None:
            self._index.close()
            self._index = None
        self._generations.abandon()
        if self._records.count <= QUICK_REBUILD:
            directory = self._generations.next_directory()
            rebuild.build(self._paths.record, directory, self._language, self._embedder.dimensions)
            self._put_in_place(Index.load(directory), directory)

    # -- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish what was accepted, purge where something was erased, flush; idempotent."""
        if self._stopping.is_set():
            return
        self._observer.enter("stop")
        self._stopping.set()
        self._rebuild_wanted.set()
        self._keeper.join()
        self._writer.close()
        self._threads.shutdown()
        try:
            room = self._has_room()
            if self._records.meta("purge_due") is not None:
                self._purge_record()
                if room:
                    self._purge_index()
            if self._index is not None and room:
                seq = self._records.last_seq()
                self._records.forget_changes(seq)
                self._generations.close(self._index, self._expected())
        except Exception as error:
            # Whatever is missing now is made anew at the next start.
            log.error("closing the index failed (%s)", _reason(error))
        finally:
            self._records.close()

    def status(self) -> dict[str, Any]:
        """What a person wants to know; no names and no texts."""
        free = shutil.disk_usage(self._paths.root).free
        state = "ready" if self._index is not None else "absent"
        identity = self._embedder.identity
        return {
            "memories": self._records.count,
            "embedder": {
                "model": identity.model,
                "dimensions": identity.dimensions,
                "fingerprint": identity.fingerprint,
            },
            "extraction": None,
            "language": self._language,
            "index": {"state": "rebuilding" if self._rebuilding else state},
            "disk": {"free_bytes": free, "reserve_bytes": self._reserve},
            "read_only": free < self._reserve,
            "purge_pending": self._records.meta("purge_due") is not None,
        }

    # -- writing -----------------------------------------------------------------------------------

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._paths.root).free
        if free < self._reserve:
            raise DiskFullError(
                f"{free // 2**20} MiB are free on the disk of {self._paths.root}, less than the"
                f" reserve of {self._reserve // 2**20} MiB; nothing was stored, reads go on",
                hint=f"free some space: df -h {self._paths.root}",
            )

    async def add(
        self,
        messages: Sequence[Message],
        scope: Scope,
        *,
        metadata: Mapping[str, Any],
        infer: bool | None,
        prompt: str | None,
        expiration_date: date | None,
        idempotency: IdempotencyKey | None,
    ) -> list[AddResult]:
        """Keep each user turn of some messages, verbatim.

        Args:
            messages: A turn.
            scope: Whose memory it becomes.
            metadata: Stored with each memory.
            infer: True asks for extraction by an LLM, which needs a router.
            prompt: Instructions for the extraction.
            expiration_date: Last day (UTC) on which the memories are found.
            idempotency: Key of the request; the same key gets the same reply.

        Raises:
            ExtractionUnavailableError: ``infer`` is true.
            InvalidRequestError: There is no user turn with text.
            DiskFullError: Free space is below the reserve.
        """
        scope.required()
        if infer:
            raise ExtractionUnavailableError(
                "infer is true, and this server has no model to extract facts with",
                hint='leave "infer" out (each user turn is then kept as it is)',
            )
        items = [
            NewMemory(m.content, scope, metadata=metadata, expiration_date=expiration_date)
            for m in messages
            if m.role == "user" and m.content.strip()
        ]
        if not items:
            raise InvalidRequestError(
                "there is no message of role user with text in it, so there is nothing to keep",
                hint='send {"role": "user", "content": "..."}',
            )
        return await self._once(idempotency, lambda: self._store(items, idempotency, messages))

    async def add_batch(
        self, items: Sequence[NewMemory], *, idempotency: IdempotencyKey | None
    ) -> list[AddResult]:
        """Store memories as they are, all or none, in one transaction.

        Raises:
            DiskFullError: Free space is below the reserve.
        """
        for item in items:
            item.scope.required()
        return await self._once(idempotency, lambda: self._store(items, idempotency, ()))

    async def _once(
        self,
        key: IdempotencyKey | None,
        work: Callable[[], Awaitable[list[AddResult]]],
    ) -> list[AddResult]:
        """Do the work, or answer as the same key was answered; a running one is joined."""
        if key is None:
            return await work()
        name = (key.method, key.path, key.scope, key.key)
        running = self._running.get(name)
        if running is not None:
            digest, task = running
            if digest != key.body_digest:
                raise conflicting_key()
            return list(await asyncio.shield(task))
        known = self._records.reply_of(key)
        if known is not None:
            return known
        # A task of its own: a caller that goes away must not take those with it that joined.
        task = asyncio.ensure_future(work())
        self._running[name] = (key.body_digest, task)
        task.add_done_callback(lambda done: self._ended(name, done))
        return list(await asyncio.shield(task))

    def _ended(self, name: tuple[str, str, str, str], task: asyncio.Task[Any]) -> None:
        self._running.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen, even where nobody waits any more

    async def _store(
        self,
        items: Sequence[NewMemory],
        key: IdempotencyKey | None,
        messages: Sequence[Message],
    ) -> list[AddResult]:
        self._check_space()
        # What is known already needs no vector; an import that is repeated is all of that.
        new = [i for i, item in enumerate(items) if not self._records.knows(item)]
        vectors = await self._vectors_of(items, new)

        def work(change: Change) -> list[AddResult]:
            results = [change.add(item, vectors.get(i)) for i, item in enumerate(items)]
            if messages:
                change.remember(messages, items[0].scope)
            if key is not None:
                change.spend(key, results)
            return results

        try:
            results = await asyncio.wrap_future(self._writer.submit(work))
        except NoVectorError:  # deleted, or expired, since we looked
            vectors = await self._vectors_of(items, range(len(items)))
            results = await asyncio.wrap_future(self._writer.submit(work))
        self._read_back([result.id for result in results])
        return results

    async def _vectors_of(
        self, items: Sequence[NewMemory], wanted: Sequence[int]
    ) -> dict[int, bytes]:
        if not wanted:
            return {}
        vectors = await self._embed_all([items[i].text for i in wanted])
        return {
            i: vector.astype("<f4", copy=False).tobytes()
            for i, vector in zip(wanted, vectors, strict=True)
        }

    def _read_back(self, ids: Sequence[str]) -> None:
        """Nothing is reported that another connection cannot read."""
        missing = set(ids) - self._records.existing(ids)
        # One that somebody deleted between the commit and here is not missing.
        lost = [id_ for id_ in missing if not self._was_deleted(id_)]
        if lost:
            raise StorageError(
                f"{len(lost)} of {len(ids)} memories were not found after they had been stored",
                hint="check the disk, then send the request again",
            )

    def _was_deleted(self, memory_id: str) -> bool:
        try:
            return self._records.history(memory_id)[-1].event == "DELETE"
        except MemoryNotFoundError:
            return False

    async def update(
        self,
        memory_id: str,
        *,
        text: str | Unset = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        expiration_date: date | Unset | None = UNSET,
    ) -> StoredMemory:
        """Change a memory; what is not given stays.

        Raises:
            MemoryNotFoundError: There is none of that id.
            DuplicateTextError: Another one of its scope says the same.
            InvalidRequestError: The text is blank, or nothing is given.
            DiskFullError: Free space is below the reserve.
        """
        memory_id = _uuid(memory_id)
        if (
            isinstance(text, Unset)
            and isinstance(metadata, Unset)
            and isinstance(expiration_date, Unset)
        ):
            raise InvalidRequestError(
                "nothing to change", hint='send "text", "metadata" or "expiration_date"'
            )
        if not isinstance(text, Unset) and not text.strip():
            raise InvalidRequestError(
                "the new text is blank", hint=f"pikuri-memory delete {memory_id}"
            )
        self._check_space()
        self._records.get(memory_id)
        vector: bytes | None = None
        if not isinstance(text, Unset):
            vector = (await self._embed_all([text]))[0].astype("<f4", copy=False).tobytes()
        await asyncio.wrap_future(
            self._writer.submit(
                lambda change: change.update(
                    memory_id,
                    text=text,
                    vector=vector,
                    metadata=metadata,
                    expiration_date=expiration_date,
                )
            )
        )
        return self._records.get(memory_id)

    async def delete(self, memory_id: str) -> None:
        """Forget a memory.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        memory_id = _uuid(memory_id)
        await asyncio.wrap_future(self._writer.submit(lambda change: change.delete(memory_id)))

    async def delete_scope(self, scope: Scope) -> int:
        """Forget every memory of a scope. Returns how many."""
        scope.required()
        return await asyncio.wrap_future(
            self._writer.submit(lambda change: change.delete_scope(scope))
        )

    async def reset(self) -> None:
        """Forget everything, and purge it from the disk."""
        await asyncio.wrap_future(self._writer.submit(lambda change: change.reset()))
        await asyncio.wrap_future(self._writer.run(self._start_afresh))

    def _start_afresh(self) -> None:
        """In the writer's thread, after a reset."""
        self._questions.clear()
        self._install_empty()
        # Whatever was added since the reset was committed is in the old index only.
        for batch in self._records.all_index_rows():
            self._apply({row.row: False for row in batch})
        self._purge_record()

    # -- reading -----------------------------------------------------------------------------------

    def get(self, memory_id: str) -> StoredMemory:
        """One memory.

        Raises:
            MemoryNotFoundError: There is none of that id.
        """
        return self._records.get(_uuid(memory_id))

    def history(self, memory_id: str) -> list[HistoryEntry]:
        """All changes of a memory, oldest first, of a deleted one too.

        Raises:
            MemoryNotFoundError: There never was one of that id.
        """
        return self._records.history(_uuid(memory_id))

    def page(
        self, scope: Scope, *, limit: int, cursor: str | None = None, show_expired: bool = False
    ) -> tuple[list[StoredMemory], str | None]:
        """Memories, newest first, and the cursor of the next page (None at the end).

        Args:
            scope: Ids that must be equal; an empty scope means everything.
            limit: Most memories.
            cursor: As an earlier page gave it.
            show_expired: Whether expired ones are listed.

        Raises:
            InvalidRequestError: The cursor is none of ours.
        """
        return self._records.page(scope, limit=limit, cursor=cursor, show_expired=show_expired)

    def entities(self) -> list[Entity]:
        """Every user, agent and run that has memories."""
        return self._records.entities()

    # -- searching ---------------------------------------------------------------------------------

    async def search(self, query: SearchQuery) -> list[Hit]:
        """The memories that answer a question best, best first.

        Raises:
            ScopeRequiredError: The scope is empty.
            InvalidRequestError: The question is blank.
        """
        query.scope.required()
        if not query.text.strip():
            raise InvalidRequestError("the query is blank", hint="ask something")
        question = self._questions.get(query.text)
        if question is None:
            vector = (await self._embed_all([query.text], self._embedder.embed_queries))[0]
            question = Question(vector, vector.tolist(), self._tokenizer.ids(query.text))
            self._questions[query.text] = question
            if len(self._questions) > CACHED_QUESTIONS:
                self._questions.popitem(last=False)
        else:
            self._questions.move_to_end(query.text)
        if query.condition is None and self._index is not None:
            return self._find(query, question)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._find, query, question
        )

    def _find(self, query: SearchQuery, question: Question) -> list[Hit]:
        terms = question.terms
        frequencies = self._records.document_frequencies(terms) if terms else {}
        weights = ranking.query_weights(terms, frequencies, self._records.count)
        candidates = self._candidates(query, question, weights)
        level = ranking.background(candidates)
        best = ranking.shortlist(candidates, query.top_k, ranking.word_share(level))
        memories = self._records.by_rows([candidate.row for _, candidate in best])
        hits: list[tuple[float, int, Candidate, StoredMemory]] = []
        user, agent, run = query.scope.user_id, query.scope.agent_id, query.scope.run_id
        for score, candidate in best:
            memory = memories.get(candidate.row)
            # Gone since, or (were the index wrong) another's: not shown.
            if memory is None or score < query.threshold:
                continue
            scope = memory.scope
            if user is not None and scope.user_id != user:
                continue
            if agent is not None and scope.agent_id != agent:
                continue
            if run is not None and scope.run_id != run:
                continue
            hits.append((score, memory.created_at, candidate, memory))
        hits.sort(key=lambda hit: (-hit[0], -hit[1]))
        return [
            Hit(
                memory,
                score,
                self._explain(query, candidate, level, memory, terms, weights)
                if query.explain
                else None,
            )
            for score, _, candidate, memory in hits[: query.top_k]
        ]

    def _candidates(
        self,
        query: SearchQuery,
        question: Question,
        weights: Sequence[float],
    ) -> list[Candidate]:
        limit = max(ranking.CANDIDATES, 2 * query.top_k)
        index = self._index
        rows: list[int] | None = None
        never: list[int] = []
        if query.condition is not None or index is None:
            rows = self._records.matching_rows(query.scope, query.condition, query.show_expired)
            if not rows:
                return []
        elif not query.show_expired and self._records.has_expiring():
            never = self._records.expired_rows(query.scope)
        if index is not None and (rows is None or len(rows) <= FEW_ROWS):
            try:
                return index.search(
                    question.values,
                    question.terms,
                    weights,
                    query.scope,
                    limit=limit,
                    only=rows,
                    never=never,
                )
            except Exception as error:
                if index is self._index:
                    self._drop_index(error)
                rows = self._records.matching_rows(query.scope, query.condition, query.show_expired)
        assert rows is not None
        return exact.candidates(
            rows,
            self._records.index_rows,
            question.vector,
            question.terms,
            weights,
            self._tokenizer.document,
            limit=limit,
        )

    def _explain(
        self,
        query: SearchQuery,
        candidate: Candidate,
        level: float,
        memory: StoredMemory,
        terms: Sequence[int],
        weights: Sequence[float],
    ) -> dict[str, Any]:
        """The parts of a score. Terms are shown as the words of the question they come from.

        The score is the sum of cosine (0 where it is below) and coverage, each times its weight.
        """
        share = ranking.word_share(level)
        document = self._tokenizer.document(memory.text)
        held = dict(zip(document.ids, document.weights, strict=True))
        words: dict[int, str] = {}
        for word in query.text.split():
            for term in self._tokenizer.ids(word):
                words.setdefault(term, word)
        return {
            "cosine": round(candidate.cosine, 6),
            "coverage": round(min(candidate.coverage, 1.0), 6),
            "background": round(level, 6),
            "weights": {"cosine": round(1.0 - share, 6), "coverage": round(share, 6)},
            "unrounded_score": round(ranking.score(candidate.cosine, candidate.coverage, share), 6),
            "terms": [
                {
                    "term": words.get(term, f"#{term}"),
                    "weight": round(weight, 6),
                    "part": round(weight * held.get(term, 0.0), 6),
                }
                for term, weight in zip(terms, weights, strict=True)
            ],
        }

    # -- embedding ---------------------------------------------------------------------------------

    async def _embed_all(
        self,
        texts: Sequence[str],
        embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        embed = embed or self._embedder.embed
        if self._embedder.immediate:
            return embed(texts)
        loop = asyncio.get_running_loop()
        parts = await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, embed, texts[start : start + EMBED_BATCH])
                for start in range(0, len(texts), EMBED_BATCH)
            )
        )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _uuid(memory_id: str) -> str:
    """The id in its usual form.

    Raises:
        MemoryNotFoundError: It is no UUID, so there is no such memory.
    """
    try:
        return str(uuid.UUID(memory_id))
    except ValueError:
        raise MemoryNotFoundError(
            "that is no id of a memory: ids are UUIDs",
            hint="see `pikuri-memory list --user NAME` for the ids",
        ) from None


def _reason(error: Exception) -> str:
    """What may stand in a log: our own messages hold no data, others' may."""
    return str(error) if isinstance(error, PikuriMemoryError) else type(error).__name__
