"""What would interrupt the lesson: data and its files, the training run's files, pictures.

Two subjects. The first half brings images from disk, a zip or the network into one array. The
second half surrounds training: settings, progress, output files, tables and pictures.
"""

from __future__ import annotations

import ast
import builtins
import copy
import csv
import errno
import io
import linecache
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pooch
import requests
import safetensors
import safetensors.torch
import torch
from IPython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import display
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

HERE = Path(__file__).parent
NOTEBOOK = HERE / "dlnd_face_generation.ipynb"
WEIGHTS = HERE / "assets" / "generator.safetensors"
CACHE = pooch.os_cache("dlnd-face-generation")

ARCHIVE_URL = (
    "https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
    "5be7eb6f_processed-celeba-small/processed-celeba-small.zip"
)
ARCHIVE_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
OFFLINE_FACES = 10_000

# ------------------------------------------------------------------------------------- the data


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
        ValueError: if the file is no zip, or is damaged, or its checksum is wrong.
        OSError: if the disk is full, or the server breaks off or refuses.
    """
    data_dir = Path(data_dir).expanduser()
    if data_dir.is_dir():
        return data_dir
    if data_dir.is_file():
        folder = CACHE / f"{data_dir.stem}-{pooch.file_hash(data_dir)[:12]}"
        if not folder.is_dir():
            unpack(data_dir, folder)
        return folder
    if data_dir.suffix.lower() == ".zip":
        raise FileNotFoundError(f"There is no file {data_dir}: correct data_dir.")
    archive = CACHE / Path(ARCHIVE_URL).name
    if not archive.is_file() and not _is_reachable(ARCHIVE_URL):
        print(
            f"There is no folder {data_dir} and no network to download it: "
            f"going on with {OFFLINE_FACES:,} faces drawn from the shipped weights."
        )
        return _offline_set()
    print(f"There is no folder {data_dir}: the CelebA faces (248 MB) go there.")
    _check_writable(data_dir.parent, "data_dir")
    unpack(_download(ARCHIVE_URL, ARCHIVE_SHA256), data_dir)
    return data_dir


def _is_reachable(url: str, seconds: float = 8.0) -> bool:
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


def _download(url: str, sha256: str) -> Path:
    """Download a file into the cache folder, or find it there; either way check its hash."""

    def fetch(url: str, output_file: str, pooch_: pooch.Pooch | None) -> None:
        progress = Progress(total=1, desc="Downloading", unit="B", unit_scale=True)
        get = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**18, timeout=30)
        get(url, output_file, pooch_)

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, sha256, fname=Path(url).name, path=CACHE, downloader=fetch))
    except ValueError as error:
        raise ValueError(
            f"What {url} sent is not the archive expected (its SHA-256 is wrong) and was deleted. "
            "Run the cell again, or download the archive by hand and set data_dir to it."
        ) from error
    except OSError as error:  # requests' errors are OSErrors too
        if error.errno == errno.ENOSPC:
            raise _disk_full(CACHE) from error
        raise OSError(
            f"The download of {url} failed: {error}. Run the cell again, or set data_dir to a "
            "folder of images of your own."
        ) from error


def _check_writable(folder: Path, setting: str) -> None:
    """Make a folder, and try whether files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}): set {setting} to a place where "
            "you may write."
        ) from error


def _disk_full(folder: Path) -> OSError:
    return OSError(
        errno.ENOSPC,
        "The disk is full. Nothing half-written was left: free some space and run this again",
        str(folder),
    )


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise (_disk_full(folder) if error.errno == errno.ENOSPC else error) from None


