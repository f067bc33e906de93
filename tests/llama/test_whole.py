"""The whole way: the command line, a server of our own, llama-server, and every hint typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pikuri_memory import discovery
from pikuri_memory.cli.main import main
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.embedded import EmbeddedServer
from tests.llama.conftest import SingleModel, StartRouter
from tests.llama.offers import CHAT, EMBEDDER, OTHER_EMBEDDER, SMALL_CONTEXT, STUBBORN, THINKER
from tests.llama.server import LlamaServer

ROUTER_FAILED = 9
WRONG_EMBEDDER = 5


@dataclass(frozen=True)
class Told:
    """What a command line said."""

    code: int
    out: str
    err: str

    @property
    def hint(self) -> str:
        """What it says to type next."""
        (hint,) = re.findall(r"^\s*hint: (.*)$", self.out + self.err, re.MULTILINE)
        return str(hint)

    def document(self) -> Any:
        """Its JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out)


class User:
    """Somebody at a terminal."""

    def __init__(self, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data_dir = data_dir
        self._capsys = capsys

    def types(self, *words: str) -> Told:
        """Run ``pikuri-memory`` with these words."""
        self._capsys.readouterr()
        code = main(["--data-dir", str(self.data_dir), *words])
        told = self._capsys.readouterr()
        return Told(code, told.out, told.err)

    def succeeds(self, *words: str) -> Told:
        """As :meth:`types`, with a command that has to succeed."""
        told = self.types(*words)
        assert told.code == 0, told.err
        return told

    def uses(self, server: LlamaServer, *words: str) -> Told:
        """Start a server of our own whose models are this one's."""
        return self.succeeds("up", "--port", "0", "--router", server.url, *words)

    def types_hint(self, hint: str) -> Told:
        """Run the first ``pikuri-memory`` command that a hint names."""
        found = re.search(r"pikuri-memory ([a-z]+(?: --?[a-z-]+(?: [^\s;,()]+)?)*)", hint)
        assert found is not None, hint
        return self.types(*shlex.split(found.group(1)))

    def texts(self, question: str) -> list[str]:
        """What a search finds, best first."""
        found = self.succeeds("--json", "search", question, "--user", "ada").document()
        return [result["text"] for result in found["results"]]

    def degraded(self, question: str) -> Any:
        """Why a search had to do without vectors; None where it had not."""
        return self.succeeds("--json", "search", question, "--user", "ada").document()["degraded"]

    def remembers(self, text: str) -> Told:
        """Add a text, with extraction."""
        return self.succeeds("add", text, "--user", "ada")

    def has_both_models(self, text: str, question: str) -> None:
        """A second fact is found in a text and stored, and a search has vectors."""
        self.remembers(text)
        assert self.degraded(question) is None
        assert len(self.texts("the user")) == 2


def by_the_same_name(server: LlamaServer, model: str, other: str) -> None:
    """Let a server offer the file of another model, from its next start on."""
    preset = Path(server.arguments[1])
    listed = preset.read_text()
    assert f"/{model}.gguf" in listed
    preset.write_text(listed.replace(f"/{model}.gguf", f"/{other}.gguf"))


@pytest.fixture
def user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[User]:
    user = User(tmp_path / "data", capsys)
    yield user
    user.types("down")


def test_the_address_alone_is_enough(user: User, start_llama: StartRouter) -> None:
    server = start_llama(SMALL_CONTEXT, CHAT, EMBEDDER)
    listed = user.succeeds("models", "--router", server.url).out
    assert re.search(rf"^{EMBEDDER}\tembedding", listed, re.MULTILINE)
    up = user.uses(server)
    assert re.search(rf"extraction: +by {CHAT}", up.out)
    assert re.search(rf"embedder: +{EMBEDDER}", up.out)
    user.remembers("In my free time I play the kantele, you know.")
    user.remembers("For two years now I live in Oulu.")
    assert user.texts("who likes the kantele") == [
        "The user likes kantele.",
        "The user lives in Oulu.",
    ]
    assert user.texts("Oulu")[0] == "The user lives in Oulu."
    status = user.succeeds("status").out
    assert server.url.removesuffix("/v1") in status
    assert CHAT in status
    assert EMBEDDER in status


def test_a_turn_without_facts_stores_nothing_and_is_no_error(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER)
    user.uses(server)
    user.remembers("Good morning! How are you today?")
    assert user.texts("morning") == []


def test_a_restart_of_the_router_loses_nothing_and_heals_by_itself(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER)
    user.uses(server)
    user.remembers("I like origami.")
    server.stop()
    refused = user.types("add", "I live in Vaasa.", "--user", "ada")
    assert refused.code == ROUTER_FAILED
    assert "Connection refused" in refused.err
    assert "start the router" in refused.hint
    assert user.texts("what about origami?") == ["The user likes origami."]
    assert user.degraded("any origami?")["code"] == "embedder_unavailable"
    assert "unavailable" in user.succeeds("status").out
    # As the hint says.
    server.start()
    user.remembers("I live in Vaasa.")
    assert user.degraded("origami or what") is None
    assert sorted(user.texts("who is the user")) == [
        "The user likes origami.",
        "The user lives in Vaasa.",
    ]


def test_models_that_are_killed_are_loaded_again_unnoticed(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER)
    user.uses(server)
    user.remembers("I like knitting.")
    assert server.process is not None
    children = psutil.Process(server.process.pid).children()
    assert len(children) == 2
    for child in children:
        child.kill()
    user.has_both_models("I live in Joensuu.", "knitting")


def test_our_restart_needs_no_router(user: User, start_llama: StartRouter) -> None:
    server = start_llama(CHAT, EMBEDDER)
    user.uses(server)
    user.remembers("I like falconry.")
    user.succeeds("down")
    server.stop()
    user.succeeds("up", "--port", "0")
    assert user.texts("falconry") == ["The user likes falconry."]
    assert user.degraded("falconry?") is not None
    server.start()
    user.has_both_models("I live in Kuopio.", "falconry again?")


def test_a_router_that_is_away_at_its_first_mention_is_told(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER)
    server.stop()
    refused = user.types("up", "--port", "0", "--router", server.url)
    assert refused.code == ROUTER_FAILED
    server.start()
    assert user.types("up", "--port", "0", "--router", server.url).code == 0


@pytest.mark.parametrize("mode", ["single", "router"])
def test_what_a_small_context_says_to_type_solves_it(
    user: User, start_llama: StartRouter, single_llama: SingleModel, mode: str
) -> None:
    if mode == "single":
        server = single_llama(CHAT)
        arguments = server.arguments
        server.arguments = [*arguments, "-c", "2000"]
        server.start()
    else:
        # What is typed goes before what stands in the file of the preset.
        server = start_llama(SMALL_CONTEXT, EMBEDDER)
        arguments = server.arguments
    with server:
        up = user.uses(server)
        assert re.search("problem: .* more than the (2048|2000) tokens", up.out + up.err)
        refused = user.types("add", "I play the kantele.", "--user", "ada")
        assert refused.code == ROUTER_FAILED
        assert "2048" in refused.err
        typed = re.search(r"llama-server (-c \d+(?: -np \d+)?) \.\.\.", refused.hint)
        assert typed is not None, refused.hint
        server.stop()
        server.arguments = [*arguments, *shlex.split(typed.group(1))]
        server.start()
        user.remembers("I play the kantele.")
        assert user.texts("kantele") == ["The user likes kantele."]
        assert user.degraded("kantele") is None


def test_another_embedder_is_refused_until_the_hint_is_typed(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER, OTHER_EMBEDDER)
    user.uses(server)
    user.remembers("I like juggling.")
    user.succeeds("down")
    refused = user.types("up", "--port", "0", "--embedder-model", OTHER_EMBEDDER)
    assert refused.code == WRONG_EMBEDDER
    assert user.types_hint(refused.hint).code == 0
    user.succeeds("up", "--port", "0", "--embedder-model", OTHER_EMBEDDER)
    assert user.degraded("juggling") is None
    assert user.texts("who likes juggling") == ["The user likes juggling."]
    assert OTHER_EMBEDDER in user.succeeds("status").out


def test_a_model_that_changed_its_dimension_is_put_right_by_the_hint(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(CHAT, EMBEDDER)
    user.uses(server)
    user.remembers("I like croquet.")
    server.stop()
    by_the_same_name(server, EMBEDDER, OTHER_EMBEDDER)
    server.start()
    refused = user.types("add", "I live in Turku.", "--user", "ada")
    assert refused.code == ROUTER_FAILED
    assert "48" in refused.err
    assert "32" in refused.err
    assert user.texts("croquet in the garden") == ["The user likes croquet."]
    assert user.types_hint(refused.hint).code == 0
    user.remembers("I live in Turku.")
    assert user.degraded("croquet") is None
    assert user.texts("the user likes what")[0] == "The user likes croquet."


def test_a_unix_socket_is_a_router_too(
    user: User, start_llama: StartRouter, tmp_path: Path
) -> None:
    server = start_llama(CHAT, EMBEDDER, host=str(tmp_path / "router.sock"))
    user.uses(server)
    user.remembers("I live in Vaasa.")
    assert user.texts("Vaasa") == ["The user lives in Vaasa."]


def test_room_for_one_model_at_a_time_is_enough(user: User, start_llama: StartRouter) -> None:
    server = start_llama(CHAT, EMBEDDER, arguments=("--models-max", "1"))
    user.uses(server)
    user.remembers("I like origami.")
    user.has_both_models("I live in Turku.", "origami")


def test_a_text_longer_than_the_model_reads_is_found_by_its_beginning(
    user: User, start_llama: StartRouter
) -> None:
    server = start_llama(EMBEDDER)
    user.uses(server, "--llm-model", "none")
    long = "The user likes falconry. " + "Then many other things were said about the day. " * 200
    user.succeeds("add", long, "--user", "ada")
    user.succeeds("add", "Nothing was planned for today.", "--user", "ada")
    assert user.texts("falconry, and what the user likes")[0].startswith("The user likes falconry")
    # A question of that length, too.
    assert user.degraded(long + "?") is None


@pytest.mark.parametrize("model", [THINKER, STUBBORN])
def test_a_model_that_thinks_extracts_as_well(
    user: User, start_llama: StartRouter, model: str
) -> None:
    server = start_llama(model, EMBEDDER)
    user.uses(server)
    user.remembers("I like knitting.")
    assert user.texts("knitting") == ["The user likes knitting."]


def test_a_model_that_thinks_without_end_says_what_to_type(
    user: User, start_llama: StartRouter
) -> None:
    # Room for the prompt and some thoughts: the end of a larger one would be long in coming.
    server = start_llama(SMALL_CONTEXT, EMBEDDER, small=14_336)
    user.uses(server)
    server.stop()
    # What was found out about the model holds no more.
    by_the_same_name(server, CHAT, STUBBORN)
    server.start()
    refused = user.types("add", "I like knitting.", "--user", "ada")
    assert refused.code == ROUTER_FAILED
    typed = re.search(r"llama-server (--reasoning-budget \d+)", refused.hint)
    assert typed is not None, refused.hint
    assert user.texts("knitting") == []
    server.stop()
    server.arguments += typed.group(1).split()
    server.start()
    user.remembers("I like knitting.")
    assert user.texts("knitting") == ["The user likes knitting."]


def test_a_server_object_shares_the_models(start_llama: StartRouter, tmp_path: Path) -> None:
    llama = start_llama(CHAT, EMBEDDER)
    with (
        EmbeddedServer(data_dir=tmp_path / "data", port=0, router=llama.url) as server,
        server.client() as client,
    ):
        (stored,) = client.add("I live in Rovaniemi.", user_id="ada")
        assert stored.text == "The user lives in Rovaniemi."
        (kept,) = client.add("I live in Rovaniemi.", user_id="bob", infer=False)
        assert kept.text == "I live in Rovaniemi."
        assert client.search("Rovaniemi", user_id="ada")[0].text == "The user lives in Rovaniemi."


def test_a_server_that_is_killed_in_an_extraction_keeps_the_turn_once(
    start_llama: StartRouter, tmp_path: Path
) -> None:
    llama = start_llama(CHAT, EMBEDDER)
    with (
        EmbeddedServer(data_dir=tmp_path / "data", port=0, router=llama.url) as server,
        server.client() as client,
    ):
        published = discovery.read_server_info(DataPaths.at(tmp_path / "data"))
        assert published is not None
        assert client.get_all(user_id="ada") == []  # now it is known that a turn may be sent again
        stored: list[str] = []
        adding = threading.Thread(
            target=lambda: stored.extend(
                record.text for record in client.add("I like croquet.", user_id="ada")
            )
        )
        before = llama.log.count("processing task")
        adding.start()
        # The look-up of what is known is one task, the extraction is the next.
        while llama.log.count("processing task") < before + 2:
            assert adding.is_alive()
            time.sleep(0.005)
        os.kill(published.pid, signal.SIGKILL)
        adding.join(60)
        # The client brought the server back and asked again, with the same key.
        assert stored == ["The user likes croquet."]
        assert [found.text for found in client.get_all(user_id="ada")] == stored
