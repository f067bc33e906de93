"""The REST routes over the real engine and a real server: shapes, errors, lists, documents."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from pikuri_memory.embedded import openapi
from pikuri_memory.embedded.model import Fact, Turn
from pikuri_memory.embedded.turns import Limits
from pikuri_memory.errors import (
    DamagedRecordError,
    EmbedderUnavailableError,
    ModelAnswerError,
    ModelError,
    RouterBusyError,
    RouterTimeoutError,
    RouterUnreachableError,
    ServerUnavailableError,
)
from pikuri_memory.waiting import Deadline

from .fakes import FailingEngine
from .served import KEY, VERSION, Served, WordEmbedder, serving

NOBODY = "00000000-0000-4000-8000-000000000000"
MEMORY_FIELDS = set(
    "id memory hash user_id agent_id run_id metadata created_at updated_at expiration_date".split()
)
STRANGE = "Zoë → 日本 \U0001f600 \x00\x01\x1f\u2028 '\"<script>\\"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("shared")
    with serving(directory, max_body_bytes=200_000, max_text_length=50_000) as served:
        yield served


@pytest.fixture
def server(shared: Served) -> Iterator[Served]:
    """A server without memories."""
    yield shared
    for entity in shared.client.get("/entities").json():
        path = f"/entities/{entity['type']}/{quote(entity['id'], safe='')}"
        assert shared.client.delete(path).status_code == 200


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """A server that was asked nothing yet."""
    with serving(tmp_path / "data") as served:
        yield served


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Served, FailingEngine]]:
    engines: list[FailingEngine] = []

    def wrap(engine: Any) -> FailingEngine:
        engines.append(FailingEngine(engine))
        return engines[0]

    with serving(tmp_path / "data", wrap=wrap) as served:
        yield served, engines[0]
        engines[0].error = None


def results(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["results"]
    return found


def texts(reply: httpx.Response) -> list[str]:
    return [memory["memory"] for memory in results(reply)]


def fill(server: Served, count: int, user: str = "alice") -> None:
    """Store ``fact 0`` ... in that order."""
    for start in range(0, count, 1000):
        memories = [
            {"memory": f"fact {number}", "user_id": user}
            for number in range(start, min(start + 1000, count))
        ]
        assert results(server.client.post("/memories/batch", json={"memories": memories}))


def assert_is_error(reply: httpx.Response, status: int, code: str) -> None:
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"detail", "hint", "code"}
    assert reply.json()["code"] == code
    assert reply.json()["hint"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["pikuri-memory-version"] == VERSION


# ------------------------------------------------------------------ the main job


def test_a_memory_is_stored_found_changed_and_forgotten(server: Served) -> None:
    added = server.add("I live in Oslo", metadata={"a": 1}, expiration_date="2999-12-31")
    assert set(added) == {"id", "memory", "event"}
    assert (added["memory"], added["event"]) == ("I live in Oslo", "ADD")

    memory = server.client.get(f"/memories/{added['id']}").json()
    assert set(memory) == MEMORY_FIELDS
    assert memory["hash"] == hashlib.md5(b"I live in Oslo").hexdigest()
    assert (memory["user_id"], memory["agent_id"], memory["run_id"]) == ("alice", None, None)
    assert memory["metadata"] == {"a": 1}
    assert memory["expiration_date"] == "2999-12-31"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", memory["created_at"])
    assert datetime.fromisoformat(memory["created_at"]).utcoffset() == timedelta(0)

    question = {"query": "where do I live", "filters": {"user_id": "alice"}}
    (hit,) = results(server.client.post("/search", json=question))
    assert set(hit) == {*MEMORY_FIELDS, "score"}
    assert 0 <= hit["score"] <= 1
    (hit,) = results(server.client.post("/search", json={**question, "explain": True}))
    assert {"cosine", "coverage"} <= set(hit["explanation"])

    change = {"text": "I live in Bergen", "metadata": {"b": 2}, "expiration_date": None}
    reply = server.client.put(f"/memories/{added['id']}", json=change)
    assert reply.json() == {"message": "Memory updated successfully!"}
    memory = server.client.get(f"/memories/{added['id']}").json()
    assert (memory["memory"], memory["metadata"]) == ("I live in Bergen", {"b": 2})
    assert memory["expiration_date"] is None

    reply = server.client.delete(f"/memories/{added['id']}")
    assert reply.json() == {"message": "Memory deleted successfully"}
    assert_is_error(server.client.get(f"/memories/{added['id']}"), 404, "not_found")

    history = server.client.get(f"/memories/{added['id']}/history").json()
    assert [entry["event"] for entry in history] == ["ADD", "UPDATE", "DELETE"]
    assert [entry["is_deleted"] for entry in history] == [False, False, True]
    assert {entry["memory_id"] for entry in history} == {added["id"]}
    assert not any(entry["old_memory"] or entry["new_memory"] for entry in history)


def test_the_history_has_the_texts_while_the_memory_is_there(server: Served) -> None:
    added = server.add("tea")
    server.client.put(f"/memories/{added['id']}", json={"text": "coffee"})
    first, second = server.client.get(f"/memories/{added['id']}/history").json()
    assert (first["old_memory"], first["new_memory"]) == (None, "tea")
    assert (second["old_memory"], second["new_memory"]) == ("tea", "coffee")


def test_the_same_text_is_not_stored_twice(server: Served) -> None:
    first = server.add("I like tea")
    again = server.add(" I like tea ")
    assert (again["id"], again["event"]) == (first["id"], "NONE")
    assert server.add("I like tea", "bob")["event"] == "ADD"


def test_a_plain_string_is_a_message_of_the_user(server: Served) -> None:
    reply = server.client.post("/memories", json={"messages": "I like tea", "run_id": "r"})
    assert texts(reply) == ["I like tea"]


def test_any_text_comes_back_as_it_went_in(server: Served) -> None:
    for text in (STRANGE, "x" * 50_000):
        added = server.add(text, "ü/b%2F c", metadata={STRANGE: [STRANGE, 2**53 + 1, 0.1]})
        memory = server.client.get(f"/memories/{added['id']}").json()
        assert memory["memory"] == text
        assert memory["user_id"] == "ü/b%2F c"
        assert memory["metadata"] == {STRANGE: [STRANGE, 2**53 + 1, 0.1]}
        question = {"query": text, "user_id": "ü/b%2F c"}
        assert text in texts(server.client.post("/search", json=question))


def test_the_same_idempotency_key_gets_the_same_reply(server: Served) -> None:
    key = {"Idempotency-Key": "k-1"}
    body = {"messages": "I like tea", "user_id": "alice"}
    first = results(server.client.post("/memories", json=body, headers=key))
    again = results(server.client.post("/memories", json=body, headers=key))
    assert again[0]["id"] == first[0]["id"]
    assert again[0]["event"] == "ADD"
    other = server.client.post("/memories", json={**body, "messages": "x"}, headers=key)
    assert_is_error(other, 422, "idempotency_conflict")
    elsewhere = server.client.post("/memories", json={**body, "user_id": "bob"}, headers=key)
    assert results(elsewhere)[0]["id"] != first[0]["id"]
    wrong = server.client.post("/memories", json=body, headers={"Idempotency-Key": "a b"})
    assert_is_error(wrong, 422, "invalid_request")


def test_a_batch_keeps_ids_dates_and_history_as_they_were_listed(server: Served) -> None:
    added = server.add("tea", metadata={"a": 1})
    server.client.put(f"/memories/{added['id']}", json={"text": "coffee"})
    (memory,) = results(server.client.get("/memories"))
    memory["history"] = server.client.get(f"/memories/{added['id']}/history").json()
    server.client.post("/reset")
    reply = server.client.post("/memories/batch", json={"memories": [memory]})
    assert results(reply) == [{"id": added["id"], "memory": "coffee", "event": "ADD"}]
    (again,) = results(server.client.get("/memories"))
    history = server.client.get(f"/memories/{added['id']}/history").json()
    shown = ("event", "old_memory", "new_memory", "created_at")
    expected = memory.pop("history")
    assert again == memory
    assert [[entry[name] for name in shown] for entry in history] == [
        [entry[name] for name in shown] for entry in expected
    ]


def test_a_batch_is_stored_whole_or_not_at_all(server: Served) -> None:
    good = {"memory": "tea", "user_id": "alice"}
    reply = server.client.post("/memories/batch", json={"memories": [good, {"memory": "x"}]})
    assert_is_error(reply, 400, "scope_required")
    assert texts(server.client.get("/memories")) == []


# ------------------------------------------------------------------ lists


def test_the_whole_scope_is_listed_newest_first(server: Served) -> None:
    fill(server, 1203)
    fill(server, 3, "bob")
    reply = server.client.get("/memories", params={"user_id": "alice"})
    assert reply.headers["transfer-encoding"] == "chunked"
    assert set(reply.json()) == {"results"}
    assert texts(reply) == [f"fact {number}" for number in reversed(range(1203))]
    assert len(texts(server.client.get("/memories"))) == 1206


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000, 1001])
def test_a_list_of_any_length_is_good_json(server: Served, count: int) -> None:
    if count:
        fill(server, count)
    assert len(texts(server.client.get("/memories", params={"user_id": "alice"}))) == count


def test_pages_follow_each_other_to_the_end(server: Served) -> None:
    fill(server, 25)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        reply = server.client.get("/memories", params={"user_id": "alice", "top_k": 10, **cursor})
        assert set(reply.json()) == {"results", "next"}
        seen += texts(reply)
        if reply.json()["next"] is None:
            break
        cursor = {"cursor": reply.json()["next"]}
    assert seen == [f"fact {number}" for number in reversed(range(25))]


def test_a_strange_cursor_is_refused(server: Served) -> None:
    reply = server.client.get("/memories", params={"cursor": "perhaps"})
    assert_is_error(reply, 422, "invalid_request")


def test_expired_memories_are_shown_when_asked_for(server: Served) -> None:
    server.add("old news", expiration_date="2020-01-01")
    assert texts(server.client.get("/memories")) == []
    assert texts(server.client.get("/memories?show_expired=true")) == ["old news"]
    question: dict[str, Any] = {"query": "old news", "user_id": "alice"}
    assert texts(server.client.post("/search", json=question)) == []
    question |= {"show_expired": True}
    assert texts(server.client.post("/search", json=question)) == ["old news"]


def test_a_list_that_nobody_reads_to_the_end_is_given_up(server: Served) -> None:
    fill(server, 3000)
    for _ in range(5):
        with server.client.stream("GET", "/memories") as reply:
            next(reply.iter_raw())
    assert server.client.get("/health").status_code == 200


def test_a_list_that_fails_on_its_way_is_not_taken_for_whole(
    failing: tuple[Served, FailingEngine], caplog: pytest.LogCaptureFixture
) -> None:
    server, engine = failing
    fill(server, 1001)
    engine.pages = 2
    engine.error = DamagedRecordError("the record is damaged", hint="restore it")
    with pytest.raises(httpx.RemoteProtocolError):
        server.client.get("/memories")
    assert "DamagedRecordError" in caplog.text


# ------------------------------------------------------------------ forgetting


def test_a_scope_is_forgotten_and_no_other(server: Served) -> None:
    for user in ("alice", "bob"):
        server.add("tea", user)
        server.add("coffee", user)
    reply = server.client.delete("/memories", params={"user_id": "alice"})
    assert reply.json() == {"message": "All relevant memories deleted"}
    assert {memory["user_id"] for memory in results(server.client.get("/memories"))} == {"bob"}


@pytest.mark.parametrize("query", ["", "?user_id=", "?user_id=*", "?user=alice"])
def test_nothing_is_forgotten_without_a_scope(server: Served, query: str) -> None:
    server.add("tea")
    assert_is_error(server.client.delete("/memories" + query), 400, "scope_required")
    assert texts(server.client.get("/memories")) == ["tea"]


def test_a_reset_forgets_everything(server: Served) -> None:
    server.add("tea")
    assert server.client.post("/reset").json() == {"message": "All memories reset"}
    assert texts(server.client.get("/memories")) == []


def test_a_purge_is_told(fresh: Served) -> None:
    fresh.client.delete(f"/memories/{fresh.add('tea')['id']}")
    assert fresh.client.get("/status").json()["purge_pending"] is True
    assert set(fresh.client.post("/purge").json()) == {"message"}
    assert fresh.client.get("/status").json()["purge_pending"] is False


def test_entities_are_listed_and_forgotten(server: Served) -> None:
    server.add("tea", "team/alice", run_id="r")
    server.add("coffee", "team/alice")
    listed = server.client.get("/entities").json()
    assert [(each["type"], each["id"], each["total_memories"]) for each in listed] == [
        ("run", "r", 1),
        ("user", "team/alice", 2),
    ]
    assert all(
        set(each) == {"id", "type", "total_memories", "created_at", "updated_at"} for each in listed
    )
    reply = server.client.delete("/entities/user/team%2Falice")
    assert reply.json() == {"message": "Entity deleted"}
    assert server.client.get("/entities").json() == []
    assert_is_error(server.client.delete("/entities/app/x"), 422, "invalid_request")


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/memories/", 404, "not_found"),
        ("GET", "/memories/no-uuid", 404, "not_found"),
        ("GET", f"/memories/{NOBODY}", 404, "not_found"),
        ("GET", f"/memories/{NOBODY}/history", 404, "not_found"),
        ("DELETE", f"/memories/{NOBODY}", 404, "not_found"),
        ("GET", "/memories/%00%ff%0a", 404, "not_found"),
        ("PATCH", "/memories", 405, "method_not_allowed"),
        ("GET", "/search", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/memories", 422, "invalid_request"),
        ("POST", "/search", 422, "invalid_request"),
        ("PUT", f"/memories/{NOBODY}", 422, "invalid_request"),
    ],
)
def test_every_error_has_the_same_shape(
    server: Served, method: str, path: str, status: int, code: str
) -> None:
    reply = server.client.request(method, path)
    assert_is_error(reply, status, code)
    if status == 405:
        assert reply.headers["allow"]


def test_the_methods_of_a_path_are_told(server: Served) -> None:
    reply = server.client.patch(f"/memories/{NOBODY}")
    assert reply.headers["allow"] == "DELETE, GET, HEAD, PUT"


def test_extraction_without_a_model_is_refused_with_a_hint(server: Served) -> None:
    body = {"messages": "tea", "user_id": "alice", "infer": True}
    reply = server.client.post("/memories", json=body)
    assert_is_error(reply, 422, "extraction_unavailable")


def test_two_memories_cannot_be_made_to_say_the_same(server: Served) -> None:
    server.add("tea")
    other = server.add("coffee")
    reply = server.client.put(f"/memories/{other['id']}", json={"text": "tea"})
    assert_is_error(reply, 409, "duplicate_text")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "x" * 50_001, "user_id": "a"},
        {"messages": [{"role": "user", "content": "x"}] * 1001, "user_id": "a"},
        {"messages": "x" * 250_000, "user_id": "a"},
    ],
)
def test_what_is_too_large_is_refused(server: Served, body: dict[str, Any]) -> None:
    assert_is_error(server.client.post("/memories", json=body), 413, "too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 150_000,
        b'{"query": "q", "filters": ' + b'{"AND": [' * 90 + b"{}" + b"]}" * 90 + b"}",
        b'{"query": "q", "user_id": "a", "filters": {"a": ' + b"[" * 150 + b"]" * 150 + b"}}",
        b'{"query": "\\ud800", "user_id": "a"}',
        b'{"query": "q", "user_id": "a", "threshold": 1e999}',
    ],
)
def test_hostile_json_is_a_malformed_request(server: Served, body: bytes) -> None:
    reply = server.client.post(
        "/search", content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 422


def test_a_full_disk_refuses_writes_and_tells_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path / "data", reserve=2**62) as server:
        reply = server.client.post("/memories", json={"messages": "tea", "user_id": "alice"})
        assert_is_error(reply, 507, "disk_full")
        assert int(reply.headers["retry-after"]) > 0
        assert texts(server.client.get("/memories")) == []


def test_a_server_that_stops_tells_when_to_come_again(
    failing: tuple[Served, FailingEngine],
) -> None:
    server, engine = failing
    engine.error = ServerUnavailableError("the server is stopping", hint="start it again")
    reply = server.client.get("/entities")
    assert_is_error(reply, 503, "unavailable")
    assert int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (RouterBusyError("busy", hint="later", retry_after=6.2), 503, "7"),
        (RouterUnreachableError("away", hint="start it"), 503, "1"),
        (RouterTimeoutError("slow", hint="wait", retry_after=0.1), 504, "1"),
        (ModelAnswerError("nonsense", hint="another"), 502, None),
    ],
)
def test_an_error_of_the_user_s_models_says_when_to_come_again(
    failing: tuple[Served, FailingEngine], error: ModelError, status: int, retry_after: str | None
) -> None:
    server, engine = failing
    engine.error = error
    reply = server.client.get("/entities")
    assert_is_error(reply, status, error.code)
    assert reply.headers.get("retry-after") == retry_after


def test_an_unforeseen_error_is_told_by_an_id_that_the_log_has_without_any_value(
    failing: tuple[Served, FailingEngine], caplog: pytest.LogCaptureFixture
) -> None:
    server, engine = failing
    try:
        raise KeyError("the SECRET of alice")
    except KeyError as cause:
        engine.error = ValueError("the SECRET again")
        engine.error.__cause__ = cause
    question = {"query": "SECRET", "user_id": "alice"}
    reply = server.client.post("/search", json=question)
    assert_is_error(reply, 500, "error")
    reference = re.search(r"internal error ([0-9a-f]{12})", reply.json()["detail"])
    assert reference is not None
    assert reference[1] in reply.json()["hint"]
    assert f"internal error {reference[1]}: ValueError at fakes.py:" in caplog.text
    assert "; from KeyError at test_app.py:" in caplog.text
    assert "SECRET" not in caplog.text + reply.text


def test_one_line_a_request_and_nobody_s_name_in_it(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    added = server.add("the SECRET", "alice-SECRET")
    server.client.get(f"/memories/{added['id']}")
    server.client.get("/memories?user_id=alice-SECRET")
    server.client.delete("/entities/user/alice-SECRET")
    server.client.get("/SECRET")
    server.stranger.post("/search?SECRET")
    ours = [record for record in caplog.records if record.name.startswith("pikuri_memory")]
    lines = [re.sub(r"[0-9.]+ ms", "_ ms", record.getMessage()) for record in ours]
    assert lines == [
        "POST /memories 200 _ ms",
        "GET /memories/{memory_id} 200 _ ms",
        "GET /memories 200 _ ms",
        "DELETE /entities/{entity_type}/{entity_id} 200 _ ms",
        "GET other 404 _ ms",
        "POST other 401 _ ms",
    ]
    # uvicorn's access log is off, and on again where pytest hands its logger a handler.
    others = ("httpx", "httpcore", "uvicorn.access")
    told = [record.getMessage() for record in caplog.records if not record.name.startswith(others)]
    assert not [line for line in told if "SECRET" in line]


# ------------------------------------------------------------------ the server's own


def test_health_status_and_configuration_are_told(server: Served) -> None:
    server.add("tea")
    health = server.stranger.get("/health").json()
    assert health == {"status": "ok", "server": "pikuri-memory", "version": VERSION}
    status = server.client.get("/status").json()
    assert status["memories"] == 1
    configuration = server.client.get("/configure")
    assert {"version", "vector_store", "llm", "embedder"} <= set(configuration.json())
    assert KEY not in configuration.text


def test_models_show_in_health_status_and_configuration(tmp_path: Path) -> None:
    class Nothing:
        def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
            return []

    class Away(WordEmbedder):
        def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise EmbedderUnavailableError("it is away", hint="start it")

    told = {
        "router": "http://127.0.0.1:8080",
        "llm_model": "some-model",
        "embedder_router": "http://127.0.0.1:8080",
        "embed_seconds": 20.0,
        "findings": [{"level": "note", "subject": "chat", "text": "slow", "hint": "faster"}],
    }
    options = {"extractor": Nothing(), "about": lambda: told, "limits": Limits(seconds=50)}
    with serving(tmp_path / "data", engine={"embedder": Away(), **options}) as server:
        assert server.stranger.get("/health").json()["add_seconds"] == 50 + 20 + 30
        status = server.client.get("/status").json()
        assert status["extraction"]["model"] == "some-model"
        assert status["findings"] == told["findings"]
        assert status["embedder"]["state"] == "ok"
        configuration = server.client.get("/configure").json()
        assert configuration["llm"]["config"]["model"] == "some-model"
        assert configuration["embedder"]["provider"] == "openai"
        server.add("tea and cake", infer=False)
        sent = {"messages": "nothing in it", "user_id": "alice"}
        assert server.client.post("/memories", json=sent).json() == {"results": []}
        reply = server.client.post("/search", json={"query": "cake?", "user_id": "alice"}).json()
        assert [hit["memory"] for hit in reply["results"]] == ["tea and cake"]
        assert reply["degraded"] == {
            "code": "embedder_unavailable",
            "detail": "searched by words alone, because it is away",
            "hint": "start it",
        }
        assert server.client.get("/status").json()["embedder"]["state"] == "unavailable"
        metrics = server.client.get("/metrics").text
        assert "pikuri_memory_embedder_available 0.0" in metrics
        assert 'pikuri_memory_extractions{state="done"} 1.0' in metrics


def test_every_reply_names_the_version_and_forbids_keeping_it(server: Served) -> None:
    for client in (server.client, server.stranger):
        for path in ("/memories", "/health", "/docs", "/nothing", "/metrics", "/"):
            headers = client.get(path).headers
            assert headers["pikuri-memory-version"] == VERSION
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers


def test_metrics_count_by_route_and_name_nobody(fresh: Served) -> None:
    for user in ("alice-SECRET", "bob-SECRET"):
        fresh.add("tea SECRET", user)
        fresh.client.get(f"/memories?user_id={user}")
        fresh.client.get(f"/{user}")
    text = fresh.client.get("/metrics").text
    assert "SECRET" not in text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def count(route: str, method: str, status: str) -> float | None:
        labels = (("method", method), ("route", route), ("status", status))
        return samples.get(("pikuri_memory_requests_total", *labels))

    assert count("/memories", "POST", "200") == 2
    assert count("/memories", "GET", "200") == 2
    assert count("other", "GET", "404") == 2
    assert samples["pikuri_memory_memories",] == 2
    assert samples["pikuri_memory_index_state", ("state", "ready")] == 1
    assert samples["pikuri_memory_info", ("version", VERSION)] == 1


def test_the_root_leads_to_the_documentation(server: Served) -> None:
    reply = server.client.get("/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/docs")


def test_the_documentation_runs_nothing_but_its_own_script(server: Served) -> None:
    page = server.stranger.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-frame-options"] == "DENY"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|https?:", page.text)
    loaded = re.findall(r'(?:src|href)="(/docs[^"]+)"', page.text)
    assert sorted(loaded) == ["/docs/docs.css", "/docs/docs.js"]
    for path in loaded:
        reply = server.stranger.get(path)
        assert reply.status_code == 200
        assert not re.search(rb"https?:|innerHTML|eval\(", reply.content)


def test_the_document_describes_the_routes_there_are(server: Served) -> None:
    document = server.stranger.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == VERSION
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert described == {(row.method, row.template) for row in openapi.OPERATIONS}
    assert set(document["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("401" in operation["responses"]) == (path != "/health")
    references = re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(document))
    for reference in references:
        found: Any = document
        for name in reference.split("/")[1:]:
            found = found[name]


def test_many_at_once_are_all_answered(server: Served) -> None:
    def one(number: int) -> str:
        event: str = server.add(f"fact {number % 20}")["event"]
        return event

    with ThreadPoolExecutor(16) as pool:
        events = list(pool.map(one, range(200)))
    assert events.count("ADD") == 20
    assert len(texts(server.client.get("/memories"))) == 20


def test_a_caller_that_goes_away_in_the_middle_does_no_harm(server: Served) -> None:
    for part in (b"POST /memories HTTP/1.1\r\nHost: localhost\r\n", b"GET /memories"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(part)
    request = (
        "POST /memories HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {KEY}\r\nContent-Length: 500\r\n\r\n{{"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request.encode())
    assert texts(server.client.get("/memories")) == []


def test_several_servers_count_apart(tmp_path: Path) -> None:
    with serving(tmp_path / "a") as one, serving(tmp_path / "b") as two:
        one.add("tea")
        assert "pikuri_memory_memories 1.0" in one.client.get("/metrics").text
        assert "pikuri_memory_memories 0.0" in two.client.get("/metrics").text


def test_an_async_client_is_served_alike(server: Served) -> None:
    async def ask() -> list[int]:
        async with httpx.AsyncClient(
            base_url=server.endpoint, headers={"X-API-Key": KEY}, trust_env=False
        ) as client:
            replies = await asyncio.gather(*(client.get("/memories") for _ in range(20)))
            return [reply.status_code for reply in replies]

    assert asyncio.run(ask()) == [200] * 20
