"""Faces from trained weights, with the notebook's own generator."""

from __future__ import annotations

import re
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from faces.arrays import to_uint8
from faces.files import WEIGHTS
from faces.ideas import change_lesson, load_ideas
from faces.notebook import load_definitions
from faces.weights import read_weights


def generate_faces(n: int, seed: int, weights: str | Path = WEIGHTS) -> np.ndarray:
    """Draw faces from trained weights.

    The network is made by the notebook on the disk, not by a cell that was just changed, and by the
    idea that the weights were trained with.

    Args:
        n: how many, at most 100,000.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote.

    Returns:
        uint8 array (n, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, does not fit the notebook's ``Generator``, or was
            damaged; if it was trained with an idea that is not in ideas/; or if ``n`` is out of
            range.
    """
    if not isinstance(n, Integral) or not 1 <= n <= 100_000:
        raise ValueError(f"n is {n!r}: it must be a whole number from 1 to 100,000.")
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights}: train first, or name another.")
    with torch.random.fork_rng(devices=[]):
        try:
            G, sample_z = _generator_and_latents(weights)
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
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed other devices too
        sizes = (min(500, n - start) for start in range(0, n, 500))
        with torch.inference_mode():
            return np.concatenate([to_uint8(G(sample_z(size))) for size in sizes])


def _generator_and_latents(weights: str | Path) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """Rebuild the generator, and the function that drew its latents; changes the random state."""
    state, metadata = read_weights(weights)
    z_size, conv_dim, image_size = (
        int(metadata[name]) for name in ("z_size", "g_conv_dim", "image_size")
    )
    idea = metadata.get("idea", "")
    if not re.fullmatch(r"[\w+]*", idea):  # a file of weights must not choose what code runs
        raise ValueError(f"they were trained with {idea!r}, which is not in ideas/")
    lesson = load_definitions()
    change_lesson(lesson, load_ideas(idea).values())
    lesson.z_size, lesson.device = z_size, torch.device("cpu")
    _, G = lesson.build_network(8, conv_dim, z_size, image_size)
    G.load_state_dict(state)
    for name, own in G.state_dict().items():
        if state[name].dtype != own.dtype or not state[name].isfinite().all():
            raise ValueError(f"{name} is {state[name].dtype}, or not finite: not {own.dtype}")
    return G.eval(), lesson.sample_z
