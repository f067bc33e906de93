from __future__ import annotations

import io
import json
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikuri_memory.cli import output
from pikuri_memory.errors import PikuriMemoryError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text(alphabet=st.characters()))
def test_no_control_character_gets_through(text: str) -> None:
    for shown in (output.escaped(text), output.to_json(text)):
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert json.loads(output.to_json(text)) == text


def test_marks_that_turn_the_direction_of_writing_are_escaped() -> None:
    assert output.escaped("a\u202eb\u2066c") == "a\\u202eb\\u2066c"


def test_other_scripts_and_joined_emoji_stay_as_they_are() -> None:
    text = "猫が好き — می‌خواهم 👩‍🚀"
    assert output.escaped(text) == text
    assert output.to_json(text) == f'"{text}"'


def test_dates_and_values_become_json() -> None:
    assert output.to_json({"at": datetime(2026, 1, 2, tzinfo=UTC), "ids": ("a",)}) == (
        '{"at": "2026-01-02T00:00:00+00:00", "ids": ["a"]}'
    )


def test_an_error_for_a_person_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(PikuriMemoryError("it \x1b[2J failed", hint="do that"), as_json=False)
    assert capsys.readouterr().err == "error: it \\x1b[2J failed\nhint: do that\n"


def test_without_a_terminal_a_table_is_lines_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    count = output.Output(False).table(["a", "memory"], [["1", "x\ty\n"], ["2", "[red]z"]])
    assert count == 2
    assert capsys.readouterr().out == "1\tx\\ty\\n\n2\t[red]z\n"


def test_on_a_terminal_a_table_takes_nothing_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    rows = [["1", "[bold]no[/bold] :smile: [/] \x1b]0;title\x07 [link=http://x]y[/link]"]]
    assert output.Output(False).table(["score", "memory"], rows) == 1
    shown = screen.getvalue()
    assert "score" in shown
    assert "[bold]no[/bold] :smile: [/]" in shown
    assert "\\x1b]0;title\\x07" in shown
    assert "\x1b]" not in shown


def test_a_remark_to_a_cell_is_seen_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["1", output.Noted("tea", "superseded by [b]2\x1b")]]
    assert output.Output(False).table(["score", "memory"], rows) == 1
    assert capsys.readouterr().out == "1\ttea\n"
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    output.Output(False).table(["score", "memory"], rows)
    assert "(superseded by [b]2\\x1b)" in screen.getvalue()


def test_a_person_and_a_program_get_one_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json, expected in ((True, '{"a": 1}\n'), (False, "said\nname: value\n")):
        out = output.Output(as_json)
        out.document({"a": 1})
        out.say("said")
        out.fields([("name", "value"), ("empty", None), ("blank", "")])
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (None, "unknown")],
)
def test_sizes_are_readable(count: int | None, text: str) -> None:
    assert output.size(count) == text


def test_standard_input_is_read_as_utf8_without_its_last_line_end() -> None:
    stream = io.TextIOWrapper(io.BytesIO("\ufeffMöwe\nzwei\n".encode()), encoding="ascii")
    assert output.read_input(stream) == "Möwe\nzwei"
