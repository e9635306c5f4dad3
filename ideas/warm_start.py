"""Warm start: G begins with the weights that come with the project, and goes on learning.

D begins anew, and would spoil at first what G can do already. So D learns alone for an eighth of
the steps; over the next eighth G's learning rate rises to its full value. Together with
falling_rates it must come after it. It needs images of 32x32 or 64x64 pixels.
"""

from types import ModuleType

from torch import Tensor, nn, optim

from faces.files import WEIGHTS, WEIGHTS_64
from faces.generator import read_weights

SHARE = 1 / 8  # of the steps


def patch(notebook: ModuleType) -> None:
    """Give G the sizes of the weights, and hold its rate back at first."""
    notebook.z_size, notebook.g_conv_dim = 100, 64
    build_optimizers, update_ema = notebook.build_optimizers, notebook.update_ema

    def build_resting(D: nn.Module, G: nn.Module) -> tuple[optim.Optimizer, optim.Optimizer]:
        d_optimizer, g_optimizer = build_optimizers(D, G)
        scale_rate(g_optimizer, 0.0)
        return d_optimizer, g_optimizer

    def update_ema_and_rate(G_ema: nn.Module, G: nn.Module, n_steps: int) -> None:
        update_ema(G_ema, G, n_steps)
        n_alone = SHARE * notebook.run.n_epochs * len(notebook.celeba_train_loader)
        if n_steps <= 2 * n_alone + 1:
            scale_rate(notebook.g_optimizer, min(1.0, max(0.0, n_steps / n_alone - 1)))

    notebook.build_optimizers, notebook.update_ema = build_resting, update_ema_and_rate


def modify(D: nn.Module, G: nn.Module) -> None:
    """Put the weights into G."""
    size = 16 * G.start[1]
    if size not in (32, 64):
        raise ValueError(
            f"image_size is {size}: the idea warm_start needs 32 or 64, the sizes of the weights "
            "that come with the project."
        )
    if not G.fc.weight.is_meta:  # else only its layout is asked for
        state, _ = read_weights(WEIGHTS if size == 32 else WEIGHTS_64)
        G.load_state_dict(state)


def scale_rate(optimizer: optim.Optimizer, factor: float) -> None:
    """Set an optimizer's learning rate to so many times that which it was made with."""
    rate = factor * float(optimizer.defaults["lr"])
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a recorded step reads this tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
