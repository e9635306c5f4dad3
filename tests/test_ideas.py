"""The ideas for improvement: files that change the notebook, which names one at most."""

import copy
import os
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_training import act_at, differing_files, prepare, train
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.machine import FlopCounter
from faces.files import HERE
from faces.generator import generate_faces
from faces.images import FaceDataset, to_uint8
from faces.notebook import IDEAS, apply_idea, hash_ideas, load_definitions, load_ideas
from faces.parallel import SyncBatchNorm2d
from faces.speed import make_fast
from faces.training import discriminator_loss_bounds

NAMES = sorted(path.stem for path in IDEAS.glob("*.py"))


@pytest.fixture
def notebook() -> types.ModuleType:
    torch.manual_seed(0)
    return load_definitions()


def file_of(name: str) -> types.ModuleType:
    return load_ideas(name)[name]


# ---------------------------------------------------------------------------------- the mechanism


@pytest.mark.parametrize("name", NAMES)
def test_each_idea_changes_the_training(tmp_path, name):
    n_images = 44 if name == "keep_last_batch" else 40
    plain = train(prepare(tmp_path / "plain", n_images=n_images), 2)
    losses = train(prepare(tmp_path / name, idea=name, n_images=n_images), 2)
    assert np.isfinite(losses).all() and losses != plain
    assert len(losses) == (12 if name == "keep_last_batch" else 10)


@pytest.mark.parametrize("name", NAMES)
def test_each_idea_says_what_it_is(name):
    assert f"`{name}`" in (HERE / "ideas" / "README.md").read_text(encoding="utf-8")
    title = file_of(name).__doc__.splitlines()[0]
    assert ": " in title and title.endswith(".") and title[0].isupper()


def test_ideas_are_taken_back_before_others_are_applied(notebook):
    plain = dict(vars(notebook))
    for chosen in ("flips+dropout", "flips", "", "least_squares", ""):
        apply_idea(chosen, notebook)
        changed = {name for name in plain if vars(notebook)[name] is not plain[name]}
        expected = {"flips": "scale", "dropout": "build_network"}
        parts = chosen.split("+")
        wanted = {expected[part] for part in parts if part in expected}
        wanted |= {"real_loss", "fake_loss"} if chosen == "least_squares" else set()
        assert changed == wanted
    assert "celeba_train_loader" not in vars(notebook)
    apply_idea("keep_last_batch", notebook)  # nothing to change where faces are only drawn
    assert "celeba_train_loader" not in vars(notebook)
    apply_idea("flips", notebook)
    notebook.scale = again = lambda x: x  # its cell was changed and run again
    apply_idea("", notebook)
    assert notebook.scale is again


def test_an_idea_of_ones_own_is_found_by_its_path(notebook, tmp_path, capsys):
    path = tmp_path / "slow.py"
    path.write_text(
        '"""Slow: D learns at half the rate."""\n\n\ndef patch(notebook):\n'
        "    notebook.d_lr = notebook.d_lr / 2\n"
    )
    before = {"d_lr": notebook.d_lr, "g_lr": notebook.g_lr}
    settings = apply_idea(f"flips+{path}", notebook, before)
    assert settings["d_lr"] == before["d_lr"] / 2 and settings["g_lr"] == before["g_lr"]
    assert settings["idea"] == f"flips+{path}"
    assert hash_ideas(settings["idea"]).keys() == {"flips.py", "slow.py"}
    assert "idea: Slow: D learns at half the rate." in capsys.readouterr().out
    plain = apply_idea("", notebook, settings)
    assert plain == before | {"idea": ""}


def test_an_idea_is_hashed_with_what_it_is_made_of():
    names = ("r1", "relativistic", "relativistic_r1_r2")
    assert hash_ideas("relativistic_r1_r2").keys() == {f"{name}.py" for name in names}


