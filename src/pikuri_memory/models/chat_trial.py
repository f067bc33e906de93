"""Trying a chat model: JSON, thinking and how to switch it off, context, and a test turn."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pikuri_memory.errors import (
    ContextTooSmallError,
    ModelAnswerError,
    RouterRefusedError,
    RouterTimeoutError,
)
from pikuri_memory.models.findings import ChatAbility, Finding, OutputMode
from pikuri_memory.models.offers import OfferedModel
from pikuri_memory.models.ranking import rank
from pikuri_memory.models.router import ChatAnswer, Router
from pikuri_memory.models.trouble import CONTEXT_HINT
from pikuri_memory.waiting import Deadline

CHARACTERS_PER_TOKEN: Final = 4
"""An estimate for English prose, on the safe side for most vocabularies: the prompt that is
measured below has 4.1 characters a token for BERT's."""

PROMPT_CHARACTERS: Final = 33_653 + 563 + 184
"""What mem0ai 2.2.1 sends with every turn (``mem0.configs.prompts``): the instructions, those for
agents, and the headings of the turn's own part."""

ROOM_CHARACTERS: Final = 10 * 312 + 10 * 300 + 4_000
"""What a turn adds: its last 10 messages (cut at 300 characters each), 10 memories nearest to it,
and itself: two pages of text."""

ANSWER_TOKENS: Final = 2_048
"""What the facts of a turn take, written as JSON: 20 of 80 words."""

SUGGESTED_CONTEXT: Final = 16_384

_MODES: Final[tuple[OutputMode, ...]] = ("json_schema", "json_object", "prompt")
_TRIAL_TOKENS: Final = 256
_THINKING_TOKENS: Final = 2_048
_CANARY_TOKENS: Final = 1_024

_YES_OR_NO: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
MEMORY_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "memory": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "text": {"type": "string"},
                    "attributed_to": {"type": "string", "enum": ["user", "assistant"]},
                },
                "required": ["id", "text", "attributed_to"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["memory"],
    "additionalProperties": False,
}
"""mem0's answer (``configs/prompts.py``, "OUTPUT FORMAT") without ``linked_memory_ids``, which
its pipeline throws away (2.2.1) and which cost a local model seconds to write. Every property is
required and no other allowed, as OpenAI's strict mode wants it."""

_QUESTION: Final = "Is Oulu a city in Finland?"
_CANARY_SYSTEM: Final = (
    "You extract memories from conversations. Write every fact that the user tells about"
    " themselves as a sentence of its own. Return only JSON of this form:"
    ' {"memory": [{"id": "0", "text": "the fact", "attributed_to": "user"}]}'
)
_CANARY_TURN: Final = (
    "## New Messages\n"
    "user: I moved from Turku to Oulu in March because of my new job at the harbour. My cat is"
    " called Bella, and she hated the train.\n\n# Output:"
)
_CANARY_WORDS: Final = ("oulu", "bella")

_Switch = tuple[Mapping[str, Any] | None, str]
_TEMPLATE: Final[_Switch] = ({"chat_template_kwargs": {"enable_thinking": False}}, "")
_EFFORT: Final[_Switch] = ({"reasoning_effort": "none"}, "")
_THINK: Final[_Switch] = ({"think": False}, "")
_BUDGET: Final[_Switch] = ({"thinking_budget_tokens": 0}, "")
_NO_THINK: Final[_Switch] = (None, " /no_think")
_SWITCHES: Final = (_TEMPLATE, _EFFORT, _BUDGET, _THINK, _NO_THINK)
_OLLAMA_SWITCHES: Final = (_EFFORT, _THINK, _TEMPLATE, _NO_THINK)
"""llama.cpp and vLLM hand ``chat_template_kwargs`` to the template, and llama.cpp can end the
thoughts of a template that has no switch; Ollama knows ``reasoning_effort`` on this route
(ollama/ollama#14820)."""


def restart(router: str, flag: str, model: str = "NAME") -> str:
    """What takes another model of a router, whether a server runs or not, at the first start too.

    Args:
        router: URL.
        flag: ``--llm-model`` or ``--embedder-model``.
        model: Which.
    """
    flags = shlex.join(["--router", router, flag, model])
    return f"pikuri-memory down && pikuri-memory up {flags}"


