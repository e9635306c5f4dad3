"""Balanced drawing: light and dark faces are drawn equally often, by the typology angle."""

import torch
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

import helpers


def loader(plain: DataLoader) -> dict[str, Sampler]:
    """Draw the training images by weights; an epoch is as long as before."""
    weights = torch.from_numpy(helpers.balancing_weights(plain.dataset.images))
    return {"sampler": WeightedRandomSampler(weights, len(weights), generator=plain.generator)}
