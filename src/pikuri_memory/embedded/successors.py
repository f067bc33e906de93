"""Finds the memory that a new one replaces: the rules, and cosines that they understand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from pikuri_memory.embedded import succession
from pikuri_memory.embedded.model import Embedder, StoredMemory
from pikuri_memory.embedded.succession import NEAREST, Older
from pikuri_memory.errors import DamagedInstallationError
from pikuri_memory.models.builtin import BuiltinEmbedder, builtin_identity
from pikuri_memory.models.identity import EmbedderIdentity

log = logging.getLogger(__name__)

LOOKED_AT: Final = 2 * NEAREST
"""Memories to be fetched for a new one: by another embedder, or with an index that does not know
scopes exactly, not all of those that count are among the first."""


class Recogniser:
    """The rules of :mod:`pikuri_memory.embedded.succession` over memories; for threads.

    The precision of the rules was measured with the cosines of the built-in embedder. Where the
    store has another one, the built-in one is loaded the first time that the words alone would
    allow a link (0.1 s and 75 MB, once), and asked for the cosines of that fact.

    Args:
        load: Makes the built-in embedder.
    """

    def __init__(self, load: Callable[[], Embedder] = BuiltinEmbedder) -> None:
        self._load = load
        self._embedder: Embedder | None = None
        self._identity: EmbedderIdentity | None = None
        self._broken = False
        self._lock = threading.Lock()

    def predecessor(
        self, text: str, near: Sequence[tuple[StoredMemory, float]], by: EmbedderIdentity
    ) -> StoredMemory | None:
        """The memory that a new text replaces; None where that is not sure.

        Args:
            text: The new one.
            near: Memories of exactly its scope with their cosines to it, the nearest at least.
            by: The embedder that the cosines are from.
        """
        if self._broken or not near or len(text) > succession.LONGEST:
            return None
        near = sorted(near, key=lambda pair: -pair[1])[:LOOKED_AT]
        try:
            if self._identity is None:
                self._identity = builtin_identity()
            if by != self._identity:
                memories = [memory for memory, _ in near]
                if not succession.worth_a_look(text, [memory.text for memory in memories]):
                    return None
                near = sorted(self._anew(text, memories), key=lambda pair: -pair[1])
        except DamagedInstallationError as error:
            # What orders memories must not keep them from being stored.
            self._broken = True
            log.warning("what replaces what is not recognised: %s", error.message)
            return None
        near = near[:NEAREST]
        number = succession.predecessor(
            text, [Older(memory.text, cosine, memory.created_at) for memory, cosine in near]
        )
        return None if number is None else near[number][0]

    def _anew(self, text: str, memories: list[StoredMemory]) -> list[tuple[StoredMemory, float]]:
        with self._lock:
            if self._embedder is None:
                self._embedder = self._load()
        vectors = self._embedder.embed([text, *(memory.text for memory in memories)])
        return list(zip(memories, (vectors[1:] @ vectors[0]).tolist(), strict=True))
