"""The models that the tests offer: their names, their files, and the preset that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.llama import models

CHAT = "tiny-chat"
THINKER = "tiny-thinker"
STUBBORN = "tiny-stubborn"
SMALL_CONTEXT = "small-context"
EMBEDDER = "tiny-embed-32"
OTHER_EMBEDDER = "tiny-embed-48"

SMALL = 2000
"""Tokens of a small context."""


def write_models(directory: Path) -> None:
    """Write every model that the tests know, 2.5 MB in all, as ``<name>.gguf``."""
    models.write_chat_model(directory / f"{CHAT}.gguf")
    models.write_chat_model(directory / f"{THINKER}.gguf", models.ChatModel(thinks=True))
    stubborn = models.ChatModel(thinks=True, endless=True, obedient=False)
    models.write_chat_model(directory / f"{STUBBORN}.gguf", stubborn)
    models.write_embedding_model(directory / f"{EMBEDDER}.gguf", 32)
    models.write_embedding_model(directory / f"{OTHER_EMBEDDER}.gguf", 48)


def preset(directory: Path, offered: Sequence[str], small: int) -> str:
    """A preset file's text: which of the models are offered, and how they run.

    Args:
        directory: Where the models lie.
        offered: Their names; :data:`SMALL_CONTEXT` is the chat model with a small context.
        small: That context, in tokens.
    """
    # One thread: on a busy machine two of them wait for each other more than they compute.
    parts = ["version = 1\n[*]\nthreads = 1\n"]
    for name in offered:
        file = directory / f"{CHAT if name == SMALL_CONTEXT else name}.gguf"
        parts.append(f"[{name}]\nmodel = {file}\n")
        if name in (EMBEDDER, OTHER_EMBEDDER):
            parts.append("embeddings = true\n")
        if name == SMALL_CONTEXT:
            parts.append(f"ctx-size = {small}\n")
    return "".join(parts)
