"""Resize-convolution: G doubles each pixel, then convolves, in place of a transposed convolution.

All output pixels are reached alike, so there are no chequered patterns (Odena et al., 2016,
https://distill.pub/2016/deconv-checkerboard/).
"""

from torch import Tensor, nn
from torch.nn.functional import interpolate


class ResizeConvolution(nn.Conv2d):
    """Nearest neighbour to twice the height and width, then a 3x3 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(interpolate(x, scale_factor=2))


def modify(D: nn.Module, G: nn.Module) -> None:
    """Replace all transposed convolutions of G; their biases stay."""
    for block in (G.deconv1, G.deconv2, G.deconv3):
        block[0] = instead_of(block[0])
    G.deconv4 = instead_of(G.deconv4)


def instead_of(layer: nn.ConvTranspose2d) -> ResizeConvolution:
    """Make a layer with fresh weights for the same channels."""
    new = ResizeConvolution(layer.in_channels, layer.out_channels, 3, padding=1, bias=False)
    nn.init.normal_(new.weight, mean=0.0, std=0.02)
    new.bias = layer.bias
    return new
