"""Has a training failed? A discriminator that has won, samples that have collapsed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# What D may answer: logits, or values near 0 and 1.
_ANSWERS = [-20.0, -10.0, -5.0, *(n / 4 for n in range(-12, 13)), 5.0, 10.0, 20.0]


def signs_of_failure(
    d_losses: Sequence[float], pictures: np.ndarray, loss_range: tuple[float, float]
) -> str:
    """Name the signs of failure in an epoch, each after a semicolon; "" if there are none.

    Args:
        d_losses: D's losses in the epoch.
        pictures: samples at its end, uint8 (n, H, W, 3).
        loss_range: of D's loss.
    """
    sure, guess = loss_range
    signs = ""
    # With D(x) = 0.99 for all real images and 0.01 for all generated ones, cross entropy is 1.4 %
    # of the range above its minimum. A run without R1 ended at 15 %.
    if np.mean(d_losses) < sure + 0.015 * (guess - sure):
        signs += "; the discriminator has won"
    # Two faces, real or well drawn, differ by 60 to 80 grey levels (root mean square).
    rows = torch.from_numpy(pictures).flatten(1).float()
    if torch.pdist(rows).mean() / rows.shape[1] ** 0.5 < 20:
        signs += "; the samples have collapsed to one"
    return signs


def loss_range(discriminator_loss: Callable[..., Tensor]) -> tuple[float, float]:
    """Find how small D's loss gets, from the answers of a stand-in for D.

    Args:
        discriminator_loss: takes D, real images and generated images, (N, 3, H, W) each; returns a
            scalar. It may draw random numbers: the CPU's random state is left as it was.

    Returns:
        D's loss when it is sure and right, and its smallest when D answers the same to all images;
        NaN, NaN if it cannot be had from answers alone.
    """
    real_images, fake_images = torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)

    def loss(real: float, fake: float) -> float:
        def D(x: Tensor) -> Tensor:
            return fake + (real - fake) * x.mean((1, 2, 3)).unsqueeze(1)  # (N, 1)

        return float(discriminator_loss(D, real_images, fake_images))

    try:
        with torch.random.fork_rng(devices=[]):
            real = fake = _ANSWERS[0]
            for _ in range(2):  # one answer after the other, since their best values hardly depend
                real = min(_ANSWERS, key=lambda answer: loss(answer, fake))
                fake = min(_ANSWERS, key=lambda answer: loss(real, answer))
            return loss(real, fake), min(loss(answer, answer) for answer in _ANSWERS)
    except Exception:  # a loss may ask D for more than answers, such as its features
        return math.nan, math.nan
