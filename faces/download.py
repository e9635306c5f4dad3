"""Data and weights from the network, and what takes their place without it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pooch
import requests
from PIL import Image

from faces import files
from faces.archive import unpack
from faces.drawing import generate_faces
from faces.files import WEIGHTS, check_writable, make_once
from faces.progress import Progress

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


def get_data(data_dir: str | Path) -> Path:
    """Return a folder of images: the one given, an unpacked zip, a download or the offline set.

    A folder is used as it is. A zip is checked and unpacked once, into the user's cache folder. If
    nothing is at ``data_dir``, the official CelebA archive is downloaded, checked and unpacked
    there; without a network the offline set takes its place: faces drawn from the shipped weights.

    Args:
        data_dir: a folder, a zip file, or the place where the download shall go.

    Returns:
        The folder that holds the images, at any depth.

    Raises:
        FileNotFoundError: if ``data_dir`` names a zip that is not there.
        ValueError: if the file is no zip, or is damaged or dangerous, or its checksum is wrong.
        OSError: if the disk is full, a folder cannot be written to, or the server refuses, stalls
            or breaks off.
    """
    data_dir = Path(data_dir).expanduser()
    if data_dir.is_dir():
        return data_dir
    if data_dir.is_file():
        folder = files.CACHE / f"{data_dir.stem[:50]}-{pooch.file_hash(data_dir)[:12]}"
        unpack(data_dir, folder)
        return folder
    if data_dir.suffix.lower() == ".zip":
        raise FileNotFoundError(f"There is no file {data_dir}: correct data_dir.")
    archive = files.CACHE / Path(ARCHIVE_URL).name
    if not archive.is_file() and not is_reachable(ARCHIVE_URL):
        print(
            f"There is no folder {data_dir} and no network to download it: "
            f"going on with {OFFLINE_FACES:,} faces drawn from the shipped weights."
        )
        return _offline_set()
    print(f"There is no folder {data_dir}: the CelebA faces (248 MB) go there.")
    check_writable(data_dir.parent, "data_dir")
    unpack(download(ARCHIVE_URL, ARCHIVE_SHA256), data_dir)
    return data_dir


def is_reachable(url: str, seconds: float = 8.0) -> bool:
    """Whether a server answers for ``url`` in time, with whatever status; name look-up included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds)
        except requests.RequestException:
            return
        answered.set()

    # The look-up of a name has no time limit of its own: wait for the thread, and leave it behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def download(url: str, sha256: str) -> Path:
    """Download a file into the cache folder, or find it there; either way check its hash."""

    def fetch(url: str, output_file: str, pooch_: pooch.Pooch | None) -> None:
        for left in reversed(range(DOWNLOAD_TRIES)):
            try:
                with Progress(total=1, desc="Downloading", unit="B", unit_scale=True) as progress:
                    pooch.HTTPDownloader(
                        progressbar=progress, chunk_size=2**18, timeout=DOWNLOAD_TIMEOUT
                    )(url, output_file, pooch_)
                return
            except requests.RequestException as error:
                refused = error.response is not None and error.response.status_code < 500
                if refused or not left:
                    raise
                print(f"The download broke off ({error}): trying again, {left} more at most.")
                time.sleep(DOWNLOAD_PAUSE)

    def retrieve(temporary: Path) -> Path:
        name = Path(url).name
        return Path(pooch.retrieve(url, sha256, fname=name, path=temporary, downloader=fetch))

    pooch.get_logger().setLevel("WARNING")
    archive = files.CACHE / Path(url).name
    if archive.is_file() and pooch.file_hash(archive) != sha256:
        archive.unlink()
    try:
        return make_once(archive, retrieve)
    except ValueError as error:
        raise ValueError(
            f"What {url} sent is not the file expected (its SHA-256 is wrong) and was deleted. Run "
            "the cell again. (An archive can be downloaded by hand: set data_dir to it.)"
        ) from error
    except requests.RequestException as error:
        raise OSError(
            f"The download of {url} failed: {error}. Run the cell again. (In the place of the "
            "archive, data_dir can be a folder of images of your own.)"
        ) from error


def _offline_set() -> Path:
    """Return the folder of the offline set; made from the shipped weights the first time."""

    def draw(temporary: Path) -> Path:
        images = temporary / "images"
        images.mkdir()
        for i, face in enumerate(generate_faces(OFFLINE_FACES, seed=0), start=1):
            Image.fromarray(face).save(images / f"{i:06d}.png", compress_level=1)
        return images

    return make_once(files.CACHE / f"offline-{pooch.file_hash(WEIGHTS)[:12]}", draw)
