from __future__ import annotations

import pytest

from pikuri_memory.cli.progress import Progress


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("importing", quiet=False) as progress:
        progress.at("5 memories")
    assert capsys.readouterr() == ("", "")
