"""The lesson's settings: presets, and the range of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faces.ideas import find_ideas


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # True is an int, too


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_COUNT = ("a whole number, at least 1", lambda v: _whole(v, 1))
_RATE = ("above 0 and at most 0.01, such as 0.0002", lambda v: _number(v) and 0 < v <= 0.01)
_FRACTION = ("at least 0 and below 1", lambda v: _number(v) and 0 <= v < 1)
_SWITCH = ("True or False", lambda v: isinstance(v, bool))

# What each setting must be, in words and as a test.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_images": ("a whole number, at least 4, or None", lambda v: v is None or _whole(v, 4)),
    "n_epochs": _COUNT,
    "d_conv_dim": _COUNT,
    "g_conv_dim": _COUNT,
    "image_size": ("a multiple of 16, at least 32", lambda v: _whole(v, 32) and v % 16 == 0),
    "batch_size": ("a whole number, at least 2", lambda v: _whole(v, 2)),
    "z_size": _COUNT,
    "d_lr": _RATE,
    "g_lr": _RATE,
    "beta1": _FRACTION,
    "ema_decay": _FRACTION,
    "seed": ("a whole number from 0 to 2**63 - 1", lambda v: _whole(v, 0) and v < 2**63),
    "resume": _SWITCH,
    "skip_broken": _SWITCH,
    "fast": _SWITCH,
}


def choose_settings(
    preset: str, presets: dict[str, dict[str, Any]], given: dict[str, Any]
) -> dict[str, Any]:
    """Take the preset's values for the settings that were left to it, check all, say what it chose.

    Args:
        preset: a name in ``presets``, or "auto": the environment variable ``FACES_PRESET`` if it
            is set, else "full" where there is an accelerator and "quick" on a CPU.
        presets: each preset's settings. Those that all presets list are taken where the given one
            is ``None``; those that only some of them list always hold.
        given: the settings among others, "idea" too, and "data_dir" and "output_dir".

    Returns:
        All settings, in the order of ``RANGES``, and "idea".

    Raises:
        ValueError: if there is no such preset, settings are out of their ranges, there is no such
            idea, or the results would lie among the images; it names all.
    """
    why = "given by hand"
    if preset == "auto" and os.environ.get("FACES_PRESET"):
        preset, why = os.environ["FACES_PRESET"], "from the environment variable FACES_PRESET"
    elif preset == "auto" and torch.accelerator.is_available():
        preset, why = "full", "auto: there is an accelerator"
    elif preset == "auto":
        preset, why = "quick", "auto: there is no accelerator"
    if preset not in presets:
        raise ValueError(
            f"preset is {preset!r} ({why}): set it to one of auto, {', '.join(presets)}."
        )
    decided = {
        name: value
        for name, value in presets[preset].items()
        if given[name] is None or not all(name in other for other in presets.values())
    }
    settings = {name: given[name] for name in (*RANGES, "idea")} | decided
    wrong = [
        f"{name} is {settings[name]!r}: it must be {meaning}."
        for name, (meaning, is_right) in RANGES.items()
        if not is_right(settings[name])
    ]
    try:
        find_ideas(settings["idea"])
    except ValueError as error:
        wrong.append(str(error))
    data, output = (Path(given[n]).expanduser().resolve() for n in ("data_dir", "output_dir"))
    if output.is_relative_to(data):
        wrong.append(
            f"output_dir is {given['output_dir']}, which lies in data_dir ({given['data_dir']}): "
            "the pictures written there would become training data. Set output_dir to a folder "
            "outside."
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    print(f"preset {preset} ({why})")
    for name, value in decided.items():
        print(f"  {name} = {value or repr(value)}")  # that there is no idea shows as ''
    return settings
