"""From a file to pixels: every kind of image, files that are none, places that cannot be read."""

import ctypes
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import RESIZE, blobs, load, make_zip
from PIL import Image, ImageCms

from faces import images
from faces.data import get_data
from faces.images import FORMATS, find_images, load_images


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


def by_name(folder: Path) -> dict[str, np.ndarray]:
    """The images of a folder, each (32, 32, 3)."""
    return dict(zip([path.name for path in find_images(folder)], load(folder), strict=True))


def refused(folder: Path, name: str, why: str) -> None:
    """Assert that a file, and only it, is named, and can be left out."""
    n = len(find_images(folder))
    with pytest.raises(ValueError, match=f"1 of {n} files.*\n.*{name} .*{why}"):
        load(folder)
    assert len(load(folder, skip_broken=True)) == n - 1


# ------------------------------------------------------------------------------------- no images


def test_no_other_program_is_started(image_dir, tmp_path, monkeypatch):
    mark, program = tmp_path / "gs was here", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    Image.new("RGB", (40, 40)).save(image_dir / "zz.jpg", "EPS")  # which Ghostscript would draw
    refused(image_dir, "zz.jpg", "cannot identify image file")
    assert not mark.exists()


def test_a_format_is_known_by_its_content(image_dir):
    image = Image.fromarray(blobs(1, 32, 32, seed=1)[0])
    expected = {}
    for kind in FORMATS:
        image.save(image_dir / f"zz{kind}.jpg", kind)
        with Image.open(image_dir / f"zz{kind}.jpg") as opened:
            expected[f"zz{kind}.jpg"] = np.array(opened.convert("RGB"))
    images = by_name(image_dir)
    assert len(expected) >= 7 and all((images[name] == expected[name]).all() for name in expected)
    image.save(image_dir / "zz.jpg", "ICO")
    refused(image_dir, "zz.jpg", "cannot identify image file")


def test_a_pipe_and_a_device_are_no_files(image_dir):
    os.mkfifo(image_dir / "zz pipe.jpg")
    refused(image_dir, "zz pipe.jpg", "it is not a file")
    (image_dir / "zz pipe.jpg").unlink()
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


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((1, 2_000_000), "1 x 2,000,000 pixels: it is more than 64 times as long as wide"),
        ((6500, 100), "6,500 x 100 pixels: it is more than 64 times as long as wide"),
        ((9500, 9500), "9,500 x 9,500 pixels are more than 89,478,485: make it smaller"),
        ((13500, 13500), "it has more than 178,956,970 pixels: make it smaller"),
    ],
)
def test_an_image_too_large_or_too_long_is_named_unseen(image_dir, monkeypatch, size, why):
    (image_dir / "zz.png").write_bytes(black(*size))
    assert (image_dir / "zz.png").stat().st_size < 25_000
    monkeypatch.setattr(Image.Image, "load", None)  # what decodes the pixels
    paths = [image_dir / "zz.png"]
    with pytest.raises(ValueError, match=f"zz.png .{why}"):
        load_images(paths, RESIZE, image_dir)


def test_a_photograph_of_108_megapixels_is_read_at_half_its_size(tmp_path):
    image = Image.new("L", (12_000, 9_000), 200)
    image.paste(50, (6_000, 0, 12_000, 9_000))
    image.save(tmp_path / "phone.jpg")
    sizes = []

    def resize(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return RESIZE(image)

    with warnings.catch_warnings(action="error"):
        (pixels,) = load_images([tmp_path / "phone.jpg"], resize)
    assert sizes == [(6_000, 4_500)]
    assert (pixels[:, :15] == 200).all() and (pixels[:, 17:] == 50).all()


@pytest.mark.parametrize("brand", ["avif", "heic", "heix", "mif1"])
def test_a_format_that_is_not_read_is_named(image_dir, monkeypatch, brand):
    monkeypatch.setattr(images, "FORMATS", [name for name in FORMATS if name != "AVIF"])
    (image_dir / "zz.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + bytes(100))
    kind = "AVIF" if brand == "avif" else "HEIC"
    refused(image_dir, "zz.jpg", f"it is {kind}, whatever its name: save it as JPEG or PNG")


def test_a_long_image_may_be_64_times_as_long(image_dir):
    (image_dir / "zz.png").write_bytes(black(6400, 100))
    assert len(load(image_dir)) == 41


# ------------------------------------------------------------------------------------------ pixels


def test_every_shape_and_mode_becomes_a_square_rgb_image(tmp_path):
    image = Image.fromarray(blobs(1, 60, 90, seed=1)[0])
    image.save(tmp_path / "wide.png")
    image.rotate(90, expand=True).save(tmp_path / "tall.jpg")
    for mode in ("L", "P", "RGBA"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.resize((5, 7)).save(tmp_path / "tiny.bmp")
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "pixel.png")
    images = by_name(tmp_path)
    assert len(images) == 8
    assert all(i.shape == (32, 32, 3) and i.dtype == np.uint8 for i in images.values())
    assert (images["L.png"] == images["L.png"][..., :1]).all()
    assert (images["pixel.png"] == (10, 20, 30)).all()
    middle = np.asarray(image.crop((15, 0, 75, 60)).resize((32, 32)), dtype=float)
    assert np.abs(images["wide.png"] - middle).mean() < 3


def test_a_turned_photograph_is_set_upright(tmp_path):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:16] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "phone.png", exif=exif)
    upright = load(tmp_path)[0]
    assert upright[:, -4:].min() > 250 and upright[:, :20].max() < 5


