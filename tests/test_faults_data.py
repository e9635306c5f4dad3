"""What can go wrong on the way to the images: hostile zips, kills, full disks, odd places."""

import errno
import os
import signal
import stat
import struct
import threading
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import assert_nothing_left, full_disk, make_zip, wait_for
from PIL import Image

from faces import data, files
from faces.data import get_data
from faces.images import find_images


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------- archives


@pytest.fixture
def faces(image_dir, tmp_path) -> Path:
    """A zip of 40 images, below the folder processed_celeba_small."""
    return make_zip(image_dir, tmp_path / "faces.zip")


def add(archive: Path, content: bytes = b"evil", mode: int = 0, *, name: str) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(entry, content, zipfile.ZIP_DEFLATED)


def forge(archive: Path, *changes: tuple[bytes, bytes], times: int = 2) -> None:
    """Change what both headers of an entry say."""
    content = archive.read_bytes()
    for old, new in changes:
        assert content.count(old) == times and len(old) == len(new)
        content = content.replace(old, new)
    archive.write_bytes(content)


def test_no_entry_lands_outside_the_folder(faces, tmp_path, cache):
    entries = ["../evil.jpg", "/evil.jpg", "processed_celeba_small/../../../evil.jpg"]
    entries += ["..\\evil.jpg", "\\evil.jpg", "processed_celeba_small\\..\\..\\..\\evil.jpg"]
    entries += ["C:\\evil.jpg", "C:evil.jpg", "c:/evil.jpg", "\\\\host\\share\\evil.jpg"]
    entries += ["/", "\\", "C:/"]  # which name nothing
    for name in entries:
        add(faces, b"" if name[-1] in "/\\" else b"evil", name=name)
    folder = get_data(faces)
    evil = [*tmp_path.rglob("*evil*"), *Path("/").glob("*evil*"), *Path.cwd().glob("*evil*")]
    assert evil and all(folder in path.parents for path in evil)
    assert len([path for path in find_images(folder) if "evil" not in path.name]) == 40


def test_backslashes_from_windows_become_folders(image_dir, tmp_path, cache):
    path = find_images(image_dir)[0]
    for name in ("faces\\a\\1.jpg", "faces\\b\\1.jpg"):
        add(tmp_path / "faces.zip", path.read_bytes(), name=name)
    folder = get_data(tmp_path / "faces.zip")
    assert find_images(folder) == [folder / "a" / "1.jpg", folder / "b" / "1.jpg"]


def test_links_are_left_out(faces, tmp_path, cache):
    outside = tmp_path / "outside"
    outside.mkdir()
    top = "processed_celeba_small"
    link = stat.S_IFLNK | 0o777
    add(faces, str(outside).encode(), link, name=f"{top}/folder")
    add(faces, name=f"{top}/folder/evil.jpg")
    add(faces, str(outside / "new.jpg").encode(), link, name=f"{top}/link.jpg")
    add(faces, b"", stat.S_IFIFO | 0o666, name=f"{top}/pipe.jpg")
    add(faces, b"", stat.S_IFDIR | 0o777, name=f"{top}/folder.jpg/")
    folder = get_data(faces)
    assert all(path.is_dir() or path.is_file() for path in folder.rglob("*"))
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert len(find_images(folder)) == 41  # with evil.jpg, in a folder of its own
    assert names(outside) == []


def test_a_zip_of_links_and_litter_holds_no_images(tmp_path, cache):
    add(tmp_path / "links.zip", b"/etc/passwd", stat.S_IFLNK | 0o777, name="1.jpg")
    add(tmp_path / "links.zip", name="__MACOSX/._1.jpg")
    with pytest.raises(ValueError, match="links.zip holds no images"):
        get_data(tmp_path / "links.zip")
    assert_nothing_left(cache)


