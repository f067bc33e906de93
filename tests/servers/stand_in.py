"""A keeper as small as can be, with faults on request.

``python -m tests.servers.stand_in ROOT ...``: it takes the owner lock, answers ``GET`` with what it
was asked, and stops like the real one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pikuri_memory import discovery, lease, process
from pikuri_memory.discovery import ServerInfo
from pikuri_memory.paths import DataPaths
from pikuri_memory.process import Process
from pikuri_memory.servers.embedded import answers
from pikuri_memory.servers.lifecycle import ServerLifecycle

KIND = "stand-in"


def lifecycle(
    root: Path,
    *,
    version: str = "1",
    keep: bool = False,
    faults: tuple[str, ...] = (),
    start_timeout: float = 30,
    stop_timeout: float = 30,
) -> ServerLifecycle:
    """A share in the stand-in server of a directory."""
    paths = DataPaths.at(root)

    def spawn(keep: bool) -> Process:
        command = [sys.executable, "-m", "tests.servers.stand_in", str(root), "--version", version]
        command += [*faults, *(["--keep"] if keep else [])]
        return process.spawn_detached(command, output=paths.output_log, env=environment())

    return ServerLifecycle(
        paths,
        kind=KIND,
        version=version,
        spawn=spawn,
        healthy=answers,
        start_timeout=start_timeout,
        stop_timeout=stop_timeout,
        keep=keep,
    )


def environment() -> dict[str, str]:
    """This environment, with the repository where modules are looked for."""
    search = [str(Path(__file__).parents[2]), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in search if entry)}


def events(root: Path) -> list[str]:
    """What happened to servers in a directory: ``start`` and ``stop``, in order."""
    try:
        return [line.split()[0] for line in (root / "events").read_text().splitlines()]
    except FileNotFoundError:
        return []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = {
            "pid": os.getpid(),
            "path": self.path,
            "host": self.headers["Host"],
            "key": self.headers["X-API-Key"],
            "memories": 0,
        }
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="1")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--tell", help="print this line and end with code 5")
    parser.add_argument("--hang", action="store_true", help="never become healthy")
    parser.add_argument("--slow-start", type=float, default=0)
    parser.add_argument("--slow-stop", type=float, default=0)
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--stuck", action="store_true", help="do not end when nobody is left")
    options = parser.parse_args()
    paths = DataPaths.at(options.root)
    lease.prepare(paths)
    owner = lease.ExclusiveLock(paths.owner_lock)
    if not owner.try_acquire():
        print(json.dumps({"code": "data_directory_in_use", "message": "owned", "hint": "h"}))
        return 5
    if options.tell is not None:
        print("first a line of something else")
        print(options.tell, file=sys.stderr)
        return 5
    time.sleep(options.slow_start)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: stop.set())
    keeper = lease.Keeper(paths, keep=options.keep)
    if options.hang:
        print("thinking", flush=True)
        stop.wait()
        return 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    log = open(options.root / "events", "a", buffering=1)  # noqa: SIM115
    print("start", os.getpid(), file=log)
    discovery.write_server_info(
        paths,
        ServerInfo(
            KIND,
            keeper.identity.pid,
            keeper.identity.start_time,
            f"http://127.0.0.1:{server.server_port}",
            options.version,
        ),
    )

    def watch() -> None:
        if keeper.wait_until_unused(stop):
            stop.set()

    threading.Thread(target=watch, daemon=True).start()
    stop.wait()
    server.shutdown()
    server.server_close()
    while options.stuck:
        time.sleep(1)
    time.sleep(options.slow_stop)
    print("stop", os.getpid(), file=log)
    discovery.clear_server_info(paths, os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
