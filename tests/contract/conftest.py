"""Each test of the contract runs against each server, with each client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import httpx
import pytest

from pikuri_memory import Mem0Client
from tests.client.conftest import Driven

from .subjects import FEATURES, KINDS, Subject


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feature(name): what a server may lack (subjects.py)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" not in metafunc.fixturenames:
        return
    wanted = [mark.args[0] for mark in metafunc.definition.iter_markers("feature")]
    assert set(wanted) <= set(FEATURES), "say in subjects.py what the feature is"
    kinds = [kind for kind in KINDS if not set(wanted) & set(kind.differences)]
    metafunc.parametrize(
        "subject", kinds, indirect=True, ids=[kind.name for kind in kinds], scope="module"
    )


@pytest.fixture(scope="module")
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """A running server of each kind."""
    with request.param.running(tmp_path_factory.mktemp(request.param.name)) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """Every test finds its server without memories."""
    if "subject" in request.fixturenames:
        subject: Subject = request.getfixturevalue("subject")
        with subject.client() as memory:
            memory.reset()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, subject: Subject) -> Iterator[Mem0Client]:
    """Both clients, to be used alike."""
    if request.param == "sync":
        with subject.client() as memory:
            yield memory
        return
    with asyncio.Runner() as runner, Driven(subject.async_client(), runner) as driven:
        yield cast(Mem0Client, driven)


@pytest.fixture
def http(subject: Subject) -> Iterator[httpx.Client]:
    """Plain HTTP with the key."""
    with httpx.Client(
        base_url=subject.endpoint,
        headers={"X-API-Key": subject.key},
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture
def stranger(subject: Subject) -> Iterator[httpx.Client]:
    """Plain HTTP without a key."""
    with httpx.Client(base_url=subject.endpoint, timeout=60, trust_env=False) as client:
        yield client
