"""Turns into facts: mem0's own pipeline, with our model, our embedder and a store that collects.

mem0's prompt and the order of its steps are what it is good at. Its side doors are shut: nothing is
written, kept or looked up but through the adapters here, so that the engine can commit all that a
turn gives in one transaction. mem0 goes on after failures and tells its log (an embedding that
fails loses its text, an answer that cannot be read is "nothing to remember"). Here the first
failure is kept and raised, and what came out is compared with what the model answered.

``import mem0`` takes 1 to 2 CPU-seconds and 90 MB, so nothing of it is imported before
:meth:`MemoryExtractor.warm_up` or the first extraction.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded import facts
from pikuri_memory.embedded.facts import Extracted, UnusableAnswer
from pikuri_memory.embedded.model import Embedder, Fact, Turn
from pikuri_memory.errors import (
    ContextTooSmallError,
    EmbeddingError,
    InvalidRequestError,
    MissingExtraError,
    ModelAnswerError,
    ModelError,
    RouterRefusedError,
)
from pikuri_memory.models.chat_trial import MEMORY_SCHEMA, response_format
from pikuri_memory.models.ranking import rank
from pikuri_memory.models.trouble import CONTEXT_HINT
from pikuri_memory.waiting import Deadline

if TYPE_CHECKING:
    from pikuri_memory.models.findings import ChatAbility
    from pikuri_memory.models.router import ChatAnswer, Router

T = TypeVar("T")

VERSION: Final = "2.2.1"
"""The release whose inside the adapters know."""

INSTALL: Final = "pip install 'pikuri-memory[extraction]'"

ROLES: Final = ("user", "assistant", "system")
"""Roles of messages that mem0 shows to the model; it passes over others (``tool`` ...)."""

LOOK_UP_CHARS: Final = 1000
"""So much of a turn is embedded to look up what is known already. Most embedding models read 256
or 512 tokens; where one reads more, a long turn takes long to embed and is near to nothing."""

ANSWER_TOKENS: Final = 4096
"""Most tokens of an answer, thoughts included; 15 to 80 words a fact make this some 50 facts.
Without a bound a model that repeats itself writes until the timeout."""

LEAST_ANSWER_TOKENS: Final = 1024
"""Where the context seems to have less room than this, its end is left to the router."""

_RESTART: Final = "pikuri-memory down && pikuri-memory up --llm-model"
_LIST_SECONDS: Final = 5.0
"""For the list of other models, after an answer of this one was of no use."""

_library_lock: Final = threading.Lock()
_library: list[Any] = []


class MemoryExtractor:
    """An :class:`pikuri_memory.embedded.model.Extractor`; may be shared by threads.

    Args:
        router: Where the chat model answers.
        chat: The chat model and what it can do.
        embedder: Of the memories.
    """

    def __init__(self, router: Router, chat: ChatAbility, embedder: Embedder) -> None:
        self._router = router
        self._chat = chat
        self._embedder = embedder

    def warm_up(self) -> None:
        """Import mem0, once for the process.

        Raises:
            MissingExtraError: It is not installed, or in another version, or something of it is
                missing.
        """
        _mem0()

    def extract(self, turn: Turn, deadline: Deadline) -> list[Fact]:
        """The facts of a turn in the model's order, each text once; empty only if it said so.

        Raises:
            InvalidRequestError: The turn has no text that mem0 shows to a model.
            ModelError: The router or a model failed; any of its kinds. Nothing is kept.
            MissingExtraError: As of :meth:`warm_up`.
        """
        if not any(m.role in ROLES and m.content.strip() for m in turn.messages):
            raise InvalidRequestError(
                f"there is no message of role {', '.join(ROLES)} with text in it, so there is"
                " nothing to extract from",
                hint='send {"role": "user", "content": "..."}',
            )
        memory_class = _mem0()
        run = _Run()
        memory = _pipeline(memory_class, run, turn, self._embedder, self._ask(deadline))
        try:
            memory.add(
                [{"role": m.role, "content": m.content} for m in turn.messages],
                **_stand_ins(turn),
                prompt=turn.prompt or None,
            )
        except Exception as error:
            if run.failure is None:
                # Its message may quote what it choked on.
                raise ModelError(
                    f"mem0's pipeline met an unexpected {type(error).__name__}",
                    hint="try again, or keep the text as it is: pikuri-memory add --no-infer",
                ) from None
        if run.failure is not None:
            raise run.failure
        return run.facts()

    def _ask(self, deadline: Deadline) -> Callable[[Sequence[Mapping[str, str]]], list[Extracted]]:
        def ask(messages: Sequence[Mapping[str, str]]) -> list[Extracted]:
            first = self._answer(messages, deadline, None, ANSWER_TOKENS)
            try:
                return self._read(first)
            except UnusableAnswer as fault:
                why = fault
            thinks = why.kind == "reasoning"
            again = _with(messages, _correction(why))
            tokens = ANSWER_TOKENS * (2 if thinks or why.kind == "cut" else 1)
            second = self._answer(again, deadline, first, tokens)
            try:
                return self._read(second)
            except UnusableAnswer as fault:
                raise self._unusable(fault, second) from None

        return ask

    def _answer(
        self,
        messages: Sequence[Mapping[str, str]],
        deadline: Deadline,
        before: ChatAnswer | None,
        tokens: int,
    ) -> ChatAnswer:
        context = self._chat.context_tokens
        limit: int | None = tokens
        if context is not None:
            read = (before.prompt_tokens if before is not None else None) or _tokens(messages)
            room = context - read - 256
            limit = min(tokens, room) if room >= LEAST_ANSWER_TOKENS else None
        form = response_format(self._chat.output_mode, "memories", MEMORY_SCHEMA)
        try:
            return self._chat_once(messages, form, limit, deadline)
        except RouterRefusedError as error:
            if form is None:
                raise
            # The router may have become another one since it was probed, or know schemas and not
            # this one. Whatever comes back is checked as strictly.
            try:
                return self._chat_once(messages, None, limit, deadline)
            except ModelError:
                raise error from None

    def _chat_once(
        self,
        messages: Sequence[Mapping[str, str]],
        form: Mapping[str, Any] | None,
        limit: int | None,
        deadline: Deadline,
    ) -> ChatAnswer:
        return self._router.chat(
            self._chat.model,
            self._chat.messages(messages),
            response_format=form,
            extra=self._chat.thinking_off or {},
            max_tokens=limit,
            temperature=0.0,
            deadline=deadline,
        )

    @staticmethod
    def _read(answer: ChatAnswer) -> list[Extracted]:
        return facts.read(
            answer.text, reasoning=answer.reasoning or "", finish_reason=answer.finish_reason
        )

    def _unusable(self, fault: UnusableAnswer, answer: ChatAnswer) -> ModelError:
        model, context = self._chat.model, self._chat.context_tokens
        used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        if answer.finish_reason == "length" and context is not None and used >= context - 8:
            return ContextTooSmallError(
                f"{model} reads and writes {context} tokens at once, of which the prompt took"
                f" {answer.prompt_tokens}: no room was left for its answer",
                hint=CONTEXT_HINT,
            )
        other = self._other_model()
        ways = [f"take another chat model: {_RESTART} {other}"] if other is not None else []
        if fault.kind == "reasoning":
            ways.append("start this one without thinking: llama-server --reasoning-budget 0 ...")
        if other is None:
            ways.append(f"keep texts as they are: pikuri-memory add --no-infer, or {_RESTART} none")
        hint = "; or ".join(ways)
        return ModelAnswerError(
            f"{model} was asked twice for facts, and its answer {fault.reason}", hint=hint
        )

    def _other_model(self) -> str | None:
        """The best chat model that the router offers beside this one; None where there is none."""
        try:
            offered = self._router.models(Deadline(_LIST_SECONDS))
        except ModelError:
            return None
        return rank(model for model in offered if model.id != self._chat.model).chat


@dataclass
class _Run:
    """What one extraction gathers: the model's answer, what mem0 stores, the first failure."""

    answered: list[Extracted] | None = None
    stored: list[tuple[NDArray[np.float32], Mapping[str, Any]]] = field(default_factory=list)
    failure: BaseException | None = None

    def attempt(self, work: Callable[[], T]) -> T:
        """Do something that may fail; after a failure nothing is done any more."""
        if self.failure is not None:
            raise self.failure
        try:
            return work()
        except BaseException as error:
            self.failure = error
            raise

    def facts(self) -> list[Fact]:
        """What was stored, if it is all that the model answered, each text once."""
        if self.answered is None:
            raise ModelError(
                "mem0's pipeline ended without asking the model", hint=f"install it anew: {INSTALL}"
            )
        texts = list(dict.fromkeys(each.text for each in self.answered))
        found = [payload.get("data") for _, payload in self.stored]
        if found != texts:
            raise ModelAnswerError(
                f"mem0's pipeline kept {len(found)} of {len(texts)} facts of the answer",
                hint=f"install it anew: {INSTALL}",
            )
        return [
            Fact(
                text, {"attributed_to": by} if (by := payload.get("attributed_to")) else {}, vector
            )
            for text, (vector, payload) in zip(texts, self.stored, strict=True)
        ]


