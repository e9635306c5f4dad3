"""What the documentation says: its links, files, commands, messages, settings and figures."""

import argparse
import ast
import csv
import inspect
import json
import re
import runpy
import shlex
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import papermill.cli
import pytest
import torch
import torch.distributed.run
from nbconvert.filters import markdown2html
from nbconvert.nbconvertapp import NbConvertApp
from PIL import Image

import problem_unittests as rubric
from faces import grading
from faces.files import HERE, NOTEBOOK
from faces.notebook import IDEAS, RANGES, find_ideas, load_definitions
from faces.show import layer_table

CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
PAGES = [HERE / "README.md", HERE / "CONTRIBUTING.md", *sorted((HERE / "docs").glob("*.md"))]
PAGES += [HERE / "ideas" / "README.md", HERE / "assets" / "README.md", NOTEBOOK]
TEXTS = {path.relative_to(HERE).as_posix(): path for path in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    """Read a page; of the notebook, its texts."""
    if TEXTS[page] == NOTEBOOK:
        return "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    return TEXTS[page].read_text(encoding="utf-8")


def read_prose(page: str) -> str:
    """Read a page without its code blocks."""
    return FENCE.sub("", read(page))


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    found = [code for name, code in FENCE.findall(read(page)) if name == language]
    return [code.replace("\\\n", "") for code in found]  # lines that go on


def tables(page: str) -> Iterator[tuple[list[str], list[list[str]], str]]:
    """The tables of a page: header, rows, and all text before them."""
    text = read_prose(page)
    for match in re.finditer(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in match[0].splitlines()]
        header, _, *rows = [[cell.strip() for cell in line] for line in lines]
        yield header, rows, text[: match.start()]


def table(page: str, *columns: str) -> list[list[str]]:
    """The rows of the one table of a page whose header begins with these cells."""
    (rows,) = [rows for header, rows, _ in tables(page) if header[: len(columns)] == [*columns]]
    return rows


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# ------------------------------------------------------------------------ links and files


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings, and nbconvert to the notebook's."""
    headings = re.findall(r"^#+ .*", read_prose(page), re.MULTILINE)
    if TEXTS[page] == NOTEBOOK:
        return set(re.findall(r'<h\d id="([^"]+)"', markdown2html("\n\n".join(headings))))
    kept = [re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def links(page: str) -> list[str]:
    """What a page links to or shows, without addresses on the web."""
    text = read_prose(page)
    found = re.findall(r"\]\(\s*([^)\s]+)\s*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [link for link in found if not re.match(r"\w+:", link)]


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    assert links(page)
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (TEXTS[page].parent / target).resolve() if target else TEXTS[page]
        assert path.exists() and path.is_relative_to(HERE), link
        if anchor:
            assert anchor in anchors(path.relative_to(HERE).as_posix()), link


def test_images_are_shown_with_a_text_in_their_place():
    shown = []
    for page in TEXTS:
        text = read_prose(page)
        tags = re.findall(r"<img [^>]*>", text)
        assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in tags), page
        assert all(re.findall(r"!\[([^\]]*)\]\(", text)), page
        shown += [TEXTS[page].parent / link for link in links(page)]
    shown = [path for path in shown if path.suffix in (".png", ".gif")]
    assert {"result_64.png", "progress.gif", "training_loss.png"} <= {path.name for path in shown}
    for path in shown:
        with Image.open(path) as image:
            assert image.width >= 128 and path.stat().st_size > 10_000, path


def sources() -> Iterator[str]:
    """The code that a learner runs: the notebook's, that of ``faces/``, and the rubric's tests."""
    yield from (cell.source for cell in CELLS if cell.cell_type == "code")
    for path in [*(HERE / "faces").glob("*.py"), Path(rubric.__file__)]:
        yield path.read_text(encoding="utf-8")


def literals() -> Iterator[str]:
    """All texts in the sources; "…" stands where a value is put in."""
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


LITERALS = list(literals())
TOPS = {".ci", "assets", "benchmarks", "docs", "faces", "ideas", "tests"}
ENDINGS = (".py", ".md", ".ipynb", ".txt", ".toml", ".csv", ".png", ".gif", ".svg", ".npz", ".pt")
ENDINGS += (".safetensors",)
OWN = {"my_idea.py"}  # what a reader may make


def is_written(name: str) -> bool:
    """Whether the code writes a file of this name, in which numbers may be counted."""
    pattern = re.sub(r"\d+", "(…|\\\\d+)", re.escape(name))
    return any(re.fullmatch(rf"(?s)(.*[ /…])?{pattern}", text) for text in LITERALS)


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_are_there(page):
    places = [HERE, TEXTS[page].parent, HERE / "faces", HERE / "assets"]
    n_found = 0
    for name in set(in_backticks(read_prose(page))) - OWN:
        if not re.fullmatch(r"[\w.\-]*[\w\-][\w.\-/]*", name) or name.startswith("runs/"):
            continue
        if name.split("/")[0] in TOPS and "/" in name or name.endswith(ENDINGS):
            if name.startswith(".") and "/" not in name:
                continue  # an ending
            is_there = any((place / name).exists() for place in places)
            assert is_there or ("/" not in name and is_written(name)), name
            n_found += 1
    assert n_found or page == "dlnd_face_generation.ipynb"


def test_the_lists_of_files_are_complete():
    listed = {name for row in table("assets/README.md", "file") for name in in_backticks(row[0])}
    assert listed | {"README.md"} == {path.name for path in (HERE / "assets").glob("[!.]*")}
    (box,) = [rows for header, rows, _ in tables("README.md") if header == ["", ""]]
    named = {name.rstrip("/") for row in box for name in in_backticks(row[0])}
    assert named == (TOPS - {".ci"}) | {"helpers.py", "problem_unittests.py", NOTEBOOK.name}
    assert {f"docs/{path.name}" for path in (HERE / "docs").iterdir()} <= set(links("README.md"))
    n_ideas = len(list(IDEAS.glob("*.py")))
    (told,) = re.findall(r"(\d+) ideas", read("README.md"))
    (others,) = re.findall(r"and (\d+) more are one small file", read("README.md"))
    assert int(told) == n_ideas == int(others) + 3


def test_a_run_writes_what_is_listed():
    listed = [name for row in table("docs/using.md", "file") for name in in_backticks(row[0])]
    assert len(listed) >= 14
    for name in listed:
        assert is_written(name) or is_written(name.rstrip("/")), name
    assert not is_written("results.png")


def test_modules_are_listed_in_the_order_of_their_imports():
    names = [in_backticks(row[0])[0] for row in table("CONTRIBUTING.md", "module")]
    assert sorted([*names, "__init__"]) == sorted(p.stem for p in (HERE / "faces").glob("*.py"))
    for number, name in enumerate(names):
        tree = ast.parse((HERE / "faces" / f"{name}.py").read_text(encoding="utf-8"))
        imported = {
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "faces"
            for part in (node.module.split(".")[1:] or [alias.name for alias in node.names])
        }
        assert imported <= set(names[:number]), name


# ------------------------------------------------------------------------ commands


class Accepted(Exception):
    """A command line has been parsed."""


@contextmanager
def parsing(script: str, arguments: list[str]) -> Iterator[None]:
    """Let a program parse its command line, and do nothing after it."""
    plain = argparse.ArgumentParser.parse_args

    def parse_args(parser, arguments=None, namespace=None):
        plain(parser, arguments, namespace)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Accepted):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "path", [str(Path(script).parent), *sys.path])
        patch.setattr(sys, "argv", [script, *arguments])
        yield


