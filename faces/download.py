"""Data and weights from the network, and what takes their place without it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pooch
import requests
from urllib3.exceptions import HTTPError

from faces import files
from faces.archive import unpack
from faces.drawing import generate_faces
from faces.files import WEIGHTS, check_writable, make_once, refuse_unreadable
from faces.pictures import write_pictures
from faces.progress import Progress

DATA = "processed_celeba_small"  # the only folder that is made if it is not there
ARCHIVE_URL = (
    "https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
    "5be7eb6f_processed-celeba-small/processed-celeba-small.zip"
)
ARCHIVE_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
OFFLINE_FACES = 10_000

# A server that stalls from the start is left after 50 seconds: 8 to reach it, 3 x 12, 2 x 3.
DOWNLOAD_TRIES = 3
DOWNLOAD_TIMEOUT = 12.0  # seconds without a byte
DOWNLOAD_PAUSE = 3.0  # seconds before the next try
# One that drips is left after a minute, one that does not end when it sent more than we ask for.
DOWNLOAD_MINUTE = 60.0  # seconds ...
DOWNLOAD_LEAST = 600_000  # ... and the bytes that must come in them
DOWNLOAD_LARGEST = 300_000_000  # bytes; the archive has 248 million, Inception's weights 96


def get_data(data_dir: str | Path) -> Path:
    """Return a folder of images: the one given, an unpacked zip, a download or the offline set.

    A folder is used as it is. A zip is checked and unpacked once, into the user's cache folder, and
    again if images are missing there. If the default folder, ``processed_celeba_small``, is not
    there, the official CelebA archive is downloaded, checked and unpacked there; without a network
    the offline set takes its place: faces drawn from the shipped weights.

    Args:
        data_dir: a folder, a zip file, or the place where the download shall go.

    Returns:
        The folder that holds the images, at any depth.

    Raises:
        FileNotFoundError: if nothing is there, and it is not the default.
        ValueError: if the folder holds this project too; if the file is no zip, or is damaged or
            dangerous, or its checksum is wrong.
        OSError: if the disk is full, something cannot be read or written to, or the server refuses,
            stalls, drips, does not end or breaks off.
    """
    given, data_dir = data_dir, Path(data_dir).expanduser()
    if files.HERE.is_relative_to(data_dir.resolve()):  # "", ".", "/"
        raise ValueError(f"data_dir is {str(given)!r}: set it to a folder of images alone.")
    try:
        if data_dir.is_dir():
            return data_dir
        if data_dir.is_file():
            folder = files.CACHE / f"{data_dir.stem[:50]}-{pooch.file_hash(data_dir)[:12]}"
            unpack(data_dir, folder)
            return folder
    except PermissionError as error:
        refuse_unreadable(error)
    if data_dir.name != DATA or not data_dir.parent.is_dir():
        raise FileNotFoundError(f"There is no folder or file {data_dir}: correct data_dir.")
    archive = files.CACHE / Path(ARCHIVE_URL).name
    if not archive.is_file() and not is_reachable(ARCHIVE_URL):
        print(
            f"There is no folder {data_dir} and no network to download it: "
            f"going on with {OFFLINE_FACES:,} faces drawn from the shipped weights."
        )
        folder = files.CACHE / f"offline-{pooch.file_hash(WEIGHTS)[:12]}"
        return make_once(folder, _offline_set)
    print(f"There is no folder {data_dir}: the CelebA faces (248 MB) go there.")
    check_writable(data_dir.parent, "data_dir")
    unpack(download(ARCHIVE_URL, ARCHIVE_SHA256), data_dir)
    return data_dir


def is_reachable(url: str, seconds: float = 8.0) -> bool:
    """Whether a server answers for ``url`` in time, with whatever status; name look-up included."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(requests.RequestException):
            requests.head(url, timeout=seconds)
            answered.set()

    # The look-up of a name has no time limit of its own: wait for the thread, and leave it behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def download(url: str, sha256: str) -> Path:
    """Download a file into the cache folder, or find it there; either way check its hash."""

    def fetch(temporary: Path) -> Path:
        _fetch(url, temporary / "file")
        if pooch.file_hash(temporary / "file") != sha256:
            raise ValueError(
                f"What {url} sent is not the file expected (its SHA-256 is wrong) and was deleted. "
                "Run the cell again. (An archive can be downloaded by hand: set data_dir to it.)"
            )
        return temporary / "file"

    archive = files.CACHE / Path(url).name
    if archive.is_file() and pooch.file_hash(archive) != sha256:
        archive.unlink()
    return make_once(archive, fetch)


def _fetch(url: str, path: Path) -> None:
    """Download in several tries; each begins where the one before ended, if the server can."""
    begun, received = time.monotonic(), 0  # since then
    progress = Progress(desc="Downloading", unit="B", unit_scale=True)
    with progress, open(path, "wb") as file:
        for left in reversed(range(DOWNLOAD_TRIES)):
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
            try:
                with requests.get(
                    url, headers=headers, stream=True, timeout=DOWNLOAD_TIMEOUT
                ) as answer:
                    answer.raise_for_status()
                    if answer.status_code != requests.codes.partial_content:
                        file.truncate(file.seek(0))
                    progress.reset(file.tell() + int(answer.headers.get("Content-Length", 0)))
                    progress.update(file.tell())
                    while chunk := answer.raw.read1(2**18):  # what has come, without waiting
                        progress.update(file.write(chunk))
                        received += len(chunk)
                        if max(file.tell(), progress.total) > DOWNLOAD_LARGEST:
                            why = f"it has more than {DOWNLOAD_LARGEST:,} bytes"
                            raise requests.HTTPError(why, response=answer)
                        if time.monotonic() > begun + DOWNLOAD_MINUTE:
                            if received < DOWNLOAD_LEAST:
                                why = f"only {received:,} bytes came within a minute"
                                raise requests.HTTPError(why, response=answer)
                            begun, received = time.monotonic(), 0
                return
            except (requests.RequestException, HTTPError) as error:
                status = getattr(getattr(error, "response", None), "status_code", 500)
                if status < 500 or not left:
                    raise OSError(
                        f"The download of {url} failed: {error}. Run the cell again. (In the place "
                        "of the archive, data_dir can be a folder of images of your own.)"
                    ) from error
                print(f"The download broke off ({error}): trying again, {left} more at most.")
                time.sleep(DOWNLOAD_PAUSE)


def _offline_set(temporary: Path) -> Path:
    return write_pictures(generate_faces(OFFLINE_FACES, seed=0), temporary / "images")
