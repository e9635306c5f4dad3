"""What can go wrong on the way to the images: servers, archives, kills, full disks, odd places."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import stat
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_nothing_left, make_zip
from PIL import Image

import helpers
from faces import archive, download, files
from faces.progress import Progress


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize(
    ("behaviour", "tries", "error", "message"),
    [
        ("hangs up", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("breaks off", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("is silent", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("stalls", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("500", 3, OSError, "download of {} failed.*500.*Run the cell again"),
        ("503", 3, OSError, "download of {} failed.*503.*Run the cell again"),
        ("404", 1, OSError, "download of {} failed.*404.*Run the cell again"),
        ("page", 1, ValueError, "What {} sent is not the file expected.*by hand"),
        ("wrong bytes", 1, ValueError, "What {} sent is not the file expected.*SHA-256"),
        ("breaks off unnoticed", 1, ValueError, "What {} sent is not the file expected"),
    ],
)
def test_a_failed_download_leaves_nothing(
    server, absent, cache, capsys, behaviour, tries, error, message
):
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(error, match=message.format(download.ARCHIVE_URL)):
        helpers.get_data(absent)
    assert time.monotonic() - started < tries * download.DOWNLOAD_TIMEOUT + 5
    assert server.asked == [behaviour] * tries
    assert capsys.readouterr().out.count("trying again") == tries - 1
    assert not absent.exists()
    assert_nothing_left(cache)


def test_a_server_that_stalls_is_left_within_a_minute():
    pauses = (download.DOWNLOAD_TRIES - 1) * download.DOWNLOAD_PAUSE
    reached = download.is_reachable.__defaults__[0]
    assert reached + download.DOWNLOAD_TRIES * download.DOWNLOAD_TIMEOUT + pauses < 60


@pytest.mark.parametrize("first", [["breaks off"], ["503", "stalls"]])
def test_a_download_that_breaks_off_is_tried_again(server, absent, cache, capsys, first):
    server.behaviours = [*first, "whole"]
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    lines = capsys.readouterr().out.splitlines()
    assert sum("broke off" in line and "trying again" in line for line in lines) == len(first)
    assert names(cache) == ["archive.zip"]
    assert (cache / "archive.zip").read_bytes() == server.content


def test_a_download_goes_on_where_it_broke_off(server, absent):
    server.behaviours = ["breaks off", "gives the rest"]
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    n = len(server.content)
    assert server.sent == [n - n // 2]


def test_a_rest_of_another_file_is_not_taken(server, absent, cache):
    server.behaviours = ["breaks off", "gives the rest"]
    server.content = server.content[:-1] + b"?"
    with pytest.raises(ValueError, match="is not the file expected"):
        helpers.get_data(absent)
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("drips", r"failed: only \d bytes came within a minute. Run the cell again"),
        ("never ends", "failed: it has more than 300,000 bytes. Run the cell again"),
        ("whole", "failed: it has more than 1,000 bytes. Run the cell again"),
    ],
)
def test_a_server_that_drips_or_never_ends_is_left(
    server, absent, cache, monkeypatch, behaviour, message
):
    monkeypatch.setattr(download, "DOWNLOAD_MINUTE", 0.5)
    largest = 1000 if behaviour == "whole" else 300_000
    monkeypatch.setattr(download, "DOWNLOAD_LARGEST", largest)
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(OSError, match=message):
        helpers.get_data(absent)
    assert time.monotonic() - started < 5
    assert server.asked == [behaviour]
    assert_nothing_left(cache)


def test_a_server_that_drips_is_left_within_two_minutes():
    tries = download.DOWNLOAD_TRIES * download.DOWNLOAD_TIMEOUT
    pauses = (download.DOWNLOAD_TRIES - 1) * download.DOWNLOAD_PAUSE
    reached = download.is_reachable.__defaults__[0]
    assert reached + download.DOWNLOAD_MINUTE + tries + pauses < 120


def test_a_damaged_archive_in_the_cache_is_downloaded_again(server, absent, cache):
    cache.mkdir()
    (cache / "archive.zip").write_bytes(server.content[:-1])
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    assert (cache / "archive.zip").read_bytes() == server.content


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


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.jpg", "/evil.jpg", "processed_celeba_small/../../evil.jpg", "../evil.txt"),
        *("..\\evil.jpg", "\\evil.jpg", "processed_celeba_small\\..\\..\\evil.jpg"),
        *("C:\\evil.jpg", "C:evil.jpg", "c:/evil.jpg", "\\\\host\\share\\evil.jpg"),
    ],
)
def test_an_entry_outside_the_folder_is_refused(faces, tmp_path, cache, name):
    add(faces, name=name)
    with pytest.raises(ValueError, match="faces.zip: the entry .* outside its folder"):
        helpers.get_data(faces)
    assert not list(tmp_path.rglob("*evil*")) and not list(Path("/").glob("*evil*"))
    assert_nothing_left(cache)


@pytest.mark.parametrize("name", ["/", "\\", "C:/"])
def test_an_entry_without_a_name_is_skipped(faces, cache, name):
    add(faces, b"", name=name)
    assert len(helpers.find_images(helpers.get_data(faces))) == 40


def test_backslashes_from_windows_become_folders(image_dir, tmp_path, cache):
    path = helpers.find_images(image_dir)[0]
    for name in ("faces\\a\\1.jpg", "faces\\b\\1.jpg"):
        add(tmp_path / "faces.zip", path.read_bytes(), name=name)
    folder = helpers.get_data(tmp_path / "faces.zip")
    assert helpers.find_images(folder) == [folder / "a" / "1.jpg", folder / "b" / "1.jpg"]


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
    folder = helpers.get_data(faces)
    assert all(path.is_dir() or path.is_file() for path in folder.rglob("*"))
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert len(helpers.find_images(folder)) == 41  # with evil.jpg, in a folder of its own
    assert names(outside) == []


def test_a_zip_of_links_holds_no_images(tmp_path, cache):
    add(tmp_path / "links.zip", b"/etc/passwd", stat.S_IFLNK | 0o777, name="1.jpg")
    with pytest.raises(ValueError, match="links.zip holds no images"):
        helpers.get_data(tmp_path / "links.zip")
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("entries", "declared"),
    [(1, archive.LARGEST_IMAGE + 1), (1, 2**32 - 2), (11, archive.LARGEST_IMAGE)],
)
def test_a_zip_that_would_grow_beyond_measure_is_refused(tmp_path, cache, entries, declared):
    bomb = tmp_path / "bomb.zip"
    for i in range(entries):
        add(bomb, bytes(54_321), name=f"{i}.bmp")
    forge(bomb, (struct.pack("<L", 54_321), struct.pack("<L", declared)), times=2 * entries)
    with pytest.raises(ValueError, match=r"bomb.zip would grow .* [\d,]+ bytes.*do not use it"):
        helpers.get_data(bomb)
    assert_nothing_left(cache)


@pytest.mark.parametrize("right_sum", [False, True])
def test_an_entry_is_never_larger_than_it_says(tmp_path, cache, right_sum):
    bomb, zeros = tmp_path / "bomb.zip", bytes(50 * 2**20)
    add(bomb, zeros, name="1.bmp")
    forge(bomb, (struct.pack("<L", len(zeros)), struct.pack("<L", 1000)))
    if right_sum:
        checksums = zlib.crc32(zeros), zlib.crc32(zeros[:1000])
        forge(bomb, tuple(struct.pack("<L", checksum) for checksum in checksums))
    tracemalloc.start()
    with contextlib.nullcontext() if right_sum else pytest.raises(ValueError, match="damaged"):
        helpers.get_data(bomb)
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()
    if right_sum:
        assert [path.stat().st_size for path in cache.rglob("*.bmp")] == [1000]
    else:
        assert_nothing_left(cache)


def test_a_picture_of_one_colour_is_no_bomb(tmp_path, cache):
    Image.new("RGB", (2000, 2000), "red").save(tmp_path / "red.bmp")
    add(tmp_path / "red.zip", (tmp_path / "red.bmp").read_bytes(), name="red.bmp")
    assert (tmp_path / "red.zip").stat().st_size * 500 < (tmp_path / "red.bmp").stat().st_size
    assert len(helpers.find_images(helpers.get_data(tmp_path / "red.zip"))) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_letters_of_other_languages_are_kept(image_dir, tmp_path, cache, encoding):
    archive, content = tmp_path / "faces.zip", helpers.find_images(image_dir)[0].read_bytes()
    if encoding == "utf-8":
        add(archive, content, name="Köpfe/größte 顔.jpg")
    else:
        add(archive, content, name="Kxxpfe/grxxxe.jpg")
        forge(archive, (b"Kxxpfe/grxxxe.jpg", "Köäpfe/größäe.jpg".encode(encoding)))
    (image,) = helpers.find_images(helpers.get_data(archive))
    assert image.name == {"utf-8": "größte 顔.jpg", "cp437": "größäe.jpg"}[encoding]


def test_entries_of_the_same_name_break_nothing(image_dir, tmp_path, cache):
    first, last = (path.read_bytes() for path in helpers.find_images(image_dir)[:2])
    with warnings.catch_warnings(action="ignore"):
        for content, name in ((first, "1.jpg"), (last, "1.jpg"), (last, "2.jpg"), (last, "2.JPG")):
            add(tmp_path / "faces.zip", content, name=name)
    images = helpers.find_images(helpers.get_data(tmp_path / "faces.zip"))
    assert {path.name.lower() for path in images} == {"1.jpg", "2.jpg"}
    assert all(path.read_bytes() == last for path in images)


def test_a_name_that_is_not_written_as_it_says_is_a_damage(tmp_path, cache):
    add(tmp_path / "faces.zip", name="üü.jpg")
    forge(tmp_path / "faces.zip", ("üü".encode(), b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match="faces.zip is no zip file, or a damaged one"):
        helpers.get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


@pytest.mark.parametrize("name", ["1.jpg/2.jpg", f"{'x' * 300}.jpg"])
def test_a_name_that_cannot_be_written_is_named(tmp_path, cache, name):
    add(tmp_path / "faces.zip", name="1.jpg")
    add(tmp_path / "faces.zip", name=name)
    with pytest.raises(ValueError, match="faces.zip cannot be unpacked.*jpg.*a folder"):
        helpers.get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


def test_rare_compressions_are_refused(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("1.jpg", b"1")
    with pytest.raises(ValueError, match="faces.zip cannot be unpacked.*compression.*plain zip"):
        helpers.get_data(tmp_path / "faces.zip")
    assert_nothing_left(cache)


# ------------------------------------------------------------------- kills, two at once, full disks

LITTER = ".unfinished-faces-*"
drawn = helpers.generate_faces


class FreezingProgress(Progress):
    """Hangs after five images, as if the process were slow."""

    def __iter__(self) -> Iterator[Any]:
        for i, item in enumerate(super().__iter__()):
            if i == 5:
                time.sleep(60)
            yield item


class SlowProgress(Progress):
    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            time.sleep(0.04)
            yield item


def freezing_faces(n: int, seed: int) -> Iterator[np.ndarray]:
    """Hangs after five faces."""
    yield from drawn(n, seed)[:5]
    time.sleep(60)


HOMES = {"CACHE": files, "Progress": archive}  # of what a test changes in a child; or download


def child(settings: dict[str, Any], data_dir: Path, limit: int | None, answer: Connection) -> None:
    """A process of its own: answers with the number of images or the error, and what it printed."""
    for name, value in settings.items():
        assert hasattr(HOMES.get(name, download), name)
        setattr(HOMES.get(name, download), name, value)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            result = len(helpers.find_images(helpers.get_data(data_dir)))
        except (OSError, ValueError) as error:
            result = error
    answer.send((result, printed.getvalue()))


class Child:
    """``get_data`` in a process of its own, which has this test's settings."""

    def __init__(
        self, context: Any, data_dir: Path, limit: int | None = None, **settings: Any
    ) -> None:
        for name in ("CACHE", "ARCHIVE_URL", "ARCHIVE_SHA256", "OFFLINE_FACES"):
            settings.setdefault(name, getattr(HOMES.get(name, download), name))
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=child, args=(settings, data_dir, limit, sender))
        self.process.start()
        sender.close()

    def answer(self) -> tuple[int | Exception, str]:
        assert self.receiver.poll(60), "the process does not answer"
        return self.receiver.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.receiver.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Starts ``get_data(data_dir)`` in a new process, from one that has imported helpers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes are started otherwise here")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers"])
    children = []

    def start_one(*args: Any, **kwargs: Any) -> Child:
        children.append(Child(context, *args, **kwargs))
        return children[-1]

    yield start_one
    for started in children:
        started.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "nothing happens"
        time.sleep(0.01)