def run_python(arguments: list[str]) -> None:
    """Let a program of the project parse its command line."""
    if arguments[:2] == ["-m", "faces"]:
        with parsing("faces", arguments[2:]):
            runpy.run_module("faces", run_name="__main__")
        return
    script, *rest = arguments
    if script == f"{NOTEBOOK.stem}.py":  # which nbconvert makes
        assert not rest
        return
    assert (HERE / script).is_file(), script
    if script.startswith(".ci/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", sys.path[:])
            inspect.signature(runpy.run_path(script)["main"]).bind(*rest)
        return
    with parsing(script, rest):
        runpy.run_path(script, run_name="__main__")


def run_papermill(arguments: list[str]) -> None:
    """Let papermill parse its command line; check the settings that it is to pass."""
    parsed = papermill.cli.papermill.make_context("papermill", arguments).params
    assert (HERE / parsed["notebook_path"]).is_file()
    for name, value in parsed["parameters"]:
        assert name in {"data_dir", "output_dir", "preset", "idea", *RANGES}, name
        if name in RANGES:
            assert RANGES[name][1](ast.literal_eval(value)), (name, value)
        if name == "idea":
            find_ideas(value)


def run_notebook_converter(arguments: list[str]) -> None:
    """Let nbconvert parse its command line."""
    app = NbConvertApp()
    app.parse_command_line(arguments)
    assert app.export_format in ("script", "notebook")
    assert [HERE / name for name in app.extra_args] == [NOTEBOOK]


