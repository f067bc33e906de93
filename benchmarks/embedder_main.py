"""The real embedder, alone in a process: reads texts (JSON) and prints times (JSON)."""

from __future__ import annotations

import json
import statistics
import sys
import time

BATCH = 32


def main() -> int:
    """Measure one text at a time, then batches."""
    started = time.perf_counter()
    from pikuri_memory.models.builtin import BuiltinEmbedder

    embedder = BuiltinEmbedder()
    loaded = time.perf_counter() - started
    given = json.load(sys.stdin)
    single: list[float] = []
    for text in given["questions"]:
        started = time.perf_counter()
        embedder.embed([text])
        single.append(time.perf_counter() - started)
    many: list[float] = []
    texts = given["facts"]
    for start in range(0, len(texts) - BATCH + 1, BATCH):
        started = time.perf_counter()
        embedder.embed(texts[start : start + BATCH])
        many.append(time.perf_counter() - started)
    single = single[len(single) // 10 :]  # the first ones warm it up
    print(
        json.dumps(
            {
                "load": loaded,
                "p50": statistics.median(single),
                "p99": sorted(single)[int(0.99 * len(single))],
                "batch": statistics.median(many),
                "per_second": BATCH / statistics.median(many),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