@pytest.mark.parametrize(("entries", "declared"), [(1, 2**32 - 2), (11, 100 * 2**20)])
def test_a_zip_that_would_grow_beyond_measure_is_refused(tmp_path, cache, entries, declared):
    bomb = tmp_path / "bomb.zip"
    for i in range(entries):
        add(bomb, bytes(54_321), name=f"{i}.bmp")
    forge(bomb, (struct.pack("<L", 54_321), struct.pack("<L", declared)), times=2 * entries)
    with pytest.raises(ValueError, match=r"bomb.zip would grow .* [\d,]+ bytes.*do not use it"):
        get_data(bomb)
    assert_nothing_left(cache)


def test_an_entry_is_never_larger_than_it_says(tmp_path, cache):
    bomb, zeros = tmp_path / "bomb.zip", bytes(50 * 2**20)
    add(bomb, zeros, name="1.bmp")
    checksums = (struct.pack("<L", zlib.crc32(content)) for content in (zeros, zeros[:1000]))
    forge(bomb, (struct.pack("<L", len(zeros)), struct.pack("<L", 1000)), tuple(checksums))
    tracemalloc.start()
    folder = get_data(bomb)
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()
    assert [path.stat().st_size for path in find_images(folder)] == [1000]


def test_an_image_of_one_colour_is_no_bomb(tmp_path, cache):
    Image.new("RGB", (2000, 2000), "red").save(tmp_path / "red.bmp")
    add(tmp_path / "red.zip", (tmp_path / "red.bmp").read_bytes(), name="red.bmp")
    assert (tmp_path / "red.zip").stat().st_size * 500 < (tmp_path / "red.bmp").stat().st_size
    assert len(find_images(get_data(tmp_path / "red.zip"))) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_letters_of_other_languages_are_kept(image_dir, tmp_path, cache, encoding):
    archive, content = tmp_path / "faces.zip", find_images(image_dir)[0].read_bytes()
    if encoding == "utf-8":
        add(archive, content, name="Köpfe/größte 顔.jpg")
    else:
        add(archive, content, name="Kxxpfe/grxxxe.jpg")
        forge(archive, (b"Kxxpfe/grxxxe.jpg", "Köäpfe/größäe.jpg".encode(encoding)))
    (image,) = find_images(get_data(archive))
    assert image.name == {"utf-8": "größte 顔.jpg", "cp437": "größäe.jpg"}[encoding]


def test_entries_of_the_same_name_break_nothing(image_dir, tmp_path, cache):
    first, last = (path.read_bytes() for path in find_images(image_dir)[:2])
    with warnings.catch_warnings(action="ignore"):
        for content, name in ((first, "1.jpg"), (last, "1.jpg"), (last, "2.jpg"), (last, "2.JPG")):
            add(tmp_path / "faces.zip", content, name=name)
    images = find_images(get_data(tmp_path / "faces.zip"))
    assert {path.name.lower() for path in images} == {"1.jpg", "2.jpg"}
    assert all(path.read_bytes() == last for path in images)


