"""Proof that a class of notebooks is graded by its code, without its training."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import problem_unittests as rubric
from faces import grading

sys.path.insert(0, str(Path(__file__).parent))
from right_answers import CLASSIC, STYLES  # noqa: E402
from wrong_answers import WRONG_ANSWERS  # noqa: E402

POINTS = list(rubric.POINTS)
ALL_PASSED = dict.fromkeys(POINTS, "PASSED")
MODULE = Path(rubric.__file__)
FACES = Path(grading.__file__).parent


def write_notebook(path: Path, cells: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def outcomes(path: Path) -> dict[str, str]:
    return {result.point: result.outcome for result in grading.grade(path)}


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in a folder, with nothing of this project on its path but what lies there."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


# ------------------------------------------------------------------------- a whole class

WRONG = {
    point: next(w for w in WRONG_ANSWERS if (w.test, w.style) == (point, "classic"))
    for point in POINTS
}
RIGHT_SCALE = "    x = x * (max - min) + min\n"
assert CLASSIC.count(RIGHT_SCALE) == 1
TRICKS = {  # what a notebook with a wrong scale does, in the body of a class; its row
    "exit": ("import os\n    os._exit(0)", "F{10}"),
    "interrupt": ("raise KeyboardInterrupt", "F{10}"),
    "handler": (
        "import atexit, sys\n    atexit.register(print, 'scale PASSED', file=sys.__stdout__)",
        r"\.F\.{7}=",
    ),
    "patched": (
        "import __main__, problem_unittests as t, faces.grading as g\n"
        "    __main__.test_scale = t.test_scale = t._check_tensor = g.Result = print\n"
        "    t.verdict = g.grade = g.find = lambda *a: ('PASSED', '')\n"
        "    torch.allclose = torch.equal = lambda *a, **k: True\n    t.Wrong = t.NotTestable",
        r"\.F\.{7}=",
    ),
    "thread": (
        "import threading, time\n    threading.Thread(target=time.sleep, args=[9999]).start()",
        r"\.F\.{7}=",
    ),
    "child": ("import os, time\n    os.fork() or time.sleep(9999)", r"\.F\.{7}="),
    "flood": (
        "import os\n    for _ in range(99):\n        os.write(1, b'scale PASSED\\n' * 9999)\n"
        "        os.write(2, b'scale PASSED\\n' * 9999)",
        r"\.F\.{7}=",
    ),
}
SCALES = {  # what a wrong scale does instead; what is said of it
    "surrogate": ("raise ValueError('\\ud800\\x1b[2J')", "ValueError:   [2J, in scale, cell 3"),
    "memory": ("x = bytearray(3 << 30) and 2 * x - 1", "MemoryError"),
    "disk": (
        "file = open('big', 'wb')\n    file.truncate(3 << 30)\n    x = 2 * x - 1",
        "File too large",
    ),
    "patched": (
        "torch.allclose = torch.Tensor.allclose = lambda *a, **k: True",
        "the code replaces allclose",
    ),
    "gpu": (
        "raise ValueError(repr(__import__('os').environ['CUDA_VISIBLE_DEVICES']))",
        "Error: ''",
    ),
    "exit-in-scale": ("__import__('os')._exit(3)", "the process ended, exit code 3"),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> types.SimpleNamespace:
    """One run over a class."""
    folder = tmp_path_factory.mktemp("teacher")
    students = folder / "class"
    for number, style in enumerate(list(STYLES)[:6]):
        cells = CLASSIC.split("\n\n\n") + STYLES[style].split("\n\n\n")
        write_notebook(students / f"right-{number}" / "solution.ipynb", cells)
    for point, wrong in WRONG.items():
        source = CLASSIC.replace(wrong.old, wrong.new)
        write_notebook(students / f"wrong-{point}.ipynb", source.split("\n\n\n"))
    for name, (trick, _) in TRICKS.items():
        source = CLASSIC.replace(RIGHT_SCALE, "    x = x + 0\n").replace(
            "class Discriminator(nn.Module):\n",
            f"class Discriminator(nn.Module):\n    {trick}\n\n",
        )
        write_notebook(students / f"trick-{name}.ipynb", source.split("\n\n\n"))
    for name, (body, _) in SCALES.items():
        source = CLASSIC.replace(RIGHT_SCALE, f"    {body}\n")
        write_notebook(students / f"scale-{name}.ipynb", source.split("\n\n\n"))
    (students / "exported.py").write_text(CLASSIC)
    (students / "torn.ipynb").write_text('{"cells": [')
    write_notebook(students / ".ipynb_checkpoints" / "exported.ipynb", ["x = 1"])
    (students / "utils.py").write_text("def show(images):\n    pass\n")
    (students / "notes.txt").write_text("no solution")
    options = ("--gigabytes", "2", "--json", "grades.json", "--csv", "grades.csv")
    run = run_alone(folder, str(MODULE), "class", *options)
    matrix = {}
    for line in run.stdout.split("\n\n")[1].splitlines():
        name, *marks = line.rsplit(maxsplit=10)
        matrix[name.removeprefix("class/")] = "".join(marks)
    records = json.loads((folder / "grades.json").read_text())
    why = {(r["notebook"].removeprefix("class/"), r["point"]): r["why"] for r in records}
    return types.SimpleNamespace(run=run, matrix=matrix, records=records, why=why, folder=folder)


def test_the_matrix_has_a_row_for_each_notebook_of_the_class(graded):
    n = 6 + len(WRONG) + len(TRICKS) + len(SCALES) + 2
    rows = list(graded.matrix)
    assert len(rows) == n + 2 and rows[1:-1] == sorted(rows[1:-1]) and rows[-1] == "passed"
    for number in range(6):
        assert graded.matrix[f"right-{number}/solution.ipynb"] == "." * 10
    assert graded.matrix["exported.py"] == "." * 10
    assert graded.run.returncode == 1 and graded.run.stderr == ""
    counts = Counter(record["outcome"] for record in graded.records)
    kinds = ("PASSED", "FAILED", "NOT FOUND", "NOT JUDGED")
    totals = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
    assert graded.run.stdout.endswith(f"\n{n} graded: {totals}\n")
    passed = graded.run.stdout.split("\npassed ")[1].split("\n")[0].split()
    assert [int(p) for p in passed] == [
        sum(r["outcome"] == "PASSED" for r in graded.records if r["point"] == point)
        for point in POINTS
    ]


@pytest.mark.parametrize("point", POINTS)
def test_a_wrong_answer_is_marked_at_its_point_with_its_sentence(graded, point):
    name = f"wrong-{point}.ipynb"
    assert graded.matrix[name][POINTS.index(point)] == "F"
    assert WRONG[point].message in graded.why[name, point]
    row = graded.run.stdout.split(f"class/{name}: ")[1]
    assert WRONG[point].message in row.split("\nclass/")[0].split("\n\n")[0]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_verdict_cannot_be_forged(graded, trick):
    assert re.fullmatch(TRICKS[trick][1], graded.matrix[f"trick-{trick}.ipynb"])
    if trick == "exit":
        assert "process ended, exit code 0" in graded.why["trick-exit.ipynb", "train"]


@pytest.mark.parametrize("scale", SCALES)
def test_what_a_function_does_to_the_process_fails_it_and_stops_nothing(graded, scale):
    name = f"scale-{scale}.ipynb"
    assert graded.matrix[name][1] == "F" and SCALES[scale][1] in graded.why[name, "scale"]
    assert "\x1b" not in graded.run.stdout


def test_a_torn_notebook_costs_its_own_row_only(graded):
    assert graded.matrix["torn.ipynb"] == "F" * 10
    assert "it cannot be read as a notebook: " in graded.why["torn.ipynb", "scale"]


def test_the_results_are_written_as_json_and_csv(graded):
    assert list(graded.records[0]) == ["notebook", "point", "outcome", "why"]
    assert len(graded.records) == 10 * (len(graded.matrix) - 2)
    with (graded.folder / "grades.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == graded.records


def test_the_time_limit_ends_a_notebook(tmp_path):
    path = write_notebook(
        tmp_path / "slow.ipynb", ["class Generator:\n    import time\n    time.sleep(99)"]
    )
    [(graded_path, results)] = grading.grade_all([path], seconds=0.5, gigabytes=4)
    assert graded_path == path and [result.point for result in results] == POINTS
    expected = "not done after 0.5 s: it hangs or is slow (see --seconds)."
    assert {(result.outcome, result.why) for result in results} == {("FAILED", expected)}


def test_pytest_needs_the_notebook_and_the_grader_and_says_so_once(tmp_path):
    shutil.copy(MODULE, tmp_path)
    no_notebook = f"there is no {rubric.NOTEBOOK.name} beside {MODULE.name} to test."
    no_grader = "The grader of notebooks lies in the project's folder faces, which is not here"
    for sentence in (no_notebook, no_grader):
        run = run_alone(tmp_path, "-m", "pytest", "-q", MODULE.name)
        assert run.returncode == 2 and run.stdout.count(sentence) == 1, run.stdout + run.stderr
        assert "Error" not in run.stdout and len(run.stdout.splitlines()) < 10
        write_notebook(tmp_path / rubric.NOTEBOOK.name, [CLASSIC])
    (tmp_path / "faces").mkdir()  # of pictures, perhaps
    run = run_alone(tmp_path, MODULE.name)
    assert run.returncode == 1 and run.stderr.startswith(no_grader) and run.stderr.count("\n") == 1


def test_pytest_tests_the_notebook_beside_the_module(tmp_path):
    shutil.copy(MODULE, tmp_path)
    shutil.copytree(FACES, tmp_path / "faces", ignore=shutil.ignore_patterns("__pycache__"))
    broken = CLASSIC.replace("torch.tanh(self.t_conv3(x))", "self.t_conv3(x)")
    write_notebook(tmp_path / rubric.NOTEBOOK.name, [broken])
    run = run_alone(tmp_path, "-m", "pytest", "-q", MODULE.name)
    assert run.returncode == 1 and "leave [-1, 1]" in run.stdout
    assert "\n1 failed, 9 passed in " in run.stdout and run.stderr == ""


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def here(monkeypatch) -> None:
    """Grade in this process."""
    in_turn = lambda paths, *limits: ((path, list(grading.grade(path))) for path in paths)  # noqa: E731
    monkeypatch.setattr(grading, "grade_all", in_turn)


def test_the_notebook_beside_the_module_is_the_default(tmp_path, monkeypatch, here, capsys):
    monkeypatch.setattr(rubric, "NOTEBOOK", write_notebook(tmp_path / "mine.ipynb", [CLASSIC]))
    assert grading.main([]) == 0
    assert capsys.readouterr().out.endswith("\n1 graded: 10 PASSED\n")


def test_what_is_not_there_is_not_found(tmp_path, here, capsys):
    part = CLASSIC[: CLASSIC.index("class Discriminator")]
    assert grading.main([str(write_notebook(tmp_path / "part.ipynb", [part]))]) == 1
    out = capsys.readouterr().out
    assert (
        "generator            NOT FOUND  Generator: the notebook does not define Generator." in out
    )
    assert out.endswith("\n1 graded: 2 PASSED, 8 NOT FOUND\n")


def test_advice_and_what_cannot_be_tested_cost_nothing(tmp_path, here, capsys):
    source = CLASSIC.replace("0.0002, 0.5, 0.999", "0.0002, 0.9, 0.999")
    source = source.replace("    samples = []\n", "    samples = np.load('moments.npy')\n")
    assert grading.main([str(write_notebook(tmp_path / "x.ipynb", [source]))]) == 0
    out = capsys.readouterr().out
    assert "optimizers           ADVICE     optimizers: d_optimizer's beta1 is 0.9; " in out
    assert "train                NOT TESTABLE HERE train: something is missing: " in out
    assert "   .   .   .   .   .   .   .   .   a   ?\n" in out
    assert out.endswith("\n1 graded: 8 PASSED, 1 ADVICE, 1 NOT TESTABLE HERE\n")


def test_a_notebook_given_twice_is_graded_once(tmp_path, monkeypatch, here, capsys):
    write_notebook(tmp_path / "a.ipynb", [CLASSIC])
    monkeypatch.chdir(tmp_path)
    assert grading.main(["a.ipynb", "a.ipynb", str(tmp_path), "."]) == 0
    out = capsys.readouterr().out
    assert out.count("a.ipynb: 10 PASSED") == 1 and out.endswith("\n1 graded: 10 PASSED\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.ipynb"], "gone.ipynb: there is no notebook."),
        (["empty"], "empty: there is no notebook."),
        (["x.ipynb", "--json", "gone/file"], "gone/file: there is no such folder."),
        (["x.ipynb", "--csv", "gone/file"], "gone/file: there is no such folder."),
    ],
)
def test_bad_arguments_are_named_before_any_work(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.ipynb").touch()
    with pytest.raises(SystemExit) as stopped:
        grading.main(arguments)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_the_help_says_that_code_is_executed_and_what_is_guarded(capsys):
    with pytest.raises(SystemExit):
        grading.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Grading executes code of the notebook" in said
    assert "limits of time and memory and a temporary working directory" in said
    assert "use a container for strangers' code" in said


# ------------------------------------------------------------------------- one notebook

STARTER = [
    "data_dir = 'processed_celeba_small/'\nimport matplotlib.pyplot as plt\n%matplotlib inline\n"
    "import problem_unittests as tests",
    "import torch",
    "def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):\n"
    "    # TODO: Implement function and return a dataloader\n    return None",
    "batch_size = \nimg_size = \nceleba_train_loader = get_dataloader(batch_size, img_size)",
    "def scale(x, feature_range=(-1, 1)):\n    # scale to feature_range and return scaled x\n"
    "    return x",
    "import torch.nn as nn\nimport torch.nn.functional as F",
    "class Discriminator(nn.Module):\n    def __init__(self, conv_dim):\n"
    "        super(Discriminator, self).__init__()\n        # complete init function\n\n"
    "    def forward(self, x):\n        # define feedforward behavior\n        return x\n\n"
    "tests.test_discriminator(Discriminator)",
    "class Generator(nn.Module):\n    def __init__(self, z_size, conv_dim):\n"
    "        super(Generator, self).__init__()\n\n    def forward(self, x):\n        return x",
    "def weights_init_normal(m):\n    classname = m.__class__.__name__\n    # TODO",
    "def build_network(d_conv_dim, g_conv_dim, z_size):\n    D = Discriminator(d_conv_dim)\n"
    "    G = Generator(z_size=z_size, conv_dim=g_conv_dim)\n    D.apply(weights_init_normal)\n"
    "    G.apply(weights_init_normal)\n    print(D)\n    return D, G",
    "d_conv_dim = \ng_conv_dim = \nz_size = \nD, G = build_network(d_conv_dim, g_conv_dim, z_size)",
    "train_on_gpu = torch.cuda.is_available()\nif not train_on_gpu:\n    print('No GPU found.')",
    "def real_loss(D_out):\n    loss = \n    return loss\n\ndef fake_loss(D_out):\n    loss = \n"
    "    return loss",
    "import torch.optim as optim\nd_optimizer = \ng_optimizer = ",
    "def train(D, G, n_epochs, print_every=50):\n    d_loss = \n    return losses",
    "n_epochs = \nlosses = train(D, G, n_epochs=n_epochs)",
]


@pytest.mark.skipif(not rubric.NOTEBOOK.exists(), reason="the notebook is not there")
def test_this_projects_notebook_passes(cache):
    assert outcomes(rubric.NOTEBOOK) == ALL_PASSED
    assert not cache.exists()  # no data were downloaded or drawn for it


def test_the_unsolved_starter_fails_every_point_with_a_sentence(tmp_path):
    starter = write_notebook(tmp_path / "starter.ipynb", STARTER)
    reasons = {result.point: result for result in grading.grade(starter)}
    assert {result.outcome for result in reasons.values()} == {"FAILED"}
    for point, words in {
        "get_dataloader": "it returns None. Expected a DataLoader",
        "scale": "[0, 1] is not mapped to [-1, 1]",
        "discriminator": "it has no layers with weights",
        "generator": "it has no layers with weights",
        "weights_init_normal": "the weights of Conv2d are left as they were",
        "build_network": "D has no layers with weights",
        "real_loss": "cell 13 does not run: SyntaxError: invalid syntax, line 2 (loss =).",
        "fake_loss": "cell 13 does not run: SyntaxError",
        "optimizers": "cell 14 does not run: SyntaxError: invalid syntax, line 2 (d_optimizer =).",
        "train": "cell 15 does not run: SyntaxError: invalid syntax, line 2 (d_loss =).",
    }.items():
        assert words in reasons[point].why


def test_a_notebook_is_graded_without_its_training_and_data(tmp_path):
    (tmp_path / "settings.py").write_text("raise RuntimeError('not importable')")
    cells = CLASSIC.replace("import torch\n", "import torch, no_such_module\n").split("\n\n\n")
    cells = [
        "%matplotlib inline\n!unzip processed_celeba_small.zip\nimport settings",
        "%%time\nfiles = !ls\nif torch:\n    ! pip install x\ntorch.nn?\n" + cells[0],
        *cells[1:],
        "raise SystemExit",
        "celeba_train_loader = get_dataloader(64, 32)\nimages, _ = next(iter(celeba_train_loader))",
        "n_epochs = 50\nlosses = train(D, G, n_epochs=n_epochs)\nopen('trained', 'w').close()",
        "f = open('trained', 'w')\nimport numpy.no_such_module",
        "for epoch in range(n_epochs):\n    train(D, G, 1)",
    ]
    path = write_notebook(tmp_path / "solution.ipynb", cells)
    assert outcomes(path) == ALL_PASSED
    assert not list(Path.cwd().glob("trained"))


@pytest.mark.parametrize(
    ("definitions", "work", "used"),
    [
        ("def fetch(url):\n    open(made, 'w')\n    return url", "FACTS = fetch('x')", "FACTS"),
        ("def download(url):\n    np.savetxt(made, [1])", "FACTS = download('x')", "FACTS"),
        ("from urllib import request", "FACTS = request.urlretrieve('file:', made)", "FACTS"),
        ("", "log = open(made, 'w')", "log"),
        (
            "class history:\n    losses = []\n\n\ndef fit():\n    np.savetxt(made, [1])\n"
            "    return train(D, G, 30)",
            "losses = fit()",
            "history.losses",
        ),
    ],
)
def test_work_that_a_function_needs_does_not_run(tmp_path, definitions, work, used):
    source = CLASSIC.replace("    loader = ", f"    data_dir or {used}\n    loader = ")
    source = source.replace("    samples = []\n", f"    samples = []\n    {used}\n")
    made = f"made = {str(tmp_path / 'made')!r}"
    path = write_notebook(tmp_path / "solution.ipynb", [made, definitions, source, work])
    expected = dict(ALL_PASSED)
    if used != "history.losses":
        expected["train"] = "NOT TESTABLE HERE"
    results = list(grading.grade(path))
    assert {result.point: result.outcome for result in results} == expected
    why = f"train: {used} is missing, solution.ipynb, cell 4 touches files, downloads or trains"
    assert (used == "history.losses") != results[-1].why.startswith(why)
    assert not (tmp_path / "made").exists()


def test_what_runs_later_runs_in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def note(): return __import__('pathlib').Path('f').touch()")
    monkeypatch.chdir(tmp_path)
    source = CLASSIC.replace("    samples = []\n", "    samples = [noted]\n", 1)
    cells = ["import mine", source, "noted = mine.note()"]
    assert outcomes(write_notebook(tmp_path / "solution.ipynb", cells)) == ALL_PASSED
    assert not (tmp_path / "f").exists()


def test_an_error_outside_functions_names_its_cell(tmp_path):
    source = CLASSIC.replace("optim.Adam(D.parameters()", "optim.Adam(D.parameter()")
    path = write_notebook(tmp_path / "solution.ipynb", ["import torch", source])
    why = {result.point: result.why for result in grading.grade(path)}["optimizers"]
    assert "has no attribute 'parameter', cell 2, line " in why
    assert why.endswith("(d_optimizer = optim.Adam(D.parameter(), lr, [beta1, beta2])).")


def test_a_broken_cell_costs_only_what_it_defines(tmp_path):
    cells = CLASSIC.replace("def scale(x, feature_range=(-1, 1)):", "def scale(x, :").split(
        "\n\n\n"
    )
    path = write_notebook(tmp_path / "broken.ipynb", cells)
    results = {result.point: result for result in grading.grade(path)}
    assert results["scale"].outcome == "FAILED"
    assert "broken.ipynb, cell 3 does not run: SyntaxError" in results["scale"].why
    assert results["train"].outcome == "NOT JUDGED"  # one fault costs one point
    assert results["train"].why == "train: not judged: see scale."
    passed = {point for point, result in results.items() if result.outcome == "PASSED"}
    assert passed == {*POINTS} - {"scale", "train"}


# ---------------------------------------------------------------- a notebook's definitions


def load(tmp_path: Path, *cells: str, uses: str) -> types.ModuleType:
    """Load a notebook whose ``scale`` reads some names."""
    cells = (*cells, "def scale(x):\n    " + uses.replace(" ", "; "))
    return grading.load_solution(write_notebook(tmp_path / "some.ipynb", list(cells)))


def test_what_the_rubric_needs_is_defined(tmp_path):
    module = load(
        tmp_path,
        "import math, torch\nfrom pathlib import Path\na, b = 1, 2.0\nc: int = a + 1",
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "d = Path('x') / 'y'",
        "if a == 1:\n    e = 'yes'\nelse:\n    e = 'no'",
        "try:\n    import no_such_module\nexcept ImportError:\n    f = 'fallback'",
        "half = lambda x: helper(x) / 2\ndef helper(x): return math.sqrt(x)",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3",
        "from os.path import *\ndef make(): return lambda x: open(x)\ntrain = make()",
        uses="b c device d e f half P",
    )
    assert (module.a, module.b, module.c, module.d) == (1, 2.0, 2, Path("x/y"))
    assert isinstance(module.device, torch.device) and callable(module.train)
    assert (module.e, module.f, module.half(16), module.P().x) == ("yes", "fallback", 2, 3)
    assert module.basename("x/y") == "y" and not module.__broken__


def test_what_the_rubric_does_not_need_does_not_run(tmp_path):
    (tmp_path / "beside.py").write_text("def work():\n    raise SystemExit('this must not run')\n")
    cells = [
        new_markdown_cell("# text"),
        new_code_cell("%matplotlib inline\nimport math\nimport beside\nsize = 2 * math.floor(4.2)"),
        new_code_cell("def scale(x):\n    return 2 * x + size"),
        new_code_cell("made = scale(1)\nmore = made + 1\nlong = beside.work()\nother = 3"),
        new_code_cell("beside.work()\nfor size in range(3): beside.work()"),
        new_code_cell("raise SystemExit('nor this')"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    module = grading.load_solution(tmp_path / "lesson.ipynb")
    assert module.scale(1) == 10 and module.other == 3 and not module.__broken__
    assert not {"made", "more", "long", "beside"} & set(vars(module))
    assert str(tmp_path) not in map(str, map(Path, sys.path))


HARMFUL = """
os.replace(kept, kept + '2') | move(kept, kept + '2')
[os.remove(f) for f in [kept]] | any(os.remove(f) for f in [kept])
os.truncate(kept, 0) | os.makedirs(made) | os.system('touch ' + made) | operating.unlink(kept)
getattr(os, 'remove')(kept) | vars(os)['remove'](kept) | os.__dict__['remove'](kept)
__import__('os').remove(kept) | sys.modules['os'].remove(kept) | eval('os.remove(kept)')
open(made, 'w') | Path(made).touch() | Path(made).write_text('') | Path(kept).unlink()
np.ones(3).tofile(made) | torch.from_file(made, True, 3) | torch.save(3, made) | wipe(kept)
shutil.rmtree(folder) | subprocess.run(['touch', made]) | pretrain() | train() | torch.load(kept)
"""


def test_what_touches_files_or_trains_is_left_out(tmp_path):
    (tmp_path / "kept").write_text("kept")
    calls = re.split(r" \| |\n", HARMFUL.strip())
    places = f"folder, kept, made = {[str(tmp_path / name) for name in ('', 'kept', 'made')]}"
    module = load(
        tmp_path,
        "import os, os as operating, shutil, subprocess, sys, torch\nimport numpy as np\n"
        "from os import rename as move\nfrom pathlib import Path",
        places,
        "def train(): open(made, 'w')\ndef wipe(x): return os.unlink(x)",
        "def pretrain():\n    open\n    return train()",
        *[f"v{number} = {call}" for number, call in enumerate(calls)],
        "fine = os.path.join('a', 'b'), os.environ.get('x'), os.getenv('x'), os.getcwd()\n"
        "good = os.cpu_count(), fine[0].replace('a', 'c'), getattr(fine, 'index')('a/b')",
        uses=" ".join(f"v{number}" for number in range(len(calls))) + " good",
    )
    left_out = {name: error for names, error in module.__broken__ for name in names}
    assert [calls[int(name[1:])] for name in vars(module) if re.match(r"v\d", name)] == []
    assert {type(error) for error in left_out.values()} == {rubric.NotTestable}
    assert module.good[1:] == ("c/b", 0)
    assert (tmp_path / "kept").read_text() == "kept" and not (tmp_path / "made").exists()


def test_what_does_not_run_is_noted(tmp_path):
    module = load(
        tmp_path,
        "def f(x=no_such_name): pass\ng = 1\nm = 1 / 0\nn = m + 1",
        "def h(:\n    pass\nk = 2",
        uses="f g h k n",
    )
    (names_h, error_h), (names_f, error_f), (names_m, error_m), (names_n, error_n) = (
        module.__broken__
    )
    assert {"h", "k"} <= names_h and "some.ipynb, cell 2 does not run: SyntaxError" in str(error_h)
    assert names_f == {"f"} and "NameError: name 'no_such_name' is not defined" in str(error_f)
    assert "m" in names_m and "ZeroDivisionError" in str(error_m)
    assert names_n == {"n"} and error_n is error_m  # the cause, not what follows from it
    assert module.g == 1 and not hasattr(module, "k")


def test_a_default_may_be_what_only_a_run_gives(tmp_path):
    module = load(tmp_path, "a = open('x')\ndef f(x=a): return x", uses="f")
    assert module.f() is None and module.f(2) == 2
    assert [names for names, _ in module.__broken__] == [{"a"}] and not hasattr(module, "a")


def test_the_data_are_made_up_and_the_loader_too_where_its_data_are_not_there(tmp_path):
    module = load(
        tmp_path,
        f"data_dir, output_dir = {str(tmp_path / 'big')!r}, {str(tmp_path / 'out')!r}",
        "def get_dataloader(folder):\n    return list(__import__('os').scandir(folder))",
        "mine, other = get_dataloader(data_dir), 3\nloader = get_dataloader('gone')",
        uses="mine loader output_dir",
    )
    assert len(module.mine) >= 1 and isinstance(module.loader, torch.utils.data.DataLoader)
    assert next(iter(module.loader))[0].shape == (1, 3, 32, 32)
    assert str(tmp_path) not in module.data_dir + module.output_dir


def test_settings_that_a_notebook_chooses_itself_are_taken(tmp_path):
    module = load(
        tmp_path,
        "size = None\nepochs = 7\npresets = {'full': dict(size=64, epochs=28)}",
        "settings = {n: v for n, v in presets['full'].items() if globals()[n] is None}",
        "globals().update(settings)\nhalf = size // 2",
        uses="half",
    )
    assert (module.size, module.epochs, module.half) == (64, 7, 32)
