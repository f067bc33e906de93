"""What an ordinary user does with a stack on a rootless engine; started by test_rootless.

python -m tests.stack.rootless_user HOME ROUTER_URL REPOSITORY REF
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pikuri_memory import Mem0Server
from tests.stack.conftest import Upstream, arguments, container, docker, leftovers, project_of
from tests.stack.ollama import LLM


def main(home: str, router_url: str, repository: str, ref: str) -> None:
    """Up, add, search, down, up, search; what was seen goes to the standard output as JSON."""
    told: dict[str, Any] = {}
    given = arguments(Upstream(repository, ref), router_url, Path(home))
    server = Mem0Server(**given)
    with server:
        project = project_of(server)
        told["sidecar"] = docker("exec", container(server, "router-proxy"), "id", "-u")
        told["mounts"] = sorted({path.owner() for path in server.data_dir.iterdir()})
        with server.client() as memory:
            memory.add("My key lies under the flowerpot.", user_id="ada")
            told["found"] = [hit.text for hit in memory.search("flowerpot", user_id="ada")]
    told["left"] = leftovers(project)
    with server, server.client() as memory:
        told["again"] = [record.text for record in memory.get_all(user_id="ada")]
    told["left again"] = leftovers(project)
    told["owners"] = sorted({path.owner() for path in server.data_dir.rglob("*")})
    told["models"] = LLM
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
