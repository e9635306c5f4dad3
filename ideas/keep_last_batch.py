"""Keep the last batch: an epoch ends with what is left of the images, however few they are.

Measured at 32 channels, 6,072 steps: distance 15.7 (one seed), plain 16.6 to 19.4 (three).
"""

from types import ModuleType

from torch.utils.data import DataLoader


def names(lesson: ModuleType) -> None:
    """Take the same images in the same order, without ``drop_last``."""
    loader = getattr(lesson, "celeba_train_loader", None)
    if loader is None:  # faces are drawn from weights that were trained with this
        return
    lesson.celeba_train_loader = DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=loader.sampler,
        generator=loader.generator,
        collate_fn=loader.collate_fn,
    )
