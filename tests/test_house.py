"""The shape of the house: small parts, one direction, a face, and a lesson without its ideas."""

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
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import helpers
from faces.files import HERE, NOTEBOOK
from faces.ideas import IDEAS

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
        assert not tops & {"helpers", "problem_unittests", "benchmarks", "tests", "ideas"}, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_parts_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds):
            assert node.end_lineno - node.lineno < 150, node.name


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


def test_helpers_is_a_face():
    text = (HERE / "helpers.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    docstring, *imported, exported = ast.parse(text).body
    assert all(isinstance(statement, ast.ImportFrom) for statement in imported)
    names = [alias.asname or alias.name for statement in imported for alias in statement.names]
    assert names == helpers.__all__ and all(hasattr(helpers, name) for name in names)
    assert all(f"``{path.stem}``" in helpers.__doc__ for path in MODULES if path.stem[0] != "_")


def test_importing_helpers_prints_nothing_silences_nothing_and_leaves_torchmetrics():
    environment = os.environ | {"RANK": "1", "PYTHONPATH": str(HERE)}
    code = "import sys, helpers; assert 'torchmetrics' not in sys.modules; print('heard')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_of_several_processes_the_first_one_prints():
    code = "from faces.processes import Processes; Processes(); print('heard')"
    for rank, printed in (("0", "heard\n"), ("1", "")):
        environment = os.environ | {"RANK": rank, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (printed, "")


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
    assert not {name for name in used if plain(name) in ideas}
