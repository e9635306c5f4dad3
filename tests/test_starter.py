"""The starter notebook: what is left to write, and what the tests say until it is written."""

import functools
import json
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

import problem_unittests as rubric
from faces import grading, starter
from faces.__main__ import main
from faces.files import NOTEBOOK

FINISHED = nbformat.read(NOTEBOOK, as_version=4)
PLAIN, ASSIGNMENT = (
    nbformat.reads(json.dumps(starter.make_starter(nbgrader)), as_version=4)
    for nbgrader in (False, True)
)
TOLD = re.compile(r"^\n? *# Your part\. It must\n(?: *# (?:- |  ).*\n)+", re.MULTILINE)
RAISE = re.compile(r'^ *raise NotImplementedError\((.*?)"\n? *\)$', re.MULTILINE | re.DOTALL)
SOLUTION = re.compile(r"^ *### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION$", re.M | re.DOTALL)

# What is left to write, and the point of the rubric that it is of.
GAPS = {
    "get_dataloader": "get_dataloader",
    "scale": "scale",
    "Discriminator.__init__": "discriminator",
    "Discriminator.forward": "discriminator",
    "Generator.__init__": "generator",
    "Generator.forward": "generator",
    "weights_init_normal": "weights_init_normal",
    "build_network": "build_network",
    "real_loss": "real_loss",
    "fake_loss": "fake_loss",
    "train": "train",
    "build_optimizers": "optimizers",
}


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """The lines of a notebook's code, without empty ones."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [line for source in cells for line in source.splitlines() if line]


def changed(notebook: nbformat.NotebookNode, change: Callable[[str], str]) -> nbformat.NotebookNode:
    """A copy of a notebook with changed code."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.source = change(cell.source)
    return copy


def put_back(source: str) -> str:
    """Code of the assignment as it is in the finished notebook."""
    return SOLUTION.sub(r"\1", TOLD.sub("", source))


@functools.cache
def without(gap: str) -> nbformat.NotebookNode:
    """The notebook with one thing left to write, as the starter has it."""
    sources = [cell.source for cell in PLAIN.cells if "graded" in cell.metadata.get("tags", [])]
    raises = iter([match[0] for source in sources for match in RAISE.finditer(source)])

    def leave(solution: re.Match[str]) -> str:
        raised = next(raises)
        return raised if f'"{gap} is not written yet' in raised else solution[1]

    return changed(ASSIGNMENT, lambda source: SOLUTION.sub(leave, source))


def load(notebook: nbformat.NotebookNode, folder: Path) -> object:
    nbformat.write(notebook, folder / "x.ipynb")
    return grading.load_solution(folder / "x.ipynb")


# ------------------------------------------------------------------------------ what it has


def test_only_what_is_graded_is_left_to_write():
    nbformat.validate(PLAIN)
    welcome = PLAIN.cells[1]
    assert "10 parts are left for you to write" in welcome.source
    others = [cell for cell in PLAIN.cells if cell is not welcome]
    n_parts = 0
    for cell, finished in zip(others, FINISHED.cells, strict=True):
        assert (cell.id, cell.metadata) == (finished.id, finished.metadata)
        is_part = "graded" in cell.metadata.get("tags", [])
        assert (cell.source != finished.source) == is_part
        n_parts += is_part
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert max(map(len, cell.source.splitlines())) <= 100
    assert n_parts >= 9 and PLAIN.metadata == FINISHED.metadata


def test_with_the_bodies_put_back_it_is_the_notebook(tmp_path):
    whole = changed(ASSIGNMENT, put_back)
    assert code(whole) == code(FINISHED)
    emptied = changed(ASSIGNMENT, lambda source: SOLUTION.sub("", source))
    assert code(emptied) == code(changed(PLAIN, lambda source: RAISE.sub("", source)))
    nbformat.write(whole, tmp_path / "x.ipynb")
    outcomes = {result.point: result.outcome for result in grading.grade(tmp_path / "x.ipynb")}
    assert outcomes == dict.fromkeys(rubric.POINTS, "PASSED")


