"""Where the tests fetch mem0 from: a local git repository that stands in for upstream.

No code host is reachable where the tests run. So the repository is made: the library is the real
one, from the source distribution of 2.0.4 on PyPI, which is the pin's to the byte; the server is
``upstream_server``, written for the tests, with the lines that the patches change. The pin's own
patch files are used on it, unmodified.

With ``PIKURI_MEM0_REPO=<path of a mirror>`` the same tests use mem0's repository at the pin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

VERSION: Final = "2.0.4"
SERVER: Final = Path(__file__).parent / "upstream_server"

_WHO = {
    "GIT_AUTHOR_NAME": "upstream",
    "GIT_AUTHOR_EMAIL": "upstream@example.invalid",
    "GIT_AUTHOR_DATE": "2026-05-30T14:46:56+00:00",
    "GIT_COMMITTER_NAME": "upstream",
    "GIT_COMMITTER_EMAIL": "upstream@example.invalid",
    "GIT_COMMITTER_DATE": "2026-05-30T14:46:56+00:00",
    # Neither the user's settings nor the system's: the same commit on every machine.
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def make(directory: Path) -> str:
    """Make the stand-in's repository; its commit, which depends on its content alone."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source_distribution()) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if member.isfile() and member.name != "PKG-INFO":
                archive.extract(member, directory, filter="data")
    shutil.copytree(
        SERVER,
        directory / "server",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    git(directory, "init", "--quiet", "--initial-branch", "main")
    git(directory, "add", "--all", "--force")
    git(directory, "commit", "--quiet", "--message", f"mem0ai {VERSION} and a server for tests")
    return git(directory, "rev-parse", "HEAD").strip()


def git(directory: Path, *arguments: str) -> str:
    """A git command in a directory; its output."""
    done = subprocess.run(
        ["git", "-C", str(directory), "-c", "core.autocrlf=false", *arguments],
        env={**os.environ, **_WHO},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def source_distribution() -> Path:
    """mem0ai's source archive from PyPI, fetched once for this machine."""
    kept = Path(tempfile.gettempdir()) / f"pikuri-test-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    assert kept.stat().st_uid == os.getuid()
    archive = kept / f"mem0ai-{VERSION}.tar.gz"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=kept) as name:
            fetch = ("download", "--quiet", "--no-deps", "--no-binary", "mem0ai", "--dest", name)
            subprocess.run(
                [sys.executable, "-m", "pip", *fetch, f"mem0ai=={VERSION}"],
                check=True,
                capture_output=True,
            )
            # At once: another test process may be looking.
            (Path(name) / archive.name).replace(archive)
    return archive


if __name__ == "__main__":
    sys.stdout.write(f"{make(Path(sys.argv[1]))}\n")
