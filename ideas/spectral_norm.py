"""Spectral norm: in D, spectral normalisation takes the place of batch norm.

Each layer's weights are divided by their largest singular value, which bounds how fast D's
answer can change with its input (Miyato et al., 2018, https://arxiv.org/abs/1802.05957).
"""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def modify(D: nn.Module, G: nn.Module) -> None:
    """Take D's batch norm out, and normalise all its layers."""
    for block in (D.conv2, D.conv3, D.conv4):
        block[0].bias = nn.Parameter(torch.zeros(block[0].out_channels))
        block[1] = nn.Identity()
    for layer in [m for m in D.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
        spectral_norm(layer)
