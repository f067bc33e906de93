"""What a router's refusals, silences and broken replies mean, as errors of ours.

Messages say the status and the router's own name for an error, never its words about a request:
those may hold what was sent. Only for requests that held nothing of the user's are they quoted.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import httpx

from pikuri_memory.errors import (
    ContextTooSmallError,
    ModelError,
    ModelNotOfferedError,
    RouterBusyError,
    RouterRefusedError,
    RouterTimeoutError,
    RouterUnreachableError,
    SettingError,
)
from pikuri_memory.models.endpoint import Endpoint

_RESTART: Final = "pikuri-memory down && pikuri-memory up"
"""A running server stays as it is; where none runs, the first half does nothing."""

WITHOUT: Final = f"go on without it: {_RESTART} --router none"
"""Refused while the memories have vectors of the router's."""

CONTEXT_HINT: Final = (
    "give the model a larger context and start it again: llama-server -c 16384 -np 1 ..., or"
    " OLLAMA_CONTEXT_LENGTH=16384 ollama serve, or vllm serve --max-model-len 16384 ..., or in LM"
    " Studio lms load MODEL --context-length 16384"
)
KEY_HINT: Final = f"give its key in a file of mode 0600: {_RESTART} --router-key-file FILE"
_MORE_TIME: Final = (
    f"a model that is slow to load or to answer needs more: {_RESTART} --router-timeout 900"
)
RETRY_SECONDS: Final = 5.0
"""When to come back to a router that did not say when."""

_NO_MONEY: Final = "insufficient_quota"
_QUOTED: Final = 200
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_CONTEXT_NAMES: Final = {"exceed_context_size_error", "context_length_exceeded"}
_CONTEXT_WORDS: Final = re.compile(
    r"context (?:length|size|window)|maximum model length|(?:input|prompt|request)[^.]{0,40} too"
    r" (?:long|large)|n_ctx|exceeds? the (?:available|maximum) context|num_ctx"
    r"|physical batch size",
    re.IGNORECASE,
)
_ROOM: Final = (
    r"n_ctx[^0-9]{0,4}(\d+)",
    r"maximum context length (?:is|of) (\d+)",
    r"maximum model length (?:of|is) (\d+)",
    r"context length of (?:only )?(\d+)",
    r"context (?:size|window|length)[^0-9]{0,24}(\d+)",
    r"batch size: (\d+)",
)
_NEED: Final = (
    r"n_keep[^0-9]{0,4}(\d+)",
    r"requested (?:about )?(\d+)",
    r"\((?:total )?length (\d+)",
    r"keep the first (\d+)",
    r"resulted in (\d+) tokens",
    r"(?:prompt|input|request)[^0-9.]{0,40}?(\d+) (?:input )?tokens",
)
"""As worded by llama.cpp, vLLM, OpenAI and LM Studio (lmstudio-bug-tracker #237, #2256; vllm
#12165, #20409; opencode #11141)."""


