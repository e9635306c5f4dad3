"""The rows that ablations.py measures: as a CSV, as tables in ideas/README.md and as a figure."""

from __future__ import annotations

import ast
import csv
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from faces.files import atomic_write
from faces.notebook import IDEAS

IDEA_NAMES = sorted(path.stem for path in IDEAS.glob("*.py"))
REAL = "real faces"
BALANCED = "real faces, balanced"  # drawn as ideas/balanced.py draws them
PHOTOGRAPHS = (REAL, BALANCED)
PIXEL_MEASURES = ["swd", "swd_32", "swd_16", "diversity", "nearest"]  # the notebook's Evaluator's
FEATURE_MEASURES = ["frechet", "kernel", "precision", "recall", "density", "coverage"]
FEATURE_MEASURES += ["chequerboard"]  # of the pixels, but measured beside the others
COLUMNS = ["row", "seed", "epochs", "conv_dim", "steps", "images", "seconds", "tflop"]
COLUMNS += PIXEL_MEASURES
COLUMNS += [*(f"g_{name}" for name in PIXEL_MEASURES), *FEATURE_MEASURES, "g_frechet"]
COLUMNS += ["d_loss", "g_loss", "ita_dark", "ita_distance"]
COLUMNS += ["threads", "hardware", "settings", "data"]
SHOWN = {  # columns of the table: title, digits
    "tflop": ("work (TFLOP)", 0),
    "frechet": ("distance in features", 1),
    "recall": ("recall", 2),
    "coverage": ("coverage", 2),
    "swd": ("distance", 1),
    "diversity": ("diversity", 3),
    "nearest": ("nearest", 1),
    "d_loss": ("D's loss", 2),
}
PANELS = {  # columns in the figure
    "frechet": "Fréchet distance\nin features",
    "swd": "Sliced Wasserstein\ndistance x 1000",
    "diversity": "Diversity\n(1 - MS-SSIM)",
    "nearest": "Nearest training\nimage (grey levels)",
    "ita_distance": "Distance of lightness\nfrom the data's",
}
START, END = "<!-- from here on made by benchmarks/ablations.py -->", "<!-- to here -->"
# the 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
STUDENT = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]
Row = dict[str, Any]
Table = dict[str, list[Row]]  # the runs of each row, by its name

# ------------------------------------------------------------------------------------- the CSV


def format_row(row: Row) -> Row:
    """Write a row's fractions with four digits, as a CSV has them."""
    return {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()}


def append_row(path: Path, row: Row, columns: list[str] = COLUMNS) -> None:
    """Append a row to a CSV, which may be new or have fewer columns."""
    write_rows(path, [*read_rows(path), row], columns)


