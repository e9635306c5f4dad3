"""Relativistic pairing: D says of a real and a generated picture which of them is the real one.

The losses are of differences of two logits. So it is not enough for G to have its picture taken for
real: D must take it for more real than a photograph (Jolicoeur-Martineau, 2018,
https://arxiv.org/abs/1807.00734).
"""

from types import ModuleType

from torch import Tensor, nn


def names(lesson: ModuleType) -> None:
    """Compare the pictures of a batch in pairs, in both losses."""

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return lesson.real_loss(D(real_images) - D(fake_images))

    def generator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return lesson.real_loss(D(fake_images) - D(real_images))

    lesson.discriminator_loss, lesson.generator_loss = discriminator_loss, generator_loss