@dataclass(frozen=True)
class Reply:
    """An answer as it came: ``headers`` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Its value; None when it is no JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def problem(self) -> Problem | None:
        """The error that it tells of, also one with status 200; None where it is none."""
        return _problem(self)


@dataclass(frozen=True)
class Problem:
    """An error of the router's own.

    Attributes:
        status: That of HTTP; for an error with status 200 the one inside, else 500.
        names: Its words for it that are names (``type``, ``code``): safe to repeat.
        message: Its sentence: may hold what was sent, and is repeated only where nothing was.
        details: The object it came in.
    """

    status: int
    names: tuple[str, ...]
    message: str
    details: Mapping[str, Any]


class HungUpError(Exception):
    """The connection was closed before the first byte of an answer: worth another try."""


def _problem(reply: Reply) -> Problem | None:
    failed = reply.status >= 400
    value = reply.json() if failed or len(reply.content) < 65_536 else None
    details: Mapping[str, Any] = {}
    message = ""
    if isinstance(value, dict):
        inner = value.get("error")
        if isinstance(inner, dict) and inner:
            details = inner
        elif value.get("object") == "error":
            details = value
        elif isinstance(inner, str) and inner:
            details = {**value, "message": inner}
        elif failed:
            details = value
            message = _text(value.get("detail"))
    if not failed and not details:
        return None
    status = reply.status
    if not failed:
        code = details.get("code")
        status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    message = _text(details.get("message")) or message
    names = [details.get(key) for key in ("type", "code", "error_code", "name")]
    kept = tuple(
        dict.fromkeys(name for name in names if isinstance(name, str) and _NAME.fullmatch(name))
    )
    return Problem(status, kept, message, details)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def passes(reply: Reply) -> bool:
    """Whether the reply means "not yet": it is worth to wait and ask again."""
    problem = reply.problem
    if problem is None or problem.status not in (429, 503):
        return False
    # A bill that is not paid is no matter of minutes.
    return _NO_MONEY not in problem.names


def died(reply: Reply) -> bool:
    """Whether the process that ran the model ended under the request (llama.cpp's router mode)."""
    return reply.status == 500 and reply.content.startswith(b"proxy error")


def retry_after(reply: Reply) -> float | None:
    """Seconds of ``Retry-After``; None where it is missing or no number of seconds."""
    told = reply.headers.get("retry-after", "").strip()
    return float(told) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", told) else None


def busy(reply: Reply, endpoint: Endpoint, seconds: float, told: float | None) -> ModelError:
    """The error when a router says "not yet" for too long, or wants to be asked too late."""
    status = reply.problem.status if reply.problem else reply.status
    state = "has too much to do" if status == 429 else "is loading a model or too busy"
    asks = "" if told is None else f", and asks to come back in {told:g} s"
    return RouterBusyError(
        f"the router at {endpoint} {state} ({_status(reply)}){asks}; it had {seconds:g} s",
        hint=f"try again later; {_MORE_TIME}",
        retry_after=RETRY_SECONDS if told is None else told,
    )


def closed(endpoint: Endpoint) -> ModelError:
    """The error for a request that was under way when we stopped."""
    return RouterUnreachableError(
        f"the request to the router at {endpoint} was given up: we are stopping",
        hint="try again when the server is up: pikuri-memory up",
        retry_after=RETRY_SECONDS,
    )


def late(endpoint: Endpoint, seconds: float) -> ModelError:
    """The error after a deadline."""
    return RouterTimeoutError(
        f"the router at {endpoint} did not answer within {seconds:g} s",
        hint=_MORE_TIME,
        retry_after=RETRY_SECONDS,
    )


def failure(error: Exception, endpoint: Endpoint, seconds: float, *, begun: bool) -> Exception:
    """What an error of httpx means.

    Args:
        error: As httpx raised it.
        endpoint: Whom it was about.
        seconds: The deadline, for the message.
        begun: Whether an answer had begun.
    """
    match error:
        case httpx.ConnectTimeout():
            return _unreachable(endpoint, "no connection in time")
        case httpx.ConnectError():
            cause = _certificate(error)
            if cause is not None:
                return RouterRefusedError(
                    f"the certificate of {endpoint} is not trusted: {cause}", hint=_TLS_HINT
                )
            return _unreachable(endpoint, _connect_reason(error, endpoint))
        case httpx.TimeoutException():
            return late(endpoint, seconds)
        case httpx.NetworkError() | httpx.RemoteProtocolError() if not begun and _lost(error):
            return HungUpError(f"the router at {endpoint} hung up without an answer")
        case httpx.NetworkError() | httpx.RemoteProtocolError() if begun:
            return RouterUnreachableError(
                f"the router at {endpoint} hung up in the middle of its answer",
                hint="look at the router's log, and try again",
                retry_after=RETRY_SECONDS,
            )
        case httpx.RemoteProtocolError():
            return RouterRefusedError(
                f"what answers at {endpoint} does not speak HTTP", hint=_address_hint(endpoint)
            )
        case _:
            return RouterRefusedError(
                f"the router at {endpoint} cannot be asked ({type(error).__name__})",
                hint=_address_hint(endpoint),
            )


_TLS_HINT: Final = (
    "let this machine trust it: cp CERTIFICATE.pem /usr/local/share/ca-certificates/router.crt &&"
    " update-ca-certificates; or go through a tunnel: ssh -N -L 8080:127.0.0.1:8080 HOST, with"
    " --router http://127.0.0.1:8080"
)


def hung_up(error: HungUpError) -> ModelError:
    """The error when that happened twice."""
    return RouterUnreachableError(
        f"{error}, twice", hint="look at the router's log, and try again", retry_after=RETRY_SECONDS
    )


def _lost(error: Exception) -> bool:
    # httpcore's own words; a peer that speaks something else gives other ones.
    return not isinstance(error, httpx.RemoteProtocolError) or "disconnected" in str(error)


def _unreachable(endpoint: Endpoint, reason: str) -> ModelError:
    return RouterUnreachableError(
        f"nothing answers at the router's address {endpoint}: {reason}",
        hint=f"start the router; or give another address: {_RESTART} --router URL; or {WITHOUT}",
        retry_after=RETRY_SECONDS,
    )


def _connect_reason(error: Exception, endpoint: Endpoint) -> str:
    # Nothing has been sent yet: this is the system's own text.
    text = str(error) or "no connection"
    if endpoint.scheme == "https" and "ssl" in text.lower():
        return "what listens there does not speak TLS; is it http://?"
    return text[:_QUOTED]


def _certificate(error: BaseException) -> str | None:
    """Why a certificate was refused; None when that is not what happened."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    found = re.search(r"certificate verify failed: ([^(]*)", str(error))
    return found.group(1).strip() if found else None


def _address_hint(endpoint: Endpoint) -> str:
    return f"see what listens there: curl -v {_curl(endpoint)}/v1/models"


def _curl(endpoint: Endpoint) -> str:
    if endpoint.socket is not None:
        return f"--unix-socket {endpoint.socket} {endpoint.origin}{endpoint.prefix}"
    return endpoint.url


def _status(reply: Reply) -> str:
    problem = reply.problem
    names = f" {', '.join(problem.names)}" if problem is not None and problem.names else ""
    return f"HTTP {reply.status}{names}"


def is_context(problem: Problem) -> bool:
    """Whether a refusal means that the text was too long for the model."""
    if _CONTEXT_NAMES & set(problem.names):
        return True
    return problem.status in (400, 413, 422, 500) and bool(_CONTEXT_WORDS.search(problem.message))


def context_error(problem: Problem, model: str) -> ModelError:
    """The error for a text that is too long, with the numbers that the router tells."""
    room = _number(problem, ("n_ctx",), _ROOM)
    need = _number(problem, ("n_prompt_tokens", "n_tokens"), _NEED)
    numbers = "".join(
        part
        for part in (
            f", which reads {room} tokens at once" if room is not None else "",
            f"; the text has {need}" if need is not None else "",
        )
    )
    return ContextTooSmallError(
        f"the text is too long for the context of {model}{numbers}", hint=CONTEXT_HINT, room=room
    )


def _number(problem: Problem, keys: tuple[str, ...], patterns: tuple[str, ...]) -> int | None:
    for key in keys:
        value = problem.details.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    for pattern in patterns:
        if found := re.search(pattern, problem.message, re.IGNORECASE):
            return int(found.group(1))
    return None


def refuse(reply: Reply, endpoint: Endpoint, *, model: str | None) -> None:
    """Raise for whatever is no success.

    Args:
        reply: The answer.
        endpoint: Whose.
        model: What was asked for; None for a request that held nothing of the user's, whose
            errors may be quoted.
    """
    if 300 <= reply.status < 400:
        raise RouterRefusedError(
            f"the router at {endpoint} redirects (HTTP {reply.status}) and redirects are not"
            " followed",
            hint="give the address that it redirects to as --router, if you trust it:"
            f" curl -sI {_curl(endpoint)}/v1/models | grep -i location",
        )
    problem = reply.problem
    if problem is None:
        if not 200 <= reply.status < 300:
            raise RouterRefusedError(
                f"the router at {endpoint} answers HTTP {reply.status}",
                hint=_address_hint(endpoint),
            )
        return
    status = problem.status
    if model is not None and is_context(problem):
        raise context_error(problem, model)
    said = _status(reply)
    if model is None and problem.message:
        said += ": " + " ".join(problem.message.split())[:_QUOTED]
    if status == 401:
        raise RouterRefusedError(f"the router at {endpoint} wants a key ({said})", hint=KEY_HINT)
    if status == 403:
        raise RouterRefusedError(
            f"the router at {endpoint} refuses us ({said})",
            hint=f"either the key is wrong ({KEY_HINT}), or the router answers only to its own"
            " name: give --router the host that it listens on, such as http://127.0.0.1:11434",
        )
    if "pooling" in problem.message.lower():
        raise RouterRefusedError(
            f"the router at {endpoint} makes no one vector of a text"
            + (f" with {model}" if model else "")
            + f" ({said})",
            hint="an embedding model may need: llama-server --embeddings --pooling mean, or"
            " 'pooling = mean' under its name into the file of --models-preset; or choose another"
            " model: pikuri-memory models lists them",
        )
    if status == 501:
        raise RouterRefusedError(
            f"the router at {endpoint} does not do that"
            + (f" with {model}" if model else "")
            + f" ({said})",
            hint="llama-server gives vectors of no model unless told to: start it with"
            " --embeddings, or write 'embeddings = true' under the model's name into the file of"
            " its --models-preset",
        )
    if status in (502, 504) or died(reply):
        raise RouterUnreachableError(
            f"what answers at {endpoint} does not reach the model behind it ({said})",
            hint="look whether the model is running, in the router's log, and try again",
            retry_after=RETRY_SECONDS,
        )
    if _NO_MONEY in problem.names:
        raise RouterRefusedError(
            f"the account at {endpoint} has used up what it may use ({said})",
            hint=f"fill it up; or {WITHOUT}; or with another: {_RESTART} --router URL",
        )
    raise RouterRefusedError(
        f"the router at {endpoint} refused" + (f" {model}" if model else "") + f" ({said})",
        hint="look at the router's log",
        retry_after=RETRY_SECONDS if status >= 500 or status in (408, 425) else None,
    )


def refuse_unknown(names: list[str], model: str, endpoint: Endpoint) -> None:
    """Raise if the router's list does not have the model (``x`` stands for ``x:latest`` too)."""
    if model in names or f"{model}:latest" in names:
        return
    raise not_offered(model, names, endpoint)


def not_offered(model: str, names: list[str], endpoint: Endpoint) -> ModelNotOfferedError:
    """The error for a model that is not in the list; names up to ten that are."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return ModelNotOfferedError(
        f"the router at {endpoint} does not offer {model}; it offers {shown or 'no model at all'}",
        hint=f"see them with: pikuri-memory models --router {endpoint}",
    )


def refuse_encoded(headers: httpx.Headers, endpoint: Endpoint) -> None:
    """Raise for a compressed body: it was asked for as it is, and its size could not be bounded."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RouterRefusedError(
            f"the router at {endpoint} answers in the encoding {encoding[:20]!r}, which nobody"
            " asked for",
            hint="switch compression off in the proxy before the router",
        )


def too_large(endpoint: Endpoint, largest: int) -> ModelError:
    """The error for a reply over its limit in bytes."""
    return RouterRefusedError(
        f"a reply of the router at {endpoint} is larger than {largest // 2**20} MiB",
        hint=_address_hint(endpoint),
    )


def checked_key(key: str) -> str:
    """The key, if it can stand in a header.

    Raises:
        SettingError: It cannot; does not quote it.
    """
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise SettingError(
            "the router's key holds characters that no key has",
            hint="look at the file that --router-key-file names: one line, the key alone",
        )
    return key


def no_tls() -> ssl.SSLContext:
    """A context that trusts no one, for connections that are not encrypted."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
