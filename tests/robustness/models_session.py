"""A whole session with a model endpoint, to be watched from outside:
``python -m tests.robustness.models_session DIRECTORY ROUTER``. Exits with 0 where everything did
what it should.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pikuri_memory import EmbeddedServer
from tests.robustness.session import cli


def main(arguments: list[str]) -> int:
    """The session."""
    data, router = str(Path(arguments[0]) / "data"), arguments[1]
    where = ["--data-dir", data]
    assert "scripted-embed" in cli("models", "--router", router, *where)
    cli("up", "--port", "0", "--router", router, *where)
    cli("add", "I moved to Oulu in spring. My cat is called Bella.", "--user", "anna", *where)
    stored = cli("list", "--user", "anna", *where)
    assert "My cat is called Bella." in stored, stored
    assert "spring. My" not in stored, "nothing was extracted"
    assert "Bella" in cli("search", "which cat has she?", "--user", "anna", *where)
    cli("reembed", "--embedder-model", "builtin", *where)
    cli("down", *where)
    # What was chosen is remembered; the router's chat model still extracts.
    with EmbeddedServer(data_dir=data, port=0) as server, server.client() as client:
        client.add("I took up rowing last week. I hate early mornings.", user_id="anna")
        assert len(list(client.get_all(user_id="anna"))) == 4
        state = json.loads(cli("status", "--json", *where))
        assert state["extraction"]["model"] == "scripted-instruct", state
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
