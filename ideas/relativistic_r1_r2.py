"""Relativistic pairing with R1 and R2: D's slope is small at real and at generated pictures.

With both penalties relativistic pairing converges, and D needs no batch norm (Huang et al., 2024,
https://arxiv.org/abs/2501.05441). See relativistic.py and r1.py for the parts. The penalties have
r1.py's weight, chosen for a D with batch norm; no other was tried.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from faces.ideas import load_ideas

relativistic, r1 = load_ideas("relativistic+r1").values()


def names(lesson: ModuleType) -> None:
    """Replace both losses, and add both penalties to D's."""
    relativistic.names(lesson)
    r1.names(lesson)
    with_r1 = lesson.discriminator_loss

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        r2 = r1.GAMMA / 2 * r1.squared_slope(D, fake_images)
        return with_r1(D, real_images, fake_images) + r2

    lesson.discriminator_loss = discriminator_loss


def networks(D: nn.Module, G: nn.Module) -> None:
    """Take D's batch norm out; its first weights pass on activations of the same size instead."""
    for block in (D.conv2, D.conv3, D.conv4):
        block[0].bias = nn.Parameter(torch.zeros(block[0].out_channels))
        block[1] = nn.Identity()
    for block in (D.conv1, D.conv2, D.conv3, D.conv4):
        nn.init.kaiming_normal_(block[0].weight, a=0.2)
