"""What the lesson shows: images, animations, networks as tables and drawings, a training."""

from __future__ import annotations

import base64
import copy
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from IPython.display import Image as ShownImage
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from faces.files import atomic_write
from faces.parallel import is_main_process, print_main

BLUE, ORANGE, GREY, DARK = "#9ecae1", "#fdd0a2", "#555555", "#333333"

# ------------------------------------------------------------------------ images


def image_grid(images: np.ndarray, columns: int, scale: int = 1) -> np.ndarray:
    """Lay images out row by row on white.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: images per row.
        scale: how many times each image is enlarged, before it is framed.

    Returns:
        uint8 array (rows * (scale * H + 2) + 2, columns * (scale * W + 2) + 2, 3); fewer images
        than ``columns`` make a shorter row, and a single one has no frame.
    """
    tensor = torch.from_numpy(enlarge(images, scale)).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge each image smoothly, uint8 (n, H, W, 3) -> (n, scale * H, scale * W, 3)."""
    if scale == 1:
        return images
    size = (scale * images.shape[2], scale * images.shape[1])
    larger = [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in images]
    return np.stack(larger)


def show_images(
    images: np.ndarray,
    columns: int = 8,
    path: str | Path | None = None,
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
) -> None:
    """Show images in rows, small ones enlarged up to four times, and save the figure.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: images per row.
        path: where to save the figure, if anywhere.
        row_labels: a text for each row.
        column_labels: a text for each column.
    """
    scale = min(4, max(1, round(720 / columns / images.shape[2])))
    grid = image_grid(images, columns, scale)
    rows = math.ceil(len(images) / columns)
    labels = [0 if row_labels is None else 1.1, 0 if column_labels is None else 0.3]  # inches
    size = np.array([grid.shape[1], grid.shape[0]]) / 100 + labels
    figure, axes = plt.subplots(figsize=size, dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0.02)
    axes.imshow(grid)
    axes.set(xticks=[], yticks=[], frame_on=False)
    axes.tick_params(length=0, labelsize=12)
    if row_labels is not None:
        axes.set_yticks((np.arange(rows) + 0.5) * grid.shape[0] / rows, row_labels)
    if column_labels is not None:
        axes.xaxis.tick_top()
        axes.set_xticks((np.arange(columns) + 0.5) * grid.shape[1] / columns, column_labels)
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


def animate_points(
    real: np.ndarray, frames: np.ndarray, titles: list[str], path: str | Path | None = None
) -> None:
    """Show how generated points move over real ones, as an animation.

    Args:
        real: float array (n, 2).
        frames: generated points at several moments, float array (moments, m, 2).
        titles: a text for each moment.
        path: of a GIF, if it is to be saved.
    """
    pictures = []
    for fakes, title in zip(frames, titles, strict=True):
        figure = Figure(figsize=(3.2, 3.2), dpi=100, layout="constrained")
        draw_points(figure.subplots(), real, fakes, title)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3])
    show_animation(np.stack(pictures), path, scale=1)


def draw_points(axes: Axes, real: np.ndarray, fakes: np.ndarray, title: str) -> None:
    """Draw generated points over real ones, float arrays (n, 2) and (m, 2)."""
    axes.scatter(*real.T, s=6, color="#bbbbbb", label="real")
    axes.scatter(*fakes.T, s=6, color="C1", label="fake")
    side = max(1.6, 1.1 * np.abs(fakes).max())  # what runs away stays in sight
    axes.set(title=title, xlim=(-side, side), ylim=(-side, side), aspect="equal")
    axes.legend(loc="upper right", fontsize=8, handletextpad=0, borderpad=0.2)


def show_animation(
    frames: np.ndarray,
    path: str | Path | None = None,
    milliseconds: int = 300,
    columns: int = 8,
    scale: int = 2,
) -> None:
    """Show images moving, endlessly, and save them as a GIF if there is a path.

    What is shown is an animated PNG, which moves wherever a notebook's images are shown; a plain
    script only writes the file. Of more than 60 frames, 60 are taken at equal distances, the first
    and the last one among them: the notebook keeps what it shows.

    Args:
        frames: uint8 array (frames, H, W, 3), or (frames, n, H, W, 3) for n images in each.
        path: of the GIF, if it is to be saved.
        milliseconds: how long each is shown; the last one is held for six times as long.
        columns: images per row, where a frame has several.
        scale: how many times they are enlarged.
    """
    frames = frames[np.linspace(0, len(frames) - 1, min(len(frames), 60)).round().astype(int)]
    if frames.ndim == 5:
        frames = np.stack([image_grid(images, columns) for images in frames])
    height, width = frames.shape[1:3]
    durations = [milliseconds] * (len(frames) - 1) + [6 * milliseconds]
    options = {"save_all": True, "duration": durations, "loop": 0}
    if path is not None:
        larger = [Image.fromarray(frame) for frame in enlarge(frames, scale)]
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
        display(ShownImage(buffer.getvalue(), format="png", width=scale * width))


# ------------------------------------------------------------------------ networks


# What is drawn or listed beside the layers with weights, in words.
_BESIDE = {nn.BatchNorm2d: "batch norm", nn.LeakyReLU: "leaky ReLU", nn.ReLU: "ReLU"}


class _Layer(NamedTuple):
    """What a layer did in a network's run; sizes are without the batch dimension."""

    name: str  # the network's attribute, such as conv1
    module: nn.Module
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]


