"""Deeper: each inner block has one more convolution, 3x3, with a shortcut around it.

The convolution lies on a branch that starts at zero, since the batch norm at its end has the weight
0: a network begins as if it had none, and takes to it as it learns (He et al., 2016,
https://arxiv.org/abs/1603.05027; Goyal et al., 2017, https://arxiv.org/abs/1706.02677, section
5.1; in GANs: Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028).
"""

from torch import Tensor, nn


class Residual(nn.Module):
    """Activation, 3x3 convolution and batch norm, added to what goes in."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(channels)
        nn.init.normal_(self.conv.weight, mean=0.0, std=0.02)
        nn.init.zeros_(self.batch_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.batch_norm(self.conv(self.activation(x)))


def modify(D: nn.Module, G: nn.Module) -> None:
    """Put a residual layer before the activation of each block that has batch norm."""
    for block in (D.conv2, D.conv3, D.conv4, G.deconv1, G.deconv2, G.deconv3):
        block.insert(2, Residual(block[0].out_channels, block[2]))