@pytest.mark.parametrize("idea", ["flip", "nowhere.py", "flips+flop", "../ideas/flips"])
def test_an_idea_that_is_not_there_is_named(notebook, idea):
    with pytest.raises(ValueError, match="There is no idea '.*dropout, falling_rates, flips"):
        apply_idea(idea, notebook)


def test_a_mistake_in_one_idea_leaves_the_lesson_as_it_was(notebook):
    plain = dict(vars(notebook))
    with pytest.raises(ValueError, match="There is no idea 'nonsense'"):
        apply_idea("dropout+nonsense", notebook)
    assert dict(vars(notebook)) == plain
    assert apply_idea(" dropout + flips ", notebook)["idea"] == "dropout+flips"


def test_a_file_that_changes_nothing_is_named(notebook, tmp_path):
    (tmp_path / "mine.py").write_text("def network(D, G):\n    pass\n")
    with pytest.raises(ValueError, match=r"mine.py must define at least one of patch\(notebook"):
        apply_idea(str(tmp_path / "mine.py"), notebook)


def test_a_run_does_not_go_on_with_another_idea(tmp_path):
    train(prepare(tmp_path, idea="flips"), 1)
    with pytest.raises(ValueError, match="idea: 'flips' there, '' now") as caught:
        train(prepare(tmp_path), 2)
    assert "the code of flips.py: " in str(caught.value)


DRAWN = ["normal_latents", "deeper", "balanced", "keep_last_batch", "conditional"]


@pytest.mark.parametrize("name", [*DRAWN, "resize_convolution", "relativistic_r1_r2"])
def test_faces_are_drawn_as_they_were_trained(tmp_path, name):
    sizes = {"z_size": 10, "g_conv_dim": 8, "image_size": 32}
    notebook = prepare(tmp_path, idea=name, settings={**sizes, "n_epochs": 1})
    train(notebook, 1)
    faces = generate_faces(3, seed=5, weights=tmp_path / "generator.safetensors")
    torch.manual_seed(5)
    z = notebook.sample_z(3)
    assert (name == "normal_latents") == bool(z.abs().max() > 1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]["G_ema"]
    notebook.G.load_state_dict(state)
    with torch.no_grad():
        expected = to_uint8(notebook.G.eval()(z))
    assert (faces == expected).all()


# -------------------------------------------------------------------------------------- the ideas


def test_augmentation_changes_pictures_and_passes_gradients():
    augment = file_of("differentiable_augmentation").augment
    x = torch.rand(64, 3, 32, 32, requires_grad=True)
    y = augment(x)
    assert y.shape == x.shape and (y != x).any(dim=(1, 2, 3)).all()
    zeros = (y == 0).all(dim=1).float().mean(dim=(1, 2))  # blotted out, or moved in
    assert 0.06 < zeros.min() and zeros.max() < 0.6
    middle = augment(torch.ones(400, 3, 32, 32))[:, 0, 14:18, 14:18]  # never moved in
    assert 0.2 < (middle == 0).float().mean() < 0.3  # 16 of 33 places in both directions
    y.square().sum().backward()
    assert (x.grad != 0).any(dim=(1, 2, 3)).all()


def test_augmentation_is_all_that_d_sees(notebook):
    apply_idea("differentiable_augmentation", notebook)
    D, _ = notebook.build_network(8, 8, 10)
    seen = []
    D.conv1.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    x = torch.rand(4, 3, 32, 32)
    D(x), D(x)
    assert not torch.equal(seen[0], x) and not torch.equal(seen[0], seen[1])


def test_flips_mirror_about_half(notebook):
    scale = notebook.scale
    apply_idea("flips", notebook)
    x = torch.rand(400, 3, 4, 4)
    y = notebook.scale(x)
    mirrored = (y == scale(x.flip(3))).all(dim=(1, 2, 3))
    assert 150 < mirrored.sum() < 250 and (y[~mirrored] == scale(x[~mirrored])).all()


