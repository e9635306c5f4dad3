"""What a breaker of the grader found: outcomes of one's own, and accidents that cost too much."""

import json

import pytest
from right_answers import CLASSIC
from test_grading import outcomes, write_notebook

import problem_unittests as rubric
from faces import grading

NAMES = "get_dataloader = scale = Discriminator = Generator = weights_init_normal = build_network"
NAMES += " = real_loss = fake_loss = d_optimizer = g_optimizer = D = G = train"
OWN = "import problem_unittests as tests\nclass Ok(tests.Wrong):\n    outcome = 'PASSED'\n"
NAMED = "class ok:\n    outcome = 'PASSED'\ndef f(*a, **k):\n    ok\n"
NAMED += "    raise NameError(\"name 'ok' is not defined\")\n"


@pytest.mark.parametrize(
    "source",
    [
        f"{OWN}{NAMES} = Ok()",
        f"{OWN}def f(*a, **k):\n    raise Ok()\n{NAMES} = f",
        f"{NAMED}{NAMES} = f",
    ],
)
def test_an_outcome_of_ones_own_passes_nothing(tmp_path, source):
    found = outcomes(write_notebook(tmp_path / "x.ipynb", [source]))
    assert not {"PASSED", "ADVICE"} & set(found.values())


def test_a_table_of_the_tests_cannot_be_emptied_unseen(tmp_path):
    wrong = CLASSIC.replace(
        "g_loss = real_loss(D(fake_images))", "g_loss = fake_loss(D(fake_images))"
    )
    assert wrong != CLASSIC
    trick = "import problem_unittests as tests\nclass X:\n"
    trick += "    tests._FAULTY.clear()\n    tests._WANTED.clear()\n"
    wrong = wrong.replace(
        "def train(D, G, n_epochs, print_every=50", "def train(D, G, n_epochs, print_every=50, x=X"
    )
    before = dict(rubric._FAULTY), dict(rubric._WANTED)
    found = outcomes(write_notebook(tmp_path / "x.ipynb", [trick, *wrong.split("\n\n\n")]))
    assert found["train"] == "FAILED" and (rubric._FAULTY, rubric._WANTED) == before


@pytest.mark.parametrize(
    "raised",
    ["KeyboardInterrupt()", "BaseExceptionGroup('two', [KeyboardInterrupt()])", "Odd()"],
)
def test_whatever_is_raised_costs_its_point_only(tmp_path, raised):
    odd = "class Odd(Exception):\n    def __str__(self):\n        return None\n"
    scale = f"def scale(x, feature_range=(-1, 1)):\n    raise {raised}\n"
    cells = [*CLASSIC.split("\n\n\n"), odd, scale]
    found = outcomes(write_notebook(tmp_path / "x.ipynb", cells))
    assert found["scale"] == "FAILED" and found["discriminator"] == found["generator"] == "PASSED"


def test_a_command_of_several_lines_costs_no_cell(tmp_path):
    first, *others = CLASSIC.split("\n\n\n")
    pip = "!pip install -q torch \\\n    torchvision\n"
    found = outcomes(write_notebook(tmp_path / "x.ipynb", [pip + first, *others]))
    assert set(found.values()) == {"PASSED"}


@pytest.mark.parametrize("cell", ["x = '\ud800'", "x = 1" + " + 1" * 20_000])
def test_a_cell_that_cannot_be_compiled_costs_what_it_defines(tmp_path, cell):
    path = write_notebook(tmp_path / "x.ipynb", [*CLASSIC.split("\n\n\n")])
    notebook = json.loads(path.read_text())
    notebook["cells"].append(notebook["cells"][0] | {"source": cell, "id": "odd"})
    path.write_text(json.dumps(notebook))  # with the half character escaped
    assert set(outcomes(path).values()) == {"PASSED"}


def test_optimizers_may_be_defaults_or_in_a_namespace(tmp_path):
    given = CLASSIC.replace(
        "def train(D, G, n_epochs, print_every=50",
        "def train(D, G, n_epochs, print_every=50, d_opt=d_optimizer, loader=celeba_train_loader",
    ).replace("d_optimizer.step()", "d_opt.step()")
    given = given.replace("in enumerate(celeba_train_loader)", "in enumerate(loader)")
    made = "celeba_train_loader = get_dataloader(64, 32, 'processed_celeba_small/')"
    given = given.replace("def train(", f"{made}\n\n\ndef train(")
    kept = CLASSIC.replace("d_optimizer.step()", "kept.d_opt.step()").replace(
        "def train(",
        "import types\nkept = types.SimpleNamespace(d_opt=d_optimizer)\n\n\ndef train(",
    )
    for number, source in enumerate((given, kept)):
        assert source.count("d_opt.step()") == 1
        found = outcomes(write_notebook(tmp_path / f"{number}.ipynb", source.split("\n\n\n")))
        assert found["train"] == "PASSED"


def test_a_module_is_found_by_a_cell_of_one_text_and_a_dangling_link_is_passed_over(tmp_path):
    path = write_notebook(tmp_path / "x.ipynb", ["import torch\nfrom mine import a  # and utils"])
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "import torch\nfrom mine import a\nimport utils"
    path.write_text(json.dumps(notebook))
    (tmp_path / "mine.py").write_text("a = 1")
    (tmp_path / "utils.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "copy").mkdir()
    grading._copy(path, set(), tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["mine.py", "x.ipynb"]
