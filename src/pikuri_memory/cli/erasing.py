"""purge, reset, destroy."""

from __future__ import annotations

from typing import Annotated

import typer

from pikuri_memory.cli.output import confirmed, counted
from pikuri_memory.cli.verb import Call, verb
from pikuri_memory.errors import InvalidRequestError


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    verb(app)(purge)
    verb(app)(reset)
    verb(app, settings=("data_dir", "stop_timeout"))(destroy)


def purge(call: Call) -> None:
    """Remove deleted texts from the disk now.

    It happens by itself at the next stop, or within a day."""
    from pikuri_memory.servers import local

    with call.progress("purging"):
        local.purge(call.paths)
    call.out.document({"purged": True})
    call.out.say("deleted texts are gone from the disk")


def reset(
    call: Call,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Delete all memories of everybody.

    The server goes on, empty."""
    from pikuri_memory.servers import local

    with local.connected(call.paths) as client:
        count = local.memory_count(call.paths, client)
        question = f"delete {counted(count, 'memory', 'memories')} in {call.paths.root}? [y/N]"
        if not yes and not confirmed(question, wanted=("y", "Y", "yes"), flag="--yes"):
            raise InvalidRequestError("not confirmed: nothing was deleted", hint="answer y")
        with call.progress("deleting"):
            client.reset()
    call.out.document({"deleted": count})
    call.out.say(f"deleted {counted(count, 'memory', 'memories')}, from the disk too")


def destroy(
    call: Call,
    yes_destroy: Annotated[
        str | None,
        typer.Option("--yes-destroy", metavar="NAME", help="the directory's name; does not ask"),
    ] = None,
) -> None:
    """Remove the data directory for good.

    Memories, key and logs. The name of the directory is asked for."""
    from pikuri_memory.servers import removal

    paths = call.paths
    removal.check_removable(paths)
    wanted = (paths.root.name, str(paths.root))
    if yes_destroy is None:
        question = (
            f"this removes {paths.root} with all memories in it, for good.\n"
            f"type the directory's name ({paths.root.name}) to go on:"
        )
        agreed = confirmed(question, wanted=wanted, flag=f"--yes-destroy {paths.root.name}")
    else:
        agreed = yes_destroy in wanted
    if not agreed:
        raise InvalidRequestError(
            "that is not the directory's name: nothing was removed", hint=f"it is {paths.root.name}"
        )
    with call.progress("removing"):
        done = removal.destroy(paths, timeout=call.settings.stop_timeout)
    call.out.document(
        {
            "data_dir": str(paths.root),
            "removed": done.names,
            "left": done.left,
            "stopped": done.stopped,
        }
    )
    if done.stopped:
        call.out.say("the server was stopped")
    if done.left:
        call.out.say(f"removed our files in {paths.root}; left alone: {', '.join(done.left)}")
    else:
        call.out.say(f"removed {paths.root}")
