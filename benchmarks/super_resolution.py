"""Trains a network that doubles the sides of faces, and measures what it makes of small faces.

    python benchmarks/super_resolution.py --data-dir processed_celeba_small

It learns from photographs of 64x64 and the same ones reduced to 32x32: each of its images is to be
the photograph, pixel by pixel, and the notebook's discriminator is to take it for one (Ledig et
al., 2017, https://arxiv.org/abs/1609.04802, without the features of another network in the loss).
The convolutions see the small image; the last one makes four pixels of each (Shi et al., 2016,
https://arxiv.org/abs/1609.05158). What it makes is added to what bicubic interpolation makes, and
is nothing at first.

Measured like the faces of features.py, at 64x64: training photographs and the faces of a generator
of 32x32, each enlarged by bicubic interpolation and by the network. A generator that draws 64x64 is
measured with features.py. The rows are appended to the CSV.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.features import FeatureEvaluator, is_installed, load_photographs, write_measures
from faces.data import get_data
from faces.files import HERE, WEIGHTS
from faces.generator import generate_faces
from faces.images import fingerprint, to_uint8
from faces.notebook import load_definitions
from faces.speed import Accelerator

ADVERSARIAL = 0.01  # weight of D's answer, beside that of the mean absolute difference of pixels
RATE = 0.0002  # Adam's learning rate for both networks, as in the notebook


class Enlarger(nn.Module):
    """Images (N, 3, height, width) in [-1, 1] -> (N, 3, 2 height, 2 width), about so."""

    def __init__(self, conv_dim: int, n_blocks: int = 4) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, conv_dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(conv_dim, conv_dim, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(conv_dim, conv_dim, 3, padding=1),
            )
            for _ in range(n_blocks)
        )
        self.end = nn.Sequential(nn.Conv2d(conv_dim, 12, 3, padding=1), nn.PixelShuffle(2))
        nn.init.zeros_(self.end[0].weight)
        nn.init.zeros_(self.end[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.start(x))
        for block in self.blocks:
            features = features + block(features)
        return enlarge_bicubic(x) + self.end(features)


def enlarge_bicubic(x: Tensor) -> Tensor:
    """Double the sides of images (N, 3, height, width)."""
    return F.interpolate(x, scale_factor=2, mode="bicubic")


def reduce(images: np.ndarray) -> np.ndarray:
    """Halve the sides of images, uint8 (n, side, side, 3), as photographs are reduced."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    x = v2.functional.resize(x, [images.shape[1] // 2] * 2, antialias=True)
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """Turn images, uint8 (n, side, side, 3), into (n, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(device) / 127.5 - 1


def train(photographs: np.ndarray, n_steps: int, conv_dim: int, batch_size: int = 32) -> nn.Module:
    """Train an enlarger on photographs, uint8 (n, side, side, 3); return its moving average."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    accelerator, notebook = Accelerator(), load_definitions()
    notebook.ema_decay = 0.999
    D, _ = notebook.build_network(32, 32, notebook.z_size, photographs.shape[1])
    D, enlarger = accelerator.prepare(D, Enlarger(conv_dim))
    average = copy.deepcopy(enlarger).eval()
    d_optimizer = optim.Adam(D.parameters(), RATE, (0.5, 0.999), fused=True)
    optimizer = optim.Adam(enlarger.parameters(), RATE, (0.5, 0.999), fused=True)
    small = reduce(photographs)
    for n_done in range(n_steps):
        chosen = random.choice(len(photographs), min(batch_size, len(photographs)), replace=False)
        real, x = (to_float(images[chosen], accelerator.device) for images in (photographs, small))
        fake = enlarger(x)
        d_loss = notebook.discriminator_loss(D, real, fake.detach())
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        difference = F.l1_loss(fake, real)
        loss = difference + ADVERSARIAL * notebook.generator_loss(D, real, fake)
        optimizer.zero_grad()
        loss.backward(inputs=list(enlarger.parameters()))
        optimizer.step()
        notebook.update_ema(average, enlarger, n_done + 1)
        if n_done % 200 == 0 or n_done == n_steps - 1:
            print(f"step {n_done}, pixels {difference:.4f}, d_loss {d_loss:.3f}", flush=True)
    return average


@torch.inference_mode()
def enlarge(images: np.ndarray, enlarger: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Enlarge images, uint8 (n, side, side, 3), a hundred at a time."""
    x = (to_float(images[i : i + 100], torch.device("cpu")) for i in range(0, len(images), 100))
    return np.concatenate([to_uint8(enlarger(part)) for part in x])


def main(arguments: list[str] | None = None) -> None:
    """Train the network, measure both ways, and append a row for each to the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--weights", type=Path, default=WEIGHTS, help="of a generator of 32x32")
    add("--steps", type=int, default=6072, help="steps of the training")
    add("--conv-dim", type=int, default=32, help="channels of the network that enlarges")
    add("--n", type=int, default=1600, help="faces in a set")
    add("--csv", type=Path, default=HERE / "runs" / "features.csv", help="where rows are added")
    options = parser.parse_args(arguments)
    if min(options.steps, options.conv_dim) < 1 or options.n < 2:
        parser.error("--steps and --conv-dim must be at least 1, --n at least 2")
    if not is_installed():
        parser.error("first run: pip install --no-deps -r benchmarks/requirements.txt")
    training, held_out = load_photographs(get_data(options.data_dir).resolve(), 64)
    enlarger = train(training, options.steps, options.conv_dim).cpu()
    evaluator = FeatureEvaluator(training, held_out, options.n)
    n = 3 * evaluator.size
    small = {"training faces": reduce(training[:n])}
    small[str(options.weights)] = generate_faces(n, seed=0, weights=options.weights)
    about = {"size": 64, "n": evaluator.size, "data": fingerprint(training)}
    for name, images in small.items():
        for way, enlarge_them in (("bicubic", enlarge_bicubic), ("super-resolution", enlarger)):
            values = evaluator(enlarge(images, enlarge_them))
            write_measures(options.csv, f"{name}, enlarged by {way}", values, about)


if __name__ == "__main__":
    main()
