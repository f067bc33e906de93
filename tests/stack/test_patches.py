"""What each patch of mem0 promises, and that the promise is broken in a build without it.

A patch has one function here that says what it is for; it runs against the server with all
patches, where it must pass, and against the server with all but this one, where it must fail.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pikuri_memory import Mem0Server
from pikuri_memory.errors import PatchError
from pikuri_memory.stack.plan import EMBEDDED
from tests.router.scripted import ScriptedRouter, embedding, remembers
from tests.stack import patched
from tests.stack.conftest import Upstream, alone, bundle
from tests.stack.ollama import DIMENSIONS, ollama
from tests.stack.patched import COLLECTION, ROUTER_NAME, Served, patch_names, served

PATCHES = Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF
EVIL = "evil.example"
HOUSE = "The key lies under the flowerpot"


# ------------------------------------------------------------------ one promise for each patch


def memories_live_in_qdrant(server: Served, models: ScriptedRouter, user: str) -> None:
    config = server.qdrant.get(f"/collections/{COLLECTION}").json()["result"]["config"]
    assert config["params"]["vectors"]["size"] == DIMENSIONS
    for text in (HOUSE, "Ada plays the cello", "Ada has a greyhound"):
        assert server.add(text, user, infer=False).status_code == 200
    count = server.qdrant.post(f"/collections/{COLLECTION}/points/count", json=_filter(user))
    assert count.json()["result"] == {"count": 3}
    asked = {"query": "where lies the key?", "filters": {"user_id": user}}
    hits = server.api.post("/search", json=asked).json()["results"]
    assert hits[0]["memory"] == HOUSE
    # The router's embedder has one length; a request for another would be refused.
    assert not any("dimensions" in (seen.body or {}) for seen in models.seen())


def accounts_keys_and_settings_need_no_postgres(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    ada = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}
    token = server.api.post("/auth/register", json=ada).json()["access_token"]
    with httpx.Client(base_url=server.endpoint, timeout=60, trust_env=False) as other:
        bearer = {"Authorization": f"Bearer {token}"}
        assert other.get("/auth/me", headers=bearer).json()["email"] == ada["email"]
        made = other.post("/api-keys", headers=bearer, json={"label": "agent"})
        assert made.status_code == 201
        key = {"X-API-Key": made.json()["key"]}
        assert other.get("/memories", params={"user_id": user}, headers=key).status_code == 200
        wrong = {"X-API-Key": "m0sk_" + "x" * 43}
        assert other.get("/memories", params={"user_id": user}, headers=wrong).status_code == 401
        gone = other.delete(f"/api-keys/{made.json()['id']}", headers=bearer)
        assert gone.status_code == 200
        assert other.get("/memories", params={"user_id": user}, headers=key).status_code == 401
    changed = server.api.post("/configure", json={"llm": {"config": {"temperature": 0.3}}})
    assert changed.status_code == 200
    with sqlite3.connect(f"file:{server.history}/app.db?mode=ro", uri=True) as tables:
        [(kept,)] = tables.execute("select value from settings where key = 'config_overrides'")
        assert json.loads(kept) == {"llm": {"config": {"temperature": 0.3}}}
        # Nor is each request a row.
        assert tables.execute("select count(*) from request_logs").fetchone() == (0,)
    tables.close()
    assert "request log" not in server.log()


def a_failed_extraction_is_an_error(server: Served, models: ScriptedRouter, user: str) -> None:
    models.rule("server_error", kind="chat")
    failed = server.add("My key lies under the flowerpot", user)
    assert (failed.status_code, failed.json().get("code")) == (503, "router_unreachable")
    assert ROUTER_NAME in failed.json()["detail"]
    models.behave()
    for words in (
        "",
        " \n",
        "I would rather not say.",
        '{"memory": [{"text": "cut of',
        '{"facts": ["a fact"]}',
        "{}",
        '["a fact"]',
        '{"memory": ["a fact"]}',
        '{"memory": [{"fact": "a fact"}]}',
        '{"memory": null}',
    ):
        models.answer = lambda _, words=words: words  # type: ignore[misc] # its own words
        failed = server.add("My key lies under the flowerpot", user)
        assert (failed.status_code, failed.json().get("code")) == (502, "model_answer"), words
    # A fact that was found and cannot be embedded would be lost likewise.
    models.answer = remembers("Ada plays the cello", "Ada likes unembeddable things")
    models.refused_words = ("unembeddable",)
    assert server.add("I like things", user).status_code == 502
    assert server.memories(user_id=user) == []
    models.refused_words = ()
    # What has no history would be stored by halves.
    models.answer = remembers("Ada plays the cello")
    for infer in (True, False):
        with _locked(server.history / "history.db"):
            failed = server.add("I play the cello", user, infer=infer)
        assert failed.status_code == 500, failed.text
        assert server.memories(user_id=user) == []
    # Nothing to remember is no failure.
    models.answer = remembers()
    nothing = server.add("Good morning!", user)
    assert (nothing.status_code, nothing.json()) == (200, {"results": []})


def a_scope_is_listed_and_deleted_whole(server: Served, models: ScriptedRouter, user: str) -> None:
    many = 1050
    points: list[dict[str, Any]] = [
        {
            "id": str(uuid.UUID(int=number)),
            "vector": {"": embedding(f"fact {number}", DIMENSIONS)},
            "payload": {
                "data": f"fact {number}",
                "user_id": user,
                "hash": str(number),
                "text_lemmatized": f"fact {number}",
                "created_at": f"2026-01-02T03:04:05.{number:06}+00:00",
            },
        }
        for number in range(many)
    ]
    stored = server.qdrant.put(f"/collections/{COLLECTION}/points", json={"points": points})
    assert stored.status_code == 200
    assert len(server.memories(user_id=user)) == many
    newest = [row["memory"] for row in server.memories(user_id=user, top_k=3)]
    assert newest == [f"fact {many - 1}", f"fact {many - 2}", f"fact {many - 3}"]
    assert server.api.get("/memories", params={"user_id": user, "top_k": 0}).status_code == 422
    every = [row for row in server.memories() if row["user_id"] == user]
    assert len(every) == many
    assert all(row["id"] and row["memory"] and not row["metadata"] for row in every)
    found = {row["id"]: row["total_memories"] for row in server.api.get("/entities").json()}
    assert found[user] == many
    few = f"{user}-few"
    for point in points[:120]:
        point["id"] = str(uuid.uuid4())
        point["payload"]["user_id"] = few
    server.qdrant.put(f"/collections/{COLLECTION}/points", json={"points": points[:120]})
    assert server.api.delete("/memories", params={"user_id": few}).status_code == 200
    assert server.memories(user_id=few) == []
    assert len(server.memories(user_id=user)) == many


def the_model_is_told_not_to_think(server: Served, models: ScriptedRouter, user: str) -> None:
    models.answer = remembers(HOUSE)
    assert server.add("My key lies under the flowerpot", user).status_code == 200
    [asked] = models.seen("chat")
    assert asked.body.get("chat_template_kwargs") == {"enable_thinking": False}
    assert asked.body["response_format"] == {"type": "json_object"}


def only_programs_of_this_machine_come_in(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    def ask(method: str, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        return server.api.request(method, path, headers=headers, **more)

    list_it = f"/memories?user_id={user}"
    server.add(HOUSE, user, infer=False)
    own = server.endpoint
    for host in (EVIL, f"{EVIL}:80", "localhost.evil.example", "192.168.0.1", "router-proxy", ""):
        assert ask("GET", list_it, {"Host": host}).status_code in (400, 403), host
    for host in ("localhost", "127.0.0.1:1", "[::1]:80", "healthcheck.pikuri.internal"):
        assert ask("GET", list_it, {"Host": host}).status_code == 200, host
    for origin in (f"http://{EVIL}", "null", "http://localhost:3000", own + "1"):
        for method, path in (("GET", list_it), ("POST", "/reset"), ("OPTIONS", "/memories")):
            refused = ask(method, path, {"Origin": origin})
            assert refused.status_code == 403, origin
            assert not [name for name in refused.headers if name.startswith("access-control")]
    assert ask("GET", list_it, {"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert ask("GET", list_it, {"Origin": own}).status_code == 200
    turn = {"messages": [{"role": "user", "content": "planted"}], "user_id": user, "infer": False}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json, text/plain"):
        planted = ask("POST", "/memories", {"Content-Type": kind}, content=json.dumps(turn))
        assert planted.status_code == 415, kind
    assert ask("POST", "/memories", {}, content=json.dumps(turn)).status_code == 415
    assert ask("POST", "/memories", {}, json={**turn, "x": "y" * 1_100_000}).status_code == 413
    assert [row["memory"] for row in server.memories(user_id=user)] == [HOUSE]
    # Whoever registers first owns everything.
    first = {"name": "Mallory", "email": "mallory@example.com", "password": "0123456789"}
    stranger = httpx.post(f"{own}/auth/register", json=first, trust_env=False)
    assert stranger.status_code == 401
    for path in ("/memories", "/entities", "/configure", "/auth/setup-status", "/nothing"):
        assert httpx.get(own + path, trust_env=False).status_code == 401, path
    for path in ("/docs", "/openapi.json", "/auth/register"):
        assert httpx.post(own + path, trust_env=False).status_code == 401, path
    # What is no ASCII is no key; the routes could not even compare it.
    for header in ((b"X-API-Key", b"m0sk_\xff"), (b"Authorization", b"Bearer \xff")):
        odd = httpx.get(own + list_it, headers=[header], trust_env=False)
        assert (odd.status_code, "hint" in odd.json()) == (401, True), header
    # The administrator's key opens the doors that it opens in our own server.
    key = server.key.encode()
    doors: list[dict[bytes, bytes]] = [
        {b"Authorization": b"Bearer " + key},
        {b"Authorization": b"token  " + key},
        {b"Authorization": b"Bearer " + key, b"X-API-Key": b"wrong"},
        {b"Authorization": b"Bearer wrong", b"X-API-Key": key},
        {b"Authorization": b"Bearer \xff", b"X-API-Key": key},
    ]
    for door in doors:
        opened = httpx.get(own + list_it, headers=door, trust_env=False)
        assert opened.status_code == 200, door
    for scheme in (b"", b"Basic ", b"BearerX "):
        door = {b"Authorization": scheme + key}
        assert httpx.get(own + list_it, headers=door, trust_env=False).status_code == 401
    # Without a key file nobody has a key.
    key_file = server.secrets / "admin_api_key"
    key_file.write_text("")
    try:
        for headers in ({}, {"X-API-Key": "m0sk_x"}, {"Authorization": "Bearer x"}):
            for method, path in (
                ("GET", list_it),
                ("POST", "/auth/login"),
                ("POST", "/auth/register"),
            ):
                assert ask(method, path, headers, json={}).status_code == 401
    finally:
        key_file.write_text(server.key + "\n")
    assert ask("GET", list_it, {}).status_code == 200
    shown = httpx.get(f"{own}/openapi.json", trust_env=False)
    assert shown.status_code == 200
    assert shown.headers["cache-control"] == "no-store"
    assert shown.headers["content-security-policy"].startswith("default-src 'none';")


def a_request_says_whose_memories_it_is_about(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    server.add(HOUSE, user, infer=False)
    none: list[dict[str, Any]] = [{}, {"user_id": ""}, {"user_id": "  "}, {"user_id": "*"}]
    for scope in none:
        replies = [
            server.api.post("/memories", json={"messages": "of nobody", **scope}),
            server.api.post("/search", json={"query": "key", **scope}),
            server.api.post("/search", json={"query": "key", "filters": scope}),
            server.api.delete("/memories", params=scope),
        ]
        assert [reply.status_code for reply in replies] == [400] * 4, scope
        assert {reply.json().get("code") for reply in replies} == {"scope_required"}
    wide = {"query": "key", "filters": {"user_id": {"ne": "nobody"}}}
    assert server.api.post("/search", json=wide).status_code == 400
    inner: list[tuple[dict[str, Any], str | None]] = [
        ({"AND": [{"user_id": user}]}, "invalid_filter"),
        ({"AND": {"user_id": {"eq": user}}}, "invalid_filter"),
        ({"AND": [{"user_id": "*"}]}, "scope_required"),
        ({"$or": [{"user_id": user}]}, "invalid_filter"),
        # Conditions, which only narrow it.
        ({"OR": [{"user_id": user}, {"kind": "x"}]}, None),
        ({"NOT": [{"user_id": "x"}]}, None),
        ({"AND": [{"OR": [{"user_id": user}]}]}, None),
        ({"') OR 1=1 --": "x"}, None),
    ]
    for inside, code in inner:
        sought = {"query": "key", "filters": {"user_id": "guest", **inside}}
        answer = server.api.post("/search", json=sought).json()
        assert (answer.get("code"), answer.get("results", [])) == (code, []), inside
    own: list[dict[str, Any]] = [
        {"user_id": {"eq": f" {user} "}},
        {"AND": [{"user_id": user}, {"user_id": {"ne": "x"}}]},
        {"AND": {"user_id": user}, "agent_id": None},
    ]
    for filters in own:
        found = server.api.post("/search", json={"query": "key", "filters": filters}).json()
        assert [row["memory"] for row in found.get("results", [])] == [HOUSE], (filters, found)
    for odd_number in ({"top_k": 0}, {"top_k": 1001}, {"top_k": "5"}, {"threshold": 1.5}):
        odd_search = {"query": "key", "user_id": user, **odd_number}
        assert server.api.post("/search", json=odd_search).status_code == 422, odd_number
    assert server.api.delete("/entities/user/*").status_code == 400
    assert server.api.get(f"/memories?user_id={user}&user_id=other").status_code == 422
    assert [row["memory"] for row in server.memories(user_id=user)] == [HOUSE]
    # The last one counts, for whoever reads it.
    body = f'{{"messages": "said twice", "user_id": "x", "user_id": "{user}/2", "infer": false}}'
    kind = {"Content-Type": "application/json"}
    assert server.api.post("/memories", content=body, headers=kind).status_code == 200
    assert [row["memory"] for row in server.memories(user_id=f"{user}/2")] == ["said twice"]
    assert server.api.delete(f"/entities/user/{user}%2F2").status_code == 200
    assert server.memories(user_id=f"{user}/2") == []
    # An id is decoded once.
    assert server.add("of a percent sign", f"{user}%2A", infer=False).status_code == 200
    assert server.api.delete(f"/entities/user/{user}%252A").status_code == 200
    assert server.memories(user_id=f"{user}%2A") == []
    assert server.add("of a star", "%2A", infer=False).status_code == 200
    assert server.api.delete("/entities/user/%252A").status_code == 200
    assert server.memories(user_id="%2A") == []
    memory_id = server.memories(user_id=user)[0]["id"]
    learnt = "2020-02-03T04:05:06+00:00"
    early = server.add(
        "learnt early", f"{user}-early", infer=False, metadata={"created_at": learnt}
    )
    assert early.status_code == 200
    [row] = server.memories(user_id=f"{user}-early")
    assert (row["created_at"], row.get("metadata")) == (learnt, None)
    _times_are_told_in_utc(server, user)
    _a_memory_has_one_id(server, user)
    long = server.add("a short text", user, infer=False, prompt="p" * 100_001)
    assert (long.status_code, long.json().get("code")) == (413, "too_large")
    for name in ("created_at", "data", "expiration_date", "role"):
        refused = server.add(HOUSE, user, infer=False, metadata={name: "mine"})
        assert (refused.status_code, name in refused.json()["detail"]) == (422, True)
    changes: list[dict[str, Any]] = [{}, {"text": " "}, {"text": None}]
    changes += [{"metadata": {"user_id": "x"}}, {"metadata": {"created_at": learnt}}]
    for change in changes:
        refused = server.api.put(f"/memories/{memory_id}", json=change)
        assert refused.status_code == 422, change
    for odd in ('{"n": NaN}', '{"n": 1e999}', '"\\ud800"', "9" * 30, "[" * 5000 + "]" * 5000):
        body = f'{{"messages": "x", "user_id": "{user}", "metadata": {{"a": {odd}}}}}'
        assert server.api.post("/memories", content=body, headers=kind).status_code == 422, odd


def _times_are_told_in_utc(server: Served, user: str) -> None:
    named = f"{user}-times"
    never = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", 5)
    for time in never:
        refused = server.add("at no time", named, infer=False, metadata={"created_at": time})
        assert refused.status_code == 422, time
    given = {
        "at 10": "2026-01-01T10:00:00+00:00",
        "at 6": "2026-01-01T11:00:00+05:00",
        "a year later": "20270101T100000Z",
    }
    for text, time in given.items():
        added = server.add(text, named, infer=False, metadata={"created_at": time})
        assert added.status_code == 200, time
    assert [(row["memory"], row["created_at"]) for row in server.memories(user_id=named)] == [
        ("a year later", "2027-01-01T10:00:00+00:00"),
        ("at 10", "2026-01-01T10:00:00+00:00"),
        ("at 6", "2026-01-01T06:00:00+00:00"),
    ]
    # One that is there already can be deleted.
    memory_id = str(uuid.uuid4())
    point = {
        "id": memory_id,
        "vector": {"": embedding("at no time", DIMENSIONS)},
        "payload": {"data": "at no time", "user_id": named, "created_at": never[0]},
    }
    server.qdrant.put(f"/collections/{COLLECTION}/points", json={"points": [point]})
    assert len(server.memories(user_id=named)) == 4
    assert server.api.delete(f"/memories/{memory_id}").status_code == 200
    assert len(server.memories(user_id=named)) == 3


def _a_memory_has_one_id(server: Served, user: str) -> None:
    def upper(memory_id: str) -> str:
        return memory_id.upper()

    def bare(memory_id: str) -> str:
        return memory_id.replace("-", "")

    for other in (upper, bare):
        added = server.add("The safe opens with 161803", f"{user}-ids", infer=False)
        memory_id = added.json()["results"][0]["id"]
        path = f"/memories/{other(memory_id)}"
        assert server.api.get(path).json()["id"] == memory_id
        assert server.api.put(path, json={"text": "It opens with 141421"}).status_code == 200
        assert server.api.delete(path).status_code == 200
        changes = server.api.get(f"/memories/{memory_id}/history")
        assert [change["event"] for change in changes.json()] == ["ADD", "UPDATE", "DELETE"]
        assert "161803" not in changes.text
        assert "141421" not in changes.text
        assert server.api.get(f"{path}/history").json() == changes.json()


def a_memory_that_is_not_there_is_not_found(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    gone = server.add(HOUSE, user, infer=False).json()["results"][0]["id"]
    assert server.api.delete(f"/memories/{gone}").status_code == 200
    for memory_id in (gone, str(uuid.uuid4()), "no-uuid", "7"):
        path = f"/memories/{memory_id}"
        replies = [
            server.api.get(path),
            server.api.put(path, json={"text": "anything"}),
            server.api.delete(path),
        ]
        if memory_id != gone:
            replies.append(server.api.get(f"{path}/history"))
        assert {reply.status_code for reply in replies} == {404}
        assert {reply.json().get("code") for reply in replies} == {"not_found"}


def what_an_update_does_not_name_stays(server: Served, models: ScriptedRouter, user: str) -> None:
    added = server.add(HOUSE, user, infer=False, metadata={"source": "chat"})
    path = f"/memories/{added.json()['results'][0]['id']}"
    before = server.api.get(path).json()
    assert server.api.put(path, json={"text": "The key is in the shed"}).status_code == 200
    after = server.api.get(path).json()
    assert after["memory"] == "The key is in the shed"
    assert after.get("metadata") == {"source": "chat"}
    assert server.api.put(path, json={"metadata": {"source": "letter"}}).status_code == 200
    last = server.api.get(path).json()
    assert (last["memory"], last["metadata"]) == (after["memory"], {"source": "letter"})
    assert (last["created_at"], last["user_id"]) == (before["created_at"], user)


def what_is_deleted_is_erased(server: Served, models: ScriptedRouter, user: str) -> None:
    models.answer = remembers("The number of the safe is 314159")
    said = server.add("My safe opens with 314159", user)
    path = f"/memories/{said.json()['results'][0]['id']}"
    server.api.put(path, json={"text": "The number of the safe is 271828"})
    assert server.api.delete(path).status_code == 200
    changes = server.api.get(f"{path}/history").json()
    assert [change["event"] for change in changes] == ["ADD", "UPDATE", "DELETE"]
    assert {(change["old_memory"], change["new_memory"]) for change in changes} == {(None, None)}
    for file in server.history.iterdir():
        content = file.read_bytes()
        assert b"314159" not in content, file.name
        assert b"271828" not in content, file.name
    # A scope too, by whoever is first, and by whoever asks again meanwhile.
    models.answer = remembers("The number of the safe is 173205")
    server.add("My safe opens with 173205", user)
    for number in range(60):
        assert server.add(f"Box {number} opens with 223606", user, infer=False).is_success
    ids = [row["id"] for row in server.memories(user_id=user)]
    assert len(ids) == 61
    with ThreadPoolExecutor(4) as pool:
        ask = [
            pool.submit(server.api.delete, "/memories", params={"user_id": user}) for _ in range(4)
        ]
        assert [asked.result().status_code for asked in ask] == [200] * 4
    assert server.memories(user_id=user) == []
    for memory_id in ids:
        changes = server.api.get(f"/memories/{memory_id}/history").json()
        assert [change["event"] for change in changes] == ["ADD", "DELETE"]
    for file in server.history.iterdir():
        content = file.read_bytes()
        assert b"173205" not in content, file.name
        assert b"223606" not in content, file.name


def the_documentation_asks_nobody_else(server: Served, models: ScriptedRouter, user: str) -> None:
    with httpx.Client(base_url=server.endpoint, timeout=60, trust_env=False) as stranger:
        page = stranger.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert set(re.findall(r'(?:src|href)="([^"]+)"', page.text)) == {
            *("data:,", "/docs/docs.css", "/docs/docs.js", "/openapi.json")
        }
        for name, media in (("docs.js", "text/javascript"), ("docs.css", "text/css")):
            shown = stranger.get(f"/docs/{name}")
            assert shown.headers["content-type"] == f"{media}; charset=utf-8"
            assert shown.content == (EMBEDDED / "static" / name).read_bytes()
        # Nor is there another page of the framework's.
        assert server.api.get("/redoc").status_code == 404
        assert server.api.get("/docs/oauth2-redirect").status_code == 404


def an_error_says_what_failed_and_what_to_do(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    word = "Quetzalcoatl"
    memory_id = server.add(word, user, infer=False).json()["results"][0]["id"]
    put = f"/memories/{memory_id}"
    cases: list[tuple[str, str, Any, int, str]] = [
        ("GET", f"/{word}", None, 404, "not_found"),
        ("GET", f"/memories/{uuid.uuid4()}", None, 404, "not_found"),
        ("PATCH", "/memories", {"text": word}, 405, "method_not_allowed"),
        ("PUT", put, {"metadata": [word]}, 422, "invalid_request"),
        ("POST", "/configure", [word], 422, "invalid_request"),
        ("GET", f"/memories?user_id={user}&top_k={word}", None, 422, "invalid_request"),
        ("DELETE", f"/entities/{word}/x", None, 422, "invalid_request"),
    ]
    turn = {"messages": [{"role": "user", "content": word}], "user_id": user, "infer": False}
    cases.append(("POST", "/memories", {**turn, "memory_type": word}, 422, "invalid_request"))
    replies = []
    for method, path, body, status, code in cases:
        reply = server.api.request(method, path, json=body)
        assert (reply.status_code, reply.json().get("code")) == (status, code), (method, path)
        replies.append(reply)
    stranger = {"X-API-Key": "m0sk_" + "x" * 43}
    with httpx.Client(base_url=server.endpoint, timeout=60, trust_env=False) as other:
        reply = other.get("/memories", params={"user_id": user}, headers=stranger)
    assert (reply.status_code, reply.json().get("code")) == (401, "unauthenticated")
    replies.append(reply)
    troubles: list[tuple[Callable[[], None], int, str]] = [
        (lambda: models.rule("server_error", kind="embedding"), 503, "router_unreachable"),
        (lambda: models.rule("too_many_requests", kind="embedding"), 503, "router_busy"),
        (lambda: setattr(models, "refused_words", (word,)), 502, "router_refused"),
        (lambda: setattr(models, "api_key", "another"), 502, "router_refused"),
        (lambda: setattr(models, "embedding_models", ()), 502, "router_refused"),
    ]
    for begin, status, code in troubles:
        offered = models.embedding_models
        begin()
        reply = server.add(word, user)
        models.behave()
        models.refused_words, models.api_key, models.embedding_models = (), None, offered
        assert (reply.status_code, reply.json().get("code")) == (status, code)
        assert ROUTER_NAME in reply.json()["detail"]
        assert ("retry-after" in reply.headers) is (status == 503)
        replies.append(reply)
    reply = server.api.post("/configure", json={"version": [word]})
    assert (reply.status_code, reply.json().get("code")) == (500, "error")
    assert server.api.post("/configure", json={"version": "v1.1"}).status_code == 200
    reference = reply.json()["detail"].split()[-1]
    assert reference in reply.json()["hint"]
    assert f"internal error {reference}" in server.log()
    replies.append(reply)
    with _locked(server.history / "history.db"):
        reply = server.add(word, user, infer=False)
    assert (reply.status_code, reply.json().get("code")) == (500, "storage")
    assert "`pikuri-memory logs mem0`" in reply.json()["hint"]
    replies.append(reply)
    for reply in replies:
        told = reply.json()
        assert set(told) == {"detail", "hint", "code"}
        assert all(isinstance(part, str) and part for part in told.values()), told
        assert word not in reply.text
    assert word not in server.log()


def a_filter_means_what_the_documentation_says(
    server: Served, models: ScriptedRouter, user: str
) -> None:
    kept: dict[str, dict[str, Any]] = {
        "one": {"note": "told by Doctor Aho", "tags": ["a", "b"], "n": 1.5, "day": "2025-05-01"},
        "two": {"note": "STRASSE", "n": 2, "nested": {"a": 1}, "a.b": "dotted"},
        "three": {"n": 2.0, "sure": True, "note": None, "day": "2025-04-30T23:30:00-02:00"},
        "four": {"n": True, "tags": [["a"]], "note": "*"},
    }
    for name, metadata in kept.items():
        assert server.add(f"number {name}", user, infer=False, metadata=metadata).is_success
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"note": {"contains": "Doc"}}, {"one"}),
        ({"note": {"contains": "doc"}}, set()),
        ({"note": {"icontains": "straße"}}, {"two"}),
        ({"note": "*"}, {"one", "two", "four"}),
        ({"note": {"eq": "*"}}, {"four"}),
        ({"note": None}, {"three"}),
        ({"tags": "a"}, {"one"}),
        ({"tags": {"contains": "b"}}, {"one"}),
        ({"tags": {"nin": ["a"]}}, {"two", "three", "four"}),
        ({"n": 2}, {"two", "three"}),
        ({"n": True}, {"four"}),
        ({"n": {"gt": 1, "ne": 1.5}}, {"two", "three"}),
        ({"n": 1.5}, {"one"}),
        ({"a.b": "dotted"}, {"two"}),
        ({"nested": "*"}, {"two"}),
        ({"day": {"gt": "2025-05-01"}}, {"three"}),
        ({"day": {"gt": "2025"}}, {"one", "three"}),
        ({"AND": [{"n": {"gt": 1}}, {"n": {"lt": 2}}]}, {"one"}),
        (
            {"AND": [{"OR": [{"n": 2}, {"n": 1.5}]}, {"OR": [{"tags": "a"}, {"sure": True}]}]},
            {"one", "three"},
        ),
        ({"NOT": {"OR": [{"note": "*"}, {"sure": False}]}}, {"three"}),
        ({"data": "*"}, set()),
        ({"created_at": {"gte": "2020-01-01"}, "id": "*"}, {"one", "two", "three", "four"}),
    ]
    for condition, names in cases:
        # Few of them, so that a filter of what was found already would find less.
        asked = {"query": "number four", "top_k": max(1, len(names)), "threshold": 0}
        asked["filters"] = {"user_id": user, **condition}
        hits = server.api.post("/search", json=asked).json()["results"]
        assert {hit["memory"].split()[1] for hit in hits} == names, condition
    malformed: list[dict[str, Any]] = [
        {"n": {"like": 1}},
        {"OR": []},
        {"n": {}},
        {"created_at": 5},
        {"n": [{}]},
    ]
    for wrong in malformed:
        refused = server.api.post(
            "/search", json={"query": "x", "filters": {"user_id": user, **wrong}}
        )
        assert (refused.status_code, refused.json().get("code")) == (422, "invalid_filter"), wrong
        assert "icontains" in refused.json()["hint"]


def a_memory_is_found_until_its_last_day(server: Served, models: ScriptedRouter, user: str) -> None:
    today = datetime.now(UTC).date()
    days = {"past": "2020-01-31", "today": today.isoformat(), "future": "2999-12-31"}
    ids = {}
    for name, day in days.items():
        added = server.add(f"voucher of the {name}", user, infer=False, expiration_date=day)
        ids[name] = added.json()["results"][0]["id"]
    paths = {name: f"/memories/{memory_id}" for name, memory_id in ids.items()}

    def seen(**more: Any) -> tuple[set[str], set[str], set[str]]:
        asked = {"query": "voucher", "user_id": user, "threshold": 0, **more}
        found = server.api.post("/search", json=asked).json()["results"]
        everybody = [row for row in server.memories(**more) if row["user_id"] == user]
        lists = (server.memories(user_id=user, **more), everybody, found)
        for row in (row for rows in lists for row in rows):
            assert row.get("expiration_date") == days[row["memory"].split()[-1]]
            assert not row.get("metadata")
        told = [{row["memory"].split()[-1] for row in rows} for rows in lists]
        return told[0], told[1], told[2]

    assert seen() == ({"today", "future"},) * 3
    assert seen(show_expired=True) == ({"past", "today", "future"},) * 3
    # Those that are left out do not count.
    one = {"query": "voucher of the past", "user_id": user, "top_k": 1, "threshold": 0}
    [hit] = server.api.post("/search", json=one).json()["results"]
    assert hit["memory"] != "voucher of the past"
    [row] = server.memories(user_id=user, top_k=1)
    assert row["memory"] == "voucher of the future"
    by_day = {"expiration_date": {"lt": "2021-01-01"}, "user_id": user}
    asked = {"query": "voucher", "filters": by_day, "show_expired": True, "threshold": 0}
    [hit] = server.api.post("/search", json=asked).json()["results"]
    assert hit["id"] == ids["past"]
    # The model is not shown it either, and may find it anew.
    models.answer = remembers("voucher of the past")
    again = server.add("My voucher is of the past", user)
    assert [row["event"] for row in again.json()["results"]] == ["ADD"]
    assert "voucher of the past" not in json.dumps(models.seen("chat")[0].body)
    assert "voucher of the future" in json.dumps(models.seen("chat")[0].body)
    server.api.delete(f"/memories/{again.json()['results'][0]['id']}")
    # An update changes the day, takes it away, or leaves it.
    server.api.put(paths["today"], json={"metadata": {"a": 1}})
    kept = server.api.get(paths["today"]).json()
    assert (kept["expiration_date"], kept["metadata"]) == (days["today"], {"a": 1})
    server.api.put(paths["today"], json={"expiration_date": "2020-02-01"})
    assert ids["today"] not in {row["id"] for row in server.memories(user_id=user)}
    server.api.put(paths["past"], json={"expiration_date": None})
    assert ids["past"] in {row["id"] for row in server.memories(user_id=user)}
    assert server.api.get(paths["past"]).json().get("expiration_date") is None
    for wrong in ("2026-02-30", "10000-01-01", "2026-1-1", "2026-01-01T00:00", 7, ""):
        refused = server.add("voucher", user, infer=False, expiration_date=wrong)
        assert refused.status_code == 422, wrong
        refused = server.api.put(paths["past"], json={"expiration_date": wrong})
        assert refused.status_code == 422, wrong
    # What has expired is deleted with its scope.
    assert server.api.delete("/memories", params={"user_id": user}).status_code == 200
    assert server.memories(user_id=user, show_expired=True) == []


def an_id_may_have_spaces(server: Served, models: ScriptedRouter, user: str) -> None:
    name = f"{user} Lovelace"
    added = server.add("Ada plays the cello", name, infer=False)
    assert added.status_code == 200, added.text
    assert [row["memory"] for row in server.memories(user_id=name)] == ["Ada plays the cello"]
    asked = {"query": "cello", "user_id": name, "threshold": 0}
    [hit] = server.api.post("/search", json=asked).json()["results"]
    assert hit["user_id"] == name
    for odd in (f"{user}\tLovelace", f"{user}\nLovelace", f"{user}\u2028"):
        assert server.add("x", odd + "x", infer=False).status_code == 422
    assert server.api.delete(f"/entities/user/{name}").status_code == 200
    assert server.memories(user_id=name) == []


Promise = Callable[[Served, ScriptedRouter, str], None]
PROMISES: dict[str, Promise] = {
    "01-qdrant": memories_live_in_qdrant,
    "02-sqlite": accounts_keys_and_settings_need_no_postgres,
    "03-extraction-errors": a_failed_extraction_is_an_error,
    "04-whole-scope": a_scope_is_listed_and_deleted_whole,
    "05-no-thinking": the_model_is_told_not_to_think,
    "06-guard": only_programs_of_this_machine_come_in,
    "07-requests": a_request_says_whose_memories_it_is_about,
    "08-not-found": a_memory_that_is_not_there_is_not_found,
    "09-updates-keep": what_an_update_does_not_name_stays,
    "10-erasure": what_is_deleted_is_erased,
    "11-documentation": the_documentation_asks_nobody_else,
    "12-errors": an_error_says_what_failed_and_what_to_do,
    "13-filters": a_filter_means_what_the_documentation_says,
    "14-expiry": a_memory_is_found_until_its_last_day,
    "15-ids": an_id_may_have_spaces,
}


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Nobody else can write to it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def _filter(user: str) -> dict[str, Any]:
    return {"filter": {"must": [{"key": "user_id", "match": {"value": user}}]}, "exact": True}


# ------------------------------------------------------------------ with and without


@pytest.fixture(scope="session")
def image(engine_ready: None, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of the stack, built of a source with all patches."""
    source = _source(upstream, tmp_path_factory.mktemp("image"), PROMISES)
    tag = "pikuri-test-mem0:patched"
    with alone("build"):
        patched.build(tag, source, bundle())
    return tag