def written(cache: Path, ending: str) -> int:
    return len(list(cache.glob(f"{LITTER}/images/**/*.{ending}")))


def test_a_kill_while_unpacking_does_no_harm(faces, cache, start):
    first = start(faces, Progress=FreezingProgress)
    wait_for(lambda: written(cache, "jpg") == 5)
    assert all(name.startswith(".") for name in names(cache))  # nothing that could be taken for it
    first.kill()
    assert list(cache.glob(LITTER))
    folder = helpers.get_data(faces)
    assert len(helpers.find_images(folder)) == 40
    assert names(cache) == [folder.name]


def test_whoever_waits_for_a_killed_one_goes_on(faces, cache, start):
    first = start(faces, Progress=FreezingProgress)
    wait_for(lambda: written(cache, "jpg") == 5)
    second = start(faces)
    assert not second.receiver.poll(4)
    first.kill()
    found, printed = second.answer()
    assert found == 40 and "waiting" in printed
    assert len(names(cache)) == 1


def test_two_that_start_at_once_both_get_the_whole_folder(faces, cache, start):
    both = [start(faces, Progress=SlowProgress) for _ in range(2)]
    assert [one.answer()[0] for one in both] == [40, 40]
    assert len(names(cache)) == 1


def test_a_kill_while_the_offline_set_is_made_does_no_harm(absent, cache, monkeypatch, start):
    monkeypatch.setattr(download, "OFFLINE_FACES", 12)
    monkeypatch.setattr(download, "ARCHIVE_URL", "http://127.0.0.1:9/archive.zip")
    first = start(absent, generate_faces=freezing_faces)
    wait_for(lambda: written(cache, "png") == 5)
    assert all(name.startswith(".") for name in names(cache))
    first.kill()
    assert list(cache.glob(LITTER))
    folder = helpers.get_data(absent)
    assert len(helpers.find_images(folder)) == 12
    assert names(cache) == [folder.name]


