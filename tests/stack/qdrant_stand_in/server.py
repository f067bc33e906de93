"""A stand-in for Qdrant: its REST calls that mem0 makes, over Qdrant Edge, for tests.

It answers what ``qdrant-client`` asks on behalf of mem0's vector store, in Qdrant's shapes, with
the real engine behind it, and refuses loudly whatever it does not know. Points live under
``QDRANT__STORAGE__STORAGE_PATH``, so what was stored is there after a restart. It obeys the same
variables as Qdrant 1.12 where the stack sets them, with the same defaults: cross-origin reads are
allowed unless they are switched off, and no key is wanted unless one is given.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import qdrant_edge as edge

TITLE: Final = "stand-in for Qdrant, over Qdrant Edge, for tests"
VERSION: Final = "1.12.4"
OPEN: Final = frozenset({"/healthz", "/livez", "/readyz"})

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_DISTANCES = {
    "Cosine": edge.Distance.Cosine,
    "Dot": edge.Distance.Dot,
    "Euclid": edge.Distance.Euclid,
    "Manhattan": edge.Distance.Manhattan,
}

Json = Any


class Refused(Exception):
    """An answer that is an error, in Qdrant's shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _on(name: str, default: bool) -> bool:
    return os.environ.get(name, str(default)).lower() in ("1", "true", "yes")


def _only(body: dict[str, Json], *known: str) -> None:
    if unknown := {key for key, value in body.items() if value not in (None, [], {})} - set(known):
        raise Refused(400, f"the stand-in does not know {', '.join(sorted(unknown))}")


