"""One image file: what passes for a photograph, and its pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import v2

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # PIL's others can start programs
LARGEST = 2**30 // 4 // 3  # pixels: 256 MiB as RGB; above it PIL warns of a bomb
LONGEST = 64  # times the short side, which a resize may bring to the size of the pictures
ADVICE = "save it with 8 bits a channel"


def decode(path: Path, transform: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Decode a file by its content, whatever its name; see ``load_images`` for what is done to it.

    Returns:
        What ``transform`` makes of the image, uint8 array (H, W, 3).

    Raises:
        Exception: of nearly any kind, if the file is damaged, no photograph, or no file at all.
    """
    if not path.is_file():
        raise ValueError("it is not a file")  # opening a pipe would wait for ever
    with Image.open(path, formats=FORMATS) as opened:
        if opened.width * opened.height > LARGEST or max(opened.size) > LONGEST * min(opened.size):
            size = f"{opened.width:,} x {opened.height:,}"
            raise ValueError(f"{size} pixels are far too many, or far too long, for a photograph")
        image = _to_rgb(opened)
    if image.size == (178, 218):
        image = v2.functional.center_crop(image, 108)
    pixels = np.asarray(transform(image))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise TypeError(f"transform makes {pixels.dtype} {pixels.shape}, not uint8 (H, W, 3)")
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image just opened, of any mode, to RGB, and set it upright."""
    is_deep = image.mode[0] in "IF" or ";16" in str(image.tile)  # more than 8 bits a channel
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # convert() would clip these to 8 bits
        values, top = np.asarray(image), 1 if image.mode == "F" else 65535
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= top:
            raise ValueError(
                f"its values, {low:g} to {high:g}, are not from 0 to {top:,}: {ADVICE}"
            )
        image = Image.fromarray((values * (65535 // top) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if is_deep and max(high for _, high in image.getextrema()) < 16:
        raise ValueError(f"it is black, or uses 12 of 16 bits or fewer: {ADVICE}")
    return image
