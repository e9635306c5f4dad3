"""Random edits of the notebook, each followed by running it again: three ends are right.

    python tests/random_edits.py [--n 200] [--first 0] [--seed 0]

The notebook is run once at a tiny size. Then each kind of edit has its turn: a number or text, a
layer, an option of an optimizer or a default is changed, a cell is added or deleted, two lines
change places. The edited notebook is run again from its first cell to its training, with ``resume``
on and the results of the first run in its folder. It may

- train, or resume: if there is no error, the losses, measures, samples and weights must be those
  that the edited notebook gets in a folder of its own, bit for bit. (An edit of a cell below the
  training trains nothing new; that cell is run, too. A run that has more epochs than are asked for
  stays as it is, if that is said.)
- refuse in a sentence, which comes from ``faces/``, and names what changed;
- fail with Python's own error in the edited cell, in code that it defines, or in code that uses a
  name that it defines.

Anything else is an old result shown as a new one, or an error that is hard to understand.

Cells are found by what they do, not by their places. They are executed in this process, without
figures and without the rubric's tests. Random numbers are seeded just before the networks are made
and trained, since the cells further up may draw a different number of them.
"""

import argparse
import ast
import collections
import io
import itertools
import json
import linecache
import random
import re
import shutil
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.core.inputtransformer2 import TransformerManager

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import blobs, shorten

import helpers
from faces.files import HERE, NOTEBOOK
from faces.show import write_images

TINY = {"preset": "quick", "idea": "", "max_images": 27, "n_epochs": 2, "batch_size": 8}
TINY |= {"d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "accelerate": False}
RESULTS = ["losses.csv", "measures.csv", "samples.npz", "generator.safetensors"]
SHOWING = ["show_images", "show_figure", "show_animation", "animate_points", "show_network"]
SHOWING += ["explore"]
LAYERS = {"ReLU": "ELU", "LeakyReLU": "ReLU", "BatchNorm2d": "InstanceNorm2d", "tanh": "sigmoid"}
LAYERS |= {"Conv2d": "ConvTranspose2d", "ConvTranspose2d": "Conv2d", "Identity": "Tanh"}
OPTIMIZERS = ["AdamW", "NAdam", "SGD", "RMSprop"]
OPTIONS = ["weight_decay=0.1", "amsgrad=True", "eps=1e-4", "maximize=True"]
ADDED = ["%matplotlib inline", "!nvidia-smi", "names = !ls", "%%bash\necho hello", "%%time\nx = 1"]
ADDED += ["def half_written(", "def draw():\n    pass", "batch_size = 4", "# a note", "print(1)"]
INDIRECT = {"data", "held_out", "d_optimizer", "g_optimizer"}  # changed by another name perhaps
NETWORKS = {"Discriminator", "Generator", "conv", "deconv"}  # of which D and G are made
SENTENCE = re.compile(r"[\w'./-]+( [^ \n]+){4,}")

# ------------------------------------------------------------------------ running


class Ended(NamedTuple):
    """How a notebook's run ended: where the files went, or the error and the cell that raised."""

    folder: Path | None
    printed: str
    error: BaseException | None = None
    cell: int = -1


def read_notebook(**others: Any) -> list[str]:
    """The sources of the notebook's code cells, with tiny settings, and others, in their cell."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    sources = shorten(["".join(cell["source"]) for cell in code])
    (i,) = (i for i, c in enumerate(code) if "parameters" in c["metadata"].get("tags", []))
    settings = TINY | {"data_dir": "images", "output_dir": "run"} | others
    for name, value in settings.items():
        pattern = rf"^{name} = [^#\n]*"
        sources[i], n = re.subn(pattern, f"{name} = {value!r}  ", sources[i], flags=re.MULTILINE)
        assert n == 1, name
    return sources


def find_cells(sources: list[str], function: str) -> list[int]:
    """The cells that call a function outside of their own functions and classes."""
    found = []
    for i, source in enumerate(sources):
        own = [s for s in _parse(source).body if not isinstance(s, (ast.FunctionDef, ast.ClassDef))]
        calls = [n.func for s in own for n in ast.walk(s) if isinstance(n, ast.Call)]
        if any(isinstance(f, ast.Name) and f.id == function for f in calls):
            found.append(i)
    return found


_numbers = itertools.count()


def run(sources: list[str], place: Path) -> Ended:
    """Execute a notebook's code cells in a folder, as a kernel does one after the other."""
    module = types.ModuleType("edited_notebook")
    module.get_ipython = mock.MagicMock()  # for what a command of IPython becomes
    number = next(_numbers)
    seeded = {*find_cells(sources, "build_network"), *find_cells(sources, "train")}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {module.__name__: module}))
        stack.enter_context(mock.patch.dict(sys.modules, problem_unittests=mock.MagicMock()))
        stack.enter_context(mock.patch("faces.files.CACHE", place / "cache"))
        stack.enter_context(chdir(place))
        for name in SHOWING:
            stack.enter_context(mock.patch.object(helpers, name, autospec=True))
        shown = mock.Mock(return_value=np.zeros((40, 32, 32, 3), np.uint8))
        stack.enter_context(mock.patch.object(helpers, "generate_faces", shown))
        stack.enter_context(mock.patch.object(helpers, "inception_distances", autospec=True))
        printed = stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.callback(plt.close, "all")
        for i, source in enumerate(sources):
            name = f"<run {number}, cell {i}>"
            try:
                source = TransformerManager().transform_cell(source)
                linecache.cache[name] = (len(source), None, source.splitlines(True), name)
                code = compile(source, name, "exec")
                if i in seeded:
                    torch.manual_seed(0)
                exec(code, vars(module))
            except (Exception, SystemExit) as error:
                return Ended(None, printed.getvalue(), error, i)
    return Ended(Path(module.output_dir), printed.getvalue())


