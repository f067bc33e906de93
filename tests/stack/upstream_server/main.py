"""The application: a stand-in for mem0's server, with the lines that the patches change."""

import asyncio
import logging
import os
import time
from typing import Any, Dict, List, Optional

from auth import ADMIN_API_KEY, AUTH_DISABLED, JWT_SECRET, verify_auth
from db import SessionLocal
from dotenv import load_dotenv
from errors import UpstreamError, new_request_id, request_id_var, upstream_error, upstream_error_handler
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, RedirectResponse
from models import RequestLog, User
from pydantic import BaseModel, Field
from routers import api_keys as api_keys_router
from routers import entities as entities_router
from server_state import get_current_config, get_memory_instance, initialize_state, set_session_factory, update_config

load_dotenv()
if not AUTH_DISABLED and not JWT_SECRET:
    raise RuntimeError("JWT_SECRET is required.")

POSTGRES_HOST = os.environ.get("POSTGRES_HOST", "postgres")
POSTGRES_PORT = os.environ.get("POSTGRES_PORT", "5432")
POSTGRES_DB = os.environ.get("POSTGRES_DB", "postgres")
POSTGRES_USER = os.environ.get("POSTGRES_USER", "postgres")
POSTGRES_PASSWORD = os.environ.get("POSTGRES_PASSWORD", "postgres")
POSTGRES_COLLECTION_NAME = os.environ.get("POSTGRES_COLLECTION_NAME", "memories")

OPENAI_API_KEY = os.environ.get("OPENAI_API_KEY")
LLM = os.environ.get("MEM0_DEFAULT_LLM_MODEL")
EMBEDDER = os.environ.get("MEM0_DEFAULT_EMBEDDER_MODEL")

DEFAULT_CONFIG = {
    "version": "v1.1",
    "vector_store": {
        "provider": "pgvector",
        "config": {
            "host": POSTGRES_HOST,
            "port": int(POSTGRES_PORT),
            "dbname": POSTGRES_DB,
            "user": POSTGRES_USER,
            "password": POSTGRES_PASSWORD,
            "collection_name": POSTGRES_COLLECTION_NAME,
        },
    },
    "llm": {"provider": "openai", "config": {"api_key": OPENAI_API_KEY, "model": LLM}},
    "embedder": {"provider": "openai", "config": {"api_key": OPENAI_API_KEY, "model": EMBEDDER}},
    "history_db_path": os.environ.get("HISTORY_DB_PATH", "/app/history/history.db"),
}

set_session_factory(SessionLocal)
initialize_state(DEFAULT_CONFIG)

app = FastAPI(title="Mem0 REST APIs", description="A stand-in for tests.", redirect_slashes=False)
app.add_exception_handler(UpstreamError, upstream_error_handler)
DASHBOARD_URL = os.environ.get("DASHBOARD_URL", "http://localhost:3000")
app.add_middleware(
    CORSMiddleware,
    allow_origins=[DASHBOARD_URL],
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
)
app.include_router(api_keys_router.router)
app.include_router(entities_router.router)


class Message(BaseModel):
    role: str
    content: str


class MemoryCreate(BaseModel):
    messages: List[Message]
    user_id: Optional[str] = None
    agent_id: Optional[str] = None
    run_id: Optional[str] = None
    metadata: Optional[Dict[str, Any]] = None
    infer: Optional[bool] = None
    memory_type: Optional[str] = None


class MemoryUpdate(BaseModel):
    text: str = Field(..., description="New content to update the memory with.")
    metadata: Optional[Dict[str, Any]] = Field(None, description="Metadata to update.")


class SearchRequest(BaseModel):
    query: str
    user_id: Optional[str] = None
    run_id: Optional[str] = None
    agent_id: Optional[str] = Field(None, description="Deprecated: pass inside `filters` instead.", deprecated=True)
    filters: Optional[Dict[str, Any]] = None
    top_k: Optional[int] = Field(None, description="Maximum number of results to return.")
    threshold: Optional[float] = Field(None, description="Minimum similarity score for results.")


def _should_log_request(request: Request) -> bool:
    return request.url.path not in {"/docs", "/openapi.json"}


def _persist_request_log(method: str, path: str, status_code: int, latency_ms: float, auth_type: str) -> None:
    with SessionLocal() as session:
        row = {"method": method, "path": path, "status_code": status_code}
        session.add(RequestLog(**row, latency_ms=latency_ms, auth_type=auth_type))
        session.commit()


@app.middleware("http")
async def log_requests(request: Request, call_next):
    rid = new_request_id()
    token = request_id_var.set(rid)
    start = time.perf_counter()
    status_code = 500
    try:
        response = await call_next(request)
        status_code = response.status_code
        response.headers["X-Request-ID"] = rid
        return response
    finally:
        request_id_var.reset(token)
        if _should_log_request(request):
            asyncio.get_running_loop().run_in_executor(
                None,
                _persist_request_log,
                request.method,
                request.url.path,
                status_code,
                round((time.perf_counter() - start) * 1000, 2),
                getattr(request.state, "auth_type", "none"),
            )


def _redacted(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _redacted(inner, name) for name, inner in value.items()}
    return "[redacted]" if value and key in {"api_key", "password"} else value


