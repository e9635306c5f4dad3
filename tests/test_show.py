"""Animations, and networks drawn from their own run."""

import base64
import copy
import importlib.util
import io
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import blobs
from PIL import Image
from torch import nn

from faces import show


class Small(nn.Module):
    """Latents (N, 5) -> images (N, 3, 16, 16), through a block with batch norm, to a logit."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 6 * 4 * 4)
        norm = nn.BatchNorm2d(4)
        self.deconv1 = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1), norm, nn.ReLU())
        self.deconv2 = nn.ConvTranspose2d(4, 3, 6, 2, 2)
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
        self.score = nn.Linear(8 * 16 * 16, 1)

    def forward(self, z):
        x = self.deconv2(self.deconv1(self.fc(z).unflatten(1, (6, 4, 4))))
        return self.score(self.conv1(x).flatten(1))


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def texts() -> list[str]:
    """The texts of the current figure, from left to right; fails if two of them overlap."""
    figure = plt.gcf()
    renderer = figure.canvas.get_renderer()
    shown = [t for t in figure.axes[0].texts if t.get_text()]
    places = [t.get_window_extent(renderer) for t in shown]
    assert not any(a.overlaps(b) for a, b in combinations(places, 2))
    whole = figure.bbox
    assert all(p.x0 > 0 and p.x1 < whole.x1 and p.y0 > 0 and p.y1 < whole.y1 for p in places)
    return [t.get_text() for t in sorted(shown, key=lambda t: t.get_position()[0])]


def test_a_drawn_network_names_every_layer_and_size(tmp_path):
    show.draw_network(Small(), torch.rand(2, 5), tmp_path / "network.png")
    expected = ["5", "fc", "linear", "96\n= 6 x 4 x 4", "deconv1"]
    expected += ["4x4, stride 2\nbatch norm\nReLU", "4 x 8 x 8", "deconv2", "6x6, stride 2"]
    expected += ["3 x 16 x 16", "conv1", "3x3, stride 1", "8 x 16 x 16\n= 2048", "score", "linear"]
    expected += ["1"]
    assert texts() == expected
    with Image.open(tmp_path / "network.png") as image:
        assert image.convert("L").getextrema()[1] == 255 and image.width >= 1000


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("channels", [16, 64, 128])
def test_the_texts_of_a_large_network_do_not_overlap(channels, side):
    widths = [3, *(channels * 2**i for i in range(4))]
    convs = [nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(widths, widths[1:], strict=False)]
    logit = nn.Linear(widths[-1] * (side // 16) ** 2, 1)
    network = nn.Sequential(*convs, nn.Flatten(), logit).requires_grad_(False)
    show.draw_network(network, torch.rand(1, 3, side, side))
    sizes = [f"{width} x {side >> i} x {side >> i}" for i, width in enumerate(widths)]
    sizes[-1] += f"\n= {logit.in_features}"  # before and after the flattening
    assert [text for text in texts() if " x " in text] == sizes


@pytest.mark.parametrize("describe", [show.draw_network, show.layer_table])
def test_describing_a_network_leaves_it_alone(describe):
    network = Small().train()
    network.deconv1.eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    describe(network, torch.rand(4, 5))
    with pytest.raises(RuntimeError):
        describe(network, torch.rand(4, 6))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


# ------------------------------------------------------------------------------------- animations


def test_an_animation_is_saved_and_shown_with_every_frame(tmp_path, monkeypatch):
    frames = blobs(28, 70, 274, seed=0)
    shown = []
    monkeypatch.setattr(show, "get_ipython", object)
    monkeypatch.setattr(show, "display", shown.append)
    show.show_animation(frames, tmp_path / "progress.gif", milliseconds=200)
    (output,) = shown
    content, metadata = output._repr_mimebundle_()
    assert metadata["image/png"] == {"width": 548}
    png = base64.b64decode(content["image/png"])
    assert len(png) < 1.2e6
    for file, size in ((tmp_path / "progress.gif", (548, 140)), (io.BytesIO(png), (274, 70))):
        with Image.open(file) as animation:
            assert (animation.n_frames, animation.size) == (28, size)
            assert animation.info["loop"] == 0  # endless
            for i in range(28):
                animation.seek(i)
                assert animation.info["duration"] == (1200 if i == 27 else 200)
                seen = np.asarray(animation.convert("RGB").resize((274, 70)), dtype=float)
                differences = [np.abs(seen - frame).mean() for frame in frames]
                assert np.argmin(differences) == i and differences[i] < 12  # of 255


def test_frames_of_several_images_are_laid_out_in_rows(tmp_path):
    frames = np.stack([blobs(16, 8, 8, seed) for seed in range(3)])
    show.show_animation(frames, tmp_path / "progress.gif")
    with Image.open(tmp_path / "progress.gif") as animation:
        assert (animation.n_frames, animation.size) == (3, (2 * (8 * 10 + 2), 2 * (2 * 10 + 2)))


def test_of_many_frames_sixty_are_saved_and_shown(tmp_path, monkeypatch):
    greys = np.linspace(0, 255, 300).round().astype(np.uint8)
    frames = np.tile(greys.reshape(300, 1, 1, 1, 1), (1, 16, 32, 32, 3))
    shown = []
    monkeypatch.setattr(show, "get_ipython", object)
    monkeypatch.setattr(show, "display", shown.append)
    show.show_animation(frames, tmp_path / "many.gif")
    png = base64.b64decode(shown[0]._repr_mimebundle_()[0]["image/png"])
    for file in (tmp_path / "many.gif", io.BytesIO(png)):
        with Image.open(file) as animation:
            assert animation.n_frames == 60
            seen = []
            for i in range(60):
                animation.seek(i)
                seen.append(np.median(np.asarray(animation.convert("L"))))
            assert seen[0] < 3 and seen[-1] > 252
            assert np.abs(np.diff(seen) - 255 / 59).max() < 4  # at equal distances


def test_points_can_be_watched_moving(tmp_path):
    real, fakes = np.zeros((4, 2)), np.stack([np.full((5, 2), at) for at in (0.5, -4.0)])
    show.animate_points(real, fakes, ["step 0", "step 1"], tmp_path / "points.gif")
    with Image.open(tmp_path / "points.gif") as animation:
        assert (animation.n_frames, animation.size) == (2, (320, 320))
    _, axes = plt.subplots()
    for points, side in zip(fakes, (1.6, 4.4), strict=True):  # what runs away stays in sight
        show.draw_points(axes, real, points, "step")
        assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-side, side))
    assert [len(shown.get_offsets()) for shown in axes.collections] == [4, 5, 4, 5]


def test_columns_have_labels():
    show.show_images(blobs(6, 8, 8, seed=0), 3, column_labels=["A", "", "B"])
    assert [label.get_text() for label in plt.gca().get_xticklabels()] == ["A", "", "B"]


def test_a_script_only_writes_the_animation(tmp_path, capsys):
    show.show_animation(blobs(3, 20, 30, seed=0), tmp_path / "progress.gif")
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["progress.gif"]


def test_a_saved_notebook_keeps_its_animations():
    path = Path(__file__).parents[1] / ".ci" / "save_notebook.py"
    spec = importlib.util.spec_from_file_location("save_notebook", path)
    save_notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(save_notebook)
    first, *others = (Image.fromarray(frame) for frame in blobs(3, 20, 30, seed=0))
    for frames in ([], others):
        buffer = io.BytesIO()
        first.convert("RGBA").save(buffer, "PNG", save_all=True, append_images=frames)
        png = base64.b64encode(buffer.getvalue()).decode()
        smaller = save_notebook.smaller(png)
        assert (smaller == png) == bool(frames) and len(smaller) <= len(png)
