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

MODULE = Path(rubric.__file__)
CHANCE = [  # the styles in which most is left to chance
    "label smoothing always on, with random labels for both",
    "initialisation of biases from N(0, 0.02) too, new tensors",
    "a sigmoid and one loss for both, labels swapped now and then",
    "hinge loss, minibatch deviation, attention, a head by einsum, a gradient penalty",
    "hinge loss in the loop, groups' deviation, augmentation, a penalty on real images",
    "a GPU without asking for one, an augmentation by indices, other names",
]


def execute(*sources: str) -> dict:
    """Run the source text of a solution, as far as it runs; return its namespace."""
    namespace: dict = {"__name__": "solution"}
    for source in sources:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            exec(compile(source, "solution.py", "exec"), namespace)
    return namespace


def verdict(point: str, namespace: dict) -> tuple[str, str]:
    """The outcome of a rubric test on a solution, and the sentence for it."""
    names = rubric.POINTS[point].names
    return rubric.verdict(rubric.POINTS[point], *(namespace[name] for name in names))


def edited(wrong: Wrong) -> tuple[str, str]:
    """The source of a wrong answer: the classic solution and what its style changes."""
    style = STYLES[wrong.style]
    source = style or CLASSIC
    assert source.count(wrong.old) == 1, f"{wrong.old!r} is not there exactly once"
    source = source.replace(wrong.old, wrong.new)
    return (CLASSIC, source) if style else (source, "")


# ---------------------------------------------------------------------- right and wrong answers


SEEDS = [(style, None) for style in STYLES] + [(s, seed) for s in CHANCE for seed in (1, 2)]


@pytest.mark.parametrize(("style", "seed"), SEEDS)
def test_right_answers_pass_all_tests(style, seed, monkeypatch):
    if seed:
        fixed = rubric._fixed_randomness
        monkeypatch.setattr(rubric, "_fixed_randomness", lambda: fixed(seed))
    namespace = execute(CLASSIC, STYLES[style])
    found = {point: verdict(point, namespace) for point in rubric.POINTS}
    assert found == dict.fromkeys(rubric.POINTS, ("PASSED", ""))


@pytest.mark.parametrize("wrong", WRONG_ANSWERS, ids=lambda w: f"{w.test}-{w.new.strip()[:50]}")
def test_wrong_answers_are_rejected_by_name(wrong):
    outcome, message = verdict(wrong.test, execute(*edited(wrong)))
    assert wrong.message in message and outcome == wrong.outcome
    assert len(message) < 500 and "\n" not in message and "tensor(" not in message
    assert not re.search(r"(?<!\.)\.\.(?!\.)|\.{4}", message)


def test_there_are_wrong_answers_for_each_point():
    counts = Counter(wrong.test for wrong in WRONG_ANSWERS)
    assert counts.keys() == rubric.POINTS.keys()
    assert min(counts.values()) >= 4


