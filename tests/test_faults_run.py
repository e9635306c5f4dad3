"""What can happen to a run: rot, other runs, lost folders, changed code, odd weights."""

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from small_training import prepare, train
from test_training import assert_same_run, run_script

import helpers
from faces import checkpoints, digests, files
from faces.checkpoints import CHECKPOINTS
from faces.notebook import load_definitions
from faces.weights import read_weights, write_weights

SIZES = {"z_size": "10", "g_conv_dim": "8", "image_size": "32"}


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# --------------------------------------------------------------------------------------------- rot


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    train(prepare(tmp_path), 2)
    path, chance, n_refused = tmp_path / "checkpoint.pt", random.Random(0), 0
    whole = path.read_bytes()
    _, expected, _ = checkpoints.read_checkpoint(tmp_path)
    for _ in range(60):
        flip(path, chance.randrange(len(whole)), chance.randrange(8))
        try:
            _, state, _ = checkpoints.read_checkpoint(tmp_path)
        except ValueError as error:
            assert re.search("point.pt is damaged.*go on from checkpoint-before.pt", str(error))
            n_refused += 1
        else:  # in a date, or between the parts
            assert repr(state) == repr(expected)
            pairs = zip(state["parts"]["G"].values(), expected["parts"]["G"].values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        path.write_bytes(whole)
    assert n_refused > 40


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of a small generator's weights."""
    _, G = load_definitions().build_network(8, 8, 10)
    write_weights(tmp_path / "generator.safetensors", G.state_dict(), SIZES)
    return tmp_path / "generator.safetensors"


def test_a_flipped_bit_in_weights_is_found(weights):
    whole, chance = weights.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(20):
        flip(weights, chance.randrange(start, len(whole)), chance.randrange(8))
        with pytest.raises(ValueError, match="generator.safetensors.*checksum does not fit"):
            helpers.generate_faces(1, seed=0, weights=weights)
        weights.write_bytes(whole)
    weights.write_bytes(whole.replace(b'"z_size":"10"', b'"z_size":"11"'))
    with pytest.raises(ValueError, match="checksum does not fit"):
        helpers.generate_faces(1, seed=0, weights=weights)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    state = {"b": torch.arange(3), "ä": torch.rand(2, 2).bfloat16(), "c": torch.tensor(1.0)}
    metadata = {name: f'"{name}" ü' for name in "zyxwvutsrq"}
    for order in (1, -1):
        write_weights(tmp_path / str(order), dict(list(state.items())[::order]), metadata)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "-1").read_bytes()
    read, found = read_weights(tmp_path / "1")
    assert found == metadata | {"checksum": found["checksum"]}
    assert read.keys() == state.keys() and all(torch.equal(read[n], state[n]) for n in state)
    safetensors.torch.save_file(state, tmp_path / "without")  # those of other programs are read too
    assert read_weights(tmp_path / "without")[1] == {}


