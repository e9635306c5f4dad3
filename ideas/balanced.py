"""Balanced drawing: light and dark photographs are drawn equally often, by classes of their ITA.

The individual typology angle is what faces/properties.py says.
"""

import torch
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from faces.properties import balancing_weights


def loader_options(loader: DataLoader) -> dict[str, Sampler]:
    """Draw the training images by weights; an epoch is as long as before."""
    weights = torch.from_numpy(balancing_weights(loader.dataset.images))
    return {"sampler": WeightedRandomSampler(weights, len(weights), generator=loader.generator)}
