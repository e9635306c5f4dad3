"""GPUs and other accelerators; what needs one is skipped without it."""

import itertools
import random
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_training import in_float64, prepare, prepare_fast, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from faces import parallel, speed
from faces.notebook import IDEAS, RANGES, choose_settings
from faces.parallel import find_device, join_processes

ALL_IDEAS = ["", *sorted(path.stem for path in IDEAS.glob("*.py"))]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def train_on_cuda(folder: Path, idea: str) -> tuple[types.ModuleType, np.ndarray]:
    """Train in float64, with learning rates that fall; return notebook and losses.

    Each of four epochs has five batches of 8 images and one of 4.
    """
    idea = idea if "keep_last_batch" in idea else f"{idea}+keep_last_batch"
    options = dict(device=torch.device("cuda", 0), idea=idea, n_images=44)
    notebook = in_float64(prepare_fast(folder, "float32", **options))
    update_ema = notebook.update_ema

    def update_and_slow_down(*arguments: Any) -> None:
        update_ema(*arguments)
        for optimizer in (notebook.d_optimizer, notebook.g_optimizer):
            optimizer.param_groups[0]["lr"].mul_(0.9)

    notebook.update_ema = update_and_slow_down
    return notebook, np.array(train(notebook))


@needs_cuda
@pytest.mark.parametrize("idea", ALL_IDEAS)
def test_a_replayed_step_computes_the_same(tmp_path, monkeypatch, idea):
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda g: (replays.append(g), replay(g)))
    notebook, losses = train_on_cuda(tmp_path / "replayed", idea)
    assert len(replays) == 4 * 5 - 4 and len(set(replays)) == 1
    monkeypatch.setattr(speed, "_is_watched", lambda: True)
    _, plain_losses = train_on_cuda(tmp_path / "plain", idea)
    assert len(replays) == 4 * 5 - 4
    assert losses.shape == (4 * 6, 2) and np.abs(losses - plain_losses).max() < 1e-6
    for optimizer in (notebook.d_optimizer, notebook.g_optimizer):
        rate = optimizer.param_groups[0]["lr"]
        assert rate.item() == pytest.approx(2e-4 * 0.9**24, rel=1e-4)


@needs_cuda
def test_the_recorded_step_in_bfloat16_and_the_plain_one_agree(tmp_path):
    device = torch.device("cuda", 0)
    plain = train(prepare(tmp_path / "plain", device, n_images=44))
    fast = train(prepare_fast(tmp_path / "fast", "bfloat16", device=device, n_images=44))
    assert np.abs(np.array(plain) - np.array(fast)).max() < 0.1


# ------------------------------------------------------------------------------- which device


@pytest.fixture
def with_accelerators(monkeypatch) -> Callable[..., mock.MagicMock]:
    """Lets PyTorch find a number of accelerators of a kind, whether they can compute or not."""

    def pretend(kind: str, count: int = 1, computes: bool = True) -> mock.MagicMock:
        accelerator = mock.MagicMock(**{"device_count.return_value": count})
        accelerator.current_accelerator.return_value = torch.device(kind)
        monkeypatch.setattr(torch, "accelerator", accelerator)
        monkeypatch.setattr(dist, "init_process_group", mock.MagicMock())
        parallel._computes.cache_clear()
        if computes:
            monkeypatch.setattr(parallel, "_computes", lambda device: True)
        return accelerator

    return pretend


def begin_processes(monkeypatch: pytest.MonkeyPatch, number: int, local_rank: int) -> None:
    """Set what torchrun would set in one of several processes."""
    values = {"WORLD_SIZE": number, "RANK": 0, "LOCAL_RANK": local_rank}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def auto_preset(capsys: pytest.CaptureFixture) -> str:
    """What ``auto`` chooses, as the notebook says it."""
    given = dict.fromkeys(RANGES, 1) | dict(image_size=32, batch_size=2, max_images=None)
    given |= dict(d_lr=0.001, g_lr=0.001, beta1=0.5, ema_decay=0.5)
    given |= dict.fromkeys(("resume", "skip_broken", "accelerate"), True)
    given |= dict(data_dir="faces", output_dir="runs/faces")
    choose_settings("auto", dict.fromkeys(("full", "quick"), {"idea": ""}), given | {"idea": None})
    return capsys.readouterr().out


def test_processes_on_a_mac_share_the_processor(monkeypatch, capsys, with_accelerators):
    with_accelerators("mps")
    assert join_processes()[0] == torch.device("mps", 0)
    assert "preset full (auto: the device is mps:0)" in auto_preset(capsys)
    begin_processes(monkeypatch, 2, local_rank=1)
    assert join_processes()[0] == torch.device("cpu")
    assert "preset quick (auto: the device is cpu)" in auto_preset(capsys)


