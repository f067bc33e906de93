"""The design's rules about modules: imports point down, and each side effect has one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pikuri_memory

PACKAGE = Path(pikuri_memory.__file__).parent

# From the bottom up; a module may import from its own layer and those before it.
LAYERS = [
    {"errors", "settings", "paths", "record", "_version", "files"},
    {"process", "finalizers", "lease", "waiting", "discovery", "keeping"},
    {"client", "models"},
    {"embedded", "stack"},
    {"servers"},
    {"cli", "__main__", "__init__"},
]


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def part(name: str) -> str:
    return name.removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{name} is in no layer: say where it belongs")


def places(root: str, wanted: set[str]) -> set[str]:
    """Modules that import ``root`` or something below it, but for those wanted."""
    found = {
        str(path)
        for path, tree in modules()
        for name in imported(tree)
        if name == root or name.startswith(root + ".")
    }
    return found - wanted


def test_imports_point_down() -> None:
    wrong = []
    for path, tree in modules():
        own = layer_of(part(path.parts[0]))
        for name in imported(tree):
            if not name.startswith("pikuri_memory."):
                continue
            other = name.split(".")[1]
            known = (PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").is_file()
            if known and layer_of(other) > own:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_clients_know_nothing_of_servers_and_servers_nothing_of_clients_inside() -> None:
    for path, tree in modules():
        names = {name.split(".")[1] for name in imported(tree) if name.count(".") >= 1}
        if path.parts[0] == "client":
            assert not names & {"embedded", "servers", "lease", "process"}, path
        if path.parts[0] == "embedded":
            assert "client" not in names, path


def test_only_one_module_starts_processes() -> None:
    assert places("subprocess", {"process.py"}) == set()
    assert places("multiprocessing", set()) == set()


def test_only_one_module_knows_the_index_engine() -> None:
    assert places("qdrant_edge", {"embedded/index.py"}) == set()


def test_only_extraction_may_know_mem0() -> None:
    assert places("mem0", {"embedded/extraction.py"}) == set()


def test_only_faces_print() -> None:
    allowed = {
        # One line of JSON to whoever started the process.
        Path("embedded/rebuild.py"),
        Path("keeping.py"),
    }
    printing = [
        path
        for path, tree in modules()
        if path.parts[0] != "cli"
        and any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(tree)
        )
    ]
    assert set(printing) <= allowed
