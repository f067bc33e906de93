"""Finished memories into mem0's server, which takes none in batches: each by itself.

Its ids are its own, and of the history it makes only the beginning; text, scope, metadata, date of
expiry and the day on which a memory was learnt are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pikuri_memory.client.sync import Mem0Client
from pikuri_memory.errors import InvalidRequestError
from pikuri_memory.record import Scope


class OneByOne:
    """Stores memories, none of them twice: what a scope had before is looked up once.

    Args:
        client: Of mem0's server.
    """

    def __init__(self, client: Mem0Client) -> None:
        self._client = client
        self._known: dict[Scope, set[str]] = {}

    def store(self, memory: Mapping[str, Any]) -> bool:
        """Store a memory; False where its scope has the same text already.

        Args:
            memory: As ``Mem0Client.add_batch`` takes it.

        Raises:
            PikuriMemoryError: The server refused it, or failed.
        """
        scope = Scope.of(memory).required()
        known = self._texts(scope)
        text = settled(memory["text"])
        if text in known:
            return False
        metadata = dict(memory.get("metadata") or {})
        learnt = memory.get("created_at")
        if "created_at" in metadata:
            raise InvalidRequestError(
                "its metadata has the field created_at, which mem0's server uses itself",
                hint="give the field another name",
            )
        if learnt is not None:
            # The library's own name: it takes the time from there, and does not give it back
            # among the metadata.
            time = learnt.isoformat() if isinstance(learnt, datetime) else learnt
            metadata["created_at"] = time
        self._client.add(
            memory["text"],
            **scope.as_dict(),
            metadata=metadata or None,
            expiration_date=memory.get("expiration_date"),
            infer=False,
        )
        known.add(text)
        return True

    def _texts(self, scope: Scope) -> set[str]:
        found = self._known.get(scope)
        if found is None:
            records = self._client.iterate(
                user_id=scope.user_id,
                agent_id=scope.agent_id,
                run_id=scope.run_id,
                show_expired=True,
            )
            # A scope is exactly its ids: what has more of them is another one's.
            found = self._known[scope] = {
                settled(record.text)
                for record in records
                if Scope(record.user_id, record.agent_id, record.run_id) == scope
            }
        return found


def settled(text: str) -> str:
    """A text as it counts for being the same: after NFC and trimming."""
    return unicodedata.normalize("NFC", text).strip()
