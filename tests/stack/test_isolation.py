"""The seal: what a container of the stack can reach, what the host opens, who a process is."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pikuri_memory import Mem0Server
from pikuri_memory.discovery import read_api_key
from pikuri_memory.paths import DataPaths
from pikuri_memory.stack.credentials import Secrets
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack import conftest as world
from tests.stack.conftest import Upstream, alone, container, docker
from tests.stack.ollama import LLM, ollama

SERVICES = ("mem0", "qdrant", "router-proxy", "front")
EXPLORE = """
import json, socket, sys
found = {}
for name, address, port in json.load(sys.stdin):
    try:
        with socket.create_connection((address, port), 3):
            found[name] = "open"
    except OSError as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""
DRIVERS = """
import importlib.util, json, sys
print(json.dumps([name for name in json.load(sys.stdin) if importlib.util.find_spec(name)]))
"""
ROUTES = """
import json
rows = [line.split() for line in open("/proc/net/route").read().splitlines()[1:]]
six = [line.split() for line in open("/proc/net/ipv6_route").read().splitlines()]
print(json.dumps({
    "default": [row[0] for row in rows if row[1] == "00000000"],
    "beyond": [row[0] for row in rows if row[2] != "00000000"],
    "six": [row[9] for row in six if row[9] != "lo" and row[1] == "00"],
}))
"""


@pytest.fixture(scope="module")
def models() -> Iterator[ScriptedRouter]:
    with ollama() as running:
        yield running


