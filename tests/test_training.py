"""The training run: speed, several processes, stopping and resuming, faults."""

import copy
import itertools
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from small_training import act_at, differing_files, in_float64, prepare, prepare_fast, train
from torch import nn
from torch.utils.data import DataLoader

import problem_unittests
from faces import speed
from faces.files import HERE, NOTEBOOK
from faces.notebook import apply_idea, load_definitions
from faces.parallel import join_processes
from faces.speed import FreeCores
from faces.training import _Steps, discriminator_loss_bounds, signs_of_failure

# ------------------------------------------------------------------------------------------ speed


@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_accelerated_networks_compute_the_same(image_size):
    torch.manual_seed(0)
    plain = load_definitions().build_network(16, 16, 10, image_size)
    fast = copy.deepcopy(plain)
    accelerator = speed.Accelerator()
    accelerator.device, accelerator.precision = torch.device("cpu"), "float32"
    accelerator.memory_format = torch.channels_last
    accelerator.prepare(*fast)
    assert any(type(m) is not nn.Conv2d for m in fast[0].modules() if isinstance(m, nn.Conv2d))
    z, computed = torch.rand(6, 10).double(), []
    for D, G in (plain, fast):
        images = G.double()(z)
        answers = D.double()(images)
        answers.square().mean().backward()
        gradients = [p.grad for network in (D, G) for p in network.parameters()]
        computed.append([images, answers, *gradients])
    for a, b in zip(*computed, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * a.abs().max().item())


def test_the_fast_step_and_the_plain_one_agree(tmp_path):
    plain = in_float64(prepare(tmp_path / "plain"))
    plain_losses = np.array(train(plain))
    fast = in_float64(prepare_fast(tmp_path / "fast", "float32"))
    losses = np.array(train(fast))
    assert losses.shape == (20, 2) and np.abs(losses - plain_losses).max() < 1e-6
    weights = [torch.cat([p.flatten() for p in n.G.parameters()]) for n in (plain, fast)]
    assert 0 < (weights[0] - weights[1]).abs().max() < 1e-6  # it is another way to compute it


def test_the_step_in_bfloat16_stays_near_the_plain_one(tmp_path):
    plain = train(prepare(tmp_path / "plain"))
    fast = train(prepare_fast(tmp_path / "fast", "bfloat16"))
    assert 0 < np.abs(np.array(plain) - np.array(fast)).max() < 0.1


def test_bfloat16_is_for_training_only(tmp_path):
    notebook = prepare_fast(tmp_path, "bfloat16")
    assert notebook.accelerator.precision == "bfloat16"
    z = torch.rand(4, 10)
    images = {mode: notebook.G.train(mode)(z) for mode in (True, False)}
    assert all(x.dtype == torch.float32 for x in images.values())
    coarse = images[True].detach().bfloat16().float()
    assert torch.equal(coarse, images[True]) and not torch.equal(images[False], coarse)
    copied = copy.deepcopy(notebook.G)
    with torch.no_grad():
        copied.fc.weight.zero_()
    assert not torch.equal(copied.eval()(z), notebook.G.eval()(z))  # a copy has its own weights
    assert isinstance(notebook.G, notebook.Generator)
    assert list(copied.state_dict()) == list(notebook.Generator(10, 8).state_dict())


