"""Files of weights: the same bytes for the same weights, with a checksum of all that they hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from faces.files import writing


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, with "checksum" in its metadata; a full disk raises ``OSError``."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = metadata | {"checksum": _checksum(state, metadata)}
    content = safetensors.torch.save(state)  # which would put metadata in a random order
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as temporary:
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
