"""R1: D is held to a small slope at real images, so that it cannot draw a sharp line around each.

The penalty is the squared gradient of D's logit with respect to the image (Mescheder et al., 2018,
https://arxiv.org/abs/1801.04406). Batch norm stays in D. It mixes the pictures of a batch, so the
gradient, of the batch's summed logits, is only about that of each picture's own. No other weight of
the penalty was tried.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

GAMMA = 0.05


def names(lesson: ModuleType) -> None:
    """Add the penalty to D's loss."""
    plain = lesson.discriminator_loss

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return plain(D, real_images, fake_images) + GAMMA / 2 * squared_slope(D, real_images)

    lesson.discriminator_loss = discriminator_loss


def squared_slope(D: nn.Module, images: Tensor) -> Tensor:
    """Mean squared norm of the gradient of D's logits with respect to images (N, 3, size, size)."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