# ------------------------------------------------------------------------ editing


class Edit(NamedTuple):
    """An edited notebook."""

    what: str
    sources: list[str]
    cell: int  # that was edited
    names: set[str]  # what it defines or defined
    n_shift: int = 0  # cells more than before


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _names_defined(source: str) -> set[str]:
    """The names that a cell gives a meaning to, those of its functions' arguments left out."""
    names = set()
    for statement in _parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).split(".")[0])
    return names


def _replace(source: str, node: ast.expr, text: str) -> str:
    """Put a text in the place of a node of a cell's syntax tree."""
    lines = source.encode().splitlines(True)
    ends = list(itertools.accumulate(map(len, lines), initial=0))
    start, end = ends[node.lineno - 1] + node.col_offset, ends[node.end_lineno - 1]
    content = source.encode()
    return (content[:start] + text.encode() + content[end + node.end_col_offset :]).decode()


def _change_value(value: Any, chance: random.Random) -> Any:
    others = {
        bool: lambda: [not value],
        int: lambda: [value + 1, value - 1, 2 * value, 0, -value, float(value)],
        float: lambda: [value / 10, 2 * value, 0.0, 1.0, round(value) + 1],
        str: lambda: [value + "x", "", value[:-1]],
        type(None): lambda: [1, 0.5, "x"],
    }[type(value)]()
    return chance.choice([other for other in others if repr(other) != repr(value)])


