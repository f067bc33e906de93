"""The same stack on a rootless engine, with the supervisor as its user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.router.scripted import ScriptedRouter, remembers
from tests.stack import images
from tests.stack.conftest import BUNDLE, Upstream, bundle

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "docker_engine.sh"
USER = "pikuri-rootless"


def script(verb: str) -> str:
    done = subprocess.run(
        ["bash", str(SCRIPT), verb], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def socket(engine_ready: None) -> Iterator[Path]:
    """The rootless daemon's, which has the base images."""
    if os.geteuid() != 0:
        pytest.skip("only root can make the user of a rootless engine")
    script("rootless-start")
    try:
        path = Path(script("rootless-env").split("unix://")[1].split()[0])
        images.copy(path)
        yield path
    finally:
        script("rootless-stop")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user's."""
    path = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    shutil.chown(path, USER, USER)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_an_ordinary_user_has_a_stack_on_a_rootless_engine(
    socket: Path, upstream: Upstream, router: ScriptedRouter, home: Path, tmp_path: Path
) -> None:
    # git takes no repository of another user's.
    mine = home / "upstream"
    shutil.copytree(upstream.url, mine)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(mine)], check=True)
    router.answer = remembers("The key lies under the flowerpot")
    account = pwd.getpwnam(USER)
    # The tests' Python may lie where only root looks; nothing else is more than the user's.
    reads = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    command = [
        *("setpriv", "--reuid", str(account.pw_uid), "--regid", str(account.pw_gid)),
        *("--clear-groups", *reads, sys.executable, "-m", "tests.stack.rootless_user"),
        *(str(home / "stack"), router.url, str(mine), upstream.ref),
    ]
    environment = {
        "HOME": account.pw_dir,
        "USER": USER,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}",
        "XDG_RUNTIME_DIR": str(socket.parent),
        "DOCKER_HOST": f"unix://{socket}",
        **{name: value for name, value in os.environ.items() if name.startswith("PIKURI_TEST")},
    }
    if path := bundle():
        environment[BUNDLE] = path
    done = subprocess.run(
        command,
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert told["found"] == told["again"] == ["The key lies under the flowerpot"]
    # Root inside is the user outside: nothing that the user could not remove.
    assert told["sidecar"] == "0"
    assert told["owners"] == [USER]
    assert told["left"] == told["left again"] == []
