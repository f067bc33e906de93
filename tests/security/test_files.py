"""Other users of the machine: what they could read, and where they could knock."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pikuri_memory import EmbeddedServer, discovery
from pikuri_memory.errors import AccessError
from pikuri_memory.paths import DataPaths

from .target import Target, leaks


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_server_listens_on_the_loopback_and_nowhere_else(target: Target) -> None:
    target.check()
    assert target.listening() == {("127.0.0.1", port) for port in target.ports}


def test_only_the_owner_may_read_anything_in_the_data_directory(target: Target) -> None:
    target.owner.post("/purge")
    root = target.paths.root
    assert mode(root) == 0o700
    assert mode(target.paths.api_key) == 0o600
    assert mode(target.paths.server_info) == 0o600
    found = list(root.rglob("*"))
    assert len(found) > 10
    for path in found:
        # Within a directory of 0700; those of ours are closed by themselves as well.
        assert not mode(path) & 0o077, f"{path.relative_to(root)} is {mode(path):o}"
        assert not path.is_symlink()


def test_a_wide_open_umask_opens_nothing(tmp_path: Path) -> None:
    """The server is started by whoever needs it first, with the umask that this one has."""
    script = (
        "import os, sys; os.umask(0)\n"
        "from pikuri_memory import EmbeddedServer\n"
        "with EmbeddedServer(port=0, data_dir=sys.argv[1]) as server:\n"
        "    server.client().add('Alice keeps a spare key', user_id='alice')\n"
    )
    data = tmp_path / "made" / "data"
    subprocess.run([sys.executable, "-c", script, str(data)], check=True, timeout=120)
    assert mode(data) == 0o700
    for path in data.rglob("*"):
        assert not mode(path) & 0o077, f"{path.relative_to(data)} is {mode(path):o}"


def test_another_user_cannot_read_a_single_file(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        # Only root may become somebody else; the modes are tested above.
        return
    # Not below tmp_path, whose parents may be closed to others, which would prove nothing.
    base = Path("/var/tmp") / f"pikuri-{os.getpid()}-{tmp_path.name}"
    base.mkdir(mode=0o755)
    base.chmod(0o755)
    try:
        (base / "readable").write_text("so that this test can fail")
        (base / "readable").chmod(0o644)
        with EmbeddedServer(port=0, data_dir=base / "data") as server:
            server.client().add("Alice keeps a spare key", user_id="alice")
            names = [str(path) for path in (base / "data").rglob("*")]
            script = (
                "import os, sys\n"
                "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                "for name in sys.argv[1:]:\n"
                "    try: open(name, 'rb') if not os.path.isdir(name) else os.listdir(name)\n"
                "    except PermissionError: continue\n"
                "    print('read', name)\n"
            )
            # Without the virtual environment, which may be closed to others too.
            other = ["env", "-i", os.path.realpath(sys.executable), "-S"]
            read = subprocess.run(
                [*other, "-c", script, str(base / "readable"), str(base / "data"), *names],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert read.stdout.splitlines() == [f"read {base / 'readable'}"]
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_a_key_file_that_others_may_read_is_no_key(target: Target) -> None:
    """Nobody gets in with it until its owner closed it again."""
    path = target.paths.api_key
    key = target.key
    try:
        path.chmod(0o644)
        os.utime(path)  # so that it is looked at again
        with pytest.raises(AccessError) as caught:
            discovery.read_api_key(target.paths)
        assert "chmod 600" in caught.value.hint
        target.await_shut(key)
        for tried in (key, ""):
            reply = target.stranger.get("/memories", headers={"X-API-Key": tried})
            assert reply.status_code in (401, 403)
            assert not leaks(reply.text)
    finally:
        path.chmod(0o600)
        os.utime(path)
        target.await_key(key)


def test_a_key_file_that_is_missing_or_empty_lets_nobody_in(target: Target) -> None:
    path = target.paths.api_key
    key = path.read_text()
    kept = path.with_name("kept-by-the-test")
    for empty in (False, True):
        path.rename(kept)
        if empty:
            path.touch(mode=0o600)
        try:
            target.await_shut(key.strip())
            for tried in ("", key.strip(), "None", "\n"):
                reply = target.ask("GET /memories", f"X-API-Key: {tried}\r\n".replace("\n\r", "\r"))
                assert reply[0] in (400, 401)
        finally:
            kept.rename(path)
            target.await_key(key.strip())


def test_no_secret_is_in_the_command_line_the_environment_or_the_logs(target: Target) -> None:
    for process in target.family():
        assert target.key not in " ".join(process.cmdline())
        assert target.key not in str(process.environ())
    for path in target.paths.logs.rglob("*"):
        assert target.key not in path.read_text()
    assert target.key not in target.paths.server_info.read_text()


def test_the_key_is_random_for_each_data_directory(tmp_path: Path, target: Target) -> None:
    with EmbeddedServer(port=0, data_dir=tmp_path / "other") as other:
        key = discovery.read_api_key(DataPaths.at(other.data_dir))
        assert key is not None
        assert len(key) >= 40
        assert key != target.key
        assert target.stranger.get("/memories", headers={"X-API-Key": key}).status_code == 401
