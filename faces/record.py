"""What a training run has done: its checkpoint keeps it, its files show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faces.checkpoints import fixed_settings, go_on, states_of, write_checkpoint
from faces.processes import is_first_process, say
from faces.results import Results, no_results, write_results
from faces.steps import Steps


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
        self.results = no_results()
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

    def keep(self, results: Results, random_states: dict[str, Tensor]) -> None:
        """Write a checkpoint, and the results, which may be those of a stopped epoch too."""
        try:
            self._save(random_states)
            self._write(results, since=self.steps.epoch)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            say(f"{self._folder} was deleted: it is made again, with all but the figures.")
            self._save(random_states)
            self._write(results, since=1)

    def _save(self, random_states: dict[str, Tensor]) -> None:
        state = {"settings": self._settings | self._code, "parts": states_of(self.parts)}
        state |= {"results": self.results, "order": self.order, "random": random_states}
        write_checkpoint(self._folder, state | self.steps.state_dict())

    def _write(self, results: Results, since: int) -> None:
        epochs = range(max(1, since), self.steps.epoch + 1)  # whose samples become pictures
        metadata = {name: str(value) for name, value in self._settings.items()}
        average = self.parts["G_average"]
        write_results(self._folder, epochs, results, self.steps.rows(), average, metadata)
