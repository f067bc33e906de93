"""Embedders that a re-embedding can be told to use: quick, unlike each other, and steerable."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded.reembedding import Made, Target
from pikuri_memory.errors import EmbedderUnavailableError, ModelNotOfferedError
from pikuri_memory.models.identity import EmbedderIdentity


class Words:
    """As :class:`tests.embedded.parts.HashEmbedder`, with vectors of its own by name.

    Args:
        name: Of the model; another name has unlike vectors.
        dimensions: Of a vector.
    """

    immediate = True

    def __init__(self, name: str, dimensions: int) -> None:
        self.identity = EmbedderIdentity(name, dimensions, True, "", f"words {dimensions}")
        self.dimensions = dimensions
        self.embedded = 0
        self.failing = False
        self.gone = False
        self.gate = threading.Event()
        self.gate.set()
        self.halt = threading.Event()
        """Set: the gate closes behind the next batch."""
        self._known: dict[str, NDArray[np.float64]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of unit length, shape (len(texts), dimensions); waits for the gate."""
        self.gate.wait()
        if self.failing:
            raise EmbedderUnavailableError("it is told to fail", hint="tell it otherwise")
        self.embedded += len(texts)
        if self.halt.is_set():
            self.halt.clear()
            self.gate.clear()
        return self.embed_queries(texts)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As :meth:`embed`, at any time, unless it is gone for good."""
        if self.gone:
            raise EmbedderUnavailableError("it is gone", hint="take another")
        rows = np.zeros((len(texts), self.dimensions))
        for row, text in zip(rows, texts, strict=True):
            for word in [*text.lower().split(), "\0"]:
                row += self._word(word)
            row /= np.linalg.norm(row)
        return rows.astype(np.float32)

    def _word(self, word: str) -> NDArray[np.float64]:
        known = self._known.get(word)
        if known is None:
            seed = hashlib.blake2b(f"{self.identity.model} {word}".encode(), digest_size=8).digest()
            known = np.random.default_rng(int.from_bytes(seed)).standard_normal(self.dimensions)
            self._known[word] = known
        return known


class Shelf:
    """Embedders by name.

    Attributes:
        away: Whether none of them can be had.
        asked: The targets that were asked for.
        choices: What was told to be chosen.
    """

    def __init__(self, *embedders: Words) -> None:
        self._embedders = {each.identity.model: each for each in embedders}
        self.away = False
        self.asked: list[Target] = []
        self.choices: list[Made] = []

    def put(self, name: str, embedder: Words) -> None:
        """Another one under a name."""
        self._embedders[name] = embedder

    def make(self, target: Target) -> Made:
        """The embedder of a name, by default the first."""
        self.asked.append(target)
        if self.away:
            raise EmbedderUnavailableError("the shelf is away", hint="wait")
        name = target.model or next(iter(self._embedders))
        if name not in self._embedders:
            raise ModelNotOfferedError("it is not on the shelf", hint="take another")
        return Made(self._embedders[name], Target(name, target.router), details=f"of {name}")

    def chosen(self, made: Made) -> None:
        """Noted."""
        self.choices.append(made)
