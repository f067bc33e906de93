"""models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import typer

from pikuri_memory.cli.verb import Call, verb

_SETTINGS: Final = (
    "data_dir",
    "router",
    "router_key_file",
    "llm_model",
    "embedder_model",
    "router_timeout",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    verb(app, settings=_SETTINGS)(models)


def models(call: Call) -> None:
    """List the models of a router, and what each would be used for.

    Of the router that is given, or else of the one that was used last. It is tried with texts of
    our own, which loads one chat and one embedding model at most; no server is needed.
    """
    from pikuri_memory.servers.survey import survey

    with call.progress("asking the router"):
        found = survey(call.settings, call.paths)
    told = found.as_dict()
    call.out.document(told)
    call.out.table(
        ["model", "kind", "context", "loaded", "used for"],
        (
            [
                model["id"],
                model["kind"],
                "" if model["context_tokens"] is None else str(model["context_tokens"]),
                {True: "yes", False: "no", None: ""}[model["loaded"]],
                model["used_for"] or "",
            ]
            for model in told["models"]
        ),
    )
    call.out.say()
    call.out.fields(
        [
            ("router", told["router"]),
            ("extraction", f"{found.extraction.model or 'none'} ({found.extraction.why})"),
            ("embedding", f"{found.embedding.model} ({found.embedding.why})"),
        ]
    )
    note_findings(call, told["findings"])


def note_findings(call: Call, findings: Iterable[Mapping[str, Any]]) -> None:
    """Tell a person what is not as it should be, and what to type."""
    for finding in findings:
        if finding["level"] == "ok":
            continue
        call.out.note(f"{finding['level']}: {finding['text']}")
        if finding["hint"]:
            call.out.note(f"  hint: {finding['hint']}")
