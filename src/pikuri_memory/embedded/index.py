"""The index: one Qdrant Edge shard. It finds memories; it never holds the only copy of anything.

A point holds a dense vector, term weights and the scope ids, never text. Facts of Qdrant Edge
0.9.0 that shape this module (measured):

* Every call holds the GIL, so calls are kept small: 64 points an upsert (1 ms), a flush at least
  every 1,000 changes (25 ms), no ``optimize()``.
* A second ``load()`` of an open shard destroys a file of its owner: whoever calls
  :meth:`Index.load` owns the data directory's lock.
* Its write-ahead log is off: the record is the truth, and an index that was not closed cleanly is
  made anew from it. That makes an insert a third faster and keeps old vectors off the disk.
* Term weights carry no IDF modifier. A query's weights are idf divided by the sum of idf, so that
  the score of the sparse list *is* the share of the question that a memory covers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import qdrant_edge as edge

from pikuri_memory.record import Scope

DENSE: Final = "d"
TERMS: Final = "t"
_DIGITS: Final = re.compile(r"\d+")
UPSERT_BATCH: Final = 64
"""Points an upsert: 1 ms at 100,000 points, far below the 20 ms that a call may take."""

BM25_K: Final = 1.2
BM25_B: Final = 0.1
BM25_LENGTH: Final = 16.0
"""Low length normalisation around 16 tokens: facts are short (see ``make evaluate``)."""

# Besides the language's stop words (which know the question words of English): words that every
# fact about a user may have.
_EXTRA_STOP_WORDS: Final = frozenset({"user", "user's", "users"})
_QUESTION_WORDS: Final = frozenset(
    "what which who whom whose when where why how does did do is are was were has have had "
    "can could should would will tell know".split()
)


@dataclass(frozen=True, slots=True)
class Terms:
    """The term ids of a text, with their BM25 weights (term frequency only, no idf)."""

    ids: Sequence[int]
    weights: Sequence[float]


class Tokenizer:
    """Turns text into stemmed, hashed terms, by Qdrant's own BM25 encoder.

    Args:
        language: Of the stop words and the stemmer, as in the settings.
    """

    def __init__(self, language: str = "english") -> None:
        name = language.capitalize()
        known = getattr(edge.Language, name, None)
        custom = set(_EXTRA_STOP_WORDS)
        if language == "english":
            custom |= _QUESTION_WORDS
        stop_words = edge.StopwordsSet(languages=None if known is None else {known}, custom=custom)
        self._words = edge.Bm25(
            edge.Bm25Config(
                k=BM25_K,
                b=BM25_B,
                avg_len=BM25_LENGTH,
                tokenizer=edge.TokenizerType.Multilingual,
                language=language,
                lowercase=True,
                ascii_folding=False,
                stopwords=stop_words,
            )
        )
        # The multilingual tokenizer drops numbers: "B12", "9:40" or a house number would find
        # nothing. Another one hashes them in the same way.
        self._numbers = edge.Bm25(
            edge.Bm25Config(
                k=BM25_K,
                b=BM25_B,
                avg_len=BM25_LENGTH,
                tokenizer=edge.TokenizerType.Word,
                stemmer=edge.DisabledStemmer(),
                stopwords=edge.StopwordsSet(),
            )
        )
        self.fingerprint = "/".join(
            (
                f"bm25 and numbers {BM25_K} {BM25_B} {BM25_LENGTH}",
                language,
                f"{len(custom)}",
                f"qdrant-edge-py {metadata.version('qdrant-edge-py')}",
            )
        )

    def document(self, text: str) -> Terms:
        """Terms of a memory's text."""
        words = self._words.embed_document(text)
        numbers = _numbers(text)
        if not numbers:
            return Terms(words.indices, words.values)
        more = self._numbers.embed_document(numbers)
        return Terms([*words.indices, *more.indices], [*words.values, *more.values])

    def ids(self, text: str) -> list[int]:
        """Term ids of a text, each once."""
        ids = self._words.embed_query(text).indices
        if numbers := _numbers(text):
            ids = [*ids, *self._numbers.embed_query(numbers).indices]
        return ids


def _numbers(text: str) -> str:
    """The runs of digits of a text, in ASCII, with spaces between."""
    return " ".join(str(int(run)) if len(run) < 19 else run for run in _DIGITS.findall(text))


@dataclass(frozen=True, slots=True)
class Point:
    """What the index holds of one memory. ``vector`` is little-endian float32."""

    row: int
    vector: bytes
    terms: Terms
    scope: Scope


class Candidate(NamedTuple):
    """A memory that one of the lists brought up.

    Attributes:
        row: Of the record.
        cosine: With the query's vector, in [-1, 1].
        coverage: Share of the query's idf that the memory's terms cover, at least 0.
    """

    row: int
    cosine: float
    coverage: float


class IndexFailedError(Exception):
    """The engine panicked. As it comes, a panic is a BaseException, past every ``except`` that
    keeps the server alive without an index."""


@contextmanager
def _no_panics() -> Iterator[None]:
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise IndexFailedError("the engine panicked") from None
        raise


