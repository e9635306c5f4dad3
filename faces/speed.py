"""Networks and steps made fast; what they compute stays the same, up to rounding.

``Accelerator`` is what the lesson sees. Below it are the parts: how many threads, bfloat16, 4x4
convolutions as matrix products on a CPU, a step recorded on a CUDA device.
"""

from __future__ import annotations

import itertools
import linecache
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
import torch.nn.modules.module
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from faces.parallel import distribute, join_processes, leave_processes, print_main

Step = Callable[..., tuple[Tensor, Tensor]]


class Accelerator:
    """Where the lesson trains, and what makes its networks and its step fast there.

    Args:
        accelerate: False leaves networks and the step as they are, in float32.

    Attributes:
        device: this process's device.
        num_processes: how many train together: one, or those that ``torchrun`` started.
        precision, memory_format: see ``choose_precision``; as PyTorch has them by default without
            ``accelerate``.

    Raises:
        ValueError: see ``find_device``.
    """

    def __init__(self, accelerate: bool = True) -> None:
        self.device, self.num_processes = join_processes()
        self.accelerate = accelerate
        self.precision, self.memory_format = "float32", torch.contiguous_format
        if accelerate:
            self.precision, self.memory_format = choose_precision(self.device)

    def prepare(self, *networks: nn.Module) -> tuple[nn.Module, ...]:
        """Move networks to the device and make them fast there, in place; return them.

        See ``make_fast`` for what is done.
        """
        for network in networks:
            network.to(self.device)
            if self.accelerate:
                make_fast(network, self.device, self.precision, self.memory_format)
        return networks

    def capture(
        self,
        step: Step,
        networks: tuple[nn.Module, nn.Module],
        optimizers: tuple[torch.optim.Optimizer, ...],
    ) -> Step:
        """Return ``step(D, G, images, latents)`` as a function of images and latents, made fast.

        Of several processes, each averages its gradients with the others'. On one CUDA device the
        step is recorded, see ``RecordedStep``.

        Args:
            step: takes D, G, images and latents; returns both losses.
            networks: D and G.
            optimizers: those that it steps, in the state in which they go on.
        """
        step = partial(step, *distribute(*networks))
        if self.accelerate and self.device.type == "cuda" and self.num_processes == 1:
            return RecordedStep(step, *optimizers)
        return step

    def finish(self) -> None:
        """End all processes but the main one, which shows the results."""
        leave_processes()
        self.num_processes = 1


def choose_precision(device: torch.device) -> tuple[str, torch.memory_format]:
    """Choose how a device computes networks: in which precision, and in which order of memory.

    On a CUDA device both changes come together, from compute capability 8.0 on: before that there
    are no units for bfloat16, and in float32 ``channels_last`` may be slower
    (https://github.com/pytorch/pytorch/issues/44943). On an Apple GPU batch norm's backward pass
    fails in that order, or is wrong, in PyTorch 2.11 to 2.13
    (https://github.com/pytorch/pytorch/issues/175189).

    Returns:
        "bfloat16" where the device multiplies matrices much faster in it, else "float32"; and
        ``torch.channels_last`` or ``torch.contiguous_format``.
    """
    if device.type == "cpu":
        has_units = cpu_flags() & {"amx_bf16", "avx512_bf16"}
        is_hidden = "AVX512" not in torch.backends.cpu.get_cpu_capability()  # by a variable
        return "bfloat16" if has_units and not is_hidden else "float32", torch.channels_last
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "bfloat16", torch.channels_last
    is_last = device.type not in ("cuda", "mps")
    return "float32", torch.channels_last if is_last else torch.contiguous_format


def cpu_flags() -> set[str]:
    """Name what an x86 processor can do, such as "avx512_bf16", as Linux does; {} elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def make_fast(
    network: nn.Module, device: torch.device, precision: str, memory_format: torch.memory_format
) -> None:
    """Make a network fast on the device that it is on, in place.

    On a CPU the 4x4 convolutions of small images (8x8 pixels and less on the larger side) become
    matrix products with the images' patches: the convolution library is several times slower there.
    In bfloat16 the network computes while it trains, and still returns float32.

    Args:
        network: its weights are on the device.
        device: where it computes.
        precision: "bfloat16" or "float32".
        memory_format: the order of its weights, see ``choose_precision``.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    network.to(memory_format=memory_format)
    if device.type == "cpu":
        multiply_patches(network)
    if precision == "bfloat16":
        network.__class__ = _in_bfloat16(type(network))


