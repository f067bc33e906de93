"""The key of a model endpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pikuri_memory.errors import AccessError, SettingError
from pikuri_memory.models.keyfile import KeyFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("  sk-secret\n")
    path.chmod(0o600)
    return path


def test_the_key_is_read_each_time(path: Path) -> None:
    key = KeyFile(str(path))
    assert key() == "sk-secret"
    path.write_text("sk-other")
    assert key() == "sk-other"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(AccessError) as caught:
        KeyFile(path)()
    assert caught.value.hint == f"chmod 600 {path}"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "two words", "ä", "a\x00b", "line\nline"])
def test_what_is_no_key_is_refused_without_being_told(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError) as caught:
        KeyFile(path)()
    assert caught.value.hint
    assert not text.strip() or text not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_told(path: Path) -> None:
    with pytest.raises(SettingError, match="FileNotFoundError"):
        KeyFile(path.with_name("nothing"))()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError):
        KeyFile(path)()


def test_a_file_that_this_user_may_not_read_is_told(path: Path) -> None:
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(AccessError):
            KeyFile(path)()
    finally:
        os.seteuid(user)
