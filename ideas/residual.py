"""Residual blocks: each inner block has one more convolution, with a shortcut around it.

He et al., 2016, https://arxiv.org/abs/1512.03385; in GANs: Gulrajani et al., 2017,
https://arxiv.org/abs/1704.00028
"""

from torch import Tensor, nn
from torch.nn.functional import leaky_relu


class Residual(nn.Module):
    """3x3 convolution and batch norm, a shortcut around both, then leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(channels)
        nn.init.normal_(self.conv.weight, mean=0.0, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x + self.batch_norm(self.conv(x)), 0.2)


def modify(D: nn.Module, G: nn.Module) -> None:
    """Append a residual layer to each block that has batch norm."""
    for block in (D.conv2, D.conv3, D.conv4, G.deconv1, G.deconv2, G.deconv3):
        block.append(Residual(block[0].out_channels))
