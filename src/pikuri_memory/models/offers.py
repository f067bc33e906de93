"""What a router offers, read from its model list and from the routes that its kind has beside it.

The kinds tell themselves apart by ``owned_by`` in their lists: llama.cpp ``llamacpp``, vLLM
``vllm``, Ollama ``library`` (or a user's name), LM Studio ``organization_owner``. Of routes that
are not there nothing is lost but a detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal
from urllib.parse import quote

Kind = Literal["chat", "embedding", "unknown"]
Native = Callable[[str, str, Mapping[str, Any] | None], Any]
"""Asks a route beside the OpenAI ones: method, path, body; gives its JSON or None."""

_WORDPIECE: Final = 3
"""llama.cpp's number for the kind of tokens that BERT has, and hardly any chat model."""

MOST_SHOWN: Final = 64
"""Most models that Ollama is asked about one by one."""


@dataclass(frozen=True)
class OfferedModel:
    """One model of a router.

    Attributes:
        id: What requests call it.
        kind: What it is for, where the router tells.
        context_tokens: What it reads at once, as it runs or would run now; None where not told.
        loaded: Whether it is in memory now; None where not told.
        details: What else was told: ``server``, ``capabilities`` (words with spaces between),
            ``family``, ``size`` (parameters, as told), ``trained_context_tokens``.
    """

    id: str
    kind: Kind = "unknown"
    context_tokens: int | None = None
    loaded: bool | None = None
    details: Mapping[str, str | int] = field(default_factory=dict)


def offers(listing: Mapping[str, Any], native: Native) -> tuple[OfferedModel, ...]:
    """The models of a list, with what native routes tell of them."""
    entries = _entries(listing)
    server = _server(entries)
    if server in ("llama.cpp", "vLLM"):
        return tuple(_plain(entry, server, listing) for entry in entries)
    if server in ("", "LM Studio"):
        told = _object(native("GET", "/api/v0/models", None)).get("data")
        if isinstance(told, list):
            rows = {row["id"]: row for row in told if _has_name(row, "id")}
            return tuple(_lm_studio(entry, rows.get(entry["id"], {})) for entry in entries)
    if server in ("", "Ollama"):
        told = _object(native("GET", "/api/tags", None)).get("models")
        if isinstance(told, list):
            return _ollama(entries, told, native)
    return tuple(_plain(entry, server, listing) for entry in entries)


def properties(model: str, listing: Mapping[str, Any], native: Native) -> dict[str, Any]:
    """What :meth:`pikuri_memory.models.router.Router.properties` tells."""
    entries = _entries(listing)
    server = _server(entries)
    found: dict[str, Any] = {}
    entry = next((each for each in entries if each["id"] == model), None)
    if entry is not None:
        plain = _plain(entry, server, listing)
        found = dict(plain.details)
        if plain.context_tokens is not None:
            found["context_tokens"] = plain.context_tokens
        if "capabilities" in found:
            found["capabilities"] = tuple(str(found["capabilities"]).split())
    if server == "vLLM":
        return found
    if server == "llama.cpp":
        found.update(_llama_cpp_properties(model, native))
        return found
    rows = _object(native("GET", "/api/v0/models", None)).get("data")
    if isinstance(rows, list):
        for row in rows:
            if isinstance(row, dict) and row.get("id") == model:
                studio = _lm_studio({"id": model}, row)
                found.update(studio.details)
                if studio.context_tokens is not None:
                    found["context_tokens"] = studio.context_tokens
        return found
    found.update(_ollama_properties(model, native))
    return found


