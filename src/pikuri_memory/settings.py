"""The one table of settings: name, default, environment variable, help.

Flags of the command line, ``docs/settings.md`` and validation come from it; a test compares the
documentation with it. A setting is looked up as: the caller's value, else the environment
variable, else the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pikuri_memory.errors import SettingError

MIB = 1024 * 1024
LANGUAGES = (
    "arabic azerbaijani basque bengali catalan chinese danish dutch english finnish french german "
    "greek hebrew hinglish hungarian indonesian italian japanese kazakh nepali norwegian "
    "portuguese romanian russian slovene spanish swedish tajik turkish"
).split()


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: Keyword argument and, with dashes, flag.
        default: Value where nothing is given.
        help: One line for ``--help`` and the documentation, with the unit.
        minimum: Smallest value of a number; None where there is none.
        maximum: Largest value of a number.
        choices: The allowed words of a text setting; empty for any.
    """

    name: str
    default: int | float | str | None
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"PIKURI_MEMORY_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of ``pikuri-memory serve`` and ``up``."""
        return "--" + self.name.replace("_", "-")

    def parse(self, value: Any, source: str) -> Any:
        """Validate one value.

        Raises:
            SettingError: It is not of the default's type or out of range; names ``source``.
        """
        if isinstance(self.default, int | float) and not isinstance(value, int | float):
            kind = int if isinstance(self.default, int) else float
            try:
                value = kind(str(value).strip())
            except ValueError:
                raise SettingError(
                    f"{source} is {value!r}: {self.name} must be a number",
                    hint=f"use a number such as {self.default}",
                ) from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = self.minimum, self.maximum
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise SettingError(
                    f"{source} is {value}: {self.name} must be between {low} and {high}",
                    hint=f"use a number such as {self.default}",
                )
        if self.choices and value not in self.choices:
            raise SettingError(
                f"{source} is {value!r}: {self.name} is not one of the known words",
                hint="use one of: " + ", ".join(self.choices),
            )
        return value


_ROWS = (
    Setting("port", 8888, "TCP port on 127.0.0.1; 0 takes a free one", 0, 65535),
    Setting(
        "data_dir", None, "directory of the memories; default: the XDG data directory of the user"
    ),
    Setting("language", "english", "language of stop words and stemming", choices=tuple(LANGUAGES)),
    Setting(
        "router",
        None,
        "URL of an OpenAI-compatible model endpoint: http://, https:// or unix:/path; none forgets"
        " the one that was used before",
    ),
    Setting(
        "router_key_file", None, "file (mode 0600) that holds the API key of the model endpoint"
    ),
    Setting(
        "llm_model",
        None,
        "chat model of the endpoint that extracts facts; none keeps texts as they are; default:"
        " the best one offered",
    ),
    Setting(
        "embedder_model",
        None,
        "embedding model of the endpoint, or builtin; default: that of the memories, else the"
        " best one offered",
    ),
    Setting(
        "router_concurrency", 1, "most extractions that the model endpoint works on at once", 1, 256
    ),
    Setting(
        "router_timeout",
        300.0,
        "seconds that the model endpoint has to load a model and answer one request",
        0.1,
        86_400,
    ),
    Setting(
        "extraction_timeout",
        600.0,
        "seconds that an extraction may take in all, its wait for others included",
        0.1,
        86_400,
    ),
    Setting("start_timeout", 30.0, "seconds until a started server must be healthy", 0.1, 3600),
    Setting("stop_timeout", 30.0, "seconds until a stopping server is ended by force", 0.1, 3600),
    Setting(
        "free_space_reserve",
        256 * MIB,
        "bytes of free disk space below which writes are refused",
        0,
        2**50,
    ),
    Setting("max_body_bytes", 16 * MIB, "largest request body in bytes", 1024, 2**31),
    Setting("max_messages", 1000, "most messages, or items of a batch, in a request", 1, 100_000),
    Setting("max_text_length", 100_000, "longest text in characters", 1, 10_000_000),
    Setting("purge_hours", 24.0, "hours after which deleted text is purged from disk", 0.001, 8760),
    Setting("log_bytes", 5 * MIB, "size in bytes at which the log rotates; 3 files are kept", 4096),
    Setting(
        "log_level",
        "info",
        "least level that is logged",
        choices=("debug", "info", "warning", "error"),
    ),
)

