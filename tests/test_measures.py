"""The measures of generated faces, where the answer is known."""

from unittest import mock

import numpy as np
import pytest
import torch
import torchmetrics.image.fid
from conftest import blobs, plain_faces
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from faces import data, measures
from faces.images import FaceDataset, copy_to, find_images, fingerprint
from faces.measures import (
    Evaluator,
    diversity,
    frechet_and_kernel,
    inception_distances,
    nearest_images,
    sliced_wasserstein,
)
from faces.properties import balancing_weights, ita, ita_shares


def evaluate(train: np.ndarray, test: np.ndarray) -> Evaluator:
    return Evaluator(FaceDataset(train), FaceDataset(test))


def to_faces(images: np.ndarray) -> torch.Tensor:
    """As a generator gives them: float (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Smooth pictures with fine noise, uint8 (1200, 32, 32, 3)."""
    noise = np.random.default_rng(1).normal(0, 8, (1200, 32, 32, 3))
    return (blobs(1200, 32, 32, seed=0) + noise).clip(0, 255).astype(np.uint8)


# -------------------------------------------------------------------------- sliced Wasserstein


def test_the_distance_of_a_set_from_itself_is_small_and_shrinks(real):
    same = sliced_wasserstein(real[:600], real[:600])
    halves = sliced_wasserstein(real[:600], real[600:])
    small_halves = sliced_wasserstein(real[:60], real[600:660])
    for side in (32, 16):
        assert same[side] < halves[side] < small_halves[side]
        assert halves[side] < 40


def test_the_distance_finds_the_level_that_differs(real):
    floor = sliced_wasserstein(real[:600], real[600:])
    noise = np.random.default_rng(2).normal(0, 16, real[:600].shape)
    noisy = (real[:600] + noise).clip(0, 255).astype(np.uint8)
    blurred = torch.from_numpy(real[:600]).permute(0, 3, 1, 2).float()
    blurred = nn.functional.avg_pool2d(blurred, 3, 1, 1).permute(0, 2, 3, 1).to(torch.uint8)
    for other in (noisy, blurred.numpy()):
        distances = sliced_wasserstein(other, real[600:])
        assert distances[32] > 2.5 * floor[32]
        assert distances[16] < distances[32]


def test_the_distance_of_a_known_shift(real):
    """Patches all of the colours a or all of b: each level's projections can be worked out."""
    a = np.zeros((400, 16, 16, 3), np.uint8)
    a[:200] = 100  # in each set half of the pictures are 0 and half are not
    b = a.copy()
    b[200:300] = 100  # three quarters
    (distance,) = sliced_wasserstein(a, b).values()
    # Scaled to mean 0 and variance 1, a is -1 or 1, half and half; b is -sqrt(3) in a quarter and
    # sqrt(1/3) in the others. All 147 values of a patch are equal, so that its projection is that
    # value times a normal number of mean 0 and variance 1: the mean of its size is sqrt(2 / pi).
    quarters = np.array([3**0.5 - 1, 1 + 3**-0.5, 1 - 3**-0.5, 1 - 3**-0.5])
    assert distance == pytest.approx(1000 * quarters.mean() * (2 / np.pi) ** 0.5, rel=0.15)


def test_sets_of_other_shapes_are_refused(real):
    with pytest.raises(ValueError, match="must be the same"):
        sliced_wasserstein(real[:10], real[:9])


def test_levels_are_what_a_blur_takes_away():
    images = blobs(3, 64, 64, seed=5)
    levels = measures._laplacian_pyramid(images)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    # a wave as fine as can be is all in the finest level, a coarse one hardly
    waves = [np.sin(np.arange(64) * 2 * np.pi / period + 1) * 100 + 128 for period in (2.5, 64)]
    energy = []
    for wave in waves:
        picture = np.tile(wave.astype(np.uint8)[None, :, None, None], (1, 1, 64, 3))
        energy.append(measures._laplacian_pyramid(picture)[0].square().mean().sqrt().item())
    assert energy[0] > 50 and energy[1] < 2
    flat = np.full((2, 64, 64, 3), 77, np.uint8)
    *details, rest = measures._laplacian_pyramid(flat)
    assert all(detail.abs().max() < 1e-3 for detail in details)
    assert torch.allclose(rest, torch.tensor(77.0), atol=1e-3)


