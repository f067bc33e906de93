"""Private, lasting memory for local AI agents.

    from pikuri_memory import EmbeddedServer

    with EmbeddedServer() as server, server.client() as memory:
        memory.add("I am allergic to walnuts", user_id="ada")
        print(memory.search("what must I not eat?", user_id="ada")[0].text)

The names are loaded when they are first used: importing the package itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pikuri_memory._version import __version__

if TYPE_CHECKING:
    from pikuri_memory.client.aio import AsyncMem0Client
    from pikuri_memory.client.replies import Entity, Health, HistoryEntry
    from pikuri_memory.client.sync import Mem0Client
    from pikuri_memory.errors import (
        AccessError,
        AuthenticationError,
        BuildError,
        CheckoutError,
        CommandFailedError,
        CommandNotFoundError,
        CommandTimeoutError,
        ContextTooSmallError,
        DamagedInstallationError,
        DamagedRecordError,
        DataDirectoryInUseError,
        DiskFullError,
        DuplicateTextError,
        EmbedderMismatchError,
        EmbedderUnavailableError,
        EmbeddingDimensionsError,
        EmbeddingError,
        EngineAccessError,
        EngineDownError,
        EngineTooOldError,
        ExtractionUnavailableError,
        FilterError,
        ForeignStackError,
        IdempotencyConflictError,
        InvalidRequestError,
        LeasesHeldError,
        MemoryNotFoundError,
        MethodNotAllowedError,
        MissingExtraError,
        MissingToolError,
        ModelAnswerError,
        ModelError,
        ModelNotOfferedError,
        NewerSchemaError,
        PatchError,
        PikuriMemoryError,
        PortInUseError,
        ProcessError,
        ReembeddingUnderWayError,
        RelayError,
        RouterBusyError,
        RouterRefusedError,
        RouterTimeoutError,
        RouterUnreachableError,
        ScopeRequiredError,
        ServerError,
        ServerNotRunningError,
        ServerStartError,
        ServerUnavailableError,
        SettingError,
        SlowBodyError,
        StackError,
        StackStartError,
        StackTimeoutError,
        StorageError,
        TooLargeError,
        UnexpectedReplyError,
        UnsupportedFileSystemError,
        UnsupportedMediaTypeError,
        WaitTimeoutError,
    )
    from pikuri_memory.record import Degraded, Matches, Record, Scope
    from pikuri_memory.servers.embedded import EmbeddedServer
    from pikuri_memory.servers.mem0 import Mem0Server

# Where a name comes from; what is not here is an error of errors.py.
_MODULES = {
    "AsyncMem0Client": "pikuri_memory.client.aio",
    "Degraded": "pikuri_memory.record",
    "EmbeddedServer": "pikuri_memory.servers.embedded",
    "Entity": "pikuri_memory.client.replies",
    "Health": "pikuri_memory.client.replies",
    "HistoryEntry": "pikuri_memory.client.replies",
    "Matches": "pikuri_memory.record",
    "Mem0Client": "pikuri_memory.client.sync",
    "Mem0Server": "pikuri_memory.servers.mem0",
    "Record": "pikuri_memory.record",
    "Scope": "pikuri_memory.record",
}

__all__ = [
    "AccessError",
    "AsyncMem0Client",
    "AuthenticationError",
    "BuildError",
    "CheckoutError",
    "CommandFailedError",
    "CommandNotFoundError",
    "CommandTimeoutError",
    "ContextTooSmallError",
    "DamagedInstallationError",
    "DamagedRecordError",
    "DataDirectoryInUseError",
    "Degraded",
    "DiskFullError",
    "DuplicateTextError",
    "EmbeddedServer",
    "EmbedderMismatchError",
    "EmbedderUnavailableError",
    "EmbeddingDimensionsError",
    "EmbeddingError",
    "EngineAccessError",
    "EngineDownError",
    "EngineTooOldError",
    "Entity",
    "ExtractionUnavailableError",
    "FilterError",
    "ForeignStackError",
    "Health",
    "HistoryEntry",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "LeasesHeldError",
    "Matches",
    "Mem0Client",
    "Mem0Server",
    "MemoryNotFoundError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "MissingToolError",
    "ModelAnswerError",
    "ModelError",
    "ModelNotOfferedError",
    "NewerSchemaError",
    "PatchError",
    "PikuriMemoryError",
    "PortInUseError",
    "ProcessError",
    "Record",
    "ReembeddingUnderWayError",
    "RelayError",
    "RouterBusyError",
    "RouterRefusedError",
    "RouterTimeoutError",
    "RouterUnreachableError",
    "Scope",
    "ScopeRequiredError",
    "ServerError",
    "ServerNotRunningError",
    "ServerStartError",
    "ServerUnavailableError",
    "SettingError",
    "SlowBodyError",
    "StackError",
    "StackStartError",
    "StackTimeoutError",
    "StorageError",
    "TooLargeError",
    "UnexpectedReplyError",
    "UnsupportedFileSystemError",
    "UnsupportedMediaTypeError",
    "WaitTimeoutError",
    "__version__",
]


if not TYPE_CHECKING:  # a type checker that sees it would take any misspelt name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_MODULES.get(name, "pikuri_memory.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