def _others(router: str) -> str:
    listed = shlex.join(["pikuri-memory", "models", "--router", router])
    return f"{listed} lists others, then {restart(router, '--llm-model')}"


@dataclass(frozen=True)
class _Told:
    """A model's answer to the trial question."""

    answer: ChatAnswer

    @property
    def thinks(self) -> bool:
        return bool(self.answer.reasoning)

    def object(self, strict: bool) -> Mapping[str, Any] | None:
        """The JSON object that it is; not strictly: that stands somewhere in it."""
        text = self.answer.text.strip()
        if not strict and (found := re.search(r"\{.*\}", text, re.DOTALL)):
            text = found.group()
        try:
            value = json.loads(text)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


def try_chat(
    router: Router, model: str, offered: Sequence[OfferedModel], deadline: Deadline
) -> tuple[ChatAbility, list[Finding]]:
    """Find out how a model gives JSON, whether it thinks, and what fits into its context.

    Raises:
        RouterRefusedError: It does not chat.
        ModelAnswerError: It gives no answer of any kind.
        ContextTooSmallError: Not even the trial fits.
    """
    trial = _Trial(router, model, deadline)
    url = router.endpoint.url
    mode, told = trial.mode()
    thinks, off, suffix = told.thinks, None, ""
    if thinks:
        off, suffix, told, mode = trial.switch_off(mode, told)
    answers = mode is not None
    if mode is None:
        mode = "prompt"
    silent = not told.answer.text.strip()
    if silent and not thinks:
        raise ModelAnswerError(f"{model} answers a question with nothing", hint=_others(url))
    ability = ChatAbility(
        model=model,
        output_mode=mode,
        thinks=thinks,
        thinking_off=off,
        context_tokens=None,
        prompt_tokens=0,
        fits=None,
        canary=None,
        prompt_suffix=suffix,
    )
    context, need, fits = trial.context()
    canary = trial.canary(ability) if answers else None
    ability = ChatAbility(
        model, mode, thinks, off, context, need, fits, canary, prompt_suffix=suffix
    )
    others = [other for other in offered if other.id != model]
    findings = [
        *([] if silent else _output(ability, answers, url)),
        *_thinking(ability, silent, trial.server, url, rank(others).chat),
        *_context(ability, trial.server, url, trial.trained, _roomier(others, need)),
        *_canary(ability, url),
    ]
    return ability, findings


