"""The user's models over HTTP: one small client of an OpenAI-compatible endpoint (the router).

Nothing but the endpoint's address decides where a request goes: no variable of the environment, no
proxy, no redirect. Local models are slow to load and serve one request at a time, so a router that
answers late, or with 503 while it loads, is waited for until the deadline, and chats queue here and
not there. What it says is told in errors without any text that was sent to it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from pikuri_memory.errors import (
    ContextTooSmallError,
    ModelError,
    RouterBusyError,
    RouterRefusedError,
)
from pikuri_memory.models import trouble
from pikuri_memory.models.answers import (
    ChatAnswer,
    chat_answer,
    equal_lengths,
    object_of,
    vectors_of,
)
from pikuri_memory.models.endpoint import Endpoint
from pikuri_memory.models.offers import OfferedModel, names, offers, properties
from pikuri_memory.models.tls import trusted
from pikuri_memory.models.trouble import Reply, is_context
from pikuri_memory.waiting import Deadline

__all__ = ["ChatAnswer", "Endpoint", "OfferedModel", "Patience", "Router"]

EMBEDDING_SLOTS: Final = 4
"""Embedding requests at once, beside the chats: a question never waits for an extraction."""

BATCH: Final = 32
"""Most texts in one embedding request."""

MIB: Final = 1024 * 1024
LARGEST_REPLY: Final = 8 * MIB
LARGEST_EMBEDDING_REPLY: Final = 32 * MIB
"""32 vectors of 4,096 numbers are 3 MB as text."""

LEAST_CUT: Final = 256
"""Words of a prompt that every context has room for."""

LONGEST_SLEEP: Final = 0.5
"""Seconds after which a waiting request looks whether the router was closed."""

NATIVE_SECONDS: Final = 5.0
"""For routes beside the OpenAI ones, which tell more and of which none is needed."""


@dataclass(frozen=True)
class Patience:
    """How long what may take, in seconds.

    Attributes:
        connect: Until there is a connection.
        first_byte: Until the first byte of an answer; None is ``total``. A model that has to be
            loaded first sends nothing before its answer is ready.
        total: One request, with all waits for a model that is loading.
        interval: The first wait after "not yet"; each further one is twice as long.
        longest_interval: The longest wait, whatever ``Retry-After`` says.
        clock: Seconds that never go back.
        sleep: Waits for a number of seconds.
    """

    connect: float = 5.0
    first_byte: float | None = None
    total: float = 300.0
    interval: float = 0.25
    longest_interval: float = 30.0
    clock: Callable[[], float] = field(default=time.monotonic, compare=False, repr=False)
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False, repr=False)

    def deadline(self, seconds: float | None = None) -> Deadline:
        """A deadline from now on: of one request, or of so many seconds."""
        return Deadline(
            self.total if seconds is None else seconds, clock=self.clock, sleep=self.sleep
        )


class _Within:
    """Two deadlines as one: the caller's, and that of one request."""

    def __init__(self, own: Deadline, callers: Deadline | None) -> None:
        self._all = [own] if callers is None else [own, callers]

    def remaining(self) -> float:
        return min(each.remaining() for each in self._all)

    def pause(self, seconds: float) -> None:
        min(self._all, key=Deadline.remaining).pause(seconds)

    @property
    def expired(self) -> bool:
        return self.remaining() <= 0.0

    @property
    def seconds(self) -> float:
        return min(each.seconds for each in self._all)


