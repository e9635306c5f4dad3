"""Tries the usual ideas for improvement, one at a time, and measures what each does.

    python benchmarks/ablations.py --data-dir processed_celeba_small

Each idea is one change of the notebook's settings, from its preset "reference" (the paper's recipe,
without a moving average). papermill runs the notebook with it, for the same number of images, on
two seeds. The last weights, not the best epoch's, are then measured on five sets of up to 1,000
faces, against held-out ones, with the notebook's own measures at 32x32 pixels; faces of 64x64 are
made smaller first.

Each result is appended to the CSV as soon as it is there, and one that is there already (with the
same settings and images) is not made again: stop the program at any time and start it again. It
does not notice a change of the code: delete the rows that one makes out of date. The column
"seconds" is the time of the whole notebook, empty where it went on with a run that was stopped.
``--quick`` runs two rows at a small size.

The table in assets/ablations.csv is from two cores of an Intel Xeon (Sapphire Rapids), on 18,000
faces. Its budget is reduced to what fits there: see its columns. More seeds of some ideas came with

    --ideas reference --seeds 5
    --ideas "moving average of G" "best recipe" --seeds 4

and the runs of the notebook's full length with

    --ideas reference "best recipe" --epochs 28 --conv-dim 64 --figure runs/full.png

(The figure shows the runs of the length and size given only.) The long run of the best recipe with
seed 0 is that whose outputs the notebook has: its folder was put in place, and only measured.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt
import numpy as np
import torch
from throughput import hardware
from torchvision.transforms import v2

import helpers

TABLE = helpers.HERE / "assets" / "ablations.csv"
FIGURE = helpers.HERE / "assets" / "ablations.png"

# What each idea changes in the preset "reference"; sizes are multiples of those given.
IDEAS: dict[str, dict[str, Any]] = {
    "reference": {},
    "moving average of G": {"ema_decay": 0.999},
    "label smoothing 0.9": {"real_label": 0.9},
    "dropout 0.25 in D": {"dropout": 0.25},
    "learning rates 0.0001": {"d_lr": 0.0001, "g_lr": 0.0001},
    "learning rates 0.0004, 0.0001": {"d_lr": 0.0004, "g_lr": 0.0001},
    "beta1 0": {"beta1": 0.0},
    "beta1 0.9": {"beta1": 0.9},
    "learning rates fall to 1 %": {"lr_decay": True},
    "flips": {"flips": True},
    "differentiable augmentation": {"augmented": True},
    "spectral norm in D": {"spectral_norm": True},
    "twice as wide": {"d_conv_dim": 2, "g_conv_dim": 2},
    "deeper, residual": {"residual": True},
    "least squares": {"least_squares": True},
    "normal latents": {"normal_latents": True},
    "batches half as large": {"batch_size": 0.5},
    "batches twice as large": {"batch_size": 2},
    "64x64 pixels": {"image_size": 64},
    "balanced by lightness": {"balanced": True},
    "best recipe": {},  # what the notebook's preset "full" changes: see settings_of
}
SIZES = ("d_conv_dim", "g_conv_dim", "batch_size")  # which IDEAS has as multiples


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--seeds", type=int, default=2, help="runs of each idea")
    add("--epochs", type=int, default=4, help="passes over the training images")
    add("--conv-dim", type=int, default=32, help="channels of the networks")
    add("--batch-size", type=int, default=32, help="images a step")
    add("--max-images", type=int, default=None, help="size of a random subset")
    add("--ideas", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="IDEA", help="which")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    add("--csv", type=Path, default=TABLE, help="the table to add to")
    add("--figure", type=Path, default=FIGURE, help="the figure to draw from it")
    add("--work-dir", type=Path, default=helpers.HERE / "runs" / "ablations", help="the runs")
    add("--quick", action="store_true", help="two rows at a small size, in a table of their own")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.epochs, options.conv_dim, options.jobs) < 1:
        parser.error("--seeds, --epochs, --conv-dim and --jobs must be at least 1.")
    if options.batch_size < 2:
        parser.error("--batch-size must be at least 2.")
    if options.quick:
        options.seeds = options.epochs = 1
        options.conv_dim, options.max_images = 16, 2000
        options.ideas = ["reference", "moving average of G"]
        options.work_dir = options.work_dir.with_name("ablations-quick")
        options.csv = options.work_dir / "ablations.csv"
        options.figure = options.work_dir / "ablations.png"
    return options


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The notebook's own."""
    return helpers.load_definitions().presets


