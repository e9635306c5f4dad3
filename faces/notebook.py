"""The notebook as code: its definitions, its settings, the ideas that change it, its hashes."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.util
import inspect
import json
import linecache
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from IPython.core.inputtransformer2 import TransformerManager
from torch.utils.data import DataLoader

from faces.files import HERE, NOTEBOOK
from faces.parallel import find_device

IDEAS = HERE / "ideas"
_START = Path.cwd()  # that of the notebook, wherever its tests run its functions

# The modules of faces/ that compute nothing of a training: they show, read, write or grade.
_COMPUTE_NOTHING = {"__init__", "__main__", "checkpoints", "data", "explorer", "files"}
_COMPUTE_NOTHING |= {"generator", "grading", "show", "starter"}

# ------------------------------------------------------------------------ definitions


class Definitions(ModuleType):
    """What a notebook defines. Asked for anything else, it names what could not be run.

    Call its methods by the class: a notebook may define the same names.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.stem} (notebook)")
        self.__file__ = str(path)
        self._failures: list[str] = []

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self.__file__} does not define {name}{Definitions.failures(self)}")

    def failures(self) -> str:
        """Name the first cells that could not be run, and why; an empty text if there are none."""
        return "".join(f"; {failure}" for failure in self._failures[:3])

    @contextmanager
    def noting_failures(self, cell: str) -> Iterator[None]:
        """Go on after an error in a part of a cell, which may be one that is not needed."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
            self._failures.append(f"{cell} could not be run ({reason})")


def load_definitions(notebook: str | Path = NOTEBOOK) -> Definitions:
    """Run our own notebook's imports, functions, classes and literal assignments, nothing else.

    Commands of IPython define nothing, and what cannot be run is left out. Cells after those with
    the tag "build" give no new meaning to a name that the training used.

    Returns:
        A new module, which has what the notebook defines; it is in ``sys.modules``.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path, used = Path(notebook).resolve(), {}
    module = Definitions(path)
    sys.modules[module.__name__] = module  # where pickle and apply_idea look for it
    for name, source, tags in _code_cells(path):
        kept = []
        with Definitions.noting_failures(module, name):
            source = _to_python(source)
            kept = [statement for statement in ast.parse(source).body if _defines(statement)]
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        for statement in kept:
            with Definitions.noting_failures(module, name):
                exec(compile(ast.Module([statement], []), name, "exec"), vars(module))
        if "build" in tags:
            used = dict(vars(module))
    vars(module).update(used)
    return module


def prepare(module: ModuleType, **names: Any) -> None:
    """Set names of a notebook's module, then run the cells with the tag "build" in it."""
    vars(module).update(names)
    for name, source, tags in _code_cells(Path(module.__file__)):
        if "build" in tags:
            exec(compile(_to_python(source), name, "exec"), vars(module))


def _to_python(source: str) -> str:
    """Make calls of what only IPython reads: ``%matplotlib inline``, ``x = !ls``, ``%%bash``."""
    try:
        ast.parse(source)
    except SyntaxError:
        source = re.sub(r"\A\s*%%(time|capture)\b.*", "", source)  # the cell below is Python
        source = TransformerManager().transform_cell(source)
    return source


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


# ------------------------------------------------------------------------ settings


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # True is an int, too


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _resolve(value: Any) -> Path | None:
    """The absolute path that a setting is; None if it is none."""
    if not isinstance(value, (str, Path)) or "\0" in str(value):
        return None
    try:
        return Path(value).expanduser().resolve()
    except (OSError, RuntimeError):  # nobody's home, links in a circle
        return None


_COUNT = ("a whole number, at least 1", lambda v: _whole(v, 1))
_RATE = ("above 0 and at most 0.01, such as 0.0002", lambda v: _number(v) and 0 < v <= 0.01)
_FRACTION = ("at least 0 and below 1", lambda v: _number(v) and 0 <= v < 1)
_SWITCH = ("True or False", lambda v: isinstance(v, bool))
_PATH = ("a path in quotation marks, such as 'runs/faces'", lambda v: _resolve(v) is not None)

