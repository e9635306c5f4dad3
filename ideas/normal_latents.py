"""Normal latents: latent vectors come from N(0, 1), instead of evenly from -1 to 1."""

from types import ModuleType

import torch
from torch import Tensor


def patch(notebook: ModuleType) -> None:
    """Draw other latents."""

    def sample_z(n: int) -> Tensor:
        return torch.randn(n, notebook.z_size, device=notebook.device)

    notebook.sample_z = sample_z
