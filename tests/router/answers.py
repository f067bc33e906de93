"""What the scripted models say: vectors by words, and answers in mem0's form."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


def embedding(text: str, dimensions: int, seed: str = "") -> list[float]:
    """A vector of unit length: each word adds to four places that its hash names."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or ["<nothing>"]:
        digest = hashlib.blake2b(f"{seed}{word}".encode("utf-8", "replace"), digest_size=32)
        for place, sign in struct.iter_unpack(">IB3x", digest.digest()):
            vector[place % dimensions] += 1.0 if sign & 1 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    if length == 0.0:
        vector[0] = length = 1.0
    return [round(number / length, 7) for number in vector]


def sentences(body: Mapping[str, Any]) -> str:
    """mem0's form of an answer: every sentence that the user said in the new messages."""
    messages = [message for message in body["messages"] if message.get("role") == "user"]
    text = str(messages[-1].get("content", "")) if messages else ""
    if found := re.search(r"(?ms)^## New Messages\n(.*?)(?=^## |\Z)", text):
        text = ""
        role = ""
        for line in found.group(1).splitlines():
            if start := re.match(r"(user|assistant|system): ", line):
                role, line = start.group(1), line[start.end() :]
            if role == "user":
                text += line + "\n"
    said = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text)]
    facts = [part for part in said if len(part.split()) >= 3 and not part.endswith("?")]
    return extraction(facts)


def remembers(*facts: str) -> Callable[[Mapping[str, Any]], str]:
    """An answer that finds these facts, whatever was said."""
    return lambda _: extraction(facts)


def extraction(facts: Sequence[str]) -> str:
    """mem0's form of an answer."""
    memory = [
        {"id": str(number), "text": fact, "attributed_to": "user"}
        for number, fact in enumerate(facts)
    ]
    return json.dumps({"memory": memory}, ensure_ascii=False)


def enforced(content: str, response_format: Mapping[str, Any] | None) -> str:
    """What a grammar makes of an answer: itself where it fits, else the least that does."""
    form = response_format or {}
    if form.get("type") != "json_schema":
        return content
    schema = form["json_schema"]["schema"]
    with suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict) and set(schema.get("required", ())) <= set(value):
            return content
    return json.dumps(_least(schema))


def _least(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {})
            return {name: _least(known.get(name, {})) for name in schema.get("required", ())}
        case "array":
            return [_least(schema["items"])] * schema.get("minItems", 0)
        case "string":
            return ""
        case "integer" | "number":
            return 0
        case "boolean":
            return False
        case _:
            return None
