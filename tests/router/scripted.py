"""A model endpoint over real HTTP that can be told to misbehave in every way that was seen.

:class:`ScriptedRouter` serves in threads of the test's process, on 127.0.0.1 or a unix socket;
``python -m tests.router.scripted`` is the same as a process of its own (it prints one line of JSON
with its address, and ends when its standard input does). It embeds by hashing words, so that texts
with shared words are near, and answers a chat with the sentences of the last user message in mem0's
form. :data:`MISBEHAVIOURS` names what it can be told, by :meth:`ScriptedRouter.play` (for the next
requests), :meth:`ScriptedRouter.rule` (for all), or over its control routes ``/_scripted/...``.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from tests.router.answers import embedding, enforced, remembers, sentences
from tests.router.misbehaviours import MISBEHAVIOURS, Call, Misbehaviour, Reply
from tests.router.wire import Seen, TcpServer, UnixServer

__all__ = [
    "MISBEHAVIOURS",
    "Call",
    "Misbehaviour",
    "Reply",
    "ScriptedRouter",
    "Seen",
    "embedding",
    "remembers",
    "sentences",
]

Flavour = Literal["plain", "llama.cpp", "llama.cpp-router", "ollama", "lmstudio", "vllm"]
Answer = Callable[[Mapping[str, Any]], str]
Embed = Callable[[str], Sequence[float]]
CHARACTERS_PER_TOKEN = 4


class ScriptedRouter:
    """An OpenAI-compatible endpoint, as one of the known servers would shape it.

    Args:
        chat_models: Ids of chat models.
        embedding_models: Ids of embedding models.
        other_models: Ids that do neither.
        dimensions: Length of a vector.
        answer: Gives the content of a chat from the request's body.
        embed: Gives the vector of a text, where that is not :func:`embedding`.
        flavour: Whose routes and lists it has. Only ``plain`` and the two of llama.cpp answer
            without ``/v1`` too; ``llama.cpp`` has one model, and ``llama.cpp-router`` loads on
            demand; ``ollama`` refuses foreign Host names.
        context_tokens: What a chat model reads; longer prompts are refused as the flavour does it.
        characters_per_token: How tokens are counted.
        trained_tokens: What models were made for, where that is not 131,072.
        embedding_characters: Longest text that is embedded.
        refused_words: A text with one of them is not embedded.
        latency: Seconds before every answer of a model.
        api_key: Asked for when given.
        loaded: Ids that are in memory at first.
        socket_path: A unix socket to listen on instead of TCP.
        port: TCP port; 0 takes a free one.
        certificate: Files of a certificate and its key, for https.
    """

    def __init__(
        self,
        *,
        chat_models: Sequence[str] = ("scripted-instruct",),
        embedding_models: Sequence[str] = ("scripted-embed",),
        other_models: Sequence[str] = (),
        dimensions: int = 64,
        answer: Answer = sentences,
        embed: Embed | None = None,
        flavour: Flavour = "plain",
        context_tokens: int = 32_768,
        characters_per_token: int = CHARACTERS_PER_TOKEN,
        trained_tokens: Mapping[str, int] | None = None,
        embedding_characters: int = 100_000,
        refused_words: Sequence[str] = (),
        latency: float = 0.0,
        api_key: str | None = None,
        loaded: Sequence[str] = (),
        socket_path: Path | None = None,
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self.chat_models = tuple(chat_models)
        self.embedding_models = tuple(embedding_models)
        self.other_models = tuple(other_models)
        self.dimensions = dimensions
        self.answer = answer
        self.embed = embed
        self.flavour: Flavour = flavour
        self.context_tokens = context_tokens
        self.characters_per_token = characters_per_token
        self.trained_tokens = dict(trained_tokens or {})
        self.embedding_characters = embedding_characters
        self.refused_words = tuple(refused_words)
        self.latency = latency
        self.api_key = api_key
        self.loaded = set(loaded)
        self.seed = ""
        self.requests: list[Seen] = []
        self.released = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.most_at_once: dict[str, int] = {}
        self._at_once: dict[str, int] = {}
        self._queue: deque[Misbehaviour] = deque()
        self._rules: list[tuple[Misbehaviour, str | None]] = []
        self._lock = threading.Lock()
        self._socket_path = socket_path
        self._certificate = certificate
        self.port = port
        self._server: TcpServer | UnixServer | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    # -- life

    def start(self) -> Self:
        """Listen; ``url`` is set afterwards. After :meth:`stop` it listens where it did."""
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
            self._server = UnixServer(str(self._socket_path), self)
            self.url = f"unix:{self._socket_path}"
        else:
            server = TcpServer(("127.0.0.1", self.port), self)
            self.port = server.port
            scheme = "http"
            if self._certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self._certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
                scheme = "https"
            self.url = f"{scheme}://127.0.0.1:{self.port}"
            self._server = server
        self.released.clear()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="scripted-router", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and close every connection."""
        self.released.set()
        self.gate.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- script

    def play(self, *names: str) -> None:
        """Let the next requests that each name fits misbehave so, one after the other."""
        with self._lock:
            self._queue.extend(MISBEHAVIOURS[name] for name in names)

    def rule(self, *names: str, kind: str | None = None) -> None:
        """Let every request that a name fits misbehave so, or those of one kind, until
        :meth:`behave`."""
        with self._lock:
            self._rules.extend((MISBEHAVIOURS[name], kind) for name in names)

    def behave(self) -> None:
        """Forget all rules and what is queued."""
        with self._lock:
            self._rules.clear()
            self._queue.clear()

    def seen(self, kind: str | None = None) -> list[Seen]:
        """The requests that came, or those of one kind: chat, embedding, list, native."""
        with self._lock:
            return [seen for seen in self.requests if kind is None or seen.kind == kind]

    def count(self, kind: str, model: str | None = None) -> int:
        """How many requests of a kind came, for one model or for any."""
        return sum(model is None or seen.model == model for seen in self.seen(kind))

    def wait_for(self, kind: str, count: int = 1, seconds: float = 20.0) -> None:
        """Wait until so many requests of a kind have come."""
        end = time.monotonic() + seconds
        while self.count(kind) < count:
            if time.monotonic() > end:
                raise AssertionError(f"no {count} requests of the kind {kind} within {seconds} s")
            time.sleep(0.005)

    def hold_chats(self) -> None:
        """Let chats wait before they are answered, until :meth:`release_chats`."""
        self.gate.clear()

    def release_chats(self) -> None:
        """Answer what was held."""
        self.gate.set()

    def enter(self, kind: str) -> None:
        """Count a request that is under way."""
        with self._lock:
            self._at_once[kind] = self._at_once.get(kind, 0) + 1
            self.most_at_once[kind] = max(self.most_at_once.get(kind, 0), self._at_once[kind])

    def leave(self, kind: str) -> None:
        """The request is answered."""
        with self._lock:
            self._at_once[kind] -= 1

    # -- answers

    def reply(self, seen: Seen) -> Reply:
        """The reply to a request, with the misbehaviours that fit it."""
        if seen.path.startswith("/_scripted/"):
            return self._control(seen)
        call = Call(self, seen.kind, seen.method, seen.path, seen.headers, seen.body)
        with self._lock:
            self.requests.append(seen)
            chosen = [
                each
                for each, kind in self._rules
                if each.fits(seen.kind) and kind in (None, seen.kind)
            ]
            for each in self._queue:
                if each.fits(seen.kind):
                    chosen.append(each)
                    self._queue.remove(each)
                    break
        if self.api_key is not None and seen.headers.get("authorization") != (
            f"Bearer {self.api_key}"
        ):
            return Reply.error(401, "wrong key", "authentication_error", "invalid_api_key")
        reply = self._behaved(call)
        for each in (*self._by_nature(call), *chosen):
            reply = each.apply(call, reply)
        if seen.kind in ("chat", "embedding"):
            reply.delay += self.latency
        return reply

    def _by_nature(self, call: Call) -> list[Misbehaviour]:
        """What a server of this flavour does that others do not."""
        natures = []
        if self.flavour in ("ollama", "lmstudio", "vllm") and call.kind != "native":
            natures.append(MISBEHAVIOURS["only_v1"])
        if self.flavour == "ollama":
            natures.append(MISBEHAVIOURS["host_check"])
        return natures

    def _behaved(self, call: Call) -> Reply:
        match call.kind:
            case "chat" | "embedding":
                wanted = self.chat_models if call.kind == "chat" else self.embedding_models
                if call.body.get("model") not in wanted:
                    return self._unknown(call.body.get("model"))
                self.loaded.add(call.body["model"])
                if call.kind == "embedding":
                    return self._embedded(call)
                if self.tokens(call.body) > self.context_tokens:
                    return self._too_long(call)
                return Reply.json(self.completion(call.body))
            case "list":
                return Reply.json(self._list())
            case _:
                native = self._native(call)
                return (
                    Reply.error(404, "not found", "not_found_error") if native is None else native
                )

    def _embedded(self, call: Call) -> Reply:
        texts = _texts(call.body)
        if max(map(len, texts), default=0) > self.embedding_characters:
            return MISBEHAVIOURS["context_embedding_ollama"].apply(call, Reply(200, b""))
        if any(word in text for word in self.refused_words for text in texts):
            return Reply.error(400, "this text is not embedded", "invalid_request_error")
        if "dimensions" in call.body:  # as vLLM, of a model whose vectors have one length
            message = "the model does not support changing its output dimensions"
            return Reply.error(400, message, "BadRequestError", 400)
        return Reply.json(self.vectors(call.body))

    def tokens(self, body: Mapping[str, Any]) -> int:
        """How long a prompt is; no word is less than a token."""
        texts = [str(message.get("content") or "") for message in body["messages"]]
        words = sum(len(text.split()) for text in texts)
        return max(words, sum(map(len, texts)) // self.characters_per_token)

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        content = enforced(self.answer(body), body.get("response_format"))
        prompt = self.tokens(body)
        said = len(content) // self.characters_per_token
        return {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 1_767_225_600,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": said,
                "total_tokens": prompt + said,
            },
        }

    def vectors(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """An embedding reply."""
        embed = self.embed or (lambda text: embedding(text, self.dimensions, self.seed))
        return {
            "object": "list",
            "model": body["model"],
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": list(embed(text)),
                }
                for index, text in enumerate(_texts(body))
            ],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }

    def _unknown(self, model: Any) -> Reply:
        match self.flavour:
            case "ollama":
                message = f'model "{model}" not found, try pulling it first'
                return Reply.error(404, message, "not_found_error")
            case "llama.cpp-router":
                return Reply.error(400, f"model '{model}' not found", "invalid_request_error")
            case "vllm":
                message = f"The model `{model}` does not exist."
                return Reply.error(404, message, "NotFoundError", 404)
            case _:
                message = f"The model `{model}` does not exist"
                return Reply.error(404, message, "invalid_request_error", "model_not_found")

    def _too_long(self, call: Call) -> Reply:
        names = {
            "ollama": "context_cut_silently",
            "lmstudio": "context_lm_studio",
            "vllm": "context_vllm",
            "plain": "context_openai",
        }
        played = MISBEHAVIOURS[names.get(self.flavour, "context_llama_cpp")]
        return played.apply(call, Reply.json(self.completion(call.body)))

    def _trained(self, model: str) -> int:
        return self.trained_tokens.get(model, 131_072)

    def _all(self) -> tuple[str, ...]:
        return (*self.chat_models, *self.embedding_models, *self.other_models)

    def _list(self) -> dict[str, Any]:
        owners = {
            "llama.cpp": "llamacpp",
            "llama.cpp-router": "llamacpp",
            "ollama": "library",
            "lmstudio": "organization_owner",
            "vllm": "vllm",
        }
        owner = owners.get(self.flavour, "scripted")
        data: list[dict[str, Any]] = []
        for model in self._all():
            entry: dict[str, Any] = {"id": model, "object": "model", "owned_by": owner}
            if self.flavour == "vllm":
                entry["max_model_len"] = self.context_tokens
            if self.flavour == "llama.cpp":
                entry["meta"] = {
                    "n_ctx_train": self._trained(model),
                    "n_embd": 64,
                    "n_params": 1_000_000,
                }
            if self.flavour == "llama.cpp-router":
                words = ["llama-server", "--alias", model, "--ctx-size", str(self.context_tokens)]
                if model in self.embedding_models:
                    words.append("--embeddings")
                state = "loaded" if model in self.loaded else "unloaded"
                entry["status"] = {"value": state, "args": words}
            data.append(entry)
        listing: dict[str, Any] = {"object": "list", "data": data}
        if self.flavour == "llama.cpp":
            listing["models"] = [
                {"name": model, "model": model, "capabilities": self._capabilities(model)}
                for model in self._all()
            ]
        return listing

    def _capabilities(self, model: str) -> list[str]:
        if self.flavour == "llama.cpp":
            return ["completion"]  # whatever it is, as the real one
        if model in self.embedding_models:
            return ["embedding"]
        return ["completion"] if model in self.chat_models else []

    def _native(self, call: Call) -> Reply | None:
        path = call.path.partition("?")[0]
        llama = self.flavour.startswith("llama.cpp")
        if llama and path == "/health":
            return Reply.json({"status": "ok"})
        if llama and path == "/props":
            settings = {"n_ctx": self.context_tokens}
            return Reply.json({"default_generation_settings": settings, "chat_template": "{{ x }}"})
        if llama and path == "/tokenize":
            count = len(str(call.body.get("content", ""))) // self.characters_per_token
            return Reply.json({"tokens": list(range(count))})
        if self.flavour == "ollama":
            return self._ollama(path, call)
        if self.flavour == "lmstudio" and path == "/api/v0/models":
            return Reply.json({"object": "list", "data": [self._studio(m) for m in self._all()]})
        return None

    def _ollama(self, path: str, call: Call) -> Reply | None:
        if path == "/api/tags":
            return Reply.json({"models": [{"name": m, "details": {}} for m in self._all()]})
        if path == "/api/ps":
            running = [
                {"name": model, "context_length": self.context_tokens}
                for model in sorted(self.loaded)
            ]
            return Reply.json({"models": running})
        if path == "/api/show":
            model = call.body.get("model")
            if model not in self._all():
                return self._unknown(model)
            return Reply.json(
                {
                    "details": {"family": "scripted"},
                    "model_info": {"scripted.context_length": self._trained(model)},
                    "capabilities": self._capabilities(model),
                }
            )
        return None

    def _studio(self, model: str) -> dict[str, Any]:
        kind = "embeddings" if model in self.embedding_models else "llm"
        row: dict[str, Any] = {
            "id": model,
            "type": kind,
            "arch": "scripted",
            "state": "loaded" if model in self.loaded else "not-loaded",
            "max_context_length": self._trained(model),
        }
        if model in self.loaded:
            row["loaded_context_length"] = self.context_tokens
        return row

    def _control(self, seen: Seen) -> Reply:
        """Routes for tests in other processes; what they ask is not counted."""
        body = seen.body if isinstance(seen.body, dict) else {}
        match seen.path.removeprefix("/_scripted/"):
            case "play":
                self.play(*body["names"])
            case "rule":
                self.rule(*body["names"])
            case "behave":
                self.behave()
            case "set":
                for name in ("latency", "dimensions", "context_tokens", "seed"):
                    if name in body:
                        setattr(self, name, body[name])
            case "requests":
                told = [[s.kind, s.method, s.path, s.model] for s in self.seen()]
                return Reply.json({"requests": told})
            case _:
                return Reply.error(404, "no such control route", "not_found_error")
        return Reply.json({})


def _texts(body: Mapping[str, Any]) -> list[str]:
    given = body["input"]
    return [given] if isinstance(given, str) else given


def main() -> None:
    """Serve until the standard input ends; the first line printed is JSON with the address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--flavour", default="plain")
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--context-tokens", type=int, default=32_768)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--chat-model", action="append")
    parser.add_argument("--embedding-model", action="append")
    parser.add_argument("--rule", action="append", default=[])
    parser.add_argument("--stay", action="store_true", help="serve until a signal")
    given = parser.parse_args()
    router = ScriptedRouter(
        chat_models=given.chat_model or ("scripted-instruct",),
        embedding_models=given.embedding_model or ("scripted-embed",),
        flavour=given.flavour,
        dimensions=given.dimensions,
        context_tokens=given.context_tokens,
        latency=given.latency,
        port=given.port,
        socket_path=given.socket,
    )
    router.rule(*given.rule)
    with router:
        print(json.dumps({"url": router.url}), flush=True)
        if given.stay:
            threading.Event().wait()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
