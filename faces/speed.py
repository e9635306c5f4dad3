"""Networks and steps made fast; what they compute stays the same, up to rounding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from faces.cuda_graph import RecordedStep
from faces.processes import say


class Speed:
    """What the lesson's networks and step gain on a device.

    Args:
        device: where they are.
        fast: False leaves everything as it is, in float32.

    Attributes:
        precision: "bfloat16" where the device multiplies matrices much faster in it, else
            "float32".
    """

    def __init__(self, device: torch.device, fast: bool) -> None:
        self.device = device
        self.fast = fast
        self.precision = "bfloat16" if fast and bfloat16_pays(device) else "float32"

    def up(self, *networks: nn.Module) -> None:
        """Change networks that are on the device, in place.

        Weights and activations are kept in the order of PyTorch's ``channels_last``, except on an
        Apple GPU: there batch norm's backward pass fails in that order, or is wrong, in PyTorch
        2.11 to 2.13 (https://github.com/pytorch/pytorch/issues/175189). On a CPU the 4x4
        convolutions of small pictures (8x8 pixels and less on the larger side) become matrix
        products with the pictures' patches: the convolution library is several times slower there.
        Where bfloat16 pays, networks compute in it while they train, and still return float32.
        """
        if not self.fast:
            return
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        for network in networks:
            if self.device.type != "mps":
                network.to(memory_format=torch.channels_last)
            if self.device.type == "cpu":
                multiply_patches(network)
            if self.precision == "bfloat16":
                network.__class__ = _in_bfloat16(type(network))

    def step(
        self,
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        *optimizers: torch.optim.Optimizer,
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return a training step on (images, latents) itself, or recorded, on one CUDA device.

        On a CPU it may use fewer threads than before, see ``use_free_cores``.

        Args:
            step: see ``RecordedStep``.
            optimizers: those that it steps, in the state in which they go on.
        """
        if self.fast and self.device.type == "cuda" and not dist.is_initialized():
            return RecordedStep(step, *optimizers)
        if self.fast and self.device.type == "cpu":
            use_free_cores()
        return step


def use_free_cores() -> None:
    """Let PyTorch use as many threads as other programs leave it cores, one at least; say so.

    Threads wait for the last of them many times a step: beside a busy program two threads on two
    cores are several times slower than one. Where the variable ``OMP_NUM_THREADS`` is set, it
    decides. To watch the processor takes half a second.
    """
    n_threads = threads_at_first()
    if n_threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    times = psutil.cpu_times_percent(0.5)
    n_free = (times.idle + getattr(times, "iowait", 0)) / 100 * psutil.cpu_count()
    n_used = max(1, min(n_threads, round(n_free)))
    torch.set_num_threads(n_used)
    if n_used < n_threads:
        many = f"{n_used} of {n_threads} threads"
        say(f"Other programs keep the processor busy: training with {many}, which is faster then.")


@functools.cache
def threads_at_first() -> int:
    """How many threads PyTorch used when this was first asked."""
    return torch.get_num_threads()


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 much faster than in float32."""
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        is_hidden = "AVX512" not in torch.backends.cpu.get_cpu_capability()  # by a variable
        return bool(has.get("amx_bf16") or has.get("avx512_bf16")) and not is_hidden
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _in_bfloat16(plain: type[nn.Module]) -> type[nn.Module]:
    """Make a subclass that trains in bfloat16.

    A class, since a method of one instance would stay bound to it in a copy of the instance.
    """

    class InBfloat16(plain):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training):
                return super().forward(x).float()

    InBfloat16.__name__ = InBfloat16.__qualname__ = plain.__name__
    return InBfloat16


def multiply_patches(network: nn.Module) -> None:
    """Turn a network's 4x4 convolutions with stride 2 into products with patches, where it pays."""
    alike = dict(kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1)
    alike |= dict(padding_mode="zeros", output_padding=(0, 0))
    fast = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d}
    for module in network.modules():
        if type(module) in fast:
            if all(getattr(module, name) == value for name, value in alike.items()):
                module.__class__ = fast[type(module)]


class _Patches(torch.autograd.Function):
    """The 4x4 patches, 2 pixels apart, of pictures (n, C, 2h, 2w) with a border of 1 zero.

    The result is (n * h * w, 4 * 4 * C). Its transpose, which adds patches up again, is ``join``.
    F.unfold and F.fold, with the transposition that they need, take 4 to 14 times as long, forward
    and backward (32 pictures of 8x8, 4x4 and 2x2, float32, one thread of an AMD EPYC).
    """

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        x = F.pad(x.permute(0, 2, 3, 1).contiguous(), (0, 0, 1, 1, 1, 1))
        n, height, width, c = x.shape
        h, w = height // 2 - 1, width // 2 - 1
        row = x.stride(1)
        patches = x.as_strided((n, h, w, 4, 4 * c), (x.stride(0), 2 * row, 2 * c, row, 1))
        return patches.reshape(n * h * w, 16 * c)

    @staticmethod
    def join(patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        n, h, w = shape
        patches = patches.view(n, h, w, 2, 2, 2, 2, -1)
        x = patches.new_zeros(n, h + 1, 2, w + 1, 2, patches.shape[-1])
        for i in (0, 1):
            for j in (0, 1):
                x[:, i : i + h, :, j : j + w] += patches[:, :, :, i, :, j].transpose(2, 3)
        return x.view(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = len(x), x.shape[2] // 2, x.shape[3] // 2
        return _Patches.cut(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Patches.join(gradient, ctx.shape)


class _JoinedPatches(torch.autograd.Function):
    """The transpose of ``_Patches``: (n * h * w, 4 * 4 * C) to (n, C, 2h, 2w)."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return _Patches.join(patches, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Patches.cut(gradient), None


class _Conv2d(nn.Conv2d):
    """A 4x4 convolution with stride 2, as one matrix product where pictures are small."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        if max(height, width) > 8 or height % 2 or width % 2:
            return super().forward(x)
        y = _Patches.apply(x) @ self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        y = y.view(n, height // 2, width // 2, -1).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class _ConvTranspose2d(nn.ConvTranspose2d):
    """The same for a transposed convolution, 4x4 with stride 2."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        n, c, height, width = x.shape
        if max(height, width) > 4 or output_size is not None:
            return super().forward(x, output_size)
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        patches = rows @ self.weight.permute(0, 2, 3, 1).flatten(1)
        y = _JoinedPatches.apply(patches, (n, height, width))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)
