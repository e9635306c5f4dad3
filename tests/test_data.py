"""From a folder, a zip, the network or nothing at all to a folder of images."""

import errno
import re
import shutil
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import RESIZE, assert_nothing_left, blobs, load, make_zip
from PIL import Image

from faces import data, files
from faces.data import get_data
from faces.files import RECORD, build_once
from faces.generator import generate_faces
from faces.images import find_images, load_images

# ---------------------------------------------------------------------------------------- folders


def test_images_are_found_at_any_depth_without_litter(image_dir):
    paths = find_images(image_dir)
    assert sorted(p.name for p in paths) == [f"{i:06d}.jpg" for i in range(1, 41)]


def test_a_folder_or_a_zip_of_gifs_alone_works(tmp_path, cache):
    folder, frames = tmp_path / "faces", blobs(4, 32, 32, seed=2)
    folder.mkdir()
    stills = [Image.fromarray(frame) for frame in frames]
    stills[0].save(folder / "moving.gif", save_all=True, append_images=stills[1:])
    stills[0].save(folder / "STILL.GIF")
    for place in (folder, make_zip(folder, tmp_path / "faces.zip")):
        images = load(get_data(place))
        assert images.shape == (2, 32, 32, 3) and (images[0] == images[1]).all()
        assert np.abs(images[0] - frames[0].astype(float)).mean() < 10  # 256 colours


def test_images_of_other_kinds_are_counted_and_named(image_dir, tmp_path, cache, capsys):
    for path in find_images(image_dir)[:20]:
        path.rename(path.with_suffix(".jfif"))
    for name in ("1.HEIC", "2.heic", "3.svg", "notes.txt", ".4.heic"):
        (image_dir / name).write_text("no image for us")
    for place in (image_dir, make_zip(image_dir, tmp_path / "faces.zip")):
        folder = get_data(place)
        assert len(find_images(folder)) == 40
        assert (
            f"3 images are left out (2 .heic, 1 .svg), such as {folder}" in capsys.readouterr().out
        )
        assert len(find_images(folder, split="train")) < 40 and not capsys.readouterr().out
    for path in find_images(image_dir):
        path.unlink()
    for place in (image_dir, make_zip(image_dir, tmp_path / "others.zip")):
        with pytest.raises(
            FileNotFoundError, match="no image in it.* 3 images are left out .2 .hei"
        ):
            find_images(get_data(place))


def test_an_image_in_1100_folders_inside_one_another_is_found(tmp_path):
    folders = [tmp_path]
    for _ in range(1100):
        folders.append(folders[-1] / "a")
        folders[-1].mkdir()
    try:
        Image.new("RGB", (40, 40)).save(folders[-1] / "1.png")
        assert find_images(tmp_path) == [folders[-1] / "1.png"]
    finally:  # which pytest cannot do
        (folders[-1] / "1.png").unlink()
        for folder in reversed(folders[1:]):
            folder.rmdir()


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_images_is_named(tmp_path, make):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
        (folder / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="empty.*Set data_dir"):
        find_images(folder)


def test_a_subset_is_random_and_repeatable(image_dir):
    def draw(n: int, seed: int) -> np.ndarray:
        return load_images(find_images(image_dir, n, seed), RESIZE)

    images, subset = load(image_dir), draw(10, 1)
    assert len(np.unique(subset, axis=0)) == 10
    assert all((images == image).all(axis=(1, 2, 3)).any() for image in subset)
    assert (subset == draw(10, 1)).all() and (subset != draw(10, 2)).any()
    assert (images == draw(1000, 1)).all()


@pytest.mark.parametrize("place", ["", "faces/..", "/"])
def test_a_folder_that_holds_the_project_is_no_data(monkeypatch, place):
    monkeypatch.chdir(files.HERE)
    with pytest.raises(ValueError, match=f"data_dir is '{place}'. Set it to a folder of images"):
        get_data(place)


@pytest.mark.parametrize("place", [None, 20261129, ["faces"], b"faces", "~no one/x", "faces\0"])
def test_what_cannot_be_a_path_is_named(place):
    for take in (get_data, find_images):
        with pytest.raises(ValueError, match=f"data_dir is {re.escape(repr(place))}. Set it to"):
            take(place)