class Router:
    """An OpenAI-compatible endpoint: llama.cpp's llama-server, Ollama, LM Studio, vLLM.

    It may be shared by threads. Nothing is sent before the first call.

    Args:
        endpoint: Its address, with or without ``/v1``: the first call finds out.
        api_key: Gives the key that is sent to it, asked for every request; None sends none.
        patience: How long what may take.
        concurrency: Most chats at once; further ones wait.
        tls: Gives the context that certificates of an https endpoint are checked with.

    Every method raises, besides what it says itself: ``RouterUnreachableError`` at once when
    nothing listens, ``RouterTimeoutError`` after the deadline, ``RouterBusyError`` when it was
    loading or too busy until then, ``RouterRefusedError`` for an error of its own (a wrong key, a
    redirect, a reply that is too large or no JSON), ``ModelNotOfferedError`` for an unknown model.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        api_key: Callable[[], str | None] = lambda: None,
        patience: Patience = Patience(),  # frozen
        concurrency: int = 1,
        tls: Callable[[], Any] = trusted,
    ) -> None:
        self.endpoint = Endpoint.parse(endpoint) if isinstance(endpoint, str) else endpoint
        self.patience = patience
        self.concurrency = concurrency
        self._api_key = api_key
        self._tls = tls
        self._chats = threading.BoundedSemaphore(concurrency)
        self._embeddings = threading.BoundedSemaphore(EMBEDDING_SLOTS)
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False
        self._base: str | None = None
        self._plain_embeddings = False

    def __repr__(self) -> str:
        return f"Router({self.endpoint.url!r})"

    def close(self) -> None:
        """End what is under way in other threads, and refuse what comes: for good."""
        with self._lock:
            self._closed = True
            http, self._http = self._http, None
            connections = list(self._connections)
        for connection in connections:
            _hang_up(connection)
        if http is not None:
            http.close()

    def models(self, deadline: Deadline | None = None) -> tuple[OfferedModel, ...]:
        """What the router offers, in its order. No model is loaded by asking."""
        within = self._within(deadline)
        listing = self._listing(within)
        return offers(listing, lambda method, path, body: self._native(method, path, body, within))

    def properties(self, model: str, deadline: Deadline | None = None) -> Mapping[str, Any]:
        """What the router's own routes tell of a model; empty where it has none.

        Keys, each only where it is told: ``context_tokens`` (int, what it has now),
        ``trained_context_tokens`` (int, what it could have), ``capabilities`` (tuple of str),
        ``thinks`` (bool), ``server`` (str: llama.cpp, Ollama, LM Studio, vLLM).
        """
        within = self._within(deadline)
        listing = self._listing(within)
        return properties(
            model, listing, lambda method, path, body: self._native(method, path, body, within)
        )

    def count_tokens(self, model: str, text: str, deadline: Deadline | None = None) -> int | None:
        """Tokens of a text by the router's own tokenizer; None where it has no such route.

        llama.cpp takes the text as ``content`` and vLLM as ``prompt``. The model may be loaded.
        """
        within = self._within(deadline)
        self._listing(within)
        body = {"model": model, "content": text, "prompt": text}
        told = self._native("POST", "/tokenize", body, within)
        tokens = told.get("tokens") if isinstance(told, dict) else None
        return len(tokens) if isinstance(tokens, list) and tokens else None

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        response_format: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        deadline: Deadline | None = None,
    ) -> ChatAnswer:
        """One answer of a chat model, as it is: an empty text is for the caller to judge.

        Args:
            model: Its id.
            messages: Each with ``role`` and ``content``.
            response_format: OpenAI's; None sends none.
            extra: Further members of the request's body.
            max_tokens: Most tokens of the answer; None leaves it to the router.
            temperature: 0 asks for the likeliest answer.
            deadline: Shared with other waits of the caller, the one for a free slot included.

        Raises:
            ContextTooSmallError: The messages are longer than what the model reads.
            ModelAnswerError: The reply is no chat completion.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "stream": False,
        }
        if response_format is not None:
            body["response_format"] = dict(response_format)
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        body.update(extra or {})
        with self._slot(self._chats, "chat", deadline):
            within = self._within(deadline)
            reply = self._post("/chat/completions", body, within)
            answer = chat_answer(self._value(reply, model, within), model)
        _refuse_cut_prompt(answer, messages, model)
        return answer

    def embed(
        self, model: str, texts: Sequence[str], *, deadline: Deadline | None = None
    ) -> NDArray[np.float32]:
        """Vectors as the model gives them: prefixes and normalising are the caller's.

        Returns:
            Shape (len(texts), dimensions); finite, none all zero. Shape (0, 0) for no texts.

        Raises:
            EmbeddingError: What came back are no such vectors, or not one for each text.
            ContextTooSmallError: A text is longer than what the model reads.
        """
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            with self._slot(self._embeddings, "embedding", deadline):
                parts.append(self._embed(model, batch, deadline))
        if not parts:
            return np.empty((0, 0), dtype=np.float32)
        equal_lengths(parts, model)
        return np.concatenate(parts)

    def _embed(
        self, model: str, texts: list[str], deadline: Deadline | None
    ) -> NDArray[np.float32]:
        body: dict[str, Any] = {"model": model, "input": texts}
        within = self._within(deadline)
        plain = self._plain_embeddings
        asked = body if plain else {**body, "encoding_format": "float"}
        reply = self._post("/embeddings", asked, within, LARGEST_EMBEDDING_REPLY)
        problem = reply.problem
        if not plain and problem and problem.status in (400, 422) and not is_context(problem):
            # Some know no encoding_format, and refuse what they do not know.
            second = self._post("/embeddings", body, within, LARGEST_EMBEDDING_REPLY)
            if second.problem is None:
                self._plain_embeddings = True
                reply = second
        return vectors_of(self._value(reply, model, within), model, len(texts))

    def _within(self, deadline: Deadline | None) -> _Within:
        return _Within(self.patience.deadline(), deadline)

    @contextmanager
    def _slot(
        self, slots: threading.BoundedSemaphore, what: str, deadline: Deadline | None
    ) -> Iterator[None]:
        wait = self.patience.total if deadline is None else deadline.remaining()
        if not slots.acquire(timeout=wait):
            raise RouterBusyError(
                f"other {what} requests to {self.endpoint} took all of {wait:.0f} s",
                hint="try again, or raise --router-concurrency if the router serves several at"
                " once",
                retry_after=5.0,
            )
        try:
            yield
        finally:
            slots.release()

    def _listing(self, within: _Within) -> Mapping[str, Any]:
        """The model list; settles where the routes are, by looking."""
        return self._settled(within)[1]

    def _settled(self, within: _Within) -> tuple[str, Mapping[str, Any]]:
        """The path that the routes stand below, and the model list that told it."""
        tried = []
        for base in self._bases():
            reply = self._request("GET", base + "/models", None, within)
            if reply.status in (404, 405, 501):
                tried.append(base + "/models")
                continue
            trouble.refuse(reply, self.endpoint, model=None)
            listing = object_of(reply, self.endpoint)
            if "data" in listing:
                self._base = base
                return base, listing
            tried.append(base + "/models")
        self._base = None
        raise RouterRefusedError(
            f"{self.endpoint} is no OpenAI-compatible endpoint: no model list at"
            f" {' or '.join(tried)}",
            hint="give the URL that stands before /chat/completions, such as"
            " http://127.0.0.1:8080/v1",
        )

    def _bases(self) -> list[str]:
        prefix = self.endpoint.prefix
        if self._base is not None:
            return [self._base]
        if self.endpoint.versioned:
            return [prefix + "/v1"]
        return [prefix + "/v1", prefix]

    def _post(
        self, path: str, body: Mapping[str, Any], within: _Within, largest: int = LARGEST_REPLY
    ) -> Reply:
        base = self._base
        if base is None:
            base, _ = self._settled(within)
        return self._request("POST", base + path, body, within, largest)

    def _value(self, reply: Reply, model: str, within: _Within) -> Mapping[str, Any]:
        """The JSON object of the reply to a POST.

        Raises:
            ModelError: It is an error, or none.
        """
        problem = reply.problem
        if problem and problem.status in (400, 404) and not is_context(problem):
            # Routers word it in many ways; the list is the same everywhere.
            trouble.refuse_unknown(names(self._listing(within)), model, self.endpoint)
        trouble.refuse(reply, self.endpoint, model=model)
        return object_of(reply, self.endpoint)

    def _native(
        self, method: str, path: str, body: Mapping[str, Any] | None, within: _Within
    ) -> Any:
        """JSON of a route beside the OpenAI ones; None when there is none."""
        short = _Within(self.patience.deadline(NATIVE_SECONDS), None)
        if within.remaining() < short.remaining():
            short = within
        try:
            reply = self._once(method, self.endpoint.prefix + path, body, short, LARGEST_REPLY)
        except (ModelError, trouble.HungUpError):
            return None
        return reply.json() if reply.status == 200 else None

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        within: _Within,
        largest: int = LARGEST_REPLY,
    ) -> Reply:
        """The first reply that is not "not yet"; a lost one is asked for once more."""
        wait = self.patience.interval
        lost = False
        while True:
            try:
                reply = self._once(method, path, body, within, largest)
            except trouble.HungUpError as error:
                if lost:
                    raise trouble.hung_up(error) from None
                lost = True
                continue
            if trouble.died(reply) and not lost:
                lost = True
                # The router starts it again, once it has seen that it is gone.
                within.pause(wait)
                continue
            if not trouble.passes(reply):
                return reply
            told = trouble.retry_after(reply)
            pause = min(max(told or 0.0, wait), self.patience.longest_interval)
            if max(pause, told or 0.0) >= within.remaining():
                raise trouble.busy(reply, self.endpoint, within.seconds, told)
            self._pause(pause, within)
            wait = min(2 * wait, self.patience.longest_interval / 10)

    def _pause(self, seconds: float, within: _Within) -> None:
        end = within.remaining() - seconds
        while not self._closed and (left := within.remaining() - end) > 0 and not within.expired:
            within.pause(min(left, LONGEST_SLEEP))

    def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        within: _Within,
        largest: int,
    ) -> Reply:
        left = within.remaining()
        if self._closed:
            raise trouble.closed(self.endpoint)
        if left <= 0:
            raise trouble.late(self.endpoint, within.seconds)
        first = left if self.patience.first_byte is None else min(left, self.patience.first_byte)
        timeout = httpx.Timeout(first, connect=min(left, self.patience.connect), pool=left)
        try:
            http = self._client()
            request = http.build_request(
                method,
                self.endpoint.origin + path,
                content=None if body is None else encoded(body),
                headers=self._headers(body is not None),
                timeout=timeout,
                extensions={"trace": self._trace},
            )
            response = http.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            # httpx raises RuntimeError when the client is closed meanwhile.
            raise self._failure(error, within, begun=False) from None
        try:
            content = self._read(response, within, largest)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._failure(error, within, begun=True) from None
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, content)

    def _failure(self, error: Exception, within: _Within, *, begun: bool) -> Exception:
        if self._closed:
            return trouble.closed(self.endpoint)
        if within.expired:
            return trouble.late(self.endpoint, within.seconds)
        return trouble.failure(error, self.endpoint, within.seconds, begun=begun)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's way to tell of its sockets, which :meth:`close` has to end."""
        if event in (
            "connection.connect_tcp.complete",
            "connection.connect_unix_socket.complete",
            "connection.start_tls.complete",
        ):
            found = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._connections.add(found)
                closed = self._closed
            if closed:
                _hang_up(found)

    def _read(self, response: httpx.Response, within: _Within, largest: int) -> bytes:
        # httpx bounds the wait for each piece: the first by this, the whole by a watch.
        timeouts = response.request.extensions.get("timeout")
        if isinstance(timeouts, dict):
            timeouts["read"] = within.remaining()
        trouble.refuse_encoded(response.headers, self.endpoint)
        told = response.headers.get("content-length", "")
        whole = int(told) if told.isascii() and told.isdigit() else None
        watch: threading.Timer | None = None
        parts: list[bytes] = []
        size = 0
        try:
            for part in response.iter_raw():
                parts.append(part)
                size += len(part)
                if size > largest:
                    raise trouble.too_large(self.endpoint, largest)
                if within.expired:
                    raise trouble.late(self.endpoint, within.seconds)
                if watch is None and size != whole:
                    stream = response.extensions["network_stream"]
                    watch = threading.Timer(
                        within.remaining(), _hang_up, (stream.get_extra_info("socket"),)
                    )
                    watch.daemon = True
                    watch.start()
        finally:
            if watch is not None:
                watch.cancel()
        return b"".join(parts)

    def _headers(self, body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body:
            headers["Content-Type"] = "application/json"
        if key := self._api_key():
            headers["Authorization"] = f"Bearer {trouble.checked_key(key)}"
        return headers

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._closed:
                raise trouble.closed(self.endpoint)
            if self._http is None:
                connections = self.concurrency + EMBEDDING_SLOTS + 4
                # Without a context of our own httpx reads all certificates of the machine.
                self._http = httpx.Client(
                    transport=httpx.HTTPTransport(
                        verify=self._tls() if self.endpoint.scheme == "https" else trouble.no_tls(),
                        uds=self.endpoint.socket,
                        trust_env=False,
                        limits=httpx.Limits(
                            max_connections=connections, max_keepalive_connections=connections
                        ),
                    ),
                    trust_env=False,
                    follow_redirects=False,
                    headers={"User-Agent": "pikuri-memory"},
                )
            return self._http


def _hang_up(connection: socket.socket) -> None:
    # To close a socket wakes nobody who reads from it; this does.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def encoded(body: Mapping[str, Any]) -> bytes:
    """The body as JSON in UTF-8. Half of a surrogate pair, which UTF-8 has not, becomes ``?``."""
    return json.dumps(dict(body), ensure_ascii=False).encode("utf-8", "replace")


def _refuse_cut_prompt(
    answer: ChatAnswer, messages: Sequence[Mapping[str, str]], model: str
) -> None:
    """Ollama cuts a prompt that is too long without a word; the count of its tokens tells.

    No tokenizer of a language model makes one token of two words with a space between, so fewer
    tokens than words were read only when words were left out. (mem0's instructions have 5,062
    words; a context of 4,096 is then cut to 2,050 tokens, ollama/ollama#17889.)
    """
    words = sum(len(message.get("content", "").split()) for message in messages)
    if answer.prompt_tokens and words > LEAST_CUT and answer.prompt_tokens < words:
        raise ContextTooSmallError(
            f"{model} read {answer.prompt_tokens} tokens of a prompt of at least {words}:"
            " the router cut it",
            hint=trouble.CONTEXT_HINT,
        )
