"""The training run: speed, several processes, stopping and going on, faults."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.torch
import torch
from small_training import SignalLoader, in_float64, prepare, prepare_fast, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import helpers
import problem_unittests
from faces import cuda_graph
from faces.files import HERE
from faces.notebook import load_definitions
from faces.speed import multiply_patches

SCRIPT = Path(__file__).with_name("small_training.py")


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "generator.safetensors")


def assert_same_run(folder: Path, whole: Path) -> None:
    """Bit for bit the same losses, samples and weights."""
    for name in ("losses.csv", "measures.csv"):
        assert (folder / name).read_text() == (whole / name).read_text()
    states = [state_of(f) for f in (folder, whole)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])
    samples = [np.load(f / "samples.npz")["samples"] for f in (folder, whole)]
    assert (samples[0] == samples[1]).all()
    checkpoints = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, whole)]
    for part in ("D", "G", "G_average"):
        a, b = (c["parts"][part].values() for c in checkpoints)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------ speed


@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_sped_up_networks_compute_the_same(image_size):
    lesson = load_definitions()
    torch.manual_seed(0)
    plain = lesson.build_network(16, 16, 10, image_size)
    fast = lesson.build_network(16, 16, 10, image_size)
    for a, b in zip(plain, fast, strict=True):
        b.load_state_dict(a.state_dict())
    speed = helpers.Speed(torch.device("cpu"), fast=True)
    speed.precision = "float32"
    speed.up(*fast)
    assert any(type(m) is not nn.Conv2d for m in fast[0].modules() if isinstance(m, nn.Conv2d))
    z = torch.rand(6, 10)
    for (D, G), images in ((plain, plain[1](z)), (fast, fast[1](z))):
        D.images, D.answers = images, D(images)
        D.answers.square().mean().backward()
        G.gradient = torch.cat([p.grad.flatten() for p in G.parameters()])
        D.gradient = torch.cat([p.grad.flatten() for p in D.parameters()])
    for name in ("images", "answers", "gradient"):
        a, b = getattr(plain[0], name), getattr(fast[0], name)
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * a.abs().max().item()), name
    difference = plain[1].gradient - fast[1].gradient
    assert difference.norm() < 1e-3 * plain[1].gradient.norm()


def test_the_fast_step_and_the_plain_one_agree(tmp_path):
    plain = in_float64(prepare(tmp_path / "plain"))
    plain_losses = np.array(train(plain))
    fast = in_float64(prepare_fast(tmp_path / "fast", "float32"))
    losses = np.array(train(fast))
    assert losses.shape == (20, 2) and np.abs(losses - plain_losses).max() < 1e-6
    weights = [torch.cat([p.flatten() for p in lesson.G.parameters()]) for lesson in (plain, fast)]
    assert 0 < (weights[0] - weights[1]).abs().max() < 1e-6  # it is another way to compute it


def test_the_step_in_bfloat16_stays_near_the_plain_one(tmp_path):
    plain = train(prepare(tmp_path / "plain"))
    fast = train(prepare_fast(tmp_path / "fast", "bfloat16"))
    assert 0 < np.abs(np.array(plain) - np.array(fast)).max() < 0.1


def test_bfloat16_is_for_training_only(tmp_path):
    lesson = prepare_fast(tmp_path, "bfloat16")
    assert lesson.speed.precision == "bfloat16"
    z = torch.rand(4, 10)
    images = {mode: lesson.G.train(mode)(z) for mode in (True, False)}
    assert all(x.dtype == torch.float32 for x in images.values())
    coarse = images[True].detach().bfloat16().float()
    assert torch.equal(coarse, images[True]) and not torch.equal(images[False], coarse)
    average = copy.deepcopy(lesson.G)
    with torch.no_grad():
        average.fc.weight.zero_()
    assert not torch.equal(average.eval()(z), lesson.G.eval()(z))  # a copy has its own weights
    assert isinstance(lesson.G, lesson.Generator)
    assert list(average.state_dict()) == list(lesson.Generator(10, 8).state_dict())


def test_the_rubric_test_of_train_watches_a_plain_step(tmp_path):
    lesson, watched = prepare(tmp_path), []

    def notice(step: Any, *optimizers: Any) -> Any:
        def run(images: torch.Tensor, z: torch.Tensor) -> Any:
            watched.append(cuda_graph._is_watched())  # then a recorded step is not replayed
            return step(images, z)

        return run

    lesson.speed.step = notice
    assert not cuda_graph._is_watched()
    problem_unittests.test_train(lesson.train)
    assert watched and all(watched) and not cuda_graph._is_watched()


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(8, 8, 4, 2, 1, padding_mode="reflect"), (8, 8)),
        (nn.Conv2d(8, 8, 4, 2, 1), (7, 7)),
        (nn.Conv2d(8, 8, 4, 2, 1), (8, 4)),
        (nn.Conv2d(8, 8, 4, 2, 1, groups=2), (8, 8)),
        (nn.ConvTranspose2d(8, 8, 4, 2, 1, output_padding=1), (4, 4)),
        (nn.ConvTranspose2d(8, 8, 4, 2, 1), (2, 3)),
        (nn.ConvTranspose2d(8, 8, 4, 2, 0), (4, 4)),
    ],
)
def test_layers_of_other_kinds_compute_the_same(layer, size):
    x = torch.rand(2, 8, *size)
    expected = layer(x)
    multiply_patches(nn.Sequential(layer))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_d_gets_no_weight_gradients_in_gs_step(tmp_path):
    lesson = prepare(tmp_path)
    gradients, n_equal = [], []

    def after_d(*arguments: Any) -> None:
        gradients.append([p.grad.clone() for p in lesson.D.parameters()])

    def after_g(*arguments: Any) -> None:
        now = [p.grad for p in lesson.D.parameters()]
        pairs = zip(gradients[-1], now, strict=True)
        n_equal.append(sum(torch.equal(a, b) for a, b in pairs))

    lesson.d_optimizer.register_step_post_hook(after_d)
    lesson.g_optimizer.register_step_post_hook(after_g)
    train(lesson, 1)
    assert n_equal == [len(list(lesson.D.parameters()))] * 5


def test_memory_does_not_grow_with_the_data(tmp_path):
    code = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import helpers, torch
from faces import arrays
from torch.utils.data import DataLoader
for n in (18_000, 180_000):  # 55 MB and 553 MB
    np.lib.format.open_memmap(sys.argv[2], "w+", np.uint8, (n, 32, 32, 3)).flush()
    data = helpers.ImageArray(np.load(sys.argv[2], mmap_mode="r"))
    assert n == sum(len(x) for x, _ in DataLoader(data, 128, True, collate_fn=data.collate))
    helpers.nearest_images(np.array(data.images[:2]), data.images)
    arrays.copy_to(torch.device("meta"), data.images)  # as to a GPU, by way of the host's memory
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    command = [sys.executable, "-c", code, HERE, tmp_path / "images.npy"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = map(float, done.stdout.split())
    assert large - small < 300


# -------------------------------------------------------------------------------- stop and go on


ALL_IDEAS = dict(idea="flips+differentiable_augmentation+normal_latents+label_smoothing+balanced")


@pytest.mark.parametrize(
    ("batch", "recipe"), [(0, {}), (2, {}), (4, {}), (5, {}), (8, {}), (7, ALL_IDEAS)]
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, capsys, batch, recipe):
    recipe = recipe | dict(fast=True)
    handler = signal.getsignal(signal.SIGINT)
    whole = train(prepare(tmp_path / "whole", **recipe))
    lesson = prepare(tmp_path / "run", **recipe)
    lesson.celeba_train_loader = SignalLoader.like(lesson.celeba_train_loader)
    lesson.celeba_train_loader.at = batch
    losses = train(lesson)
    assert losses == whole[: batch + 1]
    assert "Stopped in epoch" in capsys.readouterr().out
    assert len(np.load(tmp_path / "run" / "samples.npz")["samples"]) == batch // 5 + 1
    torch.manual_seed(1)
    assert train(prepare(tmp_path / "run", **recipe)) == whole
    assert "Going on from" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_complete_run_is_not_trained_again_but_can_be_made_longer(tmp_path, capsys):
    losses = train(prepare(tmp_path / "run"), 2)
    before = (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns
    assert train(prepare(tmp_path / "run"), 2) == losses
    assert "nothing is left to train" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns == before
    train(prepare(tmp_path / "run"), 3)
    train(prepare(tmp_path / "whole"), 3)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def run_script(what: str, folder: Path) -> str:
    environment = {n: value for n, value in os.environ.items() if n != "PYTHONUNBUFFERED"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}  # two processes may not share a GPU
    run = subprocess.run(
        [sys.executable, SCRIPT, what, folder], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_a_run_killed_at_20_moments_ends_as_one_that_was_not(tmp_path):
    output = run_script("kill", tmp_path)
    assert "killed 20 times" in output and "Going on from" in output
    assert_same_run(tmp_path, tmp_path / "whole")


def test_sigterm_leaves_a_checkpoint(tmp_path):
    output = run_script("terminate", tmp_path)
    assert f"status {-signal.SIGTERM}" in output and "Stopped in epoch" in output
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["losses"]) == state["epoch"] * 5 + state["batch"] > 0


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    output = run_script("full-disk", tmp_path)
    assert "status 1" in output and "disk is full" in output
    assert "left: ['.lock']" in output and "Going on from" in output
    assert_same_run(tmp_path, tmp_path / "whole")


def test_other_settings_are_refused_and_named(tmp_path):
    folder = "räume mit leerzeichen"
    train(prepare(tmp_path / folder), 1)
    files = {p: p.read_bytes() for p in (tmp_path / folder).iterdir()}
    settings = {"lr": 0.1, "n_epochs": 2, "width": 8}
    with pytest.raises(ValueError, match="other settings") as caught:
        train(prepare(tmp_path / folder, settings=settings), 2)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  lr: 0.0002 there, 0.1 now", "  width: None there, 8 now"]
    assert "resume = False" in lines[3] and len(lines) == 4
    lesson = prepare(tmp_path / folder)
    lesson.scale = lambda images: images * 2 - 1
    with pytest.raises(ValueError, match="the code of scale: .* there, None now"):
        train(lesson, 2)
    assert files == {p: p.read_bytes() for p in (tmp_path / folder).iterdir()}


def test_results_lost_between_checkpoint_and_pictures_are_written_again(tmp_path):
    train(prepare(tmp_path / "whole"), 2)
    train(prepare(tmp_path / "run"), 2)
    names = ["losses.csv", "measures.csv", "samples.npz", "samples_epoch_002.png"]
    names.append("generator.safetensors")
    for name in names:
        (tmp_path / "run" / name).unlink()
    train(prepare(tmp_path / "run"), 2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    pictures = [plt.imread(tmp_path / f / "samples_epoch_002.png") for f in ("run", "whole")]
    assert (pictures[0] == pictures[1]).all()


def test_how_an_optimizer_steps_is_of_the_device_and_not_of_the_run(tmp_path):
    train(prepare(tmp_path), 1)
    lesson = prepare(tmp_path)
    lesson.d_optimizer.param_groups[0]["fused"] = False
    train(lesson, 2)
    assert lesson.d_optimizer.param_groups[0]["fused"] is False
    assert lesson.g_optimizer.param_groups[0]["fused"] is True


def test_two_runs_into_one_folder_are_refused(tmp_path):
    lesson = prepare(tmp_path)
    errors = []

    class Meanwhile(DataLoader):
        def __iter__(self):
            with pytest.raises(RuntimeError, match="Another run writes to") as caught:
                train(prepare(tmp_path))
            errors.append(caught.value)
            return super().__iter__()

    dataset = lesson.celeba_train_loader.dataset
    lesson.celeba_train_loader = Meanwhile(dataset, 8, collate_fn=dataset.collate)
    train(lesson, 1)
    assert len(errors) == 1
    train(prepare(tmp_path), 2)  # and now it is free


# ---------------------------------------------------------------------------------------- faults


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("fault", [1, 5000, 0.5, -10, "text", "empty", "evil", "other"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    train(prepare(tmp_path / "run"), 2)
    path = tmp_path / "run" / "checkpoint.pt"
    content = path.read_bytes()
    if isinstance(fault, (int, float)):  # cut off
        path.write_bytes(content[: len(content) // 2 if fault == 0.5 else fault])
    elif fault == "text":
        path.write_text("<html>")
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "evil":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        state = torch.load(path, weights_only=True)
        state["parts"]["G"] = {"weight": torch.ones(2)}
        torch.save(state, path)
    damaged = path.read_bytes()
    message = "does not fit" if fault == "other" else "is damaged.*delete it to go on"
    with pytest.raises(ValueError, match=rf"checkpoint\.pt {message}") as caught:
        train(prepare(tmp_path / "run"), 3)
    assert "weights_only" not in str(caught.value)  # torch's advice to load it without care
    assert path.read_bytes() == damaged and not (tmp_path / "evil").exists()
    if fault == 0.5:
        path.unlink()  # what the message says
        train(prepare(tmp_path / "run"), 3)
        train(prepare(tmp_path / "whole"), 3)
        assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    train(prepare(tmp_path), 1)
    checkpoint, weights = (tmp_path / "checkpoint.pt").read_bytes(), state_of(tmp_path)
    lesson = prepare(tmp_path)
    n = iter(range(100))

    def diverge(*arguments: Any) -> None:
        if next(n) == 2:
            lesson.D.fc.weight.data.fill_(float("nan"))

    lesson.d_optimizer.register_step_post_hook(diverge)
    message = "A loss is no longer finite in epoch 2, batch 2.*last good checkpoint is .*point.pt"
    with pytest.raises(FloatingPointError, match=message):
        train(lesson, 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoint
    assert all(torch.equal(t, weights[name]) for name, t in state_of(tmp_path).items())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    train(prepare(tmp_path), 1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    lesson = prepare(tmp_path)
    n = iter(range(100))

    def diverge(*arguments: Any) -> None:
        if next(n) == 4:  # in the epoch's last batch: no loss is left to show it
            lesson.G.fc.weight.data[0, 0] = float("inf")

    lesson.g_optimizer.register_step_post_hook(diverge)
    with pytest.raises(FloatingPointError, match="A weight of G.* epoch 2, batch 4.*checkpoint.pt"):
        train(lesson, 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_batch_larger_than_the_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="batch_size.*lower it"):
        train(prepare(tmp_path, n_images=7))


@pytest.mark.parametrize(
    ("d_loss", "idea", "spread", "expected"),
    [
        (0.3, "", 0.5, ""),
        (0.01, "", 0.5, "the discriminator has won"),
        (0.05, "", 0.5, ""),
        (0.33, "label_smoothing", 0.5, "the discriminator has won"),
        (0.3, "", 0.01, "the samples have collapsed"),
        (0.1, "least_squares", 0.5, ""),
        (0.001, "least_squares", 0.5, "the discriminator has won"),
    ],
)
def test_a_training_that_fails_is_reported(tmp_path, capsys, d_loss, idea, spread, expected):
    lesson = load_definitions()
    helpers.apply_idea(idea, lesson)
    torch.manual_seed(0)
    samples = (torch.randn(16, 3, 8, 8) * spread).clamp(-1, 1)
    generator = nn.Linear(1, 1)
    generator.forward = lambda z: samples
    run = helpers.TrainingRun(
        tmp_path, 1, 1, {"G_average": generator}, {}, prepare, lesson.discriminator_loss
    )
    loader = DataLoader(TensorDataset(torch.zeros(12, 1), torch.zeros(12)), 4)
    with run:
        for _ in run.epochs():
            for _ in run.batches(loader, torch.zeros):
                run.end_batch(torch.tensor(d_loss), torch.tensor(2.0))
            run.end_epoch(generator, torch.zeros(16), lambda faces: {"swd": 1.0})
    printed = capsys.readouterr().out
    assert (f"Warning, epoch 1; {expected}" in printed) if expected else ("Warning" not in printed)


@pytest.mark.parametrize(
    ("idea", "sure", "guess"),
    [
        ("", 0, 2 * np.log(2)),
        ("least_squares", 0, 0.5),
        ("r1", 0, 2 * np.log(2)),
        ("label_smoothing", 0.325, 1.376),  # entropies of 0.9 and 0.1; of 0.45 and 0.55, twice
    ],
)
def test_the_range_of_ds_loss_is_found(idea, sure, guess):
    lesson = load_definitions()
    helpers.apply_idea(idea, lesson)
    state = torch.get_rng_state()
    assert helpers.loss_range(lesson.discriminator_loss) == pytest.approx((sure, guess), abs=0.005)
    assert torch.equal(torch.get_rng_state(), state)
