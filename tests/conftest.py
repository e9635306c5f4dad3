"""Made-up images for the tests: nobody's photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import helpers


def blobs(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth random colours, uint8 (n, height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((width, height))) for s in small])


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """A folder in the official archive's layout: 40 images 64x64 and macOS litter."""
    folder = tmp_path / "processed_celeba_small"
    below = folder / "celeba" / "New Folder With Items"
    below.mkdir(parents=True)
    for i, pixels in enumerate(blobs(40, 64, 64, seed=0), start=1):
        place = below if i % 2 else below.parent
        Image.fromarray(pixels).save(place / f"{i:06d}.jpg", quality=90)
    litter = folder / "__MACOSX" / "celeba"
    litter.mkdir(parents=True)
    for path in (folder / ".DS_Store", below / "._000001.jpg", litter / "._000002.jpg"):
        path.write_bytes(b"\x00\x05\x16\x07")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache folder of the test's own."""
    monkeypatch.setattr(helpers, "CACHE", tmp_path / "cache")
    return helpers.CACHE
