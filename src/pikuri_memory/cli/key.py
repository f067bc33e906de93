"""key rotate, key path."""

from __future__ import annotations

import typer

from pikuri_memory.cli.verb import Call, application, verb


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    group = application()
    group.callback()(_key)
    verb(group)(rotate)
    verb(group)(path)
    app.add_typer(group, name="key", help="Replace the API key, or tell where it is.")


def _key(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def rotate(call: Call) -> None:
    """Replace the key, with a running server or without. The old one is refused from then on."""
    from pikuri_memory.servers import local

    with call.progress("replacing the key"):
        info = local.rotate_key(call.paths)
    call.out.document(
        {"api_key_file": str(call.paths.api_key), "endpoint": info.endpoint if info else None}
    )
    call.out.say(f"there is a new key in {call.paths.api_key}")
    call.out.say(
        "the server and our clients on this machine take it by themselves;"
        " whoever was given a copy needs the new one"
    )


def path(call: Call) -> None:
    """Print the name of the file that holds the key."""
    call.out.document({"api_key_file": str(call.paths.api_key)})
    call.out.say(str(call.paths.api_key))
