"""Files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pikuri_memory.files import create_private, replacing, write_private


def test_a_written_file_is_private_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["file"]


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert create_private(path, "first")
    assert not create_private(path, "second")
    assert path.read_text() == "first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["file"]


def test_a_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_private(tmp_path / "no" / "file", "x")


def test_a_file_being_replaced_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UnicodeEncodeError), replacing(path) as file:
        file.write("\ud800")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["file"]


def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    with replacing(Path("/dev/null")) as file:
        file.write("gone")
    assert Path("/dev/null").is_char_device()