def _run_layers(network: nn.Module, example: Tensor) -> list[_Layer]:
    """List a network's layers in the order in which they run, those of ``_BESIDE`` too."""
    layers: list[_Layer] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = (tuple(tensor.shape[1:]) for tensor in (args[0], output))
        layers.append(_Layer(name.split(".")[0], module, *sizes))

    network = copy.deepcopy(network).eval()  # the given one stays as it is
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *_BESIDE)):
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
        elif type(module) not in _BESIDE:
            sizes = _size_text(size_in), _size_text(size_out)
            rows.append([type(module).__name__, *sizes, "-", parameters])
    rows.append(["total", "", "", "", sum(p.numel() for p in network.parameters())])
    line = "{:<16} {:>13} {:>13} {:>11} {:>11}"
    header = line.format("layer", "input", "output", "batch norm", "parameters")
    return "\n".join([header, "-" * len(header), *(line.format(*r[:4], f"{r[4]:,}") for r in rows)])


def draw_network(network: nn.Module, example: Tensor, path: str | Path | None = None) -> None:
    """Draw a network from its own run, as the DCGAN paper draws its generator (arXiv:1511.06434).

    A box is a layer's output: as high and deep as the feature maps' sides, as thick as the square
    root of their number. An arrow is a convolution or a linear layer, with what follows it.

    Args:
        network: the network; its training mode and statistics are left as they are.
        example: an input for it, with a batch dimension.
        path: where to save the figure, if anywhere.
    """
    run = _run_layers(network, example)
    layers: list[_Layer] = []
    beside: list[list[str]] = []  # of each layer: batch norm, an activation
    for layer in run:
        if type(layer.module) in _BESIDE:
            beside[-1].append(_BESIDE[type(layer.module)])
        else:
            layers.append(layer)
            beside.append([])
    sizes = [_size_text(layers[0].size_in)]  # of what lies between two layers
    shapes = [layers[0].size_in]
    for a, b in pairwise(layers):
        flat = [a.size_out, b.size_in] if len(a.size_out) != len(b.size_in) else [a.size_out]
        sizes.append("\n= ".join(map(_size_text, flat)))  # before and after a flattening
        shapes.append(max(flat, key=len))
    sizes.append(_size_text(layers[-1].size_out))
    shapes.append(layers[-1].size_out)
    pixel = 1.6 / max((side for shape in shapes for side in shape[1:]), default=1)  # inches
    boxes = [_box(shape, pixel) for shape in shapes]
    taken = sum(thickness + depth for thickness, _, depth in boxes)
    gap = max(1.05, (9.4 - taken) / len(layers))
    axes = _sheet(taken + len(layers) * gap + 0.6, 3)
    left, middle = 0.3, 1.7
    for i, (text, shape, box) in enumerate(zip(sizes, shapes, boxes, strict=True)):
        thickness, height, depth = box
        bottom, end = middle - (height + depth) / 2, left + thickness + depth
        corner, along = np.array([left, bottom]), np.array([thickness, 0])
        up, back = np.array([0, height]), np.array([depth, depth])
        color = BLUE if len(shape) == 3 else ORANGE
        for start, a, b, alpha in (
            (corner, along, up, 1.0),  # front
            (corner + up, along, back, 0.5),  # top
            (corner + along, up, back, 0.75),  # side
        ):
            corners = [start, start + a, start + a + b, start + b]
            axes.add_patch(Polygon(corners, facecolor=color, edgecolor=DARK, lw=0.7, alpha=alpha))
        below = min(bottom - 0.08, middle - 0.75)  # also below an arrow's text
        axes.text((left + end) / 2, below, text, ha="center", va="top", fontsize=10)
        if i < len(layers):
            _arrow(axes, (end + 0.06, middle), (end + gap - 0.06, middle))
            center, module, how = end + gap / 2, layers[i].module, "linear"
            if not isinstance(module, nn.Linear):
                how = "{}x{}, stride {}".format(*module.kernel_size, module.stride[0])
            axes.text(center, middle + 0.07, layers[i].name, ha="center", fontsize=10)
            how = "\n".join([how, *beside[i]])
            axes.text(center, middle - 0.07, how, ha="center", va="top", fontsize=9, color=DARK)
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


