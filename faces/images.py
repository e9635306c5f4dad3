"""Image files: found, and kept as one array."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import pooch
import torchvision
from filelock import FileLock
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from faces import files
from faces.decoding import decode
from faces.files import check_writable, is_hidden, is_image_name, printable, writing
from faces.processes import first_on_each_machine
from faces.progress import Progress

_HEADER = 128  # bytes of an .npy file before the pixels: numpy leaves room for any number of them


def find_images(
    folder: str | Path,
    max_images: int | None = None,
    seed: int | None = None,
    part: str | None = None,
) -> list[Path]:
    """List the image files below a folder, at any depth, sorted; hidden ones are left out.

    Links to folders are followed, but no folder is visited twice.

    Args:
        folder: where the images lie.
        max_images: how many to take, drawn at random; all of them if ``None`` or too large.
        seed: of that draw.
        part: "held-out" for about a tenth of these, chosen by a hash of their names (for two of a
            small set), "training" for the others, ``None`` for all.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        OSError: if a folder may not be read; it names it.
        ValueError: if there is no such part, or there are too few images to hold some out.
    """
    if part not in (None, "training", "held-out"):
        raise ValueError(f"part is {part!r}: it must be 'training', 'held-out' or None.")
    folder = Path(folder)
    paths = sorted(_files_below(folder)) if folder.is_dir() else []
    if not paths:
        endings = ", ".join(IMG_EXTENSIONS)
        raise FileNotFoundError(
            f"There is no folder {folder}, or no image in it ({endings}): set data_dir to a folder "
            "of images."
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


def _files_below(folder: Path) -> Iterator[Path]:
    visited = set()
    refuse = files.refuse_unreadable
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(place, name) for name in names if is_image_name(Path(name)))


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
        OSError: if the disk is full, or nothing can be written anywhere.
    """
    if data_dir is None:
        return np.concatenate(list(_decoded(paths, transform, skip_broken=True)))
    folder, names, states = _array_key(paths, transform, Path(data_dir), skip_broken)
    with first_on_each_machine(), FileLock(folder / f".{names}.lock"):
        kept = folder.glob(f"{names}-{states}-*.npy")  # the name ends with a checksum
        path = next((path for path in kept if path.stem.endswith(_checksum(path))), None)
        if path is None:
            # Of the same files before they changed, damaged, or of a run that was killed.
            for other in folder.glob(f"*{names}-*.npy"):
                with suppress(PermissionError):  # on Windows, while a kernel has it open
                    other.unlink(missing_ok=True)
            path = folder / f"{names}-{states}.npy"
            with writing(path) as temporary, open(temporary, "wb") as file:
                _write_array(file, _decoded(paths, transform, skip_broken))
            path = path.rename(path.with_stem(f"{path.stem}-{_checksum(path)}"))
    images = np.load(path, mmap_mode="r")
    if len(images) < len(paths):
        n = len(paths) - len(images)
        print(f"{n:,} of {len(paths):,} files cannot be read as images: they are left out.")
    return images


def _array_key(
    paths: list[Path], transform: Any, data_dir: Path, skip_broken: bool
) -> tuple[Path, str, str]:
    """The folder of an array; a digest of the files' names and how they are read; one of the rest:
    their sizes and times, and what the transform makes of the first."""
    printed = re.sub("0x[0-9a-fA-F]+", "", str(transform))  # without an address in memory
    how = f"1 {printed} {skip_broken} {PIL.__version__} {torchvision.__version__}"
    names = hashlib.sha256(how.encode())
    states = hashlib.sha256()
    for path in paths:
        names.update(b"\0" + os.fsencode(path.relative_to(data_dir)))
        with suppress(OSError):  # a link to nothing: decoding names it
            status = path.stat()
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"  # no program can set the second
            states.update(f"{status.st_size} {times}".encode())
        states.update(b" ")
    for path in paths[:3]:
        with suppress(Exception):  # decoding all of them names it
            pixels = decode(path, transform)
            states.update(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes())
    folder = files.arrays_beside(data_dir)
    try:
        check_writable(folder, "data_dir")
    except OSError:
        folder = files.CACHE / "arrays"
        check_writable(folder, "the environment variable XDG_CACHE_HOME")
        names.update(os.fsencode(data_dir.resolve()))
    return folder, names.hexdigest()[:12], states.hexdigest()[:12]


def _checksum(path: Path) -> str:
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


def _decoded(
    paths: list[Path], transform: Callable[[Image.Image], Image.Image], skip_broken: bool
) -> Iterator[np.ndarray]:
    """Decode files in blocks, uint8 (up to 1024, H, W, 3); at the end, name those that failed."""

    def load(path: Path) -> np.ndarray | str:
        try:
            return decode(path, transform)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can raise nearly any kind
            return printable(f"{path} ({error})")

    shapes: set[tuple[int, ...]] = set()
    broken: list[str] = []
    progress = Progress(total=len(paths), desc="Decoding", unit=" images")
    with progress, ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the GIL
        for start in range(0, len(paths), 1024):
            loaded = []
            for item in pool.map(load, paths[start : start + 1024]):
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
