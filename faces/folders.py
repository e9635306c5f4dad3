"""A run's folder: which it is, and that no other run takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    found, lock = [], None
    while _holds_files(folder) or not (resume or (lock := _lock(folder, must=False))):
        found += [path for name in CHECKPOINTS if (path := folder / name).is_file()]
        name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", folder.name).groups(default="1")
        folder = folder.with_name(f"{name}-{int(number) + 1}")
    if resume and found:
        folder = max(reversed(found), key=lambda path: path.stat().st_mtime).parent
    _chosen[folder] = lock or _lock(folder)
    return folder


def _holds_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*")))


def _lock(folder: Path, must: bool = True) -> FileLock | None:
    """Make a folder and lock it for this process; if another has, raise or return ``None``."""
    check_writable(folder, "output_dir")
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        if not must:
            return None
        raise RuntimeError(
            f"Another run writes to {folder}, or is about to: wait for it, shut down the notebook "
            "that it is in, or set output_dir to another folder."
        ) from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder; of several processes, the first one may write.

    Raises:
        RuntimeError: if another run writes to it, or has chosen it.
    """
    with ExitStack() as stack:
        if is_first_process():
            lock = _chosen.pop(folder, None) or _lock(folder)
            stack.callback(lock.release)
        yield
