"""What every test gets: skips that can be forbidden, an environment of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pikuri_memory import process
from pikuri_memory.waiting import Deadline, wait_for

CONFTEST = Path(__file__).with_name("conftest.py")
SUITE = """
import os
import subprocess
import sys
import pytest
from conftest import require

def test_needs_a_program():
    require("no-such-program-9", "no-such-package")

def test_has_a_program():
    require("true", "coreutils")

@pytest.mark.skip(reason="on principle")
def test_is_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail():
    assert False

def test_environment():
    assert "https_proxy" not in os.environ
    assert "PIKURI_MEMORY_PORT" not in os.environ
    assert os.environ["HOME"] != "/somewhere"
"""


def suite(directory: Path, text: str, **variables: str) -> process.Completed:
    (directory / "conftest.py").write_text(CONFTEST.read_text())
    (directory / "test_suite.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment.pop("PIKURI_REQUIRE_ALL", None)
    return process.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(directory)],
        timeout=120,
        cwd=directory,
        env={**environment, **variables},
        check=False,
    )


def test_a_missing_program_skips_with_its_reason(tmp_path: Path) -> None:
    done = suite(tmp_path, SUITE, HOME="/somewhere", https_proxy="http://x", PIKURI_MEMORY_PORT="1")
    assert "2 passed, 2 skipped, 1 xfailed" in done.stdout
    assert "no-such-program-9 is missing (apt install no-such-package)" in done.stdout


def test_where_everything_is_required_a_skip_is_a_failure(tmp_path: Path) -> None:
    done = suite(tmp_path, SUITE, PIKURI_REQUIRE_ALL="1")
    assert "1 failed, 2 passed, 1 xfailed, 1 error" in done.stdout
    assert "PIKURI_REQUIRE_ALL=1 allows no skip: " in done.stdout
    assert "on principle" in done.stdout


@pytest.mark.parametrize("call", ["pytest.skip('all', allow_module_level=True)"])
def test_where_everything_is_required_a_skipped_module_is_a_failure(
    tmp_path: Path, call: str
) -> None:
    done = suite(tmp_path, f"import pytest\n{call}", PIKURI_REQUIRE_ALL="1")
    assert done.returncode not in (0, 5)
    assert "allows no skip" in done.stdout


def test_a_process_that_a_test_leaves_behind_is_ended_and_a_failure(tmp_path: Path) -> None:
    left = tmp_path / "left"
    program = (
        "import subprocess, sys\n"
        "def test_leaves():\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    started = subprocess.Popen(command, start_new_session=True)\n"
        f"    open({str(left)!r}, 'w').write(str(started.pid))\n"
    )
    done = suite(tmp_path, program, PIKURI_LEFT_SECONDS="0.2")
    assert "tests left processes behind" in done.stdout
    assert done.returncode == 1
    wait_for(
        lambda: process.identify(int(left.read_text())) is None or None,
        Deadline(30),
        what="its end",
        hint="see the test",
    )
