"""Weights to faces, settings, the training run's files, pictures."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import blobs
from PIL import Image
from torch import nn

import helpers

# ------------------------------------------------------------------------------- weights to faces


def test_the_same_seed_gives_the_same_faces():
    faces = helpers.generate_faces(3, seed=1)
    assert faces.shape == (3, 32, 32, 3) and faces.dtype == np.uint8
    assert (faces == helpers.generate_faces(3, seed=1)).all()
    assert (faces != helpers.generate_faces(3, seed=2)).any()
    assert len(np.unique(faces, axis=0)) == 3


def test_the_larger_faces_are_drawn_from_their_own_weights():
    faces = helpers.generate_faces(2, 1, helpers.WEIGHTS.with_name("generator_64.safetensors"))
    assert faces.shape == (2, 64, 64, 3) and faces.std(axis=(1, 2)).min() > 10


def test_faces_are_drawn_from_any_working_directory(tmp_path):
    code = "import helpers; print(helpers.generate_faces(2, seed=0).shape)"
    environment = os.environ | {"PYTHONPATH": str(helpers.HERE)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip().endswith("(2, 32, 32, 3)"), run.stderr
    assert not list(tmp_path.iterdir())


def test_drawing_faces_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    helpers.generate_faces(1, seed=0)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    "fault", ["absent", "no safetensors", "no metadata", "odd metadata", "other network"]
)
def test_weights_that_do_not_fit_are_named(tmp_path, fault):
    path = tmp_path / "weights.safetensors"
    sizes = {"z_size": "100", "g_conv_dim": "64", "image_size": "32", "residual": "False"}
    if fault == "no safetensors":
        path.write_bytes(b"\x80\x04pickle")
    elif fault == "no metadata":
        safetensors.torch.save_file({"x": torch.ones(1)}, path)
    elif fault == "odd metadata":
        safetensors.torch.save_file({"x": torch.ones(1)}, path, sizes | {"g_conv_dim": "many"})
    elif fault == "other network":
        safetensors.torch.save_file({"x": torch.ones(1)}, path, sizes)
    error = FileNotFoundError if fault == "absent" else ValueError
    with pytest.raises(error, match="weights.safetensors"):
        helpers.generate_faces(1, seed=0, weights=path)


def test_to_uint8_covers_the_whole_range():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert helpers.to_uint8(images)[:, 0, 0, 0].tolist() == [0, 128, 255]


def test_the_layer_table_counts_every_parameter():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 1)
    )
    table = helpers.layer_table(network, torch.rand(2, 3, 8, 8)).splitlines()
    assert table[2].split() == "Conv2d 3 x 8 x 8 4 x 6 x 6 yes 120".split()
    assert table[3].split() == "Linear 144 1 - 145".split()
    assert table[4].split() == ["total", "265"]
    assert network.training and not network[0]._forward_hooks
    assert network[1].num_batches_tracked == 0


def test_the_nearest_image_is_found_with_its_distance():
    images = np.concatenate([blobs(50, 8, 8, seed=0)] * 100 + [blobs(40, 8, 8, seed=1)])
    images[4500:5000] = 0  # more than one block, and the second one matters
    samples = images[[5007, 30]].copy()
    samples[1] = np.clip(samples[1].astype(int) + 10, 0, 255)
    indices, distances = helpers.nearest_images(samples, images)
    assert indices[0] == 5007 and indices[1] % 50 == 30
    expected = np.sqrt(np.mean((samples[1].astype(float) - images[30]) ** 2))
    assert distances[0] == 0 and distances[1] == pytest.approx(expected)
    _, others = helpers.nearest_images(images[4990:5010], images, np.arange(4990, 5010))
    assert (others[:10] == 0).all() and (others[10:] > 0).all()  # many are black, the rest is not
    _, none = helpers.nearest_images(images[:1], images[:1], np.array([0]))
    assert np.isinf(none).all()


# --------------------------------------------------------------------------------------- settings

PRESETS = {"full": {"batch_size": 128, "n_epochs": 20}, "quick": {"batch_size": 32, "n_epochs": 2}}


@pytest.mark.parametrize(
    ("preset", "accelerator", "variable", "expected"),
    [
        ("full", False, "quick", "full"),
        ("quick", True, "full", "quick"),
        ("auto", False, "", "quick"),
        ("auto", True, "", "full"),
        ("auto", False, "full", "full"),
    ],
)
def test_the_preset_is_chosen_and_said(
    monkeypatch, capsys, preset, accelerator, variable, expected
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setenv("FACES_PRESET", variable)
    by_hand = {"batch_size": None, "n_epochs": 5}
    chosen, settings = helpers.apply_preset(preset, PRESETS, by_hand)
    assert chosen == expected
    assert settings == PRESETS[expected] | {"n_epochs": 5}
    printed = capsys.readouterr().out
    assert f"preset {expected}" in printed and "n_epochs = 5  (given by hand)" in printed


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="'fast'.*auto, full, quick"):
        helpers.apply_preset("fast", PRESETS, {})


def test_all_settings_out_of_range_are_named():
    right = {"image_size": 64, "d_lr": 2e-4, "beta1": 0.0, "max_images": None, "n_epochs": 1}
    helpers.check_settings(**right)
    wrong = {"image_size": 48, "d_lr": 0.02, "beta1": 1, "max_images": 3, "n_epochs": 0.5}
    wrong |= {"seed": "one", "z_size": True, "beta2": float("nan")}
    with pytest.raises(ValueError) as caught:
        helpers.check_settings(**wrong, batch_size=32)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == list(wrong)
    with pytest.raises(ValueError, match="beta1 is 0.99: it must not be above beta2"):
        helpers.check_settings(**right | {"beta1": 0.99, "beta2": 0.9})


def test_a_folder_with_results_is_not_written_to(tmp_path):
    first = helpers.run_folder(tmp_path / "faces")
    (first / ".lock").touch()
    assert helpers.run_folder(tmp_path / "faces") == first == tmp_path / "faces"
    (first / "losses.csv").write_text("mine")
    second = helpers.run_folder(tmp_path / "faces")
    assert second == tmp_path / "faces-2"
    (second / "losses.csv").write_text("mine")
    assert helpers.run_folder(tmp_path / "faces") == tmp_path / "faces-3"
    (tmp_path / "file").write_text("mine")
    assert helpers.run_folder(tmp_path / "file") == tmp_path / "file-2"
    assert helpers.run_folder(second) == tmp_path / "faces-3"


@pytest.mark.parametrize("name", helpers.CHECKPOINTS)
def test_a_folder_with_a_checkpoint_is_gone_on_with_unless_told_otherwise(tmp_path, name):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / name).write_text("mine")
    assert helpers.run_folder(tmp_path / "faces") == tmp_path / "faces"
    assert helpers.run_folder(tmp_path / "faces", resume=False) == tmp_path / "faces-2"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "picture.png").write_text("mine")
    (tmp_path / "faces").rename(tmp_path / "other-2")
    assert helpers.run_folder(tmp_path / "other") == tmp_path / "other-2"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file/below.*set output_dir"):
        helpers.run_folder(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="output_dir is .*runs/faces"):
        helpers.run_folder(".")


# ------------------------------------------------------------------------------- files and pictures


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk is full") as caught, helpers.writing(path) as temporary:
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in str(caught.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with helpers.writing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_training_run_writes_all_its_files(tmp_path, capsys):
    generator = nn.Linear(2, 3)
    parts, settings = {"G_average": generator}, {"z_size": 2, "image_size": 32}
    distances = iter([0.5, 0.25, 0.75])
    samples = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    with helpers.TrainingRun(tmp_path / "run", 3, 2, parts, settings, blobs) as run:
        for epoch in run.epochs():
            for i, _ in enumerate(run.batches([torch.zeros(16, 1)] * 3)):
                run.end_batch(torch.tensor(epoch + 0.5), torch.tensor(i))
            nn.init.constant_(generator.weight, epoch)
            run.end_epoch(samples / epoch, lambda faces: {"swd": next(distances), "mean": 3.0})
    assert sorted(p.name for p in run.output_dir.glob("[!.]*")) == [
        "checkpoint-before.pt",
        "checkpoint.pt",
        "generator.safetensors",
        "generator_best.safetensors",
        "losses.csv",
        "measures.csv",
        "samples.npz",
        "samples_epoch_001.png",
        "samples_epoch_002.png",
        "samples_epoch_003.png",
    ]
    assert run.losses == [(epoch + 0.5, float(i)) for epoch in (1, 2, 3) for i in range(3)]
    measures = (run.output_dir / "measures.csv").read_text().split()
    assert measures == ["epoch,swd,mean", "1,0.5,3.0", "2,0.25,3.0", "3,0.75,3.0"]
    best = safetensors.torch.load_file(run.output_dir / "generator_best.safetensors")
    assert (best["weight"] == 2).all()  # of the epoch with the smallest distance
    with open(run.output_dir / "losses.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "batch", "d_loss", "g_loss"] and len(rows) == 10
    assert rows[5] == ["2", "1", "2.5", "1.0"]
    saved = np.load(run.output_dir / "samples.npz", allow_pickle=False)["samples"]
    assert saved.shape == (3, 4, 8, 8, 3) and saved.dtype == np.uint8
    assert (saved[0] == helpers.to_uint8(samples)).all()
    state = safetensors.torch.load_file(run.output_dir / "generator.safetensors")
    assert torch.equal(state["weight"], generator.weight)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert lines == [
        f"Epoch [    {epoch}/    3] | d_loss: {epoch + 0.5:.4f} | g_loss: {i}.0000"
        for epoch in (1, 2, 3)
        for i in (0, 2)
    ]


def test_pictures_are_laid_out_row_by_row(tmp_path):
    images = np.stack([np.full((4, 4, 3), 10 * i, dtype=np.uint8) for i in range(6)])
    grid = helpers.image_grid(images, columns=3)
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert [grid[2 + 6 * (i // 3), 2 + 6 * (i % 3), 0] for i in range(6)] == [0, 10, 20, 30, 40, 50]
    helpers.show_images(images, 3, tmp_path / "grid.png", row_labels=["one", "two"])
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == 1000


def test_the_animation_has_every_frame(tmp_path):
    frames = list(blobs(5, 20, 30, seed=0))
    helpers.save_animation(frames, tmp_path / "progress.gif")
    with Image.open(tmp_path / "progress.gif") as picture:
        assert (picture.n_frames, picture.size) == (5, (60, 40))


# ------------------------------------------------------------------------- a notebook's definitions


def test_only_definitions_of_a_notebook_run(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = [
        new_markdown_cell("# text"),
        new_code_cell("%matplotlib inline\nimport math\nimport beside\nsize = 2 * math.floor(4.2)"),
        new_code_cell("def double(x):\n    return 2 * x + size"),
        new_code_cell("made = double(1)\nmore = made + 1\nlong = beside.work()\nother = 3"),
        new_code_cell("raise SystemExit('this must not run')"),
    ]
    (tmp_path / "beside.py").write_text("def work():\n    raise SystemExit('nor this')\n")
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    module = helpers.load_definitions(tmp_path / "lesson.ipynb")
    assert module.double(1) == 10 and module.other == 3
    assert not {"made", "more", "long"} & set(vars(module))
    assert str(tmp_path) not in map(str, map(Path, sys.path))
