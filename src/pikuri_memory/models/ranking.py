"""Which of the offered models to use, from what their names and the router tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from pikuri_memory.models.families import family_of, normal
from pikuri_memory.models.offers import Kind, OfferedModel

_NEITHER: Final = re.compile(
    r"rerank|cross-encoder|whisper|(^|-)(tts|asr|stt)(-|$)|parakeet|kokoro|bark|speech|piper|vad"
    r"|stable-diffusion|(^|-)(sdxl|sd3|flux)|diffusion|clip(-|$)|siglip|(^|-)vae|mmproj|colbert"
    r"|moderation|(^|-)guard|-guard|shieldgemma|prompt-injection|(^|-)ocr(-|$)|reward"
)
_EMBEDDING: Final = re.compile(r"embed|(^|-)(e5|bge|gte|stella|sbert|simcse|labse)-|minilm|mpnet")
_INSTRUCT: Final = re.compile(
    r"instruct|(^|-)(it|chat|assistant)(-|$)|hermes|zephyr|openchat|gpt-oss|(^|-)gpt-\d"
)
_BASE: Final = re.compile(r"(^|-)(base|pretrained|pt|foundation)(-|$)|-fim(-|$)")
_SEES: Final = re.compile(r"(^|-)(vl|vision|llava|moondream|minicpm-v|bakllava|pixtral)(-|\d|$)")
_REASONS: Final = re.compile(
    r"(^|-)(r1|qwq|thinking|reasoner|reasoning|think|o1|o3)(-|$)|deepseek-r"
)
_NARROW: Final = re.compile(
    r"cod(e|er|estral|egemma|ellama)|(^|-)(math|sql|med|bio|function|tool|translate|roleplay|rp)"
    r"(-|\d|$)|starcoder|uncensored|abliterated"
)
_SIZE: Final = re.compile(r"(?:^|[-x])(\d+(?:\.\d+)?)(b|m)(?:-|$)")


class Ranking(NamedTuple):
    """The best of each kind, with the reasons; None where nothing of a kind is offered."""

    chat: str | None
    embedding: str | None
    why_chat: str
    why_embedding: str


def rank(offered: Iterable[OfferedModel]) -> Ranking:
    """Choose a chat and an embedding model. Pure: nothing is asked or loaded.

    For chats: models that follow instructions, that are in memory already, of 3 to 40 billion
    parameters where the name tells, and made for talk rather than for code, pictures or long
    thoughts. For embeddings: the families that find best, then those in memory. Of equals the
    first in the router's order.
    """
    offered = tuple(offered)
    chats = [model for model in offered if use(model) == "chat"]
    embeddings = [model for model in offered if use(model) == "embedding"]
    chat = max(chats, key=_chat_score, default=None)
    embedding = max(embeddings, key=_embedding_score, default=None)
    return Ranking(
        chat.id if chat else None,
        embedding.id if embedding else None,
        _why(chat, len(chats)),
        _why(embedding, len(embeddings)),
    )


def use(model: OfferedModel) -> Kind:
    """What a model is for: as the router tells, else as its name does; unknown for neither."""
    name = normal(model.id)
    if _NEITHER.search(name):
        return "unknown"
    if model.kind != "unknown":
        return model.kind
    capabilities = str(model.details.get("capabilities", "")).split()
    if capabilities and not {"completion", "embedding"} & set(capabilities):
        return "unknown"
    if family_of(model.id) is not None or _EMBEDDING.search(name):
        return "embedding"
    return "chat"


def billions(model: OfferedModel) -> float | None:
    """Parameters in billions, where the router or the name tells."""
    told = model.details.get("size")
    if isinstance(told, int) and told > 0:
        return told / 1e9
    if isinstance(told, str) and (found := re.fullmatch(r"([\d.]+)\s*([BM])", told.strip())):
        return float(found.group(1)) / (1 if found.group(2) == "B" else 1000)
    sizes = [
        float(number) / (1 if unit == "b" else 1000)
        for number, unit in _SIZE.findall(normal(model.id))
    ]
    return max(sizes, default=None)


def _chat_score(model: OfferedModel) -> float:
    name = normal(model.id)
    score = 0.0
    if _INSTRUCT.search(name):
        score += 2.0
    if _BASE.search(name) and not _INSTRUCT.search(name):
        score -= 6.0
    if _REASONS.search(name):
        score -= 3.0
    if _NARROW.search(name):
        score -= 2.0
    if _SEES.search(name):
        score -= 1.5
    if model.loaded:
        score += 4.0
    size = billions(model)
    if size is not None:
        if size < 1.0:
            score -= 5.0
        elif size < 3.0:
            score -= 2.5
        elif size > 40.0:
            score -= 1.0
        else:
            score += 1.0
    return score


def _embedding_score(model: OfferedModel) -> tuple[int, bool]:
    family = family_of(model.id)
    return (family.rank if family else 40, bool(model.loaded))


def _why(model: OfferedModel | None, of: int) -> str:
    if model is None:
        return "none is offered"
    reasons = []
    if of == 1:
        reasons.append("the only one of its kind")
    if model.loaded:
        reasons.append("loaded")
    family = family_of(model.id)
    if family is not None:
        reasons.append(f"of the family {family.name}")
    elif use(model) == "chat" and _INSTRUCT.search(normal(model.id)):
        reasons.append("follows instructions")
    size = billions(model)
    if size is not None and size >= 0.001:
        reasons.append(f"{size:g}B parameters" if size >= 1 else f"{size * 1000:.0f}M parameters")
    return ", ".join(reasons) or f"the first of {of}"
