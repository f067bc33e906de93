"""Where mem0's server may differ from our own, and that the documentation says the same."""

from __future__ import annotations

import re
from pathlib import Path

from .subjects import FEATURES, KINDS

# Ranking values, pages, Idempotency-Key, batch, explain and deduplication. Succession is ranking:
# the links order and mark what is found, and nothing else.
ALLOWED = {"batch", "duplicates", "explain", "idempotency", "pages", "succession"}
PAGE = Path(__file__).parent.parent.parent / "docs" / "docker.md"


def test_only_what_is_allowed_differs() -> None:
    differences = {kind.name: set(kind.differences) for kind in KINDS}
    assert differences == {"embedded": set(), "mem0": ALLOWED}


def test_the_documentation_lists_the_same_differences() -> None:
    _, _, section = PAGE.read_text().partition("## How it differs from the embedded server\n")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section.partition("\n## ")[0], re.M)
    [mem0] = [kind for kind in KINDS if kind.name == "mem0"]
    told = {(FEATURES[name], reason) for name, reason in mem0.differences.items()}
    assert set(rows) - {("feature", "why not")} == told
