"""Reading the server's log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pikuri_memory import lease
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import logs


def prepared(tmp_path: Path) -> DataPaths:
    paths = DataPaths.at(tmp_path / "memory")
    lease.prepare(paths)
    return paths


def test_the_last_lines_reach_back_into_rotated_files(tmp_path: Path) -> None:
    paths = prepared(tmp_path)
    for name, text in (("server.log.2", "a\n"), ("server.log.1", "b\n"), ("server.log", "c\nd\n")):
        (paths.logs / name).write_text(text)
    assert logs.last_lines(paths, 3) == ["b", "c", "d"]
    assert logs.last_lines(paths, 0) == []
    assert logs.last_lines(paths, 99) == ["a", "b", "c", "d"]


def test_without_a_log_the_last_output_is_shown(tmp_path: Path) -> None:
    paths = prepared(tmp_path)
    assert logs.last_lines(paths, 5) == []
    paths.output_log.write_text("it failed\n")
    assert logs.last_lines(paths, 5) == ["it failed"]


def test_new_lines_are_followed_across_a_rotation(tmp_path: Path) -> None:
    paths = prepared(tmp_path)
    paths.server_log.write_text("old\n")

    def rotate() -> None:
        append(paths.server_log, "three\n")
        paths.server_log.rename(paths.logs / "server.log.1")
        append(paths.server_log, "four\n")

    steps: Iterator[Callable[[], None]] = iter(
        [
            lambda: append(paths.server_log, "one\ntw"),
            lambda: append(paths.server_log, "o\n"),
            rotate,
        ]
    )
    following = logs.follow(paths, pause=lambda seconds: next(steps)())
    assert [next(following) for _ in range(4)] == ["one", "two", "three", "four"]
    following.close()


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    paths = prepared(tmp_path)
    following = logs.follow(paths, pause=lambda seconds: append(paths.server_log, "first\n"))
    assert next(following) == "first"
    following.close()


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)
