"""From a folder, a zip, the network or nothing at all to one array of images."""

import errno
import shutil
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_nothing_left, blobs, make_zip
from PIL import Image
from torchvision.transforms import v2

import helpers
from faces import arrays, download, files


def load(folder: Path, **subset: int) -> np.ndarray:
    """All images of a folder, or a subset, as (n, 32, 32, 3)."""
    resize = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])
    return helpers.load_images(helpers.find_images(folder, **subset), resize)


# ---------------------------------------------------------------------------------------- folders


def test_images_are_found_at_any_depth_without_litter(image_dir):
    paths = helpers.find_images(image_dir)
    assert sorted(p.name for p in paths) == [f"{i:06d}.jpg" for i in range(1, 41)]


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_images_is_named(tmp_path, make):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
        (folder / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="empty.*set data_dir"):
        helpers.find_images(folder)


def test_every_shape_and_mode_becomes_a_square_rgb_image(tmp_path):
    pixels = blobs(1, 60, 90, seed=1)[0]
    image = Image.fromarray(pixels)
    image.save(tmp_path / "wide.png")
    image.rotate(90, expand=True).save(tmp_path / "tall.jpg")
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.resize((5, 7)).save(tmp_path / "tiny.bmp")
    images = load(tmp_path)
    assert images.shape == (7, 32, 32, 3) and images.dtype == np.uint8
    grey = images[[p.name for p in helpers.find_images(tmp_path)].index("grey.png")]
    assert (grey == grey[..., :1]).all()
    middle = np.asarray(image.crop((15, 0, 75, 60)).resize((32, 32)), dtype=float)
    wide = images[[p.name for p in helpers.find_images(tmp_path)].index("wide.png")]
    assert np.abs(wide - middle).mean() < 3


def test_a_turned_photograph_is_set_upright(tmp_path):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:16] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "phone.png", exif=exif)
    upright = load(tmp_path)[0]
    assert upright[:, -4:].min() > 250 and upright[:, :20].max() < 5


def test_aligned_originals_are_cropped_to_their_central_108_pixels(tmp_path):
    pixels = np.zeros((218, 178, 3), dtype=np.uint8)
    pixels[55:163, 35:143] = 200
    Image.fromarray(pixels).save(tmp_path / "000001.png")
    assert (load(tmp_path) == 200).all()


def test_a_subset_is_random_and_repeatable(image_dir):
    images = load(image_dir)
    assert len(images) == 40
    subset = load(image_dir, max_images=10, seed=1)
    assert len(np.unique(subset, axis=0)) == 10
    assert all((images == image).all(axis=(1, 2, 3)).any() for image in subset)
    assert (subset == load(image_dir, max_images=10, seed=1)).all()
    assert (subset != load(image_dir, max_images=10, seed=2)).any()
    assert (images == load(image_dir, max_images=1000)).all()


def test_a_batch_is_the_images_themselves():
    images = blobs(6, 8, 8, seed=3)
    dataset = helpers.ImageArray(images)
    batch, labels = dataset.__getitems__([4, 1])
    assert batch.shape == (2, 3, 8, 8) and labels.tolist() == [0, 0]
    assert np.allclose(batch.permute(0, 2, 3, 1).cpu().numpy() * 255, images[[4, 1]])
    assert (dataset[4][0] == batch[0]).all()


@pytest.mark.parametrize("n", [1, 4096, 5000])
def test_images_are_copied_whole_to_a_device(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 3), np.uint8)
    copy = arrays.copy_to(torch.device("cpu"), images)
    assert copy.dtype == torch.uint8 and (copy.numpy() == images).all()


# ------------------------------------------------------------------------------------------- zips


