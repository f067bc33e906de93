"""The client of a model endpoint, against an endpoint that misbehaves over real HTTP."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbeddingError,
    ModelAnswerError,
    ModelError,
    ModelNotOfferedError,
    RouterBusyError,
    RouterRefusedError,
    RouterTimeoutError,
    RouterUnreachableError,
    SettingError,
)
from pikuri_memory.models.router import ChatAnswer, Patience, Router
from pikuri_memory.waiting import Deadline
from tests.conftest import require
from tests.router.clocks import Clock
from tests.router.scripted import MISBEHAVIOURS, ScriptedRouter, embedding

CHAT = "scripted-instruct"
EMBED = "scripted-embed"
SECRET = "My neighbour Zebedee keeps 4711 axolotls in Rovaniemi."
QUICK = Patience(total=20.0, interval=0.01)
FLAVOURS = ("plain", "llama.cpp", "llama.cpp-router", "ollama", "lmstudio", "vllm")


@pytest.fixture
def endpoint() -> Iterator[ScriptedRouter]:
    with ScriptedRouter() as scripted:
        yield scripted


@contextmanager
def client(endpoint: ScriptedRouter | str, **given: Any) -> Iterator[Router]:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    with closing(Router(url, **{"patience": QUICK, **given})) as router:
        yield router


def ask(router: Router, text: str = SECRET, **given: Any) -> ChatAnswer:
    return router.chat(CHAT, [{"role": "user", "content": text}], **given)


def embed(router: Router, *texts: str) -> Any:
    return router.embed(EMBED, texts or (SECRET,))


def run(target: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start ``target`` in a thread, and collect what it raises."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            target()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, raised


# -- the good case


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_kind_of_router_chats_and_embeds(flavour: Any) -> None:
    with ScriptedRouter(flavour=flavour) as endpoint, client(endpoint) as router:
        answer = ask(router, "I moved to Oulu in March.", max_tokens=200)
        vectors = embed(router, "one", "two", "three")
        assert "I moved to Oulu in March." in answer.text
        assert (answer.finish_reason, answer.reasoning) == ("stop", "")
        assert answer.prompt_tokens == 6
        assert vectors.shape == (3, 64)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors[1], embedding("two", 64), rtol=1e-6)
        sent = endpoint.seen("chat")[0]
        assert sent.body["max_tokens"] == 200
        assert sent.body["stream"] is False


def test_the_list_tells_what_each_kind_of_router_knows() -> None:
    told = {}
    for flavour in FLAVOURS:
        given: Any = {"flavour": flavour, "loaded": [CHAT], "context_tokens": 8_192}
        with ScriptedRouter(**given) as endpoint, client(endpoint) as router:
            first, second = router.models()
            told[flavour] = (first.kind, second.kind, first.context_tokens, first.loaded)
            assert endpoint.count("chat") == endpoint.count("embedding") == 0
    assert told == {
        "plain": ("unknown", "unknown", None, None),
        "llama.cpp": ("unknown", "unknown", None, True),
        "llama.cpp-router": ("unknown", "embedding", 8_192, True),
        "ollama": ("chat", "embedding", 8_192, True),
        "lmstudio": ("chat", "embedding", 8_192, True),
        "vllm": ("unknown", "unknown", 8_192, None),
    }


def test_properties_tell_the_context_that_a_model_has_now() -> None:
    for flavour in FLAVOURS:
        given: Any = {"flavour": flavour, "loaded": [CHAT], "context_tokens": 4_096}
        with ScriptedRouter(**given) as endpoint, client(endpoint) as router:
            found = router.properties(CHAT)
            assert found.get("context_tokens") == (None if flavour == "plain" else 4_096)


def test_many_texts_go_in_batches_and_come_back_in_order(endpoint: ScriptedRouter) -> None:
    texts = [f"text number {number}" for number in range(70)]
    with client(endpoint) as router:
        vectors = router.embed(EMBED, texts)
    assert [len(seen.body["input"]) for seen in endpoint.seen("embedding")] == [32, 32, 6]
    np.testing.assert_allclose(vectors[69], embedding(texts[69], 64), rtol=1e-6)


def test_no_texts_need_no_request(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        assert router.embed(EMBED, []).shape == (0, 0)
    assert endpoint.requests == []


def test_a_text_with_half_of_a_surrogate_pair_can_be_sent(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        assert embed(router, "a broken \ud83d emoji").shape == (1, 64)
        assert ask(router, "I wrote a broken \ud83d emoji.").text


def test_tokens_are_counted_where_the_router_has_a_tokenizer() -> None:
    with ScriptedRouter(flavour="llama.cpp") as endpoint, client(endpoint) as router:
        assert router.count_tokens(CHAT, "x" * 400) == 100
    with ScriptedRouter() as endpoint, client(endpoint) as router:
        assert router.count_tokens(CHAT, "x" * 400) is None


# -- where it is


def test_v1_may_be_written_or_not(endpoint: ScriptedRouter) -> None:
    for url in (endpoint.url, endpoint.url + "/", endpoint.url + "/v1", endpoint.url + "/v1/"):
        with client(url) as router:
            assert router.endpoint.url == endpoint.url
            assert embed(router).shape == (1, 64)
    assert {seen.path for seen in endpoint.seen("embedding")} == {"/v1/embeddings"}


def test_an_endpoint_only_under_v1_is_found(endpoint: ScriptedRouter) -> None:
    endpoint.rule("only_v1")
    with client(endpoint) as router:
        assert ask(router).text


def test_an_endpoint_without_v1_is_found(endpoint: ScriptedRouter) -> None:
    endpoint.rule("never_v1")
    with client(endpoint) as router:
        assert ask(router).text
    assert endpoint.seen("chat")[0].path == "/chat/completions"


def test_something_that_is_no_model_endpoint_is_told_apart(endpoint: ScriptedRouter) -> None:
    endpoint.rule("only_v1", "never_v1")
    with client(endpoint) as router, pytest.raises(RouterRefusedError) as caught:
        router.models()
    assert "no OpenAI-compatible endpoint" in str(caught.value)
    assert "/v1" in caught.value.hint


def test_a_unix_socket_is_an_endpoint_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "router.sock"
    with ScriptedRouter(socket_path=path) as endpoint, client(f"unix:{path}") as router:
        assert router.endpoint.is_loopback
        assert ask(router).text
        assert embed(router).shape == (1, 64)
        assert {seen.headers["host"] for seen in endpoint.requests} == {"localhost"}
    with client(f"unix:{path}") as router, pytest.raises(RouterUnreachableError):
        router.models()


def test_the_host_header_is_what_the_url_says(endpoint: ScriptedRouter) -> None:
    endpoint.rule("host_check")
    port = endpoint.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        with client(f"http://{host}:{port}") as router:
            assert ask(router).text
    assert {seen.headers["host"] for seen in endpoint.requests} == {
        f"127.0.0.1:{port}",
        f"localhost:{port}",
    }


def test_a_router_that_refuses_our_host_is_named_with_what_helps(endpoint: ScriptedRouter) -> None:
    endpoint.rule("host_check")
    port = endpoint.url.rpartition(":")[2]
    # Every address of this name's is loopback; it is none that the router calls itself.
    with client(f"http://127.1:{port}") as router, pytest.raises(RouterRefusedError) as caught:
        router.models()
    assert "403" in str(caught.value)
    assert "--router" in caught.value.hint


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    require("openssl", "openssl")
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "router.crt", directory / "router.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words += ["-nodes", "-days", "2", "-subj", "/CN=router", "-keyout", str(key)]
    words += ["-out", str(certificate), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    return certificate, key


def test_https_works_with_a_certificate_that_is_trusted(certificate: tuple[Path, Path]) -> None:
    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(certificate[0]))

    with (
        ScriptedRouter(certificate=certificate) as endpoint,
        client(endpoint, tls=trusting) as router,
    ):
        assert endpoint.url.startswith("https://")
        assert ask(router).text


def test_a_certificate_that_is_not_trusted_is_refused_with_what_helps(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a variable of the environment says of certificates must not count.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with ScriptedRouter(certificate=certificate) as endpoint, client(endpoint) as router:
        with pytest.raises(RouterRefusedError) as caught:
            router.models()
        assert "certificate" in str(caught.value)
        assert "self-signed" in str(caught.value)
        assert "update-ca-certificates" in caught.value.hint
        assert endpoint.requests == []


def test_a_certificate_of_another_name_is_refused(certificate: tuple[Path, Path]) -> None:
    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(certificate[0]))

    with ScriptedRouter(certificate=certificate) as endpoint:
        port = endpoint.url.rpartition(":")[2]
        with (
            client(f"https://localhost:{port}", tls=trusting) as router,
            pytest.raises(RouterRefusedError, match="certificate"),
        ):
            router.models()
        assert endpoint.requests == []


def test_https_to_a_router_without_tls_is_told(endpoint: ScriptedRouter) -> None:
    url = endpoint.url.replace("http:", "https:")
    with client(url) as router, pytest.raises(ModelError) as caught:
        router.models()
    assert "http://" in str(caught.value) + caught.value.hint


def test_http_to_something_else_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    connection, _address = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"220 mail.example ESMTP\r\n\r\n")

        thread, _ = run(greet)
        with (
            client(f"http://127.0.0.1:{listener.getsockname()[1]}") as router,
            pytest.raises(RouterRefusedError, match="does not speak HTTP"),
        ):
            router.models()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


# -- nothing goes anywhere else


def test_no_variable_and_no_proxy_redirects_anything(
    endpoint: ScriptedRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with ScriptedRouter() as bait:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, bait.url)
            monkeypatch.setenv(name.upper(), bait.url)
        for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENROUTER_API_BASE", "OLLAMA_HOST"):
            monkeypatch.setenv(name, f"{bait.url}/v1")
        for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY"):
            monkeypatch.setenv(name, "sk-bait")
        netrc = Path.home() / ".netrc"
        netrc.write_text("machine 127.0.0.1 login bait password bait\n")
        netrc.chmod(0o600)
        with client(endpoint) as router:
            assert ask(router).text
            assert embed(router).shape == (1, 64)
            assert router.models()
        assert bait.requests == []
    assert all("authorization" not in seen.headers for seen in endpoint.requests)


def test_no_redirect_is_followed(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        router.models()
        endpoint.rule("redirect")
        for attempt in (router.models, lambda: ask(router), lambda: embed(router)):
            with pytest.raises(RouterRefusedError, match="redirect"):
                attempt()


def test_the_key_goes_with_every_request() -> None:
    keys = iter(["wrong", "right", "right", "right"])
    with ScriptedRouter(api_key="right") as endpoint:
        with client(endpoint, api_key=lambda: next(keys)) as router:
            with pytest.raises(RouterRefusedError) as caught:
                router.models()
            assert "--router-key-file" in caught.value.hint
            assert ask(router).text
        with client(endpoint) as router, pytest.raises(RouterRefusedError, match="key"):
            router.models()


def test_a_key_that_no_header_can_hold_is_refused_without_quoting_it(
    endpoint: ScriptedRouter,
) -> None:
    with client(endpoint, api_key=lambda: "sk-4711\nHost: elsewhere") as router:
        with pytest.raises(SettingError) as caught:
            router.models()
        assert "4711" not in str(caught.value) + caught.value.hint
    assert endpoint.requests == []


def test_no_error_tells_anything_of_what_was_sent() -> None:
    seen: dict[str, ModelError] = {}
    with ScriptedRouter(flavour="llama.cpp") as endpoint:
        for name, misbehaviour in MISBEHAVIOURS.items():
            if misbehaviour.target == "any":
                continue
            patience = Patience(total=0.5, interval=0.05)
            with client(endpoint, patience=patience, api_key=lambda: "sk-key-0815") as router:
                router.models()
                endpoint.rule(name)
                asking: list[Callable[[], object]] = []
                if misbehaviour.target in ("chat", "model"):
                    asking.append(lambda: ask(router))
                if misbehaviour.target in ("embedding", "model"):
                    asking.append(lambda: embed(router))
                for attempt in asking:
                    try:
                        attempt()
                    except ModelError as error:
                        seen[name] = error
                endpoint.behave()
    assert len(seen) > 20
    for name, told in seen.items():
        assert told.hint, name
        for word in ("Zebedee", "axolotl", "4711", "0815"):
            assert word not in f"{told} {told.hint}", name


# -- patience


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_model_that_is_loading_is_waited_for(flavour: Any) -> None:
    clock = Clock()
    with ScriptedRouter(flavour=flavour) as endpoint:
        endpoint.play(*["loading"] * 6)
        with client(endpoint, patience=clock.patience()) as router:
            assert ask(router).text
    assert endpoint.count("chat") == 7
    assert 5.0 < sum(clock.slept) < 20.0


def test_a_router_that_loads_before_it_can_list_is_waited_for(endpoint: ScriptedRouter) -> None:
    clock = Clock()
    endpoint.play("loading_all", "loading_all")
    with client(endpoint, patience=clock.patience()) as router:
        assert router.models()
    assert clock.slept


def test_a_router_that_loads_for_ever_ends_with_the_deadline(endpoint: ScriptedRouter) -> None:
    clock = Clock()
    endpoint.rule("loading")
    with (
        client(endpoint, patience=clock.patience(total=60.0)) as router,
        pytest.raises(RouterBusyError) as caught,
    ):
        ask(router)
    assert 50.0 < sum(clock.slept) <= 60.0
    assert caught.value.retry_after is not None
    assert "--router-timeout" in caught.value.hint


def test_retry_after_is_honoured(endpoint: ScriptedRouter) -> None:
    clock = Clock()
    endpoint.play("too_many_requests", "too_many_requests")
    with client(endpoint, patience=clock.patience()) as router:
        assert embed(router).shape == (1, 64)
    assert sum(clock.slept) == pytest.approx(2.0)


def test_a_router_that_wants_to_be_asked_much_later_is_not_waited_for(
    endpoint: ScriptedRouter,
) -> None:
    clock = Clock()
    endpoint.rule("retry_much_later")
    with (
        client(endpoint, patience=clock.patience()) as router,
        pytest.raises(RouterBusyError) as caught,
    ):
        ask(router)
    assert clock.slept == []
    assert caught.value.retry_after == 3600.0


def test_an_empty_account_is_not_waited_for(endpoint: ScriptedRouter) -> None:
    clock = Clock()
    endpoint.rule("no_money")
    with (
        client(endpoint, patience=clock.patience()) as router,
        pytest.raises(RouterRefusedError, match="insufficient_quota"),
    ):
        ask(router)
    assert clock.slept == []


def test_a_slow_first_byte_is_no_error(endpoint: ScriptedRouter) -> None:
    endpoint.play("slow_first_byte")
    with client(endpoint) as router:
        assert ask(router).text


def test_a_router_that_never_answers_ends_with_the_deadline(endpoint: ScriptedRouter) -> None:
    endpoint.rule("never_answers")
    with client(endpoint, patience=Patience(total=0.3)) as router:
        for attempt in (lambda: ask(router), lambda: embed(router)):
            with pytest.raises(RouterTimeoutError) as caught:
                attempt()
            assert caught.value.retry_after is not None


def test_the_callers_deadline_counts_too(endpoint: ScriptedRouter) -> None:
    endpoint.rule("never_answers")
    with client(endpoint) as router, pytest.raises(RouterTimeoutError):
        ask(router, deadline=Deadline(0.3))
    with client(endpoint) as router, pytest.raises(RouterTimeoutError):
        router.embed(EMBED, ["text"], deadline=Deadline(0.3))


@pytest.mark.parametrize("name", ["drip", "stops_in_the_middle"])
def test_an_answer_that_does_not_end_ends_with_the_deadline(
    endpoint: ScriptedRouter, name: str
) -> None:
    endpoint.rule(name)
    with (
        client(endpoint, patience=Patience(total=0.5)) as router,
        pytest.raises(RouterTimeoutError),
    ):
        ask(router)


def test_a_first_byte_may_have_a_deadline_of_its_own(endpoint: ScriptedRouter) -> None:
    endpoint.rule("never_answers")
    with (
        client(endpoint, patience=Patience(total=600.0, first_byte=0.2)) as router,
        pytest.raises(RouterTimeoutError),
    ):
        ask(router)


def test_nothing_that_listens_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    clock = Clock()
    with client(f"http://127.0.0.1:{port}", patience=clock.patience()) as router:
        for attempt in (router.models, lambda: ask(router), lambda: embed(router)):
            with pytest.raises(RouterUnreachableError) as caught:
                attempt()
            assert str(port) in str(caught.value)
            assert "--router" in caught.value.hint
            assert caught.value.retry_after is not None
    assert clock.slept == []


def test_a_connection_lost_before_the_answer_is_tried_once_more(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        endpoint.play("reset_at_once")
        assert ask(router).text
        endpoint.play("reset_at_once")
        assert embed(router).shape == (1, 64)
        assert (endpoint.count("chat"), endpoint.count("embedding")) == (2, 2)
        endpoint.rule("reset_at_once")
        with pytest.raises(RouterUnreachableError, match="twice"):
            ask(router)
        assert endpoint.count("chat") == 4


def test_a_router_that_was_restarted_is_found_again(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        assert ask(router).text
        endpoint.stop()
        with pytest.raises(RouterUnreachableError):
            ask(router)
        endpoint.start()
        assert ask(router).text
        assert embed(router).shape == (1, 64)


def test_a_connection_lost_in_the_middle_is_an_error(endpoint: ScriptedRouter) -> None:
    endpoint.rule("reset_in_the_middle")
    with client(endpoint) as router:
        with pytest.raises(RouterUnreachableError, match="middle"):
            ask(router)
        with pytest.raises(RouterUnreachableError, match="middle"):
            embed(router)
    assert endpoint.count("chat") == 1


SLOW = {"never_answers", "stops_in_the_middle", "drip", "slow_first_byte", "endless_reply"}
PLAYED = sorted(name for name in MISBEHAVIOURS if name not in SLOW)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PLAYED), max_size=6), st.sampled_from(FLAVOURS))
def test_whatever_a_router_does_it_is_an_answer_or_an_error_of_ours(
    names: list[str], flavour: Any
) -> None:
    clock = Clock()
    with ScriptedRouter(flavour=flavour) as endpoint:
        endpoint.play(*names)
        with client(endpoint, patience=clock.patience(total=30.0)) as router:
            for _ in range(3):
                for attempt in (router.models, lambda: ask(router), lambda: embed(router, "a b c")):
                    try:
                        attempt()
                    except ModelError as error:
                        told = f"{error} {error.hint}"
                    else:
                        continue
                    assert "axolotl" not in told
            endpoint.behave()
            assert "axolotls" in ask(router).text
            assert embed(router).shape == (1, 64)


# -- several at once


def test_no_more_chats_go_at_once_than_the_router_takes(endpoint: ScriptedRouter) -> None:
    with client(endpoint, concurrency=2) as router:
        endpoint.hold_chats()
        threads = [run(lambda: ask(router)) for _ in range(6)]
        endpoint.wait_for("chat", 2)
        endpoint.release_chats()
        for thread, raised in threads:
            thread.join()
            assert raised == []
    assert endpoint.most_at_once["chat"] == 2


def test_a_question_does_not_wait_for_a_chat(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        endpoint.hold_chats()
        thread, raised = run(lambda: ask(router))
        endpoint.wait_for("chat")
        assert embed(router).shape == (1, 64)
        endpoint.release_chats()
        thread.join()
        assert raised == []


def test_the_wait_for_a_free_slot_ends_with_the_deadline(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        endpoint.hold_chats()
        thread, raised = run(lambda: ask(router))
        endpoint.wait_for("chat")
        with pytest.raises(RouterBusyError) as caught:
            ask(router, deadline=Deadline(0.2))
        assert "--router-concurrency" in caught.value.hint
        endpoint.release_chats()
        thread.join()
        assert raised == []
    assert endpoint.count("chat") == 1


@pytest.mark.parametrize("name", ["never_answers", "loading", "drip", "stops_in_the_middle"])
def test_closing_ends_what_is_under_way(endpoint: ScriptedRouter, name: str) -> None:
    endpoint.rule(name)
    router = Router(endpoint.url, patience=Patience(total=600.0, interval=300.0))
    threads = [run(lambda: ask(router)), run(lambda: embed(router))]
    endpoint.wait_for("chat")
    endpoint.wait_for("embedding")
    router.close()
    for thread, raised in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert [type(error) for error in raised] == [RouterUnreachableError]
    with pytest.raises(RouterUnreachableError, match="stopping"):
        router.models()


# -- answers that are errors, and errors that look like answers


@pytest.mark.parametrize("name", ["error_with_200", "error_text_with_200", "server_error"])
def test_an_error_is_an_error_whatever_its_status(endpoint: ScriptedRouter, name: str) -> None:
    endpoint.rule(name)
    with client(endpoint) as router:
        for attempt in (lambda: ask(router), lambda: embed(router)):
            with pytest.raises(RouterRefusedError):
                attempt()


def test_a_proxy_without_a_model_behind_it_is_unreachable(endpoint: ScriptedRouter) -> None:
    endpoint.rule("bad_gateway")
    with client(endpoint) as router, pytest.raises(RouterUnreachableError, match="502"):
        ask(router)


@pytest.mark.parametrize("name", ["endless_reply", "no_json_at_all", "compressed"])
def test_a_reply_that_cannot_be_one_is_refused(endpoint: ScriptedRouter, name: str) -> None:
    with client(endpoint) as router:
        router.models()
        endpoint.rule(name)
        for attempt in (lambda: ask(router), lambda: embed(router)):
            with pytest.raises(RouterRefusedError):
                attempt()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_unknown_model_is_named_with_what_there_is(flavour: Any) -> None:
    with ScriptedRouter(flavour=flavour) as endpoint, client(endpoint) as router:
        for attempt in (
            lambda: router.chat("gone", [{"role": "user", "content": SECRET}]),
            lambda: router.embed("gone", [SECRET]),
        ):
            with pytest.raises(ModelNotOfferedError) as caught:
                attempt()
            assert "gone" in str(caught.value)
            assert CHAT in str(caught.value)
            assert "pikuri-memory models" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["context_llama_cpp", "context_openai", "context_vllm", "context_lm_studio"]
)
def test_a_context_that_is_too_small_is_told_with_its_numbers(name: str) -> None:
    with ScriptedRouter(context_tokens=4_096) as endpoint, client(endpoint) as router:
        endpoint.rule(name)
        for attempt in (lambda: ask(router), lambda: embed(router)):
            with pytest.raises(ContextTooSmallError) as caught:
                attempt()
            assert "4096" in str(caught.value)
            assert ("8600" in str(caught.value)) or ("8700" in str(caught.value))
            assert "llama-server -c 16384" in caught.value.hint


@pytest.mark.parametrize(
    ("message", "room", "need"),
    [
        (
            "request (9412 tokens) exceeds the available context size (8192 tokens), try"
            " increasing it",
            8192,
            9412,
        ),
        ("Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)", 7424, 15028),
        (
            "The number of tokens to keep from the initial prompt is greater than the context"
            " length (n_keep: 13055>= n_ctx: 4096). Try to load the model with a larger context"
            " length, or provide a shorter input.",
            4096,
            13055,
        ),
        (
            "The decoder prompt (length 21535) is longer than the maximum model length of 16384.",
            16384,
            21535,
        ),
        (
            "The prompt (total length 25938) is too long to fit into the model (context length"
            " 4096). Make sure that `max_model_len` is no smaller.",
            4096,
            25938,
        ),
        (
            "input (600 tokens) is too large to process. increase the physical batch size"
            " (current batch size: 512)",
            512,
            600,
        ),
    ],
)
def test_the_words_of_real_routers_for_a_small_context_are_understood(
    message: str, room: int, need: int
) -> None:
    from pikuri_memory.models.trouble import Reply, context_error, is_context
    from tests.router.misbehaviours import Reply as Played

    played = Played.error(400, message, "invalid_request_error")
    problem = Reply(played.status, {}, played.body).problem
    assert problem is not None
    assert is_context(problem)
    assert str(room) in str(context_error(problem, "m"))
    assert str(need) in str(context_error(problem, "m"))


def test_a_prompt_that_was_cut_silently_is_noticed() -> None:
    with (
        ScriptedRouter(flavour="ollama", context_tokens=500) as endpoint,
        client(endpoint) as router,
    ):
        with pytest.raises(ContextTooSmallError, match="cut"):
            ask(router, "I like short words a lot. " * 400)
        assert ask(router, "I like short words a lot.").text


def test_a_long_text_without_words_is_not_taken_for_a_cut_one(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        assert ask(router, " " * 50_000 + "I like blanks a lot.").text


# -- what chats say


@pytest.mark.parametrize(
    ("name", "text", "reasoning", "finish"),
    [
        ("reasoning_only", "", "Let me think", "length"),
        ("think_tag_open", "", "The user says", "length"),
        ("empty_content", "", "", "stop"),
        ("null_content", "", "", "stop"),
        ("think_tags", '{"memory"', "maybe?", "stop"),
        ("thinks_and_answers", '{"memory"', "Let me think", "stop"),
        ("cut_json", '{"memory"', "", "length"),
    ],
)
def test_thoughts_are_told_apart_from_answers(
    endpoint: ScriptedRouter, name: str, text: str, reasoning: str, finish: str
) -> None:
    endpoint.rule(name)
    with client(endpoint) as router:
        answer = ask(router)
    assert answer.text.startswith(text)
    assert bool(answer.text) == bool(text)
    assert reasoning in answer.reasoning
    assert bool(answer.reasoning) == bool(reasoning)
    assert answer.finish_reason == finish


def test_an_end_of_thoughts_without_a_beginning_is_understood() -> None:
    def answer(body: Any) -> str:
        return 'So the user lives in Oulu.\n</think>\n{"memory": []}'

    with ScriptedRouter(answer=answer) as endpoint, client(endpoint) as router:
        told = ask(router)
    assert told.text == '{"memory": []}'
    assert told.reasoning == "So the user lives in Oulu."


def test_tags_within_json_are_no_thoughts() -> None:
    said = '{"memory": [{"text": "User closes tags with </think> and <think>"}]}'
    with ScriptedRouter(answer=lambda body: said) as endpoint, client(endpoint) as router:
        told = ask(router)
    assert (told.text, told.reasoning) == (said, "")


def test_an_answer_without_a_message_is_an_error(endpoint: ScriptedRouter) -> None:
    endpoint.rule("no_choices")
    with client(endpoint) as router, pytest.raises(ModelAnswerError):
        ask(router)


# -- what vectors are like


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "not finite"),
        ("null_numbers", "not finite"),
        ("infinite", "not finite"),
        ("zero_vectors", "zeros"),
        ("changing_dimension", "lengths"),
        ("token_vectors", "each token"),
        ("missing_vector", "2 of 3 vectors"),
    ],
)
def test_vectors_that_are_none_are_errors(
    endpoint: ScriptedRouter, name: str, message: str
) -> None:
    endpoint.rule(name)
    with client(endpoint) as router, pytest.raises(EmbeddingError, match=message) as caught:
        embed(router, "one", "two", "three")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["base64", "reversed_vectors", "no_encoding_format"])
def test_vectors_come_in_several_forms(endpoint: ScriptedRouter, name: str) -> None:
    endpoint.rule(name)
    with client(endpoint) as router:
        for _ in range(2):
            vectors = embed(router, "one", "two", "three")
            expected = [embedding(text, 64) for text in ("one", "two", "three")]
            np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def test_a_refused_field_is_left_out_from_then_on(endpoint: ScriptedRouter) -> None:
    endpoint.rule("no_encoding_format")
    with client(endpoint) as router:
        embed(router)
        embed(router)
    sent = ["encoding_format" in seen.body for seen in endpoint.seen("embedding")]
    assert sent == [True, False, False]


def test_vectors_are_given_as_they_came(endpoint: ScriptedRouter) -> None:
    endpoint.rule("not_normalised")
    with client(endpoint) as router:
        assert np.linalg.norm(embed(router)[0]) == pytest.approx(17.5, rel=1e-3)


def test_batches_of_different_dimensions_are_an_error(endpoint: ScriptedRouter) -> None:
    with client(endpoint) as router:
        endpoint.play("wrong_dimension")
        with pytest.raises(EmbeddingError, match="lengths: 32, 64"):
            router.embed(EMBED, ["text"] * 40)
