"""The rows that ablations.py measures: as a CSV, a table in ideas/README.md and a figure."""

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

from faces.files import writing
from faces.ideas import IDEAS

NAMES = sorted(path.stem for path in IDEAS.glob("*.py"))
REAL = "real faces"
MEASURES = ["swd", "swd_32", "swd_16", "diversity", "nearest"]
FEATURES = ["frechet", "kernel", "precision", "recall", "density", "coverage"]  # features.py's
COLUMNS = ["row", "seed", "epochs", "conv_dim", "steps", "images", "seconds", *MEASURES]
COLUMNS += [*(f"g_{name}" for name in MEASURES), *FEATURES, "g_frechet"]
COLUMNS += ["d_loss", "g_loss", "ita_dark", "ita_distance"]
COLUMNS += ["threads", "hardware", "settings", "data"]
SHOWN = {  # columns of the table: title, digits
    "frechet": ("distance in features", 1),
    "coverage": ("coverage", 2),
    "swd": ("distance", 1),
    "diversity": ("diversity", 3),
    "nearest": ("nearest", 1),
    "d_loss": ("D's loss", 2),
}
START, END = "<!-- from here on made by benchmarks/ablations.py -->", "<!-- to here -->"
# the 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
STUDENT = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]
Row = dict[str, Any]
Table = dict[str, list[Row]]


def as_texts(figures: Row) -> Row:
    """Numbers as a CSV has them."""
    return {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in figures.items()}


def add_row(path: Path, row: Row, columns: list[str] = COLUMNS) -> None:
    """Append a row to the CSV; one that is new or has other columns is written anew before."""
    rows = read_rows(path)
    if not rows or list(rows[0]) != columns:
        write_rows(path, rows, columns)
    with open(path, "a", newline="") as file:
        csv.DictWriter(file, columns).writerow(row)


def write_rows(path: Path, rows: list[Row], columns: list[str] = COLUMNS) -> None:
    """Write the whole CSV.

    Raises:
        ValueError: if a row has a column that is not in ``columns``; the file stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Read the CSV; an empty list if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def publish(path: Path, readme: Path, figure: Path) -> None:
    """From the CSV, put the tables between the two marks of a file; draw the one with most rows."""
    tables = tables_of(read_rows(path))
    if not tables:
        return
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"{START}{END}\n"
    before, after = text.split(START)[0], text.split(END)[1]
    parts = [before + START, *map(as_text, tables), END + after]
    readme.write_text("\n\n".join(parts), encoding="utf-8")
    draw(max(tables, key=len), figure)
    print(f"The rows are in {path}, the table is in {readme}, the figure in {figure}.")


def tables_of(rows: list[Row]) -> list[Table]:
    """Group the runs by length, size and images; each group by rows, the closest one first.

    What counts is the Frechet distance in features where all rows have it, else "swd". Of runs of a
    row with the same seed, made before and after a change, the last one counts.
    """
    groups: dict[Any, dict[tuple[str, str], Row]] = defaultdict(dict)
    real = [row for row in rows if row["row"] == REAL]
    for row in rows:
        if row["row"] != REAL:
            images = json.loads(row["settings"])["max_images"] or row["data"]
            group = row["epochs"], row["conv_dim"], images
            groups[group][row["row"], row["seed"]] = row
    tables = []
    for group in sorted(groups.values(), key=len, reverse=True):
        table = defaultdict(list)
        for row in group.values():
            table[row["row"]].append(row)
        contents = {row["data"] for row in group.values()}
        table[REAL] = [row for row in real if row["data"] in contents]
        is_complete = all(values_of(runs, "frechet") for runs in table.values())
        by = "frechet" if is_complete else "swd"
        closest = sorted(table, key=lambda name: statistics.mean(values_of(table[name], by)))
        tables.append({name: table[name] for name in closest})
    return tables


def values_of(runs: list[Row], column: str) -> list[float]:
    """A column's values; real faces have none in some."""
    return [float(run[column]) for run in runs if run.get(column, "") != ""]


