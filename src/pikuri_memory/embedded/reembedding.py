"""Embedding every memory anew by another embedder, while the one before still serves.

The record keeps the job (``meta``) and the vectors that were made so far (``next_vectors``), so
that it goes on after any crash with what is missing. A memory that changes meanwhile loses its next
vector in the same transaction, one that is deleted too. Once there is one for every memory, an
index is made of them beside the other one; then record, index and embedder are switched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded.model import Embedder
from pikuri_memory.embedded.observer import Phase
from pikuri_memory.embedded.records import Change, Records
from pikuri_memory.embedded.workers import Workers
from pikuri_memory.embedded.writer import Writer
from pikuri_memory.errors import (
    EmbedderUnavailableError,
    EmbeddingError,
    InvalidRequestError,
    ModelError,
    PikuriMemoryError,
    ReembeddingUnderWayError,
    ServerUnavailableError,
)
from pikuri_memory.models.identity import EmbedderIdentity

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH: Final = 64
"""Memories that are embedded and committed together: what a crash costs at most."""

_LEFT_OVER_BATCH: Final = 500
_HELD: Final = 64
_HOLD_SECONDS: Final = 5.0
_CHASES: Final = 3
"""Where memories are added faster than the last ones are embedded, writes wait after so many rounds
until the last few (at most :data:`_HELD`) are, but no longer than :data:`_HOLD_SECONDS`."""

_ASKING: Final = 4
_NICE: Final = 10
"""Of the job's thread: with it, searches took 1.6 times as long as usual beside the built-in
embedder on two busy cores, without it 2.3 times."""

_FIRST_PAUSE: Final = 1.0
_JOIN_SECONDS: Final = 2.0
_JOB: Final = "reembedding"
_EMBEDDER: Final = "embedder"
EMBEDDER_SOURCE: Final = "embedder_source"

State: TypeAlias = Literal["starting", "embedding", "building", "paused"]


@dataclass(frozen=True)
class Target:
    """Which embedder is wanted.

    Attributes:
        model: As its endpoint calls it, or ``builtin``; None is the best that the endpoint offers.
        router: URL of the endpoint; None is the one in use.
    """

    model: str | None = None
    router: str | None = None


@dataclass(frozen=True)
class Made:
    """An embedder, and where it was had.

    Attributes:
        embedder: To be used.
        target: With the model and, unless it is the built-in one, the endpoint named.
        details: What its maker wants to know when it meets it again; no secrets.
    """

    embedder: Embedder
    target: Target
    details: str = ""


@dataclass(frozen=True)
class Source:
    """Where the embedder of a record's vectors was had, as the record knows it."""

    target: Target
    details: str = ""

    def to_json(self) -> str:
        """As it is kept."""
        told = {"model": self.target.model, "router": self.target.router, "details": self.details}
        return json.dumps(told, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None) -> Source | None:
        """What the record's ``embedder_source`` says; None where it says nothing."""
        try:
            value = json.loads(text or "null")
            return cls(Target(value["model"], value["router"]), value["details"])
        except (ValueError, TypeError, KeyError):
            return None


class Embedders(Protocol):
    """Makes embedders, and remembers which is used."""

    def make(self, target: Target) -> Made:
        """Look for an embedder and try it; may take as long as its model needs to be loaded.

        Raises:
            ModelError: It cannot be had now, or never.
            SettingError: The target is impossible.
        """
        ...

    def chosen(self, made: Made) -> None:
        """The record's vectors are its own by now: the next start is to use it."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the job needs of the engine.

    Attributes:
        check_space: Raises where the disk is nearly full.
        adopt: Makes the index and switches to the embedder; in the job's thread.
        enter: Told of every phase.
    """

    check_space: Callable[[], None]
    adopt: Callable[[Successor], None]
    enter: Callable[[Phase], None]


