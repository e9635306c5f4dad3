"""Balanced drawing: light and dark faces are drawn equally often, by the typology angle.

Measured at 32 channels, 6,072 steps: distance 31.8 (one seed), plain 16.6 to 19.4 (three).
"""

from types import ModuleType

import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

import helpers


def names(lesson: ModuleType) -> None:
    """Draw the training images by weights, where there are any; an epoch is as long as before."""
    loader = getattr(lesson, "celeba_train_loader", None)
    if loader is None:  # faces are drawn from weights that were trained with this
        return
    weights = torch.from_numpy(helpers.balancing_weights(loader.dataset.images))
    sampler = WeightedRandomSampler(weights, len(weights), generator=loader.generator)
    lesson.celeba_train_loader = DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=sampler,
        drop_last=loader.drop_last,
        generator=loader.generator,
        collate_fn=loader.collate_fn,
    )
