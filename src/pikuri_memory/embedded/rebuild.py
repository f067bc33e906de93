"""Makes an index from the record, in a process of its own, so that the server keeps answering.

``python -m pikuri_memory.embedded.rebuild RECORD DIRECTORY LANGUAGE DIMENSIONS TABLE PARENT``
prints the sequence number of the change log up to which the index is complete. Changes made
meanwhile may or may not be in it; applying them again is harmless.

It ends when the process PARENT is not its parent any more. Where the system kills it together with
its parent (see :func:`pikuri_memory.process.spawn_child`), that closes the gap before it had asked
the system to do so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from pikuri_memory.embedded.index import Index, Point, Tokenizer
from pikuri_memory.embedded.records import Records, VectorTable


def build(
    record: Path,
    directory: Path,
    language: str,
    dimensions: int,
    wanted: Callable[[], bool] = lambda: True,
    vectors: VectorTable = "vectors",
) -> int:
    """Make the index; returns the sequence number up to which it is complete.

    Args:
        record: The SQLite file.
        directory: Where the index is made; nothing is there.
        language: Of stop words and stemming.
        dimensions: Of the vectors.
        wanted: Asked before each batch; once it says no, the process ends.
        vectors: The table that they are in.
    """
    tokenizer = Tokenizer(language)
    records = Records(record, terms_of=None)
    seq = records.last_seq()
    index = Index.create(directory, dimensions)
    for batch in records.all_index_rows(vectors=vectors):
        if not wanted():
            sys.exit("the server is gone")
        index.upsert(
            [Point(row.row, row.vector, tokenizer.document(row.text), row.scope) for row in batch]
        )
    index.close()
    records.close()
    return seq


def main(arguments: list[str]) -> int:
    """The process."""
    record, directory, language, dimensions, table, parent = arguments
    vectors: VectorTable = "next_vectors" if table == "next_vectors" else "vectors"

    def wanted() -> bool:
        return os.getppid() == int(parent)

    if not wanted():
        return 1
    os.nice(5)  # searches that are answered meanwhile come first
    print(build(Path(record), Path(directory), language, int(dimensions), wanted, vectors))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
