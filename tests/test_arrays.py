"""The array of decoded images that is kept: what rebuilds it, and what it survives."""

import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RESIZE, blobs, full_disk, load, wait_for
from PIL import Image
from torchvision.transforms import v2

import helpers
from faces import files, images
from faces.images import FaceDataset, array_folder, copy_to, find_images, load_images


def kept(folder: Path) -> list[Path]:
    return sorted(array_folder(folder).glob("[!.]*.npy"))


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The files that were opened to decode them, which are a few of them at each start."""
    paths, really_open = [], Image.open

    def note(path: Path, *args: object, **kwargs: object) -> Image.Image:
        paths.append(path)
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", note)
    return paths


# -------------------------------------------------------------------------------- kept and rebuilt


def test_images_are_decoded_once_and_their_folder_is_left_as_it_was(image_dir, opened):
    before = sorted(image_dir.rglob("*"))
    images = load(image_dir)
    assert images.shape == (40, 32, 32, 3) and isinstance(images, np.memmap)
    assert (images == load_images(find_images(image_dir), RESIZE)).all()
    opened.clear()
    assert (load(image_dir) == images).all()
    assert len(opened) < 10 and len(kept(image_dir)) == 1
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    assert sorted(image_dir.rglob("*")) == before


def test_other_settings_have_an_array_of_their_own(image_dir):
    paths = find_images(image_dir)
    load(image_dir)
    larger = v2.Compose([v2.Resize(64), v2.CenterCrop(64)])
    assert load_images(paths, larger, image_dir).shape == (40, 64, 64, 3)
    assert load_images(paths[:7], RESIZE, image_dir).shape == (7, 32, 32, 3)
    assert len(kept(image_dir)) == 3


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": Image.new("RGB", (64, 64)).save,
    "added": lambda path: Image.new("RGB", (64, 64)).save(path.with_name("zz.png")),
    "removed": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("zz.jpg")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_array_is_rebuilt_when_a_file_changes(image_dir, opened, change):
    before = np.array(load(image_dir))
    CHANGES[change](find_images(image_dir)[0])
    opened.clear()
    after = load(image_dir)
    assert len(opened) >= len(after)
    assert (after == load_images(find_images(image_dir), RESIZE)).all()
    assert after.shape != before.shape or (after != before).any()
    if change == "content":  # the same files: the old array is gone
        assert len(kept(image_dir)) == 1


def test_a_file_changed_to_the_same_size_and_time_is_read_again(image_dir):
    before = np.array(load(image_dir))
    path = find_images(image_dir)[20]
    status = path.stat()
    Image.new("RGB", (64, 64)).save(path)
    path.write_bytes(path.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert ((load(image_dir) != before).any((1, 2, 3)) == (np.arange(40) == 20)).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: content.replace(b"(40, 32, 32, 3)", b"(39, 32, 32, 3)"),
    ],
    ids=["cut", "empty", "one bit", "another header"],
)
def test_a_damaged_array_is_rebuilt(image_dir, damage):
    before = np.array(load(image_dir))
    (path,) = kept(image_dir)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
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
    paths = find_images(image_dir)
    for transform in (Alike(32), Alike(16), Alike(32, 100), Alike(32)):
        images = load_images(paths, transform, image_dir)
        assert (images == load_images(paths, transform)).all()
    for _ in range(2):  # printed with an address in memory
        load_images(paths, lambda image: image.resize((8, 8)), image_dir)
    assert len(kept(image_dir)) == 2


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([RESIZE, v2.ToImage()]), r"makes uint8 \(3, 32, 32\), not uint8 \(H, W, 3\)"),
        (lambda image: np.zeros((32, 32, 3)), r"makes float64 \(32, 32, 3\), not uint8"),
        (lambda image: image.resize((8, image.getpixel((0, 0))[0] + 1)), "of several shapes"),
    ],
)
def test_a_transform_that_makes_something_else_is_refused(image_dir, transform, message):
    for data_dir in (image_dir, None):
        with pytest.raises(ValueError, match=message):
            load_images(find_images(image_dir), transform, data_dir)
    assert not kept(image_dir)


# ------------------------------------------------------------------------------------ broken files


def break_some(folder: Path) -> list[str]:
    """Add files that are no images; return their names."""
    whole = find_images(folder)[0].read_bytes()
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    return ["page.jpg", "nothing.png", "cut.jpg", "link.jpg"]


def test_broken_files_are_all_named_before_training(image_dir):
    names = break_some(image_dir)
    with pytest.raises(ValueError, match="4 of 44 files") as caught:
        load(image_dir)
    assert all(name in str(caught.value) for name in names)
    assert "skip_broken = True" in str(caught.value) and not kept(image_dir)


def test_broken_files_can_be_left_out(image_dir, capsys, opened):
    whole = np.array(load(image_dir))
    names = break_some(image_dir)
    for _ in range(2):
        images = load(image_dir, skip_broken=True)
        assert len(images) == 40
        assert {i.tobytes() for i in images} == {i.tobytes() for i in whole}
        assert "4 of 44 files cannot be read as images: they" in capsys.readouterr().out
    with pytest.raises(ValueError, match="4 of 44 files"):  # and are named again when asked to
        load(image_dir)
    opened.clear()
    assert len(load(image_dir, skip_broken=True)) == 40 and len(opened) < 10
    for path in find_images(image_dir):
        if path.name not in names:
            path.unlink()
    with pytest.raises(ValueError, match="4 of 4 files"):
        load(image_dir, skip_broken=True)


@pytest.mark.filterwarnings("ignore:.*EXIF", "ignore:.*[Tt]ag")
def test_a_damaged_header_is_not_the_end(image_dir):
    path = image_dir / "exif.jpg"
    image = Image.new("RGB", (40, 40))
    exif = image.getexif()
    exif[0x0112], exif[0x010E], exif[0x0132] = 6, "hello" * 5, "2020:01:01 00:00:00"
    image.save(path, exif=exif)
    content = path.read_bytes()
    whole = find_images(image_dir)[0]
    numbers = set()
    for i in range(20, 140):  # each byte of the header
        path.write_bytes(content[:i] + b"\x00" + content[i + 1 :])
        numbers.add(len(load_images([path, whole], RESIZE)))
    assert numbers == {1, 2}


def test_more_broken_files_than_fit_are_counted(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_text("no image")
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert len(re.findall(r"\d+\.jpg \(", str(caught.value))) == 20
    assert "and 10 more" in str(caught.value)


# -------------------------------------------------------------------- drives and networks that fail


@pytest.fixture
def failing(image_dir, monkeypatch) -> dict[str, int]:
    """How many times more files of these names cannot be read."""
    times, really_open = {}, Image.open

    def fail(path: Path, *args: object, **kwargs: object) -> Image.Image:
        if times.get(path.name, 0):
            times[path.name] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(images, "READ_PAUSE", 0)
    return times


@pytest.mark.parametrize("name", ["000001.jpg", "000030.jpg"])
def test_a_drive_that_fails_for_a_moment_is_asked_again(image_dir, failing, name):
    whole = load_images(find_images(image_dir), RESIZE)
    failing[name] = 2
    assert (load(image_dir, skip_broken=True) == whole).all() and failing == {name: 0}


@pytest.mark.parametrize("skip_broken", [True, False])
def test_a_drive_that_fails_is_not_the_files_fault_and_no_array_is_kept(
    image_dir, failing, skip_broken
):
    failing["000030.jpg"] = 1000
    with pytest.raises(OSError, match="cannot read an image.*error.*000030.jpg") as caught:
        load(image_dir, skip_broken=skip_broken)
    assert caught.value.errno == errno.EIO and not kept(image_dir)
    failing.clear()
    assert len(load(image_dir, skip_broken=skip_broken)) == 40


def test_cores_are_counted_by_affinity_and_quota(tmp_path):
    n, quota = files.count_cores(tmp_path / "none"), tmp_path / "cpu.max"
    assert 1 <= n <= os.cpu_count()
    for text, cores in (("max 100000", n), ("50000 100000", 1), ("999999999 1000", n), ("", n)):
        quota.write_text(text)
        assert files.count_cores(quota) == cores
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert files.count_cores(quota) == 1
        finally:
            os.sched_setaffinity(0, before)


# ------------------------------------------------------------------------ kills, full disks, places


class Held:
    """``RESIZE`` under its own name, but once an array is begun, it waits for a file."""

    def __init__(self, folder: Path, go_on: Path) -> None:
        self.folder, self.go_on = folder, go_on

    def __call__(self, image: Image.Image) -> Image.Image:
        if list(self.folder.glob(".*.npy")):
            wait_for(self.go_on.exists)
        return RESIZE(image)

    def __str__(self) -> str:
        return str(RESIZE)


@pytest.mark.parametrize("killed", [False, True])
def test_two_at_once_decode_the_images_once_unless_one_is_killed(
    image_dir, tmp_path, opened, begin, killed
):
    paths, folder, go_on = find_images(image_dir), array_folder(image_dir), tmp_path / "go on"
    child = begin(lambda: load_images(paths, Held(folder, go_on), image_dir))
    wait_for(lambda: list(folder.glob(".*.npy")))
    if killed:
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not kept(image_dir) and list(folder.glob(".*.npy"))
    else:
        threading.Timer(0.5, go_on.touch).start()
    images = load(image_dir)
    assert killed or os.waitpid(child, 0)[1] == 0
    assert len(opened) >= 40 if killed else len(opened) < 10
    assert (images == load_images(paths, RESIZE)).all()
    assert len(kept(image_dir)) == 1 and not list(folder.glob(".*.npy"))


def test_a_full_disk_leaves_no_array_and_no_half_image(image_dir, tmp_path, capsys):
    path, noise = tmp_path / "result.png", blobs(9, 32, 32, seed=0)
    path.write_bytes(b"the one before")
    with full_disk(5000):
        for work in (
            lambda: load(image_dir),
            lambda: helpers.show_images(noise, 3, path),
            lambda: helpers.show_animation(noise, path),
        ):
            with pytest.raises(OSError, match="disk is full"):
                work()
    assert not kept(image_dir) and not list(array_folder(image_dir).glob(".*.npy"))
    assert path.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["result.png"]
    assert len(load(image_dir)) == 40


def test_a_folder_that_cannot_be_written_to_works(image_dir, cache):
    array_folder(image_dir).write_text("in the way, as a read-only disk would be")
    images = load(image_dir)
    assert len(images) == 40 and len(list((cache / "arrays").glob("*.npy"))) == 1
    other = image_dir.with_name("other")
    image_dir.rename(other)
    Image.new("RGB", (64, 64)).save(find_images(other)[0])
    assert (load(other) != images).any()
    for place in (cache, array_folder(other)):
        shutil.rmtree(place)
        place.write_text("in the way")
    with pytest.raises(OSError, match="cache.arrays cannot be written to.*XDG_CACHE_HOME"):
        load(other)


# ------------------------------------------------------------------------------------------ batches


def test_a_batch_is_the_images_themselves():
    images = blobs(6, 8, 8, seed=3)
    dataset = FaceDataset(images)
    batch, labels = dataset.__getitems__([4, 1])
    assert batch.shape == (2, 3, 8, 8) and labels.tolist() == [0, 0]
    assert np.allclose(batch.permute(0, 2, 3, 1).cpu().numpy() * 255, images[[4, 1]])
    assert (dataset[4][0] == batch[0]).all()


@pytest.mark.parametrize("n", [1, 4096, 5000])
def test_images_are_copied_whole_to_a_device(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 3), np.uint8)
    copy = copy_to(torch.device("cpu"), images)
    assert copy.dtype == torch.uint8 and (copy.numpy() == images).all()
