"""The table of misbehaviours of model endpoints, each a change of a good reply."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from tests.router.answers import embedding

if TYPE_CHECKING:
    from tests.router.scripted import ScriptedRouter

Target = Literal["chat", "embedding", "model", "any"]
KNOWN_FIELDS = {
    "model",
    "messages",
    "input",
    "temperature",
    "stream",
    "max_tokens",
    "response_format",
    "encoding_format",
}
OLLAMA_HOSTS = re.compile(
    r"(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9-]+\.(internal|localhost|local))(:\d+)?"
)


@dataclass
class Call:
    """A request as a misbehaviour sees it; ``kind`` is chat, embedding, list or native."""

    router: ScriptedRouter
    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Reply:
    """What is sent back.

    Attributes:
        status: Of HTTP.
        body: Its bytes.
        headers: Beside Content-Type and Content-Length.
        delay: Seconds before the first byte.
        drip: Seconds between single bytes of the body; 0 sends it at once.
        stop_after: Bytes of the body after which nothing more comes; None is the whole reply.
        reset_after: Bytes of the body after which the connection is reset; 0 sends no head
            either; None is the whole reply.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    stop_after: int | None = None
    reset_after: int | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Self:
        """A reply with a JSON body."""
        return cls(status, json.dumps(value).encode())

    @classmethod
    def error(
        cls, status: int, message: str, type: str, code: str | int | None = None, **more: Any
    ) -> Self:
        """An error in OpenAI's form."""
        inner = {"message": message, "type": type, "param": None, "code": code, **more}
        return cls.json({"error": inner}, status)

    def value(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Misbehaviour:
    """One way of an endpoint to be difficult.

    Attributes:
        name: Its key in the table.
        target: The requests it concerns; ``model`` are chat and embedding.
        what: One line for people: what the endpoint does.
        apply: Makes the reply from the good one.
    """

    name: str
    target: Target
    what: str
    apply: Callable[[Call, Reply], Reply]

    def fits(self, kind: str) -> bool:
        """Whether it concerns a request of this kind."""
        if self.target == "model":
            return kind in ("chat", "embedding")
        return self.target in ("any", kind)


MISBEHAVIOURS: dict[str, Misbehaviour] = {}
Apply = Callable[[Call, Reply], Reply]


def _named(name: str, target: Target, what: str) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        MISBEHAVIOURS[name] = Misbehaviour(name, target, what, apply)
        return apply

    return register


def _choice(reply: Reply) -> tuple[Any, dict[str, Any]]:
    value = reply.value()
    return value, value["choices"][0]


def _content(reply: Reply, change: Callable[[str], str], finish: str = "stop") -> Reply:
    """The reply with another text."""
    if reply.status != 200:
        return reply
    value, choice = _choice(reply)
    choice["message"]["content"] = change(choice["message"]["content"])
    choice["finish_reason"] = finish
    return Reply.json(value)


# -- what a chat model says


@_named("reasoning_only", "chat", "a thinking model uses all its tokens to think: empty content")
def _reasoning_only(call: Call, reply: Reply) -> Reply:
    return _thinking(reply, answers=False)


def _thinking(reply: Reply, *, answers: bool) -> Reply:
    if reply.status != 200:
        return reply
    value, choice = _choice(reply)
    choice["message"]["reasoning_content"] = "Let me think about what the user said here."
    if not answers:
        choice["message"]["content"] = ""
        choice["finish_reason"] = "length"
    return Reply.json(value)


@_named("think_tags", "chat", "the thoughts stand in the answer, between <think> and </think>")
def _think_tags(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: f"<think>\nA {{fact}}, maybe?\n</think>\n\n{text}")


@_named("think_tag_open", "chat", "the answer ends within <think>")
def _think_tag_open(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: "<think>\nThe user says that", "length")


@_named("empty_content", "chat", "the answer is an empty text")
def _empty_content(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: "")


@_named("null_content", "chat", "the answer is null")
def _null_content(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: None)  # type: ignore[arg-type, return-value]  # on purpose


@_named("no_choices", "chat", "the answer has no choices")
def _no_choices(call: Call, reply: Reply) -> Reply:
    value = reply.value()
    value["choices"] = []
    return Reply.json(value)


@_named("cut_json", "chat", "the JSON is cut off: finish_reason is length")
def _cut_json(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: text[: max(1, len(text) * 2 // 3)], "length")


@_named("code_fence", "chat", "the JSON stands in a code fence")
def _code_fence(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: f"```json\n{text}\n```")


@_named("prose_around", "chat", "there is prose around the JSON")
def _prose_around(call: Call, reply: Reply) -> Reply:
    return _content(
        reply, lambda text: f"Sure! Here are the memories:\n\n{text}\n\nLet me know if I can help."
    )


@_named("prose_only", "chat", "the answer is prose without any JSON")
def _prose_only(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: "The user told something about where they live.")


@_named("wrong_schema", "chat", "the JSON is valid and has another form than asked")
def _wrong_schema(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: '{"facts": ["something about the user"], "count": 1}')


@_named("wrong_types", "chat", "the JSON has the form that was asked and values of wrong types")
def _wrong_types(call: Call, reply: Reply) -> Reply:
    return _content(reply, lambda text: '{"memory": [{"id": 0, "text": 17}, "a fact", null]}')


@_named("thinks_unless_template", "chat", "thinks unless chat_template_kwargs switches it off")
def _thinks_unless_template(call: Call, reply: Reply) -> Reply:
    off = (call.body.get("chat_template_kwargs") or {}).get("enable_thinking") is False
    return reply if off else _thinking(reply, answers=False)


@_named("thinks_unless_effort", "chat", "thinks unless reasoning_effort is none")
def _thinks_unless_effort(call: Call, reply: Reply) -> Reply:
    off = call.body.get("reasoning_effort") == "none"
    return reply if off else _thinking(reply, answers=False)


@_named("thinks_unless_think_false", "chat", "thinks unless think is false (Ollama's own field)")
def _thinks_unless_think_false(call: Call, reply: Reply) -> Reply:
    return reply if call.body.get("think") is False else _thinking(reply, answers=False)


@_named("thinks_unless_no_think", "chat", "thinks unless a message says /no_think (Qwen3)")
def _thinks_unless_no_think(call: Call, reply: Reply) -> Reply:
    off = any("/no_think" in (message["content"] or "") for message in call.body["messages"])
    return reply if off else _thinking(reply, answers=False)


@_named("thinks_always", "chat", "thinks whatever it is told, and never comes to an answer")
def _thinks_always(call: Call, reply: Reply) -> Reply:
    return _thinking(reply, answers=False)


@_named("thinks_and_answers", "chat", "thinks whatever it is told, in a field of its own")
def _thinks_and_answers(call: Call, reply: Reply) -> Reply:
    return _thinking(reply, answers=True)


# -- what is refused


@_named("unknown_field", "model", "refuses a field that it does not know (400)")
def _unknown_field(call: Call, reply: Reply) -> Reply:
    unknown = sorted(set(call.body) - KNOWN_FIELDS)
    if not unknown:
        return reply
    return Reply.error(400, f"Unrecognized request argument: {unknown[0]}", "invalid_request_error")


@_named("no_json_schema", "chat", "refuses response_format json_schema (400)")
def _no_json_schema(call: Call, reply: Reply) -> Reply:
    if (call.body.get("response_format") or {}).get("type") != "json_schema":
        return reply
    return Reply.error(
        400, "'response_format.type' must be 'text' or 'json_object'", "invalid_request_error"
    )


@_named("no_response_format", "chat", "refuses response_format of any kind (400)")
def _no_response_format(call: Call, reply: Reply) -> Reply:
    if "response_format" not in call.body:
        return reply
    return Reply.error(400, "response_format is not supported", "invalid_request_error")


@_named("no_encoding_format", "embedding", "refuses encoding_format (400)")
def _no_encoding_format(call: Call, reply: Reply) -> Reply:
    if "encoding_format" not in call.body:
        return reply
    return Reply.error(400, "Unknown field: encoding_format", "invalid_request_error")


@_named("context_llama_cpp", "model", "the context is too small, as llama.cpp says it")
def _context_llama_cpp(call: Call, reply: Reply) -> Reply:
    return Reply.error(
        400,
        "the request exceeds the available context size, try increasing it",
        "exceed_context_size_error",
        400,
        n_prompt_tokens=8_600,
        n_ctx=call.router.context_tokens,
    )


@_named("context_openai", "model", "the context is too small, as OpenAI says it")
def _context_openai(call: Call, reply: Reply) -> Reply:
    room = call.router.context_tokens
    return Reply.error(
        400,
        f"This model's maximum context length is {room} tokens. However, your messages resulted"
        " in 8600 tokens. Please reduce the length of the messages.",
        "invalid_request_error",
        "context_length_exceeded",
    )


@_named("context_vllm", "model", "the context is too small, as vLLM says it")
def _context_vllm(call: Call, reply: Reply) -> Reply:
    room = call.router.context_tokens
    return Reply.error(
        400,
        f"This model's maximum context length is {room} tokens. However, you requested 8700 tokens"
        " (8600 in the messages, 100 in the completion). Please reduce the length of the messages"
        " or completion.",
        "BadRequestError",
        400,
    )


@_named("context_lm_studio", "model", "the context is too small, as LM Studio says it")
def _context_lm_studio(call: Call, reply: Reply) -> Reply:
    room = call.router.context_tokens
    return Reply.json(
        {
            "error": "Trying to keep the first 8600 tokens when context the overflows. However,"
            f" the model is loaded with context length of only {room} tokens, which is not enough."
            " Try to load the model with a larger context length, or provide a shorter input"
        },
        400,
    )


@_named("context_cut_silently", "chat", "the context is too small and the prompt is cut (Ollama)")
def _context_cut_silently(call: Call, reply: Reply) -> Reply:
    if reply.status != 200:
        return reply
    value = reply.value()
    cut = min(call.router.context_tokens, value["usage"]["prompt_tokens"] // 2)
    value["usage"]["prompt_tokens"] = max(1, cut)
    value["choices"][0]["message"]["content"] = '{"memory": []}'
    return Reply.json(value)


@_named("context_embedding_ollama", "embedding", "a text is too long, as Ollama says it")
def _context_embedding_ollama(call: Call, reply: Reply) -> Reply:
    return Reply.error(400, "the input length exceeds the context length", "api_error")


# -- how it is sent


@_named("too_many_requests", "model", "429 with Retry-After: 1")
def _too_many_requests(call: Call, reply: Reply) -> Reply:
    reply = Reply.error(429, "Rate limit reached", "rate_limit_error", "rate_limit_exceeded")
    reply.headers["Retry-After"] = "1"
    return reply


@_named("retry_much_later", "model", "429 with Retry-After: 3600")
def _retry_much_later(call: Call, reply: Reply) -> Reply:
    reply = _too_many_requests(call, reply)
    reply.headers["Retry-After"] = "3600"
    return reply


@_named("no_money", "model", "429 because an account is empty")
def _no_money(call: Call, reply: Reply) -> Reply:
    return Reply.error(
        429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"
    )


@_named("loading", "model", "503 while a model is loading")
def _loading(call: Call, reply: Reply) -> Reply:
    return Reply.error(503, "Loading model", "unavailable_error", 503)


@_named("loading_all", "any", "503 on every route while a model is loading")
def _loading_all(call: Call, reply: Reply) -> Reply:
    return _loading(call, reply)


@_named("server_error", "model", "500 with an error of its own")
def _server_error(call: Call, reply: Reply) -> Reply:
    return Reply.error(500, "CUDA out of memory", "server_error", 500)


@_named("bad_gateway", "model", "502: a proxy does not reach the model")
def _bad_gateway(call: Call, reply: Reply) -> Reply:
    page = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
    return Reply(502, page, {"Content-Type": "text/html"})


@_named("error_with_200", "model", "an error body with status 200")
def _error_with_200(call: Call, reply: Reply) -> Reply:
    return Reply.error(200, "llama runner process has terminated", "api_error")


@_named("error_text_with_200", "model", 'an error with status 200 as {"error": "text"}')
def _error_text_with_200(call: Call, reply: Reply) -> Reply:
    return Reply.json({"error": "Model was unloaded while the request was running"})


@_named("slow_first_byte", "model", "the first byte comes after 1.5 s")
def _slow_first_byte(call: Call, reply: Reply) -> Reply:
    reply.delay += 1.5
    return reply


@_named("never_answers", "model", "takes the request and never answers")
def _never_answers(call: Call, reply: Reply) -> Reply:
    reply.delay += 3600.0
    return reply


@_named("drip", "model", "sends a byte every 0.2 s")
def _drip(call: Call, reply: Reply) -> Reply:
    reply.drip = 0.2
    return reply


@_named("reset_at_once", "model", "resets the connection before the first byte")
def _reset_at_once(call: Call, reply: Reply) -> Reply:
    reply.reset_after = 0
    return reply


@_named("reset_in_the_middle", "model", "resets the connection in the middle of the answer")
def _reset_in_the_middle(call: Call, reply: Reply) -> Reply:
    reply.reset_after = max(1, len(reply.body) // 2)
    return reply


@_named("stops_in_the_middle", "model", "stops in the middle of the answer and says no more")
def _stops_in_the_middle(call: Call, reply: Reply) -> Reply:
    reply.stop_after = max(1, len(reply.body) // 2)
    return reply


@_named("endless_reply", "model", "answers with more than any answer can have")
def _endless_reply(call: Call, reply: Reply) -> Reply:
    return Reply(200, b'{"filler": "' + b"x" * (40 * 1024 * 1024) + b'"}')


@_named("no_json_at_all", "model", "answers with a web page")
def _no_json_at_all(call: Call, reply: Reply) -> Reply:
    return Reply(200, b"<!doctype html><title>Sign in</title>", {"Content-Type": "text/html"})


@_named("redirect", "any", "redirects to another host")
def _redirect(call: Call, reply: Reply) -> Reply:
    return Reply(307, b"", {"Location": f"http://127.66.66.66:9{call.path}"})


@_named("compressed", "model", "compresses its answer though nobody asked")
def _compressed(call: Call, reply: Reply) -> Reply:
    import gzip

    return Reply(reply.status, gzip.compress(reply.body), {"Content-Encoding": "gzip"})


@_named("host_check", "any", "refuses every Host but its own (403, as Ollama)")
def _host_check(call: Call, reply: Reply) -> Reply:
    if OLLAMA_HOSTS.fullmatch(call.headers.get("host", "")):
        return reply
    return Reply(403, b"", {"Content-Type": "text/plain"})


@_named("only_v1", "any", "has its routes only under /v1")
def _only_v1(call: Call, reply: Reply) -> Reply:
    if call.path.startswith("/v1/"):
        return reply
    return Reply(404, b"404 page not found", {"Content-Type": "text/plain"})


@_named("never_v1", "any", "has its routes only without /v1")
def _never_v1(call: Call, reply: Reply) -> Reply:
    if not call.path.startswith("/v1/"):
        return reply
    return Reply(404, b"404 page not found", {"Content-Type": "text/plain"})


# -- what vectors are like


def _each_vector(reply: Reply, change: Callable[[int, list[float]], Any]) -> Reply:
    if reply.status != 200:
        return reply
    value = reply.value()
    for index, row in enumerate(value["data"]):
        row["embedding"] = change(index, row["embedding"])
    # NaN and Infinity as Python and llama.cpp's older versions write them
    return Reply.json(value)


@_named("wrong_dimension", "embedding", "vectors of another length than before (half as long)")
def _wrong_dimension(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: vector[: len(vector) // 2])


@_named("changing_dimension", "embedding", "vectors of two lengths in one answer")
def _changing_dimension(call: Call, reply: Reply) -> Reply:
    value = reply.value()
    if reply.status == 200 and len(value["data"]) == 1:
        long = len(call.router.seen("embedding")) % 2 == 0
        return reply if long else _wrong_dimension(call, reply)
    return _each_vector(
        reply, lambda index, vector: vector if index % 2 == 0 else vector[: len(vector) // 2]
    )


@_named("nan", "embedding", "vectors with NaN")
def _nan(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [float("nan"), *vector[1:]])


@_named("null_numbers", "embedding", "vectors with null where a number was not finite")
def _null_numbers(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [None, *vector[1:]])


@_named("infinite", "embedding", "vectors with numbers too large for 32 bits")
def _infinite(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [1e60, *vector[1:]])


@_named("not_normalised", "embedding", "vectors of any length but one")
def _not_normalised(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [round(17.5 * number, 6) for number in vector])


@_named("zero_vectors", "embedding", "vectors of zeros only")
def _zero_vectors(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [0.0] * len(vector))


@_named("base64", "embedding", "vectors in base64 though numbers were asked for")
def _base64(call: Call, reply: Reply) -> Reply:
    return _each_vector(
        reply,
        lambda index, vector: base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode(),
    )


@_named("token_vectors", "embedding", "a vector for each token instead of each text")
def _token_vectors(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [vector, vector, vector])


@_named("missing_vector", "embedding", "a vector less than there are texts")
def _missing_vector(call: Call, reply: Reply) -> Reply:
    value = reply.value()
    value["data"] = value["data"][:-1]
    return Reply.json(value)


@_named("reversed_vectors", "embedding", "the vectors in another order, with their index")
def _reversed_vectors(call: Call, reply: Reply) -> Reply:
    value = reply.value()
    value["data"] = value["data"][::-1]
    return Reply.json(value)


@_named("constant_vectors", "embedding", "the same vector for every text")
def _constant_vectors(call: Call, reply: Reply) -> Reply:
    return _each_vector(reply, lambda index, vector: [1.0, *([0.0] * (len(vector) - 1))])


@_named("unsteady", "embedding", "another vector each time for the same text")
def _unsteady(call: Call, reply: Reply) -> Reply:
    salt = str(len(call.router.seen("embedding")))
    return _each_vector(reply, lambda index, vector: embedding(salt, len(vector)))


if __name__ == "__main__":
    import sys

    from tests.router.table import main

    sys.exit(main(sys.argv[1:]))
