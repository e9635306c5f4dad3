"""Image files: found, and decoded into one array."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torchvision
from filelock import FileLock
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from faces import files
from faces.files import check_writable, is_image_name, writing
from faces.processes import first_on_each_machine
from faces.progress import Progress


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
    paths = sorted(p for p in folder.rglob("*") if is_image_name(p.relative_to(folder)))
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
            or one of the other arguments changes. It is mapped from the disk, not read into memory.
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
    path, names = _array_path(paths, transform, Path(data_dir), skip_broken)
    with first_on_each_machine(), FileLock(path.with_name(f".{names}.lock")):
        if not (path.is_file() and _is_whole_array(path)):
            for pattern in (f"{names}-*.npy", f".{names}-*.npy"):  # of the same files before they
                for other in path.parent.glob(pattern):  # changed, or of a run that was killed
                    other.unlink()
            with writing(path) as temporary, open(temporary, "wb") as file:
                _write_array(file, _decoded(paths, transform, skip_broken), len(paths))
    images = np.load(path, mmap_mode="r")
    if len(images) < len(paths):
        n = len(paths) - len(images)
        print(f"{n:,} of {len(paths):,} files cannot be read as images: they are left out.")
    return images


def _array_path(
    paths: list[Path], transform: Any, data_dir: Path, skip_broken: bool
) -> tuple[Path, str]:
    """Where an array is kept: named by the files and how they are read, then by sizes and times."""
    how = f"1 {transform} {skip_broken} {PIL.__version__} {torchvision.__version__}"
    names = hashlib.sha256(how.encode())
    states = hashlib.sha256()
    for path in paths:
        names.update(f"\0{path.relative_to(data_dir).as_posix()}".encode(errors="surrogateescape"))
        with suppress(OSError):  # a link to nothing: decoding names it
            status = path.stat()
            states.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        states.update(b" ")
    folder = data_dir.resolve().with_name(f".{data_dir.resolve().name}-arrays")
    try:
        check_writable(folder, "data_dir")
    except OSError:
        folder = files.CACHE / "arrays"
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
