"""Whether mem0 works, asked as a user asks: a read within a scope, which goes through to Qdrant."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path
from typing import Final

HOST: Final = "healthcheck.pikuri.internal"
"""The one name beside the loopback's that the server answers to."""


def main() -> int:
    """Exit code: 0 where a scoped read with the key answers 200."""
    key = Path("/run/secrets/admin_api_key").read_text("utf-8").strip()
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=5)
    try:
        connection.request(
            "GET",
            "/memories?user_id=pikuri-memory-health&top_k=1",
            headers={"Host": HOST, "X-API-Key": key},
        )
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no answer: {type(error).__name__}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"answered {status}\n")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