def test_each_part_says_what_it_must_do():
    sources = [cell.source for cell in PLAIN.cells if "graded" in cell.metadata.get("tags", [])]
    assert "\n".join(sources).count("# Your part. It must") == len(rubric.POINTS)
    classes = {"Discriminator", "Generator"}
    assert starter.TASKS.keys() == {*GAPS, *classes}
    for name, task in starter.TASKS.items():
        assert bool(task.write) == (name not in classes)


# ------------------------------------------------------------------------------ until it is written


@pytest.mark.parametrize("gap", GAPS)
def test_a_part_that_is_left_out_is_named(gap, tmp_path):
    module = load(without(gap), tmp_path)
    name = GAPS[gap]
    parts = [grading.find(module, part) for part in rubric.POINTS[name].names]
    with pytest.raises(rubric.NotWritten) as raised:
        getattr(rubric, f"test_{name}")(*parts)
    assert str(raised.value).endswith(f"{gap} is not written yet: {starter.TASKS[gap].write}")
    judged = grading._judge(module, name, rubric.POINTS[name])
    assert judged == ("NOT WRITTEN YET", str(raised.value))
    if "." not in gap:  # what other cells of the notebook say
        part = getattr(module, gap)
        with pytest.raises(NotImplementedError, match=re.escape(f"{gap} is not written yet: ")):
            part(*[None] * part.__code__.co_argcount)


def test_a_starter_has_no_points(tmp_path):
    for notebook in (PLAIN, changed(ASSIGNMENT, as_released)):
        nbformat.write(notebook, tmp_path / "x.ipynb")
        results = list(grading.grade(tmp_path / "x.ipynb"))
        assert [result.point for result in results] == list(rubric.POINTS)
        assert {result.outcome for result in results} == {"NOT WRITTEN YET"}
        assert all(" is not written yet" in result.why for result in results)
        own = [r for r in results if r.why.lower().startswith(r.point)]
        assert own == results
        report = json.loads(grading._gradescope([("x.ipynb", results)]))
        assert {test["score"] for test in report["tests"]} == {0}


def as_released(source: str) -> str:
    """Code of the assignment as nbgrader releases it."""

    def stub(solution: re.Match[str]) -> str:
        indent = re.match(" *", solution[0])[0]
        return f"{indent}# YOUR CODE HERE\n{indent}raise NotImplementedError()"

    return SOLUTION.sub(stub, source)


def test_what_needs_a_part_that_is_left_out_waits_for_it(tmp_path):
    module = load(without("Generator.__init__"), tmp_path)
    for name in ("build_network", "optimizers", "train"):
        outcome, why = grading._judge(module, name, rubric.POINTS[name])
        assert outcome == "NOT WRITTEN YET"
        assert why.startswith(f"{name}: Generator.__init__ is not written yet: make the layers")


def test_one_part_that_is_left_out_costs_one_point(tmp_path):
    nbformat.write(without("weights_init_normal"), tmp_path / "x.ipynb")
    with mock.patch.dict(rubric.POINTS):
        for name in {*rubric.POINTS} - {"weights_init_normal", "build_network", "optimizers"}:
            del rubric.POINTS[name]
        results = {r.point: r for r in grading.grade(tmp_path / "x.ipynb")}
    assert results.pop("weights_init_normal").outcome == "NOT WRITTEN YET"
    assert {r.outcome for r in results.values()} == {"NOT JUDGED"}
    assert results["build_network"].why == "build_network: not judged: see weights_init_normal."


def test_jupyter_shows_one_line():
    def scale(x, feature_range=(-1, 1)):
        raise NotImplementedError

    try:
        rubric.test_scale(scale)
    except rubric.NotWritten as error:
        shell = mock.Mock(spec=InteractiveShell)
        shell._get_exc_info.return_value = sys.exc_info()
        InteractiveShell.showtraceback(shell)
        (_, shown, lines), _ = shell._showtraceback.call_args
        assert shown is error
    assert len(lines) == 1
    assert re.fullmatch(r"NOT WRITTEN YET: scale: .*\bscale is not written yet\.", lines[0]), lines


