"""What a user gets: the wheel, in an empty environment."""

from __future__ import annotations

import json
import os
import sys
import venv
import zipfile
from pathlib import Path

from pikuri_memory import process

ROOT = Path(__file__).parent.parent
MOST_PACKAGES = 55
MOST_MEGABYTES = 300  # of 10**6 bytes

MAIN_JOB = """
from pikuri_memory import EmbeddedServer

for turn in range(2):
    with EmbeddedServer(port=0) as server:
        client = server.client()
        if turn == 0:
            client.add("I can't eat hazelnuts, my throat swells", user_id="anna")
            client.add("Our dog Rocco is scared of thunder", user_id="anna")
        [best] = client.search("Which food allergy should the cook know?", user_id="anna", top_k=1)
        assert "hazelnuts" in best.text, best
print("the main job is done")
"""


def test_row_32_the_wheel_does_the_main_job_in_an_empty_environment(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    process.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), str(ROOT)], timeout=300
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("minilm.onnx") for name in names)
    assert any(name.endswith("py.typed") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)

    home = tmp_path / "empty"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    before = _installed(python)
    size = _megabytes(home)
    process.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", str(wheel)],
        timeout=600,
    )
    packages = _installed(python) - before
    grown = _megabytes(home) - size
    assert len(packages) <= MOST_PACKAGES, sorted(packages)
    assert grown <= MOST_MEGABYTES
    assert "mem0ai" not in packages

    done = process.run([python, "-c", MAIN_JOB], timeout=120, cwd=tmp_path)
    assert "the main job is done" in done.stdout
    shown = process.run([str(home / "bin" / "pikuri-memory"), "--version"], timeout=60)
    assert shown.stdout.strip()
    print(f"{len(packages)} packages, {grown:.0f} MB")


def _installed(python: str) -> set[str]:
    listed = process.run(
        [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"], timeout=60
    )
    return {row["name"] for row in json.loads(listed.stdout)}


def _megabytes(directory: Path) -> float:
    total = 0
    for path, _, files in os.walk(directory):
        total += sum((Path(path) / name).lstat().st_size for name in files)
    return total / 1e6
