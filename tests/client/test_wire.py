"""Every error of httpx has a meaning in the protocol, and none shows the request."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from pikuri_memory.client import wire
from pikuri_memory.client.protocol import Session


def kinds(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for child in base.__subclasses__():
        yield from kinds(child)


MEANINGS = {
    httpx.ConnectError: "connect",
    httpx.ConnectTimeout: "connect",
    httpx.PoolTimeout: "connect",
    httpx.ProxyError: "connect",
    httpx.ReadError: "lost",
    httpx.ReadTimeout: "lost",
    httpx.WriteError: "lost",
    httpx.WriteTimeout: "lost",
    httpx.CloseError: "lost",
    httpx.RemoteProtocolError: "lost",
    httpx.DecodingError: "garbled",
    httpx.LocalProtocolError: "unusable",
    httpx.UnsupportedProtocol: "unusable",
    httpx.InvalidURL: "unusable",
    httpx.TooManyRedirects: "unusable",
}


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
def test_each_error_means_what_may_be_done_about_it(kind: type[Exception]) -> None:
    failure = wire.failure_of(kind("walnuts"))
    assert failure.kind == MEANINGS[kind]
    if failure.kind != "connect":
        assert "walnuts" not in failure.reason


def test_no_error_of_httpx_that_a_request_can_raise_is_forgotten() -> None:
    groups = {httpx.RequestError, httpx.TransportError, httpx.TimeoutException}
    groups |= {httpx.NetworkError, httpx.ProtocolError}
    known = {kind for kind in kinds(httpx.RequestError) if kind.__module__.startswith("httpx")}
    assert known - groups <= set(MEANINGS)
    assert all(issubclass(kind, wire.FAILURES) for kind in MEANINGS)


def test_a_client_for_plain_http_reads_no_certificates_and_one_for_https_checks_them() -> None:
    plain = wire.client_options(Session("http://127.0.0.1:1", "key"))
    secure = wire.client_options(Session("https://127.0.0.1:1", "key"))
    assert plain["verify"].cert_store_stats()["x509_ca"] == 0
    assert "verify" not in secure  # httpx checks certificates unless told otherwise
    assert plain["trust_env"] is secure["trust_env"] is False
