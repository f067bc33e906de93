"""Who has memories."""

from collections import defaultdict
from typing import Any, Literal

from auth import verify_auth
from errors import upstream_error
from fastapi import APIRouter, Depends
from schemas import MessageResponse
from server_state import get_memory_instance

router = APIRouter(prefix="/entities", tags=["entities"])

SCAN_LIMIT = 10_000

EntityType = Literal["user", "agent", "run"]
FIELDS = {"user": "user_id", "agent": "agent_id", "run": "run_id"}


def _iter_payloads() -> list[dict[str, Any]]:
    results = get_memory_instance().vector_store.list(top_k=SCAN_LIMIT)
    rows = results[0] if results and isinstance(results, list) and isinstance(results[0], list) else results or []
    return [getattr(row, "payload", None) or {} for row in rows]


@router.get("")
def list_entities(_auth=Depends(verify_auth)):
    times = defaultdict(list)
    for payload in _iter_payloads():
        for kind, name in FIELDS.items():
            if payload.get(name):
                times[kind, payload[name]].append((payload.get("created_at"), payload.get("updated_at")))
    return [
        {
            "id": name,
            "type": kind,
            "total_memories": len(rows),
            "created_at": min(row[0] for row in rows),
            "updated_at": max(row[1] or row[0] for row in rows),
        }
        for (kind, name), rows in sorted(times.items())
    ]


@router.delete("/{entity_type}/{entity_id}", response_model=MessageResponse)
def delete_entity(entity_type: EntityType, entity_id: str, _auth=Depends(verify_auth)):
    try:
        get_memory_instance().delete_all(**{FIELDS[entity_type]: entity_id})
    except Exception:
        raise upstream_error()
    return MessageResponse(message="Entity deleted")
