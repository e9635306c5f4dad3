"""Images: found, decoded once, kept as one array, and handed out a batch at a time.

A file becomes pixels in ``decode``, all files become one uint8 array in ``load_images``, and rows
of that array become a float tensor in ``FaceDataset``.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import mmap
import os
import re
import stat
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import pooch
import torch
import torchvision
from PIL import ExifTags, Image, ImageChops, ImageCms
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from faces import files
from faces.files import acquire_lock, atomic_write, check_writable, printable
from faces.parallel import Progress, find_device, local_main_process_first

Images = np.ndarray | Tensor  # uint8 (n, H, W, 3)

_BY_EXTENSION = Image.registered_extensions()  # AVIF is in it where this PIL can read it
FORMATS = tuple(  # PIL's others can start programs
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
    if name in _BY_EXTENSION.values()
)
EXTENSIONS = tuple(sorted(end for end, name in _BY_EXTENSION.items() if name in FORMATS))
OTHER_EXTENSIONS = (  # of images that are not read, which is said
    *(".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".xcf", ".svg"),
    *(".tga", ".ico", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}
LARGEST = 2**30 // 4 // 3  # pixels: 256 MiB as RGB; above it PIL warns of a bomb
LONGEST = 64  # times the short side: a resize makes the short side 32 pixels
ADVICE = "save it with 8 bits a channel"
UPRIGHT = {  # what sets an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What the file itself causes: an OSError with another number is the fault of a drive or a network.
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
OF_THE_FILE |= {errno.EACCES, errno.EPERM, errno.EOVERFLOW}
READ_TRIES = 3
READ_PAUSE = 0.5  # seconds before the next try
_HEADER = 128  # bytes of an .npy file before the pixels: numpy leaves room for any number of them

# ------------------------------------------------------------------------ files


def check_path(data_dir: str | Path) -> Path:
    """Turn the setting ``data_dir`` into a path, with the user's home in place of ``~``.

    Raises:
        ValueError: if it cannot be one: ``None``, a number, or ``~`` with an unknown user.
    """
    try:
        if "\0" in os.fspath(data_dir):
            raise ValueError("a zero byte")
        return Path(data_dir).expanduser()
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"data_dir is {data_dir!r}. Set it to the path of a folder of images, or of a zip, as "
            "text."
        ) from error


def is_image_name(path: Path) -> bool:
    """Tell by a relative path whether an image lies there: by its ending, and not hidden.

    It may be of a kind that is not read: ``find_images`` says so.
    """
    ending = path.suffix.lower()
    is_known = ending in EXTENSIONS or ending in OTHER_EXTENSIONS
    return is_known and not any(map(is_hidden, path.parts))


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name is left out, such as ``._1.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(
    folder: str | Path,
    max_images: int | None = None,
    seed: int | None = None,
    split: str | None = None,
) -> list[Path]:
    """List the image files below a folder, at any depth, sorted; hidden ones are left out.

    Links to folders are followed, but no folder is visited twice. Images of a kind that is not read
    are counted and printed, unless a split is asked for.

    Args:
        folder: where the images lie.
        max_images: how many to take, drawn at random; all of them if ``None`` or too large.
        seed: of that draw.
        split: "test" for about a tenth of these, held out by a hash of their names (two of a small
            set), "train" for the others, ``None`` for all.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        OSError: if a folder may not be read; it names it.
        ValueError: if there is no such split, or there are too few images to hold some out; if
            ``folder`` cannot be a path.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"split is {split!r}: it must be 'train', 'test' or None.")
    folder = check_path(folder)
    found = sorted(_images_below(folder)) if folder.is_dir() else []
    paths = [path for path in found if path.suffix.lower() in EXTENSIONS]
    left_out = _describe_others([path for path in found if path.suffix.lower() not in EXTENSIONS])
    if not paths:
        endings = ", ".join(EXTENSIONS)
        raise FileNotFoundError(
            f"There is no folder {folder}, or no image in it ({endings}). Set data_dir to a folder "
            f"of images.{left_out}"
        )
    if left_out and split is None:
        print(left_out.strip())
    names_repeat = len({path.name for path in paths}) < len(paths)
    if max_images is not None and max_images < len(paths):
        chosen = np.random.default_rng(seed).choice(len(paths), max_images, replace=False)
        paths = [paths[i] for i in sorted(chosen)]
    if split is None:
        return paths
    if len(paths) < 4:
        raise ValueError(f"{folder} holds {len(paths)} images: at least 4 are needed.")
    # By the name alone, so that a face stays on its side in whatever folder it lies; by the place
    # too where names repeat.
    names = [p.relative_to(folder).as_posix() if names_repeat else p.name for p in paths]
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    hashes = np.array([int.from_bytes(digest[:8]) / 2**64 for digest in digests])
    held_out = hashes < max(0.1, np.partition(hashes, 2)[2])
    return [path for path, out in zip(paths, held_out, strict=True) if out == (split == "test")]


