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
import hashlib
import json
import math
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

from tests.router.misbehaviours import MISBEHAVIOURS, Call, Misbehaviour, Reply

__all__ = ["MISBEHAVIOURS", "Call", "Misbehaviour", "Reply", "ScriptedRouter", "Seen", "embedding"]

Flavour = Literal["plain", "llama.cpp", "llama.cpp-router", "ollama", "lmstudio", "vllm"]
Answer = Callable[[Mapping[str, Any]], str]
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; ``kind`` says what it was for."""

    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def model(self) -> str | None:
        """The model that it asked for."""
        return self.body.get("model") if isinstance(self.body, dict) else None


def embedding(text: str, dimensions: int, seed: str = "") -> list[float]:
    """A vector of unit length: each word adds to four places that its hash names."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or ["<nothing>"]:
        digest = hashlib.blake2b(f"{seed}{word}".encode("utf-8", "replace"), digest_size=32)
        for place, sign in struct.iter_unpack(">IB3x", digest.digest()):
            vector[place % dimensions] += 1.0 if sign & 1 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    if length == 0.0:
        vector[0] = length = 1.0
    return [round(number / length, 7) for number in vector]


def sentences(body: Mapping[str, Any]) -> str:
    """mem0's form of an answer: every sentence that the user said in the new messages."""
    messages = [message for message in body["messages"] if message.get("role") == "user"]
    text = str(messages[-1].get("content", "")) if messages else ""
    if found := re.search(r"(?ms)^## New Messages\n(.*?)(?=^## |\Z)", text):
        text = ""
        role = ""
        for line in found.group(1).splitlines():
            if start := re.match(r"(user|assistant|system): ", line):
                role, line = start.group(1), line[start.end() :]
            if role == "user":
                text += line + "\n"
    said = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text)]
    facts = [part for part in said if len(part.split()) >= 3 and not part.endswith("?")]
    return json.dumps(
        {
            "memory": [
                {"id": str(number), "text": fact, "attributed_to": "user"}
                for number, fact in enumerate(facts)
            ]
        },
        ensure_ascii=False,
    )


def enforced(content: str, response_format: Mapping[str, Any] | None) -> str:
    """What a grammar makes of an answer: itself where it fits, else the least that does."""
    form = response_format or {}
    if form.get("type") != "json_schema":
        return content
    schema = form["json_schema"]["schema"]
    with suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict) and set(schema.get("required", ())) <= set(value):
            return content
    return json.dumps(_least(schema))


def _least(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {})
            return {name: _least(known.get(name, {})) for name in schema.get("required", ())}
        case "array":
            return [_least(schema["items"])] * schema.get("minItems", 0)
        case "string":
            return ""
        case "integer" | "number":
            return 0
        case "boolean":
            return False
        case _:
            return None