def write_rows(path: Path, rows: list[Row], columns: list[str] = COLUMNS) -> None:
    """Write a whole CSV.

    Raises:
        ValueError: if a row has a column that is not in ``columns``; the file stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Read a CSV, all values as text; an empty list if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------- the tables


def publish(path: Path, readme: Path, figure: Path) -> None:
    """From a CSV, put the tables between the two marks of a file; draw the one with most rows."""
    tables = group_rows(read_rows(path))
    if not tables:
        return
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"{START}{END}\n"
    before, after = text.split(START)[0], text.split(END)[1]
    parts = [before + START, *map(format_table, tables), END + after]
    readme.write_text("\n\n".join(parts), encoding="utf-8")
    draw_table(max(tables, key=len), figure)
    print(f"The rows are in {path}, the tables in {readme}, the figure in {figure}.")


def group_rows(rows: list[Row]) -> list[Table]:
    """Group runs by length, size and images; sort each group's rows, the closest one first.

    What counts is the Fréchet distance in features where all rows have it, else "swd". Of runs of a
    row with the same seed, made before and after a change, the last one counts. Each table has the
    photographs' row, and the balanced ones' beside the idea "balanced".
    """
    groups: dict[Any, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if row["row"] not in PHOTOGRAPHS:
            images = json.loads(row["settings"])["max_images"] or row["data"]
            group = row["epochs"], row["conv_dim"], images
            groups[group][row["row"], row["seed"]] = row
    tables = []
    for group in sorted(groups.values(), key=len, reverse=True):
        table = defaultdict(list)
        for row in group.values():
            table[row["row"]].append(row)
        images = {row["data"] for row in group.values()}
        for name in [REAL] + [BALANCED] * ("balanced" in table):
            if real := [row for row in rows if row["row"] == name and row["data"] in images]:
                table[name] = real
        is_complete = all(read_column(runs, "frechet") for runs in table.values())
        by = "frechet" if is_complete else "swd"
        closest = sorted(table, key=lambda name: statistics.mean(read_column(table[name], by)))
        tables.append({name: table[name] for name in closest})
    return tables


def read_column(runs: list[Row], column: str) -> list[float]:
    """Read the values of a column; photographs have none in some."""
    return [float(run[column]) for run in runs if run.get(column, "") != ""]


def pool_spread(table: Table, column: str) -> tuple[float, int]:
    """Pool a column's spread from seed to seed over all rows that have several.

    Returns:
        The standard deviation and its degrees of freedom; NaN and 0 if no row has several seeds.
    """
    values_by_row = [read_column(r, column) for name, r in table.items() if name not in PHOTOGRAPHS]
    several = [values for values in values_by_row if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return (squares / freedom) ** 0.5 if freedom else math.nan, freedom


def least_significant_difference(table: Table, column: str, n: int = 1, others: int = 1) -> float:
    """How far apart the means of ``n`` and of ``others`` seeds must be to count.

    Fisher's least significant difference: Student's t for 95 % (2 where the spread is well known,
    more where it is not), times the pooled spread, times sqrt(1 / n + 1 / others). One comparison
    in twenty passes by chance.
    """
    spread, freedom = pool_spread(table, column)
    t = STUDENT[freedom - 1] if 1 <= freedom <= len(STUDENT) else 2.1
    return t * spread * (1 / n + 1 / others) ** 0.5


def format_table(table: Table) -> str:
    """Write a table in Markdown, with a heading."""
    runs = [run for name in table for run in table[name] if name not in PHOTOGRAPHS]
    steps = statistics.mode(int(run["steps"]) for run in runs)
    about = f"{max(run['data'] for run in runs).rpartition(',')[0]} to train on."
    shown = {
        column: title
        for column, (title, _) in SHOWN.items()
        if any(read_column(r, column) for r in table.values())
    }
    for column in [column for column in ("frechet", "swd") if column in shown]:
        plain = read_column(table.get("plain", []), column)
        if len(plain) > 1:
            least = least_significant_difference(table, column, 1, len(plain))
            about += (
                f" The plain recipe's {len(plain)} seeds end at a {shown[column]} of "
                f"{min(plain):.1f} to {max(plain):.1f}; to count, another row's single seed must "
                f"be {least:.1f} from their mean (by the spread of all rows with several seeds)."
            )
    lines = [f"### {steps:,} steps, {runs[0]['conv_dim']} channels", "", about, ""]
    lines += [f"| row | seeds | steps | {' | '.join(shown.values())} | |"]
    lines += ["|---" * (len(shown) + 4) + "|"]
    for name, runs in table.items():
        cells = [f"**{name}**" if name in ("plain", *PHOTOGRAPHS) else f"`{name}`"]
        lengths = sorted({int(run["steps"]) for run in runs if run["steps"]})
        cells += [str(len(runs)), " to ".join(f"{n:,}" for n in lengths)] if lengths else ["", ""]
        for column in shown:
            values, digits = read_column(runs, column), SHOWN[column][1]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
            if len(values) > 1 and column in ("frechet", "coverage", "swd"):
                cells[-1] += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
        cells.append(link_idea(name) if name in IDEA_NAMES else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def link_idea(idea: str) -> str:
    """Turn the first line of an idea's file into a link to the file."""
    source = (IDEAS / f"{idea}.py").read_text(encoding="utf-8")
    name, _, rest = ast.get_docstring(ast.parse(source)).splitlines()[0].partition(":")
    return f"[{name}]({idea}.py):{rest}"


# ------------------------------------------------------------------------------------- the figure


def draw_table(table: Table, path: Path) -> None:
    """Draw each row's measures: a dot a run, and the plain recipe's runs as a band."""
    names = [name for name in table if name not in PHOTOGRAPHS]
    shown = {REAL, *names}
    panels = [c for c in PANELS if all(read_column(table[name], c) for name in shown)]
    size, widths = (13, 1.2 + 0.27 * len(names)), [3] + [1] * (len(panels) - 1)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, width_ratios=widths, sharey=True, layout="constrained"
    )
    for axis, column in zip(axes, panels, strict=True):
        for y, name in enumerate(names):
            values = read_column(table[name], column)
            color = "C3" if name == "plain" else "C0"
            axis.plot(values, [y] * len(values), "o", color=color, markersize=5, alpha=0.7)
            axis.plot(statistics.mean(values), y, "|", color=color, markersize=14)
            if name == "plain":
                axis.axvspan(min(values), max(values), color="C3", alpha=0.15)
        real = statistics.mean(read_column(table[REAL], column))
        axis.axvline(real, color="grey", linestyle=":")
        if column in ("frechet", "swd"):  # the worst are many times as far away as the best
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=[1, 2, 3, 4, 6]))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(PANELS[column], fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel("dots: runs; bar: their mean; band: plain; dotted: real faces", size=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
