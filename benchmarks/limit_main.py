"""The limit: what the same engine gives behind HTTP when nothing else is done.

``build INDEX FACTS CORPUS`` makes the index and prints how often each term occurs,
``serve INDEX CORPUS FREQUENCIES PORT`` answers: a bare ASGI application in uvicorn, one
``query_batch`` with the dense and the sparse list, ids in return. No key, no checks, no fusion, no
texts; vectors and term weights of the questions are prepared.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

TOP_K = 10


def build(index_directory: Path, facts: Path, corpus: Path) -> int:
    """Make an index as our server would, and print how often each term occurs."""
    import numpy as np

    from benchmarks.lookup import VECTORS
    from pikuri_memory.embedded.index import Index, Point, Tokenizer
    from pikuri_memory.record import Scope

    tokenizer = Tokenizer()
    vectors = np.load(corpus / VECTORS, mmap_mode="r")
    index = Index.create(index_directory, vectors.shape[1])
    frequencies: Counter[int] = Counter()
    with facts.open(encoding="utf-8") as file:
        points: list[Point] = []
        row = -1
        for row, line in enumerate(file):
            text, user = json.loads(line)
            terms = tokenizer.document(text)
            frequencies.update(terms.ids)
            vector = vectors[row].astype("<f4").tobytes()
            points.append(Point(row + 1, vector, terms, Scope(user_id=user)))
            if len(points) == 1000:
                index.upsert(points)
                points = []
        index.upsert(points)
    index.close()
    print(json.dumps({"terms": frequencies, "count": row + 1}))
    return 0


def prepare(corpus: Path, frequencies: Path) -> dict[str, tuple[Any, Any, Any]]:
    """Vector, term ids and term weights of every question."""
    from benchmarks.lookup import QUESTIONS, Lookup
    from pikuri_memory.embedded.index import Tokenizer
    from pikuri_memory.embedded.ranking import query_weights

    tokenizer = Tokenizer()
    known = json.loads(frequencies.read_text())
    counts = {int(term): count for term, count in known["terms"].items()}
    texts: list[str] = json.loads((corpus / QUESTIONS).read_text(encoding="utf-8"))
    lookup = Lookup(corpus)
    prepared = {}
    for text in texts:
        vector = lookup.vectors([text])[0]
        ids = tokenizer.ids(text)
        weights = query_weights(ids, counts, known["count"])
        prepared[text] = (vector.tolist(), ids, weights)
    return prepared


def serve(index_directory: Path, corpus: Path, frequencies: Path, port: int) -> int:
    """Answer until stopped."""
    import qdrant_edge as edge
    import uvicorn

    shard = edge.EdgeShard.load(str(index_directory))
    prepared = prepare(corpus, frequencies)

    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        if scope["method"] == "GET":
            body = b"{}"
        else:
            asked = json.loads(message["body"])
            vector, ids, weights = prepared[asked["query"]]
            user = asked["filters"]["user_id"]
            where = edge.Filter(
                must=[edge.FieldCondition(key="user_id", match=edge.MatchValue(user))]
            )
            lists = shard.query_batch(
                edge.QueryBatchRequest(
                    [
                        edge.QueryRequest(
                            limit=TOP_K, query=edge.Query.Nearest(vector, using="d"), filter=where
                        ),
                        edge.QueryRequest(
                            limit=TOP_K,
                            query=edge.Query.Nearest(edge.SparseVector(ids, weights), using="t"),
                            filter=where,
                        ),
                    ]
                )
            )
            body = json.dumps([[hit.id for hit in hits] for hits in lists]).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    shard.close()
    return 0


def main(arguments: list[str]) -> int:
    """One of the two."""
    verb, *rest = arguments
    if verb == "build":
        index_directory, facts, corpus = map(Path, rest)
        return build(index_directory, facts, corpus)
    *paths, port = rest
    index_directory, corpus, frequencies = map(Path, paths)
    return serve(index_directory, corpus, frequencies, int(port))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
