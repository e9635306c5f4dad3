"""Two ways to draw as many faces of each class of lightness: asking for a class, and rejecting.

    python benchmarks/classes.py --data-dir processed_celeba_small \\
        --conditional runs/ablations/conditional-0123abcd --plain runs/ablations/plain-4567cdef

The folders are those in which benchmarks/ablations.py has trained rows "conditional" and "plain".
A generator trained with ideas/conditional.py is asked for a class by its first latent number;
"asked and rejected" keeps those that are of it by the typology angle. "rejected" draws with any
number and keeps what a class is short of (``helpers.draw_balanced``), as can be done with the plain
generator too.

For each class the CSV has the share of the faces kept for it that are of it by the angle, and how
many are drawn until one is kept; in the rows "all" the mean share, and how many are drawn for each
face of a set with equal shares. Those rows have the Frechet distance in features too (features.py),
of sets with as many faces of each class as there are held-out photographs of the rarest one, from
held-out photographs in the same shares: the mean of up to five sets, the smallest and the largest.
Training photographs in the generator's place are the floor. The sets are small, and the distance
shrinks as sets grow: compare it within one CSV only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from faces.files import HERE  # before torch: how its threads wait

# isort: split
import numpy as np
import torch

import helpers
from benchmarks.ablation_table import Row, as_texts, write_rows
from benchmarks.features import (
    features_of,
    files_at,
    frechet_distance,
    is_installed,
    real_images,
)
from faces.drawing import load_generator
from faces.skin import typology_classes

KINDS = list(helpers.TYPOLOGY)
SETS = 5
COLUMNS = ["way", "class", "share", "draws", "frechet", "frechet_min", "frechet_max"]
COLUMNS += ["n", "sets", "data"]


def by_class(images: np.ndarray) -> list[np.ndarray]:
    """The faces of each class, from dark to very light; those without an angle are left out."""
    classes = typology_classes(images)
    return [images[classes == c] for c in range(len(KINDS))]


def places_of(images: np.ndarray) -> np.ndarray:
    """Where each class begins and ends (classes + 1,) in a conditional generator's first number.

    From -1 to 1, by rank among photographs that it was trained on, uint8 (n, H, W, 3); those
    without an angle are ranked last.
    """
    counts = [len(of_class) for of_class in by_class(images)]
    return 2 * np.cumsum([0, *counts]) / len(images) - 1


def ask(path: Path, places: np.ndarray, n: int) -> list[np.ndarray]:
    """Ask a conditional generator for n faces of each class."""
    draw, sample_z = load_generator(path)
    torch.manual_seed(0)
    asked = []
    for low, high in zip(places[:-1], places[1:], strict=True):
        z = sample_z(n)
        z[:, 0] = low + (high - low) * torch.rand(n)
        asked.append(np.concatenate([draw(part) for part in z.split(500)]))
    return asked


def reject(path: Path, n: int) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Draw until there are n faces of each class.

    Returns:
        The faces of each class, n or fewer; how many of each class were drawn (classes,), and how
        many faces in all.
    """
    draw, sample_z = load_generator(path)
    torch.manual_seed(0)
    counts, total = np.zeros(len(KINDS), int), 0

    def draw_and_count(size: int) -> np.ndarray:
        nonlocal counts, total
        faces = draw(sample_z(size))
        counts, total = counts + [len(kind) for kind in by_class(faces)], total + size
        return faces

    kept = helpers.draw_balanced(draw_and_count, n * len(KINDS))
    return [faces[:n] for faces in by_class(kept)], counts, total


class Distances:
    """The Frechet distance of sets from a held-out set, n of each class in each of them.

    Args:
        held_out: photographs, uint8 (N, H, W, 3), at least two of each class.

    Attributes:
        n: how many held-out photographs the rarest class has.
    """

    def __init__(self, held_out: np.ndarray) -> None:
        kinds = by_class(held_out)
        self.n = min(map(len, kinds))
        self._held_out = features_of(np.concatenate([kind[: self.n] for kind in kinds]))

    def __call__(self, kinds: list[np.ndarray]) -> Row:
        """Measure up to five sets, from faces of each class.

        Raises:
            ValueError: if there are fewer than ``n`` faces of a class.
        """
        fewest = min(map(len, kinds))
        if fewest < self.n:
            raise ValueError(f"Of a class there are {fewest} faces: {self.n} are needed.")
        values = []
        for i in range(min(SETS, fewest // self.n)):
            one = np.concatenate([kind[i * self.n : (i + 1) * self.n] for kind in kinds])
            values.append(frechet_distance(features_of(one), self._held_out))
        row = {"frechet": np.mean(values), "frechet_min": min(values), "frechet_max": max(values)}
        return {"n": self.n, "sets": len(values)} | row


def main(arguments: list[str] | None = None) -> None:
    """Measure both ways, and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    weights = dict(required=True, type=lambda text: files_at(Path(text))[0])
    add("--conditional", help="weights or a run's folder, with ideas/conditional.py", **weights)
    add("--plain", help="the same without an idea", **weights)
    add("--data-dir", default="processed_celeba_small", help="what they were trained on")
    add("--faces", type=int, default=1000, help="how many of each class are asked for")
    add("--csv", type=Path, default=HERE / "assets" / "classes.csv", help="the rows")
    options = parser.parse_args(arguments)
    if not is_installed():
        parser.error("first run: pip install --no-deps -r benchmarks/requirements.txt")
    data_dir = helpers.get_data(options.data_dir).resolve()
    training, held_out = real_images(data_dir, 32)
    measure = Distances(held_out)
    rows = [{"way": "training photographs", "class": "all", **measure(by_class(training))}]

    def add_rows(way: str, shares: list[float], draws: list[float], all_of: Row) -> None:
        each = zip([*KINDS, "all"], [*shares, np.mean(shares)], draws, strict=True)
        rows.extend({"way": way, "class": k, "share": s, "draws": d} for k, s, d in each)
        rows[-1] |= all_of

    asked = ask(options.conditional, places_of(training), options.faces)
    hits = [by_class(faces)[c] for c, faces in enumerate(asked)]
    shares = np.array([len(faces) / options.faces for faces in hits])
    add_rows("conditional, asked", shares, [1] * 7, measure(asked))
    measured = measure(hits)  # so there are some of each class
    draws = [*1 / shares, np.mean(1 / shares)]
    add_rows("conditional, asked and rejected", [1] * 6, draws, measured)
    for name in ("conditional", "plain"):
        kept, counts, total = reject(getattr(options, name), measure.n * SETS)
        measured = measure(kept)
        draws = [*(total / counts), total / sum(map(len, kept))]
        add_rows(f"{name}, rejected", [1] * 6, draws, measured)
    content = helpers.content_of(training)
    for row in rows:
        row |= as_texts(row) | {"data": content}
        print(", ".join(f"{n} {v}" for n, v in row.items()))
    write_rows(options.csv, rows, COLUMNS)
    print(f"The rows are in {options.csv}.")


if __name__ == "__main__":
    main()
