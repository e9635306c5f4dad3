"""How close generated faces are to real ones, cheaply enough for each epoch; FID and KID."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from faces import files
from faces.data import download, is_reachable
from faces.images import FaceDataset, Images, blocks, to_uint8
from faces.parallel import Progress, find_device

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Evaluator:
    """Measures how close a generator's faces are to real ones, cheaply enough for each epoch.

    Args:
        train_data: the images that it learns from, (N, H, W, 3). Where they lie on a device, that
            copy is used.
        test_data: real images that it does not learn from, (M, H, W, 3), M >= 2.

    Attributes:
        size: how many faces are compared with as many held-out images, up to 1000.
        baseline: the measures of training images, as if a generator had drawn them: the best that
            a generator can hope for, ``baseline_for(size)``.
        std: the standard deviation of each measure, from one set of ``size`` of them to another.

    Raises:
        ValueError: if fewer than two images are held out.
    """

    def __init__(self, train_data: FaceDataset, test_data: FaceDataset) -> None:
        if len(test_data) < 2:
            raise ValueError(f"{len(test_data)} images are held out: at least 2 are needed.")
        random = np.random.default_rng(0)
        self.size = min(1000, len(train_data), len(test_data))
        self._train = train_data.pixels
        self._test = test_data.pixels[random.permutation(len(test_data))[: 5 * self.size]]
        self._device = self._train.device if isinstance(self._train, Tensor) else "cpu"
        self._chosen = random.permutation(len(train_data))[: 5 * self.size]
        sets = self._train_sets(self.size)
        self.baseline = _means(sets)
        self.std = {n: float(np.std(v, ddof=min(1, len(v) - 1))) for n, v in sets.items()}

    def __call__(self, faces: Tensor) -> dict[str, float]:
        """Measure faces of a generator, float (n, 3, H, W) in [-1, 1].

        Those of another size than the real ones are resized first.

        Returns:
            "swd": the mean of the sliced Wasserstein distances from held-out images over the
            levels of detail, and "swd_SIDE", that of each level; "diversity"; "nearest": the median
            distance from an image to its nearest training image, in grey levels. If ``n`` is
            several times ``size``, each is the mean over sets of that size, up to five.
        """
        images = to_uint8(v2.functional.resize(faces, self._test.shape[1], antialias=True))
        return _means(self._sets(images, len(images), faces.device))

    def baseline_for(self, n: int) -> dict[str, float]:
        """What training images have in the place of ``n`` of a generator, the mean over 5 sets.

        The held-out images are those that ``n`` are compared with: a distance depends on them.
        """
        if n >= self.size == len(self._test):  # the same images again
            return self.baseline
        return _means(self._train_sets(n))

    def _train_sets(self, n: int) -> dict[str, list[float]]:
        own = self._chosen[: 5 * min(n, self.size)]
        return self._sets(self._train[own], n, self._device, own)

    def _sets(
        self, images: Images, n: int, device: torch.device | str, own: np.ndarray | None = None
    ) -> dict[str, list[float]]:
        """Measure up to five sets of images, beside the held-out images for ``n`` of them."""
        size = min(n, self.size)
        n_others = min(min(5, n // size) * size, len(self._test))
        sets = defaultdict(list)
        for start in range(0, min(len(images), 5 * size) - size + 1, size):
            part = images[start : start + size]
            places = np.arange(start, start + size) % n_others
            others = self._test[places]  # each set has others, as far as there are some
            distances = sliced_wasserstein(part, others, device=device)
            measures = {"swd": sum(distances.values()) / len(distances)}
            measures |= {f"swd_{side}": distance for side, distance in distances.items()}
            itself = None if own is None else own[start : start + size][:200]
            _, nearest = nearest_images(part[:200], self._train, itself, device)
            measures |= {"diversity": diversity(part, device), "nearest": np.median(nearest)}
            for name, value in measures.items():
                sets[name].append(value)
        return sets


def _means(sets: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in sets.items()}


def sliced_wasserstein(
    images: Images, others: Images, device: torch.device | str = "cpu"
) -> dict[int, float]:
    """Sliced Wasserstein distance between two sets of images, at each level of detail.

    Both sets are taken apart into a Laplacian pyramid, and each level into patches of 7x7 pixels,
    at places drawn at random but always the same. Each set's patches are scaled to mean 0 and
    variance 1 in each colour, so that a tint or a contrast that all images share does not count.
    The distance is the mean, over random directions, of the Wasserstein distance between the two
    sets of patches projected on a direction. Karras et al., Progressive growing of GANs, 2018,
    https://arxiv.org/abs/1710.10196, section 5, with 128 patches an image (here 32) and 512
    directions (here 128).

    Args:
        images, others: uint8 arrays or tensors (n, H, W, 3), H = W, at least 16. Each
            level has half the side of the one before, down to 16 or less.
        device: where to compute.

    Returns:
        The distance times 1000 by the side of the level's images, the finest first. Between two
        sets drawn from the same images it is not 0, but shrinks as they grow: compare it with
        that baseline.

    Raises:
        ValueError: if the two sets do not have the same shape.
    """
    if images.shape != others.shape:
        shapes = f"{images.shape} and {others.shape}"
        raise ValueError(f"The sets of images have the shapes {shapes}: they must be the same.")
    random = torch.Generator().manual_seed(0)
    distances = {}
    pyramids = [_laplacian_pyramid(images, device) for images in (images, others)]
    for level, other in zip(*pyramids, strict=True):
        n, _, side, _ = level.shape
        corners = torch.randint(side - 6, (2, 2, n, 32), generator=random)
        directions = torch.randn(3 * 7 * 7, 128, generator=random)
        directions /= directions.norm(dim=0)
        corners, directions = corners.to(device), directions.to(device)
        a, b = (
            _sorted((_patches_at(images, *places) @ directions).T.contiguous())
            for images, places in [(level, corners[0]), (other, corners[1])]
        )  # (128, n * 32) each
        distances[side] = 1000 * (a - b).abs().mean().item()
    return distances


def _sorted(rows: Tensor) -> Tensor:
    """Sort each row; on a processor in place, by NumPy, four times as fast as PyTorch."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    with ThreadPool(torch.get_num_threads()) as pool:  # NumPy sorts without Python's lock
        pool.map(np.ndarray.sort, np.array_split(rows.numpy(), torch.get_num_threads()))
    return rows


