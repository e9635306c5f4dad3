"""How fast the notebook's training loop is, side by side with the loop of a usual solution.

    python benchmarks/throughput.py                       # this machine, images drawn on the spot
    python benchmarks/throughput.py --data-dir processed_celeba_small --images 18000 --rounds 3
    python benchmarks/throughput.py --busy 1              # beside a process that keeps a core busy

The reference is the loop of a usual solution of this project: ``ImageFolder`` with resize and
to-tensor for each image in each epoch, no workers, float32, numpy latents, the generator run twice
a step, and its first pass not detached from the discriminator's loss. Both loops train the same
networks (the notebook's, 64 channels, with no idea) on the same images in batches of the same size,
epoch by epoch in turn, with data and losses. Time counts from the middle of an epoch to its last
step, so that what is done once a run or once an epoch (a GPU's recording of the step; measures,
result files and checkpoint) is left out; "beside" is how long that took in the notebook's epoch.

Read on two cores of an AMD EPYC (Zen 4) without GPU; Python 3.11.7, torch 2.14.1, torchvision
0.29.1; 32x32, batch 128; medians of 2 epochs of 2,560 images (--images 2560 --rounds 2); it has
not been read on a GPU:

    AVX-512   notebook, bfloat16   464 images/s   2.7 times the reference beside it (175)
    AVX2      notebook, float32    229 images/s   1.6 times the reference beside it (146)

AVX2 is the same processor with ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2. There the
notebook's loop does 67 % of the peak of matrix products (0.130 of 0.193 TFLOP/s).

FLOP/s count the convolutions and matrix products of a step, 2 operations a multiply-add, with
``torch.utils.flop_counter``; the peak is the best of many products of two square matrices, measured
in each round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import faces  # noqa: F401 (before torch: how its threads wait)

# isort: split
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import helpers
from benchmarks.machine import QuickJudge, busy, hardware, peak, wait_for
from faces.notebook import load_definitions, prepare
from faces.speed import threads_at_first

CONV_DIM, Z_SIZE = 64, 100


def draw_images(folder: Path, n: int) -> Path:
    """Write n generated faces as JPEGs 64x64, the format of the official archive."""
    (folder / "faces").mkdir(parents=True)
    for i, face in enumerate(helpers.generate_faces(n, seed=0)):
        picture = Image.fromarray(face).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / "faces" / f"{i:06d}.jpg", quality=90)
    return folder


class Timer:
    """A loader that notes when half of an epoch's batches are done, and all.

    Args:
        loader: hands out the batches.
        device: what is waited for.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self.loader, self.device, self.generator = loader, device, loader.generator
        self.half = len(loader) // 2
        self.seconds = math.nan  # from the one to the other

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for n_done, batch in enumerate(self.loader, start=1):
            yield batch
            if n_done == self.half:
                half_done = self._now()
        self.seconds = self._now() - half_done

    def _now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()