def test_pictures_that_rot_are_drawn_again(tmp_path):
    train(prepare(tmp_path / "whole"), 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for name in ("samples_epoch_001.png", "samples.npz", "losses.csv"):
        flip(tmp_path / "run" / name, 20, 3)
    train(prepare(tmp_path / "run"), 2)
    for path in (tmp_path / "whole").glob("[!.]*[!t]"):  # all but checkpoints
        assert (tmp_path / "run" / path.name).read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------------------ other runs


def test_a_folder_belongs_to_a_run_from_the_moment_it_is_chosen(tmp_path):
    mine = helpers.run_folder(tmp_path / "faces", resume=False)
    assert helpers.run_folder(mine, resume=False) == mine  # its cell may be run twice
    train(prepare(tmp_path / "other"), 1)  # as the rubric's test does
    with pytest.raises(Timeout):
        FileLock(mine / ".lock").acquire(timeout=0)
    train(prepare(mine), 1)
    with FileLock(mine / ".lock").acquire(timeout=0):  # another run has it
        assert helpers.run_folder(mine, resume=False) == tmp_path / "faces-2"
        with pytest.raises(RuntimeError, match="Another run writes to .*faces, or is about to"):
            helpers.run_folder(mine)
    with FileLock(tmp_path / "faces-2" / ".lock").acquire(timeout=0):  # given up by now
        assert helpers.run_folder(mine, resume=False) == tmp_path / "faces-3"
    assert helpers.run_folder(mine) == mine


def test_two_notebooks_get_two_folders(tmp_path):
    code = "import sys; from faces.folders import run_folder; print(run_folder('out', False).name)"
    code += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    environment = os.environ | {"PYTHONPATH": str(files.HERE)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as other:
        assert other.stdout.readline() == "out\n"
        assert helpers.run_folder(tmp_path / "out", resume=False) == tmp_path / "out-2"
        other.kill()
    assert helpers.run_folder(tmp_path / "out", resume=False) == tmp_path / "out"


def test_the_run_that_trained_last_goes_on(tmp_path):
    for number, (name, time) in enumerate([("a", 2), ("a-2", 9), ("a-3", 5)]):
        (tmp_path / name).mkdir()
        path = tmp_path / name / CHECKPOINTS[number % 2]
        path.touch()
        os.utime(path, (time, time))
    assert helpers.run_folder(tmp_path / "a") == tmp_path / "a-2"
    os.utime(tmp_path / "a-2" / CHECKPOINTS[1], (5, 5))  # as old as that of a-3
    assert helpers.run_folder(tmp_path / "a") == tmp_path / "a-3"
    assert helpers.run_folder(tmp_path / "a", resume=False) == tmp_path / "a-4"


def test_of_two_processes_both_stop_after_the_same_step(tmp_path):
    printed = run_script("stop", tmp_path / "run")
    assert printed.count("Stopped in epoch 2, after 3 of its batches") == 1
    assert "status -15" in printed and "1 epochs and 3 batches are done" in printed
    for name, n_steps in (("stopped", 8), ("run", 20)):
        losses = np.loadtxt(tmp_path / name / "losses.csv", delimiter=",", skiprows=1)
        assert len(losses) == n_steps and np.isfinite(losses).all()
    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 3)


# ------------------------------------------------------------------------- while a run is at work


def act_at(lesson: Any, step: int, act: Any) -> None:
    """Let something happen after one of a lesson's steps."""
    steps = itertools.count()
    lesson.g_optimizer.register_step_post_hook(lambda *_: next(steps) == step and act())


def test_a_folder_that_is_deleted_is_made_again(tmp_path, capsys):
    train(prepare(tmp_path / "whole"), 3)
    lesson = prepare(tmp_path / "run")
    act_at(lesson, 12, lambda: shutil.rmtree(tmp_path / "run"))
    train(lesson, 3)
    assert f"{tmp_path / 'run'} was deleted: it is made again" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    missing = {p.name for p in (tmp_path / "whole").iterdir()} - set(os.listdir(tmp_path / "run"))
    assert missing <= {"checkpoint-before.pt", ".lock"}
    train(prepare(tmp_path / "run"), 4)


def test_a_file_that_is_open_elsewhere_is_replaced_or_named(tmp_path, monkeypatch):
    train(prepare(tmp_path), 1)
    with open(tmp_path / "losses.csv") as opened:
        train(prepare(tmp_path), 2)
        assert len(opened.readlines()) == 6
    whole, replace = (tmp_path / "losses.csv").read_text(), os.replace
    assert len(whole.splitlines()) == 11

    def refuse(old: Path, new: Path) -> None:  # as Windows does
        if Path(new).name == "losses.csv":
            raise PermissionError(13, "Access is denied", str(old), None, str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="losses.csv cannot be replaced.*close it there"):
        train(prepare(tmp_path), 3)
    monkeypatch.undo()
    assert (tmp_path / "losses.csv").read_text() == whole
    assert len(train(prepare(tmp_path), 3)) == 15  # the checkpoint was written before


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    train(prepare(tmp_path / "whole"), 2)
    clock = itertools.count(2e9, -1000)
    monkeypatch.setattr("time.time", lambda: next(clock))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    train(prepare(tmp_path / "run"), 1)
    os.utime(tmp_path / "run" / "checkpoint.pt", (4e9, 4e9))
    train(prepare(tmp_path / "run"), 2)
    assert next(clock) < 2e9 - 10_000
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# ------------------------------------------------------------------------------------ changed code


def lesson_with(tmp_path: Path, old: str, new: str) -> Any:
    """The lesson from a notebook with a change, which stands once in it."""
    notebook = nbformat.read(files.NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (cell,) = [cell for cell in notebook.cells if old in cell.source]
    cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    return load_definitions(tmp_path / "lesson.ipynb")


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("with run:\n", "with run:  # mine\n\n        # two\n", set()),
        ('"""Train both networks; return', '"""Do it; return', set()),
        ('"""Pictures (N, 3, image_size, image_size) in [-1, 1] -> logits', '"""P ->', set()),
        (
            "real_images = scale(real_images)  # (N,",
            "real_images = scale(real_images)  # [N,",
            set(),
        ),
        ("fake_images.detach())", "fake_images)", {"the code of step"}),
        ("x.flatten(1)", "x.flatten(1) * 2", {"the code of Discriminator"}),
    ],
)
def test_code_is_compared_without_comments(tmp_path, old, new, changed):
    lessons = load_definitions(), lesson_with(tmp_path, old, new)
    a, b = (digests.code_of(x.train, x.Discriminator) for x in lessons)
    assert a.keys() == b.keys() and len(a) > 10
    assert {name for name in a if a[name] != b[name]} == changed


