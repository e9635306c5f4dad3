"""Checkpoints, and what must not have changed for a run to go on from one."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from faces.digests import code_of, package_code
from faces.files import writing
from faces.processes import of_first, say

# The latest checkpoint, and the one before it.
CHECKPOINTS = ("checkpoint.pt", "checkpoint-before.pt")


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, and keep the one before; a full disk raises ``OSError``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    latest, before = (folder / name for name in CHECKPOINTS)
    with writing(latest) as path:
        path.write_bytes(buffer.getbuffer())
        if latest.is_file():
            os.replace(latest, before)


def read_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], str] | None:
    """Find and read the latest checkpoint.

    Returns:
        Its path, what it holds, and what messages say to do where it is no use; None without one.

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
        hint += f", or delete it to go on from {found[1].name}" if found[1:] else ""
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to load it anyway
            reason = "it is cut off, or holds more than numbers"
        raise ValueError(
            f"{path} is damaged, or is no checkpoint of this notebook ({reason}): {hint}."
        ) from None


def fixed_settings(
    settings: dict[str, Any], parts: dict[str, Any], train: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What must be the same for a run to go on: settings, and digests of its code."""
    may_change = {"n_epochs", "resume", "skip_broken"}
    networks = [type(part) for part in parts.values() if isinstance(part, nn.Module)]
    code = code_of(train, *(c for network in networks for c in network.__mro__)) | package_code()
    return {name: v for name, v in settings.items() if name not in may_change}, code


def go_on(
    folder: Path, parts: dict[str, Any], fixed: dict[str, Any], n_epochs: int
) -> dict[str, Any] | None:
    """Bring ``parts`` to the state of a folder's checkpoint; all processes to that of the first.

    Returns:
        The checkpoint; ``None`` if there is none.

    Raises:
        ValueError: if it cannot be read, has not the ``fixed`` settings and code, or does not fit.
    """
    if (read := of_first(lambda: read_checkpoint(folder))) is None:
        return None
    path, state, hint = read
    saved = state["settings"]
    names = [n for n in saved | fixed if saved.get(n) != fixed.get(n)]
    if names:
        lines = [f"  {n}: {saved.get(n)!r} there, {fixed.get(n)!r} now" for n in names]
        back = "Set them back"
        if any(name.startswith("the code of ") for name in names):
            back += " (undo the change of that code; comments and docstrings do not matter)"
        raise ValueError(
            f"{folder} holds a run with other settings:\n"
            + "\n".join(lines)
            + f"\n{back} to go on with it, or {hint}."
        )
    try:
        set_states(parts, state["parts"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit these networks ({error}): {hint}.") from None
    epoch, batch = state["epoch"], state["batch"]
    done = f"{epoch} epochs" + (f" and {batch} batches" if batch else "")
    if epoch < n_epochs:
        say(f"Going on from {path}: {done} are done.")
    else:
        more = "" if "n_epochs" in fixed else "; to go on, raise n_epochs"
        say(
            f"{path} holds this run already, {done}: nothing is left to train. To do it anew, "
            f"set resume = False{more}."
        )
    return state


def states_of(parts: dict[str, Any]) -> dict[str, Any]:
    """What ``set_states`` brings the same parts back to."""
    return {n: p if isinstance(p, Tensor) else p.state_dict() for n, p in parts.items()}


def set_states(parts: dict[str, Any], states: dict[str, Any]) -> None:
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


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states of the CPU and of a device, by the device's type."""
    return {kind: _home(kind).get_rng_state() for kind in ("cpu", device.type)}


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the random states of the CPU and of a device back, as far as they are known."""
    for kind in states.keys() & {"cpu", device.type}:
        _home(kind).set_rng_state(states[kind])


def _home(kind: str) -> ModuleType:
    return torch if kind == "cpu" else torch.get_device_module(kind)
