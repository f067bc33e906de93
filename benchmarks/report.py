"""The report: ``docs/benchmarks.md`` from the results of one run."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.extraction import AT_ONCE, MODEL_SECONDS, SLOW_MODEL_SECONDS, Extraction
from benchmarks.measure import BATCH, CLIENTS, Figures, Results, Run
from benchmarks.servers import TOP_K
from benchmarks.stack import AT_ONCE as AT_ONCE_BY_RELAY
from benchmarks.stack import CLIENTS as CLIENTS_AT_STACK
from benchmarks.stack import Stack

_TITLES: Final = {
    "ours": "pikuri-memory",
    "limit": "the limit",
    "chroma": "Chroma",
    "mem0": "mem0",
}
_MIB: Final = 2**20


@dataclass(frozen=True)
class Target:
    """One thing that is to be reached.

    Attributes:
        what: In words.
        wanted: In words.
        seen: In words; None if it was not measured.
        met: Whether it was reached.
    """

    what: str
    wanted: str
    seen: str | None
    met: bool


def duration(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "-"
    if seconds < 0.0995:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s"


def rate(per_second: float | None) -> str:
    """Something a second for people."""
    if per_second is None:
        return "-"
    return f"{per_second:,.1f}" if per_second < 100 else f"{per_second:,.0f}"


def mebibytes(count: int | None) -> str:
    """A size for people."""
    return "-" if count is None else f"{count / _MIB:,.0f} MiB"


def machine() -> list[tuple[str, str]]:
    """What it ran on; nothing that names the machine."""
    import psutil

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    system = f"{platform.system()} {platform.release()}"
    with contextlib.suppress(OSError, KeyError):
        system = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {system}"
    return [
        ("CPU", model),
        ("cores", str(psutil.cpu_count())),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        ("system", system),
        ("Python", platform.python_version()),
    ]


def targets(results: Results) -> list[Target]:
    """What the project set itself, and what came out."""
    found: list[Target] = []
    sizes = sorted(results.sizes)
    small, large = sizes[0], sizes[-1]

    def compare(other: str, least: float, shown: Callable[[float], str]) -> None:
        figures = results.sizes[small]
        for clients in CLIENTS:
            what = f"search throughput at {small:,} against {_TITLES[other]}, {_clients(clients)}"
            wanted = f"at least {shown(least)}"
            ours = figures["ours"].search.get(clients)
            theirs = figures[other].search.get(clients) if other in figures else None
            if ours is None or theirs is None or not theirs.per_second:
                found.append(Target(what, wanted, None, False))
            else:
                ratio = ours.per_second / theirs.per_second
                found.append(Target(what, wanted, shown(ratio), ratio >= least))

    def at_most(what: str, seen: float | None, most: float, shown: Callable[[float], str]) -> None:
        wanted = f"at most {shown(most)}"
        found.append(
            Target(what, wanted, None, False)
            if seen is None
            else Target(what, wanted, shown(seen), seen <= most)
        )

    compare("mem0", 100.0, lambda ratio: f"{ratio:,.0f} times")
    compare("chroma", 5.0, lambda ratio: f"{ratio:,.1f} times")
    compare("limit", 0.6, lambda ratio: f"{100 * ratio:.0f} %")
    single = results.sizes[large]["ours"].search.get(1)
    life, small_life = results.lives.get(large), results.lives.get(small)
    at_most(
        f"search p50 at {large:,}, scope only, without the embedder",
        single.p50 if single else None,
        0.003,
        duration,
    )
    at_most(
        f"reopen at {large:,} after a clean stop, with the embedder",
        life.ready if life else None,
        2.0,
        duration,
    )
    at_most(f"rebuild of the index at {large:,}", life.rebuild if life else None, 30.0, duration)
    at_most(
        f"anonymous memory at {large:,} with the embedder",
        life.memory.anonymous if life else None,
        250.0 * _MIB,
        lambda count: mebibytes(int(count)),
    )
    at_most(
        f"ready with {small:,} memories and the embedder",
        small_life.ready if small_life else None,
        1.5,
        duration,
    )
    at_most("`pikuri-memory --help`, CPU time", results.help_cpu, 0.2, duration)
    extracted = results.extraction
    at_most(
        "add with extraction over the model's own time, p50",
        extracted.overhead if extracted else None,
        0.03,
        duration,
    )
    at_most(
        f"search p50 while {AT_ONCE} extractions are under way, against the quiet one",
        extracted.slowdown if extracted else None,
        1.5,
        lambda ratio: f"{ratio:.2f} times",
    )
    return found


def markdown(results: Results) -> str:
    """The whole document."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m benchmarks --write`); do not edit by hand.",
        "",
        f"{datetime.now(UTC).date().isoformat()}; the run took {results.seconds / 60:.0f} minutes."
        + (" It was a quick one (`--quick`): do not quote it." if results.quick else ""),
        "",
        *_table(("machine", ""), machine()),
        "",
        "Versions: " + ", ".join(results.versions) + ".",
        "",
        "## Targets",
        "",
        *_table(
            ("what", "target", "seen", ""),
            [
                (
                    target.what,
                    target.wanted,
                    target.seen or "not measured",
                    "" if target.seen is None else "met" if target.met else "**missed**",
                )
                for target in targets(results)
            ],
        ),
    ]
    for size in sorted(results.sizes):
        lines += ["", f"## {size:,} memories of 100 users", ""]
        lines += _side_by_side(results.sizes[size])
        ratios = list(_ratios(results.sizes[size]))
        if ratios:
            lines += ["", "Search throughput of pikuri-memory, divided by that of", ""]
            lines += _table(("", *map(_clients, CLIENTS)), ratios)
    lines += ["", "## pikuri-memory as it is shipped, with the real embedder", ""]
    lines += _shipped(results)
    if results.extraction is not None:
        lines += ["", "## Extraction with a model", "", *_extraction(results.extraction)]
    if results.stack is not None:
        lines += ["", "## The container stack", "", *_stack(results.stack)]
    lines += ["", "## How it was measured", "", *_method(results)]
    return "\n".join(lines) + "\n"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _side_by_side(figures: dict[str, Figures]) -> list[str]:
    names = [name for name in _TITLES if name in figures]
    rows: list[tuple[str, ...]] = []

    def row(what: str, shown: Callable[[Figures], str]) -> None:
        rows.append((what, *(shown(figures[name]) for name in names)))

    def runs(what: str, group: Callable[[Figures], dict[int, Run]]) -> None:
        for clients in CLIENTS:
            measured = [group(figures[name]).get(clients) for name in names]
            told = f"{what}, {_clients(clients)}"
            rows.append((f"{told}: p50", *(duration(r.p50 if r else None) for r in measured)))
            rows.append((f"{told}: p99", *(duration(r.p99 if r else None) for r in measured)))
            rows.append((f"{told}: a second", *map(_throughput, measured)))

    row("start to healthy (empty; the limit: full)", lambda f: duration(f.start))
    row(f"import, memories a second ({BATCH} a request)", lambda f: rate(f.imported))
    runs("search", lambda f: f.search)
    runs("filtered search", lambda f: f.filtered)
    runs("add", lambda f: f.add)
    row("anonymous memory", lambda f: mebibytes(f.memory.anonymous if f.memory else None))
    row("RSS", lambda f: mebibytes(f.memory.resident if f.memory else None))
    row("disk", lambda f: mebibytes(f.disk))
    row(
        f"answer among the best {TOP_K}",
        lambda f: "-" if f.found is None else f"{100 * f.found:.0f} %",
    )
    return _table(("", *(_TITLES[name] for name in names)), rows)


