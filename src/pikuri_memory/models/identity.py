"""Which embedder made a vector: two vectors are comparable only if these are equal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """What decides whether vectors of two embedders may be compared.

    Attributes:
        model: Name of the model, as its provider calls it.
        dimensions: Length of a vector.
        normalised: Whether every vector has unit length.
        prefix: What is put before a text, empty where nothing is.
        fingerprint: A short hash that two runs with the same weights agree on, whatever the CPU.
    """

    model: str
    dimensions: int
    normalised: bool
    prefix: str
    fingerprint: str

    def to_json(self) -> str:
        """One line of JSON; equal identities give equal lines."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> EmbedderIdentity:
        """The identity that :meth:`to_json` wrote. Unknown keys are ignored.

        Raises:
            ValueError: The text is no JSON object, or a key is missing or has another type.
        """
        value: Any = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"an embedder identity is a JSON object, not {type(value).__name__}")
        types: dict[str, type] = {
            "model": str,
            "dimensions": int,
            "normalised": bool,
            "prefix": str,
            "fingerprint": str,
        }
        given: dict[str, Any] = {}
        for field in fields(cls):
            if type(value.get(field.name)) is not types[field.name]:
                raise ValueError(f"embedder identity: {field.name!r} is missing or of another type")
            given[field.name] = value[field.name]
        return cls(**given)
