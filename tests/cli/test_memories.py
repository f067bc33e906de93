from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Runner

MISSING = "00000000-0000-4000-8000-000000000000"


def added(run: Runner, text: str, user: str, *more: str) -> str:
    told = run("add", text, "--user", user, "--json", *more)
    assert told.code == 0, told.err
    memory_id: str = told.document["results"][0]["id"]
    return memory_id


def test_a_fact_is_added_once_and_found_in_other_words(
    run: Runner, server: Path, user: str
) -> None:
    first = run("add", "I am allergic to walnuts", "--user", user)
    assert first.out.startswith("added ")
    again = run("add", "I am allergic to walnuts ", "--user", user)
    assert again.out == first.out.replace("added", "known")
    run("add", "My bicycle is green", "--user", user)

    found = run("search", "what must I not eat?", "--user", user, "--json").document["results"]
    assert found[0]["text"] == "I am allergic to walnuts"
    assert 0 <= found[1]["score"] <= found[0]["score"] <= 1
    score, text, _, memory_id = run(
        "search", "what must I not eat?", "--user", user, "--limit", "1"
    ).out.split("\t")
    assert (text, memory_id.strip()) == ("I am allergic to walnuts", found[0]["id"])
    assert float(score) == pytest.approx(found[0]["score"], abs=0.001)


def test_every_part_of_a_memory_can_be_given_and_comes_back(
    run: Runner, server: Path, user: str
) -> None:
    words = ["--agent", "cook", "--run", "r1", "--metadata", '{"year": 2024}']
    memory_id = added(run, "I baked a cake", user, *words, "--expires", "2199-12-31")
    got = run("get", memory_id, "--json").document
    assert got.pop("created_at") == got.pop("updated_at")
    assert got == {
        "id": memory_id,
        "text": "I baked a cake",
        "metadata": {"year": 2024},
        "user_id": user,
        "agent_id": "cook",
        "run_id": "r1",
        "expiration_date": "2199-12-31",
    }
    shown = run("get", memory_id).out
    assert '{"year": 2024}' in shown
    assert "2199-12-31" in shown


def test_a_dash_reads_standard_input(run: Runner, server: Path, user: str) -> None:
    run("add", "-", "--user", user, stdin="two lines\nof text\n")
    (listed,) = run("list", "--user", user, "--json").lines
    assert listed["text"] == "two lines\nof text"
    found = run("search", "-", "--user", user, "--json", stdin="text\n").document["results"]
    assert [row["id"] for row in found] == [listed["id"]]


def test_a_list_is_newest_first_and_may_be_cut(run: Runner, server: Path, user: str) -> None:
    ids = [added(run, f"fact {number}", user) for number in range(3)]
    rows = run("list", "--user", user, "--json").lines
    assert [row["id"] for row in rows] == ids[::-1]
    plain = run("list", "--user", user).out.splitlines()
    assert [line.split("\t")[1] for line in plain] == ["fact 2", "fact 1", "fact 0"]
    assert all(line.split("\t")[2] == user for line in plain)
    assert len(run("list", "--user", user, "--limit", "2").out.splitlines()) == 2


def test_what_replaces_what_is_told_in_json_and_of_one_memory(
    run: Runner, server: Path, user: str
) -> None:
    old = added(run, "The user lives in Turku near the river", user)
    new = added(run, "The user moved from Turku to Oulu", user)
    rows = {row["id"]: row for row in run("list", "--user", user, "--json").lines}
    assert rows[new]["supersedes"] == [old]
    assert rows[old]["superseded_by"] == [new]
    assert "supersedes" not in rows[old]
    found = run("search", "near the river in Turku", "--user", user, "--json").document["results"]
    assert [row["id"] for row in found] == [new, old]
    assert f"superseded by: {new}" in run("get", old).out
    assert f"supersedes: {old}" in run("get", new).out
    assert "superseded" not in run("list", "--user", user).out


def test_nothing_found_is_no_failure(run: Runner, server: Path, user: str) -> None:
    told = run("search", "anything", "--user", user)
    assert (told.code, told.out, told.err) == (0, "", "nothing found\n")
    told = run("list", "--user", user)
    assert (told.code, told.out, told.err) == (0, "", "no memories\n")
    assert run("list", "--user", user, "--json").out == ""


