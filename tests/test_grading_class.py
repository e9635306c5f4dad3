"""Proof that no notebook, no name and no file beside them stops the grading of a class."""

import csv
import json
import os
import re
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from conftest import full_disk
from nbformat.v4 import new_code_cell, new_notebook

import problem_unittests as rubric
from faces import grading

sys.path.insert(0, str(Path(__file__).parent))
from right_answers import CLASSIC  # noqa: E402

POINTS = list(rubric.POINTS)
MODULE = Path(rubric.__file__)
NASTY = "=1+1\n\x1b[31m\u202etxt.ipynb"
IN_CLASS = "class Discriminator(nn.Module):\n"
SCALE = "    min, max = feature_range\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found otherwise there")


def write(path: Path, *cells: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def with_body(trick: str) -> str:
    """A right solution that does something while its discriminator is defined."""
    body = "".join(f"    {line}\n" for line in trick.splitlines())
    assert CLASSIC.count(IN_CLASS) == 1
    return CLASSIC.replace(IN_CLASS, IN_CLASS + body + "\n")


def run(folder: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Grade in a folder, by the module itself."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, str(MODULE), *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        **options,
    )


# ---------------------------------------------------------------------- a class of accidents

NOISE = "\\tscale\\tNONSENSE\\t\\t\\n"
ACCIDENTS = {  # what a right solution does besides; its row
    "a-slow": ("import time\ntime.sleep(4)", r"\.{10}"),
    "kills-its-parent": ("import os\nos.kill(os.getppid(), 9)", "F{10}"),
    "kills-its-group": ("import os\nos.killpg(0, 9)", "F{10}"),
    "empties": (
        "import shutil, tempfile, os\nos.chdir('/')\nshutil.rmtree(tempfile.gettempdir())",
        ".{10}",  # whatever that is: it is its own folder
    ),
    "writes-to-pipes": (
        "import os\nfor number in range(3, 200):\n    try:\n"
        f"        os.write(number, b'{NOISE}' * 99)\n    except OSError:\n        pass",
        r"\.{10}",
    ),
    "many-children": (
        "import os, time\nfor number in range(20):\n    if not os.fork():\n"
        "        os.setsid()\n        if os.fork():\n            os._exit(0)\n"
        "        file = os.open(pids, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "        os.write(file, b'%d\\n' % os.getpid())\n        time.sleep(9999)\n"
        "time.sleep(1)",
        r"\.{10}",
    ),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> types.SimpleNamespace:
    """One run over a class below a hidden folder, named from a folder beside it."""
    top = tmp_path_factory.mktemp("teacher") / ".local"
    students, pids = top / "class", top / "pids"
    (top / "deep").mkdir(parents=True)
    for name, (trick, _) in ACCIDENTS.items():
        write(students / f"{name}.ipynb", f"pids = {str(pids)!r}", with_body(trick))
    long = "raise ValueError(max(" + "1, " * 23_000 + "1))\n"
    write(students / "long.ipynb", CLASSIC.replace(SCALE, f"    {long}"))
    write(students / NASTY, "def scale(x, feature_range=(-1, 1)):\n    return 2 * x - 1")
    (students / "bom.py").write_text(CLASSIC, encoding="utf-8-sig")
    write(students / "thief.ipynb", "from bom import *\nfrom bom import scale")
    (students / "folder.py").mkdir()
    (students / "folder.ipynb").mkdir()
    (students / "dangling.py").symlink_to("gone.py")
    (students / "dangling.ipynb").symlink_to("gone.ipynb")
    write(students / ".hidden" / "x.ipynb", CLASSIC)
    start, end = (CLASSIC.index(text) for text in ("class Discriminator", "class Generator"))
    own = students / "own"
    write(
        own / "solution.ipynb",
        "import problem_unittests as tests\nfrom helper import double",
        CLASSIC[:start] + "from model import Discriminator\n\n\n" + CLASSIC[end:],
        "def scale(x, feature_range=(-1, 1)):\n    return double(x) - 1",
        "tests.test_scale(scale)",
    )
    imports = "import torch.nn as nn\nimport torch.nn.functional as F\n"
    (own / "model.py").write_text(imports + CLASSIC[start:end])
    (own / "helper.py").write_text(
        "import more.numbers\n\n\ndef double(x): return more.numbers.TWO * x"
    )
    (own / "more").mkdir()
    (own / "more" / "numbers.py").write_text("TWO = 2\n")
    began = time.monotonic()
    reports = ("--json", "g.json", "--csv", "g.csv", "--html", "g.html")
    done = run(top / "deep", "../class", "--seconds", "50", *reports)
    assert done.stderr == ""
    records = json.loads((top / "deep" / "g.json").read_text())
    rows: dict[str, str] = {}
    for record in records:
        name = record["notebook"].removeprefix("../class/")
        rows[name] = rows.get(name, "") + grading.ALL_MARKS[record["outcome"]]
    why = {(r["notebook"].removeprefix("../class/"), r["point"]): r["why"] for r in records}
    seconds = time.monotonic() - began
    return types.SimpleNamespace(run=done, rows=rows, why=why, top=top, pids=pids, seconds=seconds)


@linux
@pytest.mark.parametrize("name", ACCIDENTS)
def test_what_a_notebook_does_costs_no_other(graded, name):
    assert re.fullmatch(ACCIDENTS[name][1], graded.rows[f"{name}.ipynb"])
    assert graded.run.returncode == 1 and graded.rows["bom.py"] == "." * 10


@linux
def test_all_that_a_notebook_has_started_ends_with_it(graded):
    numbers = [int(line) for line in graded.pids.read_text().split()]
    assert len(numbers) == 20
    alive = []
    for number in numbers:
        with suppress(OSError):
            os.kill(number, 0)
            alive.append(number)
    assert alive == []


def test_hidden_is_what_is_hidden_below_the_folder_that_was_given(graded):
    names = {f"{name}.ipynb" for name in ACCIDENTS} | {"long.ipynb", "thief.ipynb", "bom.py", NASTY}
    assert graded.rows.keys() == names | {"own/solution.ipynb", "own/model.py"}


def test_rows_come_in_their_order_whichever_ends_first(graded):
    named = [
        line for line in graded.run.stdout.splitlines() if re.match(r"\.\./class/.*: \d", line)
    ]
    names = [line.removeprefix("../class/").rsplit(": ", 1)[0] for line in named]
    assert len(names) == len(graded.rows) and names[1] == "a-slow.ipynb"
    assert list(graded.rows) == sorted(graded.rows, key=lambda name: Path(name).parts)


def test_names_reach_no_terminal_and_no_spreadsheet_as_they_are(graded):
    escaped = r"../class/=1+1\n\x1b[31m\u202etxt.ipynb"
    assert f"\n{escaped}: 1 PASSED, 9 NOT FOUND\n" in "\n" + graded.run.stdout
    for text in (graded.run.stdout, (graded.top / "deep" / "g.html").read_text()):
        assert escaped in text and "\x1b" not in text and "\u202e" not in text
    with (graded.top / "deep" / "g.csv").open(newline="", encoding="utf-8") as file:
        names = {record["notebook"] for record in csv.DictReader(file)}
    assert escaped in names


def test_no_cell_of_the_spreadsheet_is_a_formula():
    results = [grading.Result("scale", "FAILED", "=cmd"), grading.Result("train", "PASSED", "+1")]
    lines = grading._csv([("@x", results), ("-x.py", results)]).splitlines()
    assert lines[1:3] == ["'@x,scale,FAILED,'=cmd", "'@x,train,PASSED,'+1"]
    assert lines[3].startswith("'-x.py,")


def test_a_long_line_costs_its_own_point_only(graded):
    assert graded.rows["long.ipynb"] == ".F.......="
    assert len(graded.why["long.ipynb", "scale"]) < 500


def test_a_notebook_has_what_it_imports_from_its_own_folder(graded):
    assert graded.rows["own/solution.ipynb"] == "." * 10


def test_no_other_solution_can_be_imported(graded):
    assert "." not in graded.rows["thief.ipynb"]
    assert "No module named 'bom'" in graded.why["thief.ipynb", "scale"]


# ------------------------------------------------------------------------------- forging

PATCHES = {  # what a wrong scale replaces; its name
    "rubric.Wrong.outcome = 'PASSED'": "outcome",
    "rubric.test_scale.__wrapped__.__code__ = (lambda scale: iter(())).__code__": "test_scale",
    "rubric.settle.__code__ = (lambda claims: []).__code__": "settle",
    "rubric._check_tensor.__defaults__ = ('',)": "_check_tensor",
    "torch.Tensor.abs = lambda self: self * 0": "abs",
    "grading.Result.__new__ = lambda kind, *fields: ('scale', 'PASSED', '', '')": "__new__",
    "rubric.abs = lambda value: 0 * value": "abs",
    "sys.setprofile(lambda *event: None)": "setprofile",
    "rubric.POINTS['scale'] = rubric.POINTS['scale']._replace(test=lambda s: iter(()))": "POINTS",
}


@pytest.mark.parametrize("patch", PATCHES)
def test_what_the_tests_use_cannot_be_replaced_unseen(tmp_path, monkeypatch, patch):
    points, profile = dict(rubric.POINTS), sys.getprofile()
    imports = ("import sys", "import problem_unittests as rubric", "from faces import grading")
    body = "".join(f"    {line}\n" for line in (*imports, patch))
    wrong = CLASSIC.replace(SCALE, SCALE + body).replace("x * (max - min) + min", "x + 0")
    for cells in (
        [wrong],
        [CLASSIC, f"class Trick:\n{body}", "def scale(x):\n    Trick\n    return x"],
    ):
        monkeypatch.setattr(rubric, "POINTS", dict(points))
        results = {r.point: r for r in grading.grade(write(tmp_path / "x.ipynb", *cells))}
        assert results["scale"].outcome == "FAILED"
        replaced = f"{PATCHES[patch]}, which the tests use."
        assert (replaced in results["scale"].why) == (cells == [wrong] and bool(PATCHES[patch]))
        assert sys.getprofile() is profile and rubric.Wrong.outcome == "FAILED"


def test_what_makes_no_sense_is_no_result(tmp_path):
    sent = [
        "secret\tscale\tPASSED\t\tline",
        "secret\tscale\tNONSENSE\t\t",
        "other\tgenerator\tPASSED\t\t",
        "secret\tdiscriminator\tPASSED",
        "secret\tno-such-point\tPASSED\t\t",
        "secret\ttrain\tFAILED\t" + "long " * 50_000 + "\x1b\t",
        "\t\t\t\t",
    ]
    (tmp_path / "results").write_bytes("\n".join(sent).encode() + b"\xff\xfe\x00\nsecret\t")
    results = grading._received(tmp_path / "results", "secret", "none")
    found = {result.point: result for result in results}
    assert list(found) == POINTS
    assert found["scale"] == ("scale", "PASSED", "", "line")
    assert found["train"].outcome == "FAILED" and len(found["train"].why) > 200_000
    assert "\x1b" not in found["train"].why
    assert {(r.outcome, r.why) for p, r in found.items() if p not in ("scale", "train")} == {
        ("FAILED", "none")
    }
    missing = grading._received(tmp_path / "gone", "secret", "none")
    assert {(result.outcome, result.why) for result in missing} == {("FAILED", "none")}


# ------------------------------------------------------------------------------- the files


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a notebook of one point, which is graded in this process."""
    in_turn = lambda paths, *limits: ((path, list(grading.grade(path))) for path in paths)  # noqa: E731
    monkeypatch.setattr(grading, "grade_all", in_turn)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.ipynb", "def scale(x, feature_range=(-1, 1)):\n    return 2 * x - 1")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--json", "x.ipynb"], "x.ipynb: it is one of the notebooks: name another file."),
        (["--json", "link"], "link: it is one of the notebooks"),
        (["--json", "."], ".: it is no file, but a folder or a device: name a file."),
        (["--csv", "notes.txt"], "notes.txt: it holds something else than these results"),
        (["--html", "notes.txt"], "notes.txt: it holds something else than these results"),
        (["--json", "new", "--csv", "./new"], "two reports have the same file"),
        (["y.ipynb", "--gradescope", "new"], "--gradescope takes one notebook, not 2"),
        (["--seconds", "0"], "'0' is not a number from 1 to 100,000"),
        (["--seconds", "nan"], "'nan' is not a number from 1 to"),
        (["--gigabytes", "inf"], "'inf' is not a number from 1 to"),
        (["--gigabytes", "0.001"], "is not a number from 1 to"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(here, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(grading, "grade_all", None)
    (here / "notes.txt").write_text("mine")
    (here / "link").symlink_to("x.ipynb")
    write(here / "y.ipynb", "x = 1")
    before = {path: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(SystemExit) as stopped:
        grading.main(["x.ipynb", *arguments])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_a_disk_that_is_full_is_found_before_any_work(here, monkeypatch, capsys):
    monkeypatch.setattr(grading, "grade_all", None)
    with full_disk(1000), pytest.raises(SystemExit):
        grading.main(["x.ipynb", "--json", "new.json"])
    assert "new.json: it cannot be written (File too large)." in capsys.readouterr().err
    assert not (here / "new.json").exists()


def test_a_disk_that_fills_up_costs_one_file_only(here, monkeypatch, capsys):
    atomic_write = grading.atomic_write

    def write_or_fail(path: Path) -> object:
        if path.suffix == ".json":
            raise OSError("The disk is full.")
        return atomic_write(path)

    monkeypatch.setattr(grading, "atomic_write", write_or_fail)
    assert grading.main(["x.ipynb", "--json", "new.json", "--csv", "new.csv"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "new.json was not written: The disk is full.\n"
    assert "1 graded: 1 PASSED, 9 NOT FOUND" in captured.out
    assert (here / "new.csv").read_text().startswith("notebook,point,outcome,why\n")


def test_former_results_are_written_over(here, capsys):
    (here / "new.json").touch()  # as mktemp makes it
    reports = [f for name in grading.REPORTS for f in (f"--{name}", f"new.{name}")]
    for _ in range(2):
        grading.main(["x.ipynb", *reports])
    assert len(json.loads((here / "new.json").read_text())) == 10


@linux
def test_a_lower_limit_of_the_shell_is_kept(tmp_path):
    import resource

    def limit(most: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    write(tmp_path / "x.ipynb", CLASSIC)
    done = run(tmp_path, "x.ipynb", preexec_fn=lambda: limit(2**27))
    assert done.stdout.endswith("\n1 graded: 10 PASSED\n") and done.returncode == 0, done.stderr
    done = run(tmp_path, "x.ipynb", preexec_fn=lambda: limit(2**20))
    assert done.returncode == 2
    assert "the shell allows only 1,048,576 bytes, too few for all: see ulimit -a." in done.stderr


def test_what_cannot_be_read_costs_its_own_row_only(tmp_path, monkeypatch):
    for name in ("a.py", "b.ipynb"):
        (tmp_path / name).touch()
    text = grading._text

    def unreadable(path: Path, *errors: str) -> str:
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return text(path, *errors)

    monkeypatch.setattr(grading, "_text", unreadable)
    assert [path.name for path in grading._notebooks(tmp_path)] == ["a.py", "b.ipynb"]


# ------------------------------------------------------------------------------- the reports

ROW = [
    grading.Result(point, "PASSED", "", f"x.ipynb, cell {i}, line 1: def f(x):")
    for i, point in enumerate(POINTS)
]
ROW[1] = ROW[1]._replace(
    outcome="FAILED", why="scale: <b>1</b> & \u202e2 <script>alert(1)</script>"
)
ROW[2] = ROW[2]._replace(outcome="ADVICE", why="Discriminator: dropout")
ROW[5] = ROW[5]._replace(outcome="NOT JUDGED", why="build_network: not judged: see scale.")
ROW[9] = ROW[9]._replace(outcome="NOT TESTABLE HERE", why="train: it needs a GPU.")


def test_the_page_has_all_that_a_teacher_needs_and_no_scripts():
    page = grading._html([("a <i>.ipynb", ROW), ("b.py", ROW[:1] * 10)])
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert "a &lt;i&gt;.ipynb" in page and "\u202e" not in page
    assert "scale: &lt;b&gt;1&lt;/b&gt; &amp; \\u202e2 " in page
    assert "<code>x.ipynb, cell 1, line 1: def f(x):</code>" in page
    assert page.count("<code>") == 4  # not of what passed
    assert page.count('href="#n2"') == page.count('id="n2"') == 1
    assert "http" not in page.replace("http-equiv", "")
    assert "2 graded: 16 PASSED, 1 FAILED, 1 ADVICE, 1 NOT TESTABLE HERE, 1 NOT JUDGED" in page


def test_gradescope_gets_its_own_format():
    results = json.loads(grading._gradescope([("x.ipynb", ROW)]))
    assert results.keys() == {"stdout_visibility", "tests"}
    tests = results["tests"]
    assert [test["name"] for test in tests] == POINTS
    assert [test["score"] for test in tests] == [1, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert {test["max_score"] for test in tests} == {1}
    assert {test["visibility"] for test in tests} == {"visible"}
    assert tests[0]["output"] == "PASSED." and tests[2]["output"] == (
        "ADVICE. Discriminator: dropout\nx.ipynb, cell 2, line 1: def f(x):"
    )
