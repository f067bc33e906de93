"""The embedder in use: asked in threads of its own, watched, and exchanged while others use it.

An embedder of the user's own may be away, or hang. A question never waits long for it: after a
failure questions are told so at once, until some text could be embedded again; a background look
tries that every few seconds. What is to be stored is tried each time, with the whole patience that
a model which is being loaded may need.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded.model import Embedder
from pikuri_memory.embedded.workers import Workers
from pikuri_memory.errors import (
    EmbedderUnavailableError,
    EmbeddingError,
    PikuriMemoryError,
    ServerUnavailableError,
)
from pikuri_memory.models.identity import EmbedderIdentity

log = logging.getLogger(__name__)

BATCH: Final = 32
"""Texts that a thread embeds at once."""

TEXT_THREADS: Final = 3
"""One less than a router takes embedding requests at once, so that a question finds a place."""

QUESTION_THREADS: Final = 4
REST_SECONDS: Final = 3.0
"""Seconds between two looks whether an embedder that failed is back."""

_LOOK: Final = ["Is anybody there?"]
_JOIN_SECONDS: Final = 2.0

Vector = NDArray[np.float32]
_Embed = Callable[[Sequence[str]], Vector]


@dataclass(frozen=True)
class Trouble:
    """Why there are no vectors.

    Attributes:
        error: What the embedder raised.
        since: When it began.
        lasting: Whether only a person can end it.
    """

    error: EmbeddingError
    since: datetime
    lasting: bool = False

    def told(self) -> EmbeddingError:
        """The error, to be raised once more."""
        return _again(self.error)


def _again(error: EmbeddingError) -> EmbeddingError:
    """An error as a new value: one exception must not be raised in two places."""
    return type(error)(error.message, hint=error.hint, retry_after=error.retry_after)


class Vectors:
    """An :class:`~pikuri_memory.embedded.model.Embedder` around the one in use.

    Args:
        embedder: The first one.
        rest_seconds: Between two looks whether it is back; other than usual only in tests.
    """

    def __init__(self, embedder: Embedder, *, rest_seconds: float = REST_SECONDS) -> None:
        self._embedder = embedder
        self._rest = rest_seconds
        self._texts = Workers(TEXT_THREADS, "texts")
        self._questions = Workers(QUESTION_THREADS, "questions")
        self._looks = Workers(2, "looks")
        self._pools = (self._texts, self._questions, self._looks)
        self._trouble: Trouble | None = None
        self._refused: tuple[float, EmbeddingError] | None = None
        """When texts were refused last (monotonic), and why: for those that waited behind them."""
        self._watch: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    # -- the embedder in use -----------------------------------------------------------------------

    @property
    def embedder(self) -> Embedder:
        """The one in use."""
        return self._embedder

    def use(self, embedder: Embedder) -> None:
        """Exchange it, and with it whatever trouble there was."""
        with self._lock:
            self._embedder = embedder
            self._trouble = self._refused = None

    @property
    def identity(self) -> EmbedderIdentity:
        """Of the one in use."""
        return self._embedder.identity

    @property
    def dimensions(self) -> int:
        """Of the one in use."""
        return self._embedder.dimensions

    @property
    def immediate(self) -> bool:
        """Of the one in use."""
        return self._embedder.immediate

    def embed(self, texts: Sequence[str]) -> Vector:
        """As the one in use; for threads.

        Raises:
            EmbedderUnavailableError: They cannot be had now.
            EmbeddingError: What came back are no vectors of this embedder.
        """
        return self._watched(self._embedder, self._embedder.embed, texts)

    def embed_queries(self, texts: Sequence[str]) -> Vector:
        """As :meth:`embed`, of questions."""
        return self._watched(self._embedder, self._embedder.embed_queries, texts)

    # -- for the event loop ------------------------------------------------------------------------

    async def of_texts(self, texts: Sequence[str]) -> Vector:
        """Vectors of texts to be stored, shape (len(texts), dimensions).

        Those that wait for a thread while others wait for the embedder in vain are told so with
        them, so that a wait has an end, however many wait.

        Raises:
            EmbedderUnavailableError: They cannot be had now.
            EmbeddingError: What came back are no vectors of this embedder.
        """
        embedder = self._embedder  # one for all parts
        if embedder.immediate:
            return self._watched(embedder, embedder.embed, texts)

        asked = time.monotonic()

        def embed(part: Sequence[str]) -> Vector:
            refused = self._refused
            if refused is not None and refused[0] > asked:
                raise _again(refused[1])
            try:
                return self._watched(embedder, embedder.embed, part)
            except EmbedderUnavailableError as error:
                self._refused = time.monotonic(), error
                raise

        parts = await asyncio.gather(
            *(
                asyncio.wrap_future(self._texts.submit(partial(embed, part)))
                for part in (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
            )
        )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def of_question(self, text: str) -> Vector:
        """The vector of a question, shape (dimensions,).

        Raises:
            EmbeddingError: There is none; at once where that was so a moment ago.
        """
        if self._trouble is not None:
            raise self._trouble.told()
        if self._embedder.immediate:
            found = self.embed_queries([text])
        else:
            found = await asyncio.wrap_future(self._questions.submit(lambda: self._question(text)))
        vector: Vector = found[0]
        return vector

    def _question(self, text: str) -> Vector:
        # Others may have waited for a thread while the first one waited for the embedder.
        trouble = self._trouble
        if trouble is not None:
            raise trouble.told()
        return self.embed_queries([text])

    # -- trouble -----------------------------------------------------------------------------------

    def distrust(self, fingerprint: str, error: EmbeddingError) -> bool:
        """Take no vectors of the embedder of that fingerprint any more: they are no longer like
        those stored. Whether it is in use still."""
        with self._lock:
            if fingerprint != self._embedder.identity.fingerprint:
                return False
            self._trouble = Trouble(error, datetime.now(UTC), lasting=True)
        log.error("%s", error.message)
        return True

    def status(self) -> dict[str, Any]:
        """``state``, which is ``ok`` or ``unavailable``, and then ``since`` and ``why``."""
        trouble = self._trouble
        if trouble is None:
            return {"state": "ok"}
        error = trouble.error
        return {
            "state": "unavailable",
            "since": trouble.since.isoformat(timespec="seconds"),
            "why": {"code": error.code, "detail": error.message, "hint": error.hint},
        }

    def _watched(self, embedder: Embedder, embed: _Embed, texts: Sequence[str]) -> Vector:
        trouble = self._trouble
        if trouble is not None and trouble.lasting:
            raise trouble.told()
        try:
            vectors = embed(texts)
        except EmbeddingError as error:
            self._failed(embedder, error)
            raise
        except PikuriMemoryError as error:  # the file with the router's key, for example
            kind = EmbedderUnavailableError(error.message, hint=error.hint)
            self._failed(embedder, kind)
            raise kind from None
        if trouble is not None:
            self._recovered(embedder)
        return vectors

    def _failed(self, embedder: Embedder, error: EmbeddingError) -> None:
        with self._lock:
            if embedder is not self._embedder or self._closed.is_set():
                return
            if self._trouble is None:
                self._trouble = Trouble(error, datetime.now(UTC))
                log.warning("no vectors (%s); searching by words", error.message)
            elif not self._trouble.lasting:
                self._trouble = Trouble(error, self._trouble.since)
            if self._watch is None:
                self._watch = threading.Thread(
                    target=self._look_again, name="embedder-watch", daemon=True
                )
                self._watch.start()

    def _recovered(self, embedder: Embedder) -> None:
        with self._lock:
            if embedder is not self._embedder or self._trouble is None or self._trouble.lasting:
                return
            self._trouble = None
        log.warning("the embedder answers again")

    def _look_again(self) -> None:
        """Until there is no trouble: one look with all patience, for a model that is being loaded,
        and short ones beside it, for a connection that is dead."""
        looks: list[Future[Vector] | None] = [None, None]
        while not self._closed.wait(self._rest):
            with self._lock:
                if self._trouble is None or self._trouble.lasting:
                    self._watch = None
                    return
            for n, look in enumerate((self.embed, self.embed_queries)):
                pending = looks[n]
                if pending is None or pending.done():
                    try:
                        looks[n] = self._looks.submit(lambda look=look: look(_LOOK))  # type: ignore[misc]  # as above
                    except ServerUnavailableError:
                        return

    # -- life --------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Fail what is under way for those who wait for it, and take nothing more."""
        self._closed.set()
        error = ServerUnavailableError("the server is stopping", hint="start it again")
        for pool in self._pools:
            pool.abandon(error)

    def close(self) -> bool:
        """As :meth:`abandon`, and wait a little for the threads; whether they have ended."""
        self.abandon()
        ended = [pool.join(_JOIN_SECONDS) for pool in self._pools]
        return all(ended)


def by_words(error: EmbeddingError) -> dict[str, str]:
    """What a reply says of a search that had to do without vectors."""
    return {
        "code": error.code,
        "detail": f"searched by words alone, because {error.message}",
        "hint": error.hint,
    }
