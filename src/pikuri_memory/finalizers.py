"""Work to do once before this process ends, however it ends short of SIGKILL.

Runs at the interpreter's exit, and on a SIGTERM or SIGINT that would otherwise end the process
without one. A signal that already has a Python handler is left alone: that handler decides
whether the process ends at all (Ctrl-C at a prompt does not end it), and if it does end, the
interpreter's exit runs the finalizers.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Handle:
    """A registered finalizer."""

    def __init__(self, owner: Finalizers, function: Callable[[], object], name: str) -> None:
        self._owner = owner
        self.function = function
        self.name = name

    def cancel(self) -> None:
        """Forget it; again is fine."""
        self._owner.cancel(self)


class Finalizers:
    """Finalizers in the order of registration, run last first, each at most once."""

    def __init__(self) -> None:
        self._handles: list[Handle] = []
        # Reentrant: a signal handler may run in the middle of register or cancel.
        self._guard = threading.RLock()

    def forget_all(self) -> None:
        """Start from nothing, in a forked child: what was registered is its parent's to do, and
        the guard may have been held by a thread that does not exist here."""
        self._handles = []
        self._guard = threading.RLock()

    def register(self, function: Callable[[], object], name: str) -> Handle:
        """Add one.

        Args:
            function: Called without arguments; what it raises is logged by its type.
            name: What it does, for the log.
        """
        handle = Handle(self, function, name)
        with self._guard:
            self._handles.append(handle)
        return handle

    def cancel(self, handle: Handle) -> None:
        """Forget one; again is fine."""
        with self._guard:
            if handle in self._handles:
                self._handles.remove(handle)

    def run(self) -> None:
        """Run all that are left, last first; one that fails never stops the next."""
        while True:
            with self._guard:
                if not self._handles:
                    return
                handle = self._handles.pop()
            try:
                handle.function()
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                # The type alone: the text of an error may quote what must not be logged.
                _log.warning("finalizer %r failed: %s", handle.name, type(error).__name__)

    def install(self) -> None:
        """Have :meth:`run` called at exit and by fatal signals (from the main thread only)."""
        atexit.register(self.run)
        self.install_signals()

    def install_signals(self) -> None:
        """Take over signals that would end the process at once; from another thread: nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.run()
        # End as the signal would have ended us, so that the parent sees the true reason.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_registry = Finalizers()
_installed = False


os.register_at_fork(after_in_child=_registry.forget_all)


def register(function: Callable[[], object], name: str) -> Handle:
    """Add a finalizer to those of this process.

    Args:
        function: Called without arguments, at most once.
        name: What it does, for the log.
    """
    global _installed
    if not _installed:
        _installed = True
        _registry.install()
    else:
        # The first registration may have come from a thread that cannot take signals.
        _registry.install_signals()
    return _registry.register(function, name)
