"""The measures of generated faces, where the answer is known."""

import numpy as np
import pytest
import torch
import torchmetrics.image.fid
from conftest import blobs
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import helpers
from faces import download, inception, measures
from faces.arrays import copy_to
from faces.measures import diversity, sliced_wasserstein


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


def test_the_judge_tells_good_generators_from_bad_ones(real):
    training, held_out = real[:800], real[800:]
    judge = helpers.Judge(training, held_out)
    assert judge.size == 400 and set(judge.floor) == {
        *("swd", "swd_32", "swd_16", "diversity", "nearest"),
    }
    good = judge(to_faces(blobs(400, 32, 32, seed=9)))  # the same colours, but no noise
    copies = judge(to_faces(training[:400]))
    collapsed = judge(to_faces(np.repeat(real[-1:], 400, axis=0)))
    assert copies["nearest"] == 0 < judge.floor["nearest"] / 2 < good["nearest"]
    assert copies["swd"] < 1.5 * judge.floor["swd"] < good["swd"] < collapsed["swd"]
    assert copies["diversity"] == pytest.approx(judge.floor["diversity"], rel=0.05)
    assert collapsed["diversity"] < 0.01 < good["diversity"]
    assert good["swd"] == pytest.approx((good["swd_32"] + good["swd_16"]) / 2)


def test_the_judge_resizes_pictures_of_another_size(real):
    judge = helpers.Judge(real[:800], real[800:])
    faces = to_faces(real[:100])
    enlarged = faces.repeat_interleave(2, 2).repeat_interleave(2, 3)  # (n, 3, 64, 64)
    assert judge(enlarged)["swd"] == pytest.approx(judge(faces)["swd"], rel=0.5)


def test_the_judge_takes_the_mean_over_sets(real):
    training, held_out = real[:200], real[200:]
    judge = helpers.Judge(training, held_out)
    assert judge.size == 200
    faces = blobs(400, 32, 32, seed=9)
    sets = np.split(faces, 2)
    others = np.split(judge._held_out[:400], 2)  # each set has held-out faces of its own
    distances = [sliced_wasserstein(a, b) for a, b in zip(sets, others, strict=True)]
    nearest = [np.median(helpers.nearest_images(part, training)[1]) for part in sets]
    measured = judge(to_faces(faces))
    for side in (32, 16):
        assert measured[f"swd_{side}"] == pytest.approx(np.mean([d[side] for d in distances]))
    assert measured["swd"] == pytest.approx(np.mean([list(d.values()) for d in distances]))
    assert measured["diversity"] == pytest.approx(np.mean([diversity(p) for p in sets]))
    assert measured["nearest"] == pytest.approx(np.mean(nearest)) and nearest[0] != nearest[1]


