"""Where things lie, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pooch
from filelock import FileLock, Timeout
from torchvision.datasets.folder import IMG_EXTENSIONS

HERE = Path(__file__).parents[1]
NOTEBOOK = HERE / "dlnd_face_generation.ipynb"
WEIGHTS = HERE / "assets" / "generator.safetensors"
CACHE = pooch.os_cache("dlnd-face-generation")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's share of it, the file


def is_image_name(path: Path) -> bool:
    """Whether a path names an image: by its ending, and no litter such as ``__MACOSX/._1.jpg``."""
    return path.suffix.lower() in IMG_EXTENSIONS and not any(
        part.startswith(".") or part == "__MACOSX" for part in path.parts
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` once all is written."""
    temporary = path.with_name(f".{path.name}")
    try:
        with naming_a_full_disk(path.parent):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before it takes the name
            try:
                os.replace(temporary, path)
            except PermissionError as error:  # such as on Windows, while a spreadsheet shows it
                raise PermissionError(
                    f"{path} cannot be replaced ({error.strerror}): if another program has it "
                    "open, close it there; then run this again."
                ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_once(path: Path, make: Callable[[Path], Path]) -> Path:
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
        check_writable(CACHE, "the environment variable XDG_CACHE_HOME")
    beside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside / ".unfinished-faces.lock")
    with naming_a_full_disk(beside):
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


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(folder) from None


def disk_full(folder: Path) -> OSError:
    """The error for a full disk, which says what to do."""
    return OSError(
        errno.ENOSPC,
        "The disk is full. Nothing half-written was left: free some space and run this again",
        str(folder),
    )


def check_writable(folder: Path, setting: str) -> None:
    """Make a folder, and try whether files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}): set {setting} to a place where "
            "you may write."
        ) from error
