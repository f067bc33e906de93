"""What happens at the same time, in one process, and without a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pikuri_memory.embedded.model import SearchQuery
from tests.embedded.parts import ANNA, keep, open_engine


async def test_what_is_added_while_a_reset_runs_is_found_afterwards(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    try:
        await keep(engine, "likes tea")
        for n in range(5):
            texts = [f"number{n} thing{m}" for m in range(20)]
            await asyncio.gather(engine.reset(), *(keep(engine, text) for text in texts))
            listed, _ = engine.page(ANNA, limit=100)
            for memory in listed:
                hits = await engine.search(SearchQuery(memory.text, ANNA, top_k=1))
                assert [hit.memory.text for hit in hits] == [memory.text]
            assert engine.status()["index"]["state"] == "ready"
    finally:
        engine.close()


@pytest.mark.parametrize("first", ["purge", "reset"])
async def test_a_reset_while_a_rebuild_runs_leaves_an_index_that_works(
    tmp_path: Path, first: str
) -> None:
    engine = open_engine(tmp_path)
    try:
        await keep(engine, [f"likes thing{n}" for n in range(50)])
        rebuild = asyncio.ensure_future(engine.purge())
        await asyncio.sleep(0.05 if first == "purge" else 0)
        await engine.reset()
        await keep(engine, "likes tea")
        await asyncio.gather(rebuild, return_exceptions=True)  # it may find its work undone
        await keep(engine, "likes coffee")
        for text in ("likes tea", "likes coffee"):
            hits = await engine.search(SearchQuery(text, ANNA, top_k=1))
            assert [hit.memory.text for hit in hits] == [text]
    finally:
        engine.close()
    again = open_engine(tmp_path)
    try:
        assert again.status()["memories"] == 2
        assert len(list((tmp_path / "index").glob("generation-*"))) == 1
    finally:
        again.close()
