"""What docker says and what that means: with programs that say it, as processes on PATH."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pikuri_memory.errors import (
    EngineAccessError,
    EngineDownError,
    EngineTooOldError,
    MissingToolError,
    PikuriMemoryError,
    SettingError,
    StackError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.mem0 import Mem0Server
from pikuri_memory.stack import compose, credentials, engine, plan
from pikuri_memory.stack.compose import Compose, Service, Surroundings
from pikuri_memory.stack.engine import Engine

INFO = {
    "ServerVersion": "28.5.2",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "MemoryLimit": True,
    "PidsLimit": True,
}
Says = Callable[..., None]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """A docker that says what the test wants."""

    def says(
        info: dict[str, Any] | None = None,
        *,
        error: str = "",
        compose: str = "2.40.3",
        more: str = "",
    ) -> None:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        (directory / "info").write_text(json.dumps(INFO if info is None else info))
        script = directory / "docker"
        told = f"echo '{error}' >&2; exit 1" if error else f"cat {directory}/info"
        version = f"echo {compose}" if compose else "echo no such >&2; exit 1"
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >> {directory}/log\n'
            'case "$*" in\n'
            f"  info*) {told};;\n"
            f'  "compose version"*) {version};;\n'
            f"{more}"
            "esac\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    return says


def test_a_rootful_engine_runs_containers_as_the_supervisor(docker: Says) -> None:
    docker()
    found = engine.look()
    assert (found.version, found.compose) == ("28.5.2", "2.40.3")
    assert (found.rootless, found.desktop, found.isolated, found.limits) == (
        False,
        False,
        True,
        True,
    )
    assert found.container_user(1000, 1001) == found.relay_user(1000, 1001) == (1000, 1001)
    assert found.secrets_owner(1000, 1001) is None
    # Root outside is nobody inside, but for the sidecar, who must open root's socket.
    assert found.container_user(0, 0) == (65532, 65532)
    assert found.relay_user(0, 0) == (0, 0)
    assert found.secrets_owner(0, 0) == (65532, 65532)


def test_in_a_rootless_engine_the_supervisor_is_root_inside(docker: Says) -> None:
    docker({**INFO, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]})
    found = engine.look()
    assert found.rootless
    assert found.container_user(1000, 1000) == found.relay_user(1000, 1000) == (0, 0)
    assert found.secrets_owner(1000, 1000) is None


def test_an_older_engine_is_taken_and_known_for_what_it_lacks(docker: Says) -> None:
    docker({**INFO, "ServerVersion": "27.0.1", "MemoryLimit": False})
    found = engine.look()
    assert (found.isolated, found.limits) == (False, False)
    docker({**INFO, "OperatingSystem": "Docker Desktop"})
    assert engine.look().desktop


DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at"
    " unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: permission denied"
)
DOWN = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    " running?"
)


@pytest.mark.parametrize(
    ("says", "kind", "words", "hint"),
    [
        ({"error": DENIED}, EngineAccessError, "permission denied", "usermod -aG docker"),
        ({"error": DOWN}, EngineDownError, "Cannot connect", "systemctl start docker"),
        ({"info": {"ServerErrors": [DOWN]}}, EngineDownError, "Cannot connect", "start docker"),
        ({"info": {"ServerErrors": [DENIED]}}, EngineAccessError, "denied", "usermod"),
        ({"error": "odd words"}, StackError, "odd words", "by hand"),
        ({"info": {**INFO, "ServerVersion": "20.10.24"}}, EngineTooOldError, "20.10.24", "newer"),
        ({"compose": "2.3.3"}, EngineTooOldError, "compose is 2.3.3", "newer compose"),
        ({"compose": ""}, MissingToolError, "compose is not installed", "plugin"),
    ],
)
def test_each_trouble_is_an_error_of_its_own_with_the_words_and_a_hint(
    docker: Says, says: dict[str, Any], kind: type[StackError], words: str, hint: str
) -> None:
    docker(**says)
    with pytest.raises(StackError) as caught:
        engine.look()
    assert type(caught.value) is kind
    assert isinstance(caught.value, RuntimeError)
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_missing_docker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="docker is not installed"):
        engine.look()


def test_what_the_user_has_set_for_compose_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "PIKURI_USER"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/x")
    found = engine.environment()
    assert not any(name.startswith(("COMPOSE_", "PIKURI_")) for name in found)
    assert found["DOCKER_HOST"] == "unix:///run/x"


# ------------------------------------------------------------------ the plan


def server(tmp_path: Path, **changes: Any) -> Mem0Server:
    given: dict[str, Any] = {
        "router_url": "http://127.0.0.1:11434",
        "llm_model": "chat",
        "embedder_model": "embed",
        "cache_dir": tmp_path,
    }
    return Mem0Server(**{**given, **changes})


ENGINE = Engine("28.5.2", "2.40.3", False, False, True, True)


def around(tmp_path: Path, found: Engine = ENGINE, **changes: Any) -> Surroundings:
    made = server(tmp_path, **changes)
    return Surroundings(
        plan=made._plan,
        paths=DataPaths.at(made.data_dir),
        engine=found,
        port=8888,
        qdrant_port=6333,
        image="pikuri-internal-mem0:x",
        uid=1000,
        gid=1000,
        ca_bundle=Path(os.devnull),
    )


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:11434", "http://router-proxy.internal:8080/v1"),
        ("http://127.0.0.1:11434/", "http://router-proxy.internal:8080/v1"),
        ("http://localhost:8080/v1/", "http://router-proxy.internal:8080/v1"),
        ("http://127.0.0.1:1234/api/v0", "http://router-proxy.internal:8080/api/v0"),
    ],
)
def test_mem0_is_given_the_relays_address_with_the_routers_path(
    tmp_path: Path, url: str, base: str
) -> None:
    found = around(tmp_path, router_url=url)
    assert found.openai_base() == base
    assert found.services == ("mem0", "qdrant", "front", "router-proxy")
    assert (found.reasons(), found.warnings()) == ((), ())
    assert [path.name for path in found.files()] == [
        "docker-compose.yml",
        "docker-compose.relay.yml",
        "docker-compose.isolated.yml",
    ]


def test_with_a_url_for_containers_there_is_no_relay_and_it_is_said(tmp_path: Path) -> None:
    found = around(
        tmp_path,
        router_url="https://models.example.org/v1",
        container_router_url="https://models.example.org",
    )
    assert found.openai_base() == "https://models.example.org/v1"
    assert found.services == ("mem0", "qdrant", "front")
    assert "container_router_url" in found.reasons()[0]
    assert "docker-compose.direct.yml" in [path.name for path in found.files()]


def test_docker_desktop_cannot_mount_a_socket_of_the_host(tmp_path: Path) -> None:
    found = around(tmp_path, Engine("28.5.2", "2.40.3", False, True, True, True))
    assert found.openai_base() == "http://host.docker.internal:11434/v1"
    assert "Docker Desktop" in found.reasons()[0]
    assert compose.SIDECAR not in found.services


def test_what_weakens_a_sealed_stack_is_said(tmp_path: Path) -> None:
    found = around(tmp_path, Engine("27.1.0", "2.40.3", True, False, False, False))
    assert found.reasons() == ()
    assert "27.1.0" in found.warnings()[0]
    assert "limits" in found.warnings()[1]
    assert all("isolated" not in path.name for path in found.files())


def test_every_variable_of_the_compose_files_is_given_and_none_is_secret(tmp_path: Path) -> None:
    import re

    found = around(tmp_path)
    paths = found.paths
    paths.root.mkdir(parents=True)
    secrets = credentials.prepare(paths, None)
    values = found.variables()
    text = "".join(path.read_text() for path in plan.HERE.glob("docker-compose*.yml"))
    assert set(re.findall(r"\$\{(PIKURI_\w+)", text)) == set(values)
    for path in (secrets.admin_key, secrets.jwt, secrets.qdrant_key):
        assert str(path) in values.values()
        assert not any(path.read_text() in value for value in values.values())


def test_secrets_are_made_once_and_follow_the_key(tmp_path: Path) -> None:
    paths = DataPaths.at(tmp_path)
    first = credentials.prepare(paths, None)
    before = [path.read_text() for path in (first.admin_key, first.jwt, first.qdrant_key)]
    assert len(set(before)) == 3
    assert before[0] == paths.api_key.read_text().strip()
    credentials.prepare(paths, None)
    assert before == [path.read_text() for path in (first.admin_key, first.jwt, first.qdrant_key)]
    paths.api_key.write_text("another-key\n")
    first.jwt.write_text("")
    credentials.prepare(paths, None)
    assert first.admin_key.read_text() == "another-key"
    assert len(first.jwt.read_text()) > 40
    # A container has mounted this very file.
    mounted = first.admin_key.stat().st_ino
    credentials.shut(paths)
    assert (first.admin_key.read_text(), first.admin_key.stat().st_ino) == ("", mounted)
    credentials.prepare(paths, None)
    assert first.admin_key.read_text() == "another-key"


ROW = "{id}\t{state}\t{status}\t{service}\t1000\t/data\tFalse\tname-{service}"


def test_row_25_services_are_compared_with_what_should_be(docker: Says, tmp_path: Path) -> None:
    rows = [
        ROW.format(id=1, state="running", status="Up 2 hours (healthy)", service="mem0"),
        ROW.format(id=2, state="running", status="Up 2 hours (unhealthy)", service="router-proxy"),
        ROW.format(id=3, state="exited", status="Exited (137) 1 s ago", service="front"),
        ROW.format(id=4, state="running", status="Up 1 s (health: starting)", service="old"),
    ]
    (tmp_path / "rows").write_text("\n".join(rows) + "\n")
    docker(more=f"  ps*) cat {tmp_path}/rows;;\n")
    found = compose.services("p", ("mem0", "qdrant", "front", "router-proxy"))
    assert {one.name: (one.expected, one.state, one.health, one.right) for one in found} == {
        "front": (True, "exited", "", False),
        "mem0": (True, "running", "healthy", True),
        "old": (False, "running", "starting", False),
        "qdrant": (True, "missing", "", False),
        # Its health is that of the user's router.
        "router-proxy": (True, "running", "unhealthy", True),
    }


def test_a_project_of_somebody_else_is_left_alone(docker: Says, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(
        ROW.format(id=1, state="running", status="Up", service="mem0") + "\n"
    )
    docker(more=f"  ps*) cat {tmp_path}/rows;;\n")
    with pytest.raises(PikuriMemoryError, match="id 1000 and the data directory /data"):
        Compose(around(tmp_path)).refuse_foreign()


def test_a_sick_service_is_not_right() -> None:
    assert not Service("mem0", True, "running", "unhealthy", "", "1").right
    assert Service("mem0", True, "running", "starting", "", "1").right
    assert Service("gone", False, "exited", "", "", "1").right


# ------------------------------------------------------------------ the arguments


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router_url": "https://models.example.org"}, "container_router_url"),
        ({"router_url": "http://user:secret@127.0.0.1"}, "password"),
        ({"router_url": "ftp://127.0.0.1"}, "no http"),
        ({"router_url": "nonsense"}, "no http"),
        ({"router_url": "http://127.0.0.1:99999"}, "cannot be read"),
        ({"router_url": "http://127.0.0.1,fork:80"}, "cannot be"),
        ({"container_router_url": "unix:/x"}, "container_router_url"),
        ({"llm_model": " "}, "llm_model"),
        ({"embedder_model": "a\nb"}, "embedder_model"),
        ({"port": 70000}, "port"),
        ({"port": 6333}, "both 6333"),
        ({"embedding_dims": 0}, "embedding_dims"),
        ({"healthcheck_timeout": 0}, "healthcheck_timeout"),
    ],
)
def test_impossible_arguments_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        server(tmp_path, **changes)
    assert isinstance(caught.value, SettingError)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_with_a_cache_dir_everything_lies_under_it() -> None:
    made = server(Path("/tmp/pk"))
    assert made.checkout_dir == Path("/tmp/pk/temp/git")
    assert made.data_dir == Path("/tmp/pk/data")
    assert made.sock_dir == Path("/tmp/pk/sock")
    assert made.endpoint == "http://127.0.0.1:8888"
    assert made._plan.project.startswith("pikuri-internal-mem0-")


def test_by_default_the_data_lie_where_data_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "pikuri" / "mem0"
    made = Mem0Server(router_url="http://127.0.0.1:1", llm_model="chat", embedder_model="embed")
    assert Mem0Server.default_cache_dir() == cache
    assert made.checkout_dir == cache / "temp" / "git"
    assert made.data_dir == Path(os.environ["XDG_DATA_HOME"]) / "pikuri" / "memory"
    assert made._plan.project == Mem0Server.COMPOSE_PROJECT
    assert plan.fits_socket(made.sock_dir / made.RELAY_SOCKET)
    monkeypatch.setenv("PIKURI_MEMORY_DATA_DIR", "/tmp/elsewhere")
    other = Mem0Server(router_url="http://127.0.0.1:1", llm_model="c", embedder_model="e")
    assert other.data_dir == Path("/tmp/elsewhere")
    assert other._plan.project != made._plan.project
    assert other.sock_dir != made.sock_dir


def test_a_socket_that_would_not_fit_lies_in_the_runtime_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    made = server(deep)
    assert not made.sock_dir.is_relative_to(deep)
    assert plan.fits_socket(made.sock_dir / made.RELAY_SOCKET)
    assert server(tmp_path / ("y" * 120)).sock_dir != made.sock_dir


def test_the_constants_are_those_that_are_documented() -> None:
    assert Mem0Server.MEM0_REF == "a3154d59e52386d4e1189c1f5f44819868f76514"
    assert Mem0Server.MEM0_REPO_URL == "https://github.com/mem0ai/mem0.git"
    assert Mem0Server.COMPOSE_FILE.is_file()
    assert list((Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF).glob("*.patch"))
    assert (Mem0Server.RELAY_SOCKET, Mem0Server.RELAY_BIND_TIMEOUT) == ("router.sock", 5)