# ------------------------------------------------------------------------ a training


class TrainingState(NamedTuple):
    """What the picture of a training shows.

    Attributes:
        epoch: the epoch that was trained last, from 1.
        n_epochs: how many there are to be.
        samples: faces, uint8 (n, H, W, 3).
        losses: one (d_loss, g_loss) a step, from the first step on.
        loss_at_chance: D's loss where it only guesses; NaN if nobody knows.
        distances: of each complete epoch.
        baseline: the least and the largest distance of training images; None if nobody knows.
    """

    epoch: int
    n_epochs: int
    samples: np.ndarray
    losses: Sequence[tuple[float, float]]
    loss_at_chance: float
    distances: Sequence[float]
    baseline: tuple[float, float] | None


class TrainingPicture:
    """A picture of a training in Jupyter, renewed in place; its last state stays in the notebook.

    A terminal, a script, and all processes but the main one show nothing. If drawing fails, one
    line says so, and the training continues without a picture.

    Attributes:
        is_shown: whether there is a picture.
    """

    PAUSE = 2.0  # seconds at least from one picture to the next, so that drawing costs little

    def __init__(self) -> None:
        self.is_shown = hasattr(get_ipython(), "kernel") and is_main_process()
        self._handle: DisplayHandle | None = None
        self._is_due_at = -math.inf

    def show(self, observe: Callable[[], TrainingState], at_once: bool) -> None:
        """Draw the picture anew.

        Args:
            observe: returns what to draw; it is called only if something is drawn.
            at_once: False leaves the picture as it is if it was drawn just before.
        """
        if not self.is_shown or (time.monotonic() < self._is_due_at and not at_once):
            return
        try:
            state = observe()
            text = describe_training(state)
            png = base64.b64encode(draw_training(state)).decode()
            output = {"image/png": png, "text/plain": text}
            options = {"raw": True, "metadata": {"image/png": {"alt": text}}}
            if self._handle is None:
                self._handle = display(output, display_id=True, **options)
            else:
                self._handle.update(output, **options)
        except Exception as error:  # whatever it is, hours of training count for more
            self.is_shown = False
            reason = f"{type(error).__name__}: {error}"
            print_main(f"Warning, the training continues without its picture ({reason})")
        self._is_due_at = time.monotonic() + self.PAUSE


