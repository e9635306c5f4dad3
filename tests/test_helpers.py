"""A notebook's definitions, settings, a training run's files."""

import csv
import errno
import inspect
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import blobs
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import helpers
from faces.files import atomic_write
from faces.notebook import RANGES, load_definitions, prepare
from faces.show import image_grid, layer_table
from faces.training import Run

# ------------------------------------------------------------------------- a notebook's definitions


def test_only_definitions_of_a_notebook_run(tmp_path):
    cells = [
        new_markdown_cell("# text"),
        new_code_cell("import math\nsize = 32  # pixels\nfloor = math.floor(4.2)\nprint(size)"),
        new_code_cell("class Twice:\n    by = 2\n\ndef double(x):\n    return Twice.by * x + size"),
        new_code_cell("made = double(1)\nother: int = 3\nlater: int\nsizes = {'a': [size, -1]}"),
        new_code_cell("raise SystemExit('this must not run')"),
        new_code_cell("built = double(start)", metadata={"tags": ["build"]}),
        new_code_cell("failures = 1\nimport no_such_module"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "solution.ipynb")
    notebook = load_definitions(tmp_path / "solution.ipynb")
    assert notebook.double(1) == 34 and notebook.other == 3 and notebook.math.pi > 3
    assert not {"floor", "made", "later", "sizes", "built"} & set(vars(notebook))
    assert inspect.getsource(notebook.double).startswith("def double(x):")
    assert sys.modules[notebook.double.__module__] is notebook
    with pytest.raises(AttributeError, match="does not define gone; .* could not be run .ModuleN"):
        _ = notebook.gone
    prepare(notebook, start=4, size=1)
    assert notebook.built == 9 and not hasattr(notebook, "made")


# --------------------------------------------------------------------------- tensors and images


def test_to_uint8_covers_the_whole_range():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert helpers.to_uint8(images)[:, 0, 0, 0].tolist() == [0, 128, 255]


def test_the_layer_table_counts_every_parameter():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 1)
    )
    table = layer_table(network, torch.rand(2, 3, 8, 8)).splitlines()
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

PRESETS = {
    "full": {"idea": "r1", "max_images": None, "n_epochs": 28},
    "quick": {"idea": "", "max_images": 10_000, "n_epochs": 2},
    "reference": {"idea": "", "max_images": None, "n_epochs": 28, "ema_decay": 0.0},
}
GIVEN = dict(max_images=None, n_epochs=5, d_conv_dim=8, g_conv_dim=8, image_size=48, batch_size=2)
GIVEN |= dict(z_size=1, d_lr=2e-4, g_lr=0.01, beta1=0.0, ema_decay=0.999, seed=0)
GIVEN |= dict(resume=True, skip_broken=False, accelerate=True)
OTHERS = dict(idea="", data_dir="faces", output_dir="runs/faces")


@pytest.mark.parametrize(
    ("preset", "accelerator", "variable", "expected"),
    [
        ("full", False, "quick", "full"),
        ("quick", True, "full", "quick"),
        ("auto", False, "", "quick"),
        ("auto", True, "", "full"),
        ("auto", False, "full", "full"),
        ("reference", False, "", "reference"),
    ],
)
def test_the_preset_is_chosen_and_said(
    monkeypatch, capsys, preset, accelerator, variable, expected
):
    device = torch.device("cuda", 0) if accelerator else torch.device("cpu")
    monkeypatch.setattr("faces.notebook.find_device", lambda: device)
    monkeypatch.setenv("FACES_PRESET", variable)
    given = GIVEN | OTHERS | {"idea": None, "something_else": 1}
    settings = helpers.choose_settings(preset, PRESETS, given)
    decided = {"idea": PRESETS[expected]["idea"], "max_images": PRESETS[expected]["max_images"]}
    if expected == "reference":  # what only this one lists is a part of it
        decided["ema_decay"] = 0.0
    assert settings == GIVEN | decided and list(settings) == [*RANGES, "idea"]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"preset {expected} (")
    assert lines == [f"  {name} = {value or repr(value)}" for name, value in decided.items()]


@pytest.mark.parametrize("preset", ["fast", None, 3, ["full"], "a\0b"])
def test_an_unknown_preset_is_named_with_the_other_settings(preset):
    given = GIVEN | OTHERS | {"idea": None, "d_lr": 1}
    with pytest.raises(ValueError) as caught:
        helpers.choose_settings(preset, PRESETS, given)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"preset is {preset!r} (") and "auto, full, quick, reference" in first
    assert second.startswith("d_lr is 1: ")