def test_an_odd_tag_beside_the_orientation_decides_about_nothing(tmp_path):
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # the orientation
    entries += struct.pack("<HHIHH", 0x0128, 1, 1, 2, 0)  # the unit of resolution, as a byte
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    pixels = blobs(1, 32, 32, seed=5)[0]
    Image.fromarray(pixels).save(tmp_path / "1.png")
    Image.fromarray(pixels).save(tmp_path / "2.png", exif=exif)
    plain, turned = load(tmp_path)
    assert (turned == np.rot90(plain, -1)).all()


def test_aligned_originals_are_cropped_to_their_central_108_pixels(tmp_path):
    pixels = np.zeros((218, 178, 3), dtype=np.uint8)
    pixels[55:163, 35:143] = 200
    Image.fromarray(pixels).save(tmp_path / "000001.png")
    assert (load(tmp_path) == 200).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    image.convert(mode).save(tmp_path / "half.png")
    pixels = load(tmp_path)[0]
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_bmp_whose_fourth_byte_is_empty_is_not_transparent(tmp_path, alpha):
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHI20x", 108, 32, 32, 1, 32, 3) + masks + bytes(52)
    head = b"BM" + struct.pack("<I4xI", 14 + 108 + 4096, 14 + 108) + head
    (tmp_path / "face.bmp").write_bytes(head + bytes([50, 100, 200, alpha]) * 32 * 32)
    with Image.open(tmp_path / "face.bmp") as opened:
        assert opened.mode == "RGBA"
    assert (load(tmp_path)[0] == ((255, 254, 254) if alpha else (200, 100, 50))).all()


