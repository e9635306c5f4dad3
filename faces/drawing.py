"""Faces from trained weights, with the notebook's own generator."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from faces.arrays import to_uint8
from faces.files import WEIGHTS
from faces.ideas import change_lesson, load_ideas
from faces.notebook import load_definitions


def generate_faces(n: int, seed: int, weights: str | Path = WEIGHTS) -> np.ndarray:
    """Draw faces from trained weights.

    The network is made by the notebook on the disk, not by a cell that was just changed, and by the
    idea that the weights were trained with.

    Args:
        n: how many.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote.

    Returns:
        uint8 array (n, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, or does not fit the notebook's ``Generator``; if it
            was trained with an idea that is not in ideas/; or if ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least one face.")
    try:
        with torch.random.fork_rng(devices=[]):
            G, z = _generator_and_latents(n, seed, weights)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {weights}: train first.") from None
    except (
        safetensors.SafetensorError,
        AttributeError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{weights} does not hold weights of the notebook's Generator: {error}"
        ) from error
    with torch.inference_mode():
        return np.concatenate([to_uint8(G(part)) for part in z.split(500)])


def _generator_and_latents(n: int, seed: int, weights: str | Path) -> tuple[nn.Module, Tensor]:
    """Rebuild the generator, and draw latents as its training did; changes the random state."""
    with safetensors.safe_open(weights, framework="pt") as opened:
        metadata = opened.metadata() or {}
        state = {name: opened.get_tensor(name) for name in opened.keys()}
    z_size, conv_dim, image_size = (
        int(metadata[name]) for name in ("z_size", "g_conv_dim", "image_size")
    )
    idea = metadata.get("idea", "")
    if not re.fullmatch(r"[\w+]*", idea):  # a file of weights must not choose what code runs
        raise ValueError(f"they were trained with {idea!r}, which is not in ideas/")
    lesson = load_definitions()
    change_lesson(lesson, load_ideas(idea))
    lesson.z_size, lesson.device = z_size, torch.device("cpu")
    _, G = lesson.build_network(8, conv_dim, z_size, image_size)
    G.load_state_dict(state)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed other devices too
    return G.eval(), lesson.sample_z(n)
