"""What would interrupt the lesson: data and its files, the training run's files, pictures.

Five subjects, in this order: images from disk, a zip or the network become one array; a notebook's
definitions are loaded; networks are spread over processes and sped up; training is surrounded by
settings, progress, files and checkpoints; faces are measured and shown.
"""

from __future__ import annotations

import ast
import builtins
import copy
import csv
import errno
import hashlib
import inspect
import io
import itertools
import linecache
import math
import mmap
import os
import pickle
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import PIL
import pooch
import requests
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from filelock import FileLock, Timeout
from IPython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import display
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from torchvision.utils import make_grid
from tqdm import tqdm

HERE = Path(__file__).parent
NOTEBOOK = HERE / "dlnd_face_generation.ipynb"
WEIGHTS = HERE / "assets" / "generator.safetensors"
CACHE = pooch.os_cache("dlnd-face-generation")

ARCHIVE_URL = (
    "https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
    "5be7eb6f_processed-celeba-small/processed-celeba-small.zip"
)
ARCHIVE_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
OFFLINE_FACES = 10_000

# A server that stalls from the start is left after 50 seconds: 8 to reach it, 3 x 12, 2 x 3.
DOWNLOAD_TRIES = 3
DOWNLOAD_TIMEOUT = 12.0  # seconds without a byte
DOWNLOAD_PAUSE = 3.0  # seconds before the next try

# JPEG and PNG hardly shrink in a zip. A BMP of one colour shrinks a thousandfold, so a small
# archive may grow at any ratio, if not beyond all measure.
LARGEST_IMAGE = 100 * 2**20  # bytes of one file
LARGEST_RATIO = 100  # of all images to the archive ...
HARMLESS_SIZE = 2**30  # ... where they have more bytes than that

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# Classes of the individual typology angle, and where they begin (degrees); the lightest from 55 on.
TYPOLOGY = {
    "dark": -90,
    "brown": -30,
    "tan": 10,
    "intermediate": 28,
    "light": 41,
    "very light": 55,
}
_SRGB_TO_XYZ = np.array(  # IEC 61966-2-1, for the white of D65
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)

if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun, the first one prints
    sys.stdout = open(os.devnull, "w")

# ------------------------------------------------------------------------------------- the data


def get_data(data_dir: str | Path) -> Path:
    """Return a folder of images: the one given, an unpacked zip, a download or the offline set.

    A folder is used as it is. A zip is checked and unpacked once, into the user's cache folder. If
    nothing is at ``data_dir``, the official CelebA archive is downloaded, checked and unpacked
    there; without a network the offline set takes its place: faces drawn from the shipped weights.

    Args:
        data_dir: a folder, a zip file, or the place where the download shall go.

    Returns:
        The folder that holds the images, at any depth.

    Raises:
        FileNotFoundError: if ``data_dir`` names a zip that is not there.
        ValueError: if the file is no zip, or is damaged or dangerous, or its checksum is wrong.
        OSError: if the disk is full, a folder cannot be written to, or the server refuses, stalls
            or breaks off.
    """
    data_dir = Path(data_dir).expanduser()
    if data_dir.is_dir():
        return data_dir
    if data_dir.is_file():
        folder = CACHE / f"{data_dir.stem[:50]}-{pooch.file_hash(data_dir)[:12]}"
        unpack(data_dir, folder)
        return folder
    if data_dir.suffix.lower() == ".zip":
        raise FileNotFoundError(f"There is no file {data_dir}: correct data_dir.")
    archive = CACHE / Path(ARCHIVE_URL).name
    if not archive.is_file() and not _is_reachable(ARCHIVE_URL):
        print(
            f"There is no folder {data_dir} and no network to download it: "
            f"going on with {OFFLINE_FACES:,} faces drawn from the shipped weights."
        )
        return _offline_set()
    print(f"There is no folder {data_dir}: the CelebA faces (248 MB) go there.")
    _check_writable(data_dir.parent, "data_dir")
    unpack(_download(ARCHIVE_URL, ARCHIVE_SHA256), data_dir)
    return data_dir


def _is_reachable(url: str, seconds: float = 8.0) -> bool:
    """Whether a server answers for ``url`` in time, with whatever status; name look-up included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds)
        except requests.RequestException:
            return
        answered.set()

    # The look-up of a name has no time limit of its own: wait for the thread, and leave it behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _download(url: str, sha256: str) -> Path:
    """Download a file into the cache folder, or find it there; either way check its hash."""

    def fetch(url: str, output_file: str, pooch_: pooch.Pooch | None) -> None:
        for left in reversed(range(DOWNLOAD_TRIES)):
            try:
                with Progress(total=1, desc="Downloading", unit="B", unit_scale=True) as progress:
                    pooch.HTTPDownloader(
                        progressbar=progress, chunk_size=2**18, timeout=DOWNLOAD_TIMEOUT
                    )(url, output_file, pooch_)
                return
            except requests.RequestException as error:
                refused = error.response is not None and error.response.status_code < 500
                if refused or not left:
                    raise
                print(f"The download broke off ({error}): trying again, {left} more at most.")
                time.sleep(DOWNLOAD_PAUSE)

    def retrieve(temporary: Path) -> Path:
        name = Path(url).name
        return Path(pooch.retrieve(url, sha256, fname=name, path=temporary, downloader=fetch))

    pooch.get_logger().setLevel("WARNING")
    archive = CACHE / Path(url).name
    if archive.is_file() and pooch.file_hash(archive) != sha256:
        archive.unlink()
    try:
        return _make_once(archive, retrieve)
    except ValueError as error:
        raise ValueError(
            f"What {url} sent is not the file expected (its SHA-256 is wrong) and was deleted. Run "
            "the cell again. (An archive can be downloaded by hand: set data_dir to it.)"
        ) from error
    except requests.RequestException as error:
        raise OSError(
            f"The download of {url} failed: {error}. Run the cell again. (In the place of the "
            "archive, data_dir can be a folder of images of your own.)"
        ) from error


def _check_writable(folder: Path, setting: str) -> None:
    """Make a folder, and try whether files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}): set {setting} to a place where "
            "you may write."
        ) from error


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's share of it, the file


def _disk_full(folder: Path) -> OSError:
    return OSError(
        errno.ENOSPC,
        "The disk is full. Nothing half-written was left: free some space and run this again",
        str(folder),
    )


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _disk_full(folder) from None


def _is_image_name(path: Path) -> bool:
    """Whether a path names an image: by its ending, and no litter such as ``__MACOSX/._1.jpg``."""
    return path.suffix.lower() in IMG_EXTENSIONS and not any(
        part.startswith(".") or part == "__MACOSX" for part in path.parts
    )


def _make_once(path: Path, make: Callable[[Path], Path]) -> Path:
    """Make a file or folder unless it is there: all of it or nothing, and by one process only.

    Others that want it, or anything else in its folder, wait. The lock ends with its process, so
    whoever gets it may remove what a killed one left.

    Args:
        path: what to make.
        make: fills the temporary folder it is given, and returns what in there shall be ``path``.

    Returns:
        ``path``.

    Raises:
        OSError: if the disk is full or the cache folder cannot be written to.
    """
    if path.exists():
        return path
    beside = path.parent
    if beside == CACHE:
        _check_writable(CACHE, "the environment variable XDG_CACHE_HOME")
    beside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside / ".unfinished-faces.lock")
    with _naming_a_full_disk(beside):
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            print(f"Another process is at work in {beside}: waiting for it.")
            lock.acquire()
        try:
            if not path.exists():
                for left in beside.glob(".unfinished-faces-*"):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=".unfinished-faces-", dir=beside) as folder:
                    os.replace(make(Path(folder)), path)
        finally:
            with suppress(OSError):  # on Windows the lock itself does it
                os.unlink(lock.lock_file)
            lock.release()
    return path


