from __future__ import annotations

import os
import re
import select
import sys

import pytest

from pikuri_memory.cli.progress import Progress


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("importing", quiet=False) as progress:
        progress.at("5 memories")
    assert capsys.readouterr() == ("", "")


def test_row_28_what_takes_long_tells_its_step_how_far_it_is_and_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen, keyboard = os.openpty()

    def shown() -> str:
        assert select.select([screen], [], [], 10)[0], "nothing was said"
        return os.read(screen, 4096).decode()

    with open(keyboard, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("importing", quiet=False) as progress:
            progress.at("5 memories")
            said = shown()
            progress.at("7 memories")
            while "7 memories" not in said:
                said += shown()
        monkeypatch.undo()
        left = shown()
        while not left.endswith("\r\x1b[K"):
            left += shown()
    os.close(screen)
    assert re.fullmatch(r"(\rimporting: [57] memories \([1-9] s\)\x1b\[K)+", said)
    assert said.startswith("\rimporting: 5 memories (1 s)")
