"""The entry point: the verbs, and what becomes of errors.

Whatever is imported here is paid for by ``pikuri-memory --help``: no rich, no httpx, no numpy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from pikuri_memory._version import __version__
from pikuri_memory.cli import (
    erasing,
    key,
    memories,
    models,
    moving,
    output,
    reembedding,
    server,
    stack,
    verb,
)
from pikuri_memory.errors import InvalidRequestError, PikuriMemoryError, StorageError
from pikuri_memory.settings import SETTINGS

INTERRUPTED: Final = 130

app = verb.application("Private, lasting memory for local AI agents.", completion=True)


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    data_dir: Annotated[str | None, verb.setting_option(SETTINGS["data_dir"])] = None,
    json: Annotated[bool, typer.Option("--json", help=verb.JSON_HELP)] = False,
) -> None:
    ctx.obj = {"data_dir": data_dir, "json": json}
    if ctx.invoked_subcommand is not None:
        return
    out = output.Output(json)
    if not version:
        print(ctx.get_help())
        return
    out.say(f"pikuri-memory {__version__}")
    out.document({"version": __version__})


server.register(app)
models.register(app)
stack.register(app)
memories.register(app)
moving.register(app)
reembedding.register(app)
erasing.register(app)
key.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program; by default those of this process.

    Returns:
        The exit code: 0, that of an error's family (``errors.py``), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    output.prepare_streams()
    _show_warnings(as_json)
    try:
        code = _run(words)
        sys.stdout.flush()
    except PikuriMemoryError as error:
        output.print_error(error, as_json=as_json)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = verb.BROKEN_PIPE
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        told = StorageError(f"{what}{error.strerror or type(error).__name__}")
        output.print_error(told, as_json=as_json)
        code = told.exit_code
    except Exception as error:
        output.print_error(_unforeseen(error), as_json=as_json)
        code = PikuriMemoryError.exit_code
    _quiet_pipes()
    return code


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # Not standalone: errors are told here, in one way.
        result = command.main(words, prog_name="pikuri-memory", standalone_mode=False)
    except SystemExit as end:  # shell completion
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if (usage := _usage_error(error)) is not None:
            raise usage from None
        raise
    # What a verb returns is nothing; an early exit comes as its code.
    return result if isinstance(result, int) else 0


def _usage_error(error: Any) -> PikuriMemoryError | None:
    """The parser's own errors. Told by their shape: where their class lives changes with typer."""
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "pikuri-memory"
    message = str(error.format_message()).strip().rstrip(".")
    return InvalidRequestError(message[:1].lower() + message[1:], hint=f"{path} --help")


def _unforeseen(error: Exception) -> PikuriMemoryError:
    """Without the message of the error, which may quote a memory."""
    places = " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__, limit=-6))
    )
    return PikuriMemoryError(
        f"unexpected {type(error).__name__} at {places}",
        hint="this is a mistake in pikuri-memory: please report the line above",
    )


class _Warnings(logging.Handler):
    """Warnings of the layers below, for a person; JSON has no place for them."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"warning: {output.escaped(record.getMessage())}", file=sys.stderr)


def _show_warnings(as_json: bool) -> None:
    logger = logging.getLogger("pikuri_memory")
    for old in [handler for handler in logger.handlers if isinstance(handler, _Warnings)]:
        logger.removeHandler(old)
    if not as_json:
        logger.addHandler(_Warnings(logging.WARNING))


def _quiet_pipes() -> None:
    """Let the interpreter's last flush of a broken pipe say nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
