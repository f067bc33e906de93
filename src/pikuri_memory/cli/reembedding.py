"""reembed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pikuri_memory.cli.output import counted
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.errors import InvalidRequestError

if TYPE_CHECKING:
    from pikuri_memory.servers.reembedding import Progress, Server


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    verb(app, settings=("data_dir", "embedder_model", "router", "router_timeout"))(reembed)


def reembed(
    call: Call,
    cancel: Annotated[bool, typer.Option("--cancel", help="give it up; nothing is lost")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="return when it has begun; `status` tells the rest")
    ] = False,
) -> None:
    """Embed all memories anew by another embedder.

    The server answers meanwhile, as before. It goes on by itself after Ctrl-C, a stop or a crash;
    the same command again shows how far it is.
    """
    from pikuri_memory.servers import reembedding

    paths, settings = call.paths, call.settings
    if not paths.root.is_dir():
        raise InvalidRequestError(
            f"there are no memories in {paths.root}", hint="start a server: pikuri-memory up"
        )
    with reembedding.server_of(paths, router_timeout=settings.router_timeout) as server:
        if cancel:
            _cancel(call, server)
            return
        before = server.client.status()
        with call.progress("trying the embedder"):
            begun = server.patient.reembed(settings.embedder_model, settings.router)
        if begun["result"] == "unchanged":
            call.out.document({**begun, "memories": before["memories"]})
            call.out.say(f"the memories are embedded by {_named(begun)} already")
        elif no_wait:
            job = server.client.status().get("reembedding") or {}
            call.out.document({**begun, "done": job.get("done"), "total": job.get("total")})
            call.out.say(f"embedding {counted(before['memories'], 'memory', 'memories')} anew by")
            call.out.say(f"  {_named(begun)}")
            call.out.note(_later(server))
        else:
            _wait(call, server, begun, before)


def _cancel(call: Call, server: Server) -> None:
    there = server.client.status().get("reembedding") is not None
    server.patient.cancel_reembedding()
    call.out.document({"cancelled": there})
    call.out.say("given up; the memories are as they were" if there else "there was none to cancel")


def _wait(call: Call, server: Server, begun: dict[str, Any], before: dict[str, Any]) -> None:
    from pikuri_memory.servers import reembedding

    started = time.monotonic()
    told = ""
    try:
        with call.progress("re-embedding") as progress:

            def show(now: Progress) -> None:
                nonlocal told
                progress.at(_described(now))
                trouble = now.last_error if now.state == "paused" else None
                if trouble is not None and trouble["detail"] != told:
                    told = trouble["detail"]
                    call.out.note(f"it pauses, and tries again: {told}")

            status = reembedding.follow(server.client, begun, before, show)
    except KeyboardInterrupt:
        call.out.note(_later(server))
        raise
    seconds = time.monotonic() - started
    memories = status["memories"]
    call.out.document(
        {**begun, "result": "done", "memories": memories, "seconds": round(seconds, 1)}
    )
    call.out.say(
        f"{counted(memories, 'memory is', 'memories are')} embedded by {_named(begun)} now"
        f" ({seconds:.0f} s)"
    )


def _described(now: Progress) -> str:
    """How far it is, as "1,200 of 20,000, 165 a second, 2 min left"."""
    parts = [f"{now.done:,} of {now.total:,}"]
    if now.state == "embedding":
        if now.per_second is not None:
            parts.append(f"{now.per_second:,.0f} a second")
        if now.seconds_left is not None:
            parts.append(f"{_duration(now.seconds_left)} left")
    else:
        parts.append({"building": "making the index"}.get(now.state, now.state))
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _named(begun: dict[str, Any]) -> str:
    return f"{begun['model']} ({begun['dimensions']} dimensions)"


def _later(server: Server) -> str:
    if server.stays:
        return "it goes on in the server; see how far: pikuri-memory reembed"
    return "it goes on when the server runs next: pikuri-memory up"