def test_whole_numbers_are_fractions_too():
    given = GIVEN | OTHERS | {"beta1": 0, "ema_decay": 0}
    settings = helpers.choose_settings("full", PRESETS, given)
    assert all(type(settings[name]) is float for name in ("beta1", "ema_decay", "d_lr", "g_lr"))
    assert settings == GIVEN | {"idea": "", "ema_decay": 0.0}
    torch.optim.Adam([torch.ones(1)], settings["d_lr"], (settings["beta1"], 0.999))


@pytest.mark.parametrize("name", ["data_dir", "output_dir"])
@pytest.mark.parametrize("value", [None, 0.5, True, ["a"], b"a", "~no-such-user/x", "a\0b"])
def test_what_is_no_path_is_named_with_the_other_settings(name, value):
    given = GIVEN | OTHERS | {name: value, "seed": -1}
    with pytest.raises(ValueError) as caught:
        helpers.choose_settings("full", PRESETS, given)
    first, second = str(caught.value).splitlines()
    assert first.startswith("seed is -1: ")
    assert second.startswith(f"{name} is {value!r}: it must be a path in quotation marks")


def test_a_name_of_digits_that_became_a_number_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = GIVEN | OTHERS | {"output_dir": 20261129}
    assert helpers.choose_settings("full", PRESETS, given) == GIVEN | {"idea": ""}
    assert Run(given["output_dir"]).folder == Path("20261129")


def test_all_settings_out_of_range_are_named():
    assert helpers.choose_settings("full", PRESETS, GIVEN | OTHERS) == GIVEN | {"idea": ""}
    wrong = dict(max_images=3, n_epochs=0.5, d_conv_dim=0, g_conv_dim="64", image_size=40)
    wrong |= dict(batch_size=1, z_size=True, d_lr=0.02, g_lr=None, beta1=1)
    wrong |= dict(ema_decay=float("nan"), seed="one", resume=1, skip_broken=None, accelerate="yes")
    assert list(wrong) == list(GIVEN) == list(RANGES)
    with pytest.raises(ValueError) as caught:
        helpers.choose_settings("full", PRESETS, wrong | OTHERS)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == list(wrong)
    wrong = dict(image_size=16, seed=2**63, ema_decay=-0.1, d_lr=True, beta1=False)
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{name} is {value}: it must be [^\n]*$"):
            helpers.choose_settings("full", PRESETS, GIVEN | OTHERS | {name: value})


@pytest.mark.parametrize(
    "output_dir", ["faces", "faces/runs/one", "here/../faces/out", Path("faces/x")]
)
def test_results_among_the_images_are_refused(tmp_path, monkeypatch, output_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    (tmp_path / "link").symlink_to("faces")
    for data_dir in ("faces", tmp_path / "link"):
        given = GIVEN | dict(idea="", data_dir=data_dir, output_dir=output_dir)
        with pytest.raises(ValueError, match="output_dir is .*which lies in data_dir"):
            helpers.choose_settings("full", PRESETS, given)
    for data_dir in ("faces.zip", "faces/runs/two", "face"):
        given = GIVEN | dict(idea="", data_dir=data_dir, output_dir=output_dir)
        assert helpers.choose_settings("full", PRESETS, given) == GIVEN | {"idea": ""}


@pytest.mark.parametrize("idea", ["flop", "flips+flop", "nowhere.py", 3, True])
def test_an_idea_that_is_not_there_is_named_with_the_settings(idea):
    with pytest.raises(ValueError, match="^d_lr is .*\nThere is no idea '"):
        helpers.choose_settings("full", PRESETS, GIVEN | OTHERS | {"idea": idea, "d_lr": 1})


# ------------------------------------------------------------------------------- files and images


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk is full") as caught, atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in str(caught.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


class Painter(nn.Module):
    """Paints the same images from all latents, as bright as its weight says."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images = images
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.images[: len(z)] * self.weight


class Judge(nn.Module):
    """Gives photographs a probability of 0.75, and what ``Painter`` paints 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0).log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_painted = x.amax((1, 2, 3)) < 0.5
        return torch.where(is_painted, 0.0, self.weight)[:, None]


