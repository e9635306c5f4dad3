"""Trained generators: their files of weights, and the faces that they draw.

The network is the notebook's own ``Generator``, changed by the idea that it was trained with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from faces.files import WEIGHTS, atomic_write
from faces.images import to_uint8
from faces.notebook import change_notebook, load_definitions, load_ideas
from faces.properties import sample_balanced

# ------------------------------------------------------------------------ faces


def generate_faces(
    n: int, seed: int, weights: str | Path = WEIGHTS, balanced: bool = False
) -> np.ndarray:
    """Draw faces from trained weights.

    The network is made by the notebook on the disk, not by a cell that was just changed, and by the
    idea that the weights were trained with.

    Args:
        n: how many, at most 100,000.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote.
        balanced: draw until each class of lightness has its equal share, see ``sample_balanced``;
            classes of which too few were drawn are printed.

    Returns:
        uint8 array (n, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, does not fit the notebook's ``Generator``, or was
            damaged; if it was trained with an idea that is not in ideas/; if ``n`` is out of
            range; or if too few faces have a class.
    """
    if not isinstance(n, Integral) or not 1 <= n <= 100_000:
        raise ValueError(f"n is {n!r}: it must be a whole number from 1 to 100,000.")
    with torch.random.fork_rng(devices=[]):
        draw, sample_z = load_generator(weights)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed other devices too
        if balanced:
            faces = sample_balanced(lambda size: draw(sample_z(size)), n)
            if len(faces) < n:
                raise ValueError(f"Only {len(faces)} faces that {weights} draws have a class.")
            return faces
        sizes = (min(100, n - start) for start in range(0, n, 100))  # fits a processor's cache
        return np.concatenate([draw(sample_z(size)) for size in sizes])


def walk(seeds: Sequence[int], weights: str | Path = WEIGHTS) -> np.ndarray:
    """Draw the way from the face of each seed to that of the next, straight through the latents.

    Args:
        seeds, weights: of the faces, see ``generate_faces``, which says what it raises too.

    Returns:
        uint8 array ((len(seeds) - 1) * 24 + 1, H, W, 3).
    """
    with torch.random.fork_rng(devices=[]):
        draw, sample_z = load_generator(weights)
        ends = []
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            ends.append(sample_z(1))
    t = torch.arange(24).view(24, 1) / 24
    ways = [start + t * (end - start) for start, end in pairwise(ends)]
    return np.concatenate([draw(z) for z in [*ways, ends[-1]]])


def load_generator(
    weights: str | Path,
) -> tuple[Callable[[Tensor], np.ndarray], Callable[[int], Tensor]]:
    """What draws latents (n, z_size), and what drew them; changes the random state."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights}: train first, or name another.")
    try:
        state, metadata = read_weights(weights)
        names = ("z_size", "g_conv_dim", "image_size")
        z_size, conv_dim, image_size = (int(metadata[name]) for name in names)
        idea = metadata.get("idea", "")
        if not re.fullmatch(r"[\w+]*", idea):  # a file of weights must not choose what code runs
            raise ValueError(f"they were trained with {idea!r}, which is not in ideas/")
        notebook = load_definitions()
        change_notebook(notebook, load_ideas(idea).values())
        notebook.z_size, notebook.device = z_size, torch.device("cpu")
        _, G = notebook.build_network(8, conv_dim, z_size, image_size)
        G.eval().to(memory_format=torch.channels_last).load_state_dict(state)
        for name, own in G.state_dict().items():
            found = state[name]
            dtypes = (own.dtype, torch.float16) if own.is_floating_point() else (own.dtype,)
            if found.dtype not in dtypes or not found.isfinite().all():
                raise ValueError(f"{name} is {found.dtype}, or not finite: not {own.dtype}")
    except (SafetensorError, AttributeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{weights} does not hold weights of the notebook's Generator: {error}"
        ) from error
    return torch.inference_mode()(lambda z: to_uint8(G(z))), notebook.sample_z


# ------------------------------------------------------------------------ files of weights


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, with "checksum" in its metadata; a full disk raises ``OSError``."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = metadata | {"checksum": _checksum(state, metadata)}
    content = safetensors.torch.save(state)  # which would put metadata in a random order
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary:
        temporary.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata.

    Raises:
        safetensors.SafetensorError: if it is none.
        ValueError: if it has a checksum that does not fit; not all have one.
    """
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        state = {name: opened.get_tensor(name) for name in opened.keys()}
    if metadata.get("checksum") not in (None, _checksum(state, metadata)):
        raise ValueError("its checksum does not fit, so it was damaged or changed")
    return state, metadata


def _checksum(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    texts = sorted(item for item in metadata.items() if item[0] != "checksum")
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
