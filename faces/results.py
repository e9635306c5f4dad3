"""A training run's files: losses, measures, samples, weights."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from faces.files import writing
from faces.pictures import image_grid
from faces.weights import write_weights

Results = dict[str, Any]


def no_results() -> Results:
    """The results of no epoch: lists of samples and measures, and the best epoch's weights."""
    return {"samples": [], "measures": [], "best": {}}


def with_epoch(
    results: Results, samples: np.ndarray, measures: dict[str, float], generator: nn.Module
) -> Results:
    """Return results with those of one more epoch.

    Args:
        results: those before it.
        samples: uint8 array (n, H, W, 3).
        measures: of the epoch's faces. The epoch is the best if its "swd" is the smallest.
        generator: the network that drew them.
    """
    best = results["best"]
    if all(measures["swd"] < earlier["swd"] for earlier in results["measures"]):
        best = {
            name: tensor.detach().cpu().clone() for name, tensor in generator.state_dict().items()
        }
    return {
        "samples": [*results["samples"], torch.from_numpy(samples)],
        "measures": [*results["measures"], measures],
        "best": best,
    }


def write_results(
    folder: Path,
    epochs: Iterable[int],
    results: Results,
    losses: Iterable[tuple[int, int, float, float]],
    generator: nn.Module,
    metadata: dict[str, str],
) -> None:
    """Write all files, each whole under another name first.

    Args:
        folder: where they go.
        epochs: those, from 1, whose samples become pictures of their own.
        results: of one epoch at least.
        losses: epoch, batch, D's loss and G's loss of each step.
        generator: its weights are written.
        metadata: what the weights' files keep with them.

    Raises:
        OSError: if the disk is full.
    """
    samples = torch.stack(results["samples"]).numpy()  # (epochs, n, H, W, 3)
    for epoch in epochs:
        with writing(folder / f"samples_epoch_{epoch:03d}.png") as path:
            Image.fromarray(image_grid(samples[epoch - 1], columns=8)).save(path, "PNG")
    with writing(folder / "samples.npz") as path:
        np.savez_compressed(path, samples=samples)
    _write_table(folder / "losses.csv", ["epoch", "batch", "d_loss", "g_loss"], losses)
    measures = enumerate(results["measures"], start=1)
    rows = ([epoch, *values.values()] for epoch, values in measures)
    _write_table(folder / "measures.csv", ["epoch", *results["measures"][0]], rows)
    write_weights(folder / "generator.safetensors", generator.state_dict(), metadata)
    write_weights(folder / "generator_best.safetensors", results["best"], metadata)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    with writing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
