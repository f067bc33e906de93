"""An engine that fails, for the failures that the real one cannot be brought to."""

from __future__ import annotations

from typing import Any

from pikuri_memory.embedded.engine import Engine
from pikuri_memory.record import Scope


class FailingEngine:
    """The real engine until :attr:`error` is set; from then on every call raises it.

    Attributes:
        error: What is raised.
        pages: Pages of a list that are given before the error.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.error: Exception | None = None
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return getattr(self._engine, name)

    def page(self, scope: Scope, **more: Any) -> Any:
        if self.error is not None:
            self.pages -= 1
            if self.pages < 0:
                raise self.error
        return self._engine.page(scope, **more)
