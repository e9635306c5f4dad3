"""Networks as tables and drawings, and the game that they play."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor, nn

from faces.pictures import save_figure

BLUE, ORANGE, LIGHT, GREY, DARK = "#9ecae1", "#fdd0a2", "#dddddd", "#555555", "#333333"


class _Layer(NamedTuple):
    """What a layer did in a network's run; sizes are without the batch dimension."""

    name: str  # the network's attribute, such as conv1
    module: nn.Module
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]


def _run_layers(network: nn.Module, example: Tensor) -> list[_Layer]:
    """List a network's layers with weights, batch norms too, in the order in which they run."""
    layers: list[_Layer] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = (tuple(tensor.shape[1:]) for tensor in (args[0], output))
        layers.append(_Layer(name.split(".")[0], module, *sizes))

    network = copy.deepcopy(network).eval()  # the given one stays as it is
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
            module.register_forward_hook(partial(note, name))
    with torch.no_grad():
        network(example)
    return layers


def layer_table(network: nn.Module, example: Tensor) -> str:
    """Describe a network's layers with weights, in the order in which they run.

    Args:
        network: the network; its training mode and statistics are left as they are.
        example: an input for it, with a batch dimension.

    Returns:
        A table as text: input and output sizes without the batch dimension, whether batch norm
        follows, and the number of parameters, batch norm's included.
    """
    rows: list[list] = []
    for _, module, size_in, size_out in _run_layers(network, example):
        parameters = sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.BatchNorm2d):
            rows[-1][3] = "yes"
            rows[-1][4] += parameters
        else:
            sizes = _size_text(size_in), _size_text(size_out)
            rows.append([type(module).__name__, *sizes, "-", parameters])
    rows.append(["total", "", "", "", sum(p.numel() for p in network.parameters())])
    line = "{:<16} {:>13} {:>13} {:>11} {:>11}"
    header = line.format("layer", "input", "output", "batch norm", "parameters")
    return "\n".join([header, "-" * len(header), *(line.format(*r[:4], f"{r[4]:,}") for r in rows)])


def draw_network(network: nn.Module, example: Tensor, path: str | Path | None = None) -> None:
    """Draw a network from its own run, as the DCGAN paper draws its generator (arXiv:1511.06434).

    A box is a layer's output: as high and deep as the feature maps' sides, as thick as the square
    root of their number. An arrow is a convolution or a linear layer.

    Args:
        network: the network; its training mode and statistics are left as they are.
        example: an input for it, with a batch dimension.
        path: where to save the figure, if anywhere.
    """
    run = _run_layers(network, example)
    layers = [layer for layer in run if not isinstance(layer.module, nn.BatchNorm2d)]
    sizes = [layers[0].size_in]  # of what lies between two layers, before or after a flattening
    sizes += [max(a.size_out, b.size_in, key=len) for a, b in pairwise(layers)]
    sizes.append(layers[-1].size_out)
    pixel = 1.6 / max((side for size in sizes for side in size[1:]), default=1)  # inches
    boxes = [_box(size, pixel) for size in sizes]
    taken = sum(thickness + depth for thickness, _, depth in boxes)
    gap = max(0.95, (9.4 - taken) / len(layers))
    axes = _sheet(taken + len(layers) * gap + 0.6, 2.7)
    left, middle = 0.3, 1.5
    for i, (size, (thickness, height, depth)) in enumerate(zip(sizes, boxes, strict=True)):
        bottom, end = middle - (height + depth) / 2, left + thickness + depth
        corner, along = np.array([left, bottom]), np.array([thickness, 0])
        up, back = np.array([0, height]), np.array([depth, depth])
        color = BLUE if len(size) == 3 else ORANGE
        for start, a, b, alpha in (
            (corner, along, up, 1.0),  # front
            (corner + up, along, back, 0.5),  # top
            (corner + along, up, back, 0.75),  # side
        ):
            corners = [start, start + a, start + a + b, start + b]
            axes.add_patch(Polygon(corners, facecolor=color, edgecolor=DARK, lw=0.7, alpha=alpha))
        below = min(bottom - 0.08, middle - 0.27)  # also below an arrow's text
        axes.text((left + end) / 2, below, _size_text(size), ha="center", va="top", fontsize=9)
        if i < len(layers):
            _arrow(axes, (end + 0.06, middle), (end + gap - 0.06, middle))
            center, module, how = end + gap / 2, layers[i].module, "linear"
            if not isinstance(module, nn.Linear):
                how = "{}x{}, stride {}".format(*module.kernel_size, module.stride[0])
            axes.text(center, middle + 0.07, layers[i].name, ha="center", fontsize=9)
            axes.text(center, middle - 0.07, how, ha="center", va="top", fontsize=7.5, color=GREY)
        left = end + gap
    save_figure(path)


def draw_game(path: str | Path | None = None) -> None:
    """Draw what the two networks of a GAN do, and what each learns from; save it, if at a path."""
    axes = _sheet(8, 2.5)
    for x, y, width, height, text, color in (
        (0.75, 0.85, 1.0, 0.5, "random\nnumbers z", ORANGE),
        (2.3, 0.85, 1.2, 0.6, "generator\nG", BLUE),
        (4.0, 0.85, 1.1, 0.5, "generated\npicture", LIGHT),
        (4.0, 1.75, 1.1, 0.5, "photograph", LIGHT),
        (5.7, 1.3, 1.3, 0.6, "discriminator\nD", BLUE),
        (7.3, 1.3, 1.0, 0.5, "real or\ngenerated?", ORANGE),
    ):
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor=color, edgecolor=DARK, lw=0.7))
        axes.text(x, y, text, ha="center", va="center", fontsize=10)
    for start, end in (
        ((1.25, 0.85), (1.7, 0.85)),
        ((2.9, 0.85), (3.45, 0.85)),
        ((4.55, 0.85), (5.05, 1.15)),
        ((4.55, 1.75), (5.05, 1.45)),
        ((6.35, 1.3), (6.8, 1.3)),
    ):
        _arrow(axes, start, end)
    for edge, turn, (x, y), text in (  # from the answer back to the networks
        (1.55, 2.1, (5.7, 1.6), "learns to tell"),
        (1.05, 0.3, (2.3, 0.55), "learns to pass"),
    ):
        axes.plot([7.3, 7.3, x], [edge, turn, turn], "--", color=GREY, lw=1)
        _arrow(axes, (x, turn), (x, y), linestyle="--", color=GREY)
        axes.text((7.3 + x) / 2, turn + 0.06, text, ha="center", fontsize=9, color=GREY)
    save_figure(path)


def _size_text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _box(size: tuple[int, ...], pixel: float) -> tuple[float, float, float]:
    """Thickness, height and depth in inches; a vector is a thin upright bar."""
    if len(size) == 3:
        channels, height, width = size
        return 0.045 * math.sqrt(channels), height * pixel, width * pixel * 0.35
    return 0.08, 0.1 * math.log2(1 + math.prod(size)), 0.0


def _sheet(width: float, height: float) -> Axes:
    """The axes of an empty white figure whose coordinates are inches."""
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def _arrow(axes: Axes, start: tuple, end: tuple, linestyle: str = "-", color: str = DARK) -> None:
    style = {"arrowstyle": "-|>", "linestyle": linestyle, "color": color}
    axes.annotate("", end, start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