# What each setting must be, in words and as a test.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_images": ("a whole number, at least 4, or None", lambda v: v is None or _whole(v, 4)),
    "n_epochs": _COUNT,
    "d_conv_dim": _COUNT,
    "g_conv_dim": _COUNT,
    "image_size": ("a multiple of 16, at least 32", lambda v: _whole(v, 32) and v % 16 == 0),
    "batch_size": ("a whole number, at least 2", lambda v: _whole(v, 2)),
    "z_size": _COUNT,
    "d_lr": _RATE,
    "g_lr": _RATE,
    "beta1": _FRACTION,
    "ema_decay": _FRACTION,
    "seed": ("a whole number from 0 to 2**63 - 1", lambda v: _whole(v, 0) and v < 2**63),
    "resume": _SWITCH,
    "skip_broken": _SWITCH,
    "accelerate": _SWITCH,
}


def choose_settings(
    preset: str, presets: dict[str, dict[str, Any]], given: dict[str, Any]
) -> dict[str, Any]:
    """Take the preset's values for the settings that were left to it, check all, say what it chose.

    Args:
        preset: a name in ``presets``, or "auto": the environment variable ``FACES_PRESET`` if it
            is set, else "full" on an accelerator and "quick" on the CPU, see ``find_device``.
        presets: each preset's settings. Those that all presets list are taken where the given one
            is ``None``; those that only some of them list always hold.
        given: the settings among others, "idea" too, and "data_dir" and "output_dir".

    Returns:
        All settings, in the order of ``RANGES``, and "idea"; rates and fractions as floats.

    Raises:
        ValueError: if there is no such preset, settings are out of their ranges, there is no such
            idea, or the results would lie among the images; it names all. Also see ``find_device``.
    """
    why = "given by hand"
    if preset == "auto" and os.environ.get("FACES_PRESET"):
        preset, why = os.environ["FACES_PRESET"], "from the environment variable FACES_PRESET"
    elif preset == "auto":
        device = find_device()
        preset = "quick" if device.type == "cpu" else "full"
        why = f"auto: the device is {device}"
    wrong = []
    if not isinstance(preset, str) or preset not in presets:
        known = ", ".join(presets)
        wrong.append(f"preset is {preset!r} ({why}): set it to one of auto, {known}.")
    decided = {
        name: value
        for name, value in presets[preset if not wrong else next(iter(presets))].items()
        if given[name] is None or not all(name in other for other in presets.values())
    }
    settings = {name: given[name] for name in (*RANGES, "idea")} | decided
    output = str(given["output_dir"]) if _whole(given["output_dir"], 0) else given["output_dir"]
    places = {"data_dir": given["data_dir"], "output_dir": output}  # papermill makes 2026 a number
    wrong += [
        f"{name} is {value!r}: it must be {meaning}."
        for name, value in (settings | places).items()
        for meaning, is_right in [RANGES.get(name, _PATH)]
        if name != "idea" and not is_right(value)
    ]
    try:
        find_ideas(settings["idea"])
    except ValueError as error:
        wrong.append(str(error))
    data, output = map(_resolve, places.values())
    if data and output and output.is_relative_to(data):
        wrong.append(
            f"output_dir is {given['output_dir']}, which lies in data_dir ({given['data_dir']}): "
            "the pictures written there would become training data. Set output_dir to a folder "
            "outside."
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    fractions = [name for name, kind in RANGES.items() if kind in (_RATE, _FRACTION)]
    settings |= {name: float(settings[name]) for name in fractions}  # as PyTorch wants them
    print(f"preset {preset} ({why})")
    for name, value in decided.items():
        print(f"  {name} = {value or repr(value)}")  # that there is no idea shows as ''
    return settings


# ------------------------------------------------------------------------ ideas


def apply_idea(
    idea: str, notebook: str | ModuleType, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Change a notebook by files of ideas/, or by files of the learner's own.

    A file defines at least one of ``patch(notebook)``, which gives names of the notebook another
    meaning, ``loader_options(loader)``, which returns the arguments of ``DataLoader`` that differ
    from those of the notebook's loader, and ``modify(D, G)``, which changes the networks that
    ``build_network`` has made. Called again, it first takes back what it changed before.

    Args:
        idea: names of files in ideas/, or paths that end in ".py", joined by "+"; "" for none.
        notebook: the module to change, or its name.
        settings: names and values of the notebook's settings.

    Returns:
        The settings with the values that the notebook has now.

    Raises:
        ValueError: if there is no such file, or it defines none of the functions.
    """
    module = sys.modules[notebook] if isinstance(notebook, str) else notebook
    ideas = load_ideas(idea)
    change_notebook(module, ideas.values())
    for each in ideas.values():
        print("idea:", (each.__doc__ or each.__name__).strip().splitlines()[0])
    now = {n: getattr(module, n, v) if n in RANGES else v for n, v in (settings or {}).items()}
    return now | {"idea": "+".join(ideas)}


def change_notebook(notebook: ModuleType, ideas: Iterable[ModuleType]) -> None:
    """Take back what was changed before, then change a notebook by loaded files.

    Without a loader, as where faces are drawn from trained weights, there is none to change.
    """
    names = vars(notebook)
    for name, (plain, changed) in names.pop("_changed_by_ideas", {}).items():
        if names.get(name) is changed:  # else its cell was run again
            names[name] = plain
    before = dict(names)
    for idea in ideas:
        if hasattr(idea, "patch"):
            idea.patch(notebook)
        if hasattr(idea, "loader_options") and "celeba_train_loader" in names:
            loader = notebook.celeba_train_loader
            notebook.celeba_train_loader = _loader_like(loader, **idea.loader_options(loader))
        if hasattr(idea, "modify"):
            notebook.build_network = _then(notebook.build_network, idea.modify)
    changed = {name for name in before if names[name] is not before[name]}
    names["_changed_by_ideas"] = {name: (before[name], names[name]) for name in changed}


def load_ideas(idea: str) -> dict[str, ModuleType]:
    """Import the files of ideas, given as for ``apply_idea``, which says what is refused."""
    return {part: _load(path) for part, path in find_ideas(idea).items()}


def find_ideas(idea: str) -> dict[str, Path]:
    """Find the files of ideas, given as for ``apply_idea``; ``ValueError`` if one is not there."""
    found = {}
    for part in filter(None, map(str.strip, str(idea).split("+"))):
        is_own = part.endswith(".py")
        found[part] = path = _START / Path(part).expanduser() if is_own else IDEAS / f"{part}.py"
        if not path.is_file() or not (is_own or part.isidentifier()):
            there = ", ".join(sorted(p.stem for p in IDEAS.glob("*.py")))
            raise ValueError(
                f"There is no idea {part!r}. Set idea to one or more of {there}, joined by '+', or "
                "to the path of a file of your own that ends in '.py'."
            )
    return found


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"idea_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not any(hasattr(module, name) for name in ("patch", "loader_options", "modify")):
        raise ValueError(
            f"{path} must define at least one of patch(notebook), loader_options(loader) and "
            "modify(D, G)."
        )
    return module


def _loader_like(plain: DataLoader, **changes: Any) -> DataLoader:
    names = ("dataset", "batch_size", "sampler", "drop_last", "generator", "collate_fn")
    return DataLoader(**{name: getattr(plain, name) for name in names} | changes)


def _then(build_network: Callable[..., Any], change: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(build_network)
    def changed(*sizes: int, **named_sizes: int) -> Any:
        networks = build_network(*sizes, **named_sizes)
        change(*networks)
        return networks

    return changed


# ------------------------------------------------------------------------ hashes


def hash_run(
    train: Callable[..., Any], networks: Iterable[type], settings: dict[str, Any]
) -> dict[str, str]:
    """Hash all code that decides what a training computes: a run resumes only with the same.

    It is that of the notebook, of the ideas, and of ``faces/``. Comments, docstrings and layout do
    not count.

    Args:
        train: the notebook's function that trains.
        networks: the classes of its networks.
        settings: those of the run, "idea" among them; values that functions read under these names
            are left out.

    Returns:
        Hashes by the names of what they are of, such as "the code of scale".
    """
    not_called = ("get_dataloader", "build_network")  # by train() itself
    others = map(train.__globals__.get, not_called)
    hashes = hash_functions(train, *others, *networks, settings=settings)
    hashes |= {f"the code of {n}": h for n, h in hash_ideas(settings.get("idea", "")).items()}
    return hashes | hash_package()


def hash_source(source: str) -> str:
    """Hash source code as it runs: 12 hexadecimal digits."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # a part of an expression, such as a lambda in a call
        return hashlib.sha256(source.encode()).hexdigest()[:12]
    return _hash_tree(tree)


def _hash_tree(tree: ast.AST) -> str:
    """Hash a syntax tree without its docstrings, alike in all versions of Python."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return hashlib.sha256(repr(_spell(tree)).encode()).hexdigest()[:12]


def _spell(node: Any) -> Any:
    """A node's kind and fields; those that are empty are left out, since versions add some."""
    if isinstance(node, ast.AST):
        fields = [(n, _spell(v)) for n, v in ast.iter_fields(node) if v is not None and v != []]
        return [type(node).__name__, *fields]
    return [_spell(item) for item in node] if isinstance(node, list) else repr(node)


def hash_functions(*roots: Any, settings: Iterable[str] = ()) -> dict[str, str]:
    """Hash functions and classes of a notebook, and all that they use there.

    Args:
        roots: a function of the notebook, and further functions and classes.
        settings: names of values that do not count.

    Returns:
        A hash for each function and class, "unknown" where the source cannot be had, and the
        numbers and texts that they read. What an idea put in the place of a function is left out,
        but what that still calls of the notebook is not.
    """
    hashes: dict[str, str] = {}
    todo, seen, stored = list(roots), set(), set()
    names = inspect.unwrap(todo[0]).__globals__
    home = names.get("__name__")
    while todo:
        item = inspect.unwrap(todo.pop())
        if id(item) in seen or not isinstance(item, (types.FunctionType, type)):
            continue
        seen.add(id(item))
        members = vars(item).values() if isinstance(item, type) else [item]
        members = [getattr(m, "__func__", getattr(m, "fget", m)) for m in members]
        functions = [m for m in members if isinstance(m, types.FunctionType)]
        is_own = item.__module__ == home
        if is_own:
            name = f"the code of {item.__name__}"
            try:
                code = hash_source("".join(map(inspect.getsource, functions)))
            except OSError:
                code = "unknown"
            hashes[name] = f"{hashes[name]}, {code}" if name in hashes else code  # two lambdas
        elif isinstance(item, type):
            continue
        for function in functions:
            for cell in function.__closure__ or ():
                with suppress(ValueError):  # it is empty
                    todo.append(cell.cell_contents)
            used = _names_used(function.__code__, attributes=not is_own) & names.keys()
            stored |= {
                s.argval for s in dis.get_instructions(function) if s.opname == "STORE_GLOBAL"
            }
            todo += [names[name] for name in sorted(used)]  # in the same order in each process
            for name in used - set(settings) if is_own else ():
                if _is_plain(names[name]):
                    hashes[f"the value of {name}"] = repr(names[name])
    return {n: h for n, h in hashes.items() if n.removeprefix("the value of ") not in stored}


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a tuple of them: others may show an address."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def _names_used(code: types.CodeType, attributes: bool) -> set[str]:
    """The global names that code reads, and on request the attributes, of a module perhaps."""
    if attributes:
        used = set(code.co_names)
    else:
        used = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return used.union(*(_names_used(c, attributes) for c in inner))


def hash_ideas(idea: str) -> dict[str, str]:
    """Hash the files of ideas, given as for ``apply_idea``, and those beside them that they use."""
    paths = {path for module in load_ideas(idea).values() for path in _files_of(module)}
    return {path.name: hash_source(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def _files_of(module: ModuleType) -> set[Path]:
    """The file of an idea, and those of modules from its folder or ideas/ that it imports."""
    own = Path(module.__file__).resolve()
    modules = [v for v in vars(module).values() if isinstance(v, ModuleType)]
    paths = [Path(m.__file__).resolve() for m in modules if getattr(m, "__file__", None)]
    return {own, *(path for path in paths if path.parent in (IDEAS, own.parent))}


@functools.cache
def hash_package() -> dict[str, str]:
    """Hash what ``faces/`` defines, but for the modules that compute nothing of a training."""
    hashes = {}
    for path in sorted((HERE / "faces").glob("*.py")):
        if path.stem in _COMPUTE_NOTHING:
            continue
        others = []  # constants and the like
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                name = f"the code of {node.name} in faces/{path.name}"
                hashes[name] = _hash_tree(node)
            else:
                others.append(node)
        constants = _hash_tree(ast.Module(others, []))
        hashes[f"the code of faces/{path.name} outside of functions"] = constants
    return hashes