def describe_training(state: TrainingState) -> str:
    """Say in a sentence what ``draw_training`` shows, for those who cannot see it."""
    d_loss, g_loss = _smooth(state.losses)[1][-1]
    text = (
        f"Epoch {state.epoch} of {state.n_epochs}, after {len(state.losses):,} steps: "
        f"{len(state.samples)} generated faces, the discriminator's loss ({d_loss:.2f} of late), "
        f"the generator's loss ({g_loss:.2f})"
    )
    if state.distances:
        text += f", and the distance from photographs after each epoch ({state.distances[-1]:.1f}"
        if state.baseline is not None:
            text += ", training images {:.1f} to {:.1f}".format(*state.baseline)
        text += "; lower is better)"
    return f"{text}."


def draw_training(state: TrainingState) -> bytes:
    """Draw a training: its faces above; below them the losses and the distances so far.

    Returns:
        A PNG; nothing is left of the figure.
    """
    scale = max(1, 96 // state.samples.shape[2])
    grid = image_grid(state.samples, columns=8, scale=scale)
    grid_height, grid_width = grid.shape[:2]
    above, below = 30, 270  # pixels
    size = np.array([max(800, grid_width), above + grid_height + below])
    figure = Figure(figsize=size / 100, dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(grid, (size[0] - grid_width) // 2, below)
    title = f"Epoch {state.epoch} of {state.n_epochs}, after {len(state.losses):,} steps"
    figure.text(0.5, 1 - above / 2 / size[1], title, ha="center", va="center", fontsize=12)
    room = dict(bottom=50 / size[1], top=(below - 40) / size[1], left=55 / size[0], wspace=0.17)
    left, right = figure.subplots(1, 2, gridspec_kw=room | {"right": 1 - 12 / size[0]})
    _plot_losses(left, state)
    _plot_distances(right, state)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        above_it = dict(loc="lower left", bbox_to_anchor=(-0.02, 0.99), borderaxespad=0)
        style = dict(ncols=3, frameon=False, fontsize=9, handlelength=1.4, columnspacing=1.2)
        axes.legend(**above_it, **style)
    buffer = io.BytesIO()
    canvas.print_png(buffer, pil_kwargs={"compress_level": 3})  # twice as fast as 6
    return buffer.getvalue()


def _plot_losses(axes: Axes, state: TrainingState) -> None:
    steps, means = _smooth(state.losses)
    chosen = np.linspace(0, len(steps) - 1, min(500, len(steps))).astype(int)
    names = {"discriminator": "tab:blue", "generator": "tab:orange"}
    for (name, color), values in zip(names.items(), means[chosen].T, strict=True):
        axes.plot(steps[chosen], values, color=color, label=name)
    if math.isfinite(state.loss_at_chance):
        style = dict(color="grey", linestyle=":", label="if D only guesses")
        axes.axhline(state.loss_at_chance, **style)
    axes.set(xlabel="step", ylabel="loss, smoothed", xlim=(0, len(state.losses)))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.xaxis.get_major_locator().set_params(nbins=6)


def _plot_distances(axes: Axes, state: TrainingState) -> None:
    epochs, top = range(1, len(state.distances) + 1), 1.0
    axes.plot(epochs, state.distances, ".-", color="tab:blue", label="generated faces")
    if state.baseline is not None:
        axes.axhspan(*state.baseline, color="grey", alpha=0.3, label="training images")
        top = state.baseline[1]
    if state.distances:  # the first epoch's may be far above all others
        axes.set_ylim(0, 1.1 * max(*(state.distances[1:] or state.distances), top))
    else:
        axes.set(yticks=[])
        place = dict(transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.text(0.5, 0.5, "measured after each epoch", **place)
    axes.set(xlabel="epoch", ylabel="distance (lower is better)", xlim=(0.5, state.n_epochs + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _smooth(losses: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Average up to 100 steps at a time.

    Args:
        losses: n pairs.

    Returns:
        The middle of each window (m,), in steps, and its means (m, 2).
    """
    n = len(losses)
    window = max(1, min(100, n // 10))
    sums = np.cumsum([(0.0, 0.0), *losses], axis=0)  # (n + 1, 2)
    return np.arange(window, n + 1) - window / 2, (sums[window:] - sums[:-window]) / window
