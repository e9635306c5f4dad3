"""What is seen of a training while it runs: the picture in Jupyter, and one line an epoch."""

import base64
import copy
import io
import math
import os
import re
import signal
import types
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbclient
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import blobs
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from small_training import act_at, in_float64, prepare, train
from torch import nn

from faces import show, training
from faces.files import HERE
from faces.show import TrainingPicture, TrainingState

LINE = re.compile(
    r"Epoch \[ {4}(\d)/ {4}(\d)\] \| d_loss: (\d\.\d{4}) \| g_loss: (\d\.\d{4})"
    r" \| D\(x\): (0\.\d\d) \| D\(G\(z\)\): (0\.\d\d)"
)


def state_of(n_epochs: int, n_steps: int, side: int = 32, **changes: Any) -> TrainingState:
    losses = [(1 + 0.1 * (-1) ** i, 2.0) for i in range(n_steps)]
    distances = [60.0, 20.0, 15.0][:n_epochs]
    state = TrainingState(n_epochs, 28, blobs(16, side, side, 0), losses, 1.39, distances, (10, 16))
    return state._replace(**changes)


# ------------------------------------------------------------------------------- how it is drawn


@pytest.mark.parametrize(("side", "shown"), [(32, 96), (64, 64), (112, 112)])
def test_faces_are_enlarged_each_alone_and_nothing_is_left_open(side, shown):
    state = state_of(3, 1500, side)
    with Image.open(io.BytesIO(show.draw_training(state))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    faces = [Image.fromarray(x).resize((shown, shown), Image.BICUBIC) for x in state.samples]
    left = (pixels.shape[1] - 8 * (shown + 2) - 2) // 2
    for i, face in enumerate(faces):
        top = 30 + 2 + i // 8 * (shown + 2)
        start = left + 2 + i % 8 * (shown + 2)
        found = pixels[top - 1 : top + shown + 1, start - 1 : start + shown + 1]
        assert (found[1:-1, 1:-1] == np.asarray(face)).all()
        assert (found[[0, -1]] == 255).all() and (found[:, [0, -1]] == 255).all()  # the frame
    assert plt.get_fignums() == []


def drawn_axes(state: TrainingState, monkeypatch: pytest.MonkeyPatch) -> list[plt.Axes]:
    figures, make = [], show.Figure
    monkeypatch.setattr(
        show, "Figure", lambda **options: figures.append(make(**options)) or figures[0]
    )
    show.draw_training(state)
    return figures[0].axes


def test_losses_are_smoothed_and_the_distance_has_its_band(monkeypatch):
    left, right = drawn_axes(state_of(3, 1500), monkeypatch)
    lines = {line.get_label(): line for line in left.lines}
    assert lines.keys() == {"discriminator", "generator", "if D only guesses"}
    assert np.allclose(lines["discriminator"].get_ydata(), 1)  # the swings are gone
    assert np.allclose(lines["generator"].get_ydata(), 2)
    assert lines["if D only guesses"].get_ydata()[0] == 1.39
    colors = [lines[name].get_color() for name in ("discriminator", "generator")]
    assert colors == ["tab:blue", "tab:orange"]
    assert right.lines[0].get_xydata().tolist() == [[1, 60], [2, 20], [3, 15]]
    (band,) = right.patches
    assert band.get_y() == 10 and band.get_height() == 6 and "lower is better" in right.get_ylabel()
    assert 20 < right.get_ylim()[1] < 30 and left.get_ylim()[0] == 0


@pytest.mark.parametrize("n_steps", [1, 5, 50, 101])
def test_a_picture_can_be_drawn_before_the_first_epoch_has_ended(monkeypatch, n_steps):
    state = state_of(0, n_steps, epoch=1, baseline=None, loss_at_chance=math.nan)
    left, right = drawn_axes(state, monkeypatch)
    assert [line.get_label() for line in left.lines] == ["discriminator", "generator"]
    assert [t.get_text() for t in right.texts] == ["measured after each epoch"]
    assert f"Epoch 1 of 28, after {n_steps} steps" in show.describe_training(state)


def test_a_text_says_what_the_picture_shows():
    assert show.describe_training(state_of(3, 1500)) == (
        "Epoch 3 of 28, after 1,500 steps: 16 generated faces, the discriminator's loss (1.00 of "
        "late), the generator's loss (2.00), and the distance from photographs after each epoch "
        "(15.0, training images 10.0 to 16.0; lower is better)."
    )


# ----------------------------------------------------------------------------- when it is drawn


class Shown:
    """Stands in for what Jupyter shows: outputs by their places, in the order of their coming."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[list[dict[str, str]]] = []
        kernel = types.SimpleNamespace(kernel=None)
        monkeypatch.setattr(show, "get_ipython", lambda: kernel)
        monkeypatch.setattr(show, "display", self.display)

    def display(self, output: dict[str, str], display_id: bool, **options: Any) -> Any:
        assert display_id and options["raw"]
        assert options["metadata"]["image/png"]["alt"] == output["text/plain"]
        self.places.append([output])
        place = self.places[-1]
        return types.SimpleNamespace(update=lambda output, **options: place.append(output))

    @property
    def texts(self) -> list[str]:
        """What the states of the only picture were."""
        (place,) = self.places
        for output in place:
            assert base64.b64decode(output["image/png"])[:4] == b"\x89PNG"
        return [output["text/plain"].split(":")[0] for output in place]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Jupyter, and a computer that draws as often as it may."""
    monkeypatch.setattr(TrainingPicture, "PAUSE", 0.0)
    return Shown(monkeypatch)


def test_a_picture_is_not_drawn_more_often_than_it_is_worth(monkeypatch):
    shown, clock = Shown(monkeypatch), [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    picture, n_asked = TrainingPicture(), []
    observe = lambda: n_asked.append(1) or state_of(len(n_asked), 100)  # noqa: E731
    for after, at_once in [(0, False), (1.9, False), (1.9, True), (3, False), (4, False)]:
        clock[0] = 100 + after
        picture.show(observe, at_once)
    assert shown.texts == [f"Epoch {i} of 28, after 100 steps" for i in (1, 2, 3)]


def test_outside_of_jupyter_nothing_is_shown(monkeypatch):
    assert not TrainingPicture().is_shown
    picture = TrainingPicture()
    picture.show(lambda: 1 / 0, at_once=True)
    shown = Shown(monkeypatch)
    monkeypatch.setattr(show, "get_ipython", lambda: object())  # IPython in a terminal
    assert not TrainingPicture().is_shown
    Shown(monkeypatch)
    assert TrainingPicture().is_shown
    monkeypatch.setattr(show, "is_main_process", lambda: False)
    assert not TrainingPicture().is_shown and shown.places == []


def test_the_picture_follows_a_training_and_a_resumed_one(tmp_path, shown, capsys):
    options = dict(n_images=8 * 210)
    train(prepare(tmp_path, **options), 1)
    assert shown.texts == [f"Epoch 1 of 1, after {n} steps" for n in (50, 100, 200, 210)]
    shown.places.clear()
    notebook = prepare(tmp_path, **options)
    act_at(notebook, 104, lambda: signal.raise_signal(signal.SIGINT))
    train(notebook, 2)
    ended = "Epoch 1 of 2, after 210 steps"  # that of the epoch before is there from the start
    assert shown.texts == [ended, "Epoch 2 of 2, after 315 steps"]
    assert plt.get_fignums() == []


def test_where_epochs_are_short_the_last_state_is_drawn_all_the_same(tmp_path, monkeypatch):
    shown = Shown(monkeypatch)
    monkeypatch.setattr(TrainingPicture, "PAUSE", 1e9)
    train(prepare(tmp_path), 4)
    assert shown.texts == ["Epoch 1 of 4, after 5 steps", "Epoch 4 of 4, after 20 steps"]


def test_a_picture_that_fails_stops_no_training(tmp_path, shown, monkeypatch, capsys):
    whole = train(prepare(tmp_path / "whole"), 3)
    shown.places.clear()
    capsys.readouterr()
    draws, draw = [], show.draw_training

    def fail_once(state: TrainingState) -> bytes:
        draws.append(state)
        return draw(state) if len(draws) != 2 else 1 / 0

    monkeypatch.setattr(show, "draw_training", fail_once)
    assert train(prepare(tmp_path / "run"), 3) == whole
    said = (
        "Warning, the training continues without its picture (ZeroDivisionError: division by zero)"
    )
    assert capsys.readouterr().out.count(said) == 1
    assert len(draws) == 2 and len(shown.texts) == 1


# ----------------------------------------------------------------------- and nothing else changes


ALIKE = ["", "conditional", "spectral_norm+dropout+deeper"]
ALIKE += ["minibatch_standard_deviation+differentiable_augmentation+normal_latents+flips+balanced"]


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint by their places there."""
    found = {}

    def walk(place: str, item: Any) -> None:
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, value in pairs:
            if isinstance(value, (dict, list, tuple)):
                walk(f"{place}.{key}", value)
            elif isinstance(value, torch.Tensor):
                found[f"{place}.{key}"] = value

    walk("", torch.load(folder / "checkpoint.pt", weights_only=True))
    return found


@pytest.mark.parametrize("idea", ALIKE)
def test_a_training_that_is_watched_computes_the_same_bit_for_bit(tmp_path, monkeypatch, idea):
    options = dict(idea=idea, n_images=8 * 55)
    with monkeypatch.context() as unseen:
        unseen.setattr(training.Run, "_mean_probabilities", lambda run: [0.0, 0.0])
        losses = train(prepare(tmp_path / "unseen", **options), 2)
    shown = Shown(monkeypatch)
    monkeypatch.setattr(TrainingPicture, "PAUSE", 0.0)
    notebook = prepare(tmp_path / "seen", **options)
    assert train(notebook, 2) == losses
    assert len(shown.texts) == 3  # after 50 steps, and after each epoch
    before, after = (everything(tmp_path / name) for name in ("unseen", "seen"))
    assert before.keys() == after.keys() and len(after) > 60 and ".random.cpu" in after
    assert [name for name in after if not torch.equal(before[name], after[name])] == []
    assert notebook.D.training and notebook.G.training


# ------------------------------------------------------------------------------ a line an epoch


def lines_of(printed: str) -> list[list[float]]:
    """Epoch, number of epochs, losses and probabilities of each line that begins as they do."""
    lines = [line for line in printed.splitlines() if line.startswith("Epoch")]
    assert all(map(LINE.fullmatch, lines)), lines
    return [[float(value) for value in LINE.fullmatch(line).groups()] for line in lines]


def test_a_line_an_epoch_says_who_is_winning(tmp_path, capsys):
    notebook = in_float64(prepare(tmp_path))
    batches, step = [], notebook.step
    notebook.step = lambda D, G, images, z: batches.append((images, z)) or step(D, G, images, z)
    losses = np.array(train(notebook, 3)).reshape(3, 5, 2)
    lines = lines_of(capsys.readouterr().out)
    assert [line[:2] for line in lines] == [[1, 3], [2, 3], [3, 3]]
    assert np.allclose([line[2:4] for line in lines], losses.mean(axis=1), atol=5.1e-5)
    images, z = batches[-1]
    D, G = (copy.deepcopy(network).train() for network in (notebook.D, notebook.G))
    expected = [D(notebook.scale(images)), D(G(z.double()))]
    expected = [logits.sigmoid().mean().item() for logits in expected]
    assert np.allclose(lines[-1][4:], expected, atol=0.0051)
    assert expected[0] > expected[1]


@pytest.mark.parametrize("batch", [0, 7, 9])
def test_no_line_is_printed_twice_by_a_run_that_was_stopped(tmp_path, capsys, batch):
    train(prepare(tmp_path / "whole"))
    whole = lines_of(capsys.readouterr().out)
    notebook = prepare(tmp_path / "run")
    act_at(notebook, batch, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(notebook)
    train(prepare(tmp_path / "run"))
    assert lines_of(capsys.readouterr().out) == whole and len(whole) == 4


def test_a_training_without_traces_leaves_modes_statistics_and_random_states():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    network[1].train()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    x, random = torch.rand(5, 3), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), training._without_traces(network) as (compute,):
        assert network[2].training and not torch.equal(compute(x), compute(x))
        assert not torch.is_grad_enabled() and 1 / 0
    assert [m.training for m in network.modules()] == modes and torch.is_grad_enabled()
    assert all(torch.equal(a, before[name]) for name, a in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_probabilities_are_the_means_over_all_processes(tmp_path, monkeypatch):
    notebook = prepare(tmp_path)
    run = types.SimpleNamespace(_parts={"D": notebook.D, "G": notebook.G})
    run._batch = torch.rand(8, 3, 32, 32), torch.rand(8, 10)
    alone = training.Run._mean_probabilities(run)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda x: x.add_(0.25))  # of the other one
    assert training.Run._mean_probabilities(run) == pytest.approx([p / 2 + 0.25 for p in alone])
    run._batch = None
    assert all(map(math.isnan, training.Run._mean_probabilities(run)))


# ------------------------------------------------------------------------------------ in a kernel


CELL = """
import sys
sys.path[:0] = {paths}
import matplotlib.pyplot as plt
from pathlib import Path
from small_training import prepare, train
losses = train(prepare(Path({folder!r}), n_images=440), 2)
assert plt.get_fignums() == []
"""


def test_a_notebook_keeps_one_picture_in_its_last_state(tmp_path):
    paths = [str(HERE), str(Path(__file__).parent)]
    source = CELL.format(paths=paths, folder=str(tmp_path / "run"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = new_notebook(cells=[new_code_cell(source)], metadata=kernel)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    (cell,) = notebook.cells
    pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    (picture,) = pictures
    text = picture.data["text/plain"]
    assert text.startswith("Epoch 2 of 2, after 110 steps: 16 generated faces, ")
    assert picture.metadata["image/png"]["alt"] == text
    with Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))) as image:
        assert image.width == 800
    printed = "".join(o.get("text", "") for o in cell.outputs)
    assert [line[0] for line in lines_of(printed)] == [1, 2]
    places = [o.data["text/plain"].split(",")[0] for o in cell.outputs if "data" in o]
    assert places == ["epoch 2 of 2", "Epoch 2 of 2"]  # the live line, then the picture
