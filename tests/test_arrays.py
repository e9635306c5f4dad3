"""From image files to the array that is kept: what is converted, named, rebuilt, or read again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

import helpers
from faces import decoding, files

RESIZE = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])


def load(folder: Path, **options: bool) -> np.ndarray:
    """The images of a folder as the kept array."""
    return helpers.load_images(helpers.find_images(folder), RESIZE, folder, **options)


def beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-arrays")


def kept(folder: Path) -> list[Path]:
    return sorted(beside(folder).glob("[!.]*.npy"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """The images that were decoded; at each start, the first three are, to know the transform."""
    opened, to_rgb = [], decoding._to_rgb

    def note(image: Image.Image) -> Image.Image:
        opened.append(image)
        return to_rgb(image)

    monkeypatch.setattr(decoding, "_to_rgb", note)
    return opened


# -------------------------------------------------------------------------------- kept and rebuilt


def test_images_are_decoded_once(image_dir, decoded):
    images = load(image_dir)
    assert images.shape == (40, 32, 32, 3) and isinstance(images, np.memmap)
    assert (images == helpers.load_images(helpers.find_images(image_dir), RESIZE)).all()
    decoded.clear()
    assert (load(image_dir) == images).all()
    assert len(decoded) == 3 and len(kept(image_dir)) == 1
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_folder_of_the_images_is_left_as_it_was(image_dir):
    before = sorted(image_dir.rglob("*"))
    load(image_dir)
    assert sorted(image_dir.rglob("*")) == before


def test_other_settings_have_an_array_of_their_own(image_dir):
    paths = helpers.find_images(image_dir)
    load(image_dir)
    larger = v2.Compose([v2.Resize(64), v2.CenterCrop(64)])
    assert helpers.load_images(paths, larger, image_dir).shape == (40, 64, 64, 3)
    assert helpers.load_images(paths[:7], RESIZE, image_dir).shape == (7, 32, 32, 3)
    assert len(kept(image_dir)) == 3


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_the_array_is_rebuilt_when_a_file_changes(image_dir, decoded, change):
    before = np.array(load(image_dir))
    first = helpers.find_images(image_dir)[0]
    black = Image.new("RGB", (64, 64))
    if change == "content":
        black.save(first)
    elif change == "time":
        os.utime(first, ns=(0, first.stat().st_mtime_ns + 1))
    elif change == "added":
        black.save(image_dir / "zz.png")
    elif change == "removed":
        first.unlink()
    else:
        first.rename(first.with_name("zz.jpg"))
    decoded.clear()
    after = load(image_dir)
    expected = helpers.load_images(helpers.find_images(image_dir), RESIZE)
    assert (after == expected).all() and len(decoded) > 40
    assert (after.shape != before.shape or (after != before).any()) == (change != "time")
    if change in ("content", "time"):  # the same files: the old array is gone
        assert len(kept(image_dir)) == 1


def same_size_and_time(path: Path) -> None:
    """Write other pixels over a file, and set its time back."""
    status, content = path.stat(), path.read_bytes()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    for quality in range(90, 5, -1):
        Image.fromarray(noise).save(path, quality=quality)
        if path.stat().st_size <= len(content):
            break
    path.write_bytes(path.read_bytes() + bytes(len(content) - path.stat().st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("number", [0, 20])  # one of the first three, or not
def test_a_file_changed_to_the_same_size_and_time_is_read_again(image_dir, number):
    before = np.array(load(image_dir))
    same_size_and_time(helpers.find_images(image_dir)[number])
    after = load(image_dir)
    assert ((after != before).any((1, 2, 3)) == (np.arange(40) == number)).all()


def change(content: bytes, fault: str) -> bytes:
    """Damage an array file of 40 images 32x32, or let it say something else of itself."""
    if fault == "cut":
        return content[:-1]
    if fault == "no header":
        return content[128:]
    if fault == "one byte":
        return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    if fault == "zeros":
        return content[:-3000] + bytes(3000)
    if fault == "fewer":
        return content.replace(b"(40, 32, 32, 3)", b"(39, 32, 32, 3)")
    if fault == "shape":
        return content.replace(b"(40, 32, 32, 3)", b"(40, 16, 64, 3)")
    if fault == "order":
        return content.replace(b"'fortran_order': False", b"'fortran_order': True ")
    return {"empty": b"", "text": b"<html>"}[fault]


@pytest.mark.parametrize(
    "fault",
    ["cut", "empty", "text", "no header", "one byte", "zeros", "fewer", "shape", "order"],
)
def test_a_damaged_array_is_rebuilt(image_dir, fault):
    before = np.array(load(image_dir))
    (path,) = kept(image_dir)
    damaged = change(path.read_bytes(), fault)
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert (load(image_dir) == before).all()
    assert kept(image_dir) == [path]


class Alike:
    """A transform that prints like any other of its class."""

    def __init__(self, size: int, fill: int = 0) -> None:
        self.size, self.fill = size, fill

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size)).point(lambda value: max(value, self.fill))

    def __str__(self) -> str:
        return "Alike()"


def test_transforms_that_print_alike_have_images_of_their_own(image_dir):
    paths = helpers.find_images(image_dir)
    for transform in (Alike(32), Alike(16), Alike(32, 100), Alike(32)):
        images = helpers.load_images(paths, transform, image_dir)
        assert (images == helpers.load_images(paths, transform)).all()
    for _ in range(2):  # printed with an address in memory
        helpers.load_images(paths, lambda image: image.resize((8, 8)), image_dir)
    assert len(kept(image_dir)) == 2


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([RESIZE, v2.ToImage()]), r"makes uint8 \(3, 32, 32\), not uint8 \(H, W, 3\)"),
        (lambda image: np.zeros((32, 32, 3)), r"makes float64 \(32, 32, 3\), not uint8"),
        (lambda image: image.convert("L"), r"makes uint8 \(64, 64\), not uint8"),
        (lambda image: image.resize((8, image.getpixel((0, 0))[0] + 1)), "of several shapes"),
    ],
)
def test_a_transform_that_makes_something_else_is_refused(image_dir, transform, message):
    for data_dir in (image_dir, None):
        with pytest.raises(ValueError, match=message):
            helpers.load_images(helpers.find_images(image_dir), transform, data_dir)
    assert not kept(image_dir)


class Slow:
    """Resizes as ``RESIZE`` does and is kept under the same name, but takes its time."""

    def __call__(self, image: Image.Image) -> Image.Image:
        time.sleep(0.05)
        return RESIZE(image)

    def __str__(self) -> str:
        return str(RESIZE)


def child_that_writes(paths: list[Path], image_dir: Path) -> int:
    """Begin to decode in another process; return its number once it writes the array."""
    child = os.fork()
    if not child:
        helpers.load_images(paths, Slow(), image_dir)
        os._exit(0)
    deadline = time.monotonic() + 20
    while not list(beside(image_dir).glob(".*.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return child


def test_two_at_once_decode_the_images_once(image_dir, decoded):
    paths = helpers.find_images(image_dir)
    child = child_that_writes(paths, image_dir)
    images = helpers.load_images(paths, Slow(), image_dir)
    assert os.waitpid(child, 0)[1] == 0 and len(decoded) == 3
    assert (images == helpers.load_images(paths, RESIZE)).all()


def test_a_kill_while_the_array_is_written_does_no_harm(image_dir):
    paths = helpers.find_images(image_dir)
    for seconds in (0.1, 0.3, 0.5):
        child = child_that_writes(paths, image_dir)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not kept(image_dir) and list(beside(image_dir).glob(".*.npy"))
    assert (load(image_dir) == helpers.load_images(paths, RESIZE)).all()
    assert not list(beside(image_dir).glob(".*.npy"))


FULL_DISK = """
import resource
import sys
import numpy as np
from torchvision.transforms import v2
import helpers

