"""Many processes that start, use and leave one server at random.

``python -m tests.servers.soak ROOT KIND SECONDS SEED`` is one of
them; in one of ten rounds it kills itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pikuri_memory import EmbeddedServer
from tests.servers import stand_in
from tests.servers.user import call

SOAK_SECONDS = float(os.environ.get("PIKURI_SOAK_SECONDS", "20"))
REAL_SOAK_SECONDS = float(os.environ.get("PIKURI_SOAK_SECONDS", "60"))
"""With the real server: the minute that is promised."""
PROCESSES = 30
# Away for so much longer than there that often nobody is left, and the server stops; the real one
# takes longer to start.
AWAY_SECONDS = {"stand-in": 6.0, "embedded": 12.0}
BETWEEN_CALLS_SECONDS = 0.1

Kind = Literal["stand-in", "embedded"]


@dataclass
class Outcome:
    """What happened.

    Attributes:
        failures: What processes printed that did not end well; empty if all is as it should be.
        rounds: How often one started, used and left the server.
        kills: How often one left by SIGKILL.
    """

    failures: list[str] = field(default_factory=list)
    rounds: int = 0
    kills: int = 0


def soak(root: Path, kind: Kind, seconds: float) -> Outcome:
    """Let 30 processes come and go; those that kill themselves are replaced."""
    end = time.monotonic() + seconds
    running = [_begin(root, kind, seconds, number) for number in range(PROCESSES)]
    begun = PROCESSES
    outcome = Outcome()
    try:
        while running:
            time.sleep(0.05)
            for user in [user for user in running if user.poll() is not None]:
                running.remove(user)
                out, err = user.communicate()
                told = json.loads(out.splitlines()[-1]) if out else {"rounds": 0}
                killed = bool(told.get("killed"))
                if not out or err or user.returncode != (-signal.SIGKILL if killed else 0):
                    outcome.failures.append(f"code {user.returncode}: {err}")
                outcome.rounds += told["rounds"]
                outcome.kills += killed
                if killed and (left := end - time.monotonic()) > 1:
                    running.append(_begin(root, kind, left, begun))
                    begun += 1
    finally:
        for user in running:
            user.kill()
            user.communicate()
    return outcome


def _begin(root: Path, kind: Kind, seconds: float, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.servers.soak", str(root), kind, str(seconds), str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=stand_in.environment(),
        text=True,
    )


def _main(root: Path, kind: str, seconds: float, seed: str) -> None:
    chance = random.Random(seed)
    start, use, close = _embedded(root) if kind == "embedded" else _stand_in(root)
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0, AWAY_SECONDS[kind]))
        start()
        for _ in range(chance.randrange(1, 4)):
            use()
            time.sleep(chance.uniform(0, BETWEEN_CALLS_SECONDS))
        rounds += 1
        if chance.random() < 0.1:
            print(json.dumps({"rounds": rounds, "killed": True}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        close()
    print(json.dumps({"rounds": rounds}), flush=True)


Steps = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]


def _stand_in(root: Path) -> Steps:
    server = stand_in.lifecycle(root)

    def use() -> None:
        assert server.info is not None
        call(server.info.endpoint)

    return server.start, use, server.close


def _embedded(root: Path) -> Steps:
    server = EmbeddedServer(port=0, data_dir=root)

    def use() -> None:
        with server.client() as memory:
            memory.get_all(user_id="ada")

    return server.start, use, server.close


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4])
