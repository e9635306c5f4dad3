"""The photographs: a folder, a zip or the download; without a network, drawn faces."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pooch
import requests
from urllib3.exceptions import HTTPError

from faces import files
from faces.files import FULL, WEIGHTS, build_once, check_writable, refuse_unreadable
from faces.generator import generate_faces
from faces.images import check_path, is_hidden, is_image_name
from faces.parallel import Progress
from faces.show import write_images

DATA = "processed_celeba_small"  # the only folder that is made if it does not exist
ARCHIVE_URL = (
    "https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
    "5be7eb6f_processed-celeba-small/processed-celeba-small.zip"
)
ARCHIVE_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
OFFLINE_FACES = 10_000

DOWNLOAD_TRIES = 3
DOWNLOAD_TIMEOUT = 12.0  # seconds without a byte
DOWNLOAD_PAUSE = 3.0  # seconds before the next try
# A server that drips is left after a minute, one that does not end when it sent more than we want.
DOWNLOAD_MINUTE = 60.0  # seconds ...
DOWNLOAD_LEAST = 600_000  # ... and the bytes that must come in them
DOWNLOAD_LARGEST = 300_000_000  # bytes; the archive has 248 million, Inception's weights 96

# JPEG and PNG hardly shrink in a zip. A BMP of one colour shrinks a thousandfold, so a small
# archive may grow at any ratio, if not beyond all measure.
LARGEST_RATIO = 100  # of all images to the archive ...
HARMLESS_SIZE = 2**30  # ... where they have more bytes than that


def get_data(data_dir: str | Path) -> Path:
    """Return a folder of images: the one given, an unpacked zip, a download or the offline set.

    A folder is used as it is. A zip is checked and unpacked once, into the user's cache folder, and
    again if images are missing there. If the default folder, ``processed_celeba_small``, does not
    exist or is empty, the official CelebA archive is downloaded, checked and unpacked there;
    without a network the offline set takes its place: faces drawn from the shipped weights.

    Args:
        data_dir: a folder, a zip file, or the place where the download shall go.

    Returns:
        The folder that holds the images, at any depth.

    Raises:
        FileNotFoundError: if nothing is there, and it is not the default.
        ValueError: if ``data_dir`` cannot be a path; if the folder holds this project too; if the
            file is not a zip, is damaged, or would grow as no photographs do; if the download is
            not the file expected.
        OSError: if the disk is full, something cannot be read or written to, or the download fails.
    """
    given, data_dir = data_dir, check_path(data_dir)
    if files.HERE.is_relative_to(data_dir.resolve()):  # "", ".", "/"
        raise ValueError(f"data_dir is {str(given)!r}. Set it to a folder of images alone.")
    try:
        if data_dir.is_dir():
            if data_dir.name != DATA or not all(map(is_hidden, os.listdir(data_dir))):
                return data_dir
        elif data_dir.is_file():
            _check_zip(data_dir)
            folder = files.CACHE / f"{data_dir.stem[:50]}-{pooch.file_hash(data_dir)[:12]}"
            unpack(data_dir, folder)
            return folder
    except PermissionError as error:
        refuse_unreadable(error)
    if data_dir.name != DATA or not data_dir.parent.is_dir():
        raise FileNotFoundError(f"There is no folder or file {data_dir}. Correct data_dir.")
    archive = files.CACHE / Path(ARCHIVE_URL).name
    if not archive.is_file() and not is_reachable(ARCHIVE_URL):
        print(
            f"There is no folder {data_dir}, or nothing in it, and no network to download it: "
            f"{OFFLINE_FACES:,} faces drawn from the shipped weights take its place."
        )
        folder = files.CACHE / f"offline-{pooch.file_hash(WEIGHTS)[:12]}"
        return build_once(folder, _draw_offline_set)
    print(f"There is no folder {data_dir}, or nothing in it: the CelebA faces (248 MB) go there.")
    folder = data_dir / "celeba" if data_dir.is_dir() else data_dir  # which may be a mounted drive
    check_writable(folder.parent, "data_dir")
    unpack(download(ARCHIVE_URL, ARCHIVE_SHA256), folder)
    return data_dir


def _check_zip(path: Path) -> None:
    """Refuse a file of another kind. A zip cut off looks like one, so it may be called a zip."""
    with open(path, "rb") as file:
        if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(file):
            raise ValueError(
                f"{path} is neither a folder nor a zip. Set data_dir to the folder of the images, "
                "or to a zip of them; unpack an archive of another kind by hand."
            )


def _draw_offline_set(temporary: Path) -> Path:
    return write_images(generate_faces(OFFLINE_FACES, seed=0), temporary / "images")


# ------------------------------------------------------------------------ the network


def is_reachable(url: str, seconds: float = 8.0) -> bool:
    """Tell whether a server answers for ``url`` in time, whatever it says."""
    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds)
        except requests.RequestException:
            return
        except OSError:  # REQUESTS_CA_BUNDLE names no file: the download says so
            pass
        answered.set()

    # The look-up of a name has no time limit of its own: wait for the thread, and leave it behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


class _Slow(requests.RequestException):
    """A server that drips, or that does not end."""


class _WatchedProgress(Progress):
    """A download's live line, which ends the download if it is too slow or too long."""

    def __init__(self) -> None:
        super().__init__(desc="Downloading", unit="B", unit_scale=True)
        self._since = time.monotonic(), 0

    def __bool__(self) -> bool:  # pooch asks; tqdm's own is false, or fails, without a length
        return True

    def update(self, n: float = 1) -> None:
        """Count bytes that have come."""
        super().update(n)
        if self.disable:  # in a process that does not print
            self.n += n
        then, received = self._since
        if self.n > DOWNLOAD_LARGEST:
            raise _Slow(f"it has more than {DOWNLOAD_LARGEST:,} bytes")
        if time.monotonic() > then + DOWNLOAD_MINUTE:
            if self.n - received < DOWNLOAD_LEAST:
                raise _Slow(f"only {self.n - received:,} bytes came within a minute")
            self._since = time.monotonic(), self.n


