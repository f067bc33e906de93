"""The container stack's part of up, status and logs, and the hidden verb of its keeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pikuri_memory.cli.output import escaped
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.errors import SettingError

if TYPE_CHECKING:
    from pikuri_memory.stack.status import StackStatus

_NEEDED = ("router", "llm_model", "embedder_model")
_WORDS = {
    "check": "checking",
    "fetch": "fetching the source",
    "patch": "patching",
    "relay": "starting the relay",
    "build": "building the image",
    "start": "starting the services",
    "wait": "waiting for an answer",
    "ready": "ready",
}


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    verb(app, "stack-keeper", hidden=True)(stack_keeper)


def stack_keeper(
    call: Call,
    keep: Annotated[bool, typer.Option("--keep", help="stay up while nobody uses it")] = False,
) -> None:
    """Keep the container stack whose plan lies in the data directory. Started by `up`."""
    from pikuri_memory.stack.keeper import run

    code = run(call.paths, keep=keep)
    if code:
        raise typer.Exit(code)


def up(call: Call) -> None:
    """Start the container stack, and leave it running until `down`."""
    from pikuri_memory import discovery
    from pikuri_memory.servers import kinds, local
    from pikuri_memory.servers.mem0 import Mem0Server
    from pikuri_memory.settings import resolve_stack

    settings = call.settings
    given: dict[str, Any] = _as_before(call, resolve_stack(call.stack))
    models = {name: getattr(settings, name) for name in _NEEDED if getattr(settings, name)}
    given = {**given, **models}
    if not set(_NEEDED) <= set(given):
        raise SettingError(
            "the container stack needs a model endpoint with two models",
            hint="pikuri-memory up --docker --router http://127.0.0.1:8080 --llm-model NAME"
            " --embedder-model NAME",
        )
    if settings.data_dir is not None:
        given["data_dir"] = settings.data_dir
    server = Mem0Server(
        router_url=given.pop("router"),
        port=settings.port,
        keep=True,
        **given,
    )
    before = discovery.read_server_info(call.paths)
    if kinds.held(call.paths) == {discovery.EMBEDDED}:
        call.out.note(
            "the memories of the embedded server stay where they are and are not in the stack;"
            " to take them along: pikuri-memory export and import (docs/docker.md)"
        )
    told = ""

    def progress(phase: str, detail: str) -> None:
        nonlocal told
        what = _WORDS.get(phase, phase)
        step.at(what + (f": {detail}" if detail else ""))
        if what != told:
            told = what
            call.out.note(what)

    with call.progress("starting the stack") as step:
        server.start(progress)
    try:
        found = local.describe(call.paths)
    finally:
        server.close()
    info = found.info
    was_running = before is not None and info is not None and before.pid == info.pid
    call.out.document({**found.as_dict(), "leases": [], "was_running": was_running})
    call.out.say("the stack was running" if was_running else "the stack is up")
    call.out.fields(
        [
            ("endpoint", info.endpoint if info else ""),
            ("data", found.paths.root),
            *rows(found.stack),
        ]
    )
    call.out.say("\nnext:")
    call.out.say('  pikuri-memory add "I am allergic to walnuts" --user ada')
    call.out.say('  pikuri-memory search "what must I not eat?" --user ada')


def _as_before(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, and for the rest what the stack of this directory had last.

    Not the ports, which belong to a start, nor the commit, which belongs to this version.
    """
    from pikuri_memory.servers.mem0 import Mem0Server
    from pikuri_memory.stack.plan import StackPlan

    before = StackPlan.read(call.paths)
    if before is None:
        return given
    settings = call.settings
    found: dict[str, Any] = {"llm_model": before.llm_model, "collection": before.collection}
    found["qdrant_image"] = before.qdrant_image
    if settings.router in (None, before.router_url):
        found["router"] = before.router_url
        found["container_router_url"] = before.container_router_url
    if settings.embedder_model in (None, before.embedder_model):
        found["embedder_model"] = before.embedder_model
        found["embedding_dims"] = before.embedding_dims
    if before.repo_url != Mem0Server.MEM0_REPO_URL:
        found["mem0_repo_url"] = before.repo_url
    return {**found, **given}


def refuse_options(call: Call) -> None:
    """Say that an option of the stack was given without --docker, rather than ignore it."""
    given = [name for name, value in call.stack.items() if value is not None]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise SettingError(f"{flags} is for the container stack only", hint="add --docker")


def rows(found: StackStatus | None) -> list[tuple[str, object]]:
    """What `status` shows of a stack."""
    if found is None:
        return []
    sealed = {True: "yes", False: "no", None: ""}[found.sealed]
    if found.reasons:
        sealed += ": " + "; ".join(found.reasons) if sealed else "; ".join(found.reasons)
    services = []
    for service in found.services:
        state = service.status or service.state
        if service.expected and not service.runs:
            state += "; should be running"
        elif not service.expected:
            state += "; should not be there"
        services.append(f"{service.name}: {state}")
    return [
        ("router", found.router_url),
        ("models", f"{found.llm_model}, {found.embedder_model}"),
        ("sealed", sealed),
        ("services", "\n".join(services)),
        ("trouble", found.trouble),
    ]


def logs(call: Call, service: str, *, follow: bool, lines: int) -> None:
    """Show the end of a service's log."""
    from pikuri_memory.servers import logs as log

    for line in log.service_lines(call.paths, service, lines=lines, follow=follow):
        call.out.line({"line": line})
        if not call.out.json:
            print(escaped(line), flush=True)
