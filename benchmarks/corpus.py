"""The made-up memories and questions of a run, the same at every run: everything is seeded.

Texts are those of ``tests/evaluation/data`` and short personal facts with words drawn by Zipf's
law. Vectors are clustered, of unit length; a question's vector lies near the one of its answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import lookup

SEED: Final = 20240229
DIMENSIONS: Final = 384
USERS: Final = 100
TOPICS: Final = "family work food health travel home music sport pets money study friends".split()
_CLUSTERS: Final = 400
_VOCABULARY: Final = 30_000
_EVALUATION: Final = Path(__file__).parent.parent / "tests" / "evaluation" / "data"
_OPENINGS: Final = (
    "I like|I never eat|My sister works with|I moved to|My doctor told me about|We adopted|"
    "I am learning|My favourite is|Every Tuesday I go to|I am allergic to|My brother sold|"
    "I prefer|Last spring we visited|I keep forgetting|My partner plays|The kids need|"
    "I am saving for|My boss wants|Grandmother taught me|I cancelled|I signed up for|"
    "We are renovating|My neighbour borrowed|I still owe"
).split("|")
_QUESTIONS: Final = (
    "what do I say about|who has to do with|when was it about|where is|how is it with|"
    "which one was|what did I tell about|do I have"
).split("|")


@dataclass(frozen=True, slots=True)
class Fact:
    """A memory to store."""

    text: str
    user: str
    topic: str
    importance: int
    """1 to 5."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the row of the memory that answers it."""

    text: str
    user: str
    answer: int
    topic: str


@dataclass(frozen=True)
class Corpus:
    """Memories, questions and their vectors (those of the questions last).

    Attributes:
        facts: The stored ones first, then those that are added while it is measured.
        stored: How many are stored.
    """

    facts: list[Fact]
    questions: list[Question]
    stored: int
    vectors: NDArray[np.float32]

    def write(self, directory: Path) -> None:
        """The files that the look-up and the limit read."""
        lookup.write(
            directory,
            [fact.text for fact in self.facts],
            [question.text for question in self.questions],
            self.vectors,
        )


def make(stored: int, *, added: int, questions: int, answers_among: int) -> Corpus:
    """Make a corpus.

    Args:
        stored: Memories.
        added: Further memories, to be added while it is measured.
        questions: Questions.
        answers_among: The answers are among the first so many memories.
    """
    random = np.random.default_rng(SEED)
    count = stored + added
    facts = _facts(count, random)
    centres = _unit(random.standard_normal((_CLUSTERS, DIMENSIONS), dtype=np.float32))
    cluster = random.integers(0, _CLUSTERS, count)
    vectors = _near(centres[cluster], 1.0, random)
    asked: list[Question] = []
    seen = {fact.text for fact in facts}
    while len(asked) < questions:
        answer = int(random.integers(0, answers_among))
        words = facts[answer].text.split()
        kept = [str(word) for word in random.choice(words, min(4, len(words)), replace=False)]
        text = f"{random.choice(_QUESTIONS)} {' '.join(kept)} {len(asked)}?"
        if text not in seen:
            seen.add(text)
            fact = facts[answer]
            asked.append(Question(text, fact.user, answer, fact.topic))
    near = _near(vectors[[question.answer for question in asked]], 0.8, random)
    return Corpus(facts, asked, stored, np.concatenate([vectors, near]))


def _facts(count: int, random: np.random.Generator) -> list[Fact]:
    texts = list(dict.fromkeys(_evaluation_texts()))[: count // 2]
    seen = set(texts)
    words = _vocabulary(texts, random)
    # Zipf's law with exponent 1 over the ranks.
    chances = 1.0 / np.arange(1, len(words) + 1)
    steps = np.cumsum(chances / chances.sum())
    while len(texts) < count:
        lengths = random.integers(4, 15, 1000)
        ranks = np.searchsorted(steps, random.random(int(lengths.sum())))
        openings = random.integers(0, len(_OPENINGS), 1000)
        start = 0
        for length, opening in zip(lengths, openings, strict=True):
            drawn = ranks[start : start + length]
            start += length
            text = f"{_OPENINGS[opening]} {' '.join(words[min(r, len(words) - 1)] for r in drawn)}"
            if text not in seen and len(texts) < count:
                seen.add(text)
                texts.append(text)
    # Shuffled, so that every size has its share of both kinds.
    order = random.permutation(count)
    topics = random.integers(0, len(TOPICS), count)
    importance = random.integers(1, 6, count)
    return [
        Fact(
            texts[int(place)],
            f"user-{row % USERS:03d}",
            TOPICS[int(topics[row])],
            int(importance[row]),
        )
        for row, place in enumerate(order)
    ]


def _evaluation_texts() -> list[str]:
    found: list[str] = []
    for path in sorted(_EVALUATION.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                entry = json.loads(line)
                if entry["kind"] == "fact":
                    found.append(entry["text"].strip())
    return found


def _vocabulary(texts: list[str], random: np.random.Generator) -> list[str]:
    """Words of the evaluation's texts, the frequent ones first, then invented ones."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            word = word.strip(".,;:!?()\"'")
            if word:
                counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))
    known = set(words)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    while len(words) < _VOCABULARY:
        drawn = random.integers(0, len(syllables), int(random.integers(2, 5)))
        word = "".join(syllables[int(place)] for place in drawn)
        if word not in known:
            known.add(word)
            words.append(word)
    return words


def _near(
    vectors: NDArray[np.float32], distance: float, random: np.random.Generator
) -> NDArray[np.float32]:
    noise = _unit(random.standard_normal(vectors.shape, dtype=np.float32))
    return _unit(vectors + np.float32(distance) * noise)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result
