"""What a training run has done: its checkpoint keeps it, its files show it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faces.checkpoints import fixed_settings, go_on, states_of, write_checkpoint
from faces.files import writing
from faces.pictures import image_grid
from faces.processes import is_first_process, say
from faces.steps import Steps
from faces.weights import write_weights

Results = dict[str, list[Any]]  # "samples" and "measures" of each epoch


class Record:
    """All that a run needs to go on.

    Args:
        folder: where the files go.
        parts, settings, train: see ``TrainingRun``.

    Attributes:
        parts: what the training changes.
        steps: those that are done.
        results: of the epochs that are done.
        order: the seed of the images' order.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, Any],
        settings: dict[str, Any],
        train: Callable[..., Any],
    ) -> None:
        self.parts = parts
        self.steps = Steps(folder)
        self.results: Results = {"samples": [], "measures": []}
        self.order = 0
        self._folder = folder
        self._settings, self._code = fixed_settings(settings, parts, train)

    def begin(self, n_epochs: int) -> dict[str, Tensor] | None:
        """Go on from the checkpoint, if there is one; return its random states."""
        state = go_on(self._folder, self.parts, self._settings | self._code, n_epochs)
        if state is None:
            self.order = int(torch.randint(2**62, ()))
            return None
        self.steps.load_state_dict(state)
        self.results, self.order = state["results"], state["order"]
        if is_first_process() and self.steps.epoch:  # they may be lost, damaged or not yet written
            self._write(self.results, since=1)
        return state["random"]

    def with_epoch(self, samples: np.ndarray, measures: dict[str, float]) -> Results:
        """The results, and those of one more epoch: samples, uint8 (n, H, W, 3), and measures."""
        return {
            "samples": [*self.results["samples"], torch.from_numpy(samples)],
            "measures": [*self.results["measures"], measures],
        }

    def keep(
        self, results: Results, random_states: dict[str, Tensor], since: int | None = None
    ) -> None:
        """Write a checkpoint, and all files of results, which may be those of a stopped epoch too.

        The samples of the epochs from ``since`` on, by default the last one, become pictures.
        """
        state = {"settings": self._settings | self._code, "parts": states_of(self.parts)}
        state |= {"results": self.results, "order": self.order, "random": random_states}
        try:
            write_checkpoint(self._folder, state | self.steps.state_dict())
            self._write(results, since or self.steps.epoch)
        except FileNotFoundError:
            if since is not None:  # made again already
                raise
            self._folder.mkdir(parents=True, exist_ok=True)
            say(f"{self._folder} was deleted: it is made again, with all but the figures.")
            self.keep(results, random_states, since=1)

    def _write(self, results: Results, since: int) -> None:
        samples = torch.stack(results["samples"]).numpy()  # (epochs, n, H, W, 3)
        for epoch in range(max(1, since), self.steps.epoch + 1):
            with writing(self._folder / f"samples_epoch_{epoch:03d}.png") as path:
                Image.fromarray(image_grid(samples[epoch - 1], columns=8)).save(path)
        with writing(self._folder / "samples.npz") as path:
            np.savez_compressed(path, samples=samples)
        self._write_table("losses.csv", ["epoch", "batch", "d_loss", "g_loss"], self.steps.rows())
        measures = enumerate(results["measures"], start=1)
        rows = ([epoch, *values.values()] for epoch, values in measures)
        self._write_table("measures.csv", ["epoch", *results["measures"][0]], rows)
        metadata = {name: str(value) for name, value in self._settings.items()}
        weights = self.parts["G_average"].state_dict()
        write_weights(self._folder / "generator.safetensors", weights, metadata)

    def _write_table(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[float]]
    ) -> None:
        with writing(self._folder / name) as path, open(path, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
