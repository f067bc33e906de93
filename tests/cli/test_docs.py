"""The documentation says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pikuri_memory import errors
from pikuri_memory.client import transfer
from pikuri_memory.settings import SETTINGS, STACK_SETTINGS

from .conftest import Runner

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_settings_is_that_of_the_program() -> None:
    rows = [
        line for line in (DOCS / "settings.md").read_text().splitlines() if line.startswith("| `")
    ]
    expected = [
        f"| `{row.name}` | `{row.flag}` | `{row.env}` |"
        f" {'' if row.default is None else f'`{row.default}`'} | {row.help} |"
        for row in (*SETTINGS.values(), *STACK_SETTINGS.values())
    ]
    assert rows == expected
    assert ", ".join(SETTINGS["language"].choices) in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("path", [[], ["key"]])
def test_every_verb_and_every_option_is_documented(run: Runner, path: list[str]) -> None:
    text = (DOCS / "cli.md").read_text()
    everything = text + (DOCS / "export-import.md").read_text()
    everything += (DOCS / "settings.md").read_text()
    verbs = re.findall(r"^  ([a-z]+)  ", run(*path, "--help").out.split("Commands:")[1], re.M)
    assert len(verbs) > 1
    for verb in verbs:
        name = " ".join([*path, verb])
        if verb != "key":
            assert f"| `{name}` |" in text
        for option in re.findall(r"(--[a-z-]+)", run(*path, verb, "--help").out):
            assert option in ("--help",) or f"`{option}" in everything, f"{name} {option}"


def test_every_exit_code_is_documented() -> None:
    def codes(cls: type[errors.PikuriMemoryError]) -> set[int]:
        return {cls.exit_code}.union(*(codes(child) for child in cls.__subclasses__()))

    rows = re.findall(r"^\| (\d+) \|", (DOCS / "cli.md").read_text(), re.M)
    assert {int(row) for row in rows} == codes(errors.PikuriMemoryError) | {0, 130, 141}


def test_the_fields_of_status_are_documented(run: Runner, data_dir: Path) -> None:
    section = (DOCS / "cli.md").read_text().split("### status")[1].split("###")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = re.findall(r"`([a-z_]+)`", " ".join(rows))
    assert sorted(documented) == sorted(run("status", "--json").document)


def test_the_example_of_the_format_can_be_imported() -> None:
    example = (DOCS / "export-import.md").read_text().split("```json\n")[1].split("```")[0]
    (item,) = transfer.parse(line.encode() for line in example.splitlines())
    assert isinstance(item, transfer.Item)
    assert set(item.memory) >= {"id", "text", "user_id", "metadata", "history", "created_at"}