def spread_over_seeds(table: Table, column: str) -> tuple[float, int]:
    """A column's standard deviation from seed to seed, pooled over all rows; degrees of freedom.

    Rows with one seed say nothing of it: without any other it is NaN, with 0 degrees of freedom.
    """
    values_by_row = [values_of(runs, column) for name, runs in table.items() if name != REAL]
    several = [values for values in values_by_row if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return (squares / freedom) ** 0.5 if freedom else math.nan, freedom


def least_difference(table: Table, column: str, n: int = 1, others: int = 1) -> float:
    """How far the means of ``n`` and of ``others`` seeds must be apart to count.

    Student's t for 95 % (2 where the spread is well known, more where it is not), times the spread
    over seeds, times sqrt(1 / n + 1 / others). One comparison in twenty passes by chance.
    """
    spread, freedom = spread_over_seeds(table, column)
    t = STUDENT[freedom - 1] if 1 <= freedom <= len(STUDENT) else 2.1
    return t * spread * (1 / n + 1 / others) ** 0.5


def as_text(table: Table) -> str:
    """Write a table in Markdown, with a heading."""
    runs = [run for name in table for run in table[name] if name != REAL]
    steps = statistics.mode(int(run["steps"]) for run in runs)
    about = f"{max(run['data'] for run in runs).rpartition(',')[0]} to train on."
    shown = {
        c: title
        for c, (title, _) in SHOWN.items()
        if any(values_of(runs, c) for runs in table.values())
    }
    for column in [column for column in ("frechet", "swd") if column in shown]:
        plain = values_of(table.get("plain", []), column)
        if len(plain) > 1:
            about += (
                f" The plain recipe's {len(plain)} seeds have a {shown[column]} from "
                f"{min(plain):.1f} to {max(plain):.1f}: by the spread over seeds, pooled over the "
                "rows with several, another row's one seed must be "
                f"{least_difference(table, column, 1, len(plain)):.1f} from their mean to count."
            )
    lines = [f"### {steps:,} steps, {runs[0]['conv_dim']} channels", "", about, ""]
    lines += [f"| row | seeds | steps | {' | '.join(shown.values())} | |"]
    lines += ["|---" * (len(shown) + 4) + "|"]
    for name, runs in table.items():
        cells = [f"**{name}**" if name in ("plain", REAL) else f"`{name}`"]
        lengths = sorted({int(run["steps"]) for run in runs if run["steps"]})
        cells += [str(len(runs)), " to ".join(f"{n:,}" for n in lengths)] if lengths else ["", ""]
        for column in shown:
            values, digits = values_of(runs, column), SHOWN[column][1]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
            if len(values) > 1 and column in ("frechet", "coverage", "swd"):
                cells[-1] += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
        cells.append(title_of(name) if name in NAMES else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def title_of(idea: str) -> str:
    """The first line of an idea's file, as a link to it."""
    source = (IDEAS / f"{idea}.py").read_text(encoding="utf-8")
    name, _, rest = ast.get_docstring(ast.parse(source)).splitlines()[0].partition(":")
    return f"[{name}]({idea}.py):{rest}"


def draw(table: Table, path: Path) -> None:
    """Draw each row's measures: a dot a run, and the plain recipe's runs as a band."""
    names = [name for name in table if name != REAL]
    titles = {
        "frechet": "Fréchet distance\nin features",
        "swd": "Sliced Wasserstein\ndistance x 1000",
        "diversity": "Diversity\n(1 - MS-SSIM)",
        "nearest": "Nearest training\nimage (grey levels)",
        "ita_distance": "Distance of lightness\nfrom the data's",
    }
    titles = {
        c: title for c, title in titles.items() if all(values_of(r, c) for r in table.values())
    }
    size, widths = (12, 1.2 + 0.27 * len(names)), [3] + [1] * (len(titles) - 1)
    figure, axes = plt.subplots(
        1, len(titles), figsize=size, width_ratios=widths, sharey=True, layout="constrained"
    )
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for y, name in enumerate(names):
            values = values_of(table[name], measure)
            color = "C3" if name == "plain" else "C0"
            axis.plot(values, [y] * len(values), "o", color=color, markersize=5, alpha=0.7)
            axis.plot(statistics.mean(values), y, "|", color=color, markersize=14)
            if name == "plain":
                axis.axvspan(min(values), max(values), color="C3", alpha=0.15)
        real = statistics.mean(values_of(table[REAL], measure))
        axis.axvline(real, color="grey", linestyle=":")
        if measure in ("frechet", "swd"):  # the worst are many times as far away as the best
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=[1, 1.5, 2, 3, 4, 6]))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(title, fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel("dots: runs; bar: their mean; band: plain; dotted: real faces", size=9)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