def test_spectral_norms_are_1(notebook):
    apply_idea("spectral_norm", notebook)
    D, _ = notebook.build_network(8, 4, 10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in D.modules())
    x = torch.rand(3, 3, 32, 32)
    for _ in range(30):
        D(x)
    layers = [m for m in D.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in layers]
    assert len(norms) == 5 and norms == pytest.approx([1] * 5, rel=0.05)


def test_deeper_networks_begin_as_if_they_were_not(notebook):
    torch.manual_seed(1)
    plain = notebook.build_network(8, 4, 10)
    apply_idea("deeper", notebook)
    torch.manual_seed(1)
    deeper = notebook.build_network(8, 4, 10)
    x, z = torch.rand(4, 3, 32, 32), torch.rand(4, 10)
    for before, now, inputs in zip(plain, deeper, (x, z), strict=True):
        assert torch.equal(before(inputs), now(inputs))
        blocks = [m for m in now.children() if isinstance(m, nn.Sequential) and len(m) == 4]
        assert len(blocks) == 3
        for block in blocks:
            nn.init.ones_(block[2].batch_norm.weight)
        assert not torch.equal(before(inputs), now(inputs))


@pytest.mark.parametrize("rates_are_tensors", [False, True])
def test_rates_fall_over_the_last_third(tmp_path, rates_are_tensors):
    notebook = prepare(tmp_path, idea="falling_rates")
    optimizers = (notebook.d_optimizer, notebook.g_optimizer)
    for optimizer in optimizers if rates_are_tensors else ():  # as in a recorded step
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    tensors = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    rates = []
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"]))
        )
    train(notebook, 3)  # 15 steps
    expected = [min(1, (15 - n) / 5) * 0.0002 for n in range(15) for _ in optimizers]
    assert rates == pytest.approx(expected)
    for optimizer, tensor in zip(optimizers, tensors, strict=True):
        assert (optimizer.param_groups[0]["lr"] is tensor) == rates_are_tensors


