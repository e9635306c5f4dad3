"""The notebook's own training at a small size, for the tests; as a script, what is done to it.

    python tests/small_training.py kill|terminate|full-disk|stop FOLDER

trains in child processes that are killed, terminated, or not allowed to write large files, or in
two processes, of which one is stopped.
"""

import os
import random
import shutil
import signal
import socket
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import helpers
from benchmarks.machine import QuickJudge
from faces import checkpoints, notebook

CPU = torch.device("cpu")


def prepare(
    output_dir: Path,
    device: torch.device = CPU,
    idea: str = "",
    fast: bool = False,
    n_images: int = 40,
    **names: Any,
) -> types.ModuleType:
    """Make the notebook's lesson ready for a small training in float32, seeded.

    Args:
        output_dir: where its files go.
        device: where it trains.
        idea: as in the notebook.
        fast: the fast step, instead of the plain one.
        n_images: how many images there are, in batches of 8.
        names: further global variables, such as ``settings``.

    Returns:
        The notebook's definitions, with networks and optimizers; ``train(lesson)`` trains.
    """
    lesson = notebook.load_definitions()
    torch.manual_seed(0)
    images = torch.rand(n_images, 4, 4, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)
    dataset = helpers.ImageArray((images * 255).byte().numpy())  # (n, 32, 32, 3)
    order = torch.Generator()
    loader = DataLoader(
        dataset, 8, True, drop_last=True, generator=order, collate_fn=dataset.collate
    )
    sizes = dict(d_conv_dim=8, g_conv_dim=8, z_size=10, image_size=32)
    values = dict(device=device, processes=helpers.Processes(), speed=helpers.Speed(device, fast))
    values |= dict(celeba_train_loader=loader, judge=QuickJudge(), output_dir=output_dir)
    values["settings"] = {"lr": 0.0002, "n_epochs": 1}
    vars(lesson).update({**values, **sizes, **names})
    lesson.settings = helpers.apply_idea(idea, lesson, lesson.settings)
    notebook.prepare(lesson)
    return lesson


def prepare_fast(folder: Path, precision: str, **options: Any) -> types.ModuleType:
    """A lesson with the fast step in a precision, whatever this machine would choose."""
    with mock.patch("faces.speed.bfloat16_pays", lambda device: precision == "bfloat16"):
        return prepare(folder, fast=True, **options)


def in_float64(lesson: types.ModuleType) -> types.ModuleType:
    """Let a lesson compute in float64, so that rounding stays far below what is compared."""
    for network in (lesson.D, lesson.G):
        network.double()
    scale, sample_z = lesson.scale, lesson.sample_z
    lesson.scale = lambda images: scale(images.double())
    lesson.sample_z = lambda n: sample_z(n).double()
    return lesson


def train(lesson: types.ModuleType, n_epochs: int = 4) -> list[tuple[float, float]]:
    """Train the networks that ``prepare`` made; return the losses."""
    return lesson.train(lesson.D, lesson.G, n_epochs, print_every=1000)


class SignalLoader(DataLoader):
    """Sends this process a signal just before one of its batches is handed out."""

    at, number, n_batches = -1, signal.SIGINT, 0

    @classmethod
    def like(cls, loader: DataLoader) -> "SignalLoader":
        """Hands out what another loader does."""
        return cls(
            loader.dataset,
            loader.batch_size,
            sampler=loader.sampler,
            drop_last=True,
            generator=loader.generator,
            collate_fn=loader.collate_fn,
        )

    def __iter__(self):
        for batch in super().__iter__():
            if self.n_batches == self.at:
                os.kill(os.getpid(), self.number)
            self.n_batches += 1
            yield batch


def in_child(work: Callable[[], None], after: float | None = None, number: int = 9) -> int:
    """Run something in a child process; send it a signal after some seconds; return its status.

    Train in this process only after its last child: none can use CUDA once the parent has.
    """
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(folder: Path) -> None:
    """Kill a run at 20 random moments, and let it end; beside it one that is not killed."""
    started = time.monotonic()
    assert in_child(lambda: train(prepare(folder / "first"), 3)) == 0
    seconds = time.monotonic() - started
    chance = random.Random(0)
    for _ in range(20):
        status = in_child(lambda: train(prepare(folder), 10_000), chance.uniform(0, seconds))
        assert status == -signal.SIGKILL, status
    # Between its two steps the writing of a checkpoint has the one before only.
    latest = next(path for name in checkpoints.CHECKPOINTS if (path := folder / name).is_file())
    n_epochs = torch.load(latest, weights_only=True)["epoch"]
    print("killed 20 times, after", n_epochs, "epochs")
    train(prepare(folder), n_epochs + 1)
    train(prepare(folder / "whole"), n_epochs + 1)


def terminate(folder: Path) -> None:
    """Terminate a run that would be long, and let it end."""
    print("status", in_child(lambda: train(prepare(folder), 10_000), 3.0, signal.SIGTERM))


def full_disk(folder: Path) -> None:
    """Train for an epoch; go on while files of more than 20 kB are forbidden; then go on."""
    assert in_child(lambda: train(prepare(folder), 1)) == 0

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        train(prepare(folder), 2)

    print("status", in_child(work))
    print("left:", [path.name for path in folder.glob(".*")])
    train(prepare(folder), 2)
    train(prepare(folder / "whole"), 2)


def stop(folder: Path) -> None:
    """Train in two processes; terminate the second one in epoch 2; then go on in one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    child = os.fork()
    rank = "0" if child else "1"
    os.environ.update(place, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
    lesson = prepare(folder)
    if not child:
        lesson.celeba_train_loader = SignalLoader.like(lesson.celeba_train_loader)
        lesson.celeba_train_loader.at, lesson.celeba_train_loader.number = 7, signal.SIGTERM
    train(lesson)
    lesson.processes.leave()  # of the second one nothing more is left
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    shutil.copytree(folder, folder.with_name("stopped"))
    os.environ["WORLD_SIZE"] = "1"
    train(prepare(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill, "terminate": terminate, "full-disk": full_disk, "stop": stop}[sys.argv[1]](
        Path(sys.argv[2])
    )
