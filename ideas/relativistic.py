"""Relativistic pairing: D says of a real and a generated image which of them is the real one.

The losses are of differences of two logits. So it is not enough for G to have its image taken for
real: D must take it for more real than a photograph (Jolicoeur-Martineau, 2018,
https://arxiv.org/abs/1807.00734).
"""

from types import ModuleType

from torch import Tensor, nn


def patch(notebook: ModuleType) -> None:
    """Compare the images of a batch in pairs, in both losses."""

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return notebook.real_loss(D(real_images) - D(fake_images))

    def generator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return notebook.real_loss(D(fake_images) - D(real_images))

    notebook.discriminator_loss, notebook.generator_loss = discriminator_loss, generator_loss
