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

    Of several processes, where each gets its own, none does: they stop after the same step.

    Attributes:
        received: the number of the signal, once this process got one.
        all_know: whether all processes know that one of them got one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.all_know = False
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin, if this is the main thread: no other can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def is_due(self) -> bool:
        """Whether to stop now."""
        return self.all_know if dist.is_initialized() else self.received is not None

    def end(self) -> None:
        """Set the handlers back; after a SIGTERM, end this process as it asked."""
        if dist.is_initialized() and self.all_know:
            dist.barrier()  # the end of one process is that of all: let the first one write
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM:
            sys.stdout.flush()
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and not dist.is_initialized():
            raise KeyboardInterrupt
        self.received = number
