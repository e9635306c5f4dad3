"""Trained generators: their files of weights, and the faces that they draw.

The shipped weights are drawn by a class of this module. Weights of an own run are drawn by the
notebook's ``Generator``, changed by the idea that it was trained with.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import v2

from faces.files import WEIGHTS, WEIGHTS_64, atomic_write
from faces.images import to_uint8
from faces.notebook import RANGES, Definitions, change_notebook, load_definitions, load_ideas
from faces.properties import sample_balanced

# ------------------------------------------------------------------------ faces


def generate_faces(
    n: int,
    seed: int,
    weights: str | Path | None = None,
    balanced: bool = False,
    size: int | None = None,
) -> np.ndarray:
    """Draw faces from trained weights.

    The shipped weights do not need the notebook. For others the network is made by the notebook on
    the disk, not by a cell that was just changed, and by the idea that they were trained with.

    Args:
        n: how many, at most 100,000.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote. ``None`` stands for
            shipped ones: those of 64x64 if a size is asked for, else those of 32x32.
        balanced: draw until each class of lightness has its equal share, see ``sample_balanced``;
            classes of which too few were drawn are printed.
        size: the side of the faces, if it is to be smaller than the weights draw them. Faces of
            64x64 that are reduced to 32x32 are closer to photographs than those that are drawn at
            32x32, see docs/measurements.md.

    Returns:
        uint8 array (n, H, W, 3); H and W are ``size``, if that is given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, does not fit the notebook's ``Generator``, or was
            damaged; if that cannot be made; if it was trained with an idea that is not in ideas/;
            if ``n`` or ``size`` is out of range; or if too few faces have a class.
    """
    if not isinstance(n, Integral) or not 1 <= n <= 100_000:
        raise ValueError(f"n is {n!r}: it must be a whole number from 1 to 100,000.")
    if weights is None:
        weights = WEIGHTS if size is None else WEIGHTS_64
    with torch.random.fork_rng(devices=[]):
        draw, sample_z = load_generator(weights)
        if size is not None:
            draw = _reduce(draw, draw(sample_z(2)).shape[1], size)
        # torch.manual_seed would seed other devices too
        torch.default_generator.manual_seed(int(seed))
        if balanced:
            faces = sample_balanced(lambda size: draw(sample_z(size)), n)
            if len(faces) < n:
                raise ValueError(f"Only {len(faces)} faces that {weights} draws have a class.")
            return faces
        sizes = (min(100, n - start) for start in range(0, n, 100))  # fits a processor's cache
        return np.concatenate([draw(sample_z(size)) for size in sizes])


def _reduce(
    draw: Callable[[Tensor], np.ndarray], side: int, size: int
) -> Callable[[Tensor], np.ndarray]:
    """Make what draws smaller faces, reduced as photographs are, from what draws larger ones."""
    if not isinstance(size, Integral) or not 1 <= size <= side:
        raise ValueError(
            f"size is {size!r}: it must be a whole number from 1 to {side}, the side of the faces "
            "that these weights draw."
        )

    def draw_smaller(z: Tensor) -> np.ndarray:
        x = torch.from_numpy(draw(z)).permute(0, 3, 1, 2)
        x = v2.functional.resize(x, [size, size], antialias=True)
        return x.permute(0, 2, 3, 1).numpy()

    return draw if size == side else draw_smaller


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
            torch.default_generator.manual_seed(int(seed))
            ends.append(sample_z(1))
    t = torch.arange(24).view(24, 1) / 24
    ways = [start + t * (end - start) for start, end in pairwise(ends)]
    return np.concatenate([draw(z) for z in [*ways, ends[-1]]])


# ------------------------------------------------------------------------ networks


class DCGAN(nn.Module):
    """Latents (N, z_size) -> images (N, 3, image_size, image_size) in [-1, 1].

    It is the ``Generator`` that the shipped weights were trained as. It stays as it is, whatever
    becomes of the notebook's.
    """

    def __init__(self, z_size: int, conv_dim: int, image_size: int) -> None:
        super().__init__()
        side = image_size // 16
        self.start = (conv_dim * 8, side, side)
        self.fc = nn.Linear(z_size, conv_dim * 8 * side * side)
        self.deconv1 = _deconv(conv_dim * 8, conv_dim * 4)
        self.deconv2 = _deconv(conv_dim * 4, conv_dim * 2)
        self.deconv3 = _deconv(conv_dim * 2, conv_dim)
        self.deconv4 = nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).unflatten(1, self.start)
        return torch.tanh(self.deconv4(self.deconv3(self.deconv2(self.deconv1(x)))))


def _deconv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def load_generator(
    weights: str | Path,
) -> tuple[Callable[[Tensor], np.ndarray], Callable[[int], Tensor]]:
    """Return what draws faces from latents (n, z_size), and what draws latents.

    Changes the random state.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights}: train first, or name another.")
    try:
        state, metadata = read_weights(weights)
        z_size, conv_dim, image_size = sizes = _read_sizes(state, metadata)
        if metadata.get("architecture") == "DCGAN":  # as .ci/ship_weights.py writes it
            return _load(partial(DCGAN, *sizes), lambda n: torch.rand(n, z_size) * 2 - 1, state)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{weights} does not hold weights of a generator: {error}") from error
    failures = ""
    try:
        idea = metadata.get("idea", "")
        if not re.fullmatch(r"[\w+]{0,1000}", idea):  # they must not choose what code runs
            raise ValueError(f"they were trained with {reprlib.repr(idea)}, which is not in ideas/")
        ideas = load_ideas(idea).values()
        notebook = load_definitions()
        failures = Definitions.failures(notebook)
        change_notebook(notebook, ideas)
        notebook.z_size, notebook.device = z_size, torch.device("cpu")
        sizes = (8, conv_dim, z_size, image_size)
        return _load(lambda: notebook.build_network(*sizes)[1], notebook.sample_z, state)
    except Exception as error:  # a learner's code may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        more = failures if isinstance(error, NameError) else ""
        raise ValueError(
            f"{weights} does not hold weights of the notebook's Generator: {kind}{error}{more}"
        ) from error


