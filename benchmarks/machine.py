"""What the benchmarks need to know of the machine and of the work it does."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from faces.speed import cpu_flags


class QuickEvaluator:
    """Takes the place of ``faces.measures.Evaluator`` where that takes longer than the training."""

    size = 1  # faces that it asks for

    def __call__(self, faces: Tensor) -> dict[str, float]:
        """Return two measures of faces (n, 3, H, W) that any change of the faces changes."""
        return {"swd": faces.std().item(), "mean": faces.mean().item()}


def hardware(device: torch.device) -> str:
    """Name the device, a processor's best instruction set, and the versions of what runs on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        if Path("/proc/cpuinfo").is_file():
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
            name = f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else name}"
        amx = "with" if "amx_tile" in cpu_flags() else "without"
        name += f" ({torch.backends.cpu.get_cpu_capability()}, {amx} AMX)"
    return (
        f"{name}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


class FlopCounter(TorchDispatchMode):
    """Counts the operations of convolutions and matrix products, 2 to a multiply-add.

    It counts what runs inside of ``with FlopCounter() as counter``, by the formulas of
    ``torch.utils.flop_counter``, whose own ``FlopCounterMode`` fails where a loss holds a gradient,
    as R1's does (PyTorch 2.14). It counts nothing in inference mode, nor products with a vector.

    Attributes:
        total: the operations so far.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and add what it costs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measure the best FLOP/s of a product of two square matrices."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
