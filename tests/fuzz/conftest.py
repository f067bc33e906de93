"""A server a module, with room for large texts; at its end it has met nothing unforeseen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.target import Target, attacked


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server with secrets of others, to be left alone."""
    with attacked(
        tmp_path_factory.mktemp("fuzz"), max_body_bytes=16_000_000, max_text_length=2_000_000
    ) as running:
        yield running