def _images_below(folder: Path) -> Iterator[Path]:
    visited, waiting = set(), [(folder, os.path.realpath(folder))]
    while waiting:  # in Python 3.11, os.walk calls itself for each level, of which may be 1,000
        place, real = waiting.pop()
        if real in visited:
            continue
        visited.add(real)
        walk = os.walk(place, onerror=files.refuse_unreadable)
        for _, folders, names in itertools.islice(walk, 1):
            for name in sorted((name for name in folders if not is_hidden(name)), reverse=True):
                inside = os.path.join(real, name)
                if os.path.islink(inside):  # realpath looks at each folder above it
                    inside = os.path.realpath(inside)
                waiting.append((Path(place, name), inside))
            yield from (Path(place, name) for name in names if is_image_name(Path(name)))


def _describe_others(paths: list[Path]) -> str:
    """Say how many images are of a kind that is not read, if any, with a space before it."""
    if not paths:
        return ""
    counts = Counter(path.suffix.lower() for path in paths).most_common()
    kinds = ", ".join(f"{n:,} {ending}" for ending, n in counts)
    return (
        f" {len(paths):,} images are left out ({kinds}), such as {printable(str(paths[0]))}: save "
        "them as JPEG or PNG to use them."
    )


# ------------------------------------------------------------------------ one image


def decode(path: Path, transform: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Decode a file by its content, whatever its name; see ``load_images`` for what is done to it.

    Returns:
        What ``transform`` makes of the image, uint8 array (H, W, 3).

    Raises:
        Exception: of nearly any kind, if the file is damaged, no photograph, or no file at all.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")  # opening a pipe would wait for ever
    with _open(path) as opened:
        if opened.width * opened.height > LARGEST:  # a JPEG can be decoded at half its size
            opened.draft(None, (opened.width // 2, opened.height // 2))
        size = f"{opened.width:,} x {opened.height:,} pixels"
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{size} are more than {LARGEST:,}: make it smaller")
        if max(opened.size) > LONGEST * min(opened.size):
            raise ValueError(f"{size}: it is more than {LONGEST} times as long as wide: crop it")
        image = _convert_to_rgb(opened)
    if image.size == (178, 218):
        image = v2.functional.center_crop(image, 108)
    pixels = np.asarray(transform(image))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise TypeError(f"transform makes {pixels.dtype} {pixels.shape}, not uint8 (H, W, 3)")
    return pixels


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * LARGEST:,} pixels: make it smaller") from error
    except PIL.UnidentifiedImageError:
        with open(path, "rb") as file:
            brand = file.read(12)[4:]
        kind = BRANDS.get(brand[4:]) if brand[:4] == b"ftyp" else None
        if kind is None:
            raise
        raise ValueError(f"it is {kind}, whatever its name: save it as JPEG or PNG") from None


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image just opened, of any mode, to sRGB, and set it upright."""
    is_deep = image.mode[0] in "IF" or ";16" in str(image.tile)  # more than 8 bits a channel
    is_bmp, profile = image.format == "BMP", image.info.get("icc_profile")
    image.load()
    turn = None
    with suppress(Exception):  # metadata that cannot be read decide about nothing
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode[0] in "IF":  # convert() would clip these to 8 bits
        values, top = np.asarray(image), 1 if image.mode == "F" else 65535
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= top:
            raise ValueError(
                f"its values, {low:g} to {high:g}, are not from 0 to {top:,}: {ADVICE}"
            )
        image = Image.fromarray((values * (65535 // top) // 256).astype(np.uint8))
    mode = image.mode
    if is_bmp and mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # its writer left the fourth byte empty
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    plain = image.convert("RGB")
    if is_deep and max(high for _, high in plain.getextrema()) < 16:
        raise ValueError(f"it is black, or uses 12 of 16 bits or fewer: {ADVICE}")
    to_srgb = _find_conversion(profile, mode)
    return plain if to_srgb is None else to_srgb.apply(image.convert(to_srgb.input_mode))


@lru_cache(maxsize=64)
def _find_conversion(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Find what turns the colours of a profile into sRGB.

    Returns:
        ``None`` if there is nothing to do: there is no profile, it cannot be read, it is not for
        images of this mode, or it differs from sRGB by no more than 2 of 255.
    """
    if not profile:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        given = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[opened.profile.xcolor_space]
        if given != mode.removesuffix("A") and (given != "RGB" or mode == "CMYK"):
            return None
        to_srgb = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), given, "RGB")
        values = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(values, values, values), axis=-1).reshape(18, -1, 3)
        before = Image.fromarray(colours).convert(given)
        difference = ImageChops.difference(to_srgb.apply(before), before.convert("RGB"))
    except Exception:  # a damaged profile can raise nearly any kind
        return None
    return to_srgb if max(high for _, high in difference.getextrema()) > 2 else None


