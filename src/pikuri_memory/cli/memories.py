"""add, search, list, get, update, delete, history."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any

import typer

from pikuri_memory.cli.output import Noted, confirmed, day, plain, read_input
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.errors import InvalidRequestError, ScopeRequiredError
from pikuri_memory.record import UNSET, Record, Scope

User = Annotated[str | None, typer.Option("--user", "-u", help="whose memory: the person")]
Agent = Annotated[str | None, typer.Option("--agent", help="whose memory: the agent")]
Run = Annotated[str | None, typer.Option("--run", help="whose memory: the conversation or task")]
Expired = Annotated[bool, typer.Option("--show-expired", help="expired memories too")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    verb(app)(add)
    verb(app)(search)
    verb(app, "list")(list_)
    verb(app)(get)
    verb(app)(update)
    verb(app)(delete)
    verb(app)(history)


def add(
    call: Call,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="the fact; - reads standard input")],
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help='fields of your own: {"city": "Oslo"}')
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="last day on which it is found: 2030-12-31")
    ] = None,
    infer: Annotated[
        bool | None,
        typer.Option(
            "--infer/--no-infer",
            help="let a model extract facts, or keep the text as it is; without either, the"
            " server's model does if it has one",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="own instructions for the extraction")
    ] = None,
) -> None:
    """Remember a fact. What the same user, agent and run has already is not stored twice."""
    scope = _required(_scope(user, agent, run))
    fields = _object(metadata, "--metadata")
    until = _date(expires)
    text = read_input() if text == "-" else text
    if not text.strip():
        raise InvalidRequestError(
            "the text is empty", hint='pikuri-memory add "I am allergic to walnuts" --user ada'
        )
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client, call.progress("adding"):
        added = client.add(
            text,
            user_id=scope.user_id,
            agent_id=scope.agent_id,
            run_id=scope.run_id,
            metadata=fields,
            expiration_date=until,
            infer=infer,
            prompt=prompt,
        )
    call.out.document(
        {"results": [{"id": one.id, "text": one.text, "event": one.event} for one in added]}
    )
    for one in added:
        call.out.say(f"{'known' if one.event == 'NONE' else 'added'} {one.id}")
    if not added:
        call.out.note("the model found no fact in it that is worth remembering")


def search(
    call: Call,
    query: Annotated[
        str, typer.Argument(metavar="QUERY|-", help="the question; - reads standard input")
    ],
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="most memories")] = 10,
    filter: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='conditions on metadata: {"year": {"gte": 2020}}'),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="SCORE", help="least score, from 0 to 1")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="the parts of each score")] = False,
    show_expired: Expired = False,
) -> None:
    """Find memories by a question in any words, best first."""
    conditions = _object(filter, "--filter")
    scope = _scope(user, agent, run)
    if not conditions:
        _required(scope)
    query = read_input() if query == "-" else query
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        found = client.search(
            query,
            user_id=scope.user_id,
            agent_id=scope.agent_id,
            run_id=scope.run_id,
            filters=conditions,
            top_k=limit,
            threshold=threshold,
            explain=explain,
            show_expired=show_expired,
        )
    degraded = found.degraded
    call.out.document(
        {
            "results": [_shown(record) for record in found],
            "degraded": None if degraded is None else plain(degraded),
        }
    )
    if degraded is not None:
        call.out.note(f"note: {degraded.detail}")
        if degraded.hint:
            call.out.note(f"hint: {degraded.hint}")
    columns = ["score", "memory", "learnt", "id"] + (["why"] if explain else [])
    call.out.table(
        columns,
        (
            [f"{record.score or 0:.3f}", _marked(record), day(record.created_at), record.id]
            + ([json.dumps(plain(record.explanation))] if explain else [])
            for record in found
        ),
    )
    if not found:
        call.out.note("nothing found")


def list_(
    call: Call,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="most memories; without it, all")
    ] = None,
    show_expired: Expired = False,
) -> None:
    """List memories, newest first.

    Those of a user, agent or run, or all there are."""
    scope = _scope(user, agent, run)
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        records = client.iterate(
            user_id=scope.user_id,
            agent_id=scope.agent_id,
            run_id=scope.run_id,
            show_expired=show_expired,
            limit=limit,
        )
        if call.out.json:
            for record in records:
                call.out.line(_shown(record))
            return
        # On a terminal, where room is scarce, whose it is goes without saying if one was asked for.
        of = not call.out.terminal or len(scope.as_dict()) != 1
        count = call.out.table(
            ["learnt", "memory", *(["of"] if of else []), "id"],
            (
                [day(row.created_at), _marked(row), *([_owner(row)] if of else []), row.id]
                for row in records
            ),
        )
    if not count:
        call.out.note("no memories")


def get(
    call: Call,
    memory_id: Annotated[str, typer.Argument(metavar="ID", help="as `list` shows it")],
) -> None:
    """Show one memory with its fields."""
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        record = client.get(memory_id)
    call.out.document(_shown(record))
    call.out.fields(
        [
            ("memory", record.text),
            ("of", _owner(record)),
            ("learnt", day(record.created_at)),
            ("changed", day(record.updated_at) if record.updated_at != record.created_at else ""),
            ("expires", record.expiration_date),
            ("supersedes", ", ".join(record.supersedes)),
            ("superseded by", ", ".join(record.superseded_by)),
            (
                "metadata",
                json.dumps(dict(record.metadata), ensure_ascii=False) if record.metadata else "",
            ),
            ("id", record.id),
        ]
    )


def update(
    call: Call,
    memory_id: Annotated[str, typer.Argument(metavar="ID", help="as `list` shows it")],
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT|-]", help="the new text; - reads standard input"),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="instead of the old metadata")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help='last day on which it is found; "" for ever')
    ] = None,
) -> None:
    """Change a memory; what is not given stays."""
    if text is None and metadata is None and expires is None:
        raise InvalidRequestError(
            "nothing to change",
            hint=f'pikuri-memory update {memory_id} "the new text" (or --metadata, --expires)',
        )
    fields = _object(metadata, "--metadata")
    until = _date(expires) if expires else None
    text = read_input() if text == "-" else text
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        client.update(
            memory_id,
            UNSET if text is None else text,
            metadata=UNSET if fields is None else fields,
            expiration_date=UNSET if expires is None else until,
        )
    call.out.document({"id": memory_id, "event": "UPDATE"})
    call.out.say(f"updated {memory_id}")


def delete(
    call: Call,
    memory_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="as `list` shows them")
    ] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Delete memories.

    Those of the ids, or all of a user, agent or run, which asks first."""
    scope = _scope(user, agent, run)
    ids = memory_ids or []
    if bool(ids) == bool(scope):
        raise InvalidRequestError(
            "give either ids or a user, agent or run",
            hint="pikuri-memory delete ID, or: pikuri-memory delete --user ada",
        )
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        if scope:
            whose = ", ".join(f"{name} {value}" for name, value in scope.as_dict().items())
            question = f"delete all memories of {whose}? [y/N]"
            if not yes and not confirmed(question, wanted=("y", "Y", "yes"), flag="--yes"):
                raise InvalidRequestError("not confirmed: nothing was deleted", hint="answer y")
            client.delete_all(**scope.as_dict())
            call.out.document({"scope": scope.as_dict(), "event": "DELETE"})
            call.out.say(f"deleted all memories of {whose}")
            return
        for memory_id in ids:
            client.delete(memory_id)
            call.out.say(f"deleted {memory_id}")
    call.out.document({"ids": ids, "event": "DELETE"})