def _constants(tree: ast.Module) -> Iterator[ast.Constant]:
    """Literals of a cell; not docstrings, texts with values, nor how an optimizer steps."""
    parts = {id(n) for j in ast.walk(tree) if isinstance(j, ast.JoinedStr) for n in ast.walk(j)}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword))
    parts |= {id(keyword.value) for keyword in keywords if keyword.arg == "fused"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in parts and node.value is not ...:
            yield node


def _defaults(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            values = [*node.args.defaults, *node.args.kw_defaults]
            yield from (v for v in values if isinstance(v, ast.Constant))


def _layers(tree: ast.Module) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LAYERS:
            yield node


def _optimizers(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("optim."):
            yield node


def _edit_node(
    find: Callable[[ast.Module], Iterator[ast.expr]],
    change: Callable[[Any, random.Random], str],
    sources: list[str],
    chance: random.Random,
) -> Edit:
    found = [(i, node) for i, s in enumerate(sources) for node in find(_parse(s))]
    i, node = chance.choice(found)
    text, before = change(node, chance), ast.get_source_segment(sources[i], node)
    edited = _replace(sources[i], node, text)
    what = f"{before} -> {text} in line {node.lineno}: {sources[i].splitlines()[node.lineno - 1]}"
    return Edit(what, [*sources[:i], edited, *sources[i + 1 :]], i, _names_defined(sources[i]))


def _change_constant(node: ast.Constant, chance: random.Random) -> str:
    return repr(_change_value(node.value, chance))


def _change_layer(node: ast.Attribute, chance: random.Random) -> str:
    return f"{ast.unparse(node.value)}.{LAYERS[node.attr]}"


def _change_optimizer(node: ast.Call, chance: random.Random) -> str:
    if chance.random() < 0.4:
        node.func.attr = chance.choice(OPTIMIZERS)
        if node.func.attr in ("SGD", "RMSprop"):
            del node.args[2:], node.keywords[:]
    else:
        return f"{ast.unparse(node)[:-1]}, {chance.choice(OPTIONS)})"
    return ast.unparse(node)


def _add(sources: list[str], chance: random.Random) -> Edit:
    i, added = chance.randrange(len(sources) + 1), chance.choice(ADDED)
    edited = [*sources[:i], added, *sources[i:]]
    return Edit(f"{added!r} added", edited, i, _names_defined(added), 1)


def _swap(sources: list[str], chance: random.Random) -> Edit:
    places = [
        (i, line)
        for i, source in enumerate(sources)
        for line, pair in enumerate(itertools.pairwise(source.splitlines()))
        if all(pair) and len({len(text) - len(text.lstrip()) for text in pair}) == 1
    ]
    i, line = chance.choice(places)
    lines = sources[i].splitlines()
    what = f"swapped {lines[line]!r} and {lines[line + 1]!r}"
    lines[line : line + 2] = lines[line + 1], lines[line]
    edited = [*sources[:i], "\n".join(lines), *sources[i + 1 :]]
    return Edit(what, edited, i, _names_defined(sources[i]))


def _delete(sources: list[str], chance: random.Random) -> Edit:
    i = chance.randrange(len(sources))
    edited = [*sources[:i], *sources[i + 1 :]]
    what = f"deleted {sources[i].splitlines()[0]!r} ..."
    return Edit(what, edited, i, _names_defined(sources[i]), -1)


def _of_nodes(find: Callable, change: Callable) -> Callable[[list[str], random.Random], Edit]:
    return lambda sources, chance: _edit_node(find, change, sources, chance)


KINDS: dict[str, Callable[[list[str], random.Random], Edit]] = {
    "literal": _of_nodes(_constants, _change_constant),
    "layer": _of_nodes(_layers, _change_layer),
    "optimizer": _of_nodes(_optimizers, _change_optimizer),
    "default": _of_nodes(_defaults, _change_constant),
    "add": _add,
    "swap": _swap,
    "delete": _delete,
}


# ------------------------------------------------------------------------ judging


class Edits:
    """A tiny run of the notebook in a folder, and edited notebooks that are run on top of it."""

    def __init__(self, place: Path) -> None:
        self.place, self.sources = place, read_notebook()
        self.n_cells = find_cells(self.sources, "train")[0] + 1
        matplotlib.use("agg")
        write_images(blobs(30, 40, 40, seed=0), place / "images")
        ended = run(self.sources[: self.n_cells], place)
        assert ended.error is None, "".join(traceback.format_exception(ended.error))
        shutil.copytree(place / "run", place / "before")

    def one(self, number: int, seed: int) -> tuple[str, str]:
        """Make an edit, and run the notebook again; return what it was, and how that ended.

        Raises:
            AssertionError: if it ended in no way that it may.
        """
        kind = [*KINDS][number % len(KINDS)]
        edit = KINDS[kind](self.sources, random.Random(f"{seed}, {number}"))
        try:
            return f"{kind}, {edit.what}", self.judge(edit)
        except AssertionError as error:
            raise AssertionError(f"{kind}, {edit.what}: {error}") from error

    def judge(self, edit: Edit) -> str:
        """Run an edited notebook in the folder of the run before; return how that ended.

        Raises:
            AssertionError: if it ended in no way that it may.
        """
        self._clear()
        shutil.copytree(self.place / "before", self.place / "run")
        n_cells = self._count_cells(edit)
        ended = run(edit.sources[:n_cells], self.place)
        if ended.error is not None:
            text = "".join(traceback.format_exception(ended.error))
            if not self._is_sentence(ended.error):
                assert self._is_at_the_edit(ended, edit), f"an error elsewhere: {text}"
                return "Python's error at the edit"
            named = self._names_of_refusal(str(ended.error))
            words = {*re.findall(r"\w+", "\n".join({*edit.sources} ^ {*self.sources}))}
            if named is not None and not named & INDIRECT:
                assert named & words, f"what changed is not named: {text}"
            return "refused in a sentence"
        if "more than n_epochs = " in ended.printed:
            return "fewer epochs than there are, as is said"
        if n_cells > self.n_cells + edit.n_shift:
            return "takes effect below the training"
        results = self._read(ended.folder)
        self._clear()
        fresh = run(edit.sources[:n_cells], self.place)
        assert fresh.error is None, f"resumed, where a new run fails: {fresh.error}"
        new = self._read(fresh.folder)
        differing = [name for name in RESULTS if results[name] != new[name]]
        assert not differing, f"old results are shown as new: {', '.join(differing)}"
        return "the results of a new run"

    def _clear(self) -> None:
        """Delete the runs, whose folder an edit may have named otherwise."""
        for path in self.place.iterdir():
            if path.name not in ("images", "cache", "before"):
                shutil.rmtree(path)

    def _names_of_refusal(self, message: str) -> set[str] | None:
        """What the refusal to resume a run says has changed; None if that is not what is said."""
        if "other settings" not in message:
            return None
        lines = [line.partition(":")[0] for line in message.splitlines() if line[:2] == "  "]
        return {line.removeprefix("the code of ").split()[-1] for line in lines}

    def _count_cells(self, edit: Edit) -> int:
        """Count the cells to run: down to the training, or to what shows an edit further down."""
        if edit.cell < self.n_cells and find_cells(edit.sources, "train"):
            return self.n_cells + edit.n_shift
        n_cells = edit.cell + 1
        if edit.n_shift < 0:  # to the first cell that uses what is gone
            rest = enumerate(edit.sources[edit.cell :], start=n_cells)
            words = (n for n, s in rest if edit.names & {*re.findall(r"\w+", s)})
            n_cells = next(words, n_cells)
        return n_cells

    def _read(self, folder: Path) -> dict[str, bytes]:
        return {name: (self.place / folder / name).read_bytes() for name in RESULTS}

    def _is_sentence(self, error: BaseException) -> bool:
        """Whether an error was raised by the project's own code, with a sentence for its reader."""
        last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        return (
            Path(last.f_code.co_filename).parent == HERE / "faces"
            and isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError))
            and SENTENCE.match(str(error)) is not None
        )

    def _is_at_the_edit(self, ended: Ended, edit: Edit) -> bool:
        """Whether an error came from the edited cell, or from what uses a name that it defines."""
        if ended.cell == edit.cell and edit.n_shift >= 0:
            return True
        if any(re.search(rf"\b{name}\b", str(ended.error)) for name in edit.names if name[2:]):
            return True
        codes = [f.f_code for f, _ in traceback.walk_tb(ended.error.__traceback__)]
        here = [c for c in codes if c.co_filename.startswith("<run ")]
        names = edit.names | ({"D", "G"} if edit.names & NETWORKS else set())
        is_edited = any(c.co_filename.endswith(f"cell {edit.cell}>") for c in here)
        return (is_edited and edit.n_shift >= 0) or any(names & {*c.co_names} for c in here)


def main() -> None:
    """Make edits, and count how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ends = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        edits = Edits(Path(place))
        for number in range(options.first, options.first + options.n):
            try:
                what, end = edits.one(number, options.seed)
            except AssertionError as error:
                what, end = str(error), "WRONG"
            print(f"{number}: {what}: {end}", flush=True)
            ends[end] += 1
    print(*(f"{n} {end}" for end, n in sorted(ends.items())), sep=", ")


if __name__ == "__main__":
    main()
