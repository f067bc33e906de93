"""The hand-written evaluation data: what people told an agent, and what is asked about it later.

One JSONL file per scope. A line is a fact or a question; `part` says what a question measures.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import snowballstemmer

DATA = Path(__file__).parent / "data"

PARTS = ("paraphrase", "keyword", "correction", "chat", "finnish", "japanese")


@dataclass(frozen=True)
class Fact:
    id: str
    text: str
    at: datetime
    corrects: str | None = None
    """The older fact of the same scope that this one succeeds."""
    resembles: str | None = None
    """A fact that this one looks like a correction of, but is not."""
    repeats: str | None = None
    """A fact that this one says again in other words."""
    session: str | None = None
    role: str | None = None
    lang: str = "en"


@dataclass(frozen=True)
class Question:
    id: str
    part: str
    text: str
    answers: tuple[str, ...]
    lang: str = "en"


@dataclass(frozen=True)
class Scope:
    name: str
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]

    @cached_property
    def by_id(self) -> dict[str, Fact]:
        return {fact.id: fact for fact in self.facts}

    @cached_property
    def names(self) -> frozenset[str]:
        """Stems of the names in the facts: capitalised in a sentence, and never in lower case."""
        capitalised: set[str] = set()
        lowercase: set[str] = set()
        for fact in self.facts:
            for token in _tokens(fact.text):
                stem = _stem(token.word.lower(), fact.lang)
                if token.is_name:
                    capitalised.add(stem)
                elif token.word[0].islower():
                    lowercase.add(stem)
        return frozenset(capitalised - lowercase)

    def overlaps(self, question: Question) -> bool:
        """Whether the question shares a word other than names with one of its answers."""
        return any(
            shares_content_word(question, self.by_id[a], self.names) for a in question.answers
        )


def load(directory: Path = DATA) -> list[Scope]:
    return [_scope(path) for path in sorted(directory.glob("*.jsonl"))]


def _scope(path: Path) -> Scope:
    facts: list[Fact] = []
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        values = cast(dict[str, Any], json.loads(line))
        kind = values.pop("kind")
        if kind == "fact":
            values["at"] = datetime.fromisoformat(values["at"])
            facts.append(Fact(**values))
        elif kind == "question":
            values["answers"] = tuple(values["answers"])
            questions.append(Question(**values))
        else:
            raise ValueError(f"{path.name}:{number}: unknown kind {kind!r}")
    return Scope(path.stem, tuple(facts), tuple(questions))


def content_words(text: str, language: str, names: Iterable[str] = ()) -> frozenset[str]:
    """The stems of a text without stop words and proper names.

    A name is a word capitalised in mid-sentence, or a capitalised one whose stem is in `names`.
    Japanese, which puts no spaces between words, yields its katakana words and the pairs of
    neighbouring kanji.
    """
    known = frozenset(names)
    if language == "ja":
        return frozenset(_japanese(unicodedata.normalize("NFC", text))) - known
    stop = STOP_WORDS.get(language, frozenset())
    stems: set[str] = set()
    for token in _tokens(text):
        word = token.word.lower()
        stem = _stem(word, language)
        if not (word in stop or token.is_name or (token.word[0].isupper() and stem in known)):
            stems.add(stem)
    return frozenset(stems)


def shares_content_word(question: Question, fact: Fact, names: Iterable[str] = ()) -> bool:
    asked = content_words(question.text, question.lang, names)
    return bool(asked & content_words(fact.text, fact.lang, names))


@dataclass(frozen=True)
class _Token:
    word: str
    starts_sentence: bool

    @property
    def is_name(self) -> bool:
        return (
            self.word[0].isupper()
            and not self.starts_sentence
            and self.word.lower() not in CALENDAR
        )


_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)]*\s+[\"'“‘(]*$")


def _tokens(text: str) -> Iterator[_Token]:
    text = unicodedata.normalize("NFC", text)
    end = 0
    for match in _WORD.finditer(text):
        between = text[end : match.start()]
        starts = end == 0 or bool(_SENTENCE_END.search(between))
        end = match.end()
        word = match.group().replace("’", "'")
        yield _Token(word.removesuffix("'s"), starts)


class _Stemmer(Protocol):
    def stemWord(self, word: str) -> str: ...


_ALGORITHMS = {"en": "english", "fi": "finnish"}


@cache
def _stemmer(language: str) -> _Stemmer | None:
    algorithm = _ALGORITHMS.get(language)
    return cast(_Stemmer, snowballstemmer.stemmer(algorithm)) if algorithm else None


@cache
def _stem(word: str, language: str) -> str:
    stemmer = _stemmer(language)
    return stemmer.stemWord(word) if stemmer else word


_JAPANESE_RUN = re.compile(r"[一-鿿々]+|[ァ-ヺー]+|[A-Za-z0-9０-９]+")


def _japanese(text: str) -> Iterator[str]:
    stop = STOP_WORDS["ja"]
    for run in _JAPANESE_RUN.findall(text):
        word = run.lower()
        kanji = "一" <= word[0] <= "鿿"
        pieces = (
            [word[i : i + 2] for i in range(len(word) - 1)] if kanji and len(word) > 2 else [word]
        )
        for piece in pieces:
            if piece not in stop and not any(mark in piece for mark in "何誰"):
                yield piece


# Written with a capital in English, but no names of a person, place or brand.
CALENDAR = frozenset(
    """
    monday tuesday wednesday thursday friday saturday sunday
    mondays tuesdays wednesdays thursdays fridays saturdays sundays
    january february march april may june july august september october november december
    i i'm i'd i'll i've
    """.split()
)

STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(
        """
        a an the and or but nor so if then than as at by for from in into of off on onto out
        over to up with without within about above after again against all also always am any
        are aren't around be been before being below between both can can't cannot could
        couldn't did didn't do does doesn't doing don't done down during each either else ever
        every few further get gets getting go goes going got had has hasn't have haven't having
        he her here hers herself he's him himself his how i i'd i'll i'm i've is isn't it its
        it's itself just let like may me might mine more most much many must my myself never no
        not now of once one only other our ours out own per rather s same shall she should
        shouldn't since some such that that's the their theirs them themselves then there
        there's these they they're this those though through till too under until unless us user
        users very was wasn't we we'd we'll we're we've well were what what's when where which
        while who whom whose who's why will won't would wouldn't yet you your yours yourself dr
        mr mrs ms st because however instead is it's ok okay please thing things something
        anything nothing someone anyone everyone everybody nobody
        """.split()
    ),
    "fi": frozenset(
        """
        ja tai vai sekä että jotta koska kun jos kuin niin myös mutta vaan sillä joten eli en et
        ei emme ette eivät eikä enkä älä ole olen olet on olemme olette ovat olin olit oli
        olimme olitte olivat ollut olla olisi olisin oleva lienee minä sinä hän me te he se ne
        tämä tuo nämä nuo minun minut minua minulla minulle minulta minusta minussa sinun hänen
        hänet häntä hänellä hänelle meidän meitä meillä meille teidän heidän heitä heillä sen
        sitä siinä siitä siihen sillä sille siltä niiden niitä tämän tätä tässä tästä tähän
        tällä tuon tuota joka jonka jota jossa josta johon jolla jolle jotka joita mikä minkä
        mitä missä mistä mihin millä mille miltä miksi mitkä minne kuka kenen ketä kenellä
        kenelle keneltä kenestä ketkä kumpi milloin koska kuinka miten millainen millaisen
        millaista minkälainen montako monta monesko moneltako kauanko paljonko paljon onko
        olenko oliko eikö voiko voinko saako saanko pitääkö pitää täytyy voi voin voit saa nyt
        sitten vielä jo aina vain kanssa ennen jälkeen yli alle asti mukaan noin ihan hyvin
        kyllä käyttäjä käyttäjän ettei ettemme etten
        """.split()
    ),
    "ja": frozenset("私 僕 俺 人 時 分 日 月 年 今 前 後 中 方 事 物 的 誰 どこ ユーザー".split()),
}
