"""Weights to faces: the shipped ones without the notebook, others by its Generator; odd files."""

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from faces.files import HERE, NOTEBOOK, WEIGHTS, WEIGHTS_64
from faces.generator import generate_faces, read_weights, write_weights
from faces.images import to_uint8
from faces.notebook import apply_idea, load_definitions
from faces.properties import ita_shares

SIZES = {"z_size": "10", "g_conv_dim": "8", "image_size": "32"}


def write_small(path: Path, idea: str = "") -> Path:
    """Write a file of a small generator's weights, as a run does."""
    notebook = load_definitions()
    apply_idea(idea, notebook)
    torch.manual_seed(0)
    _, G = notebook.build_network(8, 8, 10)
    nn.init.normal_(G.deconv4.weight)  # else its faces are nearly grey
    write_weights(path, G.state_dict(), SIZES | {"idea": idea})
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_small(tmp_path / "generator.safetensors")


# ------------------------------------------------------------------------------- shipped weights


def test_the_same_seed_gives_the_same_faces():
    faces = generate_faces(3, seed=1)
    assert faces.shape == (3, 32, 32, 3) and faces.dtype == np.uint8
    assert (faces == generate_faces(3, seed=1)).all()
    assert (faces != generate_faces(3, seed=2)).any()
    assert len(np.unique(faces, axis=0)) == 3