def test_each_process_is_bound_to_a_device_of_its_own(monkeypatch, with_accelerators):
    accelerator = with_accelerators("cuda", 2)
    begin_processes(monkeypatch, 4, local_rank=1)
    device, begin = torch.device("cuda", 1), dist.init_process_group
    assert join_processes()[0] == device
    assert begin.call_args.args == ("nccl",) and begin.call_args.kwargs["device_id"] == device
    accelerator.set_device_index.assert_called_once_with(1)
    begin_processes(monkeypatch, 4, local_rank=2)
    with pytest.raises(ValueError, match="There are 2 accelerators on this machine"):
        join_processes()


def test_an_accelerator_that_cannot_compute_is_not_used(monkeypatch, capsys, with_accelerators):
    accelerator = with_accelerators("meta", computes=False)  # has shapes, but no numbers
    said = auto_preset(capsys)
    assert said.startswith("meta:0 cannot be used (Tensor.item() cannot be called on meta tensors)")
    assert "everything runs on the CPU.\npreset quick (auto: the device is cpu)\n" in said
    assert join_processes()[0] == torch.device("cpu")
    assert not accelerator.set_device_index.called and capsys.readouterr().out == ""
    with_accelerators("meta", 2, computes=False)
    begin_processes(monkeypatch, 2, local_rank=1)
    with pytest.raises(ValueError, match=r"meta:1 cannot be used \(.*\)\. Hide the accelerators"):
        find_device()


def test_one_kernel_tells_that_a_device_computes():
    parallel._computes.cache_clear()
    assert parallel._computes(torch.device("cpu"))
    with mock.patch(
        "torch.nn.functional.conv2d", side_effect=RuntimeError("CUDA error: no kernel")
    ):
        assert parallel._computes(torch.device("cpu"))  # it is tried once
        parallel._computes.cache_clear()
        assert not parallel._computes(torch.device("cpu"))


# ------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("name", "kind", "capability", "precision", "is_last"),
    [
        ("H200, H100", "cuda", (9, 0), "bfloat16", True),
        ("RTX 40xx", "cuda", (8, 9), "bfloat16", True),
        ("RTX 30xx", "cuda", (8, 6), "bfloat16", True),
        ("A100", "cuda", (8, 0), "bfloat16", True),
        ("T4, RTX 20xx, GTX 16xx", "cuda", (7, 5), "float32", False),
        ("V100", "cuda", (7, 0), "float32", False),
        ("Apple GPU", "mps", None, "float32", False),
        ("Intel GPU", "xpu", None, "float32", True),
        ("CPU with AMX", "cpu", ("AVX512", {"amx_bf16", "avx512_bf16"}), "bfloat16", True),
        ("CPU with AVX-512 for bfloat16", "cpu", ("AVX512", {"avx512_bf16"}), "bfloat16", True),
        ("the same, held to AVX2", "cpu", ("AVX2", {"avx512_bf16"}), "float32", True),
        ("CPU with AVX2", "cpu", ("AVX2", {"avx2"}), "float32", True),
        ("CPU of another kind", "cpu", ("DEFAULT", set()), "float32", True),
    ],
)
def test_precision_and_order_of_memory(monkeypatch, name, kind, capability, precision, is_last):
    if kind == "cuda":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if kind == "cpu":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability[0])
        monkeypatch.setattr(speed, "cpu_flags", lambda: capability[1])
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    assert speed.choose_precision(torch.device(kind, 0)) == (precision, memory_format)
    network = nn.Conv2d(3, 4, 4)
    speed.make_fast(network, torch.device(kind), precision, memory_format)
    assert network.weight.is_contiguous(memory_format=memory_format)


def test_the_processors_flags_are_those_that_pytorch_knows():
    if hasattr(torch.cpu, "get_capabilities") and speed.cpu_flags():
        has = torch.cpu.get_capabilities()
        for name in ("avx2", "avx512_bf16", "amx_bf16", "amx_tile"):
            assert (name in speed.cpu_flags()) == bool(has.get(name))


# ------------------------------------------------------------------------------- what is recorded


@pytest.fixture
def rehearsals(monkeypatch) -> list[speed.Rehearsal]:
    """Lets steps be rehearsed on any device; the rehearsals made so far."""
    made = []

    def capture(self: speed.Accelerator, step: Any, networks: Any, optimizers: Any) -> Any:
        made.append(speed.Rehearsal(partial(step, *networks)))
        return made[-1]

    modes = ["default"]
    monkeypatch.setattr(speed.Accelerator, "capture", capture)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    yield made
    assert modes[-1] == "default" and set(modes) <= {"default", "warn"}


