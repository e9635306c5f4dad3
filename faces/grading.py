"""Grades notebooks by the rubric: each point of each notebook, for a whole class.

Grading executes code of the notebook: what the rubric asks for and what that needs, no training.
Each notebook has a process of its own, on the CPU, with limits of time and memory and a temporary
working directory, which has a copy of it and of the modules beside it that it imports. One that
hangs, ends its process or patches the tests has FAILED; all that it started ends with it.

Left unguarded are other files, the network, signals to other processes, and the verdict itself: no
process can be guarded against its own code, and a forger who takes pains finds in its frames how
results are sent. So use a container for strangers' code, and read what passes too well.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import csv
import ctypes
import dis
import functools
import html
import importlib
import inspect
import io
import json
import linecache
import math
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

try:
    import resource as _resource
except ImportError:  # Windows has no limits
    _resource = None

import problem_unittests as rubric
from faces.files import atomic_write, count_cores, printable

# --------------------------------------------------------------- a notebook on disk

WANTED = {name for point in rubric.POINTS.values() for name in point.names}
_FUNCTIONS = WANTED - {"D", "G", "d_optimizer", "g_optimizer"}

# What no constant is made with: what touches files, downloads, starts something, or trains.
# <Angle brackets> stand around modules; one without an attribute may be asked for any.
_WORK = re.compile(
    r"<[\w.]+>(?!\.)|\b(os|posix|nt)>?\.(?!(path|environ|getenv|getcwd|cpu_count)\b)|__dict__"
    r"|sys>?\.modules|builtins\.(eval|exec|__import__)|\b(\w*download\w*|backward|datasets|exit"
    r"|from_?file|hub|import_module|input|kill|load|loadtxt|makedirs|memmap|mkdir|open|popen|quit"
    r"|remove|rename|rmdir|save\w*|shutil|subprocess|system|tofile|touch|unlink|url\w+|write_\w+)\b"
)


class _Piece(NamedTuple):
    """A statement of a notebook that may define something."""

    code: types.CodeType
    defines: bool  # an import, a function or a class, not a value
    stores: set[str]  # global names; "*": any name may need it
    reads: set[str]  # global names, those that the functions inside it read too
    trains: bool  # it calls train
    place: str  # where it is, and its first line


def _text(path: Path, errors: str = "strict") -> str:
    """Read a text, in the encoding that a byte-order mark says."""
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if wide else "utf-8-sig", errors)


def _cells(path: Path) -> Iterator[tuple[str, str]]:
    """Read the code of a notebook's cells, or a ``.py`` file: where it is, and its text."""
    text = _text(path)
    if path.suffix == ".py":
        yield path.name, text
        return
    try:
        for number, cell in enumerate(json.loads(text)["cells"], 1):
            if cell["cell_type"] == "code":
                yield f"{path.name}, cell {number}", "".join(cell["source"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it has no cells ({type(error).__name__})") from None


def _pieces(where: str, source: str) -> Iterator[_Piece]:
    """Take the code of a cell apart; raise SyntaxError if it is not Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # it may have commands of IPython: %matplotlib inline, files = !ls, help?
        magic = r"^(\s*)(\w+ *= *)?(!|%%?(?=\w)|% (?=matplotlib)|\?|[\w.]+\?+$)(?:.*\\\n)*.*"
        as_long = lambda found: f"{found[1]}pass" + "\n" * found[0].count("\n", len(found[1]))  # noqa: E731
        source = re.sub(magic, as_long, source, flags=re.MULTILINE)
        tree = ast.parse(source)
    linecache.cache[where] = (len(source), None, source.splitlines(True), where)
    lines = source.splitlines()
    for node in tree.body:
        imports = isinstance(node, (ast.Import, ast.ImportFrom))
        is_loop = isinstance(node, (ast.For, ast.While, ast.With))  # which defines nothing
        runs_later = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call) and not runs_later]
        trains = any(isinstance(f, ast.Name) and f.id == "train" for f in calls)
        place = f"{where}, line {node.lineno}: {lines[node.lineno - 1].strip()[:200]}"
        for alias in node.names if imports else [None]:  # a missing module costs no other
            if imports:
                node.names = [alias]
            code = compile(ast.Module([] if is_loop else [node], []), where, "exec")
            stores, reads = rubric.operands(code, "STORE_NAME"), rubric.reached(code, {})[0]
            constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and not reads
            if constant or re.match(r"from .* import \*|globals\(\)\.update", ast.unparse(node)):
                stores = stores | {"*"}
            defines = imports or runs_later or bool(stores & _FUNCTIONS)
            yield _Piece(code, defines, stores, reads, trains, place)


def _first_of_two(pieces: list[_Piece]) -> int:
    """Where definitions begin that make again what was whole, and that are not to be judged.

    The last definitions count, as they do in a notebook that was run from top to bottom; but not
    where training is done with the first only, nor where all of them are made again for more.
    """
    parts = [piece.stores & _FUNCTIONS for piece in pieces]
    names = set().union(*parts)
    for start, stores in enumerate(parts):
        if stores and not names - set().union(*parts[:start]):
            again = set().union(*parts[start:])
            before, after = (any(p.trains for p in h) for h in (pieces[:start], pieces[start:]))
            is_first = (before or not after) if again == names else (before and not after)
            return start if is_first else len(pieces)
    return len(pieces)


def load_solution(
    notebook: str | Path, stand_ins: dict[str, Any] | None = None
) -> types.ModuleType:
    """Define what the rubric asks for, and all that this needs of a notebook; nothing else.

    Needed are the imports, functions, classes and values that it reads, that these read, and so
    on. Values whose making touches files, downloads or trains are left out. All runs in a
    temporary folder, with made-up pictures for the data, but it does run: see above.

    Args:
        notebook: an ``.ipynb`` or ``.py`` file.
        stand_ins: what takes the place of some of its definitions, by their names.

    Returns:
        A module. Its ``__broken__`` has what could not be defined: the names and an exception;
        ``__places__`` where each name is defined; ``__again__`` where definitions begin that are
        not judged, because the notebook made all of them before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no notebook.
    """
    path = Path(notebook).resolve()
    module = types.ModuleType("(solution)")
    module.__file__, module.__broken__, module.__places__ = str(path), [], {}
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    pieces: list[_Piece] = []
    for where, source in _cells(path):
        try:
            pieces += _pieces(where, source)
        except SyntaxError as error:
            would = set(re.findall(r"^(?:def |class )?(\w+) *(?=[=(:])", source, re.MULTILINE))
            line = f"line {error.lineno} ({(error.text or '').strip()[:200]})"
            message = f"{where} does not run: SyntaxError: {error.msg}, {line}."
            module.__broken__.append((would, rubric.Wrong(message)))
        except (RecursionError, ValueError) as error:  # half a character, a thousand brackets
            would = set(re.findall(r"^(?:def |class )?(\w+) *(?=[=(:])", source, re.MULTILINE))
            message = f"{where} does not run: {type(error).__name__}."
            module.__broken__.append((would, rubric.Wrong(message)))
    end = _first_of_two(pieces)
    module.__again__ = pieces[end].place if end < len(pieces) else ""
    pieces = pieces[:end]
    wanted, needed = WANTED | {"*"}, set()
    while more := {i for i, piece in enumerate(pieces) if piece.stores & wanted} - needed:
        needed |= more
        wanted = wanted.union(*(pieces[i].reads for i in more))
    with rubric.sandbox(), ExitStack() as stack:
        rubric.write_pictures(Path("processed_celeba_small"), 48)
        sys.path.insert(0, str(path.parent))
        stack.callback(sys.path.remove, str(path.parent))
        vars(module).update(stand_ins or {})
        for i in sorted(needed):
            _define(pieces[i], module)
            vars(module).update(stand_ins or {})
            module.__places__.update(dict.fromkeys(pieces[i].stores, pieces[i].place))
            for name, ours in (("data_dir", "processed_celeba_small/"), ("output_dir", "runs/")):
                if name in pieces[i].stores and isinstance(getattr(module, name, None), str):
                    setattr(module, name, ours)  # not the user's own folder
    return module


solution = functools.cache(load_solution)


def _define(piece: _Piece, module: types.ModuleType) -> None:
    """Run a piece of a notebook in its module, or note in ``__broken__`` why it cannot run."""
    names = vars(module)
    try:
        reads, used = (set(), set()) if piece.defines else rubric.reached(piece.code, names)
        if "train" in reads or any(map(_WORK.search, [_spelled(piece.code, names), *used])):
            where = piece.code.co_filename
            raise rubric.NotTestable(f"{where} touches files, downloads or trains for it.")
        exec(piece.code, names)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, NameError) else None
        causes = [cause for left, cause in module.__broken__ if missing in left]
        if causes and piece.defines:
            setattr(module, missing, None)  # a default that only a run of the notebook gives
            _define(piece, module)
            delattr(module, missing)
        elif "get_dataloader" in piece.reads and len(piece.stores) == 1:
            stand_in = DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.zeros(8)))
            setattr(module, *piece.stores, stand_in)
        else:
            if not isinstance(error, rubric.NotTestable):
                error = _unwritten(names, piece.reads) or rubric.Wrong(f"{rubric.describe(error)}.")
            module.__broken__.append((piece.stores, (causes or [error])[0]))


def _unwritten(names: dict[str, Any], needed: set[str]) -> rubric.NotWritten | None:
    """What of the names that are needed is not written yet, if anything."""
    try:
        for name in sorted(needed & names.keys()):
            rubric.check_written(names[name])
    except rubric.NotWritten as error:
        return error
    return None


def _spelled(code: types.CodeType, names: dict[str, Any]) -> str:
    """Spell out what names that code reads stand for; without the functions inside, run later."""
    text = ""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            value = names.get(step.argval, getattr(builtins, step.argval, None))
            real = getattr(value, "__name__", step.argval)
            module = isinstance(value, types.ModuleType)
            text += f" <{real}>" if module else f" {getattr(value, '__module__', None)}.{real}"
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            text += f".{step.argval}"
        elif step.opname.startswith("CALL"):
            text += "()"
        elif getattr(step.argval, "co_name", "").endswith(("comp>", "expr>")):
            text += _spelled(step.argval, names)
    return text


def find(module: types.ModuleType, name: str) -> Any:
    """Get an object of a notebook by its name, or else an exception that says why it is missing."""
    causes = [error for names, error in module.__broken__ if name in names]
    missing = rubric.NotFound(f"the notebook does not define {name}.")
    found = vars(module).get(name, missing)
    if found is missing:
        return (causes or [missing])[0]
    if isinstance(found, BaseException):
        return rubric.Wrong(f"{name} is an exception, {type(found).__name__}. Define it.")
    return found


# ------------------------------------------------------------------------- one notebook


class Result(NamedTuple):
    """What a notebook got for a point of the rubric."""

    point: str
    outcome: str  # a key of ALL_MARKS
    why: str = ""  # one line
    line: str = ""  # where the part is defined, and its first line


_OURS = {rubric.__name__, __name__}
# The outcomes of a test, and how the table shows them.
MARKS = {
    "PASSED": ".",
    "FAILED": "F",
    "ADVICE": "a",
    "NOT TESTABLE HERE": "?",
    "NOT FOUND": "-",
    "NOT WRITTEN YET": "_",
}
ALL_MARKS = {**MARKS, "NOT JUDGED": "="}  # it fails only because another part does
_AT_FAULT = {"FAILED", "NOT FOUND", "NOT WRITTEN YET"}


_RIGHT: dict[str, Callable[..., Any]] = {  # parts that take the place of those that have failed
    "scale": lambda x, feature_range=(-1, 1): (
        x * (feature_range[1] - feature_range[0]) + feature_range[0]
    ),
    "weights_init_normal": lambda m: (
        nn.init.normal_(m.weight, 0.0, 0.02)
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        else None
    ),
    # least squares fit logits as well as probabilities
    "real_loss": lambda D_out, smooth=False: (D_out - 1).square().mean(),
    "fake_loss": lambda D_out: D_out.square().mean(),
}
_USES = {  # what the points use of them
    "build_network": {"weights_init_normal"},
    "optimizers": {"weights_init_normal"},
    "train": {*_RIGHT},
}


def _replaceable(failed: list[str], module: types.ModuleType) -> list[str]:
    """The parts that have failed, as far as right ones take what the notebook's own take."""
    losses, names = {"real_loss", "fake_loss"}, []
    for name in sorted(
        losses.union(failed) if losses & {*failed} else failed
    ):  # one uses the other
        with suppress(TypeError, ValueError):
            _, *others = inspect.signature(getattr(module, name, _RIGHT[name])).parameters
            if {*others} <= inspect.signature(_RIGHT[name]).parameters.keys():
                names.append(name)
    return names


def _is_table(name: str, value: Any) -> bool:
    return type(value) in (dict, list, set) and not (name.startswith("__") and name != "__all__")


def _watch() -> Callable[[], str]:
    """Note what the verdicts hang on; return what mends it, and names the first that changed."""
    ours = (rubric, sys.modules[__name__])
    owners = [*ours, builtins, os, io, torch, nn, nn.functional, nn.Module, Tensor]
    for module in ours:
        owners += [v for v in vars(module).values() if type(v) is type and v.__module__ in _OURS]
    state = [(owner, name, value) for owner in owners for name, value in vars(owner).items()]
    functions = [value for *_, value in state] + [p.test for p in rubric.POINTS.values()]
    for f in functions:
        if isinstance(f, types.FunctionType) and f.__module__ in _OURS:
            names = ("__code__", "__defaults__", "__kwdefaults__")
            state += [(f, name, getattr(f, name)) for name in names]
    known = {owner: {*vars(owner)} for owner in owners}
    tables = {id(v): (name, v, copy.copy(v)) for _, name, v in state if _is_table(name, v)}
    hooks = [(sys.setprofile, sys.getprofile), (sys.settrace, sys.gettrace)]
    hooked = [get() for _, get in hooks]

    def shadows(owner: Any, name: str) -> bool:  # in the place of a builtin or of a base's method
        bases = owner.__mro__[1:] if isinstance(owner, type) else [builtins] * (owner in ours)
        return any(name in vars(base) for base in bases)

    def mend() -> str:
        changed = []
        for owner in owners:
            for name in filter(functools.partial(shadows, owner), {*vars(owner)} - known[owner]):
                delattr(owner, name)
                changed.append(name)
        for owner, name, value in state:
            is_function = isinstance(owner, types.FunctionType)
            if (getattr(owner, name) if is_function else vars(owner).get(name)) is not value:
                setattr(owner, name, value)
                changed.append(owner.__name__ if is_function else name)
        for name, table, before in tables.values():
            if table != before:
                table.clear()
                (table.extend if isinstance(table, list) else table.update)(before)
                changed.append(name)
        for (set_it, get), before in zip(hooks, hooked, strict=True):
            if get() is not before:
                set_it(before)
                changed.append(set_it.__name__)
        return changed[0] if changed else ""

    return mend


def grade(path: str | Path) -> Iterator[Result]:
    """Run all rubric tests on a notebook, an ``.ipynb`` or ``.py`` file; yield their results.

    Its code is executed, its training is not. A part that FAILED only because of another one is
    NOT JUDGED: with a right one in the other's place, nothing is wrong with it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no notebook.
    """
    points, mend = list(rubric.POINTS.items()), _watch()

    @functools.cache
    def load(*right: str) -> types.ModuleType:
        module = load_solution(path, {part: _RIGHT[part] for part in right})
        mend()
        return module

    module = load()
    failed: list[str] = []
    for name, point in points:
        outcome, why = _judge(module, name, point)
        changed = mend()
        used = [part for part in failed if part in _USES.get(name, ())]
        right = _replaceable(used, module)
        those = " and ".join(part for part in used if part in right)
        if outcome in ("FAILED", "NOT WRITTEN YET") and those and not changed:
            other_outcome, other_why = _judge(load(*right), name, point)
            changed = mend()
            if other_outcome in ("PASSED", "ADVICE"):
                outcome, why = "NOT JUDGED", f"{name}: not judged: see {those}."
            elif other_outcome == "FAILED" and "the code stopped" not in other_why != why:
                outcome = "FAILED"
                why = f"{other_why} (Found with a right {those} in place of yours.)"
        if changed:
            outcome = "FAILED"
            why = f"{name}: the code replaces {changed}, which the tests use."
        if outcome in _AT_FAULT:
            failed.append(name)
        if name == "train" and module.__again__:
            why += " " * bool(why) + "There are two sets of definitions: the first is judged, not "
            why += f"what begins at {module.__again__}"
        line = next(filter(None, map(module.__places__.get, point.names)), "")
        yield Result(name, outcome, _one_line(why), _one_line(line))


def _judge(module: types.ModuleType, name: str, point: rubric.Point) -> tuple[str, str]:
    """Test a point of a notebook; return the outcome, and the sentence that says why."""
    try:
        outcome, why = rubric.verdict(point, *[find(module, part) for part in point.names])
    except BaseException as error:  # such as KeyboardInterrupt, which the notebook's code raises
        return "FAILED", f"{name}: the code stopped with {type(error).__name__}."
    if undefined := re.search(r"NameError: name '(\w+)' is not defined", why):
        causes = [error for names, error in module.__broken__ if undefined[1] in names]
        if causes:
            outcome = rubric.OUTCOMES[type(causes[0])]
            why = f"{name}: {undefined[1]} is missing, {causes[0]}"
    return outcome, why


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)  # no escapes, no surrogates


# ------------------------------------------------------------------------- a whole class

_FORKS = sys.platform == "linux"
_LONGEST = 10_000_000  # bytes of results that are read


def _shells_limits() -> dict[int, tuple[float, int]]:
    """The limits of memory and of files: the most that may be set, and what the system calls it."""
    kinds = (_resource.RLIMIT_DATA, _resource.RLIMIT_FSIZE) if _resource else ()
    hard = {kind: _resource.getrlimit(kind)[1] for kind in kinds}
    return {k: (math.inf if h == _resource.RLIM_INFINITY else h, h) for k, h in hard.items()}


def _grade_alone(
    path: Path, others: set[Path], folder: str, gigabytes: float, results: Path, secret: str
) -> None:
    """Grade a notebook in a process of its own, send what it got, and end the process.

    Results are appended to a file, which is open only while this is done: no code of the notebook
    finds a descriptor of it.
    """
    with open(os.devnull, "r+b") as null:
        for stream in (0, 1, 2):
            os.dup2(null.fileno(), stream)
    if hasattr(os, "setsid"):
        os.setsid()
    if _FORKS:
        if child := os.fork():  # the parent that a notebook finds is not the teacher's process
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(code if code >= 0 else 128 - code)
        for descriptor in {*map(int, os.listdir("/proc/self/fd"))} - {0, 1, 2}:
            with suppress(OSError):
                os.close(descriptor)  # the teacher's, such as what tells that a process has ended
    for limit, (most, hard) in _shells_limits().items():
        _resource.setrlimit(limit, (int(min(gigabytes * 2**30, most)), hard))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # networks this small are no faster there
    sys.argv = [path.name]
    hidden = {other.parent for other in others}
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() not in hidden]
    tempfile.tempdir = folder

    code = 1

    def send(result: Result) -> None:
        with open(results, "ab") as file:
            file.write(("\t".join([secret, *result]) + "\n").encode(errors="replace"))

    try:
        copy = _copy(path, others, Path(tempfile.mkdtemp()))
        os.chdir(tempfile.mkdtemp())
        for result in grade(copy):
            send(result)
        code = 0
    except (OSError, RecursionError, ValueError) as error:
        for point in rubric.POINTS:
            why = f"it cannot be read as a notebook: {error}"
            send(Result(point, "FAILED", _one_line(why)))
        code = 0
    finally:
        os._exit(code)  # without exit handlers, whatever its threads do


