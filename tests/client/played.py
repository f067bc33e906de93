"""A real HTTP server in a thread that plays our server or mem0's, and can be told to misbehave."""

from __future__ import annotations

import json
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["ours", "mem0"]
SCOPE = ("user_id", "agent_id", "run_id")
START = datetime(2026, 1, 1, tzinfo=UTC)
MEM0_CAP = 20


@dataclass
class Fault:
    """What the next request meets instead of an answer.

    ``lose``: it is carried out and the connection is closed without a reply; ``hang``: the same,
    but the reply never comes; ``answer``: these bytes are sent and nothing is carried out.
    """

    kind: Literal["lose", "hang", "answer"]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any
    client_port: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def params(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))


class PlayedServer:
    """Answers on 127.0.0.1 with the shapes of one of the two servers, from a dict."""

    def __init__(self, kind: Kind, key: str | None = None) -> None:
        self.kind = kind
        self.key = key
        self.whole = False
        self.memories: dict[str, dict[str, Any]] = {}
        self.changes: dict[str, list[dict[str, Any]]] = {}
        self.replies: dict[str, tuple[int, Any]] = {}
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self.looked: list[Seen] = []
        """``GET /health``, which clients send of their own accord: never at fault."""
        self._released = threading.Event()
        self._lock = threading.Lock()
        played = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Small writes of head and body would wait for each other otherwise.
            wbufsize = -1
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):
                    super().handle_one_request()

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(raw) if raw else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body, self.client_address[1])
                looks = seen.path == "/health"
                with played._lock:
                    (played.looked if looks else played.seen).append(seen)
                    fault = played.faults.popleft() if played.faults and not looks else None
                    if fault is None or fault.kind != "answer":
                        status, value = played._answer(seen)
                if fault is not None and fault.kind == "hang":
                    played._released.wait(30)
                if fault is not None and fault.kind != "answer":
                    self.close_connection = True
                    return
                if fault is not None:
                    self._reply(fault.status, dict(fault.headers), fault.body)
                else:
                    self._reply(
                        status, {"Content-Type": "application/json"}, json.dumps(value).encode()
                    )

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                if played.kind == "ours":
                    headers = {"Pikuri-Memory-Version": "0.1.0", **headers}
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def tries(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    def store(self, text: str, **fields: Any) -> str:
        """Put a memory in without a request."""
        return self._store({"memory": text, **fields})

    # -- answers --

    def _error(self, status: int, detail: str, code: str, hint: str = "") -> tuple[int, Any]:
        if self.kind == "ours":
            return status, {"detail": detail, "hint": hint, "code": code}
        return status, {"detail": detail}

    def _answer(self, seen: Seen) -> tuple[int, Any]:
        parts = [unquote(part) for part in seen.path.strip("/").split("/")]
        match seen.method, parts:
            case "GET", ["health"] if self.kind == "ours":
                return 200, {"status": "ok", "server": "pikuri-memory", "version": "0.1.0"}
            case "GET", ["health"]:
                return 404, {"detail": "Not Found"}
            case "GET", ["openapi.json"]:
                info = {"title": "Mem0 REST APIs", "version": "1.0.0"}
                return 200, {"openapi": "3.1.0", "info": info, "paths": {}}
        if self.key is not None and seen.headers.get("x-api-key") != self.key:
            return self._error(401, "a wrong key or none", "unauthenticated", "look it up")
        match seen.method, parts:
            case "POST", ["memories"]:
                return self._once(seen, self._add)
            case "POST", ["memories", "batch"] if self.kind == "ours":
                return self._once(seen, self._batch)
            case "POST", ["memories", "batch"]:
                return 405, {"detail": "Method Not Allowed"}
            case "POST", ["search"]:
                return self._search(seen.body)
            case "GET", ["memories"]:
                return self._list(seen.params)
            case "DELETE", ["memories"]:
                for memory_id in [m["id"] for m in self._in_scope(seen.params)]:
                    self._delete(memory_id)
                return 200, {"message": "All relevant memories deleted"}
            case "GET", ["memories", memory_id, "history"]:
                if self.kind == "ours" and memory_id not in self.changes:
                    return self._error(404, "there never was such a memory", "not_found")
                return 200, self.changes.get(memory_id, [])
            case "GET", ["memories", memory_id]:
                if memory_id in self.memories:
                    return 200, self.memories[memory_id]
                if self.kind == "mem0":
                    return 200, None
                return self._error(404, "there is no such memory", "not_found")
            case (("PUT" | "DELETE"), ["memories", memory_id]) if memory_id not in self.memories:
                if self.kind == "mem0":
                    return 502, {
                        "detail": "Upstream provider error.",
                        "code": "unknown",
                        "request_id": "0",
                    }
                return self._error(404, "there is no such memory", "not_found", "list them")
            case "PUT", ["memories", memory_id]:
                return self._update(memory_id, seen.body)
            case "DELETE", ["memories", memory_id]:
                self._delete(memory_id)
                return 200, {"message": "Memory deleted successfully"}
            case "GET", ["entities"]:
                return 200, self._entities()
            case "POST", ["reset"]:
                self.memories.clear()
                self.changes.clear()
                return 200, {"message": "All memories reset"}
        return self._error(404, "Not Found", "not_found")

    def _once(self, seen: Seen, act: Any) -> tuple[int, Any]:
        key = seen.headers.get("idempotency-key")
        if self.kind == "mem0" or key is None:
            status, value = act(seen.body)
            return status, value
        if key not in self.replies:
            self.replies[key] = act(seen.body)
        return self.replies[key]

    def _store(self, fields: Mapping[str, Any]) -> str:
        memory_id = fields.get("id") or str(uuid.uuid4())
        at = (START + timedelta(minutes=len(self.changes))).isoformat()
        self.memories[memory_id] = {
            "id": memory_id,
            "memory": fields["memory"],
            "hash": "0" * 32,
            **{name: fields[name] for name in SCOPE if fields.get(name)},
            "metadata": fields.get("metadata") or {},
            "created_at": fields.get("created_at") or at,
            "updated_at": fields.get("updated_at") or at,
        }
        if self.kind == "ours":
            self.memories[memory_id]["expiration_date"] = fields.get("expiration_date")
        self._changed(memory_id, "ADD", None, fields["memory"])
        return memory_id

    def _changed(self, memory_id: str, event: str, old: str | None, new: str | None) -> None:
        entries = self.changes.setdefault(memory_id, [])
        at = (START + timedelta(days=len(entries))).isoformat()
        entries.append(
            {
                "id": str(uuid.uuid4()),
                "memory_id": memory_id,
                "old_memory": old,
                "new_memory": new,
                "event": event,
                "created_at": START.isoformat(),
                "updated_at": at,
                "is_deleted": event == "DELETE",
                "actor_id": None,
                "role": None,
            }
        )

    def _add(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not any(body.get(name) for name in SCOPE):
            return self._error(400, "At least one identifier is required.", "scope_required")
        results = []
        for message in body["messages"]:
            same = [m for m in self._in_scope(body) if m["memory"] == message["content"]]
            if same and self.kind == "ours":
                results.append({**_brief(same[0]), "event": "NONE"})
                continue
            fields = {**body, "memory": message["content"]}
            results.append({**_brief(self.memories[self._store(fields)]), "event": "ADD"})
        return 200, {"results": results}

    def _batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = [self._store(item) for item in body["memories"]]
        return 200, {"results": [{**_brief(self.memories[i]), "event": "ADD"} for i in ids]}

    def _in_scope(self, ids: Mapping[str, Any]) -> list[dict[str, Any]]:
        wanted = {name: ids[name] for name in SCOPE if ids.get(name)}
        return [m for m in self.memories.values() if all(m.get(n) == v for n, v in wanted.items())]

    def _search(self, body: dict[str, Any]) -> tuple[int, Any]:
        filters = body["filters"]
        words = set(body["query"].lower().split())
        found = []
        for memory in self._in_scope(filters):
            score = len(words & set(memory["memory"].lower().split())) / max(1, len(words))
            fits = all(memory["metadata"].get(n) == v for n, v in filters.items() if n not in SCOPE)
            if fits and score > 0 and score >= body.get("threshold", 0):
                hit = {**memory, "score": score}
                if body.get("explain"):
                    hit["explanation"] = {"coverage": score}
                found.append(hit)
        found.sort(key=lambda hit: -hit["score"])
        return 200, {"results": found[: body.get("top_k", 20)]}

    def _list(self, params: dict[str, str]) -> tuple[int, Any]:
        rows = self._in_scope(params)[::-1]
        if self.kind == "mem0":
            if self.whole:  # as the patched server of the container stack
                return 200, {"results": rows[: int(params.get("top_k", len(rows)))]}
            return 200, {"results": rows[:MEM0_CAP]}
        start, size = int(params.get("cursor", 0)), int(params.get("top_k", len(rows) or 1))
        more = start + size < len(rows)
        return 200, {
            "results": rows[start : start + size],
            "next": str(start + size) if more else None,
        }

    def _update(self, memory_id: str, body: dict[str, Any]) -> tuple[int, Any]:
        memory = self.memories[memory_id]
        old = memory["memory"]
        memory["memory"] = body.get("text", old)
        for name in ("metadata", "expiration_date"):
            if name in body:
                memory[name] = body[name]
        self._changed(memory_id, "UPDATE", old, memory["memory"])
        return 200, {"message": "Memory updated successfully!"}

    def _delete(self, memory_id: str) -> None:
        self._changed(memory_id, "DELETE", self.memories.pop(memory_id)["memory"], None)

    def _entities(self) -> list[dict[str, Any]]:
        counts: dict[tuple[str, str], int] = {}
        for memory in self.memories.values():
            for name in SCOPE:
                if memory.get(name):
                    pair = (name.removesuffix("_id"), memory[name])
                    counts[pair] = counts.get(pair, 0) + 1
        at = START.isoformat()
        return [
            {
                "id": id_,
                "type": kind,
                "total_memories": count,
                "created_at": at,
                "updated_at": at,
            }
            for (kind, id_), count in sorted(counts.items())
        ]


def _brief(memory: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": memory["id"], "memory": memory["memory"]}
