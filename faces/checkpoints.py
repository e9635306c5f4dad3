"""A run on the disk: its folder, the lock on it, its checkpoint, and what must not have changed."""

from __future__ import annotations

import inspect
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import BaseFileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faces.files import acquire_lock, atomic_write, check_writable, remove_unfinished
from faces.notebook import hash_run
from faces.parallel import from_main_process, print_main

# The latest checkpoint, and the one before it.
CHECKPOINTS = ("checkpoint.pt", "checkpoint-before.pt")
_MAY_CHANGE = {"n_epochs", "resume", "skip_broken"}  # settings, from one start to the next
_LEFT_OUT = {"params", "capturable", "fused", "foreach", "lr", "initial_lr"}  # of an optimizer
# What each of them has; "parts" are states of networks and optimizers, and tensors.
_ENTRIES = {"settings": dict, "parts": dict, "results": dict, "random": dict}
_ENTRIES |= {"order": int, "epoch": int, "batch": int, "n_steps": int, "losses": Tensor}

# ------------------------------------------------------------------------ the folder


def choose_folder(path: str | Path | int, resume: bool) -> tuple[Path, BaseFileLock]:
    """Choose a run's folder, and lock it for this process.

    It is ``path`` if that is new, empty, or holds a run to resume. Nothing that lies there
    otherwise is touched: then it is ``path-2``, ``path-3`` ... A number, which is what papermill
    makes of a name of digits, is taken as text.

    Raises:
        ValueError: if the path has no name of its own, such as ``.``.
        RuntimeError: if another run writes to the folder of the run to resume.
        OSError: if the folder cannot be made or written to.
    """
    first = Path(str(path)).expanduser()
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


def _holds_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*")))


def lock_folder(folder: Path) -> BaseFileLock:
    """Make a folder, lock it for this process, and remove what a killed one left half-written.

    Raises:
        RuntimeError: if another run has locked it.
        OSError: if it cannot be made or written to.
    """
    check_writable(folder, "output_dir")
    try:
        lock = acquire_lock(folder.absolute() / ".lock", timeout=0).lock
    except Timeout as error:
        is_soft = error.lock_file.endswith(".soft")  # which may outlive its process
        raise RuntimeError(
            f"Another run is writing to {folder}, or is about to. Wait for it, shut down the "
            "notebook that it is in, or set output_dir to another folder."
            + f" If there is no such run, delete {error.lock_file}."
            * is_soft
        ) from None
    remove_unfinished(folder)
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
        Its path, what it holds, and what to do if it is of no use; None if there is none.

    Raises:
        ValueError: if it is damaged, or is not a checkpoint.
    """
    found = [p for name in CHECKPOINTS if (p := folder / name).is_file()]
    if not found:
        return None
    hint = "set resume = False (or another output_dir) for a new run"
    try:
        return found[0], read_checkpoint(found[0]), hint
    except ValueError as error:
        hint += f", or delete it to resume from {found[1].name}" if found[1:] else ""
        raise ValueError(f"{error}: {hint}.") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, and check that it is whole, one of a run, and finite.

    Raises:
        ValueError: if it is not.
    """
    data = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(data) as container:
            if (part := container.testzip()) is not None:
                raise ValueError(f"the checksum of {part} does not fit")
        data.seek(0)
        state = torch.load(data, map_location="cpu", weights_only=True)
        _check(state)
        return state
    except Exception as error:  # torch.load raises many kinds
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to load it anyway
            reason = "it is cut off, or holds more than numbers"
        raise ValueError(
            f"{path} is damaged, or is not a checkpoint of this notebook ({reason})"
        ) from None


def _check(state: Any) -> None:
    """Raise an error that says so if what a checkpoint holds cannot be of a run."""
    _check_types(state, _ENTRIES)
    _check_types(state["results"], {"samples": list, "measures": list})
    _check_types(state["random"], {"cpu": Tensor})
    torch.Generator().set_state(state["random"]["cpu"])  # which checks it
    epoch, batch, losses = state["epoch"], state["batch"], state["losses"]
    samples, measures = state["results"]["samples"], state["results"]["measures"]
    n_before = len(losses) - batch  # steps of the epochs before
    names = [*measures[0]] if measures else []
    numbers = [x for row in measures for x in row.values()]
    is_right = {
        "settings": not any(isinstance(value, Tensor) for value in state["settings"].values()),
        "losses": losses.dtype == torch.float64 and losses.shape[1:] == (2,) and is_finite(losses),
        "epoch": epoch >= 0 and (n_before >= epoch if epoch else n_before == 0),
        "batch": 0 <= batch <= len(losses) == state["n_steps"],
        "samples": len(samples) == epoch
        and all(x.shape == samples[0].shape and x.dtype == torch.uint8 for x in samples)
        and all(x.ndim == 4 and len(x) and x.shape[3] == 3 for x in samples[:1]),
        "measures": len(measures) == epoch
        and all([*row] == names for row in measures)
        and all(isinstance(x, (int, float)) for x in numbers),
        "random": all(x.dtype == torch.uint8 for x in state["random"].values()),
        "order": 0 <= state["order"] < 2**62,
    }
    is_right |= {name: is_finite(part) for name, part in state["parts"].items()}
    if wrong := [name for name, right in is_right.items() if not right]:
        raise ValueError(f"what it has as {', '.join(wrong)} cannot be of a run")


