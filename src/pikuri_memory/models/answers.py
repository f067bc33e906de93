"""What a router's replies hold: a chat's answer, and vectors, checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.errors import EmbeddingError, ModelAnswerError, RouterRefusedError
from pikuri_memory.models.endpoint import Endpoint
from pikuri_memory.models.trouble import Reply

_THOUGHT: Final = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_THOUGHT_END: Final = re.compile(r"(?!\s*[\[{`])(.*?)</think>", re.DOTALL)
"""Some templates begin a thought in the prompt, so that only its end is in the answer; an answer
that begins as JSON may well have these words in it."""

_OTHER_MODEL: Final = (
    "choose another embedding model: pikuri-memory models lists them, then pikuri-memory reembed"
    " --embedder-model NAME"
)


@dataclass(frozen=True)
class ChatAnswer:
    """One answer of a chat model.

    Attributes:
        text: What it said, without its reasoning; may be empty.
        reasoning: What it thought, from a field of its own or from ``<think>`` in the text.
        finish_reason: ``stop``, or ``length`` when it was cut off; empty where none is told.
        prompt_tokens: As counted by the router; None where it does not count.
        completion_tokens: Likewise.
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


def object_of(reply: Reply, endpoint: Endpoint) -> Mapping[str, Any]:
    """The JSON object of a successful reply.

    Raises:
        RouterRefusedError: It is none.
    """
    value = reply.json()
    if not isinstance(value, dict):
        kind = reply.headers.get("content-type", "").split(";")[0][:40] or "nothing"
        raise RouterRefusedError(
            f"what answers at {endpoint} is no model endpoint: no JSON object, but {kind}",
            hint="give the URL that stands before /chat/completions, such as"
            " http://127.0.0.1:8080/v1",
        )
    return value


def chat_answer(value: Mapping[str, Any], model: str) -> ChatAnswer:
    """The answer in a chat completion.

    Raises:
        ModelAnswerError: There is none.
    """
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ModelAnswerError(
            f"{model} answered without a message",
            hint="look at the router's log; pikuri-memory models shows what else it offers",
        )
    text = _content(message.get("content"))
    reasoning = next(
        (
            message[key]
            for key in ("reasoning_content", "reasoning", "thinking")
            if isinstance(message.get(key), str) and message[key]
        ),
        "",
    )
    if thought := _THOUGHT.match(text):
        reasoning = reasoning or thought.group(2).strip()
        text = text[thought.end() :].lstrip()
    elif end := _THOUGHT_END.match(text):
        reasoning = reasoning or end.group(1).strip()
        text = text[end.end() :].lstrip()
    usage = value.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    return ChatAnswer(
        text,
        reasoning,
        finish if isinstance(finish, str) else "",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # parts, as newer versions of the protocol have them
        return "".join(
            part["text"]
            for part in value
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def vectors_of(value: Mapping[str, Any], model: str, count: int) -> NDArray[np.float32]:
    """The vectors of an embedding reply, in the order of the texts, shape (count, dimensions).

    Raises:
        EmbeddingError: There are not ``count``, or one is no vector: of another length, with a
            number that is not finite, or all zero.
    """
    data = value.get("data")
    rows = data if isinstance(data, list) else []
    if len(rows) != count:
        raise EmbeddingError(f"{model} gave {len(rows)} of {count} vectors", hint=_OTHER_MODEL)
    placed: list[NDArray[np.float32] | None] = [None] * count
    for position, row in enumerate(rows):
        index = row.get("index", position) if isinstance(row, dict) else None
        if not isinstance(index, int) or not 0 <= index < count or placed[index] is not None:
            raise EmbeddingError(f"{model} gave vectors without their order", hint=_OTHER_MODEL)
        placed[index] = _vector(row.get("embedding"), model)
    vectors = [vector for vector in placed if vector is not None]
    equal_lengths(vectors, model)
    return np.stack(vectors)


def equal_lengths(vectors: Sequence[NDArray[np.float32]], model: str) -> None:
    """Refuse vectors (or rows of them) that differ in length.

    Raises:
        EmbeddingError: They do.
    """
    lengths = sorted({vector.shape[-1] for vector in vectors})
    if len(lengths) > 1:
        raise EmbeddingError(
            f"{model} gave vectors of different lengths: {', '.join(map(str, lengths))}",
            hint=_OTHER_MODEL,
        )


def _vector(value: Any, model: str) -> NDArray[np.float32]:
    if isinstance(value, str):
        try:
            raw = base64.b64decode(value, validate=True)
            vector = np.frombuffer(raw, dtype="<f4").astype(np.float32)
        except (binascii.Error, ValueError):
            raise EmbeddingError(
                f"{model} gave a text that is no vector", hint=_OTHER_MODEL
            ) from None
    else:
        # llama.cpp gives one vector a token where the model does not pool: a list of lists.
        vector = _numbers(value, model)
    if vector.size == 0:
        raise EmbeddingError(f"{model} gave an empty vector", hint=_OTHER_MODEL)
    if not np.isfinite(vector).all():
        raise EmbeddingError(
            f"{model} gave a vector with numbers that are not finite",
            hint="look at the router's log: such a model is damaged, or runs out of range in half"
            " precision; " + _OTHER_MODEL,
        )
    if not vector.any():
        raise EmbeddingError(f"{model} gave a vector of zeros only", hint=_OTHER_MODEL)
    return vector


def _numbers(value: Any, model: str) -> NDArray[np.float32]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list) and all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in value
    ):
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype=np.float64).astype(np.float32)
    if isinstance(value, list) and value and isinstance(value[0], list):
        raise EmbeddingError(
            f"{model} gave a vector for each token and not for each text",
            hint="start the router with a way to pool them: llama-server --embeddings"
            " --pooling mean ...",
        )
    if isinstance(value, list) and any(number is None for number in value):
        # How JSON spells NaN where it must.
        raise EmbeddingError(
            f"{model} gave a vector with numbers that are not finite", hint=_OTHER_MODEL
        )
    raise EmbeddingError(f"{model} gave something that is no vector", hint=_OTHER_MODEL)
