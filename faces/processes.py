"""One process, or those that ``torchrun`` started, training together."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm


class Processes:
    """The processes that train together: one, or those that ``torchrun`` started.

    With several, each sits on an accelerator of its own, or all share the CPU (always on a Mac);
    only the first one prints and writes: the others' standard output is dropped.

    Attributes:
        count: how many there are.
        device: this process's device.

    Raises:
        ValueError: if a machine has fewer accelerators than processes.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if os.environ.get("RANK", "0") != "0":
            sys.stdout = open(os.devnull, "w")
        self.device = torch.device("cpu")
        kind = torch.accelerator.current_accelerator(check_available=True)
        if kind and (self.count == 1 or kind.type != "mps"):  # that has no backend for several
            if local_rank >= torch.accelerator.device_count():
                raise ValueError(
                    f"There are {torch.accelerator.device_count()} accelerators on this machine: "
                    "set --nproc-per-node to that, or hide them for a run on the CPU."
                )
            torch.accelerator.set_device_index(local_rank)
            self.device = torch.device(kind.type, local_rank)
        if self.count > 1 and not dist.is_initialized():
            # Others wait while one decodes the images.
            dist.init_process_group(
                dist.get_default_backend_for_device(self.device),
                timeout=timedelta(hours=2),
                device_id=None if self.device.type == "cpu" else self.device,
            )

    def parallel(self, *networks: nn.Module) -> list[nn.Module]:
        """Let networks average their gradients, and batch norm its statistics, over all processes.

        Returns:
            The networks themselves if there is one process, else wrapped in
            ``DistributedDataParallel`` with synchronised batch norm.
        """
        if self.count == 1:
            return list(networks)
        for network in networks:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.__class__ = SyncBatchNorm2d
        parallel = nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters
        new = "forward_sync_buffers"  # PyTorch 2.14's name of broadcast_buffers
        return [
            parallel(n, **{new if new in known else "broadcast_buffers": False}) for n in networks
        ]

    def leave(self) -> None:
        """End all processes but the first."""
        if self.count > 1:
            first = is_first_process()
            dist.destroy_process_group()
            self.count = 1
            if not first:
                sys.exit()


def is_first_process() -> bool:
    """Whether this process prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def of_first(make: Callable[[], Any]) -> Any:
    """Let the first process make something; return it in all of them."""
    made = [make() if is_first_process() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(made)
    return made[0]


def share(batch: Any) -> Any:
    """Take this process's part of a global batch: every n-th, and as many as the others."""
    if not dist.is_initialized():
        return batch
    n = dist.get_world_size()
    return batch[dist.get_rank() : len(batch) // n * n : n]


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one process of a machine do the work first; the others find it done."""
    waits = dist.is_initialized() and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        dist.barrier()
    yield
    if dist.is_initialized() and not waits:
        dist.barrier()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; PyTorch's own does so on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); in evaluation mode, or alone again, as the plain one does."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        n = x.numel() // x.shape[1] * dist.get_world_size()
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _AllReduce.apply(values.sum((0, 2, 3), keepdim=True)) / n
        centred = values - mean
        variance = _AllReduce.apply(centred.square().sum((0, 2, 3), keepdim=True)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
        weight, bias = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias))
        return (centred * (variance + self.eps).rsqrt() * weight + bias).to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, for the backward pass too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduce.apply(gradient)  # which has a derivative itself


def say(line: str) -> None:
    """Print a line above the live line, in the first process only."""
    if is_first_process():
        tqdm.write(line)
