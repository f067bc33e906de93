"""No process of a whole session talks to any address but the loopback's, and of the user's models
to none but theirs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pikuri_memory import process
from tests.conftest import require
from tests.robustness.arena import ROOT
from tests.robustness.connections import SYSCALLS, addresses, outside
from tests.router.scripted import ScriptedRouter
from tests.temptations import TEMPTATIONS

NOWHERE = "192.0.2.1"
"""TEST-NET-1: no machine has such an address (RFC 5737). Nothing here sends anything to it."""


def traced(tmp_path: Path, *command: str) -> list[str]:
    """What strace wrote about a command and everything that it started, detached or not."""
    require("strace", "strace")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-o", str(trace), "-e", f"trace={SYSCALLS},execve"]
    if process.run(["strace", "-f", "true"], timeout=20, check=False).returncode != 0:
        pytest.skip("strace may not trace on this system")
    done = process.run(
        [*strace, *command], timeout=400, cwd=ROOT, env={**os.environ, **TEMPTATIONS}, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return trace.read_text(errors="replace").splitlines()


def test_row_12_a_whole_session_talks_to_the_loopback_only(tmp_path: Path) -> None:
    lines = traced(tmp_path, sys.executable, "-m", "tests.robustness.session", str(tmp_path))
    assert outside(lines) == []
    # Nor does a library keep something of its own about the user, as telemetry's device ids.
    home = Path(os.environ["HOME"])
    assert [path for path in home.rglob("*") if path.is_file()] == []
    # The trace has what it should: the server, its child that makes indexes, and their talk.
    started = [line for line in lines if "execve(" in line]
    for words in ('"serve"', '"pikuri_memory.embedded.rebuild"', '"search"'):
        assert any(words in line for line in started), words
    here = [found for line in lines for found in addresses(line)]
    assert len([host for call, host, _ in here if call == "connect"]) > 10
    assert {host for _, host, _ in here} == {"127.0.0.1"}, "nothing took the bait"


def test_a_session_with_a_router_talks_to_it_and_to_nobody_else(tmp_path: Path) -> None:
    with ScriptedRouter() as router:
        lines = traced(
            tmp_path,
            sys.executable,
            "-m",
            "tests.robustness.models_session",
            str(tmp_path),
            router.url,
        )
        assert router.count("chat") > 3
        assert {seen.headers["host"] for seen in router.seen()} == {
            router.url.removeprefix("http://")
        }
        assert not any("authorization" in seen.headers for seen in router.seen())
    assert outside(lines) == []
    home = Path(os.environ["HOME"])
    assert [path for path in home.rglob("*") if path.is_file()] == []
    here = [found for line in lines for found in addresses(line)]
    ports = [port for call, _, port in here if call == "connect"]
    assert ports.count(int(router.url.rpartition(":")[2])) > 3
    # A library of mem0's (urllib3) binds to ::1 to see whether there is IPv6, and sends nothing.
    assert {host for call, host, _ in here if call != "bind"} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("family", "address", "port"),
    [("AF_INET", NOWHERE, 9), ("AF_INET6", "2001:db8::1", 9), ("AF_INET", "127.0.0.1", 53)],
)
def test_a_planted_connection_is_seen(tmp_path: Path, family: str, address: str, port: int) -> None:
    """Connecting a datagram socket is the call that must be seen, and sends nothing."""
    planted = (
        "import contextlib, socket\n"
        "with contextlib.suppress(OSError):\n"
        f" socket.socket(socket.{family}, socket.SOCK_DGRAM).connect(({address!r}, {port}))"
    )
    # As the session does it: from a child that is detached.
    detached = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {planted!r}], start_new_session=True)"
    )
    lines = traced(tmp_path, sys.executable, "-c", detached)
    assert ("connect", address, port) in outside(lines)


@pytest.mark.parametrize(
    "line",
    [
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")}, 16'
        ") = -1 EINPROGRESS (Operation now in progress)",
        "7 connect(3, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0),"
        ' inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28 <unfinished ...>',
        '7 sendto(4, "..."..., 40, MSG_NOSIGNAL, {sa_family=AF_INET, sin_port=htons(53),'
        ' sin_addr=inet_addr("127.0.0.53")}, 16) = 40',
        "7 sendmsg(4, {msg_name={sa_family=AF_INET, sin_port=htons(9),"
        ' sin_addr=inet_addr("192.0.2.1")}, msg_namelen=16, msg_iov=...}, 0) = 1',
        "7 sendmmsg(4, [{msg_hdr={msg_name={sa_family=AF_INET, sin_port=htons(9),"
        ' sin_addr=inet_addr("192.0.2.1")}, msg_namelen=16}}], 1, 0) = 1',
        '7 bind(3, {sa_family=AF_INET, sin_port=htons(8888), sin_addr=inet_addr("0.0.0.0")}, 16)',
        "7 connect(3, {sa_family=AF_INET6, sin6_port=htons(1), inet_pton(AF_INET6,"
        ' "::ffff:192.0.2.1", &sin6_addr)}, 28) = 0',
        "7 connect(3, {sa_family=AF_VSOCK, svm_cid=0x2, svm_port=0x1}, 16) = 0",
        "7 connect(3, {sa_family=AF_INET, sa_data=...}, 16) = 0",
    ],
)
def test_the_reader_of_traces_sees_what_leaves(line: str) -> None:
    assert outside([line]) != []


@pytest.mark.parametrize(
    "line",
    [
        "7 connect(3, {sa_family=AF_INET, sin_port=htons(80),"
        ' sin_addr=inet_addr("127.1.2.3")}, 16) = 0',
        '7 connect(3, {sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "::1",'
        " &sin6_addr)}, 28) = 0",
        '7 connect(3, {sa_family=AF_UNIX, sun_path="/run/nscd/socket"}, 110) = -1 ENOENT',
        "7 sendto(3, [{nlmsg_len=20}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12) = 20",
        '7 sendto(6, "GET / HTTP/1.1", 14, 0, NULL, 0) = 14',
        '7 execve("/bin/true", ["true", "sa_family=AF_INET"], 0x1) = 0',
    ],
)
def test_the_reader_of_traces_sees_what_stays(line: str) -> None:
    assert outside([line]) == []
