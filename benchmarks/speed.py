"""How fast the notebook trains beside a usual solution: images a second, and time to quality.

    python benchmarks/speed.py throughput --data-dir processed_celeba_small
    python benchmarks/speed.py throughput --batch-size 32 --images 18000 --rounds 3
    python benchmarks/speed.py time-to-quality --data-dir processed_celeba_small --epochs 14

The usual solution of this project has ``ImageFolder`` with resize and to-tensor for each image in
each epoch, no workers, float32, numpy latents, the generator run twice a step, its first pass not
detached from the discriminator's loss, and no average. Both train the same networks, those of the
notebook's preset "full" (64 channels), on the machine's accelerator if there is one.

``throughput`` trains both on the same images in batches of the same size, without an idea, epoch by
epoch in turn, with data and losses. It prints medians over the epochs. Time counts from the middle
of an epoch to its last step, so that what is done once a run or once an epoch (a GPU's recording of
the step; measures, result files and checkpoint) is left out; "seconds_beside" is how long that
took. FLOP/s count the convolutions and matrix products of a step, 2 operations a multiply-add, with
``FlopCounter`` of machine.py; the peak is the best of many products of two square matrices,
measured in each round. On two cores of an AMD EPYC (Zen 4) held to AVX2, at 32x32 and batch 128,
the notebook's loop does 67 % of the peak (0.130 of 0.193 TFLOP/s); on a GPU it has not been
measured.

``time-to-quality`` starts both with the images' files, the usual solution with batches of 128, the
notebook with all that its preset does, its decoding and the measures of each epoch too. The
notebook is first: it is measured after ten shares of its steps, and the usual solution after the
same times. The time that these measurements take does not count, nor do imports. Faces are measured
as in ablations.py ("swd"), and in features with the packages of benchmarks/requirements.txt
("frechet"). The rows are written to a CSV as they come, and the figure is drawn from it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import LogFormatter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.ablation_table import Row, format_row, write_rows
from benchmarks.ablations import RunEvaluator, load_settings
from benchmarks.machine import FlopCounter, QuickEvaluator, hardware, peak, wait_for
from faces.data import get_data
from faces.files import HERE, atomic_write
from faces.images import find_images, to_uint8
from faces.measures import Evaluator
from faces.notebook import apply_idea, load_definitions, prepare
from faces.parallel import find_device
from faces.speed import Accelerator
from faces.training import Run

Settings = dict[str, Any]  # the notebook's, by name
SHARES = [0.002, 0.005, 0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 1.0]
COLUMNS = ["training", "minutes", "steps", "images", "swd", "frechet", "seconds", "hardware"]
LABELS = {"swd": "distance", "frechet": "distance in features"}

# ------------------------------------------------------------------------------- both trainings


def link_images(paths: list[Path], data_dir: Path, folder: Path) -> Path:
    """Link images from a folder below their own, as files that nobody has decoded yet."""
    for path in paths:
        link = folder / "faces" / path.relative_to(data_dir)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


class WatchedLoader:
    """A loader that calls a function after each of its batches.

    Args:
        loader: hands out the batches.
        after_batch: takes the number of batches done; if it returns True, the epoch ends there.
    """

    def __init__(self, loader: DataLoader, after_batch: Callable[[int], bool | None]) -> None:
        self.loader, self.generator, self._after_batch = loader, loader.generator, after_batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for n_done, batch in enumerate(self.loader, start=1):
            yield batch
            if self._after_batch(n_done):
                return


Loader = DataLoader | WatchedLoader  # what a training takes


class UsualTraining:
    """The loop of a usual solution.

    Args:
        settings: those of the notebook.
        data_dir: the folder that the images' folder lies in.

    Attributes:
        loader: of all images.
        precision: of its arithmetic.
    """

    precision = "float32"

    def __init__(self, settings: Settings, data_dir: Path) -> None:
        self.device, self.z_size = find_device(), settings["z_size"]
        size = settings["image_size"]
        transform = [v2.Resize(size), v2.CenterCrop(size)]
        transform += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        dataset = ImageFolder(data_dir, v2.Compose(transform))
        self.loader = DataLoader(dataset, settings["batch_size"], shuffle=True)
        sizes = (settings[name] for name in ("d_conv_dim", "g_conv_dim", "z_size", "image_size"))
        self.D, self.G = (n.to(self.device) for n in load_definitions().build_network(*sizes))
        self.d_optimizer = torch.optim.Adam(self.D.parameters(), 0.0002, (0.5, 0.999))
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), 0.0002, (0.5, 0.999))

    def train(self, loader: Loader | None = None) -> None:
        """Train for an epoch, of another loader if one is given."""
        loss = nn.BCEWithLogitsLoss()
        losses = []
        for real_images, _ in self.loader if loader is None else loader:
            n = len(real_images)
            real_images = (real_images * 2 - 1).to(self.device)
            ones = torch.ones(n, 1, device=self.device)
            self.d_optimizer.zero_grad()
            d_real_loss = loss(self.D(real_images), ones)
            d_fake_loss = loss(self.D(self.G(self.sample_z(n))), torch.zeros_like(ones))
            d_loss = d_real_loss + d_fake_loss
            d_loss.backward()
            self.d_optimizer.step()
            self.g_optimizer.zero_grad()
            g_loss = loss(self.D(self.G(self.sample_z(n))), ones)
            g_loss.backward()
            self.g_optimizer.step()
            losses.append((d_loss.item(), g_loss.item()))

    def sample_z(self, n: int) -> Tensor:
        """Draw latents (n, z_size) with numpy."""
        z = np.random.uniform(-1, 1, size=(n, self.z_size))
        return torch.from_numpy(z).float().to(self.device)


class NotebookTraining:
    """The notebook's own ``get_dataloader`` and ``train``.

    Args:
        settings: those of the notebook.
        data_dir: the folder of the images.
        split: as in ``get_dataloader``.

    Attributes:
        notebook: its definitions; the evaluator there costs no time.
        loader: of the images.
        precision: of the arithmetic of its networks.
        seconds_to_load: how long the loader took to make, with the images' decoding.
    """

    def __init__(self, settings: Settings, data_dir: Path, split: str | None = None) -> None:
        self.notebook = load_definitions()
        started = time.perf_counter()
        self.loader = self.load(settings, data_dir, split)
        self.seconds_to_load = time.perf_counter() - started
        torch.manual_seed(settings["seed"])
        accelerator = Accelerator(settings["accelerate"])
        self.precision = accelerator.precision
        names = dict(accelerator=accelerator, device=accelerator.device, settings=settings)
        names |= dict(evaluator=QuickEvaluator(), celeba_train_loader=self.loader)
        vars(self.notebook).update(settings | names)
        apply_idea(settings["idea"], self.notebook)
        prepare(self.notebook)

    def load(self, settings: Settings, data_dir: Path, split: str | None) -> DataLoader:
        """Make the notebook's loader of a split of the images."""
        names = ("batch_size", "image_size", "max_images", "seed")
        batch_size, image_size, *subset = (settings[name] for name in names)
        return self.notebook.get_dataloader(batch_size, image_size, data_dir, *subset, split)

    def train(self, loader: Loader | None = None, n_epochs: int = 1) -> None:
        """Train as the notebook's cell does, with results in a temporary folder."""
        notebook = self.notebook
        if loader is not None:
            notebook.celeba_train_loader = loader
        with tempfile.TemporaryDirectory() as folder:
            notebook.run = Run(Path(folder) / "run")
            notebook.train(notebook.D, notebook.G, n_epochs)