def _copy(path: Path, others: set[Path], folder: Path) -> Path:
    """Copy a notebook, and the modules beside it that it imports; return where it is now.

    Of a folder of many notebooks, no other solution is copied.
    """
    notebooks = [p for p in (path, *others) if p.is_relative_to(path.parent)]
    is_alone = [p for p in notebooks if p.suffix == ".ipynb"] == [path]
    copy, todo = folder / path.name, [path]
    shutil.copyfile(path, copy)
    scripts = (file for file in path.parent.glob("*.py") if file != path and file.is_file())
    beside = {file.stem: [file] for file in scripts}
    folders = {file.parent for file in path.parent.glob("[!.]*/*.py")}
    beside |= {place.name: [*filter(Path.is_file, place.rglob("*.py"))] for place in folders}
    while todo:
        text = "\n".join(source for _, source in _cells(todo.pop()))
        lines = re.findall(r"\b(?:from|import)\b[^\n\\]*", text)
        for name in beside.keys() & re.findall(r"\w+", " ".join(lines)):
            files = beside.pop(name)
            theirs = [_text(file, "replace") for file in files if file in others]
            if is_alone or not any(re.search(r"^def train\b", text, re.M) for text in theirs):
                for file in files:
                    place = folder / file.relative_to(path.parent)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)
                todo += files
    return copy


