"""Parts that tests of the embedded server share: a quick embedder and an engine to play with."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded.engine import Engine
from pikuri_memory.embedded.model import AddResult, IdempotencyKey, Message
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.paths import DataPaths
from pikuri_memory.record import Scope

T = TypeVar("T")
ANNA = Scope("anna")
BEN = Scope("ben")


class HashEmbedder:
    """Vectors from a hash of each word: equal words are near, and nothing has to be loaded."""

    dimensions = 64
    immediate = True
    identity = EmbedderIdentity("hash", 64, True, "", "1")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of unit length, shape (len(texts), 64)."""
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in [*text.lower().split(), "\0"]:
                seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                row += np.random.default_rng(seed).standard_normal(self.dimensions)
            row /= np.linalg.norm(row)
        return rows

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As :meth:`embed`: this model embeds questions as it does facts."""
        return self.embed(texts)


class OtherEmbedder(HashEmbedder):
    """The same with another identity."""

    identity = EmbedderIdentity("other", 64, True, "", "2")


class Time:
    """A clock that stands still until it is moved. Microseconds since the epoch."""

    def __init__(self, now: int = 1_750_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now

    def pass_days(self, days: float) -> None:
        """Let time go by."""
        self.now += int(days * 86_400_000_000)


def open_engine(directory: Path, embedder: Any = None, **options: Any) -> Engine:
    """An engine over a directory that is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    return Engine(DataPaths.at(directory), embedder or HashEmbedder(), **options)


def wait(awaitable: Awaitable[T]) -> T:
    """The result of something asynchronous."""

    async def run() -> T:
        return await awaitable

    return asyncio.run(run())


async def keep(
    engine: Engine,
    text: str | Sequence[str],
    scope: Scope = ANNA,
    *,
    key: IdempotencyKey | None = None,
    **options: Any,
) -> list[AddResult]:
    """Add one or more user turns."""
    texts = [text] if isinstance(text, str) else text
    given: dict[str, Any] = {"metadata": {}, "infer": None, "prompt": None, "expiration_date": None}
    return await engine.add(
        [Message("user", each) for each in texts], scope, idempotency=key, **given | options
    )
