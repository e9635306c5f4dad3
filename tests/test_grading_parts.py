"""Proof that a notebook is judged fairly where its parts depend on each other or are made twice."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import problem_unittests as rubric
from faces import grading

sys.path.insert(0, str(Path(__file__).parent))
from right_answers import CLASSIC, STYLES  # noqa: E402

POINTS = list(rubric.POINTS)
TRAINS = "n_epochs = 50\nlosses = train(D, G, n_epochs)"
LOOPS = "for epoch in range(3):\n    losses = train(D, G, 1)"
SIGMOID = CLASSIC.replace("torch.tanh(self.t_conv3(x))", "torch.sigmoid(self.t_conv3(x))")
GENERATOR = SIGMOID[SIGMOID.index("class Generator") : SIGMOID.index("def weights_init_normal")]


def graded(tmp_path: Path, *cells: str) -> dict[str, grading.Result]:
    path = tmp_path / "x.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return {result.point: result for result in grading.grade(path)}


def classic(*edits: tuple[str, str]) -> str:
    source = CLASSIC
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} is not there exactly once"
        source = source.replace(old, new)
    return source


# ---------------------------------------------------------------------- definitions made again


@pytest.mark.parametrize(
    ("cells", "judged"),
    [
        ([CLASSIC, TRAINS, SIGMOID, TRAINS], "the first"),
        ([CLASSIC, LOOPS, SIGMOID, LOOPS], "the first"),
        ([CLASSIC, SIGMOID], "the first"),
        ([CLASSIC, TRAINS, SIGMOID], "the first"),
        ([CLASSIC, SIGMOID, TRAINS], "the last"),  # it was not what the training used
        ([CLASSIC, TRAINS, GENERATOR], "the first"),
        ([CLASSIC, TRAINS, GENERATOR, TRAINS], "the last"),  # mended, and trained again
        ([CLASSIC, GENERATOR], "the last"),
    ],
)
def test_of_two_sets_of_definitions_that_which_was_trained_counts(tmp_path, cells, judged):
    results = graded(tmp_path, *cells)
    right = {point for point, result in results.items() if result.outcome == "PASSED"}
    assert right == set(POINTS) - ({"generator"} if judged == "the last" else set())
    said = (
        "There are two sets of definitions: the first is judged, not what begins at x.ipynb, cell"
    )
    assert results["train"].why.startswith(said) == (judged == "the first")


# ------------------------------------------------------------------------------- one fault


def test_one_fault_costs_one_point(tmp_path):
    results = graded(tmp_path, classic(("m.weight.data, 0.0, 0.02)", "m.weight.data, 0.0, 0.2)")))
    assert results["weights_init_normal"].outcome == "FAILED"
    built = results["build_network"]
    assert built.outcome == "NOT JUDGED"
    assert built.why == "build_network: not judged: see weights_init_normal."
    others = {
        r.outcome for p, r in results.items() if p not in (built.point, "weights_init_normal")
    }
    assert others == {"PASSED"}


def test_a_part_that_stops_costs_only_itself(tmp_path):
    results = graded(tmp_path, classic(("        if m.bias is not None:\n    ", "")))
    outcomes = {point: result.outcome for point, result in results.items()}
    users = dict.fromkeys(("build_network", "optimizers", "train"), "NOT JUDGED")
    passed = dict.fromkeys(POINTS, "PASSED")
    assert outcomes == passed | users | {"weights_init_normal": "FAILED"}


def test_a_fault_of_its_own_is_not_hidden_by_anothers(tmp_path):
    edits = [
        ("labels = torch.ones(D_out.size(0))", "labels = torch.zeros(D_out.size(0))"),
        ("G(z)\n            g_loss", "G(fixed_z[:batch_size])\n            g_loss"),
    ]
    results = graded(tmp_path, classic(*edits))
    assert results["real_loss"].outcome == results["train"].outcome == "FAILED"
    assert "the latents of G's training are all the same" in results["train"].why
    assert results["train"].why.endswith("(Found with a right real_loss in place of yours.)")
    results = graded(tmp_path, classic(edits[0]))
    assert results["real_loss"].outcome == "FAILED"
    assert results["train"].why == "train: not judged: see real_loss."


def test_what_takes_more_than_usual_has_no_stand_in(tmp_path):
    style = STYLES["a sigmoid and one loss for both, labels swapped now and then"]
    old = "torch.full_like(D_out, label)"
    assert style.count(old) == 1
    results = graded(tmp_path, CLASSIC, style.replace(old, "torch.full_like(D_out, 1 - label)"))
    failed = {point for point, result in results.items() if result.outcome == "FAILED"}
    assert failed >= {"real_loss", "fake_loss", "train"}
    assert "Found with" not in results["train"].why


def test_stand_ins_are_right():
    for name, part in grading._RIGHT.items():
        outcome, why = rubric.verdict(rubric.POINTS[name], part)
        assert (outcome, why) == ("PASSED", ""), name


def test_the_line_that_decides_is_named(tmp_path):
    results = graded(tmp_path, "import torch", classic(("x * (max - min) + min", "x")))
    line = results["scale"].line
    assert line.startswith("x.ipynb, cell 2, line ")
    assert line.endswith(": def scale(x, feature_range=(-1, 1)):")
    assert ": d_optimizer = optim.Adam(D.parameters()" in results["optimizers"].line


# ------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_costs_nothing(tmp_path, encoding):
    script, notebook = tmp_path / "x.py", tmp_path / "x.ipynb"
    scale = "def scale(x, feature_range=(-1, 1)):\n    return 2 * x - 1\n"
    script.write_text(scale, encoding=encoding)
    text = nbformat.writes(new_notebook(cells=[new_code_cell(scale)]))
    notebook.write_text(text, encoding=encoding)
    assert grading._notebooks(tmp_path) == [notebook, script]
    for path in (script, notebook):
        assert grading.load_solution(path).scale(1) == 1
