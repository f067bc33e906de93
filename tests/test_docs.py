"""What the documentation shows is run: every command of a console block, every Python block."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory import process
from pikuri_memory.discovery import read_server_info
from pikuri_memory.paths import DataPaths
from tests.conftest import require
from tests.router.scripted import ScriptedRouter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Set-up that other tests run: the wheel in an empty environment, and this very suite.
ELSEWHERE = ("pip install ", "make ", "sudo apt ")
DEFAULT_ENDPOINT = "http://127.0.0.1:8888"
ROUTERS = r"http://127\.0\.0\.1:(?:8080|11434)"


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        found = re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)
        for number, block in enumerate(found):
            yield f"{page.name}-{number}", block


def commands(block: str) -> list[str]:
    """The commands of a console block; a trailing backslash joins lines."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line[2:].strip() for line in lines if line.startswith("$ ")]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which commands run with the installed command on PATH and a free port."""
    binaries = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("PIKURI_MEMORY_PORT", "0")
    work = tmp_path / "work"
    work.mkdir()
    return work


def run(command: str, cwd: Path) -> str:
    """Run a command as a person would type it."""
    if "curl" in command:
        require("curl", "curl")
        info = read_server_info(DataPaths.at(None))
        assert info is not None
        command = command.replace(DEFAULT_ENDPOINT, info.endpoint)
    done = process.run(["bash", "-c", command], timeout=120, cwd=cwd, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def is_needed(command: str) -> bool:
    return not command.startswith(ELSEWHERE)


CONSOLE = [
    pytest.param(block, id=name)
    for name, block in blocks("console")
    if any(map(is_needed, commands(block)))
]


@pytest.mark.parametrize("block", CONSOLE)
def test_every_command_that_is_shown_works(block: str, shell: Path) -> None:
    with ScriptedRouter(embedding_models=("nomic-embed-text",)) as router:
        type_in(re.sub(ROUTERS, router.url, block), shell)


def type_in(block: str, shell: Path) -> None:
    """Run the commands of a block, with a server."""
    typed = [command for command in commands(block) if is_needed(command)]
    started = any(command.startswith("pikuri-memory up") for command in typed)
    if not started:
        run("pikuri-memory up", shell)
    try:
        for command in typed:
            run(re.sub(r"\s+#.*$", "", command), shell)
    finally:
        process.run(
            [sys.executable, "-m", "pikuri_memory", "down", "--force"], timeout=60, check=False
        )


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=name) for name, block in blocks("python")]
)
def test_every_python_example_works(block: str, shell: Path) -> None:
    script = shell / "example.py"
    script.write_text(block)
    process.run([sys.executable, str(script)], timeout=120, cwd=shell)


def test_every_link_to_a_page_of_ours_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"`make ([a-z]+)`|^\$ make ([a-z]+)", page.read_text(), re.M):
            name = target[0] or target[1]
            assert re.search(rf"^{name}:", makefile, re.M), f"{page.name} names make {name}"


def test_repository_text_names_no_machine_and_no_registry_host() -> None:
    wrong = re.compile(r"/root/|/work/|pypi\.org|files\.pythonhosted|registry\.npmjs|deb\.debian")
    listed = process.run(["git", "ls-files"], timeout=60, cwd=ROOT, check=False)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".onnx", ".npz", ".png"} or not path.is_file():
            continue
        if path == Path(__file__).resolve():
            continue
        found = wrong.search(path.read_text(errors="replace"))
        assert found is None, f"{name} has {found.group() if found else ''}"
