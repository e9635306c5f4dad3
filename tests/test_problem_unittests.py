"""Proof that the rubric tests accept right answers and reject wrong ones by name."""

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import problem_unittests as rubric

sys.path.insert(0, str(Path(__file__).parent))
from right_answers import CLASSIC, STYLES  # noqa: E402
from wrong_answers import COMPILED, WRONG_ANSWERS, Wrong  # noqa: E402

POINTS = {point: (test, names) for point, test, names in rubric._points()}
MODULE = Path(rubric.__file__)


def execute(*sources: str) -> dict:
    """Run the source text of a solution, as far as it runs; return its namespace."""
    namespace: dict = {"__name__": "solution"}
    for source in sources:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            exec(compile(source, "solution.py", "exec"), namespace)
    return namespace


def failure(point: str, namespace: dict) -> str:
    """Run a rubric test; return its message, or "" if it passed."""
    test, names = POINTS[point]
    try:
        test(*(namespace[name] for name in names))
    except AssertionError as error:
        assert error.__suppress_context__ or error.__context__ is None  # no chained traceback
        assert rubric._outcomes[-1][1:] == ("FAILED", str(error))
    return rubric._outcomes[-1][2]


def edited(wrong: Wrong) -> tuple[str, str]:
    """The source of a wrong answer: the classic solution and what its style changes."""
    style = STYLES[wrong.style]
    source = style or CLASSIC
    assert source.count(wrong.old) == 1, f"{wrong.old!r} is not there exactly once"
    source = source.replace(wrong.old, wrong.new)
    return (CLASSIC, source) if style else (source, "")


# ---------------------------------------------------------------------- right and wrong answers


@pytest.mark.parametrize("style", STYLES)
def test_right_answers_pass_all_tests(style):
    namespace = execute(CLASSIC, STYLES[style])
    assert {point: failure(point, namespace) for point in POINTS} == dict.fromkeys(POINTS, "")


@pytest.mark.parametrize("wrong", WRONG_ANSWERS, ids=lambda w: f"{w.test}-{w.new.strip()[:50]}")
def test_wrong_answers_are_rejected_by_name(wrong):
    message = failure(wrong.test, execute(*edited(wrong)))
    assert wrong.message in message
    assert rubric._outcomes[-1] == (f"test_{wrong.test}", wrong.outcome, message)
    assert len(message) < 500 and "\n" not in message and "tensor(" not in message
    assert not re.search(r"(?<!\.)\.\.(?!\.)|\.{4}", message)


def test_there_are_wrong_answers_for_each_point():
    counts = Counter(wrong.test for wrong in WRONG_ANSWERS)
    assert counts.keys() == POINTS.keys()
    assert min(counts.values()) >= 4


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("style", STYLES)
def test_no_false_alarm_for_other_seeds(style, seed, monkeypatch):
    fixed = rubric._fixed_randomness
    monkeypatch.setattr(rubric, "_fixed_randomness", lambda: fixed(seed))
    namespace = execute(CLASSIC, STYLES[style])
    assert {point: failure(point, namespace) for point in POINTS} == dict.fromkeys(POINTS, "")


def test_a_sigmoid_is_neither_right_nor_wrong_before_the_losses_are_known():
    source = CLASSIC[: CLASSIC.index("class Generator")]
    namespace = execute(source.replace("x = self.fc(x)", "x = self.fc(x).sigmoid()"))
    assert "right with nn.BCELoss, wrong with nn.BCEWith" in failure("discriminator", namespace)
    assert rubric._outcomes[-1][1] == "ADVICE"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("point", "old", "new", "why"),
    [
        ("train", "    samples = []\n", "    samples = []\n    D.to('cuda')\n", "it needs a GPU"),
        ("real_loss", "torch.ones(D_out.size(0))", "torch.ones(9, device='cuda')", "needs a GPU"),
        ("discriminator", "        self.bn3 = ", "        self.to('cuda').bn3 = ", "GPU"),
        (
            "train",
            "    samples = []\n",
            "    samples = np.load('moments.npy')\n",
            "something is missing: [Errno 2] No such file or directory: 'moments.npy'.",
        ),
        ("scale", "min, max = feature_range\n", "import no_such_module\n", "no_such_module"),
    ],
)
def test_what_this_machine_lacks_is_not_testable_here(point, old, new, why, capsys):
    assert CLASSIC.count(old) == 1
    assert why in failure(point, execute(CLASSIC.replace(old, new)))
    assert rubric._outcomes[-1][1] == "NOT TESTABLE HERE"
    assert capsys.readouterr().out.startswith("NOT TESTABLE HERE: ")