def test_a_filter_and_a_threshold_narrow_a_search(run: Runner, server: Path, user: str) -> None:
    old = added(run, "I went to Oslo", user, "--metadata", '{"year": 2010}')
    added(run, "I went to Bergen", user, "--metadata", '{"year": 2020}')
    words = ["search", "where did I go?", "--user", user, "--json"]
    found = run(*words, "--filter", '{"year": {"lt": 2015}}').document["results"]
    assert [row["id"] for row in found] == [old]
    assert run(*words, "--threshold", "1").document["results"] == []
    explained = run(*words, "--explain").document["results"][0]
    assert "cosine" in explained["explanation"]


def test_an_update_changes_what_is_given(run: Runner, server: Path, user: str) -> None:
    memory_id = added(run, "I live in Oslo", user, "--metadata", '{"a": 1}')
    assert run("update", memory_id, "I live in Bergen").code == 0
    got = run("get", memory_id, "--json").document
    assert (got["text"], got["metadata"]) == ("I live in Bergen", {"a": 1})
    run("update", memory_id, "--expires", "2199-01-01", "--metadata", "{}")
    got = run("get", memory_id, "--json").document
    assert (got["expiration_date"], got["metadata"]) == ("2199-01-01", {})
    run("update", memory_id, "--expires", "")
    assert run("get", memory_id, "--json").document["expiration_date"] is None


def test_a_history_outlives_its_memory_without_its_texts(
    run: Runner, server: Path, user: str
) -> None:
    memory_id = added(run, "I like tea", user)
    run("update", memory_id, "I like coffee")
    changes = run("history", memory_id, "--json").document["history"]
    assert [(row["event"], row["old_text"], row["new_text"]) for row in changes] == [
        ("ADD", None, "I like tea"),
        ("UPDATE", "I like tea", "I like coffee"),
    ]
    assert run("delete", memory_id).out == f"deleted {memory_id}\n"
    told = run("history", memory_id)
    assert [line.split("\t")[1:] for line in told.out.splitlines()] == [
        ["ADD", ""],
        ["UPDATE", ""],
        ["DELETE", ""],
    ]
    assert run("get", memory_id).code == 3


def test_all_of_a_user_are_deleted_after_a_yes(run: Runner, server: Path, user: str) -> None:
    added(run, "one", user)
    assert run("delete", "--user", user, stdin="n\n").code == 2
    assert run("delete", "--user", user).code == 2
    assert len(run("list", "--user", user).out.splitlines()) == 1
    assert run("delete", "--user", user, stdin="y\n").code == 0
    assert run("list", "--user", user).out == ""
    added(run, "two", user)
    assert run("delete", "--user", user, "--yes", "--json").document["event"] == "DELETE"
    assert run("list", "--user", user).out == ""


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["add", "x"], 2, "add --user NAME"),
        (["search", "x"], 2, "add --user NAME"),
        (["add", " ", "--user", "u"], 2, "pikuri-memory add"),
        (["add", "x", "--user", "*"], 2, "real user_id"),
        (["add", "x", "--user", "u", "--metadata", "[]"], 2, "--metadata '{"),
        (["add", "x", "--user", "u", "--expires", "soon"], 2, "--expires 2030-12-31"),
        (["search", "x", "--user", "u", "--filter", "{"], 2, "--filter '{"),
        (["update", MISSING], 2, "--metadata"),
        (["update", MISSING, "text"], 3, "list"),
        (["get", MISSING], 3, "list"),
        (["get", "../health"], 3, "list"),
        (["delete"], 2, "delete ID"),
        (["delete", MISSING, "--user", "u"], 2, "delete ID"),
        (["history", MISSING], 3, "list"),
    ],
)
def test_an_error_has_the_code_of_its_family_and_a_hint(
    run: Runner, server: Path, words: list[str], code: int, hint: str
) -> None:
    told = run(*words)
    assert (told.code, told.out) == (code, "")
    assert hint in told.err.split("hint: ")[1]
    assert json.loads(run(*words, "--json").err)["error"]["hint"]


def test_what_a_memory_says_does_nothing_to_a_terminal(
    run: Runner, server: Path, user: str
) -> None:
    evil = "\x1b[2J\x9b31m [red]x[/red]"
    memory_id = added(run, evil, user)
    for words in (["get", memory_id], ["list", "--user", user], ["history", memory_id]):
        for more in ([], ["--json"]):
            told = run(*words, *more).out
            assert "[red]x[/red]" in told
            assert "\x1b" not in told
            assert "\x9b" not in told