def _is_image_name(path: Path) -> bool:
    """Whether a path names an image: by its ending, and no litter such as ``__MACOSX/._1.jpg``."""
    return path.suffix.lower() in IMG_EXTENSIONS and not any(
        part.startswith(".") or part == "__MACOSX" for part in path.parts
    )


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack the images of a zip into a new folder: all of them, or nothing.

    They are written to a temporary folder beside it, which takes the name at the end. If the
    archive holds a single top folder, that one becomes ``folder``.

    Args:
        archive: path of the zip.
        folder: a path where nothing is yet.

    Raises:
        ValueError: if the file is no zip, is damaged, holds no images, or has an entry that would
            land outside ``folder``.
        OSError: if there is not enough space.
    """
    archive, folder = Path(archive), Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as temporary:
        target = Path(temporary, "images").resolve()
        try:
            with _naming_a_full_disk(folder.parent), zipfile.ZipFile(archive) as opened:
                for member in opened.infolist():
                    if not (target / member.filename).resolve().is_relative_to(target):
                        raise ValueError(
                            f"{archive}: the entry {member.filename!r} would be written outside "
                            "its folder. Nothing was unpacked: do not use this archive."
                        )
                members = [m for m in opened.infolist() if _is_image_name(Path(m.filename))]
                if not members:
                    raise ValueError(f"{archive} holds no images: set data_dir to one that does.")
                needed = sum(member.file_size for member in members)
                if needed > shutil.disk_usage(folder.parent).free:
                    raise _disk_full(folder.parent)
                for member in Progress(members, desc=f"Unpacking {archive.name}", unit=" images"):
                    opened.extract(member, target)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{archive} is no zip file, or a damaged one ({error}): get it anew."
            ) from error
        except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
            raise ValueError(
                f"{archive} cannot be unpacked ({error}): set data_dir to a plain zip or a folder."
            ) from error
        tops = list(target.iterdir())
        os.replace(tops[0] if len(tops) == 1 and tops[0].is_dir() else target, folder)


def _offline_set() -> Path:
    """Return the folder of the offline set; made from the shipped weights the first time."""
    folder = CACHE / f"offline-{pooch.file_hash(WEIGHTS)[:12]}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".offline-", dir=CACHE) as temporary:
        images = Path(temporary, "images")
        images.mkdir()
        with _naming_a_full_disk(CACHE):
            for i, face in enumerate(generate_faces(OFFLINE_FACES, seed=0), start=1):
                Image.fromarray(face).save(images / f"{i:06d}.png", compress_level=1)
        os.replace(images, folder)
    return folder


def find_images(
    folder: str | Path, max_images: int | None = None, seed: int | None = None
) -> list[Path]:
    """List the image files below a folder, at any depth, sorted; macOS litter is left out.

    Args:
        folder: where the images lie.
        max_images: how many to take, drawn at random; all of them if ``None`` or too large.
        seed: of that draw.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: set data_dir to a folder of images.")
    paths = sorted(p for p in folder.rglob("*") if _is_image_name(p.relative_to(folder)))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}): set data_dir to a folder "
            "that does."
        )
    if max_images is not None and max_images < len(paths):
        chosen = np.random.default_rng(seed).choice(len(paths), max_images, replace=False)
        paths = [paths[i] for i in sorted(chosen)]
    return paths