# ------------------------------------------------------------------------- diversity and copies


def test_a_collapsed_generator_has_no_diversity(real):
    assert diversity(np.repeat(real[:1], 100, axis=0)) == pytest.approx(0, abs=1e-6)
    few = real[np.random.default_rng(0).integers(0, 3, 600)]  # three faces for all latents
    assert 0.2 < diversity(real[:600]) and diversity(few) < diversity(real[:600])


def test_the_evaluator_tells_good_generators_from_bad_ones(real):
    training, held_out = real[:800], real[800:]
    evaluator = evaluate(training, held_out)
    assert evaluator.size == 400 and set(evaluator.baseline) == {
        *("swd", "swd_32", "swd_16", "diversity", "nearest"),
    }
    good = evaluator(to_faces(blobs(400, 32, 32, seed=9)))  # the same colours, but no noise
    copies = evaluator(to_faces(training[:400]))
    collapsed = evaluator(to_faces(np.repeat(real[-1:], 400, axis=0)))
    assert copies["nearest"] == 0 < evaluator.baseline["nearest"] / 2 < good["nearest"]
    assert copies["swd"] < 1.5 * evaluator.baseline["swd"] < good["swd"] < collapsed["swd"]
    assert copies["diversity"] == pytest.approx(evaluator.baseline["diversity"], rel=0.05)
    assert collapsed["diversity"] < 0.01 < good["diversity"]
    assert good["swd"] == pytest.approx((good["swd_32"] + good["swd_16"]) / 2)


def test_the_evaluator_resizes_images_of_another_size(real):
    evaluator = evaluate(real[:800], real[800:])
    faces = to_faces(real[:100])
    enlarged = faces.repeat_interleave(2, 2).repeat_interleave(2, 3)  # (n, 3, 64, 64)
    assert evaluator(enlarged)["swd"] == pytest.approx(evaluator(faces)["swd"], rel=0.5)


def test_the_evaluator_takes_the_mean_over_sets(real):
    training, held_out = real[:200], real[200:]
    evaluator = evaluate(training, held_out)
    assert evaluator.size == 200
    faces = blobs(400, 32, 32, seed=9)
    sets = np.split(faces, 2)
    others = np.split(evaluator._test[:400], 2)  # each set has held-out faces of its own
    distances = [sliced_wasserstein(a, b) for a, b in zip(sets, others, strict=True)]
    nearest = [np.median(nearest_images(part, training)[1]) for part in sets]
    measured = evaluator(to_faces(faces))
    for side in (32, 16):
        assert measured[f"swd_{side}"] == pytest.approx(np.mean([d[side] for d in distances]))
    assert measured["swd"] == pytest.approx(np.mean([list(d.values()) for d in distances]))
    assert measured["diversity"] == pytest.approx(np.mean([diversity(p) for p in sets]))
    assert measured["nearest"] == pytest.approx(np.mean(nearest)) and nearest[0] != nearest[1]


