"""Mem0Server end to end: a real engine, real containers, a scripted router on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from pathlib import Path

import httpx
import pytest

from pikuri_memory import (
    AuthenticationError,
    EmbeddedServer,
    Mem0Client,
    Mem0Server,
    discovery,
    process,
)
from pikuri_memory.discovery import read_api_key
from pikuri_memory.errors import (
    DataDirectoryInUseError,
    EmbedderMismatchError,
    EmbeddingDimensionsError,
    ForeignStackError,
    PortInUseError,
    RouterUnreachableError,
    ServerNotRunningError,
)
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers import local
from pikuri_memory.stack import compose
from pikuri_memory.stack.plan import short_hash
from tests.router.scripted import ScriptedRouter, remembers
from tests.stack.conftest import Make, container, docker, leftovers, project_of

NUTS = "Ada is allergic to walnuts"
DOG = "Ada has a greyhound called Rex"


def test_row_5_what_was_added_is_found_and_survives_down_and_up(
    make: Make, router: ScriptedRouter, name: str
) -> None:
    phases: list[str] = []
    server = make()
    server.start(progress=lambda phase, detail: phases.append(phase))
    assert phases[-1] == "ready"
    assert {"check", "start"} <= set(phases)
    assert server.endpoint == f"http://127.0.0.1:{server.port}"
    assert server.port > 0
    with server.client() as memory:
        router.answer = remembers(NUTS)
        [added] = memory.add("Remember that I am allergic to walnuts!", user_id=name)
        assert (added.text, added.event) == (NUTS, "ADD")
        router.answer = remembers(DOG)
        memory.add("My greyhound is called Rex.", user_id=name)
        hits = memory.search("which walnuts is she allergic to?", user_id=name)
        assert hits[0].text == NUTS
        hosts = {seen.headers.get("host") for seen in router.seen()}
        assert hosts <= {f"127.0.0.1:{router.port}", "router-proxy.internal:8080"}
        assert "router-proxy.internal:8080" in hosts
    project = project_of(server)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 30
    assert leftovers(project) == []
    assert not (server.sock_dir / server.RELAY_SOCKET).exists()
    assert server.start() is server
    with server.client() as memory:
        assert memory.search("walnuts", user_id=name)[0].text == NUTS
        assert {record.text for record in memory.get_all(user_id=name)} == {NUTS, DOG}


def test_row_3_a_router_that_stops_is_named_and_nothing_is_lost(
    make: Make, router: ScriptedRouter, name: str
) -> None:
    with make() as server, server.client() as memory:
        router.answer = remembers(NUTS)
        memory.add("I am allergic to walnuts", user_id=name)
        router.stop()
        with pytest.raises(RouterUnreachableError, match=f"127.0.0.1:{router.port}"):
            memory.add("My greyhound is called Rex", user_id=name)
        with pytest.raises(RouterUnreachableError, match=f"127.0.0.1:{router.port}"):
            memory.search("walnuts", user_id=name)
        assert [record.text for record in memory.get_all(user_id=name)] == [NUTS]
        router.start()
        router.answer = remembers(DOG)
        memory.add("My greyhound is called Rex", user_id=name)
        assert memory.search("greyhound Rex", user_id=name)[0].text == DOG


def test_a_stack_starts_while_its_router_is_down(
    make: Make, router: ScriptedRouter, name: str
) -> None:
    router.stop()
    with make() as server, server.client() as memory:
        assert memory.get_all(user_id=name) == []
        router.start()
        router.answer = remembers(NUTS)
        assert memory.add("I am allergic to walnuts", user_id=name)


def test_shares_are_counted_and_the_last_one_takes_it_down(make: Make, name: str) -> None:
    first, second = make().start(), make().start()
    assert first.endpoint == second.endpoint
    project = project_of(first)
    first.close()
    first.close()
    with second.client() as memory:
        assert memory.get_all(user_id=name) == []
    with pytest.raises(ServerNotRunningError):
        first.client()
    second.close()
    assert leftovers(project) == []


def test_a_key_that_is_replaced_while_the_stack_starts_is_the_one_that_counts(make: Make) -> None:
    old: list[str | None] = []

    def progress(phase: str, detail: str) -> None:
        if phase == "start" and not old:
            old.append(read_api_key(DataPaths.at(server.data_dir)))
            local.rotate_key(DataPaths.at(server.data_dir))

    server = make()
    server.start(progress)
    assert old
    with httpx.Client(base_url=server.endpoint, trust_env=False) as http:

        def status(key: str | None) -> int:
            try:
                return http.get("/entities", headers={"X-API-Key": key or ""}).status_code
            except httpx.TransportError:  # it is started again
                return 0

        end = time.monotonic() + 60
        while status(read_api_key(DataPaths.at(server.data_dir))) != 200:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert status(old[0]) == 401


def test_a_new_source_makes_a_new_image_and_the_older_one_goes(make: Make, home: Path) -> None:
    def tags(*filters: str) -> set[str]:
        return set(docker("image", "ls", "--format", "{{.Tag}}", *filters, compose.IMAGE).split())

    def own(server: Mem0Server) -> set[str]:
        return tags("--filter", f"label={compose.DATA_LABEL}={server.data_dir}")

    def patches(name: str) -> Path:
        directory = home / name
        shutil.copytree(Mem0Server.PATCH_DIR / Mem0Server.MEM0_REF, directory)
        note = f"server/note_{home.name.replace('-', '_')}.py"
        (directory / "99-note.patch").write_text(
            "A note.\n\n"
            f"diff --git a/{note} b/{note}\nnew file mode 100644\n--- /dev/null\n+++ b/{note}\n"
            f'@@ -0,0 +1,1 @@\n+NOTE = "{name}"\n'
        )
        return directory

    before = tags()
    made: set[str] = set()
    try:
        with make(patch_dir=patches("first")) as server:
            [first] = made = own(server)
        with make(patch_dir=patches("second")) as server:
            made |= own(server)
            [second] = own(server)
        assert first != second
        assert before <= tags()
    finally:
        for tag in made & tags():
            docker("image", "rm", f"{compose.IMAGE}:{tag}")


def test_secrets_are_in_files_of_mode_0600_and_nowhere_else(make: Make) -> None:
    with make() as server:
        paths = DataPaths.at(server.data_dir)
        secrets = [*paths.stack_secrets.iterdir(), paths.api_key]
        assert len(secrets) == 4
        texts = [path.read_text().strip() for path in secrets]
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
        assert all(len(text) > 40 for text in texts)
        ids = docker(
            *("ps", "--quiet", "--filter"),
            f"label=com.docker.compose.project={project_of(server)}",
        ).split()
        assert len(ids) == 4
        shown = docker("inspect", *ids)
        image = docker("inspect", "--format", "{{.Image}}", container(server, "mem0"))
        shown += docker("history", "--no-trunc", image)
        processes = process.run(["ps", "-eo", "args"], timeout=10).stdout
        logs = "".join(docker("logs", one) for one in ids) + paths.server_log.read_text()
        for text in texts:
            for place in (shown, processes, logs, paths.stack_plan.read_text()):
                assert text not in place


def test_row_10_the_key_is_needed_and_a_new_one_is_taken(make: Make, name: str) -> None:
    with make() as server:
        with Mem0Client(server.endpoint, "wrong") as stranger:
            with pytest.raises(AuthenticationError):
                stranger.get_all(user_id=name)
            assert stranger.health()
        old = read_api_key(DataPaths.at(server.data_dir))
        local.rotate_key(DataPaths.at(server.data_dir))
        end = time.monotonic() + 60
        with httpx.Client(trust_env=False) as http:

            def status(key: str | None) -> int:
                try:
                    return http.get(
                        f"{server.endpoint}/memories",
                        params={"user_id": name},
                        headers={"X-API-Key": key or ""},
                    ).status_code
                except httpx.HTTPError:
                    return 0

            new = read_api_key(DataPaths.at(server.data_dir))
            assert new != old
            while status(old) != 401:
                assert time.monotonic() < end
                time.sleep(0.2)
            while status(new) != 200:
                assert time.monotonic() < end
                time.sleep(0.2)


def test_an_http_client_of_the_callers_is_used_and_left_open(make: Make, name: str) -> None:
    seen: list[str] = []
    with httpx.Client(
        trust_env=False, event_hooks={"request": [lambda request: seen.append(request.url.path)]}
    ) as http:
        with make(http_client=http) as server:
            assert "/memories" in seen
            with server.client() as memory:
                memory.get_all(user_id=name)
            assert len(seen) >= 2
        assert not http.is_closed


def test_row_1_an_embedder_of_another_length_is_refused_before_anything_is_built(
    make: Make, home: Path
) -> None:
    server = make(embedding_dims=384)
    begun = time.monotonic()
    with pytest.raises(EmbeddingDimensionsError, match=r"length 768.*384"):
        server.start()
    assert time.monotonic() - begun < 10
    assert not server.checkout_dir.exists()


def test_row_1_another_embedder_than_that_of_the_memories_is_refused(make: Make, name: str) -> None:
    with make():
        pass
    with pytest.raises(EmbedderMismatchError, match="were embedded by scripted-embedder") as caught:
        make(embedder_model="another").start()
    assert "--embedder-model scripted-embedder" in caught.value.hint
    with make(embedder_model="another", collection="other") as server:
        assert server.client().get_all(user_id=name) == []


@pytest.mark.parametrize("which", ["port", "qdrant_port"])
def test_row_26_a_port_that_is_taken_names_its_owner(make: Make, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"{port} .*\\(pid {os.getpid()}\\)"):
            make(**{which: port}).start()


def test_an_embedded_server_on_the_same_data_or_port_is_told(
    make: Make, tmp_path: Path, home: Path
) -> None:
    with EmbeddedServer(port=0, data_dir=home / "data"):
        with pytest.raises(DataDirectoryInUseError, match="embedded server") as caught:
            make().start()
        assert caught.value.hint == "stop it first: pikuri-memory down"
    with EmbeddedServer(port=0, data_dir=tmp_path / "other") as other:
        port = int(other.endpoint.rpartition(":")[2])
        with pytest.raises(PortInUseError, match=r"in use by \S+ \(pid"):
            make(port=port).start()
    with make() as server:
        with pytest.raises(DataDirectoryInUseError, match="mem0 server"):
            EmbeddedServer(port=0, data_dir=home / "data").start()
        assert server.client().get_all(user_id="nobody") == []


def test_row_27_containers_of_somebody_else_are_never_touched(make: Make, home: Path) -> None:
    server = make()
    project = f"{server.COMPOSE_PROJECT}-{short_hash(str(server.data_dir))}"
    name = f"{project}-stranger"
    docker(
        *("run", "--detach", "--name", name, "--label", f"com.docker.compose.project={project}"),
        *("--label", "com.docker.compose.service=mem0", "--label", "pikuri-internal.uid=4711"),
        *("--label", "pikuri-internal.data-dir=/home/bo/memories"),
        *("--entrypoint", "sleep", Mem0Server.SOCAT_IMAGE, "600"),
    )
    try:
        with pytest.raises(ForeignStackError, match=r"4711.*/home/bo/memories"):
            server.start()
        assert docker("inspect", "--format", "{{.State.Running}}", name) == "true"
    finally:
        docker("rm", "--force", name)


def test_status_shows_each_service_and_that_it_is_sealed(make: Make) -> None:
    with make() as server:
        found = local.describe(DataPaths.at(server.data_dir))
        assert found.state == "running"
        assert found.stack is not None
        assert (found.stack.sealed, found.stack.phase) == (True, "ready")
        shown = found.as_dict()["stack"]["services"]
        assert {row["name"]: (row["expected"], row["actual"]) for row in shown} == dict.fromkeys(
            ("front", "mem0", "qdrant", "router-proxy"), ("running", "running")
        )
        info = discovery.read_server_info(DataPaths.at(server.data_dir))
        assert info is not None
        assert info.kind == "mem0"


def test_with_container_router_url_it_is_not_sealed_and_says_why(
    make: Make, router: ScriptedRouter
) -> None:
    with make(container_router_url=f"http://host.docker.internal:{router.port}") as server:
        found = local.describe(DataPaths.at(server.data_dir)).stack
        assert found is not None
        assert found.sealed is False
        assert "container_router_url" in found.reasons[0]
        assert {service.name for service in found.services} == {"front", "mem0", "qdrant"}
        networks = docker(
            "inspect", "--format", "{{json .NetworkSettings.Networks}}", container(server, "mem0")
        )
        assert "_outside" in networks
        assert not (server.sock_dir / server.RELAY_SOCKET).exists()
