"""GPUs and other accelerators; what needs one is skipped without it."""

import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_training import in_float64, prepare, prepare_fast, train
from torch import nn

from faces import speed
from faces.notebook import IDEAS
from faces.parallel import join_processes

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
@pytest.mark.parametrize("idea", ["", *sorted(path.stem for path in IDEAS.glob("*.py"))])
def test_a_replayed_step_computes_the_same(tmp_path, monkeypatch, idea):
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda g: (replays.append(g), replay(g)))
    notebook, losses = train_on_cuda(tmp_path / "replayed", idea)
    assert len(replays) == 4 * 5 - 3 and len(set(replays)) == 1
    monkeypatch.setattr(speed, "_is_watched", lambda: True)
    _, plain_losses = train_on_cuda(tmp_path / "plain", idea)
    assert len(replays) == 4 * 5 - 3
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


def test_processes_on_a_mac_share_the_processor(monkeypatch):
    accelerator = mock.MagicMock(**{"device_count.return_value": 1})
    accelerator.current_accelerator.return_value = torch.device("mps")
    monkeypatch.setattr(torch, "accelerator", accelerator)
    monkeypatch.setattr(dist, "init_process_group", mock.MagicMock())
    assert join_processes()[0] == torch.device("mps", 0)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert join_processes()[0] == torch.device("cpu")


def test_each_process_is_bound_to_a_device_of_its_own(monkeypatch):
    accelerator = mock.MagicMock(**{"device_count.return_value": 2})
    accelerator.current_accelerator.return_value = torch.device("cuda")
    monkeypatch.setattr(torch, "accelerator", accelerator)
    begin = mock.MagicMock()
    monkeypatch.setattr(dist, "init_process_group", begin)
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    device = torch.device("cuda", 1)
    assert join_processes()[0] == device
    assert begin.call_args.args == ("nccl",) and begin.call_args.kwargs["device_id"] == device
    accelerator.set_device_index.assert_called_once_with(1)


@pytest.mark.parametrize(("kind", "is_last"), [("mps", False), ("xpu", True), ("cpu", True)])
def test_channels_are_not_last_on_an_apple_gpu(kind, is_last):
    network = nn.Conv2d(3, 4, 4)
    speed.make_fast(network, torch.device(kind), "float32")
    assert network.weight.is_contiguous(memory_format=torch.channels_last) == is_last
