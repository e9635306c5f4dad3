"""The steps of a training run: how many are done, and their losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from faces.checkpoints import CHECKPOINTS


class Steps:
    """Counts a run's steps, and keeps their losses.

    Args:
        folder: where its checkpoints lie.

    Attributes:
        epoch: epochs done.
        batch: batches done in the one after.
        losses: one (d_loss, g_loss) a step, as far as they were read.
    """

    def __init__(self, folder: Path) -> None:
        self.epoch = self.batch = 0
        self.losses: list[tuple[float, float]] = []
        self._unread: list[Tensor] = []
        self._folder = folder

    def __len__(self) -> int:
        return len(self.losses) + len(self._unread)

    def add(self, d_loss: Tensor, g_loss: Tensor) -> None:
        """Note a step's losses, scalar tensors on any device."""
        self._unread.append(torch.stack([d_loss.detach(), g_loss.detach()]).float())
        self.batch += 1

    def read(self, stop: bool = False) -> bool:
        """Read the losses from the device; nothing else waits for it.

        Args:
            stop: whether this process is to stop.

        Returns:
            Whether one of the processes is to, which all of them learn with the same step.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        if self._unread:
            told = torch.full_like(self._unread[0], stop)
            unread = torch.stack([*self._unread, told])
            if dist.is_initialized():  # the mean over the shares of the batch
                dist.all_reduce(unread.div_(dist.get_world_size()))
            *new, (stop, _) = [(d, g) for d, g in unread.tolist()]
            for step, (d, g) in enumerate(new, start=len(self.losses)):
                if not math.isfinite(d + g):
                    raise self._not_finite("A loss", *self._place(step))
            self.losses += new
            self._unread.clear()
        return stop > 0

    def check_weights(self, parts: dict[str, Any]) -> None:
        """Raise ``FloatingPointError`` if a tensor of a network, or one itself, is not finite."""
        for name, part in parts.items():
            tensors = part.state_dict().values() if isinstance(part, nn.Module) else [part]
            if not all(t.isfinite().all() for t in tensors if isinstance(t, Tensor)):
                raise self._not_finite(f"A weight of {name}", self.epoch + 1, self.batch - 1)

    def rows(self) -> Iterator[tuple[int, int, float, float]]:
        """Epoch, batch in the epoch, from 0, and losses of each step."""
        for step, (d_loss, g_loss) in enumerate(self.losses):
            yield *self._place(step), d_loss, g_loss

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return {"epoch": self.epoch, "batch": self.batch, "losses": losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint has."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.losses[:] = [(d, g) for d, g in state["losses"].tolist()]

    def _place(self, step: int) -> tuple[int, int]:
        per_epoch = (len(self) - self.batch) // self.epoch if self.epoch else len(self)
        epoch, batch = divmod(step, per_epoch)
        return epoch + 1, batch

    def _not_finite(self, what: str, epoch: int, batch: int) -> FloatingPointError:
        last = self._folder / CHECKPOINTS[0]
        found = (
            f"The last good checkpoint is {last}" if last.is_file() else "There is no checkpoint"
        )
        return FloatingPointError(
            f"{what} is no longer finite in epoch {epoch}, batch {batch}: the training has "
            f"diverged. {found}. Try a smaller learning rate."
        )