@app.get("/configure")
def get_config(_auth=Depends(verify_auth)):
    return _redacted(get_current_config())


@app.post("/configure")
def set_config(config: Dict[str, Any], _auth=Depends(verify_auth)):
    update_config(config)
    return {"message": "Configuration set successfully"}


@app.post("/memories")
def add_memory(memory_create: MemoryCreate, _auth=Depends(verify_auth)):
    if not any([memory_create.user_id, memory_create.agent_id, memory_create.run_id]):
        raise HTTPException(status_code=400, detail="At least one identifier (user_id, agent_id, run_id) is required.")
    messages = [message.model_dump() for message in memory_create.messages]
    params = {k: v for k, v in memory_create.model_dump().items() if v is not None and k != "messages"}
    try:
        return JSONResponse(content=get_memory_instance().add(messages=messages, **params))
    except Exception:
        raise upstream_error()


ALL_MEMORIES_LIMIT = 1000
_RESERVED_PAYLOAD_KEYS = {"data", "user_id", "agent_id", "run_id", "hash", "created_at", "updated_at"}


def _serialize_memory(row: Any) -> Dict[str, Any]:
    payload = getattr(row, "payload", None) or {}
    shown = {key: payload.get(key) for key in ("user_id", "agent_id", "run_id", "hash", "created_at")}
    return {
        **shown,
        "id": getattr(row, "id", None),
        "memory": payload.get("data"),
        "metadata": {k: v for k, v in payload.items() if k not in _RESERVED_PAYLOAD_KEYS},
        "updated_at": payload.get("updated_at"),
    }


def _list_all_memories(limit: int = ALL_MEMORIES_LIMIT) -> Dict[str, Any]:
    results = get_memory_instance().vector_store.list(top_k=limit)
    rows = results[0] if results and isinstance(results, list) and isinstance(results[0], list) else results or []
    return {"results": [_serialize_memory(row) for row in rows]}


@app.get("/memories")
def get_all_memories(
    user_id: Optional[str] = None,
    run_id: Optional[str] = None,
    agent_id: Optional[str] = None,
    _auth=Depends(verify_auth),
):
    """Retrieve stored memories. Lists all memories when no identifier is provided."""
    try:
        if not any([user_id, run_id, agent_id]):
            return _list_all_memories()
        filters = {
            k: v for k, v in {"user_id": user_id, "run_id": run_id, "agent_id": agent_id}.items() if v is not None
        }
        return get_memory_instance().get_all(filters=filters)
    except Exception:
        raise upstream_error()


@app.get("/memories/{memory_id}")
def get_memory(memory_id: str, _auth=Depends(verify_auth)):
    try:
        return get_memory_instance().get(memory_id)
    except Exception:
        raise upstream_error()


@app.post("/search")
def search_memories(search_req: SearchRequest, _auth=Depends(verify_auth)):
    try:
        filters = search_req.filters or {}
        for key in ("user_id", "agent_id", "run_id"):
            if (value := getattr(search_req, key)) is not None:
                filters[key] = value
        params = {key: getattr(search_req, key) for key in ("top_k", "threshold")}
        params = {key: value for key, value in params.items() if value is not None}
        return get_memory_instance().search(query=search_req.query, filters=filters, **params)
    except Exception:
        raise upstream_error()


@app.put("/memories/{memory_id}")
def update_memory(memory_id: str, updated_memory: MemoryUpdate, _auth=Depends(verify_auth)):
    """Update an existing memory."""
    try:
        return get_memory_instance().update(
            memory_id=memory_id, data=updated_memory.text, metadata=updated_memory.metadata
        )
    except Exception:
        raise upstream_error()


@app.get("/memories/{memory_id}/history")
def memory_history(memory_id: str, _auth=Depends(verify_auth)):
    try:
        return get_memory_instance().history(memory_id=memory_id)
    except Exception:
        raise upstream_error()


@app.delete("/memories/{memory_id}")
def delete_memory(memory_id: str, _auth=Depends(verify_auth)):
    try:
        get_memory_instance().delete(memory_id=memory_id)
        return {"message": "Memory deleted successfully"}
    except Exception:
        raise upstream_error()


@app.delete("/memories")
def delete_all_memories(
    user_id: Optional[str] = None,
    run_id: Optional[str] = None,
    agent_id: Optional[str] = None,
    _auth=Depends(verify_auth),
):
    ids = {"user_id": user_id, "run_id": run_id, "agent_id": agent_id}
    if not any(ids.values()):
        raise HTTPException(status_code=400, detail="At least one identifier is required.")
    try:
        get_memory_instance().delete_all(**{k: v for k, v in ids.items() if v is not None})
        return {"message": "All relevant memories deleted"}
    except Exception:
        raise upstream_error()


@app.post("/reset")
def reset_memory(_auth=Depends(verify_auth)):
    try:
        get_memory_instance().reset()
        return {"message": "All memories reset"}
    except Exception:
        raise upstream_error()


@app.get("/", include_in_schema=False)
def home():
    """Redirect to the OpenAPI documentation."""
    return RedirectResponse(url="/docs")