class FreeCores:
    """Lets PyTorch use as many threads as other programs leave it cores, one at least.

    Threads wait for the last of them many times a step: beside a busy program two threads on two
    cores are several times slower than one. Where the variable ``OMP_NUM_THREADS`` is set, it
    decides. As a context manager it watches the processor for half a second, and sets the number of
    threads back at the end; ``look`` takes in what happened since the last look.

    Args:
        is_asked: False leaves the number of threads as it is.
    """

    def __init__(self, is_asked: bool = True) -> None:
        self._is_asked = is_asked

    def __enter__(self) -> FreeCores:
        self.most = torch.get_num_threads()
        self._is_asked &= self.most > 1 and "OMP_NUM_THREADS" not in os.environ
        if self._is_asked:
            self._seen = self._read()
            time.sleep(0.5)
            self.look()
        return self

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self.most)

    def look(self) -> None:
        """Set the number of threads to that of the cores that others have left since last time."""
        if not self._is_asked or time.monotonic() < self._seen[0] + 0.4:  # clocks tick every 10 ms
            return
        before, self._seen = self._seen, self._read()
        seconds, n_free = (now - then for now, then in zip(self._seen, before, strict=True))
        n_free = n_free / max(seconds, 1e-3)
        n_before, n_threads = torch.get_num_threads(), max(1, min(self.most, round(n_free)))
        torch.set_num_threads(n_threads)
        if n_threads < n_before:
            print_main(
                f"Other programs keep the processor busy: training with {n_threads} of {self.most} "
                "threads, which is faster then."
            )

    @staticmethod
    def _read() -> tuple[float, float]:
        """Seconds by the clock, and seconds of cores that were idle or worked for this process."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0)
        return time.monotonic(), idle + own.user + own.system


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
    """The 4x4 patches, 2 pixels apart, of images (n, C, 2h, 2w) with a border of 1 zero.

    The result is (n * h * w, 4 * 4 * C). Its transpose, which adds patches up again, is ``join``.
    F.unfold and F.fold, with the transposition that they need, take 4 to 14 times as long, forward
    and backward (32 images of 8x8, 4x4 and 2x2, float32, one thread of an AMD EPYC).
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
    """A 4x4 convolution with stride 2, as one matrix product where images are small."""

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


# ------------------------------------------------------------------------ CUDA