def _children() -> set[int]:
    """The processes that this one has started or adopted, where the system tells."""
    lists: list[str] = []
    with suppress(OSError):
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return {int(number) for number in " ".join(lists).split()}


def _adopt(whether: bool) -> None:
    """Become the parent of processes whose own has ended, so as to find them."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(36, int(whether), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end(child: multiprocessing.Process, known: set[int] | None) -> None:
    """Kill a process, all of its session, and what left that: all children that are not known."""
    with suppress(AttributeError, OSError):  # no groups on Windows, or all of them have ended
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()
    while known is not None and (strays := _children() - known):
        for number in strays:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)


def _received(results: Path, secret: str, why: str) -> list[Result]:
    """The results that a process has sent; those that are missing, or make no sense, FAILED."""
    found, content = {}, b""
    with suppress(OSError), results.open("rb") as file:  # it may have sent nothing
        content = file.read(_LONGEST)
    for line in content.decode(errors="replace").split("\n"):
        mark, *fields = line.split("\t")
        if mark == secret and len(fields) == 4 and fields[1] in ALL_MARKS:  # not another's
            result = Result(*map(_one_line, fields))
            found[result.point] = result
    return [found.get(point, Result(point, "FAILED", why)) for point in rubric.POINTS]


def grade_all(
    paths: list[Path], seconds: float, gigabytes: float
) -> Iterator[tuple[Path, list[Result]]]:
    """Grade each notebook in a process of its own, on all cores; yield them in the order given."""
    forks = _FORKS and not torch.cuda.is_initialized()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    cores = count_cores()
    before, reals = _children(), {path.resolve() for path in paths}
    waiting, running, done = list(paths), {}, {}

    def end(child: multiprocessing.Process) -> None:
        _, folder, *_ = running.pop(child)
        _end(child, before | {other.pid for other in running} if forks else None)
        with suppress(OSError, RecursionError):
            shutil.rmtree(folder, ignore_errors=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as private, ExitStack() as stack:
        if forks:
            _adopt(True)
            stack.callback(_adopt, False)
        stack.callback(lambda: [end(child) for child in list(running)])
        for wanted in paths:
            while wanted not in done:
                while waiting and len(running) < cores:
                    path, folder, secret = waiting.pop(0), tempfile.mkdtemp(), secrets.token_hex(16)
                    real, results = path.resolve(), Path(private, secrets.token_hex(16))
                    arguments = (real, reals - {real}, folder, gigabytes, results, secret)
                    child = context.Process(target=_grade_alone, args=arguments)
                    child.start()
                    running[child] = path, folder, results, secret, time.monotonic() + seconds
                ended = wait([child.sentinel for child in running], timeout=0.1)
                for child, (path, _, results, secret, deadline) in list(running.items()):
                    is_late = child.sentinel not in ended
                    if is_late and time.monotonic() < deadline:
                        continue
                    end(child)
                    why = f"there is no verdict: the process ended, exit code {child.exitcode}."
                    if is_late:
                        why = f"not done after {seconds:g} s: it hangs or is slow (see --seconds)."
                    done[path] = _received(results, secret, why)
            yield wanted, done[wanted]


def _notebooks(path: Path) -> list[Path]:
    """A file itself; of a folder, the notebooks below it, and scripts that define a part.

    Whatever has a hidden name below the folder is left out, as are folders and dangling links.
    """
    if not path.is_dir():
        return [path] if path.exists() else []
    part = re.compile(rf"^(def|class) ({'|'.join(WANTED)})\b", re.MULTILINE)

    def is_one(file: Path) -> bool:
        is_hidden = any(name.startswith(".") for name in file.relative_to(path).parts)
        if is_hidden or file.suffix not in (".ipynb", ".py"):
            return False
        try:
            if not file.is_file() or file.suffix == ".ipynb":
                return file.is_file()
            return file.stat().st_size < 10**7 and bool(part.search(_text(file, "replace")))
        except OSError:
            return True  # its owner has to hear that it cannot be read

    return sorted(filter(is_one, path.rglob("*.*")))


def main(arguments: list[str] | None = None) -> int:
    """Grade notebooks: print what each got, then a table of all.

    Returns:
        1 if anything FAILED, was not found or is not written yet, or if a file was not written,
        else 0.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    places: dict[Path, Path] = {}  # a notebook given twice, or with its folder, is graded once
    for path in options.PATH:
        if not (found := _notebooks(path)):
            parser.error(f"{printable(str(path))}: there is no notebook.")
        for notebook in found:
            places.setdefault(notebook.resolve(), notebook)
    outputs = {name: file for name in REPORTS if (file := getattr(options, name)) is not None}
    for name, file in outputs.items():
        if problem := _problem(file, REPORTS[name].begins, places.keys()):
            parser.error(f"{printable(str(file))}: {problem}")
    if len({file.resolve() for file in outputs.values()}) < len(outputs):
        parser.error("two reports have the same file: name another one.")
    if options.gradescope and len(places) > 1:
        parser.error(f"--gradescope takes one notebook, not {len(places)}: name the one to grade.")
    for most, _ in _shells_limits().values():
        if most < 2**24:  # for memory or files
            parser.error(f"the shell allows only {most:,} bytes, too few for all: see ulimit -a.")
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    table = []
    with mock.patch.dict(os.environ):  # as it was, afterwards
        os.environ.setdefault("MPLBACKEND", "Agg")  # no windows
        for name in ("matplotlib.pyplot", "torchvision"):  # once, for all of them
            with suppress(ImportError):
                importlib.import_module(name)
        for path, results in grade_all(list(places.values()), options.seconds, options.gigabytes):
            table.append((str(path), results))
            print(f"{printable(str(path))}: {_totals(results)}", flush=True)
            for point, outcome, why, _ in results:
                if why:
                    print(f"    {point:<20} {outcome:<10} {printable(why)}", flush=True)
    _print_table(table)
    code = int(any(r.outcome in _AT_FAULT for _, row in table for r in row))
    for name, file in outputs.items():
        try:
            with atomic_write(file) as temporary:
                content = REPORTS[name].make(table)
                temporary.write_bytes(content.encode("utf-8", "backslashreplace"))
        except OSError as error:
            print(f"{printable(str(file))} was not written: {error}", file=sys.stderr)
            code = 1
    return code


