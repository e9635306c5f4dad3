"""A run on the disk: its folder, the lock on it, its checkpoint, and what must not have changed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from faces.files import atomic_write, check_writable
from faces.parallel import from_main_process, print_main

# The latest checkpoint, and the one before it.
CHECKPOINTS = ("checkpoint.pt", "checkpoint-before.pt")

# ------------------------------------------------------------------------ the folder


def choose_folder(path: str | Path, resume: bool) -> tuple[Path, FileLock]:
    """Choose a run's folder, and lock it for this process.

    It is ``path`` if that is new, empty, or holds a run to resume. Nothing that lies there
    otherwise is touched: then it is ``path-2``, ``path-3`` ...

    Raises:
        ValueError: if the path has no name of its own, such as ``.``.
        RuntimeError: if another run writes to the folder of the run to resume.
        OSError: if the folder cannot be made or written to.
    """
    first = Path(path).expanduser()
    if not first.name:
        raise ValueError(f"output_dir is {path}. Give a folder of its own, such as runs/faces.")
    for number in count(1):
        folder = first.with_name(f"{first.name}-{number}") if number > 1 else first
        if resume and any((folder / name).is_file() for name in CHECKPOINTS):
            return folder, lock_folder(folder)
        if not _holds_files(folder):
            try:
                return folder, lock_folder(folder)
            except RuntimeError:
                if resume:
                    raise
    raise AssertionError("unreachable")


def _holds_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*")))


def lock_folder(folder: Path) -> FileLock:
    """Make a folder and lock it for this process.

    Raises:
        RuntimeError: if another run has locked it.
        OSError: if it cannot be made or written to.
    """
    check_writable(folder, "output_dir")
    lock = FileLock(folder.absolute() / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another run is writing to {folder}, or is about to. Wait for it, shut down the "
            "notebook that it is in, or set output_dir to another folder."
        ) from None
    return lock


# ------------------------------------------------------------------------ the checkpoint


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, and keep the one before; a full disk raises ``OSError``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    latest, before = (folder / name for name in CHECKPOINTS)
    with atomic_write(latest) as path:
        path.write_bytes(buffer.getbuffer())
        if latest.is_file():
            os.replace(latest, before)


def load_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], str] | None:
    """Find and read the latest checkpoint.

    Returns:
        Its path, what it holds, and what to do where it is of no use; None without one.

    Raises:
        ValueError: if it is damaged or no checkpoint.
    """
    found = [p for name in CHECKPOINTS if (p := folder / name).is_file()]
    if not found:
        return None
    hint = "set resume = False (or another output_dir) for a new run"
    path, data = found[0], io.BytesIO(found[0].read_bytes())
    try:
        with zipfile.ZipFile(data) as container:
            if (part := container.testzip()) is not None:
                raise ValueError(f"the checksum of {part} does not fit")
        data.seek(0)
        state = torch.load(data, map_location="cpu", weights_only=True)
        return path, dict(state, settings=dict(state["settings"])), hint
    except Exception as error:  # torch.load raises many kinds
        hint += f", or delete it to resume from {found[1].name}" if found[1:] else ""
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to load it anyway
            reason = "it is cut off, or holds more than numbers"
        raise ValueError(
            f"{path} is damaged, or is not a checkpoint of this notebook ({reason}): {hint}."
        ) from None


def resume(
    folder: Path, parts: dict[str, Any], settings: dict[str, Any], n_epochs: int
) -> dict[str, Any] | None:
    """Bring ``parts`` to the state of a folder's checkpoint; all processes to that of the main one.

    Args:
        folder: where the checkpoint lies, if there is one.
        parts: networks, optimizers and tensors by name, see ``load_state_dict``.
        settings: what must be the same there and now: settings, and hashes of code.
        n_epochs: how many epochs the run is to have.

    Returns:
        The checkpoint; ``None`` if there is none.

    Raises:
        ValueError: if it cannot be read, has other settings or code, or does not fit.
    """
    if (loaded := from_main_process(lambda: load_checkpoint(folder))) is None:
        return None
    path, state, hint = loaded
    saved = state["settings"]
    changed = [n for n in saved | settings if saved.get(n) != settings.get(n)]
    if changed:
        lines = [f"  {n}: {saved.get(n)!r} there, {settings.get(n)!r} now" for n in changed]
        back = "Set them back"
        if any(name.startswith("the code of ") for name in changed):
            back += " (undo the change of that code; comments and docstrings do not matter)"
        raise ValueError(
            f"{folder} holds a run with other settings:\n"
            + "\n".join(lines)
            + f"\n{back} to resume it, or {hint}."
        )
    try:
        load_state_dict(parts, state["parts"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit these networks ({error}): {hint}.") from None
    epoch, batch = state["epoch"], state["batch"]
    done = f"{epoch} epochs" + (f" and {batch} batches" if batch else "")
    if epoch < n_epochs:
        print_main(f"Resuming from {path}: {done} are done.")
    else:
        more = "" if "n_epochs" in settings else "; to train it further, raise n_epochs"
        print_main(
            f"{path} already holds this run, {done}: nothing is left to train. To start over, set "
            f"resume = False{more}."
        )
    return state


def state_dict(parts: dict[str, Any]) -> dict[str, Any]:
    """What ``load_state_dict`` brings the same parts back to."""
    return {n: p if isinstance(p, Tensor) else p.state_dict() for n, p in parts.items()}


def load_state_dict(parts: dict[str, Any], states: dict[str, Any]) -> None:
    """Bring networks, optimizers and tensors to states saved on whatever device."""
    for name, part in parts.items():
        if isinstance(part, Tensor):
            part.copy_(states[name])
            continue
        if isinstance(part, torch.optim.Optimizer):
            pairs = zip(states[name]["param_groups"], part.param_groups, strict=True)
            for saved, group in pairs:  # how it steps is of the device, not of the run
                how = {n: group[n] for n in ("capturable", "fused", "foreach") if n in group}
                saved.update(how, lr=float(saved["lr"]))
        part.load_state_dict(states[name])


# ------------------------------------------------------------------------ random states


def get_random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states of the CPU and of a device, by the device's type."""
    return {kind: _home(kind).get_rng_state() for kind in ("cpu", device.type)}


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the random states of the CPU and of a device back, as far as they are known."""
    for kind in states.keys() & {"cpu", device.type}:
        _home(kind).set_rng_state(states[kind])


def _home(kind: str) -> ModuleType:
    return torch if kind == "cpu" else torch.get_device_module(kind)
