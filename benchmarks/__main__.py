"""``python -m benchmarks``: run, print, and with ``--write`` keep the report."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from benchmarks import corpus, environments, extraction, measure, report, stack
from benchmarks.servers import BenchmarkError, Workspace
from pikuri_memory.errors import PikuriMemoryError

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
OTHERS = ("limit", "chroma", "mem0")
QUESTIONS = 2000


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--output", type=Path, help="write the report to this file")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--sizes",
        default="10000,100000",
        help="memories, separated by commas; the products take part in the first size only",
    )
    parser.add_argument(
        "--only",
        default=",".join(OTHERS),
        help="what pikuri-memory is compared with: limit, chroma, mem0, separated by commas",
    )
    parser.add_argument(
        "--skip-shipped",
        action="store_true",
        help="leave out starts, stops and memory of the server as it is shipped",
    )
    parser.add_argument(
        "--skip-extraction",
        action="store_true",
        help="leave out adds with extraction, which need the extra `extraction`",
    )
    parser.add_argument(
        "--skip-stack",
        action="store_true",
        help="leave out the container stack, which needs a container engine",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=environments.default_cache(),
        help="where the environments of the products are kept",
    )
    return parser.parse_args(arguments)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    options = parse(arguments)
    others = [name for name in options.only.split(",") if name and name != "ours"]
    unknown = sorted(set(others) - set(OTHERS))
    if unknown:
        print(f"error: unknown: {', '.join(unknown)}", file=sys.stderr)
        return 2
    # The servers are children that end with this process; the directory is ours to remove.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = Path(tempfile.mkdtemp(prefix="pikuri-bench-"))
    results = measure.Results(quick=options.quick)
    try:
        run(options, others, root, results)
    except (BenchmarkError, PikuriMemoryError) as error:
        if results.sizes:
            print(report.markdown(results))  # what was measured until then, for a person
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)
    text = report.markdown(results)
    target: Path | None = options.output or (DOCUMENT if options.write else None)
    if target is None:
        print(text)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        say(f"wrote {target}")
    return 0


def run(
    options: argparse.Namespace, others: list[str], root: Path, results: measure.Results
) -> None:
    """Everything, in order; ``results`` is filled on the way."""
    for name in ("pikuri-memory", "qdrant-edge-py", "onnxruntime", "uvicorn"):
        results.versions.append(f"{name} {metadata.version(name)}")
    for environment in (environments.MEM0, environments.CHROMA):
        if environment.name in others:
            say(f"environment of {environment.name}")
            environments.ensure(options.cache, environment)
            results.versions.append(environments.version(options.cache, environment))
    started = time.perf_counter()
    sizes = [int(size) for size in options.sizes.split(",")]
    effort = measure.QUICK if options.quick else measure.FULL
    say("memories and questions")
    made = corpus.make(
        max(sizes),
        added=effort.slow_rounds * effort.adds * 5 + 32,
        questions=QUESTIONS,
        answers_among=min(sizes),
    )
    files = root / "corpus"
    files.mkdir()
    made.write(files)
    workspace = Workspace(root, files, options.cache)
    bench = measure.Bench(workspace, made, effort, others, say)
    for place, size in enumerate(sizes):
        results.sizes[size] = bench.size(size, all_products=place == 0)
        if not options.skip_shipped:
            results.lives[size] = bench.life(size, crash=size == max(sizes))
    if not options.skip_shipped:
        say("embedder and --help")
        results.embedder = measure.embedder(workspace, made, 64 if options.quick else 256)
        results.help_cpu = measure.help_cpu(workspace, 3 if options.quick else 7)
    if not options.skip_extraction:
        say("extraction: an add, and reads beside 8 of them")
        results.extraction = extraction.measure(
            workspace, made, rounds=effort.rounds, seconds=2 * effort.slow_seconds
        )
    if not options.skip_stack:
        missing = stack.available()
        if missing is None:
            say("container stack: starts, the relay, patches")
            results.stack = stack.measure(
                workspace, rounds=effort.slow_rounds, seconds=effort.slow_seconds
            )
        else:
            say(f"container stack: not measured, {missing}")
    results.seconds = time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