def load_images(paths: list[Path], transform: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Decode image files, once, into one array.

    An aligned CelebA original (178x218) is cropped to its central 108x108 first, as the processed
    set was.

    Args:
        paths: the files.
        transform: takes an RGB image of any size and returns one of a fixed size.

    Returns:
        uint8 array (len(paths), H, W, 3).

    Raises:
        ValueError: if files cannot be decoded; it names them.
    """

    def load(path: Path) -> np.ndarray | str:
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{path} ({error})"
        if image.size == (178, 218):
            image = v2.functional.center_crop(image, 108)
        return np.asarray(transform(image))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the interpreter's lock
        loaded = list(
            Progress(pool.map(load, paths), total=len(paths), desc="Decoding", unit=" images")
        )
    broken = [item for item in loaded if isinstance(item, str)]
    if broken:
        more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
        raise ValueError(
            f"{len(broken)} of {len(paths)} files cannot be read as images:\n  "
            + "\n  ".join(broken[:20])
            + more
            + "\nDelete or replace them."
        )
    return np.stack(loaded)


class ImageArray(Dataset):
    """A data set over one uint8 array of images, read a batch at a time.

    Items are ``(image, label)``: a float tensor (3, H, W) in [0, 1] and 0, since faces have no
    classes here.

    Args:
        images: uint8 array (N, H, W, 3).
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, images (n, 3, H, W) and labels (n,), by one indexed read."""
        images = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2).contiguous()
        return images.float().div_(255), torch.zeros(len(indices), dtype=torch.int64)

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """For ``DataLoader(collate_fn=...)``: the batch is whole already."""
        return batch


def nearest_images(samples: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find each sample's nearest image, by the root mean square difference of their pixels.

    Args:
        samples: uint8 array (n, H, W, 3).
        images: uint8 array (N, H, W, 3).

    Returns:
        The nearest images' indices (n,) and their distances (n,), in grey levels from 0 to 255.
    """
    flat = torch.from_numpy(samples).flatten(1).float()
    smallest = torch.full((len(flat),), math.inf)
    nearest = torch.zeros(len(flat), dtype=torch.int64)
    for start in range(0, len(images), 4096):  # a block at a time: memory stays small
        block = torch.from_numpy(images[start : start + 4096]).flatten(1).float()
        values, indices = torch.cdist(flat, block).min(dim=1)
        nearest = torch.where(values < smallest, indices + start, nearest)
        smallest = torch.minimum(values, smallest)
    found = torch.from_numpy(images[nearest.numpy()]).flatten(1).float()
    distances = (flat - found).square().mean(dim=1).sqrt()  # exact, where cdist rounds
    return nearest.numpy(), distances.numpy()


# ------------------------------------------------------------------------------------- networks


# What a constant may be made with; nothing that reads or writes files, downloads or trains.
_HARMLESS = {"builtins", "collections", "functools", "math", "numpy", "os", "pathlib", "posixpath"}
_HARMLESS |= {"ntpath", "torch", "torchvision"}
_HARMFUL = re.compile(
    r"\b(\w*download\w*|datasets|eval|exec|exit|hub|input|kill|load|makedirs|mkdir|open|popen|quit|"
    r"remove|rename|rmdir|save|system|touch|unlink|url\w+|utils\.tensorboard|write_\w+)\b"
)


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over a node and all below it that run with it: what a lambda does, it does later."""
    if not isinstance(node, ast.Lambda):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _evaluated(child)


def _is_harmless(node: ast.AST, namespace: dict[str, Any]) -> bool:
    """Tell whether an expression calls nothing but harmless library functions."""
    for call in _evaluated(node):
        if isinstance(call, ast.Call):
            root: Any = call.func
            while isinstance(root, (ast.Attribute, ast.Subscript, ast.Call)):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name):
                value = namespace.get(root.id, getattr(builtins, root.id, None))
                home = getattr(value, "__module__", None) or type(value).__module__
                home = value.__name__ if isinstance(value, types.ModuleType) else home
                called = f"{home}.{ast.unparse(call.func)}"
                if called.split(".")[0] not in _HARMLESS or _HARMFUL.search(called):
                    return False
    return True


def load_definitions(notebook: str | Path = NOTEBOOK) -> types.ModuleType:
    """Run a notebook's imports, functions, classes and constants, and nothing else.

    Data, training, plots and tests do not run: an assignment is left out if it calls anything but
    harmless library functions, uses a name whose assignment was left out, or fails. The code that
    is kept is executed: load only notebooks you trust.

    Args:
        notebook: path of an ``.ipynb`` file, or of a ``.py`` file exported from one.

    Returns:
        A module that holds what the notebook defines. Its ``__left_out__`` lists the assignments
        that did not run: the name of the cell and the ``ast`` node; its ``__broken__`` has, for
        each piece of code that cannot run, the names that it would define and a message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a notebook.
    """
    path = Path(notebook).resolve()
    if path.suffix == ".py":
        sources = [path.read_text(encoding="utf-8")]
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # about missing cell ids
                cells = nbformat.read(path, as_version=4).cells
            sources = [cell.source if cell.cell_type == "code" else "" for cell in cells]
        except (nbformat.ValidationError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it has no cells ({type(error).__name__})") from None
    module = types.ModuleType(f"{path.stem} (notebook)")
    module.__file__ = str(path)
    module.__left_out__, module.__broken__ = [], []
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    names = vars(module)
    stale: set[str] = set()  # names that only a run of the notebook gives a meaning

    def fails(statement: ast.stmt, filename: str) -> str:
        try:
            exec(compile(ast.Module([statement], []), filename, "exec"), names)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def define(statements: list[ast.stmt], filename: str) -> bool:
        """Run what defines something; return whether all imports succeeded."""
        imported = True
        for statement in statements:
            found = [n for n in _evaluated(statement) if isinstance(n, ast.Name)]
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                error = fails(statement, filename)
                if error and (unknown := stale - names.keys()):  # a default that is not known yet
                    names.update(dict.fromkeys(unknown))
                    error = fails(statement, filename) and error
                    for name in unknown - {statement.name}:
                        del names[name]
                if error:
                    message = f"its definition ({filename}) stops with {error}"
                    module.__broken__.append(({statement.name}, message))
            elif isinstance(statement, (ast.Import, ast.ImportFrom)):
                for alias in statement.names:  # one by one: a missing module costs no other
                    single = copy.copy(statement)
                    single.names = [alias]
                    imported &= not fails(single, filename)
            elif isinstance(statement, ast.Try):
                if not define(statement.body, filename) and statement.handlers:
                    define(statement.handlers[0].body, filename)
            elif isinstance(statement, ast.If) and _is_harmless(statement.test, names):
                with suppress(Exception):
                    test = compile(ast.Expression(statement.test), filename, "eval")
                    define(statement.body if eval(test, names) else statement.orelse, filename)
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                targets = {n.id for n in found if isinstance(n.ctx, ast.Store)}
                reads = {n.id for n in found if isinstance(n.ctx, ast.Load)}
                if (
                    not reads & stale
                    and _is_harmless(statement, names)
                    and not fails(statement, filename)
                ):
                    stale.difference_update(targets)
                else:
                    module.__left_out__.append((filename, statement))
                    stale.update(targets)
        return imported

    sys.path.insert(0, str(path.parent))
    try:
        for number, source in enumerate(sources, 1):
            filename = f"{path.name}, cell {number}" if len(sources) > 1 else path.name
            source = re.sub(r"\A\s*%%(time|capture|prun)\b.*", "", source)
            try:
                source = TransformerManager().transform_cell(source)
                statements = ast.parse(source).body
            except SyntaxError as error:
                would = re.findall(r"^(?:def |class )?(\w+) *(?=[=(:])", source, re.MULTILINE)
                message = f"{filename} does not run: SyntaxError: {error.msg}, line {error.lineno}"
                module.__broken__.append((set(would), message))
            else:
                linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
                with torch.random.fork_rng(devices=[]):  # a constant may be random
                    define(statements, filename)
    finally:
        sys.path.remove(str(path.parent))
    return module


def generate_faces(n: int, seed: int, weights: str | Path = WEIGHTS) -> np.ndarray:
    """Draw faces from trained weights; the network is the notebook's own ``Generator``.

    Args:
        n: how many.
        seed: the same seed gives the same faces.
        weights: a ``generator.safetensors`` that the notebook's training wrote.

    Returns:
        uint8 array (n, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a generator's, or does not fit the notebook's ``Generator``; or if
            ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least one face.")
    try:
        with safetensors.safe_open(weights, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}
        sizes = {name: int(metadata[name]) for name in ("z_size", "conv_dim", "image_size")}
        generator_class = load_definitions().Generator
        with torch.device("meta"):  # no first weights, and no random numbers drawn for them
            G = generator_class(**sizes)
        G.load_state_dict(state, assign=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {weights}: train first.") from None
    except (
        safetensors.SafetensorError,
        AttributeError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{weights} does not hold weights of the notebook's Generator: {error}"
        ) from error
    G.eval()
    z = torch.rand(n, sizes["z_size"], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.inference_mode():
        return np.concatenate([to_uint8(G(part)) for part in z.split(500)])


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn a generator's output into pictures.

    Args:
        images: float tensor (n, 3, H, W) in [-1, 1], on any device.

    Returns:
        uint8 array (n, H, W, 3).
    """
    pixels = images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def layer_table(network: nn.Module, example: Tensor) -> str:
    """Describe a network's layers with weights, in the order in which they run.

    Args:
        network: the network; its training mode and statistics are left as they are.
        example: an input for it, with a batch dimension.

    Returns:
        A table as text: input and output sizes without the batch dimension, whether batch norm
        follows, and the number of parameters, batch norm's included.
    """
    rows: list[list[Any]] = []

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.BatchNorm2d):
            rows[-1][3] = "yes"
            rows[-1][4] += parameters
        else:
            size_in, size_out = (" x ".join(map(str, t.shape[1:])) for t in (args[0], output))
            rows.append([type(module).__name__, size_in, size_out, "-", parameters])

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, kinds)]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    rows.append(["total", "", "", "", sum(p.numel() for p in network.parameters())])
    line = "{:<16} {:>13} {:>13} {:>11} {:>11}"
    header = line.format("layer", "input", "output", "batch norm", "parameters")
    return "\n".join([header, "-" * len(header), *(line.format(*r[:4], f"{r[4]:,}") for r in rows)])


# ------------------------------------------------------------------------------------- training


def apply_preset(
    preset: str, presets: dict[str, dict[str, Any]], by_hand: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Fill in the settings that were not given by hand, and say what was chosen.

    Args:
        preset: a name in ``presets``, or "auto": the environment variable ``FACES_PRESET`` if it
            is set, else "full" where there is an accelerator and "quick" on a CPU.
        presets: each preset's settings.
        by_hand: the same settings, ``None`` where the preset decides.

    Returns:
        The preset's name and the settings.

    Raises:
        ValueError: if there is no such preset.
    """
    why = "given by hand"
    if preset == "auto" and os.environ.get("FACES_PRESET"):
        preset, why = os.environ["FACES_PRESET"], "from the environment variable FACES_PRESET"
    elif preset == "auto" and torch.accelerator.is_available():
        preset, why = "full", "auto: there is an accelerator"
    elif preset == "auto":
        preset, why = "quick", "auto: there is no accelerator"
    if preset not in presets:
        raise ValueError(
            f"preset is {preset!r} ({why}): set it to one of auto, {', '.join(presets)}."
        )
    given = {name: value for name, value in by_hand.items() if value is not None}
    settings = presets[preset] | given
    print(f"preset {preset} ({why})")
    for name, value in settings.items():
        print(f"  {name} = {value}" + ("  (given by hand)" if name in given else ""))
    return preset, settings


def check_settings(**settings: Any) -> None:
    """Check the notebook's settings before long work starts.

    Raises:
        ValueError: if a setting is out of its range; it names all of them.
    """
    at_least_1 = ("a whole number, at least 1", lambda v: _is_whole(v) and v >= 1)
    share = ("at least 0 and below 1", lambda v: 0 <= v < 1)
    ranges: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "image_size": ("32 or 64", lambda v: _is_whole(v) and v in (32, 64)),
        "lr": ("above 0, such as 0.0002", lambda v: 0 < v < math.inf),
        "beta1": share,
        "beta2": share,
        "ema_decay": share,
        "real_label": ("above 0.5 and at most 1", lambda v: 0.5 < v <= 1),
        "seed": ("a whole number from 0 to 2**63 - 1", lambda v: _is_whole(v) and 0 <= v < 2**63),
        "max_images": (
            "a whole number, at least 2, or None",
            lambda v: v is None or _is_whole(v) and v >= 2,
        ),
    }
    wrong = []
    for name, value in settings.items():
        meaning, is_right = ranges.get(name, at_least_1)
        if not (isinstance(value, (int, float, types.NoneType)) and is_right(value)):
            wrong.append(f"{name} is {value!r}: it must be {meaning}.")
    if wrong:
        raise ValueError("\n".join(wrong))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def new_folder(path: str | Path) -> Path:
    """Make an empty folder: ``path``, or ``path-2``, ``path-3`` ... if that holds anything.

    Returns:
        The folder; nothing that was there before is touched.

    Raises:
        ValueError: if the path has no name of its own, such as ``.``.
        OSError: if it cannot be made or written to.
    """
    folder = Path(path).expanduser()
    if not folder.name:
        raise ValueError(f"output_dir is {path}: give a folder of its own, such as runs/faces.")
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", folder.name).groups(default="1")
        folder = folder.with_name(f"{name}-{int(number) + 1}")
    _check_writable(folder, "output_dir")
    return folder


class Progress(tqdm):
    """A tqdm line that also reads well in a saved notebook: one line of text, updated in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.handle = None
        if hasattr(get_ipython(), "kernel"):
            self.handle = display({"text/plain": ""}, raw=True, display_id=True)
            kwargs |= {"file": io.StringIO(), "ncols": 100, "mininterval": 0.5}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the line: the method that tqdm means other front ends to replace."""
        if self.handle is None:
            super().display(msg, pos)
        else:
            self.handle.update({"text/plain": str(self) if msg is None else msg}, raw=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` once all is written."""
    temporary = path.with_name(f".{path.name}")
    try:
        with _naming_a_full_disk(path.parent):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class TrainingRun:
    """What surrounds the training loop: the live line, the printed losses and the files.

    After each epoch these are in ``output_dir``: ``losses.csv`` (epoch, batch, d_loss, g_loss),
    ``samples.npz`` (``samples``: uint8 (epochs, n, H, W, 3)), ``samples_epoch_NNN.png`` and
    ``generator.safetensors``. Each is written whole under another name first.

    Args:
        output_dir: where the files go.
        n_epochs: number of epochs.
        n_batches: number of batches an epoch.
        print_every: number of batches from one printed line to the next.
        metadata: what is stored with the weights, so that the network can be built again.

    Attributes:
        losses: one (d_loss, g_loss) a batch, read from the device when a line is printed and at
            the end of an epoch.
    """

    def __init__(
        self,
        output_dir: str | Path,
        n_epochs: int,
        n_batches: int,
        print_every: int,
        **metadata: int,
    ) -> None:
        if print_every < 1:
            raise ValueError(f"print_every is {print_every}: it must be at least 1.")
        self.output_dir = Path(output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.n_epochs = n_epochs
        self.print_every = print_every
        self.metadata = {name: str(value) for name, value in metadata.items()}
        self.losses: list[tuple[float, float]] = []
        self._batches: list[tuple[int, int]] = []
        self._unread: list[Tensor] = []
        self._samples: list[np.ndarray] = []
        self._n_images = 0
        self._progress = Progress(
            total=n_epochs * n_batches,
            bar_format="{desc} |{bar}| {percentage:3.0f}%, {remaining} left",
        )

    def end_batch(
        self, epoch: int, batch_i: int, n_images: int, d_loss: Tensor, g_loss: Tensor
    ) -> None:
        """Note a batch's losses; print them if this batch's turn has come.

        Args:
            epoch: its number, from 1.
            batch_i: the batch's number in the epoch, from 0.
            n_images: how many real images it had.
            d_loss, g_loss: scalar tensors on any device.
        """
        self._batches.append((epoch, batch_i))
        self._unread.append(torch.stack([d_loss.detach(), g_loss.detach()]))
        self._n_images += n_images
        speed = self._n_images / max(self._progress.format_dict["elapsed"], 1e-9)
        line = f"epoch {epoch} of {self.n_epochs}, {speed:,.0f} images/s"
        self._progress.set_description_str(line, refresh=False)
        self._progress.update()
        if batch_i % self.print_every == 0:
            self._read_losses()
            d, g = self.losses[-1]
            line = f"Epoch [{epoch:5d}/{self.n_epochs:5d}] | d_loss: {d:6.4f} | g_loss: {g:6.4f}"
            tqdm.write(line)

    def _read_losses(self) -> None:
        if self._unread:  # the one place that waits for the device
            self.losses += [(d, g) for d, g in torch.stack(self._unread).tolist()]
            self._unread.clear()

    def end_epoch(self, epoch: int, samples: Tensor, generator: nn.Module) -> None:
        """Write the files.

        Args:
            epoch: its number, from 1.
            samples: what the generator makes of the fixed latents, (n, 3, H, W) in [-1, 1].
            generator: the network whose weights are kept.
        """
        self._read_losses()
        self._samples.append(to_uint8(samples))
        with writing(self.output_dir / "losses.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "batch", "d_loss", "g_loss"])
            writer.writerows(
                (*b, *loss) for b, loss in zip(self._batches, self.losses, strict=True)
            )
        with writing(self.output_dir / "samples.npz") as path:
            np.savez_compressed(path, samples=np.stack(self._samples))
        with writing(self.output_dir / f"samples_epoch_{epoch:03d}.png") as path:
            save_image(samples, path, nrow=8, normalize=True, value_range=(-1, 1))
        with writing(self.output_dir / "generator.safetensors") as path:
            state = {
                name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()
            }
            path.write_bytes(safetensors.torch.save(state, self.metadata))
        if epoch == self.n_epochs:
            self._progress.close()


# ------------------------------------------------------------------------------------- pictures


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures out row by row on white.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.

    Returns:
        uint8 array (rows * (H + 2) + 2, columns * (W + 2) + 2, 3); fewer pictures than ``columns``
        make a shorter row, and a single one comes back as it is.
    """
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def show_images(
    images: np.ndarray,
    columns: int = 8,
    path: str | Path | None = None,
    row_labels: list[str] | None = None,
) -> None:
    """Show pictures in rows, and save the figure.

    Args:
        images: uint8 array (n, H, W, 3).
        columns: pictures a row.
        path: where to save the figure, if anywhere.
        row_labels: a text for each row.
    """
    grid = image_grid(images, columns)
    rows = math.ceil(len(images) / columns)
    size = (10, 10 * grid.shape[0] / grid.shape[1])  # inches
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0)
    axes.imshow(grid, interpolation="bicubic")
    axes.set(xticks=[], yticks=[], frame_on=False)
    if row_labels is not None:
        axes.set_yticks((np.arange(rows) + 0.5) * grid.shape[0] / rows, row_labels)
        axes.tick_params(length=0)
    if path is not None:
        with writing(Path(path)) as temporary:
            figure.savefig(temporary)
    plt.show()


def save_animation(frames: list[np.ndarray], path: str | Path, milliseconds: int = 300) -> None:
    """Save pictures as an endless GIF, twice their size, the last one held for longer.

    Args:
        frames: uint8 arrays (H, W, 3) of one size.
        path: of the GIF.
        milliseconds: how long each is shown.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures = [p.resize((2 * p.width, 2 * p.height), Image.Resampling.BICUBIC) for p in pictures]
    durations = [milliseconds] * (len(pictures) - 1) + [6 * milliseconds]
    with writing(Path(path)) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
