"""How close the faces are after so many minutes: a usual solution's training beside the notebook's.

    python benchmarks/time_to_quality.py --data-dir processed_celeba_small

Both start with the images' files and train on the same training images. The usual solution has the
networks (64 channels) and the loop of throughput.py, with batches of 128 and no average; the
notebook has all that its preset does, its decoding and the measures of each epoch too. The notebook
is first: it is measured after ten shares of its steps, and the usual solution after the same times.
The time that these measurements take does not count, nor do imports.

Each is measured on five sets of up to 1,000 faces as in the notebook ("swd"), and in features with
the packages of benchmarks/requirements.txt ("frechet", see features.py). The rows are written to a
CSV as they come, and the figure is drawn from it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import faces  # noqa: F401 (before torch: how its threads wait)

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import LogFormatter
from torch import Tensor, nn

import helpers
from benchmarks.ablation_table import Row, as_texts, read_rows, write_rows
from benchmarks.ablations import recipe
from benchmarks.features import FeatureJudge, is_installed, real_images
from benchmarks.machine import hardware
from benchmarks.throughput import Z_SIZE, Reference
from faces.files import HERE, writing
from faces.notebook import load_definitions, prepare

SHARES = [0.002, 0.005, 0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 1.0]
COLUMNS = ["training", "minutes", "steps", "images", "swd", "frechet", "seconds", "hardware"]
MEASURES = {"swd": "distance", "frechet": "distance in features"}


class Clock:
    """Measures a generator now and then; the time that takes does not count.

    Args:
        measure: measures faces, uint8 (n, H, W, 3).
        n: how many faces to draw.
        add: takes each row of the CSV.
    """

    def __init__(
        self, measure: Callable[[np.ndarray], Row], n: int, add: Callable[[Row], None]
    ) -> None:
        self._measure, self._n, self._add = measure, n, add
        self._started = time.perf_counter()

    def minutes(self) -> float:
        """The time that counts."""
        return (time.perf_counter() - self._started) / 60

    @torch.no_grad()
    def note(self, G: nn.Module, z_size: int, **about: Any) -> None:
        """Measure a generator as it is now, with a row's other figures."""
        minutes, began = self.minutes(), time.perf_counter()
        G = copy.deepcopy(G).float().eval()
        z = latents(self._n, z_size, seed=0)
        device = next(G.parameters()).device
        drawn = [helpers.to_uint8(G(part.to(device))) for part in z.split(500)]
        row = {"minutes": minutes, **about, **self._measure(np.concatenate(drawn))}
        took = time.perf_counter() - began
        self._started += took
        self._add(row | {"seconds": took})


class Noticing:
    """A loader that calls a function after each of its batches, and ends when that says so."""

    def __init__(self, loader: Any, is_over: Callable[[], bool]) -> None:
        self._loader, self._is_over = loader, is_over

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            if self._is_over():
                return


