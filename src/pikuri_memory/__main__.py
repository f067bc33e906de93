"""``python -m pikuri_memory``: the same as the command ``pikuri-memory``."""

from __future__ import annotations

from pikuri_memory.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