class RecordedStep:
    """A training step that is recorded once as a CUDA graph and then replayed.

    Replaying costs the CPU one call instead of hundreds. The first calls run plainly on the stream
    that then records, as PyTorch's notes on CUDA graphs ask for; so does a batch smaller than the
    one recorded, and every call while global hooks on modules or optimizers want to see it. Random
    numbers drawn on the GPU are new at each replay. Numbers of Python's would stay what they were
    at the recording: where the first calls show one that changes, or a wait for the GPU, the step
    is never recorded, see ``Rehearsal``.

    Args:
        step: takes images and latents on a CUDA device and returns tensors; everything that it
            changes must be on that device.
        optimizers: those that it steps, in the state in which they go on; they are made capturable,
            and their learning rates tensors, which can be changed between replays.

    Raises:
        RuntimeError: (when called) if the step cannot be recorded.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        *optimizers: torch.optim.Optimizer,
    ) -> None:
        self._step = step
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._size = 0
        self._rehearsal = Rehearsal(self._run_plainly)
        for optimizer in optimizers:
            _make_capturable(optimizer)

    def __call__(self, images: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Run the step; what it returns is overwritten by the next call."""
        if len(images) > self._size:  # a larger batch than before: record that
            self._size, self._graph, self._rehearsal = len(images), None, self._rehearsal.again()
        if len(images) < self._size:
            return self._run_plainly(images, z)
        if not self._rehearsal.is_over or _is_watched():
            return self._rehearsal(images, z)
        if self._graph is None:
            self._batch = images.clone(), z.clone()
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph, stream=self._stream):
                    self._returned = [tensor.detach() for tensor in self._step(*self._batch)]
            except Exception as error:  # PyTorch stays on the recording stream
                raise RuntimeError(
                    "The training step cannot be recorded as a CUDA graph: restart the kernel and "
                    "set accelerate = False."
                ) from error
        for recorded, new in zip(self._batch, (images, z), strict=True):
            recorded.copy_(new)
        self._graph.replay()
        return tuple(self._returned)

    def _run_plainly(self, images: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # Adam: "but not captured"
            returned = [tensor.detach() for tensor in self._step(images, z)]
        torch.cuda.current_stream().wait_stream(self._stream)
        return tuple(returned)


class Rehearsal:
    """The calls of a step before it is recorded, which show whether a recording would do the same.

    The first call makes the optimizers' states. The operators of the second and the third must be
    the same, and be given the same numbers by Python. In the fourth nothing may wait for the GPU.

    Args:
        step: takes images and latents.

    Attributes:
        is_over: whether the step can be recorded now. If it cannot be recorded at all, that is said
            once, and this stays False.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, ...]]) -> None:
        self._step = step
        self._n_calls = 0
        self._is_refused = False

    @property
    def is_over(self) -> bool:
        return self._n_calls >= 4 and not self._is_refused

    def again(self) -> Rehearsal:
        """Begin again, for batches of another size; what was refused stays so."""
        return self if self._is_refused else Rehearsal(self._step)

    def __call__(self, images: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Run the step, as it is."""
        self._n_calls += 1
        if self._n_calls in (2, 3):
            with Operators(images.device) as operators:
                returned = self._step(images, z)
            if self._n_calls == 2:
                self._before = operators
            elif place := self._before.first_difference(operators):
                self._refuse(
                    f"The training step does not do the same each time ({place}), as a recording "
                    "would: it is run without a CUDA graph, which is slower."
                )
        elif self._n_calls == 4 and not self._is_refused:
            with _noting_waits() as places:
                returned = self._step(images, z)
            if places:
                self._refuse(
                    f"The training step waits for the GPU ({places[0]}), which a recording cannot: "
                    "it is run without a CUDA graph, which is slower."
                )
        else:
            returned = self._step(images, z)
        return returned

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        print_main(why)


class Operators(TorchDispatchMode):
    """Notes each of PyTorch's operators that runs, with the numbers it is given, and by which line.

    Of a tensor on the device the type and the shape are noted, of a single number elsewhere the
    value, since a recording would repeat that too.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.calls: list[str] = []
        self._places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operator, then run it."""
        kwargs = kwargs or {}
        self.calls.append(f"{func}{self._describe((args, kwargs))}")
        self._places.append(_place())
        return func(*args, **kwargs)

    def _describe(self, value: Any) -> str:
        if isinstance(value, Tensor):
            is_number = value.device != self._device and value.dim() == 0
            return str(value.item() if is_number else (value.dtype, *value.shape))
        if isinstance(value, dict):
            value = list(value.items())
        if isinstance(value, (list, tuple)):
            return f"({', '.join(map(self._describe, value))})"
        is_constant = isinstance(value, (bool, int, float, complex, str))
        return repr(value) if is_constant else type(value).__name__

    def first_difference(self, other: Operators) -> str | None:
        """Name the line of the first operator that another run does not have, or has otherwise."""
        pairs = itertools.zip_longest(self.calls, other.calls)
        differ = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if differ is None:
            return None
        longer = max(self, other, key=lambda operators: len(operators.calls))
        return longer._places[differ]


@contextmanager
def _noting_waits() -> Iterator[list[str]]:
    """Note the lines at which the CPU waits for a CUDA device."""
    places: list[str] = []
    mode, show = torch.cuda.get_sync_debug_mode(), warnings.showwarning

    def note(message: Warning | str, *rest: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            places.append(_place())
        else:
            show(message, *rest)

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
            warnings.showwarning = note
            yield places
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _place() -> str:
    """Name the innermost line that is neither PyTorch's nor of this package, and show it."""
    others = (*torch.__path__, str(Path(__file__).parent), sysconfig.get_path("stdlib"))
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(others):
            line = linecache.getline(path, frame.f_lineno).strip()
            return f"{path}, line {frame.f_lineno}: {line}"
        frame = frame.f_back
    return "in a backward pass"


def _make_capturable(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True
    for parameter, state in optimizer.state.items():
        if "step" in state:  # of an optimizer that was not capturable, on the CPU
            state["step"] = state["step"].to(parameter.device)


def _is_watched() -> bool:
    """Whether global hooks are installed, which a replay would not call."""
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    return bool(
        torch.nn.modules.module._has_any_global_hook()
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
