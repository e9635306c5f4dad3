"""A network that doubles the sides of faces: what it starts from, learns and is measured at."""

import csv

import numpy as np
import pytest
import torch

from benchmarks import features, super_resolution
from benchmarks.super_resolution import Enlarger, enlarge, enlarge_bicubic, reduce


def test_it_starts_from_bicubic_interpolation():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    enlarger = Enlarger(4)
    assert torch.equal(enlarger(x), enlarge_bicubic(x)) and enlarger(x).shape == (2, 3, 16, 16)
    torch.nn.init.ones_(enlarger.end[0].bias)
    assert torch.allclose(enlarger(x), enlarge_bicubic(x) + 1)


def test_it_learns_what_interpolation_cannot_know():
    random = np.random.default_rng(0)
    pixels = random.integers(60, 196, (64, 16, 16, 1, 3)).repeat(4, axis=3)
    signs = np.array([1, -1, -1, 1])  # a chequerboard in each square of 2x2, of the same strength
    photographs = pixels + 40 * signs[:, None]
    photographs = photographs.reshape(64, 16, 16, 2, 2, 3).swapaxes(2, 3).reshape(64, 32, 32, 3)
    photographs = photographs.astype(np.uint8)
    enlarger = super_resolution.train(photographs, 60, 8)
    ways = [enlarge(reduce(photographs), way) for way in (enlarge_bicubic, enlarger)]
    plain, learnt = (np.abs(way.astype(float) - photographs).mean() for way in ways)
    assert learnt < 0.9 * plain


@pytest.mark.skipif(
    not features.is_installed(), reason="benchmarks/requirements.txt is not installed"
)
def test_both_ways_are_measured(image_dir, tmp_path):
    options = ["--data-dir", image_dir, "--csv", tmp_path / "rows.csv", "--steps", 2]
    super_resolution.main([*map(str, options), "--conv-dim", "4"])
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ways = [row["weights"].rpartition(", enlarged by ")[::2] for row in rows]
    assert [way for _, way in ways] == ["bicubic", "super-resolution"] * 2
    assert ways[0][0] == ways[1][0] == "training faces"
    assert ways[2][0] == ways[3][0] and ways[2][0].endswith("assets/generator.safetensors")
    assert {row["size"] for row in rows} == {"64"} and rows[0]["frechet"] != rows[2]["frechet"]
