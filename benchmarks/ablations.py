"""Trains the notebook with each idea of ideas/ and with other settings, and measures the faces.

    python benchmarks/ablations.py --stage 1 --data-dir processed_celeba_small
    python benchmarks/ablations.py --rows plain --seeds 5
    python benchmarks/ablations.py --rows "flips+dropout" "flips d_lr=0.0001 g_lr=0.0005"
    python benchmarks/ablations.py --table  # trains nothing: from the CSV, the table and the figure

A row is the recipe that users get, the notebook's preset "full", but with the row's ideas alone, as
the setting ``idea`` takes them, with its settings, or with both, separated by blanks; "plain" has
neither. papermill runs the notebook with it. Stage 1 is every row at 12 epochs (of 16,196 images at
batch 32, 6,072 steps), with one seed and "plain" with three; stage 2 is the better half of it, and
what can only pay late, at 24 epochs with two seeds; stage 3 the three best of stage 2, alone and
together, with 64 channels. The last weights are then measured on five sets of up to 1,000 faces
against held-out ones, with the notebook's own measures at 32x32 pixels; faces of 64x64 are made
smaller first. With the packages of benchmarks/requirements.txt they are measured in features too,
see features.py; ``--measure`` does that for rows made without them. All but the columns that begin
with "g_" are of the average of the generator's weights; those are of the generator itself.

Each result is appended to the CSV as soon as it is there, and one that is there already (with the
same settings, ideas and images) is not made again: stop the program at any time and start it again.
It does not notice a change of other code: delete the rows that one makes out of date. The column
"seconds" is the time of the whole notebook, empty where it went on with a run that was stopped;
"d_loss" and "g_loss" are means over the last 500 steps. ``--quick`` runs two rows at a small size.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from faces.files import HERE, NOTEBOOK  # before torch: how its threads wait

# isort: split
import numpy as np
import torch
import yaml

import helpers
from benchmarks.ablation_table import (
    FEATURES,
    NAMES,
    REAL,
    Row,
    add_row,
    as_texts,
    publish,
    read_rows,
    tables_of,
    write_rows,
)
from benchmarks.features import FeatureJudge, generator_itself, is_installed, real_images
from benchmarks.machine import hardware
from faces.ideas import IDEAS, idea_code
from faces.notebook import load_definitions
from faces.settings import RANGES

SLOWER_D = ["d_lr=5e-05", "d_lr=0.0001 g_lr=0.0005"]
# What keeps D from learning its photographs by heart, which it does late.
LATE = ["flips", "differentiable_augmentation", "some_augmentation", "flips+some_augmentation"]
LATE += ["dropout", "label_smoothing", "r1", "flips+r1", "relativistic_r1_r2", *SLOWER_D]
STAGES: dict[int, dict[str, int]] = {
    1: {"epochs": 12, "conv_dim": 32, "seeds": 1},
    2: {"epochs": 24, "conv_dim": 32, "seeds": 2},
    3: {"epochs": 24, "conv_dim": 64, "seeds": 1},
}
OWN_OPTIONS = {"preset", "seed", "max_images", "resume"}  # settings that a row cannot change


def row_of(text: str) -> str:
    """Read a row's text: "plain" for "", one blank between parts.

    Raises:
        argparse.ArgumentTypeError: if it names an idea or a setting that there is not.
    """
    row = " ".join(text.split()) or "plain"
    try:
        changes = changes_of(row)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{row!r}: a setting's value must be a literal") from None
    for idea in filter(None, changes.pop("idea").split("+")):
        if idea not in NAMES:
            raise argparse.ArgumentTypeError(f"{row!r}: {idea!r} is none of {', '.join(NAMES)}")
    if unknown := changes.keys() - (recipe().keys() - OWN_OPTIONS):
        raise argparse.ArgumentTypeError(f"{row!r} cannot set {', '.join(sorted(unknown))}")
    return row


def changes_of(row: str) -> dict[str, Any]:
    """What a row changes in the notebook's settings."""
    parts = [] if row == "plain" else row.split()
    changes = {"idea": "+".join(part for part in parts if "=" not in part)}
    for name, value in (part.split("=", 1) for part in parts if "=" in part):
        changes[name] = ast.literal_eval(value)
    return changes


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--rows", nargs="+", type=row_of, metavar="ROW", help="which; None: the usual ones")
    add("--stage", type=int, choices=STAGES, help="rows, seeds, epochs and channels of a stage")
    add("--seeds", type=int, default=1, help="runs of each row")
    add("--epochs", type=int, default=12, help="passes over the training images")
    add("--conv-dim", type=int, default=32, help="channels of both networks")
    add("--max-images", type=int, default=None, help="size of a random subset")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    add("--csv", type=Path, default=HERE / "assets" / "ablations.csv", help="the rows so far")
    add("--figure", type=Path, default=HERE / "assets" / "ablations.png", help="drawn from them")
    add("--readme", type=Path, default=IDEAS / "README.md", help="where the table is put")
    add("--work-dir", type=Path, default=HERE / "runs" / "ablations", help="the runs")
    add("--table", action="store_true", help="train nothing, make the table and the figure")
    add("--measure", action="store_true", help="train nothing, give old rows features' measures")
    add("--quick", action="store_true", help="two rows at a small size, in a folder of their own")
    options = parser.parse_args(arguments)
    if options.stage is not None:  # an option that is given still counts
        parser.set_defaults(**STAGES[options.stage])
        options = parser.parse_args(arguments)
    if min(options.seeds, options.epochs, options.conv_dim, options.jobs) < 1:
        parser.error("--seeds, --epochs, --conv-dim and --jobs must be at least 1")
    if options.measure and not is_installed():
        parser.error("first run: pip install --no-deps -r benchmarks/requirements.txt")
    if options.quick:
        options.rows, options.seeds, options.epochs = ["plain", "flips"], 1, 1
        options.conv_dim, options.max_images = 16, 2000
        folder = options.work_dir = options.work_dir.with_name("ablations-quick")
        options.csv, options.figure = folder / "ablations.csv", folder / "ablations.png"
        options.readme = folder / "README.md"
    if options.rows is None and not options.table:
        options.rows = rows_of(options)
        if not options.rows:
            parser.error(f"--stage {options.stage} chooses among stage {options.stage - 1}'s rows")
    return options


