"""A training step that is recorded once on a CUDA device, and replayed from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.modules.module
from torch import Tensor


class RecordedStep:
    """A training step that is recorded once as a CUDA graph and then replayed.

    Replaying costs the CPU one call instead of hundreds. The first three calls run plainly on the
    stream that then records, as PyTorch's notes on CUDA graphs ask for; so does a batch smaller
    than the one recorded, and every call while global hooks on modules or optimizers want to see
    it. Random numbers drawn on the GPU are new at each replay; numbers of Python's, such as a
    learning rate that was set to a float again, stay what they were at the recording.

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
        self._size = self._n_plain = 0
        for optimizer in optimizers:
            _make_capturable(optimizer)

    def __call__(self, images: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Run the step; what it returns is overwritten by the next call."""
        if len(images) > self._size:  # a larger batch than before: record that
            self._size, self._n_plain, self._graph = len(images), 0, None
        if len(images) < self._size or self._n_plain < 3 or _is_watched():
            self._n_plain += len(images) == self._size
            return self._run_plainly(images, z)
        if self._graph is None:
            self._batch = images.clone(), z.clone()
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph, stream=self._stream):
                    self._returned = [tensor.detach() for tensor in self._step(*self._batch)]
            except Exception as error:  # PyTorch stays on the recording stream
                raise RuntimeError(
                    "The training step cannot be recorded as a CUDA graph: restart the kernel and "
                    "set fast = False."
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
