"""How close generated pictures are to real ones, cheaply enough for each epoch."""

from __future__ import annotations

import math
from collections import defaultdict
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from faces.arrays import Pictures, blocks, copy_to, has_room, to_uint8


class Judge:
    """Measures how close a generator's pictures are to real ones, cheaply enough for each epoch.

    Args:
        training: the pictures that it learns from, uint8 (N, H, W, 3).
        held_out: real pictures that it does not learn from, uint8 (M, H, W, 3), M >= 2.
        device: where training pictures are measured; a generator's are measured where they are.

    Attributes:
        size: how many pictures are compared with as many held-out ones, up to 1000.
        floor: what training pictures in the generator's place have, ``floor_of(size)``.
        noise: the standard deviation of each measure, from one set of ``size`` of them to another.
    """

    def __init__(
        self, training: np.ndarray, held_out: np.ndarray, device: torch.device | str = "cpu"
    ) -> None:
        if len(held_out) < 2:
            raise ValueError(f"{len(held_out)} images are held out: at least 2 are needed.")
        random = np.random.default_rng(0)
        self.size = min(1000, len(training), len(held_out))
        self._device = torch.device(device)
        real = training, held_out[random.permutation(len(held_out))[: 5 * self.size]]
        self._training, self._held_out = (  # which stay on the device
            copy_to(self._device, x) if has_room(self._device, x) else x for x in real
        )
        self._chosen = random.permutation(len(training))[: 5 * self.size]
        sets = self._training_sets(self.size)
        self.floor = _means(sets)
        self.noise = {n: float(np.std(v, ddof=min(1, len(v) - 1))) for n, v in sets.items()}

    def __call__(self, faces: Tensor) -> dict[str, float]:
        """Measure pictures of a generator, float (n, 3, H, W) in [-1, 1].

        Those of another size than the real ones are resized first.

        Returns:
            "swd": the mean of the sliced Wasserstein distances from held-out pictures over the
            levels of detail, and "swd_SIDE", that of each level; "diversity"; "nearest": the median
            distance from a picture to its nearest training picture, in grey levels. If ``n`` is
            several times ``size``, each is the mean over sets of that size, up to five.
        """
        images = to_uint8(v2.functional.resize(faces, self._held_out.shape[1], antialias=True))
        return _means(self._sets(images, len(images), faces.device))

    def floor_of(self, n: int) -> dict[str, float]:
        """What training pictures have in the place of ``n`` of a generator, the mean over 5 sets.

        The held-out pictures are those that ``n`` are compared with: a distance depends on them.
        """
        if n >= self.size == len(self._held_out):  # the same pictures again
            return self.floor
        return _means(self._training_sets(n))

    def _training_sets(self, n: int) -> dict[str, list[float]]:
        own = self._chosen[: 5 * min(n, self.size)]
        return self._sets(self._training[own], n, self._device, own)

    def _sets(
        self, images: Pictures, n: int, device: torch.device | str, own: np.ndarray | None = None
    ) -> dict[str, list[float]]:
        """Measure up to five sets of pictures, beside the held-out pictures for ``n`` of them."""
        size = min(n, self.size)
        n_others = min(min(5, n // size) * size, len(self._held_out))
        sets = defaultdict(list)
        for start in range(0, min(len(images), 5 * size) - size + 1, size):
            part = images[start : start + size]
            places = np.arange(start, start + size) % n_others
            others = self._held_out[places]  # each set has others, as far as there are some
            distances = sliced_wasserstein(part, others, device=device)
            measures = {"swd": sum(distances.values()) / len(distances)}
            measures |= {f"swd_{side}": distance for side, distance in distances.items()}
            itself = None if own is None else own[start : start + size][:200]
            _, nearest = nearest_images(part[:200], self._training, itself, device)
            measures |= {"diversity": diversity(part, device), "nearest": np.median(nearest)}
            for name, value in measures.items():
                sets[name].append(value)
        return sets


def _means(sets: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in sets.items()}


def sliced_wasserstein(
    images: Pictures, others: Pictures, device: torch.device | str = "cpu"
) -> dict[int, float]:
    """Sliced Wasserstein distance between two sets of pictures, at each level of detail.

    Both sets are taken apart into a Laplacian pyramid, and each level into patches of 7x7 pixels,
    at places drawn at random but always the same. Each set's patches are scaled to mean 0 and
    variance 1 in each colour, so that a tint or a contrast that all pictures share does not count.
    The distance is the mean, over random directions, of the Wasserstein distance between the two
    sets of patches projected on a direction. Karras et al., Progressive growing of GANs, 2018,
    https://arxiv.org/abs/1710.10196, section 5, with 128 patches a picture (here 32) and 512
    directions (here 128).

    Args:
        images, others: uint8 arrays or tensors (n, H, W, 3), H = W = 16, 32, 64 ...
        device: where to compute.

    Returns:
        The distance times 1000 by the side of the level's pictures, the finest first. Between two
        sets drawn from the same pictures it is not 0, but shrinks as they grow: compare it with
        that floor.

    Raises:
        ValueError: if the two sets have not the same shape.
    """
    if images.shape != others.shape:
        shapes = f"{images.shape} and {others.shape}"
        raise ValueError(f"The sets of pictures have the shapes {shapes}: they must be the same.")
    random = torch.Generator().manual_seed(0)
    distances = {}
    pyramids = [_laplacian_pyramid(pictures, device) for pictures in (images, others)]
    for level, other in zip(*pyramids, strict=True):
        n, _, side, _ = level.shape
        corners = torch.randint(side - 6, (2, 2, n, 32), generator=random)
        directions = torch.randn(3 * 7 * 7, 128, generator=random)
        directions /= directions.norm(dim=0)
        corners, directions = corners.to(device), directions.to(device)
        a, b = (
            _sorted((_patches_at(pictures, *places) @ directions).T.contiguous())
            for pictures, places in [(level, corners[0]), (other, corners[1])]
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


def _to_tensor(images: Pictures, device: torch.device | str) -> Tensor:
    """Pictures, uint8 (n, H, W, 3), as float (n, 3, H, W) in [0, 255] on a device."""
    images = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    return images.to(device).permute(0, 3, 1, 2).float()


def _laplacian_pyramid(images: Pictures, device: torch.device | str = "cpu") -> list[Tensor]:
    """Take pictures apart by detail; the last level, of 16x16 pixels or less, is what remains."""
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


def _patches_at(pictures: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Cut patches of 7x7 out of pictures (n, 3, H, W), all scaled alike: (n * n_patches, 147)."""
    cut = pictures.unfold(2, 7, 1).unfold(3, 7, 1)  # (n, 3, H - 6, W - 6, 7, 7), a view
    which = torch.arange(len(pictures), device=top.device)[:, None]
    patches = cut[which, :, top, left].flatten(0, 1)
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp(min=1e-3)).flatten(1)


def diversity(images: Pictures, device: torch.device | str = "cpu") -> float:
    """Mean difference between two pictures of a set, 1 - MS-SSIM: 0 if all are the same.

    MS-SSIM (Wang et al., 2003) compares brightness, contrast and structure of two pictures at three
    scales; Odena et al. use it for the diversity of generated pictures (2017,
    https://arxiv.org/abs/1610.09585). The pairs are each picture of the first half with that of the
    second half; the window is made smaller than usual, to fit pictures of 32x32.

    Args:
        images: uint8 array or tensor (n, H, W, 3) in random order, n >= 2, H and W at least 32.
        device: where to compute.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    pictures = _to_tensor(images, device)
    weights = torch.tensor([0.0448, 0.2856, 0.3001])  # the first three of five in the paper
    similarity = multiscale_structural_similarity_index_measure(
        *pictures[: len(pictures) // 2 * 2].chunk(2),
        sigma=0.8,  # makes a window of 7 pixels, which fits into the smallest level
        kernel_size=7,
        betas=tuple((weights / weights.sum()).tolist()),
        data_range=255.0,
        normalize="relu",
    )
    return 1 - similarity.item()


def nearest_images(
    samples: Pictures,
    images: Pictures,
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
