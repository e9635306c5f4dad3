"""The benchmarks, at a tiny size: what they count and report."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import COLORS, plain_faces
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from torch import nn

from benchmarks import ablation_table, ablations, features, machine, speed
from faces.files import HERE, WEIGHTS
from faces.images import find_images
from faces.notebook import apply_idea, load_definitions
from faces.speed import cpu_flags


@pytest.mark.slow
def test_both_trainings_are_timed(image_dir, monkeypatch, capsys):
    figures = {}
    measure = speed.measure_throughput
    monkeypatch.setattr(
        speed, "measure_throughput", lambda *a: figures.update(measure(*a)) or figures
    )
    options = ["--images", "20", "--batch-size", "8", "--rounds", "1"]
    speed.main(["throughput", "--data-dir", str(image_dir), *options])
    printed = capsys.readouterr().out
    # Batches of 8, 8 and 4 images; the notebook's loop leaves out the last. Half are not timed.
    for name, n_images, n_steps in (("usual", 12, 2), ("notebook", 8, 1)):
        row = figures[name]
        seconds = n_steps * row["ms_per_step"] / 1000
        assert row["images_per_s"] == pytest.approx(n_images / seconds)
        rate = row["gflop_per_step"] / 8 * row["images_per_s"] / 1000
        assert row["tflops"] == pytest.approx(rate)
        assert row["share_of_peak"] == pytest.approx(rate / row["peak_tflops"])
        assert f"{name}: images_per_s {row['images_per_s']:.4g}, ms_per_step" in printed
    assert figures["usual"]["precision"] == "float32"
    ratio = figures["notebook"]["images_per_s"] / figures["usual"]["images_per_s"]
    assert figures["notebook"]["ratio"] == pytest.approx(ratio)
    assert "images 20" in printed and "seconds_beside" in printed
    for name, operations in count_operations().items():
        assert figures[name]["gflop_per_step"] == 8 * operations / 1e9, name


def count_operations() -> dict[str, int]:
    """Count by hand what each loop's step does for one image of 32x32, with 64 channels."""
    # Multiply-adds of each network's layers, forwards.
    first = 3 * 64 * 16 * 16**2  # between the image and 64 channels
    between = 3 * 64 * 128 * 16 * 8**2  # three layers with as many each
    d, g = first + between + 2048, 100 * 2048 + between + first
    fc = 100 * 2048  # G's first layer: the latents need no gradient
    # Each loop: forwards, backwards for D's step, for G's step. A pass back costs two forwards, one
    # for the weights and one for the input.
    usual = (3 * d + 2 * g) + (4 * d - first + 2 * g - fc) + (2 * d + 2 * g - fc)
    notebook = (3 * d + g) + (4 * d - 2 * first) + (d + 2 * g - fc)
    return {"usual": 2 * usual, "notebook": 2 * notebook}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "32"], "40 images are fewer than two batches of 32"),
        (["--rounds", "0"], "--images, --batch-size and --rounds must be at least 1"),
    ],
)
def test_wrong_options_are_named(image_dir, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        speed.main(["throughput", "--data-dir", str(image_dir), *arguments])
    assert message in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("speed", ["time-to-quality", "--epochs", "few"], "invalid int value"),
        ("ablations", ["--seeds", "0"], "--seeds, --epochs, --conv-dim and --jobs must be at"),
        ("features", ["--n", "1"], "--size and --sets must be at least 1, --n at least 2"),
    ],
)
def test_each_benchmark_runs_as_a_script(tmp_path, name, arguments, message):
    command = [sys.executable, HERE / "benchmarks" / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


class SlowEvaluator:
    """Takes its time, and random numbers."""

    n_faces = 20

    def __init__(self, *source: object) -> None:
        pass

    def measure(self, faces: np.ndarray) -> dict[str, float]:
        torch.rand(1)
        time.sleep(0.5)
        return {"swd": int(faces.sum()), "diversity": 0.5}


@pytest.mark.slow
def test_both_trainings_are_measured_at_the_same_times(image_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RunEvaluator", SlowEvaluator)
    options = ["--data-dir", image_dir, "--epochs", "4"]
    options += ["--csv", tmp_path / "rows.csv", "--figure", tmp_path / "figure.png"]
    began = time.perf_counter()
    speed.main(["time-to-quality", *map(str, options)])
    seconds = time.perf_counter() - began
    rows = ablation_table.read_rows(tmp_path / "rows.csv")
    notebook, usual = ([float(row["minutes"]) for row in rows[i : i + 4]] for i in (0, 4))
    assert [row["training"] for row in rows] == ["notebook"] * 4 + ["usual solution"] * 4
    assert [row["steps"] for row in rows[:4]] == ["1", "2", "3", "4"]  # of an epoch each
    assert all(0 < a <= b for a, b in zip(notebook, usual, strict=True))
    assert notebook == sorted(notebook) and usual == sorted(usual)
    assert 60 * (notebook[-1] + usual[-1]) + 8 * 0.5 < seconds  # what measures take is left out
    assert len({row["swd"] for row in rows}) > 4  # each time other weights
    assert (tmp_path / "figure.png").is_file()


def test_measuring_leaves_the_training_its_random_numbers():
    rows, G = [], nn.Sequential(nn.Linear(10, 3 * 4 * 4), nn.Unflatten(1, (3, 4, 4)))
    state = torch.get_rng_state()
    speed.Stopwatch(SlowEvaluator(), rows.append).measure(G, 10, steps=7)
    assert torch.equal(torch.get_rng_state(), state) and G.training
    assert rows[0]["steps"] == 7 and rows[0]["seconds"] > 0.5 and "diversity" not in rows[0]


def test_the_hardware_is_named_with_its_best_instructions():
    named = machine.hardware(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in named and torch.__version__ in named
    has_amx = "amx_tile" in cpu_flags()
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
    notebook = load_definitions()
    full = notebook.presets["full"]
    options = ablations.parse_options([])
    plain = ablations.build_settings("plain", 1, options)
    assert plain["seed"] == 1 and plain["preset"] == "full" and plain["idea"] == ""
    sizes = {"n_epochs": 12, "d_conv_dim": 32, "g_conv_dim": 32}
    assert sizes.items() <= plain.items()
    kept = plain.keys() - sizes.keys() - {"preset", "idea", "seed"}
    assert all(plain[name] == full.get(name, getattr(notebook, name)) for name in kept)
    ideas = {path.stem for path in (HERE / "ideas").glob("*.py")}
    assert ideas < set(options.rows) and options.rows[0] == "plain"
    assert len(options.rows) == len(set(options.rows)) == 1 + len(ideas) + 8
    for row in options.rows[1:]:
        settings = ablations.build_settings(row, 1, options)
        changed = {n: settings[n] for n in settings if settings[n] != plain[n]}
        expected = {"idea": row} if row in ideas else dict(p.split("=") for p in row.split())
        assert {n: str(v) for n, v in changed.items()} == expected, row
    assert {"d_conv_dim=16", "d_conv_dim=64", "g_conv_dim=64"} < set(options.rows)
    settings = ablations.build_settings("flips+dropout d_lr=0.0001 g_lr=0.0005", 0, options)
    assert (settings["idea"], settings["d_lr"], settings["g_lr"]) == ("flips+dropout", 1e-4, 5e-4)
    assert ablations.format_settings(settings).count('.py": "') == 2  # a hash of each idea's file


def test_the_work_of_a_step_is_counted():
    options = ablations.parse_options(["--conv-dim", "64"])

    def count(row: str) -> int:
        return ablations.count_flops_per_image(ablations.build_settings(row, 0, options))

    plain = count("plain")
    assert plain == count("flips") == count("batch_size=8") == count_operations()["notebook"]
    widths = {w: count(f"d_conv_dim={w[0]} g_conv_dim={w[1]}") for w in ((32, 64), (64, 32))}
    assert widths[32, 64] < widths[64, 32] < plain  # D runs more often than G
    assert plain < count("r1_on_a_quarter") < count("r1")
    assert count("flips+r1") == count("r1+flips") == count("r1")
    changed = count("deeper") - plain
    assert changed > plain / 4 and count("deeper+r1") - count("r1") > changed
    assert count("image_size=64") == pytest.approx(4 * plain, rel=0.01)


@pytest.mark.parametrize(("text", "row"), [("", "plain"), (" flips  beta1=0.9", "flips beta1=0.9")])
def test_a_rows_text_is_brought_to_one_form(text, row):
    assert ablations.parse_options(["--rows", text]).rows == [row]


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
        ablations.parse_options(["--rows", "plain", row])
    assert message in capsys.readouterr().err


@pytest.mark.slow
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
    arguments = options_in(tmp_path, image_dir)
    ablations.main([*arguments, "--rows"])  # of photographs only
    assert len(ablation_table.read_rows(tmp_path / "table.csv")) == 2 and not made
    arguments += ["--rows", "plain", "flips"]
    n = len(find_images(image_dir, split="train"))
    with pytest.raises(RuntimeError, match="1 of 4 runs failed"):
        ablations.main([*arguments, "--seeds", "2"])
    assert "A run failed: a cell failed" in capsys.readouterr().err
    assert len(made) == 4 and len(ablation_table.read_rows(tmp_path / "table.csv")) == 5
    ablations.main([*arguments, "--seeds", "2"])
    assert len(made) == 5 and made[4] == made[2]  # the one that had failed
    real, balanced, *rows = ablation_table.read_rows(tmp_path / "table.csv")
    assert (real["row"], balanced["row"]) == ("real faces", "real faces, balanced")
    assert [row["row"] for row in rows] == ["plain", "flips", "flips", "plain"]
    assert [row["seconds"] for row in rows] == ["1.5"] * 3 + [""]  # it had begun before
    assert {row["steps"] for row in rows} == {"510"} and rows[0]["images"] == str(12 * n)
    work = 12 * n * ablations.count_flops_per_image(made[0]) / 1e12  # flips cost nothing
    assert {row["tflop"] for row in rows} == {f"{work:.6g}"}
    assert rows[0]["d_loss"] == "259.5" and rows[0]["g_loss"] == "519"  # of the last 500 steps
    for row in (real, balanced, *rows):
        assert 0 < float(row["swd"]) < 1000 and 0 < float(row["diversity"]) < 1
        is_measured = [row[measure] != "" for measure in ablation_table.FEATURE_MEASURES]
        assert is_measured == [features.is_installed()] * len(is_measured)
    assert float(real["nearest"]) > 0 and balanced["nearest"] == ""
    measures = ablation_table.PIXEL_MEASURES + ["frechet"] * features.is_installed()
    for measure in measures:  # of G itself, which has other weights
        assert real[f"g_{measure}"] == "" != rows[0][f"g_{measure}"]
        assert rows[0][f"g_{measure}"] != rows[0][measure]
    assert json.loads(rows[1]["settings"])["idea"] == "flips"
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500
    assert "plain, seed 1, epochs 12, conv_dim 32, steps 510" in capsys.readouterr().out
    Image.new("RGB", (64, 64)).save(find_images(image_dir, split="train")[0])
    ablations.main([*arguments, "--seeds", "2"])
    assert len(made) == 9  # of other images, everything is missing
    assert len(set(runs)) == 8  # and each has a folder of its own
    monkeypatch.setattr(ablations, "format_settings", lambda s: json.dumps(s | {"v": 2}))
    ablations.main(arguments)
    assert len(made) == 11  # an idea's file has changed


def test_a_row_is_added_to_a_table_made_before_a_column(tmp_path):
    table = tmp_path / "table.csv"
    ablation_table.write_rows(table, [{"row": "plain", "swd": "20"}], ["row", "swd"])
    ablation_table.append_row(table, {"row": "flips", "frechet": "30"})
    plain, flips = ablation_table.read_rows(table)
    assert (plain["row"], plain["swd"], plain["frechet"]) == ("plain", "20", "")
    assert (flips["row"], flips["swd"], flips["frechet"]) == ("flips", "", "30")
    with pytest.raises(ValueError, match="unknown"):
        ablation_table.write_rows(table, [{"row": "plain", "unknown": "1"}])
    assert ablation_table.read_rows(table) == [plain, flips]


@pytest.mark.slow
def test_a_table_is_of_runs_of_one_length(image_dir, tmp_path, monkeypatch, capsys):
    def run_notebook(settings, folder, data_dir, threads):
        leave_results(folder, settings["n_epochs"])
        return 1.0

    monkeypatch.setattr(ablations, "run_notebook", run_notebook)
    drawn = []
    monkeypatch.setattr(ablation_table, "draw_table", lambda table, path: drawn.append(table))
    arguments = [*options_in(tmp_path, image_dir), "--max-images", "30", "--seeds", "2"]
    ablations.main([*arguments, "--rows", "flips", "d_conv_dim=16"])
    ablations.main([*arguments, "--rows", "flips", "--epochs", "2"])
    assert drawn[0] == drawn[1]  # the larger one
    tables = ablation_table.group_rows(ablation_table.read_rows(tmp_path / "table.csv"))
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
    numbers = dict.fromkeys(ablation_table.PIXEL_MEASURES, 20.0)
    numbers |= {"ita_distance": 0.1, "d_loss": 0.5}
    run = {"row": row, "seed": seed, "epochs": 12, "conv_dim": 32, "steps": 6072, "seconds": 9}
    run |= {"settings": '{"max_images": null}', "data": "16,196 images, 49a66ebc"} | numbers
    if row in ablation_table.PHOTOGRAPHS:
        run |= dict.fromkeys(("seed", "epochs", "conv_dim", "steps", "d_loss", "settings"), "")
    return {name: str(value) for name, value in (run | values).items()}


def test_the_table_has_a_line_for_each_row_the_closest_first(tmp_path):
    rows = [made_row("real faces", swd=13.86)]
    rows += [made_row("plain", seed, swd=swd) for seed, swd in enumerate((20.0, 23.0))]
    rows += [made_row("flips", swd=99), made_row("flips", swd=19.04, diversity=0.66666)]
    rows += [made_row("beta1=0.9", swd=101), made_row("keep_last_batch", swd=50, steps=6084)]
    for row in rows:
        ablation_table.append_row(tmp_path / "table.csv", row)
    readme = tmp_path / "README.md"
    readme.write_text(f"Before\n\n{ablation_table.START}\nold\n{ablation_table.END}\n\nAfter\n")
    arguments = [*options_in(tmp_path, tmp_path / "nowhere"), "--table"]
    for _ in range(2):  # the second time nothing changes
        ablations.main(arguments)
        lines = readme.read_text().splitlines()
        assert lines[0] == "Before" and lines[-1] == "After" and "old" not in lines
        assert "### 6,072 steps, 32 channels" in lines and lines.count(ablation_table.END) == 1
        told = "2 seeds end at a distance of 20.0 to 23.0; to count, another row's single "
        least = 12.71 * 3 / 2**0.5 * 1.5**0.5  # Student's t with one degree of freedom
        assert any(f"{told}seed must be {least:.1f} from their mean" in line for line in lines)
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
    table, *others = ablation_table.group_rows(rows)
    assert list(table) == ["real faces", "flips", "plain"] and not others
    lines = ablation_table.format_table(table).splitlines()
    assert any("| distance in features | distance |" in line for line in lines)
    assert any(line.startswith("| `flips` | 2 | 6,072 | 6.0 (5.0 to 7.0) | 30.0") for line in lines)
    rows += [made_row("dropout", swd=15)]
    assert list(ablation_table.group_rows(rows)[0]) == ["plain", "dropout", "real faces", "flips"]


def test_balanced_photographs_stand_beside_the_idea():
    balanced = made_row("real faces, balanced", swd=30, nearest="")
    rows = [made_row("real faces"), balanced, made_row("plain", swd=21), made_row("plain", 1)]
    assert list(ablation_table.group_rows(rows)[0]) == ["real faces", "plain"]
    rows += [made_row("balanced", swd=29)]
    (table,) = ablation_table.group_rows(rows)
    assert list(table) == ["real faces", "plain", "balanced", "real faces, balanced"]
    assert table["real faces, balanced"] == [balanced]
    last = ablation_table.format_table(table).splitlines()[-1]
    assert last == "| **real faces, balanced** |  |  | 30.0 | 20.000 |  |  |  |"
    assert ablation_table.pool_spread(table, "swd") == (pytest.approx(0.5**0.5), 1)


def test_balanced_photographs_are_of_all_classes_alike(tmp_path):
    counts = dict(zip(COLORS, (12, 24, 48, 96, 72, 48), strict=True))
    for (kind, n), face in zip(counts.items(), plain_faces(*COLORS.values()), strict=True):
        for i in range(n):
            Image.fromarray(face).save(tmp_path / f"{kind}_{i}.png")
    photographs = ablations.RunEvaluator(tmp_path, None, 0).measure_photographs()
    real, balanced = (photographs[name] for name in ablation_table.PHOTOGRAPHS)
    assert real["ita_dark"] == pytest.approx(84 / 300, abs=0.15)
    assert balanced["ita_dark"] == pytest.approx(3 / 6, abs=0.08)
    distance = (96 + 72) / 300 - 2 / 6  # of the two classes that have more than a sixth
    assert balanced["ita_distance"] == pytest.approx(distance, abs=0.1)
    assert "nearest" in real and "nearest" not in balanced


def test_the_readme_of_the_ideas_has_the_tables_place():
    text = (HERE / "ideas" / "README.md").read_text(encoding="utf-8")
    before, after = text.split(ablation_table.START)
    assert after.count(ablation_table.END) == 1 and ablation_table.END not in before


def test_the_readmes_example_is_an_idea(tmp_path):
    text = (HERE / "ideas" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    notebook = load_definitions()
    d_lr = notebook.d_lr
    apply_idea(str(tmp_path / "mine.py"), notebook)
    D, _ = notebook.build_network(8, 8, 10)
    x = torch.rand(4, 3, 32, 32)
    assert notebook.d_lr == d_lr / 2 and not torch.equal(D.eval()(x), D(x))


def test_images_of_64_are_measured_at_32(image_dir, tmp_path):
    notebook = load_definitions()
    _, G = notebook.build_network(4, 4, 10, 64)
    settings = {"z_size": "10", "g_conv_dim": "4", "image_size": "64", "idea": ""}
    (tmp_path / "faces").mkdir()
    weights = tmp_path / "faces" / "generator.safetensors"
    safetensors.torch.save_file(G.state_dict(), weights, settings)
    torch.save({"parts": {"G": G.state_dict()}}, weights.with_name("checkpoint.pt"))
    measured = ablations.RunEvaluator(image_dir, None, 0).measure_run(weights.parent)
    assert "swd_32" in measured and "swd_64" not in measured
    assert all(measured[name] == measured[f"g_{name}"] for name in ablation_table.PIXEL_MEASURES)


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
