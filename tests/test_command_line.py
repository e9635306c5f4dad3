"""The command line: what it writes, lists and refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import helpers
from faces.__main__ import main
from faces.files import HERE, RECORD
from faces.properties import ita_shares


def test_drawing_works_from_another_folder(tmp_path):
    command = [sys.executable, HERE / "faces", "draw", "--n", "9", "--out", "faces.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "9 faces: faces.png\n", "")
    assert Image.open(tmp_path / "faces.png").size == (104, 104)  # 3 x 3, 2 pixels between them
    assert [path.name for path in tmp_path.iterdir()] == ["faces.png"]


@pytest.mark.parametrize("name", ["faces.png", "faces.npy", "faces", "faces.gif"])
def test_nothing_is_overwritten(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"mine")
    command = "walk --seeds 1 2" if name == "faces.gif" else "draw"
    assert main([*command.split(), "--out", str(tmp_path / name)]) == 1
    message = f"{tmp_path / name} already exists. Delete it, or choose another name.\n"
    assert capsys.readouterr().err == f"python -m faces: {message}"
    assert (tmp_path / name).read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_faces_are_written_as_an_array_or_a_folder(tmp_path, capsys):
    faces = helpers.generate_faces(2, seed=7)
    for name in ("faces.npy", "faces"):
        assert main(["draw", "--n", "2", "--seed", "7", "--out", str(tmp_path / name)]) == 0
    assert (np.load(tmp_path / "faces.npy") == faces).all()
    paths = sorted((tmp_path / "faces").iterdir())
    assert [path.name for path in paths] == ["000001.png", "000002.png"]
    assert (np.stack([np.asarray(Image.open(path)) for path in paths]) == faces).all()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("size", [32, 64])
def test_faces_have_the_size_that_is_asked_for(tmp_path, size):
    out = tmp_path / "faces.npy"
    assert main(["draw", "--n", "2", "--size", str(size), "--out", str(out)]) == 0
    assert (np.load(out) == helpers.generate_faces(2, seed=1, size=size)).all()


def test_faces_are_drawn_in_equal_shares(tmp_path, capsys):
    arguments = ["draw", "--n", "12", "--seed", "1", "--balanced", "--out"]
    assert main([*arguments, str(tmp_path / "faces.npy")]) == 0
    faces = np.load(tmp_path / "faces.npy")
    shares = ita_shares(faces)
    assert list(shares.values()) == pytest.approx([1 / 6] * 6)
    assert (faces == helpers.generate_faces(12, seed=1, balanced=True)).all()


def test_a_walk_goes_from_face_to_face(tmp_path):
    out = tmp_path / "walk.gif"
    assert main(["walk", "--seeds", "1", "2", "--out", str(out)]) == 0
    with Image.open(out) as walk:
        ends = []
        for number in (0, walk.n_frames - 1):
            walk.seek(number)
            ends.append(np.asarray(walk.convert("RGB").resize((32, 32)), float))
    faces = [helpers.generate_faces(1, seed=seed)[0] for seed in (1, 2)]
    distances = [[np.abs(end - face).mean() for face in faces] for end in ends]
    assert max(distances[0][0], distances[1][1]) < min(distances[0][1], distances[1][0]) / 3


def test_what_is_kept_is_listed_and_deleted(image_dir, cache, tmp_path, monkeypatch, capsys):
    beside = tmp_path / ".processed_celeba_small-arrays"
    helpers.load_images(helpers.find_images(image_dir), lambda x: x, data_dir=image_dir)
    (cache / "offline-1").mkdir(parents=True)
    (cache / "offline-1" / "1.png").write_bytes(bytes(2_000_000))
    (cache / "offline-1" / RECORD).write_bytes(b"1")
    (cache / "celeba.zip").write_bytes(bytes(1_000_000))
    monkeypatch.setattr("faces.__main__.DOWNLOADS", {"celeba.zip"})
    assert main(["cache", str(image_dir)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:2] == [
        f"       1.0 MB  {cache / 'celeba.zip'}",
        f"       2.0 MB  {cache / 'offline-1'}",
    ]
    assert listed[2].endswith(f"0.5 MB  {beside}") and listed[3].endswith("3.5 MB  in all")
    assert main(["cache", "--delete"]) == 0 and not list(cache.iterdir()) and beside.is_dir()
    assert capsys.readouterr().out.splitlines()[2].endswith("3.0 MB  deleted")
    assert main(["cache", "--delete", str(image_dir)]) == 0
    assert not beside.exists() and len(helpers.find_images(image_dir)) == 40
    assert main(["cache", str(tmp_path / "none")]) == 0


def test_what_is_not_of_this_project_is_not_deleted_but_named(image_dir, cache, tmp_path, capsys):
    beside = tmp_path / ".processed_celeba_small-arrays"
    helpers.load_images(helpers.find_images(image_dir), lambda x: x, data_dir=image_dir)
    (tmp_path / "mine" / "offline-1").mkdir(parents=True)
    mine = [tmp_path / "mine" / "1.npy", tmp_path / "mine" / "offline-1" / RECORD]
    mine += [beside / "mine.npy", tmp_path / "link.npy"]
    for path in mine:
        path.write_bytes(b"1")
    (beside / f"{'0' * 12}-{'0' * 12}.npy").symlink_to(mine[-1])
    cache.symlink_to(tmp_path / "mine")
    assert main(["cache", "--delete", str(image_dir)]) == 0
    assert all(path.read_bytes() == b"1" for path in mine)
    left = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    expected = [cache / "1.npy", cache / "offline-1", *sorted(beside.iterdir())]
    assert left[-4:] == list(map(str, expected)) and len(list(beside.iterdir())) == 2
    cache.unlink()
    beside.rename(tmp_path / "elsewhere")
    beside.symlink_to(tmp_path / "elsewhere")
    assert main(["cache", "--delete", str(image_dir)]) == 0
    assert beside.is_symlink() and len(list(beside.iterdir())) == 2


def test_hidden_files_and_links_beside_what_is_written_are_left_alone(tmp_path, capsys):
    hidden, link, target = tmp_path / ".a.png", tmp_path / ".b.png", tmp_path / "target"
    hidden.write_bytes(b"mine")
    target.write_bytes(b"mine")
    link.symlink_to(target)
    for name in ("a.png", "b.png"):
        assert main(["draw", "--n", "1", "--out", str(tmp_path / name)]) == 0
    assert hidden.read_bytes() == target.read_bytes() == b"mine" and link.is_symlink()
    mode = (tmp_path / "a.png").stat().st_mode
    assert mode == hidden.stat().st_mode and len(list(tmp_path.iterdir())) == 5
    dangling = tmp_path / "dangling.png"
    dangling.symlink_to(tmp_path / "nowhere.png")
    assert main(["draw", "--n", "1", "--out", str(dangling)]) == 1
    assert dangling.is_symlink() and not (tmp_path / "nowhere.png").exists()


def test_a_reader_that_leaves_does_no_harm(cache, tmp_path):
    command = f"{sys.executable} -u -m faces cache | head -n 1; exit ${{PIPESTATUS[0]}}"
    for number in range(400):
        (cache / f"{number} ± mine").mkdir(parents=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    cache.rename(tmp_path / "dlnd-face-generation")
    done = subprocess.run(
        ["bash", "-c", command], cwd=HERE, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "\\xb1 mine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("draw --out {}/faces.jpg", "faces.jpg must have the ending .png or .npy or none"),
        ("draw --out {}/no/faces.png", "There is no folder {}/no. Make it, or"),
        ("draw --n 0 --out {}/faces.png", "n is 0: it must be a whole number from 1 to 100,000."),
        ("draw --weights {}/w --out {}/faces.png", "There is no file {}/w: train first"),
        ("walk --seeds 1 --out {}/walk.gif", "A walk needs at least two seeds"),
        ("walk --seeds 1 2 --out {}/walk.png", "walk.png must have the ending .gif."),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path, capsys, arguments, message):
    assert main([part.replace("{}", str(tmp_path)) for part in arguments.split()]) == 1
    printed = capsys.readouterr()
    assert message.replace("{}", str(tmp_path)) in printed.err and printed.out == ""
    assert printed.err.startswith("python -m faces: ") and printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("draw", "the following arguments are required: --out"),
        ("draw --n many --out x.png", "argument --n: invalid int value: 'many'"),
        (f"draw --seed {2**63} --out x.png", "is not a whole number from 0 to 2**63 - 1"),
        ("walk --seeds -1 2 --out x.gif", "error: "),
        ("paint", "invalid choice: 'paint'"),
    ],
)
def test_a_wrong_command_line_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_has_an_example_of_each_command(capsys):
    examples = {}
    for command in ("", "draw", "walk", "starter", "cache"):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        examples[command] = text.partition("example")[2].splitlines()[1:]
    *own, grading = examples.pop("")
    assert own == [line for lines in examples.values() for line in lines]
    assert grading == "  python -m faces grade class/"
    assert all(f"  python -m faces {c}" in lines[0] for c, lines in examples.items())