@pytest.fixture(scope="module")
def models() -> Iterator[ScriptedRouter]:
    """One router for all: its port is in the server's settings."""
    with ollama() as running:
        yield running


@pytest.fixture
def script(models: ScriptedRouter) -> ScriptedRouter:
    """The router, as if it had just been started."""
    models.behave()
    models.answer, models.refused_words = remembers(), ()
    models.requests.clear()
    return models


@pytest.fixture(scope="module")
def whole(
    image: str, upstream: Upstream, models: ScriptedRouter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The server with all patches."""
    source = _source(upstream, tmp_path_factory.mktemp("whole"), PROMISES)
    with alone("engine", shared=True), served(image, source, models) as running:
        yield running


def _source(upstream: Upstream, directory: Path, names: Any) -> Path:
    patches = [PATCHES / f"{name}.patch" for name in sorted(names)]
    return patched.checkout(directory, upstream.url, upstream.ref, patches)


def test_every_patch_of_the_pin_has_its_promise() -> None:
    assert patch_names(PATCHES) == sorted(PROMISES)


@pytest.mark.parametrize("patch", sorted(PROMISES))
def test_a_patch_keeps_its_promise(whole: Served, script: ScriptedRouter, patch: str) -> None:
    PROMISES[patch](whole, script, f"with-{patch}")


@pytest.mark.parametrize("patch", sorted(PROMISES))
def test_without_the_patch_its_promise_is_broken(
    image: str, upstream: Upstream, script: ScriptedRouter, tmp_path: Path, patch: str
) -> None:
    source = _source(upstream, tmp_path, set(PROMISES) - {patch})
    with (
        alone("engine", shared=True),
        pytest.raises(AssertionError),
        served(image, source, script) as running,
    ):
        PROMISES[patch](running, script, f"without-{patch}")


# ------------------------------------------------------------------ the files themselves


def test_a_patch_that_no_longer_applies_stops_the_build_and_names_the_hunk(
    upstream: Upstream, tmp_path: Path
) -> None:
    source = patched.checkout(tmp_path / "a", upstream.url, upstream.ref, [])
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    main = changed / "server" / "main.py"
    lines = main.read_text()
    assert "ALL_MEMORIES_LIMIT = 1000" in lines
    main.write_text(lines.replace("ALL_MEMORIES_LIMIT = 1000", "ALL_MEMORIES_LIMIT = 999"))
    git = ["git", "-C", str(changed), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "moved on"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    patches = sorted(PATCHES.glob("*.patch"))
    with pytest.raises(PatchError, match=r"04-whole-scope\.patch .*server/main\.py, hunk 1 "):
        patched.checkout(tmp_path / "b", str(changed), head.stdout.strip(), patches)


@pytest.mark.parametrize("patch", sorted(PROMISES))
def test_a_patch_has_one_purpose_and_says_why(patch: str) -> None:
    head, _, change = (PATCHES / f"{patch}.patch").read_text().partition("diff --git ")
    assert len(head.strip().splitlines()) >= 3
    assert change
    # Three lines of context would be three lines of somebody else's code.
    run = 0
    for line in change.splitlines():
        run = run + 1 if line.startswith(" ") else 0
        assert run <= 3, line


def test_the_licence_of_mem0_lies_beside_its_lines() -> None:
    assert "Apache License" in (PATCHES / "LICENSE-mem0").read_text()
    assert "Taranjeet Singh" in (PATCHES / "NOTICE").read_text()