def test_the_baseline_is_compared_with_the_same_held_out_images(real):
    evaluator = evaluate(real[:100], real[100:140])
    evaluator.size = 20  # so that there are more held-out images than in one set, as on real data
    first, second = np.split(evaluator._test, 2)

    def measured(evaluator: Evaluator, *others: np.ndarray) -> list[float]:
        sets = zip(np.split(real[evaluator._chosen], 5), others, strict=True)
        return [np.mean(list(sliced_wasserstein(*pair).values())) for pair in sets]

    one, several = (
        measured(evaluator, *[first] * 5),
        measured(evaluator, first, second, first, second, first),
    )
    assert evaluator.baseline_for(20)["swd"] == pytest.approx(np.mean(one))
    assert evaluator.baseline_for(50)["swd"] == pytest.approx(np.mean(several)) != np.mean(one)
    evaluator = evaluate(real[:100], first)
    assert evaluator.size == 20 and evaluator.baseline == evaluator.baseline_for(
        20
    ) == evaluator.baseline_for(100)
    values = measured(evaluator, *[evaluator._test] * 5)
    assert evaluator.baseline["swd"] == pytest.approx(np.mean(values))
    assert evaluator.std["swd"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.skipif(
    torch.__version__ < (2, 10), reason="a pretended CUDA device asks for a real one's driver"
)
@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    "measure",
    [
        lambda images, device: sliced_wasserstein(images, images, device=device),
        lambda images, device: diversity(images, device),
        lambda images, device: nearest_images(images, images, np.arange(8), device),
    ],
    ids=["sliced_wasserstein", "diversity", "nearest_images"],
)
def test_measures_are_computed_on_the_device(measure, is_there):
    """On a pretended CUDA device: its tensors have no values, and none may meet one of the CPU."""
    images = blobs(8, 32, 32, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError) as ended:
        measure(copy_to(torch.device("cuda"), images) if is_there else images, "cuda")
    read = isinstance(ended.value, DataDependentOutputException)  # all went well up to the result
    assert read or ".numpy() is not supported" in str(ended.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_evaluator_says_the_same_on_a_gpu(real):
    on_gpu = evaluate(real[:400], real[400:600])
    with mock.patch("faces.images.has_room", lambda device, images: False):
        evaluator = evaluate(real[:400], real[400:600])
    assert on_gpu._train is not evaluator._train
    assert on_gpu.baseline == pytest.approx(evaluator.baseline, rel=1e-3)
    faces = to_faces(real[600:800])
    assert evaluator(faces.cuda()) == pytest.approx(evaluator(faces), rel=1e-3)


# -------------------------------------------------------------------------------- lightness


def test_angles_are_those_of_known_colours():
    # CIELAB under D65 of these sRGB colours, from the CIE's formulas: (L*, b*)
    known = {
        (255, 0, 0): (53.24, 67.20),
        (0, 255, 0): (87.73, 83.18),
        (255, 255, 0): (97.14, 94.48),
    }
    angles = ita(plain_faces(*known))
    for angle, (lightness, b) in zip(angles, known.values(), strict=True):
        assert angle == pytest.approx(np.degrees(np.arctan2(lightness - 50, b)), abs=0.1)
    assert np.isnan(ita(plain_faces((0, 0, 255), (118, 118, 118)))).all()
    # skin colours from light to dark
    light, tan, dark = plain_faces((241, 194, 170), (198, 134, 90), (70, 45, 35))[:, None]
    angles = [ita(face)[0] for face in (light, tan, dark)]
    assert angles[0] > 41 > angles[1] > -30 > angles[2]


def test_only_the_middle_of_the_face_counts():
    face = plain_faces((198, 134, 90))
    changed = face.copy()
    changed[:, :16] = 0
    changed[:, :, :9] = changed[:, :, 23:] = 255
    assert ita(face) == ita(changed)


def test_shares_and_weights_by_lightness():
    light, dark = (241, 194, 170), (70, 45, 35)
    faces = plain_faces(light, light, light, dark, (118, 118, 118))
    shares = ita_shares(faces)  # the grey one has none
    assert list(shares) == ["dark", "brown", "tan", "intermediate", "light", "very light"]
    assert shares["dark"] == 0.25 and sum(shares.values()) == 1
    assert balancing_weights(faces) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2, 1])


# ------------------------------------------------------------------------------ Inception


def test_frechet_and_kernel_distance_are_those_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, 3, generator=generator).double()
    frechet, kernel = frechet_and_kernel(a, 1 + b * torch.tensor([2.0, 1.0, 1.0]))
    assert frechet == pytest.approx(3 * 1**2 + (2 - 1) ** 2, rel=0.1) and kernel > 100
    frechet, kernel = frechet_and_kernel(a, b)
    assert frechet < 0.01 and abs(kernel) < 20
    assert frechet_and_kernel(a, a)[0] == pytest.approx(0, abs=1e-6)