class _Trial:
    """The questions that one model is asked."""

    def __init__(self, router: Router, model: str, deadline: Deadline) -> None:
        self._router = router
        self._model = model
        self._deadline = deadline
        self.server = ""
        self.trained: int | None = None

    def mode(self) -> tuple[OutputMode | None, _Told]:
        """The strictest way that gives JSON, with what was told; None where none does."""
        refusal: RouterRefusedError | ModelAnswerError | None = None
        last: _Told | None = None
        for mode in _MODES:
            try:
                told = self._ask(mode)
            except (RouterRefusedError, ModelAnswerError) as error:
                refusal = refusal or error
                continue
            if _obeys(told, mode):
                return mode, told
            if told.thinks:
                # Thoughts that took all of its tokens say nothing of the mode.
                return None, told
            last = told if last is None or told.answer.text.strip() else last
        if last is None:
            assert refusal is not None
            raise refusal
        return None, last

    def switch_off(
        self, mode: OutputMode | None, told: _Told
    ) -> tuple[Mapping[str, Any] | None, str, _Told, OutputMode | None]:
        """What switches thinking off, with the mode and the answer that come of it."""
        self.server = self.server or str(
            self._router.properties(self._model, self._deadline).get("server", "")
        )
        for off, suffix in _OLLAMA_SWITCHES if self.server == "Ollama" else _SWITCHES:
            quiet = self._modes((mode,) if mode else None, off, suffix, _TRIAL_TOKENS)
            if quiet is not None and not quiet[1].thinks:
                return off, suffix, quiet[1], quiet[0]
        if mode is None:
            # It may come to an answer when it may think for longer.
            late = self._modes(None, None, "", _THINKING_TOKENS)
            if late is not None:
                return None, "", late[1], late[0]
        return None, "", told, mode

    def _modes(
        self,
        modes: tuple[OutputMode, ...] | None,
        off: Mapping[str, Any] | None,
        suffix: str,
        tokens: int,
    ) -> tuple[OutputMode, _Told] | None:
        for mode in modes or _MODES:
            try:
                told = self._ask(mode, off, suffix, tokens)
            except (RouterRefusedError, ModelAnswerError):
                continue
            if _obeys(told, mode):
                return mode, told
            if told.thinks:
                return None  # this does not switch it off
        return None

    def _ask(
        self,
        mode: OutputMode,
        off: Mapping[str, Any] | None = None,
        suffix: str = "",
        tokens: int = _TRIAL_TOKENS,
    ) -> _Told:
        # Only a schema that is enforced makes JSON of an answer to a question that asks for prose.
        form = (
            " Answer in one full sentence."
            if mode == "json_schema"
            else ' Answer with a JSON object: {"answer": "yes"} or {"answer": "no"}.'
        )
        answer = self._router.chat(
            self._model,
            [{"role": "user", "content": _QUESTION + form + suffix}],
            response_format=response_format(mode, "answer", _YES_OR_NO),
            extra=off or {},
            max_tokens=tokens,
            deadline=self._deadline,
        )
        return _Told(answer)

    def context(self) -> tuple[int | None, int, bool | None]:
        """The context that the model has now, what an extraction needs, and whether that fits."""
        told = self._router.properties(self._model, self._deadline)
        self.server = str(told.get("server", ""))
        trained = told.get("trained_context_tokens")
        self.trained = trained if isinstance(trained, int) else None
        context = told.get("context_tokens")
        need = self._need()
        if isinstance(context, int):
            return context, need, context >= need
        return self._long_prompt(need)

    def _need(self) -> int:
        characters = PROMPT_CHARACTERS + ROOM_CHARACTERS
        sample = _CANARY_SYSTEM + _CANARY_TURN
        counted = self._router.count_tokens(self._model, sample, self._deadline)
        if counted:
            return ANSWER_TOKENS + characters * counted // len(sample)
        return ANSWER_TOKENS + characters // CHARACTERS_PER_TOKEN

    def _long_prompt(self, need: int) -> tuple[int | None, int, bool | None]:
        """Where nobody tells the context: whether a prompt of that length is taken."""
        sentence = "The quick brown fox jumps over the lazy dog and runs away. "
        characters = (need - ANSWER_TOKENS) * CHARACTERS_PER_TOKEN
        text = sentence * (characters // len(sentence))
        try:
            self._router.chat(
                self._model,
                [{"role": "user", "content": f"{text}\nAnswer with one word: dog or fox?"}],
                max_tokens=1,
                deadline=self._deadline,
            )
        except ContextTooSmallError as error:
            return error.room, need, False
        except (RouterTimeoutError, ModelAnswerError, RouterRefusedError):
            return None, need, None
        return None, need, True

    def canary(self, ability: ChatAbility) -> bool | None:
        """Whether the facts of the test turn are found; None when it could not be tried."""
        thinks = ability.thinks and ability.thinking_off is None and not ability.prompt_suffix
        messages = ability.messages(
            [
                {"role": "system", "content": _CANARY_SYSTEM},
                {"role": "user", "content": _CANARY_TURN},
            ]
        )
        try:
            answer = self._router.chat(
                self._model,
                messages,
                response_format=response_format(ability.output_mode, "memories", MEMORY_SCHEMA),
                extra=ability.thinking_off or {},
                max_tokens=_CANARY_TOKENS + (_THINKING_TOKENS if thinks else 0),
                deadline=self._deadline,
            )
        except (RouterRefusedError, ModelAnswerError):
            return False
        except (ContextTooSmallError, RouterTimeoutError):
            return None
        value = _Told(answer).object(strict=False)
        rows = value.get("memory") if value is not None else None
        texts = [
            str(row["text"]).lower()
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and isinstance(row.get("text"), str)
        ]
        return all(any(word in text for text in texts) for word in _CANARY_WORDS)


def response_format(
    mode: OutputMode, name: str, schema: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """OpenAI's ``response_format`` for a mode."""
    if mode == "json_schema":
        return {
            "type": "json_schema",
            "json_schema": {"name": name, "strict": True, "schema": dict(schema)},
        }
    return {"type": "json_object"} if mode == "json_object" else None


def _obeys(told: _Told, mode: OutputMode) -> bool:
    value = told.object(strict=mode != "prompt")
    if value is None:
        return False
    return mode != "json_schema" or value.get("answer") in ("yes", "no")


def _roomier(others: Sequence[OfferedModel], need: int) -> str | None:
    """The best other chat model whose context may be large enough."""
    return rank(
        other
        for other in others
        if need
        <= max(other.context_tokens or 0, int(other.details.get("trained_context_tokens", 0) or 0))
    ).chat


def _output(ability: ChatAbility, answers: bool, router: str) -> list[Finding]:
    model = ability.model
    if not answers:
        return [
            Finding(
                "problem", "chat", f"{model} does not answer in JSON when asked", _others(router)
            )
        ]
    match ability.output_mode:
        case "json_schema":
            text = f"{model} answers by a JSON schema, which the router enforces"
            return [Finding("ok", "chat", text)]
        case "json_object":
            text = f"{model} answers in JSON; the router enforces no schema"
            return [Finding("ok", "chat", text)]
        case "prompt":
            text = f"{model} answers in JSON because the prompt asks for it; nothing enforces that"
            hint = (
                "a recent llama-server, Ollama, vLLM or LM Studio enforces it: pikuri-memory down"
            )
            hint += " && pikuri-memory up --router URL"
            return [Finding("note", "chat", text, hint)]


def _thinking(
    ability: ChatAbility, silent: bool, server: str, router: str, other: str | None
) -> list[Finding]:
    model = ability.model
    if not ability.thinks:
        return []
    if ability.thinking_off is not None or ability.prompt_suffix:
        how = json.dumps(ability.thinking_off) if ability.thinking_off else ability.prompt_suffix
        return [Finding("ok", "chat", f"{model} thinks; {how.strip()} switches it off")]
    if other is not None:
        hint = f"take one that does not: {restart(router, '--llm-model', other)}"
    elif server == "Ollama":
        hint = "take one that does not: ollama pull llama3.1 && "
        hint += restart(router, "--llm-model", "llama3.1")
    else:
        hint = f"start it without: llama-server --reasoning-budget 0 ...; or {_others(router)}"
    if silent:
        text = f"{model} thinks, nothing switches it off, and it comes to no answer"
        return [Finding("problem", "chat", text, hint)]
    text = f"{model} thinks before it answers and nothing switches it off: extraction takes longer"
    return [Finding("note", "chat", text, hint)]


def _larger(server: str, model: str, need: int) -> str:
    """What gives a model a context that an extraction fits into."""
    size = SUGGESTED_CONTEXT
    while size < need:
        size *= 2
    match server:
        case "llama.cpp":
            # Several slots would share the context between them.
            return f"start it with a larger one: llama-server -c {size} -np 1 ..."
        case "Ollama":
            return f"start it with a larger one: OLLAMA_CONTEXT_LENGTH={size} ollama serve"
        case "LM Studio":
            return f"load it with a larger one: lms load {model} --context-length {size}"
        case "vLLM":
            return f"start it with a larger one: vllm serve {model} --max-model-len {size}"
        case _:
            return CONTEXT_HINT


def _context(
    ability: ChatAbility, server: str, router: str, trained: int | None, other: str | None
) -> list[Finding]:
    model, need, context = ability.model, ability.prompt_tokens, ability.context_tokens
    room = f"the {context} tokens" if context is not None else "the context"
    if ability.fits is None:
        text = (
            f"nothing tells the context of {model}, and it was too slow to try: an extraction"
            f" takes about {need} tokens"
        )
        return [Finding("note", "chat", text, _larger(server, model, need))]
    if ability.fits:
        text = f"an extraction, about {need} tokens, fits into {room} that {model} reads at once"
        return [Finding("ok", "chat", text)]
    text = f"an extraction takes about {need} tokens: more than {room} that {model} reads at once"
    hint = _larger(server, model, need)
    if trained is not None and trained < need:
        text += f", and more than it was made for ({trained})"
        where = restart(router, "--llm-model", other) if other is not None else _others(router)
        hint = f"take one with a larger context: {where}"
    return [Finding("problem", "chat", text, hint)]


def _canary(ability: ChatAbility, router: str) -> list[Finding]:
    model = ability.model
    if ability.canary is None:
        return []
    if ability.canary:
        return [Finding("ok", "chat", f"{model} found the facts of a test turn")]
    return [
        Finding(
            "note",
            "chat",
            f"{model} missed facts of a test turn: it may miss yours, too",
            f"a larger model finds more: {_others(router)}",
        )
    ]
