"""Proof that the rubric tests accept right answers and reject wrong ones by name."""

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

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


def test_what_bceloss_refuses_reaches_no_gpu():
    plain, half = mock.Mock(), torch.tensor([0.5])
    rubric._binary_cross_entropy(input=half, target=half, weight=None, plain=plain)
    for pair in ((half + 1, half), (half, half - 1)):
        with pytest.raises(RuntimeError, match="should be between 0 and 1"):
            rubric._binary_cross_entropy(*pair, plain=plain)
    plain.assert_called_once_with(half, half, weight=None)


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("reads", ["device", "1"])
def test_train_is_given_networks_where_it_expects_them(reads, is_built):
    """Also in a notebook that makes its networks, or moves them, after the test."""
    namespace = execute(CLASSIC)
    if not is_built:
        del namespace["D"], namespace["G"]
    namespace["device"] = torch.device("meta")
    place = "next(network.parameters()).device.type"
    body = f"    {reads}\n    raise ValueError([{place} for network in (D, G)])\n"
    exec(f"def train(D, G, n_epochs):\n{body}", namespace)
    expected = "meta" if reads == "device" else "cpu"
    assert f"ValueError: {[expected] * 2}" in failure("train", namespace)


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
