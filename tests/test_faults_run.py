"""What can happen to a run: rot, other runs, lost folders, changed code."""

import copy
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from filelock import FileLock, Timeout
from small_training import act_at, prepare, train

from faces.checkpoints import CHECKPOINTS, load_checkpoint
from faces.files import HERE, NOTEBOOK, atomic_write, build_once
from faces.notebook import hash_functions, hash_ideas, hash_package, hash_source, load_definitions
from faces.show import write_images
from faces.training import Run


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# --------------------------------------------------------------------------------------------- rot


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    train(prepare(tmp_path), 2)
    path, chance, n_refused = tmp_path / "checkpoint.pt", random.Random(0), 0
    whole = path.read_bytes()
    _, expected, _ = load_checkpoint(tmp_path)
    for _ in range(60):
        flip(path, chance.randrange(len(whole)), chance.randrange(8))
        try:
            _, state, _ = load_checkpoint(tmp_path)
        except ValueError as error:
            assert re.search("point.pt is damaged.*resume from checkpoint-before.pt", str(error))
            n_refused += 1
        else:  # in a date, or between the parts
            assert repr(state) == repr(expected)
            pairs = zip(state["parts"]["G"].values(), expected["parts"]["G"].values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        path.write_bytes(whole)
    assert n_refused > 40


def test_results_that_are_lost_or_rot_are_written_again(tmp_path):
    train(prepare(tmp_path), 2)
    files = {path: path.read_bytes() for path in tmp_path.glob("[!.]*[!t]")}  # but no checkpoint
    assert len(files) == 6
    for i, path in enumerate(sorted(files)):
        path.unlink() if i % 2 else flip(path, 20, 3)
    train(prepare(tmp_path), 2)
    assert files == {path: path.read_bytes() for path in files}


# ----------------------------------------------------------------------------------------- folders


def test_output_dir_is_that_folder_and_no_other(tmp_path):
    first, second, third, fourth = (tmp_path / f"exp-1{n}" for n in ("", "-2", "-3", "-4"))
    (tmp_path / "exp-2").mkdir()
    (tmp_path / "exp-2" / CHECKPOINTS[0]).touch()
    assert Run(first).folder == first  # and not the other, which holds a run
    assert Run(first, resume=False).folder == first  # since it is empty, but for a lock
    (first / CHECKPOINTS[1]).touch()
    assert Run(first).folder == first
    assert Run(first, resume=False).folder == second
    (second / CHECKPOINTS[0]).touch()
    assert Run(first).folder == first  # and not the latest
    (first / CHECKPOINTS[1]).rename(first / "mine.txt")
    assert Run(first).folder == second
    (second / CHECKPOINTS[0]).rename(second / "mine.txt")
    third.touch()
    assert Run(first).folder == fourth
    assert [p.name for p in (*first.glob("[!.]*"), *second.glob("[!.]*"))] == ["mine.txt"] * 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file/below.*Set output_dir"):
        Run(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="output_dir is .*runs/faces"):
        Run(".")


def is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def test_a_folder_belongs_to_a_run_from_its_making_to_its_end(tmp_path):
    mine, other = tmp_path / "faces", tmp_path / "other"
    notebook = prepare(mine)
    run = notebook.run = Run(mine, resume=False)  # its cell is run again
    assert run.folder == mine and is_locked(mine)
    notebook.run = copy.copy(run)  # as the rubric's test does
    notebook.run.folder = other
    act_at(notebook, 2, lambda: locked.append((is_locked(mine), is_locked(other))))
    locked = []
    train(notebook, 1)
    assert locked == [(True, True)]
    assert is_locked(mine) and not is_locked(other) and list(mine.iterdir()) == [mine / ".lock"]

    def make_another() -> None:
        with pytest.raises(RuntimeError, match="Another run is writing to .*faces, or is about to"):
            Run(mine)
        assert Run(mine, resume=False).folder == tmp_path / "faces-2"
        made.append(True)

    notebook = prepare(mine)
    act_at(notebook, 2, make_another)
    made = []
    train(notebook, 1)
    assert made and not is_locked(mine) and (mine / "checkpoint.pt").is_file()
    train(notebook, 2)  # the training's cell alone is run again
    with FileLock(mine / ".lock").acquire(timeout=0):  # another run has it by now
        with pytest.raises(RuntimeError, match="Another run is writing to"):
            train(notebook, 3)


def test_a_new_run_is_numbered_after_the_folder_asked_for(tmp_path):
    for name in ("faces", "faces-2", "exp-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    run = Run(tmp_path / "faces", resume=False)
    for name in ("faces-3", "faces-4"):  # the notebook's cell sets output_dir to the run's folder
        assert run.folder == tmp_path / name
        (run.folder / "checkpoint.pt").touch()
        run = Run(run.folder, resume=False)
    assert Run(run.folder).folder == tmp_path / "faces-5"
    assert Run(tmp_path / "exp-2", resume=False).folder == tmp_path / "exp-2-2"  # a name's number


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_has_softer_ones(tmp_path, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Run, "_latest", None)
    monkeypatch.setattr("fcntl.flock", refuse)
    train(prepare(tmp_path / "run"), 1)
    assert Run(tmp_path / "run").folder == Run(tmp_path / "run").folder  # its cell is run again
    lock = tmp_path / "run" / ".lock.soft"
    lock.write_text("1\nanother machine\n")
    monkeypatch.setattr(Run, "_latest", None)
    with pytest.raises(RuntimeError, match=f"Another run.*If there is no such run, delete {lock}"):
        Run(tmp_path / "run")
    build_once(tmp_path / "images", lambda folder: write_images([], folder / "images"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "images"}


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    half = tmp_path / ".checkpoint-unfinished-01234567.pt"

    def stop_here() -> None:
        with atomic_write(tmp_path / "checkpoint.pt") as path:
            left.append(re.sub("-[0-9a-f]{8}", "-01234567", path.name))

    left: list[str] = []
    stop_here()
    assert left == [half.name]
    half.touch()
    (tmp_path / ".mine-unfinished.pt").touch()
    Run(tmp_path)
    assert not half.exists() and (tmp_path / ".mine-unfinished.pt").exists()


def test_a_file_that_is_open_elsewhere_is_named(tmp_path, monkeypatch):
    train(prepare(tmp_path), 1)
    whole, replace = (tmp_path / "losses.csv").read_text(), os.replace

    def refuse(old: Path, new: Path) -> None:  # as Windows does
        if Path(new).name == "losses.csv":
            raise PermissionError(13, "Access is denied", str(old), None, str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="losses.csv cannot be replaced.*close it there"):
        train(prepare(tmp_path), 2)
    monkeypatch.undo()
    assert (tmp_path / "losses.csv").read_text() == whole
    assert len(train(prepare(tmp_path), 2)) == 10  # the checkpoint was written before


# ------------------------------------------------------------------------------------ changed code


def changed_notebook(folder: Path, old: str, new: str) -> Path:
    """The notebook with a change to a part of a line that stands once in it."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    old, new = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (old, new))
    assert text.count(old) == 1
    (folder / "changed.ipynb").write_text(text.replace(old, new), encoding="utf-8")
    return folder / "changed.ipynb"


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (
            "train, discriminator_loss):",
            "train, discriminator_loss):  # mine\n\n        # 2",
            set(),
        ),
        ('"""Train both networks; return', '"""Do it; return', set()),
        ('"""Images (N, 3, image_size, image_size) in [-1, 1] -> logits', '"""I ->', set()),
        ("real_images = scale(real_images)  # (N,", "real_images = scale(real_images)  # [", set()),
        ("fake_images.detach())", "fake_images)", {"the code of step"}),
        ("x.flatten(1)", "x.flatten(1) * 2", {"the code of Discriminator"}),
        ("ema_decay = 0.999", "ema_decay = 0.9", {"the value of ema_decay"}),
    ],
)
def test_code_is_compared_without_comments(tmp_path, old, new, changed):
    notebooks = load_definitions(), load_definitions(changed_notebook(tmp_path, old, new))
    a, b = (hash_functions(n.train, n.Discriminator) for n in notebooks)
    assert a.keys() == b.keys() and len(a) > 10
    assert {name for name in a if a[name] != b[name]} == changed
    assert "the value of ema_decay" not in hash_functions(
        notebooks[0].train, settings=["ema_decay"]
    )


def refusal(notebook: ModuleType) -> list[str]:
    """What of the run in its folder is not the same, in lines."""
    with pytest.raises(ValueError, match="holds a run with other settings:") as caught:
        train(notebook, 9)
    _, *lines, back = str(caught.value).splitlines()
    assert "undo the change of that code" in back or lines[0].startswith("  the value")
    assert "resume = False" in back
    return lines


@pytest.mark.parametrize(
    ("idea", "loss", "labels"),
    [
        ("", "real_loss", "torch.full_like(D_out, label)"),
        ("r1", "fake_loss", "torch.zeros_like(D_out)"),  # which nothing else calls then
        ("label_smoothing", "fake_loss", "torch.zeros_like(D_out)"),
        ("relativistic", "real_loss", "torch.full_like(D_out, label)"),
    ],
)
def test_a_loss_that_changed_is_named_also_where_an_idea_calls_it(tmp_path, idea, loss, labels):
    own = changed_notebook(tmp_path, labels, f"{labels} + shift")
    options = dict(idea=idea, source=own, shift=0.1)
    train(prepare(tmp_path / "run", **options), 1)
    lines = refusal(prepare(tmp_path / "run", **options | {"shift": 0.2}))
    assert lines == ["  the value of shift: '0.1' there, '0.2' now"]
    changed_notebook(tmp_path, labels, f"shift + {labels}")
    (line,) = refusal(prepare(tmp_path / "run", **options))
    assert re.fullmatch(rf"  the code of {loss}: '\w{{12}}' there, '\w{{12}}' now", line)


def test_other_code_in_the_package_is_named_with_the_way_back(tmp_path, monkeypatch):
    package = shutil.copytree(HERE / "faces", tmp_path / "faces")
    monkeypatch.setattr("faces.notebook.HERE", tmp_path)
    monkeypatch.setattr("faces.notebook.hash_package", hash_package.__wrapped__)  # not cached
    train(prepare(tmp_path / "run"), 1)

    def edit(name: str, more: str) -> None:
        text = (package / name).read_text(encoding="utf-8").replace('"""', '"""Mine. ', 1)
        (package / name).write_text(f"# mine\n{text}\n{more}\n", encoding="utf-8")

    for name in os.listdir(package):
        if name.endswith(".py"):
            edit(name, "# mine")
    edit("explorer.py", "def explore(): pass")  # decides nothing
    train(prepare(tmp_path / "run"), 2)
    edit("notebook.py", "def apply_idea(): pass")
    edit("properties.py", "def ita(): pass")
    edit("speed.py", "SIZE = 1")
    lines = refusal(prepare(tmp_path / "run"))
    assert [line.split(":")[0].strip() for line in lines] == [
        "the code of apply_idea in faces/notebook.py",
        "the code of ita in faces/properties.py",
        "the code of faces/speed.py outside of functions",
    ]
    assert all(re.search(r": '\w{12}' there, '\w{12}' now$", line) for line in lines)


def test_a_changed_docstring_of_an_idea_changes_nothing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('"""Mine."""\n\n\ndef patch(notebook):\n    """One."""\n    notebook.x = 1\n')
    before = hash_ideas(str(path))
    path.write_text('"""Yours."""\ndef patch(notebook):\n  notebook.x = 1  # two\n')
    assert hash_ideas(str(path)) == before and before.keys() == {"mine.py"}
    assert hash_source("def f():\n    'text'\n") == hash_source("def f():\n    ''\n")
    path.write_text('"""Mine."""\n\n\ndef patch(notebook):\n    """One."""\n    notebook.x = 2\n')
    assert hash_ideas(str(path)) != before


def test_functions_of_the_same_name_have_the_same_hashes_in_each_process(tmp_path):
    source = "a = lambda x: 2 * x\nb = lambda x: x + 1\nc = a, b\ndef train(): a, b, c\n"
    sources = [source, source.replace("2 *", "3 *"), source.replace("+ 1", "+ 2")]
    for number, each in enumerate(sources):
        (tmp_path / f"mine{number}.py").write_text(each)
    code = "import mine0, mine1, mine2; from faces.notebook import hash_functions\n"
    code += "for mine in (mine0, mine1, mine2): print(hash_functions(mine.train))"
    paths, command = f"{HERE}{os.pathsep}{tmp_path}", [sys.executable, "-c", code]
    orders = [
        os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": seed} for seed in "12"
    ]  # of sets
    first, second = (subprocess.check_output(command, env=order, text=True) for order in orders)
    assert first == second and len(set(first.splitlines())) == 3
    assert "the value" not in first  # which would show where in the memory a function is
    assert hash_source("lambda x: x),") != hash_source("lambda x: 2 * x),")  # not whole


# ---------------------------------------------------------------------------------- random faults


@pytest.mark.slow
def test_random_faults_of_each_kind_end_in_three_ways():
    script = Path(__file__).with_name("random_faults.py")
    command = [sys.executable, script, "--faults", "22", "--seed", "61"]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ends = re.findall(r"(\d+) (?:the same result|refused|resumed)", done.stdout.splitlines()[-1])
    assert sum(map(int, ends)) == 22


@pytest.mark.parametrize("change", ["class", "option", "rate"])
def test_another_optimizer_is_named(tmp_path, change):
    train(prepare(tmp_path), 1)
    notebook = prepare(tmp_path)
    parameters, options = notebook.D.parameters(), dict(lr=2e-4, betas=(0.5, 0.999), fused=True)
    if change == "class":
        notebook.d_optimizer = torch.optim.RMSprop(parameters, 2e-4)
    else:
        options |= {"weight_decay": 0.01} if change == "option" else {"lr": 1e-4}
        notebook.d_optimizer = torch.optim.Adam(parameters, **options)
    with pytest.raises(ValueError, match="the optimizer d_optimizer: .Adam .* there, "):
        train(notebook, 2)
    notebook = prepare(tmp_path)
    notebook.d_optimizer = torch.optim.Adam(notebook.D.parameters(), **options | {"fused": False})
    if change == "class":  # how it steps is of the device
        train(notebook, 2)


def test_a_rate_that_fell_while_it_trained_does_not_refuse_the_run(tmp_path):
    notebook = prepare(tmp_path)
    schedulers = [
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for optimizer in (notebook.d_optimizer, notebook.g_optimizer)
    ]
    train(notebook, 1)
    for scheduler in schedulers:
        scheduler.step()
    group = notebook.d_optimizer.param_groups[0]
    group["lr"] = torch.tensor(group["lr"])  # as a recorded step makes it
    notebook.run = Run(tmp_path)
    train(notebook, 2)


def test_a_number_that_the_code_counts_is_no_setting(tmp_path):
    source = (
        "calls = 0\n\n\ndef scale(x):\n    global calls\n    calls += 1\n    return 2 * x - 1\n"
    )
    namespace = {"__name__": "counting"}
    path = tmp_path / "counting.py"
    path.write_text(source)
    exec(compile(source, str(path), "exec"), namespace)
    assert hash_functions(namespace["scale"]).keys() == {"the code of scale"}


def test_a_run_whose_epochs_had_unequal_numbers_of_steps_is_resumed(tmp_path, capsys):
    train(prepare(tmp_path, n_images=40), 1)
    notebook = prepare(tmp_path, n_images=40)
    fewer = iter([True, False, False, False, False])
    batches = notebook.run.batches
    notebook.run.batches = lambda *args: (b for b in batches(*args) if not next(fewer, False))
    train(notebook, 2)
    train(prepare(tmp_path, n_images=40), 3)
    assert "2 epochs are done" in capsys.readouterr().out
