"""Grids, figures and animations of pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image as ShownImage
from IPython.display import display
from PIL import Image
from torchvision.utils import make_grid

from faces.files import writing


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures out row by row on white.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.

    Returns:
        uint8 array (rows * (H + 2) + 2, columns * (W + 2) + 2, 3); fewer pictures than ``columns``
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
    """Show pictures in rows, and save the figure.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.
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
    save_figure(path)


def write_pictures(images: Iterable[np.ndarray], folder: Path) -> Path:
    """Write pictures, uint8 (H, W, 3), to a new folder: ``000001.png`` ...; return the folder."""
    folder.mkdir()
    for i, image in enumerate(images, start=1):
        Image.fromarray(image).save(folder / f"{i:06d}.png", compress_level=1)
    return folder


def save_figure(path: str | Path | None) -> None:
    """Save the current figure, if there is a path, and show it."""
    if path is not None:
        with writing(Path(path)) as temporary:
            plt.savefig(temporary)
    plt.show()


def show_animation(frames: list[np.ndarray], path: str | Path, milliseconds: int = 300) -> None:
    """Save pictures as an endless GIF, and show them moving, both at twice their size.

    What is shown is an animated PNG, which moves wherever a notebook's pictures are shown; a plain
    script only writes the file.

    Args:
        frames: uint8 arrays (H, W, 3) of one size.
        path: of the GIF.
        milliseconds: how long each is shown; the last one is held for six times as long.
    """
    height, width = frames[0].shape[:2]
    pictures = [Image.fromarray(frame) for frame in frames]
    larger = [p.resize((2 * width, 2 * height), Image.Resampling.BICUBIC) for p in pictures]
    durations = [milliseconds] * (len(frames) - 1) + [6 * milliseconds]
    options = {"save_all": True, "duration": durations, "loop": 0}
    with writing(Path(path)) as temporary:
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
