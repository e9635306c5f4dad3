"""FID and KID, from the features of the Inception network."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from faces import files
from faces.download import download, is_reachable
from faces.progress import Progress

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def inception_distances(
    images: np.ndarray, others: np.ndarray, features: nn.Module | None = None
) -> dict[str, float]:
    """FID and KID between two sets of pictures, from the features of the Inception network.

    Fréchet Inception distance: Heusel et al., 2017, https://arxiv.org/abs/1706.08500. Kernel
    Inception distance (times 1000): Bińkowski et al., 2018, https://arxiv.org/abs/1801.01401. Both
    are 0 for equal distributions; FID is too large for small sets, KID is not. Both are those of
    ``torchmetrics``. The network's weights (96 MB) are downloaded at the first use.

    Args:
        images: uint8 array (n, H, W, 3).
        others: uint8 array (m, H, W, 3).
        features: another network, uint8 (N, 3, H, W) -> (N, ``num_features``).

    Returns:
        "FID" and "KID", the mean over subsets of up to 1000 pictures.

    Raises:
        OSError: if the weights are not there and cannot be downloaded whole.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    from torchmetrics.image.kid import KernelInceptionDistance

    if features is None:
        is_there = (files.CACHE / Path(INCEPTION_URL).name).is_file()
        if not is_there and not is_reachable(INCEPTION_URL):
            raise OSError(f"{INCEPTION_URL} cannot be reached.")
        try:
            weights = download(INCEPTION_URL, INCEPTION_SHA256)
        except ValueError as error:
            raise OSError(str(error)) from error
        features = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
        features.num_features = 2048
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = features.to(device)
    seen = nn.Identity()  # the metrics get what the network made of the pictures, made once
    seen.num_features = features.num_features
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        fid = FrechetInceptionDistance(seen).to(device)
        kid = KernelInceptionDistance(seen, subset_size=min(len(images), len(others), 1000))
    progress = Progress(total=len(images) + len(others), desc="Inception", unit=" images")
    with progress, torch.inference_mode():
        for pictures, real in [(images, True), (others, False)]:
            for start in range(0, len(pictures), 50):
                batch = torch.from_numpy(np.array(pictures[start : start + 50])).to(device)
                values = features(batch.permute(0, 3, 1, 2))
                fid.update(values, real=real)
                kid.update(values.cpu(), real=real)
                progress.update(len(batch))
    return {"FID": fid.compute().item(), "KID": 1000 * kid.compute()[0].item()}
