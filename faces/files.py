"""Where things lie, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pooch
from filelock import AcquireReturnProxy, FileLock, SoftFileLock, Timeout

HERE = Path(__file__).resolve().parents[1]
NOTEBOOK = HERE / "dlnd_face_generation.ipynb"
WEIGHTS = HERE / "assets" / "generator.safetensors"
WEIGHTS_64 = HERE / "assets" / "generator_64.safetensors"
CACHE = pooch.os_cache("dlnd-face-generation")
RECORD = ".number-of-files"

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's share of it, the file
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # some network drives


def printable(text: str) -> str:
    """Escape what would break a line or move the cursor, as a file's name may."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` once all is written.

    Raises:
        OSError: if the disk is full; nothing half-written is left.
        PermissionError: if another program has the file open, on Windows.
    """
    part = f".{path.stem[:50]}-unfinished-{secrets.token_hex(4)}{path.suffix}"  # nobody has it
    temporary = path.with_name(part)
    try:
        with explain_full_disk(path.parent):
            open(temporary, "xb").close()  # never follows a link
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before it takes the name
            try:
                os.replace(temporary, path)
            except PermissionError as error:  # such as on Windows, while a spreadsheet shows it
                raise PermissionError(
                    f"{path} cannot be replaced ({error.strerror}). If another program has it "
                    "open, close it there; then run this again."
                ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what ``atomic_write`` left in a folder when its process was killed."""
    for path in folder.glob(".*-unfinished-????????*"):
        path.unlink(missing_ok=True)


def acquire_lock(path: Path, timeout: float = -1) -> AcquireReturnProxy:
    """Lock a file for this process: for a ``with`` statement, or until its ``lock`` is released.

    Where the file system has no locks, one file more, ``PATH.soft``, takes their place: it may be
    left when its process ends otherwise than by itself, and another machine cannot tell.

    Args:
        path: the file.
        timeout: seconds to wait if another process has it; for ever below 0.

    Raises:
        filelock.Timeout: if it had it all that time.
    """
    try:
        return FileLock(path, thread_local=False).acquire(timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return SoftFileLock(f"{path}.soft", thread_local=False).acquire(timeout)


def build_once(path: Path, build: Callable[[Path], Path]) -> Path:
    """Make a file or folder unless it exists: all of it or nothing, and by one process only.

    ``build`` fills the temporary folder it is given, and returns what in there shall be ``path``. A
    folder in the cache keeps a record of its number of files, and is made again if some are gone.
    Others that want it, or anything else in its folder, wait. The lock ends with its process, so
    whoever gets it may remove what a killed one left.

    Raises:
        OSError: if the disk is full or the cache folder cannot be written to.
    """
    if _is_whole(path):
        return path
    beside = path.parent
    if beside == CACHE:
        check_writable(CACHE, "the environment variable XDG_CACHE_HOME")
    file = beside / ".unfinished-faces.lock"
    with explain_full_disk(beside):
        try:
            lock = acquire_lock(file, timeout=0.5).lock
        except Timeout:
            print(f"Another process is working in {beside}: waiting for it.")
            lock = acquire_lock(file).lock
        try:
            if not _is_whole(path):
                for left in beside.glob(".unfinished-faces-*"):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=".unfinished-faces-", dir=beside) as folder:
                    built = build(Path(folder))
                    if beside == CACHE and built.is_dir():
                        (built / RECORD).write_bytes(_count(built))
                        if path.exists():  # with files missing
                            os.replace(path, Path(folder) / "before")
                    os.replace(built, path)
        finally:
            with suppress(OSError):  # on Windows the lock itself does it
                os.unlink(file)
            lock.release()
    return path


def _is_whole(path: Path) -> bool:
    record = path / RECORD  # of folders in the cache, and none of the user's own
    return path.exists() and (not record.is_file() or record.read_bytes() == _count(path))


def _count(folder: Path) -> bytes:
    return b"%d" % sum(1 for _ in folder.rglob("[!.]*"))


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: by its affinity, and by its container's quota."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        n = os.process_cpu_count()
    else:
        n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):  # "max" is none
        limit, period = map(int, quota.read_text().split())
        n = min(n or 1, -(-limit // period))  # rounded up
    return n or 1


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            errno.ENOSPC,
            "The disk is full. Nothing half-written was left: free some space and run this again",
            str(folder),
        ) from None


def check_writable(folder: Path, setting: str) -> None:
    """Make a folder, and try whether files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}). Set {setting} to a folder where "
            "you have permission to write."
        ) from error


def refuse_unreadable(error: OSError) -> NoReturn:
    """Name a place that may not be read, and say what to do."""
    place = printable(str(error.filename))
    raise OSError(
        f"{place} cannot be read ({error.strerror}). Change its permissions, or set data_dir to "
        "another folder."
    ) from error
