"""What all verbs share: options from the table of settings, ``--json``, the call they are given."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from pikuri_memory.cli.output import Output
from pikuri_memory.cli.progress import Progress
from pikuri_memory.paths import DataPaths
from pikuri_memory.settings import SETTINGS, STACK_SETTINGS, Setting, Settings

Function = TypeVar("Function", bound=Callable[..., None])

BROKEN_PIPE: Final = 141  # as of a program that SIGPIPE ended
_ROWS: Final = {**SETTINGS, **STACK_SETTINGS}
JSON_HELP: Final = "print JSON, for programs"


@dataclass(frozen=True)
class Call:
    """One run of a verb.

    Attributes:
        out: Where it prints.
        given: Settings from the command line, as text.
        stack: Settings of the container stack, likewise.
    """

    out: Output
    given: Mapping[str, str]
    stack: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The validated settings.

        Raises:
            SettingError: One is impossible.
        """
        return Settings.resolve(self.given)

    @property
    def paths(self) -> DataPaths:
        """The data directory."""
        return DataPaths.at(self.settings.data_dir)

    def progress(self, what: str) -> Progress:
        """A step that may take more than a second."""
        return Progress(what, quiet=self.out.json)


def application(help: str | None = None, *, completion: bool = False) -> typer.Typer:
    """A group of verbs. Without rich: its import costs more than the rest of ``--help``."""
    return typer.Typer(
        help=help,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


_METAVARS: Final = {
    "data_dir": "DIR",
    "router": "URL",
    "router_key_file": "FILE",
    "llm_model": "NAME",
    "embedder_model": "NAME",
}


def setting_option(row: Setting) -> Any:
    """The option of a row of the table; its value stays text, which the table validates."""
    default = "" if row.default is None else f"default {row.default}; "
    kind = {int: "N", float: "SECONDS" if "timeout" in row.name else "N"}.get(type(row.default))
    choices = row.choices
    return typer.Option(
        row.flag,
        metavar=kind or _METAVARS.get(row.name, "WORD"),
        help=f"{row.help} [{default}${row.env}]",
        autocompletion=(lambda incomplete: _beginning(choices, incomplete)) if choices else None,
        show_default=False,
    )


def _beginning(words: Sequence[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def verb(
    app: typer.Typer,
    name: str | None = None,
    *,
    settings: Sequence[str] = ("data_dir",),
    hidden: bool = False,
) -> Callable[[Function], Function]:
    """Make a function a verb. Its first parameter is the :class:`Call`; the others are options.

    Args:
        app: The group.
        name: By default that of the function.
        settings: Rows of the tables that it takes as options.
        hidden: Whether ``--help`` of the program leaves it out.
    """

    def register(function: Function) -> Function:
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]

        def run(ctx: typer.Context, **values: Any) -> None:
            above: Mapping[str, Any] = ctx.find_root().obj or {}
            taken = {row: values.pop(row) for row in settings}
            given = {row: value for row, value in taken.items() if row in SETTINGS}
            stack = {row: value for row, value in taken.items() if row in STACK_SETTINGS}
            if given.get("data_dir") is None:
                given["data_dir"] = above.get("data_dir")
            out = Output(json=values.pop("json") or bool(above.get("json")))
            try:
                function(Call(out, given, stack), **values)
                sys.stdout.flush()
            except BrokenPipeError:
                # Here, because typer would make it an exit code of 1 above.
                raise typer.Exit(BROKEN_PIPE) from None

        def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
            return inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )

        parameters = [parameter("ctx", typer.Context, inspect.Parameter.empty)]
        parameters += [parameter(row.name, hints[row.name], row.default) for row in own]
        parameters += [
            parameter(row, Annotated[str | None, setting_option(_ROWS[row])], None)
            for row in settings
        ]
        option = typer.Option("--json", help=JSON_HELP)
        parameters.append(parameter("json", Annotated[bool, option], False))
        # What typer reads instead of the real one.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {row.name: row.annotation for row in parameters}
        run.__doc__ = function.__doc__
        app.command(name or function.__name__.strip("_"), hidden=hidden)(run)
        return function

    return register