def test_inceptions_features_of_both_sets_are_compared(cache, monkeypatch):
    class MeanColor(nn.Module):
        """In the place of Inception: the mean of each colour."""

        def __init__(self, *arguments: object) -> None:
            super().__init__()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[1:] == (3, 2, 2) and images.dtype == torch.uint8
            return images.float().mean(dim=(2, 3))

    cache.mkdir()
    monkeypatch.setattr(measures, "download", lambda url, sha256: cache)
    monkeypatch.setattr(measures, "is_reachable", lambda url: True)
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", MeanColor)
    colors = np.random.default_rng(0).normal(100, 10, (120, 3)).round().astype(np.uint8)
    images = np.tile(colors[:, None, None], (1, 2, 2, 1))
    measured = inception_distances(images, images[:110] + np.uint8(10))
    assert measured["FID"] == pytest.approx(3 * 10**2, rel=0.2) and measured["KID"] > 0


def test_missing_inception_weights_are_named(cache, monkeypatch):
    monkeypatch.setattr(measures, "INCEPTION_URL", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(OSError, match="http://127.0.0.1:9/weights.pth cannot be reached"):
        inception_distances(plain_faces((1, 2, 3)), plain_faces((1, 2, 3)))


def test_wrong_inception_weights_are_not_loaded(server, monkeypatch):
    monkeypatch.setattr(measures, "INCEPTION_URL", data.ARCHIVE_URL)
    monkeypatch.setattr(
        torchmetrics.image.fid,
        "NoTrainInceptionV3",
        lambda *args: pytest.fail("loaded an unknown file"),
    )
    with pytest.raises(OSError, match="SHA-256 is wrong"):
        inception_distances(plain_faces((1, 2, 3)), plain_faces((1, 2, 3)))


# ---------------------------------------------------------------------------- the held-out tenth


def test_the_held_out_tenth_is_fixed_by_the_names(tmp_path):
    for folder, n in (("a", 400), ("b", 1000)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            (tmp_path / folder / f"{i:06d}.jpg").touch()
    splits = {
        (folder, split): {p.name for p in find_images(tmp_path / folder, split=split)}
        for folder in "ab"
        for split in ("train", "test", None)
    }
    for folder, n in (("a", 400), ("b", 1000)):
        training, held_out = splits[folder, "train"], splits[folder, "test"]
        assert not training & held_out and training | held_out == splits[folder, None]
        assert 0.07 * n < len(held_out) < 0.13 * n
    assert splits["a", "test"] == splits["b", "test"] & splits["a", None]


def test_files_of_one_name_are_held_out_by_their_place(tmp_path):
    for i in range(50):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "face.jpg").touch()
    held_out = find_images(tmp_path, split="test")
    training = find_images(tmp_path, split="train")
    assert 2 <= len(held_out) <= 12 and len(held_out) + len(training) == 50
    subset = find_images(tmp_path, 20, seed=1, split="test")
    assert len(subset) + len(find_images(tmp_path, 20, seed=1, split="train")) == 20


def test_a_face_stays_on_its_side_in_a_subset(tmp_path):
    for i in range(200):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        (tmp_path / str(i % 2) / f"{max(i, 1)}.jpg").touch()  # two have the same name
    for split in ("train", "test"):
        of_all = set(find_images(tmp_path, split=split))
        for seed in range(20):
            assert of_all >= set(find_images(tmp_path, 150, seed, split))


def test_of_few_images_two_are_held_out(image_dir, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for i in range(5):
        (few / f"{i}.jpg").touch()
    assert len(find_images(few, split="test")) == 2
    assert len(find_images(few, split="train")) == 3
    (few / "0.jpg").unlink(), (few / "1.jpg").unlink()
    with pytest.raises(ValueError, match="at least 4"):
        find_images(few, split="train")
    with pytest.raises(ValueError, match="split is 'held-out'"):
        find_images(few, split="held-out")


def test_a_copy_of_a_mapped_file_is_read_like_the_file(tmp_path):
    np.save(tmp_path / "images.npy", np.ones((10, 4, 4, 3), np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert isinstance(mapped.copy(), np.memmap)
    assert fingerprint(mapped.copy()) == fingerprint(mapped)


def test_other_images_have_another_fingerprint():
    images = blobs(10, 8, 8, seed=0)
    assert fingerprint(images).startswith("10 images, ")
    assert fingerprint(images) == fingerprint(images.copy())
    changed = images.copy()
    changed[9, 7, 7, 2] ^= 1
    assert fingerprint(images) != fingerprint(changed)
