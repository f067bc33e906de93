"""export, import."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from pikuri_memory.cli.output import counted, to_json
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.errors import AccessError, InvalidRequestError, PikuriMemoryError
from pikuri_memory.record import Scope

if TYPE_CHECKING:
    from pikuri_memory.client.transfer import Refusal, Report

_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    verb(app)(export)
    verb(app, "import")(import_)


def export(
    call: Call,
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="- is standard output")] = "-",
    user: Annotated[str | None, typer.Option("--user", "-u", help="only of this person")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="only of this agent")] = None,
    run: Annotated[str | None, typer.Option("--run", help="only of this conversation")] = None,
) -> None:
    """Write memories as JSON Lines.

    With metadata, dates and history; expired ones too."""
    from pikuri_memory import files
    from pikuri_memory.client import transfer
    from pikuri_memory.servers import local

    scope = Scope.of({"user_id": user, "agent_id": agent, "run_id": run})
    count = -1  # the header is no memory
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(local.connected(call.paths))
        target = sys.stdout if file == "-" else stack.enter_context(files.replacing(Path(file)))
        progress = stack.enter_context(call.progress("exporting"))
        for row in transfer.export(client, scope):
            target.write(to_json(row) + "\n")
            count += 1
            progress.at(counted(count, "memory", "memories"))
    if file == "-":
        call.out.note(f"exported {counted(count, 'memory', 'memories')}")
        return
    call.out.document({"file": str(Path(file).absolute()), "exported": count})
    call.out.say(f"exported {counted(count, 'memory', 'memories')} to {file}")


def import_(
    call: Call,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE|-]", help="an export; - is standard input")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="a running server, ours or mem0's")
    ] = None,
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="with the key of the server of --from")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="with --from: only of this person")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help="with --from: only of this agent")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="with --from: only of this conversation")
    ] = None,
) -> None:
    """Store memories of an export or a server.

    It may be repeated: what is there already is not stored twice. A line that cannot be used
    costs nothing but itself; the exit code is 2 then.
    """
    from pikuri_memory.client import transfer
    from pikuri_memory.servers import local

    scopes = [
        Scope.of({field: value})
        for field, values in (("user_id", user), ("agent_id", agent), ("run_id", run))
        for value in values or ()
    ]
    if (file is None) == (source is None):
        raise InvalidRequestError(
            "give either a file or --from",
            hint="pikuri-memory import memories.jsonl, or: import --from http://127.0.0.1:8000",
        )
    if source is None and (scopes or api_key_file):
        raise InvalidRequestError(
            "--user, --agent, --run and --api-key-file go with --from only",
            hint="leave them out: the file says whose memories they are",
        )
    report = transfer.Report()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(local.connected(call.paths))
        if source is not None:
            items = transfer.fetch(stack.enter_context(_other(source, api_key_file)), scopes)
        else:
            items = transfer.parse(stack.enter_context(_opened(str(file))))
        progress = stack.enter_context(call.progress("importing"))
        try:
            transfer.store(
                client,
                items,
                report,
                progress=lambda so_far: progress.at(counted(so_far.total, "memory", "memories")),
            )
        except PikuriMemoryError as error:
            stored = counted(report.added, "memory", "memories")
            raise type(error)(
                f"{error.message} ({stored} had been added; importing again is safe)",
                hint=error.hint,
            ) from None
    _tell(call, report)
    if report.refused:
        raise typer.Exit(InvalidRequestError.exit_code)


def _tell(call: Call, report: Report) -> None:
    refused = sorted(report.refused, key=_place)
    call.out.document(
        {
            "added": report.added,
            "known": report.known,
            "different": report.different,
            "refused": [{"place": one.place, "reason": one.reason} for one in refused],
        }
    )
    call.out.say(
        f"{report.added:,} added, {report.known:,} known already, {len(refused):,} refused"
    )
    if report.different:
        call.out.say(
            f"{len(report.different):,} left as they are, because their ids are known with another"
            " text: " + _listed([_named(place) for place in report.different])
        )
    for one in refused[:_SHOWN]:
        call.out.note(f"refused {_named(one.place)}: {one.reason}")
    if len(refused) > _SHOWN:
        call.out.note(f"refused {len(refused) - _SHOWN} more: --json lists all")


def _place(one: Refusal) -> tuple[int, str]:
    return (one.place, "") if isinstance(one.place, int) else (0, one.place)


def _named(place: int | str) -> str:
    return f"line {place}" if isinstance(place, int) else str(place)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115 - its errors are ours, those of its reader are not
    except OSError as error:
        raise InvalidRequestError(
            f"{name} cannot be read: {error.strerror}", hint="name a file, or - for standard input"
        ) from None
    with file:
        yield file


def _other(url: str, api_key_file: str | None) -> Any:
    """A client of the server that memories come from."""
    from pikuri_memory.client.sync import Mem0Client

    if api_key_file is None:
        return Mem0Client(url)
    try:
        key = Path(api_key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(
            f"the key file {api_key_file} cannot be read: {type(error).__name__}",
            hint=f"ls -l {api_key_file}",
        ) from None
    return Mem0Client(url, key)
