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
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory import process
from pikuri_memory.embedded import rebuild
from pikuri_memory.embedded.generations import Expected, Generations
from pikuri_memory.embedded.index import Index, Point, Tokenizer
from pikuri_memory.embedded.model import (
    AddResult,
    Embedder,
    Entity,
    Extractor,
    Fact,
    HistoryEntry,
    Hits,
    IdempotencyKey,
    Message,
    NewMemory,
    SearchQuery,
    StoredMemory,
    Turn,
)
from pikuri_memory.embedded.observer import Observer, Unobserved
from pikuri_memory.embedded.records import (
    Change,
    Clock,
    NoVectorError,
    Records,
    VectorTable,
    conflicting_key,
)
from pikuri_memory.embedded.reembedding import (
    EMBEDDER_SOURCE,
    Embedders,
    Hooks,
    Reembedding,
    Source,
    Successor,
    Target,
)
from pikuri_memory.embedded.searching import Question, Searching, SpaceChangedError
from pikuri_memory.embedded.successors import LOOKED_AT, Recogniser
from pikuri_memory.embedded.turns import Limits, Turns
from pikuri_memory.embedded.vectors import Vectors, by_words
from pikuri_memory.embedded.writer import Writer
from pikuri_memory.errors import (
    DiskFullError,
    EmbedderMismatchError,
    EmbeddingError,
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
QUICK_REBUILD: Final = 20_000
"""Up to so many memories an index is made anew within a second, so also while stopping."""

SWITCH_SECONDS: Final = 0.005
SWITCH_TRIES: Final = 1000
"""Times that a question is asked anew, and the pause between, while the embedder is changed: that
takes a commit and an assignment."""

CACHED_QUESTIONS: Final = 512

ADD_MARGIN: Final = 30.0
"""Seconds beyond all deadlines of ours that a client should wait for an add."""

INDEX_ROOM: Final = 16 * 2**20
"""Bytes of free disk below which the index is left alone: it writes into mapped files, and where
the disk is full, that kills the process. Searches are scored exactly until there is room again."""


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
        extractor: Makes facts of turns; None keeps each turn of the user's as it is.
        limits: How many turns it works on at once, how many wait, and for how long.
        about: What is known of the user's models, for :meth:`status`: ``router``, ``llm_model``,
            ``warming``, ``findings``, ``embedder_router`` and ``embed_seconds`` (that the
            embedder may take; None where it is our own).
        source: Where the embedder is had, to be kept in the record beside what it makes.
        language: Of stop words and stemming.
        free_space_reserve: Bytes of free disk below which writes are refused.
        purge_seconds: Age at which erased text is purged from the disk.
        embedders: Makes other embedders, for a re-embedding; None makes none.
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
        extractor: Extractor | None = None,
        limits: Limits | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
        source: Source | None = None,
        language: str = "english",
        free_space_reserve: int = 0,
        purge_seconds: float = 86_400.0,
        embedders: Embedders | None = None,
        observer: Observer | None = None,
        pace: Pace | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._paths = paths
        # A caller that gives the same to its extractor has both exchanged at once.
        self._vectors = embedder if isinstance(embedder, Vectors) else Vectors(embedder)
        self._turns = None if extractor is None else Turns(extractor, limits or Limits())
        self._about = about
        self._limits = limits or Limits()
        self._language = language
        self._reserve = free_space_reserve
        self._purge_seconds = purge_seconds
        self._observer = observer or Unobserved()
        self._pace = pace or Pace()
        self._observer.enter("start")
        self._tokenizer = Tokenizer(language)
        self._records = Records(paths.record, terms_of=self._tokenizer.ids, clock=clock or Clock())
        self._running: dict[tuple[str, str, str, str], tuple[bytes, asyncio.Task[Any]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._questions: OrderedDict[str, Question] = OrderedDict()
        self._recogniser = Recogniser()
        self._searching = Searching(
            self._records, self._tokenizer, lambda: self._index, self._index_failed
        )
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="engine")
        self._stopping = threading.Event()
        self._rebuild_wanted = threading.Event()
        self._rebuilding = False
        self._unflushed = 0
        self._rebuild_lock = threading.Lock()
        self._index: Index | None = None
        # The identity of the embedder in use. Whoever makes vectors reads it before, and shows it
        # when they are used; a re-embedding changes it last, after index and embedder.
        self._space = embedder.identity.to_json()
        try:
            self._settle_identity()
            self._keep_source(source)
            self._generations = Generations(paths.index)
            self._index = self._generations.open(self._expected())
            if self._index is not None:
                self._index.space = self._space
        except BaseException:
            self._records.close()
            raise
        self._writer = Writer(self._records, self._apply, self._observer.enter)
        self.reembedding = Reembedding(
            self._records,
            self._writer,
            embedders,
            Hooks(self._check_space, self._adopt, self._observer.enter),
            self._stopping,
            retry_seconds=self._pace.retry_seconds,
        )
        if self._index is None:
            self._first_index()
        self._keeper = threading.Thread(target=self._tend, name="index-keeper", daemon=True)
        self._keeper.start()
        self.reembedding.resume()
        self._observer.enter("idle")

    # -- identity of vectors and terms -----------------------------------------------------------

    @property
    def _embedder(self) -> Embedder:
        return self._vectors.embedder

    @_embedder.setter
    def _embedder(self, embedder: Embedder) -> None:
        self._vectors.use(embedder)

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
                    hint=f"pikuri-memory reembed --embedder-model {mine.model}",
                )
            with self._records.transaction() as db:
                self._records.set_meta(db, "embedder", mine.to_json())
        if self._records.meta("terms") != self._tokenizer.fingerprint:
            self._records.recount_terms(self._tokenizer.ids)
            with self._records.transaction() as db:
                self._records.set_meta(db, "terms", self._tokenizer.fingerprint)

    def _keep_source(self, source: Source | None) -> None:
        told = None if source is None else source.to_json()
        if told is not None and told != self._records.meta(EMBEDDER_SOURCE):
            with self._records.transaction() as db:
                self._records.set_meta(db, EMBEDDER_SOURCE, told)

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
        fresh.space = self._space
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

    def _apply_to(
        self, index: Index, changed: Mapping[int, bool], vectors: VectorTable = "vectors"
    ) -> None:
        gone = [row for row, deleted in changed.items() if deleted]
        kept = [row for row, deleted in changed.items() if not deleted]
        rows = self._records.index_rows(kept, vectors)
        if gone:
            index.delete(gone)
        if rows:
            index.upsert(
                [
                    Point(row.row, row.vector, self._tokenizer.document(row.text), row.scope)
                    for row in rows
                ]
            )

    def _index_failed(self, index: Index, error: Exception) -> None:
        if index is self._index:  # else it was closed because another one took its place
            self._drop_index(error)

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

    @contextmanager
    def _place_for_index(self) -> Iterator[Path]:
        """A directory for a new index, which is gone again unless it was put in place.

        Raises:
            DiskFullError: There is too little room for one.
        """
        with self._rebuild_lock:
            if not self._has_room():
                raise DiskFullError(
                    f"less than {INDEX_ROOM // 2**20} MiB are free on the disk of"
                    f" {self._paths.root}, too little to make an index",
                    hint=f"free some space: df -h {self._paths.root}",
                )
            # The change log must be whole from before the child reads until the switch.
            self._rebuilding = True
            self._observer.enter("rebuild")
            directory = self._generations.next_directory()
            try:
                yield directory
            finally:
                if not self._generations.is_current(directory):
                    shutil.rmtree(directory, ignore_errors=True)
                self._rebuilding = False
                self._observer.enter("idle")

    def _rebuild(self) -> None:
        """Make a new index in a child process while the old one answers, then switch."""
        with self._place_for_index() as directory:
            seq = self._build(directory, self._embedder.dimensions, "vectors")
            self._writer.run(partial(self._switch, directory, seq)).result()

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

    def _build(self, directory: Path, dimensions: int, vectors: VectorTable) -> int:
        """Run the child; returns the sequence number up to which its index is complete."""
        output = directory.with_suffix(".log")
        try:
            return self._build_telling(output, directory, dimensions, vectors)
        finally:
            output.unlink(missing_ok=True)

    def _build_telling(
        self, output: Path, directory: Path, dimensions: int, vectors: VectorTable
    ) -> int:
        child = process.spawn_child(
            [
                sys.executable,
                "-m",
                "pikuri_memory.embedded.rebuild",
                str(self._paths.record),
                str(directory),
                self._language,
                str(dimensions),
                vectors,
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

    # -- another embedder --------------------------------------------------------------------------

    def _adopt(self, successor: Successor) -> None:
        """In the thread of the re-embedding, which has a vector for every memory: make an index of
        them in a child process while the old one answers, then switch record, index and embedder.
        """
        with self._place_for_index() as directory:
            successor.is_being_built()
            seq = self._build(directory, successor.embedder.dimensions, "next_vectors")
            switch = partial(self._switch_embedder, directory, seq, successor)
            while not self._writer.run(switch).result():
                successor.catch_up()

    def _switch_embedder(self, directory: Path, seq: int, successor: Successor) -> bool:
        """In the writer's thread; False where some memory lacks its next vector."""
        self._observer.enter("switch")
        if not successor.is_complete():
            return False
        done = self._records.last_seq()
        fresh = Index.load(directory)
        try:
            latest = dict.fromkeys(successor.late, False)
            latest |= {row: deleted for _, row, deleted in self._records.changes_after(seq)}
            self._apply_to(fresh, latest, "next_vectors")
            found = fresh.count()
            if found != self._records.count:
                raise StorageError(
                    f"a new index has {found} points for {self._records.count} memories"
                )
            fresh.flush()
            fresh.space = successor.embedder.identity.to_json()
            self._observer.enter("swap")
            with self._records.transaction() as db:
                self._records.swap_vectors(db)
                successor.settle(db)
        except BaseException:
            fresh.close()
            raise
        # The order matters: see where `_space` is made.
        old, self._index = self._index, fresh
        self._embedder = successor.embedder
        self._space = fresh.space
        self._unflushed = 0
        self._rebuilding = False
        try:
            self._generations.switch(directory, self._fingerprint)
            if old is not None:
                old.close()
            self._generations.remove_others(directory)
            self._records.forget_changes(done)
        except Exception as error:  # the record has been switched: only the index is made anew
            self._drop_index(error)
        return True

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

    def abandon(self) -> None:
        """Fail whatever waits for the user's models, and take no more: the server is stopping.

        Callers are told; nothing of those turns is stored.
        """
        self.reembedding.abandon()
        if self._turns is not None:
            self._turns.abandon()
        if self._about().get("embedder_router") is not None:
            self._vectors.abandon()

    def distrust_embedder(self, fingerprint: str, error: EmbeddingError) -> bool:
        """Search by words and store nothing new, because the embedder of that fingerprint makes
        other vectors now. Whether it is in use still; else nothing changes."""
        distrusted = self._vectors.distrust(fingerprint, error)
        if distrusted:
            self._questions.clear()
        return distrusted

    def close(self) -> None:
        """Finish what was accepted, purge where something was erased, flush; idempotent.

        Extractions are not finished: see :meth:`abandon`.
        """
        if self._stopping.is_set():
            return
        self._observer.enter("stop")
        self._stopping.set()
        if self._turns is not None and not self._turns.close():
            log.info("an extraction was left to itself")
        self._rebuild_wanted.set()
        self._keeper.join()
        self.reembedding.close()
        self._writer.close()
        self._vectors.close()
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
        about = self._about()
        return {
            "memories": self._records.count,
            "embedder": {
                "model": identity.model,
                "dimensions": identity.dimensions,
                "fingerprint": identity.fingerprint,
                "router": about.get("embedder_router"),
                **self._vectors.status(),
            },
            "extraction": self._extraction_status(about),
            "router": about.get("router"),
            "findings": about.get("findings", []),
            "reembedding": self.reembedding.status(),
            "language": self._language,
            "index": {"state": "rebuilding" if self._rebuilding else state},
            "disk": {"free_bytes": free, "reserve_bytes": self._reserve},
            "read_only": free < self._reserve,
            "purge_pending": self._records.meta("purge_due") is not None,
        }

    @property
    def add_seconds(self) -> float | None:
        """Seconds after which a caller may give up an add; None where no endpoint is asked."""
        seconds: float = self._about().get("embed_seconds") or 0.0
        if self._turns is not None:
            seconds += self._limits.seconds
        return seconds + ADD_MARGIN if seconds else None

    @property
    def embedder_provider(self) -> str:
        """``builtin``, or ``openai`` where an endpoint that speaks its protocol embeds."""
        return "builtin" if self._about().get("embedder_router") is None else "openai"

    def _extraction_status(self, about: Mapping[str, Any]) -> dict[str, Any] | None:
        turns = self._turns
        if turns is None:
            return None
        state = "ready" if turns.succeeded_last else "failing"
        return {
            "router": about.get("router"),
            "model": about.get("llm_model"),
            "state": "warming up" if about.get("warming") else state,
            **turns.status(),
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
        """Remember a turn: the facts that a model finds in it, or each message of the user's as it
        is. All of it is stored in one transaction, or nothing.

        Once it has begun it is finished, even where nobody waits for it any more.

        Args:
            messages: A turn.
            scope: Whose memory it becomes.
            metadata: Stored with each memory.
            infer: True asks for extraction, False keeps the messages of the user as they are;
                None extracts where there is a model.
            prompt: Instructions for the extraction.
            expiration_date: Last day (UTC) on which the memories are found.
            idempotency: Key of the request; the same key gets the same reply.

        Returns:
            What became of each fact; empty where the model found none.

        Raises:
            ExtractionUnavailableError: ``infer`` is true, and there is no model.
            InvalidRequestError: There is nothing with text that could be kept.
            DiskFullError: Free space is below the reserve.
            ModelError: The user's models did not do their part; see its subclasses.
        """
        scope.required()
        if infer is None:
            infer = self._turns is not None
        if infer:
            if self._turns is None:
                raise ExtractionUnavailableError(
                    "infer is true, and this server has no model to extract facts with",
                    hint="give it one: pikuri-memory down && pikuri-memory up --router URL; or"
                    ' leave "infer" out (each user turn is then kept as it is)',
                )
            if not any(message.content.strip() for message in messages):
                raise InvalidRequestError(
                    "there is no message with text in it, so there is nothing to extract from",
                    hint='send {"role": "user", "content": "..."}',
                )
            options = {"metadata": metadata, "expiration_date": expiration_date}
            turns = self._turns
            return await self._once(
                idempotency,
                lambda: self._extract(turns, messages, scope, prompt, idempotency, options),
                lasting=True,
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
        return await self._once(
            idempotency,
            lambda: self._store(items, idempotency, messages, scope, recognise=True),
        )

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
        *,
        lasting: bool = False,
    ) -> list[AddResult]:
        """Do the work, or answer as the same key was answered; a running one is joined.

        Work that is ``lasting`` goes on where the caller goes away, with a key or without.
        """
        if key is None:
            if not lasting:
                return await work()
            task = asyncio.ensure_future(work())
            self._tasks.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._let_go)
            return list(await asyncio.shield(task))
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
        self._let_go(task)

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even where nobody waits any more

    async def _extract(
        self,
        turns: Turns,
        messages: Sequence[Message],
        scope: Scope,
        prompt: str | None,
        key: IdempotencyKey | None,
        options: Mapping[str, Any],
    ) -> list[AddResult]:
        self._check_space()
        space = self._space

        def begin() -> Turn:
            nonlocal space
            space = self._space
            return Turn(
                messages,
                scope,
                recent=self._records.recent_messages(scope),
                existing=partial(self._nearest, scope, space),
                prompt=prompt,
            )

        facts = await turns.facts(begin)
        items = [
            NewMemory(
                fact.text,
                scope,
                metadata={**fact.metadata, **options["metadata"]},
                expiration_date=options["expiration_date"],
            )
            for fact in facts
        ]
        made = self._made(facts, space)
        return await self._store(
            items, key, messages, scope, made=made, space=space, recognise=True
        )

    def _made(self, facts: Sequence[Fact], space: str) -> dict[int, bytes]:
        """The vectors that an extraction has made already, unless the embedder was changed."""
        if space != self._space:
            return {}
        shape = (self._embedder.dimensions,)
        return {
            i: fact.vector.astype("<f4", copy=False).tobytes()
            for i, fact in enumerate(facts)
            if fact.vector is not None and fact.vector.shape == shape
        }

    def _nearest(
        self, scope: Scope, space: str, vector: NDArray[np.float32], count: int
    ) -> list[StoredMemory]:
        """The memories of a scope that are nearest to a vector, best first; for threads."""
        query = SearchQuery("", scope, top_k=count)
        question = Question(vector, vector.tolist(), [], space)
        try:
            return [hit.memory for hit in self._searching.find(query, question)]
        except SpaceChangedError:
            # The vector is of no use any more; nothing to compare with costs a repetition at most.
            return []

    async def _store(
        self,
        items: Sequence[NewMemory],
        key: IdempotencyKey | None,
        messages: Sequence[Message],
        scope: Scope | None = None,
        *,
        made: Mapping[int, bytes] | None = None,
        space: str | None = None,
        recognise: bool = False,
    ) -> list[AddResult]:
        """Store memories, and with them the messages and the spent key, in one transaction.

        Args:
            items: The memories.
            key: Of the request.
            messages: To be remembered as the recent ones of ``scope``.
            scope: Needed with messages.
            made: Vectors that there are already, by position in ``items``.
            space: In which they were made.
            recognise: Whether it is looked for older memories that they replace.
        """
        self._check_space()
        # What is known already needs no vector; an import that is repeated is all of that.
        vectors = dict(made or {})
        new = [
            i for i, item in enumerate(items) if i not in vectors and not self._records.knows(item)
        ]
        space = space or self._space
        vectors |= await self._vectors_of(items, new)
        replaced: Mapping[int, StoredMemory] = {}
        if recognise and vectors and self._records.count:
            replaced = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._predecessors, items, vectors, space
            )

        def work(change: Change) -> list[AddResult]:
            if vectors and space != self._space:
                raise NoVectorError
            results = [change.add(item, vectors.get(i)) for i, item in enumerate(items)]
            _link(change, items, results, replaced)
            if messages and scope is not None:
                change.remember(messages, scope)
            if key is not None:
                change.spend(key, results)
            return results

        while True:
            try:
                results = await asyncio.wrap_future(self._writer.submit(work))
                break
            except NoVectorError:  # deleted, expired or embedded by another one since we looked
                space = self._space
                vectors = await self._vectors_of(items, range(len(items)))
        self._read_back([result.id for result in results])
        return results

    def _predecessors(
        self, items: Sequence[NewMemory], vectors: Mapping[int, bytes], space: str
    ) -> dict[int, StoredMemory]:
        """The older memories that some new ones replace, by position; for threads."""
        found: dict[int, StoredMemory] = {}
        identity = EmbedderIdentity.from_json(space)
        for i, data in vectors.items():
            if self._index is None and self._records.count > QUICK_REBUILD:
                break  # to look through everything would take longer than an order is worth
            item, vector = items[i], np.frombuffer(data, "<f4")
            question = Question(vector, vector.tolist(), [], space)
            try:
                candidates = self._searching.candidates(
                    SearchQuery("", item.scope, top_k=LOOKED_AT), question, []
                )
            except SpaceChangedError:
                break
            memories = self._records.by_rows([candidate.row for candidate in candidates])
            near = [
                (memory, candidate.cosine)
                for candidate in candidates
                if (memory := memories.get(candidate.row)) is not None
                and memory.scope == item.scope
            ]
            if (older := self._recogniser.predecessor(item.text, near, identity)) is not None:
                found[i] = older
        return found

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
        space = self._space

        def work(change: Change) -> None:
            if vector is not None and space != self._space:
                raise NoVectorError
            change.update(
                memory_id,
                text=text,
                vector=vector,
                metadata=metadata,
                expiration_date=expiration_date,
            )

        while True:
            if not isinstance(text, Unset):
                vector = (await self._embed_all([text]))[0].astype("<f4", copy=False).tobytes()
            try:
                await asyncio.wrap_future(self._writer.submit(work))
                return self._records.get(memory_id)
            except NoVectorError:  # a re-embedding has just ended
                space = self._space

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

    async def reembed(self, target: Target) -> dict[str, Any]:
        """Begin to embed every memory anew by another embedder; see :class:`Reembedding`."""
        return await self.reembedding.asked(partial(self.reembedding.begin, target))

    async def cancel_reembedding(self) -> bool:
        """Give it up; whether there was one."""
        return await self.reembedding.asked(self.reembedding.cancel)

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

    async def search(self, query: SearchQuery) -> Hits:
        """The memories that answer a question best, best first.

        Where no vector of the question can be had, they are found by its words alone, and the
        result says so (``degraded``).

        Raises:
            ScopeRequiredError: The scope is empty.
            InvalidRequestError: The question is blank.
        """
        query.scope.required()
        if not query.text.strip():
            raise InvalidRequestError("the query is blank", hint="ask something")
        for _ in range(SWITCH_TRIES):
            try:
                question = await self._question(query.text)
            except EmbeddingError as error:
                return await self._find_by_words(query, error)
            try:
                if query.condition is None and self._index is not None:
                    return self._searching.find(query, question)
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._searching.find, query, question
                )
            except SpaceChangedError:
                await asyncio.sleep(SWITCH_SECONDS)
        raise ServerUnavailableError("the embedder is being changed", hint="ask again")

    async def _find_by_words(self, query: SearchQuery, error: EmbeddingError) -> Hits:
        question = Question(None, [], self._tokenizer.ids(query.text), "")
        hits = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._searching.find, query, question
        )
        hits.degraded = by_words(error)
        return hits

    async def _question(self, text: str) -> Question:
        question = self._questions.get(text)
        space = self._space
        if question is not None and question.space == space:
            self._questions.move_to_end(text)
            return question
        vector = await self._vectors.of_question(text)
        question = Question(vector, vector.tolist(), self._tokenizer.ids(text), space)
        self._questions[text] = question
        if len(self._questions) > CACHED_QUESTIONS:
            self._questions.popitem(last=False)
        return question

    # -- embedding ---------------------------------------------------------------------------------

    async def _embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return await self._vectors.of_texts(texts)


def _link(
    change: Change,
    items: Sequence[NewMemory],
    results: Sequence[AddResult],
    replaced: Mapping[int, StoredMemory],
) -> None:
    """Link what was added just now with what it replaces, or is replaced by."""
    for i, older in replaced.items():
        if results[i].event == "ADD":
            change.supersede(results[i].id, older.id, saying=older.text)
    # Ids as they were sent may have become others.
    ids = {item.id: result.id for item, result in zip(items, results, strict=True) if item.id}
    for item, result in zip(items, results, strict=True):
        if result.event == "ADD":
            for other in item.supersedes:
                change.supersede(result.id, ids.get(other, other))
            for other in item.superseded_by:
                change.supersede(ids.get(other, other), result.id)


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