def rows_of(options: argparse.Namespace) -> list[str]:
    """The usual rows, or those of a later stage; none if the stage before is not in the CSV."""
    if options.stage in (None, 1):
        rows = ["plain", *NAMES, "beta1=0.9", "beta1=0.0", "ema_decay=0"]
        half, twice = max(1, options.conv_dim // 2), 2 * options.conv_dim
        widths = [f"d_conv_dim={half}", f"d_conv_dim={twice}", f"g_conv_dim={twice}"]
        return [*rows, *widths, *SLOWER_D]
    before = STAGES[options.stage - 1]
    for table in tables_of(read_rows(options.csv)):
        run = next(runs[0] for name, runs in table.items() if name != REAL)
        if (int(run["epochs"]), int(run["conv_dim"])) == (before["epochs"], before["conv_dim"]):
            best = [name for name in table if name not in (REAL, "plain")]
            if options.stage == 2:
                half = best[: (len(best) + 1) // 2]
                return list(dict.fromkeys(["plain", *half, *LATE]))
            # Rows of widths are left out: they were tried against 32 channels.
            best = [row for row in best if "conv_dim" not in row][:3]
            parts = [part for row in best for part in row.split()]
            ideas = [idea for part in parts if "=" not in part for idea in part.split("+")]
            ideas.sort(key=lambda idea: idea == "r1")  # last: another loss would replace it
            settings = [part for part in parts if "=" in part]
            together = " ".join(["+".join(dict.fromkeys(ideas)), *settings]).strip()
            return list(dict.fromkeys(["plain", *best, together]))
    return []


def runs_of(options: argparse.Namespace) -> list[tuple[int, str]]:
    """Seed and row of each run; in stage 1 the plain recipe has three seeds."""
    n_seeds = {row: options.seeds for row in options.rows}
    if options.stage == 1 and "plain" in n_seeds:
        n_seeds["plain"] = max(3, options.seeds)
    most = max(n_seeds.values())
    return [(seed, row) for seed in range(most) for row in options.rows if seed < n_seeds[row]]


@functools.cache
def recipe(preset: str = "full") -> dict[str, Any]:
    """All settings of a preset of the notebook."""
    lesson = load_definitions()
    by_default = {name: value for name, value in vars(lesson).items() if name in RANGES}
    return {"preset": preset, **by_default, **lesson.presets[preset]}


def settings_of(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The notebook's settings for a run, without those of its place."""
    settings = recipe() | {"seed": seed, "n_epochs": options.epochs}
    settings |= {"max_images": options.max_images}
    settings |= dict.fromkeys(("d_conv_dim", "g_conv_dim"), options.conv_dim)
    return settings | changes_of(row)


def key_of(settings: dict[str, Any]) -> str:
    """The settings and digests of the ideas' files, as a text."""
    return json.dumps(settings | idea_code(settings["idea"]))


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


class Measures:
    """Measures runs at 32x32 pixels against one set of real faces."""

    def __init__(self, data_dir: Path, max_images: int | None, seed: int) -> None:
        training, held_out = real_images(data_dir, 32, max_images, seed)
        self.content = helpers.content_of(training)
        self.n_images = len(training)
        self.judge = helpers.Judge(training, held_out)
        self.shares = helpers.typology_shares(training)
        floor = self.judge.floor_of(5 * self.judge.size)
        self.real = {**floor, **self._lightness(held_out)}
        self.features = FeatureJudge(training, held_out) if is_installed() else None
        self.real |= self._means(self.features.real) if self.features else {}

    def __call__(self, results: Path) -> dict[str, float]:
        """Measure the last weights of a run, from the folder of its results."""
        faces, own = self._drawn(results)
        measured = {**self._judged(faces), **self._lightness(faces)}
        measured |= {f"g_{name}": value for name, value in self._judged(own).items()}
        return measured | self._in_features(faces, own)

    def in_features(self, results: Path) -> dict[str, float]:
        """Measure them in the network's features only."""
        return self._in_features(*self._drawn(results))

    def _drawn(self, results: Path) -> tuple[np.ndarray, np.ndarray]:
        """Faces of the average of a run's generator, and of the generator itself."""
        with tempfile.TemporaryDirectory() as folder:
            itself = generator_itself(results, Path(folder) / "generator.safetensors")
            return tuple(
                helpers.generate_faces(5 * self.judge.size, seed=0, weights=weights)
                for weights in (results / "generator.safetensors", itself)
            )

    def _in_features(self, faces: np.ndarray, own: np.ndarray) -> dict[str, float]:
        if self.features is None:
            return {}
        of_itself = np.mean(self.features(own)["frechet"])
        return self._means(self.features(faces)) | {"g_frechet": float(of_itself)}

    def _means(self, values: dict[str, list[float]]) -> dict[str, float]:
        return {name: float(np.mean(values[name])) for name in FEATURES}

    def _judged(self, faces: np.ndarray) -> dict[str, float]:
        return self.judge(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1)

    def _lightness(self, faces: np.ndarray) -> dict[str, float]:
        """The share of the three dark classes, and how far all classes are from the data's."""
        shares = helpers.typology_shares(faces)
        distance = sum(abs(shares[kind] - self.shares[kind]) for kind in shares) / 2
        return {"ita_dark": sum(list(shares.values())[:3]), "ita_distance": distance}


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the CSV, and make the table and the figure from it.

    Raises:
        RuntimeError: at the end, if runs failed.
    """
    options = options_of(arguments)
    n_failed = 0
    if options.measure:
        complete(options)
    elif not options.table:
        n_failed = run_missing(options)
    publish(options.csv, options.readme, options.figure)
    if n_failed:
        raise RuntimeError(f"{n_failed} of {len(runs_of(options))} runs failed.")


def all_measures(options: argparse.Namespace, data_dir: Path) -> list[Measures]:
    """Measures for each subset of the images: runs with another seed have another, if any."""
    seeds = range(1 + max(runs_of(options))[0] if options.max_images is not None else 1)
    return [Measures(data_dir, options.max_images, seed) for seed in seeds]


def folder_of(key: tuple[str, str, str], work_dir: Path) -> Path:
    """Where a row is run, by its text, its settings and its images."""
    digest = hashlib.sha256("".join(key).encode()).hexdigest()[:8]
    return work_dir / f"{re.sub(r'[^0-9a-zA-Z.]+', '-', key[0])}-{digest}"


def complete(options: argparse.Namespace) -> None:
    """Give rows the measures in features that they lack, where their run's folder is there."""
    data_dir = helpers.get_data(options.data_dir).resolve()
    by_content = {measure.content: measure for measure in all_measures(options, data_dir)}
    rows = read_rows(options.csv)
    for row in rows:
        if row.get("frechet") or row["data"] not in by_content:
            continue
        measure = by_content[row["data"]]
        folder = folder_of((row["row"], row["settings"], row["data"]), options.work_dir) / "faces"
        if row["row"] == REAL:
            row |= as_texts({name: measure.real[name] for name in FEATURES})
        elif (folder / "checkpoint.pt").is_file():
            row |= as_texts(measure.in_features(folder))
        else:
            print(f"{row['row']}, seed {row['seed']}: {folder} is no longer there.")
            continue
        write_rows(options.csv, rows)
        print(f"{row['row']}, seed {row['seed']}, frechet {row['frechet']}", flush=True)


def run_missing(options: argparse.Namespace) -> int:
    """Run what is missing in the CSV; return how many runs failed."""
    data_dir = helpers.get_data(options.data_dir).resolve()
    runs = runs_of(options)
    measures = all_measures(options, data_dir)
    threads = max(1, torch.get_num_threads() // options.jobs)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    lock = threading.Lock()
    done = {(row["row"], row["settings"], row["data"]) for row in read_rows(options.csv)}

    def add(key: tuple[str, str, str], figures: Row) -> None:
        figures = as_texts(figures)
        row = dict(zip(("row", "settings", "data"), key, strict=True)) | figures
        with lock:
            add_row(options.csv, row | {"threads": threads, "hardware": hardware(device)})
            done.add(key)
        print(", ".join([key[0], *(f"{n} {v}" for n, v in figures.items())]), flush=True)

    def run(seed: int, row: str) -> None:
        settings = settings_of(row, seed, options)
        measure = measures[seed % len(measures)]
        key = (row, key_of(settings), measure.content)
        if key in done:
            return
        folder = folder_of(key, options.work_dir)
        is_whole = not (folder / "faces" / "checkpoint.pt").exists()
        seconds = run_notebook(settings, folder, data_dir, threads)
        losses = np.genfromtxt(folder / "faces" / "losses.csv", delimiter=",", names=True)
        most = measure.n_images * settings["n_epochs"]  # the last batch may be smaller
        figures = {"seed": seed, "epochs": options.epochs, "conv_dim": options.conv_dim}
        figures |= {"steps": len(losses), "images": min(len(losses) * settings["batch_size"], most)}
        figures |= {name: float(losses[name][-500:].mean()) for name in ("d_loss", "g_loss")}
        figures |= {"seconds": seconds} if is_whole else {}
        with lock:  # faces are drawn from the one random state
            figures |= measure(folder / "faces")
        add(key, figures)

    for measure in measures:
        if (key := (REAL, "", measure.content)) not in done:
            add(key, measure.real)
    pool = ThreadPoolExecutor(options.jobs)
    futures = [pool.submit(run, seed, row) for seed, row in runs]
    n_failed = 0
    try:
        for future in as_completed(futures):
            if future.exception() is not None:  # does not stop the others
                n_failed += 1
                print(f"A run failed: {future.exception()}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: nothing more is started
    return n_failed


if __name__ == "__main__":
    main()
