"""Directions of the latents, faces in equal shares, and the explorer."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from conftest import COLORS, plain_faces
from nbconvert.preprocessors import ExecutePreprocessor
from PIL import Image

from faces import explorer
from faces.files import HERE
from faces.notebook import load_definitions
from faces.properties import PROPERTIES, ita_shares, sample_balanced

Z_SIZE = 12
DIRECTION = np.arange(1, Z_SIZE + 1) / np.linalg.norm(np.arange(1, Z_SIZE + 1))


# ------------------------------------------------------------------------------ directions


@pytest.fixture(scope="module")
def find_direction():
    return load_definitions().find_direction


def test_the_direction_of_a_linear_generator_is_found(find_direction):
    z = np.random.default_rng(0).uniform(-1, 1, (400, Z_SIZE))
    values = 7 + 3 * z @ DIRECTION
    values[::5] = np.nan  # faces without the property
    direction, r2 = find_direction(z, values)
    assert direction == pytest.approx(DIRECTION) and r2 == pytest.approx(1)
    assert find_direction(z, -values)[0] == pytest.approx(-DIRECTION)


def test_noise_has_no_direction(find_direction):
    generator = np.random.default_rng(0)
    z = generator.uniform(-1, 1, (4000, Z_SIZE))
    assert abs(find_direction(z, generator.normal(size=4000))[1]) < 0.03
    mixed = z @ DIRECTION / z.std() + generator.normal(size=4000)  # a signal as large as its noise
    assert find_direction(z, mixed)[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("hair", np.s_[:4, 11:21]),
        ("background", np.s_[:4, :3]),
        ("turn", np.s_[12:26, 4:15]),
    ],
)
def test_measures_of_lightness_see_their_part_of_the_image(name, part):
    faces = np.repeat(plain_faces((100, 100, 100)), 3, axis=0)
    faces[1][part] = 150
    faces[2][12:21] = 150  # eyes and nose
    plain, lighter, elsewhere = PROPERTIES[name](faces)
    assert lighter > plain + 15 and elsewhere == pytest.approx(plain)


def test_turn_warmth_and_skin_have_a_sign():
    faces = plain_faces((150, 120, 100), (100, 120, 150), COLORS["light"], COLORS["dark"])
    assert list(PROPERTIES["warmth"](faces)[:2]) == [50, -50]
    angles = PROPERTIES["skin"](faces)
    assert angles[2] > angles[3]
    assert PROPERTIES["turn"](faces[:, :, ::-1]) == pytest.approx(np.zeros(4))
    faces[0, :, 20:] = 0
    turned = PROPERTIES["turn"](faces[:1])
    assert turned > 20 and PROPERTIES["turn"](faces[:1, :, ::-1]) == pytest.approx(-turned)


# ------------------------------------------------------------------------ equal shares


def drawing(*shares: float):
    """Draw plain faces with these shares of the classes, from dark to very light; the rest grey."""
    faces, generator = plain_faces(*COLORS.values(), (118, 118, 118)), np.random.default_rng(0)
    return lambda n: faces[generator.choice(7, n, p=[*shares, 1 - sum(shares)])]


def test_the_made_up_faces_are_one_of_each_class():
    for name, color in COLORS.items():
        assert ita_shares(plain_faces(color))[name] == 1


def test_a_rare_class_gets_its_equal_share(capsys):
    faces = sample_balanced(drawing(0.05, 0.1, 0.15, 0.2, 0.2, 0.2), 60)
    assert len(faces) == 60
    assert list(ita_shares(faces).values()) == pytest.approx([1 / 6] * 6)
    assert capsys.readouterr().out == ""


def test_a_class_that_is_never_drawn_is_named(capsys):
    drawn = []

    def draw(n: int) -> np.ndarray:
        drawn.append(n)
        return some(n)

    some = drawing(0, 0.2, 0.2, 0.2, 0.2, 0.2)
    shares = ita_shares(sample_balanced(draw, 60))
    assert sum(drawn) == 1200  # 20 times as many
    assert shares.pop("dark") == 0 and list(shares.values()) == pytest.approx([1 / 5] * 5)
    message = "In 1,200 faces drawn there were fewer than 10 of: dark (0).\n"
    assert capsys.readouterr().out == message


def test_what_is_not_needed_of_a_rare_class_is_let_go():
    drawn: list[weakref.ref] = []

    def draw(n: int) -> np.ndarray:
        assert sum(reference() is not None for reference in drawn) <= 1
        faces = some(n)
        drawn.append(weakref.ref(faces))
        return faces

    some = drawing(0.01, 0.01, 0.01, 0.01, 0.01, 0.9)
    faces = sample_balanced(draw, 120)
    assert list(ita_shares(faces).values()) == pytest.approx([1 / 6] * 6, abs=0.02)
    assert len(drawn) > 3


def test_faces_without_an_angle_are_left_out(capsys):
    faces = sample_balanced(drawing(0, 0, 0, 0, 0, 0), 12)
    assert faces.shape == (0, *faces.shape[1:]) and set(ita_shares(faces).values()) == {0}
    assert "In 240 faces drawn there were fewer than 2 of: dark (0)" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- explorer


class Shown:
    """The place of the image, in a front end's stead."""

    def __init__(self) -> None:
        self.images: list[bytes] = []

    def update(self, image: explorer.ShownImage) -> None:
        self.images.append(image.data)