def point_id(value: Json) -> Any:
    """An id of Qdrant's: a number or a UUID."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return uuid.UUID(value)
    except (AttributeError, TypeError, ValueError):
        raise Refused(400, f"{value!r} is no valid point ID") from None


def shown_id(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def filter_of(body: Json, shard: edge.EdgeShard | None = None) -> edge.Filter | None:
    """A filter of the REST API as one of Edge's.

    Args:
        body: The filter, or None.
        shard: Where it is used: Edge's conditions never match a boolean, so that the points which
            have it are looked up.
    """
    if body is None:
        return None
    _only(body, "must", "should", "must_not")
    clauses: dict[str, Any] = {}
    for name, conditions in body.items():
        if conditions is None:
            continue
        rows = conditions if isinstance(conditions, list) else [conditions]
        clauses[name] = [_condition(row, shard) for row in rows]
    return edge.Filter(**clauses)


def _condition(row: Json, shard: edge.EdgeShard | None) -> Any:
    if "has_id" in row:
        return edge.HasIdCondition({point_id(value) for value in row["has_id"]})
    if "is_empty" in row:
        return edge.IsEmptyCondition(row["is_empty"]["key"])
    if "is_null" in row:
        return edge.IsNullCondition(row["is_null"]["key"])
    if "key" not in row:
        return filter_of(row, shard)
    _only(row, "key", "match", "range")
    if row.get("range") is not None:
        limits = {name: value for name, value in row["range"].items() if value is not None}
        kind: Any = edge.RangeFloat
        if any(isinstance(value, str) for value in limits.values()):
            kind = edge.RangeDateTime
        return edge.FieldCondition(row["key"], range=kind(**limits))
    match = {name: value for name, value in row["match"].items() if value is not None}
    [(kind_of_match, value)] = match.items()
    if isinstance(value, bool) and shard is not None:
        everything = edge.ScrollRequest(limit=1_000_000, with_payload=True)
        points, _ = shard.scroll(everything)
        has = {point.id for point in points if (point.payload or {}).get(row["key"]) is value}
        return edge.HasIdCondition(has)
    known: dict[str, Callable[[Any], Any]] = {
        "value": edge.MatchValue,
        "any": edge.MatchAny,
        "except": edge.MatchExcept,
        "text": edge.MatchText,
    }
    if kind_of_match not in known:
        raise Refused(400, f"the stand-in does not know a match by {kind_of_match}")
    return edge.FieldCondition(row["key"], match=known[kind_of_match](value))


def vector_of(value: Json) -> Any:
    """A vector, dense or sparse, or several by name."""
    if isinstance(value, list):
        return [float(number) for number in value]
    if set(value) == {"indices", "values"}:
        return edge.SparseVector(value["indices"], value["values"])
    return {name: vector_of(one) for name, one in value.items()}


class Collection:
    """One shard and its settings."""

    def __init__(self, directory: Path, settings: dict[str, Json]) -> None:
        self.directory = directory
        self.settings = settings
        self.fields: dict[str, Json] = settings.get("payload_schema", {})
        shard = directory / "shard"
        if shard.exists():
            self.shard = edge.EdgeShard.load(str(shard))
        else:
            shard.parent.mkdir(parents=True, exist_ok=True)
            self.shard = edge.EdgeShard.create(str(shard), self._config())
            self._save()

    def _config(self) -> edge.EdgeConfig:
        vectors = self.settings["vectors"]
        sparse = self.settings.get("sparse_vectors") or {}
        modified = {
            name: edge.EdgeSparseVectorParams(
                modifier=edge.Modifier.Idf if (given or {}).get("modifier") == "idf" else None
            )
            for name, given in sparse.items()
        }
        return edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(vectors["size"], _DISTANCES[vectors["distance"]]),
            sparse_vectors=modified or None,
            max_search_threads=1,
        )

    def _save(self) -> None:
        path = self.directory / "settings.json"
        path.with_suffix(".new").write_text(json.dumps(self.settings), "utf-8")
        path.with_suffix(".new").replace(path)

    def index(self, field: str, schema: Json) -> None:
        kind = schema if isinstance(schema, str) else schema["type"]
        if kind != "keyword":
            raise Refused(400, f"the stand-in has no index of type {kind}")
        if field not in self.fields:
            self.update(edge.UpdateOperation.create_field_index(field, edge.KeywordIndexParams()))
            self.fields[field] = kind
            self.settings["payload_schema"] = self.fields
            self._save()

    def update(self, operation: edge.UpdateOperation) -> None:
        self.shard.update(operation)

    def count(self, where: edge.Filter | None) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True, filter=where)))

    def info(self) -> Json:
        points = self.count(None)
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": points,
            "points_count": points,
            "segments_count": 1,
            "config": {
                "params": {
                    "vectors": self.settings["vectors"],
                    "sparse_vectors": self.settings.get("sparse_vectors") or None,
                    "shard_number": 1,
                    "replication_factor": 1,
                    "write_consistency_factor": 1,
                    "on_disk_payload": True,
                },
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
                "quantization_config": None,
            },
            "payload_schema": {
                field: {"data_type": kind, "points": points} for field, kind in self.fields.items()
            },
        }


class Store:
    """The collections of a storage directory. One call at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "collections"
        self._directory.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self._collections: dict[str, Collection] = {}
        for path in sorted(self._directory.iterdir()):
            if (path / "settings.json").exists():
                settings = json.loads((path / "settings.json").read_text("utf-8"))
                self._collections[path.name] = Collection(path, settings)
            else:
                shutil.rmtree(path)

    def names(self) -> list[str]:
        return sorted(self._collections)

    def get(self, name: str) -> Collection:
        try:
            return self._collections[name]
        except KeyError:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!") from None

    def create(self, name: str, body: dict[str, Json]) -> None:
        if name in self._collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise Refused(400, "the name is no name of a collection")
        _only(body, "vectors", "sparse_vectors")
        if not isinstance(body["vectors"].get("size"), int):
            raise Refused(400, "the stand-in has one vector a point, without a name")
        self._collections[name] = Collection(self._directory / name, body)

    def delete(self, name: str) -> bool:
        collection = self._collections.pop(name, None)
        if collection is None:
            return False
        collection.shard.close()
        shutil.rmtree(collection.directory)
        return True

    def close(self) -> None:
        with self.lock:
            for collection in self._collections.values():
                collection.shard.flush()
                collection.shard.close()
            self._collections.clear()


