"""How light and how yellow faces are: the individual typology angle, and classes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from faces.arrays import blocks

# Classes of the individual typology angle, and where they begin (degrees); the lightest from 55 on.
TYPOLOGY = {
    "dark": -90,
    "brown": -30,
    "tan": 10,
    "intermediate": 28,
    "light": 41,
    "very light": 55,
}
_SRGB_TO_XYZ = np.array(  # IEC 61966-2-1, for the white of D65
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def typology_angles(images: np.ndarray) -> np.ndarray:
    """Individual typology angle of the middle of each face: how light it is, and how yellow.

    arctan((L* - 50) / b*) of the median colour of a patch across the nose and the cheeks beside it,
    in CIELAB under D65 (Chardon et al., Skin colour typology and suntanning pathways, 1991).
    Measured on skin under a fixed light it sorts skin by its colour (see ``TYPOLOGY``); in a
    photograph, the light, the exposure and make-up count as much.

    Args:
        images: uint8 array (n, H, W, 3) in sRGB, cropped to the face as CelebA is.

    Returns:
        Degrees (n,), larger is lighter; NaN where the patch is not yellow at all (b* below 1), as
        in a black-and-white photograph: there the angle means nothing.
    """
    height, width = images.shape[1:3]
    rows = slice(round(0.56 * height), round(0.72 * height))
    columns = slice(round(0.34 * width), round(0.66 * width))
    colors = [np.median(block[:, rows, columns], axis=(1, 2)) for block in blocks(images)]
    rgb = np.concatenate(colors or [np.empty((0, 3))]) / 255  # (n, 3)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _SRGB_TO_XYZ.T / _SRGB_TO_XYZ.sum(axis=1)  # each relative to white
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness, b = 116 * f[:, 1] - 16, 200 * (f[:, 1] - f[:, 2])
    return np.degrees(np.arctan2(lightness - 50, np.where(b >= 1, b, np.nan)))


def typology_shares(images: np.ndarray) -> dict[str, float]:
    """The share of each class of ``TYPOLOGY`` in faces, uint8 (n, H, W, 3); from dark to light.

    Faces without an angle do not count.
    """
    classes = typology_classes(images)
    counts = np.bincount(classes[classes >= 0], minlength=len(TYPOLOGY))
    return dict(zip(TYPOLOGY, (counts / max(1, counts.sum())).tolist(), strict=True))


def typology_classes(images: np.ndarray) -> np.ndarray:
    """The class of each picture (n,), from 0 for dark; -1 for those without an angle."""
    angles = typology_angles(images)
    return np.where(np.isnan(angles), -1, np.digitize(angles, list(TYPOLOGY.values())[1:]))


def balancing_weights(images: np.ndarray) -> np.ndarray:
    """How often to draw each picture so that all typology classes are drawn equally often.

    Pictures without an angle are drawn as often as if there were no weights.

    Args:
        images: uint8 array (n, H, W, 3) of faces.

    Returns:
        A weight for each picture (n,), with mean 1; classes without a picture do not count.
    """
    classes = typology_classes(images)
    has_class = classes >= 0
    counts = np.bincount(classes[has_class])
    weights = np.ones(len(images))
    weights[has_class] = has_class.sum() / counts[classes[has_class]] / np.count_nonzero(counts)
    return weights


def draw_balanced(draw: Callable[[int], np.ndarray], n: int) -> np.ndarray:
    """Draw faces until each typology class has its equal share of them.

    Faces without an angle, and those that a class has too many of, are rejected. Where classes stay
    short of their share they are named, and the others have more.

    Args:
        draw: draws that many faces, other ones each time, uint8 (n, H, W, 3).
        n: how many faces to return; at most 20 times as many are drawn.

    Returns:
        uint8 array (n, H, W, 3); fewer if fewer faces with an angle were drawn.
    """
    share, drawn, kept = -(-n // len(TYPOLOGY)), 0, []
    classes, counts = np.empty(0, int), np.zeros(len(TYPOLOGY), int)
    while counts.min() < share and drawn < 20 * n:
        images = draw(min(500, 20 * n - drawn))
        drawn += len(images)
        so_far = np.append(classes, typology_classes(images))
        useful = ((so_far >= 0) & (_ranks(so_far) < n))[len(classes) :]
        kept.append(images[useful])
        classes = np.append(classes, so_far[len(classes) :][useful])
        counts = np.bincount(classes, minlength=len(TYPOLOGY))
    least = n // len(TYPOLOGY)
    short = [f"{kind} ({c})" for kind, c in zip(TYPOLOGY, counts, strict=True) if c < least]
    if short:
        print(f"In {drawn:,} faces drawn there were fewer than {least} of: {', '.join(short)}.")
    chosen = np.lexsort((classes, _ranks(classes)))[:n]  # one of each class in turn
    return np.concatenate(kept)[np.sort(chosen)]


def _ranks(classes: np.ndarray) -> np.ndarray:
    """How many of its own class stand before each (n,)."""
    is_of = classes[:, None] == np.arange(len(TYPOLOGY))  # (n, classes)
    return is_of.cumsum(axis=0)[np.arange(len(classes)), classes] - 1
