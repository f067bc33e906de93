"""The vocabulary that clients and servers share: scopes and memories as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, Literal, TypeAlias

from pikuri_memory.errors import InvalidRequestError, ScopeRequiredError

Event: TypeAlias = Literal["ADD", "UPDATE", "DELETE", "NONE"]
SCOPE_FIELDS: Final = ("user_id", "agent_id", "run_id")
MAX_SCOPE_ID_LENGTH: Final = 512


class Unset:
    """The type of :data:`UNSET`: "not given", where None means something."""

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Final = Unset()


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose memory it is. At least one id is needed to write or to search.

    Attributes:
        user_id: The person; None where it does not matter.
        agent_id: The agent.
        run_id: The conversation or task.
    """

    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None

    @classmethod
    def of(cls, ids: Mapping[str, Any]) -> Scope:
        """A validated scope from the three fields of a mapping; others are ignored.

        Ids are trimmed, as mem0 does.

        Raises:
            ScopeRequiredError: An id is empty, blank or ``*``.
            InvalidRequestError: An id is no text, over 512 characters, or has control characters.
        """
        values: dict[str, str] = {}
        for name in SCOPE_FIELDS:
            value = ids.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InvalidRequestError(
                    f"{name} must be text, not {type(value).__name__}",
                    hint=f'send it as a JSON string: "{name}": "..."',
                )
            value = value.strip()
            if value in ("", "*"):
                raise ScopeRequiredError(
                    f"{name} is {value!r}: an empty or wildcard id is no scope",
                    hint=f"give a real {name}, or leave it out and give another id",
                )
            if len(value) > MAX_SCOPE_ID_LENGTH:
                raise InvalidRequestError(
                    f"{name} has {len(value)} characters, more than {MAX_SCOPE_ID_LENGTH}",
                    hint="use a shorter id",
                )
            if not value.isprintable():
                raise InvalidRequestError(
                    f"{name} contains a control character or another unprintable one",
                    hint="use an id of printable characters",
                )
            values[name] = value
        return cls(**values)

    def required(self) -> Scope:
        """Itself.

        Raises:
            ScopeRequiredError: It has no id at all.
        """
        if not self:
            raise ScopeRequiredError(
                "no scope: at least one of user_id, agent_id and run_id is required",
                hint='add "user_id": "..." to the request',
            )
        return self

    def __bool__(self) -> bool:
        return any((self.user_id, self.agent_id, self.run_id))

    def as_dict(self) -> dict[str, str]:
        """The ids that are set, by field name."""
        return {name: value for name in SCOPE_FIELDS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Degraded:
    """Why a search had to do with less than it has.

    Attributes:
        code: For programs, as of the errors: ``embedder_unavailable``.
        detail: What happened, for a person.
        hint: What to do next.
    """

    code: str
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Record:
    """One memory as a client sees it.

    Attributes:
        id: UUID text.
        text: The fact; empty where a reply carries none (the events of an ``add`` of mem0).
        score: How well it matches, in [0, 1]; None outside a search.
        created_at: When it was learnt, with time zone; None where the reply has none.
        updated_at: When it was last changed.
        metadata: The caller's own fields.
        event: ``ADD`` or ``NONE`` (it was already there) after an ``add``; None elsewhere.
        user_id: The person of its scope.
        agent_id: The agent of its scope.
        run_id: The run of its scope.
        expiration_date: Last day (UTC) on which it is found; None for ever.
        explanation: The parts of ``score`` where ``explain`` asked for them.
        supersedes: Ids of older memories of the same scope that this one replaces.
        superseded_by: Ids of later ones that replace this one.
    """

    id: str
    text: str
    score: float | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    event: Event | None = None
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    expiration_date: date | None = None
    explanation: Mapping[str, Any] | None = None
    supersedes: tuple[str, ...] = ()
    superseded_by: tuple[str, ...] = ()


class Matches(list[Record]):
    """What a search found, best first: a list, and one thing beside it.

    Attributes:
        degraded: Why it was found by its words alone, where the user's embedding model could not
            be asked; None where all was well.
    """

    degraded: Degraded | None = None