def _images_in(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The images of a zip, with slashes in their names, once they are known to be harmless."""
    members = []
    for member in opened.infolist():
        name = PureWindowsPath(member.filename)  # it takes either slash, and knows of drives
        if name.anchor or ".." in name.parts:
            raise ValueError(
                f"{opened.filename}: the entry {member.filename!r} would be written outside its "
                "folder. Nothing was unpacked: do not use this archive."
            )
        member.filename = name.as_posix()
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip does not say
        is_file = kind in (0, stat.S_IFREG) and member.orig_filename[-1:] not in "/\\"
        if is_file and _is_image_name(Path(name)):
            members.append(member)
    if not members:
        raise ValueError(f"{opened.filename} holds no images: set data_dir to one that does.")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError(f"compression type {member.compress_type}")
    largest = max(members, key=lambda member: member.file_size)
    total = sum(member.file_size for member in members)
    packed = os.path.getsize(opened.filename)
    if largest.file_size > LARGEST_IMAGE or total > max(HARMLESS_SIZE, LARGEST_RATIO * packed):
        raise ValueError(
            f"{opened.filename} would grow from {packed:,} to {total:,} bytes, its entry "
            f"{largest.filename!r} to {largest.file_size:,}: no photographs do. Nothing was "
            "unpacked: do not use it, or unpack it by hand and set data_dir to that folder."
        )
    return members


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack the images of a zip into a new folder: all of them, or nothing.

    They are written to a temporary folder beside it, which takes the name at the end. If the
    archive holds a single top folder, that one becomes ``folder``. Links are left out.

    Args:
        archive: path of the zip.
        folder: what to make. Nothing is done if it is there: another process may have made it.

    Raises:
        ValueError: if the file is no zip, is damaged, holds no images, has an entry that would
            land outside ``folder``, or would grow as no photographs do; or if a file cannot be
            written under its name.
        OSError: if there is not enough space.
    """
    archive, folder = Path(archive), Path(folder)

    def extract(temporary: Path) -> Path:
        target = temporary / "images"
        try:
            with zipfile.ZipFile(archive) as opened:
                members = _images_in(opened)
                if sum(m.file_size for m in members) > shutil.disk_usage(temporary).free:
                    raise _disk_full(folder.parent)
                for member in Progress(members, desc=f"Unpacking {archive.name}", unit=" images"):
                    opened.extract(member, target)  # never more bytes than the entry declares
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError) as error:
            raise ValueError(
                f"{archive} is no zip file, or a damaged one ({error}): get it anew."
            ) from error
        except (RuntimeError, NotImplementedError, OSError) as error:  # a password, a long name
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            raise ValueError(
                f"{archive} cannot be unpacked ({error}): set data_dir to a plain zip or a folder."
            ) from error
        tops = list(target.iterdir())
        return tops[0] if len(tops) == 1 and tops[0].is_dir() else target

    _make_once(folder, extract)


def _offline_set() -> Path:
    """Return the folder of the offline set; made from the shipped weights the first time."""

    def draw(temporary: Path) -> Path:
        images = temporary / "images"
        images.mkdir()
        for i, face in enumerate(generate_faces(OFFLINE_FACES, seed=0), start=1):
            Image.fromarray(face).save(images / f"{i:06d}.png", compress_level=1)
        return images

    return _make_once(CACHE / f"offline-{pooch.file_hash(WEIGHTS)[:12]}", draw)


def find_images(
    folder: str | Path,
    max_images: int | None = None,
    seed: int | None = None,
    part: str | None = None,
) -> list[Path]:
    """List the image files below a folder, at any depth, sorted; macOS litter is left out.

    Args:
        folder: where the images lie.
        max_images: how many to take, drawn at random; all of them if ``None`` or too large.
        seed: of that draw.
        part: "held-out" for about a tenth of these, chosen by a hash of their names (for two of a
            small set), "training" for the others, ``None`` for all.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if there is no such part, or there are too few images to hold some out.
    """
    if part not in (None, "training", "held-out"):
        raise ValueError(f"part is {part!r}: it must be 'training', 'held-out' or None.")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: set data_dir to a folder of images.")
    paths = sorted(p for p in folder.rglob("*") if _is_image_name(p.relative_to(folder)))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}): set data_dir to a folder "
            "that does."
        )
    names_repeat = len({path.name for path in paths}) < len(paths)
    if max_images is not None and max_images < len(paths):
        chosen = np.random.default_rng(seed).choice(len(paths), max_images, replace=False)
        paths = [paths[i] for i in sorted(chosen)]
    if part is None:
        return paths
    if len(paths) < 4:
        raise ValueError(f"{folder} holds {len(paths)} images: at least 4 are needed.")
    # By the name alone, so that a face stays on its side in whatever folder it lies; by the place
    # too where names repeat.
    names = [p.relative_to(folder).as_posix() if names_repeat else p.name for p in paths]
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    hashes = np.array([int.from_bytes(digest[:8]) / 2**64 for digest in digests])
    held_out = hashes < max(0.1, np.partition(hashes, 2)[2])
    return [path for path, out in zip(paths, held_out, strict=True) if out == (part == "held-out")]


def load_images(
    paths: list[Path],
    transform: Callable[[Image.Image], Image.Image],
    data_dir: str | Path | None = None,
    skip_broken: bool = False,
) -> np.ndarray:
    """Decode image files into one array; with ``data_dir``, once and for all later runs.

    An aligned CelebA original (178x218) is cropped to its central 108x108 first, as the processed
    set was. Transparency becomes white, 16 bits a channel become 8, turned photographs are set
    upright.

    Args:
        paths: the files.
        transform: takes an RGB image of any size and returns one of a fixed size.
        data_dir: the folder of the images. The array is kept beside it (in the user's cache folder
            if nothing can be written there), in ``.NAME-arrays``, until a file, its size or time,
            or the transform changes. It is mapped from the disk, not read into memory.
        skip_broken: leave files that cannot be decoded out, and say how many. Without ``data_dir``,
            for a look at some images, they are left out in any case.

    Returns:
        uint8 array (n, H, W, 3), n = len(paths) without those left out; read-only with
        ``data_dir``.

    Raises:
        ValueError: if files cannot be decoded, or none can; it names them.
        OSError: if the disk is full.
    """
    if data_dir is None:
        return np.concatenate(list(_decoded(paths, transform, skip_broken=True)))
    path, names = _array_path(paths, transform, Path(data_dir))
    with _first_on_each_machine(), FileLock(path.with_name(f".{names}.lock")):
        if not (path.is_file() and _is_whole_array(path)):
            for pattern in (f"{names}-*.npy", f".{names}-*.npy"):  # of the same files before they
                for other in path.parent.glob(pattern):  # changed, or of a run that was killed
                    other.unlink()
            with writing(path) as temporary, open(temporary, "wb") as file:
                _write_array(file, _decoded(paths, transform, skip_broken), len(paths))
    images = np.load(path, mmap_mode="r")
    if len(images) < len(paths):
        if not skip_broken:
            path.unlink()  # made with skip_broken: read again, so that they are named
            return load_images(paths, transform, data_dir)
        n = len(paths) - len(images)
        print(f"{n:,} of {len(paths):,} files cannot be read as images: they are left out.")
    return images


def _array_path(paths: list[Path], transform: Any, data_dir: Path) -> tuple[Path, str]:
    """Where an array is kept: named by the files and the transform, then by sizes and times."""
    names = hashlib.sha256(f"1 {transform} {PIL.__version__} {torchvision.__version__}".encode())
    states = hashlib.sha256()
    for path in paths:
        names.update(f"\0{path.relative_to(data_dir).as_posix()}".encode(errors="surrogateescape"))
        with suppress(OSError):  # a link to nothing: decoding names it
            status = path.stat()
            states.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        states.update(b" ")
    folder = data_dir.resolve().with_name(f".{data_dir.resolve().name}-arrays")
    try:
        _check_writable(folder, "data_dir")
    except OSError:
        folder = CACHE / "arrays"
        folder.mkdir(parents=True, exist_ok=True)
        names.update(str(data_dir.resolve()).encode(errors="surrogateescape"))
    name = names.hexdigest()[:12]
    return folder / f"{name}-{states.hexdigest()[:12]}.npy", name


def _is_whole_array(path: Path) -> bool:
    try:
        return np.load(path, mmap_mode="r").dtype == np.uint8
    except (ValueError, OSError, EOFError):
        return False


