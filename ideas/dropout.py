"""Dropout: a quarter of the activations of each of D's blocks are set to 0 at random.

Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html
"""

from torch import nn


def modify(D: nn.Module, G: nn.Module) -> None:
    """Append a dropout layer to each of D's blocks."""
    for block in (D.conv1, D.conv2, D.conv3, D.conv4):
        block.append(nn.Dropout(0.25))