# ------------------------------------------------------------------ what mem0 is given


class _Model:
    """mem0's LLM. Its answer is what we read of the model's, in the plainest JSON."""

    def __init__(
        self, run: _Run, ask: Callable[[Sequence[Mapping[str, str]]], list[Extracted]]
    ) -> None:
        self._run = run
        self._ask = ask

    def generate_response(self, messages: Sequence[Mapping[str, str]], **_: Any) -> str:
        answered = self._run.attempt(lambda: self._ask(messages))
        self._run.answered = answered
        memory = [
            {"id": str(number), "text": each.text, "attributed_to": each.attributed_to}
            for number, each in enumerate(answered)
        ]
        # mem0 takes <think> blocks out of an answer before it parses it, wherever they stand.
        return json.dumps({"memory": memory}).replace("<", "\\u003c")


class _Vectors:
    """mem0's embedder."""

    def __init__(self, run: _Run, embedder: Embedder) -> None:
        self._run = run
        self._embedder = embedder

    def embed(self, text: str, memory_action: str | None = None) -> NDArray[np.float32]:
        # What is looked up is what says the same, so it is a text among texts and no question: and
        # for texts the embedder has all the patience that a model that is being loaded needs.
        start = text[:LOOK_UP_CHARS] if memory_action == "search" else text
        return self.embed_batch([start])[0]

    def embed_batch(
        self, texts: Sequence[str], memory_action: str | None = None
    ) -> list[NDArray[np.float32]]:
        return self._run.attempt(
            lambda: list(self._checked(self._embedder.embed(texts), len(texts)))
        )

    @staticmethod
    def _checked(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        # Their length is the embedder's to check, which may be exchanged for another meanwhile.
        if vectors.ndim != 2 or len(vectors) != count:
            raise EmbeddingError(
                f"the embedder gave vectors of shape {vectors.shape} for {count} texts",
                hint="pikuri-memory models",
            )
        return vectors


class _Store:
    """mem0's vector store: finds what the record has, and collects what is to be stored."""

    def __init__(self, run: _Run, turn: Turn) -> None:
        self._run = run
        self._turn = turn

    def search(
        self, query: str, vectors: NDArray[np.float32], top_k: int = 5, filters: Any = None
    ) -> list[SimpleNamespace]:
        found = self._run.attempt(lambda: self._turn.existing(vectors, top_k))
        # No "hash": by it mem0 would drop a fact that is known, of which the record says the id.
        return [SimpleNamespace(id=each.id, payload={"data": each.text}) for each in found]

    def insert(
        self,
        vectors: Sequence[NDArray[np.float32]],
        payloads: Sequence[Mapping[str, Any]],
        ids: Sequence[str],
    ) -> None:
        self._run.stored.extend(zip(vectors, payloads, strict=True))


class _NoEntities:
    """mem0's entity store: empty, and stays so. Without spaCy, which is shut out, none come."""

    def list(self, **_: Any) -> Sequence[Any]:
        return []

    def search(self, **_: Any) -> Sequence[Any]:
        return []

    def search_batch(self, queries: Sequence[str], **_: Any) -> Sequence[Sequence[Any]]:
        return [[] for _query in queries]

    def insert(self, **_: Any) -> None:
        """Keeps nothing."""

    def update(self, **_: Any) -> None:
        """Keeps nothing."""


class _Messages:
    """mem0's database: knows the messages before the turn, and keeps nothing."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def get_last_messages(self, session_scope: str, limit: int = 10) -> list[dict[str, str]]:
        return [{"role": m.role, "content": m.content} for m in self._turn.recent[-limit:]]

    def save_messages(self, messages: Any, session_scope: str) -> None:
        """Keeps nothing."""

    def batch_add_history(self, records: Any) -> None:
        """Keeps nothing."""

    def close(self) -> None:
        """Has nothing open."""


def _pipeline(
    memory_class: Any,
    run: _Run,
    turn: Turn,
    embedder: Embedder,
    ask: Callable[[Sequence[Mapping[str, str]]], list[Extracted]],
) -> Any:
    """A ``mem0.Memory`` of one extraction.

    Its own ``__init__`` would make factories, a database and a client; what it would set is set
    here (mem0 2.2.1, ``memory/main.py``). One for each extraction costs microseconds, and nothing
    of two turns can mix.
    """
    memory = memory_class.__new__(memory_class)
    memory.config = SimpleNamespace(
        llm=SimpleNamespace(config={}), vector_store=SimpleNamespace(provider="pikuri-memory")
    )
    memory.llm = _Model(run, ask)
    memory.embedding_model = _Vectors(run, embedder)
    memory.vector_store = _Store(run, turn)
    memory.db = _Messages(turn)
    memory._entity_store = _NoEntities()
    memory.collection_name = "memories"
    memory.api_version = "v1.1"
    memory.custom_instructions = None
    memory.reranker = None
    return memory


def _stand_ins(turn: Turn) -> dict[str, str]:
    """Which ids the scope has, for the prompt depends on it. mem0 refuses ids with spaces, and
    does not need to know them."""
    return dict.fromkeys(turn.scope.as_dict(), "1")


def _with(messages: Sequence[Mapping[str, str]], said: str) -> list[Mapping[str, str]]:
    """The same question, and something after it in its last message: the templates of some models
    allow no two messages of the user in a row, and what was read before need not be read again."""
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"] + said}]


def _correction(fault: UnusableAnswer) -> str:
    return (
        "\n\n# Correction:\nAn earlier answer to this could not be used, for it"
        f" {fault.reason}. Answer again with one complete JSON object and nothing else, no code"
        ' fence, no explanation, no thinking: {"memory": [{"id": "0", "text": "...",'
        ' "attributed_to": "user"}]}, or {"memory": []} if nothing is worth remembering.'
    )


def _tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """An upper estimate of a prompt's tokens: English has 4 to 5 bytes in one, others 3."""
    return sum(len(message["content"].encode()) for message in messages) // 3


# ------------------------------------------------------------------ the library


def _mem0() -> Any:
    """The class ``mem0.Memory``, imported by whoever comes first.

    Raises:
        MissingExtraError: It is not installed, or in another version.
    """
    with _library_lock:
        if not _library:
            _check_version()
            _library.append(_import())
        return _library[0]


def _check_version() -> None:
    try:
        found = importlib.metadata.version("mem0ai")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            "facts are extracted by the library mem0ai, which is not installed", hint=INSTALL
        ) from None
    if found != VERSION:
        raise MissingExtraError(
            f"mem0ai {found} is installed, and extraction works with {VERSION} only", hint=INSTALL
        )


