"""With a real browser: no page reaches the server but its own (row 11 of the complaints)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import require

from .browser import PAGE, Site, site, visit
from .target import GUEST, Target, leaks

SECRET = "the secret of the open server"


@pytest.fixture(scope="module", autouse=True)
def chromium() -> None:
    require("chromium", "chromium")


@pytest.fixture
def attacker() -> Iterator[Site]:
    """Serves the page that attacks."""
    with site(PAGE.read_bytes(), "text/html; charset=utf-8") as serving:
        yield serving


def page(attacker: Site, name: str, target: str, key: str) -> str:
    """The address of the attacking page, told what to attack."""
    return (
        f"http://{name}:{attacker.port}/attack.html"
        f"?target={quote(target, safe='')}&key={quote(key, safe='')}&user=alice"
    )


def test_the_page_can_read_and_change_a_server_that_lets_it(attacker: Site, tmp_path: Path) -> None:
    """So that the tests below can fail."""
    reply = f'var leaked = "{SECRET}";'.encode()
    expected_to_read = {
        "fetch cors omit /memories",
        "fetch cors include /status",
        "fetch with the key /memories",
        "fetch with a bearer /entities",
        "fetch without a referrer /memories",
        "sandboxed iframe /memories",
        "xhr /memories",
        "POST cors true application/json /search",
    }
    with site(reply, "text/javascript", open_to_all=True) as victim:
        # On a busy machine the browser gives up one of the page's thousand requests.
        for number in range(3):
            told = visit(
                page(attacker, "127.0.0.1", f"http://127.0.0.1:{victim.port}", "k"),
                tmp_path / str(number),
            ).report()
            read = {name for name, text in told["read"].items() if SECRET in text}
            if expected_to_read <= read:
                break
    missing = expected_to_read - read
    assert not missing, {name: told["ended"].get(name) for name in missing}
    assert "leaked" in " ".join(told["read"].get(f"script {path}", "") for path in ("/health", "/"))
    wrote = victim.wrote()
    for expected in ("POST /memories", "POST /reset", "DELETE /entities/user/alice"):
        assert expected in wrote
    forms = [body for _, path, body in victim.seen if path == "/reset" and "form-data" in body]
    assert forms
    beacons = [body for method, path, body in victim.seen if (method, path) == ("POST", "/purge")]
    assert len(beacons) > 3


@pytest.mark.parametrize(
    ("own", "other"),
    [
        # Another port of the same host: for the browser that is the same site.
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("attacker.test", "127.0.0.1"),
        # A name that now leads to this machine (DNS rebinding).
        ("attacker.test", "attacker.test"),
    ],
)
def test_row_11_a_page_of_another_origin_reads_and_changes_nothing(
    target: Target, attacker: Site, tmp_path: Path, own: str, other: str
) -> None:
    refused = target.refusals()
    # It even knows the key.
    address = page(attacker, own, f"http://{other}:{target.port}", target.key)
    told = visit(address, tmp_path / "p").report()
    assert told["read"] == {}
    assert len(told["ended"]) > 300
    # The requests came, and were turned away.
    assert target.refusals() > refused + 50
    assert not leaks(str(told))
    assert target.owner.get(f"/memories?user_id={GUEST}").json()["results"] == []


def test_a_rebound_name_shows_nothing_of_the_server(target: Target, tmp_path: Path) -> None:
    seen = visit(f"http://rebound.test:{target.port}/docs", tmp_path / "p")
    assert "POST" not in seen.dom
    assert "forbidden" in seen.dom


def test_the_documentation_renders_every_route_and_asks_nobody_else(
    target: Target, tmp_path: Path
) -> None:
    seen = visit(f"{target.endpoint}/docs", tmp_path / "p")
    for method, path in target.operations():
        assert f'>{method}</span><span class="path">{path}</span>' in seen.dom
    assert "could not be read" not in seen.dom
    # Advice on the form of a document is none of our business, and no error.
    assert [line for line in seen.console if not line.startswith('"[DOM]')] == []
    assert set(seen.requested) == {
        f"{target.endpoint}{path}" for path in ("/docs/docs.css", "/docs/docs.js", "/openapi.json")
    }
