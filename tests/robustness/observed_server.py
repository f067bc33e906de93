"""A server that tells what it does and embeds by hashing words:
``python -m tests.robustness.observed_server PHASE_FILE FLUSH_CHANGES FLUSH_SECONDS [FLAGS]``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.robustness.watch import PhaseFile


def main(arguments: list[str]) -> int:
    """The process."""
    observer = PhaseFile(Path(arguments[0]))
    observer.enter("start")  # the imports below are a part of it
    from pikuri_memory.embedded import serve
    from pikuri_memory.embedded.engine import Pace
    from pikuri_memory.settings import Settings
    from tests.embedded.parts import HashEmbedder

    pace = Pace(int(arguments[1]), float(arguments[2]), retry_seconds=1.0)
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in arguments[3:])
    settings = Settings.resolve({name.replace("-", "_"): value for name, value in flags.items()})
    return serve.run(settings, keep=True, make_embedder=HashEmbedder, observer=observer, pace=pace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
