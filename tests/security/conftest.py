"""One server a module; after every attack it is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .target import Target, attacked


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The server that the attacks of one module share."""
    with attacked(tmp_path_factory.mktemp("target")) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nobody in, nothing changed, server alive."""
    if "target" not in request.fixturenames:
        yield
        return
    target: Target = request.getfixturevalue("target")
    yield
    target.forget_guest()
    target.check()
