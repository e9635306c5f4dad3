"""Files named like photographs that are none, odd pixels, and places that cannot be read."""

import ctypes
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs, make_zip
from PIL import Image
from torchvision.transforms import v2

import helpers
from faces import decoding

RESIZE = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])


def load(folder: Path, **options: bool) -> np.ndarray:
    return helpers.load_images(helpers.find_images(folder), RESIZE, folder, **options)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Take from root, in this thread, the right to read what no permission allows."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, before) == 0
    values = list(struct.unpack("6I", before.raw))
    values[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, struct.pack("6I", *values)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def refused(folder: Path, name: str, why: str) -> None:
    """Assert that a file, and only it, is named, and can be left out."""
    n = len(helpers.find_images(folder))
    with pytest.raises(ValueError, match=f"1 of {n} files.*\n.*{name} .*{why}"):
        load(folder)
    assert len(load(folder, skip_broken=True)) == n - 1


# ------------------------------------------------------------------------------------- no pictures


@pytest.fixture
def fake_gs(tmp_path, monkeypatch) -> Path:
    """A gs that leaves a mark when it is started."""
    (tmp_path / "bin").mkdir()
    mark = tmp_path / "gs was here"
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return mark


@pytest.mark.parametrize("packed", [False, True])
def test_no_other_program_is_started(image_dir, tmp_path, cache, fake_gs, packed):
    Image.new("RGB", (40, 40)).save(image_dir / "zz.jpg", "EPS")
    folder = image_dir
    if packed:
        folder = helpers.get_data(make_zip(image_dir, tmp_path / "faces.zip"))
    refused(folder, "zz.jpg", "cannot identify image file")
    assert not fake_gs.exists()


def test_a_format_is_known_by_its_content(image_dir):
    image = Image.fromarray(blobs(1, 32, 32, seed=1)[0])
    expected = {}
    for kind in decoding.FORMATS:
        image.save(image_dir / f"zz{kind}.jpg", kind)
        with Image.open(image_dir / f"zz{kind}.jpg") as opened:
            expected[f"zz{kind}.jpg"] = np.array(opened.convert("RGB"))
    images = dict(
        zip([p.name for p in helpers.find_images(image_dir)], load(image_dir), strict=True)
    )
    assert len(expected) == 7 and all((images[name] == expected[name]).all() for name in expected)
    image.save(image_dir / "zz.jpg", "ICO")
    refused(image_dir, "zz.jpg", "cannot identify image file")


def test_a_pipe_a_socket_and_a_device_are_no_files(image_dir, tmp_path, monkeypatch):
    os.mkfifo(image_dir / "zz pipe.jpg")
    refused(image_dir, "zz pipe.jpg", "it is not a file")
    (image_dir / "zz pipe.jpg").unlink()
    monkeypatch.chdir(image_dir)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("zz socket.jpg")
        refused(image_dir, "zz socket.jpg", "it is not a file")
    (image_dir / "zz socket.jpg").unlink()
    (image_dir / "zz device.jpg").symlink_to("/dev/zero")
    refused(image_dir, "zz device.jpg", "it is not a file")


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file of any size and depth; each row begins with a byte 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def black(width: int, height: int) -> bytes:
    """A PNG of a bit a pixel, which takes hardly any bytes."""
    return png(width, height, 1, 0, bytes(height * (1 + (width + 7) // 8)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(2_000_000, 1), (1, 2_000_000), (6500, 100), (9500, 9500)])
def test_a_picture_far_too_large_or_too_long_is_named_unseen(image_dir, monkeypatch, size):
    (image_dir / "zz.png").write_bytes(black(*size))
    assert (image_dir / "zz.png").stat().st_size < 12_000
    monkeypatch.setattr(Image.Image, "load", None)  # what decodes the pixels
    paths = [image_dir / "zz.png"]
    with pytest.raises(ValueError, match=f"zz.png .{size[0]:,} x {size[1]:,} pixels are far too"):
        helpers.load_images(paths, RESIZE, image_dir)


def test_a_long_picture_may_be_64_times_as_long(image_dir):
    (image_dir / "zz.png").write_bytes(black(6400, 100))
    assert len(load(image_dir)) == 41


# ---------------------------------------------------------------------------------- odd pixels


RAMP = np.arange(32 * 32).reshape(32, 32)  # 0 to 1023


def save_rgb16(path: Path, values: np.ndarray) -> None:
    """Write (32, 32, 3) values with 16 bits each, as PIL does not."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png(32, 32, 16, 2, rows))


@pytest.mark.parametrize("scale", [64, 5])
def test_16_bits_in_three_channels_become_8(tmp_path, scale):
    values = np.stack([RAMP * scale, RAMP[::-1] * scale, RAMP.T * scale], axis=2)
    save_rgb16(tmp_path / "deep.png", values)
    assert (load(tmp_path)[0] == values >> 8).all()


def test_floats_from_0_to_1_become_8_bits(tmp_path):
    Image.fromarray((RAMP / 1023).astype(np.float32)).save(tmp_path / "floats.tif")
    assert (load(tmp_path)[0] == (RAMP / 1023 * 65535 // 256)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((RAMP / 4).astype(np.float32), "its values, 0 to 255.75, are not from 0 to 1"),
        ((RAMP / 1023 - 0.5).astype(np.float32), "its values, -0.5 to 0.5, are not from 0 to 1"),
        (
            np.where(RAMP, RAMP / 1023, np.nan).astype(np.float32),
            "its values, nan to nan, are not from 0 to 1",
        ),
        ((RAMP // 4).astype(np.int32), "it is black, or uses 12 of 16 bits or fewer"),
        ((RAMP * 4).astype(np.uint16), "it is black, or uses 12 of 16 bits or fewer"),
        ((RAMP * 1000).astype(np.int32), "its values, 0 to 1.023e.06, are not from 0 to 65,535"),
        ((RAMP * 64 - 1).astype(np.int32), "its values, -1 to 65471, are not from 0 to 65,535"),
    ],
    ids=["floats to 255", "negative floats", "NaN", "8 in 32", "12 in 16", "20 in 32", "negative"],
)
def test_values_of_an_unknown_range_are_named(image_dir, values, why):
    Image.fromarray(values).save(image_dir / "zz.tif")
    refused(image_dir, "zz.tif", f"{why}.*: save it with 8 bits")


def test_12_bits_in_16_in_three_channels_are_named(image_dir):
    save_rgb16(image_dir / "zz.png", np.stack([RAMP * 4] * 3, axis=2))
    refused(image_dir, "zz.png", "uses 12 of 16 bits or fewer")


def test_black_pictures_of_8_bits_are_pictures(tmp_path):
    for mode in ("RGB", "L", "1"):
        Image.new(mode, (32, 32)).save(tmp_path / f"{mode}.png")
    assert not load(tmp_path).any()


# ------------------------------------------------------------------------------------- odd places


def test_names_are_shown_escaped(image_dir):
    name = "zz\n  forged line\x1b[2J\u202e.jpg"
    (image_dir / name).write_text("no image")
    os.mkdir(os.fsencode(image_dir) + b"/\xff")
    (image_dir / os.fsdecode(b"\xff") / "zz.jpg").write_text("no image")
    with pytest.raises(ValueError) as caught:
        load(image_dir)
    text = str(caught.value)
    assert r"zz\n  forged line\x1b[2J\u202e.jpg" in text and r"\udcff/zz.jpg" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text.splitlines()) == 4


def test_a_folder_that_may_not_be_read_is_named(image_dir):
    folder = image_dir / "sec\nret"
    folder.mkdir()
    (image_dir / ".hidden").mkdir(0)
    assert len(helpers.find_images(image_dir)) == 40
    folder.chmod(0)
    with without_privileges():
        with pytest.raises(OSError, match=r"sec\\nret cannot be read .Permission denied.: "):
            helpers.find_images(image_dir)
        with pytest.raises(OSError, match=r"faces.zip cannot be read .Permission denied.: "):
            helpers.get_data(folder / "faces.zip")
    folder.chmod(0o700)


def test_a_zip_that_may_not_be_read_is_named(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    archive.chmod(0)
    with without_privileges(), pytest.raises(OSError, match="faces.zip cannot be read .Permission"):
        helpers.get_data(archive)


def test_an_image_that_may_not_be_read_is_named(image_dir):
    shutil.copy(helpers.find_images(image_dir)[0], image_dir / "zz.jpg")
    (image_dir / "zz.jpg").chmod(0)
    with (
        without_privileges(),
        pytest.raises(ValueError, match="1 of 41 files.*\n.*zz.jpg .*denied"),
    ):
        helpers.load_images(helpers.find_images(image_dir), RESIZE, image_dir)


def test_links_to_folders_are_followed_once(image_dir, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (64, 64)).save(outside / "far.png")
    (image_dir / "link").symlink_to(outside)
    (image_dir / "once more").symlink_to(outside)
    (image_dir / "loop").symlink_to(image_dir)
    (outside / "back").symlink_to(image_dir)
    paths = helpers.find_images(image_dir)
    assert len(paths) == 41 and image_dir / "link" / "far.png" in paths
    assert len({path.resolve() for path in paths}) == 41 and len(load(image_dir)) == 41
