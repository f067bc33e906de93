"""A fact as :mod:`pikuri_memory.embedded.succession` sees it: words, subject, values, changes.

No grammar is known here. Stems are cut off by a few endings, a subject is what stands before the
first word that is in a list of verbs, and a name is a word with a capital in mid-sentence. That is
enough to compare two facts that are known to be near in meaning, and for nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_FUNCTION: Final = _set(
    """
    a an the and or but nor so if then than as at by for from in into of off on onto out over to
    up down with without within about above after again against all also always am any are
    around be been before being below between both can could did do does doing done during each
    either else ever every few further had has have having he her here hers him his how i is it
    its just let like may me might more most much must my myself never no not now once one only
    other our ours own per rather s same shall she should since some still such t that their
    them there these they this those though through till too under until upon us user users very
    was we were what when where which while who whom whose why will would yet you your already
    because instead longer anymore new old currently current recently lately nowadays today days
    s'd ll re ve m d don doesn didn isn aren wasn weren won wouldn couldn can't it's has've
    herself himself yourself themselves itself oneself get gets got getting make makes made take
    takes took go goes going went come comes came use uses used using user's finally simply
    another second really quite back away ago eg ie etc via everything anything nothing
    something thing things lot bit kind month months monthly year years yearly annual week weeks
    weekly weekend day daily hour hours minute minutes morning evening afternoon night noon euro
    euros dollar dollars kronor kroner złoty crowns shillings pounds percent monday tuesday
    wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays
    saturdays sundays january february march april june july august september october november
    december time times first last next two three four five six seven eight nine ten eleven
    twelve half whole usual usually often mostly mainly entirely altogether keep keeps kept put
    puts run runs called named said says say means mean want wants ask asks asked
    """
)
"""Words that say nothing of a topic. Change words are among them; what is left is compared."""

_CALENDAR: Final = _set(
    """
    monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays
    thursdays fridays saturdays sundays january february march april june july august september
    october november december nights mornings evenings
    """
)

_CHANGE: Final = _set(
    """
    moved move moving switched switch switching changed change replaced replace swapped swap
    traded exchanged exchange migrated upgraded renamed transferred postponed pushed rescheduled
    shifted raised lowered reduced increased cut quit left sold cancelled canceled dropped
    stopped gave gives given gone retired resigned closed died ended broke separated divorced
    scaled extended renewed lost stolen rid over shut folded pulled
    """
)

_CHANGED: Final = re.compile(
    r"\b(?:now(?!adays)|no longer|not [\w' ]{1,40}any ?more|any ?more|nowadays|instead"
    r"|(?:has|have|had|was|were|been|got|is|are|be|'s|'ve|we|i|user|they|she|he|finally)"
    r" (?:finally |now |just |since |already |been )*(?:moved|switched|changed|replaced|swapped"
    r"|migrated|upgraded|renamed|transferred|postponed|pushed|rescheduled|shifted|raised|lowered"
    r"|reduced|increased|scaled|extended|renewed|promoted|put up|put down"
    r"|put .{1,40}? (?:up|down) to|cut)"
    r"|(?:moved|switched|changed|migrated|swapped|went up|went down|goes up|down|up|raised|climbed"
    r"|grew|shifted|pushed) to|raised|voted .{1,40}? up|since the|since (?:january|february|march"
    r"|april|may|june|july|august|september|october|november|december|last|new year)"
    r"|from (?:now|this|january|february|march|april|may|june|july|august|september|october"
    r"|november|december|next) |used to|after all|not .{1,30} after all|in the end)"
)
"""Phrases that speak of a change."""

_MORE: Final = re.compile(
    r"\b(?:also|too|another|second|additional|as well|besides|in addition|again|both|still"
    r"|either)\b"
)
"""Phrases of what comes beside something, or goes on."""

_THING: Final = r"(?P<x>[^.;:!?]{1,80}?)"
_END: Final = (
    r"(?=$|[.;:!?,]| (?:and|but|because|since|after|before|when|while|so|for|to|on|at|with|from|by"
    r"|due|once|last|this) | (?:in|over) (?!the \w+ of))"
)
_STOP: Final = (
    r"(?=$|[.;:!?,]| (?:and|but|because|since|after|so|when|due|last|this|now)\b"
    r"| in (?:january|february|march|april|may|june|july|august|september|october|november"
    r"|december|\d{4})\b)"
)
_SPECIFIC: Final = (
    r"(?!(?:an?|some|many|several|few|by|at|for|in|over|to|up|off|early|behind|\d\S*) )"
)
_LEFT: Final = (
    rf"\b(?:stopped|quit|gave up(?: on)?|given up(?: on)?|left|leaving|sold|cancell?ed|dropped"
    rf"|got rid of|abandoned|pulled out of|ditched|resigned from|broke up with|divorced"
    rf"|closed (?=the |her |his |my |our |their )|moved (?:all \w+ |everything )?out of"
    rf"|scrapped|deleted|fixed) {_SPECIFIC}{_THING}(?<! off){_END}"
)
_OVER: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(?:moved?|moving|relocated|switched|switching|changed|changing|migrated|upgraded"
        r"|downgraded|renamed|transferred|postponed|pushed|rescheduled|shifted|scaled|reduced"
        r"|increased|raised|lowered|cut|dropped|extended|promoted|converted|went|gone|grew|rose|fell)"
        r"(?: [^.;:!? \d$€£][^.;:!? ]*){0,7}? from (?:the |my |our |his |her |their )?"
        r"(?P<x>[^.;:!?]{1,60}?) (?:in)?to\b",
        rf"\b(?:instead of|rather than) {_THING}{_END}",
        rf"\bno longer (?P<x>[^.;:!?, ]+(?: [^.;:!?, ]+){{0,5}}?){_END}",
        rf"\b(?:not|n't|never) {_THING} any ?more\b",
        _LEFT,
        rf"\b(?:replaced|swapped|traded|exchanged|switched|changed|renamed) {_THING} "
        rf"(?:with|by|into|to|for(?! [\d$€£]))\b",
        rf"(?:^|[.;:!?,] |\band )(?:the |my |our |user's |old )*(?P<x>[^.;:!?,]{{1,50}}?)"
        rf" (?:has |have |was |were |is |are |has been |have been |got |finally |now )*"
        rf"(?:(?:replaced by|retired|resigned|died|fell through|folded|shut up shop|vanished"
        rf"|(?:is|are) off(?! on)|broken down|broke down|solved|fixed)\b"
        rf"|(?:quit|closed|gone|stolen|sold|cancell?ed|dropped|ended|on hold|dead|separated"
        rf"|(?:has|have) left|left (?:the )?(?:team|company|firm|school|clinic|us)){_STOP})",
    )
)
"""What is over, as the group ``x``."""

_TAIL: Final = re.compile(
    _LEFT.replace(_THING, r"(?P<x>[^.;:!?,]{1,120}?)").replace(
        _END, r"(?=$|[.;:!?,]| (?:and|but|to|with|now|for|because)\b)"
    )
)
_WORSE: Final = re.compile(rf"\bprefers? [^.;:!?,]{{1,60}}? (?:over|to) {_THING}{_END}")
"""More of what is over, to the end of the clause; and the worse of two things."""

_ENDINGS: Final = _set(
    """
    died retired resigned quit closed sold cancelled canceled dropped ended broke separated divorced
    stopped gone dead folded stolen fixed solved
    """
)

KIN: Final[dict[str, str]] = {
    word: group[0]
    for group in (
        ["mother", "mum", "mom", "mama"],
        ["father", "dad", "papa"],
        ["sister"],
        ["brother"],
        ["son"],
        ["daughter"],
        ["child"],
        ["kid", "kids", "children"],
        ["wife"],
        ["husband"],
        ["partner", "boyfriend", "girlfriend", "fiance", "fiancee"],
        ["friend", "friends"],
        ["colleague", "coworker", "colleagues", "coworkers"],
        ["neighbour", "neighbor", "neighbours", "neighbors"],
        ["cousin"],
        ["aunt"],
        ["uncle"],
        ["grandmother", "grandma"],
        ["grandfather", "grandpa"],
        ["parents"],
        ["niece"],
        ["nephew"],
        ["roommate", "flatmate"],
        ["classmate"],
        ["ex"],
        ["mother-in-law"],
        ["father-in-law"],
        ["sister-in-law"],
        ["brother-in-law"],
        ["twins"],
    )
    for word in group
}
"""Words for people, each with the one that stands for all of its meaning."""

_MONEY: Final = r"(?:euros?|dollars?|kronor|kroner|złoty|crowns|shillings|pounds|%|percent)"
_MONTHS: Final = (
    r"(?:january|february|march|april|june|july|august|september|october|november|december)"
)
_VALUES: Final[dict[str, re.Pattern[str]]] = {
    "day": re.compile(r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b"),
    "clock": re.compile(
        r"\b\d{1,2}[:.]\d{2}\b(?! ?%)|\b\d{1,2} ?(?:am|pm|a\.m|p\.m|o'clock)\b"
        r"|\b(?:half|quarter) (?:past |to )?\w+"
        r"|\bat (?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
    ),
    "date": re.compile(rf"\b(?:\d{{1,2}} )?{_MONTHS}(?: \d{{1,2}}\b)?(?: ?,? ?\d{{4}})?"),
    "amount": re.compile(rf"[$€£] ?\d[\d.,]*\d|[$€£] ?\d|\b\d[\d.,]*\d ?{_MONEY}|\b\d+ ?{_MONEY}"),
    "number": re.compile(r"(?<![\w.:,])-?\d[\d,.]*(?!\w|:\d)"),
}
KINDS: Final = tuple(_VALUES)
"""Kinds of values. May, which is a verb as well, is no month here."""

_VERBS: Final = _set(
    """
    is are was were am has have had 's 've 'm be been will would can could does do did works
    work worked lives live lived moved moves goes go went gets got uses use used takes take took
    pays pay paid runs run ran starts started plays played likes like loves love loved prefers
    prefer switched changed left quit sold bought now no said says keeps keep kept makes make
    made wants want drives drive drove visited meets meet met comes come came eats eat ate
    weighs weigh wakes wake subscribes studies volunteers teaches speaks speak plans planned
    attends attended joined found gave cancelled replaced renamed retired died closed broke
    raised cut pulled rehearses rehearse costs cost opens open closes close stopped dropped
    listens needs need requires swapped traded graduated postponed reads reading watched adopted
    owns own
    """
)
"""What ends the subject of a sentence."""

_CONTRACTED: Final = _set(
    "i've i'm i'd i'll we've we're we'd we'll he's she's it's they've they're"
)
_POSSESSIVE: Final = _set("my our his her their")
_HEAD: Final = 9
_WORD: Final = re.compile(r"[^\W_]+(?:['’.:,@/-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in lower case, its stem, and whether it is written like a name."""

    text: str
    stem: str
    name: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What is compared of a fact. Everything is in lower case.

    Attributes:
        plain: The text.
        words: All of it.
        stems: Of all words.
        content: Stems of the words that say what it is about.
        names: Stems of what is written like a name.
        head: Stems of the words before the first verb.
        subject: Those of them that are content.
        persons: Who among them it is about.
    """

    plain: str
    words: tuple[Word, ...]
    stems: frozenset[str]
    content: frozenset[str]
    names: frozenset[str]
    head: tuple[str, ...]
    subject: frozenset[str]
    persons: frozenset[str]

    @property
    def value(self) -> frozenset[str]:
        """Stems of what stands right behind the subject."""
        return frozenset(w.stem for w in self.words[len(self.head) : len(self.head) + 5])


@dataclass(frozen=True, slots=True)
class Change:
    """What a fact tells of a change.

    Attributes:
        told: Whether it speaks of one.
        more: Whether it speaks of something that comes beside, or goes on.
        over: The stems of what it says is over, a set for each phrase.
    """

    told: bool
    more: bool
    over: tuple[frozenset[str], ...]


def read(text: str) -> Reading:
    """Take a fact apart."""
    text = unicodedata.normalize("NFC", text).replace("’", "'")
    words: list[Word] = []
    end = 0
    for match in _WORD.finditer(text):
        starts = end == 0 or text[end : match.start()].rstrip()[-1:] in (".", "!", "?", ":", ";")
        end = match.end()
        raw = match.group()
        lower = raw.lower()
        bare = lower.removesuffix("'s")
        name = raw[0].isupper() and not starts and bare not in ("i", "i'm", "i've", "i'd", "i'll")
        words.append(Word(lower, stem(bare), name))
    head = _head(words)
    return Reading(
        " ".join(text.lower().split()),
        tuple(words),
        frozenset(w.stem for w in words),
        frozenset(w.stem for w in words if _is_content(w.text)),
        frozenset(w.stem for w in words if w.name),
        tuple(w.stem for w in head),
        frozenset(w.stem for w in head if _is_content(w.text)),
        _persons(head),
    )


def change_in(reading: Reading) -> Change:
    """What a fact tells of a change."""
    over: list[frozenset[str]] = []
    for pattern in _OVER:
        for match in pattern.finditer(reading.plain):
            if span := frozenset(_stems_of(match.group("x"))):
                over.append(span)
    told = bool(over) or _CHANGED.search(reading.plain) is not None
    return Change(told, _MORE.search(reading.plain) is not None, tuple(over))


def gone_in(reading: Reading) -> frozenset[str]:
    """The stems of what a fact has only as what is over, or as the worse of two."""
    return frozenset(
        stem
        for pattern in (*_OVER, _TAIL, _WORSE)
        for match in pattern.finditer(reading.plain)
        for stem in _stems_of(match.group("x"))
    )


def endings_in(reading: Reading) -> frozenset[str]:
    """The words of a fact that tell the end of something."""
    return frozenset(word.text for word in reading.words if word.text in _ENDINGS)


def values(reading: Reading, kind: str) -> frozenset[str]:
    """The values of one of :data:`KINDS` in a fact."""
    return frozenset(m.group().strip(" ,.") for m in _VALUES[kind].finditer(reading.plain))


def stem(word: str) -> str:
    """A word without its ending; good for comparing two of them, and not for reading."""
    word = word.removesuffix("'s").removesuffix("s'")
    for end, put in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(end) and len(word) > len(end) + 2:
            return word[: -len(end)] + put
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    for end in ("ing", "ed"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            word = word[: -len(end)]
            if word[-1] == word[-2] and word[-1] not in "aeiouls":
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _is_content(word: str) -> bool:
    bare = word.removesuffix("'s")
    return bare not in _FUNCTION and bare not in _CHANGE and len(bare) > 1


def _stems_of(span: str) -> Iterable[str]:
    """The stems of what is over; a day or a month may well be that."""
    for match in _WORD.finditer(span):
        bare = match.group().removesuffix("'s")
        if bare in _CALENDAR or _is_content(bare):
            yield stem(bare)


def _head(words: Sequence[Word]) -> list[Word]:
    """The words before the first verb."""
    head: list[Word] = []
    for word in words[:_HEAD]:
        if word.text in _CONTRACTED or (head and word.text in _VERBS):
            return head
        head.append(word)
    return head[:4]


def _persons(head: Sequence[Word]) -> frozenset[str]:
    """Whom a subject means: of "Klara's friend Ida" the friend, Ida."""
    last = 0
    for position, word in enumerate(head, start=1):
        if word.text.endswith("'s") or word.text in _POSSESSIVE:
            last = position
    kin = {KIN[word.text] for word in head[last:] if word.text in KIN}
    if not kin:
        return frozenset()
    return frozenset(kin | {word.stem for word in head[last:] if word.name})
