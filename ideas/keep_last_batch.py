"""Keep the last batch: an epoch ends with what is left of the images, however few they are.

Measured at 32 channels, 6,084 steps: distance 15.7 (one seed), plain 16.6 to 19.4 (three); in
features 572, plain 511 to 593.
"""

from torch.utils.data import DataLoader


def loader(plain: DataLoader) -> dict[str, bool]:
    """Take the same images in the same order, without ``drop_last``."""
    return {"drop_last": False}
