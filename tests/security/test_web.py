"""What a web page could send (row 11 of the complaints): Host, Origin, simple requests."""

from __future__ import annotations

import pytest

from .target import GUEST, JSON, Target, json_of, leaks

SEARCH = b'{"query": "where is the key", "user_id": "alice"}'
ADD = b'{"messages": "planted by a web page", "user_id": "alice"}'

HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "localhost.evil.example:{port}",
    "127.0.0.1.evil.example:{port}",
    "127.0.0.1.nip.io:{port}",
    "evil.example#127.0.0.1:{port}",
    "127.0.0.1:{port}.evil.example",
    "127.0.0.1:{port}@evil.example",
    "user@127.0.0.1:{port}",
    "user:password@localhost:{port}",
    "evil.example:80@127.0.0.1:{port}",
    "localhost.:{port}",
    "127.0.0.1.:{port}",
    "localhost.localdomain:{port}",
    "sub.localhost:{port}",
    "localhost,evil.example",
    "localhost evil.example",
    "localhost\tevil.example",
    "evil.example, 127.0.0.1:{port}",
    "127.1:{port}",
    "127.0.1:{port}",
    "0177.0.0.1:{port}",
    "0x7f000001:{port}",
    "2130706433:{port}",
    "127.0.0.1:0x50",
    "127.0.0.1:999999",
    "127.0.0.1:-1",
    "127.0.0.1:",
    "0.0.0.0:{port}",
    "[::]:{port}",
    "::1",
    "[::1",
    "[::1%25lo]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "192.168.0.1:{port}",
    "10.0.0.1",
    "169.254.169.254",
    "[fe80::1]:{port}",
    "http://127.0.0.1:{port}",
    "//127.0.0.1",
    "127.0.0.1/",
    "127.0.0.1/memories",
    "127.0.0.1\\evil.example",
    "l\xf6calhost:{port}",
    "\xe2\x93\x9bocalhost",
    "",
    " ",
    "*",
    "null",
    "localhost\x00",
    "a" * 5000,
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_is_not_the_loopback_gets_nothing_even_with_the_key(
    target: Target, host: str
) -> None:
    line = f"Host: {host.format(port=target.port)}\r\n"
    for request, headers, body in (
        ("GET /memories", "", b""),
        ("POST /search", JSON, SEARCH),
        ("POST /reset", "", b""),
        ("GET /health", "", b""),
        ("GET /docs", "", b""),
    ):
        status, answer = target.ask(request, headers, body, host=line, key=True)
        assert status in (400, 403), answer
        assert not leaks(answer)
        assert b"pikuri-memory</title>" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:{port}",
        "127.0.0.1",
        "localhost:{port}",
        "LocalHost:{port}",
        "[::1]:{port}",
        "127.0.0.2:{port}",
    ],
)
def test_a_name_of_the_loopback_is_good(target: Target, host: str) -> None:
    """So that the test above can fail."""
    status, answer = target.ask(
        "GET /memories", host=f"Host: {host.format(port=target.port)}\r\n", key=True
    )
    assert status == 200
    assert leaks(answer)


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n",
        "Host: 127.0.0.1\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: 127.0.0.1\r\n",
        "Host: 127.0.0.1\r\nhOST: localhost\r\n",
        "Host: 127.0.0.1\r\n Host: evil.example\r\n",
        "Host : 127.0.0.1\r\n",
        "X-Forwarded-Host: 127.0.0.1\r\n",
        "Host: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n",
        "Host: evil.example\r\nForwarded: host=127.0.0.1\r\n",
    ],
)
def test_there_is_exactly_one_host_and_nothing_stands_in_for_it(target: Target, lines: str) -> None:
    status, answer = target.ask("GET /memories", host=lines, key=True)
    assert status in (400, 403), answer
    assert not leaks(answer)


def test_a_request_of_http_1_0_without_a_host_gets_nothing(target: Target) -> None:
    answer = target.raw(f"GET /memories HTTP/1.0\r\nX-API-Key: {target.key}\r\n\r\n")
    assert answer.split()[1] == b"403"
    answer = target.raw("GET /memories\r\n\r\n")
    assert not leaks(answer)


@pytest.mark.parametrize(
    ("address", "host", "allowed"),
    [
        ("http://127.0.0.1:{port}/memories", "Host: evil.example\r\n", (400, 403)),
        ("http://evil.example/memories", "Host: evil.example\r\n", (400, 403)),
        ("http://evil.example/memories", "", (400, 403)),
        ("https://user@evil.example:1/memories", "Host: evil.example\r\n", (400, 403)),
        ("evil.example:80", "Host: evil.example\r\n", (400, 403)),
    ],
)
def test_an_absolute_target_does_not_stand_in_for_the_host(
    target: Target, address: str, host: str, allowed: tuple[int, ...]
) -> None:
    line = "GET " + address.format(port=target.port)
    status, answer = target.ask(line, host=host, key=True)
    assert status in allowed, answer
    assert not leaks(answer)
    status, answer = target.ask(line)
    assert status in (400, 401), answer
    assert not leaks(answer)


def test_nobody_connects_through_the_server(target: Target) -> None:
    for line in ("CONNECT 127.0.0.1:{port}", "CONNECT evil.example:443", "GET http://0/"):
        status, answer = target.ask(line.format(port=target.port), key=True)
        assert status in (307, 400, 404, 405), answer
        assert status != 307 or b"\r\nlocation: /docs\r\n" in answer


