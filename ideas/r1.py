"""R1: D is held to a small slope at real images, so that it cannot draw a sharp line around each.

The penalty is the squared gradient of D's logit with respect to the image (Mescheder et al., 2018,
https://arxiv.org/abs/1801.04406). Batch norm stays in D. It mixes the images of a batch, so the
gradient, of the batch's summed logits, is only about that of each image's own. ideas/README.md says
what other weights of the penalty did.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

GAMMA = 0.05


def patch(notebook: ModuleType) -> None:
    """Add the penalty to D's loss."""
    plain = notebook.discriminator_loss

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        real_images = real_images.detach().requires_grad_()
        logits = D(real_images)  # once: they serve the loss and the slope
        loss = plain(lambda x: logits if x is real_images else D(x), real_images, fake_images)
        return loss + GAMMA / 2 * squared_slope(logits, real_images)

    notebook.discriminator_loss = discriminator_loss


def squared_slope(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of the gradient of logits (N, 1) with respect to images (N, 3, H, W)."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