@pytest.fixture(scope="module")
def stack(engine_ready: None, upstream: Upstream, models: ScriptedRouter) -> Iterator[Mem0Server]:
    """One stack for all tests of this module; none of them changes it."""
    home = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    try:
        with alone("engine", shared=True), pytest.MonkeyPatch.context() as patch:
            if path := world.bundle():
                patch.setenv(world.BUNDLE, path)
            with Mem0Server(**world.arguments(upstream, models.url, home)) as server:
                yield server
            world.clean(server.data_dir)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def listening(address: str) -> Iterator[int]:
    """A service of the host's that says hello; its port."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen(16)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def inside(server: Mem0Server, service: str, script: str, given: object = None) -> Any:
    """What a script says in the container of mem0 or Qdrant."""
    python = "/opt/mem0/bin/python" if service == "mem0" else "python3"
    # Given as an argument: docker's client reads no standard input here.
    script = script.replace("json.load(sys.stdin)", f"json.loads({json.dumps(given)!r})")
    return json.loads(docker("exec", container(server, service), python, "-c", script))


def inspect(server: Mem0Server, service: str) -> dict[str, Any]:
    shown: list[dict[str, Any]] = json.loads(docker("inspect", container(server, service)))
    return shown[0]


# ------------------------------------------------------------------ what it is made of


def test_row_7_nothing_in_the_stack_is_or_asks_for_postgres(stack: Mem0Server) -> None:
    label = f"label=com.docker.compose.project={world.project_of(stack)}"
    shape = '{{.Label "com.docker.compose.service"}}'
    assert sorted(docker("ps", "--filter", label, "--format", shape).split()) == sorted(SERVICES)
    for service in SERVICES:
        shown = inspect(stack, service)["Config"]
        assert "postgres" not in json.dumps([shown["Image"], shown["Env"]]).lower(), service
    drivers = ["psycopg", "psycopg2", "asyncpg", "pg8000", "pgvector"]
    assert inside(stack, "mem0", DRIVERS, drivers) == []
    [accounts] = stack.data_dir.glob("history/app.db")
    with contextlib.closing(sqlite3.connect(f"file:{accounts}?mode=ro", uri=True)) as tables:
        names = {name for (name,) in tables.execute("select name from sqlite_master")}
    assert {"users", "api_keys", "settings"} <= names


# ------------------------------------------------------------------ what it can reach


def test_row_9_from_inside_the_router_answers_and_nothing_else_of_the_host_does(
    stack: Mem0Server, models: ScriptedRouter
) -> None:
    addresses = {
        row.address
        for rows in psutil.net_if_addrs().values()
        for row in rows
        if row.family == socket.AF_INET and not row.address.startswith("127.")
    }
    with listening("0.0.0.0") as everywhere, listening("127.0.0.1") as loopback:
        # So that the test can fail: the host itself reaches them.
        for address, port in (("127.0.0.1", everywhere), ("127.0.0.1", loopback)):
            socket.create_connection((address, port), 3).close()
        tried: list[tuple[str, str, int]] = [
            ("router", "router-proxy.internal", 8080),
            ("qdrant", "qdrant", 6333),
            ("loopback", "127.0.0.1", loopback),
            ("router on the loopback", "127.0.0.1", models.port),
            ("another loopback", "127.66.66.66", everywhere),
            ("by name", "host.docker.internal", everywhere),
            ("by the usual name", "gateway.docker.internal", everywhere),
        ]
        # The bridges' gateways are among them, and the machine's own address.
        tried += [(address, address, everywhere) for address in sorted(addresses)]
        for network in inspect(stack, "mem0")["NetworkSettings"]["Networks"].values():
            first = network["IPAddress"].rpartition(".")[0] + ".1"
            tried.append(("first of the network", first, everywhere))
        found = inside(stack, "mem0", EXPLORE, tried)
    assert {name for name, state in found.items() if state == "open"} == {"router", "qdrant"}


@pytest.mark.parametrize("service", ["mem0", "qdrant"])
def test_from_inside_no_route_leads_out(stack: Mem0Server, service: str) -> None:
    """Asked of the routing table: nothing is sent to anybody to find out."""
    routes = inside(stack, service, ROUTES)
    assert routes == {"default": [], "beyond": [], "six": []}


def test_the_sealed_network_has_no_address_on_the_host(stack: Mem0Server) -> None:
    networks = inspect(stack, "mem0")["NetworkSettings"]["Networks"]
    [(name, network)] = networks.items()
    shown = json.loads(docker("network", "inspect", name))[0]
    assert shown["Internal"] is True
    options = shown["Options"]
    assert options["com.docker.network.bridge.gateway_mode_ipv4"] == "isolated"
    assert not network["Gateway"]
    bridge = f"br-{shown['Id'][:12]}"
    assert not [
        row.address for row in psutil.net_if_addrs()[bridge] if row.family == socket.AF_INET
    ]
    members = {each["Name"].rsplit("-", 2)[-2] for each in shown["Containers"].values()}
    assert members == {"mem0", "qdrant", "proxy", "front"}


def test_only_the_front_is_at_the_door(stack: Mem0Server) -> None:
    doors = {
        service: [name.rpartition("_")[2] for name in _networks(stack, service)]
        for service in SERVICES
    }
    assert sorted(doors.pop("front")) == ["door", "sealed"]
    assert set(map(tuple, doors.values())) == {("sealed",)}


def _networks(server: Mem0Server, service: str) -> list[str]:
    return list(inspect(server, service)["NetworkSettings"]["Networks"])


def test_only_the_sidecar_has_the_socket(stack: Mem0Server) -> None:
    for service in SERVICES:
        mounts = {mount["Source"] for mount in inspect(stack, service)["Mounts"]}
        assert (str(stack.sock_dir) in mounts) == (service == "router-proxy"), service


# ------------------------------------------------------------------ what the host opens


def test_the_host_listens_on_127_0_0_1_alone(stack: Mem0Server) -> None:
    published: set[tuple[str, int]] = set()
    for service in SERVICES:
        ports = inspect(stack, service)["NetworkSettings"]["Ports"] or {}
        bound = [row for rows in ports.values() for row in rows or []]
        assert (service == "front") == bool(bound)
        published |= {(row["HostIp"], int(row["HostPort"])) for row in bound}
    assert {address for address, _ in published} == {"127.0.0.1"}
    assert stack.port in {port for _, port in published}
    assert len(published) == 2
    numbers = {port for _, port in published}
    listeners = {
        row.laddr.ip
        for row in psutil.net_connections("inet")
        if row.status == psutil.CONN_LISTEN and row.laddr and row.laddr.port in numbers
    }
    assert listeners == {"127.0.0.1"}


def test_the_store_s_port_wants_its_key_and_no_web_page_may_read_it(stack: Mem0Server) -> None:
    ports = inspect(stack, "front")["NetworkSettings"]["Ports"]
    url = f"http://127.0.0.1:{ports['6333/tcp'][0]['HostPort']}"
    with httpx.Client(base_url=url, trust_env=False) as page:
        page.headers["Origin"] = "http://evil.example"
        for headers in ({}, {"api-key": "wrong"}):
            reply = page.get("/collections", headers=headers)
            assert reply.status_code in (401, 403)
            assert not [name for name in reply.headers if name.startswith("access-control")]
        key = Secrets.at(DataPaths.at(stack.data_dir)).qdrant_key.read_text().strip()
        reply = page.get("/collections", headers={"api-key": key})
        assert reply.json()["result"]["collections"] == [{"name": Mem0Server.DEFAULT_COLLECTION}]
        assert not [name for name in reply.headers if name.startswith("access-control")]


# ------------------------------------------------------------------ who a process is


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_power(stack: Mem0Server, service: str) -> None:
    status = docker("exec", container(stack, service), "cat", "/proc/1/status")
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(values[kind], 16) == 0, kind
    assert values["NoNewPrivs"].strip() == "1"
    user = values["Uid"].split()
    assert len(set(user)) == 1
    if service != "router-proxy":
        assert user[0] != "0"
    for path in ("/x", "/usr/x", "/etc/passwd", "/opt/x", "/app/x"):
        tried = docker("exec", container(stack, service), "touch", path, check=False)
        assert tried == "", path
    shown = inspect(stack, service)["HostConfig"]
    assert shown["ReadonlyRootfs"] is True
    assert shown["Privileged"] is False
    assert 0 < shown["Memory"] <= 2 * 2**30
    assert 0 < shown["PidsLimit"] <= 2000
    assert shown["LogConfig"]["Config"]["max-file"] == "3"
    assert shown["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}


def test_no_secret_is_in_an_inspection_a_command_line_or_a_log(
    stack: Mem0Server, models: ScriptedRouter
) -> None:
    paths = DataPaths.at(stack.data_dir)
    files = Secrets.at(paths)
    secrets = [path.read_text().strip() for path in (files.admin_key, files.jwt, files.qdrant_key)]
    assert read_api_key(paths) in secrets
    assert all(len(secret) >= 32 for secret in secrets)
    models.answer = remembers("The spare key lies under the blue flowerpot.")
    with stack.client() as memory:
        memory.add("My spare key lies under the blue flowerpot.", user_id="ada")
        memory.search("blue flowerpot", user_id="ada")
    told = []
    for service in SERVICES:
        told.append(docker("inspect", container(stack, service)))
        told.append(docker("logs", container(stack, service)))
        told.append(docker("top", container(stack, service), "-eo", "pid,args"))
    told += [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    for secret in secrets:
        assert not [text[:80] for text in told if secret in text]
    # No memory in a log either.
    assert not [text[:80] for text in told if "flowerpot" in text]
    environment = inspect(stack, "mem0")["Config"]["Env"]
    assert f"MEM0_DEFAULT_LLM_MODEL={LLM}" in environment
    assert "MEM0_TELEMETRY=False" in environment


def test_every_service_says_whose_it_is(stack: Mem0Server) -> None:
    for service in SERVICES:
        labels = inspect(stack, service)["Config"]["Labels"]
        assert labels["pikuri-internal.data-dir"] == str(stack.data_dir)
        assert labels["pikuri-internal.uid"].isdigit()