def _throughput(run: Run | None) -> str:
    if run is None:
        return "-"
    lost = f" ({run.failed} of {run.count + run.failed} failed)" if run.failed else ""
    return rate(run.per_second) + lost


def _ratios(figures: dict[str, Figures]) -> Iterator[tuple[str, ...]]:
    for name, title in _TITLES.items():
        if name == "ours" or name not in figures:
            continue
        cells: list[str] = []
        for clients in CLIENTS:
            ours, theirs = figures["ours"].search[clients], figures[name].search[clients]
            ratio = ours.per_second / theirs.per_second if theirs.per_second else 0.0
            cells.append(f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}")
        yield (title, *cells)


def _shipped(results: Results) -> list[str]:
    sizes = sorted(results.lives)
    lives = [results.lives[size] for size in sizes]
    rows: list[tuple[str, ...]] = [
        ("start to healthy after a clean stop", *(duration(life.ready) for life in lives)),
        ("clean stop", *(duration(life.stop) for life in lives)),
        ("start to healthy after kill -9", *(duration(life.after_kill) for life in lives)),
        (
            "start to index ready after kill -9 (searches are scored exactly meanwhile)",
            *(duration(life.index_after_kill) for life in lives),
        ),
        ("rebuild of the index by itself", *(duration(life.rebuild) for life in lives)),
        ("search, 1 client: p50", *(duration(life.search.p50) for life in lives)),
        ("search, 1 client: p99", *(duration(life.search.p99) for life in lives)),
        ("anonymous memory", *(mebibytes(life.memory.anonymous) for life in lives)),
        ("RSS", *(mebibytes(life.memory.resident) for life in lives)),
    ]
    lines = _table(("", *(f"{size:,} memories" for size in sizes)), rows) if lives else []
    other: list[tuple[str, str]] = []
    if results.embedder:
        seen = results.embedder
        other += [
            ("embedder: import and load", duration(seen["load"])),
            ("embedder: one question, p50", duration(seen["p50"])),
            ("embedder: one question, p99", duration(seen["p99"])),
            ("embedder: 32 memories at once", duration(seen["batch"])),
            ("embedder: memories a second", rate(seen["per_second"])),
        ]
    other.append(("`pikuri-memory --help`, CPU time", duration(results.help_cpu)))
    return [*lines, *([""] if lives else []), *_table(("", ""), other)]