def test_a_training_run_writes_all_its_files(tmp_path, capsys):
    painted = torch.linspace(-1, 1, 30 * 3 * 8 * 8).view(30, 3, 8, 8)
    painter = Painter(painted)
    settings = {"z_size": 2, "idea": "", "g_lr": 1.0, "resume": True, "n_epochs": 3}
    batches = DataLoader(TensorDataset(torch.rand(48, 3, 8, 8), torch.zeros(48)), 16)
    distances = iter([0.5, 0.25, 0.75])

    def evaluator(faces: torch.Tensor) -> dict[str, float]:
        assert torch.equal(faces, painted[:20] * painter.weight) and not faces.requires_grad
        return {"swd": next(distances), "mean": 3.0}

    def loss(D, real_images, fake_images):
        return D(real_images).exp().mean() + D(fake_images).neg().exp().mean()

    run = Run(tmp_path / "run")
    parts = {"D": Judge(), "G": Painter(painted), "G_ema": painter}
    with run.start(3, parts, settings, blobs, loss):
        for epoch in run.epochs():
            for i, (images, z) in enumerate(run.batches(batches, lambda n: torch.ones(n, 2))):
                assert torch.equal(images, batches.dataset.tensors[0][16 * i : 16 * (i + 1)])
                assert torch.equal(z, torch.ones(16, 2)) and run.n_steps == 3 * (epoch - 1) + i
                run.end_batch(torch.tensor(epoch + 0.5), torch.tensor(i))
            painter.weight.data.fill_(1 / epoch)
            run.end_epoch(painter, torch.ones(20, 2), evaluator)
    assert sorted(p.name for p in run.folder.glob("[!.]*")) == [
        "checkpoint-before.pt",
        "checkpoint.pt",
        "generator.safetensors",
        "losses.csv",
        "measures.csv",
        "samples.npz",
        "samples_epoch_001.png",
        "samples_epoch_002.png",
        "samples_epoch_003.png",
    ]
    assert run.losses == [(epoch + 0.5, float(i)) for epoch in (1, 2, 3) for i in range(3)]
    measures = (run.folder / "measures.csv").read_text().split()
    assert measures == ["epoch,swd,mean", "1,0.5,3.0", "2,0.25,3.0", "3,0.75,3.0"]
    with open(run.folder / "losses.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "batch", "d_loss", "g_loss"] and len(rows) == 10
    assert rows[5] == ["2", "1", "2.5", "1.0"]
    saved = np.load(run.folder / "samples.npz", allow_pickle=False)["samples"]
    assert saved.shape == (3, 16, 8, 8, 3) and saved.dtype == np.uint8
    assert all((saved[i] == helpers.to_uint8(painted[:16] / (i + 1))).all() for i in range(3))
    with Image.open(run.folder / "samples_epoch_002.png") as image:
        assert (np.asarray(image) == image_grid(saved[1], columns=8)).all()
    state = safetensors.torch.load_file(run.folder / "generator.safetensors")
    assert torch.equal(state["weight"], painter.weight)
    with safetensors.safe_open(run.folder / "generator.safetensors", "pt") as opened:
        kept = {n: value for n, value in opened.metadata().items() if n != "checksum"}
    assert kept == {"z_size": "2", "idea": "", "g_lr": "1.0"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert lines == [
        f"Epoch [    {epoch}/    3] | d_loss: {epoch + 0.5:.4f} | g_loss: 1.0000"
        " | D(x): 0.75 | D(G(z)): 0.50"
        for epoch in (1, 2, 3)
    ]


def test_images_are_laid_out_row_by_row(tmp_path):
    images = np.stack([np.full((4, 4, 3), 10 * i, dtype=np.uint8) for i in range(6)])
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert [grid[2 + 6 * (i // 3), 2 + 6 * (i % 3), 0] for i in range(6)] == [0, 10, 20, 30, 40, 50]
    larger = image_grid(images, columns=3, scale=3)  # each alone, so that the frames stay white
    assert larger.shape == (2 * 14 + 2, 3 * 14 + 2, 3)
    assert set(np.unique(larger)) == {0, 10, 20, 30, 40, 50, 255}
    helpers.show_images(images, 3, tmp_path / "grid.png", row_labels=["one", "two"])
    with Image.open(tmp_path / "grid.png") as image:  # four times as large, and room for the labels
        assert image.size == (3 * 18 + 2 + 110, 2 * 18 + 2)
