"""Removing a data directory, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pikuri_memory import discovery, lease
from pikuri_memory.errors import DataDirectoryInUseError, InvalidRequestError
from pikuri_memory.lease import ExclusiveLock, Lease
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import removal
from pikuri_memory.waiting import Deadline


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    """A directory with one of everything."""
    paths = DataPaths.at(tmp_path / "memory")
    lease.prepare(paths)
    discovery.ensure_api_key(paths)
    paths.record.write_text("record")
    paths.record.with_name(paths.record.name + "-wal").write_text("wal")
    (paths.root / ".api-key.0123456789ab").write_text("left by a crash")
    (paths.index / "part").mkdir(parents=True)
    (paths.index / "part" / "file").write_text("x")
    paths.server_log.write_text("log")
    return paths


def test_all_of_ours_goes_and_the_directory_with_it(paths: DataPaths) -> None:
    done = removal.destroy(paths, timeout=5)
    assert "memories.sqlite3-wal" in done.names
    assert (done.left, done.stopped) == ((), False)
    assert not paths.root.exists()
    assert paths.root.parent.exists()


def test_what_is_not_ours_stays(paths: DataPaths) -> None:
    (paths.root / "notes.txt").write_text("mine")
    (paths.root / "memories.sqlite3.bak").write_text("mine")
    done = removal.destroy(paths, timeout=5)
    assert done.left == ("memories.sqlite3.bak", "notes.txt")
    assert sorted(path.name for path in paths.root.iterdir()) == list(done.left)


def test_links_are_removed_and_never_followed(paths: DataPaths, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (paths.index / "part" / "link").symlink_to(precious)
    (paths.root / "memories.sqlite3-shm").symlink_to(precious / "file")
    paths.keep_marker.symlink_to(precious)
    removal.destroy(paths, timeout=5)
    assert not paths.root.exists()
    assert (precious / "file").read_text() == "mine"


def test_a_link_to_a_data_directory_is_refused(paths: DataPaths, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(paths.root)
    with pytest.raises(InvalidRequestError) as caught:
        removal.destroy(DataPaths.at(link), timeout=5)
    assert str(paths.root) in caught.value.hint
    assert paths.record.exists()


def test_another_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "logs").mkdir()
    for name in ("other", "missing"):
        with pytest.raises(InvalidRequestError):
            removal.destroy(DataPaths.at(tmp_path / name), timeout=5)
    assert (tmp_path / "other" / "logs").is_dir()


def test_nothing_is_removed_while_somebody_holds_it(paths: DataPaths) -> None:
    owner = ExclusiveLock(paths.owner_lock)
    share = Lease.acquire(paths, deadline=Deadline(5), what="a test")
    try:
        with pytest.raises(DataDirectoryInUseError, match="pid"):
            removal.destroy(paths, timeout=5)
        share.release()
        with owner:
            owner.try_acquire()
            with pytest.raises(DataDirectoryInUseError, match="pid"):
                removal.destroy(paths, timeout=5)
    finally:
        share.release()
    assert paths.record.exists()
    assert paths.api_key.exists()
