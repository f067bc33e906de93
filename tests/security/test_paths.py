"""No spelling of a path gets around the key, and none means another file or route."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .target import Target, leaks, status_of

PATHS = [
    "//memories",
    "///memories",
    "/./memories",
    "/memories/.",
    "/memories/",
    "/memories//",
    "/health/../memories",
    "/health/..%2fmemories",
    "/health/%2e%2e/memories",
    "/health/%2e%2e%2fmemories",
    "/health%2f..%2fmemories",
    "/health/%252e%252e/memories",
    "/health/.%2e/memories",
    "/health/..;/memories",
    "/health/..\\memories",
    "/health\\..\\memories",
    "/health%5c..%5cmemories",
    "/docs/../memories",
    "/docs/docs.js/../../memories",
    "/docs/%2e%2e/memories",
    "/openapi.json/../memories",
    "/openapi.json/memories",
    "/health/memories",
    "/health;/memories",
    "/health;a=b",
    "/memories;/health",
    "/memories;.json",
    "/memories.json",
    "/memories%00/health",
    "/memories%00.json",
    "/memories%0a",
    "/memories%0d%0aX-API-Key:%20x",
    "/memories%20",
    "/memories%3f/health",
    "/memories?/health",
    "/memories?x=/../health",
    "/memories#/health",
    "/memories%23/health",
    "/Memories",
    "/MEMORIES",
    "/HEALTH/../memories",
    "/%6demories",
    "/%6D%65%6D%6F%72%69%65%73",
    "/%c0%ae%c0%ae/memories",
    "/%ef%bc%8fmemories",
    "/%u002fmemories",
    "/memorie%ff",
    "/%",
    "/%zz",
    "/%2",
    "/..",
    "/../../../../etc/passwd",
    "/docs/../../../../../etc/passwd",
    "/docs/%2e%2e/%2e%2e/app.py",
    "/docs/docs.js%00.html",
    "/docs/../app.py",
    "/docs//docs.js",
    "/api-key",
    "/../api-key",
    "/memories.sqlite3",
    "/server.json",
    "/static/docs.js",
    "/favicon.ico",
    "/.well-known/x",
    "/.git/config",
    "/health%2e",
    "/health/",
    "/%68ealth",
    "//health",
    "/HEALTH",
    "/docs%2fdocs.js",
    "health",
    "*",
    "?",
    "/?user_id=alice",
    "",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_gets_around_the_key(target: Target, path: str) -> None:
    for method in ("GET", "HEAD", "DELETE", "POST"):
        status, answer = target.ask(f"{method} {path}")
        assert status in (400, 401), answer
        assert not leaks(answer)
        assert b"root:" not in answer


@pytest.mark.parametrize("path", PATHS)
def test_with_the_key_a_strange_path_is_no_other_route(target: Target, path: str) -> None:
    """What names no route is not found: nothing is normalised, no file is served."""
    status, answer = target.ask(f"DELETE {path}", key=True)
    assert status in (400, 404, 405), answer
    status, answer = target.ask(f"GET {path}", key=True)
    assert status in (200, 307, 400, 404, 422), answer
    assert b"root:" not in answer
    assert target.key.encode() not in answer
    assert b"SQLite" not in answer


@pytest.mark.parametrize("tail", ["health", "docs", "openapi.json", "docs/docs.js"])
@pytest.mark.parametrize("prefix", ["/memories/", "/entities/user/", "/search/", "/memories/../"])
def test_a_public_name_at_the_end_opens_nothing(target: Target, prefix: str, tail: str) -> None:
    for method in ("GET", "DELETE"):
        status, answer = target.ask(f"{method} {prefix}{tail}")
        assert status in (400, 401)
        assert not leaks(answer)


def test_an_entity_of_any_name_is_only_itself(target: Target) -> None:
    for name in ("..", "../bob", "%2e%2e%2fbob", "bob%00", "bob/", "BOB", "bo_", "bo%25"):
        status, answer = target.ask(f"DELETE /entities/user/{name}", key=True)
        assert status in (200, 400, 404, 422), answer


@pytest.mark.parametrize("length", [5_000, 60_000])
def test_a_very_long_path_is_no_route(target: Target, length: int) -> None:
    for path in ("/" + "a" * length, "/" * length, "/health" + "/.." * (length // 3)):
        status, answer = target.ask(f"GET {path}")
        assert status in (400, 401)
        status, answer = target.ask(f"GET {path}", key=True)
        assert status in (400, 404)
        assert len(answer) < 2_000
    status, answer = target.ask(f"GET /memories?user_id={'a' * length}", key=True)
    assert status == 422


def test_raw_bytes_in_a_request_line_are_refused(target: Target) -> None:
    host = f"Host: 127.0.0.1:{target.port}\r\nX-API-Key: {target.key}\r\nConnection: close\r\n"
    # So that the lines below can fail.
    assert leaks(target.raw("GET  /memories HTTP/1.1\r\n" + host + "\r\n"))
    for line in (
        b"GET /memories\x00/health HTTP/1.1",
        b"GET /m\xc3\xa4mories HTTP/1.1",
        b"GET /mem\xff HTTP/1.1",
        b"GET /memories\thealth HTTP/1.1",
        b"GET /memories /health HTTP/1.1",
        b"GET /memories HTTP/9.9",
        b"GET /memories HTTP/1.1\x00",
        b"GET\x00/memories HTTP/1.1",
        b"GET /mem\rories HTTP/1.1",
    ):
        answer = target.raw(line + b"\r\n" + host.encode() + b"\r\n")
        assert status_of(answer) == 400, (line, answer)
        assert not leaks(answer)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.lists(
        st.sampled_from(
            "/ . .. %2e %2E%2e %2f %5c \\ ; ? # : @ % %00 %0a memories health docs docs.js"
            " openapi.json search user_id=alice = & * é \x7f \t".split(" ")
        ),
        max_size=12,
    ).map("".join),
    slash=st.sampled_from(["/", "", "//", "http://127.0.0.1/"]),
)
def test_no_mixture_of_parts_gets_around_the_key(target: Target, path: str, slash: str) -> None:
    whole = slash + path
    status, answer = target.ask(f"GET {whole}")
    assert not leaks(answer)
    assert status in (200, 400, 401)
    if status == 200:
        route = whole.removeprefix("http://127.0.0.1").split("?")[0].split("#")[0]
        assert route in {"/health", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json"}
