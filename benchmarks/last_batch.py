"""Draws what a small last batch does to the discriminator's loss, from two runs of the notebook.

    mkdir -p runs
    settings="-p preset full -p n_epochs 12 -p d_conv_dim 32 -p g_conv_dim 32"
    papermill dlnd_face_generation.ipynb runs/a.ipynb $settings -p output_dir runs/plain -p idea ""
    papermill dlnd_face_generation.ipynb runs/b.ipynb $settings -p output_dir runs/keep_last_batch \
        -p idea keep_last_batch
    python benchmarks/last_batch.py runs/plain runs/keep_last_batch
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt
import numpy as np

from faces.files import HERE, writing


def d_losses(run: Path) -> np.ndarray:
    """D's losses in a run, (epochs, batches)."""
    losses = np.genfromtxt(run / "losses.csv", delimiter=",", names=True)
    return losses["d_loss"].reshape(int(losses["epoch"].max()), -1)


def around_ends(losses: np.ndarray, reach: int) -> np.ndarray:
    """Average the losses before and after the epochs' ends, (2 * reach,)."""
    n_epochs, n_batches = losses.shape
    ends = range(n_batches, n_epochs * n_batches, n_batches)
    return np.mean([losses.flat[end - reach : end + reach] for end in ends], axis=0)


def main(arguments: list[str] | None = None) -> None:
    """Print the means, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, help="folders that hold losses.csv")
    parser.add_argument("--figure", type=Path, default=HERE / "assets" / "last_batch.png")
    options = parser.parse_args(arguments)
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    for run in options.runs:
        losses = d_losses(run)
        if len(losses) < 2:
            sys.exit(f"{run} has too few epochs: at least 2 are needed.")
        first, others = losses[1:, 0].mean(), losses[1:, 1:].mean()  # those after an end
        print(f"{run.name}: d_loss {first:.3f} at the first batch, {others:.3f} elsewhere")
        reach = min(20, losses.shape[1])
        axis.plot(range(-reach, reach), around_ends(losses, reach), ".-", label=run.name)
    axis.axvline(-0.5, color="grey", linestyle=":")
    axis.set(xlabel="batch, counted from the start of the next epoch", ylabel="D's loss")
    axis.legend()
    with writing(options.figure) as path:
        figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