def test_a_name_that_is_not_written_as_it_says_is_a_damage(tmp_path, cache):
    add(tmp_path / "faces.zip", name="üü.jpg")
    forge(tmp_path / "faces.zip", ("üü".encode(), b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match="faces.zip is not a zip file, or is damaged"):
        get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


@pytest.mark.parametrize("name", ["1.jpg/2.jpg", f"{'x' * 300}.jpg"])
def test_a_name_that_cannot_be_written_is_named(tmp_path, cache, name):
    add(tmp_path / "faces.zip", name="1.jpg")
    add(tmp_path / "faces.zip", name=name)
    with pytest.raises(ValueError, match="faces.zip cannot be unpacked.*jpg.*a folder"):
        get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


def test_rare_compressions_are_refused(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("1.jpg", b"1")
    with pytest.raises(ValueError, match="faces.zip cannot be unpacked.*compression.*plain zip"):
        get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


# ------------------------------------------------------------------- kills, two at once, full disks

LITTER = ".unfinished-faces-*"


@pytest.fixture(params=["a zip", "the download", "the offline set"])
def source(request, server, absent, tmp_path, monkeypatch) -> Path:
    """A place that ``get_data`` makes 40 images of, in each of its three ways."""
    monkeypatch.setattr(data, "OFFLINE_FACES", 40)
    monkeypatch.setattr(data, "is_reachable", lambda url: request.param == "the download")
    return tmp_path / "archive.zip" if request.param == "a zip" else absent


def test_a_kill_does_no_harm(source, cache, begin, monkeypatch):
    with monkeypatch.context() as of_child:
        of_child.setattr(os, "replace", lambda *paths: time.sleep(60))  # before it takes its name
        child = begin(lambda: get_data(source))
    wait_for(lambda: any(path.is_file() for path in cache.glob(f"{LITTER}/**/*")))
    assert all(name.startswith(".") for name in names(cache))  # nothing that could be taken for it
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(cache.glob(LITTER))
    folder = get_data(source)
    assert len(find_images(folder)) == 40
    assert names(cache) == [folder.name if folder.parent == cache else "archive.zip"]


@pytest.mark.parametrize("killed", [False, True])
def test_whoever_comes_second_waits_until_the_first_is_done_or_killed(
    faces, tmp_path, cache, begin, monkeypatch, capsys, killed
):
    go_on = tmp_path / "go on"

    def held(members: list[zipfile.ZipInfo], **options: str) -> Iterator[zipfile.ZipInfo]:
        for member in members:
            yield member
            wait_for(go_on.exists)

    with monkeypatch.context() as of_child:
        of_child.setattr(data, "Progress", held)
        child = begin(lambda: get_data(faces))
    wait_for(lambda: list(cache.glob(f"{LITTER}/images/**/*.jpg")))
    if not killed:
        monkeypatch.setattr(data, "Progress", None)  # nothing is left to unpack
    threading.Timer(1.5, partial(os.kill, child, 9) if killed else go_on.touch).start()
    folder = get_data(faces)
    assert "waiting" in capsys.readouterr().out
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-9 if killed else 0)
    assert len(find_images(folder)) == 40 and names(cache) == [folder.name]


def test_a_full_disk_is_named_and_nothing_is_left(source, absent, cache, capsys):
    with full_disk(300), pytest.raises(OSError, match="disk is full.*free some space") as caught:
        get_data(source)
    assert caught.value.errno == errno.ENOSPC and str(cache) in str(caught.value)
    assert not absent.exists()
    assert_nothing_left(cache)


# ------------------------------------------------------------------------------------------ places


def test_a_zip_may_lie_in_a_read_only_folder(image_dir, tmp_path, cache):
    place = tmp_path / "read only"
    place.mkdir()
    archive = make_zip(image_dir, place / "faces.zip")
    before = place.stat().st_mtime_ns
    archive.chmod(0o444)
    place.chmod(0o555)
    try:
        assert len(find_images(get_data(archive))) == 40
    finally:
        place.chmod(0o755)
    assert place.stat().st_mtime_ns == before and names(place) == ["faces.zip"]


@pytest.mark.parametrize("name", ["my größte faces 顔.zip", f"{'顔' * 83}.zip", "x.ZIP", "faces"])
def test_a_zip_may_have_any_name_and_a_relative_path(image_dir, tmp_path, cache, monkeypatch, name):
    place = tmp_path / "schöne Bilder 1"
    (place / "elsewhere").mkdir(parents=True)
    os.replace(make_zip(image_dir, tmp_path / "faces.zip"), place / name)
    monkeypatch.chdir(place / "elsewhere")
    folder = get_data(f"../{name}")
    assert len(find_images(folder)) == 40
    assert get_data(str(place / name)) == folder
    assert names(place) == sorted([name, "elsewhere"])


def test_a_cache_folder_that_cannot_be_written_is_named(faces, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(files, "CACHE", tmp_path / "file" / "cache")
    with pytest.raises(OSError, match="file.cache cannot be written to.*XDG_CACHE_HOME"):
        get_data(faces)
