"""What surrounds the training loop: batches, losses, the live line, files and checkpoints.

A run whose checkpoint is there goes on from it; on a CPU it ends bit for bit as if it had never
stopped. The stop button, Ctrl-C and SIGTERM end it after the current step, with a checkpoint.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faces.arrays import to_uint8
from faces.checkpoints import random_states, set_random_states
from faces.folders import only_writer
from faces.processes import is_first_process, say, share
from faces.progress import Progress
from faces.record import Record
from faces.stopping import StopSignals
from faces.watching import loss_range, signs_of_failure


class TrainingRun:
    """A run of the training loop, as a context manager; loop over ``epochs`` and ``batches``.

    Args:
        output_dir: where the files go.
        n_epochs: number of epochs.
        print_every: number of batches from one printed line to the next.
        parts: what the training changes, by name: networks, optimizers, tensors. They are
            brought to the state of the checkpoint, if there is one. "G_average" is the network that
            the files of weights are of.
        settings: stored with the weights, so that the network can be built again. A run goes on
            with the same ones only, but for "n_epochs", "resume" and "skip_broken".
        train: the function that trains. A run goes on with the same code only, that of all that it
            uses and of the networks included.
        discriminator_loss: D's loss, see ``loss_range``.

    Attributes:
        losses: one (d_loss, g_loss) a step. On a CPU they are read after each step, elsewhere when
            a line is printed and at the end of an epoch.

    Raises:
        ValueError: if the checkpoint was made with other settings, cannot be read or does not fit.
        RuntimeError: if another run writes to the folder.
        FloatingPointError: (while training) if a loss or a weight is no longer finite.
    """

    def __init__(
        self,
        output_dir: str | Path,
        n_epochs: int,
        print_every: int,
        parts: dict[str, Any],
        settings: dict[str, Any],
        train: Callable[..., Any],
        discriminator_loss: Callable[..., Tensor],
    ) -> None:
        if print_every < 1:
            raise ValueError(f"print_every is {print_every}: it must be at least 1.")
        self.output_dir, self.n_epochs, self.print_every = Path(output_dir), n_epochs, print_every
        self._device = next(parts["G_average"].parameters()).device
        self._record = Record(self.output_dir, parts, settings, train)
        self._steps = self._record.steps
        self._loss_range = loss_range(discriminator_loss)
        self.losses = self._steps.losses
        self._complete = False  # whether the epoch has come to its end
        self._stop = StopSignals()

    @property
    def n_steps(self) -> int:
        """Number of steps done in all, also before the run went on."""
        return len(self._steps)

    def __enter__(self) -> TrainingRun:
        with ExitStack() as stack:
            stack.callback(self._stop.end)
            stack.enter_context(only_writer(self.output_dir))
            self._random = self._record.begin(self.n_epochs)
            self._stop.listen()
            self._line = stack.enter_context(_LiveLine(self.n_epochs))
            self._leave = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()

    def epochs(self) -> Iterator[int]:
        """Count the epochs that are still to do, from 1; end early if the run is to stop."""
        while self._steps.epoch < self.n_epochs and not self._stop.is_due():
            yield self._steps.epoch + 1

    def batches(
        self, loader: DataLoader, sample_z: Callable[[int], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through an epoch's batches; those done before a stop are passed over.

        Args:
            loader: of (images, labels). If it has a generator, that is seeded by the run and the
                epoch, so that the images' order is the same after a stop.
            sample_z: draws that many latents.

        Yields:
            Images and latents on the networks' device; of several processes, each gets its share.
        """
        steps = self._steps
        if self._random is not None:
            set_random_states(self._random, self._device)
            self._random = None
        if not len(loader):
            raise ValueError("batch_size is larger than the number of training images: lower it.")
        if loader.generator is not None:
            loader.generator.manual_seed(self._record.order + steps.epoch)
        self._line.begin_epoch(steps.epoch, steps.batch, len(loader))
        for images, _ in itertools.islice(loader, steps.batch, None):
            z = share(sample_z(len(images)))
            if len(z):
                self._n_images = len(images)
                yield share(images).to(self._device), z.to(self._device)
            elif not steps.batch:
                raise ValueError("batch_size is smaller than the number of processes: raise it.")
            if self._stop.is_due() and steps.batch < len(loader):
                return
        self._complete = True

    def end_batch(self, d_loss: Tensor, g_loss: Tensor) -> None:
        """Note a step's losses (scalar tensors on any device); print them if it is their turn."""
        prints = self._steps.batch % self.print_every == 0
        self._steps.add(d_loss, g_loss)
        self._line.step(self._n_images)
        if prints or d_loss.device.type == "cpu":
            self._stop.all_know = self._steps.read(self._stop.received is not None)
        if prints:
            epoch, (d, g) = self._steps.epoch + 1, self.losses[-1]
            place = f"Epoch [{epoch:5d}/{self.n_epochs:5d}]"
            say(f"{place} | d_loss: {d:6.4f} | g_loss: {g:6.4f}")

    def end_epoch(
        self, G_average: nn.Module, fixed_z: Tensor, judge: Callable[[Tensor], dict[str, float]]
    ) -> None:
        """Draw faces, measure them and write the files; say so if the training seems to fail.

        Args:
            G_average: draws the faces, (n, 3, H, W) in [-1, 1]; the first 16 are kept as samples.
            fixed_z: latents, the same for each epoch.
            judge: measures the faces.
        """
        self._steps.read()
        self._steps.check_weights(self._record.parts)
        if is_first_process():
            with torch.no_grad():
                faces = G_average(fixed_z)
            samples = to_uint8(faces[:16])
            results = self._record.with_epoch(samples, judge(faces))
            if self._complete:
                self._record.results = results
                d_losses = [d for d, _ in self.losses[-self._steps.batch :]]
                self._line.warn(signs_of_failure(d_losses, samples, self._loss_range))
        if self._complete:
            self._steps.epoch += 1
            self._steps.batch, self._complete = 0, False
        if is_first_process():
            self._record.keep(results, random_states(self._device))
        if self._stop.is_due() and self._steps.epoch < self.n_epochs:
            place = f"in epoch {self._steps.epoch + 1}, after {self._steps.batch} of its batches"
            say(
                f"Stopped {place}. To go on from there, run this again with resume = True and "
                f'output_dir = "{self.output_dir.as_posix()}".'
            )


class _LiveLine(Progress):
    """The epoch, the speed and any signs of failure, as one live line."""

    def __init__(self, n_epochs: int) -> None:
        bar = "{desc} |{bar}| {percentage:3.0f}%, {remaining} left"
        super().__init__(total=1, bar_format=bar)
        self._n_epochs = n_epochs
        self._signs = ""

    def begin_epoch(self, epoch: int, batch: int, n_batches: int) -> None:
        """Begin an epoch, after as many epochs, at one of its batches."""
        self._epoch, self._n_images, self._started = epoch + 1, 0, time.perf_counter()
        if self.total == 1:  # only now is it known how much there is to do
            self.total = self._n_epochs * n_batches
            self.initial = self.n = epoch * n_batches + batch

    def step(self, n_images: int) -> None:
        """Count a step on as many images."""
        self._n_images += n_images
        speed = self._n_images / (time.perf_counter() - self._started)
        line = f"epoch {self._epoch} of {self._n_epochs}, {speed:,.0f} images/s{self._signs}"
        self.set_description_str(line, refresh=False)
        self.update()

    def warn(self, signs: str) -> None:
        """Say what signs of failure the epoch shows, if they are others than before."""
        if signs and signs != self._signs:
            say(f"Warning, epoch {self._epoch}{signs}")
        self._signs = signs