class Reference:
    """The loop of a usual solution.

    Args:
        lesson: the notebook's definitions.
        options: the command line's.
        device: where to train.
        folder: of the images, one folder below it.
    """

    def __init__(
        self, lesson: ModuleType, options: argparse.Namespace, device: torch.device, folder: Path
    ) -> None:
        self.device = device
        size = options.image_size
        transform = v2.Compose(
            [
                v2.Resize(size),
                v2.CenterCrop(size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        dataset = torch.utils.data.Subset(ImageFolder(folder, transform), range(options.images))
        self.loader = DataLoader(dataset, options.batch_size, shuffle=True)
        self.D, self.G = lesson.build_network(CONV_DIM, CONV_DIM, Z_SIZE, size)
        self.D.to(device)
        self.G.to(device)
        self.d_optimizer = torch.optim.Adam(self.D.parameters(), 0.0002, (0.5, 0.999))
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), 0.0002, (0.5, 0.999))

    def epoch(self, loader: DataLoader | None = None) -> None:
        """Train for an epoch."""
        loss = nn.BCEWithLogitsLoss()
        losses = []
        for real_images, _ in self.loader if loader is None else loader:
            n = len(real_images)
            real_images = (real_images * 2 - 1).to(self.device)
            ones = torch.ones(n, 1, device=self.device)
            self.d_optimizer.zero_grad()
            d_real_loss = loss(self.D(real_images), ones)
            d_fake_loss = loss(self.D(self.G(self.latents(n))), torch.zeros_like(ones))
            d_loss = d_real_loss + d_fake_loss
            d_loss.backward()
            self.d_optimizer.step()
            self.g_optimizer.zero_grad()
            g_loss = loss(self.D(self.G(self.latents(n))), ones)
            g_loss.backward()
            self.g_optimizer.step()
            losses.append((d_loss.item(), g_loss.item()))

    def latents(self, n: int) -> Tensor:
        """Draw latents (n, z_size) with numpy."""
        z = np.random.uniform(-1, 1, size=(n, Z_SIZE))
        return torch.from_numpy(z).float().to(self.device)


class Notebook:
    """The notebook's own ``get_dataloader`` and ``train``.

    Args:
        options: the command line's.
        device: where to train.
        folder: of the images.
        fast: as in the notebook.
    """

    def __init__(
        self, options: argparse.Namespace, device: torch.device, folder: Path, fast: bool = True
    ) -> None:
        self.lesson = load_definitions()
        size = options.image_size
        started = time.perf_counter()
        self.loader = self.lesson.get_dataloader(options.batch_size, size, folder, options.images)
        self.seconds_to_load = time.perf_counter() - started
        speed = helpers.Speed(device, fast)
        if options.precision == "float32":
            speed.precision = "float32"
        self.dtype = getattr(torch, speed.precision)
        sizes = dict(d_conv_dim=CONV_DIM, g_conv_dim=CONV_DIM, z_size=Z_SIZE, image_size=size)
        names = dict(device=device, processes=helpers.Processes(), speed=speed, judge=QuickJudge())
        prepare(self.lesson, **sizes, **names, settings={})

    def epoch(self, loader: DataLoader | None = None) -> None:
        """Train for an epoch, as the notebook's cell does."""
        loader = self.loader if loader is None else loader
        with tempfile.TemporaryDirectory() as folder:
            vars(self.lesson).update(celeba_train_loader=loader, output_dir=Path(folder))
            self.lesson.train(self.lesson.D, self.lesson.G, n_epochs=1)


def step_flops(loop: Reference | Notebook, options: argparse.Namespace) -> int:
    """Count the operations of a step, as the difference between two batches and one."""
    counts = []
    for n_batches in (1, 2):
        shape = (n_batches * options.batch_size, 3, options.image_size, options.image_size)
        images = TensorDataset(torch.rand(shape), torch.zeros(shape[0]))
        with FlopCounterMode(display=False) as counter:
            loop.epoch(DataLoader(images, options.batch_size))
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--image-size", type=int, choices=[32, 64], default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--images", type=int, help="an epoch's images; default 3,840, on a GPU 38,400"
    )
    parser.add_argument("--data-dir", help="a folder of images; default: faces drawn on the spot")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each loop")
    parser.add_argument("--precision", choices=["auto", "float32"], default="auto")
    parser.add_argument("--busy", type=int, default=0, help="processes beside, each on a core")
    parser.add_argument("--json", metavar="PATH", help="write the figures there as well")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    options.images = options.images or (3_840 if options.device == "cpu" else 38_400)
    for name in ("images", "batch_size", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.busy < 0:
        parser.error("--busy must be at least 0")
    if options.images < 2 * options.batch_size:
        parser.error("--images must be at least two batches")
    return options


def timed(
    loop: Reference | Notebook,
    options: argparse.Namespace,
    device: torch.device,
    flops: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Measure half an epoch, of steps with so many FLOP each, and the peak just before it."""
    torch.set_num_threads(threads_at_first())  # the notebook's loop may have used fewer
    torch.backends.cudnn.benchmark = isinstance(loop, Notebook)
    torch.backends.cuda.matmul.allow_tf32 = True  # as in convolutions, for the peak too
    best = peak(device, dtype)
    timer = Timer(loop.loader, device)
    started = time.perf_counter()
    loop.epoch(timer)
    wait_for(device)
    whole = time.perf_counter() - started
    n_steps = len(timer) - timer.half  # the notebook's loader leaves out an incomplete batch
    n_images = min(len(timer) * options.batch_size, options.images)
    n_images -= timer.half * options.batch_size
    done = flops / options.batch_size * n_images / timer.seconds
    return {
        "images_per_s": n_images / timer.seconds,
        "ms_per_step": 1000 * timer.seconds / n_steps,
        "tflops": done / 1e12,
        "peak_tflops": best / 1e12,
        "share_of_peak": done / best,
        "seconds_beside": whole - timer.seconds / n_steps * len(timer),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both loops in turn; return all figures."""
    device = torch.device(options.device)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        reference = Reference(load_definitions(), options, device, folder)
        notebook = Notebook(options, device, folder)
        loops = {"reference": reference, "notebook": notebook}
        plain = argparse.Namespace(**vars(options) | dict(precision="float32"))
        uncounted = Notebook(plain, device, folder, fast=False)
        flops = {"reference": step_flops(reference, options)}
        flops["notebook"] = step_flops(uncounted, options)
        dtypes = {"reference": torch.float32, "notebook": notebook.dtype}
        shape = (5 * options.batch_size, 3, options.image_size, options.image_size)
        images = TensorDataset(torch.rand(shape), torch.zeros(shape[0]))
        for loop in loops.values():  # warm up
            loop.epoch(DataLoader(images, options.batch_size))
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
        with busy(options.busy):
            for _ in range(options.rounds):
                for name, loop in loops.items():
                    rounds[name].append(timed(loop, options, device, flops[name], dtypes[name]))
    figures: dict[str, Any] = {
        "hardware": hardware(device),
        "options": {n: v for n, v in vars(options).items() if n not in ("json", "data_dir")},
        "seconds_to_load": notebook.seconds_to_load,
    }
    for name, values in rounds.items():
        speeds = [value["images_per_s"] for value in values]
        figures[name] = {k: statistics.median(v[k] for v in values) for k in values[0]}
        figures[name]["images_per_s_range"] = [min(speeds), max(speeds)]
        figures[name]["gflop_per_step"] = flops[name] / 1e9
        figures[name]["precision"] = str(dtypes[name]).removeprefix("torch.")
    pairs = zip(rounds["notebook"], rounds["reference"], strict=True)
    figures["ratio"] = statistics.median(a["images_per_s"] / b["images_per_s"] for a, b in pairs)
    return figures


def report(figures: dict[str, Any]) -> str:
    """Put the figures into a table."""
    options = figures["options"]
    lines = [
        figures["hardware"],
        f"{options['image_size']}x{options['image_size']}, batch {options['batch_size']}, "
        f"{options['images']:,} images an epoch, {options['rounds']} epochs each in turn, "
        f"{options['busy']} busy processes beside them",
        "",
        f"{'':<10} {'precision':<10} {'images/s':>9} {'(range)':>15} {'ms/step':>8} "
        f"{'TFLOP/s':>8} {'peak':>8} {'share':>6}",
    ]
    for name in ("reference", "notebook"):
        f = figures[name]
        low, high = f["images_per_s_range"]
        lines.append(
            f"{name:<10} {f['precision']:<10} {f['images_per_s']:>9,.0f} "
            f"{f'({low:,.0f} to {high:,.0f})':>15} {f['ms_per_step']:>8.1f} {f['tflops']:>8.3f} "
            f"{f['peak_tflops']:>8.3f} {f['share_of_peak']:>6.0%}"
        )
    lines += [
        "",
        f"ratio {figures['ratio']:.2f}; decoding and the like, once: "
        f"{figures['seconds_to_load']:.1f} s; beside an epoch's steps: "
        f"{figures['notebook']['seconds_beside']:.1f} s",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = options_of(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        if options.data_dir is None:
            folder = draw_images(Path(temporary), options.images)
        else:
            folder = Path(options.data_dir)
            n = len(helpers.find_images(folder))
            if n < options.images:
                sys.exit(f"{folder} holds {n} images: --images {options.images} is too many.")
        figures = measure(options, folder)
    print(report(figures))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
