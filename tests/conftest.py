"""What every test gets: an isolated environment, and the promise that no process is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

MARKER = "PIKURI_TEST_SESSION"
REQUIRE_ALL = "PIKURI_REQUIRE_ALL"
LEFT_SECONDS = "PIKURI_LEFT_SECONDS"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")
# Helpers of multiprocessing live as long as the process that used them.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def require(command: str, package: str) -> None:
    """Skip the test when a program is missing; with ``PIKURI_REQUIRE_ALL=1`` that is a failure.

    Args:
        command: The program.
        package: The Debian package that has it.
    """
    if shutil.which(command) is None:
        pytest.skip(f"{command} is missing (apt install {package})")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get(REQUIRE_ALL) != "1" or report.outcome != "skipped":
        return
    if hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{REQUIRE_ALL}=1 allows no skip: {reason}"


@pytest.fixture(autouse=True, scope="session")
def no_process_left() -> Iterator[None]:
    """Fail when a process that a test started is still there after the last one."""
    mark = uuid.uuid4().hex
    os.environ[MARKER] = mark
    yield
    end = time.monotonic() + float(os.environ.get(LEFT_SECONDS, "10"))
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        told = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                told.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
                process.kill()
        pytest.fail("tests left processes behind:\n" + "\n".join(told), pytrace=False)


def _marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited this session's mark (this one set it after its start)."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) != mark:
                continue
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(helper in " ".join(process.cmdline()) for helper in _HELPERS):
                continue
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home and XDG directories of its own; no setting and no proxy of the user's."""
    for name in list(os.environ):
        if name.startswith(("PIKURI_MEMORY_", "OPENAI_", "OPENROUTER_")):
            monkeypatch.delenv(name)
        if name.lower() in _PROXIES:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    runtime = tmp_path / "runtime"
    home.mkdir()
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