def run_pip(arguments: list[str]) -> None:
    """Check the files and the options that pip is given."""
    assert arguments[0] == "install"
    words = iter(arguments[1:])
    for word in words:
        if word in ("-r", "-c"):
            assert (HERE / next(words).removeprefix("dlnd-face-generation/")).is_file()
        elif word == "--index-url":
            assert next(words).startswith("https://")
        else:
            assert word in ("--no-deps", "torch", "torchvision", "ruff"), word


def run_docker(arguments: list[str]) -> None:
    """Check that a container which runs strangers' code is closed, and the command inside it."""
    if arguments[0] == "build":
        assert arguments[1:] == ["-t", "faces-grader", "."]
        return
    image = arguments.index("faces-grader")
    options, command = arguments[:image], arguments[image + 1 :]
    assert options[0] == "run" and "--read-only" in options
    assert options[options.index("--network") + 1] == "none"
    mounts = [options[i + 1] for i, word in enumerate(options) if word == "-v"]
    places = {mount.split(":")[1]: mount.split(":")[2:] for mount in mounts}
    assert places == {"/class": ["ro"], "/grades": []}
    assert command[:4] == ["python", "-m", "faces", "grade"]
    run_python(command[1:])
    written = [Path(command[command.index(option) + 1]) for option in ("--json", "--csv")]
    assert {str(path.parent) for path in written} == {"/grades"} and command[4] == "/class"


def load_presets() -> dict[str, dict[str, object]]:
    """The presets of the notebook, all of them."""
    (source,) = [cell.source for cell in CELLS if cell.source.startswith("presets = ")]
    names = {}
    exec(source.partition("\nsettings = ")[0], names)
    return names["presets"]


def run_line(line: str) -> int:
    """Check a line of shell; return how many commands it has."""
    words, commands = shlex.split(line.lstrip("!%"), comments=True), [[]]
    for word in words:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    for command in filter(None, commands):
        while re.match(r"[A-Z_]+=", command[0]):
            name, _, value = command.pop(0).partition("=")
            known = {"MPLBACKEND": ["agg"], "FACES_PRESET": load_presets()}
            assert value in known[name]
        run_command(command)
    return sum(map(bool, commands))