def _read_sizes(state: dict[str, Tensor], metadata: dict[str, str]) -> list[int]:
    """Read ``z_size``, ``g_conv_dim`` and ``image_size``; ``ValueError`` if one cannot be."""
    sizes, n_numbers = [], sum(tensor.numel() for tensor in state.values())
    for name in ("z_size", "g_conv_dim", "image_size"):
        text, (meaning, is_right) = metadata.get(name, ""), RANGES[name]
        sizes.append(int(text) if re.fullmatch(r"\d{1,18}", text) else None)
        if not is_right(sizes[-1]):
            raise ValueError(f"{name} is {reprlib.repr(text)}: it must be {meaning}")
        if sizes[-1] > n_numbers:
            raise ValueError(f"{name} is {text}, but the file has only {n_numbers:,} numbers")
    return sizes


def _load(
    build: Callable[[], nn.Module], sample_z: Callable[[int], Tensor], state: dict[str, Tensor]
) -> tuple[Callable[[Tensor], np.ndarray], Callable[[int], Tensor]]:
    """Make a network, once the file has its sizes, load it and try it; see ``load_generator``."""
    with suppress(RuntimeError, TypeError), torch.device("meta"):  # which takes no memory
        _compare(build().state_dict(), state)  # unless a network reads values while it is made
    G = build().eval().to(memory_format=torch.channels_last)
    _compare(G.state_dict(), state)
    G.load_state_dict(state)
    with torch.inference_mode():
        if not G(sample_z(2)).isfinite().all():
            raise ValueError("it draws NaN: a variance is below 0, or weights are too large")
    return torch.inference_mode()(lambda z: to_uint8(G(z))), sample_z


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` unless a file's tensors are those of a network, perhaps in float16."""
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'in the file only'}")
    for name, own in expected.items():
        tensor = found[name]
        dtypes = (own.dtype, torch.float16) if own.is_floating_point() else (own.dtype,)
        if tensor.shape != own.shape or tensor.dtype not in dtypes:
            have, need = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, own))
            raise ValueError(f"{name} is {have}, where the network has {need}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


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
