"""Flips: half of the real images are mirrored at random, so that D sees twice as many pictures."""

from types import ModuleType

import torch
from torch import Tensor


def names(lesson: ModuleType) -> None:
    """Mirror images just before they are scaled."""
    scale = lesson.scale

    def mirror_and_scale(x: Tensor) -> Tensor:
        is_mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return scale(torch.where(is_mirrored, x.flip(3), x))

    lesson.scale = mirror_and_scale
