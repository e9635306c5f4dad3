"""The benchmarks, at a tiny size: what they count and report."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import helpers

SCRIPT = helpers.HERE / "benchmarks" / "throughput.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_both_loops_are_measured(tmp_path):
    target = tmp_path / "speed.json"
    options = ["--device", "cpu", "--images", 20, "--batch-size", 8, "--rounds", 1]
    done = run(*options, "--precision", "float32", "--json", target)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(target.read_text())
    for name in ("reference", "notebook"):
        speed = figures[name]
        assert speed["images_per_s"] == pytest.approx(20 / (3 * speed["ms_per_step"] / 1000))
        assert 0 < speed["share_of_peak"] < 1 and name in done.stdout
        rate = speed["gflop_per_step"] / 8 * speed["images_per_s"] / 1000
        assert speed["tflops"] == pytest.approx(rate)
    ratio = figures["notebook"]["images_per_s"] / figures["reference"]["images_per_s"]
    assert figures["ratio"] == pytest.approx(ratio)
    # Multiply-adds of each network's layers for one image, forwards.
    first = 3 * 64 * 16 * 16**2  # between the picture and 64 channels
    between = 3 * 64 * 128 * 16 * 8**2  # three layers with as many each
    d, g = first + between + 2048, 100 * 2048 + between + first
    fc = 100 * 2048  # G's first layer: the latents need no gradient
    # Each loop: forwards, backwards for D's step, for G's step. A pass back costs two forwards, one
    # for the weights and one for the input.
    reference = (3 * d + 2 * g) + (4 * d - first + 2 * g - fc) + (2 * d + 2 * g - fc)
    notebook = (3 * d + g) + (4 * d - 2 * first) + (d + 2 * g - fc)
    work = {"reference": reference, "notebook": notebook}
    for name, operations in work.items():
        expected = 8 * 2 * operations / 1e9
        assert figures[name]["gflop_per_step"] == pytest.approx(expected, rel=1e-3), name
    total = figures["notebook"]["gflop_per_step"] / 8 * 89_931 * 20 / 1e6
    assert figures["budget"]["petaflop_20_epochs_of_89931_images"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", 100], "at least two batches"),
        (["--rounds", 0], "--rounds must be at least 1"),
        (["--data-dir", "{}", "--images", 512], "holds 1 images"),
    ],
)
def test_wrong_options_are_named(tmp_path, arguments, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    done = run(*(str(a).format(tmp_path) for a in arguments))
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    done = run("--device", "cuda")
    assert done.returncode != 0 and "no CUDA device" in done.stderr