class ScriptedRouter:
    """An OpenAI-compatible endpoint, as one of the known servers would shape it.

    Args:
        chat_models: Ids of chat models.
        embedding_models: Ids of embedding models.
        other_models: Ids that do neither.
        dimensions: Length of a vector.
        answer: Gives the content of a chat from the request's body.
        flavour: Whose routes and lists it has. Only ``plain`` and the two of llama.cpp answer
            without ``/v1`` too; ``llama.cpp`` has one model, and ``llama.cpp-router`` loads on
            demand.
        context_tokens: What a chat model reads; longer prompts are refused as the flavour does it.
        characters_per_token: How tokens are counted.
        trained_tokens: What models were made for, where that is not 131,072.
        embedding_characters: Longest text that is embedded.
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
        flavour: Flavour = "plain",
        context_tokens: int = 32_768,
        characters_per_token: int = CHARACTERS_PER_TOKEN,
        trained_tokens: Mapping[str, int] | None = None,
        embedding_characters: int = 100_000,
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
        self.flavour: Flavour = flavour
        self.context_tokens = context_tokens
        self.characters_per_token = characters_per_token
        self.trained_tokens = dict(trained_tokens or {})
        self.embedding_characters = embedding_characters
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
        self._rules: list[Misbehaviour] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._socket_path = socket_path
        self._certificate = certificate
        self._port = port
        self._server: socketserver.BaseServer | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    # -- life

    def start(self) -> Self:
        """Listen; ``url`` is set afterwards. After :meth:`stop` it listens where it did."""
        handler = type("Handler", (_Handler,), {"router": self})
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
            self._server = _UnixServer(str(self._socket_path), handler)
            self.url = f"unix:{self._socket_path}"
        else:
            server = _TcpServer(("127.0.0.1", self._port), handler)
            self._port = server.server_port
            scheme = "http"
            if self._certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self._certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
                scheme = "https"
            self.url = f"{scheme}://127.0.0.1:{self._port}"
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
            self._server = None
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
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

    def rule(self, *names: str) -> None:
        """Let every request that a name fits misbehave so, until :meth:`behave`."""
        with self._lock:
            self._rules.extend(MISBEHAVIOURS[name] for name in names)

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
            chosen = [each for each in self._rules if each.fits(seen.kind)]
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
        for each in chosen:
            reply = each.apply(call, reply)
        if seen.kind in ("chat", "embedding"):
            reply.delay += self.latency
        return reply

    def _behaved(self, call: Call) -> Reply:
        match call.kind:
            case "chat" | "embedding":
                wanted = self.chat_models if call.kind == "chat" else self.embedding_models
                if call.body.get("model") not in wanted:
                    return self._unknown(call.body.get("model"))
                self.loaded.add(call.body["model"])
                if call.kind == "embedding":
                    given = call.body["input"]
                    texts = [given] if isinstance(given, str) else given
                    if max(map(len, texts), default=0) > self.embedding_characters:
                        played = MISBEHAVIOURS["context_embedding_ollama"]
                        return played.apply(call, Reply(200, b""))
                    return Reply.json(self.vectors(call.body))
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
        given = body["input"]
        texts = [given] if isinstance(given, str) else given
        return {
            "object": "list",
            "model": body["model"],
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": embedding(text, self.dimensions, self.seed),
                }
                for index, text in enumerate(texts)
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


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up, or a handshake that failed

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # that of HTTPServer asks for the host's name
        self.server_name = "127.0.0.1"
        self.server_port = self.server_address[1]


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    router: ScriptedRouter
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # small writes of head and body would wait for each other

    def setup(self) -> None:
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.router._lock:
            self.router._open.add(self.request)
        super().setup()

    def finish(self) -> None:
        with self.router._lock:
            self.router._open.discard(self.request)
        with suppress(OSError, ValueError):
            super().finish()

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            self._send(Reply.error(400, "no JSON", "invalid_request_error"))
            return
        seen = Seen(_kind(self.command, self.path), self.command, self.path, headers, body)
        self.router.enter(seen.kind)
        left = False
        try:
            reply = self.router.reply(seen)
            if seen.kind == "chat":
                self.router.gate.wait()
            if reply.delay > 0:
                self.router.released.wait(reply.delay)
            self.router.leave(seen.kind)
            left = True
            self._send(reply)
        finally:
            if not left:
                self.router.leave(seen.kind)

    do_GET = do_POST = _serve

    def _send(self, reply: Reply) -> None:
        if reply.reset_after == 0:
            self._reset()
            return
        length = {"Content-Length": str(len(reply.body))}
        headers = {"Content-Type": "application/json", **length, **reply.headers}
        head = f"HTTP/1.1 {reply.status} Scripted\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self.wfile.write(head.encode("latin-1"))
        if reply.reset_after is not None:
            self.wfile.write(reply.body[: reply.reset_after])
            self.wfile.flush()
            self._reset()
        elif reply.stop_after is not None:
            self.wfile.write(reply.body[: reply.stop_after])
            self.wfile.flush()
            self.router.released.wait()
            self.close_connection = True
        elif reply.drip > 0:
            for number in range(len(reply.body)):
                self.wfile.write(reply.body[number : number + 1])
                self.wfile.flush()
                if self.router.released.wait(reply.drip):
                    break
        else:
            self.wfile.write(reply.body)
            self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()


def _kind(method: str, path: str) -> str:
    bare = path.partition("?")[0].rstrip("/")
    for end, kind in (
        ("/chat/completions", "chat"),
        ("/embeddings", "embedding"),
        ("/v1/models", "list"),
    ):
        if bare.endswith(end):
            return kind
    return "list" if bare == "/models" else "native"


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