def history(
    call: Call,
    memory_id: Annotated[str, typer.Argument(metavar="ID", help="as `list` shows it")],
) -> None:
    """Show the changes of a memory.

    Oldest first; of a deleted one too, without its texts."""
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        entries = client.history(memory_id)
    call.out.document(
        {
            "id": memory_id,
            "history": [
                {
                    "event": entry.event,
                    "old_text": entry.old_text,
                    "new_text": entry.new_text,
                    "at": entry.at,
                }
                for entry in entries
            ],
        }
    )
    call.out.table(
        ["at", "event", "memory"],
        ([day(entry.at), entry.event, entry.new_text or ""] for entry in entries),
    )


def _scope(user: str | None, agent: str | None, run: str | None) -> Scope:
    return Scope.of({"user_id": user, "agent_id": agent, "run_id": run})


def _required(scope: Scope) -> Scope:
    if not scope:
        raise ScopeRequiredError(
            "whose memory? At least one of --user, --agent and --run is required",
            hint="add --user NAME",
        )
    return scope


def _date(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError(
            "--expires is no date of the form YYYY-MM-DD", hint="--expires 2030-12-31"
        ) from None


def _owner(record: Record) -> str:
    return " ".join(filter(None, (record.user_id, record.agent_id, record.run_id)))


def _object(text: str | None, flag: str) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"{flag} is not a JSON object", hint=f"{flag} '" + '{"city": "Oslo"}' + "'"
        )
    return value


def _marked(record: Record) -> str:
    """The text of a memory, with a note where a later one replaces it."""
    if not record.superseded_by:
        return record.text
    return Noted(record.text, f"superseded by {', '.join(record.superseded_by)}")


def _shown(record: Record) -> dict[str, Any]:
    """A memory as JSON; ``score`` and ``explanation`` only where a search gave them, and links
    where there are any."""
    fields: dict[str, Any] = plain(record)
    for name in ("supersedes", "superseded_by"):
        if not fields[name]:
            del fields[name]
    for name in ("score", "event", "explanation"):
        if fields[name] is None:
            del fields[name]
    return fields