def test_the_rubric_test_of_train_watches_a_plain_step(tmp_path):
    notebook, watched = prepare(tmp_path), []
    step = notebook.step  # a recorded one is not replayed while it is watched
    notebook.step = lambda *batch: watched.append(speed._is_watched()) or step(*batch)
    assert not speed._is_watched()
    problem_unittests.test_train(notebook.train)
    assert watched and all(watched) and not speed._is_watched()
    assert not list(tmp_path.glob("[!.]*"))  # and writes nothing to the run's folder


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
    speed.multiply_patches(nn.Sequential(layer))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_d_gets_no_weight_gradients_in_gs_step(tmp_path):
    notebook, gradients = prepare(tmp_path), []

    def note(*_: Any) -> None:
        gradients.append([p.grad.clone() for p in notebook.D.parameters()])

    for optimizer in (notebook.d_optimizer, notebook.g_optimizer):
        optimizer.register_step_post_hook(note)
    train(notebook, 1)
    assert len(gradients) == 2 * 5
    for after_d, after_g in zip(gradients[::2], gradients[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(after_d, after_g, strict=True))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    code = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import helpers, torch
from faces.images import copy_to
from torch.utils.data import DataLoader
for n in (18_000, 180_000):  # 55 MB and 553 MB
    np.lib.format.open_memmap(sys.argv[2], "w+", np.uint8, (n, 32, 32, 3)).flush()
    data = helpers.FaceDataset(np.load(sys.argv[2], mmap_mode="r"))
    assert n == sum(len(x) for x, _ in DataLoader(data, 128, True, collate_fn=data.collate))
    helpers.nearest_images(np.array(data.images[:2]), data.images)
    copy_to(torch.device("meta"), data.images)  # as to a GPU, by way of the host's memory
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    command = [sys.executable, "-c", code, HERE, tmp_path / "images.npy"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = map(float, done.stdout.split())
    assert large - small < 300


def test_an_epochs_faces_are_drawn_in_parts(tmp_path):
    notebook, sizes, measured = prepare(tmp_path), [], []
    notebook.G.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    measure = lambda faces: measured.append(len(faces)) or {"swd": 1.0}  # noqa: E731
    notebook.evaluator = mock.Mock(size=1000, side_effect=measure)
    train(notebook, 1)  # G_ema is a copy of G, hooks and all
    assert measured == [1000] and sizes[-10:] == [100] * 10 and max(sizes) == 100


# -------------------------------------------------------------------------------- stop and resume


ALL_IDEAS = dict(idea="flips+differentiable_augmentation+normal_latents+label_smoothing+balanced")


@pytest.mark.parametrize(
    ("batch", "recipe"), [(0, {}), (2, {}), (4, {}), (5, {}), (8, {}), (7, ALL_IDEAS)]
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, capsys, batch, recipe):
    recipe = recipe | dict(accelerate=True)
    handler = signal.getsignal(signal.SIGINT)
    whole = train(prepare(tmp_path / "whole", **recipe))
    notebook = prepare(tmp_path / "run", **recipe)
    act_at(notebook, batch, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(notebook) == whole[: batch + 1]
    assert "Stopped in epoch" in capsys.readouterr().out
    assert len(np.load(tmp_path / "run" / "samples.npz")["samples"]) == batch // 5 + 1
    torch.manual_seed(1)
    assert train(prepare(tmp_path / "run", **recipe)) == whole
    assert "Resuming from" in capsys.readouterr().out
    assert not differing_files(tmp_path / "run", tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_complete_run_is_not_trained_again_but_can_be_made_longer(tmp_path, monkeypatch, capsys):
    losses = train(prepare(tmp_path / "run"), 2)
    assert capsys.readouterr().out.count("Warning, epoch 1; the samples have collapsed") == 1
    before = (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns
    assert train(prepare(tmp_path / "run"), 2) == losses
    assert "already holds this run, 2 epochs: nothing is left" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns == before
    train(prepare(tmp_path / "whole"), 3)
    clock = itertools.count(2e9, -1000)  # one that goes back
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    train(prepare(tmp_path / "run"), 3)
    assert not differing_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_of_two_processes_both_stop_after_the_same_step(tmp_path):
    script = Path(__file__).with_name("small_training.py")
    command = [sys.executable, script, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Stopped in epoch 2, after 3 of its batches") == 1
    assert "status -15" in done.stdout and "1 epochs and 3 batches are done" in done.stdout
    for name, n_steps in (("stopped", 8), ("run", 20)):
        losses = np.loadtxt(tmp_path / name / "losses.csv", delimiter=",", skiprows=1)
        assert len(losses) == n_steps and np.isfinite(losses).all()
    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 3)


def test_another_order_or_size_of_batches_is_refused_and_named(tmp_path):
    train(prepare(tmp_path), 1)
    changes = {"batch_size": 4, "shuffle": False, "drop_last": False}
    for change in changes.items():
        notebook = prepare(tmp_path)
        dataset = notebook.celeba_train_loader.dataset
        options = dict(batch_size=8, shuffle=True, drop_last=True, collate_fn=dataset.collate)
        notebook.celeba_train_loader = DataLoader(dataset, **(options | dict([change])))
        with pytest.raises(ValueError, match="other settings:\n  the loader celeba_train_loader: "):
            train(notebook, 2)


def test_other_first_weights_are_refused_and_named(tmp_path):
    train(prepare(tmp_path), 1)
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert source.count("std=0.02)") == 1
    edited = tmp_path / "edited.ipynb"
    edited.write_text(source.replace("std=0.02)", "std=0.04)"), encoding="utf-8")
    with pytest.raises(ValueError, match="other settings:\n  the code of weights_init_normal: "):
        train(prepare(tmp_path, source=edited), 2)


def test_fewer_epochs_than_there_are_is_said(tmp_path, capsys):
    losses = train(prepare(tmp_path), 2)
    assert train(prepare(tmp_path), 1) == losses
    assert "this run, 2 epochs, more than n_epochs = 1: nothing is" in capsys.readouterr().out


def test_other_settings_are_refused_and_named(tmp_path):
    folder = tmp_path / "räume mit leerzeichen"
    train(prepare(folder), 1)
    files = {p: p.read_bytes() for p in folder.iterdir()}
    settings = {"lr": 0.1, "n_epochs": 2, "width": 8}
    with pytest.raises(ValueError, match="other settings") as caught:
        train(prepare(folder, settings=settings), 2)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  lr: 0.0002 there, 0.1 now", "  width: None there, 8 now"]
    assert "resume = False" in lines[3] and len(lines) == 4
    assert files == {p: p.read_bytes() for p in folder.iterdir()}


def test_how_an_optimizer_steps_is_of_the_device_and_not_of_the_run(tmp_path):
    train(prepare(tmp_path), 1)
    notebook = prepare(tmp_path)
    notebook.d_optimizer.param_groups[0]["fused"] = False
    train(notebook, 2)
    assert notebook.d_optimizer.param_groups[0]["fused"] is False
    assert notebook.g_optimizer.param_groups[0]["fused"] is True


def test_a_stop_before_the_first_step_comes_after_it(tmp_path, monkeypatch, capsys):
    whole = train(prepare(tmp_path / "whole"), 2)
    look = FreeCores.__enter__
    with monkeypatch.context() as at_first:
        interrupt = lambda cores: signal.raise_signal(signal.SIGINT) or look(cores)  # noqa: E731
        at_first.setattr(FreeCores, "__enter__", interrupt)
        assert train(prepare(tmp_path / "run"), 2) == whole[:1]
    assert "Stopped in epoch 1, after 1 of its batches" in capsys.readouterr().out
    assert len(np.load(tmp_path / "run" / "samples.npz")["samples"]) == 1
    assert train(prepare(tmp_path / "run"), 2) == whole
    assert not differing_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_the_cost_of_an_epoch_does_not_grow_with_their_number(tmp_path, monkeypatch):
    n_saved, save = [], np.savez_compressed

    def note(path: Path, samples: np.ndarray) -> None:
        n_saved.append(len(samples))
        save(path, samples=samples)

    monkeypatch.setattr(np, "savez_compressed", note)
    few = dict(n_images=8)  # a step an epoch
    train(prepare(tmp_path / "whole", **few), 40)
    assert len(n_saved) < 24 and n_saved[:10] == [*range(1, 11)] and n_saved[-1] == 40
    assert len(np.loadtxt(tmp_path / "whole" / "losses.csv", delimiter=",", skiprows=1)) == 40
    n_saved.clear()
    notebook = prepare(tmp_path / "run", **few)
    act_at(notebook, 28, lambda: 1 / 0)  # not after an epoch that was written
    with pytest.raises(ZeroDivisionError):
        train(notebook, 40)
    assert n_saved[-1] < 28
    train(prepare(tmp_path / "run", **few), 40)
    assert not differing_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_processes_with_other_images_are_refused(tmp_path):
    script = Path(__file__).with_name("small_training.py")
    command = [sys.executable, script, tmp_path / "run", "--other-images"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = "  data: 'images 0' in process 0, 'images 1' in process 1"
    assert done.stderr.count(said) == 2 and "Connection" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo] Rank")]
    assert lines == ["prepared"]  # by one of them; older PyTorch adds lines of Gloo's
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_a_process_that_is_alone_prints_whatever_its_environment_says(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = sys.stdout
    assert join_processes()[1] == 1 and sys.stdout is before


# -------------------------------------------------------------------------------------- printing


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["> {}/log", ">&- 2>&-", "2>&1 | head -n 3"])
def test_no_output_stops_a_training(tmp_path, ending):
    folder = tmp_path / os.fsdecode(b"\xff\xc3\xa4 run")  # of which the first is no UTF-8
    code = """
import sys
from pathlib import Path
from small_training import prepare
notebook = prepare(Path(sys.argv[1]))
for _ in range(5):
    print("±", sys.argv[1])
notebook.train(notebook.D, notebook.G, 2)
notebook = prepare(Path(sys.argv[1]))
notebook.train(notebook.D, notebook.G, 3)
"""
    command = f'"$0" -u -c "$1" "$2" {ending.format(shlex.quote(str(tmp_path)))}'
    paths = f"{HERE}{os.pathsep}{Path(__file__).parent}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": paths}
    arguments = ["bash", "-c", command, sys.executable, code, folder]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    train(prepare(tmp_path / "whole"), 3)
    assert not differing_files(folder, tmp_path / "whole"), done.stderr
    assert "Error" not in done.stderr
    if ending.endswith("log"):
        text = (tmp_path / "log").read_text()
        assert "\\xb1" in text and "Resuming from" in text and text.count("Epoch [") == 3


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
    elif fault == "other":
        state = torch.load(path, weights_only=True)
        state["parts"]["G"] = {"weight": torch.ones(2)}
        torch.save(state, path)
    else:
        contents = {"text": b"<html>", "empty": b"", "evil": pickle.dumps(Evil())}
        path.write_bytes(contents[fault])
    damaged = path.read_bytes()
    message = "does not fit" if fault == "other" else "is damaged.*delete it to resume from"
    with pytest.raises(ValueError, match=rf"checkpoint\.pt {message}") as caught:
        train(prepare(tmp_path / "run"), 3)
    assert "weights_only" not in str(caught.value)  # torch's advice to load it without care
    assert path.read_bytes() == damaged and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("network", "step", "message"),
    [
        ("D", 1, "A loss is no longer finite in epoch 2, batch 2"),
        ("G", 4, "A weight of G is no longer finite in epoch 2, batch 4"),  # no loss is left
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, network, step, message):
    train(prepare(tmp_path), 1)
    names = ("checkpoint.pt", "generator.safetensors")
    before = [(tmp_path / name).read_bytes() for name in names]
    notebook = prepare(tmp_path)
    weight = getattr(notebook, network).fc.weight.data
    act_at(notebook, step, lambda: weight[0, 0].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match=f"{message}.*last good .* is .*point.pt"):
        train(notebook, 2)
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_only_a_checkpoint_without_nan_is_called_good(tmp_path):
    train(prepare(tmp_path), 2)
    for name, found in [("D", "The last good .* is .*-before.pt"), ("", "There is no good")]:
        for path in tmp_path.glob("checkpoint*" if not name else "checkpoint.pt"):
            state = torch.load(path, weights_only=True)
            state["parts"]["d_optimizer"]["state"][0]["exp_avg"][0] = float("nan")
            torch.save(state, path)
        notebook = prepare(tmp_path)
        with pytest.raises(ValueError, match=r"point.pt .*\(what it has as d_optimizer cannot be"):
            train(notebook, 3)
        steps = _Steps(tmp_path)
        with pytest.raises(FloatingPointError, match=f"A value of x is .*: .*{found}"):
            steps.check_weights({"x": torch.tensor(float("inf"))})


def set_in(state: Any, *path: Any) -> None:
    """Set what lies at a path to its last part."""
    *names, last, value = path
    for name in names:
        state = state[name]
    state[last] = value


@pytest.mark.parametrize(
    "change",
    [
        *(lambda s, n=n: s.pop(n) for n in ("settings", "parts", "results", "random", "losses")),
        *(lambda s, n=n: s["parts"].pop(n) for n in ("D", "d_optimizer", "fixed_z")),
        *(lambda s, n=n: set_in(s, n, "one") for n in ("epoch", "parts")),
        *(lambda s, n=n: set_in(s, n, 10**9) for n in ("epoch", "batch")),
        *(lambda s, n=n: set_in(s, n, -1) for n in ("batch", "order")),
        lambda s: set_in(s, "losses", s["losses"][:-1]),
        lambda s: set_in(s, "losses", s["losses"] * float("nan")),
        lambda s: set_in(s, "parts", "G", "text"),
        lambda s: set_in(s, "parts", "fixed_z", s["parts"]["fixed_z"][:1]),
        lambda s: set_in(s, "parts", "d_optimizer", "param_groups", 0, "lr", 1000.0),
        lambda s: set_in(s, "parts", "d_optimizer", "param_groups", 0, "lr", float("nan")),
        lambda s: set_in(s, "parts", "d_optimizer", {}),
        lambda s: set_in(s, "parts", "G", "fc.weight", s["parts"]["G"]["fc.weight"] / 0),
        lambda s: s["results"].pop("samples"),
        lambda s: s["results"]["samples"].pop(),
        lambda s: s["results"]["samples"].append("text"),
        lambda s: set_in(s, "results", "samples", 0, torch.ones(16, 4, 4, 3, dtype=torch.uint8)),
        lambda s: set_in(s, "results", "measures", 0, {"swd": "low"}),
        lambda s: set_in(s, "random", "cpu", torch.ones(3, dtype=torch.uint8)),
        lambda s: s["random"].pop("cpu"),
        lambda s: set_in(s, "settings", "lr", torch.ones(2)),
    ],
)
def test_a_whole_checkpoint_that_is_not_of_a_run_is_refused_in_a_sentence(trained, change):
    path = trained / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    changed = path.read_bytes()
    expected = r"point\.pt (is damaged, or is not a checkpoint|does not fit these)[^\n]*resume = F"
    with pytest.raises(ValueError, match=expected):
        train(prepare(trained), 3)
    assert path.read_bytes() == changed


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(prepare(folder), 2)
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of a run of two epochs."""
    return shutil.copytree(trained_once, tmp_path / "run")


def test_more_processes_than_images_in_a_batch_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("faces.training.shard", lambda batch: batch[:0])
    with pytest.raises(ValueError, match="A batch has 8 images, fewer than there are processes: "):
        train(prepare(tmp_path))


def test_a_batch_larger_than_the_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 8, but there are only 7 .*lower it"):
        train(prepare(tmp_path, n_images=7))


@pytest.mark.parametrize(
    ("idea", "sure", "guess", "good", "won"),
    [
        ("", 0, 2 * np.log(2), 0.05, 0.01),
        ("least_squares", 0, 0.5, 0.1, 0.001),
        ("r1", 0, 2 * np.log(2), 0.05, 0.01),
        ("label_smoothing", 0.325, 1.376, 0.36, 0.33),  # entropies of 0.9 and 0.1; at 0.45, twice
    ],
)
def test_a_training_that_fails_is_known_by_ds_loss_and_the_samples(idea, sure, guess, good, won):
    notebook = load_definitions()
    apply_idea(idea, notebook)
    state = torch.get_rng_state()
    bounds = discriminator_loss_bounds(notebook.discriminator_loss)
    assert bounds == pytest.approx((sure, guess), abs=0.005)
    assert torch.equal(torch.get_rng_state(), state)
    samples = np.random.default_rng(0).normal(128, 60, (16, 8, 8, 3)).clip(0, 255).astype(np.uint8)
    alike = samples // 50 + 128
    assert signs_of_failure([good], samples, bounds) == ""
    assert signs_of_failure([won], samples, bounds) == "; the discriminator has won"
    assert signs_of_failure([good], alike, bounds) == "; the samples have collapsed to one"
