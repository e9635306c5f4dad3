"""Plain background: all photographs are grey outside of an oval around the face.

The faces are aligned, so one soft oval fits them all, and neither network has anything to learn
where hair and background differ most. G's faces are then to be compared with photographs that are
painted alike; the measures of a run itself take them as they are.
"""

from types import ModuleType

import torch
from torch import Tensor

CENTRE, HEIGHT, WIDTH = 0.1, 0.95, 0.72  # of 1: half an image's side; measured from its middle
SOFTNESS = 0.15  # the share of the radius over which the oval fades


def patch(notebook: ModuleType) -> None:
    """Paint images just after they are scaled."""
    scale = notebook.scale
    notebook.scale = lambda x: paint(scale(x))


def paint(x: Tensor) -> Tensor:
    """Turn images in [-1, 1], (..., size, size), to 0 outside of the oval."""
    side = x.shape[-1]
    places = (2 * torch.arange(side, device=x.device) + 1) / side - 1  # of the pixels' middles
    radius = torch.hypot((places[:, None] - CENTRE) / HEIGHT, places / WIDTH)
    return x * ((1 - radius) / SOFTNESS + 0.5).clamp(0, 1).to(x.dtype)