def _extraction(seen: Extraction) -> list[str]:
    rows = [
        ("the model asked directly, p50", duration(seen.model)),
        ("add with extraction, 1 client: p50", duration(seen.add)),
        ("of which not the model's", duration(seen.overhead)),
        ("search, 1 client, nothing else: p50", duration(seen.quiet)),
        (f"search, 1 client, beside {AT_ONCE} extractions: p50", duration(seen.busy)),
        ("extractions that ended meanwhile", f"{seen.extracted:,}"),
    ]
    return _table(("", ""), rows)


def _stack(seen: Stack) -> list[str]:
    life = [
        ("`up` without checkout and image (base images are there)", duration(seen.cold)),
        ("`up` with both", duration(seen.warm)),
        ("`down`", duration(seen.down)),
    ]
    ways = (seen.direct, seen.relayed)
    relay: list[tuple[str, ...]] = [
        ("a request on a kept connection, p50", *(duration(way.kept) for way in ways)),
        ("a request on a new connection, p50", *(duration(way.new) for way in ways)),
        ("one long reply, MB/s", *(f"{way.rate / 1e6:,.0f}" for way in ways)),
        (
            f"{AT_ONCE_BY_RELAY} requests of 0.5 s at once: answered, until the last",
            *(f"{way.answered}, {duration(way.all)}" for way in ways),
        ),
    ]
    without = [name for name in next(iter(seen.per_second.values()), {}) if name]
    rows = [
        (kind, *(rate(group.get(name)) for name in ("", *without)))
        for kind, group in seen.per_second.items()
    ]
    return [
        *_table(("", ""), life),
        "",
        "The router asked directly on the host, and by the relay from inside mem0's container:",
        "",
        *_table(("", "direct", "relayed"), relay),
        "",
        f"mem0's patched server, requests a second with {CLIENTS_AT_STACK} clients:",
        "",
        *_table(("", "all patches", *(f"without {name}" for name in without)), rows),
    ]


def _method(results: Results) -> list[str]:
    used = max(
        (
            run.generator
            for size in results.sizes.values()
            for figures in size.values()
            for run in figures.search.values()
        ),
        default=0.0,
    )
    return [
        "- All servers of a size run at the same time on the same machine; requests go to one of"
        " them at a time, in rounds, in another order each round. Figures are medians over the"
        " rounds.",
        "- The load generator is one process with kept connections and prepared bytes, the same"
        " for every server; each client sends its next request when the reply to its last is"
        f" whole. It used at most {100 * used:.0f} % of a core.",
        "- Vectors are made beforehand (384 dimensions, clustered). pikuri-memory and mem0 look"
        " them up by the text in the place of an embedder, Chroma gets them in the requests (it"
        " needs no look-up), the limit has those of the questions in memory. Texts are short"
        " personal facts, some of `tests/evaluation`, most with words drawn by Zipf's law.",
        f"- A search asks for the best {TOP_K} of one of 100 users; a filtered one for one of 12"
        " topics besides. 2,000 different questions are asked in turn.",
        "- *The limit*: a bare ASGI application in uvicorn around one `query_batch` of Qdrant Edge"
        " (dense and sparse list) with the same top-k, returning ids: no key, no checks, no fusion,"
        " no texts, nothing durable.",
        "- *Chroma*: its client-server, asked by raw REST calls. *mem0*: its library with its"
        " default local store behind FastAPI, `infer=False`; its import adds one by one, for it has"
        " no batch, and additions wait for each other, for its store does not bear two writers."
        " Neither fastembed nor spaCy is installed (both download models at run time),"
        " so that its search is dense only.",
        "- *Add* and *import* wait until pikuri-memory has it on the disk (fsync), in the index,"
        " and read back.",
        "- *Answer among the best* shows that all do the same job: the share of 100 questions"
        " whose memory is in the reply. It is no measure of quality: see `make evaluate`.",
        "- The last table has the server as it is shipped (`pikuri-memory serve`), with the real"
        " embedder; its searches contain the embedder's time unless the same question came before.",
        "- *Extraction*: the server as it is shipped, with the built-in embedder and 10,000"
        " memories; the model is a process that answers one fact after"
        f" {MODEL_SECONDS * 1000:.0f} ms (while reads are measured, {SLOW_MODEL_SECONDS:g} s), and"
        " is asked directly with a prompt as long as mem0's for its own time.",
        "- *The container stack*: `Mem0Server` on a real engine, with the patches of the pin."
        " Qdrant and socat's image are stand-ins that the tests make (a server over Qdrant Edge;"
        " Debian's own socat), and so is mem0's repository unless a mirror of it is given. Servers"
        " with and without a patch take turns; a fifth more or less is the machine's.",
    ]