def _points(store: Store, name: str, verb: str, rest: str, body: dict[str, Json]) -> Json:
    collection = store.get(name)
    if rest == "" and verb == "PUT":
        _only(body, "points")
        points = [
            edge.Point(point_id(row["id"]), vector_of(row["vector"]), row.get("payload") or {})
            for row in body["points"]
        ]
        return _changed(collection, edge.UpdateOperation.upsert_points(points))
    if rest == "" and verb == "POST":
        _only(body, "ids", "with_payload", "with_vector")
        rows = collection.shard.retrieve(
            [point_id(value) for value in body["ids"]],
            bool(body.get("with_payload", True)),
            bool(body.get("with_vector", False)),
        )
        return [_record(row, body.get("with_payload")) for row in rows]
    if rest == "/query":
        return {"points": _query(collection, body)}
    if rest == "/query/batch":
        return [{"points": _query(collection, search)} for search in body["searches"]]
    if rest == "/scroll":
        return _scroll(collection, body)
    if rest == "/count":
        _only(body, "filter", "exact")
        return {"count": collection.count(filter_of(body.get("filter"), collection.shard))}
    if rest == "/delete":
        if body.get("points") is not None:
            ids = [point_id(value) for value in body["points"]]
            return _changed(collection, edge.UpdateOperation.delete_points(ids))
        where = filter_of(body["filter"], collection.shard)
        assert where is not None
        return _changed(collection, edge.UpdateOperation.delete_points_by_filter(where))
    if rest == "/payload" and verb == "POST":
        _only(body, "payload", "points")
        ids = [point_id(value) for value in body["points"]]
        return _changed(collection, edge.UpdateOperation.set_payload(ids, body["payload"], None))
    if rest == "/vectors" and verb == "PUT":
        vectors = [
            edge.PointVectors(point_id(row["id"]), vector_of(row["vector"]))
            for row in body["points"]
        ]
        return _changed(collection, edge.UpdateOperation.update_vectors(vectors))
    raise Refused(404, f"the stand-in does not know {verb} points{rest}")


def _changed(collection: Collection, operation: edge.UpdateOperation) -> Json:
    try:
        collection.update(operation)
    except Exception as error:
        raise Refused(400, f"Wrong input: {error}") from error
    return {"operation_id": 0, "status": "completed"}


def _query(collection: Collection, body: dict[str, Json]) -> list[Json]:
    _only(
        body,
        *("query", "using", "filter", "limit", "offset", "with_payload", "with_vector"),
        *("score_threshold", "params"),
    )
    wanted = body.get("query")
    if isinstance(wanted, dict) and "nearest" in wanted:
        wanted = wanted["nearest"]
    if wanted is None:
        raise Refused(400, "the stand-in needs a vector to query")
    try:
        hits = collection.shard.query(
            edge.QueryRequest(
                limit=int(body.get("limit") or 10),
                offset=int(body.get("offset") or 0),
                query=edge.Query.Nearest(vector_of(wanted), using=body.get("using")),
                filter=filter_of(body.get("filter"), collection.shard),
                with_payload=bool(body.get("with_payload", False)),
                with_vector=bool(body.get("with_vector", False)),
                score_threshold=body.get("score_threshold"),
            )
        )
    except Refused:
        raise
    except Exception as error:
        raise Refused(400, f"Wrong input: {error}") from error
    return [
        {**_record(hit, body.get("with_payload")), "version": 0, "score": hit.score} for hit in hits
    ]


def _scroll(collection: Collection, body: dict[str, Json]) -> Json:
    _only(body, "filter", "limit", "offset", "with_payload", "with_vector")
    offset = body.get("offset")
    limit = int(body.get("limit") or 10)
    rows, following = collection.shard.scroll(
        edge.ScrollRequest(
            offset=None if offset is None else point_id(offset),
            limit=limit,
            filter=filter_of(body.get("filter"), collection.shard),
            with_payload=bool(body.get("with_payload", True)),
            with_vector=bool(body.get("with_vector", False)),
        )
    )
    return {
        "points": [_record(row, body.get("with_payload")) for row in rows],
        "next_page_offset": None if following is None else shown_id(following),
    }