def test_smaller_faces_are_the_larger_ones_reduced(weights):
    large = generate_faces(3, 1, WEIGHTS_64)
    assert (generate_faces(3, 1, size=64) == large).all()
    small = generate_faces(3, 1, size=32)
    assert small.shape == (3, 32, 32, 3) and small.dtype == np.uint8
    for before, after in zip(large, small, strict=True):  # as the photographs were reduced
        reduced = np.asarray(Image.fromarray(before).resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(reduced.astype(np.int16) - after).max() <= 1
    assert generate_faces(2, 1, weights, size=20).shape == (2, 20, 20, 3)
    few = generate_faces(6, 1, balanced=True, size=32)
    assert few.shape == (6, 32, 32, 3) and len(set(ita_shares(few).values())) == 1


@pytest.mark.parametrize(("size", "most"), [(65, 64), (0, 64), ("32", 64), (48.0, 64), (33, 32)])
def test_a_size_that_cannot_be_is_named(size, most):
    weights = WEIGHTS if most == 32 else None
    with pytest.raises(
        ValueError, match=f"^size is .*: it must be a whole number from 1 to {most}"
    ):
        generate_faces(1, 0, weights, size=size)


def test_drawing_faces_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate_faces(1, seed=0)
    assert torch.rand(1) == expected


def test_shipped_weights_need_neither_the_notebook_nor_ideas(tmp_path):
    project, folder = tmp_path / "project", tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copytree(HERE / "faces", project / "faces")
    shutil.copy(HERE / "problem_unittests.py", project)
    (project / "assets").mkdir()
    shutil.copy(WEIGHTS, project / "assets")
    (project / NOTEBOOK.name).write_text("no notebook at all")
    code = "from faces.__main__ import main\n"
    code += "exit(main('draw --n 4 --seed 1 --out faces.npy'.split()) or "
    code += "main('walk --seeds 1 2 --out walk.gif'.split()))"
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (np.load(folder / "faces.npy") == generate_faces(4, seed=1)).all()
    assert sorted(path.name for path in folder.iterdir()) == ["faces.npy", "walk.gif"]


@pytest.mark.parametrize("path", [WEIGHTS, WEIGHTS_64])
def test_shipped_weights_draw_what_the_notebooks_generator_draws(tmp_path, path):
    state, metadata = read_weights(path)
    assert metadata.pop("architecture") == "DCGAN"
    write_weights(tmp_path / "own.safetensors", state, metadata)
    own = generate_faces(3, 5, tmp_path / "own.safetensors")
    assert (own == generate_faces(3, 5, path)).all()


def test_weights_are_shipped_if_they_draw_the_same_without_the_notebook(tmp_path, weights):
    ship = runpy.run_path(str(HERE / ".ci" / "ship_weights.py"))["main"]
    (tmp_path / "assets").mkdir()
    target = tmp_path / "assets" / "shipped.safetensors"
    ship(str(weights), str(target))
    state, metadata = read_weights(target)
    assert metadata["architecture"] == "DCGAN" and state["fc.weight"].dtype == torch.float16
    shipped = target.read_bytes()
    with pytest.raises(ValueError, match="deconv1.2.*is in the file only"):
        ship(str(write_small(weights, "deeper")), str(target))
    with pytest.raises(SystemExit, match="shipped.safetensors is left as it is"):
        ship(str(write_small(weights, "normal_latents")), str(target))
    assert target.read_bytes() == shipped and list(target.parent.iterdir()) == [target]


# ------------------------------------------------------------------------- the notebook's Generator


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an edited notebook in the place of the project's: a cell more, or other text."""

    def edit(source: str = "", place: int | None = 0, old: str = "", new: str = "") -> None:
        content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            if old and old in "".join(cell["source"]):
                cell["source"] = "".join(cell["source"]).replace(old, new)
        cell = {"cell_type": "code", "metadata": {}, "source": source}
        cells = content["cells"]
        cells.insert(len(cells) if place is None else place, cell)
        path = tmp_path / "edited.ipynb"
        path.write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr("faces.generator.load_definitions", partial(load_definitions, path))

    return edit


FIRST = [
    "%matplotlib inline\n%load_ext autoreload\nimport math",
    "!nvidia-smi",
    "x = !ls",
    "%%bash\nls | grep (",
    "torch.nn?",
    "def half_written(x:",
    "if True:\n    x = 2\n  y = 3",
    "import a_module_that_is_not_there",
    "def late(x=defined_later):\n    return x",
    'settings["n_epochs"] = 3',
    "def draw(n):\n    return n",
]
LAST = ["nn = 2", "def sample_z():\n    pass", "class Generator:\n    pass"]


@pytest.mark.parametrize(
    ("source", "place"), [(cell, 0) for cell in FIRST] + [(cell, None) for cell in LAST]
)
def test_what_is_not_needed_of_a_notebook_costs_no_faces(weights, edit, source, place):
    expected = generate_faces(2, 0, weights)
    edit(source, place)
    assert (generate_faces(2, 0, weights) == expected).all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import copy\n", "%matplotlib inline\nimport not_there\nimport copy\n"),
        ("class Generator(", "%%time\n\nclass Generator("),
        ("def sample_z(", "%%capture out\n!pip list\n\ndef sample_z("),
        ("side = image_size // 16", "side = int(torch.tensor(image_size)) // 16"),
    ],
    ids=["a magic among imports", "a cell that is timed", "output kept", "values are read"],
)
def test_a_changed_cell_still_defines_what_is_needed(weights, edit, old, new):
    expected = generate_faces(2, 0, weights)
    edit(old=old, new=new)
    assert (generate_faces(2, 0, weights) == expected).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def deconv(", "def deconv((", "'deconv' is not defined; .*cell 45 .*SyntaxError: "),
        ("def build_network(", "def build(", "not define build_network$"),
        ("class Generator(", "class Generator((", "'Generator' is not .*cell 46 could not"),
        (
            "self.fc = ",
            "self.deconv0 = deconv(3, 3)\n        self.fc = ",
            "deconv0.0.weight is miss",
        ),
        ("conv_dim * 4, conv_dim * 2)  #  ", "conv_dim * 4, conv_dim)  # ", r"deconv2.*\(32, 8, "),
        ("unflatten(1, self.start)", "flatten(2, 1)", "IndexError: "),
    ],
)
def test_what_is_needed_and_cannot_be_had_is_named(weights, edit, old, new, message):
    edit(old=old, new=new)
    message = (
        f"generator.safetensors does not hold weights of the notebook's Generator: .*{message}"
    )
    with pytest.raises(ValueError, match=message):
        generate_faces(1, 0, weights)


@pytest.mark.parametrize("idea", ["{}", "flips+{}", "{}+flips", "../mine", "mine.py", "no_such"])
def test_weights_run_no_code_outside_the_folder_of_ideas(tmp_path, monkeypatch, weights, idea):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.py"
    mine.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef patch(notebook):\n    pass\n")
    state, _ = read_weights(weights)
    write_weights(weights, state, SIZES | {"idea": idea.format(mine)})
    with pytest.raises(ValueError, match="generator.safetensors.*idea"):
        generate_faces(1, seed=0, weights=weights)
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------- files of weights


def test_a_flipped_bit_in_weights_is_found(weights):
    whole, chance = weights.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(20):
        content, place = bytearray(whole), chance.randrange(start, len(whole))
        content[place] ^= 1 << chance.randrange(8)
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="generator.safetensors.*checksum does not fit"):
            generate_faces(1, seed=0, weights=weights)
    weights.write_bytes(whole.replace(b'"z_size":"10"', b'"z_size":"11"'))
    with pytest.raises(ValueError, match="checksum does not fit"):
        generate_faces(1, seed=0, weights=weights)


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


