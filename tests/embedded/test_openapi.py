"""The server does what ``/openapi.json`` says, whatever it is asked (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pikuri_memory.embedded.openapi import OPERATIONS, Operation

from .served import KEY, Served, serving

# A document cannot say that one of three ids is needed, or which characters are printable.
EXCLUDED = [positive_data_acceptance]
WITH_INPUT = [row for row in OPERATIONS if row.body is not None or row.parameters]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("openapi")) as served:
        served.add("tea", metadata={"a": 1})
        yield served


@pytest.fixture(scope="module")
def document(server: Served) -> Any:
    return schemathesis.openapi.from_url(f"{server.endpoint}/openapi.json")


def name(value: Any) -> str:
    return value.name if isinstance(value, Operation) else str(value.value)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=name)
@pytest.mark.parametrize("operation", WITH_INPUT, ids=name)
def test_every_reply_is_one_that_the_document_describes(
    document: Any, operation: Operation, mode: GenerationMode
) -> None:
    described = document[operation.template][operation.method]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=described.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(headers={"X-API-Key": KEY}, excluded_checks=EXCLUDED)

    ask()


@pytest.mark.parametrize(
    "operation", [row for row in OPERATIONS if row not in WITH_INPUT], ids=name
)
def test_what_takes_nothing_answers_as_the_document_describes(
    document: Any, operation: Operation
) -> None:
    case = document[operation.template][operation.method].Case()
    case.call_and_validate(headers={"X-API-Key": KEY}, excluded_checks=EXCLUDED)


def test_the_documentation_has_a_row_for_every_route() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
    for row in OPERATIONS:
        assert f"\n| `{row.method} {row.template}` |" in text
