"""The shape of the house: imports run one way, and the lesson does not know its ideas."""

import ast
import graphlib
import io
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from faces.files import HERE, NOTEBOOK
from faces.notebook import IDEAS

MODULES = sorted((HERE / "faces").glob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: say faces"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_one_way():
    names = {f"faces.{path.stem}" for path in MODULES}
    arrows = {f"faces.{path.stem}": set(imports(path)) for path in MODULES}
    order = list(graphlib.TopologicalSorter({n: arrows[n] & names for n in arrows}).static_order())
    assert set(order) == names and order.index("faces.files") < order.index("faces.training")
    for name, imported in arrows.items():
        tops = {module.split(".")[0] for module in imported}
        above = {"helpers", "problem_unittests", "benchmarks", "tests", "ideas"}
        if name == "faces.grading":  # it grades others' notebooks by those tests
            above.remove("problem_unittests")
        assert not tops & above, name


def test_the_saved_runs_versions_are_among_those_allowed():
    lines = {}
    for name in ("requirements", "constraints"):
        text = (HERE / f"{name}.txt").read_text(encoding="utf-8")
        found = [Requirement(part) for line in text.splitlines() if (part := line.split("#")[0])]
        lines[name] = {canonicalize_name(r.name): r.specifier for r in found}
    pins = {name: str(specifier) for name, specifier in lines["constraints"].items()}
    assert all(pin.startswith("==") for pin in pins.values())
    for name, allowed in lines["requirements"].items():
        assert pins[name].removeprefix("==") in allowed, name


def test_importing_helpers_prints_nothing_silences_nothing_and_leaves_torchmetrics():
    environment = os.environ | {"RANK": "1", "PYTHONPATH": str(HERE)}
    code = "import sys, helpers; assert 'torchmetrics' not in sys.modules; print('heard')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_a_process_without_torchrun_prints_whatever_its_rank():
    code = "from faces.parallel import join_processes; join_processes(); print('heard')"
    environment = os.environ | {"RANK": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def identifiers(source: str) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_the_lesson_knows_of_ideas_only_the_name_that_a_preset_gives():
    def plain(name: str) -> str:
        return name.replace("_", "").lower()

    ideas = {plain(path.stem) for path in IDEAS.glob("*.py")}
    assert {"flips", "spectralnorm"} <= ideas
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    used = {name for c in cells if c.cell_type == "code" for name in identifiers(c.source)}
    assert {"discriminator_loss", "apply_idea"} <= used
    faces_in_equal_shares = {"balanced"}  # a variable, which only has the name of an idea
    assert {name for name in used if plain(name) in ideas} <= faces_in_equal_shares