class Index:
    """One open shard. Safe for several threads; one call at a time.

    Attributes:
        space: Identity of the embedder whose vectors it holds, told by whoever opened it: vectors
            of another one are not to be looked for in it.

    Any method may raise: the engine has exceptions of its own, of many kinds, and
    :class:`IndexFailedError`. Each means that the index is to be made anew.
    """

    def __init__(self, shard: edge.EdgeShard) -> None:
        self.space = ""
        self._shard = shard
        self._lock = threading.Lock()
        self._open = True

    @classmethod
    def create(cls, directory: Path, dimensions: int) -> Index:
        """A new shard in an empty directory."""
        directory.mkdir(parents=True, mode=0o700)
        shard = edge.EdgeShard.create(
            str(directory),
            edge.EdgeConfig(
                vectors={DENSE: edge.EdgeVectorParams(dimensions, edge.Distance.Cosine)},
                sparse_vectors={TERMS: edge.EdgeSparseVectorParams()},
                # A pool of threads costs more than it gives at these sizes.
                max_search_threads=1,
                wal_enabled=False,
            ),
        )
        for field in ("user_id", "agent_id", "run_id"):
            shard.update(
                edge.UpdateOperation.create_field_index(
                    field, edge.KeywordIndexParams(is_tenant=True)
                )
            )
        return cls(shard)

    @classmethod
    def load(cls, directory: Path) -> Index:
        """The shard of a directory that was closed cleanly; the caller owns its lock."""
        with _no_panics():
            return cls(edge.EdgeShard.load(str(directory)))

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points."""
        for start in range(0, len(points), UPSERT_BATCH):
            batch = [
                edge.Point(
                    point.row,
                    {
                        DENSE: np.frombuffer(point.vector, "<f4").tolist(),
                        TERMS: edge.SparseVector(list(point.terms.ids), list(point.terms.weights)),
                    },
                    dict(point.scope.as_dict()),
                )
                for point in points[start : start + UPSERT_BATCH]
            ]
            with self._lock, _no_panics():
                self._shard.update(edge.UpdateOperation.upsert_points(batch))

    def delete(self, rows: Sequence[int]) -> None:
        """Remove points; those that are not there do not matter."""
        for start in range(0, len(rows), UPSERT_BATCH):
            with self._lock, _no_panics():
                self._shard.update(
                    edge.UpdateOperation.delete_points(list(rows[start : start + UPSERT_BATCH]))
                )

    def count(self) -> int:
        """How many points there are, exactly."""
        with self._lock, _no_panics():
            return int(self._shard.count(edge.CountRequest(exact=True)))

    def flush(self) -> None:
        """Bring everything to the disk."""
        with self._lock, _no_panics():
            self._shard.flush()

    def close(self) -> None:
        """Flush and close; idempotent."""
        with self._lock, _no_panics():
            if self._open:
                self._open = False
                self._shard.flush()
                self._shard.close()

    def search(
        self,
        vector: list[float] | None,
        terms: Sequence[int],
        weights: Sequence[float],
        scope: Scope,
        *,
        limit: int,
        only: Iterable[int] | None = None,
        never: Iterable[int] | None = None,
    ) -> list[Candidate]:
        """The union of the nearest vectors and the best covered terms within a scope.

        One ``query_batch`` for both lists, then one look at those that only one of them has, so
        that every candidate has its true cosine and its true coverage.

        Args:
            vector: Of the query; None searches by terms alone, all cosines being 0.
            terms: Term ids of the query.
            weights: One per term, summing to at most 1.
            scope: Ids that must be equal.
            limit: Most candidates of each list.
            only: Rows outside which nothing is found.
            never: Rows that are not found.
        """
        must: list[Any] = [
            edge.FieldCondition(key=name, match=edge.MatchValue(value))
            for name, value in scope.as_dict().items()
        ]
        if only is not None:
            must.append(edge.HasIdCondition(set[Any](only)))
        excluded: list[Any] | None = None
        if never is not None and (rows := set[Any](never)):
            excluded = [edge.HasIdCondition(rows)]
        where = edge.Filter(must=must, must_not=excluded)
        if vector is None:
            return self._covered(terms, weights, where, limit)
        near = edge.Query.Nearest(vector, using=DENSE)
        dense = edge.QueryRequest(limit=limit, query=near, filter=where)
        if not terms:
            with self._lock, _no_panics():
                hits = self._shard.query(dense)
            return [Candidate(int(hit.id), hit.score, 0.0) for hit in hits]
        covered = edge.Query.Nearest(edge.SparseVector(list(terms), list(weights)), using=TERMS)
        sparse = edge.QueryRequest(limit=limit, query=covered, filter=where)
        with self._lock, _no_panics():
            near_hits, covered_hits = self._shard.query_batch(
                edge.QueryBatchRequest([dense, sparse])
            )
            cosines: dict[Any, float] = {hit.id: hit.score for hit in near_hits}
            coverages: dict[Any, float] = {hit.id: hit.score for hit in covered_hits}
            unknown = [id_ for id_ in coverages if id_ not in cosines]
            # A list that is full says nothing about those outside it; another one, that their
            # coverage is 0.
            uncovered = (
                [id_ for id_ in cosines if id_ not in coverages] if len(coverages) >= limit else []
            )
            if unknown:
                cosines.update(self._scores(near, unknown))
            if uncovered:
                coverages.update(self._scores(covered, uncovered))
        return [Candidate(id_, cosine, coverages.get(id_, 0.0)) for id_, cosine in cosines.items()]

    def _covered(
        self, terms: Sequence[int], weights: Sequence[float], where: edge.Filter, limit: int
    ) -> list[Candidate]:
        """The best covered terms alone."""
        if not terms:
            return []
        covered = edge.Query.Nearest(edge.SparseVector(list(terms), list(weights)), using=TERMS)
        with self._lock, _no_panics():
            hits = self._shard.query(edge.QueryRequest(limit=limit, query=covered, filter=where))
        return [Candidate(int(hit.id), 0.0, hit.score) for hit in hits]

    def _scores(self, query: Any, ids: list[Any]) -> dict[Any, float]:
        """The scores of some points for a query. The lock is held."""
        hits = self._shard.query(
            edge.QueryRequest(
                limit=len(ids),
                query=query,
                filter=edge.Filter(must=[edge.HasIdCondition(set(ids))]),
            )
        )
        return {hit.id: hit.score for hit in hits}