data_dir, picture = sys.argv[1:]
noise = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
resize = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # as on a full disk, a write comes short
for work in (
    lambda: helpers.load_images(helpers.find_images(data_dir), resize, data_dir),
    lambda: helpers.show_images(noise, 3, picture),
    lambda: helpers.show_animation(list(noise), picture),
):
    try:
        work()
    except OSError as error:
        print(error)
"""


def test_a_full_disk_leaves_no_array_and_no_half_picture(image_dir, tmp_path):
    pytest.importorskip("resource")
    picture = tmp_path / "result.png"
    picture.write_bytes(b"the one before")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(image_dir), str(picture)],
        env=os.environ | {"PYTHONPATH": str(files.HERE), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("disk is full" in line for line in lines), done.stderr[-2000:]
    assert not kept(image_dir) and not list(beside(image_dir).glob(".*.npy"))
    assert picture.read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["result.png"]
    assert len(load(image_dir)) == 40


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX only")
def test_a_folder_that_cannot_be_written_to_works(image_dir, cache):
    beside(image_dir).write_text("in the way, as a read-only disk would be")
    images = load(image_dir)
    assert len(images) == 40 and len(list((cache / "arrays").glob("*.npy"))) == 1
    other = image_dir.with_name("other")
    image_dir.rename(other)
    Image.new("RGB", (64, 64)).save(helpers.find_images(other)[0])
    assert (load(other) != images).any()
    for place in (cache, beside(other)):
        shutil.rmtree(place)
        place.write_text("in the way")
    with pytest.raises(OSError, match="cache.arrays cannot be written to.*XDG_CACHE_HOME"):
        load(other)


# ------------------------------------------------------------------------------------ odd images


def test_16_bits_become_8(tmp_path):
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    assert Image.open(tmp_path / "grey16.png").mode.startswith("I")
    assert (load(tmp_path)[0] == (ramp >> 8)[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    image.convert(mode).save(tmp_path / "half.png")
    pixels = load(tmp_path)[0]
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_a_single_pixel_becomes_a_square(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "pixel.png")
    assert (load(tmp_path) == (10, 20, 30)).all()


def break_some(folder: Path) -> list[str]:
    """Add files that are no images; return their names."""
    whole = next(iter(helpers.find_images(folder))).read_bytes()
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    header = bytes.fromhex("89504e470d0a1a0a0000000d49484452")  # a PNG of 20,000 x 20,000
    huge = header + (20_000).to_bytes(4, "big") * 2 + bytes.fromhex("0802000000")
    (folder / "huge.png").write_bytes(huge + b"\x87\xa1\xa5\xcb")
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    return ["page.jpg", "nothing.png", "cut.jpg", "huge.png", "link.jpg"]


def test_broken_files_are_all_named_before_training(image_dir):
    names = break_some(image_dir)
    with pytest.raises(ValueError, match="5 of 45 files") as caught:
        load(image_dir)
    assert all(name in str(caught.value) for name in names)
    assert "skip_broken = True" in str(caught.value) and not kept(image_dir)


def test_broken_files_can_be_left_out(image_dir, capsys, decoded):
    whole = np.array(load(image_dir))
    names = break_some(image_dir)
    for _ in range(2):
        images = load(image_dir, skip_broken=True)
        assert len(images) == 40
        assert {i.tobytes() for i in images} == {i.tobytes() for i in whole}
        assert (
            "5 of 45 files cannot be read as images: they are left out" in capsys.readouterr().out
        )
    with pytest.raises(ValueError, match="5 of 45 files"):  # and are named again when asked to
        load(image_dir)
    decoded.clear()
    assert len(load(image_dir, skip_broken=True)) == 40 and len(decoded) <= 3
    for path in helpers.find_images(image_dir):
        if path.name not in names:
            path.unlink()
    with pytest.raises(ValueError, match="5 of 5 files"):
        load(image_dir, skip_broken=True)


@pytest.mark.filterwarnings("ignore:.*EXIF", "ignore:.*[Tt]ag")
def test_a_damaged_header_is_not_the_end(image_dir):
    path = image_dir / "exif.jpg"
    image = Image.new("RGB", (40, 40))
    exif = image.getexif()
    exif[0x0112], exif[0x010E], exif[0x0132] = 6, "hello" * 5, "2020:01:01 00:00:00"
    image.save(path, exif=exif)
    content = path.read_bytes()
    whole = helpers.find_images(image_dir)[0]
    broken = 0
    for i in range(20, 140):  # each byte of the header
        path.write_bytes(content[:i] + b"\x00" + content[i + 1 :])
        broken += len(helpers.load_images([path, whole], RESIZE)) == 1
    assert broken > 0


def test_more_broken_files_than_fit_are_counted(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_text("no image")
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert len(re.findall(r"\d+\.jpg \(", str(caught.value))) == 20
    assert "and 10 more" in str(caught.value)
