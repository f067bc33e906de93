"""Our server with the look-up in place of its embedder: DATA_DIR CORPUS."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lookup import Lookup
from pikuri_memory.models.builtin import builtin_identity
from pikuri_memory.models.identity import EmbedderIdentity


class LookupEmbedder:
    """Precomputed vectors.

    It calls itself the built-in embedder, so that the same data directory can be opened by the
    server as it is shipped: for times and memory with the real embedder it matters how many
    vectors there are, not which.
    """

    immediate = True

    def __init__(self, directory: Path) -> None:
        self._lookup = Lookup(directory)

    @property
    def identity(self) -> EmbedderIdentity:
        """That of the built-in embedder."""
        return builtin_identity()

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        return self.identity.dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of known texts."""
        return self._lookup.vectors(texts)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As :meth:`embed`: this model embeds questions as it does facts."""
        return self.embed(texts)


def main(arguments: list[str]) -> int:
    """Serve until stopped."""
    from pikuri_memory.embedded import serve
    from pikuri_memory.settings import Settings

    data_dir, corpus = arguments
    settings = Settings.resolve({"data_dir": data_dir, "port": 0}, {})
    return serve.run(settings, keep=True, make_embedder=lambda: LookupEmbedder(Path(corpus)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