def _entries(listing: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = listing.get("data")
    return [
        entry
        for entry in (data if isinstance(data, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
    ]


def names(listing: Mapping[str, Any]) -> list[str]:
    """The ids in a model list."""
    return [entry["id"] for entry in _entries(listing)]


def _server(entries: list[dict[str, Any]]) -> str:
    owners = {str(entry.get("owned_by", "")).lower() for entry in entries}
    known = {
        "llamacpp": "llama.cpp",
        "vllm": "vLLM",
        "library": "Ollama",
        "organization_owner": "LM Studio",
        "organization-owner": "LM Studio",
    }
    return next((name for owner, name in known.items() if owner in owners), "")


def _plain(entry: Mapping[str, Any], server: str, listing: Mapping[str, Any]) -> OfferedModel:
    details: dict[str, str | int] = {}
    if server:
        details["server"] = server
    meta = _object(entry.get("meta"))
    context = _number(entry.get("max_model_len"))
    if context is None:
        context = _number(meta.get("n_ctx"))
    trained = _number(meta.get("n_ctx_train"))
    if trained is None and server == "llama.cpp":
        trained = _number(entry.get("context_length"))
    if trained is not None:
        details["trained_context_tokens"] = trained
    size = _number(meta.get("n_params"))
    if size is not None:
        details["size"] = size
    capabilities = _capabilities(entry, listing)
    if capabilities:
        details["capabilities"] = " ".join(capabilities)
    arguments = _object(entry.get("status")).get("args")
    words = [str(word) for word in arguments] if isinstance(arguments, list) else []
    if context is None:
        context = _argument(words, ("-c", "--ctx-size"))
    kind = _kind(capabilities)
    if server == "llama.cpp":
        if {"--embedding", "--embeddings"} & set(words) or meta.get("vocab_type") == _WORDPIECE:
            kind = "embedding"
        elif kind == "chat":
            # Its single mode says "completion" of an embedding model too.
            kind = "unknown"
    state = _object(entry.get("status")).get("value")
    loaded = state == "loaded" if isinstance(state, str) else None
    if loaded is None and server == "llama.cpp" and meta:
        loaded = True  # the single mode has its only model in memory
    return OfferedModel(entry["id"], kind, context, loaded, details)


def _argument(words: list[str], flags: tuple[str, ...]) -> int | None:
    for flag, value in pairwise(words):
        if flag in flags and value.isascii() and value.isdigit() and int(value) > 0:
            return int(value)
    return None


def _capabilities(entry: Mapping[str, Any], listing: Mapping[str, Any]) -> tuple[str, ...]:
    told = entry.get("capabilities")
    if not isinstance(told, list):
        # llama.cpp's list has a second part in Ollama's form.
        others = listing.get("models")
        for other in others if isinstance(others, list) else []:
            if isinstance(other, dict) and entry["id"] in (other.get("model"), other.get("name")):
                told = other.get("capabilities")
    return tuple(str(word) for word in told) if isinstance(told, list) else ()


def _kind(capabilities: tuple[str, ...]) -> Kind:
    if {"embedding", "embeddings"} & set(capabilities):
        return "embedding"
    if {"completion", "chat", "tools", "tool_use"} & set(capabilities):
        return "chat"
    return "unknown"


def _lm_studio(entry: Mapping[str, Any], row: Mapping[str, Any]) -> OfferedModel:
    details: dict[str, str | int] = {"server": "LM Studio"}
    if isinstance(row.get("arch"), str):
        details["family"] = row["arch"]
    trained = _number(row.get("max_context_length"))
    if trained is not None:
        details["trained_context_tokens"] = trained
    capabilities = _capabilities(row, {}) if "id" in row else ()
    if capabilities:
        details["capabilities"] = " ".join(capabilities)
    kinds: dict[str, Kind] = {"llm": "chat", "vlm": "chat", "embeddings": "embedding"}
    state = row.get("state")
    return OfferedModel(
        entry["id"],
        kinds.get(str(row.get("type")), "unknown"),
        _number(row.get("loaded_context_length")),
        state == "loaded" if isinstance(state, str) else None,
        details,
    )


def _ollama(
    entries: list[dict[str, Any]], tags: list[Any], native: Native
) -> tuple[OfferedModel, ...]:
    rows = {row["name"]: row for row in tags if _has_name(row, "name")}
    running = _running(native)
    found = []
    for position, entry in enumerate(entries):
        model = entry["id"]
        told = _object(_object(rows.get(model)).get("details"))
        details: dict[str, str | int] = {"server": "Ollama"}
        if isinstance(told.get("family"), str):
            details["family"] = told["family"]
        if isinstance(told.get("parameter_size"), str):
            details["size"] = told["parameter_size"]
        capabilities: tuple[str, ...] = ()
        if position < MOST_SHOWN:
            shown = _object(native("POST", "/api/show", {"model": model}))
            capabilities = _capabilities({"id": model, **shown}, {})
            trained = _trained(shown)
            if trained is not None:
                details["trained_context_tokens"] = trained
        if capabilities:
            details["capabilities"] = " ".join(capabilities)
        here = model in running
        found.append(OfferedModel(model, _kind(capabilities), running.get(model), here, details))
    return tuple(found)


def _ollama_properties(model: str, native: Native) -> dict[str, Any]:
    shown = _object(native("POST", "/api/show", {"model": model}))
    if not shown:
        return {}
    found: dict[str, Any] = {"server": "Ollama"}
    capabilities = _capabilities({"id": model, **shown}, {})
    if capabilities:
        found["capabilities"] = capabilities
        found["thinks"] = "thinking" in capabilities
    trained = _trained(shown)
    if trained is not None:
        found["trained_context_tokens"] = trained
    context = _running(native).get(model) or _running(native).get(f"{model}:latest")
    if context is not None:
        found["context_tokens"] = context
    return found


def _running(native: Native) -> dict[str, int | None]:
    """Ollama's models in memory, each with the context that it was loaded with."""
    rows = _object(native("GET", "/api/ps", None)).get("models")
    return {
        str(row.get("name")): _number(row.get("context_length"))
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }


def _trained(shown: Mapping[str, Any]) -> int | None:
    information = _object(shown.get("model_info"))
    return next(
        (
            number
            for key, value in information.items()
            if key.endswith(".context_length") and (number := _number(value)) is not None
        ),
        None,
    )


def _llama_cpp_properties(model: str, native: Native) -> dict[str, Any]:
    # autoload=false: the router mode would start the model to answer.
    query = f"?model={quote(model, safe='')}&autoload=false"
    told = _object(native("GET", f"/props{query}", None))
    found: dict[str, Any] = {}
    context = _number(_object(told.get("default_generation_settings")).get("n_ctx"))
    if context:
        found["context_tokens"] = context
    template = told.get("chat_template")
    if isinstance(template, str) and template:
        found["thinks"] = "enable_thinking" in template or "<think>" in template
    return found


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _has_name(row: Any, key: str) -> bool:
    return isinstance(row, dict) and isinstance(row.get(key), str)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
