"""Images in memory: a data set over one array of them, its checksum, tensors to pictures."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Pictures = np.ndarray | Tensor


def content_of(images: np.ndarray) -> str:
    """The number of images of an array, and a checksum: other images have another text."""
    checksum = 0
    for block in blocks(images):
        checksum = zlib.crc32(block, checksum)
    return f"{len(images):,} images, {checksum:08x}"


class ImageArray(Dataset):
    """A data set over one uint8 array of images, read a batch at a time.

    Items are ``(image, label)``: a float tensor (3, H, W) in [0, 1] and 0, since faces have no
    classes here. On a CUDA device with room the array is copied there, and batches are made there.

    Args:
        images: uint8 array (N, H, W, 3).
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self._on_device: Tensor | None = None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if has_room(device, images):
            self._on_device = copy_to(device, images)
        self._n_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, images (n, 3, H, W) and labels (n,), by one indexed read."""
        if self._on_device is None:
            images = torch.from_numpy(self.images[indices])
            self._n_read += len(indices)
            if self._n_read >= 1024:
                release_memory(self.images)
                self._n_read = 0
        else:
            rows = torch.tensor(indices).pin_memory()  # so that nothing waits for the copy
            images = self._on_device[rows.to(self._on_device.device, non_blocking=True)]
        images = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return images, torch.zeros(len(indices), dtype=torch.int64)

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """For ``DataLoader(collate_fn=...)``: the batch is whole already."""
        return batch


def has_room(device: torch.device, images: np.ndarray) -> bool:
    """Whether a CUDA device has room for twice as many bytes; no other device is asked."""
    return device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def copy_to(device: torch.device, images: np.ndarray) -> Tensor:
    """Copy images to a device, uint8 (N, H, W, 3), by way of a block of them at a time."""
    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for part, block in zip(copy.split(4096), blocks(images), strict=True):
        part.copy_(torch.from_numpy(np.array(block)))
    return copy


def blocks(images: Pictures) -> Iterator[Pictures]:
    """Up to 4096 images at a time; a mapped file's memory is released after each block."""
    for start in range(0, len(images), 4096):
        yield images[start : start + 4096]
        release_memory(images)


def release_memory(array: Pictures) -> None:
    """Let go of the pages of a mapped file that were read so far; reading them again works."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn a generator's output into pictures.

    Args:
        images: float tensor (n, 3, H, W) in [-1, 1], on any device.

    Returns:
        uint8 array (n, H, W, 3).
    """
    pixels = images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
