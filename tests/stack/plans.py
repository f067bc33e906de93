"""What a stack that has run leaves in its data directory."""

from __future__ import annotations

from typing import Any, Final

PLAN: Final[dict[str, Any]] = {
    "router_url": "http://127.0.0.1:9",
    "container_router_url": None,
    "llm_model": "a-chat",
    "embedder_model": "an-embedder",
    "embedding_dims": 64,
    "port": 0,
    "qdrant_port": 0,
    "collection": "pikuri_memory",
    "qdrant_image": "qdrant/qdrant:v1.12.4",
    "socat_image": "alpine/socat:1.8.0.3",
    "repo_url": "/nowhere",
    "ref": "a" * 40,
    "patch_dir": "/nowhere",
    "checkout_dir": "/nowhere",
    "sock_dir": "/nowhere",
    "healthcheck_timeout": 60.0,
    "build_timeout": 60.0,
    "relay_bind_timeout": 5.0,
    "project": "pikuri-internal-mem0-0000000000",
}