@dataclass(frozen=True)
class Job:
    """What the record keeps of a job.

    Attributes:
        id: Tells it from every other one.
        model: As of :class:`Target`.
        router: As of :class:`Target`.
        identity: Of the embedder, as JSON.
        details: As of :class:`Made`.
        clean: Whether all next vectors are its own; before, there may be some of another job.
    """

    id: str
    model: str
    router: str | None
    identity: str
    details: str
    clean: bool

    @property
    def target(self) -> Target:
        """Which embedder it was begun with."""
        return Target(self.model, self.router)

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As :meth:`to_json` wrote it."""
        value = json.loads(text)
        return cls(**{field.name: value[field.name] for field in fields(cls)})

    @classmethod
    def of(cls, made: Made) -> Self:
        """A new one."""
        return cls(
            id=secrets.token_hex(8),
            model=made.target.model or made.embedder.identity.model,
            router=made.target.router,
            identity=made.embedder.identity.to_json(),
            details=made.details,
            clean=False,
        )


class GoneError(Exception):
    """The job is no more: cancelled, or its memories were reset."""


class Reembedding:
    """The re-embedding of one record; there is one job at most.

    Args:
        records: The record.
        writer: Its writer.
        embedders: Makes embedders; None makes none.
        hooks: What it needs of the engine.
        stopping: Set when the server stops.
        retry_seconds: Half of the longest pause after a failure.
    """

    def __init__(
        self,
        records: Records,
        writer: Writer,
        embedders: Embedders | None,
        hooks: Hooks,
        stopping: threading.Event,
        *,
        retry_seconds: float = 30.0,
    ) -> None:
        self._records = records
        self._writer = writer
        self._embedders = embedders
        self._hooks = hooks
        self._stopping = stopping
        self._longest_pause = 2 * retry_seconds
        self._workers = Workers(_ASKING, "reembed")
        self._beginning = threading.Lock()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._nudged = threading.Event()
        self._made: tuple[str, Made] | None = None
        self._state: State = "starting"
        self._switching: Job | None = None
        self._last_error: dict[str, Any] | None = None

    # -- from outside ------------------------------------------------------------------------------

    async def asked(self, work: Callable[[], T]) -> T:
        """:meth:`begin` or :meth:`cancel`, for the event loop: in a thread of its own."""
        return await asyncio.wrap_future(self._workers.submit(work))

    def abandon(self) -> None:
        """Fail what is asked for now: the server is stopping."""
        error = ServerUnavailableError(
            "the server is stopping", hint="start it again: pikuri-memory up"
        )
        self._workers.abandon(error)

    def begin(self, target: Target) -> dict[str, Any]:
        """Begin, or join the job that is under way; may take as long as the model is loaded.

        Returns:
            ``result`` (``begun``, ``joined``, or ``unchanged`` where the memories are embedded by
            that one already), ``model``, ``dimensions``.

        Raises:
            ReembeddingUnderWayError: Another one is under way.
            ModelError: The embedder cannot be had.
        """
        with self._beginning:
            job = self._job()
            if job is not None and _fits(target, job):
                return self._join(job)
            if job is not None and target.model not in (None, job.model):
                raise _under_way(job)
            made = self._make(target)
            identity = made.embedder.identity
            job = self._job()
            if job is not None and job.identity == identity.to_json():
                return self._join(job)
            if job is not None:
                raise _under_way(job)
            if identity.to_json() == self._records.meta(_EMBEDDER):
                return _answer("unchanged", identity)
            new = Job.of(made)
            self._made = (new.id, made)
            self._last_error = None
            self._writer.submit(lambda change: change.set_meta(_JOB, new.to_json())).result()
            log.info("re-embedding by %s (%d dimensions)", identity.model, identity.dimensions)
            self._ensure_thread()
            self._nudged.set()
            return _answer("begun", identity)

    def _join(self, job: Job) -> dict[str, Any]:
        self._ensure_thread()
        self._nudged.set()
        return _answer("joined", EmbedderIdentity.from_json(job.identity))

    def cancel(self) -> bool:
        """Give the job up and remove what it made; whether there was one."""

        def give_up(change: Change) -> bool:
            there = change.meta(_JOB) is not None
            change.set_meta(_JOB, None)
            return there

        there: bool = self._writer.submit(give_up).result()
        self._nudged.set()
        with contextlib.suppress(GoneError):  # another one was begun since
            self._remove_left_over()
        return there

    def status(self) -> dict[str, Any] | None:
        """How far it is; None where there is none."""
        job = self._job() or self._switching
        if job is None:
            return None
        identity = EmbedderIdentity.from_json(job.identity)
        return {
            "model": identity.model,
            "dimensions": identity.dimensions,
            "done": min(self._records.next_count, self._records.count) if job.clean else 0,
            "total": self._records.count,
            "state": self._state,
            "last_error": self._last_error,
        }

    def resume(self) -> None:
        """Go on with the job that an earlier server left, or remove what it left over."""
        if self._job() is not None or self._records.next_count:
            self._ensure_thread()

    def close(self) -> None:
        """Wait a little for the thread: the server is stopping, and the next one goes on."""
        self.abandon()
        self._nudged.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            # One that waits for a model touches nothing any more when it wakes.
            thread.join(_JOIN_SECONDS)

    # -- the thread --------------------------------------------------------------------------------

    def _job(self) -> Job | None:
        text = self._records.meta(_JOB)
        return None if text is None else Job.from_json(text)

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                self._state = "starting"
                self._thread = threading.Thread(target=self._run, name="reembedding", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux":  # where that is of a thread alone
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        failures = 0
        while not self._stopping.is_set():
            try:
                job = self._job()
                if job is not None:
                    self._work(job)
                else:
                    self._remove_left_over()
                    with self._lock:
                        if self._job() is None:
                            self._thread = None
                            return
                failures = 0
            except GoneError:
                failures = 0
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._pause(error, failures)
                failures += 1
            finally:
                self._hooks.enter("idle")

    def _pause(self, error: Exception, failures: int) -> None:
        told = _told(error)
        self._last_error = told
        self._state = "paused"
        log.warning("re-embedding pauses (%s)", told["detail"])
        if isinstance(error, EmbeddingError):
            self._made = None  # it may be another one by now
        pause = _FIRST_PAUSE * 2.0 ** min(failures, 16)
        after = error.retry_after if isinstance(error, ModelError) else None
        self._nudged.wait(min(max(pause, after or 0.0), self._longest_pause))
        self._nudged.clear()

    def _work(self, job: Job) -> None:
        made = self._made[1] if self._made is not None and self._made[0] == job.id else None
        if made is None:
            made = self._make(job.target)
            self._made = (job.id, made)
        self._check_running()
        identity = made.embedder.identity.to_json()
        if identity != job.identity:
            log.warning("the embedder is another one by now: its vectors are made anew")
            job = self._keep(
                job, replace(job, identity=identity, details=made.details, clean=False)
            )
        if not job.clean:
            self._remove_left_over()
            job = self._keep(job, replace(job, clean=True))
        self._embed_rest(job, made.embedder)
        try:
            self._hooks.adopt(Successor(self, job, made.embedder))
        finally:
            self._switching = None
        self._made = None
        self._last_error = None
        log.info("re-embedded %d memories", self._records.count)
        try:
            self._of_embedders().chosen(made)
        except Exception as error:  # the record knows it, and the next start reads that
            log.warning("the choice of the embedder was not written (%s)", _told(error)["detail"])

    def _keep(self, job: Job, changed: Job) -> Job:
        def work(change: Change) -> None:
            _must_be(job, change)
            change.set_meta(_JOB, changed.to_json())

        self._writer.submit(work).result()
        return changed

    def _remove_left_over(self) -> None:
        """Remove next vectors that belong to no job, or not to the one that is to begin."""

        def work(change: Change) -> None:
            text = change.meta(_JOB)
            if text is not None and Job.from_json(text).clean:
                raise GoneError
            change.remove_next(_LEFT_OVER_BATCH)

        while self._records.next_count and not self._stopping.is_set():
            self._writer.submit(work).result()

    def _embed_rest(self, job: Job, embedder: Embedder) -> list[int]:
        """Embed every memory that has no next vector; their rows."""
        done: list[int] = []
        self._state = "embedding"
        self._hooks.enter("embed")
        last = 0
        while self._records.next_count != self._records.count:
            self._check_running()
            self._hooks.check_space()
            rows = self._records.without_next_vector(last, BATCH)
            if not rows:
                if last == 0:
                    break
                last = 0  # those that were changed behind us
                continue
            last = rows[-1][0]
            vectors = _embedded(embedder, [text for _, text in rows])
            self._check_running()
            self._writer.submit(_storing(job, rows, vectors)).result()
            done += [row for row, _ in rows]
            self._last_error = None
        return done

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise GoneError

    def _of_embedders(self) -> Embedders:
        if self._embedders is None:
            raise InvalidRequestError(
                "this server knows of no other embedder", hint="start another: pikuri-memory up"
            )
        return self._embedders

    def _make(self, target: Target) -> Made:
        return self._of_embedders().make(target)

    # -- for the switch, in the writer's thread ----------------------------------------------------

    def _embed_last(self, job: Job, embedder: Embedder, hold: bool) -> list[int] | None:
        """The rows that were embedded, so that none lacks its vector; None where too many do."""
        kept = self._records.meta(_JOB)
        if kept is None or Job.from_json(kept).id != job.id:
            raise GoneError
        lacking = self._records.count - self._records.next_count
        if lacking == 0:
            return []
        if not hold or lacking > _HELD:
            return None
        rows = self._records.without_next_vector(0, lacking)
        vectors = _in_time(lambda: _embedded(embedder, [text for _, text in rows]))
        with self._records.transaction(), self._records.part() as change:
            _storing(job, rows, vectors)(change)
        return [row for row, _ in rows]

    def _settle(self, job: Job, db: sqlite3.Connection) -> None:
        self._switching = job  # until the engine has switched, too
        source = Source(job.target, job.details)
        self._records.set_meta(db, _EMBEDDER, job.identity)
        self._records.set_meta(db, EMBEDDER_SOURCE, source.to_json())
        self._records.set_meta(db, _JOB, None)


class Successor:
    """An embedder that has embedded (nearly) everything, to be switched to.

    Attributes:
        embedder: The embedder.
        late: Rows that were embedded since the index was made: it lacks them, although they may
            have changed before.

    Args:
        reembedding: Whose job it is.
        job: The job.
        embedder: The embedder.
    """

    def __init__(self, reembedding: Reembedding, job: Job, embedder: Embedder) -> None:
        self.embedder: Final = embedder
        self.late: list[int] = []
        self._reembedding = reembedding
        self._job = job
        self._chases = 0

    def is_being_built(self) -> None:
        """Its index is being made from now on."""
        self._reembedding._state = "building"

    def catch_up(self) -> None:
        """In the job's thread: embed what came while the index was made."""
        self._chases += 1
        self.late += self._reembedding._embed_rest(self._job, self.embedder)

    def is_complete(self) -> bool:
        """In the writer's thread: whether every memory has its next vector.

        Raises:
            GoneError: The job is no more.
            ModelError: The last ones could not be embedded.
        """
        hold = self._chases >= _CHASES
        rows = self._reembedding._embed_last(self._job, self.embedder, hold)
        self.late += rows or ()
        return rows is not None

    def settle(self, db: sqlite3.Connection) -> None:
        """Within the transaction that switches the vectors: the embedder is the record's now."""
        self._reembedding._settle(self._job, db)


