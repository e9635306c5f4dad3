"""Conditional: G and D are told how light each face is, by the rank of its angle in properties.py.

G takes it from the first latent number: -1 is the darkest, 1 the lightest photograph, a class of
the angle an interval as long as its share. D has it as a fourth channel (Mirza and Osindero, 2014,
https://arxiv.org/abs/1411.1784). Ideas that look at images, or draw other latents, do not go
together with it: they would take the rank for a colour, or change it.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from faces.images import FaceDataset, to_uint8
from faces.properties import ita


def loader_options(loader: DataLoader) -> dict[str, Dataset]:
    """Hand the ranks, from 0 to 1, out with the images (n, 4, H, W)."""
    images = loader.dataset.images  # uint8 (n, H, W, 3)
    ranks = np.broadcast_to(ranks_of(images)[:, None, None, None], (*images.shape[:3], 1))
    return {"dataset": FaceDataset(np.concatenate([images, ranks], axis=3))}


def modify(D: nn.Module, G: nn.Module) -> None:
    """Let D see four channels; while G trains, it says in the fourth what it was asked for."""
    D.conv1[0] = nn.Conv2d(4, D.conv1[0].out_channels, 4, stride=2, padding=1)
    nn.init.normal_(D.conv1[0].weight, std=0.02)
    nn.init.zeros_(D.conv1[0].bias)
    D.register_forward_pre_hook(lambda D, x: x if x[0].shape[1] == 4 else ranked(*x))
    G.register_forward_hook(lambda G, z, x: append(x, z[0][:, 0]) if G.training else x)


def ranked(x: Tensor) -> Tensor:
    """Rank images in [-1, 1] that come without ranks among themselves."""
    return append(x, torch.from_numpy(ranks_of(to_uint8(x))) / 127.5 - 1)


def ranks_of(images: np.ndarray) -> np.ndarray:
    """Rank faces from 0 for the darkest to 255, uint8 (n,); those without an angle come last."""
    ranks = ita(images).argsort().argsort()
    return (ranks * 256 // len(images)).astype(np.uint8)


def append(x: Tensor, values: Tensor) -> Tensor:
    """Append a channel to images, of one value for each."""
    return torch.cat([x, values.to(x).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], dim=1)