def test_a_zip_is_unpacked_once(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    folder = helpers.get_data(archive)
    assert folder.parent == cache
    assert len(helpers.find_images(folder)) == 40
    hidden = [p.name for p in folder.rglob(".*")]
    assert hidden == [files.RECORD]
    before = folder.stat().st_mtime_ns
    assert helpers.get_data(archive) == folder and folder.stat().st_mtime_ns == before
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_a_zip_is_unpacked_again_when_images_are_gone(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    folder = helpers.get_data(archive)
    for path in helpers.find_images(folder)[1:]:
        path.unlink()
    assert helpers.get_data(archive) == folder and len(helpers.find_images(folder)) == 40
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_a_damaged_record_of_an_unpacked_zip_does_no_harm(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    record = helpers.get_data(archive) / files.RECORD
    before = record.read_bytes()
    for damage in (b"\xff", b"", b"41"):
        record.write_bytes(damage)
        assert len(helpers.find_images(helpers.get_data(archive))) == 40
        assert record.read_bytes() == before


def test_a_folder_of_the_user_is_never_replaced(tmp_path, cache):
    def make(temporary: Path) -> Path:
        (tmp_path / "faces").mkdir()  # meanwhile
        (tmp_path / "faces" / "mine.jpg").write_text("mine")
        (temporary / "images").mkdir()
        return temporary / "images"

    with pytest.raises(OSError):
        files.make_once(tmp_path / "faces", make)
    assert (tmp_path / "faces" / "mine.jpg").read_text() == "mine"


def test_a_zip_with_images_on_top_keeps_them_together(image_dir, tmp_path, cache):
    archive = tmp_path / "flat.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in helpers.find_images(image_dir)[:3]:
            opened.write(path, path.name)
    assert len(helpers.find_images(helpers.get_data(archive))) == 3


def test_a_file_that_is_no_zip_is_named(tmp_path, cache):
    archive = tmp_path / "faces.zip"
    archive.write_text("<html>")
    with pytest.raises(ValueError, match="faces.zip is no zip file"):
        helpers.get_data(archive)
    assert_nothing_left(cache)


@pytest.mark.parametrize("where", [0.0005, 0.001, 0.2, 0.5])
def test_a_damaged_zip_leaves_nothing(image_dir, tmp_path, cache, where):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    content = bytearray(archive.read_bytes())
    start = int(where * len(content))
    content[start : start + 500] = bytes(500)
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="faces.zip.*(damaged|cannot be unpacked)"):
        helpers.get_data(archive)
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
        helpers.get_data(archive)
    assert_nothing_left(cache)


def test_a_zip_without_images_is_named(tmp_path, cache):
    archive = tmp_path / "texts.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("__MACOSX/._1.jpg", b"litter")
    with pytest.raises(ValueError, match="texts.zip holds no images"):
        helpers.get_data(archive)


@pytest.mark.parametrize(
    "place", ["nowhere.zip", "nowhere", "proccesed_celeba_small", f"nowhere/{download.DATA}"]
)
def test_what_is_not_there_is_not_downloaded(server, tmp_path, monkeypatch, place):
    for reachable in (True, False):
        monkeypatch.setattr(download, "is_reachable", lambda url, is_it=reachable: is_it)
        with pytest.raises(FileNotFoundError, match=f"{place}: correct data_dir"):
            helpers.get_data(tmp_path / place)
    assert not server.asked


@pytest.mark.parametrize("place", ["", ".", "faces/..", "/", str(files.HERE.parent)])
def test_a_folder_that_holds_the_project_is_no_data(monkeypatch, place):
    monkeypatch.chdir(files.HERE)
    with pytest.raises(ValueError, match=f"data_dir is '{place}': set it to a folder of images"):
        helpers.get_data(place)


def test_too_little_space_is_known_before_unpacking(image_dir, tmp_path, cache, monkeypatch):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="disk is full.*free some space") as caught:
        helpers.get_data(archive)
    assert caught.value.errno == errno.ENOSPC and str(cache) in str(caught.value)
    assert_nothing_left(cache)


# ---------------------------------------------------------------------------------------- network


def test_absent_data_are_downloaded_and_unpacked(server, absent, capsys):
    folder = helpers.get_data(absent)
    assert folder == absent
    assert len(helpers.find_images(folder)) == 40
    assert "248 MB" in capsys.readouterr().out
    assert list(folder.parent.iterdir()) == [folder]


def test_a_download_is_kept_for_the_next_time(server, absent, monkeypatch):
    helpers.get_data(absent)
    shutil.rmtree(absent)
    monkeypatch.setattr(download, "is_reachable", lambda url: False)
    monkeypatch.setattr(server, "do_GET", None)
    assert len(helpers.find_images(helpers.get_data(absent))) == 40


def test_nothing_is_downloaded_to_a_place_that_cannot_be_written(server, absent, monkeypatch):
    monkeypatch.setattr(server, "do_GET", None)

    def refuse(**arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match="cannot be written to.*set data_dir"):
        helpers.get_data(absent)


@pytest.mark.parametrize("stalls", [False, True])
def test_without_network_the_offline_set_is_used(absent, cache, monkeypatch, capsys, stalls):
    monkeypatch.setattr(download, "OFFLINE_FACES", 24)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # never answers
        port = listening.getsockname()[1]
        if not stalls:
            listening.close()
        monkeypatch.setattr(download, "ARCHIVE_URL", f"http://127.0.0.1:{port}/archive.zip")
        started = time.monotonic()
        folder = helpers.get_data(absent)
        assert time.monotonic() - started < 10
    assert "no network" in capsys.readouterr().out
    assert not absent.exists()
    images = load(folder)
    assert (images == helpers.generate_faces(24, seed=0)).all()
    assert helpers.get_data(absent) == folder
    helpers.find_images(folder)[3].unlink()
    assert len(helpers.find_images(helpers.get_data(absent))) == 24
