"""One process, or those that ``torchrun`` started, training together; what they print.

The names are those of Hugging Face's accelerate. It is not used, because two of its processes do
not compute what one does, and because PyTorch's synchronised batch norm works on GPUs only.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from IPython import get_ipython
from IPython.display import display
from torch import Tensor, nn
from tqdm import tqdm


def find_device() -> torch.device:
    """Find the device of this process: an accelerator that can compute, else the CPU.

    Of the processes that ``torchrun`` started, each gets an accelerator of its own, or all share
    the CPU (always on a Mac, whose GPU has no backend for several processes).

    Raises:
        ValueError: if a machine has fewer accelerators than processes, or one of several processes
            has an accelerator that cannot compute.
    """
    kind = torch.accelerator.current_accelerator()  # that this PyTorch was built for
    if kind is None or not torch.accelerator.device_count():
        return torch.device("cpu")
    if _num_processes() > 1 and kind.type == "mps":
        return torch.device("cpu")
    device = torch.device(kind.type, _local_rank())
    if device.index >= torch.accelerator.device_count():
        raise ValueError(
            f"There are {torch.accelerator.device_count()} accelerators on this machine. Set "
            "--nproc-per-node to that number, or hide them to run on the CPU."
        )
    return device if _computes(device) else torch.device("cpu")


@functools.cache
def _computes(device: torch.device) -> bool:
    """Try an accelerator; say why if it cannot compute.

    Its driver may be too old for PyTorch, and PyTorch may have no code for an old GPU.
    """
    try:
        x = torch.ones(1, 1, 4, 4, device=device)
        (F.conv2d(x, x) + (x @ x).mean()).item()  # which waits for the result
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().partition("\n")[0]
        if _num_processes() > 1:  # else one would wait for the others with another backend
            raise ValueError(
                f"{device} cannot be used ({why}). Hide the accelerators to run on the CPU."
            ) from error
        print(f"{device} cannot be used ({why}): everything runs on the CPU.")
        return False
    return True


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) if _num_processes() > 1 else 0


def join_processes() -> tuple[torch.device, int]:
    """Join the processes that ``torchrun`` started, if it did.

    Only the main one prints and writes: the others' standard output is dropped. From here on
    printing never fails, see ``keep_printing``.

    Returns:
        This process's device, and how many processes there are.

    Raises:
        ValueError: see ``find_device``.
    """
    num_processes = _num_processes()
    if num_processes > 1 and os.environ.get("RANK", "0") != "0":
        sys.stdout = None
    keep_printing()
    device = find_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if num_processes > 1 and not dist.is_initialized():
        # Others wait while one decodes the images.
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            timeout=timedelta(hours=2),
            device_id=None if device.type == "cpu" else device,
        )
    return device, num_processes


def leave_processes() -> None:
    """End all processes but the main one."""
    if dist.is_initialized():
        is_main = is_main_process()
        dist.destroy_process_group()
        if not is_main:
            sys.exit()


def distribute(*networks: nn.Module) -> list[nn.Module]:
    """Let networks average their gradients, and batch norm its statistics, over all processes.

    Returns:
        The networks themselves if there is one process, else wrapped in
        ``DistributedDataParallel`` with synchronised batch norm.
    """
    if not dist.is_initialized():
        return list(networks)
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = SyncBatchNorm2d
    parallel = nn.parallel.DistributedDataParallel
    known = inspect.signature(parallel).parameters
    new = "forward_sync_buffers"  # PyTorch 2.14's name of broadcast_buffers
    return [parallel(n, **{new if new in known else "broadcast_buffers": False}) for n in networks]


def is_main_process() -> bool:
    """Tell whether this process prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_main_process(make: Callable[[], Any]) -> Any:
    """Let the main process make something; return it in all of them."""
    made = [make() if is_main_process() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(made)
    return made[0]


def check_agreement(values: dict[str, Any]) -> None:
    """Raise ``ValueError`` in all processes if some of these values are not the same in all."""
    if not dist.is_initialized():
        return
    of_all: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_all, values)
    lines = [
        f"  {name}: {of_all[0].get(name)!r} in process 0, {other.get(name)!r} in process {rank}"
        for rank, other in enumerate(of_all)
        for name in of_all[0] | other
        if of_all[0].get(name) != other.get(name)
    ]
    if lines:
        raise ValueError(
            "The processes would not train on the same:\n"
            + "\n".join(lines)
            + "\nGive all of them the same images, settings and code."
        )


def shard(batch: Any) -> Any:
    """Take this process's part of a global batch: every n-th, and as many as the others."""
    if not dist.is_initialized():
        return batch
    n = dist.get_world_size()
    return batch[dist.get_rank() : len(batch) // n * n : n]


@contextmanager
def local_main_process_first() -> Iterator[None]:
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


# ------------------------------------------------------------------------ printing


class _Output:
    """A terminal, pipe or file; if it is closed, what is written to it is dropped."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., Any], *arguments: str) -> Any:
        try:
            return act(*arguments)
        except OSError:  # nobody reads the pipe any more
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            return act(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_printing() -> None:
    """Let printing never fail: what a terminal or pipe cannot show is replaced.

    A closed one, as after ``| head``, gets nothing any more. The outputs of a notebook stay as they
    are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif type(stream) is io.TextIOWrapper:
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Output(stream))


def print_main(line: str) -> None:
    """Print a line above the live line, in the main process only."""
    if is_main_process():
        tqdm.write(line)


class Progress(tqdm):
    """A tqdm line that also reads well in a saved notebook: one line of text, updated in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.handle = None
        kwargs.setdefault("disable", not is_main_process())
        if hasattr(get_ipython(), "kernel"):
            self.handle = display({"text/plain": ""}, raw=True, display_id=True)
            kwargs |= {"file": io.StringIO(), "ncols": 100, "mininterval": 0.5}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the line: the method that tqdm means other front ends to replace."""
        if self.handle is None:
            super().display(msg, pos)
        else:
            self.handle.update({"text/plain": str(self) if msg is None else msg}, raw=True)