def download(url: str, sha256: str) -> Path:
    """Download a file into the cache folder, or find it there; either way check its hash.

    Raises:
        ValueError: if it is not the file expected.
        OSError: if it cannot be downloaded, in several tries where the connection breaks off.
    """
    path = files.CACHE / Path(url).name
    if path.is_file() and pooch.file_hash(path) != sha256:
        path.unlink()

    def fetch(temporary: Path) -> Path:
        for left in reversed(range(DOWNLOAD_TRIES)):
            try:
                with _WatchedProgress() as progress:
                    get = pooch.HTTPDownloader(progress, timeout=DOWNLOAD_TIMEOUT)
                    get(url, str(temporary / "file"), None)
                break
            except (OSError, ValueError, HTTPError) as error:  # ValueError: a length of "abc"
                if getattr(error, "errno", None) in FULL:
                    raise
                status = getattr(getattr(error, "response", None), "status_code", 500)
                may_pass = isinstance(error, (requests.RequestException, HTTPError))
                if not may_pass or status < 500 or isinstance(error, _Slow) or not left:
                    raise OSError(
                        f"The download of {url} failed: {error}. Run the cell again. (In place of "
                        "the archive, data_dir can be a folder of images of your own.)"
                    ) from error
                print(f"The download broke off ({error}): trying again, {left} more at most.")
                time.sleep(DOWNLOAD_PAUSE)
        if pooch.file_hash(temporary / "file") != sha256:
            raise ValueError(
                f"What {url} sent is not the file expected (its SHA-256 is wrong) and was deleted. "
                "Run the cell again. (You can download the archive by hand and set data_dir to it.)"
            )
        return temporary / "file"

    return build_once(path, fetch)


# ------------------------------------------------------------------------ a zip


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack the images of a zip into a new folder: all of them, or nothing.

    They are written to a temporary folder beside it, which takes the name at the end. If the
    archive holds a single top folder, that one becomes ``folder``. Links are left out, and
    ``zipfile`` keeps every file inside. Nothing is done if the folder exists: another process may
    have made it.

    Raises:
        ValueError: if the file is not a zip, is damaged, holds no images, or would grow as no
            photographs do; or if a file cannot be written under its name.
        OSError: if there is not enough space.
    """
    archive, folder = Path(archive), Path(folder)

    def extract(temporary: Path) -> Path:
        target = temporary / "images"
        try:
            with zipfile.ZipFile(archive) as opened:
                members = _find_images(opened)
                if sum(m.file_size for m in members) > shutil.disk_usage(temporary).free:
                    raise OSError(errno.ENOSPC, "too large")
                for member in Progress(members, desc=f"Unpacking {archive.name}", unit=" images"):
                    opened.extract(member, target)  # never more bytes than the entry declares
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError) as error:
            raise ValueError(
                f"{archive} is not a zip file, or is damaged ({error}). Download or copy it again."
            ) from error
        except (RuntimeError, OSError) as error:  # a password, a long name
            if getattr(error, "errno", None) in FULL:
                raise
            raise ValueError(
                f"{archive} cannot be unpacked ({error}). Set data_dir to a plain zip or a folder."
            ) from error
        tops = list(target.iterdir())
        return tops[0] if len(tops) == 1 and tops[0].is_dir() else target

    build_once(folder, extract)


def _find_images(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Find the images of a zip, with slashes in their names, and refuse one that would explode."""
    members = []
    for member in opened.infolist():
        member.filename = member.filename.replace("\\", "/")
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip does not say
        is_file = kind in (0, stat.S_IFREG) and not member.filename.endswith("/")
        if is_file and is_image_name(Path(member.filename)):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError(f"compression type {member.compress_type}")
            members.append(member)
    if not members:
        raise ValueError(f"{opened.filename} holds no images. Set data_dir to a zip that does.")
    total, packed = sum(m.file_size for m in members), os.path.getsize(opened.filename)
    if total > max(HARMLESS_SIZE, LARGEST_RATIO * packed):
        raise ValueError(
            f"{opened.filename} would grow from {packed:,} to {total:,} bytes, as no photographs "
            "do. Nothing was unpacked: do not use it, or unpack it by hand and set data_dir to "
            "that folder."
        )
    return members
