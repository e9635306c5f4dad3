"""Digests of code, to notice a change: comments, docstrings and layout do not count."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from typing import Any

from faces.files import HERE

# The modules of faces/ that decide what a training computes.
_MODULES = ("arrays", "cuda_graph", "processes", "speed", "steps", "training")


def digest_of(source: str) -> str:
    """Digest of source code as it runs: 12 hexadecimal digits."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # a part of an expression, such as a lambda in a call
        return hashlib.sha256(source.encode()).hexdigest()[:12]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def code_of(*roots: Any) -> dict[str, str]:
    """Digests of the source code of functions and classes.

    Args:
        roots: a function, and further functions and classes.

    Returns:
        A digest for each of them, and for all that they use, that are defined where the first one
        is, such as in a notebook; by a name such as "the code of scale". It is "unknown" where the
        source cannot be had.
    """
    digests: dict[str, str] = {}
    todo = [inspect.unwrap(root) for root in roots]
    names = todo[0].__globals__
    while todo:
        item = todo.pop()
        name = f"the code of {item.__name__}"
        if name in digests or item.__module__ != names.get("__name__"):
            continue
        members = vars(item).values() if isinstance(item, type) else [item]
        functions = [m for m in members if isinstance(m, types.FunctionType)]
        try:
            digests[name] = digest_of("".join(map(inspect.getsource, functions)))
        except OSError:
            digests[name] = "unknown"
        codes = [function.__code__ for function in functions]
        while codes:
            code = codes.pop()
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
            used = [inspect.unwrap(names[n]) for n in code.co_names if n in names]
            todo += [u for u in used if isinstance(u, (types.FunctionType, type))]
    return digests


def package_code() -> dict[str, str]:
    """Digests of the functions and classes of ``faces/`` that decide what a training computes."""
    return {
        f"the code of {node.name} in faces/{name}.py": digest_of(ast.unparse(node))
        for name in _MODULES
        for node in ast.parse((HERE / "faces" / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
