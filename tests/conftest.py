"""Made-up images for the tests, nobody's photographs, a server that has them, and faults."""

import hashlib
import http.server
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from xdist.scheduler import LoadScopeScheduling

from faces import data, files
from faces.images import find_images, load_images

# The tests have a process on each core: more threads would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

RESIZE = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])

COLORS = {  # one of each class of lightness
    "dark": (70, 45, 35),
    "brown": (140, 95, 65),
    "tan": (185, 135, 95),
    "intermediate": (205, 155, 115),
    "light": (225, 180, 150),
    "very light": (245, 215, 195),
}


class Scheduling(LoadScopeScheduling):
    """Whoever is free takes the next test; those of each long module go to one process, and first.

    Those of test_notebook.py share a run of the notebook, those of test_grading.py a graded class.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return what a test has in common with those that must run in the same process."""
        path = nodeid.split("::")[0]
        return (
            path
            if path.endswith(("test_notebook.py", "test_grading.py", "test_grading_class.py"))
            else nodeid
        )


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def plain_faces(*colors: tuple[int, ...]) -> np.ndarray:
    """Faces of one colour each, uint8 (n, 32, 32, 3)."""
    return np.tile(np.array(colors, np.uint8)[:, None, None], (1, 32, 32, 1))


def blobs(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth random colours, uint8 (n, height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((width, height))) for s in small])


def shorten(sources: list[str]) -> list[str]:
    """The notebook's code cells with fewer steps in what it trains before the real training."""
    code = "\n\0\n".join(sources)
    for name, n_steps in {"ring_steps": 100, "bare_steps": 3}.items():
        code, n = re.subn(rf"^{name} = [\d_]+$", f"{name} = {n_steps}", code, flags=re.MULTILINE)
        assert n == 1, name
    return code.split("\n\0\n")


def load(folder: Path, **options: bool) -> np.ndarray:
    """The images of a folder as the kept array, uint8 (n, 32, 32, 3)."""
    return load_images(find_images(folder), RESIZE, folder, **options)


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """A folder in the official archive's layout: 40 images 64x64 and macOS litter."""
    folder = tmp_path / "processed_celeba_small"
    below = folder / "celeba" / "New Folder With Items"
    below.mkdir(parents=True)
    for i, pixels in enumerate(blobs(40, 64, 64, seed=0), start=1):
        place = below if i % 2 else below.parent
        Image.fromarray(pixels).save(place / f"{i:06d}.jpg", quality=90)
    litter = folder / "__MACOSX" / "celeba"
    litter.mkdir(parents=True)
    for path in (folder / ".DS_Store", below / "._000001.jpg", litter / "._000002.jpg"):
        path.write_bytes(b"\x00\x05\x16\x07")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache folder of the test's own."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    return files.CACHE


@pytest.fixture
def absent(tmp_path: Path) -> Path:
    """A path of the default name, where nothing is yet."""
    (tmp_path / "new").mkdir()
    return tmp_path / "new" / data.DATA


def make_zip(folder: Path, archive: Path) -> Path:
    """Pack a folder with its own name on top, as the official archive does."""
    return Path(
        shutil.make_archive(str(archive.with_suffix("")), "zip", folder.parent, folder.name)
    )


def assert_nothing_left(cache: Path) -> None:
    assert not cache.exists() or not list(cache.iterdir())


# ------------------------------------------------------------------------ kills and full disks


@pytest.fixture
def begin() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Begins something in another process, and gives its number; kills what is left of it."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are started otherwise here")
    children = []

    def begin_one(work: Callable[[], object]) -> int:
        child = os.fork()
        if not child:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
        return child

    yield begin_one
    for child in children:
        with suppress(ProcessLookupError, ChildProcessError):  # a test waited for it
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "nothing happens"
        time.sleep(0.01)


@contextmanager
def full_disk(largest: int) -> Iterator[None]:
    """Let no file become larger: the same error in the same place as on a full disk.

    A test needs ``capsys`` too: what it prints would else go to such a file.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------------------------ the network


class Server(http.server.BaseHTTPRequestHandler):
    """Answers each GET as the next of ``behaviours`` says, and for ever as the last of them."""

    content = b""
    behaviours: list[str]
    asked: list[str]  # what each GET was answered
    ended: threading.Event  # ends all stalls

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        behaviour = self.behaviours[0]
        if len(self.behaviours) > 1:
            self.behaviours.pop(0)
        self.asked.append(behaviour)
        if behaviour == "is silent":
            self.ended.wait(30)
        elif behaviour == "hangs up":
            self.close_connection = True
        elif behaviour.isdigit():
            self.send_error(int(behaviour))
        else:
            content = self.content
            if behaviour == "page":
                content = b"<html>Please log in.</html>"
            self.send_response(200)
            if behaviour not in ("breaks off unnoticed", "never ends"):  # else nobody can notice
                length = "abc" if behaviour == "counts in letters" else str(len(content))
                self.send_header("Content-Length", length)
            self.end_headers()
            half = behaviour.startswith("breaks off") or behaviour == "stalls"
            if behaviour not in ("drips", "never ends"):
                self.wfile.write(content[: len(content) // 2] if half else content)
            with suppress(OSError):  # who asked has gone
                while behaviour == "drips" and not self.ended.wait(0.1):
                    self.wfile.write(bytes(2**10))
                while behaviour == "never ends" and not self.ended.is_set():
                    self.wfile.write(bytes(2**16))
            if behaviour == "stalls":
                self.ended.wait(30)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(
    image_dir: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Server]]:
    """A server that has the archive; returns its handler class. Nobody waits long for it."""
    content = make_zip(image_dir, tmp_path / "archive.zip").read_bytes()
    state = {"content": content, "behaviours": ["whole"], "asked": []}
    handler = type("Handler", (Server,), state | {"ended": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/archive.zip"
        monkeypatch.setattr(data, "ARCHIVE_URL", url)
        monkeypatch.setattr(data, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.8)
        monkeypatch.setattr(data, "DOWNLOAD_PAUSE", 0.01)
        yield handler
        handler.ended.set()
        running.shutdown()
