"""A process that uses a stand-in server, told what to do line by line.

``python -m tests.servers.user ROOT [VERSION]`` answers each line with one line of JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pikuri_memory import lease
from pikuri_memory.errors import PikuriMemoryError
from pikuri_memory.servers.lifecycle import ServerLifecycle
from tests.servers import stand_in


class User:
    """Such a process, as a test sees it."""

    def __init__(self, root: Path, version: str = "1", *, keep: bool = False) -> None:
        command = [sys.executable, "-m", "tests.servers.user", str(root), version]
        self.process = subprocess.Popen(
            command + (["keep"] if keep else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=stand_in.environment(),
            text=True,
        )

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the user process ended"
        return json.loads(line)

    def ask(self, command: str) -> Any:
        self.send(command)
        return self.reply()

    def leave(self) -> int:
        """End it as a program ends, without ``close``."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def call(endpoint: str) -> dict[str, Any]:
    """What the server says of itself."""
    address = urlsplit(endpoint)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.request("GET", "/who")
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()


def _forked(server: ServerLifecycle) -> dict[str, Any]:
    """Fork a child that looks at what it inherited and ends; then look at the parent's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = {"child_info": server.info is not None}
        server.close()
        os.write(writing, json.dumps(seen).encode())
        os.close(writing)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        seen = json.loads(file.read())
    os.waitpid(child, 0)
    return {**seen, "holders": [holder.pid for holder in lease.holders(server.paths)]}


def _orphaned(server: ServerLifecycle) -> dict[str, Any]:
    """Fork a child that lives on when this process is gone."""
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    return {"child": child}


def _multiprocessing(server: ServerLifecycle) -> dict[str, Any]:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(server.info is not None))
    child.start()
    seen = {"child_info": answers.get()}
    child.join()
    return {**seen, "holders": [holder.pid for holder in lease.holders(server.paths)]}


def _answer(server: ServerLifecycle, command: str) -> dict[str, Any]:
    if command == "start":
        return {"pid": server.start().pid}
    if command == "close":
        server.close()
        return {"closed": True}
    if command == "call":
        info = server.info
        assert info is not None
        return call(info.endpoint)
    if command == "revive":
        return {"pid": server.revive().pid}
    if command == "own":
        lease.prepare(server.paths)
        return {"owned": lease.ExclusiveLock(server.paths.owner_lock).try_acquire()}
    forks = {"fork": _forked, "orphan": _orphaned, "multiprocessing": _multiprocessing}
    return forks[command](server)


def main() -> None:
    root = Path(sys.argv[1])
    server = stand_in.lifecycle(root, version=sys.argv[2], keep="keep" in sys.argv[3:])
    for line in sys.stdin:
        try:
            answer = _answer(server, line.strip())
        except (PikuriMemoryError, OSError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
