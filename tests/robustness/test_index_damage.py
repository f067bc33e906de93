"""The index may be damaged in any way while no server runs: it starts and finds everything."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.arena import Arena, files_with, until
from tests.robustness.load_client import CANARY

MEMORIES = 120


def text(n: int) -> str:
    return f"{CANARY} number{n} likes thing{n} and other{n % 7}"


def files(index: Path) -> list[Path]:
    """The files of the shard, the empty ones left out."""
    return [p for p in sorted(index.glob("generation-*/**/*")) if p.is_file() and p.stat().st_size]


def truncate_some(index: Path) -> None:
    for path in random.Random(1).sample(files(index), 12):
        os.truncate(path, path.stat().st_size // 2)


def truncate_all_to_nothing(index: Path) -> None:
    for path in files(index):
        os.truncate(path, 0)


def truncate_the_largest_by_a_byte(index: Path) -> None:
    path = max(files(index), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size - 1)


def overwrite_all(index: Path) -> None:
    for path in files(index):
        path.write_bytes(os.urandom(min(path.stat().st_size, 65536)))


def overwrite_all_of_the_same_size(index: Path) -> None:
    for path in files(index):
        with open(path, "r+b") as file:
            file.write(os.urandom(min(path.stat().st_size, 65536)))


def overwrite_trackers_of_the_same_size(index: Path) -> None:
    # The engine panics, which is no ordinary exception, or finds nothing.
    for path in files(index):
        if path.name == "tracker.dat":
            with open(path, "r+b") as file:
                file.write(os.urandom(65536))


def zero_the_vectors(index: Path) -> None:
    for path in files(index):
        if path.suffix == ".mmap":
            size = path.stat().st_size
            os.truncate(path, 0)
            os.truncate(path, size)


def flip_a_bit(index: Path) -> None:
    path = next(path for path in files(index) if path.suffix == ".mmap")
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


def remove_some_files(index: Path) -> None:
    for path in random.Random(2).sample(files(index), 5):
        path.unlink()


def add_files(index: Path) -> None:
    (index / "generation-000042").mkdir()
    (index / "generation-000042" / "segment.json").write_text("{}")
    (index / "generation-43").write_text("no directory")
    (index / ".current.json.0123456789ab").write_text("left by a crash")
    (files(index)[0].parent / "another").write_text("more than there was")


def empty_the_directory(index: Path) -> None:
    shutil.rmtree(index)
    index.mkdir()


def remove_the_directory(index: Path) -> None:
    shutil.rmtree(index)


def put_a_file_in_its_place(index: Path) -> None:
    shutil.rmtree(index)
    index.write_bytes(os.urandom(1000))


def put_a_dead_link_in_its_place(index: Path) -> None:
    shutil.rmtree(index)
    index.symlink_to(index.parent / "nowhere")


def put_files_in_place_of_generations(index: Path) -> None:
    for path in index.glob("generation-*"):
        shutil.rmtree(path)
        path.write_text("garbage")


def remove_the_pointer(index: Path) -> None:
    (index / "current.json").unlink()


def overwrite_the_pointer(index: Path) -> None:
    (index / "current.json").write_bytes(os.urandom(300))


def truncate_the_pointer(index: Path) -> None:
    os.truncate(index / "current.json", 40)


def nest_the_pointer(index: Path) -> None:
    (index / "current.json").write_text("[" * 100_000)


def put_a_directory_in_place_of_the_pointer(index: Path) -> None:
    (index / "current.json").unlink()
    (index / "current.json").mkdir()
    (index / "current.json" / "x").write_text("")


def point_to(name: object) -> Callable[[Path], None]:
    def damage(index: Path) -> None:
        pointer = index / "current.json"
        state = json.loads(pointer.read_text())
        pointer.write_text(json.dumps({**state, "directory": name}))

    damage.__name__ = f"point_to_{name}"
    return damage


def lie_about_the_files(index: Path) -> None:
    """Everything empty, and a pointer that says that this is right."""
    truncate_all_to_nothing(index)
    pointer = index / "current.json"
    state = json.loads(pointer.read_text())
    if state["clean"] is not None:
        state["clean"]["files"] = {name: [0, 0] for name in state["clean"]["files"]}
        pointer.write_text(json.dumps(state))


DAMAGES: list[Callable[[Path], None]] = [
    truncate_some,
    truncate_all_to_nothing,
    truncate_the_largest_by_a_byte,
    overwrite_all,
    overwrite_all_of_the_same_size,
    overwrite_trackers_of_the_same_size,
    zero_the_vectors,
    flip_a_bit,
    remove_some_files,
    add_files,
    empty_the_directory,
    remove_the_directory,
    put_a_file_in_its_place,
    put_a_dead_link_in_its_place,
    put_files_in_place_of_generations,
    remove_the_pointer,
    overwrite_the_pointer,
    truncate_the_pointer,
    nest_the_pointer,
    put_a_directory_in_place_of_the_pointer,
    point_to("generation-0000000000000000"),
    point_to("../../../../etc"),
    point_to("generation-.."),
    point_to("generation-\0"),
    point_to(7),
    lie_about_the_files,
]
AFTER_A_KILL = [
    truncate_some,
    overwrite_all,
    empty_the_directory,
    remove_the_directory,
    overwrite_the_pointer,
    lie_about_the_files,
]


def finds_all(arena: Arena, texts: dict[str, str]) -> None:
    assert {m["id"]: m["memory"] for m in arena.listed("anna")} == texts
    for id_, each in list(texts.items())[::5]:
        assert arena.search(each, "anna", top_k=1)[0]["id"] == id_
        assert arena.search(f"likes {each.split()[3]}", "anna", top_k=1)[0]["id"] == id_


def survives(arena: Arena, texts: dict[str, str], *, clean: bool) -> None:
    """The server starts, finds everything, takes changes, and has an index again."""
    arena.start()
    finds_all(arena, texts)
    until(arena.index_is_ready)
    finds_all(arena, texts)
    gone, changed = list(texts)[:2]
    arena.call("DELETE", f"/memories/{gone}")
    del texts[gone]
    texts[changed] += " anew"
    arena.call("PUT", f"/memories/{changed}", json={"text": texts[changed]})
    added = text(1000 + len(os.listdir(arena.directory)) + random.randrange(10**9))
    texts[arena.add(added, "anna")] = added
    finds_all(arena, texts)
    assert len(list(arena.paths.index.glob("generation-*"))) == 1
    assert sorted(arena.paths.index.glob(".*")) == []
    if clean:
        arena.stop()
    else:
        arena.kill()


@pytest.mark.parametrize(
    ("damages", "clean"),
    [(DAMAGES[0::3], True), (DAMAGES[1::3], True), (DAMAGES[2::3], True), (AFTER_A_KILL, False)],
    ids=["clean-stop-1", "clean-stop-2", "clean-stop-3", "after-a-kill"],
)
def test_a_damaged_index_is_made_anew_and_everything_is_found(
    tmp_path: Path, damages: list[Callable[[Path], None]], clean: bool
) -> None:
    with Arena(tmp_path) as arena:
        arena.start()
        ids = arena.add_many([text(n) for n in range(MEMORIES)], "anna")
        texts = dict(zip(ids, map(text, range(MEMORIES)), strict=True))
        if clean:
            arena.stop()
        else:
            arena.kill()
        for damage in damages:
            damage(arena.paths.index)
            try:
                survives(arena, texts, clean=clean)
            except Exception as error:
                error.add_note(f"after: {damage.__name__}")
                raise
        assert files_with(arena.paths.logs, [CANARY.encode()]) == []


def test_an_index_of_a_clean_stop_is_used_again_and_one_of_a_crash_is_not(tmp_path: Path) -> None:
    with Arena(tmp_path) as arena:
        arena.start()
        arena.add_many([text(n) for n in range(MEMORIES)], "anna")
        arena.stop()
        before = sorted(arena.paths.index.glob("generation-*"))
        arena.start()
        assert arena.index_is_ready()
        assert sorted(arena.paths.index.glob("generation-*")) == before
        arena.kill()
        arena.start()
        until(arena.index_is_ready)
        assert sorted(arena.paths.index.glob("generation-*")) != before
        arena.stop()
