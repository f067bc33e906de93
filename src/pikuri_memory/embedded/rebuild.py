"""Makes an index from the record, in a process of its own, so that the server keeps answering.

``python -m pikuri_memory.embedded.rebuild RECORD DIRECTORY LANGUAGE DIMENSIONS`` prints the
sequence number of the change log up to which the index is complete. Changes made meanwhile may or
may not be in it; applying them again is harmless.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pikuri_memory.embedded.index import Index, Point, Tokenizer
from pikuri_memory.embedded.records import Records


def build(record: Path, directory: Path, language: str, dimensions: int) -> int:
    """Make the index; returns the sequence number up to which it is complete."""
    tokenizer = Tokenizer(language)
    records = Records(record, terms_of=None)
    seq = records.last_seq()
    index = Index.create(directory, dimensions)
    for batch in records.all_index_rows():
        index.upsert(
            [Point(row.row, row.vector, tokenizer.document(row.text), row.scope) for row in batch]
        )
    index.close()
    records.close()
    return seq


def main(arguments: list[str]) -> int:
    """The process."""
    record, directory, language, dimensions = arguments
    os.nice(5)  # searches that are answered meanwhile come first
    print(build(Path(record), Path(directory), language, int(dimensions)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
