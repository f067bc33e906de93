"""Which older fact does a new one replace? A pure recogniser: rules over words, no model asked.

Extraction only adds, so a correction ("User moved from Turku to Oulu") lies beside what it corrects
("User lives in Turku"). To order two facts wrongly is worse than not to order them, so the rules
are narrow: what they do not surely know is no successor. A pair must be near in meaning, about the
same person, and the new fact must show the change in one of these ways:

* *names*: it says what is over, and the older fact has that ("moved from Turku", "no longer
  vegetarian", "replaced the MacBook", "Frau Wehrle retired");
* *values*: it speaks of a change, and both have another value of one kind (a weekday, a time, an
  amount) for the same thing;
* *topic*: it speaks of a change of just what the older one is about ("Tests are run with just
  now");
* *frame*: both are the same sentence about something that has one value at a time, but for the
  value ("listens on port 8080", "listens on port 9000").

The rules know English. In other languages they find next to nothing, and so order nothing.

Words and thresholds were found on one half of the evaluation data (``make evaluate``); what they
give on the other half, and on facts that were written later, is in ``docs/evaluation.md``. The
cosines are those of the built-in embedder, and mean something else with any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from pikuri_memory.embedded import wording
from pikuri_memory.embedded.wording import Change, Reading

LEAST_PRECISION: Final = 0.95
"""What is required: with a lower precision no link is written."""

PRECISION: Final = 0.968
"""What was measured on the reported half, as a test of the evaluation checks."""

NEAREST: Final = 10
"""How many older facts are looked at: of the corrections in the evaluation data 83 in 100 have
what they correct first among them, and 98 in 100 have it among ten."""

LONGEST: Final = 1000
"""Characters of a fact that is looked at; what is longer is no fact but a document."""

NAMED: Final = 0.45
VALUED: Final = 0.55
TOPICAL: Final = 0.55
FRAMED: Final = 0.7
RENAMED: Final = 0.35
"""Least cosines of the kinds of evidence; the last is that of "X is now Name"."""

BEHIND: Final = 0.06
"""How much less alike than the nearest older fact the replaced one may be."""


@dataclass(frozen=True, slots=True)
class Older:
    """An older fact of the same scope.

    Attributes:
        text: What it says.
        cosine: To the new fact, by the built-in embedder.
        created_at: When it was learnt, in microseconds since the epoch.
    """

    text: str
    cosine: float
    created_at: int


def predecessor(new: str, older: Sequence[Older], *, precision: float = PRECISION) -> int | None:
    """The position of the older fact that a new one replaces; None where that is not sure.

    Args:
        new: The new fact.
        older: The older facts of the same scope that are nearest to it, in any order.
        precision: What was measured; below :data:`LEAST_PRECISION` nothing is ever replaced.
    """
    if precision < LEAST_PRECISION or not older or len(new) > LONGEST:
        return None
    return _judge(new, older)


def worth_a_look(new: str, older: Sequence[str]) -> bool:
    """Whether there could be a predecessor, whatever the cosines are.

    Args:
        new: The new fact.
        older: The older facts.
    """
    alike = [Older(text, 1.0, 0) for text in older]
    return predecessor(new, alike) is not None


def _judge(new: str, older: Sequence[Older]) -> int | None:
    fresh = wording.read(new)
    change = wording.change_in(fresh)
    readings = [wording.read(fact.text[:LONGEST]) for fact in older]
    common = _common(readings)
    nearest = max(fact.cosine for fact in older)
    found = [
        (fact.cosine, fact.created_at, position)
        for position, (fact, reading) in enumerate(zip(older, readings, strict=True))
        if fact.cosine >= nearest - BEHIND
        and len(fact.text) <= LONGEST
        and evidence(fresh, change, reading, fact.cosine, common) is not None
    ]
    return max(found)[2] if found else None


def _common(readings: Sequence[Reading]) -> frozenset[str]:
    """Stems that so many older facts have that sharing them says nothing: the user's name."""
    counts: dict[str, int] = {}
    for reading in readings:
        for stem in reading.content:
            counts[stem] = counts.get(stem, 0) + 1
    return frozenset(stem for stem, n in counts.items() if n >= 4 and n * 2 >= len(readings))


def _others(one: Reading, other: Reading) -> bool:
    """Whether ``one`` is about a person of whom ``other`` does not speak."""
    if not one.persons:
        return False
    return not one.persons & {wording.KIN.get(word.text, word.stem) for word in other.words}


