"""Does the stack answer for real, and does the embedder fit it?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pikuri_memory.errors import EmbedderMismatchError, EmbeddingDimensionsError, ModelError
from pikuri_memory.files import write_private
from pikuri_memory.paths import DataPaths

if TYPE_CHECKING:
    import httpx

# A scope that nobody uses: reading it proves the API, the key and the vector store.
SCOPE: Final = "pikuri-memory-health"
_SECONDS: Final = 5.0
_EMBED_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 1.5


def problem(endpoint: str, key: str | None, http_client: httpx.Client | None = None) -> str | None:
    """What is wrong with a stack's API; None where a scoped read with the key is answered."""
    import httpx

    headers = {"X-API-Key": key or ""}
    params = {"user_id": SCOPE, "top_k": "1"}
    http = http_client or httpx.Client(trust_env=False, verify=False)
    try:
        reply = http.get(f"{endpoint}/memories", headers=headers, params=params, timeout=_SECONDS)
        if reply.status_code != 200:
            return f"it answers with status {reply.status_code}"
        found = reply.json()
        if not isinstance(found, dict) or not isinstance(found.get("results"), list):
            return "it answers with something else than memories"
        return None
    except httpx.ConnectError:
        return "nothing listens there"
    except httpx.TimeoutException:
        return f"it does not answer within {_SECONDS:g} s"
    except httpx.TransportError:
        return "it closes the connection without an answer"
    except (httpx.HTTPError, ValueError) as error:
        return f"it does not answer as it should ({type(error).__name__})"
    finally:
        if http_client is None:
            http.close()


def measured_dimensions(router_url: str, model: str) -> int | None:
    """Length of a model's vectors, as its endpoint gives them; None where it cannot be asked now.

    The endpoint may be down, loading, or refuse: none of that is a reason not to start.
    """
    from pikuri_memory.models.router import Patience, Router

    patience = Patience(connect=_CONNECT_SECONDS, total=_EMBED_SECONDS)
    router = Router(router_url, patience=patience)
    try:
        return int(router.embed(model, ["dimensions"]).shape[1])
    except ModelError:
        return None
    finally:
        router.close()


def check_embedder(paths: DataPaths, collection: str, model: str, dimensions: int) -> None:
    """Refuse another embedder than the one that made a collection's vectors.

    Raises:
        EmbedderMismatchError: It is another.
    """
    made = _embedders(paths).get(collection)
    if made is not None and made != [model, dimensions]:
        raise EmbedderMismatchError(
            f"the memories of {collection} in {paths.root} were embedded by {made[0]} (length"
            f" {made[1]}), not by {model} (length {dimensions})",
            hint=f"use --embedder-model {made[0]} --embedding-dims {made[1]}, or another"
            " --collection or --data-dir",
        )


def remember_embedder(paths: DataPaths, collection: str, model: str, dimensions: int) -> None:
    """Write down which embedder makes a collection's vectors.

    Raises:
        OSError: The directory cannot be written.
    """
    known = _embedders(paths)
    if known.get(collection) != [model, dimensions]:
        write_private(paths.stack_vectors, json.dumps({**known, collection: [model, dimensions]}))


def _embedders(paths: DataPaths) -> dict[str, list[Any]]:
    try:
        found = json.loads(paths.stack_vectors.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 2}


def check_dimensions(router_url: str, model: str, expected: int) -> int | None:
    """Refuse an embedder whose vectors do not fit; before anything is built.

    Returns:
        The measured length, None where it could not be measured.

    Raises:
        EmbeddingDimensionsError: They have another length.
    """
    found = measured_dimensions(router_url, model)
    if found is not None and found != expected:
        raise EmbeddingDimensionsError(
            f"the embedder {model} gives vectors of length {found}, and the stack is set up for"
            f" {expected}",
            hint=f"give the true length: --embedding-dims {found}"
            " (memories of another length need a data directory of their own)",
        )
    return found
