"""Ctrl-C, the stop button and SIGTERM wait for the end of a step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import torch.distributed as dist


class StopSignals:
    """Notes the first SIGINT or SIGTERM; the second one does not wait.

    Attributes:
        received: the number of the signal, once there was one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin; not in one of several processes, which would not stop at the same step."""
        if not dist.is_initialized() and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def end(self) -> None:
        """Set the handlers back; after a SIGTERM, end this process as it asked."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM:
            sys.stdout.flush()
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
