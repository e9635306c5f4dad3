"""Label smoothing: for D, real images have the label 0.9.

D is no longer rewarded for being ever more sure of its photographs (Salimans et al., 2016,
https://arxiv.org/abs/1606.03498, section 3.4). G's loss keeps the label 1.
"""

from types import ModuleType

from torch import Tensor, nn


def patch(notebook: ModuleType) -> None:
    """Change D's loss."""

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        return notebook.real_loss(D(real_images), 0.9) + notebook.fake_loss(D(fake_images))

    notebook.discriminator_loss = discriminator_loss
