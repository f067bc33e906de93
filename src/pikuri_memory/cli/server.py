"""up, down, status, logs, serve."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pikuri_memory.cli import stack
from pikuri_memory.cli.output import escaped, size
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.settings import SETTINGS, STACK_SETTINGS

_NO_EXTRACTION = "none: texts are kept as they are"


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    verb(app, settings=(*SETTINGS, *STACK_SETTINGS))(up)
    verb(app, settings=("data_dir", "stop_timeout"))(down)
    verb(app)(status)
    verb(app)(logs)
    verb(app, settings=tuple(SETTINGS))(serve)


def up(
    call: Call,
    docker: Annotated[
        bool, typer.Option("--docker", help="mem0's own server, sealed in containers")
    ] = False,
) -> None:
    """Start the server, and leave it running until `down`.

    Prints where it answers. If it runs already, it stays as it is. With --docker it is mem0's own
    server in containers, which needs --router, --llm-model and --embedder-model.
    """
    if docker:
        stack.up(call)
        return
    stack.refuse_options(call)
    from pikuri_memory import discovery
    from pikuri_memory.servers import local
    from pikuri_memory.servers.embedded import EmbeddedServer

    before = discovery.read_server_info(call.paths)
    with call.progress("starting the server"):
        given: dict[str, Any] = {
            name: value for name, value in call.given.items() if value is not None
        }
        with EmbeddedServer(keep=True, **given):
            found = local.describe(call.paths)
    info = found.info
    was_running = before is not None and info is not None and before.pid == info.pid
    call.out.document({**found.as_dict(), "leases": [], "was_running": was_running})
    call.out.say("the server was running" if was_running else "the server is up")
    call.out.fields(
        [
            ("endpoint", info.endpoint if info else ""),
            ("data", found.paths.root),
            ("memories", found.told.get("memories")),
        ]
    )
    if was_running and info is not None:
        wanted = call.given.get("port")
        if wanted is not None and int(wanted) and not info.endpoint.endswith(f":{int(wanted)}"):
            call.out.note(
                f"note: --port {int(wanted)} was not used, because it was running elsewhere;"
                f" to move it: pikuri-memory down && pikuri-memory up --port {int(wanted)}"
            )
    call.out.say("\nnext:")
    call.out.say('  pikuri-memory add "I am allergic to walnuts" --user ada')
    call.out.say('  pikuri-memory search "what must I not eat?" --user ada')


def down(
    call: Call,
    force: Annotated[
        bool, typer.Option("--force", help="also while programs use it; they are listed")
    ] = False,
) -> None:
    """Stop the server. Never removes data."""
    from pikuri_memory.servers import local

    with call.progress("stopping the server"):
        done = local.stop(call.paths, force=force, timeout=call.settings.stop_timeout)
    server = done.server
    call.out.document(
        {
            "stopped": server is not None,
            "pid": server.pid if server else None,
            "killed": done.killed,
            "leases": [{"pid": holder.pid, "name": holder.name} for holder in done.holders],
        }
    )
    if server is None:
        call.out.say(f"no server was running for {call.paths.root}")
        return
    for holder in done.holders:
        call.out.say(f"it was in use by {holder}")
    how = "ended by force" if done.killed else "stopped"
    call.out.say(f"the server (pid {server.pid}) is {how}; its memories are in {call.paths.root}")


def status(call: Call) -> None:
    """Tell how the server is and where the data lies.

    Exit code 0 also when it is stopped."""
    from pikuri_memory.servers import local

    found = local.describe(call.paths)
    call.out.document(found.as_dict())
    info, told = found.info, found.told
    embedder = told.get("embedder") or {}
    free = size(found.free_bytes)
    call.out.fields(
        [
            ("state", found.state + (f" ({found.detail})" if found.detail else "")),
            ("endpoint", info.endpoint if info else ""),
            ("pid", info.pid if info else ""),
            ("server", f"{info.kind} {info.version}" if info else ""),
            ("memories", told.get("memories")),
            ("data", f"{found.paths.root} ({size(found.data_bytes)}, {free} free)"),
            ("key file", found.paths.api_key),
            ("log", found.paths.server_log),
            ("embedder", embedder.get("model")),
            (
                "extraction",
                (told.get("extraction") or "none: texts are kept as they are") if told else "",
            ),
            ("index", (told.get("index") or {}).get("state")),
            *stack.rows(found.stack),
            ("writes", "refused: the disk is almost full" if told.get("read_only") else ""),
            ("stays up", "until `pikuri-memory down`" if found.keep else ""),
            ("used by", "\n".join(map(str, found.holders))),
        ]
    )
    if found.state == "stopped":
        call.out.note("start it: pikuri-memory up")


def logs(
    call: Call,
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="of the container stack")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as it grows")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="how many lines")] = 50,
) -> None:
    """Show the end of the server's log. There is no memory text in it.

    Of a container stack: the log of its keeper, or of a service (mem0, qdrant, front,
    router-proxy, relay).
    """
    if service is not None:
        stack.logs(call, service, follow=follow, lines=lines)
        return
    from pikuri_memory.servers import logs as log

    shown = log.last_lines(call.paths, lines)
    if not shown and not follow:
        call.out.note(f"there is no log yet: {call.paths.server_log}")
    for line in shown:
        _log_line(call, line)
    if follow:
        for line in log.follow(call.paths):
            _log_line(call, line)


def _log_line(call: Call, line: str) -> None:
    call.out.line({"line": line})
    if not call.out.json:
        print(escaped(line), flush=True)


def serve(
    call: Call,
    keep: Annotated[
        bool, typer.Option("--keep", help="stay up while nobody uses it, until stopped")
    ] = False,
) -> None:
    """Run the server in the foreground.

    For supervisors such as systemd: `pikuri-memory serve --keep`. Without --keep it ends as soon
    as no program uses it.
    """
    from pikuri_memory.embedded.serve import run

    code = run(call.settings, keep=keep)
    if code:
        raise typer.Exit(code)