def test_a_sigmoid_is_neither_right_nor_wrong_before_the_losses_are_known():
    source = CLASSIC[: CLASSIC.index("class Generator")]
    namespace = execute(source.replace("x = self.fc(x)", "x = self.fc(x).sigmoid()"))
    outcome, why = verdict("discriminator", namespace)
    assert outcome == "ADVICE" and "right with nn.BCELoss, wrong with nn.BCEWith" in why


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("point", "old", "new", "why"),
    [
        ("train", "    samples = []\n", "    samples = []\n    D.to('cuda')\n", "it needs a GPU"),
        ("real_loss", "torch.ones(D_out.size(0))", "torch.ones(9, device='cuda')", "needs a GPU"),
        ("train", "    samples = []\n", "    torch.Generator('cuda')\n    samples = []\n", "a GPU"),
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
def test_what_this_machine_lacks_is_not_testable_here(point, old, new, why):
    assert CLASSIC.count(old) == 1
    outcome, sentence = verdict(point, execute(CLASSIC.replace(old, new)))
    assert outcome == "NOT TESTABLE HERE" and why in sentence


@pytest.mark.parametrize(
    ("point", "old", "new", "why"),
    [
        ("scale", "min, max = ", "raise FileNotFoundError('x')\n    min, max = ", "FileNotFound"),
        ("scale", "min, max = ", "raise ModuleNotFoundError('x')\n    min, max = ", "NotFound"),
        ("scale", "min, max = ", "raise RuntimeError('No CUDA GPUs are')\n    min, max = ", "CUDA"),
        ("scale", "min, max = ", "assert torch is None, 'cuda'\n    min, max = ", "cuda"),
        ("train", "    samples = []\n", "    samples = [cuda_is_there]\n", "name 'cuda_is_there'"),
        (
            "train",
            "    samples = []\n",
            "    samples = torch.ones(2).cuda_()\n",
            "attribute 'cuda_'",
        ),
    ],
)
def test_what_the_code_raises_is_no_lack_of_this_machine(point, old, new, why):
    assert CLASSIC.count(old) == 1
    outcome, sentence = verdict(point, execute(CLASSIC.replace(old, new)))
    assert outcome == "FAILED" and "the code stopped with " in sentence and why in sentence


def test_an_array_that_the_training_converts_is_only_advised_against():
    scale = "low, high = feature_range\n    return np.interp(x, (0, 1), (low, high))\n"
    source = CLASSIC.replace("min, max = feature_range\n", scale)
    namespace = execute(source)
    assert verdict("scale", namespace)[0] == "FAILED"  # its training hands the array to D
    converts = "torch.from_numpy(scale(real_images)).float()"
    namespace = execute(source.replace("= scale(real_images)", f"= {converts}"))
    outcome, why = verdict("scale", namespace)
    assert outcome == "ADVICE" and "it gives a NumPy array, which train converts" in why
    assert verdict("train", namespace) == ("PASSED", "")


@pytest.mark.parametrize("seed", range(4))
def test_dropout_on_the_logit_is_no_fault_of_the_training(seed, monkeypatch):
    fixed = rubric._fixed_randomness
    monkeypatch.setattr(rubric, "_fixed_randomness", lambda: fixed(seed))
    answer = "x = self.fc(x)\n        return x"
    dropped = "return F.dropout(self.fc(x), 0.5, self.training)"
    assert CLASSIC.count(answer) == 1
    namespace = execute(CLASSIC.replace(answer, dropped))
    assert verdict("train", namespace) == ("PASSED", "")


def test_a_norm_without_a_running_mean_may_run_twice():
    layer = "F.leaky_relu(self.bn2(self.conv2(x)), 0.2)"
    source = CLASSIC.replace(layer, f"self.bn2({layer})").replace(
        "nn.BatchNorm2d(conv_dim * 2)", "nn.BatchNorm2d(conv_dim * 2, track_running_stats=False)"
    )
    assert verdict("discriminator", execute(source)) == ("PASSED", "")


WRITES = """
os.makedirs(place, exist_ok=True)
os.path.isdir(place + '/deep') or os.mkdir(place + '/deep')
os.path.isdir(place + '/deep') or os.mkdir(place + '/deep')
open(place + '/deep/log', 'w').write('led')
assert open(place + '/deep/log').read() == Path(place, 'deep/log').read_text() == 'led'
Path(place, 'note').write_text('led')
np.save(place + '/array', np.zeros(2))
torch.save(D.state_dict(), place + '/D.pt')
torch.load(place + '/D.pt')
torch.save(D.state_dict(), Path('../../D.pt'))
os.replace(place + '/note', place + '/deep/renamed')
shutil.rmtree(place + '/deep')
assert not os.path.isdir(place + '/deep')
for delete in (os.remove, os.unlink, Path.unlink, shutil.rmtree):
    try:
        delete(Path(kept))
    except FileNotFoundError:
        pass
open('mine', 'w').close()
os.replace('mine', 'mine too')
os.rename('mine too', 'mine')
assert open(kept).read() == 'kept' and os.path.exists('mine')
"""


def test_what_is_written_to_absolute_folders_is_led_into_the_temporary_one(tmp_path, monkeypatch):
    for name in ("temporary", "kept"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(rubric.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "kept" / "file").write_text("kept")
    places = f"    place, kept = {str(tmp_path / 'new')!r}, {str(tmp_path / 'kept' / 'file')!r}\n"
    body = "".join(f"        {line}\n" for line in WRITES.strip().splitlines())
    source = "import os, shutil\nfrom pathlib import Path\n" + CLASSIC.replace(
        "    samples = []\n", f"    samples = []\n{places}"
    ).replace("        G.eval()\n", f"{body}        G.eval()\n")
    assert verdict("train", execute(source)) == ("PASSED", "")
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == ["file", "kept", "temporary"]
    assert open is io.open and torch.save.__module__ == "torch.serialization"


def test_a_long_line_is_shortened(tmp_path):
    long = "x = [" + "1, " * 30_000 + "1]"
    path = tmp_path / "long.py"
    path.write_text(f"def scale(x):\n    {long} / 2\n")
    namespace: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    _, why = rubric.verdict(rubric.POINTS["scale"], namespace["scale"])
    assert "line 2 (x = [1, 1," in why and len(why) < 500


def test_a_dictionary_of_optimizers_cannot_be_guessed():
    namespace = execute(CLASSIC, STYLES[COMPILED])
    del namespace["optimizers"]
    outcome, why = verdict("train", namespace)
    assert outcome == "NOT TESTABLE HERE" and "optimizers, which is not defined yet" in why


# ------------------------------------------------------------------------------ side effects


def test_a_passed_test_says_so_and_leaves_random_states_alone(capsys):
    namespace = execute(CLASSIC)

    def states():
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    for name, (_, _, parts) in zip(rubric.__all__, rubric.POINTS.values(), strict=True):
        before = states()
        getattr(rubric, name)(*(namespace[part] for part in parts))
        assert (states(), capsys.readouterr().out) == (before, "Tests Passed\n"), name


def test_what_is_not_passed_is_raised_or_printed(capsys):
    with pytest.raises(AssertionError, match="scale: .* must be -0.5, got 0.25") as raised:
        rubric.test_scale(lambda x: x)
    assert raised.value.__context__ is None  # no chained traceback
    with pytest.raises(AssertionError, match="^scale: it is not there.$"):
        rubric.test_scale(scale=rubric.NotFound("it is not there."))  # as pytest calls it
    rubric.test_scale(lambda x, feature_range=(-1, 1): x * 2 - feature_range[1])
    assert capsys.readouterr().out.startswith("ADVICE: scale: feature_range=(-3, 5) is not")
    rubric.test_scale(lambda x: np.load("moments.npy"))
    assert capsys.readouterr().out.startswith("NOT TESTABLE HERE: scale: something is missing: ")


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
    assert "ValueError: stop" in verdict("train", namespace)[1] or not ending
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
    assert f"ValueError: {[expected] * 2}" in verdict("train", namespace)[1]


def test_train_leaves_what_its_helper_functions_change():
    source = CLASSIC.replace("g_optimizer.step()\n", "g_optimizer.step()\n            keep()\n")
    keep = (
        "import copy\nG_ema, history = copy.deepcopy(G), []\n\n\ndef move(a, b):\n"
        "    history.append(a.lerp_(b, 0.1))\n\n\ndef keep():\n    with torch.no_grad():\n"
        "        for a in G_ema.parameters():\n            move(a, torch.ones_like(a))\n"
    )
    namespace = execute(source, keep)
    before = [p.detach().clone() for p in namespace["G_ema"].parameters()]
    assert verdict("train", namespace) == ("PASSED", "") and namespace["history"] == []
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
        "get_dataloader = scale = weights_init_normal = build_network = lambda *args: None\n"
        "real_loss = fake_loss = train = lambda *args: None\n"
        "d_optimizer = g_optimizer = None\nD, G = nn.Linear(1, 1), nn.Linear(1, 1)\n"
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
    assert {p: m for p, m in expected.items() if m not in verdict(p, namespace)[1]} == {}