def test_a_file_that_is_none_of_weights_is_named(weights):
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="generator.safetensors does not hold .* of a generator: "):
        generate_faces(1, 0, weights)
    weights.unlink()
    for path in (weights, weights.parent):
        with pytest.raises(FileNotFoundError, match="There is no file .*: train first"):
            generate_faces(1, 0, path)


@pytest.mark.parametrize("architecture", [{}, {"architecture": "DCGAN"}])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g_conv_dim": str(10**30)}, "g_conv_dim is '1000.*0000': it must be a whole number"),
        ({"g_conv_dim": str(10**17)}, "g_conv_dim is 10+, but the file has only [0-9,]+ numbers"),
        # which would take 3 TB
        ({"g_conv_dim": "40000"}, r"fc.weight is .* \(256, 10\), where .* \(1280000, 10\)"),
        ({"z_size": "700"}, r"fc.weight is torch.float32 \(256, 10\), where .* \(256, 700\)"),
        ({"z_size": "9" * 10**7}, "z_size is '99999.*9999': it must be a whole number"),
        ({"image_size": "33"}, "image_size is '33': it must be a multiple of 16, at least 32$"),
        ({"image_size": ""}, "image_size is '': it must be a multiple of 16"),
        ({"image_size": "many"}, "image_size is 'many': it must be a multiple of 16"),
    ],
)
def test_sizes_that_are_not_the_files_are_named(weights, change, message, architecture):
    state, _ = read_weights(weights)
    write_weights(weights, state, SIZES | architecture | change)
    with pytest.raises(ValueError, match=f"generator.safetensors.*: {message}") as caught:
        generate_faces(1, 0, weights)
    assert len(str(caught.value)) < 400


def test_an_endless_idea_is_not_repeated(weights):
    write_weights(weights, read_weights(weights)[0], SIZES | {"idea": "a" * 10**7})
    with pytest.raises(ValueError, match="trained with 'aaa.*', which is not in ideas/") as caught:
        generate_faces(1, 0, weights)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("architecture", [{}, {"architecture": "DCGAN"}])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fc.weight", lambda x: x * float("nan"), "fc.weight has values that are not finite"),
        ("fc.weight", lambda x: x.half() / 0, "fc.weight has values that are not finite"),
        ("fc.weight", lambda x: x.double(), r"fc.weight is torch.float64 \(256, 10\), where"),
        ("fc.weight", lambda x: (x * 100).to(torch.int8), "fc.weight is torch.int8"),
        ("deconv1.1.running_var", lambda x: -x, "it draws NaN: a variance is below 0"),
    ],
)
def test_weights_that_draw_no_faces_are_named(weights, name, change, message, architecture):
    state, _ = read_weights(weights)
    write_weights(weights, state | {name: change(state[name])}, SIZES | architecture)
    with pytest.raises(ValueError, match=f"generator.safetensors.*: {message}"):
        generate_faces(1, seed=0, weights=weights)


@pytest.mark.parametrize("n", [0, -1, 4.0, 10**9, "4", None])
def test_a_number_of_faces_that_cannot_be_is_named(n):
    message = r"^n is .*: it must be a whole number from 1 to 100,000\.$"
    with pytest.raises(ValueError, match=message):
        generate_faces(n, seed=0)


def test_many_faces_are_drawn_in_parts(weights, monkeypatch):
    sizes = []
    monkeypatch.setattr("faces.generator.to_uint8", lambda x: sizes.append(len(x)) or to_uint8(x))
    faces = generate_faces(np.int64(1100), seed=0, weights=weights)
    assert sizes == [100] * 11
    assert len(np.unique(faces, axis=0)) == 1100
