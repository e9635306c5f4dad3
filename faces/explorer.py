"""Sliders that move a face along directions of the latent space."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image as ShownImage
from IPython.display import display
from PIL import Image
from torch import Tensor

from faces.files import atomic_write

SHOWN = 256  # pixels


class Explorer:
    """A face, the controls that change it, and the button that saves it; see ``explore``."""

    def __init__(
        self,
        draw: Callable[[Tensor], np.ndarray],
        sample_z: Callable[[int], Tensor],
        directions: Mapping[str, np.ndarray | Tensor],
        folder: str | Path,
    ) -> None:
        self.draw, self.sample_z, self.folder = draw, sample_z, Path(folder)
        self.directions = {name: torch.as_tensor(d).float() for name, d in directions.items()}
        largest = {"min": 0, "max": 2**31 - 1}
        self.seed = widgets.BoundedIntText(1, description="seed", **largest)
        self.end = widgets.BoundedIntText(2, description="to seed", **largest)
        self.walk = widgets.FloatSlider(0, description="walk", min=0, max=1, step=0.05)
        self.sliders = {
            name: widgets.FloatSlider(0, description=name, min=-3, max=3, step=0.1)
            for name in self.directions
        }
        self.size = widgets.ToggleButtons(options=[32, 64], description="pixels")
        self.button = widgets.Button(description="Save")
        self.said = widgets.Label()
        self.button.on_click(self.save)
        self.inputs = [self.seed, self.end, self.walk, *self.sliders.values(), self.size]
        for control in self.inputs:
            control.observe(self.update, "value")
        self.controls = widgets.VBox([*self.inputs, widgets.HBox([self.button, self.said])])
        self.shown = None  # where the image stands in the notebook

    def latent(self) -> Tensor:
        """The latent vector that the controls stand for, float (1, z_size)."""
        start, end = (_latent(self.sample_z, control.value) for control in (self.seed, self.end))
        z = start + self.walk.value * (end - start)
        return z + sum(self.sliders[name].value * d for name, d in self.directions.items())

    def image(self) -> Image.Image:
        """The face, resized to the chosen number of pixels."""
        side = self.size.value
        face = Image.fromarray(self.draw(self.latent())[0])
        return face.resize((side, side), Image.Resampling.LANCZOS)

    def update(self, change: object = None) -> None:
        """Draw again, where the image stands."""
        if self.shown is not None:
            self.shown.update(_enlarged(self.image()))

    def save(self, button: object = None) -> None:
        """Write ``face_1.png`` and its latent ``.npy``, or the next number, and say so."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = 1
            while any((self.folder / f"face_{number}{end}").exists() for end in (".png", ".npy")):
                number += 1
            path = self.folder / f"face_{number}.png"
            with atomic_write(path.with_suffix(".npy")) as temporary:
                np.save(temporary, self.latent().numpy())
            with atomic_write(path) as temporary:
                self.image().save(temporary)
            self.said.value = f"saved: {path}, and its latent beside it"
        except OSError as error:
            self.said.value = f"not saved: {error}"


def explore(
    draw: Callable[[Tensor], np.ndarray],
    sample_z: Callable[[int], Tensor],
    directions: Mapping[str, np.ndarray | Tensor],
    folder: str | Path,
) -> None:
    """Show a face with controls: a slider for each direction, a seed, a walk, a button that saves.

    The image is an ordinary output, which stays in a saved notebook. The controls are shown below
    it, where somebody can use them: not under nbconvert or papermill; a plain script shows nothing.

    Args:
        draw: latents (n, z_size) -> uint8 (n, H, W, 3).
        sample_z: draws n latents (n, z_size).
        directions: a name and a vector (z_size,) for each slider; a slider goes from -3 to 3.
        folder: where saved faces go.
    """
    shell = get_ipython()
    if shell is None:
        return
    # What runs a notebook with nobody in front of it says that it cannot ask for input.
    if not getattr(getattr(shell, "kernel", None), "_allow_stdin", False):
        display(_enlarged(Image.fromarray(draw(_latent(sample_z, 1))[0])))
        return  # without controls, whose state would go into the notebook
    explorer = Explorer(draw, sample_z, directions, folder)
    explorer.shown = display(_enlarged(explorer.image()), display_id=True)
    display(explorer.controls)


def _latent(sample_z: Callable[[int], Tensor], seed: int) -> Tensor:
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return sample_z(1).cpu()


def _enlarged(image: Image.Image) -> ShownImage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ShownImage(buffer.getvalue(), format="png", width=SHOWN)  # the browser enlarges it
