"""Virtual environments of the other products, made once and kept in a cache directory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pikuri_memory import process

_INSTALL_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: Of its directory.
        requirements: What is installed, the measured product first.
    """

    name: str
    requirements: tuple[str, ...]


MEM0: Final = Environment(
    "mem0", ("mem0ai==2.2.1", "fastapi<1", "uvicorn<1", "uvloop<1", "httptools<1")
)
CHROMA: Final = Environment("chroma", ("chromadb==1.5.9",))


def default_cache() -> Path:
    """Where environments are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("pikuri", appauthor=False)) / "memory-bench"


def python_of(cache: Path, environment: Environment) -> Path:
    """Its interpreter."""
    return cache / environment.name / "bin" / "python"


def ensure(cache: Path, environment: Environment) -> None:
    """Make an environment unless it is there with just these requirements."""
    directory = cache / environment.name
    done = directory / "requirements.done"
    wanted = "\n".join((sys.version.split()[0], *environment.requirements))
    if done.exists() and done.read_text() == wanted:
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    process.run([sys.executable, "-m", "venv", "--clear", str(directory)], timeout=_INSTALL_SECONDS)
    process.run(
        [
            *(str(python_of(cache, environment)), "-m", "pip", "install"),
            *("--quiet", "--disable-pip-version-check", *environment.requirements),
        ],
        timeout=_INSTALL_SECONDS,
    )
    done.write_text(wanted)


def version(cache: Path, environment: Environment) -> str:
    """Name and version of the measured product, as installed."""
    name = environment.requirements[0].partition("==")[0]
    found = process.run(
        [
            *(str(python_of(cache, environment)), "-c"),
            f"from importlib import metadata; print(metadata.version({name!r}))",
        ],
        timeout=60,
    )
    return f"{name} {found.stdout.strip()}"
