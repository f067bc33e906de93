"""What the package exports, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import pikuri_memory
from pikuri_memory import errors

NAMES = {"AsyncMem0Client", "EmbeddedServer", "Mem0Client", "Mem0Server", "Record", "Scope"} | {
    "Degraded",
    "Entity",
    "Health",
    "HistoryEntry",
    "Matches",
    "__version__",
}
ERRORS = {
    name
    for name, member in vars(errors).items()
    if inspect.isclass(member) and issubclass(member, errors.PikuriMemoryError)
}


def test_the_public_names_are_these_and_every_error() -> None:
    assert set(pikuri_memory.__all__) == NAMES | ERRORS
    assert len(pikuri_memory.__all__) == len(set(pikuri_memory.__all__))


@pytest.mark.parametrize("name", sorted(NAMES | ERRORS))
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(pikuri_memory, name)
    assert name in dir(pikuri_memory)
    if inspect.isclass(value):
        assert value.__name__ == name
        assert value.__doc__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Mem0Cleint"):
        getattr(pikuri_memory, "Mem0Cleint")  # noqa: B009 mypy knows that it is not there


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = (
        "anyio fastapi httpx mem0 numpy onnxruntime platformdirs psutil pydantic qdrant_edge rich"
        " ssl starlette tokenizers typer uvicorn asyncio importlib.metadata"
    )
    code = f"import sys, pikuri_memory; print([n for n in {heavy.split()} if n in sys.modules])"
    # Without site packages' own start-up files, which may load anything.
    path = str(inspect.getfile(pikuri_memory)).removesuffix("/pikuri_memory/__init__.py")
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "[]"