# ------------------------------------------------------------------------------- throughput


def draw_batches(n: int, settings: Settings) -> DataLoader:
    """Make a loader of n batches of random numbers, with labels."""
    shape = (n * settings["batch_size"], 3, settings["image_size"], settings["image_size"])
    return DataLoader(TensorDataset(torch.rand(shape), torch.zeros(shape[0])), shape[0] // n)


def count_step_flops(training: UsualTraining | NotebookTraining, settings: Settings) -> int:
    """Count the operations of a step, as the difference between two batches and one."""
    counts = []
    for n_batches in (1, 2):
        with FlopCounter() as counter:
            training.train(draw_batches(n_batches, settings))
        counts.append(counter.total)
    return counts[1] - counts[0]


def time_epoch(
    training: UsualTraining | NotebookTraining, settings: Settings, flops: int
) -> dict[str, float]:
    """Time half an epoch, of steps with so many FLOP each, and the peak just before it."""
    device = find_device()
    torch.backends.cudnn.benchmark = isinstance(training, NotebookTraining)
    torch.backends.cuda.matmul.allow_tf32 = True  # as in convolutions, for the peak too
    best = peak(device, getattr(torch, training.precision))
    n_batches, batch_size = len(training.loader), settings["batch_size"]
    half, times = n_batches // 2, {}

    def note_time(n_done: int) -> None:
        if n_done in (half, n_batches):
            wait_for(device)
            times[n_done] = time.perf_counter()

    started = time.perf_counter()
    training.train(WatchedLoader(training.loader, note_time))
    wait_for(device)
    whole, seconds = time.perf_counter() - started, times[n_batches] - times[half]
    # The notebook's loader leaves out an incomplete batch.
    n_images = min(n_batches * batch_size, len(training.loader.dataset)) - half * batch_size
    done = flops / batch_size * n_images / seconds
    return {
        "images_per_s": n_images / seconds,
        "ms_per_step": 1000 * seconds / (n_batches - half),
        "tflops": done / 1e12,
        "peak_tflops": best / 1e12,
        "share_of_peak": done / best,
        "seconds_beside": whole - seconds / (n_batches - half) * n_batches,
    }


def measure_throughput(settings: Settings, data_dir: Path, rounds: int) -> dict[str, Row]:
    """Train both in turn, as many epochs each.

    Returns:
        For "usual" and "notebook" the medians over the epochs of what ``time_epoch`` returns, with
        the least and the largest "images_per_s", "gflop_per_step" and "precision"; for the notebook
        "seconds_to_load" and "ratio", the median of its images a second to the usual solution's.
    """
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        usual, notebook = (kind(settings, data_dir) for kind in (UsualTraining, NotebookTraining))
        trainings = {"usual": usual, "notebook": notebook}
        uncounted = NotebookTraining(settings | {"accelerate": False}, data_dir)
        flops = {"usual": count_step_flops(usual, settings)}
        flops["notebook"] = count_step_flops(uncounted, settings)
        for training in trainings.values():  # warm up
            training.train(draw_batches(5, settings))
        values: dict[str, list[dict[str, float]]] = {name: [] for name in trainings}
        for _ in range(rounds):
            for name, training in trainings.items():
                values[name].append(time_epoch(training, settings, flops[name]))
    figures: dict[str, Row] = {}
    for name, by_round in values.items():
        figures[name] = {k: statistics.median(one[k] for one in by_round) for k in by_round[0]}
        speeds = [one["images_per_s"] for one in by_round]
        figures[name] |= {"least_images_per_s": min(speeds), "most_images_per_s": max(speeds)}
        figures[name]["gflop_per_step"] = flops[name] / 1e9
        figures[name]["precision"] = trainings[name].precision
    pairs = zip(values["notebook"], values["usual"], strict=True)
    ratio = statistics.median(a["images_per_s"] / b["images_per_s"] for a, b in pairs)
    figures["notebook"] |= {"seconds_to_load": notebook.seconds_to_load, "ratio": ratio}
    return figures


def run_throughput(options: argparse.Namespace) -> None:
    """Measure the throughput of both on a subset of the images, and print it."""
    data_dir = get_data(options.data_dir).resolve()
    sizes = {"batch_size": options.batch_size, "image_size": options.image_size}
    settings = load_settings() | sizes | {"idea": ""}
    paths = find_images(data_dir, options.images, settings["seed"])
    if len(paths) < 2 * options.batch_size:
        sys.exit(f"{len(paths)} images are fewer than two batches of {options.batch_size}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = link_images(paths, data_dir, Path(temporary) / "images")
        figures = measure_throughput(settings, folder, options.rounds)
    print(hardware(find_device()))
    about = sizes | {"images": len(paths), "rounds": options.rounds}
    for name, row in {"both": about, **figures}.items():
        print(f"{name}:", ", ".join(f"{n} {v}" for n, v in format_row(row).items()))


# ------------------------------------------------------------------------------- time to quality


class Stopwatch:
    """Times a training, and measures its generator now and then, which does not count.

    Args:
        evaluator: measures the faces.
        add: takes each row of the CSV.
    """

    def __init__(self, evaluator: RunEvaluator, add: Callable[[Row], None]) -> None:
        self._evaluator, self._add = evaluator, add
        self._started = time.perf_counter()

    def minutes(self) -> float:
        """The time that counts."""
        return (time.perf_counter() - self._started) / 60

    @torch.no_grad()
    def measure(self, G: nn.Module, z_size: int, **about: Any) -> None:
        """Measure a generator as it is now, and add a row with that and other figures.

        The random numbers of the training stay as they are.
        """
        minutes, began = self.minutes(), time.perf_counter()
        G = copy.deepcopy(G).float().eval()
        device = next(G.parameters()).device
        z = draw_latents(self._evaluator.n_faces, z_size, seed=0).to(device)
        with torch.random.fork_rng(devices=[]):
            faces = np.concatenate([to_uint8(G(part)) for part in z.split(500)])
            measures = self._evaluator.measure(faces)
        took = time.perf_counter() - began
        self._started += took
        row = {"minutes": minutes, **about, "seconds": took}
        self._add(row | {name: v for name, v in measures.items() if name in LABELS})


def draw_latents(n: int, z_size: int, seed: int) -> Tensor:
    """Draw latents (n, z_size) in [-1, 1) with a random state of their own."""
    return torch.rand(n, z_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_notebook(settings: Settings, data_dir: Path, stopwatch: Stopwatch) -> None:
    """Train as the notebook does with these settings; measure the average of G's weights."""
    training = NotebookTraining(settings, data_dir, "train")
    notebook, held_out = training.notebook, training.load(settings, data_dir, "test")
    notebook.evaluator = Evaluator(training.loader.dataset, held_out.dataset)
    update, n_steps = notebook.update_ema, settings["n_epochs"] * len(training.loader)
    chosen = {max(1, round(share * n_steps)) for share in SHARES}
    z = draw_latents(1000, settings["z_size"], seed=1).to(notebook.device)

    def update_and_measure(G_ema: nn.Module, G: nn.Module, n: int) -> None:
        update(G_ema, G, n)
        if n in chosen:
            notebook.update_bn(z.split(100), G_ema)  # as at the end of an epoch
            n_images = n * settings["batch_size"]
            stopwatch.measure(G_ema, settings["z_size"], steps=n, images=n_images)

    notebook.update_ema = update_and_measure
    training.train(n_epochs=settings["n_epochs"])


def train_usual(
    settings: Settings, data_dir: Path, stopwatch: Stopwatch, minutes: list[float]
) -> None:
    """Train as a usual solution does, until the last of some minutes; measure G after each."""
    training = UsualTraining(settings, data_dir)
    minutes, n_steps = sorted(minutes), 0

    def measure_if_due(_: int) -> bool:
        nonlocal n_steps
        n_steps += 1
        while minutes and stopwatch.minutes() >= minutes[0]:
            minutes.pop(0)
            n_images = n_steps * settings["batch_size"]
            stopwatch.measure(training.G, settings["z_size"], steps=n_steps, images=n_images)
        return not minutes

    while minutes:
        training.train(WatchedLoader(training.loader, measure_if_due))


def draw_curves(rows: list[Row], path: Path) -> None:
    """Draw the distances of both trainings against the minutes."""
    shown = [name for name in LABELS if all(name in row for row in rows)]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 3.2), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], shown, strict=True):
        for training in dict.fromkeys(row["training"] for row in rows):
            own = [row for row in rows if row["training"] == training]
            minutes, values = ([float(row[c]) for row in own] for c in ("minutes", name))
            axis.plot(minutes, values, "o-", markersize=4, label=training)
        axis.set(xscale="log", yscale="log", xlabel="minutes", ylabel=LABELS[name])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def run_time_to_quality(options: argparse.Namespace) -> None:
    """Train both, measure them, write the CSV and draw the figure."""
    data_dir = get_data(options.data_dir).resolve()
    settings = load_settings() | {"max_images": options.max_images}
    settings |= {"n_epochs": options.epochs or settings["n_epochs"]}
    subset = (settings["max_images"], settings["seed"])
    evaluator = RunEvaluator(data_dir, *subset)
    rows: list[Row] = []

    def start_stopwatch(training: str) -> Stopwatch:
        def add_row(row: Row) -> None:
            row = {"training": training, "hardware": hardware(find_device()), **row}
            rows.append(format_row(row))
            write_rows(options.csv, rows, COLUMNS)
            print(", ".join(f"{n} {v}" for n, v in rows[-1].items()), file=sys.stderr, flush=True)

        return Stopwatch(evaluator, add_row)

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        everything, training = (find_images(data_dir, *subset, split) for split in (None, "train"))
        own = link_images(everything, data_dir, Path(folder) / "notebook")
        train_notebook(settings | {"max_images": None}, own, start_stopwatch("notebook"))
        minutes = [float(row["minutes"]) for row in rows]
        usual = link_images(training, data_dir, Path(folder) / "usual")
        train_usual(
            settings | {"batch_size": 128}, usual, start_stopwatch("usual solution"), minutes
        )
    draw_curves(rows, options.figure)