def test_a_kill_while_downloading_does_no_harm(server, faces, absent, cache, monkeypatch, start):
    add(faces, os.urandom(2**20), name="noise.txt")  # so that the first half gets to the disk
    server.content = faces.read_bytes()
    server.behaviours = ["stalls", "whole"]
    monkeypatch.setattr(download, "ARCHIVE_SHA256", hashlib.sha256(server.content).hexdigest())
    first = start(absent)
    wait_for(lambda: any(path.stat().st_size for path in cache.glob(f"{LITTER}/*")))
    first.kill()
    assert list(cache.glob(LITTER)) and not (cache / "archive.zip").exists()
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    assert names(cache) == ["archive.zip"]


@pytest.mark.parametrize("what", ["unpacking", "download", "offline set"])
def test_a_full_disk_is_named_and_nothing_is_left(server, absent, tmp_path, cache, start, what):
    """The limit of a file's size gives the same error in the same place as a full disk."""
    pytest.importorskip("resource")
    data_dir, limit, settings = absent, 300, {}
    if what == "unpacking":
        data_dir = tmp_path / "archive.zip"
    elif what == "download":
        limit = len(server.content) - 1000
    else:
        settings = {"ARCHIVE_URL": "http://127.0.0.1:9/archive.zip", "OFFLINE_FACES": 12}
    error, _ = start(data_dir, limit, **settings).answer()
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    assert "disk is full" in str(error) and "free some space" in str(error)
    assert str(cache) in str(error)
    assert server.asked == (["whole"] if what == "download" else [])
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
        assert len(helpers.find_images(helpers.get_data(archive))) == 40
    finally:
        place.chmod(0o755)
    assert place.stat().st_mtime_ns == before and names(place) == ["faces.zip"]


@pytest.mark.parametrize("name", ["my größte faces 顔.zip", f"{'顔' * 83}.zip", "x.ZIP", "faces"])
def test_a_zip_may_have_any_name_and_a_relative_path(image_dir, tmp_path, cache, monkeypatch, name):
    place = tmp_path / "schöne Bilder 1"
    (place / "elsewhere").mkdir(parents=True)
    os.replace(make_zip(image_dir, tmp_path / "faces.zip"), place / name)
    monkeypatch.chdir(place / "elsewhere")
    folder = helpers.get_data(f"../{name}")
    assert len(helpers.find_images(folder)) == 40
    assert helpers.get_data(str(place / name)) == folder
    assert names(place) == sorted([name, "elsewhere"])


def test_a_cache_folder_that_cannot_be_written_is_named(faces, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(files, "CACHE", tmp_path / "file" / "cache")
    with pytest.raises(OSError, match="file.cache cannot be written to.*XDG_CACHE_HOME"):
        helpers.get_data(faces)