# ------------------------------------------------------------------------ one array of all


def load_images(
    paths: list[Path],
    transform: Callable[[Image.Image], Image.Image],
    data_dir: str | Path | None = None,
    skip_broken: bool = False,
) -> np.ndarray:
    """Decode image files into one array; with ``data_dir``, once and for all later runs.

    An aligned CelebA original (178x218) is cropped to its central 108x108 first, as the processed
    set was. Transparency becomes white, 16 bits a channel become 8, colours with a profile become
    sRGB, turned photographs are set upright, and JPEGs of more than 89 million pixels are decoded
    at half their size.

    Args:
        paths: the files.
        transform: takes an RGB image of any size and returns one of a fixed size, the same for the
            same image.
        data_dir: the folder of the images. The array is kept beside it (in the user's cache folder
            if nothing can be written there), in ``.NAME-arrays``, until a file's size or times, one
            of the other arguments, or what ``transform`` makes of the first files changes. It is
            read once to test its checksum, and then mapped from the disk.
        skip_broken: leave files that cannot be decoded out, and say how many. Without ``data_dir``,
            for a look at some images, they are left out in any case.

    Returns:
        uint8 array (n, H, W, 3), n = len(paths) without those left out; read-only with
        ``data_dir``.

    Raises:
        ValueError: if files cannot be decoded, or none can; it names them. If ``transform`` makes
            something else than RGB pictures of one size.
        OSError: if the disk is full, nothing can be written anywhere, or the drive of the images
            fails: then no image is left out, and no array is kept.
    """
    if data_dir is None:
        return np.concatenate(list(_decode_blocks(paths, transform, skip_broken=True)))
    folder, names, states = _find_array(paths, transform, check_path(data_dir), skip_broken)
    with local_main_process_first(), acquire_lock(folder / f".{names}.lock"):
        kept = folder.glob(f"{names}-{states}-*.npy")  # the name ends with a checksum
        path = next((path for path in kept if path.stem.endswith(_hash_file(path))), None)
        if path is None:
            # Of the same files before they changed, damaged, or of a run that was killed.
            for other in folder.glob(f"*{names}-*.npy"):
                with suppress(PermissionError):  # on Windows, while a kernel has it open
                    other.unlink(missing_ok=True)
            path = folder / f"{names}-{states}.npy"
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                _write_array(file, _decode_blocks(paths, transform, skip_broken))
            path = path.rename(path.with_stem(f"{path.stem}-{_hash_file(path)}"))
    images = np.load(path, mmap_mode="r")
    if len(images) < len(paths):
        n = len(paths) - len(images)
        print(f"{n:,} of {len(paths):,} files cannot be read as images: they are left out.")
    return images


def array_folder(data_dir: Path) -> Path:
    """Where the decoded images of a folder are kept, if that can be written to."""
    place = data_dir.resolve()
    return place.parent / f".{place.name}-arrays"


def _find_array(
    paths: list[Path], transform: Any, data_dir: Path, skip_broken: bool
) -> tuple[Path, str, str]:
    """The folder of an array; a digest of the files' names and how they are read; one of the rest:
    their sizes and times, and what the transform makes of the first."""
    printed = re.sub("0x[0-9a-fA-F]+", "", str(transform))  # without an address in memory
    how = f"2 {printed} {skip_broken} {PIL.__version__} {torchvision.__version__}"
    names = hashlib.sha256(how.encode())
    states = hashlib.sha256()
    for path in paths:
        names.update(b"\0" + os.fsencode(path.relative_to(data_dir)))
        with suppress(OSError):  # a link to nothing: decoding names it
            status = path.stat()
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"  # no program can set the second
            states.update(f"{status.st_size} {times}".encode())
        states.update(b" ")
    for pixels in _decode_all(paths[:3], transform):
        if not isinstance(pixels, str):  # decoding all of them names it
            states.update(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes())
    folder = array_folder(data_dir)
    try:
        check_writable(folder, "data_dir")
    except OSError:
        folder = files.CACHE / "arrays"
        check_writable(folder, "the environment variable XDG_CACHE_HOME")
        names.update(os.fsencode(data_dir.resolve()))
    return folder, names.hexdigest()[:12], states.hexdigest()[:12]


def _hash_file(path: Path) -> str:
    return pooch.file_hash(path, "blake2b")[:12]