def _record(row: Any, wanted: Json) -> dict[str, Json]:
    payload = row.payload
    if isinstance(wanted, list) and payload is not None:
        # Names of fields; a path into one is not known here.
        if not all(isinstance(name, str) and name.isidentifier() for name in wanted):
            raise Refused(400, "the stand-in knows fields of a payload by plain names alone")
        payload = {name: payload[name] for name in wanted if name in payload}
    shown: dict[str, Json] = {"id": shown_id(row.id), "payload": payload}
    if row.vector is not None:
        shown["vector"] = row.vector
    return shown


def answer(store: Store, verb: str, path: str, body: dict[str, Json]) -> Json:
    """The result of a call.

    Raises:
        Refused: With the status that Qdrant gives.
    """
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] != "collections":
        raise Refused(404, "not found")
    if len(parts) == 1 and verb == "GET":
        return {"collections": [{"name": name} for name in store.names()]}
    if len(parts) < 2:
        raise Refused(404, "not found")
    name, rest = parts[1], "/".join(parts[2:])
    if rest == "":
        if verb == "PUT":
            store.create(name, body)
            return True
        if verb == "DELETE":
            return store.delete(name)
        return store.get(name).info()
    if rest == "exists":
        return {"exists": name in store.names()}
    if rest == "index" and verb == "PUT":
        store.get(name).index(body["field_name"], body["field_schema"])
        return {"operation_id": 0, "status": "completed"}
    if parts[2] == "points":
        if verb == "GET" and len(parts) == 4:
            rows = store.get(name).shard.retrieve([point_id(parts[3])], True, False)
            if not rows:
                raise Refused(404, f"Not found: Point with id {parts[3]} does not exists!")
            return _record(rows[0], None)
        return _points(store, name, verb, rest.removeprefix("points"), body)
    raise Refused(404, "not found")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    store: Store
    key: bytes = b""
    cross_origin = True

    def _serve(self) -> None:
        began = time.monotonic()
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        path = urlsplit(self.path).path
        try:
            if path in OPEN:
                self._send(200, f"{path[1:]} check passed".encode(), "text/plain")
                return
            self._check_key()
            if path == "/":
                self._send_json(200, {"title": TITLE, "version": VERSION})
                return
            body = json.loads(sent) if sent else {}
            with self.store.lock:
                result = answer(self.store, self.command, path, body)
            status = 200
            shown = {"result": result, "status": "ok"}
        except Refused as error:
            status, shown = error.status, {"status": {"error": str(error)}}
        except (KeyError, TypeError, ValueError) as error:
            status, shown = 400, {"status": {"error": f"Format error: {error!r}"}}
        except Exception as error:
            # The engine's own: its message may quote what was sent.
            sys.stderr.write(f"failed: {type(error).__name__}\n")
            status, shown = 500, {"status": {"error": f"Service internal error: {error}"}}
        self._send_json(status, {**shown, "time": round(time.monotonic() - began, 6)})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve

    def _check_key(self) -> None:
        if not self.key:
            return
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        given = self.headers.get("api-key") or bearer
        if not hmac.compare_digest(given.encode(), self.key):
            message = "Must provide an API key or an Authorization bearer token"
            raise Refused(401, "Invalid API key or JWT" if given else message)

    def _send_json(self, status: int, body: Json) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.cross_origin:
            self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a health check would fill the log."""


class Server(ThreadingHTTPServer):
    """Threads that end with the process."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True


def main() -> None:
    """Serve until SIGTERM."""
    store = Store(Path(os.environ.get("QDRANT__STORAGE__STORAGE_PATH", "./storage")))
    Handler.store = store
    Handler.key = os.environ.get("QDRANT__SERVICE__API_KEY", "").encode()
    Handler.cross_origin = _on("QDRANT__SERVICE__ENABLE_CORS", True)
    host = os.environ.get("QDRANT__SERVICE__HOST", "0.0.0.0")
    port = int(os.environ.get("QDRANT__SERVICE__HTTP_PORT", "6333"))
    server = Server((host, port), Handler)
    sys.stderr.write(f"{TITLE}: listening on {host}:{server.server_address[1]}\n")

    def stop(*_: object) -> None:
        # Not from this thread: shutdown() waits for the loop that a signal interrupts.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.serve_forever()
    store.close()


if __name__ == "__main__":
    main()
