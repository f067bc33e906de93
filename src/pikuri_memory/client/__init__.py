"""HTTP clients for any server that speaks mem0's REST API: ours, mem0's own, or another."""

from __future__ import annotations

from pikuri_memory.client.aio import AsyncMem0Client
from pikuri_memory.client.replies import Entity, Health, HistoryEntry
from pikuri_memory.client.sync import Mem0Client

__all__ = ["AsyncMem0Client", "Entity", "Health", "HistoryEntry", "Mem0Client"]