def _fits(target: Target, job: Job) -> bool:
    return target.model in (None, job.model) and target.router in (None, job.router)


def _under_way(job: Job) -> ReembeddingUnderWayError:
    return ReembeddingUnderWayError(
        f"the memories are being embedded anew by {job.model} already",
        hint="wait for it (pikuri-memory reembed), or give it up: pikuri-memory reembed --cancel",
    )


def _answer(
    result: Literal["begun", "joined", "unchanged"], identity: EmbedderIdentity
) -> dict[str, Any]:
    return {"result": result, "model": identity.model, "dimensions": identity.dimensions}


def _must_be(job: Job, change: Change) -> None:
    kept = change.meta(_JOB)
    if kept is None or Job.from_json(kept).id != job.id:
        raise GoneError


def _storing(
    job: Job, rows: Sequence[tuple[int, str]], vectors: NDArray[np.float32]
) -> Callable[[Change], None]:
    items = [
        (row, text, vector.astype("<f4", copy=False).tobytes())
        for (row, text), vector in zip(rows, vectors, strict=True)
    ]

    def work(change: Change) -> None:
        _must_be(job, change)
        change.add_next(items)

    return work


def _embedded(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    vectors = embedder.embed(texts)
    if vectors.shape != (len(texts), embedder.dimensions):
        raise EmbeddingError(
            f"{embedder.identity.model} gave vectors of shape {vectors.shape}, not of"
            f" {embedder.dimensions} dimensions",
            hint="pikuri-memory models",
        )
    return vectors


def _in_time(work: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The result of something that may hang; writes wait for it meanwhile."""
    done: Future[NDArray[np.float32]] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="reembedding-last", daemon=True).start()
    try:
        return done.result(_HOLD_SECONDS)
    except TimeoutError:
        raise EmbedderUnavailableError(
            f"the last memories were not embedded within {_HOLD_SECONDS:g} s",
            hint="it is tried again; see `pikuri-memory status`",
        ) from None


def _told(error: Exception) -> dict[str, Any]:
    """An error for the status. Messages of others' exceptions may quote a memory."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    if isinstance(error, PikuriMemoryError):
        return {"code": error.code, "detail": error.message, "hint": error.hint, "at": at}
    return {
        "code": PikuriMemoryError.code,
        "detail": f"an unexpected {type(error).__name__}",
        "hint": "see `pikuri-memory logs`",
        "at": at,
    }
