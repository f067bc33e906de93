"""What a chat model answers when it is asked for facts: asked for in one form, read in many.

Small models wrap JSON into prose or code fences, think aloud, stop half-way or invent a form of
their own. All of that is told apart here, because "nothing worth remembering" is true only when
the model said so: ``{"memory": []}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

_TRIES: Final = 500
_OBJECT: Final = re.compile(r"\{\s*[\"}]")
_BROKEN: Final = re.compile(r"\{\s*\"memory\"\s*:\s*\[")
_TAG: Final = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
# Not strict: a model may put a line break into a string.
_DECODER: Final = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Extracted:
    """One fact of an answer: its text, stripped and never empty, and whose words it comes from."""

    text: str
    attributed_to: str | None = None


class UnusableAnswer(Exception):
    """An answer from which no facts can be read.

    Attributes:
        kind: What is the matter with it.
        reason: The same as a clause with "the answer" as its subject; never holds its text.
    """

    def __init__(
        self, kind: Literal["empty", "reasoning", "cut", "no_json", "form"], reason: str
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def read(text: str, *, reasoning: str = "", finish_reason: str | None = None) -> list[Extracted]:
    """The facts that an answer holds, in its order; empty only where it says ``{"memory": []}``.

    A code fence, prose around the JSON and thoughts in tags are passed over, if exactly one object
    with ``memory`` is left.

    Args:
        text: The content of the answer.
        reasoning: What the model thought, where the endpoint tells it apart.
        finish_reason: Why it stopped; ``length`` is that it was cut.

    Raises:
        UnusableAnswer: There is nothing, or not all of it, or it has another form.
    """
    cut = finish_reason == "length"
    whole = _loads(text.strip())
    if whole is not None:
        # All of it is JSON, so nothing was cut, whatever the reason is called.
        return _facts(whole)
    said = _without_thoughts(text)
    if not said:
        thought = bool(reasoning.strip() or text.strip())
        if thought:
            raise UnusableAnswer(
                "reasoning",
                "ends while it still thinks" if cut else "has only thoughts and no words",
            )
        raise UnusableAnswer("cut" if cut else "empty", "is empty")
    if cut:
        raise UnusableAnswer("cut", "was cut at its greatest length")
    found: list[list[Extracted]] = []
    for value in _objects(said):
        if "memory" in value and (facts := _facts(value)) not in found:
            found.append(facts)
    if not found:
        raise UnusableAnswer("no_json", 'has no complete JSON object with a list "memory"')
    if len(found) > 1:
        raise UnusableAnswer("form", "has several JSON objects, which say different things")
    return found[0]


def _without_thoughts(text: str) -> str:
    said: list[str] = []
    at, thinks = 0, False
    for tag in _TAG.finditer(text):
        if tag[1]:
            # Templates that open the thought themselves leave only its end.
            if not thinks:
                said.clear()
            at, thinks = tag.end(), False
        elif not thinks:
            said.append(text[at : tag.start()])
            thinks = True
    if not thinks:
        said.append(text[at:])
    return "".join(said).strip()


def _loads(text: str) -> Any:
    """The value, where the whole text is one JSON value; else None."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text, from left to right."""
    at = 0
    for _ in range(_TRIES):
        start = _OBJECT.search(text, at)
        if start is None:
            return
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except RecursionError:
            raise UnusableAnswer("no_json", "has JSON that is nested without end") from None
        except ValueError:
            if _BROKEN.match(text, start.start()):
                # What lies inside of a broken answer is no answer, nor is what stands beside it.
                raise UnusableAnswer("no_json", "has a JSON object that is broken off") from None
            at = start.start() + 1
        else:
            yield value


def _facts(value: Any) -> list[Extracted]:
    memory = value.get("memory") if isinstance(value, dict) else None
    if not isinstance(memory, list):
        raise UnusableAnswer("form", 'is JSON, but no object with a list "memory"')
    facts = []
    for number, item in enumerate(memory):
        text = item.get("text") if isinstance(item, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UnusableAnswer("form", f'has no "text" in memory[{number}]')
        if not _is_unicode(text):
            raise UnusableAnswer("form", f"has half a character in memory[{number}]")
        by = item.get("attributed_to")
        facts.append(Extracted(text.strip(), by if by in ("user", "assistant") else None))
    return facts


def _is_unicode(text: str) -> bool:
    """Whether it can be stored: JSON can name halves of a character (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
