"""The running server does what its ``/openapi.json`` says (schemathesis, every phase)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory.embedded.openapi import OPERATIONS
from pikuri_memory.process import run
from tests.security.target import Target, attacked

CONFIG = Path(__file__).with_name("schemathesis.toml")
PHASES = ("coverage", "fuzzing", "stateful")
SECONDS = 150
EXAMPLES = 15


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """One of its own: the document has POST /reset."""
    with attacked(tmp_path) as running:
        yield running


def test_the_running_server_does_what_its_document_says(target: Target, tmp_path: Path) -> None:
    completed = run(
        [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            "--config-file",
            str(CONFIG),
            "run",
            f"{target.endpoint}/openapi.json",
            "--header",
            f"X-API-Key: {target.key}",
            "--phases",
            ",".join(PHASES),
            "--max-examples",
            str(EXAMPLES),
            "--generation-database",
            "none",
            "--continue-on-failure",
            "--no-color",
        ],
        timeout=SECONDS,
        cwd=tmp_path,
        check=False,
    )
    told = completed.stdout + completed.stderr
    assert completed.returncode == 0, told[-8000:]
    # It did look: at every route, in every phase, at hundreds of cases.
    assert f"Tested: {len(OPERATIONS)}" in told
    for phase in PHASES:
        assert re.search(rf"✅ {phase}", told, re.IGNORECASE), told[-2000:]
    count = re.search(r"(\d+) generated", told)
    assert count is not None
    assert int(count[1]) > 500
    assert target.failures() == []
    assert target.stranger.get("/health").status_code == 200
    log = target.paths.server_log.read_text()
    assert "internal error" not in log