def _write_array(file: BinaryIO, blocks: Iterator[np.ndarray], n: int) -> None:
    """Write the blocks one after the other as one .npy file; n: how many images they may have."""

    def write_header(n: int, shape: tuple[int, ...]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(file, header)

    written, shape = 0, (0,)
    for block in blocks:
        if not written:
            shape = block.shape[1:]
            write_header(n, shape)
        file.write(block.tobytes())
        written += len(block)
    file.seek(0)
    write_header(written, shape)  # of the same length: numpy leaves room for any number


def _decoded(
    paths: list[Path], transform: Callable[[Image.Image], Image.Image], skip_broken: bool
) -> Iterator[np.ndarray]:
    """Decode files in blocks, uint8 (up to 1024, H, W, 3); at the end, name those that failed."""

    def load(path: Path) -> np.ndarray | str:
        try:
            with Image.open(path) as opened:
                image = _to_rgb(ImageOps.exif_transpose(opened))
            if image.size == (178, 218):
                image = v2.functional.center_crop(image, 108)
            return np.asarray(transform(image))
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can raise nearly any kind
            return f"{path} ({error})"

    broken: list[str] = []
    progress = Progress(total=len(paths), desc="Decoding", unit=" images")
    with progress, ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the GIL
        for start in range(0, len(paths), 1024):
            loaded = []
            for item in pool.map(load, paths[start : start + 1024]):
                (broken if isinstance(item, str) else loaded).append(item)
                progress.update()
            if loaded and not (broken and not skip_broken):
                yield np.stack(loaded)
    if broken and (not skip_broken or len(broken) == len(paths)):
        more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
        raise ValueError(
            f"{len(broken)} of {len(paths)} files cannot be read as images:\n  "
            + "\n  ".join(broken[:20])
            + more
            + "\nDelete or replace them, or set skip_broken = True to leave them out."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to 8
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def content_of(images: np.ndarray) -> str:
    """The number of images of an array, and a checksum: other images have another text."""
    checksum = 0
    for start in range(0, len(images), 4096):
        checksum = zlib.crc32(images[start : start + 4096], checksum)
        release_memory(images)
    return f"{len(images):,} images, {checksum:08x}"


class ImageArray(Dataset):
    """A data set over one uint8 array of images, read a batch at a time.

    Items are ``(image, label)``: a float tensor (3, H, W) in [0, 1] and 0, since faces have no
    classes here. On a CUDA device with room the array is copied there, and batches are made there.
    Where several processes train together, each reads its share of a batch.

    Args:
        images: uint8 array (N, H, W, 3).
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self._on_device: Tensor | None = None
        if torch.cuda.is_available() and images.nbytes < torch.cuda.mem_get_info()[0] / 2:
            self._on_device = torch.from_numpy(np.array(images)).cuda()
        self._n_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self._read([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, images (n, 3, H, W) and labels (n,), by one indexed read."""
        return self._read(share(indices))

    def _read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
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


def release_memory(array: np.ndarray) -> None:
    """Let go of the pages of a mapped file that were read so far; reading them again works."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def nearest_images(
    samples: np.ndarray, images: np.ndarray, other_than: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find each sample's nearest image, by the root mean square difference of their pixels.

    Args:
        samples: uint8 array (n, H, W, 3).
        images: uint8 array (N, H, W, 3).
        other_than: for each sample the index of an image that does not count (n,): itself.

    Returns:
        The nearest images' indices (n,) and their distances (n,), in grey levels from 0 to 255;
        infinite where there is no image that counts.
    """
    flat = torch.from_numpy(np.array(samples)).flatten(1).float()
    rows = torch.arange(len(flat))
    smallest = torch.full((len(flat),), math.inf)
    nearest = torch.zeros(len(flat), dtype=torch.int64)
    for start in range(0, len(images), 4096):  # a block at a time: memory stays small
        block = torch.from_numpy(np.array(images[start : start + 4096])).flatten(1).float()
        release_memory(images)
        distances = torch.cdist(flat, block)
        if other_than is not None:
            columns = torch.from_numpy(other_than) - start
            here = (columns >= 0) & (columns < len(block))
            distances[rows[here], columns[here]] = math.inf
        values, indices = distances.min(dim=1)
        nearest = torch.where(values < smallest, indices + start, nearest)
        smallest = torch.minimum(values, smallest)
    found = torch.from_numpy(images[nearest.numpy()]).flatten(1).float()
    exact = (flat - found).square().mean(dim=1).sqrt()  # cdist rounds
    return nearest.numpy(), torch.where(smallest.isinf(), math.inf, exact).numpy()


# ------------------------------------------------------------------------------------- networks


# What a constant may be made with; nothing that reads or writes files, downloads or trains.
_HARMLESS = {"builtins", "collections", "functools", "math", "numpy", "os", "pathlib", "posixpath"}
_HARMLESS |= {"ntpath", "torch", "torchvision"}
_HARMFUL = re.compile(
    r"\b(\w*download\w*|datasets|eval|exec|exit|hub|input|kill|load|makedirs|mkdir|open|popen|quit|"
    r"remove|rename|rmdir|save|system|touch|unlink|url\w+|utils\.tensorboard|write_\w+)\b"
)


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over a node and all below it that run with it: what a lambda does, it does later."""
    if not isinstance(node, ast.Lambda):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _evaluated(child)


def _is_harmless(node: ast.AST, namespace: dict[str, Any]) -> bool:
    """Tell whether an expression calls nothing but harmless library functions."""
    for call in _evaluated(node):
        if isinstance(call, ast.Call):
            root: Any = call.func
            while isinstance(root, (ast.Attribute, ast.Subscript, ast.Call)):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name):
                value = namespace.get(root.id, getattr(builtins, root.id, None))
                home = getattr(value, "__module__", None) or type(value).__module__
                home = value.__name__ if isinstance(value, types.ModuleType) else home
                called = f"{home}.{ast.unparse(call.func)}"
                if called.split(".")[0] not in _HARMLESS or _HARMFUL.search(called):
                    return False
    return True


def load_definitions(notebook: str | Path = NOTEBOOK) -> types.ModuleType:
    """Run a notebook's imports, functions, classes and constants, and nothing else.

    Data, training, plots and tests do not run: an assignment is left out if it calls anything but
    harmless library functions, uses a name whose assignment was left out, or fails. The code that
    is kept is executed: load only notebooks you trust.

    Args:
        notebook: path of an ``.ipynb`` file, or of a ``.py`` file exported from one.

    Returns:
        A module that holds what the notebook defines. Its ``__left_out__`` lists the assignments
        that did not run: the name of the cell and the ``ast`` node; its ``__broken__`` has, for
        each piece of code that cannot run, the names that it would define and a message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a notebook.
    """
    path = Path(notebook).resolve()
    if path.suffix == ".py":
        sources = [path.read_text(encoding="utf-8")]
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # about missing cell ids
                cells = nbformat.read(path, as_version=4).cells
            sources = [cell.source if cell.cell_type == "code" else "" for cell in cells]
        except (nbformat.ValidationError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it has no cells ({type(error).__name__})") from None
    module = types.ModuleType(f"{path.stem} (notebook)")
    module.__file__ = str(path)
    module.__left_out__, module.__broken__ = [], []
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    names = vars(module)
    stale: set[str] = set()  # names that only a run of the notebook gives a meaning

    def fails(statement: ast.stmt, filename: str) -> str:
        try:
            exec(compile(ast.Module([statement], []), filename, "exec"), names)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def define(statements: list[ast.stmt], filename: str) -> bool:
        """Run what defines something; return whether all imports succeeded."""
        imported = True
        for statement in statements:
            found = [n for n in _evaluated(statement) if isinstance(n, ast.Name)]
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                error = fails(statement, filename)
                if error and (unknown := stale - names.keys()):  # a default that is not known yet
                    names.update(dict.fromkeys(unknown))
                    error = fails(statement, filename) and error
                    for name in unknown - {statement.name}:
                        del names[name]
                if error:
                    message = f"its definition ({filename}) stops with {error}"
                    module.__broken__.append(({statement.name}, message))
            elif isinstance(statement, (ast.Import, ast.ImportFrom)):
                for alias in statement.names:  # one by one: a missing module costs no other
                    single = copy.copy(statement)
                    single.names = [alias]
                    imported &= not fails(single, filename)
            elif isinstance(statement, ast.Try):
                if not define(statement.body, filename) and statement.handlers:
                    define(statement.handlers[0].body, filename)
            elif isinstance(statement, ast.If) and _is_harmless(statement.test, names):
                with suppress(Exception):
                    test = compile(ast.Expression(statement.test), filename, "eval")
                    define(statement.body if eval(test, names) else statement.orelse, filename)
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                targets = {n.id for n in found if isinstance(n.ctx, ast.Store)}
                reads = {n.id for n in found if isinstance(n.ctx, ast.Load)}
                if (
                    not reads & stale
                    and _is_harmless(statement, names)
                    and not fails(statement, filename)
                ):
                    stale.difference_update(targets)
                else:
                    module.__left_out__.append((filename, statement))
                    stale.update(targets)
        return imported

    sys.path.insert(0, str(path.parent))
    try:
        for number, source in enumerate(sources, 1):
            filename = f"{path.name}, cell {number}" if len(sources) > 1 else path.name
            source = re.sub(r"\A\s*%%(time|capture|prun)\b.*", "", source)
            try:
                source = TransformerManager().transform_cell(source)
                statements = ast.parse(source).body
            except SyntaxError as error:
                would = re.findall(r"^(?:def |class )?(\w+) *(?=[=(:])", source, re.MULTILINE)
                message = f"{filename} does not run: SyntaxError: {error.msg}, line {error.lineno}"
                module.__broken__.append((set(would), message))
            else:
                linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
                with torch.random.fork_rng(devices=[]):  # a constant may be random
                    define(statements, filename)
                presets = names.get("presets")  # settings that are left to the preset
                if isinstance(presets, dict) and all(isinstance(p, dict) for p in presets.values()):
                    first = next(iter(presets.values()), {})
                    names.update((n, v) for n, v in first.items() if names.get(n, 0) is None)
    finally:
        sys.path.remove(str(path.parent))
    return module


def generate_faces(n: int, seed: int, weights: str | Path = WEIGHTS) -> np.ndarray:
    """Draw faces from trained weights; the network is the notebook's own ``Generator``.

    Args:
        n: how many.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote.

    Returns:
        uint8 array (n, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, or does not fit the notebook's ``Generator``; or if
            ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least one face.")
    try:
        with safetensors.safe_open(weights, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}
        z_size, conv_dim, image_size = (
            int(metadata[name]) for name in ("z_size", "g_conv_dim", "image_size")
        )
        generator_class = load_definitions().Generator
        with torch.device("meta"):  # no first weights, and no random numbers drawn for them
            G = generator_class(z_size, conv_dim, image_size, metadata["residual"] == "True")
        G.load_state_dict(state, assign=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {weights}: train first.") from None
    except (
        safetensors.SafetensorError,
        AttributeError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{weights} does not hold weights of the notebook's Generator: {error}"
        ) from error
    G.eval()
    random = torch.Generator().manual_seed(seed)
    if metadata.get("normal_latents") == "True":
        z = torch.randn(n, z_size, generator=random)
    else:
        z = torch.rand(n, z_size, generator=random) * 2 - 1
    with torch.inference_mode():
        return np.concatenate([to_uint8(G(part)) for part in z.split(500)])


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn a generator's output into pictures.

    Args:
        images: float tensor (n, 3, H, W) in [-1, 1], on any device.

    Returns:
        uint8 array (n, H, W, 3).
    """
    pixels = images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def layer_table(network: nn.Module, example: Tensor) -> str:
    """Describe a network's layers with weights, in the order in which they run.

    Args:
        network: the network; its training mode and statistics are left as they are.
        example: an input for it, with a batch dimension.

    Returns:
        A table as text: input and output sizes without the batch dimension, whether batch norm
        follows, and the number of parameters, batch norm's included.
    """
    rows: list[list[Any]] = []

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.BatchNorm2d):
            rows[-1][3] = "yes"
            rows[-1][4] += parameters
        else:
            size_in, size_out = (" x ".join(map(str, t.shape[1:])) for t in (args[0], output))
            rows.append([type(module).__name__, size_in, size_out, "-", parameters])

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, kinds)]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    rows.append(["total", "", "", "", sum(p.numel() for p in network.parameters())])
    line = "{:<16} {:>13} {:>13} {:>11} {:>11}"
    header = line.format("layer", "input", "output", "batch norm", "parameters")
    return "\n".join([header, "-" * len(header), *(line.format(*r[:4], f"{r[4]:,}") for r in rows)])


# ------------------------------------------------------------------------- processes and speed


class Processes:
    """The processes that train together: one, or those that ``torchrun`` started.

    With several, each sits on an accelerator of its own, or all share the CPU; only the first one
    prints and writes.

    Attributes:
        count: how many there are.
        device: this process's device.

    Raises:
        ValueError: if a machine has fewer accelerators than processes.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cpu")
        if torch.accelerator.is_available():
            if local_rank >= torch.accelerator.device_count():
                raise ValueError(
                    f"There are {torch.accelerator.device_count()} accelerators on this machine: "
                    "set --nproc-per-node to that, or hide them for a run on the CPU."
                )
            torch.accelerator.set_device_index(local_rank)
            self.device = torch.accelerator.current_accelerator(check_available=True)
        if self.count > 1 and not dist.is_initialized():
            # Others wait while one decodes the images.
            backend = dist.get_default_backend_for_device(self.device)
            dist.init_process_group(backend, timeout=timedelta(hours=2))

    def parallel(self, *networks: nn.Module) -> list[nn.Module]:
        """Let networks average their gradients, and batch norm its statistics, over all processes.

        Returns:
            The networks themselves if there is one process, else wrapped in
            ``DistributedDataParallel`` with synchronised batch norm.
        """
        if self.count == 1:
            return list(networks)
        for network in networks:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.__class__ = SyncBatchNorm2d
        return [nn.parallel.DistributedDataParallel(n, broadcast_buffers=False) for n in networks]

    def leave(self) -> None:
        """End all processes but the first."""
        if self.count > 1:
            first = is_first_process()
            dist.destroy_process_group()
            self.count = 1
            if not first:
                sys.exit()


def is_first_process() -> bool:
    """Whether this process prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(batch: Any) -> Any:
    """Take this process's part of a global batch: every n-th, and as many as the others."""
    if not dist.is_initialized():
        return batch
    n = dist.get_world_size()
    return batch[dist.get_rank() : len(batch) // n * n : n]


@contextmanager
def _first_on_each_machine() -> Iterator[None]:
    """Let one process of a machine do the work first; the others find it done."""
    waits = dist.is_initialized() and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        dist.barrier()
    yield
    if dist.is_initialized() and not waits:
        dist.barrier()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; PyTorch's own does so on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); in evaluation mode as the plain one does."""
        if not self.training:
            return super().forward(x)
        n = x.numel() // x.shape[1] * dist.get_world_size()
        values = x.float()
        mean = all_reduce(values.sum((0, 2, 3), keepdim=True)) / n
        centred = values - mean
        variance = all_reduce(centred.square().sum((0, 2, 3), keepdim=True)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
        weight, bias = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias))
        return (centred * (variance + self.eps).rsqrt() * weight + bias).to(x.dtype)


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 much faster than in float32."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class _Patches(torch.autograd.Function):
    """The 4x4 patches, 2 pixels apart, of pictures (n, C, 2h, 2w) with a border of 1 zero.

    The result is (n * h * w, 4 * 4 * C). Its transpose, which adds patches up again, is ``join``.
    """

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        x = F.pad(x.permute(0, 2, 3, 1).contiguous(), (0, 0, 1, 1, 1, 1))
        n, height, width, c = x.shape
        h, w = height // 2 - 1, width // 2 - 1
        row = x.stride(1)
        patches = x.as_strided((n, h, w, 4, 4 * c), (x.stride(0), 2 * row, 2 * c, row, 1))
        return patches.reshape(n * h * w, 16 * c)

    @staticmethod
    def join(patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        n, h, w = shape
        patches = patches.view(n, h, w, 2, 2, 2, 2, -1)
        x = patches.new_zeros(n, h + 1, 2, w + 1, 2, patches.shape[-1])
        for i in (0, 1):
            for j in (0, 1):
                x[:, i : i + h, :, j : j + w] += patches[:, :, :, i, :, j].transpose(2, 3)
        return x.view(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = len(x), x.shape[2] // 2, x.shape[3] // 2
        return _Patches.cut(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Patches.join(gradient, ctx.shape)


class _JoinedPatches(torch.autograd.Function):
    """The transpose of ``_Patches``: (n * h * w, 4 * 4 * C) to (n, C, 2h, 2w)."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return _Patches.join(patches, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Patches.cut(gradient), None


class _Conv2d(nn.Conv2d):
    """A 4x4 convolution with stride 2, as one matrix product where pictures are small."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        if max(height, width) > 8 or height % 2 or width % 2:
            return super().forward(x)
        y = _Patches.apply(x) @ self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        y = y.view(n, height // 2, width // 2, -1).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class _ConvTranspose2d(nn.ConvTranspose2d):
    """The same for a transposed convolution, 4x4 with stride 2."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        n, c, height, width = x.shape
        if max(height, width) > 4 or output_size is not None:
            return super().forward(x, output_size)
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        patches = rows @ self.weight.permute(0, 2, 3, 1).flatten(1)
        y = _JoinedPatches.apply(patches, (n, height, width))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


def speed_up(*networks: nn.Module) -> None:
    """Lay networks out for speed; what they compute stays the same, up to rounding.

    Weights and activations are kept in the order of PyTorch's ``channels_last``. On a CPU the 4x4
    convolutions of small pictures (8x8 pixels and less on the larger side) become matrix products
    with the pictures' patches: the convolution library is several times slower there. On a GPU,
    float32 matrix products may use TF32.
    """
    alike = dict(kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1)
    alike |= dict(padding_mode="zeros", output_padding=(0, 0))
    fast = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d}
    for network in networks:
        network.to(memory_format=torch.channels_last)
        for module in network.modules():
            if type(module) in fast and next(network.parameters()).device.type == "cpu":
                if all(getattr(module, name) == value for name, value in alike.items()):
                    module.__class__ = fast[type(module)]
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True


class CapturedStep:
    """A training step that is recorded once as a CUDA graph and then replayed.

    Replaying costs the CPU one call instead of hundreds. The first three calls run plainly on a
    stream of their own, as PyTorch's notes on CUDA graphs ask for; so does a batch smaller than the
    one recorded. Random numbers drawn on the GPU are new at each replay.

    Args:
        step: takes one batch on a CUDA device and returns tensors; everything that it changes must
            be on that device. Optimizers in it need ``capturable=True``.
    """

    def __init__(self, step: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self._step = step
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._size = self._n_plain = 0

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Run the step; what it returns is overwritten by the next call."""
        if len(batch) > self._size:  # a larger one than before: record that
            self._size, self._n_plain, self._graph = len(batch), 0, None
        if len(batch) < self._size or self._n_plain < 3:
            self._n_plain += len(batch) == self._size
            return self._run_plainly(batch)
        if self._graph is None:
            self._batch = batch.clone()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._returned = [tensor.detach() for tensor in self._step(self._batch)]
        self._batch.copy_(batch)
        self._graph.replay()
        return tuple(self._returned)

    def _run_plainly(self, batch: Tensor) -> tuple[Tensor, ...]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # Adam: "but not captured"
            returned = [tensor.detach() for tensor in self._step(batch)]
        torch.cuda.current_stream().wait_stream(self._stream)
        return tuple(returned)


# ------------------------------------------------------------------------------------- training


def apply_preset(
    preset: str, presets: dict[str, dict[str, Any]], by_hand: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Fill in the settings that were not given by hand, and say what was chosen.

    Args:
        preset: a name in ``presets``, or "auto": the environment variable ``FACES_PRESET`` if it
            is set, else "full" where there is an accelerator and "quick" on a CPU.
        presets: each preset's settings.
        by_hand: the same settings among others, ``None`` where the preset decides.

    Returns:
        The preset's name and the settings.

    Raises:
        ValueError: if there is no such preset.
    """
    why = "given by hand"
    if preset == "auto" and os.environ.get("FACES_PRESET"):
        preset, why = os.environ["FACES_PRESET"], "from the environment variable FACES_PRESET"
    elif preset == "auto" and torch.accelerator.is_available():
        preset, why = "full", "auto: there is an accelerator"
    elif preset == "auto":
        preset, why = "quick", "auto: there is no accelerator"
    if preset not in presets:
        raise ValueError(
            f"preset is {preset!r} ({why}): set it to one of auto, {', '.join(presets)}."
        )
    given = {n: by_hand[n] for n in presets[preset] if by_hand.get(n) is not None}
    settings = presets[preset] | given
    print(f"preset {preset} ({why})")
    for name, value in settings.items():
        print(f"  {name} = {value}" + ("  (given by hand)" if name in given else ""))
    return preset, settings


def check_settings(**settings: Any) -> None:
    """Check the notebook's settings before long work starts.

    Raises:
        ValueError: if a setting is out of its range; it names all of them.
    """
    at_least_1 = ("a whole number, at least 1", lambda v: _is_whole(v) and v >= 1)
    fraction = ("at least 0 and below 1", lambda v: 0 <= v < 1)
    learning_rate = ("above 0 and at most 0.01, such as 0.0002", lambda v: 0 < v <= 0.01)
    switches = ["fast", "resume", "skip_broken", "lr_decay", "flips", "augmented", "balanced"]
    switches += ["spectral_norm", "residual", "least_squares", "normal_latents"]
    ranges: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "image_size": ("32 or 64", lambda v: _is_whole(v) and v in (32, 64)),
        "d_lr": learning_rate,
        "g_lr": learning_rate,
        "beta1": fraction,
        "beta2": fraction,
        "ema_decay": fraction,
        "dropout": fraction,
        **dict.fromkeys(switches, ("True or False", lambda v: isinstance(v, bool))),
        "real_label": ("above 0.5 and at most 1", lambda v: 0.5 < v <= 1),
        "seed": ("a whole number from 0 to 2**63 - 1", lambda v: _is_whole(v) and 0 <= v < 2**63),
        "max_images": (
            "a whole number, at least 4, or None",
            lambda v: v is None or _is_whole(v) and v >= 4,
        ),
    }
    wrong = []
    for name, value in settings.items():
        meaning, is_right = ranges.get(name, at_least_1)
        if not (isinstance(value, (int, float, types.NoneType)) and is_right(value)):
            wrong.append(f"{name} is {value!r}: it must be {meaning}.")
    if not wrong and settings.get("beta1", 0) > settings.get("beta2", 1):
        wrong.append(f"beta1 is {settings['beta1']}: it must not be above beta2.")
    if wrong:
        raise ValueError("\n".join(wrong))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def run_folder(path: str | Path, resume: bool = True) -> Path:
    """Choose where a run's files go: ``path``, or ``path-2``, ``path-3`` ... if that is in use.

    Args:
        path: the folder asked for.
        resume: take the first of them that holds the checkpoint of a run, to go on with it.

    Returns:
        The folder, which now exists; nothing that was there before is touched.

    Raises:
        ValueError: if the path has no name of its own, such as ``.``.
        OSError: if it cannot be made or written to.
    """
    folder = Path(path).expanduser()
    if not folder.name:
        raise ValueError(f"output_dir is {path}: give a folder of its own, such as runs/faces.")
    with _first_on_each_machine():
        while folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            if resume and any((folder / name).is_file() for name in CHECKPOINTS):
                break
            name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", folder.name).groups(default="1")
            folder = folder.with_name(f"{name}-{int(number) + 1}")
        _check_writable(folder, "output_dir")
    return folder


class Progress(tqdm):
    """A tqdm line that also reads well in a saved notebook: one line of text, updated in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.handle = None
        kwargs.setdefault("disable", not is_first_process())
        if hasattr(get_ipython(), "kernel"):
            self.handle = display({"text/plain": ""}, raw=True, display_id=True)
            kwargs |= {"file": io.StringIO(), "ncols": 100, "mininterval": 0.5}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the line: the method that tqdm means other front ends to replace."""
        if self.handle is None:
            super().display(msg, pos)
        else:
            self.handle.update({"text/plain": str(self) if msg is None else msg}, raw=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` once all is written."""
    temporary = path.with_name(f".{path.name}")
    try:
        with _naming_a_full_disk(path.parent):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before it takes the name
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# The latest checkpoint, and the one before it.
CHECKPOINTS = ("checkpoint.pt", "checkpoint-before.pt")


def code_of(*roots: Any) -> dict[str, str]:
    """Digests of the source code of functions and classes, to notice a change.

    Args:
        roots: a function, and further functions and classes.

    Returns:
        A digest for each of them, and for all that they use, that are defined where the first one
        is, such as in a notebook; by a name such as "the code of scale". It is "unknown" where the
        source cannot be had.
    """
    digests: dict[str, str] = {}
    todo = [inspect.unwrap(root) for root in roots]
    names = todo[0].__globals__
    while todo:
        item = todo.pop()
        name = f"the code of {item.__name__}"
        if name in digests or item.__module__ != names.get("__name__"):
            continue
        members = vars(item).values() if isinstance(item, type) else [item]
        functions = [m for m in members if isinstance(m, types.FunctionType)]
        try:
            source = "".join(map(inspect.getsource, functions))
            digests[name] = hashlib.sha256(source.encode()).hexdigest()[:12]
        except OSError:
            digests[name] = "unknown"
        codes = [function.__code__ for function in functions]
        while codes:
            code = codes.pop()
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
            used = [inspect.unwrap(names[n]) for n in code.co_names if n in names]
            todo += [u for u in used if isinstance(u, (types.FunctionType, type))]
    return digests


class TrainingRun:
    """What surrounds the training loop: the live line, the printed losses, files, checkpoints.

    After each epoch these are in ``output_dir``: ``losses.csv`` (epoch, batch, d_loss, g_loss),
    ``measures.csv`` (epoch and the measures of its faces), ``samples.npz`` (``samples``: uint8
    (epochs, n, H, W, 3)), ``samples_epoch_NNN.png``, ``generator.safetensors``, the best epoch's
    ``generator_best.safetensors`` and ``checkpoint.pt``. Each is written whole under another name
    first. A run whose checkpoint is there goes on from it; on a CPU it ends bit for bit as if it
    had never stopped. The stop button, Ctrl-C and SIGTERM end the run after the current step, with
    a checkpoint. Of several processes, the first one writes.

    Use it as a context manager, and loop over ``epochs`` and ``batches``.

    Args:
        output_dir: where the files go.
        n_epochs: number of epochs.
        print_every: number of batches from one printed line to the next.
        parts: what the training changes, by name: networks, optimizers, tensors. They are brought
            to the state of the checkpoint, if there is one. Learning rate schedules among them are
            stepped after each batch.
            "G_average" among them is the network that ``generator.safetensors`` keeps, and the best
            epoch's file: that with the smallest sliced Wasserstein distance ("swd").
        settings: numbers and texts that must not have changed for a run to go on; ``n_epochs`` may,
            if there are no schedules. They are stored with the weights, so that the network can be
            built again.
        train: the function that trains; its code, that of what it uses and of the networks must not
            have changed either.

    Attributes:
        losses: one (d_loss, g_loss) a batch. On a CPU they are read after each batch, elsewhere
            when a line is printed and at the end of an epoch.

    Raises:
        ValueError: if the checkpoint was made with other settings, cannot be read or does not fit.
        RuntimeError: if another run writes to the folder.
        FloatingPointError: (while training) if a loss or a weight is no longer finite.
    """

    def __init__(
        self,
        output_dir: str | Path,
        n_epochs: int,
        print_every: int,
        parts: dict[str, Any],
        settings: dict[str, Any],
        train: Callable[..., Any],
    ) -> None:
        if print_every < 1:
            raise ValueError(f"print_every is {print_every}: it must be at least 1.")
        self.output_dir = Path(output_dir)
        self.n_epochs = n_epochs
        self.print_every = print_every
        self.losses: list[tuple[float, float]] = []
        self._parts = parts
        self._generator = parts["G_average"]
        self._schedules = [part for part in parts.values() if isinstance(part, LRScheduler)]
        networks = {type(part) for part in parts.values() if isinstance(part, nn.Module)}
        may_change = set() if self._schedules else {"n_epochs"}
        self._settings = {n: value for n, value in settings.items() if n not in may_change}
        self._metadata = {name: str(value) for name, value in self._settings.items()}
        self._settings |= code_of(train, *networks)
        self._batches: list[tuple[int, int]] = []
        self._unread: list[Tensor] = []
        # Samples, uint8 (16, H, W, 3), and measures of each epoch done; the best one's weights.
        self._results: dict[str, Any] = {"samples": [], "measures": [], "best": {}}
        self._epoch = 0  # epochs done
        self._batch = 0  # batches done in the one after
        self._complete = False  # whether that one has come to its end
        self._order = torch.empty(0)  # the random state that its order was drawn from
        self._random: dict[str, Any] | None = None  # the random states to go on with
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._warning = ""

    def __enter__(self) -> TrainingRun:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.output_dir / ".lock")
        try:
            if is_first_process():
                self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"Another run writes to {self.output_dir}: wait for it, or set output_dir to "
                "another folder."
            ) from None
        try:
            self._load()
        except BaseException:
            self._lock.release()
            raise
        one_process = not dist.is_initialized()  # several would not stop at the same step
        if one_process and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note_signal)
        self._progress = Progress(
            total=1, bar_format="{desc} |{bar}| {percentage:3.0f}%, {remaining} left"
        )
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._progress.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._lock.release()
        if self._signal == signal.SIGTERM:
            sys.stdout.flush()
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def _note_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # the second time: do not wait for the end of the step
            raise KeyboardInterrupt
        self._signal = number

    def epochs(self) -> Iterator[int]:
        """Count the epochs that are still to do, from 1; end early if the run is to stop."""
        while self._epoch < self.n_epochs and self._signal is None:
            yield self._epoch + 1

    def batches(self, loader: DataLoader) -> Iterator[Any]:
        """Go through an epoch's batches; those done before a stop are passed over."""
        states, self._random, done = self._random, None, self._batch
        if states is not None:
            _set_random_states(states | ({"torch": self._order} if done else {}))
        self._order = torch.get_rng_state()
        self._n_images, self._started = 0, time.perf_counter()
        n_processes = dist.get_world_size() if dist.is_initialized() else 1
        if self._progress.total == 1:  # only now is it known how much there is to do
            self._progress.total = self.n_epochs * len(loader)
            self._progress.initial = self._progress.n = self._epoch * len(loader) + done
        for batch in itertools.islice(loader, done, None):
            if states is not None and done:  # as they were after the last of the batches done
                _set_random_states(states)
                states = None
            self._n_images += len(batch[0]) * n_processes
            if len(batch[0]):
                yield batch
            elif self._batch:
                self._batch += 1  # the last, too small for all processes to have a share of it
            else:
                raise ValueError("batch_size is smaller than the number of processes: raise it.")
            if self._signal is not None and self._batch < len(loader):
                return
        self._complete = True

    def end_batch(self, d_loss: Tensor, g_loss: Tensor) -> None:
        """Note a batch's losses (scalar tensors on any device); print them if it is their turn."""
        epoch = self._epoch + 1
        self._batches.append((epoch, self._batch))
        for schedule in self._schedules:
            schedule.step()
        self._unread.append(torch.stack([d_loss.detach(), g_loss.detach()]).float())
        prints = self._batch % self.print_every == 0
        self._batch += 1
        speed = self._n_images / (time.perf_counter() - self._started)
        line = f"epoch {epoch} of {self.n_epochs}, {speed:,.0f} images/s{self._warning}"
        self._progress.set_description_str(line, refresh=False)
        self._progress.update()
        if prints or d_loss.device.type == "cpu":
            self._read_losses()
        if prints:
            d, g = self.losses[-1]
            _say(f"Epoch [{epoch:5d}/{self.n_epochs:5d}] | d_loss: {d:6.4f} | g_loss: {g:6.4f}")

    def _read_losses(self) -> None:
        if self._unread:  # the one place that waits for the device
            unread = torch.stack(self._unread)
            if dist.is_initialized():  # the mean over the shares of the batch
                dist.all_reduce(unread.div_(dist.get_world_size()))
            new = unread.tolist()
            self._unread.clear()
            for i, (d, g) in enumerate(new, start=len(self.losses)):
                if not math.isfinite(d + g):
                    raise self._not_finite("A loss", *self._batches[i])
            self.losses += [(d, g) for d, g in new]

    def _not_finite(self, what: str, epoch: int, batch: int) -> FloatingPointError:
        last = self.output_dir / CHECKPOINTS[0]
        found = (
            f"The last good checkpoint is {last}" if last.is_file() else "There is no checkpoint"
        )
        return FloatingPointError(
            f"{what} is no longer finite in epoch {epoch}, batch {batch}: the training has "
            f"diverged. {found}. Try a smaller learning rate."
        )

    def end_epoch(self, faces: Tensor, judge: Callable[[Tensor], dict[str, float]]) -> None:
        """Measure the faces and write the files; say so if the training seems to have failed.

        Args:
            faces: what the generator makes of the fixed latents, (n, 3, H, W) in [-1, 1]; the first
                16 are kept as samples.
            judge: measures them; "swd" among its measures says which epoch is the best.
        """
        self._read_losses()
        for name, part in self._parts.items():
            tensors = part.state_dict().values() if isinstance(part, nn.Module) else [part]
            if not all(t.isfinite().all() for t in tensors if isinstance(t, Tensor)):
                raise self._not_finite(f"A weight of {name}", self._epoch + 1, self._batch - 1)
        results = self._results
        if is_first_process():
            results = self._results_with(faces, judge(faces))
        if self._complete:
            self._watch(to_uint8(faces[:16]))
            self._results = results
            self._epoch, self._batch, self._complete = self._epoch + 1, 0, False
        if is_first_process():
            self._save()
            self._write(results)
        if self._signal is not None and self._epoch < self.n_epochs:
            place = f"in epoch {self._epoch + 1}, after {self._batch} of its batches"
            _say(
                f"Stopped {place}. To go on from there, run this again with resume = True and "
                f'output_dir = "{self.output_dir}".'
            )

    def _results_with(self, faces: Tensor, measures: dict[str, float]) -> dict[str, Any]:
        """The results with those of one more epoch."""
        best = self._results["best"]
        if all(measures["swd"] < earlier["swd"] for earlier in self._results["measures"]):
            best = {n: t.detach().cpu().clone() for n, t in self._generator.state_dict().items()}
        return {
            "samples": [*self._results["samples"], torch.from_numpy(to_uint8(faces[:16]))],
            "measures": [*self._results["measures"], measures],
            "best": best,
        }

    def _write(self, results: dict[str, Any]) -> None:
        """Write what the checkpoint holds, or a stopped epoch has so far, in the usual formats."""
        if self._epoch:
            with writing(self.output_dir / f"samples_epoch_{self._epoch:03d}.png") as path:
                grid = image_grid(results["samples"][self._epoch - 1].numpy(), columns=8)
                Image.fromarray(grid).save(path, "PNG")
        with writing(self.output_dir / "losses.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "batch", "d_loss", "g_loss"])
            writer.writerows(
                (*b, *loss) for b, loss in zip(self._batches, self.losses, strict=True)
            )
        with writing(self.output_dir / "measures.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *results["measures"][0]])
            rows = enumerate(results["measures"], start=1)
            writer.writerows([epoch, *measures.values()] for epoch, measures in rows)
        with writing(self.output_dir / "samples.npz") as path:
            np.savez_compressed(path, samples=torch.stack(results["samples"]).numpy())
        weights = {"generator": self._generator.state_dict(), "generator_best": results["best"]}
        for name, state in weights.items():
            with writing(self.output_dir / f"{name}.safetensors") as path:
                state = {n: t.detach().cpu().contiguous() for n, t in state.items()}
                path.write_bytes(safetensors.torch.save(state, self._metadata))

    def _watch(self, pictures: np.ndarray) -> None:
        """Notice a discriminator that has won, and samples that have collapsed."""
        # With D(x) = 0.99 for all real images and 0.01 for all generated ones d_loss is 0.02 above
        # its minimum (which is 0 for real_label = 1). A run that went well ended 0.07 above it.
        label = torch.tensor(float(self._settings.get("real_label", 1)))
        floor = torch.special.entr(label) + torch.special.entr(1 - label)
        # Squared differences are 0.5 where D only guesses, and 0.005 if it is off by 0.05.
        margin = 0.005 if self._settings.get("least_squares") else 0.02
        floor = 0 if self._settings.get("least_squares") else float(floor)
        d_losses = [d for d, _ in self.losses[-self._batch :]]
        # Two faces, real or well drawn, differ by 60 to 80 grey levels (root mean square).
        rows = torch.from_numpy(pictures).flatten(1).float()
        distance = torch.pdist(rows).mean() / rows.shape[1] ** 0.5
        warnings_before, self._warning = self._warning, ""
        if np.mean(d_losses) < floor + margin:
            self._warning += "; the discriminator has won"
        if distance < 20:
            self._warning += "; the samples have collapsed to one"
        if self._warning and self._warning != warnings_before:
            _say(f"Warning, epoch {self._epoch + 1}{self._warning}")

    def _save(self) -> None:
        """Write a checkpoint, and keep the one before."""
        parts = {
            name: part if isinstance(part, Tensor) else part.state_dict()
            for name, part in self._parts.items()
        }
        state = {"settings": self._settings, "parts": parts, "random": self._random_states()}
        state |= {"epoch": self._epoch, "batch": self._batch, "order": self._order}
        state |= {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        state |= {"batches": torch.tensor(self._batches)}
        state |= {"results": self._results}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        latest, before = (self.output_dir / name for name in CHECKPOINTS)
        with writing(latest) as path:
            path.write_bytes(buffer.getbuffer())
            if latest.is_file():
                os.replace(latest, before)

    def _load(self) -> None:
        """Go on from the checkpoint, if there is one; all processes from that of the first."""
        read = [self._read_checkpoint() if is_first_process() else None]
        if dist.is_initialized():
            dist.broadcast_object_list(read)
        if read[0] is None:
            return
        path, state, hint = read[0]
        saved = state["settings"]
        names = [n for n in saved | self._settings if saved.get(n) != self._settings.get(n)]
        if names:
            lines = [f"  {n}: {saved.get(n)} there, {self._settings.get(n)} now" for n in names]
            raise ValueError(
                f"{self.output_dir} holds a run with other settings:\n"
                + "\n".join(lines)
                + f"\nSet them back to go on with it, or {hint}."
            )
        try:
            for name, part in self._parts.items():
                if isinstance(part, Tensor):
                    part.copy_(state["parts"][name])
                    continue
                groups = part.param_groups if isinstance(part, torch.optim.Optimizer) else []
                how = [{n: g[n] for n in ("capturable", "fused", "lr") if n in g} for g in groups]
                part.load_state_dict(state["parts"][name])
                for group, kept in zip(getattr(part, "param_groups", []), how, strict=True):
                    lr = float(group["lr"])
                    group.update(kept)  # these are of the device, not of the run
                    if isinstance(group["lr"], Tensor):  # which a recorded step reads
                        group["lr"].fill_(lr)
                    else:
                        group["lr"] = lr
            self._epoch, self._batch, self._order = state["epoch"], state["batch"], state["order"]
            self._random = state["random"]
            self.losses = [(d, g) for d, g in state["losses"].tolist()]
            self._batches = [(epoch, batch) for epoch, batch in state["batches"].tolist()]
            self._results = state["results"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} does not fit these networks ({error}): {hint}.") from None
        if is_first_process() and self._epoch:  # a kill may have come before they were written
            self._write(self._results)
        done = f"{self._epoch} epochs" + (f" and {self._batch} batches" if self._batch else "")
        if self._epoch < self.n_epochs:
            _say(f"Going on from {path}: {done} are done.")
        else:
            more = "" if self._schedules else "; to go on, raise n_epochs"
            _say(
                f"{path} holds this run already, {done}: nothing is left to train. To do it anew, "
                f"set resume = False{more}."
            )

    def _read_checkpoint(self) -> tuple[Path, dict[str, Any], str] | None:
        """Find and read the latest checkpoint; with a hint for the messages that it is no use."""
        found = [p for name in CHECKPOINTS if (p := self.output_dir / name).is_file()]
        if not found:
            return None
        path = found[0]
        hint = "set resume = False (or another output_dir) for a new run"
        data = path.read_bytes()
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return path, dict(state, settings=dict(state["settings"])), hint
        except Exception as error:  # torch.load raises many kinds
            hint += f", or delete it to go on from {found[1].name}" if found[1:] else ""
            reason = (str(error).splitlines() or [""])[0]
            if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to load it anyway
                reason = "it is cut off, or holds more than numbers"
            raise ValueError(
                f"{path} is damaged, or is no checkpoint of this notebook ({reason}): {hint}."
            ) from None

    def _random_states(self) -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state()
        states = {"torch": torch.get_rng_state(), "numpy": [kind, torch.from_numpy(keys), *rest]}
        device = next(self._generator.parameters()).device
        if device.type != "cpu":
            states[device.type] = torch.get_device_module(device).get_rng_state()
        return states


def _set_random_states(states: dict[str, Any]) -> None:
    for name, state in states.items():
        if name == "torch":
            torch.set_rng_state(state)
        elif name == "numpy":
            kind, keys, *rest = state
            np.random.set_state((kind, keys.numpy(), *rest))
        elif torch.accelerator.is_available():
            torch.get_device_module(name).set_rng_state(state)


def _say(line: str) -> None:
    """Print a line above the live line, in the first process only."""
    if is_first_process():
        tqdm.write(line)


# ------------------------------------------------------------------------------------- measures


def sliced_wasserstein(
    images: np.ndarray, others: np.ndarray, n_patches: int = 32, n_directions: int = 128
) -> dict[int, float]:
    """Sliced Wasserstein distance between two sets of pictures, at each level of detail.

    Both sets are taken apart into a Laplacian pyramid, and each level into patches of 7x7 pixels,
    at places drawn at random but always the same. Each set's patches are scaled to mean 0 and
    variance 1 in each colour, so that a tint or a contrast that all pictures share does not count.
    The distance is the mean, over random directions, of the Wasserstein distance between the two
    sets of patches projected on a direction. Karras et al., Progressive growing of GANs, 2018,
    https://arxiv.org/abs/1710.10196, section 5; they take 128 patches a picture and 512 directions.

    Args:
        images: uint8 array (n, H, W, 3), H = W = 16, 32, 64 ...
        others: uint8 array (n, H, W, 3): as many of the same size.
        n_patches: patches taken from each picture.
        n_directions: directions that the patches are projected on.

    Returns:
        The distance times 1000 by the side of the level's pictures, the finest first. Between two
        sets drawn from the same pictures it is not 0, but shrinks as they grow: compare it with
        that floor.

    Raises:
        ValueError: if the two sets have not the same shape.
    """
    if images.shape != others.shape:
        raise ValueError(
            f"The sets of pictures have the shapes {images.shape} and {others.shape}: they must be "
            "the same."
        )
    random = torch.Generator().manual_seed(0)
    distances = {}
    for level, other in zip(_laplacian_pyramid(images), _laplacian_pyramid(others), strict=True):
        n, _, side, _ = level.shape
        corners = torch.randint(side - 6, (2, 2, n, n_patches), generator=random)
        directions = torch.randn(3 * 7 * 7, n_directions, generator=random)
        directions /= directions.norm(dim=0)
        a, b = (
            (_patches_at(pictures, *places) @ directions).T.contiguous().sort(dim=1).values
            for pictures, places in [(level, corners[0]), (other, corners[1])]
        )  # (n_directions, n * n_patches) each
        distances[side] = 1000 * (a - b).abs().mean().item()
    return distances


def _laplacian_pyramid(images: np.ndarray) -> list[Tensor]:
    """Take pictures apart by detail; the last level, of 16x16 pixels or less, is what remains."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
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
    patches = cut[torch.arange(len(pictures))[:, None], :, top, left].flatten(0, 1)
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp(min=1e-3)).flatten(1)


def diversity(images: np.ndarray) -> float:
    """Mean difference between two pictures of a set, 1 - MS-SSIM: 0 if all are the same.

    MS-SSIM (Wang et al., 2003) compares brightness, contrast and structure of two pictures at three
    scales; Odena et al. use it for the diversity of generated pictures (2017,
    https://arxiv.org/abs/1610.09585). The pairs are each picture of the first half with that of the
    second half; the window is made smaller than usual, to fit pictures of 32x32.

    Args:
        images: uint8 array (n, H, W, 3) in random order, n >= 2, H and W at least 32.
    """
    pictures = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    half = len(pictures) // 2
    weights = torch.tensor([0.0448, 0.2856, 0.3001])  # the first three of five in the paper
    similarity = multiscale_structural_similarity_index_measure(
        pictures[:half],
        pictures[half : 2 * half],
        sigma=0.8,  # makes a window of 7 pixels, which fits into the smallest level
        kernel_size=7,
        betas=tuple((weights / weights.sum()).tolist()),
        data_range=255.0,
        normalize="relu",
    )
    return 1 - similarity.item()


def typology_angles(images: np.ndarray) -> np.ndarray:
    """Individual typology angle of the middle of each face: how light it is, and how yellow.

    arctan((L* - 50) / b*) of the median colour of a patch across the nose and the cheeks beside it,
    in CIELAB under D65 (Chardon et al., Skin colour typology and suntanning pathways, 1991).
    Measured on skin under a fixed light it sorts skin by its colour (see ``TYPOLOGY``); in a
    photograph, the light, the exposure and make-up count as much.

    Args:
        images: uint8 array (n, H, W, 3) in sRGB, cropped to the face as CelebA is.

    Returns:
        Degrees (n,), larger is lighter; NaN where the patch is not yellow at all (b* below 1), as
        in a black-and-white photograph: there the angle means nothing.
    """
    height, width = images.shape[1:3]
    rows = slice(round(0.56 * height), round(0.72 * height))
    columns = slice(round(0.34 * width), round(0.66 * width))
    colors = []
    for start in range(0, len(images), 4096):  # a block at a time: memory stays small
        colors.append(np.median(images[start : start + 4096, rows, columns], axis=(1, 2)))
        release_memory(images)
    rgb = np.concatenate(colors) / 255  # (n, 3)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _SRGB_TO_XYZ.T / _SRGB_TO_XYZ.sum(axis=1)  # each relative to white
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness, b = 116 * f[:, 1] - 16, 200 * (f[:, 1] - f[:, 2])
    return np.degrees(np.arctan2(lightness - 50, np.where(b >= 1, b, np.nan)))


def typology_shares(images: np.ndarray) -> dict[str, float]:
    """The share of each class of ``TYPOLOGY`` in faces, uint8 (n, H, W, 3); from dark to light.

    Faces without an angle do not count.
    """
    classes = _typology_classes(images)
    counts = np.bincount(classes[classes >= 0], minlength=len(TYPOLOGY))
    return dict(zip(TYPOLOGY, (counts / max(1, counts.sum())).tolist(), strict=True))


def _typology_classes(images: np.ndarray) -> np.ndarray:
    """The class of each picture (n,), from 0 for dark; -1 for those without an angle."""
    angles = typology_angles(images)
    return np.where(np.isnan(angles), -1, np.digitize(angles, list(TYPOLOGY.values())[1:]))


def balancing_weights(images: np.ndarray) -> np.ndarray:
    """How often to draw each picture so that all typology classes are drawn equally often.

    Pictures without an angle are drawn as often as if there were no weights.

    Args:
        images: uint8 array (n, H, W, 3) of faces.

    Returns:
        A weight for each picture (n,), with mean 1; classes without a picture do not count.
    """
    classes = _typology_classes(images)
    has_class = classes >= 0
    counts = np.bincount(classes[has_class])
    weights = np.ones(len(images))
    weights[has_class] = has_class.sum() / counts[classes[has_class]] / np.count_nonzero(counts)
    return weights


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
    if features is None:
        if not (CACHE / Path(INCEPTION_URL).name).is_file() and not _is_reachable(INCEPTION_URL):
            raise OSError(f"{INCEPTION_URL} cannot be reached.")
        try:
            weights = _download(INCEPTION_URL, INCEPTION_SHA256)
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


class Judge:
    """Measures how close a generator's pictures are to real ones, cheaply enough for each epoch.

    Args:
        training: the pictures that it learns from, uint8 (N, H, W, 3).
        held_out: real pictures that it does not learn from, uint8 (M, H, W, 3), M >= 2.

    Attributes:
        size: how many pictures are compared with as many held-out ones, up to 1000.
        floor: what the same measures give for training pictures in the generator's place.
    """

    def __init__(self, training: np.ndarray, held_out: np.ndarray) -> None:
        if len(held_out) < 2:
            raise ValueError(f"{len(held_out)} images are held out: at least 2 are needed.")
        random = np.random.default_rng(0)
        self.size = min(1000, len(training), len(held_out))
        self._training = training
        self._held_out = held_out[random.permutation(len(held_out))[: 5 * self.size]]
        chosen = random.permutation(len(training))[: 5 * self.size]
        self.floor = self._measure(training[chosen], chosen)

    def __call__(self, faces: Tensor) -> dict[str, float]:
        """Measure pictures of a generator, float (n, 3, H, W) in [-1, 1].

        Those of another size than the real ones are resized first.

        Returns:
            "swd": the mean of the sliced Wasserstein distances from held-out pictures over the
            levels of detail, and "swd_SIDE", that of each level; "diversity"; "nearest": the median
            distance from a picture to its nearest training picture, in grey levels. If ``n`` is
            several times ``size``, each is the mean over sets of that size, up to five.
        """
        size = list(self._held_out.shape[1:3])
        return self._measure(to_uint8(v2.functional.resize(faces, size, antialias=True)))

    def _measure(self, images: np.ndarray, own: np.ndarray | None = None) -> dict[str, float]:
        size = min(len(images), self.size)
        sets: list[dict[str, float]] = []
        for start in range(0, min(len(images), 5 * size) - size + 1, size):
            part = images[start : start + size]
            places = np.arange(start, start + size) % len(self._held_out)
            others = self._held_out[places]  # each set has others, as far as there are some
            distances = sliced_wasserstein(part, others)
            measures = {"swd": sum(distances.values()) / len(distances)}
            measures |= {f"swd_{side}": distance for side, distance in distances.items()}
            itself = None if own is None else own[start : start + size][:200]
            _, nearest = nearest_images(part[:200], self._training, itself)
            measures |= {"diversity": diversity(part), "nearest": float(np.median(nearest))}
            sets.append(measures)
        return {name: float(np.mean([one[name] for one in sets])) for name in sets[0]}


# ------------------------------------------------------------------------------------- pictures


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures out row by row on white.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.

    Returns:
        uint8 array (rows * (H + 2) + 2, columns * (W + 2) + 2, 3); fewer pictures than ``columns``
        make a shorter row, and a single one comes back as it is.
    """
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def show_images(
    images: np.ndarray,
    columns: int = 8,
    path: str | Path | None = None,
    row_labels: list[str] | None = None,
) -> None:
    """Show pictures in rows, and save the figure.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.
        path: where to save the figure, if anywhere.
        row_labels: a text for each row.
    """
    grid = image_grid(images, columns)
    rows = math.ceil(len(images) / columns)
    size = (10, 10 * grid.shape[0] / grid.shape[1])  # inches
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0)
    axes.imshow(grid, interpolation="bicubic")
    axes.set(xticks=[], yticks=[], frame_on=False)
    if row_labels is not None:
        axes.set_yticks((np.arange(rows) + 0.5) * grid.shape[0] / rows, row_labels)
        axes.tick_params(length=0)
    if path is not None:
        with writing(Path(path)) as temporary:
            figure.savefig(temporary)
    plt.show()


def save_animation(frames: list[np.ndarray], path: str | Path, milliseconds: int = 300) -> None:
    """Save pictures as an endless GIF, twice their size, the last one held for longer.

    Args:
        frames: uint8 arrays (H, W, 3) of one size.
        path: of the GIF.
        milliseconds: how long each is shown.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures = [p.resize((2 * p.width, 2 * p.height), Image.Resampling.BICUBIC) for p in pictures]
    durations = [milliseconds] * (len(pictures) - 1) + [6 * milliseconds]
    with writing(Path(path)) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