def _check_types(entries: Any, types: dict[str, type]) -> None:
    for name, kind in types.items():
        if not isinstance(entries, dict) or type(entries.get(name)) is not kind:
            raise ValueError(f"it has no {kind.__name__} named {name}")


def is_finite(state: Any) -> bool:
    """Whether all numbers in the tensors of a state, in dicts and lists perhaps, are finite."""
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    parts = state.values() if isinstance(state, dict) else state
    return not isinstance(state, (dict, list, tuple)) or all(map(is_finite, parts))


def identify_run(
    settings: dict[str, Any], train: Callable[..., Any], parts: dict[str, Any]
) -> dict[str, Any]:
    """Gather what must be the same for a run to be resumed, by the names that a refusal shows.

    Args:
        settings: those of the run; "n_epochs", "resume" and "skip_broken" may change.
        train: the notebook's function that trains; see ``hash_run`` for the code that counts. Of
            the loaders that it reads, the kind of order and the size of batches count.
        parts: networks, whose classes count, and optimizers, whose classes and options do.
    """
    identity = {name: v for name, v in settings.items() if name not in _MAY_CHANGE}
    networks = {type(part) for part in parts.values() if isinstance(part, nn.Module)}
    classes = {c for network in networks for c in network.__mro__}
    identity |= hash_run(train, sorted(classes, key=str), settings)
    plain = inspect.unwrap(train)  # an idea may have put another function in its place
    read = {n: plain.__globals__[n] for n in plain.__code__.co_names if n in plain.__globals__}
    loaders = {n: v for n, v in read.items() if isinstance(v, DataLoader)}
    identity |= {f"the loader {name}": _describe_loader(v) for name, v in loaders.items()}
    optimizers = {n: p for n, p in parts.items() if isinstance(p, torch.optim.Optimizer)}
    return identity | {f"the optimizer {name}": _describe(p) for name, p in optimizers.items()}


def _describe_loader(loader: DataLoader) -> str:
    """What a loader's batches are made of, and how; its images have a fingerprint of their own."""
    kinds = [type(part).__name__ for part in (loader.dataset, loader.sampler)]
    return f"{' '.join(kinds)} batch_size={loader.batch_size} drop_last={loader.drop_last}"


def _describe(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's class and options, but for those that are of the device.

    The rate is the one that it was made with: a training may change it, or its type.
    """
    options = [
        {name: value for name, value in group.items() if name not in _LEFT_OUT}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} lr={float(optimizer.defaults['lr'])} {options}"


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
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit these networks ({error}): {hint}.") from None
    epoch, batch = state["epoch"], state["batch"]
    done = f"{epoch} epochs" + (f" and {batch} batches" if batch else "")
    if epoch < n_epochs:
        print_main(f"Resuming from {path}: {done} are done.")
    else:
        done += f", more than n_epochs = {n_epochs}" if epoch > n_epochs else ""
        print_main(
            f"{path} already holds this run, {done}: nothing is left to train. To start over, set "
            "resume = False; to train it further, raise n_epochs."
        )
    return state


def state_dict(parts: dict[str, Any]) -> dict[str, Any]:
    """What ``load_state_dict`` brings the same parts back to."""
    return {n: p if isinstance(p, Tensor) else p.state_dict() for n, p in parts.items()}


def load_state_dict(parts: dict[str, Any], states: dict[str, Any]) -> None:
    """Bring networks, optimizers and tensors to states saved on whatever device.

    Of an optimizer's options only the learning rate is taken, which may have fallen in a run.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError, AttributeError: if they do not fit.
    """
    for name, part in parts.items():
        if isinstance(part, Tensor):
            if states[name].shape != part.shape:
                raise ValueError(f"{name} is {[*states[name].shape]}, not {[*part.shape]}")
            part.copy_(states[name])
            continue
        if isinstance(part, torch.optim.Optimizer):
            pairs = zip(states[name]["param_groups"], part.param_groups, strict=True)
            for saved, group in pairs:
                if not 0 <= (lr := float(saved["lr"])) <= 1:
                    raise ValueError(f"the learning rate of {name} is {lr}")
                saved.update({n: v for n, v in group.items() if n != "params"}, lr=lr)
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