def settings_of(idea: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The notebook's settings for a run, without those of its place."""
    reference, full = presets()["reference"], presets()["full"]
    settings = {"preset": "reference", "seed": seed, **reference, "n_epochs": options.epochs}
    settings |= dict.fromkeys(("d_conv_dim", "g_conv_dim"), options.conv_dim)
    settings |= {"batch_size": options.batch_size, "max_images": options.max_images}
    change = IDEAS[idea]
    if idea == "best recipe":
        change = {name: value for name, value in full.items() if value != reference[name]}
    for name, value in change.items():
        settings[name] = int(settings[name] * value) if name in SIZES else value
    return settings


def run_notebook(settings: dict[str, Any], folder: Path, data_dir: Path, threads: int) -> float:
    """Run the notebook with papermill; return how many seconds it took.

    Raises:
        RuntimeError: with the end of papermill's output, if a cell failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings | {"data_dir": str(data_dir), "output_dir": str(folder / "faces")}
    command = [sys.executable, "-m", "papermill", helpers.NOTEBOOK, folder / "notebook.ipynb"]
    command += ["--parameters_yaml", json.dumps(settings), "--cwd", helpers.HERE]
    command += ["--no-progress-bar", "--log-output"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MPLBACKEND": "agg"}
    started = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{folder}: {(folder / 'log.txt').read_text()[-3000:]}")
    return time.perf_counter() - started


class Measures:
    """Measures runs at 32x32 pixels against one set of real faces."""

    def __init__(self, data_dir: Path, max_images: int | None, seed: int) -> None:
        resize = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])
        parts = {}
        for part in ("training", "held-out"):
            paths = helpers.find_images(data_dir, max_images, seed, part)
            parts[part] = helpers.load_images(paths, resize, data_dir)
        self.content = helpers.content_of(parts["training"])
        self.n_images = len(parts["training"])
        self.judge = helpers.Judge(parts["training"], parts["held-out"])
        self.shares = helpers.typology_shares(parts["training"])
        self.real = {**self.judge.floor, **self._lightness(parts["held-out"])}

    def __call__(self, weights: Path) -> dict[str, float]:
        faces = helpers.generate_faces(5 * self.judge.size, seed=0, weights=weights)
        measured = self.judge(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1)
        return {**measured, **self._lightness(faces)}

    def _lightness(self, faces: np.ndarray) -> dict[str, float]:
        """The share of the three dark classes, and how far all classes are from the data's."""
        shares = helpers.typology_shares(faces)
        distance = sum(abs(shares[kind] - self.shares[kind]) for kind in shares) / 2
        return {"ita_dark": sum(list(shares.values())[:3]), "ita_distance": distance}


def add_row(table: Path, row: dict[str, Any]) -> None:
    """Append a row to the table, and its header before the first one."""
    is_new = not table.is_file()
    table.parent.mkdir(parents=True, exist_ok=True)
    with open(table, "a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read the table; an empty list if there is none."""
    if not table.is_file():
        return []
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def is_of(row: dict[str, str], options: argparse.Namespace) -> bool:
    """Whether a row is of real faces, or of a run of the size and length that the options say."""
    if row["idea"] not in IDEAS:
        return row["idea"] == "real faces"
    return row["settings"] == json.dumps(settings_of(row["idea"], int(row["seed"]), options))


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw each idea's effect on the measures: a dot a run, and the reference's runs as a band."""
    real = next(row for row in rows if row["idea"] == "real faces")
    ideas = [idea for idea in IDEAS if any(row["idea"] == idea for row in rows)]
    titles = {"swd": "Sliced Wasserstein\ndistance x 1000", "diversity": "Diversity\n(1 - MS-SSIM)"}
    titles |= {"nearest": "Nearest training\nimage (grey levels)"}
    titles |= {"ita_distance": "Distance of lightness\nfrom the data's"}
    figure, axes = plt.subplots(
        1, 4, figsize=(10, 1 + 0.27 * len(ideas)), sharey=True, layout="constrained"
    )
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for y, idea in enumerate(ideas):
            values = [float(row[measure]) for row in rows if row["idea"] == idea]
            color = "C3" if idea in ("reference", "best recipe") else "C0"
            axis.plot(values, [y] * len(values), "o", color=color, markersize=5, alpha=0.7)
            axis.plot(np.mean(values), y, "|", color=color, markersize=14)
            if idea == "reference":
                axis.axvspan(min(values), max(values), color="C3", alpha=0.15)
        axis.axvline(float(real[measure]), color="grey", linestyle=":")
        if measure == "swd":  # the worst are many times as far away as the best
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(title, fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_yticks(range(len(ideas)), ideas)
    axes[0].invert_yaxis()
    figure.supxlabel("dots: runs; bar: their mean; band: the reference; dotted: real faces", size=9)
    with helpers.writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the table, and draw it.

    Raises:
        RuntimeError: at the end, if runs failed.
    """
    options = options_of(arguments)
    data_dir = helpers.get_data(options.data_dir).resolve()
    # A run with another seed has another subset, if it has one at all.
    seeds = range(options.seeds if options.max_images is not None else 1)
    measures = [Measures(data_dir, options.max_images, seed) for seed in seeds]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    common = {"threads": threads, "hardware": hardware(device)}
    lock = threading.Lock()
    done = {(row["idea"], row["settings"], row["data"]) for row in read_rows(options.csv)}

    def add(idea: str, settings: str, data: str, figures: dict[str, Any]) -> None:
        figures = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in figures.items()}
        with lock:
            row = {"idea": idea, "settings": settings, "data": data, **figures, **common}
            add_row(options.csv, row)
        shown = [f"{name} {row[name]}" for name in ("idea", *figures) if row[name] != ""]
        print(", ".join(shown), flush=True)

    def run(seed: int, idea: str) -> None:
        chosen = settings_of(idea, seed, options)
        measure = measures[seed % len(measures)]
        key = (idea, json.dumps(chosen), measure.content)
        if key in done:
            return
        digest = hashlib.sha256("".join(key).encode()).hexdigest()[:8]
        folder = options.work_dir / f"{re.sub(r'[^0-9a-zA-Z]+', '-', idea)}-{digest}"
        is_whole = not (folder / "faces" / "checkpoint.pt").exists()
        seconds = run_notebook(chosen, folder, data_dir, threads)
        updates = len((folder / "faces" / "losses.csv").read_text().splitlines()) - 1
        measured = measure(folder / "faces" / "generator.safetensors")
        figures = {"seed": seed, "updates": updates, "images": measure.n_images * options.epochs}
        add(*key, {**figures, "seconds": seconds if is_whole else "", **measured})

    if not any(key[0] == "real faces" and key[2] == measures[0].content for key in done):
        figures = {"seed": "", "updates": "", "images": "", "seconds": ""}
        add("real faces", "", measures[0].content, {**figures, **measures[0].real})
    pool = ThreadPoolExecutor(options.jobs)
    todo = itertools.product(range(options.seeds), options.ideas)
    futures = [pool.submit(run, seed, idea) for seed, idea in todo]
    n_failed = 0
    try:
        for future in as_completed(futures):
            if future.exception() is not None:  # does not stop the others
                n_failed += 1
                print(f"A run failed: {future.exception()}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: nothing more is started
    contents = {measure.content for measure in measures}
    rows = [row for row in read_rows(options.csv) if row["data"] in contents]
    draw([row for row in rows if is_of(row, options)], options.figure)
    print(f"The table is {options.csv}, the figure {options.figure}.")
    if n_failed:
        raise RuntimeError(f"{n_failed} of {len(futures)} runs failed: see above.")


if __name__ == "__main__":
    main()