class NoWaits(TorchDispatchMode):
    """Refuses what would make the processor wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh")
    WAITING += ("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, func
        found = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            tensors = [t for t in args if isinstance(t, Tensor)]
            assert {t.device for t in tensors} == {found.device}, func
        return found


def no_waits() -> ExitStack:
    """Refuse what would make the processor wait for a GPU, as far as a processor alone shows it."""
    stack = ExitStack()
    for name in ("cpu", "numpy", "tolist", "__repr__"):  # these show no operators on a CPU
        stack.enter_context(mock.patch.object(Tensor, name, side_effect=AssertionError(name)))
    stack.enter_context(NoWaits())
    return stack


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.item(),
        lambda x: x.tolist(),
        lambda x: x.cpu().numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: 1 if x > 0 else 0,
        lambda x: print(x),
        lambda x: torch.tensor(0.5),
        lambda x: x.to("meta"),
    ],
)
def test_what_waits_is_refused(act):
    x = torch.ones(())
    with no_waits():
        assert torch.full((2,), 0.5).add(x).to(torch.float64).shape == (2,)
        with pytest.raises(AssertionError):
            act(x)


@pytest.mark.parametrize("idea", ALL_IDEAS)
def test_no_step_waits_and_each_may_be_recorded(tmp_path, capsys, rehearsals, idea):
    notebook, n_images = prepare_fast(tmp_path, "bfloat16", idea=idea), []
    step = notebook.step

    def without_waits(D: nn.Module, G: nn.Module, images: Tensor, z: Tensor) -> Any:
        n_images.append(len(images))
        with no_waits():
            return step(D, G, images, z)

    notebook.step = without_waits
    train(notebook, 1)
    assert rehearsals[0].is_over and n_images == [8] * 5
    assert "without a CUDA graph" not in capsys.readouterr().out


@pytest.mark.parametrize(("idea", "most"), [("", 240), ("r1", 600)])
def test_a_step_has_few_operators(tmp_path, rehearsals, idea, most):
    train(prepare(tmp_path, idea=idea), 1)
    assert most / 2 < len(rehearsals[0]._before.calls) <= most


def test_a_rehearsal_changes_nothing(tmp_path, rehearsals):
    losses = train(prepare_fast(tmp_path / "rehearsed", "float32", idea="r1+dropout"))
    assert rehearsals[0].is_over
    with mock.patch.object(speed.Rehearsal, "__call__", lambda self, *batch: self._step(*batch)):
        assert train(prepare_fast(tmp_path / "plain", "float32", idea="r1+dropout")) == losses


def change(notebook: types.ModuleType, how: str) -> None:
    """Change a step so that a recording of it would freeze something."""
    loss, count = notebook.generator_loss, itertools.count()

    def changed(D: nn.Module, real_images: Tensor, fake_images: Tensor) -> Tensor:
        g_loss, n = loss(D, real_images, fake_images), next(count)
        if how == "random":
            return g_loss * random.random()
        if how == "item":
            return g_loss + 0.1 * g_loss.item()
        if how == "counter":
            return g_loss / (1 + n)
        if how == "if" and n == 2:
            return g_loss.square()
        if how == "rate":
            notebook.g_optimizer.param_groups[0]["lr"] = 0.0002 / (1 + n)
        return g_loss

    notebook.generator_loss = changed


@pytest.mark.parametrize("how", ["random", "item", "counter", "if", "rate"])
def test_a_step_that_a_recording_would_freeze_is_not_recorded(tmp_path, capsys, rehearsals, how):
    notebook = prepare_fast(tmp_path / "run", "float32")
    change(notebook, how)
    losses = train(notebook, 2)
    (rehearsal,), said = rehearsals, capsys.readouterr().out
    assert not rehearsal.is_over and rehearsal.again() is rehearsal and len(losses) == 10
    assert said.count("does not do the same each time") == said.count("which is slower") == 1
    place = "g_optimizer.step()" if how == "rate" else "return g_loss"
    assert place in said and ("test_devices.py, line " in said) == (how != "rate")


def test_a_number_that_the_processor_draws_is_noted_with_its_value():
    x = torch.ones(3, device="meta")  # takes the GPU's place
    runs = []
    for draw in (torch.rand, torch.rand, torch.ones, torch.ones):
        with speed.Operators(x.device) as operators:
            x * draw(())
        runs.append(operators)
    assert "x * draw(())" in runs[0].first_difference(runs[1])
    assert runs[2].first_difference(runs[3]) is None


def test_a_step_that_waits_is_not_recorded(tmp_path, capsys, rehearsals):
    notebook = prepare_fast(tmp_path / "run", "float32")
    step, count = notebook.step, itertools.count()

    def wait(*arguments: Any) -> Any:
        if next(count) % 2:  # as PyTorch does where there is a GPU
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        return step(*arguments)

    notebook.step = wait
    with pytest.warns(UserWarning) as caught:
        losses = train(notebook, 2)
    assert len(losses) == 10 and not rehearsals[0].is_over
    said = capsys.readouterr().out
    assert said.count("waits for the GPU (") == said.count("which is slower") == 1
    assert 'warnings.warn("called a synchronizing' in said and "test_devices.py, line" in said
    assert any("something else" in str(warning.message) for warning in caught)


@needs_cuda
@pytest.mark.parametrize("how", ["random", "item"])
def test_what_cannot_be_recorded_trains_plainly(tmp_path, capsys, how):
    notebook = prepare_fast(tmp_path, "float32", device=torch.device("cuda", 0))
    change(notebook, how)
    assert len(train(notebook, 2)) == 10
    assert capsys.readouterr().out.count("which is slower") == 1
