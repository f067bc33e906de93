"""The benchmark runs, small: our own server and the limit."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import numpy as np
from benchmarks import corpus, load, report
from benchmarks.extraction import Extraction
from benchmarks.lookup import Lookup
from benchmarks.measure import Figures, Life, Results, Run
from benchmarks.servers import MemoryUse

from pikuri_memory import process

ROOT = Path(__file__).parent.parent


def test_a_small_run_writes_a_report_of_our_server_and_the_limit(tmp_path: Path) -> None:
    target = tmp_path / "benchmarks.md"
    process.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--sizes", "200"),
            *("--only", "limit", "--skip-shipped", "--skip-extraction"),
            *("--skip-stack", "--output", str(target)),
        ],
        timeout=120,
        cwd=ROOT,
    )
    text = target.read_text(encoding="utf-8")
    assert "## 200 memories of 100 users" in text
    assert "| answer among the best 10 | 100 % | 100 % |" in text
    assert "failed" not in text
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text


def test_a_corpus_is_the_same_every_time_and_its_answers_are_nearest(tmp_path: Path) -> None:
    first = corpus.make(150, added=20, questions=40, answers_among=100)
    again = corpus.make(150, added=20, questions=40, answers_among=100)
    assert first.facts == again.facts
    assert first.questions == again.questions
    assert np.array_equal(first.vectors, again.vectors)
    assert len({fact.text for fact in first.facts}) == 170
    first.write(tmp_path)
    lookup = Lookup(tmp_path)
    stored = lookup.vectors([fact.text for fact in first.facts])
    assert np.array_equal(stored, first.vectors[:170])
    for question in first.questions:
        scores = stored @ lookup.vectors([question.text])[0]
        assert int(np.argmax(scores)) == question.answer
        assert first.facts[question.answer].user == question.user


def test_the_load_generator_counts_whole_replies_and_failures(tmp_path: Path) -> None:
    replies = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    ]
    requests = [b"POST / HTTP/1.1\r\n\r\n%d" % number for number in range(len(replies))]
    load.write_requests(tmp_path / "requests", requests)
    assert load.read_requests(tmp_path / "requests") == requests

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for reply in replies:
                    connection.recv(1000)
                    # In two parts: a reply is counted when it is whole.
                    connection.sendall(reply[:20])
                    connection.sendall(reply[20:])

        thread = threading.Thread(target=serve)
        thread.start()
        result = load.run(
            {
                "host": "127.0.0.1",
                "port": listener.getsockname()[1],
                "requests": str(tmp_path / "requests"),
                "start": 0,
                "count": 3,
                "repeat": False,
                "clients": 1,
                "seconds": 10.0,
                "warm_up": 0,
            }
        )
        thread.join()
    assert (result["count"], result["failed"]) == (2, 1)
    assert json.loads(json.dumps(result)) == result


def run_of(per_second: float) -> Run:
    return Run(1 / per_second, 2 / per_second, per_second, 100, 0, 0.2)


def results(ours: float) -> Results:
    figures = {
        name: Figures(search={clients: run_of(rate) for clients in (1, 16)})
        for name, rate in (("ours", ours), ("limit", 1000.0), ("chroma", 100.0), ("mem0", 5.0))
    }
    use = MemoryUse(200 * 2**20, 300 * 2**20)
    life = Life(1.0, 0.1, run_of(200.0), use, 1.2, 20.0, 15.0)
    lives = {10_000: life, 100_000: life}
    extraction = Extraction(model=0.1, add=0.12, quiet=0.004, busy=0.005, extracted=40)
    return Results({10_000: figures, 100_000: figures}, lives, {}, 0.15, extraction)


def test_targets_are_met_or_missed_by_what_was_measured() -> None:
    assert all(target.met for target in report.targets(results(600.0)))
    missed = {target.what for target in report.targets(results(499.0)) if not target.met}
    assert missed == {
        f"search throughput at 10,000 against {other}, {clients}"
        for other in ("mem0", "Chroma", "the limit")
        for clients in ("1 client", "16 clients")
    }


def test_what_was_not_measured_is_not_called_met() -> None:
    figures = {"ours": Figures(search={1: run_of(1000.0), 16: run_of(1000.0)})}
    seen = report.targets(Results({10_000: figures}))
    assert [target.seen for target in seen if target.met] == ["1.00 ms"]
    assert "not measured" in report.markdown(Results({10_000: figures}))
