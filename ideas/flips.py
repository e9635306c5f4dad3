"""Flips: half of the real images are mirrored at random, so that D sees twice as many images."""

from types import ModuleType

import torch
from torch import Tensor


def patch(notebook: ModuleType) -> None:
    """Mirror images just before they are scaled."""
    scale = notebook.scale

    def mirror_and_scale(x: Tensor) -> Tensor:
        is_mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return scale(torch.where(is_mirrored, x.flip(3), x))

    notebook.scale = mirror_and_scale