def test_what_is_written_is_judged():
    def weights_init_normal(m):
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(m.weight, 0.0, 0.02)
        elif not isinstance(m, nn.ModuleList):
            raise NotImplementedError(f"{m} is not written yet")

    with pytest.raises(AssertionError, match="the code stopped with NotImplementedError: Batch"):
        rubric.test_weights_init_normal(weights_init_normal)

    class Discriminator(nn.Module):
        def __init__(self, conv_dim):
            super().__init__()
            self.fc = nn.Linear(3 * 32 * 32, conv_dim)

    with pytest.raises(AssertionError, match="NotImplementedError: Module .* is missing the req"):
        rubric.test_discriminator(Discriminator)


SIGMOID = """
def real_loss(D_out):
    raise NotImplementedError

class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        layers = [nn.Conv2d(3, conv_dim, 4, 2, 1), nn.LeakyReLU(), nn.Conv2d(conv_dim, 8, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(), nn.Flatten(), nn.Linear(512, 1))

    def forward(self, x):
        return self.layers(x).sigmoid()
"""


def test_a_loss_that_is_not_written_decides_nothing_about_the_discriminator(capsys):
    names = {"nn": nn}
    exec(SIGMOID, names)
    rubric.test_discriminator(names["Discriminator"])
    assert capsys.readouterr().out.startswith("ADVICE: Discriminator: a sigmoid: right with")


# ------------------------------------------------------------------------------ the command


def test_the_command_writes_a_notebook_and_nothing_over_it(tmp_path, capsys):
    out = tmp_path / "mine.ipynb"
    assert main(["starter", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"The starter notebook: {out}\nIt needs {NOTEBOOK.parent} in")
    assert nbformat.read(out, as_version=4) == PLAIN
    before = out.read_bytes()
    assert main(["starter", "--nbgrader", str(out)]) == 1
    assert "mine.ipynb already exists. Delete it, or choose another" in capsys.readouterr().err
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert main(["starter", str(tmp_path / "mine.py")]) == 1
    assert "mine.py must have the ending .ipynb" in capsys.readouterr().err
    out.unlink()
    assert main(["starter", "--nbgrader", str(out)]) == 0
    assert capsys.readouterr().out.startswith("The source version for nbgrader, with the solutions")
    assert nbformat.read(out, as_version=4) == ASSIGNMENT


# ------------------------------------------------------------------------------ nbgrader


def test_each_point_has_a_locked_test():
    nbformat.validate(ASSIGNMENT)
    marked = [cell for cell in ASSIGNMENT.cells if "nbgrader" in cell.metadata]
    assert len({cell.id for cell in ASSIGNMENT.cells}) == len(ASSIGNMENT.cells)
    tests = {
        cell.metadata.nbgrader.grade_id: cell
        for cell in marked
        if "points" in cell.metadata.nbgrader
    }
    assert sorted(tests) == sorted(rubric.__all__)
    assert sum("points" in cell.metadata.nbgrader for cell in marked) == len(tests)
    for name, cell in tests.items():
        expected = {"grade": True, "solution": False, "locked": True, "task": False, "points": 1}
        assert cell.metadata.nbgrader == expected | {"schema_version": 3, "grade_id": name}
        names = rubric.POINTS[name.removeprefix("test_")].names
        assert cell.source == f"tests.{name}({', '.join(names)})"
    parts = [cell for cell in marked if cell.metadata.nbgrader.grade_id not in tests]
    assert len(parts) == sum("graded" in c.metadata.get("tags", []) for c in FINISHED.cells)
    for cell in parts:
        expected = {"grade": False, "solution": True, "locked": False, "task": False}
        name = cell.metadata.nbgrader.grade_id
        assert cell.metadata.nbgrader == expected | {"schema_version": 3, "grade_id": name}
        assert cell.source.count("### BEGIN SOLUTION") >= 1


def test_nbgrader_accepts_its_metadata_and_takes_the_solutions_out():
    nbgraderformat = pytest.importorskip("nbgrader.nbgraderformat")
    from nbgrader.preprocessors import ClearSolutions

    nbgraderformat.reads(nbformat.writes(ASSIGNMENT), as_version=4)  # it validates what it reads
    released, _ = ClearSolutions().preprocess(deepcopy(ASSIGNMENT), {})
    assert code(released) == code(changed(ASSIGNMENT, as_released))
