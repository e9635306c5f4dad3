"""What the lesson shows: images in grids, figures, animations; networks as tables and drawings."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image as ShownImage
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from faces.files import atomic_write

BLUE, ORANGE, GREY, DARK = "#9ecae1", "#fdd0a2", "#555555", "#333333"

# ------------------------------------------------------------------------ images


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay images out row by row on white.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: images per row.

    Returns:
        uint8 array (rows * (H + 2) + 2, columns * (W + 2) + 2, 3); fewer images than ``columns``
        make a shorter row, and a single one comes back as it is.
    """
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def show_images(
    images: np.ndarray,
    columns: int = 8,
    path: str | Path | None = None,
    row_labels: list[str] | None = None,
) -> None:
    """Show images in rows, and save the figure.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: images per row.
        path: where to save the figure, if anywhere.
        row_labels: a text for each row.
    """
    grid = image_grid(images, columns)
    rows = math.ceil(len(images) / columns)
    size = (10, 10 * grid.shape[0] / grid.shape[1])  # inches
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0)
    axes.imshow(grid, interpolation="bicubic")
    axes.set(xticks=[], yticks=[], frame_on=False)
    if row_labels is not None:
        axes.set_yticks((np.arange(rows) + 0.5) * grid.shape[0] / rows, row_labels)
        axes.tick_params(length=0)
    show_figure(path)


def write_images(images: Iterable[np.ndarray], folder: Path) -> Path:
    """Write images, uint8 (H, W, 3), to a new folder: ``000001.png`` ...; return the folder."""
    folder.mkdir()
    for i, image in enumerate(images, start=1):
        Image.fromarray(image).save(folder / f"{i:06d}.png", compress_level=1)
    return folder


def show_figure(path: str | Path | None = None) -> None:
    """Show the current figure, and save it if there is a path."""
    if path is not None:
        with atomic_write(Path(path)) as temporary:
            plt.savefig(temporary)
    plt.show()


def show_animation(
    frames: np.ndarray, path: str | Path, milliseconds: int = 300, columns: int = 8
) -> None:
    """Save images as an endless GIF, and show them moving, both at twice their size.

    What is shown is an animated PNG, which moves wherever a notebook's images are shown; a plain
    script only writes the file. Of more than 60 frames, 60 are taken at equal distances, the first
    and the last one among them: the notebook keeps what it shows.

    Args:
        frames: uint8 array (frames, H, W, 3), or (frames, n, H, W, 3) for n images in each.
        path: of the GIF.
        milliseconds: how long each is shown; the last one is held for six times as long.
        columns: images per row, where a frame has several.
    """
    frames = frames[np.linspace(0, len(frames) - 1, min(len(frames), 60)).round().astype(int)]
    if frames.ndim == 5:
        frames = np.stack([image_grid(images, columns) for images in frames])
    height, width = frames.shape[1:3]
    stills = [Image.fromarray(frame) for frame in frames]
    larger = [p.resize((2 * width, 2 * height), Image.Resampling.BICUBIC) for p in stills]
    durations = [milliseconds] * (len(frames) - 1) + [6 * milliseconds]
    options = {"save_all": True, "duration": durations, "loop": 0}
    with atomic_write(Path(path)) as temporary:
        larger[0].save(temporary, append_images=larger[1:], **options)
    if get_ipython() is not None:
        strip = Image.fromarray(np.concatenate(frames))
        settled = strip.width * strip.height // 20  # pixels that still change their colour
        strip = strip.quantize(256, kmeans=settled)  # a small file, with one palette for all
        tops = range(0, strip.height, height)
        colored = [strip.crop((0, top, width, top + height)) for top in tops]
        buffer = io.BytesIO()
        colored[0].save(buffer, "PNG", append_images=colored[1:], **options)
        display(ShownImage(buffer.getvalue(), format="png", width=2 * width))


# ------------------------------------------------------------------------ networks


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


def show_network(network: nn.Module, example: Tensor) -> None:
    """Draw a network, and print its layers; see ``draw_network`` and ``layer_table``."""
    draw_network(network, example)
    print(layer_table(network, example))


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
    show_figure(path)


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


def _arrow(axes: Axes, start: tuple, end: tuple) -> None:
    style = {"arrowstyle": "-|>", "color": DARK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
