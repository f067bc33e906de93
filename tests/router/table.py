"""What the user sees of each misbehaviour: seen, not thought of, and written into docs/models.md.

A real server is given a :class:`ScriptedRouter`. What an endpoint is like from the first day
(:data:`LASTING`) is switched on before the server starts; accidents happen later. Each time a turn
is posted with an ``Idempotency-Key`` and a question asked; then the endpoint behaves, and the same
turn is posted again. No turn may be lost on the way: see :meth:`Bench.see`.

``python -m tests.router.misbehaviours --write`` writes the table; a test compares it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.robustness.arena import Arena, files_with, until
from tests.router.scripted import MISBEHAVIOURS, Flavour, ScriptedRouter

PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN: Final = "<!-- made by `python -m tests.router.misbehaviours --write`: do not edit -->"
END: Final = "<!-- until here -->"
HEAD: Final = ("The endpoint ...", "at the start", "`add`", "`search`")

SECONDS: Final = 4.0
"""``--router-timeout`` of the servers here."""

SAID: Final = ("I moved to Oulu in spring.", "My cat is called Bella.")
KNOWN: Final = "User keeps bees near Turku"

LASTING: Final = frozenset(
    "think_tags code_fence prose_around prose_only wrong_schema thinks_unless_template"
    " thinks_unless_effort thinks_unless_think_false thinks_unless_no_think thinks_always"
    " thinks_and_answers unknown_field no_json_schema no_response_format no_encoding_format"
    " context_llama_cpp context_openai context_vllm context_lm_studio context_cut_silently"
    " context_embedding_ollama no_money no_json_at_all redirect compressed host_check only_v1"
    " never_v1 constant_vectors not_normalised base64 token_vectors reversed_vectors"
    " unsteady".split()
)
"""What does not come and go with the hour."""

SMALL: Final[dict[str, Flavour]] = {
    "context_llama_cpp": "llama.cpp-router",
    "context_openai": "plain",
    "context_vllm": "vllm",
    "context_lm_studio": "lmstudio",
    "context_cut_silently": "ollama",
}
"""A context of 2,000 tokens, in whose server it is so from the start."""

BY_CHANCE: Final[dict[str, tuple[str | None, str | None]]] = {
    "changing_dimension": (
        "as the line before where the length is wrong, else stored",
        "as the line before where the length is wrong, else finds",
    ),
    "constant_vectors": (None, "finds, in no useful order"),
    "unsteady": (None, "finds, in no useful order"),
}
"""Of which ``add`` or ``search`` is seen to do one thing or the other: what is written instead."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    start: str
    add: str
    search: str

    def markdown(self) -> str:
        """The line."""
        cells = (MISBEHAVIOURS[self.name].what, self.start, self.add, self.search)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Bench:
    """A server with a scripted router.

    Args:
        directory: For the data directory.
        name: The misbehaviour that is on before the server starts; None for a good start.
    """

    def __init__(self, directory: Path, name: str | None = None) -> None:
        self.router = ScriptedRouter(flavour=SMALL.get(name or "", "plain"))
        self.start = ""
        self._small = name in SMALL
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.router)
            self.arena = undo.enter_context(
                Arena(
                    directory,
                    router=self.router.url,
                    router_timeout=SECONDS,
                    extraction_timeout=4 * SECONDS,
                )
            )
            if name is None:
                self.arena.start()
            else:
                self._start_with(name)
            until(lambda: self._extraction().get("state") != "warming up")
            self._undo = undo.pop_all()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        spoken = [sentence.encode() for sentence in (*SAID, KNOWN)]
        assert files_with(self.arena.paths.logs, spoken) == [], "a log quotes a turn"

    def _extraction(self) -> dict[str, Any]:
        return self.arena.call("GET", "/status")["extraction"] or {}

    def _start_with(self, name: str) -> None:
        self._misbehave(name)
        try:
            self.arena.start()
        except AssertionError:
            printed = self.arena.output.read_text().splitlines()
            self.start = f"refuses to start: {self._told(json.loads(printed[-1]))}"
            self._behave()
            self.arena.start()
            return
        status = self.arena.call("GET", "/status")
        found = [
            f"{finding['level']}: {self._plain(finding['text'])}{self._hint(finding['hint'])}"
            for finding in status["findings"]
            if finding["level"] != "ok"
        ]
        self.start = "<br>".join(dict.fromkeys(found)) or "fine"

    def see(self, name: str) -> Row:
        """Play one misbehaviour.

        Raises:
            AssertionError: A turn was lost or stored by halves, or a retry did not settle it.
        """
        user, key = f"user of {name}", str(uuid.uuid4())
        self._behave()
        self._settle()
        self._keep(user)
        self._misbehave(name)
        first = self._post(user, key)
        stored = self._stored(user)
        found = self.arena.client.post(
            "/search", json={"query": f"Who keeps bees ({name})?", "user_id": user}
        )
        self._behave()
        self._settle()
        again = self._post(user, key)
        assert again.status_code == 200, f"{name}: the retry was answered {again.text}"
        for sentence in SAID:
            assert first.status_code == 200 or sentence not in first.text, "a reply quotes a turn"
        if first.status_code == 200:
            assert _whole(stored), f"{name}: {stored} of a turn that was called stored"
            assert again.json() == first.json(), f"{name}: the retry was another add"
            assert self._stored(user) == stored, f"{name}: the retry changed what was stored"
        else:
            assert stored == [], f"{name}: {stored} of a turn that was refused"
            assert _whole(self._stored(user)), f"{name}: the retry left {self._stored(user)}"
        assert {r["id"] for r in again.json()["results"]} <= {
            memory["id"] for memory in self.arena.listed(user)
        }
        add, search = BY_CHANCE.get(name, (None, None))
        return Row(name, self.start, add or self._added(first), search or self._found(found))

    def _misbehave(self, name: str) -> None:
        if self._small:
            self.router.context_tokens = 2000
        else:
            self.router.rule(name)

    def _behave(self) -> None:
        self.router.behave()
        self.router.context_tokens = 32_768

    def _keep(self, user: str) -> None:
        sent = {"messages": KNOWN, "user_id": user, "infer": False}
        self.arena.call("POST", "/memories", json=sent)

    def _settle(self) -> None:
        """Wait until a good endpoint is trusted again."""
        until(lambda: self.arena.call("GET", "/status")["embedder"]["state"] == "ok")

    def _post(self, user: str, key: str) -> httpx.Response:
        return self.arena.client.post(
            "/memories",
            json={"messages": [{"role": "user", "content": " ".join(SAID)}], "user_id": user},
            headers={"Idempotency-Key": key},
        )

    def _stored(self, user: str) -> list[str]:
        """The texts that came of the turn."""
        return sorted(m["memory"] for m in self.arena.listed(user) if m["memory"] != KNOWN)

    def _added(self, reply: httpx.Response) -> str:
        if reply.status_code != 200:
            after = reply.headers.get("retry-after")
            again = f"`Retry-After: {after}` " if after else ""
            return f"{reply.status_code} {again}{self._told(reply.json())}"
        texts = [result["memory"] for result in reply.json()["results"]]
        return "stored: facts" if set(texts) == set(SAID) else "stored: the turn as it is"

    def _found(self, reply: httpx.Response) -> str:
        if reply.status_code != 200:
            return f"{reply.status_code} {self._told(reply.json())}"
        told = reply.json()
        assert [hit["memory"] for hit in told["results"]][:1] == [KNOWN], told
        if "degraded" not in told:
            return "finds"
        return f"finds by words, `degraded`: `{told['degraded']['code']}`"

    def _told(self, error: dict[str, Any]) -> str:
        message = error.get("detail", error.get("message", ""))
        return f"`{error['code']}`: {self._plain(message)}{self._hint(error['hint'])}"

    def _hint(self, hint: str) -> str:
        return f"<br>*{self._plain(hint)}*" if hint else ""

    def _plain(self, text: str) -> str:
        text = text.replace(self.router.url, "http://127.0.0.1:8080")
        text = text.replace(self.router.url.removeprefix("http://"), "127.0.0.1:8080")
        text = text.replace(str(self.arena.directory), "...")
        return " ".join(re.sub(r"127\.66\.66\.66", "OTHER", text).split())


