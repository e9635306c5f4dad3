"""Hinge: D's loss is 0 for a logit that is right by at least 1; G moves its logits up, for ever.

D does not learn from images that it is sure of (Lim and Ye, 2017,
https://arxiv.org/abs/1705.02894).
"""

from types import ModuleType

from torch import Tensor, nn
from torch.nn.functional import relu


def patch(notebook: ModuleType) -> None:
    """Replace both losses."""

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return relu(1 - D(real_images)).mean() + relu(1 + D(fake_images)).mean()

    def generator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return -D(fake_images).mean()

    notebook.discriminator_loss, notebook.generator_loss = discriminator_loss, generator_loss