def _problem(file: Path, begins: str, notebooks: Iterable[Path]) -> str:
    """Say why a report cannot be written there, before long work; or nothing."""
    try:
        if not file.absolute().parent.is_dir():
            return "there is no such folder."
        if file.resolve() in notebooks:
            return "it is one of the notebooks: name another file."
        if file.exists() and not file.is_file():
            return "it is no file, but a folder or a device: name a file."
        if file.exists():
            with file.open("rb") as written:
                former = written.read(len(begins))
            if former and former != begins.encode():
                return "it holds something else than these results: name another file."
        with tempfile.TemporaryFile(dir=file.absolute().parent) as trial:
            trial.write(bytes(4096 * len(notebooks)))
    except OSError as error:
        return f"it cannot be written ({error.strerror})."
    return ""


def _number(text: str) -> float:
    with suppress(ValueError):
        if 1 <= float(text) <= 100_000:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100,000")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m faces grade", description=__doc__, formatter_class=raw
    )
    text = "notebooks, scripts, and folders of them; default: the project's notebook"
    parser.add_argument("PATH", nargs="*", type=Path, default=[rubric.NOTEBOOK], help=text)
    for name, default, text in (("seconds", 60, "time limit"), ("gigabytes", 4, "memory")):
        text = f"{text} of each; default: {default}"
        parser.add_argument(f"--{name}", type=_number, default=default, help=text)
    for name, report in REPORTS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=report.help)
    return parser


