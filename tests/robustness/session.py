"""A whole session with the real command line and the real client, to be watched from outside:
``python -m tests.robustness.session DIRECTORY``. Exits with 0 where everything did what it should.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pikuri_memory import EmbeddedServer, process

FACT = "Anna keeps two goats in the mountains"


def cli(*arguments: str) -> str:
    """The output of a command that must not fail."""
    command = [sys.executable, "-m", "pikuri_memory", *arguments]
    return process.run(command, timeout=120).stdout


async def asynchronously(server: EmbeddedServer) -> None:
    """The asynchronous client."""
    async with server.async_client() as client:
        await client.add("Ben plays the cello", user_id="ben")
        assert [r.text for r in await client.search("which instrument?", user_id="ben")]


def main(arguments: list[str]) -> int:
    """The session."""
    directory = Path(arguments[0])
    data = str(directory / "data")
    where = ["--data-dir", data]
    cli("--version")
    cli("up", "--port", "0", *where)
    state = json.loads(cli("status", "--json", *where))
    assert state["endpoint"].startswith("http://127.0.0.1:"), state
    cli("add", FACT, "--user", "anna", *where)
    cli("add", "Anna is a vet", "--user", "anna", *where)
    assert FACT in cli("search", "which animals has she?", "--user", "anna", *where)
    export = directory / "export.jsonl"
    cli("export", str(export), *where)
    assert FACT in export.read_text()
    cli("delete", "--user", "anna", "--yes", *where)
    cli("purge", *where)  # makes the index anew in another process
    cli("import", str(export), *where)
    assert FACT in cli("list", "--user", "anna", *where)
    with EmbeddedServer(data_dir=data, port=0) as server:
        with server.client() as client:
            assert any(r.text == FACT for r in client.search("goats", user_id="anna"))
            client.health()
        asyncio.run(asynchronously(server))
    cli("key", "rotate", *where)
    cli("logs", *where)
    cli("down", *where)
    # Without `up`: the last share stops the server.
    with EmbeddedServer(data_dir=data, port=0) as server, server.client() as client:
        assert len(list(client.get_all(user_id="anna"))) == 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
