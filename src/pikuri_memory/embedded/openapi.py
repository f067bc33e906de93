"""The routes as one table, and the OpenAPI document that is made from it.

``app.py`` builds its routes from the same table, so that neither can have what the other lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel

from pikuri_memory.embedded import schemas
from pikuri_memory.embedded.guard import PUBLIC

_REF: Final = "#/components/schemas/{model}"
_MEANING: Final = {
    200: "Done.",
    307: "See /docs.",
    400: "No scope: none of user_id, agent_id and run_id, or an empty one, or `*`.",
    401: "No API key, or a wrong one.",
    403: "A Host that is no loopback name, or a web page of another origin.",
    404: "There is no such memory.",
    405: "The path knows other methods only.",
    408: "The body did not arrive in time.",
    409: "Another memory of the same scope says the same, or another re-embedding is under way.",
    413: "The body, a text or a list is over its limit.",
    415: "The body is not said to be JSON.",
    422: "The request is malformed; `detail` names the field.",
    500: "An internal error; `detail` has an id that is in the log too.",
    502: "The user's model endpoint did not do its part; nothing was stored.",
    503: "The server is stopping, or the user's model endpoint is away or busy; see `Retry-After`.",
    504: "The user's model endpoint did not answer in time; nothing was stored.",
    507: "The disk is nearly full: writes are refused, reads go on.",
}
_WRITES: Final = (500, 503, 507)
_READS: Final = (500, 503)
_MODELS: Final = (502, 504)
_BODY: Final = (408, 413, 415, 422)


@dataclass(frozen=True)
class Operation:
    """One route.

    Attributes:
        method: Its HTTP method; a ``GET`` answers ``HEAD`` too.
        path: Its path, with ``{name}`` for a part and ``{name:path}`` for the rest.
        name: The handler's name in ``app.py``.
        summary: One line.
        answer: The model of its 200 reply, a list of one, or None for what is not JSON.
        body: The model of its request body.
        errors: The statuses that can occur beside 401, 403 and those of a body.
        parameters: Query and header parameters.
        description: More, in Markdown.
        media: The content type of its 200 reply.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: Any = None
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    description: str = ""
    media: str = "application/json"

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return self.path.replace(":path}", "}")


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


