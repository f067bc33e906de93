"""The scripted endpoint itself: what other tests lean on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from pikuri_memory.errors import RouterRefusedError
from pikuri_memory.models.router import Router
from tests.router.scripted import (
    MISBEHAVIOURS,
    Flavour,
    ScriptedRouter,
    embedding,
    remembers,
    sentences,
)

ROOT = Path(__file__).parents[2]


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """The address of an endpoint in a process of its own."""
    words = [sys.executable, "-m", "tests.router.scripted", *arguments]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        yield json.loads(started.stdout.readline())["url"]
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(20) == 0


def test_it_can_be_a_process_and_is_scripted_over_http() -> None:
    with (
        process("--dimensions", "16", "--embedding-model", "mine") as url,
        closing(Router(url)) as router,
        httpx.Client(trust_env=False) as http,
    ):
        assert router.embed("mine", ["text"]).shape == (1, 16)
        http.post(f"{url}/_scripted/play", json={"names": ["server_error"]})
        with pytest.raises(RouterRefusedError):
            router.embed("mine", ["text"])
        http.post(f"{url}/_scripted/set", json={"dimensions": 8})
        assert router.embed("mine", ["text"]).shape == (1, 8)
        told = http.get(f"{url}/_scripted/requests").json()["requests"]
    assert [kind for kind, *_ in told].count("embedding") == 3


def test_a_process_can_misbehave_from_the_start() -> None:
    with (
        process("--rule", "server_error", "--flavour", "ollama") as url,
        closing(Router(url)) as router,
        pytest.raises(RouterRefusedError),
    ):
        router.embed("scripted-embed", ["text"])


def test_texts_with_shared_words_are_near() -> None:
    one, other, far = (
        np.asarray(embedding(text, 64))
        for text in ("Bella is a cat", "the cat is called Bella", "trains leave at noon")
    )
    assert one @ one == pytest.approx(1.0, abs=1e-6)
    assert one @ other > 0.4
    assert abs(one @ far) < 0.3


def test_facts_are_the_sentences_that_the_user_said() -> None:
    prompt = (
        "## Existing Memories\n[]\n\n## New Messages\nuser: I moved to Oulu. Is it cold?\n"
        "It was in March 2024.\nassistant: You will love the sauna there.\n\n"
        "## Observation Date\n2026-01-01\n\n# Output:"
    )
    told = json.loads(sentences({"messages": [{"role": "user", "content": prompt}]}))
    assert [row["text"] for row in told["memory"]] == ["I moved to Oulu.", "It was in March 2024."]


def test_what_is_played_is_played_once_and_a_rule_stays() -> None:
    with ScriptedRouter() as endpoint, closing(Router(endpoint.url)) as router:
        endpoint.play("server_error")
        with pytest.raises(RouterRefusedError):
            router.embed("scripted-embed", ["text"])
        assert router.embed("scripted-embed", ["text"]).shape == (1, 64)
        endpoint.rule("server_error")
        for _ in range(2):
            with pytest.raises(RouterRefusedError):
                router.embed("scripted-embed", ["text"])


@pytest.mark.parametrize(
    ("flavour", "bare"), [("plain", 200), ("llama.cpp", 200), ("ollama", 404), ("vllm", 404)]
)
def test_a_flavour_has_its_routes_under_v1_or_also_without(flavour: Flavour, bare: int) -> None:
    asked = {"model": "scripted-embed", "input": "text"}
    with ScriptedRouter(flavour=flavour) as endpoint, httpx.Client(trust_env=False) as http:
        for start, status in (("/v1", 200), ("", bare)):
            assert http.get(f"{endpoint.url}{start}/models").status_code == status
            assert http.post(f"{endpoint.url}{start}/embeddings", json=asked).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:11434", 200),
        ("localhost", 200),
        ("[::1]", 200),
        ("router-proxy.internal:8080", 200),
        ("router-proxy", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_ollama_refuses_foreign_host_names_and_no_other_flavour_does(
    host: str, status: int
) -> None:
    for flavour, expected in (("ollama", status), ("plain", 200)):
        with (
            ScriptedRouter(flavour=flavour) as endpoint,  # type: ignore[arg-type] # of two
            httpx.Client(trust_env=False, headers={"Host": host}) as http,
        ):
            assert http.get(f"{endpoint.url}/v1/models").status_code == expected
            assert endpoint.seen("list")[0].headers["host"] == host


def test_facts_and_vectors_may_be_given() -> None:
    with (
        ScriptedRouter(answer=remembers("a fact"), embed=lambda text: [1.0, len(text)]) as endpoint,
        closing(Router(endpoint.url)) as router,
    ):
        assert router.embed("scripted-embed", ["four"]).shape == (1, 2)
        told = json.loads(router.chat("scripted-instruct", [{"role": "user", "content": "x"}]).text)
    assert [fact["text"] for fact in told["memory"]] == ["a fact"]


def test_an_embedder_refuses_words_and_another_length() -> None:
    with (
        ScriptedRouter(refused_words=["secret"]) as endpoint,
        httpx.Client(trust_env=False) as http,
    ):

        def status(**asked: object) -> int:
            asked = {"model": "scripted-embed", **asked}
            return http.post(f"{endpoint.url}/v1/embeddings", json=asked).status_code

        assert status(input=["public"]) == 200
        assert status(input=["public", "a secret"]) == 400
        assert status(input="public", dimensions=64) == 400


def test_a_rule_may_be_for_one_kind_of_requests_alone() -> None:
    with ScriptedRouter() as endpoint, closing(Router(endpoint.url)) as router:
        endpoint.rule("server_error", kind="chat")
        assert router.embed("scripted-embed", ["text"]).shape == (1, 64)
        with pytest.raises(RouterRefusedError):
            router.chat("scripted-instruct", [{"role": "user", "content": "text"}])


def test_who_stops_hangs_up_and_is_back_at_the_same_port() -> None:
    endpoint = ScriptedRouter().start()
    port = endpoint.port
    with socket.create_connection(("127.0.0.1", port), 5) as idle:
        idle.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200 ")
        endpoint.stop()
        while idle.recv(65_536):  # the rest of the answer
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    with endpoint, closing(Router(f"http://127.0.0.1:{port}")) as router:
        assert router.embed("scripted-embed", ["text"]).shape == (1, 64)
    assert endpoint.port == port


def test_the_table_has_every_misbehaviour_that_was_promised() -> None:
    promised = """
        reasoning_only think_tags empty_content cut_json code_fence prose_around wrong_schema
        unknown_field no_json_schema too_many_requests loading slow_first_byte reset_in_the_middle
        wrong_dimension changing_dimension nan not_normalised zero_vectors base64 error_with_200
        host_check only_v1 context_llama_cpp context_openai context_lm_studio context_cut_silently
        thinks_unless_template thinks_always
    """.split()
    assert set(promised) <= set(MISBEHAVIOURS)
    assert all(name == each.name and each.what for name, each in MISBEHAVIOURS.items())
