"""A program that uses a stack: ``python -m tests.stack.user ARGUMENTS.json``.

It starts the server, prints ``ready`` and waits for the end of its standard input; or it prints
the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pikuri_memory import Mem0Server, PikuriMemoryError


def main() -> int:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    server = Mem0Server(**arguments)
    try:
        server.start()
    except PikuriMemoryError as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message}), flush=True)
        return 1
    print("ready", flush=True)
    sys.stdin.read()
    server.close()
    print("closed", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
