"""The notebook's own training at a small size, for the tests.

    python tests/small_training.py FOLDER

trains in two processes, of which one is stopped; then goes on in one. With --other-images, the
second process has other images than the first.
"""

import itertools
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.machine import QuickEvaluator
from faces.checkpoints import CHECKPOINTS
from faces.files import NOTEBOOK
from faces.images import FaceDataset
from faces.notebook import apply_idea, load_definitions
from faces.notebook import prepare as run_build_cells
from faces.speed import Accelerator
from faces.training import Run

CPU = torch.device("cpu")


def prepare(
    output_dir: Path,
    device: torch.device = CPU,
    idea: str = "",
    accelerate: bool = False,
    n_images: int = 40,
    source: Path = NOTEBOOK,
    **names: Any,
) -> ModuleType:
    """Make the notebook ready for a small training in float32, seeded.

    Args:
        output_dir: where its files go.
        device: where it trains.
        idea: as in the notebook.
        accelerate: the fast step, instead of the plain one.
        n_images: how many images there are, in batches of 8.
        source: the notebook.
        names: further global variables, such as ``settings``.

    Returns:
        The notebook's definitions, with networks and optimizers; ``train(notebook)`` trains.
    """
    notebook = load_definitions(source)
    torch.manual_seed(0)
    accelerator = Accelerator(accelerate)
    accelerator.device = device
    images = torch.rand(n_images, 4, 4, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)
    dataset = FaceDataset((images * 255).byte().numpy())  # (n, 32, 32, 3)
    options = dict(drop_last=True, generator=torch.Generator(), collate_fn=dataset.collate)
    values = dict(d_conv_dim=8, g_conv_dim=8, z_size=10, image_size=32, device=device)
    values |= dict(accelerator=accelerator, run=Run(output_dir), evaluator=QuickEvaluator())
    values |= dict(celeba_train_loader=DataLoader(dataset, 8, True, **options))
    values["settings"] = {"lr": 0.0002, "n_epochs": 1}
    vars(notebook).update(values | names)
    notebook.settings = apply_idea(idea, notebook, notebook.settings)
    run_build_cells(notebook)
    return notebook


def prepare_fast(folder: Path, precision: str, **options: Any) -> ModuleType:
    """A notebook with the fast step in a precision, whatever this machine would choose."""
    with mock.patch("faces.speed.choose_precision", lambda _: (precision, torch.channels_last)):
        return prepare(folder, accelerate=True, **options)


def in_float64(notebook: ModuleType) -> ModuleType:
    """Let a notebook compute in float64, so that rounding stays far below what is compared."""
    for network in (notebook.D, notebook.G):
        network.double()
    scale, sample_z = notebook.scale, notebook.sample_z
    notebook.scale = lambda images: scale(images.double())
    notebook.sample_z = lambda n: sample_z(n).double()
    return notebook


def train(notebook: ModuleType, n_epochs: int = 4) -> list[tuple[float, float]]:
    """Train the networks that ``prepare`` made; return the losses."""
    return notebook.train(notebook.D, notebook.G, n_epochs)


def act_at(notebook: ModuleType, step: int, act: Callable[[], object]) -> None:
    """Let something happen in one of a notebook's steps, just after G's weights have changed."""
    steps = itertools.count()
    notebook.g_optimizer.register_step_post_hook(lambda *_: next(steps) == step and act())


def differing_files(folder: Path, whole: Path) -> list[str]:
    """What a folder has not as a run without a fault has it; of checkpoints the networks count."""
    differing = []
    for path in whole.glob("[!.]*"):
        there = folder / path.name
        if path.name == CHECKPOINTS[0]:
            states = [torch.load(p, weights_only=True)["parts"] for p in (path, there)]
            for name in ("D", "G", "G_ema"):
                a, b = (state[name] for state in states)
                if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
                    differing.append(f"{name} in {path.name}")
        elif path.name not in CHECKPOINTS:
            if not there.is_file() or path.read_bytes() != there.read_bytes():
                differing.append(path.name)
    return differing


def hide_accelerators() -> None:
    """Let PyTorch find no accelerator of any kind, for the rest of this process."""
    torch.accelerator.current_accelerator = lambda *args, **options: None


def become_two() -> int:
    """Make another process, and the environment that torchrun would; return its number, or 0."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    child = os.fork()
    rank = "0" if child else "1"
    os.environ.update(place, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
    return child


def train_on_other_images(folder: Path) -> None:
    """Train in two processes, each with images of its own."""
    child = become_two()
    try:
        notebook = prepare(folder, settings={"data": f"images {os.environ['RANK']}"})
        print("prepared")  # by one of them only
        train(notebook)
    finally:
        if child:
            os.waitpid(child, 0)


def stop_one_of_two(folder: Path) -> None:
    """Train in two processes; terminate the second one in epoch 2; then go on in one."""
    child = become_two()
    notebook = prepare(folder)
    if not child:
        act_at(notebook, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(notebook)
    notebook.accelerator.finish()  # of the second one nothing more is left
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    shutil.copytree(folder, folder.with_name("stopped"))
    os.environ["WORLD_SIZE"] = "1"
    train(prepare(folder))


if __name__ == "__main__":
    hide_accelerators()  # two processes may not share one
    torch.set_num_threads(1)
    work = train_on_other_images if sys.argv[2:] == ["--other-images"] else stop_one_of_two
    work(Path(sys.argv[1]))
