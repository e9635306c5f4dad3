"""The notebook itself: what is committed, and what happens when it runs."""

import ast
import base64
import copy
import io
import math
import os
import re
import runpy
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

import nbconvert
import nbformat
import numpy as np
import papermill
import pytest
import safetensors
import torch
from conftest import blobs, shorten
from PIL import Image
from random_edits import find_cells, read_notebook, run
from torch import nn

from faces import files
from faces.generator import generate_faces
from faces.notebook import RANGES, load_definitions
from faces.show import write_images

NOTEBOOK = nbformat.read(files.NOTEBOOK, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
OUTPUTS = [output for cell in CODE for output in cell.outputs]
TEXTS = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
SAVING = files.HERE / ".ci" / "save_notebook.py"
TINY = dict(max_images=27, batch_size=8, d_conv_dim=8, g_conv_dim=8, n_epochs=2, idea="r1")


def is_photo(cell: nbformat.NotebookNode) -> bool:
    return "real-photos" in cell.metadata.get("tags", [])


def pictures(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs of a cell that are pictures."""
    return [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]


def pixels(png: str) -> bytes:
    """The colours of a picture (base64)."""
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").tobytes()


def is_alike(old: str, new: str) -> bool:
    """Whether a picture (base64) was kept, or, if it was large, has 256 colours that come close."""
    if len(old) <= runpy.run_path(str(SAVING))["LARGE"] or pixels(old) == pixels(new):
        return pixels(old) == pixels(new)
    a, b = (np.frombuffer(pixels(png), np.uint8).reshape(-1, 3).astype(int) for png in (old, new))
    return len(np.unique(b, axis=0)) <= 256 and np.abs(a - b).mean() < 5


def placeholder() -> bytes:
    """The colours of the picture that takes the place of photographs."""
    return runpy.run_path(str(SAVING))["placeholder"]().convert("RGB").tobytes()


# ------------------------------------------------------------------------------ as it is committed


def test_no_photograph_is_committed():
    photos, expected = list(filter(is_photo, CODE)), placeholder()
    assert len(photos) >= 3
    for cell in photos:
        (shown,) = (o for o in cell.outputs if o.output_type != "stream")
        assert set(shown.data) == {"image/png", "text/plain"}
        assert pixels(shown.data["image/png"]) == expected and shown.metadata.placeholder


def test_a_run_is_saved_without_photographs(executed, tmp_path):
    saved, instead = tmp_path / "saved.ipynb", placeholder()
    subprocess.run([sys.executable, SAVING, executed / "plain.ipynb", saved], check=True)
    before = nbformat.read(executed / "plain.ipynb", as_version=4).cells
    after = nbformat.read(saved, as_version=4).cells
    assert [cell.source for cell in after] == [cell.source for cell in before]
    for old, new in zip(before, after, strict=True):
        if new.cell_type != "code":
            continue
        assert new.execution_count == old.execution_count
        printed, data, seen, texts = [], [], [], []
        for cell in (old, new):
            printed.append("".join(o.text for o in cell.outputs if o.output_type == "stream"))
            data.append([o.data for o in cell.outputs if "data" in o and o not in pictures(cell)])
            seen.append([p.data["image/png"] for p in pictures(cell)])
            about = [p.metadata.get("image/png", {}) for p in pictures(cell)]
            texts.append([metadata.get("alt") for metadata in about])
        assert printed[0] == printed[1]
        if is_photo(new):
            assert seen[0] and list(map(pixels, seen[1])) == [instead]
            assert (data[1], texts[1]) == ([], [new.metadata.alt])
        else:
            assert data[1] == data[0] and len(seen[1]) == len(seen[0])
            assert all(map(is_alike, seen[0], seen[1]))
            assert texts[1] == [text or new.metadata.alt for text in texts[0]]
        assert [p.data["text/plain"] for p in pictures(new)] == texts[1]
    run = subprocess.run([sys.executable, SAVING, executed / "executed.ipynb", saved])
    assert run.returncode != 0  # it has settings of its own


def test_the_saved_outputs_are_one_clean_run():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert [o for o in OUTPUTS if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert any("image/png" in o.get("data", {}) for o in OUTPUTS)
    printed = "".join(o.get("text", "") for o in OUTPUTS)
    assert printed.count("Epoch [") >= 25 and printed.count("Tests Passed") >= 10
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in CODE)
    assert "/home/" not in printed and "/tmp/" not in printed


def test_it_is_readable_where_it_is_not_run():
    assert files.NOTEBOOK.stat().st_size < 5e6
    for output in OUTPUTS:
        kinds = set(output.get("data", {"text/plain": ""}))
        assert kinds & {"text/plain", "image/png"}
        assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert not any("get_ipython" in c.source or c.source.startswith(("%", "!")) for c in CODE)


def test_every_section_begins_with_text():
    for source in TEXTS:
        for below in re.split(r"^#+ .*\n?", source, flags=re.MULTILINE)[1:]:
            assert re.match(r"\s*([\w*>\"(]|!?\[)", below), source
    assert NOTEBOOK.cells[0].cell_type == "markdown"


def test_each_picture_has_its_own_text_in_its_place(executed):
    cells = nbformat.read(executed / "plain.ipynb", as_version=4).cells
    texts = [cell.metadata.get("alt", "") for cell in filter(pictures, cells)]
    assert len(texts) >= 15 and len(set(texts)) == len(texts)
    assert [text for text in texts if len(text) < 20] == []
    for picture in (picture for cell in CODE for picture in pictures(cell)):
        text = picture.metadata["image/png"]["alt"]
        assert len(text) >= 20 and picture.data["text/plain"] == text


def test_each_picture_is_followed_by_text(executed):
    cells = nbformat.read(executed / "plain.ipynb", as_version=4).cells
    for cell, *after in zip(cells, cells[1:], cells[2:], strict=False):
        if pictures(cell):
            answers = after.pop(0) if cell.id == "quiz" else None
            assert not answers or not pictures(answers)
            assert after[0].cell_type == "markdown", cell.source


def sentences(source: str) -> Iterator[str]:
    """The sentences of a text cell, without tables, headings, pictures and addresses."""
    text = re.sub(
        r"\$\$.*?\$\$|!\[[^\]]*\]\([^)]*\)|</?(details|summary)>", "\n\n", source, flags=re.S
    )
    text = re.sub(r"\$[^$]+\$", "x", re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=#|\||[-*] |\d+\. )", text):
        if not re.match(r"\s*(#|\||$)", paragraph):
            end = r"(?<=[.?!])[\"')*_]*\s+(?=[^a-z])"
            yield from (" ".join(sentence.split()) for sentence in re.split(end, paragraph))


def test_sentences_are_short():
    found = [sentence for source in TEXTS for sentence in sentences(source)]
    assert len(found) > 400
    assert [sentence for sentence in found if len(sentence.split()) > 45] == []


def test_what_unfolds_says_what_it_is():
    found = [tag for source in TEXTS for tag in re.findall(r"</?details>|</?summary>", source)]
    assert found == ["<details>", "<summary>", "</summary>", "</details>"] * (len(found) // 4)
    assert len(found) >= 4 * 10
    for source in TEXTS:  # what follows is shown as text, not as HTML, after an empty line
        assert source.count("</summary>\n\n") == source.count("<details>")


def test_settings_are_few_and_have_values():
    (cell,) = [c for c in CODE if "parameters" in c.metadata.get("tags", [])]
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert list(values.values()).count(None) == 5
    assert set(values) == {"data_dir", "output_dir", "preset", "idea", *RANGES}
    lines = [line for line in cell.source.splitlines() if not line.startswith("# ")]
    assert len(lines) == len(values) and all("  # " in line for line in lines)


# -------------------------------------------------------------------------------------- as it runs


def test_the_notebook_alone_says_what_it_needs(tmp_path):
    (first, *_) = [cell.source for cell in CODE if "import helpers" in cell.source]
    assert first == CODE[0].source
    command = [sys.executable, "-I", "-c", first]  # -I: without this project's folder
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"ModuleNotFoundError: This notebook needs .* clone .*\.", said), said
    path = f"import sys; sys.path.insert(0, {str(files.HERE)!r})\n"
    subprocess.run([sys.executable, "-I", "-c", path + first], cwd=tmp_path, check=True)


@pytest.mark.parametrize("bounds", [(0.0, 1.39), (math.nan, math.nan)])
def test_the_losses_are_shown_with_and_without_a_line_at_chance(tmp_path, bounds):
    (cell,) = [cell.source for cell in CODE if "run.loss_bounds" in cell.source]
    notebook = load_definitions()
    notebook.losses, notebook.output_dir = [(1.0, 2.0)] * 10, tmp_path
    notebook.run = types.SimpleNamespace(loss_bounds=bounds)
    exec(cell, vars(notebook))
    assert notebook.axis.get_ylim() == pytest.approx((0, 2.1))
    assert (tmp_path / "training_loss.png").is_file()
    notebook.plt.close("all")


@pytest.mark.parametrize("n_images", [4, 20])
def test_few_images_make_one_smaller_batch(tmp_path, n_images):
    write_images(blobs(n_images, 40, 40, seed=0), tmp_path / "images")
    sources = read_notebook(batch_size=32, n_epochs=1, max_images=None)
    ended = run(
        sources if n_images == 4 else sources[: find_cells(sources, "train")[0] + 1], tmp_path
    )
    assert ended.error is None, "".join(traceback.format_exception(ended.error))
    (n,) = re.findall(r"(\d+) images in 1 batches", ended.printed)
    assert f"a batch: ({n}, 3, 32, 32)" in ended.printed
    assert len(np.loadtxt(tmp_path / "run" / "losses.csv", delimiter=",", skiprows=1, ndmin=2)) == 1


def test_three_images_are_too_few_to_hold_some_out(tmp_path):
    write_images(blobs(3, 40, 40, seed=0), tmp_path / "images")
    ended = run(read_notebook(), tmp_path)
    assert str(ended.error) == "images holds 3 images: at least 4 are needed."


@pytest.mark.parametrize("image_size", [32, 48, 64, 112])
def test_the_networks_take_any_multiple_of_16(image_size):
    notebook = load_definitions()
    D, G = notebook.build_network(8, 4, 10, image_size=image_size)
    images = G(torch.rand(3, 10))
    assert images.shape == (3, 3, image_size, image_size) and D(images).shape == (3, 1)
    assert sum(isinstance(m, nn.Conv2d) for m in D.modules()) == 4
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in G.modules()) == 4


def is_marked(png: str) -> bool:
    """Whether a picture (base64) has the colours of the made-up images."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        red, green, blue = np.asarray(picture.convert("RGB"), dtype=int).transpose(2, 0, 1)
    magenta = (red > 200) & (green < 60) & (blue > 200)
    return bool(magenta.mean() > 0.005)


def write_short(path: Path) -> Path:
    """Write the notebook with a short training on the ring, and a short bare loop."""
    short = copy.deepcopy(NOTEBOOK)
    code = [cell for cell in short.cells if cell.cell_type == "code"]
    for cell, source in zip(code, shorten([cell.source for cell in code]), strict=True):
        cell.source = source
    nbformat.write(short, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook, run at a tiny size on made-up images; a folder with all that came of it.

    ``executed.ipynb`` comes from papermill; ``plain.ipynb`` is the same without its cell of
    settings. Every image is magenta on one side and green on the other, so that a picture that
    shows one is known by its colours, and their average is grey.
    """
    folder = tmp_path_factory.mktemp("räume mit leerzeichen")
    images = folder / "images" / "below"
    images.mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), "uint8")):
        pixels[:, :25] = (255, 0, 255) if i % 2 else (0, 255, 0)
        pixels[:, 25:] = (0, 255, 0) if i % 2 else (255, 0, 255)
        Image.fromarray(pixels).save(images / f"{i}.png")
    settings = TINY | dict(data_dir=str(images.parent), output_dir=str(folder / "out"))
    papermill.execute_notebook(
        write_short(folder / "short.ipynb"),
        folder / "executed.ipynb",
        parameters=settings,
        cwd=files.HERE,
        progress_bar=False,
    )
    plain = nbformat.read(folder / "executed.ipynb", as_version=4)
    plain.cells = [c for c in plain.cells if "injected-parameters" not in c.metadata.tags]
    nbformat.write(plain, folder / "plain.ipynb")
    return folder


def test_cells_that_show_training_images_are_tagged(executed):
    shown = [0, 0]
    for cell in nbformat.read(executed / "executed.ipynb", as_version=4).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert is_marked(output.data["image/png"]) == is_photo(cell), cell.source
                shown[is_photo(cell)] += 1
    assert shown[True] >= 3 and shown[False] >= 5


def test_a_run_writes_all_results(executed):
    out = executed / "out"
    names = {p.name for p in out.glob("[!.]*")} - {"directions.png"}  # if any are found
    assert sorted(names) == [
        "arithmetic.png",
        "checkpoint-before.pt",
        "checkpoint.pt",
        "generator.safetensors",
        "interpolation.png",
        "losses.csv",
        "measures.csv",
        "measures.png",
        "progress.gif",
        "result.png",
        "samples.npz",
        "samples_epoch_001.png",
        "samples_epoch_002.png",
        "training_loss.png",
    ]
    with np.load(out / "samples.npz", allow_pickle=False) as opened:
        assert opened["samples"].shape == (2, 16, 32, 32, 3)
        assert opened["samples"].dtype == np.uint8
        assert (opened["samples"][0] != opened["samples"][1]).any()
    losses = np.loadtxt(out / "losses.csv", delimiter=",", skiprows=1)
    assert losses[:, :2].tolist() == [[e, b] for e in (1, 2) for b in range(3)]
    assert (losses[:, 2:] > 0).all()
    with Image.open(out / "progress.gif") as picture:
        assert picture.n_frames == 2


def test_a_runs_weights_can_be_used(executed):
    weights = executed / "out" / "generator.safetensors"
    with safetensors.safe_open(weights, framework="np") as opened:
        metadata = opened.metadata()
        expected = {"z_size": "100", "g_conv_dim": "8", "image_size": "32", "idea": "r1"}
        assert metadata == metadata | expected | {"batch_size": "8", "beta1": "0.5"}
    assert generate_faces(2, seed=0, weights=weights).shape == (2, 32, 32, 3)


def test_a_run_says_what_it_does(executed):
    cells = nbformat.read(executed / "executed.ipynb", as_version=4).cells
    printed = "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
    assert "preset quick (auto: the device is cpu)" in printed or "preset full" in printed
    assert "30 images in images" in printed
    n, n_held_out = re.search(r"(\d+) images in 3 batches\n(\d+) images held out", printed).groups()
    assert int(n) + int(n_held_out) == 27 and int(n_held_out) >= 2
    assert len(re.findall(r"^Epoch \[    [12]/    2\] .* \| D\(G\(z\)\): 0", printed, re.M)) == 2
    assert printed.count("Tests Passed") >= 10
    (tested,) = [c for c in cells if c.source.startswith("tests.test_train(train)")]
    assert [o.get("text") for o in tested.outputs] == ["Tests Passed\n"]  # not train's live line
    (trained,) = [c for c in cells if "losses = train(D, G, n_epochs)" in c.source]
    line, picture = (o.data for o in trained.outputs if "data" in o)
    line, text = line["text/plain"], picture["text/plain"]
    assert "epoch 2 of 2" in line and "images/s" in line and "100%" in line and "left" in line
    assert text.startswith("Epoch 2 of 2, after 6 steps: 16 generated faces, ")
    assert "training images" in text and picture["image/png"]


def run_script(executed: Path, name: str, source: str, *command: str) -> tuple[str, np.ndarray]:
    """Run the exported script in float64; return what it printed, and its losses (n, 2)."""
    changes = {
        r'^output_dir = ".*out"': f"output_dir = {name!r}",
        r"^accelerate = True": "accelerate = False",
        r"^n_epochs = 2": "n_epochs = 7",
        # training in 64 bits, so that rounding stays far below what is compared
        r"^D, G = build_network.*": r"\g<0>\nD.double(), G.double()",
        r"^    real_images = scale.*": r"\g<0>\n    real_images, z = like(G, real_images, z)",
        r"^    fixed_z = sample_z.*": r"\g<0>\n    (fixed_z,) = like(G, fixed_z)",
        r"^def step\(": "def like(network, *tensors):\n"
        "    return [t.to(next(network.parameters()).dtype) for t in tensors]\n\n\n"
        r"\g<0>",
        r"^losses = train.*": r"\g<0>\nD.float()",
    }
    for pattern, new in changes.items():
        source, n = re.subn(pattern, new, source, flags=re.MULTILINE)
        assert n >= 1, pattern
    hidden = "import torch\n\ntorch.accelerator.current_accelerator = lambda *_, **__: None\n"
    (executed / f"{name}.py").write_text(hidden + source, encoding="utf-8")
    paths = {"PYTHONPATH": str(files.HERE), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, f"{name}.py"],
        cwd=executed,
        env=os.environ | paths | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line for line in run.stderr.splitlines() if "FutureWarning" in line] == []
    losses = np.loadtxt(executed / name / "losses.csv", delimiter=",", skiprows=1)
    return run.stdout, losses[:, 2:]


@pytest.mark.slow
def test_the_exported_script_runs_in_one_process_and_in_two(executed):
    source, _ = nbconvert.ScriptExporter().from_filename(executed / "executed.ipynb")
    printed, losses = run_script(executed, "one", source, sys.executable)
    assert len(losses) == 21 and printed.count("Epoch [") == 7
    assert printed.count("Tests Passed") >= 10
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    lines = re.findall(r"^Epoch \[.*", printed, re.M)
    printed, shared_losses = run_script(executed, "two", source, *torchrun)
    assert re.findall(r"^Epoch \[.*", printed, re.M) == lines  # the first process alone prints
    assert np.abs(losses - shared_losses)[:20].max() < 1e-6
    files_written = [{p.name for p in (executed / n).glob("[!.]*")} for n in ("one", "two")]
    assert files_written[0] == files_written[1] and "interpolation.png" in files_written[0]
    # What two wrote, one can read; nothing but the training is run for it.
    training = source.split("## Your faces")[0]
    training = re.sub(r"^( *)tests\.test_.*", r"\1pass", training, flags=re.MULTILINE)
    printed, resumed_losses = run_script(executed, "two", training, sys.executable)
    assert "nothing is left to train" in printed
    assert (resumed_losses == shared_losses).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 40}, "image_size is 40"),
        ({"preset": "fast"}, "preset is 'fast'"),
        ({"output_dir": "/dev/null/out"}, "Set output_dir to a folder"),
        ({"data_dir": "nowhere.zip"}, "nowhere.zip"),
    ],
)
def test_a_wrong_setting_is_named_before_the_data_are_read(tmp_path, settings, message):
    tags = [cell.metadata.get("tags", []) for cell in CODE]
    first, *others = CODE[tags.index(["parameters"]) : tags.index(["real-photos"])]
    notebook = load_definitions()
    exec(first.source, vars(notebook))
    vars(notebook).update(TINY | dict(output_dir=str(tmp_path / "out")) | settings)
    with pytest.raises((OSError, ValueError), match=message):
        for cell in others:
            exec(cell.source, vars(notebook))


@pytest.mark.slow
def test_a_wrong_setting_ends_a_run_before_training(executed, tmp_path):
    places = dict(data_dir=str(executed / "images"), output_dir=str(tmp_path / "out"))
    with pytest.raises(papermill.PapermillExecutionError, match="There is no idea 'flop'"):
        papermill.execute_notebook(
            executed / "short.ipynb",
            None,
            parameters=TINY | places | {"idea": "flop"},
            cwd=files.HERE,
            progress_bar=False,
        )
    assert not (tmp_path / "out").exists()