def evidence(
    new: Reading, change: Change, old: Reading, cosine: float, common: frozenset[str]
) -> str | None:
    """How a new fact shows that it replaces an older one: names, values, topic, frame, or None.

    Args:
        new: The new fact.
        change: What it tells of a change.
        old: The older fact.
        cosine: Of the two.
        common: Stems that say nothing in this scope.
    """
    if _others(new, old) or _others(old, new):
        return None
    about = old.subject - common
    kept = len(about & new.content) / len(about) if about else 1.0
    if cosine >= NAMED and any(
        _has(old, span - common, cosine) and (kept > 0 or cosine >= 0.7 or span <= old.value)
        for span in change.over
    ):
        return None if _told_already(change, old, new) else "names"
    # What has all words of the older fact says the same, or more.
    if change.more or old.stems <= new.stems:
        return None
    shared = {s for s in (new.content & old.content) - common if not s[0].isdigit()}
    if change.told and shared and (kept >= 0.5 or cosine >= 0.75):
        topic = new.subject - common
        whole = bool(topic) and topic <= old.content
        things = topic - new.names - old.names
        if (
            (cosine >= VALUED and len(shared) >= 2)
            or (cosine >= NAMED - 0.05 and whole and (things or len(shared) >= 2))
        ) and _other_value(new, old, cosine):
            return "values"
        things -= {new.words[0].stem}  # a name that begins the sentence is not seen to be one
        if (
            cosine >= TOPICAL
            and whole
            and (topic & about if about else things)
            and (things or shared - topic)
            and not _repeats(new, old)
        ):
            return "topic"
    if cosine >= FRAMED and _same_frame(new, old, common):
        return "frame"
    if cosine >= RENAMED and not new.persons and _renamed(new, old):
        return "frame"
    return None


def _told_already(change: Change, old: Reading, new: Reading) -> bool:
    """Whether the older fact says itself that it is over: the new one only repeats it."""
    if wording.endings_in(old) & wording.endings_in(new):
        return True
    gone = wording.gone_in(old)
    return any(span & gone for span in change.over)


def _repeats(new: Reading, old: Reading) -> bool:
    """Whether the older fact speaks of a change too, and the new one has nothing beyond it."""
    return (
        wording.change_in(old).told
        and new.names <= old.stems
        and all(wording.values(new, k) <= wording.values(old, k) for k in wording.KINDS)
    )


def _has(old: Reading, span: frozenset[str], cosine: float) -> bool:
    """Whether the older fact has what is said to be over."""
    if not span:
        return False
    covered = len(span & old.stems) / len(span)
    return covered > 0.66 or (covered >= 0.5 and cosine >= 0.6)


def _other_value(new: Reading, old: Reading, cosine: float) -> bool:
    """Whether both have values of one kind, and none of them in common."""
    for kind in wording.KINDS:
        if kind == "number" and cosine < 0.65:
            continue
        one, other = wording.values(new, kind), wording.values(old, kind)
        if one and other and not one & other:
            return True
    return False


def _renamed(new: Reading, old: Reading) -> bool:
    """Whether the one says "X is now Name", and the other "X is Name"."""
    start = len(new.head)
    if not new.subject or new.head != old.head:
        return False
    one, other = new.words[start : start + 3], old.words[start : start + 2]
    return (
        [word.text for word in one[:2]] == ["is", "now"]
        and [word.text for word in other[:1]] == ["is"]
        and len(one) == 3
        and len(other) == 2
        and one[2].name
        and other[1].name
    )


_ONE_VALUE: Final = frozenset("liv resid work weigh wak pay earn sleep cost".split())
"""Stems of verbs of which a person has one answer at a time."""

_PAST: Final = frozenset(
    """
    was were did went had bought visited watched met saw ate ran attended found read wrote fixed
    released restored joined gave took made got came sent donated finished hosted celebrated
    """.split()
)
"""What happened once is not replaced by what happens the next time."""


def _same_frame(new: Reading, old: Reading, common: frozenset[str]) -> bool:
    """Whether both are one sentence with another value, of something that has one at a time."""
    if not new.head or new.head != old.head:
        return False
    if any(word.text in _PAST for word in (*new.words, *old.words)):
        return False
    one = [word.stem for word in new.words if word.text not in ("now", "currently")]
    other = [word.stem for word in old.words if word.text not in ("now", "currently")]
    start = len(new.head)
    if len(one) <= start or len(other) <= start or one[start] != other[start]:
        return False
    verb = one[start]
    if verb == "weigh":
        return True
    if not new.subject - common and (
        verb not in _ONE_VALUE or not (new.content & old.content) - common - {verb}
    ):
        return False
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) >= 0.58 * (len(one) + len(other))
