"""A client that never rests: ``python -m tests.robustness.load_client NAME SLOT DIRECTORY SEED``.

It writes down what it is about to ask for, asks, and writes down the answer. Where no answer came
it asks again (with the same Idempotency-Key, if the request had one) until one comes; it gives up
only adds without a key, whose fate then nobody knows. It runs until the control file says stop.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

import httpx

from pikuri_memory import discovery
from pikuri_memory.paths import DataPaths

CANARY: Final = "zqxcanary"
"""In every text, query and key; no log may ever hold it."""

ENOUGH: Final = 350
"""Memories of a client from which on it rather deletes."""

WORDS: Final = (
    "coffee tea bicycle garden violin winter summer Lisbon Oslo sister brother doctor teacher "
    "yellow green quiet loud early late mountain river bread cheese novel poem engine sailing"
).split()

GATE, STOP, FIRST = 0, 1, 8
"""Bytes of the control file: gate closed; end; from here on one a client, set while it waits."""


def control(directory: Path) -> mmap.mmap:
    """The control file, mapped."""
    with open(directory / "control", "r+b") as file:
        return mmap.mmap(file.fileno(), 64)


class NoAnswerError(Exception):
    """Whether the server did what it was asked is unknown."""


class LoadClient:
    """One client.

    Args:
        name: Its user id.
        slot: Its number, from 0.
        directory: Where control file, logs and the data directory are.
        seed: Of its choices.
    """

    def __init__(self, name: str, slot: int, directory: Path, seed: int) -> None:
        self._name = name
        self._slot = slot
        self._control = control(directory)
        self._paths = DataPaths.at(directory / "data")
        self._log = os.open(
            directory / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self._random = random.Random(seed)
        self._http: httpx.Client | None = None
        self._pid = 0
        self._count = 0
        self._memories: dict[str, dict[str, Any]] = {}
        self._spent: list[tuple[str, dict[str, Any], str, list[str]]] = []
        self._run = 0
        self._gone: list[str] = []

    # -- talking to a server that may die ----------------------------------------------------------

    def _note(self, **line: Any) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def _wait_at_gate(self) -> None:
        while self._control[GATE] and not self._control[STOP]:
            self._control[FIRST + self._slot] = 1
            time.sleep(0.002)
        self._control[FIRST + self._slot] = 0

    def _connect(self) -> httpx.Client | None:
        info = discovery.read_server_info(self._paths)
        if info is None:
            return None
        if info.pid != self._pid or self._http is None:
            if self._http is not None:
                self._http.close()
            self._http = httpx.Client(
                base_url=info.endpoint,
                headers={"X-API-Key": discovery.read_api_key(self._paths) or ""},
                timeout=60,
                trust_env=False,
            )
            self._pid = info.pid
        return self._http

    def _ask(self, method: str, path: str, sent: Any, key: str | None) -> httpx.Response:
        """One attempt.

        Raises:
            NoAnswerError: The server died, is not there, or is stopping.
        """
        self._wait_at_gate()
        http = self._connect()
        if http is None:
            time.sleep(0.01)
            raise NoAnswerError
        headers = {} if key is None else {"Idempotency-Key": key}
        try:
            reply = http.request(method, path, json=sent, headers=headers)
        except httpx.TransportError:
            time.sleep(0.01)
            raise NoAnswerError from None
        if reply.status_code == 503:
            time.sleep(0.01)
            raise NoAnswerError
        return reply

    def _answer(
        self, method: str, path: str, sent: Any = None, key: str | None = None
    ) -> tuple[httpx.Response, bool]:
        """The answer, and whether it took more than one attempt."""
        again = False
        while True:
            try:
                return self._ask(method, path, sent, key), again
            except NoAnswerError:
                again = True
                if self._control[STOP]:
                    raise

    def _wrong(self, what: str, reply: httpx.Response | None = None) -> None:
        shown = "" if reply is None else f": {reply.status_code} {reply.text[:500]}"
        self._note(wrong=what + shown)

    # -- what it does ------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on until told to stop."""
        try:
            while not self._control[STOP]:
                self._step()
        except NoAnswerError:
            pass

    def _step(self) -> None:
        crowded = len(self._memories) > ENOUGH
        deeds = [
            (self._add, 10 if crowded else 40),
            (self._add_several, 2 if crowded else 12),
            (self._update, 20),
            (self._delete, 40 if crowded else 12),
            (self._delete_run, 1),
            (self._search, 15),
            (self._look, 8),
            (self._look_for_deleted, 4),
            (self._repeat, 4),
        ]
        deed = self._random.choices([d for d, _ in deeds], [w for _, w in deeds])[0]
        deed()

    def _item(self) -> dict[str, Any]:
        words = " ".join(self._random.choices(WORDS, k=5))
        if self._random.random() < 0.02:
            self._run += 1
        return {
            "text": f"{CANARY} {self._name} {uuid.uuid4().hex} likes {words}",
            "metadata": {"n": self._random.randrange(1000), "word": f"{CANARY} {words}"},
            "run": f"{self._name}-run-{self._run}",
        }

    def _add(self) -> None:
        item = self._item()
        key = f"{CANARY}-{uuid.uuid4().hex}" if self._random.random() < 0.7 else None
        sent = {
            "messages": [
                {"role": "user", "content": item["text"]},
                {"role": "assistant", "content": f"{CANARY} noted"},
            ],
            "user_id": self._name,
            "run_id": item["run"],
            "metadata": item["metadata"],
        }
        self._store("/memories", sent, [item], key)

    def _add_several(self) -> None:
        items = [self._item() for _ in range(self._random.randint(2, 5))]
        key = f"{CANARY}-{uuid.uuid4().hex}"
        if self._random.random() < 0.5:
            sent: dict[str, Any] = {
                "memories": [
                    {
                        "memory": item["text"],
                        "metadata": item["metadata"],
                        "user_id": self._name,
                        "run_id": item["run"],
                    }
                    for item in items
                ]
            }
            self._store("/memories/batch", sent, items, key)
            return
        for item in items:
            item |= {"metadata": items[0]["metadata"], "run": items[0]["run"]}
        sent = {
            "messages": [{"role": "user", "content": item["text"]} for item in items],
            "user_id": self._name,
            "run_id": items[0]["run"],
            "metadata": items[0]["metadata"],
        }
        self._store("/memories", sent, items, key)

    def _store(self, path: str, sent: dict[str, Any], items: list[Any], key: str | None) -> None:
        self._count += 1
        n = self._count
        self._note(n=n, do="add", items=items, key=key)
        if key is None and self._random.random() < 0.5:
            try:
                reply, again = self._ask("POST", path, sent, None), False
            except NoAnswerError:
                self._note(n=n, lost=True)
                return
        else:
            reply, again = self._answer("POST", path, sent, key)
        if reply.status_code != 200:
            self._wrong(f"add {n}", reply)
            self._note(n=n, lost=True)
            return
        results = reply.json()["results"]
        ids = [result["id"] for result in results]
        if [result["memory"] for result in results] != [item["text"] for item in items]:
            self._wrong(f"add {n} answered other texts")
        # Without a key, a second attempt meets what the first one stored.
        expected = ("ADD", "NONE") if again and key is None else ("ADD",)
        if any(result["event"] not in expected for result in results):
            self._wrong(f"add {n} answered another event", reply)
        self._note(n=n, ok=True, ids=ids)
        for id_, item in zip(ids, items, strict=True):
            self._memories[id_] = item
        if key is not None:
            self._spent.append((path, sent, key, ids))
            del self._spent[:-50]

    def _one(self) -> str | None:
        return self._random.choice(list(self._memories)) if self._memories else None

    def _update(self) -> None:
        id_ = self._one()
        if id_ is None:
            return
        item = dict(self._memories[id_])
        sent: dict[str, Any] = {}
        if self._random.random() < 0.7:
            sent["text"] = item["text"] = self._item()["text"]
        if not sent or self._random.random() < 0.4:
            sent["metadata"] = item["metadata"] = self._item()["metadata"]
        self._count += 1
        n = self._count
        self._note(n=n, do="update", id=id_, item=item)
        reply, _ = self._answer("PUT", f"/memories/{id_}", sent)
        if reply.status_code != 200:
            self._wrong(f"update {n}", reply)
        self._note(n=n, ok=reply.status_code == 200)
        self._memories[id_] = item

    def _delete(self) -> None:
        id_ = self._one()
        if id_ is None:
            return
        self._count += 1
        n = self._count
        self._note(n=n, do="delete", id=id_)
        reply, again = self._answer("DELETE", f"/memories/{id_}")
        if reply.status_code != 200 and not (again and reply.status_code == 404):
            self._wrong(f"delete {n}", reply)
        self._note(n=n, ok=True)
        del self._memories[id_]
        self._gone = [*self._gone[-50:], id_]

    def _delete_run(self) -> None:
        runs = sorted({item["run"] for item in self._memories.values()})
        current = f"{self._name}-run-{self._run}"
        old = [run for run in runs if run != current]
        if not old:
            return
        run = self._random.choice(old)
        self._count += 1
        n = self._count
        self._note(n=n, do="delete_run", run=run)
        where = f"/memories?user_id={self._name}&run_id={run}"
        reply, _ = self._answer("DELETE", where)
        if reply.status_code != 200:
            self._wrong(f"delete_run {n}", reply)
        self._note(n=n, ok=True)
        self._gone += [id_ for id_, item in self._memories.items() if item["run"] == run]
        self._memories = {i: item for i, item in self._memories.items() if item["run"] != run}

    def _search(self) -> None:
        id_ = self._one()
        if id_ is None:
            return
        text = self._memories[id_]["text"]
        sent = {"query": text, "filters": {"user_id": self._name}, "top_k": 5}
        reply, _ = self._answer("POST", "/search", sent)
        if reply.status_code != 200:
            self._wrong("search", reply)
        elif id_ not in [hit["id"] for hit in reply.json()["results"]]:
            self._wrong(f"a search does not find {id_}")

    def _look(self) -> None:
        id_ = self._one()
        if id_ is None:
            return
        reply, _ = self._answer("GET", f"/memories/{id_}")
        if reply.status_code != 200 or reply.json()["memory"] != self._memories[id_]["text"]:
            self._wrong(f"a look at {id_}", reply)
        reply, _ = self._answer("GET", f"/memories/{id_}/history")
        if reply.status_code != 200:
            self._wrong(f"the history of {id_}", reply)
        elif reply.json()[-1]["new_memory"] != self._memories[id_]["text"]:
            self._wrong(f"the history of {id_} ends with another text")

    def _look_for_deleted(self) -> None:
        if self._gone:
            id_ = self._random.choice(self._gone)
            reply, _ = self._answer("GET", f"/memories/{id_}")
            if reply.status_code != 404:
                self._wrong(f"the deleted {id_} is there", reply)

    def _repeat(self) -> None:
        """Send something again, though it was answered."""
        if not self._spent:
            return
        path, sent, key, ids = self._random.choice(self._spent)
        reply, _ = self._answer("POST", path, sent, key)
        if reply.status_code != 200:
            self._wrong("a repeated add", reply)
            return
        answered = [result["id"] for result in reply.json()["results"]]
        if answered != [id_ for id_ in ids if id_ in self._memories]:
            self._wrong(f"a repeated add answered other ids than {ids}", reply)


def main(arguments: list[str]) -> int:
    """The process."""
    name, slot, directory, seed = arguments
    LoadClient(name, int(slot), Path(directory), int(seed)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
