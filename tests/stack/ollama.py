"""The user's models as the stack meets them: an Ollama on the host's loopback."""

from __future__ import annotations

from typing import Any, Final

from tests.router.scripted import ScriptedRouter, remembers

DIMENSIONS: Final = 768
LLM: Final = "scripted-chat"
EMBEDDER: Final = "scripted-embedder"


def ollama(**changes: Any) -> ScriptedRouter:
    """One with two models, that finds nothing to remember until it is told otherwise."""
    given: dict[str, Any] = {
        "flavour": "ollama",
        "chat_models": (LLM,),
        "embedding_models": (EMBEDDER,),
        "dimensions": DIMENSIONS,
        "answer": remembers(),
        # Long texts are the server's to refuse here.
        "context_tokens": 1_000_000,
        "embedding_characters": 1_000_000,
    }
    return ScriptedRouter(**{**given, **changes})