def _whole(texts: list[str]) -> bool:
    """Whether each sentence of the turn stands in exactly one of its memories."""
    return all(sum(sentence in text for text in texts) == 1 for sentence in SAID)


@contextlib.contextmanager
def bench_for(name: str, directory: Path, common: Bench | None) -> Iterator[Bench]:
    """The bench on which a misbehaviour is seen."""
    if name not in LASTING:
        assert common is not None
        yield common
        return
    with Bench(directory, name) as bench:
        yield bench


def table(lines: list[str]) -> str:
    """The whole of it, with its markers."""
    head = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    return "\n".join([BEGIN, "", *head, *lines, "", END])


def written() -> dict[str, str]:
    """The lines that are in the documentation, by what they are about."""
    page = PAGE.read_text()
    inside = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    lines = [line for line in inside.splitlines() if line.startswith("| ")][2:]
    return {line[2:].partition(" | ")[0]: line for line in lines}


def write(directory: Path, names: list[str]) -> None:
    """See misbehaviours and write them into the table, whose other lines stay."""
    lines = written()
    common_directory = directory / "common"
    common_directory.mkdir()
    with Bench(common_directory) as common:
        for name in names:
            own = directory / name
            own.mkdir()
            with bench_for(name, own, common) as bench:
                line = lines[MISBEHAVIOURS[name].what] = bench.see(name).markdown()
            print(line, flush=True)
    page = PAGE.read_text()
    begin, end = page.index(BEGIN), page.index(END) + len(END)
    ordered = [lines[each.what] for each in MISBEHAVIOURS.values() if each.what in lines]
    PAGE.write_text(page[:begin] + table(ordered) + page[end:])


def main(arguments: list[str]) -> int:
    """The command: ``--write`` sees all, with names these; without it, it says what it does."""
    if arguments[:1] != ["--write"] or not set(arguments[1:]) <= set(MISBEHAVIOURS):
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), arguments[1:] or list(MISBEHAVIOURS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
