"""Falling rates: over the last third of the steps both learning rates fall to 0, along a line.

Towards the end the networks then change less and less. A run that is resumed with more epochs goes
by the new end: its rates rise again at first.
"""

from types import ModuleType

from torch import Tensor, nn

SHARE = 1 / 3  # of the steps


def patch(notebook: ModuleType) -> None:
    """Set the rates of the next step just after each step, with the average of G's weights."""
    update_ema = notebook.update_ema

    def update_ema_and_rates(G_ema: nn.Module, G: nn.Module, n_steps: int) -> None:
        update_ema(G_ema, G, n_steps)
        n_all = notebook.run.n_epochs * len(notebook.celeba_train_loader)
        factor = min(1.0, (1 - n_steps / n_all) / SHARE)
        for optimizer in (notebook.d_optimizer, notebook.g_optimizer):
            for group in optimizer.param_groups:
                rate = factor * float(optimizer.defaults["lr"])
                if isinstance(group["lr"], Tensor):  # a recorded step reads this tensor
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    notebook.update_ema = update_ema_and_rates
