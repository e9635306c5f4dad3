"""Some augmentation: three in ten images that D sees are changed at random, the others are not.

Fewer changes than in differentiable_augmentation.py keep the photographs from being learnt by
heart with less harm to the faces (Zhao et al., 2020, https://arxiv.org/abs/2006.10738; by shares:
Karras et al., 2020, https://arxiv.org/abs/2006.06676).
"""

import torch
from torch import Tensor, nn

from faces.notebook import load_ideas

(augmentation,) = load_ideas("differentiable_augmentation").values()
SHARE = 0.3


def modify(D: nn.Module, G: nn.Module) -> None:
    """Put the changes before D's first layer."""
    D.register_forward_pre_hook(lambda D, inputs: (augment_some(*inputs),))


def augment_some(x: Tensor) -> Tensor:
    """Change each image (N, 3, size, size) with probability SHARE."""
    is_changed = torch.rand(len(x), 1, 1, 1, device=x.device) < SHARE
    return torch.where(is_changed, augmentation.augment(x), x)
