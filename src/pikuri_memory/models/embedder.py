"""The router's embedding model as an embedder of memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelError,
    RouterBusyError,
    RouterTimeoutError,
    RouterUnreachableError,
)
from pikuri_memory.models.findings import EmbeddingAbility
from pikuri_memory.models.identity import EmbedderIdentity
from pikuri_memory.models.router import BATCH, Router
from pikuri_memory.models.trouble import WITHOUT
from pikuri_memory.waiting import Deadline

MAX_CHARACTERS: Final = 32_768
"""What lies beyond is not embedded, as with the built-in embedder."""

LEAST_CHARACTERS: Final = 64
"""A model that cannot read even that much is of no use."""

RETRY_SECONDS: Final = 5.0
_REEMBED: Final = "go on without it: pikuri-memory reembed --embedder-model builtin"
QUERY_SECONDS: Final = 10.0


class RouterEmbedder:
    """An embedding model behind the router. Used by several threads at once.

    Of a text that is longer than what the model reads, the beginning counts: half of it, or half
    of that, until it fits, so that the same text always has the same vector.

    Args:
        router: Where the model is.
        ability: What the probe found out about it.
        query_seconds: What a question may take: without its vector it is answered by words, which
            is better than to wait for a model that is loading.
    """

    immediate: Final = False

    def __init__(
        self, router: Router, ability: EmbeddingAbility, *, query_seconds: float = QUERY_SECONDS
    ) -> None:
        self._router = router
        self._query_seconds = query_seconds
        self._ability = ability
        prefixes = (ability.query_prefix, ability.document_prefix)
        self.identity = EmbedderIdentity(
            model=ability.model,
            dimensions=ability.dimensions,
            normalised=True,
            prefix="|".join(prefixes) if any(prefixes) else "",
            fingerprint=ability.fingerprint,
        )

    @property
    def ability(self) -> EmbeddingAbility:
        """What the probe found out about the model."""
        return self._ability

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._ability.dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts to be found, shape (len(texts), dimensions), rows of unit length.

        Raises:
            EmbedderUnavailableError: The router cannot be asked now, or refuses.
            EmbeddingError: What came back are no vectors of this model.
        """
        return self._embed(texts, self._ability.document_prefix)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of questions; otherwise as :meth:`embed`."""
        deadline = self._router.patience.deadline(self._query_seconds)
        return self._embed(texts, self._ability.query_prefix, deadline)

    def _embed(
        self, texts: Sequence[str], prefix: str, deadline: Deadline | None = None
    ) -> NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("embed takes a sequence of texts, not one text")
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            batch = [text[:MAX_CHARACTERS] for text in texts[start : start + BATCH]]
            try:
                rows = self._rows(batch, prefix, deadline)
            except (RouterUnreachableError, RouterBusyError, RouterTimeoutError) as error:
                raise self._unavailable(error, error.retry_after or RETRY_SECONDS) from error
            except EmbeddingError:
                raise
            except ModelError as error:
                raise self._unavailable(error, error.retry_after) from error
            vectors[start : start + len(batch)] = rows
        return vectors

    def _rows(
        self, texts: Sequence[str], prefix: str, deadline: Deadline | None
    ) -> NDArray[np.float32]:
        model = self._ability.model
        try:
            raw = self._router.embed(model, [prefix + text for text in texts], deadline=deadline)
        except ContextTooSmallError:
            if len(texts) > 1:
                return np.concatenate([self._rows([text], prefix, deadline) for text in texts])
            (text,) = texts
            if len(text) < 2 * LEAST_CHARACTERS:
                raise
            return self._rows([text[: len(text) // 2]], prefix, deadline)
        if raw.shape[1] != self.dimensions:
            raise EmbeddingError(
                f"{model} gives vectors of {raw.shape[1]} numbers, and the memories have"
                f" {self.dimensions}: it is another model by the same name",
                hint=f"embed the memories with it: pikuri-memory reembed --embedder-model {model}",
            )
        exact = raw.astype(np.float64)
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        return exact.astype(np.float32)

    def _unavailable(
        self, error: ModelError, retry_after: float | None
    ) -> EmbedderUnavailableError:
        return EmbedderUnavailableError(
            f"{self._ability.model} cannot embed now: {error.message}",
            hint=error.hint.replace(WITHOUT, _REEMBED),
            retry_after=retry_after,
        )
