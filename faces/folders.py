"""A run's folder: which it is, and that no other run takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from faces.checkpoints import CHECKPOINTS
from faces.files import check_writable
from faces.processes import is_first_process, of_first

_chosen: dict[Path, FileLock] = {}  # the folder of this process's next run


def run_folder(path: str | Path, resume: bool = True) -> Path:
    """Choose where a run's files go: ``path``, or ``path-2``, ``path-3`` ... if that is in use.

    The folder belongs to this process until its run, or the process, has ended.

    Args:
        path: the folder asked for.
        resume: go on with a run if one of them holds a checkpoint: with the one that trained last,
            which after several runs with ``resume = False`` is the one just at work.

    Returns:
        The folder, which now exists; nothing that was there before is touched.

    Raises:
        ValueError: if the path has no name of its own, such as ``.``.
        RuntimeError: if another run has chosen the one to go on with.
        OSError: if it cannot be made or written to.
    """
    folder = Path(path).expanduser()
    if not folder.name:
        raise ValueError(f"output_dir is {path}: give a folder of its own, such as runs/faces.")
    return of_first(lambda: _choose(folder, resume))


def _choose(folder: Path, resume: bool) -> Path:
    while _chosen:
        _chosen.popitem()[1].release()
    found: list[Path] = []
    while _holds_files(folder) or not (resume or _claim(folder)):
        found += [path for name in CHECKPOINTS if (path := folder / name).is_file()]
        name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", folder.name).groups(default="1")
        folder = folder.with_name(f"{name}-{int(number) + 1}")
    if resume and found:
        folder = max(reversed(found), key=lambda path: path.stat().st_mtime).parent
    if resume and not _claim(folder):
        raise _in_use(folder)
    return folder


def _holds_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*")))


def _claim(folder: Path) -> bool:
    """Make a folder and lock it for this process, unless another process has."""
    check_writable(folder, "output_dir")
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _chosen[folder] = lock
    return True


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder; of several processes, the first one may write.

    Raises:
        RuntimeError: if another run writes to it, or has chosen it.
    """
    if chosen := _chosen.pop(folder, None):
        chosen.release()
    lock = FileLock(folder / ".lock")
    try:
        if is_first_process():
            lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(folder) from None
    try:
        yield
    finally:
        lock.release()


def _in_use(folder: Path) -> RuntimeError:
    return RuntimeError(
        f"Another run writes to {folder}, or is about to: wait for it, shut down the notebook that "
        "it is in, or set output_dir to another folder."
    )
