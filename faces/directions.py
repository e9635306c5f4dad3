"""Properties of faces that pixels can measure; along which directions of the latents they change.

Each measure is coarse, and sees what it is told to look at: the "hair" of a bald head is its skin.
"""

from __future__ import annotations

import numpy as np

from faces.skin import typology_angles


def hair(images: np.ndarray) -> np.ndarray:
    """Lightness of the strip above the forehead, uint8 (n, H, W, 3) -> grey levels (n,)."""
    return _lightness(images, 0, 0.15, 0.3, 0.7)


def background(images: np.ndarray) -> np.ndarray:
    """Lightness of the two upper corners, uint8 (n, H, W, 3) -> grey levels (n,)."""
    return (_lightness(images, 0, 0.12, 0, 0.12) + _lightness(images, 0, 0.12, 0.88, 1)) / 2


def turn(images: np.ndarray) -> np.ndarray:
    """How much lighter the left half of the face is, uint8 (n, H, W, 3) -> grey levels (n,).

    A head that turns shows more skin on one side; a light from that side looks the same.
    """
    return _lightness(images, 0.3, 0.9, 0.1, 0.5) - _lightness(images, 0.3, 0.9, 0.5, 0.9)


def warmth(images: np.ndarray) -> np.ndarray:
    """How much more red than blue there is, uint8 (n, H, W, 3) -> grey levels (n,)."""
    red, _, blue = images.mean(axis=(1, 2)).T
    return red - blue


def _lightness(
    images: np.ndarray, top: float, bottom: float, left: float, right: float
) -> np.ndarray:
    """Mean luma (ITU-R BT.601) of a part of each picture, in shares of its sides."""
    height, width = images.shape[1:3]
    rows = slice(round(top * height), max(round(bottom * height), round(top * height) + 1))
    columns = slice(round(left * width), max(round(right * width), round(left * width) + 1))
    return images[:, rows, columns].mean(axis=(1, 2)) @ (0.299, 0.587, 0.114)


# Each takes uint8 (n, H, W, 3) and returns floats (n,), larger for more; NaN where there is none.
MEASURES = {
    "skin": typology_angles,
    "hair": hair,
    "background": background,
    "turn": turn,
    "warmth": warmth,
}