ORIGINS = [
    "null",
    "NULL",
    "",
    "http://evil.example",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "http://127.0.0.1:{port}1",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@evil.example",
    "http://evil.example:{port}",
    "http://localhost:{port}",
    "http://[::1]:{port}",
    "file://",
    "chrome-extension://abcdefghijklmnop",
    "moz-extension://abc",
    "data:",
    "http://127.0.0.1:{port} http://evil.example",
    "http://127.0.0.1:{port}, http://evil.example",
    "http://127.0.0.1:{port}\x00",
    "ftp://127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    "127.0.0.1:{port}",
    "*",
]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_of_another_origin_gets_nothing_even_with_the_key(
    target: Target, origin: str
) -> None:
    header = f"Origin: {origin.format(port=target.port)}\r\n"
    for request, headers, body in (
        ("GET /memories", "", b""),
        ("POST /search", JSON, SEARCH),
        ("POST /memories", JSON, ADD),
        ("POST /reset", "", b""),
        ("DELETE /memories?user_id=alice", "", b""),
        ("GET /health", "", b""),
        ("GET /openapi.json", "", b""),
    ):
        status, answer = target.ask(request, header + headers, body, key=True)
        assert status in (400, 403), answer
        assert not leaks(answer)
        assert b"access-control" not in answer.lower()


def test_the_page_of_the_server_itself_is_served(target: Target) -> None:
    for host in (f"127.0.0.1:{target.port}", f"localhost:{target.port}"):
        status, answer = target.ask(
            "POST /search",
            f"{JSON}Origin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n",
            SEARCH,
            host=f"Host: {host}\r\n",
            key=True,
        )
        assert status == 200
        assert leaks(answer)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense", ""])
@pytest.mark.parametrize("mode", ["no-cors", "navigate", "cors", "websocket"])
def test_what_a_browser_calls_foreign_gets_nothing_even_with_the_key(
    target: Target, site: str, mode: str
) -> None:
    """Navigations, images and scripts of another page come without an Origin."""
    header = f"Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: script\r\n"
    for line in ("GET /memories", "GET /openapi.json", "GET /docs/docs.js", "POST /reset"):
        status, answer = target.ask(line, header, key=True)
        assert status == 403
        assert not leaks(answer)


def test_a_second_origin_or_site_does_not_make_up_for_a_foreign_one(target: Target) -> None:
    own = f"http://127.0.0.1:{target.port}"
    for headers in (
        f"Origin: {own}\r\nOrigin: http://evil.example\r\n",
        f"Origin: http://evil.example\r\nOrigin: {own}\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: same-origin\r\n",
        "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n",
    ):
        status, answer = target.ask("GET /memories", headers, key=True)
        assert status == 403, headers
        assert not leaks(answer)


KINDS = [
    "Content-Type: text/plain\r\n",
    "Content-Type: text/plain;charset=UTF-8\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "Content-Type: multipart/form-data; boundary=x\r\n",
    "Content-Type: text/html\r\n",
    "Content-Type: application/octet-stream\r\n",
    "Content-Type: text/plain; application/json\r\n",
    "Content-Type: text/plain, application/json\r\n",
    "Content-Type: application/json, text/plain\r\n",
    "Content-Type: application/jsonx\r\n",
    "Content-Type: application/json; charset=utf-16\r\n",
    "Content-Type: application/json; charset=utf-7\r\n",
    "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
    "Content-Type: text/plain\r\nContent-Type: application/json\r\n",
    "Content-Type: \r\n",
    "Content-Type: */*\r\n",
    "",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_simple_post_changes_nothing_even_with_the_key(target: Target, kind: str) -> None:
    for path, body in (
        ("/memories", ADD),
        ("/memories/batch", b'{"memories": [{"memory": "x", "user_id": "alice"}]}'),
        ("/search", SEARCH),
        ("/reset", b"{}"),
        ("/purge", b"x=1"),
        ("/configure", b"{}"),
    ):
        status, answer = target.ask(f"POST {path}", kind, body, key=True)
        assert status in (415, 422), answer
        assert json_of(answer)["code"] == "unsupported_media_type"
        assert not leaks(answer)
        # Without the key it does not even come so far.
        assert target.ask(f"POST {path}", kind, body)[0] == 401


def test_a_body_that_is_said_to_be_json_is_taken(target: Target) -> None:
    """So that the test above can fail."""
    body = ADD.replace(b"alice", GUEST.encode())
    for kind in (JSON, "content-type: Application/JSON; charset=UTF-8\r\n"):
        assert target.ask("POST /memories", kind, body, key=True)[0] == 200


@pytest.mark.parametrize("path", ["/memories", "/search", "/reset", "/health", "/docs", "*"])
@pytest.mark.parametrize("key", [True, False])
def test_a_preflight_permits_nothing(target: Target, path: str, key: bool) -> None:
    own = f"http://127.0.0.1:{target.port}"
    for origin in ("http://evil.example", "null", own):
        status, answer = target.ask(
            f"OPTIONS {path}",
            f"Origin: {origin}\r\nAccess-Control-Request-Method: DELETE\r\n"
            "Access-Control-Request-Headers: x-api-key, content-type\r\n"
            "Access-Control-Request-Private-Network: true\r\n",
            key=key,
        )
        assert status in (401, 403, 404, 405), answer
        assert b"access-control" not in answer.lower()


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/memories", "/nothing"])
def test_no_reply_can_be_read_framed_or_kept_by_others(target: Target, path: str) -> None:
    _, answer = target.ask(f"GET {path}")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"access-control" not in head
    assert b"cache-control: no-store" in head
    assert b"x-content-type-options: nosniff" in head
    assert b"set-cookie" not in head
