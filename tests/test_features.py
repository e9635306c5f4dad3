"""Distances between sets in a network's features, where the answer is known."""

import csv

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import ablation_table, features
from faces.files import WEIGHTS
from faces.generator import generate_faces, load_generator
from faces.measures import frechet_and_kernel, nearest_images

needs_network = pytest.mark.skipif(
    not features.is_installed(), reason="benchmarks/requirements.txt is not installed"
)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def with_covariance(root: Tensor, mean: Tensor, seed: int) -> Tensor:
    """A sample whose own mean and covariance, root^T root, are exact."""
    x = normal(200, len(mean), seed).double()
    white = torch.linalg.qr(x - x.mean(dim=0)).Q * (len(x) - 1) ** 0.5
    return white @ root + mean


def test_the_frechet_distance_of_two_normal_distributions():
    a = with_covariance(torch.diag(torch.tensor([1.0, 2, 3]).double()), torch.zeros(3), 0)
    b = with_covariance(torch.diag(torch.tensor([4.0, 2, 1]).double()), torch.arange(3), 1)
    expected = 0 + 1 + 4 + 3**2 + 0 + 2**2  # of the means, and of the deviations
    assert frechet_and_kernel(a, b)[0] == pytest.approx(expected)
    assert frechet_and_kernel(a, a)[0] == pytest.approx(0, abs=1e-9)
    # where the axes differ; the trace of the root of a 2x2 matrix M is (tr M + 2 det(M)^0.5)^0.5
    roots = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[2.0, -1.0], [0.0, 3.0]]]).double()
    a, b = (with_covariance(root, torch.zeros(2), i) for i, root in enumerate(roots))
    c, d = roots.mT @ roots
    root = (torch.trace(c @ d) + 2 * torch.det(c @ d) ** 0.5) ** 0.5
    expected = (torch.trace(c) + torch.trace(d) - 2 * root).item()
    assert frechet_and_kernel(a, b)[0] == pytest.approx(expected)
    few = normal(20, 50, 2)  # fewer than there are dimensions
    assert frechet_and_kernel(few, few + 1)[0] == pytest.approx(50, rel=1e-6)


def test_the_kernel_distance_is_unbiased():
    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)  # the kernel: 1, 8 and between them 1
    assert frechet_and_kernel(zeros, ones)[1] == pytest.approx(1000 * (1 + 8 - 2))
    pairs = [(normal(40, 5, 2 * i), normal(40, 5, 2 * i + 1)) for i in range(40)]
    values = [frechet_and_kernel(*pair)[1] for pair in pairs]
    error = np.std(values) / len(values) ** 0.5
    assert min(values) < 0 and abs(np.mean(values)) < 3 * error
    assert frechet_and_kernel(pairs[0][0], pairs[0][1] + 1)[1] > 10 * np.std(values)


def test_where_faces_lie_among_real_ones():
    real = normal(400, 4, 0)
    real[200:, 0] += 100  # two clusters
    same = features.compute_prdc(torch.cat([normal(200, 4, 1), real[200:] + 0.01]), real)
    assert min(same.values()) > 0.85 and same["density"] == pytest.approx(1, abs=0.2)
    half = features.compute_prdc(normal(400, 4, 2), real)  # all in the first
    assert half["precision"] > 0.9 and 0.4 < half["recall"] <= 0.5 >= half["coverage"] > 0.4
    far = features.compute_prdc(normal(400, 4, 3) + 1000, real)
    assert set(far.values()) == {0}
    # on a line: balls of 3 neighbours reach to 3, 2, 2, 3; those of "5" too, 4 points have no more
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    faces = torch.tensor([[-2.5], [0.5], [5.5], [50.0]])
    measured = features.compute_prdc(faces, line)
    assert measured["precision"] == 0.75 and measured["coverage"] == 1
    assert measured["density"] == pytest.approx((1 + 4 + 1 + 0) / 4 / 3)