def linear_draw(z: torch.Tensor) -> np.ndarray:
    """Latents (n, Z_SIZE) -> plain images, of which the first three numbers are the colours."""
    colors = ((z[:, :3] + 4) * 30).byte().numpy()
    return np.tile(colors[:, None, None], (1, 32, 32, 1))


@pytest.fixture
def controls(tmp_path: Path) -> explorer.Explorer:
    directions = {"red": np.eye(Z_SIZE)[0], "green": torch.eye(Z_SIZE)[1]}
    made = explorer.Explorer(
        linear_draw, lambda n: torch.rand(n, Z_SIZE), directions, tmp_path / "saved"
    )
    made.shown = Shown()
    return made


def test_the_image_follows_each_control(controls):
    state = torch.get_rng_state()
    start = controls.latent()
    controls.sliders["red"].value = 2
    assert (controls.latent() - start)[0].tolist() == pytest.approx([2, *[0] * (Z_SIZE - 1)])
    red = np.asarray(controls.image())[0, 0].astype(int) - linear_draw(start)[0, 0, 0]
    assert red == pytest.approx([60, 0, 0], abs=1)
    controls.seed.value, controls.end.value, controls.walk.value = 5, 6, 1
    controls.sliders["red"].value = 0
    torch.manual_seed(6)
    assert (controls.latent() == torch.rand(1, Z_SIZE)).all()
    torch.set_rng_state(state)
    controls.size.value = 64
    assert controls.image().size == (64, 64)
    assert len(controls.shown.images) == 6 and len(set(controls.shown.images)) >= 4


def test_the_button_saves_and_never_overwrites(controls):
    (controls.folder).mkdir()
    (controls.folder / "face_2.npy").write_bytes(b"mine")
    for number in (1, 3):
        controls.sliders["green"].value = number
        controls.button.click()
        path = controls.folder / f"face_{number}.png"
        assert (
            np.asarray(Image.open(path)).shape == (32, 32, 3) and str(path) in controls.said.value
        )
        z = torch.from_numpy(np.load(path.with_suffix(".npy")))
        assert (z == controls.latent()).all()
        assert (linear_draw(z)[0] == np.asarray(Image.open(path))).all()
    assert (controls.folder / "face_2.npy").read_bytes() == b"mine"
    assert len(list(controls.folder.iterdir())) == 5


def test_a_face_that_cannot_be_saved_is_said(controls):
    controls.button.click()
    (controls.folder / "face_1.png").unlink()
    (controls.folder / "face_1.npy").unlink()
    controls.folder.rmdir()
    controls.folder.write_bytes(b"mine")
    controls.button.click()
    assert controls.said.value.startswith("not saved: ")
    assert str(controls.folder) in controls.said.value


def test_in_a_front_end_the_controls_are_shown(monkeypatch, tmp_path):
    outputs, shown = [], Shown()
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr(explorer, "get_ipython", lambda: shell)
    monkeypatch.setattr(explorer, "display", lambda x, **options: outputs.append(x) or shown)
    directions = {"red": np.eye(Z_SIZE)[0]}
    explorer.explore(linear_draw, lambda n: torch.rand(n, Z_SIZE), directions, tmp_path)
    image, controls = outputs
    (slider,) = (c for c in controls.children if getattr(c, "description", "") == "red")
    slider.value = 3
    assert isinstance(image, explorer.ShownImage)
    assert len(shown.images) == 1 and shown.images[0] != image.data


def test_without_a_front_end_an_image_is_left(tmp_path):
    define = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import numpy as np, torch
from faces.explorer import explore
def draw(z): return np.full((len(z), 32, 32, 3), 99, np.uint8)
"""
    call = "explore(draw, lambda n: torch.rand(n, 4), {'a': np.ones(4)}, 'saved')"
    v4 = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(define), v4.new_code_cell(call)])
    ExecutePreprocessor(timeout=120).preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    (output,) = notebook.cells[1].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert "widgets" not in notebook.metadata and not list(tmp_path.iterdir())


def test_a_plain_script_shows_nothing(capsys):
    explorer.explore(linear_draw, lambda n: torch.rand(n, Z_SIZE), {}, "saved")
    assert capsys.readouterr().out == ""
