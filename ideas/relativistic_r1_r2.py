"""Relativistic pairing with R1 and R2: D's slope is small at real and at generated images.

With both penalties relativistic pairing converges, and D needs no batch norm (Huang et al., 2024,
https://arxiv.org/abs/2501.05441). See relativistic.py and r1.py for the parts. The penalties have
r1.py's weight, chosen for a D with batch norm; no other was tried.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from faces.notebook import load_ideas

relativistic, r1 = load_ideas("relativistic+r1").values()


def patch(notebook: ModuleType) -> None:
    """Replace both losses, and add both penalties to D's."""
    relativistic.patch(notebook)
    r1.patch(notebook)
    with_r1 = notebook.discriminator_loss

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        fake_images = fake_images.detach().requires_grad_()
        logits = D(fake_images)
        loss = with_r1(lambda x: logits if x is fake_images else D(x), real_images, fake_images)
        return loss + r1.GAMMA / 2 * r1.squared_slope(logits, fake_images)

    notebook.discriminator_loss = discriminator_loss


def modify(D: nn.Module, G: nn.Module) -> None:
    """Take D's batch norm out; its first weights pass on activations of the same size instead."""
    for block in (D.conv2, D.conv3, D.conv4):
        block[0].bias = nn.Parameter(torch.zeros(block[0].out_channels))
        block[1] = nn.Identity()
    for block in (D.conv1, D.conv2, D.conv3, D.conv4):
        nn.init.kaiming_normal_(block[0].weight, a=0.2)