def test_copies_are_closer_to_training_features(monkeypatch):
    """Each image's features are its pixels."""
    monkeypatch.setattr(
        features, "extract_features", lambda images: torch.from_numpy(images).flatten(1).float()
    )
    images = np.random.default_rng(0).integers(0, 256, (700, 2, 2, 3), dtype=np.uint8)
    training, held_out, others = images[:400], images[400:500], images[500:]
    evaluator = features.FeatureEvaluator(training, held_out)
    assert (
        evaluator.size == 100
        and len(evaluator.baseline["frechet"]) == 4
        and "closer" not in evaluator.baseline
    )
    measured, copied = evaluator(others), evaluator(training[:200])
    assert len(measured["frechet"]) == len(measured["closer"]) == 2
    assert np.mean(measured["closer"]) == pytest.approx(0.5, abs=0.1)
    assert copied["nearest"] == [0, 0] and min(copied["closer"]) > 0.6
    assert evaluator.baseline["nearest"][0] == pytest.approx(np.mean(measured["nearest"]), rel=0.1)


def test_a_chequerboard_that_nobody_sees_is_measured():
    noise = np.random.default_rng(0).integers(100, 156, (400, 32, 32, 3), dtype=np.uint8)
    rows, columns = np.indices((32, 32))
    board = ((rows + columns) % 2 * 2 - 1)[None, :, :, None]
    plain = features.measure_chequerboard(noise)
    assert plain == pytest.approx(1, abs=0.15)  # white noise has the same power everywhere
    power = noise.var() * 32**2  # of the noise at any frequency; the board has 32^4 at its own
    measured = features.measure_chequerboard((noise + board).astype(np.uint8))
    assert measured == pytest.approx(plain + 32**4 / power, rel=0.1)
    stripes = (noise + rows[None, :, :, None] % 2 * 2 - 1).astype(np.uint8)  # one axis only
    assert features.measure_chequerboard(stripes) == pytest.approx(plain, abs=1e-3)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Drawn from the shipped weights, uint8 (1800, 32, 32, 3)."""
    return generate_faces(1800, seed=0)


@pytest.fixture(scope="module")
def evaluator(faces) -> features.FeatureEvaluator:
    """Five sets of 300 in the place of training photographs, one in that of held-out ones."""
    return features.FeatureEvaluator(faces[300:], faces[:300])


def means(evaluator: features.FeatureEvaluator, images: np.ndarray) -> dict[str, float]:
    """The measures' means over up to three sets."""
    return {n: np.mean(values) for n, values in evaluator(np.ascontiguousarray(images)).items()}


def over_sets(evaluator: features.FeatureEvaluator) -> tuple[dict[str, float], dict[str, float]]:
    """The means of real faces' sets, and their standard deviations from set to set."""
    values = {name: evaluator.baseline[name] for name in ablation_table.FEATURE_MEASURES}
    deviations = {name: np.std(v, ddof=1) for name, v in values.items()}
    return {name: np.mean(v) for name, v in values.items()}, deviations


@needs_network
def test_mixed_and_blurred_faces_are_far_from_real_ones(faces, evaluator):
    baseline, spread = over_sets(evaluator)
    mixed = faces[300:600].copy()
    mixed[:, :, 16:] = np.roll(mixed, 1, axis=0)[:, :, 16:]  # the other half is another face's
    x = torch.from_numpy(faces[300:600]).permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1).permute(0, 2, 3, 1).byte().numpy()
    for images in (mixed, blurred):
        measured = means(evaluator, images)
        for name in ("frechet", "kernel"):
            assert measured[name] > baseline[name] + 5 * spread[name]
        assert measured["precision"] < baseline["precision"] - 0.1
        assert measured["density"] < 0.7 * baseline["density"]


@needs_network
def test_a_missing_half_lowers_recall_and_coverage(faces, evaluator):
    baseline, spread = over_sets(evaluator)
    seen = features.extract_features(faces[300:])
    order = (seen @ torch.linalg.eigh(seen.T.cov()).eigenvectors[:, -1]).argsort()
    few = np.repeat(faces[300:330], 10, axis=0)
    parts = [faces[300:][order[:750]], faces[300:][order[750:]], few]  # halves that differ most
    halves = [means(evaluator, part) for part in parts]
    for measured in halves:
        falls = {name: measured[name] / baseline[name] for name in ("recall", "coverage")}
        assert max(falls.values()) < 1 and min(falls.values()) < 0.75
        assert measured["precision"] > baseline["precision"] - 0.1
        assert measured["kernel"] > baseline["kernel"] + 5 * spread["kernel"]
    precision = np.mean([measured["precision"] for measured in halves[:2]])
    assert precision == pytest.approx(
        baseline["precision"], abs=0.05
    )  # together they are all faces
    assert halves[-1]["recall"] < 0.1 and halves[-1]["coverage"] < 0.6 * baseline["coverage"]