def latents(n: int, z_size: int, seed: int) -> Tensor:
    """Draw latents (n, z_size), without touching the random numbers of the training."""
    return torch.rand(n, z_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_notebook(
    settings: dict[str, Any], data_dir: Path, device: torch.device, clock: Clock
) -> None:
    """Train as the notebook does with these settings; measure the average of G's weights."""
    lesson = load_definitions()
    sizes = settings["batch_size"], settings["image_size"], data_dir, settings["max_images"]
    parts = [lesson.get_dataloader(*sizes, settings["seed"], p) for p in ("training", "held-out")]
    training, held_out = (loader.dataset.images for loader in parts)
    torch.manual_seed(settings["seed"])
    names = dict(device=device, processes=helpers.Processes(), settings=settings)
    names |= dict(speed=helpers.Speed(device, True), judge=helpers.Judge(training, held_out))
    vars(lesson).update(settings, **names, celeba_train_loader=parts[0])
    update, n_steps = lesson.update_average, settings["n_epochs"] * len(parts[0])
    chosen = {max(1, round(share * n_steps)) for share in SHARES}
    z = latents(1000, settings["z_size"], seed=1).to(device)

    def update_and_note(G_average: nn.Module, G: nn.Module, n: int) -> None:
        update(G_average, G, n)
        if n in chosen:
            lesson.update_bn(z.split(100), G_average)  # as at the end of an epoch
            about = {"steps": n, "images": n * settings["batch_size"]}
            clock.note(G_average, settings["z_size"], **about)

    lesson.update_average = update_and_note
    helpers.apply_idea(settings["idea"], lesson)
    prepare(lesson)
    with tempfile.TemporaryDirectory() as folder:
        lesson.output_dir = Path(folder)
        lesson.train(lesson.D, lesson.G, settings["n_epochs"], print_every=10**9)


def train_usual(
    options: argparse.Namespace, data_dir: Path, device: torch.device, clock: Clock, at: list[float]
) -> None:
    """Train as a usual solution does, until the last of some minutes; measure G after each."""
    reference = Reference(load_definitions(), options, device, data_dir)
    at, n_steps = sorted(at), 0

    def is_over() -> bool:
        nonlocal n_steps
        n_steps += 1
        while at and clock.minutes() >= at[0]:
            at.pop(0)
            clock.note(reference.G, Z_SIZE, steps=n_steps, images=n_steps * options.batch_size)
        return not at

    while at:
        reference.epoch(Noticing(reference.loader, is_over))


def measure_with(data_dir: Path, settings: dict[str, Any]) -> tuple[Callable, int]:
    """What measures faces against held-out ones, and how many it takes."""
    training, held_out = real_images(
        data_dir, settings["image_size"], settings["max_images"], settings["seed"]
    )
    judge = helpers.Judge(training, held_out)
    features = FeatureJudge(training, held_out) if is_installed() else None

    def measure(pictures: np.ndarray) -> Row:
        x: Tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        row = {"swd": judge(x)["swd"]}
        if features is not None:
            row["frechet"] = float(np.mean(features(pictures)["frechet"]))
        return row

    return measure, 5 * judge.size


def draw(rows: list[Row], path: Path) -> None:
    """Draw the distances of both trainings against the minutes."""
    shown = [name for name in MEASURES if all(row[name] for row in rows)]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 3.2), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], shown, strict=True):
        for training in dict.fromkeys(row["training"] for row in rows):
            own = [row for row in rows if row["training"] == training]
            minutes, values = ([float(row[c]) for row in own] for c in ("minutes", name))
            axis.plot(minutes, values, "o-", markersize=4, label=training)
        axis.set(xscale="log", yscale="log", xlabel="minutes", ylabel=MEASURES[name])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def summary(rows: list[Row], name: str) -> str:
    """Say when the notebook's faces were at least as close as the usual solution's last ones."""
    usual = [row for row in rows if row["training"] == "usual solution"][-1]
    sooner = [
        row
        for row in rows
        if row["training"] == "notebook" and float(row[name]) <= float(usual[name])
    ]
    reached = f"by minute {float(sooner[0]['minutes']):.1f}" if sooner else "never"
    return (
        f"{MEASURES[name]}: usual solution {float(usual[name]):.4g} after "
        f"{float(usual['minutes']):.1f} minutes; the notebook is as close {reached}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train both, measure them, and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--preset", default="full", choices=["full", "quick"], help="the notebook's")
    add("--epochs", type=int, help="of the notebook; None: the preset's")
    add("--max-images", type=int, help="size of a random subset for both; None: the preset's")
    add("--csv", type=Path, default=HERE / "assets" / "time_to_quality.csv", help="the rows")
    add("--figure", type=Path, default=HERE / "assets" / "time_to_quality.png")
    options = parser.parse_args(arguments)
    data_dir = helpers.get_data(options.data_dir).resolve()
    settings = recipe(options.preset)
    given = {"n_epochs": options.epochs, "max_images": options.max_images}
    settings |= {name: value for name, value in given.items() if value is not None}
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    measure, n = measure_with(data_dir, settings)
    rows: list[Row] = []

    def clock_of(training: str) -> Clock:
        def add_row(row: Row) -> None:
            row = {"training": training, "hardware": hardware(device), **row}
            rows.append(as_texts(row))
            write_rows(options.csv, rows, COLUMNS)
            print(", ".join(f"{n} {v}" for n, v in rows[-1].items()), file=sys.stderr, flush=True)

        return Clock(measure, n, add_row)

    everything, paths = (
        helpers.find_images(data_dir, settings["max_images"], settings["seed"], part)
        for part in (None, "training")
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        # Each has files that nobody has decoded yet.
        for name, images in (("notebook", everything), ("usual", paths)):
            for path in images:
                link = Path(folder) / name / "faces" / path.relative_to(data_dir)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        clock = clock_of("notebook")
        train_notebook(settings, Path(folder) / "notebook", device, clock)
        at = [float(row["minutes"]) for row in rows]
        usual = dict(image_size=settings["image_size"], batch_size=128, images=len(paths))
        clock = clock_of("usual solution")
        train_usual(argparse.Namespace(**usual), Path(folder) / "usual", device, clock, at)
    rows = read_rows(options.csv)
    draw(rows, options.figure)
    for name in MEASURES:
        if all(row[name] for row in rows):
            print(summary(rows, name))


if __name__ == "__main__":
    main()
