"""Random faults in a small run: each must end in one of three ways.

    python tests/random_faults.py [--faults 200] [--first 0] [--seed 0]

Each kind of fault has its turn. A file of a stopped run is changed (bits flipped, cut short,
zeroed, deleted, renamed), or a run is kept from writing large files, or is killed, stopped, or
loses a file or its folder, after a random step or just before a file that it wrote takes its name.
It is then started again. That must give the same result as the run without a fault; or refuse with
a sentence, and give it once that is followed. Faces must be drawn from its weights as before, or be
refused with a sentence.
"""

import argparse
import collections
import itertools
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from small_training import differing_files, hide_accelerators, prepare, train

from faces.checkpoints import CHECKPOINTS
from faces.generator import generate_faces

EPOCHS = 3  # of a run, 5 steps each
SETTINGS = {"z_size": 10, "g_conv_dim": 8, "image_size": 32}
AT_REST = ["flip", "cut", "zero", "delete", "rename"]
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
KINDS = [*AT_REST, *SIGNALS, "full disk", "delete at work", "delete folder"]
SENTENCE = re.compile(r"(ValueError|OSError|RuntimeError|FileNotFoundError): [^\n]*\S")


def attempt(work: Callable[[], object], log: Path) -> tuple[int, str]:
    """Do something in a child process; return its status and output."""
    child = os.fork()
    if not child:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"\n{type(error).__name__}: {error}")
            status = 1
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text(errors="replace")


def run(
    folder: Path, n_epochs: int = EPOCHS, at: int = -1, act: Callable[[], object] = print
) -> None:
    """Train, or resume; act at one of the moments, of which each step and each file has one."""
    notebook = prepare(folder, settings=dict(SETTINGS))
    moments, replace = itertools.count(), os.replace

    def note(*_: object) -> None:
        if next(moments) == at:
            act()

    def note_and_replace(old: Path, new: Path) -> None:
        note()
        replace(old, new)

    notebook.g_optimizer.register_step_post_hook(note)
    with mock.patch("os.replace", note_and_replace):
        train(notebook, n_epochs)
    print("moments:", next(moments))


def run_without_space(folder: Path, most: int) -> None:
    """Train while no file may become larger than that."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    run(folder)


def change_file(folder: Path, kind: str, chance: random.Random) -> str:
    """Change one of a folder's files, if it has any; return its name."""
    names = sorted(path.name for path in folder.glob("[!.]*"))
    if not names:
        return "no file"
    name = chance.choice([*names, *(n for n in names if "point" in n or "tensors" in n)])
    path = folder / name
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "zero":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    path.write_bytes(content)
    if kind.startswith("delete"):
        path.unlink()
    elif kind == "rename":
        path.replace(folder / chance.choice(["x", *os.listdir(folder)]))
    return name


def draw(folder: Path) -> None:
    """Print faces drawn from a run's weights."""
    faces = generate_faces(2, seed=0, weights=folder / "generator.safetensors")
    print(faces.tobytes().hex())


class Faults:
    """Runs with faults, beside one without, which has ``n_moments``."""

    def __init__(self, place: Path) -> None:
        self.whole, self.folder, self.log = place / "whole", place / "run", place / "log"
        _, output = attempt(partial(run, self.whole), self.log)
        self.n_moments = int(re.search(r"moments: (\d+)", output)[1])
        self.stopped = [place / "after an epoch", place / "in an epoch"]
        assert attempt(partial(run, self.stopped[0], 2), self.log)[0] == 0
        stop, at = partial(signal.raise_signal, signal.SIGINT), self.n_moments // 3 + 2
        _, output = attempt(partial(run, self.stopped[1], at=at, act=stop), self.log)
        assert re.search("Stopped in epoch 2, after [1-4] of its batches", output), output
        self.drawn = [attempt(partial(draw, folder), self.log)[1] for folder in self.stopped]

    def one(self, kind: str, chance: random.Random) -> tuple[str, str]:
        """Make one fault; return where it was, and how it ended.

        Raises:
            AssertionError: if it ended in no way that it may.
        """
        folder = self.folder
        shutil.rmtree(folder, ignore_errors=True)
        if kind in AT_REST:
            which = chance.randrange(2)
            shutil.copytree(self.stopped[which], folder)
            where = change_file(folder, kind, chance)
            self._draw(self.drawn[which])
        elif kind == "full disk":
            where = self._fill(chance)
        else:
            where = self._at_work(kind, chance)
        status, output = attempt(partial(run, folder), self.log)
        refused = status != 0
        if refused:
            refusal = output.splitlines()[-1]
            assert status == 1 and SENTENCE.fullmatch(refusal) and str(folder) in refusal, output
            assert "is damaged" in refusal, output
            (folder / CHECKPOINTS[0]).unlink()  # as the sentence says
            status, output = attempt(partial(run, folder), self.log)
        differing = status or differing_files(folder, self.whole)
        assert not differing, f"{kind}, {where}: {differing}: {output[-3000:]}"
        resumed = re.search("Resuming from|already holds this run", output)
        assert resumed or kind not in ("terminate", "interrupt", "full disk"), output
        if refused:
            return where, "refused with a sentence"
        return where, "resumed" if resumed and kind not in AT_REST else "the same result"

    def _fill(self, chance: random.Random) -> str:
        """Resume a stopped run while its checkpoint, and smaller files perhaps, do not fit."""
        shutil.copytree(self.stopped[chance.randrange(2)], self.folder)
        most = chance.randrange(1_000, (self.folder / CHECKPOINTS[0]).stat().st_size)
        status, output = attempt(partial(run_without_space, self.folder, most), self.log)
        assert status == 1 and "disk is full" in output, output
        assert [path.name for path in self.folder.glob(".*")] == [".lock"]  # nothing half-written
        return f"at {most} bytes"

    def _at_work(self, kind: str, chance: random.Random) -> str:
        at = chance.randrange(self.n_moments)
        if kind == "delete folder":
            act = partial(shutil.rmtree, self.folder)
        elif kind == "delete at work":
            act = partial(change_file, self.folder, kind, chance)
        else:
            act = partial(signal.raise_signal, SIGNALS[kind])
        status, output = attempt(partial(run, self.folder, at=at, act=act), self.log)
        assert status == {"kill": -9, "terminate": -signal.SIGTERM}.get(kind, 0), output
        last = rf"Stopped in epoch|Epoch \[ +{EPOCHS}/"
        assert kind != "terminate" or re.search(last, output), output  # no line is lost
        if kind == "delete folder":
            assert "was deleted: it is made again" in output, output
            assert not differing_files(self.folder, self.whole), output
        return f"at moment {at}"

    def _draw(self, before: str) -> None:
        if (self.folder / "generator.safetensors").is_file():
            status, output = attempt(partial(draw, self.folder), self.log)
            refused = SENTENCE.fullmatch(output.strip()) and "generator.safetensors" in output
            assert output == before if status == 0 else refused, output


def main() -> None:
    """Make faults, and count how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ends = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        faults = Faults(Path(place))
        for number in range(options.first, options.first + options.faults):
            kind = KINDS[number % len(KINDS)]
            where, end = faults.one(kind, random.Random(f"{options.seed}, {number}"))
            print(f"{number}: {kind}, {where}: {end}", flush=True)
            ends[end] += 1
    print(*(f"{n} {end}" for end, n in sorted(ends.items())), sep=", ")


if __name__ == "__main__":
    hide_accelerators()  # a fork cannot use one
    main()
