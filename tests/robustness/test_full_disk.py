"""A full disk: writes are refused, reads go on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from pikuri_memory import process
from tests.conftest import require
from tests.robustness.arena import ROOT, Arena, files_with, until
from tests.robustness.load_client import CANARY

MIB = 2**20
WITHIN = "PIKURI_TEST_IN_NAMESPACE"


def mounting(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test where it may mount: here as root, else in a user namespace of its own."""

    @functools.wraps(test)
    def run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
        require("mount", "mount")
        if os.geteuid() == 0:
            test(tmp_path)
            return
        assert WITHIN not in os.environ
        require("unshare", "util-linux")
        if process.run(["unshare", "-rm", "true"], timeout=10, check=False).returncode != 0:
            pytest.skip("this system lets no ordinary user make namespaces, and tests no root")
        done = process.run(
            ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", request.node.nodeid],
            timeout=300,
            cwd=ROOT,
            env={**os.environ, WITHIN: "1"},
            check=False,
        )
        assert done.returncode == 0, done.stdout

    del run.__wrapped__  # pytest would ask it for its arguments
    return run


class SmallDisk:
    """A tmpfs.

    Args:
        path: Where it is mounted.
        size: Its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def free(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Write until nothing, or so much, is left."""
        with suppress(OSError), open(self._ballast, "ab", buffering=0) as file:
            while (left := self.free() - leave) > 0:
                file.write(bytes(min(left, MIB)))

    def clear(self) -> None:
        """Free what was filled."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs for the time of a ``with``."""
    path.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], timeout=10)
    try:
        yield SmallDisk(path)
    finally:
        process.run(["umount", "-l", str(path)], timeout=10)


def told_to_make_room(reply: httpx.Response) -> bool:
    """Whether it is the refusal that a full disk deserves."""
    return (
        reply.status_code == 507
        and reply.json()["code"] == "disk_full"
        and "df -h" in reply.json()["hint"]
        and CANARY not in reply.text
    )


def text(n: int) -> str:
    return f"{CANARY} number{n} likes thing{n} and other{n % 7}"


def finds_all(arena: Arena, user: str, texts: dict[str, str]) -> None:
    """Every text is listed and found under its id, and nothing else is listed."""
    assert {m["id"]: m["memory"] for m in arena.listed(user)} == texts
    for id_, each in list(texts.items())[::7]:
        assert id_ in [hit["id"] for hit in arena.search(each, user, top_k=3)]


@mounting
def test_below_the_reserve_writes_are_refused_with_a_hint_and_reads_go_on(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 160 * MIB) as disk,
        Arena(tmp_path, data=disk.path / "data", free_space_reserve=64 * MIB) as arena,
    ):
        arena.start()
        ids = arena.add_many([text(n) for n in range(100)], "anna")
        kept = dict(zip(ids, map(text, range(100)), strict=True))
        for leave in (48 * MIB, 20 * MIB):
            disk.fill(leave)
            for method, path, sent in [
                ("POST", "/memories", {"messages": text(1000), "user_id": "anna"}),
                ("POST", "/memories/batch", {"memories": [{"memory": "x", "user_id": "anna"}]}),
                ("PUT", f"/memories/{ids[0]}", {"text": text(1001)}),
                ("POST", "/purge", None),
            ]:
                reply = arena.client.request(method, path, json=sent)
                assert told_to_make_room(reply), (method, path, reply.text)
            finds_all(arena, "anna", kept)
            assert arena.call("GET", "/status")["read_only"] is True
            # Forgetting needs no more room than the reserve.
            gone = ids.pop()
            arena.call("DELETE", f"/memories/{gone}")
            del kept[gone]
            finds_all(arena, "anna", kept)
        disk.clear()
        added = arena.add(text(2000), "anna")
        kept[added] = text(2000)
        finds_all(arena, "anna", kept)
        arena.stop()
        arena.start()
        finds_all(arena, "anna", kept)
        arena.stop()
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []


@mounting
def test_a_disk_filled_to_the_last_byte_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    """No reserve: SQLite itself meets the end of the disk. The server may die of it (the index
    writes into mapped files), but starts again and has everything."""
    with (
        small_disk(tmp_path / "disk", 160 * MIB) as disk,
        Arena(tmp_path, data=disk.path / "data", free_space_reserve=0) as arena,
    ):
        arena.start()
        ids = arena.add_many([text(n) for n in range(200)], "anna")
        kept = dict(zip(ids, map(text, range(200)), strict=True))
        n = 1000
        deaths = refused = 0
        for leave in (8 * MIB, 400_000, 100_000, 0, 0):
            disk.fill(leave)
            pending: Any = None
            for _ in range(60):
                n += 1
                pending = text(n)
                sent = {"messages": pending, "user_id": "anna", "metadata": {"filler": "x" * 9000}}
                try:
                    reply = arena.client.post("/memories", json=sent)
                except httpx.TransportError:
                    deaths += 1
                    break
                if reply.status_code == 200:
                    kept[reply.json()["results"][0]["id"]] = pending
                else:
                    assert told_to_make_room(reply), reply.text
                    refused += 1
                pending = None
            if arena.running:
                finds_all(arena, "anna", kept)
            arena.kill()
            disk.clear()
            arena.start()
            # What was on its way when the server died may be there.
            for memory in arena.listed("anna"):
                if memory["memory"] == pending:
                    kept[memory["id"]] = pending
            finds_all(arena, "anna", kept)
            until(arena.index_is_ready)
            finds_all(arena, "anna", kept)
        assert refused > 0
        arena.stop()
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []
        print(f"{deaths} deaths, {refused} refusals")


@mounting
def test_a_start_on_a_full_disk_works_or_says_what_to_do(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 160 * MIB) as disk,
        Arena(tmp_path, data=disk.path / "data", free_space_reserve=0) as arena,
    ):
        arena.start()
        ids = arena.add_many([text(n) for n in range(100)], "anna")
        kept = dict(zip(ids, map(text, range(100)), strict=True))
        for end in (arena.stop, arena.kill):
            end()
            disk.fill()
            server = arena.spawn()
            until(lambda: arena.paths.server_info.exists() or not arena.running)
            if not arena.running:
                # There may be no room even for its last words.
                assert server.poll() == 5, arena.output.read_text()
            else:
                arena.kill()
            disk.clear()
            arena.start()
            finds_all(arena, "anna", kept)