# ------------------------------------------------------------------------- reports

Table = list[tuple[str, list[Result]]]  # of notebooks


class _Report(NamedTuple):
    """A file of results."""

    help: str
    begins: str  # by which a former one is known, which may be written over
    make: Callable[[Table], str]


def _records(table: Table) -> list[dict[str, str]]:
    """One for each point of each notebook."""
    names = ("notebook", "point", "outcome", "why")
    return [dict(zip(names, (name, *r[:3]), strict=True)) for name, row in table for r in row]


def _json(table: Table) -> str:
    return json.dumps(_records(table), indent=1) + "\n"


def _csv(table: Table) -> str:
    """A spreadsheet; no cell is a formula, whatever a student calls a file."""
    file, records = io.StringIO(newline=""), _records(table)
    writer = csv.DictWriter(file, records[0])
    writer.writeheader()
    for record in records:
        cells = {key: printable(value) for key, value in record.items()}
        writer.writerow({key: "'" * (v[:1] in tuple("=+-@")) + v for key, v in cells.items()})
    return file.getvalue()


def _gradescope(table: Table) -> str:
    """The results.json of an autograder; https://gradescope-autograders.readthedocs.io."""
    tests = [
        {
            "name": result.point,
            "score": int(result.outcome in ("PASSED", "ADVICE", "NOT JUDGED")),
            "max_score": 1,
            "output": f"{result.outcome}. {result.why}".rstrip()
            + f"\n{result.line}" * bool(result.why),
            "visibility": "visible",
        }
        for _, row in table
        for result in row
    ]
    return json.dumps({"stdout_visibility": "hidden", "tests": tests}, indent=1) + "\n"


