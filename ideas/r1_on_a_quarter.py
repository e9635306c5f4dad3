"""R1 on a quarter: the penalty of R1, from a quarter of the photographs in each batch.

R1 makes a step slow, since it goes through D's gradient once more. StyleGAN2 applies it to whole
batches in every 16th step only (Karras et al., 2020, https://arxiv.org/abs/1912.04958, section
3.1). Here it is applied in each step, to a quarter of the batch: that saves half of its work, and
all steps stay alike, so that they can be recorded on a CUDA device. The penalty is a mean over
images, so its weight stays the same, though batch norm sees fewer images.
"""

from types import ModuleType

from torch import Tensor, nn

from faces.notebook import load_ideas

r1 = load_ideas("r1")["r1"]


def patch(notebook: ModuleType) -> None:
    """Add the penalty to D's loss."""
    plain = notebook.discriminator_loss

    def discriminator_loss(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        loss = plain(D, real_images, fake_images)
        n = -(-len(real_images) // 4)  # of several processes, each takes a quarter of its shard
        part = real_images[:n].detach().requires_grad_()
        return loss + r1.GAMMA / 2 * r1.squared_slope(D(part), part)

    notebook.discriminator_loss = discriminator_loss
