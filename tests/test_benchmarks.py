"""The benchmarks, at a tiny size: what they count and report."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from conftest import COLORS, plain_faces
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

import helpers
from benchmarks import ablation_table, ablations, classes, features, last_batch, machine, throughput
from benchmarks import time_to_quality as quality
from faces.files import HERE, WEIGHTS
from faces.notebook import load_definitions


def test_both_loops_are_measured(tmp_path, capsys):
    target = tmp_path / "speed.json"
    options = ["--device", "cpu", "--images", "20", "--batch-size", "8", "--rounds", "1"]
    options += ["--precision", "float32", "--busy", "1", "--json", str(target)]
    throughput.main(options)
    printed = capsys.readouterr().out
    figures = json.loads(target.read_text())
    # Batches of 8, 8 and 4 images; the notebook's loop leaves out the last. Half are not timed.
    for name, n_images, n_steps in (("reference", 12, 2), ("notebook", 8, 1)):
        speed = figures[name]
        seconds = n_steps * speed["ms_per_step"] / 1000
        assert speed["images_per_s"] == pytest.approx(n_images / seconds)
        assert 0 < speed["share_of_peak"] < 1 and name in printed
        assert speed["precision"] == "float32"
        rate = speed["gflop_per_step"] / 8 * speed["images_per_s"] / 1000
        assert speed["tflops"] == pytest.approx(rate)
        assert speed["share_of_peak"] == pytest.approx(rate / speed["peak_tflops"])
    ratio = figures["notebook"]["images_per_s"] / figures["reference"]["images_per_s"]
    assert figures["ratio"] == pytest.approx(ratio)
    assert figures["options"]["busy"] == 1 and "1 busy processes beside them" in printed
    assert "s; beside an epoch's steps: " in printed
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "100"], "at least two batches"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--busy", "-1"], "--busy must be at least 0"),
        (["--data-dir", ".", "--images", "512"], "holds 1 images"),
    ],
)
def test_wrong_options_are_named(tmp_path, monkeypatch, capsys, arguments, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        throughput.main(arguments)
    assert message in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        throughput.main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("throughput", ["--batch-size", "0"], "--batch-size must be at least"),
        (
            "ablations",
            ["--seeds", "0"],
            "--seeds, --epochs, --conv-dim and --jobs must be at least",
        ),
        ("last_batch", ["runs/plain"], "required: runs"),
        ("classes", ["--plain", WEIGHTS], "required: --conditional"),
        ("features", ["--n", "1"], "--size and --sets must be at least 1, --n at least 2"),
    ],
)
def test_each_benchmark_runs_as_a_script(tmp_path, name, arguments, message):
    command = [sys.executable, HERE / "benchmarks" / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_both_trainings_are_measured_at_the_same_times(image_dir, tmp_path, monkeypatch, capsys):
    def measure_slowly(pictures: np.ndarray) -> ablation_table.Row:
        time.sleep(0.5)
        return {"swd": int(pictures.sum())}

    monkeypatch.setattr(quality, "measure_with", lambda *_: (measure_slowly, 20))
    options = ["--data-dir", image_dir, "--preset", "quick", "--epochs", "4"]
    options += ["--csv", tmp_path / "rows.csv", "--figure", tmp_path / "figure.png"]
    began = time.perf_counter()
    quality.main([str(option) for option in options])
    seconds = time.perf_counter() - began
    rows = ablation_table.read_rows(tmp_path / "rows.csv")
    notebook, usual = ([float(row["minutes"]) for row in rows[i : i + 4]] for i in (0, 4))
    assert [row["training"] for row in rows] == ["notebook"] * 4 + ["usual solution"] * 4
    assert [row["steps"] for row in rows[:4]] == ["1", "2", "3", "4"]  # of an epoch each
    assert all(0 < a <= b for a, b in zip(notebook, usual, strict=True))
    assert notebook == sorted(notebook) and usual == sorted(usual)
    assert 60 * (notebook[-1] + usual[-1]) + 8 * 0.5 < seconds  # what measures take is left out
    assert len({row["swd"] for row in rows}) > 4  # each time other weights
    assert "usual solution" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "figure.png").is_file()


def test_busy_processes_work_until_they_are_ended():
    before = set(psutil.Process().children())
    with machine.busy(2):
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
        end = time.monotonic() + 30  # other programs may leave them little
        while any(sum(child.cpu_times()[:2]) < 0.5 for child in started):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not any(child.is_running() for child in started)


def test_the_hardware_is_named_with_its_best_instructions():
    named = machine.hardware(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in named and torch.__version__ in named
    has_amx = bool(torch.cpu.get_capabilities().get("amx_tile"))
    assert ("with AMX" in named, "without AMX" in named) == (has_amx, not has_amx)


# ------------------------------------------------------------------------------------- ablations


def leave_results(folder: Path, n_steps: int) -> None:
    """As if a run had trained there: the shipped weights, others, and the losses of its steps."""
    results = folder / "faces"
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy(WEIGHTS, results / "generator.safetensors")
    state = {n: (t * 1.5).to(t.dtype) for n, t in safetensors.torch.load_file(WEIGHTS).items()}
    torch.save({"parts": {"G": state}}, results / "checkpoint.pt")
    losses = [f"1,{i},{i},{2 * i}\n" for i in range(n_steps)]
    (results / "losses.csv").write_text("epoch,batch,d_loss,g_loss\n" + "".join(losses))


def options_in(folder: Path, image_dir: Path) -> list[str]:
    """Options of ablations that write to a folder only."""
    places = {"data-dir": image_dir, "work-dir": folder / "runs", "csv": folder / "table.csv"}
    places |= {"figure": folder / "figure.png", "readme": folder / "README.md"}
    return [text for name, path in places.items() for text in (f"--{name}", str(path))]


def test_each_row_is_a_change_of_the_recipe_that_users_get():
    lesson = load_definitions()
    full = lesson.presets["full"]
    options = ablations.options_of([])
    plain = ablations.settings_of("plain", 1, options)
    assert plain["seed"] == 1 and plain["preset"] == "full" and plain["idea"] == ""
    sizes = {"n_epochs": 12, "d_conv_dim": 32, "g_conv_dim": 32}
    assert sizes.items() <= plain.items()
    kept = plain.keys() - sizes.keys() - {"preset", "idea", "seed"}
    assert all(plain[name] == full.get(name, getattr(lesson, name)) for name in kept)
    ideas = {path.stem for path in (HERE / "ideas").glob("*.py")}
    assert ideas < set(options.rows) and options.rows[0] == "plain"
    assert len(options.rows) == len(set(options.rows)) == 1 + len(ideas) + 8
    for row in options.rows[1:]:
        settings = ablations.settings_of(row, 1, options)
        changed = {n: settings[n] for n in settings if settings[n] != plain[n]}
        expected = {"idea": row} if row in ideas else dict(p.split("=") for p in row.split())
        assert {n: str(v) for n, v in changed.items()} == expected, row
    assert {"d_conv_dim=16", "d_conv_dim=64", "g_conv_dim=64"} < set(options.rows)
    settings = ablations.settings_of("flips+dropout d_lr=0.0001 g_lr=0.0005", 0, options)
    assert (settings["idea"], settings["d_lr"], settings["g_lr"]) == ("flips+dropout", 1e-4, 5e-4)
    assert ablations.key_of(settings).count('.py": "') == 2  # a digest of each idea's file


@pytest.mark.parametrize(("text", "row"), [("", "plain"), (" flips  beta1=0.9", "flips beta1=0.9")])
def test_a_rows_text_is_brought_to_one_form(text, row):
    assert ablations.options_of(["--rows", text]).rows == [row]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("flips+flop", "'flop' is none of balanced, "),
        ("mine.py", "'mine.py' is none of balanced, "),
        ("beta=0.9", "cannot set beta"),
        ("seed=3", "cannot set seed"),
        ("beta1=high", "a setting's value must be a literal"),
    ],
)
def test_a_row_that_cannot_be_is_named(capsys, row, message):
    with pytest.raises(SystemExit):
        ablations.options_of(["--rows", "plain", row])
    assert message in capsys.readouterr().err


def test_results_are_added_and_not_made_twice(image_dir, tmp_path, monkeypatch, capsys):
    made, runs = [], []

    def run_notebook(settings, folder, data_dir, threads):
        made.append(settings)
        runs.append(folder)
        if len(made) == 3:
            (folder / "faces").mkdir(parents=True)
            (folder / "faces" / "checkpoint.pt").touch()
            raise RuntimeError("a cell failed")
        leave_results(folder, 510)
        return 1.5

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    arguments = [*options_in(tmp_path, image_dir), "--rows", "plain", "flips"]
    n = len(helpers.find_images(image_dir, part="training"))
    with pytest.raises(RuntimeError, match="1 of 4 runs failed"):
        ablations.main([*arguments, "--seeds", "2"])
    assert "A run failed: a cell failed" in capsys.readouterr().err
    assert len(made) == 4 and len(ablations.read_rows(tmp_path / "table.csv")) == 4
    ablations.main([*arguments, "--seeds", "2"])
    assert len(made) == 5 and made[4] == made[2]  # the one that had failed
    rows = ablations.read_rows(tmp_path / "table.csv")
    assert [row["row"] for row in rows] == ["real faces", "plain", "flips", "flips", "plain"]
    assert [row["seconds"] for row in rows[1:]] == ["1.5"] * 3 + [""]  # it had begun before
    assert {row["steps"] for row in rows[1:]} == {"510"} and rows[1]["images"] == str(12 * n)
    assert rows[1]["d_loss"] == "259.5" and rows[1]["g_loss"] == "519"  # of the last 500 steps
    assert all(0 < float(row["swd"]) < 1000 and 0 < float(row["diversity"]) < 1 for row in rows)
    for measure in ablation_table.MEASURES:  # of G itself, which has other weights
        assert rows[0][f"g_{measure}"] == ""
        assert float(rows[1][f"g_{measure}"]) > 0
        assert rows[1][f"g_{measure}"] != rows[1][measure]
    assert json.loads(rows[2]["settings"])["idea"] == "flips"
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500
    assert "plain, seed 1, epochs 12, conv_dim 32, steps 510" in capsys.readouterr().out
    Image.new("RGB", (64, 64)).save(helpers.find_images(image_dir, part="training")[0])
    ablations.main([*arguments, "--seeds", "2"])
    assert len(made) == 9  # of other images, everything is missing
    assert len(set(runs)) == 8  # and each has a folder of its own
    monkeypatch.setattr(ablations, "key_of", lambda settings: json.dumps(settings | {"v": 2}))
    ablations.main(arguments)
    assert len(made) == 11  # an idea's file has changed


@pytest.mark.skipif(
    not features.is_installed(), reason="benchmarks/requirements.txt is not installed"
)
def test_old_rows_get_the_measures_in_features(image_dir, tmp_path, monkeypatch, capsys):
    def run_notebook(settings, folder, data_dir, threads):
        leave_results(folder, 3)
        return 1.5

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    arguments = [*options_in(tmp_path, image_dir), "--rows", "plain", "flips"]
    table = tmp_path / "table.csv"
    ablations.main(arguments)
    whole = ablations.read_rows(table)
    names = [*ablation_table.FEATURES, "g_frechet"]
    assert all(row[name] for row in whole for name in names if row["row"] != "real faces")
    assert whole[1]["frechet"] != whole[1]["g_frechet"]
    old = [{n: v for n, v in row.items() if n not in names} for row in whole]
    ablation_table.write_rows(table, old, list(old[0]))
    (folder,) = (tmp_path / "runs").glob("flips-*")
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(ablations, "run_notebook", lambda *_: pytest.fail("trained"))
    ablations.main([*arguments, "--measure"])
    assert "flips, seed 0:" in capsys.readouterr().out
    assert ablations.read_rows(table)[:2] == whole[:2]
    (tmp_path / "elsewhere").rename(folder)
    ablations.main([*arguments, "--measure"])
    assert ablations.read_rows(table) == whole


def test_a_row_is_added_to_a_table_made_before_a_column(tmp_path):
    table = tmp_path / "table.csv"
    ablation_table.write_rows(table, [{"row": "plain", "swd": "20"}], ["row", "swd"])
    ablation_table.add_row(table, {"row": "flips", "frechet": "30"})
    plain, flips = ablation_table.read_rows(table)
    assert (plain["row"], plain["swd"], plain["frechet"]) == ("plain", "20", "")
    assert (flips["row"], flips["swd"], flips["frechet"]) == ("flips", "", "30")
    with pytest.raises(ValueError, match="unknown"):
        ablation_table.write_rows(table, [{"row": "plain", "unknown": "1"}])
    assert ablation_table.read_rows(table) == [plain, flips]


def test_a_table_is_of_runs_of_one_length(image_dir, tmp_path, monkeypatch, capsys):
    def run_notebook(settings, folder, data_dir, threads):
        leave_results(folder, settings["n_epochs"])
        return 1.0

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    drawn = []
    monkeypatch.setattr(ablation_table, "draw", lambda table, path: drawn.append(table))
    arguments = [*options_in(tmp_path, image_dir), "--max-images", "30", "--seeds", "2"]
    ablations.main([*arguments, "--rows", "flips", "d_conv_dim=16"])
    ablations.main([*arguments, "--rows", "flips", "--epochs", "2"])
    assert drawn[0] == drawn[1]  # the larger one
    tables = ablation_table.tables_of(ablations.read_rows(tmp_path / "table.csv"))
    expected = [("12", {"flips", "d_conv_dim=16", "real faces"}), ("2", {"flips", "real faces"})]
    for table, (n_epochs, names) in zip(tables, expected, strict=True):
        assert table.keys() == names
        for runs in [table[name] for name in names - {"real faces"}]:
            assert sorted(row["seed"] for row in runs) == ["0", "1"]
            assert {row["epochs"] for row in runs} == {n_epochs}
            assert len({row["data"] for row in runs}) == 2  # each seed has its own subset
        assert len(table["real faces"]) == 2
    text = (tmp_path / "README.md").read_text()
    assert text.index("### 12 steps, 32 channels") < text.index("### 2 steps, 32 channels")


def made_row(row: str, seed: int = 0, **values: object) -> dict[str, str]:
    """A row as the CSV has it."""
    numbers = dict.fromkeys(ablation_table.MEASURES, 20.0) | {"ita_distance": 0.1, "d_loss": 0.5}
    run = {"row": row, "seed": seed, "epochs": 12, "conv_dim": 32, "steps": 6072, "seconds": 9}
    run |= {"settings": '{"max_images": null}', "data": "16,196 images, 49a66ebc"} | numbers
    if row == "real faces":
        run |= dict.fromkeys(("seed", "epochs", "conv_dim", "steps", "d_loss", "settings"), "")
    return {name: str(value) for name, value in (run | values).items()}


def test_the_table_has_a_line_for_each_row_the_closest_first(tmp_path):
    rows = [made_row("real faces", swd=13.86)]
    rows += [made_row("plain", seed, swd=swd) for seed, swd in enumerate((20.0, 23.0))]
    rows += [made_row("flips", swd=99), made_row("flips", swd=19.04, diversity=0.66666)]
    rows += [made_row("beta1=0.9", swd=101), made_row("keep_last_batch", swd=50, steps=6084)]
    for row in rows:
        ablation_table.add_row(tmp_path / "table.csv", row)
    readme = tmp_path / "README.md"
    readme.write_text(f"Before\n\n{ablation_table.START}\nold\n{ablation_table.END}\n\nAfter\n")
    arguments = [*options_in(tmp_path, tmp_path / "nowhere"), "--table"]
    for _ in range(2):  # the second time nothing changes
        ablations.main(arguments)
        lines = readme.read_text().splitlines()
        assert lines[0] == "Before" and lines[-1] == "After" and "old" not in lines
        assert "### 6,072 steps, 32 channels" in lines and lines.count(ablation_table.END) == 1
        told = "2 seeds have a distance from 20.0 to 23.0: by the spread over seeds, pooled over "
        told += "the rows with several, another row's "
        least = 12.71 * 3 / 2**0.5 * 1.5**0.5  # Student's t with one degree of freedom
        assert any(f"{told}one seed must be {least:.1f} from their mean" in line for line in lines)
        cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if "|" in line][2:]
        names = ["**real faces**", "`flips`", "**plain**", "`keep_last_batch`", "`beta1=0.9`"]
        assert [line[0] for line in cells] == names
        assert [line[1] for line in cells] == ["", "1", "2", "1", "1"]
        distances = ["13.9", "19.0", "21.5 (20.0 to 23.0)", "50.0", "101.0"]
        assert [line[2] for line in cells] == ["", "6,072", "6,072", "6,084", "6,072"]
        assert [line[3] for line in cells] == distances
        assert cells[1][4:7] == ["0.667", "20.0", "0.50"] and cells[0][6] == ""
        assert cells[1][7].startswith("[Flips](flips.py): half of the real images")
        assert cells[2][7] == cells[4][7] == ""
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500


def test_measures_in_features_decide_where_all_rows_have_them():
    rows = [made_row("real faces", frechet=1.0), made_row("plain", swd=10, frechet=9.0)]
    rows += [made_row("flips", seed, swd=30, frechet=5.0 + 2 * seed) for seed in (0, 1)]
    table, *others = ablation_table.tables_of(rows)
    assert list(table) == ["real faces", "flips", "plain"] and not others
    lines = ablation_table.as_text(table).splitlines()
    assert any("| distance in features | distance |" in line for line in lines)
    assert any(line.startswith("| `flips` | 2 | 6,072 | 6.0 (5.0 to 7.0) | 30.0") for line in lines)
    rows += [made_row("dropout", swd=15)]
    assert list(ablation_table.tables_of(rows)[0]) == ["plain", "dropout", "real faces", "flips"]


def test_stages_choose_rows_seeds_and_lengths(tmp_path, capsys):
    def options_of(*arguments: str) -> argparse.Namespace:
        return ablations.options_of(["--csv", str(tmp_path / "table.csv"), *arguments])

    with pytest.raises(SystemExit):
        options_of("--stage", "2")
    assert "--stage 2 chooses among stage 1's rows" in capsys.readouterr().err
    options = options_of("--stage", "1")
    runs = ablations.runs_of(options)
    assert (options.epochs, options.conv_dim) == (12, 32) and options.rows[0] == "plain"
    assert runs.count((0, "flips")) == runs.count((2, "plain")) == 1 and (1, "flips") not in runs
    assert options_of("--stage", "1", "--epochs", "3").epochs == 3
    rows = [made_row("real faces"), made_row("plain", swd=19)]
    rows += [made_row(name, swd=20 + i) for i, name in enumerate(("hinge", "residual", "balanced"))]
    late = dict(epochs=24, steps=12144)
    rows += [made_row(name, swd=20 + i, **late) for i, name in enumerate(ablations.LATE[-5:])]
    rows += [made_row("g_conv_dim=64", swd=18, **late)]  # left out of stage 3
    for row in rows:
        ablation_table.add_row(tmp_path / "table.csv", row)
    options = options_of("--stage", "2")
    assert options.rows == ["plain", "hinge", "residual", *ablations.LATE]
    assert (options.epochs, options.conv_dim, options.seeds) == (24, 32, 2)
    assert ablations.runs_of(options)[-1] == (1, ablations.LATE[-1])
    options = options_of("--stage", "3")
    together = "flips+relativistic_r1_r2+r1"
    assert options.rows == ["plain", *ablations.LATE[-5:-2], together]
    assert (options.epochs, options.conv_dim, options.seeds) == (24, 64, 1)


def test_the_readme_of_the_ideas_has_the_tables_place():
    text = (HERE / "ideas" / "README.md").read_text(encoding="utf-8")
    before, after = text.split(ablation_table.START)
    assert after.count(ablation_table.END) == 1 and ablation_table.END not in before


def test_the_readmes_example_is_an_idea(tmp_path):
    text = (HERE / "ideas" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    lesson = load_definitions()
    d_lr = lesson.d_lr
    helpers.apply_idea(str(tmp_path / "mine.py"), lesson)
    D, _ = lesson.build_network(8, 8, 10)
    x = torch.rand(4, 3, 32, 32)
    assert lesson.d_lr == d_lr / 2 and not torch.equal(D.eval()(x), D(x))


def test_pictures_of_64_are_measured_at_32(image_dir, tmp_path):
    lesson = load_definitions()
    _, G = lesson.build_network(4, 4, 10, 64)
    settings = {"z_size": "10", "g_conv_dim": "4", "image_size": "64", "idea": ""}
    (tmp_path / "faces").mkdir()
    weights = tmp_path / "faces" / "generator.safetensors"
    safetensors.torch.save_file(G.state_dict(), weights, settings)
    torch.save({"parts": {"G": G.state_dict()}}, weights.with_name("checkpoint.pt"))
    measured = ablations.Measures(image_dir, None, 0)(weights.parent)
    assert "swd_32" in measured and "swd_64" not in measured
    assert all(measured[name] == measured[f"g_{name}"] for name in ablation_table.MEASURES)


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    cells = [
        new_code_cell(
            "image_size, d_lr = 32, 0.0\ndata_dir = output_dir = ''",
            metadata={"tags": ["parameters"]},
        ),
        new_code_cell("raise ValueError(f'image_size is {image_size}, of {data_dir}; {d_lr!r}')"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "fails.ipynb")
    monkeypatch.setattr(ablations, "NOTEBOOK", tmp_path / "fails.ipynb")
    with pytest.raises(RuntimeError, match="(?s)image_size is 40, of .*nowhere; 5e-05"):
        settings = {"image_size": 40, "d_lr": 5e-05}  # to YAML, 5e-05 is a text
        ablations.run_notebook(settings, tmp_path / "run", tmp_path / "nowhere", 1)


# ------------------------------------------------------------------------------------- classes


def test_asking_for_a_class_is_compared_with_rejection(tmp_path, monkeypatch, cache):
    data_dir, names = tmp_path / "data", [*COLORS, "none"]
    data_dir.mkdir()
    faces = plain_faces(*COLORS.values(), (118, 118, 118))  # the last has no angle
    for kind, n in enumerate((30, 40, 60, 80, 60, 40, 30)):
        for i in range(n):
            Image.fromarray(faces[kind]).save(data_dir / f"{names[kind]}_{i}.png")
    of_part = {
        part: [names.index(p.stem.split("_")[0]) for p in helpers.find_images(data_dir, part=part)]
        for part in ("training", "held-out")
    }
    shares = np.bincount(of_part["training"]) / len(of_part["training"])
    n = np.bincount(of_part["held-out"])[:6].min()
    monkeypatch.setattr(classes, "is_installed", lambda: True)
    monkeypatch.setattr(classes, "features_of", lambda x: torch.from_numpy(x.mean(axis=(1, 2))))

    def measure(column: int, first: int = 0) -> dict[tuple[str, str], dict[str, str]]:
        """With a generator that takes the rank from that latent number, from a class on."""

        def draw(z: torch.Tensor) -> np.ndarray:
            kinds = np.digitize((z[:, column].double() + 1) / 2, shares.cumsum()[:-1])
            return faces[np.maximum(kinds, first)]

        generator = draw, lambda n: torch.rand(n, 4) * 2 - 1
        monkeypatch.setattr(classes, "load_generator", lambda path: generator)
        arguments = ["--conditional", WEIGHTS, "--plain", WEIGHTS, "--data-dir", data_dir]
        classes.main([*map(str, arguments), "--csv", str(tmp_path / "rows.csv")])
        rows = ablation_table.read_rows(tmp_path / "rows.csv")
        return {(row["way"], row["class"]): row for row in rows}

    rows = measure(0)  # as it is asked
    assert len(rows) == 1 + 4 * 7
    for kind, share in zip(COLORS, shares, strict=False):
        asked, plain = rows["conditional, asked", kind], rows["plain, rejected", kind]
        assert (asked["share"], asked["draws"], plain["share"]) == ("1", "1", "1")
        assert float(plain["draws"]) == pytest.approx(1 / share, rel=0.3)
    for way in ("training photographs", "conditional, asked", "plain, rejected"):
        assert float(rows[way, "all"]["frechet"]) == pytest.approx(0, abs=1e-6)
        assert rows[way, "all"]["n"] == str(n) and int(rows[way, "all"]["sets"]) > 1
    assert float(rows["plain, rejected", "all"]["draws"]) == pytest.approx(500 / (6 * 5 * n), 1e-3)
    rows = measure(1)  # as if nothing had been asked
    for kind, share in zip(COLORS, shares, strict=False):
        assert float(rows["conditional, asked", kind]["share"]) == pytest.approx(share, abs=0.05)
        kept = rows["conditional, asked and rejected", kind]
        assert float(kept["draws"]) == pytest.approx(1 / share, rel=0.3) and kept["share"] == "1"
    assert float(rows["conditional, asked", "all"]["frechet"]) > 10
    for way in ("conditional, rejected", "conditional, asked and rejected"):
        assert float(rows[way, "all"]["frechet"]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=f"Of a class there are 0 faces: {n} are needed"):
        measure(0, first=1)  # no dark ones


# ------------------------------------------------------------------------------- the last batch


def test_losses_are_averaged_around_the_ends_of_epochs(tmp_path, monkeypatch, capsys):
    for name, n_batches in (("plain", 30), ("keep_last_batch", 31)):
        (tmp_path / name).mkdir()
        lines = ["epoch,batch,d_loss,g_loss"]
        for epoch in (1, 2, 3):
            for batch in range(n_batches):
                high = name != "plain" and batch == 0
                lines.append(f"{epoch},{batch},{epoch + 100 * high},1")
        (tmp_path / name / "losses.csv").write_text("\n".join(lines) + "\n")
    losses = last_batch.d_losses(tmp_path / "keep_last_batch")
    assert losses.shape == (3, 31)
    around = last_batch.around_ends(losses, 20)
    assert around.shape == (40,) and around[20] == 102.5  # the mean of epochs 2 and 3
    assert (around[:20] == 1.5).all() and (around[21:] == 2.5).all()
    drawn = []
    plot = last_batch.plt.Axes.plot
    monkeypatch.setattr(
        last_batch.plt.Axes, "plot", lambda *a, **k: drawn.append(a) or plot(*a, **k)
    )
    runs = [str(tmp_path / name) for name in ("plain", "keep_last_batch")]
    last_batch.main([*runs, "--figure", str(tmp_path / "figure.png")])
    (_, places, plain, _), (_, _, kept, _) = drawn
    assert list(places) == list(range(-20, 20))
    assert np.array_equal(kept, around) and kept[20] - plain[20] == 100
    printed = capsys.readouterr().out
    assert "plain: d_loss 2.500 at the first batch, 2.500 elsewhere" in printed
    assert "keep_last_batch: d_loss 102.500 at the first batch, 2.500 elsewhere" in printed
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500


def test_a_run_that_is_too_short_is_named(tmp_path):
    lines = [f"1,{batch},1,1" for batch in range(3)]
    (tmp_path / "losses.csv").write_text("\n".join(["epoch,batch,d_loss,g_loss", *lines]) + "\n")
    with pytest.raises(SystemExit, match="at least 2"):
        last_batch.main([str(tmp_path), str(tmp_path), "--figure", str(tmp_path / "figure.png")])
