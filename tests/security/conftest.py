"""One server a module; after every attack it is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .target import Target, attacked, attacked_stack


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_server(reason): not for mem0's server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    own = metafunc.definition.get_closest_marker("own_server")
    kinds = ["embedded"] if own is not None else ["embedded", "mem0"]
    metafunc.parametrize("target", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
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
