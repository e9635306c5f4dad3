"""Trains the notebook with each idea of ideas/ and with other settings, and measures the faces.

    python benchmarks/ablations.py --data-dir processed_celeba_small
    python benchmarks/ablations.py --rows plain --seeds 5
    python benchmarks/ablations.py --rows "flips+dropout" "flips d_lr=0.0001 g_lr=0.0005"
    python benchmarks/ablations.py --rows  # trains nothing: the rows of photographs
    python benchmarks/ablations.py --table  # from the CSV, the tables and the figure

A row is the recipe that users get, the notebook's preset "full", but with the row's ideas alone, as
the setting ``idea`` takes them, with its settings, or with both, separated by blanks; "plain" has
neither. papermill runs the notebook with it. The last weights are then measured on five sets of up
to 1,000 faces against held-out ones, with the notebook's own measures at 32x32 pixels; faces of
64x64 are made smaller first. With the packages of benchmarks/requirements.txt they are measured in
features too, see features.py. All but the columns that begin with "g_" are of the average of the
generator's weights; those are of the generator itself.

Two rows are of photographs, and train nothing: "real faces" has training photographs in the
generator's place, "real faces, balanced" those that are drawn, with replacement, by the weights of
the idea ``balanced``.

Each result is appended to the CSV as soon as it is there, and one that is there already (with the
same settings, ideas and images) is not made again: stop the program at any time and start it again.
It does not notice a change of other code: delete the rows that one makes out of date. The column
"seconds" is the time of the whole notebook, empty where it resumed a run that was stopped; "tflop"
is the work of all steps, see ``count_flops_per_image``; "d_loss" and "g_loss" are means over the
last 500 steps. ``--quick`` runs two rows at a small size.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.ablation_table import (
    BALANCED,
    COLUMNS,
    FEATURE_MEASURES,
    IDEA_NAMES,
    PHOTOGRAPHS,
    REAL,
    Row,
    append_row,
    format_row,
    publish,
    read_rows,
)
from benchmarks.features import (
    FeatureEvaluator,
    extract_generator,
    is_installed,
    load_photographs,
)
from benchmarks.machine import FlopCounter, hardware
from faces.data import get_data
from faces.files import HERE, NOTEBOOK
from faces.generator import generate_faces
from faces.images import FaceDataset, fingerprint
from faces.measures import Evaluator
from faces.notebook import IDEAS, RANGES, apply_idea, hash_ideas, load_definitions
from faces.parallel import find_device
from faces.properties import balancing_weights, ita_shares

OTHER_SETTINGS = ["beta1=0.9", "beta1=0.0", "ema_decay=0"]
OTHER_SETTINGS += ["d_lr=5e-05", "d_lr=0.0001 g_lr=0.0005"]  # a slower D
OWN_OPTIONS = {"preset", "seed", "max_images", "resume"}  # settings that a row cannot change
Key = tuple[str, str, str]  # a row's text, its settings and its images: what makes it unique

# ------------------------------------------------------------------------------------- the rows


def parse_row(text: str) -> str:
    """Read a row's text: "plain" for "", one blank between parts.

    Raises:
        argparse.ArgumentTypeError: if it names an idea or a setting that there is not.
    """
    row = " ".join(text.split()) or "plain"
    try:
        changes = parse_changes(row)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{row!r}: a setting's value must be a literal") from None
    for idea in filter(None, changes.pop("idea").split("+")):
        if idea not in IDEA_NAMES:
            there = ", ".join(IDEA_NAMES)
            raise argparse.ArgumentTypeError(f"{row!r}: {idea!r} is none of {there}")
    if unknown := changes.keys() - (load_settings().keys() - OWN_OPTIONS):
        raise argparse.ArgumentTypeError(f"{row!r} cannot set {', '.join(sorted(unknown))}")
    return row


def parse_changes(row: str) -> dict[str, Any]:
    """Read what a row changes in the notebook's settings."""
    parts = [] if row == "plain" else row.split()
    changes = {"idea": "+".join(part for part in parts if "=" not in part)}
    for name, value in (part.split("=", 1) for part in parts if "=" in part):
        changes[name] = ast.literal_eval(value)
    return changes


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--rows", nargs="*", type=parse_row, metavar="ROW", help="which; None: the usual ones")
    add("--seeds", type=int, default=1, help="runs of each row")
    add("--epochs", type=int, default=12, help="passes over the training images")
    add("--conv-dim", type=int, default=32, help="channels of both networks")
    add("--max-images", type=int, default=None, help="size of a random subset")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    add("--csv", type=Path, default=HERE / "assets" / "ablations.csv", help="the rows so far")
    add("--figure", type=Path, default=HERE / "assets" / "ablations.png", help="drawn from them")
    add("--readme", type=Path, default=IDEAS / "README.md", help="where the tables are put")
    add("--work-dir", type=Path, default=HERE / "runs" / "ablations", help="the runs")
    add("--table", action="store_true", help="train nothing, make the tables and the figure")
    add("--quick", action="store_true", help="two rows at a small size, in a folder of their own")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.epochs, options.conv_dim, options.jobs) < 1:
        parser.error("--seeds, --epochs, --conv-dim and --jobs must be at least 1")
    if options.quick:
        options.rows, options.seeds, options.epochs = ["plain", "flips"], 1, 1
        options.conv_dim, options.max_images = 16, 2000
        folder = options.work_dir = options.work_dir.with_name("ablations-quick")
        options.csv, options.figure = folder / "ablations.csv", folder / "ablations.png"
        options.readme = folder / "README.md"
    if options.rows is None:
        half, twice = max(1, options.conv_dim // 2), 2 * options.conv_dim
        widths = [f"d_conv_dim={half}", f"d_conv_dim={twice}", f"g_conv_dim={twice}"]
        options.rows = ["plain", *IDEA_NAMES, *OTHER_SETTINGS, *widths]
    options.rows = list(dict.fromkeys(options.rows))
    return options


@functools.cache
def load_settings(preset: str = "full") -> dict[str, Any]:
    """Load all settings of a preset of the notebook."""
    notebook = load_definitions()
    by_default = {name: value for name, value in vars(notebook).items() if name in RANGES}
    return {"preset": preset, **by_default, **notebook.presets[preset]}


def build_settings(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Build the notebook's settings for a run, without those of its place."""
    settings = load_settings() | {"seed": seed, "n_epochs": options.epochs}
    settings |= {"max_images": options.max_images}
    settings |= dict.fromkeys(("d_conv_dim", "g_conv_dim"), options.conv_dim)
    return settings | parse_changes(row)


def format_settings(settings: dict[str, Any]) -> str:
    """Write the settings and the hashes of the ideas' files as one text, for the CSV."""
    return json.dumps(settings | hash_ideas(settings["idea"]), sort_keys=True)


def count_flops_per_image(settings: dict[str, Any]) -> float:
    """Count what a step does for each of its images, whatever the machine, by ``FlopCounter``."""
    notebook = load_definitions()
    vars(notebook).update(settings, device=torch.device("cpu"))
    apply_idea(settings["idea"], notebook)
    size, widths = settings["image_size"], (notebook.d_conv_dim, notebook.g_conv_dim)
    D, G = notebook.build_network(*widths, notebook.z_size, size)
    notebook.d_optimizer, notebook.g_optimizer = notebook.build_optimizers(D, G)
    n = settings["batch_size"]
    with FlopCounter() as counter:
        notebook.step(D, G, torch.rand(n, 3, size, size), notebook.sample_z(n))
    return counter.total / n


# ------------------------------------------------------------------------------------- one run


def name_folder(key: Key, work_dir: Path) -> Path:
    """Name the folder of a row's run, which other settings or images do not share."""
    digest = hashlib.sha256("".join(key).encode()).hexdigest()[:8]
    return work_dir / f"{re.sub(r'[^0-9a-zA-Z.]+', '-', key[0])}-{digest}"


def run_notebook(settings: dict[str, Any], folder: Path, data_dir: Path, threads: int) -> float:
    """Run the notebook with papermill; return how many seconds it took.

    Raises:
        RuntimeError: with the end of papermill's output, if a cell failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings | {"data_dir": str(data_dir), "output_dir": str(folder / "faces")}
    command = [sys.executable, "-m", "papermill", NOTEBOOK, folder / "notebook.ipynb"]
    command += ["--parameters_yaml", yaml.safe_dump(settings), "--cwd", HERE]
    command += ["--no-progress-bar", "--log-output"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MPLBACKEND": "agg"}
    started = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{folder}: {(folder / 'log.txt').read_text()[-3000:]}")
    return time.perf_counter() - started


class RunEvaluator:
    """Measures faces at 32x32 pixels, against one set of held-out photographs.

    Args:
        data_dir: the folder of the photographs.
        max_images, seed: size and seed of a random subset of them, as in the notebook.

    Attributes:
        fingerprint: of the training photographs.
        n_images: how many they are.
        n_faces: how many faces to measure, for means over five sets.
    """

    def __init__(self, data_dir: Path, max_images: int | None, seed: int) -> None:
        self._training, self._held_out = load_photographs(data_dir, 32, max_images, seed)
        self.fingerprint, self.n_images = fingerprint(self._training), len(self._training)
        self._pixels = Evaluator(FaceDataset(self._training), FaceDataset(self._held_out))
        self.n_faces = 5 * self._pixels.size
        self._features = None
        if is_installed():
            self._features = FeatureEvaluator(self._training, self._held_out)
        self._shares = ita_shares(self._training)

    def measure(self, faces: np.ndarray, sets: int = 3) -> dict[str, float]:
        """Measure faces, uint8 (n, H, W, 3).

        Args:
            faces: at least as many as ``n_faces``.
            sets: at most so many sets are measured in features.

        Returns:
            The measures of ``Evaluator``; those of ``FEATURE_MEASURES`` if the packages are there;
            "ita_dark" and "ita_distance", the share of the three dark ITA classes, and how far all
            classes are from those of the training photographs (total variation, from 0 to 1).
        """
        measures = self._pixels(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1)
        if self._features is not None:
            measures |= _average(self._features(faces, sets))
        return measures | self._measure_lightness(faces)

    def measure_run(self, results: Path) -> dict[str, float]:
        """Measure the last weights of a run, from the folder of its results."""
        with tempfile.TemporaryDirectory() as folder:
            raw = extract_generator(results, Path(folder) / "generator.safetensors")
            averaged, own = (
                self.measure(generate_faces(self.n_faces, seed=0, weights=weights))
                for weights in (results / "generator.safetensors", raw)
            )
        return averaged | {f"g_{n}": v for n, v in own.items() if f"g_{n}" in COLUMNS}

    def measure_photographs(self) -> dict[str, dict[str, float]]:
        """Measure what needs no run: the rows of photographs, by their texts."""
        real = self._pixels.baseline_for(self.n_faces) | self._measure_lightness(self._held_out)
        n = self.n_faces
        if self._features is not None:
            real |= _average(self._features.baseline)
            n = max(n, 5 * self._features.size)
        weights = balancing_weights(self._training)
        random, probabilities = np.random.default_rng(0), weights / weights.sum()
        drawn = random.choice(len(weights), n, p=probabilities)  # as ideas/balanced.py draws
        balanced = self.measure(self._training[drawn], sets=5)
        del balanced["nearest"]  # each is a training photograph itself
        return {REAL: real, BALANCED: balanced}

    def _measure_lightness(self, faces: np.ndarray) -> dict[str, float]:
        shares = ita_shares(faces)
        distance = sum(abs(shares[kind] - self._shares[kind]) for kind in shares) / 2
        return {"ita_dark": sum(list(shares.values())[:3]), "ita_distance": distance}


def _average(values: dict[str, list[float]]) -> dict[str, float]:
    """Average the measures of the table over sets."""
    return {name: float(np.mean(values[name])) for name in FEATURE_MEASURES}


# ------------------------------------------------------------------------------------- all runs


def run_missing(options: argparse.Namespace) -> int:
    """Run what is missing in the CSV; return how many runs failed."""
    data_dir = get_data(options.data_dir).resolve()
    # Runs with another seed have another subset of the images, if any.
    seeds = range(options.seeds if options.max_images is not None else 1)
    evaluators = [RunEvaluator(data_dir, options.max_images, seed) for seed in seeds]
    threads = max(1, torch.get_num_threads() // options.jobs)
    lock = threading.Lock()
    done = {(row["row"], row["settings"], row["data"]) for row in read_rows(options.csv)}

    def add(key: Key, figures: Row) -> None:
        figures = format_row(figures)
        row = dict(zip(("row", "settings", "data"), key, strict=True)) | figures
        with lock:
            append_row(options.csv, row | {"threads": threads, "hardware": hardware(find_device())})
        print(", ".join([key[0], *(f"{n} {v}" for n, v in figures.items())]), flush=True)

    def run(seed: int, row: str) -> None:
        settings = build_settings(row, seed, options)
        evaluator = evaluators[seed % len(evaluators)]
        key = (row, format_settings(settings), evaluator.fingerprint)
        if key in done:
            return
        folder = name_folder(key, options.work_dir)
        is_whole = not (folder / "faces" / "checkpoint.pt").exists()
        flops = count_flops_per_image(settings)
        seconds = run_notebook(settings, folder, data_dir, threads)
        losses = np.genfromtxt(folder / "faces" / "losses.csv", delimiter=",", names=True)
        most = evaluator.n_images * settings["n_epochs"]  # the last batch may be smaller
        n_images = min(len(losses) * settings["batch_size"], most)
        figures = {"seed": seed, "epochs": options.epochs, "conv_dim": options.conv_dim}
        figures |= {"steps": len(losses), "images": n_images}
        figures |= {name: float(losses[name][-500:].mean()) for name in ("d_loss", "g_loss")}
        figures |= {"seconds": seconds} if is_whole else {}
        figures |= {"tflop": f"{flops * n_images / 1e12:.6g}"}  # the table rounds it once more
        with lock:  # faces are drawn from the one random state
            figures |= evaluator.measure_run(folder / "faces")
        add(key, figures)

    for evaluator in evaluators:
        keys = [(name, "", evaluator.fingerprint) for name in PHOTOGRAPHS]
        if missing := [key for key in keys if key not in done]:
            measures = evaluator.measure_photographs()
            for key in missing:
                add(key, measures[key[0]])
    pool = ThreadPoolExecutor(options.jobs)
    runs = [(seed, row) for seed in range(options.seeds) for row in options.rows]
    futures = [pool.submit(run, *each) for each in runs]
    n_failed = 0
    try:
        for future in as_completed(futures):
            if future.exception() is not None:  # does not stop the others
                n_failed += 1
                print(f"A run failed: {future.exception()}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: nothing more is started
    return n_failed


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the CSV, and make the tables and the figure from it.

    Raises:
        RuntimeError: at the end, if runs failed.
    """
    options = parse_options(arguments)
    n_failed = 0 if options.table else run_missing(options)
    publish(options.csv, options.readme, options.figure)
    if n_failed:
        raise RuntimeError(f"{n_failed} of {options.seeds * len(options.rows)} runs failed.")


if __name__ == "__main__":
    main()
