"""Ctrl-C as a request that is looked at where it does no harm.

A `KeyboardInterrupt` can be raised anywhere, in the middle of a library that swallows it or is left
half done. While one of these is in use, a first Ctrl-C is only noted.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Context in which the first Ctrl-C sets `requested`, and a second one interrupts at once.

    With `hold`, every Ctrl-C is only noted. Outside of the main thread, where no handler can be
    set, nothing changes.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self.requested = False
        self._hold = hold
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise `KeyboardInterrupt` here if one was requested."""
        if self.requested:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested and not self._hold:
            raise KeyboardInterrupt
        self.requested = True
