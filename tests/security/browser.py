"""A real browser, and little servers for its pages."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pikuri_memory.process import run

PAGE = Path(__file__).with_name("attack.html")
_SECONDS = 240.0


@dataclass
class Site:
    """A little web server of the tests.

    Attributes:
        port: Where it listens on 127.0.0.1.
        seen: Method, path and body of each request.
    """

    port: int = 0
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def wrote(self) -> list[str]:
        """The methods and paths of what was to change something."""
        return [f"{method} {path}" for method, path, _ in self.seen if method not in _READING]


_READING = ("GET", "HEAD", "OPTIONS")


@contextmanager
def site(reply: bytes, kind: str, *, open_to_all: bool = False) -> Iterator[Site]:
    """A server that answers everything with the same reply.

    Args:
        reply: The body.
        kind: Its content type.
        open_to_all: Whether every page of every origin may do everything with it.
    """
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length).decode("utf-8", "replace")
            here.seen.append((self.command, self.path, body))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(reply)))
            if open_to_all:
                origin = self.headers.get("Origin") or "*"
                self.send_header("Access-Control-Allow-Origin", origin)
                self.send_header("Access-Control-Allow-Credentials", "true")
                asked = self.headers.get("Access-Control-Request-Headers") or "*"
                self.send_header("Access-Control-Allow-Headers", asked)
                self.send_header("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A browser that goes away in the middle is nothing to tell about."""

    server = Server(("127.0.0.1", 0), Handler)
    here.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Visit:
    """What a browser had after it loaded a page.

    Attributes:
        dom: The document at the end.
        console: What the page's console shows.
        requested: The URLs that pages asked for over the network.
    """

    dom: str
    console: list[str]
    requested: list[str]

    def report(self) -> Any:
        """The report that ``attack.html`` leaves in the document."""
        match = re.search(r'<pre id="report">(.*?)</pre>', self.dom, re.DOTALL)
        assert match is not None
        return json.loads(html.unescape(match[1]))


def visit(url: str, profile: Path, *arguments: str, wait_ms: int = 5000) -> Visit:
    """Load a page in Chromium, wait for what it does, and tell how it ended.

    Args:
        url: The page.
        profile: A new directory of the browser's own.
        arguments: More arguments of Chromium.
        wait_ms: Milliseconds of the page's own time, which stands still while it waits for the
            network.
    """
    browser = shutil.which("chromium")
    assert browser is not None
    log = profile / "net.json"
    completed = run(
        [
            browser,
            *_SWITCHES,
            f"--user-data-dir={profile}",
            f"--log-net-log={log}",
            f"--virtual-time-budget={wait_ms}",
            *arguments,
            "--dump-dom",
            url,
        ],
        timeout=_SECONDS,
    )
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", completed.stderr)
    return Visit(completed.stdout, console, _requested(log))


_SWITCHES: Sequence[str] = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-popup-blocking",
    "--disable-sync",
    "--enable-logging=stderr",
    "--no-proxy-server",
    # Whatever the page asks for, no name but those of the tests leads anywhere.
    "--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1,"
    " EXCLUDE localhost",
)


def _requested(log: Path) -> list[str]:
    text = log.read_text(errors="replace").rstrip().rstrip(",")
    try:
        logged = json.loads(text)
    except ValueError:
        logged = json.loads(text + "]}")  # the browser ended before it wrote the end
    kinds = logged["constants"]["logEventTypes"]
    start = kinds["URL_REQUEST_START_JOB"]
    # What the browser asks its maker for by itself has no page for an initiator.
    return [
        event["params"]["url"]
        for event in logged["events"]
        if event["type"] == start and "://" in event.get("params", {}).get("initiator", "")
    ]