def test_falling_rates_go_on_where_they_stopped(tmp_path):
    def prepare_in(name: str) -> types.ModuleType:
        return prepare(tmp_path / name, idea="falling_rates")

    whole = train(prepare_in("whole"), 3)
    act_at(stopped := prepare_in("stopped"), 11, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert len(train(stopped, 3)) == 12
    assert train(prepare_in("stopped"), 3) == whole
    assert differing_files(tmp_path / "stopped", tmp_path / "whole") == []


def test_photographs_are_grey_around_the_face(notebook):
    apply_idea("plain_background", notebook)
    x = torch.rand(4, 3, 64, 64)
    y = notebook.scale(x)
    for row, column in ((0, 0), (0, 63), (63, 0), (63, 63), (0, 32), (32, 0), (32, 63)):
        assert not y[:, :, row, column].any()
    assert torch.equal(y[:, :, 20:50, 24:40], 2 * x[:, :, 20:50, 24:40] - 1)  # eyes and mouth
    share = (y != 0).float().mean().item()
    assert 0.58 < share < 0.63  # the ellipse has 0.62, a little of it below the image
    paint = file_of("plain_background").paint
    areas = [paint(torch.ones(size, size)).mean().item() for size in (32, 64)]
    assert areas[0] == pytest.approx(areas[1], abs=0.003)


def test_dropout_is_in_each_of_ds_blocks(notebook):
    apply_idea("dropout", notebook)
    D, G = notebook.build_network(8, 4, 10)
    assert sum(isinstance(m, nn.Dropout) for m in D.modules()) == 4
    assert not any(isinstance(m, nn.Dropout) for m in G.modules())
    x = torch.rand(3, 3, 32, 32)
    assert not torch.equal(D(x), D(x)) and torch.equal(D.eval()(x), D(x))


def test_smooth_labels_are_for_d_and_real_images_only(notebook):
    apply_idea("label_smoothing", notebook)
    real, fake = torch.ones(4, 1), torch.zeros(4, 1)
    answers = {id(real): torch.full((4, 1), 2.0), id(fake): torch.full((4, 1), -1.0)}
    bce = nn.functional.binary_cross_entropy_with_logits
    d_loss = notebook.discriminator_loss(lambda x: answers[id(x)], real, fake)
    expected = bce(answers[id(real)], torch.full((4, 1), 0.9)) + bce(answers[id(fake)], fake)
    assert torch.isclose(d_loss, expected)
    g_loss = notebook.generator_loss(lambda x: answers[id(x)], real, fake)
    assert torch.isclose(g_loss, bce(answers[id(fake)], real))


def test_least_squares_works_with_smooth_labels(notebook):
    apply_idea("label_smoothing+least_squares", notebook)
    real, fake = torch.ones(4, 1), torch.zeros(4, 1)
    d_loss = notebook.discriminator_loss(lambda x: x * 2 + 0.5, real, fake)
    assert d_loss.item() == pytest.approx((2.5 - 0.9) ** 2 + 0.5**2)


def test_balanced_drawing_evens_the_classes_out(notebook):
    light, dark = (241, 194, 170), (70, 45, 35)
    faces = np.tile(np.array([light] * 90 + [dark] * 10, np.uint8)[:, None, None], (1, 32, 32, 1))
    dataset = FaceDataset(faces)
    notebook.celeba_train_loader = DataLoader(
        dataset, 10, True, drop_last=True, generator=torch.Generator(), collate_fn=dataset.collate
    )
    apply_idea("balanced", notebook)
    drawn = [images for _ in range(20) for images, _ in notebook.celeba_train_loader]
    assert len(drawn) == 200
    share = (torch.cat(drawn).mean(dim=(1, 2, 3)) < 0.5).float().mean()
    assert 0.45 < share < 0.55  # of the dark ones; 2,000 draws have a deviation of 0.011


def test_the_last_batch_has_what_is_left(tmp_path):
    notebook = prepare(tmp_path, idea="keep_last_batch", n_images=44)
    assert [len(images) for images, _ in notebook.celeba_train_loader] == [8] * 5 + [4]


def test_some_pictures_are_augmented_and_the_others_are_not():
    augment_some = file_of("some_augmentation").augment_some
    x = torch.rand(1000, 3, 32, 32)
    is_changed = (augment_some(x) != x).any(dim=(1, 2, 3))
    assert 240 < is_changed.sum() < 360  # of 1,000, 3 in 10 with a deviation of 14


def means(x: torch.Tensor) -> torch.Tensor:
    """A stand-in for D: the mean of each picture as its logit."""
    return x.mean(dim=(1, 2, 3)).unsqueeze(1)


def test_relativistic_losses_compare_pairs(notebook):
    apply_idea("relativistic", notebook)
    real, fake = torch.full((4, 3, 8, 8), 2.0), torch.full((4, 3, 8, 8), -1.0)
    for shift in (0, 5):  # of both: what counts is the difference
        d_loss = notebook.discriminator_loss(means, real + shift, fake + shift)
        g_loss = notebook.generator_loss(means, real + shift, fake + shift)
        assert d_loss.item() == pytest.approx(np.log1p(np.exp(-3)))
        assert g_loss.item() == pytest.approx(np.log1p(np.exp(3)))
    bounds = discriminator_loss_bounds(notebook.discriminator_loss)
    assert bounds == pytest.approx((0, np.log(2)), abs=1e-3)


def test_hinge_losses_leave_sure_answers_alone(notebook):
    apply_idea("hinge", notebook)
    real, fake = torch.full((4, 3, 8, 8), 0.25), torch.full((4, 3, 8, 8), -3.0)
    fake.requires_grad_()
    d_loss = notebook.discriminator_loss(means, real, fake)
    assert d_loss.item() == 0.75
    (gradient,) = torch.autograd.grad(d_loss, fake)
    assert (gradient == 0).all()
    assert notebook.generator_loss(means, real, fake).item() == 3


PENALTIES = [("r1", 1), ("r1_on_a_quarter", 1), ("relativistic_r1_r2", 2)]


@pytest.mark.parametrize(("name", "n_slopes"), PENALTIES)
def test_penalties_are_the_squared_slopes(notebook, name, n_slopes):
    def D(x: torch.Tensor) -> torch.Tensor:
        return (slope * x).sum(dim=(1, 2, 3)).unsqueeze(1)

    real, fake = torch.rand(2, 4, 3, 8, 8)
    apply_idea("relativistic" if n_slopes == 2 else "", notebook)
    slope = torch.rand(3, 8, 8)
    plain = notebook.discriminator_loss(D, real, fake).item()
    apply_idea(name, notebook)
    slope.requires_grad_()
    loss = notebook.discriminator_loss(D, real, fake)
    assert loss.item() - plain == pytest.approx(n_slopes * 0.025 * slope.square().sum().item())
    (gradient,) = torch.autograd.grad(loss, slope)  # the penalty's is n_slopes * 0.05 * slope
    assert (gradient * slope).sum() > 0


def test_a_quarter_of_the_photographs_is_penalised(notebook):
    def D(x: torch.Tensor) -> torch.Tensor:
        return (x**2 / 2).sum(dim=(1, 2, 3)).unsqueeze(1)  # its slope at x is x

    apply_idea("r1_on_a_quarter", notebook)
    real, fake = torch.rand(2, 8, 3, 8, 8)
    for n, images in ((2, real), (1, real[:3])):
        plain = notebook.real_loss(D(images)) + notebook.fake_loss(D(fake))
        penalty = notebook.discriminator_loss(D, images, fake) - plain
        assert penalty.item() == pytest.approx(0.025 * images[:n].square().sum().item() / n)


def test_a_quarter_saves_half_of_r1s_work(notebook):
    counts = {}
    for name in ("", "r1", "r1_on_a_quarter"):
        apply_idea(name, notebook)
        D, G = notebook.build_network(64, 64, 100)
        notebook.d_optimizer, notebook.g_optimizer = notebook.build_optimizers(D, G)
        with FlopCounter() as counter:
            notebook.step(D, G, torch.rand(32, 3, 32, 32), torch.rand(32, 100))
        counts[name] = counter.total
    r1, quarter = (counts[name] - counts[""] for name in ("r1", "r1_on_a_quarter"))
    assert quarter / r1 == pytest.approx(0.5, abs=0.02)
    assert r1 / counts[""] == pytest.approx(0.27, abs=0.02)  # of a step's multiplications


def slope_at(D: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return file_of("r1").squared_slope(D(images), images)


@pytest.mark.parametrize("name", ["r1", "relativistic_r1_r2"])
def test_penalties_ask_d_once_and_change_nothing_else(notebook, name):
    D, _ = notebook.build_network(8, 8, 10)
    D.double()
    real, fake = torch.rand(2, 16, 3, 32, 32, dtype=torch.float64)
    base = {"r1": "", "relativistic_r1_r2": "relativistic"}[name]
    apply_idea(base, notebook)
    slope = slope_at(D, real.requires_grad_())
    if base:
        slope = slope + slope_at(D, fake.requires_grad_())
    expected = notebook.discriminator_loss(D, real.detach(), fake.detach()) + 0.025 * slope
    gradients = torch.autograd.grad(expected, list(D.parameters()), allow_unused=True)
    asked = []
    D.register_forward_pre_hook(lambda D, inputs: asked.append(len(inputs[0])))
    apply_idea(name, notebook)
    loss = notebook.discriminator_loss(D, real.detach(), fake.detach())
    assert asked == [16] * 2 and loss.item() == pytest.approx(expected.item(), abs=1e-12)
    found = torch.autograd.grad(loss, list(D.parameters()), allow_unused=True)
    for a, b in zip(gradients, found, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_penalties_have_the_same_gradients_on_the_fast_path(notebook, precision):
    D, _ = notebook.build_network(16, 8, 10)
    torch.nn.init.normal_(D.fc.weight)
    fast = copy.deepcopy(D)
    make_fast(fast, torch.device("cpu"), precision, torch.channels_last)
    images = torch.rand(32, 3, 32, 32, requires_grad=True)
    for network in (D, fast):
        slope_at(network, images).backward()
    n_sloped = 0
    for (name, expected), found in zip(D.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is None or not expected.grad.any():  # a shift of answers has no slope
            assert name.endswith("bias") and (found.grad is None or not found.grad.any())
        else:
            error = (found.grad - expected.grad).norm() / expected.grad.norm()
            assert error < (1e-4 if precision == "float32" else 0.1), (name, error)
            n_sloped += 1
    assert n_sloped >= 8  # all weights of convolutions, batch norm and the last layer


def gradient_of_penalty(D: nn.Module, images: torch.Tensor) -> torch.Tensor:
    images = images.detach().requires_grad_()
    slopes = torch.autograd.grad(slope_at(D, images), [D[0].weight, D[1].weight])
    return torch.cat([slope.flatten() for slope in slopes])


def in_one_of_two(rank: int, folder: Path, D: nn.Module, images: torch.Tensor) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    D[1].__class__ = SyncBatchNorm2d
    own = gradient_of_penalty(D, images[rank::2])
    dist.all_reduce(own)
    torch.save(own / 2, folder / f"{rank}.pt")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()


def test_penalties_have_the_same_gradients_in_two_processes(tmp_path):
    networks = [nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Flatten()]
    D = nn.Sequential(*networks, nn.Linear(64, 1)).double()
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    expected = gradient_of_penalty(D, images)
    torch.multiprocessing.spawn(in_one_of_two, (tmp_path, D, images), nprocs=2)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    assert found.any() and torch.allclose(found, expected)


def test_relativistic_r1_r2_has_no_batch_norm_in_d(notebook):
    apply_idea("relativistic_r1_r2", notebook)
    D, G = notebook.build_network(16, 8, 10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in D.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in G.modules())
    x = torch.randn(64, 3, 32, 32)
    for block in (D.conv1, D.conv2, D.conv3, D.conv4):
        x = block(x)
        assert 0.5 < x.square().mean().sqrt() < 2


def test_d_is_told_how_much_a_batch_differs(notebook):
    apply_idea("minibatch_standard_deviation", notebook)
    D, _ = notebook.build_network(8, 8, 10)
    seen = []
    D.fc.register_forward_pre_hook(lambda fc, inputs: seen.append(inputs[0][:, -1]))
    x = torch.rand(16, 3, 32, 32)
    for pictures in (x, x * 2, x[:1].expand(16, -1, -1, -1)):
        assert D(pictures).shape == (16, 1)
    spread, twice, none = (values.unique().item() for values in seen)
    assert twice == pytest.approx(2 * spread, rel=0.01) and spread > 100 * none
    x.requires_grad_()
    seen.clear()
    D(x)
    assert torch.autograd.grad(seen[0].sum(), x)[0].any()  # G can learn from it


def test_resize_convolution_reaches_all_pixels_alike(notebook):
    def patterns(G: nn.Module) -> float:
        for layer in G.modules():
            if hasattr(layer, "weight") and layer.weight.ndim == 4:
                nn.init.constant_(layer.weight, 0.01)
        inside = G.deconv1[0](torch.ones(1, 64, 4, 4))[0, 0, 2:-2, 2:-2]
        return (inside.max() - inside.min()).item()

    apply_idea("resize_convolution", notebook)
    _, G = notebook.build_network(8, 8, 10)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in G.modules())
    assert [n for n, _ in G.named_parameters() if n.startswith("deconv4")] == [
        "deconv4.weight",
        "deconv4.bias",
    ]
    assert G(torch.rand(2, 10)).shape == (2, 3, 32, 32) and patterns(G) == 0


def test_both_networks_are_told_how_light_a_face_is(tmp_path):
    notebook = prepare(tmp_path, n_images=40)
    light, dark, blue = (241, 194, 170), (70, 45, 35), (0, 0, 255)  # blue has no angle
    faces = np.array([light] * 10 + [dark] * 20 + [blue] * 2, np.uint8)
    faces = np.tile(faces[:, None, None], (1, 32, 32, 1))
    notebook.celeba_train_loader.dataset.images, plain = faces, notebook.celeba_train_loader
    notebook.celeba_train_loader = DataLoader(FaceDataset(faces), 32, collate_fn=plain.collate_fn)
    apply_idea("conditional", notebook)
    ((images, _),) = notebook.celeba_train_loader
    assert images.shape == (32, 4, 32, 32)
    ranks = images[:, 3].flatten(1).unique(dim=1).squeeze() * 255 / 256
    assert (ranks[10:30].max() < 20 / 32 <= ranks[:10].min()) and ranks[30:].min() >= 30 / 32
    D, G = notebook.build_network(8, 8, 10)
    seen = []
    D.conv1.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    z = notebook.sample_z(32)
    D(notebook.scale(images)), D(G(z)), D(notebook.scale(images[:, :3]))
    asked = seen[1][:, 3, 0, 0]
    assert torch.equal(asked, z[:, 0]) and seen[1].shape == (32, 4, 32, 32)
    assert torch.allclose(seen[0], seen[2], atol=0.01)
    assert G.eval()(z).shape == (32, 3, 32, 32)


# ------------------------------------------------------------------------ the notebook's recipe


@pytest.mark.parametrize("decay", [0.999, 0.0])
def test_the_moving_average_forgets_the_first_weights(notebook, decay):
    notebook.ema_decay = decay
    for n_steps, weight in [(1, 10 / 11), (90, 10 / 100), (10**6, 1e-3)]:
        average, G = (notebook.build_network(8, 4, 10)[1] for _ in range(2))
        old = [weights.clone() for weights in average.parameters()]
        notebook.update_ema(average, G, n_steps)
        weight = weight if decay else 1.0
        for before, now, new in zip(old, average.parameters(), G.parameters(), strict=True):
            assert torch.allclose(now, (1 - weight) * before + weight * new, atol=1e-6)


def test_batch_norm_has_the_statistics_of_the_averaged_weights(tmp_path):
    train(notebook := prepare(tmp_path), 2)
    parts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]
    G = notebook.G.eval()
    G.load_state_dict(parts["G_ema"])
    x = G.fc(parts["fixed_z"]).unflatten(1, G.start)
    for block in (G.deconv1, G.deconv2, G.deconv3):
        features = block[0](x)
        assert torch.allclose(block[1].running_mean, features.mean((0, 2, 3)), atol=1e-3)
        assert torch.allclose(block[1].running_var, features.var((0, 2, 3)), rtol=1e-2)
        x = block(x)


def test_batch_norms_statistics_do_not_depend_on_how_many_images_are_held_out(tmp_path):
    weights, sizes = [], []
    for size in (2, 101):  # of the faces that are compared with held-out images
        notebook = prepare(tmp_path / str(size))
        notebook.evaluator.size = size
        update = notebook.update_bn
        notebook.update_bn = lambda parts, G, u=update: (
            sizes.append([*map(len, parts)]) or u(parts, G)
        )
        train(notebook, 1)
        weights.append((tmp_path / str(size) / "generator.safetensors").read_bytes())
    assert weights[0] == weights[1] and sizes == 2 * [10 * [100]]  # each part counts alike


def test_an_idea_of_ones_own_is_found_where_the_notebook_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr("faces.notebook._START", tmp_path)
    (tmp_path / "mine.py").write_text('"""Mine: nothing."""\ndef modify(D, G):\n    pass\n')
    assert hash_ideas("mine.py").keys() == {"mine.py"}  # from another working directory
