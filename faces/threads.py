"""How many of the processor's cores are there for the training."""

from __future__ import annotations

import functools
import os

import psutil
import torch


def use_free_cores(seconds: float = 0.5) -> str:
    """Let PyTorch use as many threads as other programs leave it cores, one at least.

    Threads wait for the last of them many times a step: beside a busy program two threads on two
    cores are several times slower than one. Where the variable ``OMP_NUM_THREADS`` is set, it
    decides.

    Args:
        seconds: how long to watch the processor; this process sleeps meanwhile.

    Returns:
        A line that says so, if cores are in use; else "".
    """
    n_threads = threads_at_first()
    if n_threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return ""
    times = psutil.cpu_times_percent(seconds)
    n_free = (times.idle + getattr(times, "iowait", 0)) / 100 * psutil.cpu_count()
    n_used = max(1, min(n_threads, round(n_free)))
    torch.set_num_threads(n_used)
    if n_used == n_threads:
        return ""
    return (
        f"Other programs keep the processor busy: training with {n_used} of {n_threads} threads, "
        "which is faster then."
    )


@functools.cache
def threads_at_first() -> int:
    """How many threads PyTorch used when this was first asked."""
    return torch.get_num_threads()