@needs_network
def test_copies_are_found_though_shifted_or_mirrored(faces, evaluator):
    training, (held_out,) = faces[300:600], evaluator.baseline["nearest"]
    mirrored = means(evaluator, training[:, :, ::-1])
    shifted = means(evaluator, np.roll(training, 1, axis=2))
    for measured in (mirrored, shifted):
        assert measured["nearest"] < 0.9 * held_out
    pixels = [
        np.median(nearest_images(np.ascontiguousarray(images), faces[300:])[1])
        for images in (training[:100, :, ::-1], faces[:100])
    ]
    assert pixels[0] > 0.9 * pixels[1]  # by pixels, mirrored ones are no closer than others


# ------------------------------------------------------------------------------- the command line


def test_all_images_get_the_same_background():
    images = np.random.default_rng(0).integers(0, 256, (1001, 32, 32, 3), dtype=np.uint8)
    painted = features.paint_background(images)
    assert painted.dtype == np.uint8 and painted.shape == images.shape
    assert len(np.unique(painted[:, [0, 0, -1, -1], [0, -1, 0, -1]])) == 1  # the corners
    assert (painted[:, 10:25, 12:20] == images[:, 10:25, 12:20]).all()
    assert (features.paint_background(painted)[:, :, :4] == painted[:, :, :4]).all()


@needs_network
def test_files_and_runs_are_measured(tmp_path, image_dir, monkeypatch, capsys):
    from test_benchmarks import leave_results

    leave_results(tmp_path / "run", 3)
    target = tmp_path / "features.csv"
    run = tmp_path / "run"
    before = sorted(path.name for path in run.rglob("*"))
    arguments = ["--data-dir", str(image_dir), "--csv", str(target), "--sets", "2"]
    features.main([str(WEIGHTS), str(run), *arguments])
    with open(target, newline="") as file:
        real, shipped, average, itself = csv.DictReader(file)
    assert real["weights"] == "training faces" and real["closer"] == "" != real["nearest"]
    assert shipped["weights"].endswith("assets/generator.safetensors")
    assert shipped["sets"] == "2" and float(shipped["frechet_sd"]) > 0
    assert average["weights"].endswith("faces/generator.safetensors")
    assert itself["weights"].endswith("faces/checkpoint.pt")
    assert average["frechet"] == shipped["frechet"] != itself["frechet"]
    assert sorted(path.name for path in run.rglob("*")) == before


def test_wider_latents_are_latents_times_a_factor(tmp_path):
    draw, sample_z = load_generator(WEIGHTS)
    wider, _ = load_generator(features.widen_latents(WEIGHTS, 1.5, tmp_path / "x.safetensors"))
    z = sample_z(10)
    faces, expected = (images.astype(int) for images in (wider(z), draw(1.5 * z)))
    assert np.abs(faces - expected).max() <= 1 < np.abs(faces - draw(z)).mean()


def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        features.main([str(tmp_path)])
    assert "is neither a file of weights nor a run's folder" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(features, "PACKAGES", ["a_package_that_is_not_there"])
    with pytest.raises(SystemExit):
        features.main([])
    assert "pip install --no-deps -r benchmarks/requirements.txt" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- noise


def test_a_difference_counts_from_the_spread_over_seeds():
    def runs(*values: float) -> list[dict[str, str]]:
        return [{"frechet": str(value)} for value in values]

    table = {"plain": runs(100, 102, 104), "flips": runs(90, 94), "dropout": runs(80)}
    table[ablation_table.REAL] = runs(1, 50)
    spread, freedom = ablation_table.pool_spread(table, "frechet")
    assert freedom == 3 and spread == pytest.approx(((4 + 4 + 8) / 3) ** 0.5)
    least = ablation_table.least_significant_difference(table, "frechet", 3, 2)
    assert least == pytest.approx(3.18 * spread * (1 / 3 + 1 / 2) ** 0.5)
    alone = ablation_table.least_significant_difference({"plain": runs(100)}, "frechet")
    assert np.isnan(alone)