def _write_array(file: BinaryIO, blocks: Iterator[np.ndarray]) -> None:
    """Write the blocks one after the other as one .npy file."""
    n = 0
    file.seek(_HEADER)
    for block in blocks:
        file.write(block.tobytes())
        n += len(block)
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, *block.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_all(
    paths: list[Path], transform: Callable[[Image.Image], Image.Image]
) -> Iterator[np.ndarray | str]:
    """Decode files side by side, each uint8 (H, W, 3); of a broken one, its name and the reason."""

    def load(path: Path, tries: int = READ_TRIES) -> np.ndarray | str:
        try:
            return decode(path, transform)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can raise nearly any kind
            if getattr(error, "errno", None) in {None, *OF_THE_FILE}:
                return printable(f"{path} ({error})")
            if tries == 1:
                raise OSError(
                    error.errno,
                    f"The system cannot read an image, in {READ_TRIES} tries ({error.strerror}). "
                    "Run this again, or copy the images to another drive",
                    str(path),
                ) from error
        time.sleep(READ_PAUSE)
        return load(path, tries - 1)

    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        with ThreadPoolExecutor(files.count_cores()) as pool:  # PIL decodes outside the GIL
            yield from pool.map(load, paths)


def _decode_blocks(
    paths: list[Path], transform: Callable[[Image.Image], Image.Image], skip_broken: bool
) -> Iterator[np.ndarray]:
    """Decode files in blocks, uint8 (up to 1024, H, W, 3); at the end, name those that failed."""
    shapes: set[tuple[int, ...]] = set()
    broken: list[str] = []
    progress = Progress(total=len(paths), desc="Decoding", unit=" images")
    with progress:
        for start in range(0, len(paths), 1024):
            loaded = []
            for item in _decode_all(paths[start : start + 1024], transform):
                (broken if isinstance(item, str) else loaded).append(item)
                progress.update()
            shapes |= {pixels.shape for pixels in loaded}
            if len(shapes) > 1:
                raise ValueError(f"transform makes images of several shapes: {sorted(shapes)[:4]}.")
            if loaded and not (broken and not skip_broken):
                yield np.stack(loaded)
    if broken and (not skip_broken or len(broken) == len(paths)):
        lines = [f"{len(broken)} of {len(paths)} files cannot be read as images:", *broken[:20]]
        if len(broken) > 20:
            lines.append(f"and {len(broken) - 20} more")
        advice = "Delete or replace them, or set skip_broken = True to leave them out."
        raise ValueError("\n  ".join(lines) + f"\n{advice}")


def fingerprint(images: np.ndarray) -> str:
    """Describe an array of images by their number and a checksum: other images, another text."""
    checksum = 0
    for block in blocks(images):
        checksum = zlib.crc32(block, checksum)
    return f"{len(images):,} images, {checksum:08x}"


# ------------------------------------------------------------------------ batches


class FaceDataset(Dataset):
    """A data set over one uint8 array of images, read a batch at a time.

    Items are ``(image, label)``: a float tensor (3, H, W) in [0, 1] and 0, since faces have no
    classes here. On a CUDA device with room the array is copied there, and batches are made there.

    Args:
        images: uint8 array (N, H, W, 3).

    Attributes:
        images: the same array.
        pixels: the copy on the device, uint8 (N, H, W, 3), or ``images`` where there is none.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        device = find_device()
        self.pixels: Images = copy_to(device, images) if has_room(device, images) else images
        self._n_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, images (n, 3, H, W) and labels (n,), by one indexed read."""
        if self.pixels is self.images:
            images = torch.from_numpy(self.images[indices])
            self._n_read += len(indices)
            if self._n_read >= 1024:
                release_memory(self.images)
                self._n_read = 0
        else:
            rows = torch.tensor(indices).pin_memory()  # so that nothing waits for the copy
            images = self.pixels[rows.to(self.pixels.device, non_blocking=True)]
        images = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return images, torch.zeros(len(indices), dtype=torch.int64)

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """For ``DataLoader(collate_fn=...)``: the batch is whole already."""
        return batch


def has_room(device: torch.device, images: np.ndarray) -> bool:
    """Whether images take at most a quarter of what is free on a CUDA device; on others, False."""
    return device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4


def copy_to(device: torch.device, images: np.ndarray) -> Tensor:
    """Copy images to a device, uint8 (N, H, W, 3), by way of a block of them at a time."""
    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for part, block in zip(copy.split(4096), blocks(images), strict=True):
        part.copy_(torch.from_numpy(np.array(block)))
    return copy


def blocks(images: Images) -> Iterator[Images]:
    """Up to 4096 images at a time; a mapped file's memory is released after each block."""
    for start in range(0, len(images), 4096):
        yield images[start : start + 4096]
        release_memory(images)


def release_memory(array: Images) -> None:
    """Let go of the pages of a mapped file that were read so far; reading them again works."""
    mapped = getattr(array, "_mmap", None)  # None of a copy, which has the type all the same
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn a generator's output into images.

    Args:
        images: float tensor (n, 3, H, W) in [-1, 1], on any device.

    Returns:
        uint8 array (n, H, W, 3).
    """
    pixels = images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