def test_a_dictionary_of_optimizers_cannot_be_guessed():
    namespace = execute(CLASSIC, STYLES[COMPILED])
    del namespace["optimizers"]
    assert "it needs optimizers, which is not defined yet" in failure("train", namespace)
    assert rubric._outcomes[-1][1] == "NOT TESTABLE HERE"


# ------------------------------------------------------------------------------ side effects


def test_a_passed_test_says_so_and_nothing_else(capsys):
    namespace = execute(CLASSIC)
    for point in POINTS:
        assert failure(point, namespace) == ""
        assert capsys.readouterr().out == "Tests Passed\n"


@pytest.mark.parametrize("point", POINTS)
def test_random_states_are_left_alone(point):
    namespace = execute(CLASSIC)

    def states():
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    failure(point, namespace)
    assert states() == before


@pytest.mark.parametrize("ending", ["", "    raise ValueError('stop')\n"])
def test_train_leaves_everything_as_it_was(ending):
    source = CLASSIC.replace("    return losses\n", ending + "    return losses\n")
    source = source.replace(
        "    losses = []\n",
        "    log.append(1)\n    global new\n    new = 1\n"
        "    losses = []\n    import matplotlib.pyplot as plt\n"
        "    plt.figure()\n    plt.show()\n",
    )
    namespace = execute(source)
    namespace.update(log=[], celeba_train_loader="the user's own", batch_size=64, np=np)
    weights = [p.detach().clone() for net in "DG" for p in namespace[net].parameters()]
    before, folder, figures = dict(namespace), os.getcwd(), plt.get_fignums()
    files = sorted(os.listdir())
    assert failure("train", namespace).endswith("ValueError: stop") == bool(ending) or ending
    assert namespace == before and namespace["log"] == []
    assert [p.grad for p in namespace["D"].parameters()] == [None] * 10
    after = [p for net in "DG" for p in namespace[net].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert not namespace["d_optimizer"].state
    assert (os.getcwd(), plt.get_fignums(), sorted(os.listdir())) == (folder, figures, files)
    assert not torch.nn.modules.module._global_forward_hooks


def test_train_leaves_what_its_helper_functions_change():
    source = CLASSIC.replace("g_optimizer.step()\n", "g_optimizer.step()\n            keep()\n")
    keep = (
        "import copy\nG_ema, history = copy.deepcopy(G), []\n\n\ndef move(a, b):\n"
        "    history.append(a.lerp_(b, 0.1))\n\n\ndef keep():\n    with torch.no_grad():\n"
        "        for a in G_ema.parameters():\n            move(a, torch.ones_like(a))\n"
    )
    namespace = execute(source, keep)
    before = [p.detach().clone() for p in namespace["G_ema"].parameters()]
    assert failure("train", namespace) == "" and namespace["history"] == []
    after = namespace["G_ema"].parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_works_as_a_single_file_without_pytest(tmp_path):
    shutil.copy(MODULE, tmp_path)
    code = (
        "import sys\n"
        "for name in ('pytest', 'helpers', 'faces', 'nbformat', 'IPython'):\n"
        "    sys.modules[name] = None\n"
        "import problem_unittests as tests\n"
        "tests.test_scale(lambda x, feature_range=(-1, 1): 2 * x - 1)\n"
        "try: tests.test_scale(lambda x: x)\n"
        "except AssertionError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("Tests Passed\nscale: [0, 1] is not mapped to [-1, 1]: scale(")


# ------------------------------------------------------------------------ notebooks on disk

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


def write_notebook(path: Path, cells: list[str]) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def outcomes(path: Path) -> dict[str, str]:
    return {result.point: result.outcome for result in rubric.grade(path)}


ALL_PASSED = dict.fromkeys(POINTS, "passed")


@pytest.mark.skipif(not rubric.NOTEBOOK.exists(), reason="the notebook is not there")
def test_this_projects_notebook_passes(cache):
    assert outcomes(rubric.NOTEBOOK) == ALL_PASSED
    assert not cache.exists()  # no data were downloaded or drawn for it


def test_the_unsolved_starter_fails_every_point_with_a_sentence(tmp_path, capsys):
    starter = write_notebook(tmp_path / "starter.ipynb", STARTER)
    reasons = {result.point: result for result in rubric.grade(starter)}
    assert {result.outcome for result in reasons.values()} == {"FAILED"}
    for point, words in {
        "get_dataloader": "it returns None. Expected a DataLoader",
        "scale": "[0, 1] is not mapped to [-1, 1]",
        "discriminator": "it has no layers with weights",
        "generator": "it has no layers with weights",
        "weights_init_normal": "the weights of Conv2d are left as they were",
        "build_network": "D has no layers with weights",
        "real_loss": "cell 13 does not run: SyntaxError: invalid syntax, line 2",
        "fake_loss": "cell 13 does not run: SyntaxError",
        "optimizers": "cell 14 does not run: SyntaxError: invalid syntax, line 2",
        "train": "cell 15 does not run: SyntaxError: invalid syntax, line 2",
    }.items():
        assert words in reasons[point].why
    assert rubric.main([str(starter)]) == 1
    assert capsys.readouterr().out.endswith("0 passed, 10 FAILED, 0 not found\n")


def test_functions_that_return_none_fail_with_a_sentence():
    namespace = execute(
        "from torch import nn\nclass Discriminator(nn.Module): pass\n"
        "class Generator(nn.Module):\n    def __init__(self, *sizes): super().__init__()\n"
        + "".join(
            f"def {name}(*args): pass\n"
            for name in (
                "get_dataloader",
                "scale",
                "weights_init_normal",
                "build_network",
                "real_loss",
                "fake_loss",
                "train",
            )
        )
        + "d_optimizer = g_optimizer = None\nD, G = nn.Linear(1, 1), nn.Linear(1, 1)\n"
    )
    expected = {
        "get_dataloader": "get_dataloader: it returns None",
        "scale": "scale: the result must be a tensor. Expected a tensor, got None",
        "discriminator": "Discriminator: the code stopped with TypeError",
        "generator": "Generator: it has no layers with weights",
        "weights_init_normal": "the weights of Conv2d are left as they were",
        "build_network": "build_network must return both networks (D, G), not None",
        "real_loss": "the loss must be a tensor. Expected a tensor, got None",
        "fake_loss": "the loss must be a tensor. Expected a tensor, got None",
        "optimizers": "d_optimizer is not an optimizer",
        "train": "train: build_network must return both networks",
    }
    assert {p: m for p, m in expected.items() if m not in failure(p, namespace)} == {}


def test_a_notebook_is_graded_without_its_training_and_data(tmp_path):
    (tmp_path / "settings.py").write_text("raise RuntimeError('not importable')")
    cells = CLASSIC.replace("import torch\n", "import torch, no_such_module\n").split("\n\n\n")
    cells = [
        "%matplotlib inline\n!unzip processed_celeba_small.zip\nimport settings",
        "%%time\n" + cells[0],
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
    old = write_notebook(tmp_path / "old.ipynb", cells)
    nbformat.write(nbformat.convert(nbformat.read(old, as_version=4), 3), old, version=3)
    assert outcomes(old) == ALL_PASSED


@pytest.mark.parametrize(
    ("definitions", "work", "used"),
    [
        ("def fetch(url):\n    open(made, 'w')\n    return url", "DATA = fetch('x')", "DATA"),
        ("def download(url):\n    np.savetxt(made, [1])", "DATA = download('x')", "DATA"),
        ("from urllib import request", "DATA = request.urlretrieve('file:', made)", "DATA"),
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
        expected["train"] = "FAILED"
    results = rubric.grade(path)
    assert {result.point: result.outcome for result in results} == expected
    assert (used == "history.losses") != (f"name '{used}' is not defined" in results[-1].why)
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
    why = {result.point: result.why for result in rubric.grade(path)}["optimizers"]
    assert "has no attribute 'parameter', cell 2, line " in why
    assert why.endswith("(d_optimizer = optim.Adam(D.parameter(), lr, [beta1, beta2])).")


def test_a_broken_cell_costs_only_what_it_defines(tmp_path, capsys):
    cells = CLASSIC.replace("def scale(x, feature_range=(-1, 1)):", "def scale(x, :").split(
        "\n\n\n"
    )
    path = write_notebook(tmp_path / "broken.ipynb", cells)
    results = {result.point: result for result in rubric.grade(path)}
    assert results["scale"].outcome == "FAILED"
    assert "broken.ipynb, cell 3 does not run: SyntaxError" in results["scale"].why
    assert results["train"].outcome == "FAILED"
    assert "NameError: name 'scale' is not defined" in results["train"].why
    passed = {point for point, result in results.items() if result.outcome == "passed"}
    assert passed == POINTS.keys() - {"scale", "train"}


def test_what_is_not_there_is_not_found_and_costs_nothing(tmp_path, capsys):
    part = CLASSIC[: CLASSIC.index("class Discriminator")]
    path = write_notebook(tmp_path / "part.ipynb", [part])
    assert rubric.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "generator            not found  the notebook does not define Generator." in out
    assert out.endswith("2 passed, 0 FAILED, 8 not found\n")
    assert rubric.main([str(write_notebook(tmp_path / "empty.ipynb", ["x = 1"]))]) == 1


@pytest.mark.parametrize("content", [None, "no notebook", '{"a": 1}', "[1]", '{"cells": [1]}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, capsys, content):
    path = tmp_path / "other.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        rubric.main([str(path)])
    assert stopped.value.code == 2
    assert f"{path} cannot be read as a notebook" in capsys.readouterr().err


def test_the_help_says_that_code_is_executed(capsys):
    with pytest.raises(SystemExit):
        rubric.main(["--help"])
    assert "The code of the solution is executed" in capsys.readouterr().out


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in a folder with nothing of this project on its path."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-I", *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["solution.ipynb", "dlnd_face_generation.ipynb"])
def test_this_one_file_grades_a_notebook_beside_it(tmp_path, name):
    shutil.copy(MODULE, tmp_path)
    write_notebook(tmp_path / name, CLASSIC.split("\n\n\n"))
    for module in ("helpers", "faces"):
        missing = run_alone(tmp_path, "-c", f"import {module}")
        assert missing.stderr.endswith(f"No module named '{module}'\n")
    if name == "solution.ipynb":
        run = run_alone(tmp_path, MODULE.name, name)
        expected = "10 passed, 0 FAILED, 0 not found\n"
    else:
        run = run_alone(tmp_path, "-m", "pytest", "-q", MODULE.name)
        expected = "\n10 passed in "
    assert expected in run.stdout and run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""


def test_pytest_and_the_command_line_use_the_notebook_beside_the_module(tmp_path):
    shutil.copy(MODULE, tmp_path)
    broken = CLASSIC.replace("torch.tanh(self.t_conv3(x))", "self.t_conv3(x)")
    write_notebook(tmp_path / "dlnd_face_generation.ipynb", [broken])
    for command, expected in (
        (
            ["-m", "pytest", "-q", MODULE.name, "-k", "scale or generator"],
            ["1 failed, 1 passed", "leave [-1, 1]"],
        ),
        ([MODULE.name], ["generator            FAILED     Generator: pixel values leave [-1, 1]"]),
    ):
        run = run_alone(tmp_path, *command)
        assert run.returncode == 1
        assert all(words in run.stdout for words in expected), run.stdout


# ---------------------------------------------------------------- a notebook's definitions


def load(tmp_path: Path, *cells: str) -> types.ModuleType:
    return rubric.load_definitions(write_notebook(tmp_path / "some.ipynb", list(cells)))


def test_definitions_and_constants_are_loaded(tmp_path):
    module = load(
        tmp_path,
        "import math, torch\nfrom pathlib import Path\na, b = 1, 2.0\nc: int = a + 1",
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "d = Path('x') / 'y'",
        "if a == 1:\n    e = 'yes'\nelse:\n    e = 'no'",
        "try:\n    import no_such_module\nexcept ImportError:\n    f = 'fallback'",
        "half = lambda x: helper(x) / 2\ndef helper(x): return math.sqrt(x)",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3",
    )
    assert (module.a, module.b, module.c, module.d) == (1, 2.0, 2, Path("x/y"))
    assert isinstance(module.device, torch.device)
    assert (module.e, module.f, module.half(16), module.P().x) == ("yes", "fallback", 2, 3)


def test_what_works_or_reads_files_is_left_out(tmp_path):
    (tmp_path / "mine.py").write_text("def work(): raise AssertionError('ran')")
    module = load(
        tmp_path,
        "import mine, os, torch\nn = 5\ndef train(): raise AssertionError('ran')",
        "losses = train()\nresult = mine.work()\nn = mine.work()\nm = n + 1",
        "weights = torch.load('x')\nfile = open('made', 'w')\nos.makedirs('made')",
        "x = os.makedirs('made')\nos.system('exit 1')",
        "y = no_such_name\nz = 1 / 0",
    )
    for name in ("losses", "result", "m", "weights", "file", "x", "y", "z"):
        assert not hasattr(module, name)
    assert module.n == 5 and not Path("made").exists() and not (tmp_path / "made").exists()


def test_what_does_not_run_is_noted(tmp_path):
    module = load(tmp_path, "def f(x=no_such_name): pass\ng = 1", "def h(:\n    pass\nk = 2")
    (names_f, message_f), (names_h, message_h) = module.__broken__
    assert names_f == {"f"} and "NameError: name 'no_such_name' is not defined" in message_f
    assert {"h", "k"} <= names_h and "some.ipynb, cell 2 does not run: SyntaxError" in message_h
    assert module.g == 1 and not hasattr(module, "k")


def test_a_default_may_be_what_only_a_run_gives(tmp_path):
    module = load(tmp_path, "import mine\na = mine.work()\ndef f(x=a): return x", "y = [a]")
    assert module.f() is None and module.f(2) == 2 and not module.__broken__
    assert not hasattr(module, "a") and not hasattr(module, "y")


def test_only_definitions_of_a_notebook_run(tmp_path):
    cells = [
        new_markdown_cell("# text"),
        new_code_cell("%matplotlib inline\nimport math\nimport beside\nsize = 2 * math.floor(4.2)"),
        new_code_cell("def double(x):\n    return 2 * x + size"),
        new_code_cell("made = double(1)\nmore = made + 1\nlong = beside.work()\nother = 3"),
        new_code_cell("raise SystemExit('this must not run')"),
    ]
    (tmp_path / "beside.py").write_text("def work():\n    raise SystemExit('nor this')\n")
    nbformat.write(new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    module = rubric.load_definitions(tmp_path / "lesson.ipynb")
    assert module.double(1) == 10 and module.other == 3
    assert not {"made", "more", "long"} & set(vars(module))
    assert str(tmp_path) not in map(str, map(Path, sys.path))


def test_settings_that_are_none_take_the_first_presets_values(tmp_path):
    module = load(
        tmp_path,
        "size = None\nepochs = 7\nimages = None",
        "presets = {'full': dict(size=64, epochs=28), 'quick': {'size': 32, 'epochs': 2}}",
        "half = size // 2",
    )
    assert (module.size, module.epochs, module.images, module.half) == (64, 7, None, 32)
