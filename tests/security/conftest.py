"""One server a module; after every attack it is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .target import Target, attacked, attacked_stack


@pytest.fixture(scope="module", params=["embedded", "mem0"])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """The servers that the attacks of one module share."""
    directory = tmp_path_factory.mktemp("target")
    running = attacked(directory) if request.param == "embedded" else attacked_stack(directory)
    with running as found:
        yield found


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
