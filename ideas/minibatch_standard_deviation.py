"""Minibatch standard deviation: D is told how much the images of a batch differ.

So it notices a generator whose images are all alike (Karras et al., 2018,
https://arxiv.org/abs/1710.10196, section 3). In the paper one more plane of the last feature maps
says so. Here batch norm would hide it, so it goes from the first block, which has none, to the
last layer.
"""

import torch
from torch import Tensor, nn


def modify(D: nn.Module, G: nn.Module) -> None:
    """Let D's last layer have one more input."""

    def measure(block: nn.Module, inputs: tuple[Tensor], x: Tensor) -> None:
        D.deviation = (x.float().var(dim=0, correction=0) + 1e-8).sqrt().mean()

    def append(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        return torch.cat([x, D.deviation.to(x.dtype).expand(len(x), 1)], dim=1)

    D.fc = nn.Linear(D.fc.in_features + 1, 1)
    nn.init.normal_(D.fc.weight, mean=0.0, std=0.02)
    nn.init.zeros_(D.fc.bias)
    D.conv1.register_forward_hook(measure)
    D.fc.register_forward_pre_hook(append)
