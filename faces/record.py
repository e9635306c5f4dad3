"""What a training run has done: its checkpoint keeps it, its files show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from faces.checkpoints import fixed_settings, go_on, states_of, write_checkpoint
from faces.processes import is_first_process
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
        if is_first_process() and self.steps.epoch:  # a kill may have come before they were written
            self.write(self.results)
        return state["random"]

    def save(self, random_states: dict[str, Tensor]) -> None:
        """Write a checkpoint."""
        state = {"settings": self._settings | self._code, "parts": states_of(self.parts)}
        state |= {"results": self.results, "order": self.order, "random": random_states}
        write_checkpoint(self._folder, state | self.steps.state_dict())

    def write(self, results: Results) -> None:
        """Write the results, which may be those of a stopped epoch too, in the usual formats."""
        metadata = {name: str(value) for name, value in self._settings.items()}
        write_results(
            self._folder,
            self.steps.epoch,
            results,
            self.steps.rows(),
            self.parts["G_average"],
            metadata,
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder; of several processes, the first one may write.

    Raises:
        RuntimeError: if another run writes to it.
    """
    lock = FileLock(folder / ".lock")
    try:
        if is_first_process():
            lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another run writes to {folder}: wait for it, or set output_dir to another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