SETTINGS: Mapping[str, Setting] = {row.name: row for row in _ROWS}

# Only for the container stack: flags of `up --docker`, keyword arguments of Mem0Server.
_STACK_ROWS = (
    Setting(
        "container_router_url",
        None,
        "URL of the model endpoint as a container reaches it without the relay; for https://"
        " endpoints; the stack is then not sealed",
    ),
    Setting(
        "embedding_dims",
        768,
        "length of the embedding model's vectors; measured where the endpoint answers",
        1,
        65536,
    ),
    Setting(
        "qdrant_port",
        6333,
        "TCP port of the vector store on 127.0.0.1, for inspection; 0 takes a free one",
        0,
        65535,
    ),
    Setting("collection", "pikuri_memory", "name of the memories in the vector store"),
    Setting("qdrant_image", "qdrant/qdrant:v1.12.4", "image of the vector store"),
    Setting(
        "cache_dir",
        None,
        "directory of the source, the data and the socket; default: only the source lies in the"
        " XDG cache directory of the user",
    ),
    Setting(
        "healthcheck_timeout", 60.0, "seconds until the started services must answer", 0.1, 86_400
    ),
    Setting(
        "build_timeout",
        1800.0,
        "seconds for the download of the source, and again for the build of the image",
        0.1,
        86_400,
    ),
    Setting("mem0_repo_url", None, "repository of mem0: URL or local path; default: mem0's own"),
    Setting("mem0_ref", None, "full id of mem0's commit; default: the one that is tested"),
    Setting("patch_dir", None, "directory of the patches for that commit; default: ours"),
)

STACK_SETTINGS: Mapping[str, Setting] = {row.name: row for row in _STACK_ROWS}


def resolve_stack(
    given: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Values of :data:`STACK_SETTINGS` from ``given`` and the environment; others are left out.

    Raises:
        SettingError: A value is impossible.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for name, row in STACK_SETTINGS.items():
        if given.get(name) is not None:
            values[name] = row.parse(given[name], name)
        elif environ.get(row.env):
            values[name] = row.parse(environ[row.env], row.env)
    return values


@dataclass(frozen=True)
class Settings:
    """Validated values, one attribute a row of :data:`SETTINGS`."""

    port: int
    data_dir: str | None
    language: str
    router: str | None
    router_key_file: str | None
    llm_model: str | None
    embedder_model: str | None
    router_concurrency: int
    router_timeout: float
    extraction_timeout: float
    start_timeout: float
    stop_timeout: float
    free_space_reserve: int
    max_body_bytes: int
    max_messages: int
    max_text_length: int
    purge_hours: float
    log_bytes: int
    log_level: str

    @classmethod
    def resolve(
        cls, given: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> Settings:
        """Values from ``given`` (None counts as not given), the environment and the defaults.

        Args:
            given: Values by name of the setting.
            environ: Environment variables; by default those of this process.

        Raises:
            SettingError: A name is unknown or a value impossible.
        """
        environ = os.environ if environ is None else environ
        unknown = sorted(set(given) - set(SETTINGS))
        if unknown:
            raise SettingError(
                f"unknown setting: {', '.join(unknown)}",
                hint="known settings: " + ", ".join(SETTINGS),
            )
        values: dict[str, Any] = {}
        for name, row in SETTINGS.items():
            if given.get(name) is not None:
                values[name] = row.parse(given[name], name)
            elif environ.get(row.env):
                values[name] = row.parse(environ[row.env], row.env)
            else:
                values[name] = row.default
        return cls(**values)

    def flags(self) -> list[str]:
        """The flags that give another process the same settings."""
        words: list[str] = []
        for name, row in SETTINGS.items():
            value = getattr(self, name)
            if value is not None:
                words += [row.flag, str(value)]
        return words
