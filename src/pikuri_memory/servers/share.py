"""A share in a running server, whichever it is: held for as long as a ``with`` block."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pikuri_memory import discovery
from pikuri_memory.paths import DataPaths
from pikuri_memory.servers.lifecycle import ServerLifecycle


class Share(ABC):
    """What every server object does alike, over its life cycle and its directory.

    A server's class gives :meth:`start` and :meth:`close`, and sets the two fields.
    """

    _paths: DataPaths
    _lifecycle: ServerLifecycle

    @classmethod
    def ensure_running(cls, **kwargs: Any) -> Self:
        """Build a server object and :meth:`start` it. Takes the arguments of the class."""
        return cls(**kwargs).start()

    @abstractmethod
    def start(self) -> Self:
        """Take a share, and return when the server is healthy; again is fine."""

    @abstractmethod
    def close(self) -> None:
        """Give the share back; after the last one, return when the server has stopped."""

    @property
    def data_dir(self) -> Path:
        """The absolute directory of the memories."""
        return self._paths.root

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        import anyio.to_thread

        try:
            return await anyio.to_thread.run_sync(self.start)
        except BaseException:
            # A cancelled start goes on in its thread, and nobody would close what it started.
            threading.Thread(target=self.close, name="undo-start", daemon=True).start()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import anyio
        import anyio.to_thread

        with anyio.CancelScope(shield=True):  # a cancelled task gives its share back as well
            await anyio.to_thread.run_sync(self.close)

    def __repr__(self) -> str:
        info = self._lifecycle.info
        state = info.endpoint if info is not None else "not started"
        return f"{type(self).__name__}({str(self._paths.root)!r}, {state})"

    def _key(self) -> str | None:
        return discovery.read_api_key(self._paths)