def test_the_floor_is_compared_with_the_same_held_out_pictures(real):
    judge = helpers.Judge(real[:100], real[100:140])
    judge.size = 20  # so that there are more held-out pictures than in one set, as on real data
    first, second = np.split(judge._held_out, 2)

    def measured(judge: helpers.Judge, *others: np.ndarray) -> list[float]:
        sets = zip(np.split(real[judge._chosen], 5), others, strict=True)
        return [np.mean(list(sliced_wasserstein(*pair).values())) for pair in sets]

    one, several = (
        measured(judge, *[first] * 5),
        measured(judge, first, second, first, second, first),
    )
    assert judge.floor_of(20)["swd"] == pytest.approx(np.mean(one))
    assert judge.floor_of(50)["swd"] == pytest.approx(np.mean(several)) != np.mean(one)
    judge = helpers.Judge(real[:100], first)
    assert judge.size == 20 and judge.floor == judge.floor_of(20) == judge.floor_of(100)
    values = measured(judge, *[judge._held_out] * 5)
    assert judge.floor["swd"] == pytest.approx(np.mean(values))
    assert judge.noise["swd"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    "measure",
    [
        lambda images, device: sliced_wasserstein(images, images, device=device),
        lambda images, device: diversity(images, device),
        lambda images, device: helpers.nearest_images(images, images, np.arange(8), device),
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
def test_the_judge_says_the_same_on_a_gpu(real):
    judge, on_gpu = (helpers.Judge(real[:400], real[400:600], d) for d in ("cpu", "cuda"))
    assert on_gpu.floor == pytest.approx(judge.floor, rel=1e-3)
    faces = to_faces(real[600:800])
    assert judge(faces.cuda()) == pytest.approx(judge(faces), rel=1e-3)


# -------------------------------------------------------------------------------- lightness


def plain_faces(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.tile(np.array(colors, np.uint8)[:, None, None], (1, 32, 32, 1))


def test_typology_angles_are_those_of_known_colours():
    # CIELAB under D65 of these sRGB colours, from the CIE's formulas: (L*, b*)
    known = {
        (255, 0, 0): (53.24, 67.20),
        (0, 255, 0): (87.73, 83.18),
        (255, 255, 0): (97.14, 94.48),
    }
    angles = helpers.typology_angles(plain_faces(*known))
    for angle, (lightness, b) in zip(angles, known.values(), strict=True):
        assert angle == pytest.approx(np.degrees(np.arctan2(lightness - 50, b)), abs=0.1)
    assert np.isnan(helpers.typology_angles(plain_faces((0, 0, 255), (118, 118, 118)))).all()
    # skin colours from light to dark
    light, tan, dark = plain_faces((241, 194, 170), (198, 134, 90), (70, 45, 35))[:, None]
    angles = [helpers.typology_angles(face)[0] for face in (light, tan, dark)]
    assert angles[0] > 41 > angles[1] > -30 > angles[2]


def test_only_the_middle_of_the_face_counts():
    face = plain_faces((198, 134, 90))
    changed = face.copy()
    changed[:, :16] = 0
    changed[:, :, :9] = changed[:, :, 23:] = 255
    assert helpers.typology_angles(face) == helpers.typology_angles(changed)


def test_shares_and_weights_by_lightness():
    light, dark = (241, 194, 170), (70, 45, 35)
    faces = plain_faces(light, light, light, dark, (118, 118, 118))
    shares = helpers.typology_shares(faces)  # the grey one has none
    assert list(shares) == ["dark", "brown", "tan", "intermediate", "light", "very light"]
    assert shares["dark"] == 0.25 and sum(shares.values()) == 1
    assert helpers.balancing_weights(faces) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2, 1])


# ------------------------------------------------------------------------------ Inception


class MeanColor(nn.Module):
    """In the place of Inception: the mean of each colour, times 100."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3)) * 100


def gaussians(mean: float, deviations: np.ndarray, n: int = 500) -> np.ndarray:
    """Pictures of one colour each, drawn from a normal distribution."""
    colors = np.random.default_rng(int(mean)).normal(mean, deviations, (n, 3))
    return np.tile(colors.round().astype(np.uint8)[:, None, None], (1, 2, 2, 1))


def test_fid_is_that_of_gaussians():
    a, b = np.array([10.0, 10.0, 10.0]), np.array([20.0, 10.0, 10.0])
    measured = helpers.inception_distances(gaussians(100, a), gaussians(110, b), MeanColor())
    # squared distance of the means, plus sum of (deviation - deviation)^2; in units of 1/100
    assert measured["FID"] == pytest.approx((3 * 10**2 + 10**2) * 100**2, rel=0.25)
    same = helpers.inception_distances(gaussians(100, a), gaussians(100, a), MeanColor())
    assert same["FID"] < 1e-3 * measured["FID"]
    assert same["KID"] < 1e-3 * measured["KID"]


def test_missing_inception_weights_are_named(cache, monkeypatch):
    monkeypatch.setattr(inception, "INCEPTION_URL", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(OSError, match="http://127.0.0.1:9/weights.pth cannot be reached"):
        helpers.inception_distances(plain_faces((1, 2, 3)), plain_faces((1, 2, 3)))


def test_wrong_inception_weights_are_not_loaded(server, monkeypatch):
    monkeypatch.setattr(inception, "INCEPTION_URL", download.ARCHIVE_URL)
    monkeypatch.setattr(
        torchmetrics.image.fid,
        "NoTrainInceptionV3",
        lambda *args: pytest.fail("loaded an unknown file"),
    )
    with pytest.raises(OSError, match="SHA-256 is wrong"):
        helpers.inception_distances(plain_faces((1, 2, 3)), plain_faces((1, 2, 3)))


# ---------------------------------------------------------------------------- the held-out tenth


def test_the_held_out_tenth_is_fixed_by_the_names(tmp_path):
    for folder, n in (("a", 400), ("b", 1000)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            (tmp_path / folder / f"{i:06d}.jpg").touch()
    parts = {
        (folder, part): {p.name for p in helpers.find_images(tmp_path / folder, part=part)}
        for folder in "ab"
        for part in ("training", "held-out", None)
    }
    for folder, n in (("a", 400), ("b", 1000)):
        training, held_out = parts[folder, "training"], parts[folder, "held-out"]
        assert not training & held_out and training | held_out == parts[folder, None]
        assert 0.07 * n < len(held_out) < 0.13 * n
    assert parts["a", "held-out"] == parts["b", "held-out"] & parts["a", None]


def test_files_of_one_name_are_held_out_by_their_place(tmp_path):
    for i in range(50):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "face.jpg").touch()
    held_out = helpers.find_images(tmp_path, part="held-out")
    training = helpers.find_images(tmp_path, part="training")
    assert 2 <= len(held_out) <= 12 and len(held_out) + len(training) == 50
    subset = helpers.find_images(tmp_path, 20, seed=1, part="held-out")
    assert len(subset) + len(helpers.find_images(tmp_path, 20, seed=1, part="training")) == 20


def test_a_face_stays_on_its_side_in_a_subset(tmp_path):
    for i in range(200):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        (tmp_path / str(i % 2) / f"{max(i, 1)}.jpg").touch()  # two have the same name
    for part in ("training", "held-out"):
        of_all = set(helpers.find_images(tmp_path, part=part))
        for seed in range(20):
            assert of_all >= set(helpers.find_images(tmp_path, 150, seed, part))


def test_of_few_images_two_are_held_out(image_dir, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for i in range(5):
        (few / f"{i}.jpg").touch()
    assert len(helpers.find_images(few, part="held-out")) == 2
    assert len(helpers.find_images(few, part="training")) == 3
    (few / "0.jpg").unlink(), (few / "1.jpg").unlink()
    with pytest.raises(ValueError, match="at least 4"):
        helpers.find_images(few, part="training")
    with pytest.raises(ValueError, match="part is 'test'"):
        helpers.find_images(few, part="test")


def test_other_images_are_another_content():
    images = blobs(10, 8, 8, seed=0)
    assert helpers.content_of(images).startswith("10 images, ")
    assert helpers.content_of(images) == helpers.content_of(images.copy())
    changed = images.copy()
    changed[9, 7, 7, 2] ^= 1
    assert helpers.content_of(images) != helpers.content_of(changed)