def run_command(command: list[str]) -> None:
    """Check a command, by its own parser where it has one."""
    name, *rest = command
    if name == "python":
        run_python(rest)
    elif name == "papermill":
        run_papermill(rest)
    elif name == "jupyter" and rest[0] == "nbconvert":
        run_notebook_converter(rest[1:])
    elif name == "torchrun":
        parsed = torch.distributed.run.get_args_parser().parse_args(rest)
        assert parsed.training_script == f"{NOTEBOOK.stem}.py"
    elif name == "pip":
        run_pip(rest)
    elif name == "docker":
        run_docker(rest)
    elif name == "pytest":
        assert rest in (["-m", "slow"], ["-m", ""]) or all((HERE / p).is_file() for p in rest), rest
    elif name == "git":
        assert rest[:2] == ["clone", "PUT-THE-ADDRESS-OF-THIS-REPOSITORY-HERE"]
    elif name == "cd":
        assert rest in (["dlnd-face-generation"], ["course"])
    elif name == "mkdir":
        assert rest[0] == "-p" and rest[1] in ("runs", "grades", "course/source/dcgan")
    elif name == "nbgrader":  # tests/test_starter.py calls it, where it is installed
        assert rest[0] in ("generate_assignment", "autograde") and rest[1:] == ["dcgan", "--create"]
    else:
        fixed = [["jupyter", "lab", NOTEBOOK.name], [".", ".venv/bin/activate"]]
        fixed += [["python3", "-m", "venv", ".venv"]]
        fixed += [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
        assert command in fixed, command


@pytest.mark.parametrize("page", [page for page in TEXTS if page.endswith(".md")])
def test_commands_are_accepted_by_their_programs(page, monkeypatch):
    monkeypatch.chdir(HERE)
    lines = [line for code in blocks(page, "sh") for line in code.splitlines()]
    shells = [line for code in blocks(page, "") for line in code.splitlines()]
    lines += [line for line in shells if line.startswith(("!", "%"))]  # of a notebook
    begins = re.compile(r"python (-m faces \S|[\w/]+\.py\b)|pytest \S")
    lines += [code for code in in_backticks(read_prose(page)) if begins.match(code)]
    n_commands = sum(map(run_line, lines))
    assert n_commands or page in ("docs/trouble.md", "assets/README.md")


@pytest.mark.parametrize("line", ["python -m faces draw --m 3 --out x.png", "papermill a.ipynb b"])
def test_a_wrong_command_is_noticed(line, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        run_line(line)


def test_the_two_commands_stand_alone():
    """As ``.ci/run`` finds the second one; both are one line of a block of their own."""
    text = read("README.md")
    matching = [line for line in text.splitlines() if re.search(r"pip install .* && pytest$", line)]
    pattern = re.search("grep -m 1 '(.*)' README.md", (HERE / ".ci" / "run").read_text())
    assert re.findall(pattern[1], text, re.MULTILINE) == [re.search(pattern[1], matching[0])[0]]
    both = [code for code in blocks("README.md", "sh") if code.startswith("python3 -m venv")]
    assert both[-1] == matching[0] + "\n" and both[-2].count("\n") == 1 and "papermill" in both[-2]


@pytest.mark.parametrize("page", ["README.md", "docs/using.md"])
def test_examples_in_python_run(page, monkeypatch):
    monkeypatch.chdir(HERE)
    for code in blocks(page, "python"):
        names = {}
        exec(compile(code, page, "exec"), names)
        assert names["faces"].dtype == np.uint8 and names["faces"].shape == (16, 32, 32, 3)


# ------------------------------------------------------------------------ settings and messages


def test_settings_and_presets_are_those_of_the_notebook():
    (cell,) = [c for c in CELLS if "parameters" in c.metadata.get("tags", [])]
    defaults = {s.targets[0].id: ast.unparse(s.value) for s in ast.parse(cell.source).body}
    rows = {in_backticks(row[0])[0]: row[1:] for row in table("docs/using.md", "setting")}
    assert list(rows) == list(defaults)
    for name, (default, _, must_be) in rows.items():
        assert ast.literal_eval(default.strip("`")) == ast.literal_eval(defaults[name]), name
        assert name not in RANGES or must_be == RANGES[name][0], name
    presets = load_presets()
    header = next(header for header, _, _ in tables("docs/using.md") if header[0] == "preset")
    columns = [in_backticks(cell)[0] for cell in header[1:-1]]
    rows = {in_backticks(row[0])[0]: row[1:] for row in table("docs/using.md", "preset")}
    assert list(rows) == list(presets)
    for name, (*cells, besides) in rows.items():
        told = {c: ast.literal_eval(v.strip("`")) for c, v in zip(columns, cells, strict=True)}
        for assignment in filter(lambda code: "=" in code, in_backticks(besides)):
            setting, value = assignment.split(" = ")
            told[setting] = ast.literal_eval(value)
        assert told == presets[name], name


def test_messages_are_those_of_the_sources():
    messages = []
    for header, rows, _ in tables("docs/trouble.md"):
        assert header == ["what you see", "what happened", "what to do"]
        messages += [message for row in rows for message in in_backticks(row[0])]
    messages = [message for message in messages if " " in message]
    assert len(messages) > 40
    for message in messages:
        assert len(message.replace("…", "")) > 9, message
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert any(re.search(pattern, text, re.DOTALL) for text in LITERALS), message


def test_the_page_on_grading_is_right():
    _, *lines = ast.parse(blocks("docs/grading.md", "python")[0]).body
    calls = [line.value for line in lines]
    told = {call.func.attr: [ast.unparse(arg) for arg in call.args] for call in calls}
    assert told == {f"test_{name}": point.names for name, point in rubric.POINTS.items()}
    (example,) = [code for code in blocks("docs/grading.md", "") if "graded:" in code]
    legend = ", ".join(f"{mark} {outcome}" for outcome, mark in grading.MARKS.items())
    assert legend in example
    (points,) = re.findall(r"^1 get_dataloader, .*?(?=, \.\.\.$|$)", example, re.MULTILINE)
    numbered = ", ".join(f"{i} {name}" for i, name in enumerate(rubric.POINTS, 1))
    assert numbered.startswith(points) and len(points) > 60
    parser = grading._parser()
    for option, default, _ in table("docs/grading.md", "option"):
        name = in_backticks(option)[0]
        assert parser.get_default(name.removeprefix("--")) == float(default), name
    reports = {in_backticks(row[0])[0].split()[0] for row in table("docs/grading.md", "report")}
    assert reports == {f"--{name}" for name in grading.REPORTS}
    (copied,) = blocks("docs/grading.md", "dockerfile")
    names = [name for line in re.findall(r"^COPY (.*) \S+$", copied, re.M) for name in line.split()]
    assert all((HERE / name).exists() for name in names) and "faces" in names


# ------------------------------------------------------------------------ figures

USUAL = "16,196 images"  # that the tables' trainings learnt from
KEYS = {"row", "conv_dim", "steps", "weights", "size", "training", "seed"}  # which rows are meant
KEYS |= {"way", "class"}
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def round_like(value: float, shown: str) -> str:
    """Write a value with as many digits as a figure shows."""
    return f"{value:,.{len(shown.partition('.')[2])}f}"


def compare_to_csv(header: list[str], rows: list[list[str]], path: Path) -> int:
    """Compare a table to a CSV, whose columns it names; return how many figures it has."""
    columns = [(in_backticks(cell) or [cell])[0] for cell in header]
    with open(path, newline="") as file:
        records = [r for r in csv.DictReader(file) if r.get("data", USUAL).startswith(USUAL)]
    n_figures = 0
    for row in rows:
        cells = {c: v.strip("`") for c, v in zip(columns, row, strict=True)}
        keys = {c: re.sub(r"(?<=\d),(?=\d)", "", v) for c, v in cells.items() if c in KEYS}
        meant = [r for r in records if all(r[c] == v for c, v in keys.items())]
        assert meant, row
        if cells.get("seeds"):
            assert len(meant) == int(cells["seeds"]), row
        for column in set(cells) - KEYS - {"seeds"}:
            values = [float(r[column]) for r in meant if r[column] != ""]
            shown = NUMBER.findall(cells[column])
            assert bool(values) == bool(shown), (row, column)
            if shown:
                expected = [statistics.mean(values), min(values), max(values)][: len(shown)]
                assert len(shown) == (3 if len(set(values)) > 1 and "(" in cells[column] else 1)
                rounded = [round_like(v, s) for v, s in zip(expected, shown, strict=True)]
                assert rounded == shown, (row, column)
                n_figures += len(shown)
    return n_figures


FIGURES = {
    "docs/measurements.md": 70,
    "assets/README.md": 15,
    "ideas/README.md": 25,
}  # how many at least


@pytest.mark.parametrize("page", FIGURES)
def test_figures_are_those_of_the_files_that_they_name(page):
    n_figures = 0
    for header, rows, before in tables(page):
        if header[0].split("(")[0].strip() in ("faces", "training", "`training`", "way"):
            named = re.findall(r"[\[`](?:assets/)?(\w+\.csv)[\]`]", before)[-1]
            n_figures += compare_to_csv(header, rows, HERE / "assets" / named)
        else:
            assert header[0] in ("", "file", "row", f"`{NOTEBOOK.name}`"), header
    assert n_figures >= FIGURES[page]


def test_a_wrong_figure_is_noticed():
    path = HERE / "assets" / "features.csv"
    header = ["faces (`weights`)", "`size`", "distance (`frechet`)"]
    row = ["`training faces`", "32", "156.8"]
    assert compare_to_csv(header, [row], path) == 1
    for wrong in (["`training faces`", "32", "156.9"], ["`training faces`", "48", "156.8"]):
        with pytest.raises(AssertionError):
            compare_to_csv(header, [wrong], path)


TOLD = ["distance in features", "`closer`", "`minutes`", "steps"]  # the columns they are from
SUMMARIES = {"docs/measurements.md": "# Measurements", "ideas/README.md": "## What we learnt"}


@pytest.mark.parametrize("page", SUMMARIES)
def test_a_summary_has_figures_of_the_tables(page):
    summary = read_prose(page).split(f"{SUMMARIES[page]}\n\n")[1].split("\n\n")[0]
    cells = [
        cell
        for header, rows, _ in tables(page)
        for row in rows
        for column, cell in zip(header, row, strict=True)
        if any(name in column for name in TOLD)
    ]
    chance = "distance in features of [^;|]*; to count, [^;|]*? must be ([0-9.]+) from"
    cells += re.findall(chance, read_prose(page))
    values = [float(n.replace(",", "")) for cell in cells for n in NUMBER.findall(cell)]
    values += [100 * value for value in values if value < 1]
    shown = NUMBER.findall(re.sub(r"\d+x\d+|\d+ channels|R\d|`[^`]+`|\]\(.*?\)", "", summary))
    assert len(shown) >= 9
    for figure in shown:
        assert figure in {round_like(value, figure) for value in values}, figure


def test_the_readmes_figures_are_those_of_the_shipped_generator():
    with open(HERE / "assets" / "features.csv", newline="") as file:
        rows = {r["weights"]: r for r in csv.DictReader(file) if r["size"] == "32"}
    ours = [rows[f"assets/{name}.safetensors"] for name in ("generator_64", "generator")]
    real = rows["training faces"]
    names = {"distance": "frechet", "coverage": "coverage", "closer": "closer"}
    rows = table("README.md", "32x32 pixels, 1,600 faces")
    told = {re.match(r"\w+", row[0])[0]: row[1:] for row in rows}
    assert told.keys() == names.keys() and {r["n"] for r in (*ours, real)} == {"1600"}
    for name, cells in told.items():
        for record, cell in zip((*ours, real), cells, strict=True):
            scale = 100 if "%" in cell else 1
            value = float(record[names[name]] or 0.5)  # of real faces half are closer
            assert round_like(scale * value, NUMBER.search(cell)[0]) == NUMBER.search(cell)[0]


def test_the_saved_runs_figures_are_those_of_the_notebook():
    outputs = [o.get("text", "") for c in CELLS if c.cell_type == "code" for o in c.outputs]
    (printed,) = [text for text in outputs if re.search(r"generated +training\n", text)]
    rows = table("docs/measurements.md", f"`{NOTEBOOK.name}`")
    assert len(rows) == 3
    for row in rows:
        name, *shown = in_backticks(row[0])[0], *row[1:]
        printed_values = re.search(rf"^{name} +(\S+) +(\S+)$", printed, re.MULTILINE).groups()
        values = zip(map(float, printed_values), shown, strict=True)
        assert [round_like(value, figure) for value, figure in values] == shown, name


def test_the_networks_are_those_of_the_preset():
    notebook = load_definitions()
    full = load_presets()["full"]
    D, G = notebook.build_network(full["d_conv_dim"], full["g_conv_dim"], notebook.z_size)
    rows = table("README.md", "discriminator", "output")
    for column, network, example in ((0, D, torch.rand(2, 3, 32, 32)), (2, G, torch.rand(2, 100))):
        lines = layer_table(network, example).splitlines()[2:]
        *layers, total = [re.split(r"  +", line) for line in lines]
        assert rows[-1][column + 1] == total[-1]
        for cells, (kind, _, output, batch_norm, _) in zip(rows[1:-1], layers, strict=True):
            expected = {"Linear": "linear layer", "Conv2d": "convolution"}
            name = expected.get(kind, "transposed convolution")
            assert cells[column] == name + (", batch norm" if batch_norm == "yes" else "")
            assert cells[column + 1].split(" (")[0] == output
        assert rows[0][column + 1] == layers[0][1]


def test_the_models_are_those_of_the_card():
    from faces.generator import read_weights

    rows = {row[0]: row[1:] for row in table("assets/README.md", "", "`generator.safetensors`")}
    for number, name in enumerate(("generator", "generator_64")):
        state, settings = read_weights(HERE / "assets" / f"{name}.safetensors")
        trained = {n: t for n, t in state.items() if "running" not in n and "num_" not in n}
        assert rows["weights"][number] == f"{sum(t.numel() for t in trained.values()):,}"
        assert {t.dtype for t in trained.values()} == {torch.float16}
        side = settings["image_size"]
        assert rows["image"][number] == f"{side}x{side} pixels" and settings["idea"] == "r1"
        assert rows["seed"][number] == settings["seed"]
        n_epochs = int(re.search(r"n_epochs = (\d+)", rows["trained with"][number])[1])
        n_images = int(settings["data"].split(" ")[0].replace(",", ""))
        steps = n_epochs * (n_images // int(settings["batch_size"]))
        assert rows["steps"][number] == f"{steps:,}" and json.loads(settings["z_size"]) == 100