def test_other_code_in_the_package_is_named_with_the_way_back(tmp_path, monkeypatch):
    train(prepare(tmp_path / "run"), 1)
    shutil.copytree(files.HERE / "faces", tmp_path / "faces")
    monkeypatch.setattr(digests, "HERE", tmp_path)
    path = tmp_path / "faces" / "steps.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace('"""Note a step\'s losses', '"""Note  # losses'))
    assert source != path.read_text()
    train(prepare(tmp_path / "run"), 2)
    path.write_text(source.replace("self.batch += 1", "self.batch += 2"))
    with pytest.raises(ValueError, match="other settings") as caught:
        train(prepare(tmp_path / "run"), 3)
    _, line, back = str(caught.value).splitlines()
    code = r"  the code of Steps in faces/steps.py: '\w{12}' there, '\w{12}' now"
    assert re.fullmatch(code, line)
    assert "undo the change of that code" in back and "resume = False" in back


def test_a_changed_docstring_of_an_idea_changes_nothing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('"""Mine."""\n\n\ndef names(lesson):\n    """One."""\n    lesson.x = 1\n')
    before = helpers.apply_idea(str(path), load_definitions())
    path.write_text('"""Yours."""\ndef names(lesson):\n  lesson.x = 1  # two\n')
    assert helpers.apply_idea(str(path), load_definitions()) == before
    path.write_text('"""Mine."""\n\n\ndef names(lesson):\n    """One."""\n    lesson.x = 2\n')
    assert helpers.apply_idea(str(path), load_definitions()) != before


def test_code_that_is_not_whole_has_a_digest_too():
    assert digests.digest_of("lambda x: x),") != digests.digest_of("lambda x: 2 * x),")
    assert digests.digest_of("def f():\n    'text'\n") == digests.digest_of("def f():\n    ''\n")


# -------------------------------------------------------------------------------------- odd weights


@pytest.mark.parametrize("n", [0, -1, 4.0, 10**9, "4", None])
def test_a_number_of_faces_that_cannot_be_is_named(n):
    with pytest.raises(
        ValueError, match=r"^n is .*: it must be a whole number from 1 to 100,000\.$"
    ):
        helpers.generate_faces(n, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * float("nan"), "fc.weight is torch.float32, or not finite"),
        (lambda x: x.half() / 0, "fc.weight is torch.float16, or not finite: not torch.float32"),
        (lambda x: x.double(), "fc.weight is torch.float64"),
        (lambda x: (x * 100).to(torch.int8), "fc.weight is torch.int8"),
    ],
)
def test_weights_that_draw_no_faces_are_named(weights, change, message):
    state = safetensors.torch.load_file(weights)
    write_weights(weights, state | {"fc.weight": change(state["fc.weight"])}, SIZES)
    with pytest.raises(ValueError, match=f"generator.safetensors.*: {message}"):
        helpers.generate_faces(1, seed=0, weights=weights)


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*: train first"):
        helpers.generate_faces(1, seed=0, weights=tmp_path)


def test_many_faces_are_drawn_in_parts(weights, monkeypatch):
    asked = []

    def spying() -> Any:
        lesson = load_definitions()
        draw = lesson.sample_z
        lesson.sample_z = lambda n: asked.append(n) or draw(n)
        return lesson

    monkeypatch.setattr("faces.drawing.load_definitions", spying)
    faces = helpers.generate_faces(np.int64(1100), seed=0, weights=weights)
    assert asked == [100] * 11 and len(np.unique(faces, axis=0)) == 1100


# ---------------------------------------------------------------------------------- random faults


def test_random_faults_end_in_three_ways():
    script = Path(__file__).with_name("random_faults.py")
    command = [sys.executable, script, "--faults", "8", "--seed", "61"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ends = re.findall(
        r"(\d+) (?:the same result|refused|a checkpoint)", done.stdout.splitlines()[-1]
    )
    assert sum(map(int, ends)) == 8
