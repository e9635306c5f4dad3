"""The notebook's own training at a small size, for the tests; as a script, what is done to it.

    python tests/small_training.py kill|terminate|full-disk FOLDER

trains in child processes that are killed, terminated, or not allowed to write large files.
"""

import os
import random
import resource
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import helpers

CPU = torch.device("cpu")


class QuickJudge:
    """In the place of helpers.Judge, which would take longer than these trainings."""

    size = 16

    def __call__(self, faces: torch.Tensor) -> dict[str, float]:
        return {"swd": faces.std().item(), "mean": faces.mean().item()}


def prepare(output_dir: Path, device: torch.device = CPU, **names: Any) -> types.ModuleType:
    """Set the notebook's global variables to those of a small training, seeded.

    Args:
        output_dir: where its files go.
        device: where it trains.
        names: further global variables, such as ``fast``, and ``n_images``.

    Returns:
        The notebook's definitions; ``train(lesson)`` trains.
    """
    lesson = helpers.load_definitions()
    torch.manual_seed(0)
    images = torch.rand(names.pop("n_images", 40), 3, 4, 4).repeat_interleave(8, 2)
    images = images.repeat_interleave(8, 3)  # (n, 3, 32, 32)
    dataset = TensorDataset(images, torch.zeros(len(images)))
    lesson.D, lesson.G = (n.to(device) for n in lesson.build_network(8, 8, 10))
    vars(lesson).update(lesson.presets["reference"])
    fast = names.setdefault("fast", False)
    if fast:
        helpers.speed_up(lesson.D, lesson.G)
    adam = dict(lr=0.0002, betas=(0.5, 0.999), fused=True, capturable=device.type == "cuda")
    vars(lesson).update(
        processes=helpers.Processes(),
        device=device,
        on_cuda=device.type == "cuda",
        use_bfloat16=False,
        z_size=10,
        g_conv_dim=8,
        ema_decay=0.999,
        criterion=lesson.cross_entropy,
        judge=QuickJudge(),
        image_size=32,
        settings={"lr": 0.0002, "n_epochs": 1},
        output_dir=output_dir,
        celeba_train_loader=DataLoader(dataset, 8, shuffle=True),
        d_optimizer=torch.optim.Adam(lesson.D.parameters(), **adam),
        g_optimizer=torch.optim.Adam(lesson.G.parameters(), **adam),
    )
    vars(lesson).update(names)
    return lesson


def train(lesson: types.ModuleType, n_epochs: int = 4) -> list[tuple[float, float]]:
    """Train the networks that ``prepare`` made; return the losses."""
    return lesson.train(lesson.D, lesson.G, n_epochs, print_every=1000)


def in_child(work: Callable[[], None], after: float | None = None, number: int = 9) -> int:
    """Run something in a child process; send it a signal after some seconds; return its status."""
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
    latest = next(path for name in helpers.CHECKPOINTS if (path := folder / name).is_file())
    n_epochs = torch.load(latest, weights_only=True)["epoch"]
    print("killed 20 times, after", n_epochs, "epochs")
    train(prepare(folder), n_epochs + 1)
    train(prepare(folder / "whole"), n_epochs + 1)


def terminate(folder: Path) -> None:
    """Terminate a run that would be long, and let it end."""
    print("status", in_child(lambda: train(prepare(folder), 10_000), 3.0, signal.SIGTERM))


def full_disk(folder: Path) -> None:
    """Train for an epoch; go on while files of more than 20 kB are forbidden; then go on."""
    train(prepare(folder / "whole"), 2)
    train(prepare(folder), 1)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        train(prepare(folder), 2)

    print("status", in_child(work))
    print("left:", [path.name for path in folder.glob(".*")])
    train(prepare(folder), 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill, "terminate": terminate, "full-disk": full_disk}[sys.argv[1]](Path(sys.argv[2]))