@pytest.mark.parametrize("name", ["faces.tar.gz", "faces.7z", "face.jpg", "faces"])
def test_a_file_that_is_no_zip_is_not_called_damaged(image_dir, tmp_path, cache, name):
    if name == "faces.tar.gz":
        shutil.make_archive(str(tmp_path / "faces"), "gztar", image_dir)
    else:
        shutil.copy(find_images(image_dir)[0], tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is neither a folder nor a zip. Set data_dir to"):
        get_data(tmp_path / name)
    assert_nothing_left(cache)


# ------------------------------------------------------------------------------------------- zips


def test_a_zip_is_unpacked_once_and_again_when_images_are_gone(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    folder = get_data(archive)
    assert folder.parent == cache and len(find_images(folder)) == 40
    assert [p.name for p in folder.rglob(".*")] == [RECORD]  # and no litter
    before = folder.stat().st_mtime_ns
    assert get_data(archive) == folder and folder.stat().st_mtime_ns == before
    for path in find_images(folder)[1:]:
        path.unlink()
    record = folder / RECORD
    whole = record.read_bytes()
    for damage in (whole, b"\xff", b"", b"41"):
        record.write_bytes(damage)
        assert get_data(archive) == folder and len(find_images(folder)) == 40
        assert record.read_bytes() == whole
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_a_folder_of_the_user_is_never_replaced(tmp_path, cache):
    def build(temporary: Path) -> Path:
        (tmp_path / "faces").mkdir()  # meanwhile
        (tmp_path / "faces" / "mine.jpg").write_text("mine")
        (temporary / "images").mkdir()
        return temporary / "images"

    with pytest.raises(OSError):
        build_once(tmp_path / "faces", build)
    assert (tmp_path / "faces" / "mine.jpg").read_text() == "mine"


def test_a_zip_with_images_on_top_keeps_them_together(image_dir, tmp_path, cache):
    archive = tmp_path / "flat.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in find_images(image_dir)[:3]:
            opened.write(path, path.name)
    assert len(find_images(get_data(archive))) == 3


@pytest.mark.parametrize("where", [0, 0.001, 0.5])
def test_a_damaged_zip_is_named_and_leaves_nothing(image_dir, tmp_path, cache, where):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    content = bytearray(archive.read_bytes())
    start = int(where * len(content))
    content[start : start + 500] = bytes(500)
    archive.write_bytes(content if where else b"<html>")
    with pytest.raises(ValueError, match="faces.zip.*(is damaged|cannot be unpacked)"):
        get_data(archive)
    assert_nothing_left(cache)


def test_a_zip_with_a_password_is_named(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    content = archive.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set each "encrypted" flag
        parts = content.split(signature)
        flag = offset - len(signature)
        content = signature.join(
            [parts[0], *(p[:flag] + bytes([p[flag] | 1]) + p[flag + 1 :] for p in parts[1:])]
        )
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="faces.zip cannot be unpacked.*password"):
        get_data(archive)
    assert_nothing_left(cache)


def test_too_little_space_is_known_before_unpacking(image_dir, tmp_path, cache, monkeypatch):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="disk is full.*free some space") as caught:
        get_data(archive)
    assert caught.value.errno == errno.ENOSPC and str(cache) in str(caught.value)
    assert_nothing_left(cache)


# ---------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    "place", ["nowhere.zip", "nowhere", "proccesed_celeba_small", f"nowhere/{data.DATA}"]
)
def test_what_is_not_there_is_not_downloaded(server, tmp_path, monkeypatch, place):
    for reachable in (True, False):
        monkeypatch.setattr(data, "is_reachable", lambda url, is_it=reachable: is_it)
        with pytest.raises(FileNotFoundError, match=f"{place}. Correct data_dir"):
            get_data(tmp_path / place)
    assert not server.asked


def test_absent_data_are_downloaded_once_and_unpacked(server, absent, monkeypatch, capsys):
    assert get_data(absent) == absent and len(find_images(absent)) == 40
    assert "248 MB" in capsys.readouterr().out
    assert list(absent.parent.iterdir()) == [absent]
    shutil.rmtree(absent)
    monkeypatch.setattr(data, "is_reachable", lambda url: False)
    assert len(find_images(get_data(absent))) == 40
    assert server.asked == ["whole"]


@pytest.mark.parametrize("is_link", [True, False])
def test_the_default_folder_is_filled_if_it_is_empty(server, absent, tmp_path, is_link):
    place = absent
    if is_link:
        place = tmp_path / "large drive"
        absent.symlink_to(place)
    place.mkdir()
    (place / ".DS_Store").write_bytes(b"\0")
    assert get_data(absent) == absent and len(find_images(absent)) == 40
    assert get_data(absent) == absent and server.asked == ["whole"]
    assert absent.is_symlink() == is_link and len(list(place.glob("[!.]*"))) == 1


def test_nothing_is_downloaded_to_a_place_that_cannot_be_written(server, absent, monkeypatch):
    def refuse(**arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match="cannot be written to.*Set data_dir"):
        get_data(absent)
    assert not server.asked


@pytest.mark.parametrize("stalls", [False, True])
def test_without_network_the_offline_set_is_used(absent, cache, monkeypatch, capsys, stalls):
    monkeypatch.setattr(data, "OFFLINE_FACES", 24)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # never answers
        port = listening.getsockname()[1]
        if not stalls:
            listening.close()
        monkeypatch.setattr(data, "ARCHIVE_URL", f"http://127.0.0.1:{port}/archive.zip")
        started = time.monotonic()
        folder = get_data(absent)
        assert time.monotonic() - started < 30  # 8 to reach it
    assert "no network" in capsys.readouterr().out
    assert not absent.exists()
    assert (load_images(find_images(folder), RESIZE) == generate_faces(24, seed=0)).all()
    assert get_data(absent) == folder
    find_images(folder)[3].unlink()
    assert len(find_images(get_data(absent))) == 24
