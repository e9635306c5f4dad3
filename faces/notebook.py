"""The lesson's definitions without its work: for drawing faces, tests and benchmarks."""

from __future__ import annotations

import ast
import json
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from faces.files import NOTEBOOK


def load_definitions(notebook: str | Path = NOTEBOOK) -> ModuleType:
    """Run our own notebook's imports, functions, classes and literal assignments, nothing else.

    Returns:
        A new module, which has what the notebook defines; it is in ``sys.modules``.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(notebook).resolve()
    lesson = ModuleType(f"{path.stem} (notebook)")
    lesson.__file__ = str(path)
    sys.modules[lesson.__name__] = lesson  # where pickle and apply_idea look for it
    for name, source, _ in _code_cells(path):
        kept = [statement for statement in ast.parse(source).body if _defines(statement)]
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(ast.Module(kept, []), name, "exec"), vars(lesson))
    return lesson


def prepare(lesson: ModuleType, **names: Any) -> None:
    """Set names of a lesson, then run the cells with the tag "build" in it."""
    vars(lesson).update(names)
    for name, source, tags in _code_cells(Path(lesson.__file__)):
        if "build" in tags:
            exec(compile(source, name, "exec"), vars(lesson))


def _code_cells(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """A notebook's code cells: a name for tracebacks and ``inspect``, the source, and tags."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]  # nbformat takes 1 s to import
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] == "code":
            name = f"{path.name}, cell {number}"
            yield name, "".join(cell["source"]), cell["metadata"].get("tags", [])


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            return False
        return True
    return isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