# ------------------------------------------------------------------------------- the command line


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    style = dict(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    throughput = commands.add_parser("throughput", help="images a second", **style)
    quality = commands.add_parser("time-to-quality", help="distances against minutes", **style)
    for command, run in ((throughput, run_throughput), (quality, run_time_to_quality)):
        command.set_defaults(run=run)
        command.add_argument("--data-dir", default="processed_celeba_small", help="of the images")
    add = throughput.add_argument
    n_images = 3_840 if find_device().type == "cpu" else 38_400
    add("--images", type=int, default=n_images, help="an epoch's images, at most")
    add("--image-size", type=int, choices=[32, 64], default=32, help="the side of the images")
    add("--batch-size", type=int, default=128, help="images in a step")
    add("--rounds", type=int, default=5, help="epochs of each")
    add = quality.add_argument
    add("--epochs", type=int, help="of the notebook; None: as in its preset")
    add("--max-images", type=int, help="size of a random subset for both; None: all")
    add("--csv", type=Path, default=HERE / "assets" / "time_to_quality.csv", help="the rows")
    add("--figure", type=Path, default=HERE / "assets" / "time_to_quality.png", help="of them")
    options = parser.parse_args(arguments)
    if options.run is run_throughput:
        if min(options.images, options.batch_size, options.rounds) < 1:
            throughput.error("--images, --batch-size and --rounds must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options = parse_options(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