def _import() -> Any:
    # It logs memory texts and prompts, at error level too.
    silenced = logging.getLogger("mem0")
    silenced.addHandler(logging.NullHandler())
    silenced.propagate = False
    silenced.setLevel(logging.CRITICAL + 1)
    # It writes an id of the user into its directory while it is imported, and does not need it.
    directory = tempfile.mkdtemp(prefix="pikuri-memory-")
    before = os.environ.get("MEM0_DIR")
    os.environ["MEM0_DIR"] = directory
    # Read on import: events, and notices that are fetched from the web.
    os.environ["MEM0_TELEMETRY"] = "False"
    try:
        import mem0.memory.main
        import mem0.utils.spacy_models
    except ImportError as error:
        raise MissingExtraError(
            f"the library mem0ai cannot be imported: {error.name or 'a part of it'} is missing or"
            " another version than it needs",
            hint=INSTALL,
        ) from error
    finally:
        if before is None:
            del os.environ["MEM0_DIR"]
        else:
            os.environ["MEM0_DIR"] = before
        shutil.rmtree(directory, ignore_errors=True)
    # Where spaCy happens to be installed, mem0 downloads a model for it. These say "that failed".
    mem0.utils.spacy_models._load_failed_full = True
    mem0.utils.spacy_models._load_failed_lemma = True
    return mem0.memory.main.Memory
