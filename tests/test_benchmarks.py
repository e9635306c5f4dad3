"""The benchmarks, at a tiny size: what they count and report."""

import importlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

import helpers


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder from which Python imports, as when one of its scripts runs."""
    monkeypatch.syspath_prepend(helpers.HERE / "benchmarks")


@pytest.fixture
def throughput() -> types.ModuleType:
    return importlib.import_module("throughput")


def test_both_loops_are_measured(throughput, tmp_path, capsys):
    target = tmp_path / "speed.json"
    options = ["--device", "cpu", "--images", "20", "--batch-size", "8", "--rounds", "1"]
    throughput.main([*options, "--precision", "float32", "--json", str(target)])
    printed = capsys.readouterr().out
    figures = json.loads(target.read_text())
    for name in ("reference", "notebook"):
        speed = figures[name]
        assert speed["images_per_s"] == pytest.approx(20 / (3 * speed["ms_per_step"] / 1000))
        assert 0 < speed["share_of_peak"] < 1 and name in printed
        rate = speed["gflop_per_step"] / 8 * speed["images_per_s"] / 1000
        assert speed["tflops"] == pytest.approx(rate)
    ratio = figures["notebook"]["images_per_s"] / figures["reference"]["images_per_s"]
    assert figures["ratio"] == pytest.approx(ratio)
    # Multiply-adds of each network's layers for one image, forwards.
    first = 3 * 64 * 16 * 16**2  # between the picture and 64 channels
    between = 3 * 64 * 128 * 16 * 8**2  # three layers with as many each
    d, g = first + between + 2048, 100 * 2048 + between + first
    fc = 100 * 2048  # G's first layer: the latents need no gradient
    # Each loop: forwards, backwards for D's step, for G's step. A pass back costs two forwards, one
    # for the weights and one for the input.
    reference = (3 * d + 2 * g) + (4 * d - first + 2 * g - fc) + (2 * d + 2 * g - fc)
    notebook = (3 * d + g) + (4 * d - 2 * first) + (d + 2 * g - fc)
    work = {"reference": reference, "notebook": notebook}
    for name, operations in work.items():
        expected = 8 * 2 * operations / 1e9
        assert figures[name]["gflop_per_step"] == pytest.approx(expected, rel=1e-3), name
    total = figures["notebook"]["gflop_per_step"] / 8 * 89_931 * 20 / 1e6
    assert figures["budget"]["petaflop_20_epochs_of_89931_images"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "100"], "at least two batches"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--data-dir", ".", "--images", "512"], "holds 1 images"),
    ],
)
def test_wrong_options_are_named(throughput, tmp_path, monkeypatch, capsys, arguments, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        throughput.main(arguments)
    assert message in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(throughput, capsys):
    with pytest.raises(SystemExit):
        throughput.main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["throughput", "ablations"])
def test_each_benchmark_runs_as_a_script(tmp_path, name):
    script = helpers.HERE / "benchmarks" / f"{name}.py"
    command = [sys.executable, script, "--batch-size", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--batch-size must be at least" in done.stderr


# ------------------------------------------------------------------------------------- ablations


@pytest.fixture
def ablations() -> types.ModuleType:
    return importlib.import_module("ablations")


def leave_results(folder: Path, n_steps: int) -> None:
    """As if a run had trained there: the shipped weights, and the losses of its steps."""
    (folder / "faces").mkdir(parents=True, exist_ok=True)
    shutil.copy(helpers.WEIGHTS, folder / "faces" / "generator.safetensors")
    lines = "epoch,batch,d_loss,g_loss\n" + "1,0,1,1\n" * n_steps
    (folder / "faces" / "losses.csv").write_text(lines)


def test_each_idea_is_a_change_of_the_notebooks_settings(ablations):
    presets = helpers.load_definitions().presets
    options = ablations.options_of([])
    reference = ablations.settings_of("reference", 1, options)
    assert reference["seed"] == 1 and reference["preset"] == "reference"
    for idea, change in ablations.IDEAS.items():
        settings = ablations.settings_of(idea, 1, options)
        known = presets["reference"].keys() | {"preset", "seed", "image_size"}
        assert settings.keys() <= known, idea
        if idea == "best recipe":
            change = {n for n, v in presets["full"].items() if presets["reference"][n] != v}
        changed = {n for n in settings if settings[n] != reference.get(n)}
        assert changed == set(change)
        assert bool(changed - {"image_size"}) == (idea not in ("reference", "64x64 pixels"))
        recipe = changed - {"image_size", *ablations.SIZES}
        assert all(presets["reference"][n] != settings[n] for n in recipe)
    twice = ablations.settings_of("batches twice as large", 0, options)
    assert twice["batch_size"] == 64 and isinstance(twice["batch_size"], int)


def test_results_are_added_and_not_made_twice(ablations, image_dir, tmp_path, monkeypatch, capsys):
    made, runs = [], []

    def run_notebook(settings, folder, data_dir, threads):
        made.append(settings)
        runs.append(folder)
        if len(made) == 3:
            (folder / "faces").mkdir(parents=True)
            (folder / "faces" / "checkpoint.pt").touch()
            raise RuntimeError("a cell failed")
        leave_results(folder, 12)
        return 1.5

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    arguments = ["--data-dir", str(image_dir), "--work-dir", str(tmp_path / "runs")]
    arguments += ["--csv", str(tmp_path / "table.csv"), "--figure", str(tmp_path / "figure.png")]
    arguments += ["--ideas", "reference", "flips"]
    n = len(helpers.find_images(image_dir, part="training"))
    with pytest.raises(RuntimeError, match="1 of 4 runs failed"):
        ablations.main(arguments)
    assert "A run failed: a cell failed" in capsys.readouterr().err
    assert len(made) == 4 and len(ablations.read_rows(tmp_path / "table.csv")) == 4
    ablations.main(arguments)
    assert len(made) == 5 and made[4] == made[2]  # the one that had failed
    rows = ablations.read_rows(tmp_path / "table.csv")
    assert [row["idea"] for row in rows] == [
        "real faces",
        "reference",
        "flips",
        "flips",
        "reference",
    ]
    assert [row["seconds"] for row in rows[1:]] == ["1.5"] * 3 + [""]  # it had begun before
    assert {row["updates"] for row in rows[1:]} == {"12"} and rows[1]["images"] == str(4 * n)
    assert all(0 < float(row["swd"]) < 1000 and 0 < float(row["diversity"]) < 1 for row in rows)
    assert json.loads(rows[2]["settings"])["flips"] is True
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500
    assert "reference, seed 1, updates 12" in capsys.readouterr().out
    Image.new("RGB", (64, 64)).save(helpers.find_images(image_dir, part="training")[0])
    ablations.main(arguments)
    assert len(made) == 9  # of other images, everything is missing
    assert len(set(runs)) == 8  # and each has a folder of its own


def test_runs_of_each_seeds_own_subset_are_drawn(ablations, image_dir, tmp_path, monkeypatch):
    drawn = []

    def run_notebook(settings, folder, data_dir, threads):
        leave_results(folder, 1)
        return 1.0

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    monkeypatch.setattr(ablations, "draw", lambda rows, path: drawn.append(rows))
    arguments = ["--data-dir", str(image_dir), "--work-dir", str(tmp_path / "runs")]
    arguments += ["--csv", str(tmp_path / "table.csv"), "--ideas", "flips", "--max-images", "30"]
    ablations.main(arguments)
    ablations.main([*arguments, "--epochs", "2"])  # of another length, so in a figure of their own
    for n_epochs, (real, *runs) in zip((4, 2), drawn, strict=True):
        assert real["idea"] == "real faces" and sorted(row["seed"] for row in runs) == ["0", "1"]
        assert {json.loads(row["settings"])["n_epochs"] for row in runs} == {n_epochs}
        assert len({row["data"] for row in runs}) == 2


def test_pictures_of_64_are_measured_at_32(ablations, image_dir, tmp_path):
    lesson = helpers.load_definitions()
    G = lesson.Generator(10, 4, 64)
    settings = {"z_size": "10", "g_conv_dim": "4", "image_size": "64", "residual": "False"}
    safetensors.torch.save_file(G.state_dict(), tmp_path / "g.safetensors", settings)
    measured = ablations.Measures(image_dir, None, 0)(tmp_path / "g.safetensors")
    assert "swd_32" in measured and "swd_64" not in measured


def test_a_run_that_fails_is_named(ablations, tmp_path):
    with pytest.raises(RuntimeError, match="(?s)image_size is 48"):
        ablations.run_notebook({"image_size": 48}, tmp_path / "run", tmp_path / "nowhere", 1)