def _to_tensor(images: Images, device: torch.device | str) -> Tensor:
    """Images, uint8 (n, H, W, 3), as float (n, 3, H, W) in [0, 255] on a device."""
    images = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    return images.to(device).permute(0, 3, 1, 2).float()


def _laplacian_pyramid(images: Images, device: torch.device | str = "cpu") -> list[Tensor]:
    """Take images apart by detail; the last level, of 16x16 pixels or less, is what remains."""
    x = _to_tensor(images, device)
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
    kernel = row.outer(row).expand(3, 1, 5, 5)

    def smooth(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), kernel, stride=stride, groups=3)

    levels = []
    while x.shape[-1] > 16:
        smaller = smooth(x, kernel, stride=2)
        spread = torch.zeros_like(x)
        spread[:, :, ::2, ::2] = smaller
        levels.append(x - smooth(spread, 4 * kernel, stride=1))
        x = smaller
    return [*levels, x]


def _patches_at(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Cut patches of 7x7 out of images (n, 3, H, W), all scaled alike: (n * n_patches, 147)."""
    cut = images.unfold(2, 7, 1).unfold(3, 7, 1)  # (n, 3, H - 6, W - 6, 7, 7), a view
    which = torch.arange(len(images), device=top.device)[:, None]
    patches = cut[which, :, top, left].flatten(0, 1)
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp(min=1e-3)).flatten(1)


def diversity(images: Images, device: torch.device | str = "cpu") -> float:
    """Mean difference between two images of a set, 1 - MS-SSIM: 0 if all are the same.

    MS-SSIM (Wang et al., 2003) compares brightness, contrast and structure of two images at three
    scales; Odena et al. use it for the diversity of generated images (2017,
    https://arxiv.org/abs/1610.09585). The pairs are each image of the first half with that of the
    second half; the window is made smaller than usual, to fit images of 32x32.

    Args:
        images: uint8 array or tensor (n, H, W, 3) in random order, n >= 2, H and W at least 32.
        device: where to compute.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    images = _to_tensor(images, device)
    weights = torch.tensor([0.0448, 0.2856, 0.3001])  # the first three of five in the paper
    similarity = multiscale_structural_similarity_index_measure(
        *images[: len(images) // 2 * 2].chunk(2),
        sigma=0.8,  # makes a window of 7 pixels, which fits into the smallest level
        kernel_size=7,
        betas=tuple((weights / weights.sum()).tolist()),
        data_range=255.0,
        normalize="relu",
    )
    return 1 - similarity.item()


def nearest_images(
    samples: Images,
    images: Images,
    other_than: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Find each sample's nearest image, by the root mean square difference of their pixels.

    Args:
        samples, images: uint8 arrays or tensors (n, H, W, 3) and (N, H, W, 3).
        other_than: for each sample the index of an image that does not count (n,): itself.
        device: where to compute.

    Returns:
        The nearest images' indices (n,) and their distances (n,), in grey levels from 0 to 255;
        infinite where there is no image that counts.
    """
    flat = _to_tensor(samples, device).flatten(1)
    smallest = torch.full((len(flat),), math.inf, device=device)
    nearest = torch.zeros(len(flat), dtype=torch.int64, device=device)
    start = 0
    for part in blocks(images):
        block = _to_tensor(part, device).flatten(1)
        distances = torch.cdist(flat, block)
        if other_than is not None:
            own = torch.from_numpy(other_than - start).to(device)[:, None]
            distances.masked_fill_(own == torch.arange(len(block), device=device), math.inf)
        values, indices = distances.min(dim=1)
        nearest = torch.where(values < smallest, indices + start, nearest)
        smallest = torch.minimum(values, smallest)
        start += len(block)
    found = _to_tensor(images[nearest.cpu().numpy()], device).flatten(1)  # cdist rounds
    exact = (flat - found).square().mean(dim=1).sqrt().where(smallest.isfinite(), math.inf)
    return nearest.cpu().numpy(), exact.cpu().numpy()


# ------------------------------------------------------------------------ the features of a network


def frechet_and_kernel(features: Tensor, others: Tensor) -> tuple[float, float]:
    """Fréchet and kernel distance of two sets of images, from a network's features of them.

    The first is the Fréchet distance of normal distributions with the sets' means and covariances
    (Heusel et al., 2017, https://arxiv.org/abs/1706.08500); it is too large for small sets. The
    second is the unbiased squared maximum mean discrepancy with the kernel (x y / d + 1)^3, times
    1000 (Bińkowski et al., 2018, https://arxiv.org/abs/1801.01401). Both are those of
    ``torchmetrics``, and 0 for equal distributions.

    Args:
        features, others: float (n, d) and (m, d). Of the larger set, the kernel distance takes the
            first images only.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    taken = nn.Identity()  # the metrics get what a network made of the images
    taken.num_features = features.shape[1]
    n = min(len(features), len(others))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        frechet = FrechetInceptionDistance(taken).set_dtype(torch.float64).to(features.device)
        kernel = KernelInceptionDistance(taken, subsets=1, subset_size=n)
    for metric, places in ((frechet, slice(None)), (kernel, slice(n))):
        for values, real in ((features[places], True), (others[places], False)):
            metric.update(values.to(metric.device).double(), real=real)
    with torch.random.fork_rng(devices=[]):  # the kernel's subset, which is all, is drawn
        return frechet.compute().item(), 1000 * kernel.compute()[0].item()


def inception_distances(images: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """FID and KID between two sets of images, from the features of the Inception network.

    See ``frechet_and_kernel``. The network's weights (96 MB) are downloaded at the first use.

    Args:
        images: uint8 array (n, H, W, 3).
        others: uint8 array (m, H, W, 3).

    Returns:
        "FID" and "KID", the latter times 1000.

    Raises:
        OSError: if the weights are not there and cannot be downloaded whole.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    is_there = (files.CACHE / Path(INCEPTION_URL).name).is_file()
    if not is_there and not is_reachable(INCEPTION_URL):
        raise OSError(f"{INCEPTION_URL} cannot be reached.")
    try:
        weights = download(INCEPTION_URL, INCEPTION_SHA256)
    except ValueError as error:
        raise OSError(str(error)) from error
    device = find_device()
    if device.type != "cuda":  # others may lack float64
        device = torch.device("cpu")
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device)
    with Progress(total=len(images) + len(others), desc="Inception", unit=" images") as progress:
        features = [_extract(network, x, device, progress) for x in (images, others)]
    frechet, kernel = frechet_and_kernel(*features)
    return {"FID": frechet, "KID": kernel}


@torch.inference_mode()
def _extract(
    network: nn.Module, images: np.ndarray, device: torch.device, progress: Progress
) -> Tensor:
    features = []
    for start in range(0, len(images), 50):
        batch = torch.from_numpy(np.array(images[start : start + 50])).to(device)
        features.append(network(batch.permute(0, 3, 1, 2)))
        progress.update(len(batch))
    return torch.cat(features)
