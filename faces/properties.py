"""Properties of faces that pixels can measure, and faces drawn in equal shares of one of them.

Each measure is coarse, and sees what it is told to look at: the "hair" of a bald head is its skin.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from faces.images import blocks

# Classes of the individual typology angle, and where they begin (degrees); the lightest from 55 on.
ITA_CLASSES = {
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


def ita(images: np.ndarray) -> np.ndarray:
    """Individual typology angle of the middle of each face: how light it is, and how yellow.

    arctan((L* - 50) / b*) of the median colour of a patch across the nose and the cheeks beside it,
    in CIELAB under D65 (Chardon et al., Skin colour typology and suntanning pathways, 1991).
    Measured on skin under a fixed light it sorts skin by its colour (see ``ITA_CLASSES``); in a
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


def ita_shares(images: np.ndarray) -> dict[str, float]:
    """The share of each class of ``ITA_CLASSES`` in faces, uint8 (n, H, W, 3); from dark to light.

    Faces without an angle do not count.
    """
    classes = ita_classes(images)
    counts = np.bincount(classes[classes >= 0], minlength=len(ITA_CLASSES))
    return dict(zip(ITA_CLASSES, (counts / max(1, counts.sum())).tolist(), strict=True))


def ita_classes(images: np.ndarray) -> np.ndarray:
    """The class of each image (n,), from 0 for dark; -1 for those without an angle."""
    angles = ita(images)
    return np.where(np.isnan(angles), -1, np.digitize(angles, list(ITA_CLASSES.values())[1:]))


def balancing_weights(images: np.ndarray) -> np.ndarray:
    """How often to draw each image so that all ITA classes are drawn equally often.

    Images without an angle are drawn as often as if there were no weights.

    Args:
        images: uint8 array (n, H, W, 3) of faces.

    Returns:
        A weight for each image (n,), with mean 1; classes without an image do not count.
    """
    classes = ita_classes(images)
    has_class = classes >= 0
    counts = np.bincount(classes[has_class])
    weights = np.ones(len(images))
    weights[has_class] = has_class.sum() / counts[classes[has_class]] / np.count_nonzero(counts)
    return weights


def sample_balanced(draw: Callable[[int], np.ndarray], n: int) -> np.ndarray:
    """Draw faces until each ITA class has its equal share of them.

    Faces without an angle, and those that a class has too many of, are rejected. Where classes stay
    short of their share they are named, and the others have more.

    Args:
        draw: draws that many faces, other ones each time, uint8 (n, H, W, 3).
        n: how many faces to return; at most 20 times as many are drawn.

    Returns:
        uint8 array (n, H, W, 3); fewer if fewer faces with an angle were drawn.
    """
    share, n_drawn = -(-n // len(ITA_CLASSES)), 0
    counts = np.zeros(len(ITA_CLASSES), int)
    kept: list[tuple[int, int, int, np.ndarray]] = []  # rank in its class, class, number, face
    while counts.min() < share and n_drawn < 20 * n:
        images = draw(min(500, 20 * n - n_drawn))
        for image, c in zip(images, ita_classes(images), strict=True):
            n_drawn += 1
            if c >= 0:
                kept.append((counts[c], c, n_drawn, image.copy()))  # lets the others go
                counts[c] += 1
        if len(kept) >= 2 * n:
            kept = sorted(kept, key=lambda item: item[:3])[:n]  # one of each class in turn
    least = n // len(ITA_CLASSES)
    short = [f"{kind} ({c})" for kind, c in zip(ITA_CLASSES, counts, strict=True) if c < least]
    if short:
        print(f"In {n_drawn:,} faces drawn there were fewer than {least} of: {', '.join(short)}.")
    chosen = sorted(kept, key=lambda item: item[:3])[:n]
    in_order = [image for *_, image in sorted(chosen, key=lambda item: item[2])]
    return np.stack(in_order) if in_order else images[:0]


# ------------------------------------------------------------------------ others


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
    """Mean luma (ITU-R BT.601) of a part of each image, in shares of its sides."""
    height, width = images.shape[1:3]
    rows = slice(round(top * height), max(round(bottom * height), round(top * height) + 1))
    columns = slice(round(left * width), max(round(right * width), round(left * width) + 1))
    return images[:, rows, columns].mean(axis=(1, 2)) @ (0.299, 0.587, 0.114)


# Each takes uint8 (n, H, W, 3) and returns floats (n,), larger for more; NaN where there is none.
PROPERTIES = {
    "skin": ita,
    "hair": hair,
    "background": background,
    "turn": turn,
    "warmth": warmth,
}