_ID: Final = {"type": "string", "minLength": 1, "maxLength": 512}
_SCOPE: Final = (
    _query("user_id", "The person.", _ID),
    _query("agent_id", "The agent.", _ID),
    _query("run_id", "The conversation or task.", _ID),
)
_MEMORY_ID: Final = _path("memory_id", "The memory's UUID.", {"type": "string", "minLength": 1})
_IDEMPOTENCY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body within 7 days get the same reply and store nothing new.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        "POST",
        "/search",
        "search",
        "Search memories",
        schemas.SearchOut,
        schemas.SearchIn,
        (400, *_READS),
        description="Best first. Filters take `eq ne gt gte lt lte in nin contains icontains`,"
        " `AND OR NOT` and `*`.",
    ),
    Operation(
        "POST",
        "/memories",
        "add",
        "Store memories",
        schemas.AddOut,
        schemas.AddIn,
        (400, *_WRITES, *_MODELS),
        (_IDEMPOTENCY,),
        "Where there is a model, the facts that it finds; else each message of the user. All are"
        " stored, or none: an error means that nothing was. The reply comes when they are on the"
        " disk, indexed and read back. A text that the same"
        " scope has already is not stored twice: event `NONE` and the id it has.",
    ),
    Operation(
        "GET",
        "/memories",
        "list_memories",
        "List memories",
        schemas.ListOut,
        None,
        (400, 422, *_READS),
        (
            *_SCOPE,
            _query(
                "top_k",
                "Memories on a page. Without it and `cursor`, the whole scope is streamed.",
                {"type": "integer", "minimum": 1, "maximum": schemas.MAX_TOP_K},
            ),
            _query("cursor", "`next` of the page before.", {"type": "string", "maxLength": 200}),
            _query("show_expired", "Whether expired memories are listed.", {"type": "boolean"}),
        ),
        "Newest first; of everybody where no scope is given.",
    ),
    Operation(
        "DELETE",
        "/memories",
        "delete_scope",
        "Delete a scope's memories",
        schemas.MessageOut,
        None,
        (400, 422, *_WRITES),
        _SCOPE,
    ),
    Operation(
        "POST",
        "/memories/batch",
        "add_batch",
        "Import memories",
        schemas.AddOut,
        schemas.BatchIn,
        (400, *_WRITES, *_MODELS),
        (_IDEMPOTENCY,),
        "Each is stored as it is, with its id and dates where it has some.",
    ),
    Operation(
        "GET",
        "/memories/{memory_id}/history",
        "history",
        "Changes of a memory",
        list[schemas.HistoryOut],
        None,
        (404, *_READS),
        (_MEMORY_ID,),
    ),
    Operation(
        "GET",
        "/memories/{memory_id}",
        "get_memory",
        "Get a memory",
        schemas.MemoryOut,
        None,
        (404, *_READS),
        (_MEMORY_ID,),
    ),
    Operation(
        "PUT",
        "/memories/{memory_id}",
        "update_memory",
        "Change a memory",
        schemas.MessageOut,
        schemas.UpdateIn,
        (404, 409, *_WRITES, *_MODELS),
        (_MEMORY_ID,),
    ),
    Operation(
        "DELETE",
        "/memories/{memory_id}",
        "delete_memory",
        "Delete a memory",
        schemas.MessageOut,
        None,
        (404, *_WRITES),
        (_MEMORY_ID,),
        "At once unreadable through every interface; gone from the disk after the next purge.",
    ),
    Operation(
        "GET",
        "/entities",
        "entities",
        "Users, agents and runs that have memories",
        list[schemas.EntityOut],
        None,
        _READS,
    ),
    Operation(
        "DELETE",
        "/entities/{entity_type}/{entity_id:path}",
        "delete_entity",
        "Delete an entity's memories",
        schemas.MessageOut,
        None,
        (400, 404, 422, *_WRITES),
        (
            _path(
                "entity_type", "What it is.", {"type": "string", "enum": ["user", "agent", "run"]}
            ),
            _path("entity_id", "Its id.", _ID),
        ),
    ),
    Operation(
        "POST", "/reset", "reset", "Delete everything", schemas.MessageOut, None, (*_BODY, *_WRITES)
    ),
    Operation(
        "POST",
        "/purge",
        "purge",
        "Take deleted text off the disk",
        schemas.MessageOut,
        None,
        (*_BODY, *_WRITES),
    ),
    Operation(
        "POST",
        "/reembed",
        "reembed",
        "Embed every memory anew by another embedder",
        schemas.ReembedOut,
        schemas.ReembedIn,
        (409, 502, 504, *_WRITES),
        description="The reply comes when the embedder has been tried, which may take as long as"
        " its endpoint needs to load it; `GET /status` tells how far it is (`reembedding`). The old"
        " embedder and index serve until everything is embedded, also across a restart.",
    ),
    Operation(
        "DELETE",
        "/reembed",
        "cancel_reembedding",
        "Give a re-embedding up",
        schemas.MessageOut,
        None,
        _WRITES,
    ),
    Operation(
        "GET",
        "/configure",
        "configuration",
        "Configuration, without secrets",
        dict[str, Any],
        None,
        _READS,
    ),
    Operation("GET", "/status", "status", "State of the server", dict[str, Any], None, _READS),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "Figures for Prometheus",
        None,
        None,
        _READS,
        media="text/plain",
    ),
    Operation("GET", "/health", "health", "Whether the server answers", schemas.HealthOut),
)


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        version: The server's version.
    """
    from pydantic.json_schema import models_json_schema  # not needed until somebody asks

    models: list[type[BaseModel]] = [schemas.ErrorOut]
    for operation in OPERATIONS:
        for answer in (operation.body, operation.answer):
            models += [
                model
                for model in (answer, *get_args(answer))
                if get_origin(model) is None
                and isinstance(model, type)
                and issubclass(model, BaseModel)
            ]
    # What is taken and what is given have no model in common, so one mode each does.
    _, definitions = models_json_schema(
        [
            (model, "validation" if model.__name__.endswith("In") else "serialization")
            for model in dict.fromkeys(models)
        ],
        ref_template=_REF,
    )
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pikuri-memory",
            "version": version,
            "description": "Memory that lasts, for local agents, in the shape of mem0's REST API."
            " The key is in the file that `pikuri-memory status` names as `api_key_file`.",
        },
        "security": [{"apiKey": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {"200": _reply(200, operation.media, _schema(operation.answer))},
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    # A body that nobody asked for is looked at by the guard all the same.
    statuses = {403, *operation.errors, *_BODY}
    if operation.path in PUBLIC:
        described["security"] = []
    else:
        statuses.add(401)
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(operation.body)}},
        }
    for status in sorted(statuses):
        described["responses"][str(status)] = _reply(
            status, "application/json", _schema(schemas.ErrorOut)
        )
    return described


def _reply(status: int, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {"Pikuri-Memory-Version": {"schema": {"type": "string"}}}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if status in (503, 507):
        headers["Retry-After"] = {"schema": {"type": "integer"}}
    return {
        "description": _MEANING[status],
        "headers": headers,
        "content": {media: {"schema": schema}},
    }


def _schema(answer: Any) -> dict[str, Any]:
    if answer is None:
        return {"type": "string"}
    if get_origin(answer) is list:
        return {"type": "array", "items": _schema(get_args(answer)[0])}
    if get_origin(answer) is dict:
        return {"type": "object"}
    return {"$ref": _REF.format(model=answer.__name__)}
