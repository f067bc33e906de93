"""One extraction in a process of its own; prints what came out and what was looked at."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

from pikuri_memory.embedded.extraction import MemoryExtractor
from pikuri_memory.embedded.model import Message, Turn
from pikuri_memory.models.probe import ChatAbility
from pikuri_memory.models.router import Router
from pikuri_memory.record import Scope
from pikuri_memory.waiting import Deadline
from tests.embedded.parts import HashEmbedder

FORBIDDEN = ("OPENAI", "OPENROUTER", "MEM0_API")


class Watched(MutableMapping[str, str]):
    """An environment that remembers the names that were looked up."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.names: list[str] = []

    def __getitem__(self, name: str) -> str:
        self.names.append(name)
        return str(self._real[name])

    def __setitem__(self, name: str, value: str) -> None:
        self._real[name] = value

    def __delitem__(self, name: str) -> None:
        del self._real[name]

    def __iter__(self) -> Any:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)

    def items(self) -> Any:
        """All of it, which is no look at one."""
        return self._real.items()

    def copy(self) -> dict[str, str]:
        """As that of os.environ."""
        return dict(self._real)


def main(url: str) -> None:
    watched = Watched(os.environ)
    vars(os)["environ"] = watched
    before = os.environ.get("MEM0_DIR")
    able = ChatAbility(
        model="scripted-instruct",
        output_mode="json_schema",
        thinks=False,
        thinking_off=None,
        context_tokens=None,
        prompt_tokens=0,
        fits=None,
        canary=None,
    )
    router = Router(url)
    turn = Turn(
        [Message("user", "I moved from Turku to Oulu.")],
        Scope("anna"),
        [],
        lambda vector, count: [],
    )
    extractor = MemoryExtractor(router, able, HashEmbedder())
    extractor.warm_up()
    found = extractor.extract(turn, Deadline(60))
    router.close()
    told = {
        "facts": [fact.text for fact in found],
        "looked_at": sorted({name for name in watched.names if name.startswith(FORBIDDEN)}),
        "mem0_dir": [before, os.environ.get("MEM0_DIR")],
        "clients": [name for name in ("openai", "spacy", "ollama") if name in sys.modules],
        "threads": [thread.name for thread in threading.enumerate()],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