def _html(table: Table) -> str:
    """One page without scripts: the matrix, and below it what each notebook was told."""
    rows, parts = [], []
    for number, (name, results) in enumerate(table, 1):
        name, cells, told = html.escape(printable(name)), "", ""
        for point, outcome, why, line in results:
            kind, why = outcome.split()[-1], html.escape(printable(why))
            cells += f'<td class="{kind}" title="{why}">{ALL_MARKS[outcome]}</td>'
            if why:
                told += f'<tr><th>{point}</th><td class="{kind}">{outcome}</td><td>{why}<br>'
                told += f"<code>{html.escape(printable(line))}</code></td></tr>\n"
        n = [result.outcome for result in results].count("PASSED")
        rows.append(f'<tr><th><a href="#n{number}">{name}</a></th><td>{n}</td>{cells}</tr>\n')
        parts.append(f'<h2 id="n{number}">{name}</h2><p>{_totals(results)}</p>\n')
        parts.append(f"<table>\n{told}</table>\n")
    head = "".join(f"<th>{column}</th>" for column in ("", "passed", *rubric.POINTS))
    marks = ", ".join(f"{mark} {outcome}" for outcome, mark in ALL_MARKS.items())
    totals = _totals([result for _, row in table for result in row])
    return f"""{_PAGE}<h1>Grades</h1><p>{len(table)} graded: {totals}</p>
<table class="matrix"><thead><tr>{head}</tr></thead><tbody>
{"".join(rows)}</tbody></table><p>{marks}</p>
{"".join(parts)}</body></html>
"""


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Grades by the rubric</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #8886; padding: .2em .6em; text-align: left; vertical-align: top }
.matrix { display: block; overflow-x: auto }
.matrix td { text-align: center }
.matrix thead th { vertical-align: bottom; writing-mode: vertical-rl }
code { overflow-wrap: anywhere }
.PASSED { background: #30a46c44 }
.FAILED, .FOUND { background: #e5484d55 }
.ADVICE { background: #ffb22455 }
.HERE, .JUDGED, .YET { background: #8885 }
</style></head><body>
"""

REPORTS = {
    "json": _Report("write all results there", '[\n {\n  "notebook": ', _json),
    "csv": _Report("write them for a spreadsheet", "notebook,point,outcome,why", _csv),
    "html": _Report("write them as a page to read", _PAGE, _html),
    "gradescope": _Report(
        "write those of one notebook as a results.json of Gradescope",
        '{\n "stdout_visibility": "hidden",\n "tests": [',
        _gradescope,
    ),
}


def _totals(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ALL_MARKS if counts[outcome])


def _print_table(table: Table) -> None:
    """Print a row for each notebook, a column for each point, and the totals of both."""
    rows = [(printable(name), [ALL_MARKS[result.outcome] for result in row]) for name, row in table]
    columns = list(zip(*[cells for _, cells in rows], strict=True))
    rows.insert(0, ("", range(1, len(columns) + 1)))
    rows.append(("passed", [column.count(".") for column in columns]))
    width = max(len(name) for name, _ in rows)
    print()
    for name, cells in rows:
        print(f"{name:<{width}}" + "".join(f"{cell:>4}" for cell in cells))
    print("\n" + ", ".join(f"{i} {point}" for i, point in enumerate(rubric.POINTS, 1)))
    print(", ".join(f"{mark} {outcome}" for outcome, mark in ALL_MARKS.items()))
    print(f"\n{len(table)} graded: {_totals([result for _, row in table for result in row])}")
