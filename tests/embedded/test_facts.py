"""What a chat model's answer is read as: facts, or what is the matter with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.embedded.facts import Extracted, UnusableAnswer, read

ANSWER = json.dumps(
    {
        "memory": [
            {"id": "0", "text": "User moved to Oulu", "attributed_to": "user"},
            {"id": "1", "text": "User was told of a {sauna}", "attributed_to": "assistant"},
        ]
    }
)
FACTS = [
    Extracted("User moved to Oulu", "user"),
    Extracted("User was told of a {sauna}", "assistant"),
]


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"\n  {ANSWER}\n\n",
        f"```json\n{ANSWER}\n```",
        f"```\n{ANSWER}\n```\n",
        f"Here is what I found:\n\n{ANSWER}\n\nAnything else?",
        f'The form is {{"like": "this"}}, so: {ANSWER}',
        f"I use {{braces}} a lot: {ANSWER}",
        f"<think>A user who moved. {{'memory'?}}</think>{ANSWER}",
        f'<think>Perhaps {{"memory": []}}?</think>\n```json\n{ANSWER}\n```',
        f'the template opened the thought, {{"memory": []}}\n</think>\n\n{ANSWER}',
        f"<THINKING>hm</THINKING> {ANSWER}",
        f"{ANSWER} <think>Was that all?</think>",
        f"{ANSWER} <think>Was that",
        f"First: {ANSWER}\nOnce more: {ANSWER}",
        json.dumps(json.loads(ANSWER), indent=2),
    ],
    ids=lambda text: text[:24].replace("\n", " "),
)
def test_what_stands_around_the_json_is_passed_over(text: str) -> None:
    assert read(text) == FACTS


def test_nothing_to_remember_is_what_the_model_says_in_so_many_words() -> None:
    assert read('{"memory": []}') == []
    assert read('```json\n{"memory": []}\n```') == []
    assert read("<think>Only a greeting.</think>\n" + '{"memory":[]}') == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>The user likes tea.</think>", "reasoning"),
        ("<think>The user likes tea, so", "reasoning"),
        (f"<think>I will answer {ANSWER}</think>", "reasoning"),
        ("There is nothing to remember.", "no_json"),
        ("```json\n```", "no_json"),
        (ANSWER[:-1], "no_json"),
        (ANSWER[:40], "no_json"),
        (f'{{"memory": []}} or rather {ANSWER[:60]}', "no_json"),
        ('{"facts": ["User likes tea"]} it is', "no_json"),
        ('{"facts": ["User likes tea"]}', "form"),
        ("{}", "form"),
        ("[]", "form"),
        ('"nothing"', "form"),
        ("17", "form"),
        ('[{"text": "User likes tea"}]', "form"),
        ('{"memory": null}', "form"),
        ('{"memory": {}}', "form"),
        ('{"memory": "User likes tea"}', "form"),
        ('{"memory": ["User likes tea"]}', "form"),
        ('{"memory": [{"fact": "User likes tea"}]}', "form"),
        ('{"memory": [{"text": "User likes tea"}, {"text": ""}]}', "form"),
        ('{"memory": [{"text": " \\n"}]}', "form"),
        ('{"memory": [{"text": 7}]}', "form"),
        ('{"memory": [{"text": "half \\ud83d"}]}', "form"),
        (f'{{"memory": []}}\nNo, wait:\n{ANSWER}', "form"),
        ('So: {"memory": ["User likes tea"]}', "form"),
    ],
)
def test_what_is_no_answer_is_never_nothing_to_remember(text: str, kind: str) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        read(text)
    assert caught.value.kind == kind
    # The reason goes into the next prompt, and into an error: it quotes nothing.
    assert "tea" not in caught.value.reason
    assert "Oulu" not in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reasoning", "kind"),
    [
        (ANSWER[:50], "", "cut"),
        (f"Let me see. {ANSWER} And", "", "cut"),
        ("", "", "cut"),
        ("", "The user", "reasoning"),
        ("<think>The user", "", "reasoning"),
    ],
)
def test_a_cut_answer_is_told_from_others(text: str, reasoning: str, kind: str) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        read(text, reasoning=reasoning, finish_reason="length")
    assert caught.value.kind == kind


def test_an_answer_that_is_whole_was_not_cut() -> None:
    """Under a grammar some models write white space until they are stopped."""
    assert read(ANSWER + " " * 50, finish_reason="length") == FACTS


def test_reasoning_beside_an_answer_does_no_harm() -> None:
    assert read(ANSWER, reasoning='{"memory": []}?', finish_reason="stop") == FACTS


def test_reasoning_without_an_answer_is_named() -> None:
    with pytest.raises(UnusableAnswer) as caught:
        read("", reasoning=ANSWER)
    assert caught.value.kind == "reasoning"


def test_texts_are_stripped_and_other_members_ignored() -> None:
    answer = {
        "memory": [
            {"text": "  User likes <think>tea</think>\n", "attributed_to": "nobody", "id": 3},
            {"text": "line\nbreak\x00", "attributed_to": None, "linked_memory_ids": ["0"]},
        ],
        "note": "done",
    }
    assert read(json.dumps(answer)) == [
        Extracted("User likes <think>tea</think>"),
        Extracted("line\nbreak\x00"),
    ]
    assert read('{"memory": [{"text": "a raw\nline break"}]}') == [Extracted("a raw\nline break")]


@given(
    st.lists(st.text(min_size=1).filter(lambda t: bool(t.strip())), min_size=1, max_size=4),
    st.data(),
)
def test_no_part_of_an_answer_is_read_as_less_than_it_was(
    texts: list[str], data: st.DataObject
) -> None:
    answer = json.dumps({"memory": [{"id": "0", "text": text} for text in texts]})
    assert [fact.text for fact in read(answer)] == [text.strip() for text in texts]
    cut = answer[: data.draw(st.integers(0, len(answer) - 1))]
    for finish_reason in ("length", "stop", None):
        with pytest.raises(UnusableAnswer):
            read(cut, finish_reason=finish_reason)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "<think>" * 20_000,
        "</think>{" * 20_000,
        '{"a":' * 100_000,
        "[" * 100_000,
        '{"' * 20_000,
    ],
)
def test_nonsense_is_read_in_no_time(text: str) -> None:
    with pytest.raises(UnusableAnswer):
        read(text)
