"""The image: pinned to the last package, with nothing that fetches, tells or leaks."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikuri_memory.stack.plan import EMBEDDED, SHARED
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack import images, patched
from tests.stack.conftest import Upstream, alone, bundle, docker
from tests.stack.ollama import ollama
from tests.stack.patched import served
from tests.stack.test_patches import PROMISES, _source

IMAGE = images.STACK / "image"
DOCKERFILE = images.STACK / "Dockerfile"
PACKAGES = """
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (IMAGE / "constraints.txt").read_text("utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert all(row.count("==") == 1 for row in rows)
    return {canonical(name): version for name, version in (row.split("==") for row in rows)}


@pytest.fixture(scope="module")
def image(engine_ready: None, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> str:
    source = _source(upstream, tmp_path_factory.mktemp("image"), PROMISES)
    tag = "pikuri-test-mem0:patched"
    with alone("build"):
        patched.build(tag, source, bundle())
    return tag


@pytest.fixture
def source(upstream: Upstream, tmp_path: Path) -> Path:
    return _source(upstream, tmp_path, PROMISES)


def run(image: str, *command: str) -> str:
    return docker(
        "run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:]
    )


def test_row_6_every_package_is_the_one_of_the_constraints(image: str) -> None:
    found = json.loads(run(image, "/opt/mem0/bin/python", "-c", PACKAGES))
    installed = {canonical(name): version for name, version in found.items()}
    assert installed.pop("mem0ai") == "2.0.4"
    assert installed == {name: pinned()[name] for name in installed}
    # Nothing there that could install, and no telemetry to switch off in what is not needed.
    assert not {"pip", "setuptools", "wheel", "hatchling"} & set(installed)
    assert not {"anthropic", "psycopg", "alembic", "google-generativeai"} & set(installed)


def test_the_library_is_the_checkout_s(image: str, source: Path) -> None:
    shown = run(image, "cat", f"{patched.SITE}/mem0/memory/main.py")
    assert shown == (source / "mem0" / "memory" / "main.py").read_text().strip()
    assert "enable_thinking" in shown


def test_row_6_nothing_reloads_and_nothing_is_installed_at_start(image: str) -> None:
    [config] = json.loads(docker("image", "inspect", image))
    started = config["Config"]["Entrypoint"]
    assert started == ["/opt/mem0/bin/python", "/opt/pikuri/entrypoint.py"]
    assert not config["Config"]["Cmd"]
    assert config["Config"]["User"] == "65532:65532"
    text = (IMAGE / "entrypoint.py").read_text()
    assert "reload" not in text.replace("no reload", "")
    assert "MEM0_TELEMETRY=False" in config["Config"]["Env"]


def test_what_both_servers_have_is_one_source(image: str) -> None:
    listed = run(image, "find", "/opt/pikuri", "-type", "f", "-perm", "-o=r").splitlines()
    ours = {Path(path).relative_to("/opt/pikuri") for path in listed}
    names = {name: Path("docs" if "/" in name else "", Path(name).name) for name in SHARED}
    assert ours == {Path("entrypoint.py"), Path("healthcheck.py"), *names.values()}
    for name, place in names.items():
        shown = run(image, "cat", f"/opt/pikuri/{place}")
        assert shown == (EMBEDDED / name).read_text("utf-8").strip(), name
    # Another one of them is another image.
    copied = re.findall(r"^COPY --from=embedded (.+) \S+$", DOCKERFILE.read_text("utf-8"), re.M)
    assert sorted(name for line in copied for name in line.split()) == sorted(SHARED)


def test_the_connections_are_tested_with_the_versions_of_the_image() -> None:
    lock = (images.STACK.parents[2] / "requirements.lock").read_text("utf-8")
    for name in ("httptools", "uvicorn"):
        assert re.search(rf"^{name}=={re.escape(pinned()[name])}\b", lock, re.M), name


def test_no_certificate_of_the_build_is_in_the_image(image: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "BEGIN CERTIFICATE" not in history
    search = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "find", image)
    found = docker(*search, "/", "-xdev", "-name", "ca_bundle")
    assert found == ""


def test_the_context_is_the_library_and_the_server_alone(image: str) -> None:
    shown = run(image, "find", "/app", "-type", "f", "-not", "-name", "*.pyc").splitlines()
    assert shown
    assert all(re.fullmatch(r"/app/(routers/)?[a-z_]+\.py", path) for path in shown)


@pytest.mark.parametrize("missing", ["admin_api_key", "jwt_secret", "qdrant_api_key"])
def test_a_missing_secret_stops_the_start_and_is_named(
    image: str, tmp_path: Path, missing: str
) -> None:
    held = tmp_path / "secrets"
    held.mkdir()
    for name in ("admin_api_key", "jwt_secret", "qdrant_api_key"):
        (held / name).write_text("" if name == missing else "x" * 32)
        (held / name).chmod(0o644)
    held.chmod(0o755)
    done = subprocess.run(
        [
            *(images.docker_command(), "run", "--rm", "--network", "none"),
            *("--volume", f"{held}:/run/secrets:ro", image),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"the secret {missing} is empty" in done.stderr


@pytest.fixture
def models() -> Iterator[ScriptedRouter]:
    with ollama() as running:
        yield running


def test_no_variable_leads_memories_elsewhere_and_none_is_logged(
    image: str, source: Path, models: ScriptedRouter
) -> None:
    """The Docker client can put its own proxies into every container."""
    bait = "http://127.66.66.66:9"
    names = "HTTP_PROXY https_proxy ALL_PROXY OPENAI_API_BASE OPENROUTER_API_KEY".split()
    elsewhere = dict.fromkeys(names, bait)
    with alone("engine", shared=True), served(image, source, models, elsewhere) as server:
        models.answer = remembers("The key lies under the flowerpot")
        assert server.add("My key lies under the flowerpot", "ada").status_code == 200
        sought = {"query": "flowerpot", "user_id": "ada"}
        hits = server.api.post("/search", json=sought).json()["results"]
        assert [hit["memory"] for hit in hits] == ["The key lies under the flowerpot"]
        models.answer = lambda _: "flowerpot flowerpot"
        assert server.add("My key lies under the flowerpot", "ada").status_code == 502
        models.rule("no_response_format")
        assert server.add("My key lies under the flowerpot", "ada").status_code == 502
        path = f"/memories/{hits[0]['id']}"
        server.api.put(path, json={"text": "The key lies behind the flowerpot"})
        server.api.get("/memories", params={"user_id": "flowerpot"})
        server.api.delete("/entities/user/flowerpot")
        server.api.get(f"/{server.key}/memories")
        log = server.log()
    assert models.seen("chat")
    assert "flowerpot" not in log
    assert server.key not in log
    assert '"POST /memories HTTP/1.1" 502' in log


def test_the_files_are_in_the_wheel() -> None:
    """What is no Python file is easily left out."""
    project = tomllib.loads((images.STACK.parents[2] / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        "src/pikuri_memory"
    ]
    names = {path.name for path in images.STACK.iterdir()}
    assert {"Dockerfile", "Dockerfile.dockerignore", "docker-compose.yml"} <= names