def make_profile(space: bytes, connection: bytes = b"XYZ ", **tags: bytes) -> bytes:
    """An ICC profile of a space of colours."""
    tags["desc"] = b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(80)
    tags["wtpt"] = xyz(0.9642, 1.0, 0.8249)
    place, table = 132 + 12 * len(tags), struct.pack(">I", len(tags))
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", place, len(content))
        place += len(content)
    head = struct.pack(">I4xI4s4s4s", place, 0x02100000, b"mntr", space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + table + b"".join(tags.values())


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IHH", 1, round(256 * gamma), 0)


ADOBE = make_profile(
    b"RGB ",
    rXYZ=xyz(0.60974, 0.31111, 0.01947),
    gXYZ=xyz(0.20528, 0.62567, 0.06087),
    bXYZ=xyz(0.14919, 0.06322, 0.74457),
    **{f"{colour}TRC": curve(563 / 256) for colour in "rgb"},
)
LINEAR_GREY = make_profile(b"GRAY", kTRC=curve(1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_a_profile_become_srgb(tmp_path, mode):
    image = Image.new("RGB", (32, 32), (180, 140, 120))
    image = image.quantize() if mode == "P" else image.convert(mode)
    image.save(tmp_path / "adobe.png", icc_profile=ADOBE)
    linear = (np.array([180, 140, 120]) / 255) ** (563 / 256)
    matrix = [[1.3984, -0.3984, 0], [0, 1, 0], [0, -0.0429, 1.0429]]  # Adobe RGB to sRGB
    expected = 255 * (1.055 * (np.array(matrix) @ linear) ** (1 / 2.4) - 0.055)
    assert np.abs(load(tmp_path)[0] - expected).max() < 1.5


def test_greys_of_a_profile_become_srgb(tmp_path):
    image = Image.new("L", (32, 32), 100)
    for mode in ("L", "LA"):
        image.convert(mode).save(tmp_path / f"{mode}.png", icc_profile=LINEAR_GREY)
    expected = 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(load(tmp_path) - expected).max() < 1.5


def test_inks_of_a_profile_become_srgb(tmp_path):
    same = bytes(range(256))
    colours = (
        bytes([255, 128, 128]) + bytes([0, 128, 128]) * 15
    )  # in Lab: white, or black by an ink
    table = b"mft1" + bytes(4) + bytes([4, 3, 2]) + bytes(37)
    table += same * 4 + colours + same * 3
    image = Image.new("CMYK", (32, 32), (0, 0, 0, 128))
    image.save(tmp_path / "inks.tif", icc_profile=make_profile(b"CMYK", b"Lab ", A2B0=table))
    assert np.abs(load(tmp_path) - 119.0).max() < 2  # of half the lightness; 127 without it


def test_srgb_and_profiles_that_cannot_be_read_leave_all_pixels_as_they_are(tmp_path):
    image = Image.fromarray(blobs(1, 32, 32, seed=4)[0])
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = [None, srgb, b"damaged", ADOBE[:200], ADOBE[:100] + bytes(len(ADOBE)), LINEAR_GREY]
    for i, profile in enumerate(profiles):
        image.save(tmp_path / f"{i}.jpg", icc_profile=profile)
    assert (load(tmp_path) == load(tmp_path)[0]).all()


RAMP = np.arange(32 * 32).reshape(32, 32)  # 0 to 1023


def save_rgb16(path: Path, values: np.ndarray) -> None:
    """Write (32, 32, 3) values with 16 bits each, as PIL does not."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png(32, 32, 16, 2, rows))


@pytest.mark.parametrize("scale", [64, 5])
def test_16_bits_become_8(tmp_path, scale):
    values = np.stack([RAMP * scale, RAMP[::-1] * scale, RAMP.T * scale], axis=2)
    save_rgb16(tmp_path / "deep.png", values)
    Image.fromarray(values[..., 0].astype(np.uint16)).save(tmp_path / "grey.png")
    images = by_name(tmp_path)
    assert (images["deep.png"] == values >> 8).all()
    assert (images["grey.png"] == values[..., :1] >> 8).all()


def test_floats_from_0_to_1_become_8_bits(tmp_path):
    Image.fromarray((RAMP / 1023).astype(np.float32)).save(tmp_path / "floats.tif")
    assert (load(tmp_path)[0] == (RAMP / 1023 * 65535 // 256)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((RAMP / 4).astype(np.float32), "its values, 0 to 255.75, are not from 0 to 1"),
        (
            np.where(RAMP, RAMP / 1023, np.nan).astype(np.float32),
            "its values, nan to nan, are not from 0 to 1",
        ),
        ((RAMP * 4).astype(np.uint16), "it is black, or uses 12 of 16 bits or fewer"),
        ((RAMP * 1000).astype(np.int32), "its values, 0 to 1.023e.06, are not from 0 to 65,535"),
        ((RAMP * 64 - 1).astype(np.int32), "its values, -1 to 65471, are not from 0 to 65,535"),
    ],
    ids=["floats to 255", "NaN", "12 in 16", "20 in 32", "negative"],
)
def test_values_of_an_unknown_range_are_named(image_dir, values, why):
    Image.fromarray(values).save(image_dir / "zz.tif")
    refused(image_dir, "zz.tif", f"{why}.*: save it with 8 bits")


def test_12_bits_in_16_in_three_channels_are_named(image_dir):
    save_rgb16(image_dir / "zz.png", np.stack([RAMP * 4] * 3, axis=2))
    refused(image_dir, "zz.png", "uses 12 of 16 bits or fewer")


def test_black_images_of_8_bits_are_images(tmp_path):
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


def test_what_may_not_be_read_is_named(image_dir, tmp_path, cache):
    archive = make_zip(image_dir, tmp_path / "faces.zip")
    shutil.copy(find_images(image_dir)[0], image_dir / "zz.jpg")
    (image_dir / ".hidden").mkdir(0)
    with without_privileges():
        paths = find_images(image_dir)
    folder = image_dir / "sec\nret"
    folder.mkdir()
    for path in (folder, archive, image_dir / "zz.jpg"):
        path.chmod(0)
    with without_privileges():
        with pytest.raises(OSError, match=r"sec\\nret cannot be read .Permission denied."):
            find_images(image_dir)
        with pytest.raises(ValueError, match="1 of 41 files.*\n.*zz.jpg .*denied"):
            load_images(paths, RESIZE, image_dir)
        for place in (archive, folder / "faces.zip"):
            with pytest.raises(OSError, match=r"faces.zip cannot be read .Permission denied."):
                get_data(place)
    folder.chmod(0o700)


def test_links_to_folders_are_followed_once(image_dir, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (64, 64)).save(outside / "far.png")
    (image_dir / "link").symlink_to(outside)
    (image_dir / "once more").symlink_to(outside)
    (image_dir / "loop").symlink_to(image_dir)
    (outside / "back").symlink_to(image_dir)
    paths = find_images(image_dir)
    assert len(paths) == 41 and image_dir / "link" / "far.png" in paths
    assert len({path.resolve() for path in paths}) == 41 and len(load(image_dir)) == 41
