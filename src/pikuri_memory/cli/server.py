"""up, down, status, logs, serve."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pikuri_memory.cli import stack
from pikuri_memory.cli.models import note_findings
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
    server in containers, which needs --router, --llm-model and --embedder-model the first time.
    """
    if docker:
        stack.up(call)
        return
    stack.refuse_options(call)
    from pikuri_memory import discovery
    from pikuri_memory.servers import local
    from pikuri_memory.servers.embedded import EmbeddedServer

    before = discovery.read_server_info(call.paths)
    asks = call.settings.router not in (None, "none")
    with call.progress("starting the server" + (", which asks the router first" if asks else "")):
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
            *_models(found.told),
        ]
    )
    note_findings(call, found.told.get("findings") or ())
    if was_running:
        _note_other_models(call, found.told)
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


def _models(told: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Which models are used; nothing where there is no router."""
    if told.get("router") is None:
        return []
    extraction = told.get("extraction")
    return [
        ("router", told["router"]),
        ("extraction", _NO_EXTRACTION if extraction is None else f"by {extraction['model']}"),
        ("embedder", (told.get("embedder") or {}).get("model")),
    ]


def _note_other_models(call: Call, told: Mapping[str, Any]) -> None:
    """Say that a server which was running did not take another router or model."""
    from pikuri_memory.models.endpoint import Endpoint

    settings = call.settings
    extraction, embedder = told.get("extraction") or {}, told.get("embedder") or {}
    words: list[str] = []
    if settings.router is not None:
        wanted = None if settings.router == "none" else Endpoint.parse(settings.router).url
        if wanted != told.get("router"):
            words += ["--router", settings.router]
    if settings.llm_model is not None:
        wanted = None if settings.llm_model == "none" else settings.llm_model
        if wanted != extraction.get("model"):
            words += ["--llm-model", settings.llm_model]
    if settings.embedder_model is not None:
        builtin = settings.embedder_model == "builtin" and embedder.get("router") is None
        if not builtin and settings.embedder_model != embedder.get("model"):
            words += ["--embedder-model", settings.embedder_model]
    if words:
        given = shlex.join(words)
        call.out.note(
            f"note: {given} was not used, because the server was running with other models;"
            f" to change them: pikuri-memory down && pikuri-memory up {given}"
        )


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
    from pikuri_memory.servers import kinds, local

    found = local.describe(call.paths)
    call.out.document(found.as_dict())
    info, told = found.info, found.told
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
            ("router", told.get("router")),
            ("embedder", _embedder(told.get("embedder") or {})),
            ("extraction", _extraction(told.get("extraction")) if told else ""),
            ("re-embedding", _reembedding(told.get("reembedding"))),
            ("index", (told.get("index") or {}).get("state")),
            *stack.rows(found.stack),
            ("writes", "refused: the disk is almost full" if told.get("read_only") else ""),
            ("stays up", "until `pikuri-memory down`" if found.keep else ""),
            ("used by", "\n".join(map(str, found.holders))),
        ]
    )
    note_findings(call, told.get("findings") or ())
    if found.state == "stopped":
        call.out.note(f"start it: {kinds.start_command(call.paths)}")


def _embedder(embedder: Mapping[str, Any]) -> str:
    model = str(embedder.get("model") or "")
    if embedder.get("state") != "unavailable":
        return model
    why = embedder["why"]
    return (
        f"{model}, unavailable since {embedder['since']}: searching by words\n"
        f"{why['detail']}\nhint: {why['hint']}"
    )


def _extraction(extraction: Mapping[str, Any] | None) -> str:
    if extraction is None:
        return _NO_EXTRACTION
    counts = ", ".join(
        f"{extraction[name]} {name}" for name in ("waiting", "running", "done", "failed")
    )
    text = f"by {extraction['model']}, {extraction['state']}: {counts}"
    last = extraction["last_error"]
    if last is not None:
        text += f"\nlast error, at {last['at']}: {last['detail']}"
        if extraction["state"] == "failing":
            text += f"\nhint: {last['hint']}"
    return text


def _reembedding(job: dict[str, Any] | None) -> str:
    """How far it is, and why it pauses."""
    if job is None:
        return ""
    told = f"{job['done']:,} of {job['total']:,} by {job['model']}, {job['state']}"
    error = job["last_error"]
    return f"{told}: {error['detail']}\n{error['hint']}" if error else told


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
    from pikuri_memory.embedded.serve import left_behind, run
    from pikuri_memory.servers import kinds

    kinds.refuse_embedded(call.paths)
    code = run(call.settings, keep=keep)
    if left_behind():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)
