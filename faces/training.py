"""What surrounds the training loop: ``Run``, with batches, losses, checkpoints, results, stops.

A run whose checkpoint is there resumes from it; on a CPU it ends bit for bit as if it had never
stopped. The stop button, Ctrl-C and SIGTERM end it after the current step, with a checkpoint.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from filelock import BaseFileLock
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from faces.checkpoints import (
    CHECKPOINTS,
    choose_folder,
    get_random_states,
    identify_run,
    is_finite,
    lock_folder,
    read_checkpoint,
    resume,
    save_checkpoint,
    set_random_states,
    state_dict,
)
from faces.files import atomic_write
from faces.generator import write_weights
from faces.images import to_uint8
from faces.parallel import (
    Progress,
    check_agreement,
    from_main_process,
    is_main_process,
    print_main,
    shard,
)
from faces.show import TrainingPicture, TrainingState, image_grid
from faces.speed import FreeCores

Results = dict[str, list[Any]]  # "samples" and "measures" of each epoch
_PREVIEWS = (50, 100, 200)  # steps of the first epoch after which the picture is drawn too


class Run:
    """A training run: the folder that it writes to, and all that surrounds its loop.

    Made once, before the training: from then on the folder belongs to it, until the training or the
    process has ended or another run is made. The loop then goes over ``epochs`` and ``batches``::

        run = Run("runs/faces")
        with run.start(n_epochs, parts, settings, train, discriminator_loss):
            for _ in run.epochs():
                for images, z in run.batches(loader, sample_z):
                    run.end_batch(*step(images, z))
                run.end_epoch(G_ema, fixed_z, evaluator)

    Args:
        output_dir: the folder asked for; see ``choose_folder`` for when it is another.
        resume: whether to resume the run that it holds, if there is one.

    Attributes:
        folder: where the files go.
        losses: one (d_loss, g_loss) a step. On a CPU they are read after each step, elsewhere at
            the end of an epoch, and before where the picture or other processes need them.
        loss_bounds: D's loss at its best and at chance, see ``discriminator_loss_bounds``.

    Raises:
        ValueError, RuntimeError, OSError: see ``choose_folder``.
    """

    _latest: ClassVar[Run | None] = None

    def __init__(self, output_dir: str | Path | int, resume: bool = True) -> None:
        latest, self._asked = Run._latest, output_dir
        if latest is not None and not latest._is_training:  # its cell is run again
            latest._unlock()
            is_its_own = Path(str(output_dir)) == latest.folder  # which that cell has put there
            if not resume and is_its_own:
                self._asked = latest._asked
        self._lock: BaseFileLock | None = None
        self._is_training = False
        self.losses: list[tuple[float, float]] = []

        def choose() -> Path:
            folder, self._lock = choose_folder(self._asked, resume)
            return folder

        self.folder = from_main_process(choose)
        Run._latest = self

    @property
    def n_steps(self) -> int:
        """Number of steps done in all, also before the run was resumed."""
        return len(self._steps)

    @contextmanager
    def start(
        self,
        n_epochs: int,
        parts: dict[str, Any],
        settings: dict[str, Any],
        train: Callable[..., Any],
        discriminator_loss: Callable[..., Tensor],
    ) -> Iterator[Run]:
        """Listen to signals until the end, and resume from the checkpoint, if there is one.

        A signal stops the training after the current step, or after the first one.

        Args:
            n_epochs: number of epochs.
            parts: what the training changes, by name: networks, optimizers, tensors. They are
                brought to the state of the checkpoint, if there is one. "D" and "G" are the
                networks that compete; "G_ema" draws the faces of the latents "fixed_z", and the
                files of weights are of it.
            settings: stored with the weights, so that the network can be built again. A run resumes
                only with the same ones, but for "n_epochs", "resume" and "skip_broken".
            train: the function that trains. A run resumes only with the same code, see
                ``identify_run``.
            discriminator_loss: D's loss, see ``discriminator_loss_bounds``.

        Raises:
            ValueError: if the checkpoint was made with other settings or code, cannot be read or
                does not fit; if one of several processes has other settings, images or code.
            RuntimeError: if another run writes to the folder.
            FloatingPointError: (while training) if a loss or a weight is no longer finite.
        """
        self._stop = _StopSignals()
        with ExitStack() as stack:
            stack.callback(self._stop.end)
            self._stop.listen()
            self.n_epochs, self._parts = n_epochs, parts
            self._device = next(parts["G_ema"].parameters()).device
            self._identity = identify_run(settings, train, parts)
            self._settings = {n: v for n, v in settings.items() if n in self._identity}
            check_agreement(self._identity)
            self.loss_bounds = discriminator_loss_bounds(discriminator_loss)
            self._steps = _Steps(self.folder)
            self.losses = self._steps.losses
            self._results: Results = {"samples": [], "measures": []}
            self._n_written = 0  # epochs in the files that have all of them
            self._is_complete = False  # whether the epoch has come to its end
            self._is_last = False  # whether no other comes after it
            stack.enter_context(self._locked())
            self._cores = stack.enter_context(FreeCores(self._device.type == "cpu"))
            self._resume()
            self._is_last = self._steps.epoch >= n_epochs
            self._line = stack.enter_context(_LiveLine(n_epochs))
            self._picture, self._evaluator = TrainingPicture(), None
            if self._steps.epoch:
                self._show(self._results["samples"][-1].numpy)
            yield self

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other runs from writing to the folder; of several processes, the main one may."""
        place = self.folder.absolute()
        if is_main_process():
            if self._lock is None or Path(self._lock.lock_file).parent != place:  # a copy of a run
                self._lock = lock_folder(self.folder)
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # The loop

    def epochs(self) -> Iterator[int]:
        """Count the epochs that are still to do, from 1; end early if the run is to stop."""
        while not self._is_last:
            self._cores.look()
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
            Images and latents on the networks' device; of several processes, each gets its shard.
        """
        steps = self._steps
        if self._random is not None:
            set_random_states(self._random, self._device)
            self._random = None
        if not len(loader):
            raise ValueError(
                f"batch_size is {loader.batch_size}, but there are only {len(loader.dataset)} "
                "training images: lower it to that number or less."
            )
        if loader.generator is not None:
            loader.generator.manual_seed(self._order + steps.epoch)
        self._line.begin_epoch(steps.epoch, steps.batch, len(loader))
        self._batch = None
        for images, _ in itertools.islice(loader, steps.batch, None):
            z = shard(sample_z(len(images)))
            if len(z):
                self._n_images = len(images)
                self._batch = shard(images).to(self._device), z.to(self._device)
                yield self._batch
            elif not steps.batch:
                raise ValueError(
                    f"A batch has {len(images)} images, fewer than there are processes: raise "
                    "batch_size, add images, or start fewer processes."
                )
            if self._stop.is_due() and steps.batch < len(loader):
                return
        self._is_complete = True

    def end_batch(self, d_loss: Tensor, g_loss: Tensor) -> None:
        """Note a step's losses, scalar tensors on any device; show the first faces."""
        is_shared = dist.is_initialized() and self._steps.batch % 200 == 0
        self._steps.add(d_loss, g_loss)
        self._line.step(self._n_images)
        has_preview = self._picture.is_shown and not dist.is_initialized()
        has_preview &= self._steps.epoch == 0 and self.n_steps in _PREVIEWS
        if is_shared or has_preview or d_loss.device.type == "cpu":
            self._stop.all_know = self._steps.read_losses(self._stop.received is not None)
        if has_preview:
            self._show(self._preview)

    def end_epoch(
        self, G_ema: nn.Module, fixed_z: Tensor, evaluator: Callable[[Tensor], dict[str, float]]
    ) -> None:
        """Draw faces, measure them and write the files; print how the epoch went.

        The printed line has the means of both losses over the epoch, and the mean probabilities
        that D gives to the photographs and to the generated faces of the last batch. Another line
        says if the training seems to fail.

        Args:
            G_ema: draws the faces, (n, 3, H, W) in [-1, 1]; the first 16 are kept as samples.
            fixed_z: latents, the same for each epoch.
            evaluator: measures the faces. If it has a ``baseline`` and a ``std`` of the distance,
                "swd", the picture shows them.
        """
        self._steps.read_losses()
        self._steps.check_weights(self._parts)
        losses, line = self.losses[-self._steps.batch :], ""
        if self._is_complete:
            line = self._report(losses)
        if is_main_process():
            with torch.no_grad():  # in parts: a thousand at once take gigabytes at 128x128
                faces = torch.cat([G_ema(part) for part in fixed_z.split(100)])
            samples = to_uint8(faces[:16])
            results = {
                "samples": [*self._results["samples"], torch.from_numpy(samples)],
                "measures": [*self._results["measures"], evaluator(faces)],
            }
            if self._is_complete:
                self._results = results
        if self._is_complete:
            self._steps.epoch += 1
            self._steps.batch, self._is_complete = 0, False
        self._is_last = self._stop.is_due() or self._steps.epoch >= self.n_epochs
        if is_main_process():
            self._evaluator = evaluator
            self._show(lambda: samples, at_once=self._is_last)
            if line:
                print_main(line)
                d_losses = [d for d, _ in losses]
                self._line.warn(signs_of_failure(d_losses, samples, self.loss_bounds))
            self._save(results, get_random_states(self._device))
        if self._is_last and self._steps.epoch < self.n_epochs:
            place = f"in epoch {self._steps.epoch + 1}, after {self._steps.batch} of its batches"
            print_main(
                f"Stopped {place}. To resume, run this again with resume = True and "
                f'output_dir = "{self.folder.as_posix()}".'
            )

    # What is seen of it

    def _report(self, losses: Sequence[tuple[float, float]]) -> str:
        """Sum up an epoch with these losses in a line; of several processes, all must."""
        d_loss, g_loss = np.mean(losses, axis=0)
        place = f"Epoch [{self._steps.epoch + 1:5d}/{self.n_epochs:5d}]"
        real, fake = self._mean_probabilities()
        line = f"{place} | d_loss: {d_loss:6.4f} | g_loss: {g_loss:6.4f}"
        return f"{line} | D(x): {real:.2f} | D(G(z)): {fake:.2f}"

    def _mean_probabilities(self) -> list[float]:
        """The means of what D gives to the last batch's photographs, and to faces of its latents.

        Those of all processes count. NaN for an epoch that resumed behind its last batch.
        """
        if self._batch is None:
            return [math.nan, math.nan]
        images, z = self._batch
        with _without_traces(self._parts["D"], self._parts["G"]) as (D, G):
            logits = [D(images * 2 - 1), D(G(z))]
        means = torch.stack([x.float().sigmoid().mean() for x in logits])
        if dist.is_initialized():
            dist.all_reduce(means.div_(dist.get_world_size()))
        return means.tolist()

    def _preview(self) -> np.ndarray:
        """Draw the samples while batch norm's statistics are not those of the average yet."""
        with _without_traces(self._parts["G_ema"]) as (G_ema,):
            return to_uint8(G_ema(self._parts["fixed_z"][:100])[:16, :3])

    def _show(self, draw: Callable[[], np.ndarray], at_once: bool = True) -> None:
        """Renew the picture, with the samples that ``draw`` returns."""

        def observe() -> TrainingState:
            baseline = None
            if hasattr(self._evaluator, "baseline"):
                mean, std = (getattr(self._evaluator, n)["swd"] for n in ("baseline", "std"))
                baseline = mean - 2 * std, mean + 2 * std
            return TrainingState(
                self._steps.epoch + (self._steps.batch > 0),
                self.n_epochs,
                draw(),
                self.losses,
                self.loss_bounds[1],
                [measures["swd"] for measures in self._results["measures"]],
                baseline,
            )

        self._picture.show(observe, at_once)

    # The files

    def _resume(self) -> None:
        """Resume from the checkpoint; without one, choose the order of the images."""
        state = resume(self.folder, self._parts, self._identity, self.n_epochs)
        if state is None:
            self._random = None
            self._order = int(torch.randint(2**62, ()))
            return
        self._steps.load_state_dict(state)
        self._results, self._order, self._random = state["results"], state["order"], state["random"]
        if is_main_process() and self._steps.epoch:  # may be lost, damaged or not yet written
            self._write(self._results, since=1)

    def _save(
        self, results: Results, random_states: dict[str, Tensor], since: int | None = None
    ) -> None:
        """Write a checkpoint, and all files of results, which may be those of a stopped epoch too.

        The samples of the epochs from ``since`` on, by default the last one, become image files.
        """
        state = {"settings": self._identity, "parts": state_dict(self._parts)}
        state |= {"results": self._results, "order": self._order, "random": random_states}
        try:
            save_checkpoint(self.folder, state | self._steps.state_dict())
            self._write(results, since or self._steps.epoch)
        except FileNotFoundError:
            if since is not None:  # made again already
                raise
            self.folder.mkdir(parents=True, exist_ok=True)
            print_main(f"{self.folder} was deleted: it is made again, with all but the figures.")
            self._save(results, random_states, since=1)

    def _write(self, results: Results, since: int) -> None:
        samples = results["samples"]
        for epoch in range(max(1, since), self._steps.epoch + 1):
            with atomic_write(self.folder / f"samples_epoch_{epoch:03d}.png") as path:
                Image.fromarray(image_grid(samples[epoch - 1].numpy(), columns=8)).save(path)
        # What holds all epochs is written when a tenth is new: so its cost an epoch does not grow.
        if self._is_last or since == 1 or 10 * len(samples) >= 11 * self._n_written:
            with atomic_write(self.folder / "samples.npz") as path:
                np.savez_compressed(path, samples=torch.stack(samples).numpy())
            rows = self._steps.rows()
            self._write_table("losses.csv", ["epoch", "batch", "d_loss", "g_loss"], rows)
            self._n_written = len(samples)
        measures = enumerate(results["measures"], start=1)
        rows = ([epoch, *values.values()] for epoch, values in measures)
        self._write_table("measures.csv", ["epoch", *results["measures"][0]], rows)
        metadata = {name: str(value) for name, value in self._settings.items()}
        weights = self._parts["G_ema"].state_dict()
        write_weights(self.folder / "generator.safetensors", weights, metadata)

    def _write_table(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[float]]
    ) -> None:
        with atomic_write(self.folder / name) as path, open(path, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


class _Steps:
    """Counts a run's steps, and keeps their losses.

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

    def read_losses(self, stop: bool = False) -> bool:
        """Bring the losses noted so far from the device, the mean over all processes.

        Args:
            stop: whether this process is to stop.

        Returns:
            Whether any process is to stop: all learn of it after the same step.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        if self._unread:
            told = torch.full_like(self._unread[0], stop)
            unread = torch.stack([*self._unread, told])
            if dist.is_initialized():
                dist.all_reduce(unread.div_(dist.get_world_size()))
            *new, (stop, _) = [(d, g) for d, g in unread.tolist()]
            for step, (d, g) in enumerate(new, start=len(self.losses)):
                if not math.isfinite(d + g):
                    raise self._not_finite("A loss", *self._place(step))
            self.losses += new
            self._unread.clear()
        return stop > 0

    def check_weights(self, parts: dict[str, Any]) -> None:
        """Raise ``FloatingPointError`` if a network, an optimizer or a tensor is not finite."""
        for name, state in state_dict(parts).items():
            if not is_finite(state):
                what = "weight" if isinstance(parts[name], nn.Module) else "value"
                raise self._not_finite(f"A {what} of {name}", self.epoch + 1, self.batch - 1)

    def rows(self) -> Iterator[tuple[int, int, float, float]]:
        """Epoch, batch in the epoch, from 0, and losses of each step."""
        for step, (d_loss, g_loss) in enumerate(self.losses):
            yield *self._place(step), d_loss, g_loss

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        counts = {"epoch": self.epoch, "batch": self.batch, "n_steps": len(self)}
        return counts | {"losses": losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what a checkpoint has."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.losses[:] = [(d, g) for d, g in state["losses"].tolist()]

    def _place(self, step: int) -> tuple[int, int]:
        per_epoch = (len(self) - self.batch) // self.epoch if self.epoch else len(self)
        epoch, batch = divmod(step, per_epoch)
        return epoch + 1, batch

    def _not_finite(self, what: str, epoch: int, batch: int) -> FloatingPointError:
        found = "There is no good checkpoint"
        for path in (self._folder / name for name in reversed(CHECKPOINTS)):
            with suppress(OSError, ValueError):
                read_checkpoint(path)
                found = f"The last good checkpoint is {path}"
        return FloatingPointError(
            f"{what} is no longer finite in epoch {epoch}, batch {batch}: the training has "
            f"diverged. {found}. Try a smaller learning rate."
        )


class _StopSignals:
    """Notes the first SIGINT or SIGTERM; the second one does not wait.

    Of several processes, each gets its own signal; they agree to stop after the same step.

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
            dist.barrier()  # the end of one process is that of all: let the main one write
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
            print_main(f"Warning, epoch {self._epoch}{signs}")
        self._signs = signs


@contextmanager
def _without_traces(*networks: nn.Module) -> Iterator[list[Callable[[Tensor], Tensor]]]:
    """Let networks compute as in training, and leave them and all random states as they were.

    Copies of their buffers take what batch norm notes. PyTorch refuses a deep copy of a network
    that keeps something it computed, as an idea's may.
    """

    def compute(network: nn.Module, x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return functional_call(network, buffers, (x.to(next(network.parameters()).dtype),))

    device = next(networks[0].parameters()).device
    states = get_random_states(device)
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.train()
        with torch.no_grad():
            yield [partial(compute, network) for network in networks]
    finally:
        for module, is_training in modes.items():
            module.training = is_training
        set_random_states(states, device)


# ------------------------------------------------------------------------ has it failed?


# What D may answer: logits, or values near 0 and 1.
_ANSWERS = [-20.0, -10.0, -5.0, *(n / 4 for n in range(-12, 13)), 5.0, 10.0, 20.0]


def signs_of_failure(
    d_losses: Sequence[float], images: np.ndarray, loss_bounds: tuple[float, float]
) -> str:
    """Name the signs of failure in an epoch, each after a semicolon; "" if there are none.

    Args:
        d_losses: D's losses in the epoch.
        images: samples at its end, uint8 (n, H, W, 3).
        loss_bounds: of D's loss, see ``discriminator_loss_bounds``.
    """
    minimum, at_chance = loss_bounds
    signs = ""
    # With D(x) = 0.99 for all real images and 0.01 for all generated ones, cross entropy is 1.4 %
    # of the way above its minimum. A run without R1 ended at 15 %.
    if np.mean(d_losses) < minimum + 0.015 * (at_chance - minimum):
        signs += "; the discriminator has won"
    # Two faces, real or well drawn, differ by 60 to 80 grey levels (root mean square).
    rows = torch.from_numpy(images).flatten(1).float()
    if torch.pdist(rows).mean() / rows.shape[1] ** 0.5 < 20:
        signs += "; the samples have collapsed to one"
    return signs


def discriminator_loss_bounds(discriminator_loss: Callable[..., Tensor]) -> tuple[float, float]:
    """Find D's loss at its best, and where D only guesses, from the answers of a stand-in for D.

    Args:
        discriminator_loss: takes D, real images and generated images, (N, 3, H, W) each; returns a
            scalar. It may draw random numbers: the CPU's random state is left as it was.

    Returns:
        The minimum, where D is sure and right, and the smallest loss at chance, where D answers the
        same to all images; NaN, NaN if they cannot be had from answers alone.
    """
    real_images, fake_images = torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)

    def loss(real: float, fake: float) -> float:
        def D(x: Tensor) -> Tensor:
            return fake + (real - fake) * x.mean((1, 2, 3)).unsqueeze(1)  # (N, 1)

        return discriminator_loss(D, real_images, fake_images).item()

    try:
        with torch.random.fork_rng(devices=[]):
            real = fake = _ANSWERS[0]
            for _ in range(2):  # one answer after the other, since their best values hardly depend
                real = min(_ANSWERS, key=lambda answer: loss(answer, fake))
                fake = min(_ANSWERS, key=lambda answer: loss(real, answer))
            return loss(real, fake), min(loss(answer, answer) for answer in _ANSWERS)
    except Exception:  # a loss may ask D for more than answers, such as its features
        return math.nan, math.nan
