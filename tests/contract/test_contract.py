"""The contract of a memory server, as its clients and its plain HTTP show it.

Rows of the table of complaints: 3 and 4 (what is accepted is there), 10 (a key), 15 (no
duplicates), 16 (newer first), 23 (a scope is required).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from pikuri_memory import Mem0Client, Record
from pikuri_memory.errors import (
    AuthenticationError,
    DuplicateTextError,
    FilterError,
    IdempotencyConflictError,
    InvalidRequestError,
    MemoryNotFoundError,
    PikuriMemoryError,
    ScopeRequiredError,
    TooLargeError,
)

from .subjects import Subject

FACTS = {
    "green": "Ada drinks a pot of green tea every morning.",
    "cello": "Ada plays the cello in a string quartet.",
    "turku": "Ada moved to Turku in 2019 because of her job.",
    "nuts": "Ada must not eat peanuts: they make her throat swell.",
    "dog": "Ada walks her greyhound twice a day.",
}
UNKNOWN = str(uuid.UUID(int=7))


def stored(memory: Mem0Client, texts: list[str], user: str = "ada", **more: Any) -> list[str]:
    """Store texts one by one; their ids."""
    return [memory.add(text, user_id=user, infer=False, **more)[0].id for text in texts]


def texts(records: list[Record]) -> list[str]:
    return [record.text for record in records]


# ------------------------------------------------------------------ the main job


def test_what_is_added_is_read_back_exactly(client: Mem0Client) -> None:
    [added] = client.add(
        "  Käthe wohnt in Zürich 🏔\n", user_id="ada", metadata={"n": 1, "l": ["x", None, 2.5]}
    )
    assert added.event == "ADD"
    found = client.get(added.id)
    assert found.id == added.id
    assert found.text.strip() == "Käthe wohnt in Zürich 🏔"
    assert found.metadata == {"n": 1, "l": ["x", None, 2.5]}
    assert found.user_id == "ada"
    assert found.created_at is not None
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert [record.id for record in client.get_all(user_id="ada")] == [added.id]


def test_each_user_message_of_a_conversation_is_stored(client: Mem0Client) -> None:
    client.add_messages(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "My sister is called Vilja."},
            {"role": "assistant", "content": "What does Vilja do?"},
            {"role": "user", "content": "She studies law in Uppsala."},
        ],
        user_id="ada",
        infer=False,
    )
    assert sorted(texts(client.get_all(user_id="ada"))) == [
        "My sister is called Vilja.",
        "She studies law in Uppsala.",
    ]
    own_words = [{"role": "assistant", "content": "Vilja sounds nice."}]
    with pytest.raises(InvalidRequestError):
        client.add_messages(own_words, user_id="ada", infer=False)
    assert len(client.get_all(user_id="ada")) == 2


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What does she have at breakfast?", "green"),
        ("Which instrument is hers?", "cello"),
        ("In which city does she live?", "turku"),
        ("Does she have an allergy?", "nuts"),
        ("What pet is hers?", "dog"),
    ],
)
def test_the_right_memory_comes_first_in_other_words(
    client: Mem0Client, question: str, answer: str
) -> None:
    stored(client, list(FACTS.values()))
    hits = client.search(question, user_id="ada", top_k=3)
    assert hits[0].text == FACTS[answer]
    assert len(hits) <= 3
    scores = [hit.score for hit in hits]
    assert all(score is not None and 0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True, key=lambda score: score or 0.0)


def test_a_search_stays_within_its_scope(client: Mem0Client) -> None:
    stored(client, ["The cat of Ada is called Nalle."], "ada")
    stored(client, ["The cat of Bo is called Sisu."], "bo")
    assert texts(client.search("the name of the cat", user_id="ada")) == [
        "The cat of Ada is called Nalle."
    ]
    assert texts(client.search("the name of the cat", filters={"user_id": "bo"})) == [
        "The cat of Bo is called Sisu."
    ]
    assert client.search("the name of the cat", user_id="nobody") == []


def test_an_id_may_have_any_printable_character(client: Mem0Client) -> None:
    for name in ("Ada Lovelace", "ada@example.com", "Åsa/Öberg", "100%", "a&b=c#d?", "李"):
        [added] = client.add(f"Tea for {name}", user_id=name, infer=False)
        assert texts(client.get_all(user_id=name)) == [f"Tea for {name}"]
        [found] = client.search("tea", user_id=name)
        assert (found.id, found.user_id) == (added.id, name)
        client.delete_all(user_id=name)
        assert client.get_all(user_id=name) == []


def test_the_ids_of_a_scope_all_count(client: Mem0Client) -> None:
    client.add("Tea for two", user_id="ada", agent_id="cook", infer=False)
    client.add("Tea for one", user_id="ada", agent_id="diary", infer=False)
    assert texts(client.search("tea", user_id="ada", agent_id="cook")) == ["Tea for two"]
    assert len(client.search("tea", user_id="ada")) == 2
    assert client.search("tea", user_id="bo", agent_id="cook") == []


def test_a_change_is_found_and_what_was_before_is_not(client: Mem0Client) -> None:
    [memory_id] = stored(client, ["Ada lives in Turku."], metadata={"source": "chat"})
    client.update(memory_id, "Ada lives in Tampere.")
    assert client.get(memory_id).text == "Ada lives in Tampere."
    assert texts(client.search("Where does Ada live?", user_id="ada")) == ["Ada lives in Tampere."]


@pytest.mark.feature("partial_update")
def test_an_update_leaves_what_it_does_not_name(client: Mem0Client) -> None:
    [memory_id] = stored(client, ["Ada lives in Turku."], metadata={"source": "chat"})
    before = client.get(memory_id)
    client.update(memory_id, "Ada lives in Tampere.")
    assert client.get(memory_id).metadata == {"source": "chat"}
    client.update(memory_id, metadata={"source": "letter"})
    after = client.get(memory_id)
    assert (after.text, after.metadata) == ("Ada lives in Tampere.", {"source": "letter"})
    assert after.created_at == before.created_at
    assert before.updated_at is not None
    assert after.updated_at is not None
    assert after.updated_at > before.updated_at


def test_a_deleted_memory_is_nowhere(client: Mem0Client) -> None:
    gone, kept = stored(client, ["The password of the wifi is hunter2.", "Ada likes tea."])
    client.delete(gone)
    with pytest.raises(MemoryNotFoundError):
        client.get(gone)
    assert texts(client.get_all(user_id="ada")) == ["Ada likes tea."]
    assert [hit.id for hit in client.search("password of the wifi", user_id="ada")] in ([], [kept])
    with pytest.raises(MemoryNotFoundError):
        client.delete(gone)


def test_deleting_a_scope_leaves_the_others(client: Mem0Client) -> None:
    stored(client, ["One of Ada.", "Two of Ada."], "ada")
    stored(client, ["One of Bo."], "bo")
    client.delete_all(user_id="ada")
    assert client.get_all(user_id="ada") == []
    assert client.search("one or two", user_id="ada") == []
    assert texts(client.get_all(user_id="bo")) == ["One of Bo."]


def test_a_scope_may_be_deleted_by_several_at_once(client: Mem0Client, http: httpx.Client) -> None:
    stored(client, [f"Number {number} of Ada." for number in range(30)])
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(http.delete, "/memories", params={"user_id": "ada"}) for _ in range(4)]
        assert [each.result().status_code for each in asked] == [200] * 4
    assert client.get_all(user_id="ada") == []


def test_a_reset_leaves_nothing(client: Mem0Client) -> None:
    stored(client, ["One of Ada."], "ada")
    stored(client, ["One of Bo."], "bo")
    client.reset()
    assert client.get_all(user_id="ada") == []
    assert client.search("one", user_id="bo") == []


def test_unknown_memories_are_not_found(client: Mem0Client) -> None:
    for memory_id in (UNKNOWN, "no-uuid", "../memories"):
        with pytest.raises(MemoryNotFoundError):
            client.get(memory_id)
        with pytest.raises(MemoryNotFoundError):
            client.update(memory_id, "anything")
        with pytest.raises(MemoryNotFoundError):
            client.delete(memory_id)


def test_health_is_told_without_a_key(client: Mem0Client, stranger: httpx.Client) -> None:
    assert client.health().status == "ok"
    assert stranger.get("/openapi.json").status_code == 200


# ------------------------------------------------------------------ lists


def test_the_whole_scope_is_listed_newest_first(client: Mem0Client) -> None:
    numbered = [f"Ada read book number {number}." for number in range(130)]
    stored(client, numbered)
    stored(client, ["Bo reads nothing."], "bo")
    assert texts(client.get_all(user_id="ada")) == numbered[::-1]


@pytest.mark.feature("pages")
def test_pages_follow_each_other(client: Mem0Client, http: httpx.Client) -> None:
    numbered = [f"Ada read book number {number}." for number in range(47)]
    stored(client, numbered)
    assert texts(client.get_all(user_id="ada", page_size=10)) == numbered[::-1]
    assert texts(client.get_all(user_id="ada", page_size=10, limit=23)) == numbered[:23:-1]
    first = http.get("/memories", params={"user_id": "ada", "top_k": 20}).json()
    assert len(first["results"]) == 20
    whole = http.get("/memories", params={"user_id": "ada"}).json()
    assert len(whole["results"]) == 47
    with pytest.raises(InvalidRequestError):
        list(client.iterate(user_id="ada", page_size=0))


# ------------------------------------------------------------------ history


@pytest.mark.feature("history")
def test_the_history_tells_every_change_and_forgets_the_texts(client: Mem0Client) -> None:
    [memory_id] = stored(client, ["Ada lives in Turku."])
    client.update(memory_id, "Ada lives in Tampere.")
    changes = client.history(memory_id)
    assert [(change.event, change.old_text, change.new_text) for change in changes] == [
        ("ADD", None, "Ada lives in Turku."),
        ("UPDATE", "Ada lives in Turku.", "Ada lives in Tampere."),
    ]
    client.delete(memory_id)
    erased = client.history(memory_id)
    assert [change.event for change in erased] == ["ADD", "UPDATE", "DELETE"]
    assert {(change.old_text, change.new_text) for change in erased} == {(None, None)}
    with pytest.raises(MemoryNotFoundError):
        client.history(UNKNOWN)


@pytest.mark.feature("history")
def test_an_id_in_another_spelling_is_the_same_memory(
    client: Mem0Client, http: httpx.Client
) -> None:
    for spelling in (str.upper, lambda memory_id: memory_id.replace("-", "")):
        [memory_id] = stored(client, ["Ada lives in Turku."])
        path = f"/memories/{spelling(memory_id)}"
        assert http.get(path).json()["id"] == memory_id
        assert http.put(path, json={"text": "Ada lives in Tampere."}).status_code == 200
        assert client.get(memory_id).text == "Ada lives in Tampere."
        assert http.delete(path).status_code == 200
        erased = client.history(memory_id)
        assert [change.event for change in erased] == ["ADD", "UPDATE", "DELETE"]
        assert {(change.old_text, change.new_text) for change in erased} == {(None, None)}
        assert len(http.get(f"{path}/history").json()) == 3


# ------------------------------------------------------------------ whose memories


@pytest.mark.feature("scope_required")
@pytest.mark.parametrize("body", [{}, {"user_id": ""}, {"user_id": "  "}, {"user_id": "*"}])
def test_a_scope_that_is_none_is_refused_everywhere(
    http: httpx.Client, body: dict[str, str]
) -> None:
    http.post("/memories", json={"messages": "Ada likes tea.", "user_id": "ada"})
    replies = [
        http.post("/memories", json={"messages": "of nobody", **body}),
        http.post("/search", json={"query": "tea", **body}),
        http.post("/search", json={"query": "tea", "filters": body}),
        http.delete("/memories", params=body),
    ]
    assert [reply.status_code for reply in replies] == [400] * 4
    assert {reply.json()["code"] for reply in replies} == {"scope_required"}
    assert len(http.get("/memories", params={"user_id": "ada"}).json()["results"]) == 1


@pytest.mark.feature("scope_required")
def test_the_clients_refuse_a_scope_that_is_none(client: Mem0Client) -> None:
    scopes: list[dict[str, Any]] = [{}, {"user_id": ""}, {"user_id": "*"}]
    for scope in scopes:
        with pytest.raises(ScopeRequiredError):
            client.add("of nobody", **scope)
        with pytest.raises(ScopeRequiredError):
            client.search("tea", **scope)
        with pytest.raises(ScopeRequiredError):
            client.delete_all(**scope)


@pytest.mark.feature("entities")
def test_entities_are_listed_and_deleted(client: Mem0Client, http: httpx.Client) -> None:
    client.add("Tea for two", user_id="ada/1", agent_id="cook", infer=False)
    client.add("Tea for one", user_id="ada/1", run_id="monday", infer=False)
    found = {(each.type, each.id): each.total_memories for each in client.entities()}
    assert found == {("user", "ada/1"): 2, ("agent", "cook"): 1, ("run", "monday"): 1}
    assert http.delete("/entities/run/monday").status_code == 200
    assert texts(client.get_all(user_id="ada/1")) == ["Tea for two"]
    assert http.delete("/entities/user/ada%2F1").status_code == 200
    assert client.entities() == []


# ------------------------------------------------------------------ who may ask


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}])
def test_nothing_is_told_or_changed_without_the_key(
    client: Mem0Client, stranger: httpx.Client, headers: dict[str, str]
) -> None:
    [memory_id] = stored(client, ["Ada likes tea."])
    for method, path, body in (
        ("GET", "/memories?user_id=ada", None),
        ("GET", "/memories", None),
        ("GET", f"/memories/{memory_id}", None),
        ("GET", f"/memories/{memory_id}/history", None),
        ("POST", "/search", {"query": "tea", "user_id": "ada"}),
        ("POST", "/memories", {"messages": "Ada likes coffee.", "user_id": "ada"}),
        ("PUT", f"/memories/{memory_id}", {"text": "Ada likes coffee."}),
        ("DELETE", f"/memories/{memory_id}", None),
        ("DELETE", "/memories?user_id=ada", None),
        ("POST", "/reset", None),
        ("GET", "/entities", None),
        ("DELETE", "/entities/user/ada", None),
        ("GET", "/configure", None),
    ):
        reply = stranger.request(method, path, json=body, headers=headers)
        assert reply.status_code == 401, (method, path)
        assert "tea" not in reply.text
    assert texts(client.get_all()) == ["Ada likes tea."]


def test_a_client_with_a_wrong_key_is_told_so(subject: Subject) -> None:
    with Mem0Client(subject.endpoint, "wrong") as memory:
        with pytest.raises(AuthenticationError) as caught:
            memory.get_all(user_id="ada")
        assert caught.value.hint


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", f"/memories/{UNKNOWN}", None, 404, "not_found"),
        ("GET", "/no/such/route", None, 404, "not_found"),
        ("PATCH", "/memories", {}, 405, "method_not_allowed"),
        ("POST", "/memories", {"user_id": "ada"}, 422, "invalid_request"),
        ("POST", "/memories", {"messages": [], "user_id": "ada"}, 422, "invalid_request"),
        ("POST", "/memories", {"messages": "x", "user_id": 7}, 422, "invalid_request"),
        ("POST", "/search", {"query": "", "user_id": "ada"}, 422, "invalid_request"),
        (
            "POST",
            "/search",
            {"query": "x", "user_id": "ada", "filters": {"a": {"like": 1}}},
            422,
            "invalid_filter",
        ),
        ("PUT", f"/memories/{UNKNOWN}", {"text": "x"}, 404, "not_found"),
        ("POST", "/memories", {"messages": "x" * 100_001, "user_id": "ada"}, 413, "too_large"),
    ],
)
def test_every_error_tells_what_failed_and_what_to_do(
    http: httpx.Client, method: str, path: str, body: Any, status: int, code: str
) -> None:
    reply = http.request(method, path, json=body)
    assert reply.status_code == status
    told = reply.json()
    assert set(told) == {"detail", "hint", "code"}
    assert told["code"] == code
    assert told["detail"]
    assert told["hint"]


def test_a_body_that_is_not_said_to_be_json_is_refused(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = http.post(
            "/memories",
            content=b'{"messages": "x", "user_id": "ada"}',
            headers={"Content-Type": kind},
        )
        assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda m: m.get(UNKNOWN), MemoryNotFoundError),
        (lambda m: m.update(UNKNOWN, "x"), MemoryNotFoundError),
        (lambda m: m.search("x", filters={"user_id": "ada", "a": {"like": 1}}), FilterError),
        (lambda m: m.search("x", filters={"user_id": "ada", "OR": []}), FilterError),
        (lambda m: m.search("x", user_id="ada", top_k=0), InvalidRequestError),
        (lambda m: m.search("x", user_id="ada", threshold=2.0), InvalidRequestError),
        (lambda m: m.search(" ", user_id="ada"), InvalidRequestError),
        (lambda m: m.add("x" * 100_001, user_id="ada"), TooLargeError),
        (lambda m: m.add("x", user_id="ada", expiration_date="soon"), InvalidRequestError),
        (lambda m: m.add("x", user_id="ada" * 200), InvalidRequestError),
    ],
)
def test_the_clients_raise_an_error_of_its_kind(
    client: Mem0Client, call: Callable[[Mem0Client], object], kind: type[PikuriMemoryError]
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind
    assert caught.value.hint
    assert "xxx" not in str(caught.value)


def test_no_error_repeats_what_was_sent(client: Mem0Client, http: httpx.Client) -> None:
    word = "Quetzalcoatl"
    [memory_id] = stored(client, [word])
    path = f"/memories/{memory_id}"
    for method, where, body in (
        ("GET", f"/{word}", None),
        ("PUT", path, {"text": [word]}),
        ("PUT", path, {"metadata": word}),
        ("PUT", path, {"expiration_date": word}),
        ("PUT", path, {"txt": word}),
        ("POST", "/memories", {"messages": {word: word}, "user_id": "ada"}),
        ("POST", "/memories", {"messages": word, "user_id": [word]}),
        ("POST", "/search", {"query": [word], "user_id": "ada"}),
        ("POST", "/search", {"query": word, "user_id": "ada", "top_k": word}),
        ("POST", "/search", {"query": word, "filters": word, "user_id": "ada"}),
        ("POST", "/search", {"query": word, "user_id": "ada", "filters": {"id": {"gt": [word]}}}),
        ("GET", f"/memories?user_id=ada&show_expired={word}", None),
    ):
        reply = http.request(method, where, json=body)
        assert reply.status_code in (404, 422), (method, where, reply.text)
        assert set(reply.json()) == {"detail", "hint", "code"}
        assert word not in reply.text
    assert texts(client.get_all(user_id="ada")) == [word]


# ------------------------------------------------------------------ once is once


@pytest.mark.feature("duplicates")
def test_the_same_text_of_a_scope_is_stored_once(client: Mem0Client) -> None:
    [first] = client.add("Ada likes café au lait.", user_id="ada")
    [again] = client.add("  Ada likes cafe\u0301 au lait. ", user_id="ada")
    assert (again.id, again.event) == (first.id, "NONE")
    [other] = client.add("Ada likes café au lait.", user_id="ada", agent_id="cook")
    assert other.event == "ADD"
    assert len(client.get_all(user_id="ada")) == 2
    second = client.add("Ada likes tea.", user_id="ada")[0].id
    with pytest.raises(DuplicateTextError):
        client.update(second, "Ada likes café au lait.")


@pytest.mark.feature("idempotency")
def test_the_same_idempotency_key_is_the_same_addition(client: Mem0Client) -> None:
    [first] = client.add("Ada likes tea.", user_id="ada", idempotency_key="k1")
    client.update(first.id, "Ada likes coffee.")
    [again] = client.add("Ada likes tea.", user_id="ada", idempotency_key="k1")
    assert again.id == first.id
    assert again.event == "ADD"
    assert texts(client.get_all(user_id="ada")) == ["Ada likes coffee."]
    with pytest.raises(IdempotencyConflictError):
        client.add("Ada likes milk.", user_id="ada", idempotency_key="k1")
    # The key belongs to the scope.
    assert client.add("Bo likes milk.", user_id="bo", idempotency_key="k1")[0].event == "ADD"


@pytest.mark.feature("idempotency")
def test_a_failed_addition_leaves_no_key(client: Mem0Client) -> None:
    with pytest.raises(InvalidRequestError):
        client.add("Ada likes tea.", user_id="ada", infer=True, idempotency_key="k2")
    assert client.add("Ada likes tea.", user_id="ada", idempotency_key="k2")[0].event == "ADD"


@pytest.mark.feature("batch")
def test_a_batch_is_stored_as_it_is_or_not_at_all(client: Mem0Client) -> None:
    memory_id = str(uuid.uuid4())
    client.add_batch(
        [
            {
                "text": "Ada was born in Vaasa.",
                "user_id": "ada",
                "id": memory_id,
                "metadata": {"n": 1},
                "created_at": "2020-02-03T04:05:06+00:00",
                "updated_at": "2021-02-03T04:05:06+00:00",
            },
            {"text": "Bo was born in Oulu.", "user_id": "bo"},
        ]
    )
    found = client.get(memory_id)
    assert (found.text, found.metadata) == ("Ada was born in Vaasa.", {"n": 1})
    assert found.created_at == datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert texts(client.search("Where was Bo born?", user_id="bo")) == ["Bo was born in Oulu."]
    with pytest.raises(InvalidRequestError):
        client.add_batch(
            [{"text": "Ada has a twin.", "user_id": "ada"}, {"text": " ", "user_id": "ada"}]
        )
    assert texts(client.get_all(user_id="ada")) == ["Ada was born in Vaasa."]


# ------------------------------------------------------------------ searching


@pytest.mark.feature("explain")
def test_a_search_explains_its_scores(client: Mem0Client) -> None:
    stored(client, list(FACTS.values()))
    [hit] = client.search("green tea", user_id="ada", explain=True, top_k=1)
    assert hit.explanation is not None
    assert {"cosine", "coverage"} <= set(hit.explanation)
    assert client.search("green tea", user_id="ada", top_k=1)[0].explanation is None


@pytest.mark.feature("succession")
def test_what_is_replaced_stays_and_stands_behind_what_replaces_it(client: Mem0Client) -> None:
    [old] = client.add("Ada lives in Turku near the river.", user_id="ada")
    client.add("Ada's mother lives in Kuopio.", user_id="ada")
    [new] = client.add("Ada moved from Turku to Oulu in April.", user_id="ada")
    assert client.get(new.id).supersedes == (old.id,)
    assert client.get(old.id).superseded_by == (new.id,)
    assert client.get(old.id).supersedes == ()
    listed = {record.id: record for record in client.get_all(user_id="ada")}
    assert len(listed) == 3
    assert listed[old.id].superseded_by == (new.id,)
    found = client.search("Does Ada live in Turku near the river?", user_id="ada")
    order = [record.id for record in found]
    assert order.index(new.id) < order.index(old.id)
    assert found[order.index(old.id)].superseded_by == (new.id,)
    scores = [record.score or 0.0 for record in found]
    assert scores == sorted(scores, reverse=True)
    assert client.search("Turku near the river", user_id="ada", top_k=1)[0].id == new.id
    client.update(old.id, text="Ada lived in Turku near the river.")
    assert client.get(new.id).supersedes == ()
    assert client.get(old.id).superseded_by == ()
    assert len(client.get_all(user_id="ada")) == 3


@pytest.mark.feature("succession")
@pytest.mark.feature("batch")
def test_a_batch_carries_what_replaces_what(client: Mem0Client) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    newer, older = (
        {"text": "Ada plays the cello.", "id": ids[0], "supersedes": [ids[1], ids[2], "none"]},
        {"text": "Ada plays the flute.", "id": ids[1], "superseded_by": [ids[0]]},
    )
    times = ("2021-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00")
    for memory, at in zip((newer, older), times, strict=True):
        client.add_batch([{**memory, "user_id": "ada", "created_at": at}])
    assert client.get(ids[0]).supersedes == (ids[1],)
    assert client.get(ids[1]).superseded_by == (ids[0],)
    client.delete(ids[1])
    assert client.get(ids[0]).supersedes == ()


def test_what_has_expired_is_found_when_asked_for(client: Mem0Client) -> None:
    today = datetime.now(UTC).date()
    client.add("The voucher is 1234.", user_id="ada", expiration_date="2020-01-31")
    client.add("The voucher is 5678.", user_id="ada", expiration_date=today + timedelta(days=9))
    assert texts(client.get_all(user_id="ada")) == ["The voucher is 5678."]
    assert texts(client.search("voucher", user_id="ada")) == ["The voucher is 5678."]
    assert len(client.get_all(user_id="ada", show_expired=True)) == 2
    assert len(client.search("voucher", user_id="ada", show_expired=True)) == 2
    # An expired one does not count as the same.
    assert client.add("The voucher is 1234.", user_id="ada")[0].event == "ADD"


def test_the_last_day_of_a_memory_can_be_changed(client: Mem0Client) -> None:
    today = datetime.now(UTC).date()
    [memory_id] = stored(client, ["Ada likes tea."], metadata={"n": 1}, expiration_date=today)
    assert client.get(memory_id).expiration_date == today
    assert [record.expiration_date for record in client.get_all(user_id="ada")] == [today]
    assert [hit.expiration_date for hit in client.search("tea", user_id="ada")] == [today]
    client.update(memory_id, "Ada loves tea.", metadata={"n": 2})
    assert client.get(memory_id).expiration_date == today
    client.update(memory_id, expiration_date=today - timedelta(days=1))
    assert client.get_all(user_id="ada") == []
    assert client.get_all() == []
    assert texts(client.get_all(show_expired=True)) == ["Ada loves tea."]
    assert client.get(memory_id).metadata == {"n": 2}
    client.update(memory_id, expiration_date=None)
    assert client.get(memory_id).expiration_date is None
    assert texts(client.search("tea", user_id="ada")) == ["Ada loves tea."]
    with pytest.raises(InvalidRequestError):
        client.update(memory_id, expiration_date="2026-02-30")


def test_what_is_left_out_does_not_count(client: Mem0Client) -> None:
    for number in range(40):
        more: dict[str, Any] = {"metadata": {"kind": "tea"}}
        if number % 2:
            more["expiration_date"] = "2020-01-31"
        stored(client, [f"Ada drinks green tea, cup {number}."], **more)
    wanted = stored(client, ["Ada drinks coffee.", "Ada drinks water."], metadata={"kind": "Else"})
    filters = {"user_id": "ada", "kind": {"icontains": "ELSE"}}
    found = client.search("green tea", filters=filters, top_k=2)
    assert {hit.id for hit in found} == set(wanted)
    found = client.search("green tea", user_id="ada", top_k=20)
    assert len(found) == 20
    assert all(int(hit.text.split()[-1][:-1]) % 2 == 0 for hit in found)


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"kind": "food"}, {"green", "nuts"}),
        ({"kind": {"ne": "food"}}, {"cello", "dog", "turku"}),
        ({"year": {"gte": 2019, "lt": 2022}}, {"turku", "cello"}),
        ({"kind": {"in": ["music", "pet"]}}, {"cello", "dog"}),
        ({"kind": {"nin": ["music", "pet"]}}, {"green", "nuts", "turku"}),
        ({"sure": True}, {"green"}),
        ({"OR": [{"kind": "pet"}, {"year": {"gt": 2020}}]}, {"dog", "cello"}),
        ({"NOT": [{"kind": "food"}]}, {"cello", "dog", "turku"}),
        ({"AND": [{"kind": "food"}, {"sure": True}]}, {"green"}),
        ({"kind": "nothing"}, set()),
        ({"note": {"contains": "Doc"}}, {"nuts"}),
        ({"note": {"icontains": "DOC"}}, {"nuts"}),
        ({"note": {"contains": "DOC"}}, set()),
        ({"note": "*"}, {"nuts"}),
        ({"note": None}, {"green", "cello", "turku", "dog"}),
        ({"note": {"ne": "told"}}, {"green", "nuts", "cello", "turku", "dog"}),
        ({"sure": 0}, set()),
        ({"year": 2019.0}, {"turku"}),
        ({"year": {"gt": 2019.5}, "kind": {"ne": "place"}}, {"cello"}),
        ({"year": {"gt": "2"}}, set()),
        ({"kind": {"gt": "n"}}, {"dog", "turku"}),
        ({"tags": "warm"}, {"green"}),
        ({"tags": {"contains": "wa"}}, set()),
        ({"tags": {"nin": ["warm", "wet"]}}, {"nuts", "cello", "turku"}),
        ({"tags": {"gt": "a"}}, set()),
        ({"since": {"lt": "2025-05-01T00:30:00+02:00"}}, {"cello"}),
        ({"since": "2025-05-01"}, {"dog"}),
        ({"created_at": {"gt": "2020-01-01"}, "kind": "pet"}, {"dog"}),
        ({"AND": [{"kind": {"ne": "pet"}}, {"kind": {"ne": "food"}}]}, {"cello", "turku"}),
        ({"NOT": {"OR": [{"kind": "food"}, {"year": "*"}]}}, {"dog"}),
        ({"agent_id": None, "kind": "pet"}, {"dog"}),
        ({"OR": [{"run_id": "*"}, {"user_id": "bo"}]}, set()),
        ({'odd name\'s "path".[0]': "x"}, set()),
    ],
)
def test_filters_narrow_a_search(
    client: Mem0Client, condition: dict[str, Any], found: set[str]
) -> None:
    assert narrowed(client, condition) == {FACTS[name] for name in found}


def narrowed(client: Mem0Client, condition: dict[str, Any]) -> set[str]:
    """What a search among facts with metadata finds under a condition."""
    known: dict[str, dict[str, Any]] = {
        "green": {"kind": "food", "sure": True, "tags": ["warm", "green"]},
        "nuts": {"kind": "food", "sure": False, "note": "told by Doctor Aho"},
        "cello": {"kind": "music", "year": 2021, "since": "2025-04-30T22:00:00Z"},
        "turku": {"kind": "place", "year": 2019},
        "dog": {"kind": "pet", "since": "2025-05-01", "tags": ["wet", ["warm"]]},
    }
    for name, metadata in known.items():
        client.add(FACTS[name], user_id="ada", metadata=metadata, infer=False)
    hits = client.search("Ada", filters={"user_id": "ada", **condition})
    return {hit.text for hit in hits}


def test_a_threshold_leaves_out_what_fits_badly(client: Mem0Client) -> None:
    stored(client, list(FACTS.values()))
    hits = client.search("green tea in the morning", user_id="ada", threshold=0.0)
    best = hits[0].score or 0.0
    above = client.search("green tea in the morning", user_id="ada", threshold=best * 0.99)
    assert texts(above) == [FACTS["green"]]
