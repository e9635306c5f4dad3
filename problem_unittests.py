"""Rubric tests of the face generation project (DCGAN), for this notebook and any other solution.

In a solution's notebook, with this one file beside it::

    import problem_unittests as tests
    tests.test_discriminator(Discriminator)

In a shell, for the notebook beside it, or for a class (by the grader in the project's ``faces``)::

    pytest problem_unittests.py
    python problem_unittests.py [PATH ...]

A test prints ``Tests Passed``, or ``ADVICE`` for what works but could be better, or ``NOT TESTABLE
HERE`` where a GPU or data are missing, or raises an AssertionError that says what is wrong, or that
the part is not written yet: its body is still a ``raise NotImplementedError``. Each part is judged
with the others that its notebook defines: D with its own losses, the initialisation with its own
networks. Inputs are drawn from a fixed seed; the caller's random state, networks and global
variables are left as they were.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import dis
import functools
import importlib
import inspect
import io
import math
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import (
    ExitStack,
    chdir,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import optimizer as optimizer_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset, default_collate

__all__: list[str] = []  # the tests, in the order of the rubric
NOTEBOOK = Path(__file__).with_name("dlnd_face_generation.ipynb")
IMAGE_SIZE = 32  # pixels; the rubric asks for 32 x 32 images
_IMAGE = (3, IMAGE_SIZE, IMAGE_SIZE)

# ------------------------------------------------------------------------ how a test reports

# A test, or a part of one, yields claims: whether something holds, and the sentence for where it
# does not. The first that does not hold ends the test, unless its sentence is only advice.
Claims = Generator[tuple[object, str], None, Any]


class Advice(str):
    """What to say where a claim does not hold, which costs nothing."""


class Wrong(AssertionError):
    """A claim that does not hold; the message names the defect, and says what to do."""

    outcome = "FAILED"


class NotTestable(Exception):
    """Something that a test needs is not on this machine."""

    outcome = "NOT TESTABLE HERE"


class NotFound(Exception):
    """Something that a test needs is not in the notebook."""

    outcome = "NOT FOUND"


class NotWritten(AssertionError):
    """A part of a starter notebook that waits for its author; Jupyter shows one line of it."""

    outcome = "NOT WRITTEN YET"

    def _render_traceback_(self) -> list[str]:
        return [f"{self.outcome}: {self}"]


# By the very classes: one that a notebook derives from them says nothing.
OUTCOMES = {kind: kind.outcome for kind in (Wrong, NotTestable, NotFound, NotWritten)}


class Point(NamedTuple):
    """A point of the rubric."""

    test: Callable[..., Claims]
    call: str  # the name of the part, and its task
    names: list[str]  # of the objects of a notebook that the test takes


POINTS: dict[str, Point] = {}  # by their names, in the order of the rubric


def settle(claims: Claims) -> list[str]:
    """Go through claims; return the advice. The first that is wrong is raised where it is made."""
    advice = []
    for holds, sentence in claims:
        if not holds and isinstance(sentence, Advice):
            advice.append(sentence)
        elif not holds:
            claims.throw(Wrong(sentence))
    return advice


def verdict(point: Point, *parts: Any, **named: Any) -> tuple[str, str]:
    """Test parts of a notebook; return the outcome, and the sentence that says why.

    An exception in the place of a part says why it is missing.
    """
    called = point.call.split("(")[0].strip()
    try:
        for part in [*parts, *named.values()]:
            if type(part) in OUTCOMES:
                raise part
            check_written(part)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise NotTestable("the tests need one process, and this is one of several.")
        with sandbox():
            advice = settle(point.test(*parts, **named))
        outcome, why = "ADVICE" if advice else "PASSED", " ".join(dict.fromkeys(advice))
    except (Wrong, NotTestable, NotFound, NotWritten) as error:
        outcome, why = OUTCOMES.get(type(error), "FAILED"), str(error)
        if outcome == NotWritten.outcome and why.startswith(called):
            return outcome, why
    except (Exception, SystemExit) as error:
        meant = [meant for words, meant in _EXPLAINED.items() if words in str(error)]
        outcome, why = "FAILED", f"{describe(error)}. Expected {point.call}."
        if lack := _lack(error):
            outcome, why = "NOT TESTABLE HERE", lack
        elif meant:
            why = meant[0]
    return outcome, why and f"{called}: {why}"


def _rubric_test(call: str) -> Callable[[Callable[..., Claims]], Callable[..., None]]:
    """Make a point of the rubric of a test; ``call`` has the name of a part, and its task."""

    def decorate(test: Callable[..., Claims]) -> Callable[..., None]:
        point = Point(test, call, list(inspect.signature(test).parameters))
        POINTS[test.__name__.removeprefix("test_")] = point
        __all__.append(test.__name__)

        @functools.wraps(test)
        def run(*parts: Any, **named: Any) -> None:
            __tracebackhide__ = True  # for pytest
            outcome, why = verdict(point, *parts, **named)
            if outcome in ("FAILED", "NOT FOUND"):
                raise AssertionError(why)
            if outcome == NotWritten.outcome:
                raise NotWritten(why)
            print("Tests Passed" if outcome == "PASSED" else f"{outcome}: {why}")

        return run

    return decorate


@contextmanager
def _fixed_randomness(seed: int = 20181115) -> Iterator[None]:
    """Seed all random number generators, and give them back as they were."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    device = torch.get_device_module(kind) if kind else torch
    with torch.random.fork_rng(range(torch.cuda.device_count())), ExitStack() as stack:
        for module in (torch, device):
            stack.callback(module.set_rng_state, module.get_rng_state())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        for seed_it in (random.seed, np.random.seed, torch.manual_seed):
            seed_it(seed)
        yield


def _binary_cross_entropy(
    input: Tensor, target: Tensor, *args: Any, plain: Any = F.binary_cross_entropy, **options: Any
) -> Tensor:
    """PyTorch's own; what it refuses would be the end of all work on a GPU."""
    for name, values in (("input", input), ("target", target)):
        if not ((values >= 0) & (values <= 1)).all():
            raise RuntimeError(f"all elements of {name} should be between 0 and 1")
    return plain(input, target, *args, **options)


def _lead_writing(stack: ExitStack) -> None:
    """Lead what is written to or deleted in other folders than the working one into this."""
    here = os.getcwd()
    inside = tuple(os.path.join(folder, "") for folder in (here, tempfile.gettempdir(), "/dev"))

    def led(path: Any, writes: bool = True) -> Any:
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
            return path
        full = os.path.abspath(path)
        place = here + "/outside" + os.path.splitdrive(full)[1]
        if (full + os.sep).startswith(inside) or not (writes or os.path.exists(place)):
            return path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        return place

    def open_led(file: Any, mode: str = "r", *args: Any, plain: Any = open, **options: Any) -> Any:
        file = file if "opener" in options else led(file, writes=bool(set("wax+") & set(mode)))
        return plain(file, mode, *args, **options)

    def mkdir_led(path: Any, *args: Any, plain: Any = os.mkdir, **options: Any) -> None:
        with suppress(FileExistsError) if (place := led(path)) is not path else nullcontext():
            plain(place, *args, **options)

    def save_led(content: Any, f: Any, *args: Any, plain: Any = torch.save, **options: Any) -> None:
        plain(content, led(f), *args, **options)

    def call_led(plain: Any, *paths: Any, **options: Any) -> Any:
        return plain(*map(led, paths), **options)

    patches = [(builtins, open_led), (io, open_led), (os, mkdir_led), (torch, save_led)]
    for plain in (os.remove, os.unlink, os.rmdir, os.rename, os.replace, shutil.rmtree):
        module = shutil if plain is shutil.rmtree else os
        patches.append((module, functools.wraps(plain)(functools.partial(call_led, plain))))
    for module, ours in patches:
        name = ours.__name__.removesuffix("_led")
        stack.enter_context(mock.patch.object(module, name, ours))


@contextmanager
def sandbox() -> Iterator[None]:
    """Run code in a temporary folder, unseen, seeded, not compiled; .cuda() does no harm."""
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # files may be kept open
        stack.enter_context(chdir(stack.enter_context(folder)))
        _lead_writing(stack)
        stack.enter_context(_fixed_randomness())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # networks this small need no more
        plain = lambda model=None, **options: plain if model is None else model  # noqa: E731
        stack.enter_context(mock.patch.object(torch, "compile", plain))
        stack.enter_context(mock.patch.object(F, "binary_cross_entropy", _binary_cross_entropy))
        for kind in (Tensor, nn.Module) if not torch.cuda.is_available() else ():
            unmoved = mock.patch.object(kind, "cuda", lambda self, *args, **options: self)
            stack.enter_context(unmoved)
        if sys.modules.get("IPython"):  # where more than text can be shown
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output())
        else:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            figures = set(pyplot.get_fignums())
            stack.enter_context(mock.patch.object(pyplot, "show"))
            stack.callback(lambda: [pyplot.close(n) for n in set(pyplot.get_fignums()) - figures])
        yield


_EXPLAINED = {  # what errors of libraries say, and what is meant
    "found <class 'PIL": "images of a batch are PIL images. Add transforms.ToTensor().",
    "equal size": "images are not resized. Use transforms.Resize(image_size).",
    "input should be between 0 and 1": "BCELoss is given logits. Use BCEWithLogitsLoss.",
}


def _is_tested(file: str) -> bool:
    """Tell whether code is the tested one: neither a library's nor of these tests."""
    libraries = (sys.prefix, sys.base_prefix, os.path.dirname(torch.__file__), __file__, "<frozen")
    return "ipykernel_" in file or not file.startswith(libraries)


def _shortened(text: str) -> str:
    return text if len(text) < 200 else text[:200].rsplit(" ", 1)[0] + " ..."


def describe(error: BaseException) -> str:
    """Say in one sentence what an exception of the tested code is, and where it was raised."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[-1] if "Original Traceback" in str(error) else lines[0]
    text, place = _shortened(text.rstrip(" .")), ""
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_tested(frame.filename):
            function = "" if frame.name == "<module>" else f", in {frame.name}"
            _, cell, number = frame.filename.rpartition(", cell ")
            line = f" ({_shortened(frame.line.strip())})" if frame.line else ""
            place = function + (cell and cell + number) + f", line {frame.lineno}" + line
    return f"the code stopped with {type(error).__name__}: {text}".rstrip(": ") + place


_NO_GPU = re.compile(  # how torch says so
    "not compiled with CUDA|NVIDIA driver|No CUDA GPUs|cuda.is_available.. is False"
    "|CUDA error|Device type CUDA is not supported|without ATen_cuda"
)


def _lack(error: BaseException) -> str:
    """Say what this machine lacks, if that is the error; what the tested code raises is not."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    by_hand = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    if by_hand and _is_tested(code.co_filename):
        return ""
    if isinstance(error, (FileNotFoundError, ModuleNotFoundError)):
        return f"something is missing: {error}."
    lacks = _NO_GPU.search(str(error)) and not torch.cuda.is_available()
    return f"it needs a GPU: {describe(error)}." if lacks else ""


def _inner(function: Any) -> Any:
    """The function inside decorators and functools.partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _context(part: Any) -> dict[str, Any]:
    """The global variables of the notebook that a function, a class or a network is from."""
    part = _inner(part)
    part = type(part) if isinstance(part, nn.Module) else part
    functions = vars(part).values() if isinstance(part, type) else [part]
    return next((f.__globals__ for f in map(_inner, functions) if hasattr(f, "__globals__")), {})


def _functions(value: Any, names: dict[str, Any]) -> list[types.FunctionType]:
    """A function itself, or a class's own ones, if the notebook with these names defines them."""
    values = vars(value).values() if isinstance(value, type) else [value]
    found = map(_inner, filter(callable, values))
    return [f for f in found if isinstance(f, types.FunctionType) and f.__globals__ is names]


def check_written(part: Any) -> None:
    """Raise ``NotWritten`` if a part, or another part that it needs, is still to be written.

    Such a function never returns, but raises NotImplementedError, whose text says what to write.
    """
    names = {} if isinstance(part, nn.Module) else _context(part)
    functions = _functions(part, names)
    reads = set().union(*(reached(f.__code__, names)[0] for f in functions))
    others = reads & names.keys() & {n for p in POINTS.values() for n in p.names}
    for other in sorted(others):
        functions += _functions(names[other], names)
    for function in functions:
        steps = list(dis.get_instructions(function.__code__))
        loaded = {step.argval for step in steps if step.opname.startswith("LOAD_")}
        if "NotImplementedError" in loaded and not any("RETURN_" in step.opname for step in steps):
            said = (text for text in loaded if isinstance(text, str) and "not written yet" in text)
            raise NotWritten(next(said, f"{function.__qualname__} is not written yet."))


def _span(tensor: Tensor) -> str:
    return f"values from {tensor.min():.2f} to {tensor.max():.2f}"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _check_tensor(value: Any, what: str, hint: str = "Do not leave torch.") -> Claims:
    """Check that a result is a tensor without NaN; ``what`` is a sentence that says so."""
    hint = "End with a return statement." if value is None else hint
    yield isinstance(value, Tensor), f"{what} Expected a tensor, got {_kind(value)}. {hint}"
    finite = not value.is_floating_point() or torch.isfinite(value).all()
    yield finite, "the result must be finite. Expected numbers, got NaN or infinity."


# -------------------------------------------------------------------------------- data


def _chequers(n: int) -> Tensor:
    """Random chequers, left-right symmetric so that a flip does not hide them; (n, 3, 32, 32)."""
    left = torch.rand(n, 3, 4, 2).round() * 0.8 + torch.rand(n, 3, 4, 2) * 0.2
    return torch.cat([left, left.flip(3)], 3).repeat_interleave(8, 2).repeat_interleave(8, 3)


def write_pictures(folder: Path, n: int) -> Tensor:
    """Write ``n`` square JPEGs of random chequers in two folders; return their (n, 3, 32, 32)."""
    pictures = _chequers(n)
    for i, picture in enumerate(pictures):
        nested = folder / "celeba" / ("New Folder With Items" if i % 3 == 0 else "")
        nested.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy())
        size = (64, 32, 96, 64, 128, 48)[i % 6]
        image = image.resize((size, size), Image.Resampling.NEAREST)
        image.save(nested / f"{i:06d}.jpg", quality=98, subsampling=0)
    return pictures


@_rubric_test("get_dataloader(batch_size, image_size, data_dir) to load the images below data_dir")
def test_get_dataloader(get_dataloader: Callable[..., Any]) -> Claims:
    """Images of a folder come shuffled, in batches, resized, in [0, 1], each once an epoch."""
    n, folder = 24, "some_faces-7"
    pictures = write_pictures(Path(folder), n)
    try:
        loader = get_dataloader(6, 24, f"{folder}/")
        yield loader is not None, "it returns None. Expected a DataLoader. Make one and return it."
        first = yield from _check_epoch(loader, 6, 24, pictures)
        second = yield from _check_epoch(loader, 6, 24, pictures)
    except FileNotFoundError as error:
        path = error.filename or error
        raise Wrong(f"data_dir is ignored: it reads {path} instead of {folder}.") from None
    again = second or not first
    yield again, "a second epoch gives nothing. Return the DataLoader, not iter() of it."
    for shown in (first, second):
        got = f"Expected {n} images, got {len(shown)}, {len(set(shown))} of them different."
        nested = {i for i in range(n) if i % 3 == 0}  # as they were written
        if set(shown) == nested:
            got += f" None is from {folder}/celeba itself. Read {folder}, not a folder in it."
        elif set(shown) == set(range(n)) - nested:
            got += f" None is from the folder in {folder}/celeba. Read folders of folders too."
        once = len(shown) == len(set(shown)) == n
        yield once, f"an epoch must hold each image below data_dir exactly once. {got}"
    # 24 images come in the same order twice with probability 1 / 24! < 1e-23.
    yield first != second, "two epochs give the images in the same order. Pass shuffle=True."


def _check_epoch(loader: Any, batch_size: int, size: int, pictures: Tensor) -> Claims:
    """Check the batches of an epoch; return which pictures they show."""
    shown = []
    for batch in loader:
        shown.append((yield from _check_batch(batch, batch_size, size, pictures)))
    sizes = list(map(len, shown))
    fits = all(n == batch_size for n in sizes[:-1]) and max(sizes, default=0) <= batch_size
    yield fits, f"batch_size={batch_size} is not respected: batches of {sizes}."
    return sum(shown, [])


def _check_batch(batch: Any, batch_size: int, size: int, pictures: Tensor) -> Claims:
    """Check one batch of the loader; return which pictures it shows."""
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    yield is_pair, f"a batch must be a pair (images, labels), not {_kind(batch)}."
    images, hint = batch[0], "Add transforms.ToTensor()."
    yield from _check_tensor(images, "images of a batch must be tensors.", hint)
    expected = f"Expected shape ({batch_size}, 3, {size}, {size}), got {tuple(images.shape)}."
    come = "the images do not come in batches."
    yield images.dim() == 4, f"{come} {expected} Return a DataLoader."
    fits = images.shape[1:] == (3, size, size)
    yield fits, f"images have the wrong size for image_size={size}. {expected} Use Resize."
    hint = f"not {images.dtype}. Use transforms.ToTensor()."
    yield images.is_floating_point(), f"images must be float32, {hint}"
    within = images.min() >= -1e-3 and images.max() <= 1 + 1e-3
    yield within, f"pixel values must lie in [0, 1]: {_span(images)}. Do not Normalize."
    cells = [F.adaptive_avg_pool2d(x.float().cpu(), 4).flatten(1) for x in (images, pictures)]
    errors, shown = torch.cdist(*cells).min(1)
    whole = errors.max() / math.sqrt(cells[0].shape[1]) <= 0.12  # root mean square
    why = "a part, another image or other colours. Use Resize instead of a crop, and read RGB."
    yield whole, f"an image does not show a whole picture of data_dir, but {why}"
    return shown.tolist()


def _trains(names: dict[str, Any]) -> bool:
    """Tell whether a notebook's training is right, with all that is its own."""
    return "train" in names and verdict(POINTS["train"], names["train"])[0] in ("PASSED", "ADVICE")


@_rubric_test("scale(x) to take a tensor of any shape")
def test_scale(scale: Callable[..., Tensor]) -> Claims:
    """Values go linearly from [0, 1] to [-1, 1], whatever the range of the images at hand."""
    hint = "Use x * (max - min) + min, with min, max = feature_range."
    for shape, low, high in [((4, 3, 32, 32), 0.0, 1.0), ((3, 32, 32), 0.2, 0.7)]:
        x = torch.rand(shape) * (high - low) + low
        x.view(-1)[0] = 0.25
        before = x.clone()
        scaled = scale(x)
        if isinstance(scaled, np.ndarray) and _trains(_context(scale)):
            yield False, Advice("it gives a NumPy array, which train converts. Do not leave torch.")
            scaled = torch.as_tensor(scaled, dtype=x.dtype)
        yield from _check_tensor(scaled, "the result must be a tensor.")
        same = torch.equal(x, before)
        yield same, "it changes x in place. Expected a new tensor. Avoid x *= 2, x.mul_(2)."
        change = f"from {tuple(x.shape)} to {tuple(scaled.shape)}. {hint}"
        yield scaled.shape == x.shape, f"the shape changes {change}"
        got = f"Expected {x.dtype}, got {scaled.dtype}."
        yield scaled.dtype == x.dtype, f"the type of numbers changes. {got}"
        error = (scaled - 2 * x + 1).abs().flatten()
        worst = 0 if error[0] > 1e-3 else error.argmax()
        value, got = x.view(-1)[worst], scaled.reshape(-1)[worst]
        got = f"scale({value:.3g}) must be {2 * value - 1:.3g}, got {got:.3g}. {hint}"
        why = "The minimum and maximum of x itself must not matter."
        right = error.max() <= 1e-3  # more than what the extremes of random pixels are off
        yield right, f"[0, 1] is not mapped to [-1, 1]: {got} {why}"
    if len(inspect.signature(scale).parameters) > 1:
        ranged = scale(x, (-3, 5))
        if isinstance(ranged, np.ndarray):
            ranged = torch.as_tensor(ranged, dtype=x.dtype)
        yield from _check_tensor(ranged, "the result must be a tensor.")
        right = torch.allclose(ranged, 8 * x - 3, atol=1e-4) or torch.equal(ranged, scaled)
        got = f"scale(0.25, (-3, 5)) should be -1, got {ranged.flatten()[0]:.3g}"
        yield right, Advice(f"feature_range=(-3, 5) is not respected: {got}. {hint}")


# ---------------------------------------------------------------------------- networks


_NOT_LAST = re.compile("norm$|elu|glu|sig|tanh|soft|silu|mish|swish|threshold|shrink")
_LAYERS = ("conv2d", "conv_transpose2d", "linear")
_PRODUCTS = {"einsum", "matmul", "__matmul__", "mm", "addmm", "bmm", "tensordot", "inner"}
_PASSES_ON = re.compile("Norm|Dropout|Upsample|AvgPool|PadNd|View")  # nodes of a graph
_NO_LOGIT = "the output must be a logit, with no sigmoid or other activation or norm at the end."
_CUTS_OFF = re.compile("clamp|clip|hardtanh")


class _Calls(TorchFunctionMode):
    """Records calls of torch functions."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.weights: list[Tensor] = []  # of convolutional and linear layers
        self.after_last: list[str] = []  # the calls that follow the last layer
        self.means: Counter[Tensor] = Counter()  # running means of norms, and how often they ran
        self.drops = False  # whether dropout is on

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        self.names.append(name)
        self.after_last.append(name)
        if name in _LAYERS:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        weighs = any(isinstance(a, nn.Parameter) and a.numel() > 1 for a in args[:2])
        if name in _LAYERS or name in _PRODUCTS or ("mul" in name and weighs):
            self.after_last.clear()
        mean = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        if name in ("batch_norm", "instance_norm") and isinstance(mean, Tensor):
            self.means[mean] += 1
        if "dropout" in name and kwargs.get("training") and kwargs.get("p", 0.5) > 0:
            self.drops = True
        return func(*args, **kwargs)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _check_network(network: Any, what: str, *input_shape: int) -> Any:
    """Check that something is a network with parameters; return it, without torch.compile.

    For lazy layers, one call with ``input_shape`` gives them their sizes.
    """
    network = getattr(network, "_orig_mod", network)
    if not isinstance(network, nn.Module):
        raise Wrong(f"{what} is no network. Expected a torch.nn.Module, got {_kind(network)}.")
    if not any(True for _ in network.parameters()):
        raise Wrong(f"{what} has no layers with weights. Make them in __init__.")
    if input_shape and any(map(nn.parameter.is_lazy, network.parameters())):
        network(torch.zeros(2, *input_shape))
    return network


def _make_G(Generator: Callable[..., nn.Module], z_size: int, conv_dim: int) -> tuple[Any, int]:
    """Make a generator; return it and the width of its latents, which may be its own."""
    parameters = inspect.signature(Generator).parameters
    if parameters.keys() >= {"z_size", "conv_dim"}:
        G = Generator(z_size=z_size, conv_dim=conv_dim)
    elif sum(p.default is p.empty for p in parameters.values()) == 1:
        G = Generator(conv_dim)
        z_size = _first_width(G)
    else:
        G = Generator(z_size, conv_dim)
    return _check_network(G, "it", z_size), z_size


def _first_width(network: nn.Module) -> int:
    """The number of inputs of a network's first layer."""
    widths = (getattr(m, "in_features", getattr(m, "in_channels", 0)) for m in network.modules())
    return next(filter(None, widths), 0)


def _graph(out: Tensor) -> list[Any]:
    """The nodes that the gradient of ``out`` passes, down to the weights and the input."""
    nodes, todo = {}, [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes[node] = None
            todo += [following for following, _ in node.next_functions]
    return list(nodes)


def _convolves(node: Any) -> bool:
    """Tell whether a node is a convolution of all channels, with weights that are trained."""
    return getattr(node, "_saved_groups", 0) == 1 and node.next_functions[1][0] is not None


def _origin(node: Any) -> Any:
    """The node that a node's input is from, before batch norm, dropout and the like."""
    before, *others = [following for following, _ in node.next_functions]
    name = before.name() if before is not None else ""
    dropout = name.startswith("Mul") and before.next_functions[1][0] is None
    return _origin(before) if dropout or _PASSES_ON.search(name) else before


def _check_forward(network: nn.Module, x: Tensor, layer: str) -> Claims:
    """Run a network in training mode on ``x``; return its output and the calls it made."""
    for p in network.parameters():  # a gate that starts at 0 lets no gradient through
        if not p.any():
            nn.init.normal_(p, 0, 0.1)
    given = x.clone()
    network.train()
    with _Calls() as calls:
        out = network(given)
    yield from _check_tensor(out, "forward must return a tensor.")
    yield torch.equal(given, x), "it changes its input in place. Avoid x.mul_(), x += 1."
    known = {id(x), *map(id, network.parameters())}
    hint = (
        "so no optimizer will train it. Make layers in __init__, and lists of them nn.ModuleList."
    )
    for weight in [node.variable for node in _graph(out) if hasattr(node, "variable")]:
        what = f"a layer of shape {tuple(weight.shape)} is not registered"
        yield id(weight) in known, f"{what}, {hint}"
    pooling = next((name for name in calls.names if "max_pool" in name), "")
    yield not pooling, f"it uses pooling. Expected strided convolutions, got {pooling}."
    several = sum(calls.names.count(name) for name in {"conv2d", layer}) >= 2
    yield several, f"it is not convolutional. Use several {layer} layers in forward."
    for name, mean in network.named_buffers():
        runs, what = calls.means[mean], name.removesuffix(".running_mean")
        why = f"{what} follows {runs} layers, and its running mean, used in eval mode, fits none"
        yield runs < 2, f"{why}. Make a norm of its own for each layer."
    return out, calls


def _check_eval(network: nn.Module, x: Tensor, row: str, mixing: float) -> Claims:
    """Check that output i depends on input i, and others on it by ``mixing`` of that at most."""
    changed = x.clone()
    changed[0] = torch.rand_like(x[0]) * 2 - 1
    outputs = []
    for inputs in (x, changed):
        with torch.no_grad(), _fixed_randomness(), _Calls() as calls:
            outputs.append(network.eval()(inputs.clone()).reshape(len(x), -1))
    yield not calls.drops, "dropout stays on in eval mode. Pass self.training to F.dropout."
    before, after = outputs
    change = (after - before).abs().amax(1)
    noise = mixing * change.max() + 1e-7 * before.abs().max()
    rows = (change > noise).nonzero().flatten().tolist()
    recentred = (after - before).mean(0).abs().max() < 1e-3 * change.max()
    effect = f"a change of {row} 0 changes outputs {rows}. Keep the batch dimension first."
    yield rows == [0] and not recentred, f"it mixes the {row}s of a batch: {effect}"
    with torch.no_grad():
        same = torch.allclose(network(x), network(x), atol=1e-5)
    yield same, Advice("noise of its own in eval mode. Draw noise only if self.training.")


def _check_gradients(network: nn.Module, x: Tensor, out: Tensor, calls: _Calls) -> Claims:
    """Check that gradients reach the input and the weights of each layer that ran."""
    hint = "Do not use detach(), .data, .numpy() or torch.no_grad() in forward."
    stacked = any(_convolves(node) and _convolves(_origin(node)) for node in _graph(out))
    bent = not stacked or {"add", "__add__", "__iadd__", "cat"} & set(calls.names)
    yield bent, "there is no activation between two of its convolutions. Use F.leaky_relu(x)."
    yield out.requires_grad, f"no gradient flows through it. {hint}"
    (out * torch.randn_like(out)).sum().backward()
    yield x.grad is not None, f"no gradient reaches its input. {hint}"
    cut = next(filter(_CUTS_OFF.search, calls.names), "")
    whole = not cut or (x.grad == 0).float().mean() <= 0.05
    yield whole, f"{cut} cuts the input off, where the gradient is 0. Pass it on as it is."
    used = {weight.data_ptr() for weight in calls.weights}  # weight.data has the same
    for name, p in network.named_parameters():
        reached = p.data_ptr() not in used or (p.grad is not None and p.grad.any())
        yield reached, f"no gradient reaches {name}. {hint}"


def _outputs_for_random_weights(network: nn.Module, x: Tensor, draws: int = 24) -> Tensor:
    """Outputs of a network for large inputs and weights, to see the range that it can reach.

    Without an activation at the end, all outputs of 24 draws have one sign with probability 1.2e-7.
    """
    outputs = []
    with torch.no_grad():
        for _ in range(draws):
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_()
            outputs.append(network(x))
    return torch.stack(outputs)


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _ends_in_sigmoid(D: nn.Module) -> bool:
    """Tell whether a sigmoid follows the last layer of a discriminator, which may be changed."""
    with torch.no_grad(), _Calls() as calls:
        D(torch.zeros(4, *_IMAGE, device=_device(D)))
    return "sigmoid" in " ".join(calls.after_last)


def _check_logit(after_last: list[str], names: dict[str, Any]) -> Claims:
    """Check that D ends in what its losses take; return whether that is a logit."""
    drops = any("dropout" in name for name in after_last)
    yield not drops, Advice("dropout on the logit makes D answer 0 at random. Put it further up.")
    endings = [name for name in after_last if _NOT_LAST.search(name)]
    fits = has_loss = False  # whether real_loss is right for probabilities, and is there
    with suppress(KeyError, NotWritten):
        check_written(names["real_loss"])
        has_loss = True
    with suppress(Exception):
        p = torch.rand(16) * 0.8 + 0.1
        kinds = _implied_labels(p, *_loss_and_gradient(names["real_loss"], p))
        fits = any("logits" not in kind for kind in kinds)
    may_fit = all("sigmoid" in name for name in endings) and (fits or not has_loss)
    ending = next(iter(endings), "")
    yield not ending or may_fit, f"{_NO_LOGIT} Got {ending} after the last layer."
    hint = "a sigmoid: right with nn.BCELoss, wrong with nn.BCEWithLogitsLoss."
    yield not ending or fits, Advice(hint)
    return not ending


@_rubric_test("Discriminator(conv_dim) to take images (N, 3, 32, 32), for any conv_dim and N")
def test_discriminator(Discriminator: Callable[..., nn.Module]) -> Claims:
    """A convolutional classifier from images (N, 3, 32, 32) in [-1, 1] to one logit each."""
    sizes = {}
    for conv_dim, n in ((16, 4), (8, 8)):
        D = _check_network(Discriminator(conv_dim), "it", *_IMAGE)
        sizes[conv_dim] = _count(D)
        x = torch.rand(n, *_IMAGE, device=_device(D)) * 2 - 1
        x.requires_grad_()
        out, calls = yield from _check_forward(D, x, "conv2d")
        got = f"Expected shape ({n}, 1), got {tuple(out.shape)}. Use x.flatten(1)."
        is_column = out.numel() == n and out.shape[:1] == (n,)
        yield is_column, f"the output must be one number for each image. {got}"
        is_logit = yield from _check_logit(calls.after_last, _context(Discriminator))
        yield from _check_gradients(D, x, out, calls)
        looks = F.max_pool2d(x.grad.abs(), IMAGE_SIZE // 2).all()  # (n, 3, 2, 2): quarters
        yield looks, "it does not look at the whole image. Use all colours and quarters."
    x = x.detach()
    if is_logit:
        answers = _outputs_for_random_weights(D, x[:2] * 1000)
        free = answers.abs().max() > 1 and answers.min() < 0 < answers.max()
        yield free, f"{_NO_LOGIT} Got {_span(answers)} whatever the weights."
    D = _check_network(Discriminator(8), "it", *_IMAGE).to(x.device)
    yield from _check_eval(D, x, "image", mixing=0.5)
    yield sizes[16] > sizes[8], "conv_dim is ignored. Make the numbers of channels multiples of it."


@_rubric_test("Generator(z_size, conv_dim) to take latents (N, z_size), for any sizes and N")
def test_generator(Generator: Callable[..., nn.Module]) -> Claims:
    """A network from latents (N, z_size) to images (N, 3, 32, 32) in [-1, 1]."""
    sizes = {}
    for asked, conv_dim, n in ((20, 16, 4), (33, 8, 5), (20, 8, 6)):
        G, z_size = _make_G(Generator, asked, conv_dim)
        sizes[conv_dim] = _count(G)
        z = (torch.rand(n, z_size, device=_device(G)) * 2 - 1).requires_grad_()
        try:
            out, calls = yield from _check_forward(G, z, "conv_transpose2d")
        except RuntimeError:
            if _first_width(G) == z_size:
                raise
            takes = f"Generator({z_size}, {conv_dim}) takes {_first_width(G)} numbers"
            hint = f"instead of {z_size}. Start with nn.Linear(z_size, ...)."
            raise Wrong(f"z_size is ignored: the first layer of {takes} {hint}") from None
        got = f"Expected shape {(n, *_IMAGE)}, got {tuple(out.shape)}."
        yield out.shape == (n, *_IMAGE), f"it must make images. {got}"
        yield from _check_gradients(G, z, out, calls)
        n_zero = (z.grad == 0).all(0).sum()
        why = f"{n_zero} of its {z_size} numbers have no gradient"
        yield not n_zero, f"part of z is ignored: {why}."
        last = next((name for name in reversed(calls.names) if not name.startswith("__")), "")
        cuts = _CUTS_OFF.search(last)
        yield not cuts, f"{last} cuts the output off, where the gradient is 0. Use torch.tanh(x)."
        once = calls.after_last.count("tanh") <= 1
        yield once, "tanh is applied twice, so that pixels stay within 0.76. Apply it once."
    z = z.detach()
    pixels = _outputs_for_random_weights(G, z[:2])
    hint = "End forward with torch.tanh(x): real images are scaled to [-1, 1] too."
    leave = pixels.abs().max() > 1
    yield not leave, f"pixel values leave [-1, 1]: {_span(pixels)}. {hint}"
    span = f"Expected -1 to 1, got {_span(pixels)}. {hint}"
    narrow = pixels.min() > -0.5 or pixels.max() < 0.5
    yield not narrow, f"pixel values do not span [-1, 1]. {span}"
    G = _make_G(Generator, 20, 8)[0].to(z.device)
    yield from _check_eval(G, z, "latent", mixing=1e-3)
    yield sizes[16] > sizes[8], "conv_dim is ignored. Make the numbers of channels multiples of it."


_USE_NORMAL = "Use nn.init.normal_(m.weight, 0.0, 0.02)."


def _check_normal(weight: Tensor, where: str, hint: str = _USE_NORMAL) -> Claims:
    """Check that a weight tensor is a sample of N(0, 0.02).

    6.5 standard errors happen with probability 8e-11 for the mean, and up to 6e-9 for the standard
    deviation at n = 16; the kurtosis (3 for this distribution) has heavier tails, and gets 12.
    """
    n = weight.numel()
    if n < 16:
        return
    values = weight.detach().cpu().double().flatten()
    mean, std = values.mean(), values.std()
    right = abs(mean) < 6.5 * 0.02 / n**0.5 and abs(std / 0.02 - 1) < 6.5 / (2 * n) ** 0.5
    got = f"mean {mean:.4f} and standard deviation {std:.4f} instead of 0 and 0.02"
    yield right, f"{where} has the wrong distribution of weights: {got}. {hint}"
    kurtosis = ((values - mean) / std).pow(4).mean()
    normal = n <= 20_000 or abs(kurtosis - 3) < 12 * (24 / n) ** 0.5
    got = f"kurtosis {kurtosis:.2f} instead of 3"
    yield normal, f"the weights of {where} are not normally distributed: {got}. {hint}"


def _own_layers(names: dict[str, Any]) -> list[nn.Module]:
    """The layers of a notebook's networks, as far as they can be made."""
    layers: list[nn.Module] = []
    with suppress(Exception):
        layers += _check_network(names["Discriminator"](8), "it", *_IMAGE).modules()
        layers += _make_G(names["Generator"], 20, 8)[0].modules()
    return layers


def _check_init(weights_init_normal: Callable[[nn.Module], Any], own: list[nn.Module]) -> Claims:
    """Check an initialisation on layers such as the notebook's own (on all, if it has none)."""
    kinds = (nn.Conv2d, 32, 64, 4), (nn.ConvTranspose2d, 64, 32, 4), (nn.Linear, 200, 300)
    some = [kind(*sizes, bias=bias) for kind, *sizes in kinds for bias in (True, False)]
    some += [nn.BatchNorm2d(256), nn.BatchNorm1d(256)]
    layers = {
        type(layer).__name__ + " without bias" * (layer.bias is None): layer
        for layer in some
        if any(isinstance(m, type(layer)) and (m.bias is None) == (layer.bias is None) for m in own)
        or not own
    }
    before = copy.deepcopy(layers)
    network = nn.ModuleList([*layers.values(), nn.LeakyReLU(0.2), nn.Dropout()])
    network.apply(weights_init_normal)
    first = copy.deepcopy(layers)
    torch.manual_seed(1)
    network.apply(weights_init_normal)
    for name, layer in layers.items():
        # Of 396 biases, one from N(0, 0.02) exceeds 6.5 standard deviations with probability 3e-8.
        narrow = layer.bias is None or layer.bias.abs().max() < 0.13
        if "Norm" in name:
            is_like_others = narrow and layer.weight.abs().max() < 0.13
            tiny = f"{name} is drawn from N(0, 0.02), which makes its outputs tiny."
            yield not is_like_others, Advice(tiny)
            right = is_like_others or (narrow and (layer.weight - 1).abs().max() < 0.13)
            yield right, f"{name} is drawn from the wrong distribution. Leave it alone."
            continue
        changed = not torch.equal(layer.weight, before[name].weight)
        use = "Test isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))."
        yield changed, f"the weights of {name.split()[0]} are left as they were. {use}"
        yield from _check_normal(layer.weight, name)
        varies = not torch.equal(layer.weight, first[name].weight)
        yield varies, "a seed is set inside, so that each call draws the same numbers."
        if layer.bias is not None and not torch.equal(layer.bias, before[name].bias):
            near = narrow and abs(layer.bias.mean()) < 0.13 / layer.bias.numel() ** 0.5
            yield near, f"the biases of {name} are too far from 0: {_span(layer.bias)}."


@_rubric_test("weights_init_normal(m) to take any layer, with or without weight and bias")
def test_weights_init_normal(weights_init_normal: Callable[[nn.Module], Any]) -> Claims:
    """Weights of convolutional and linear layers become N(0, 0.02); nothing else turns wide.

    Biases may be left alone, set to 0 or drawn as narrowly; batch norm may be left alone or drawn
    from N(1, 0.02). Layers of a kind that the notebook's own networks do not have do not matter.
    """
    yield from _check_init(weights_init_normal, _own_layers(_context(weights_init_normal)))


@contextmanager
def _blame_init(names: dict[str, Any], *faults: type[Exception]) -> Iterator[None]:
    """Say so if one of the faults comes from the notebook's weights_init_normal."""
    try:
        yield
    except faults:
        init = names.get("weights_init_normal")
        if callable(init):
            try:
                settle(_check_init(init, _own_layers(names)))
            except Exception as fault:
                why = str(fault) if isinstance(fault, Wrong) else f"{describe(fault)}."
                raise Wrong(f"it fails because of weights_init_normal: {why}") from None
        raise


def _build(build_network: Callable[..., Any], *sizes: int) -> tuple[nn.Module, nn.Module, int]:
    """Call build_network(d_conv_dim, g_conv_dim, z_size); return D, G and the width of latents."""
    parameters = inspect.signature(build_network).parameters
    named = dict(zip(("d_conv_dim", "g_conv_dim", "z_size"), sizes, strict=True))
    if parameters.keys() >= named.keys():
        networks = build_network(**named)
    else:  # other names; or without a width of the latents, if that is G's own
        networks = build_network(*sizes[: len(parameters)])
    if not isinstance(networks, (tuple, list)) or len(networks) != 2:
        raise Wrong(f"build_network must return both networks (D, G), not {_kind(networks)}.")
    D, G = _check_network(networks[0], "D"), _check_network(networks[1], "G")
    return D, G, sizes[2] if len(parameters) >= 3 else _first_width(G)


@_rubric_test("build_network(d_conv_dim, g_conv_dim, z_size) to return D, G")
def test_build_network(build_network: Callable[..., Any]) -> Claims:
    """D and G, in this order, of the sizes asked for, with weights from N(0, 0.02)."""
    n, names = 4, _context(build_network)
    with _blame_init(names, AttributeError, TypeError, ValueError, RuntimeError):
        D, G, z_size = _build(build_network, 16, 16, 20)
    z = torch.rand(n, z_size, device=_device(G)) * 2 - 1
    x = torch.rand(n, *_IMAGE, device=_device(D)) * 2 - 1
    fits = False
    with suppress(RuntimeError):
        fits = D(x).numel() == n and G(z).shape == x.shape
    hint = "Return D, G in this order and pass z_size to G."
    yield fits, f"the networks do not fit: D must take what G makes of z_size numbers. {hint}"
    with _blame_init(names, Wrong):
        for network, what in ((D, "D"), (G, "G")):
            given = f"Call {what}.apply(weights_init_normal)."
            hint = given if callable(names.get("weights_init_normal")) else _USE_NORMAL
            for name, layer in network.named_modules():
                if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    continue
                trained = all(p.requires_grad for p in layer.parameters())
                yield trained, f"{name} of {what} cannot be trained. Do not freeze it."
                if "weight" in dict(layer.named_parameters(recurse=False)):
                    yield from _check_normal(layer.weight, f"{name} of {what}", hint)
    wider_D, same_G, _ = _build(build_network, 24, 16, 20)
    same_D, wider_G, _ = _build(build_network, 16, 24, 20)
    for name, what, *networks in (
        ("d_conv_dim", "D", D, same_D, wider_D),
        ("g_conv_dim", "G", G, same_G, wider_G),
    ):
        small, same, wide = map(_count, networks)
        got = f"got {small:,}, {same:,}, {wide:,} parameters for {name} of 16, 16, 24"
        yield small == same < wide, f"{name} must set the size of {what}, and nothing else: {got}."
    same = all(map(torch.equal, same_D.parameters(), D.parameters()))
    yield not same, "a second call gives the same weights. Make new networks, without a seed."


# ------------------------------------------------------------------------------- losses


def _loss_and_gradient(
    loss: Callable[..., Tensor], answers: Tensor, **options: Any
) -> tuple[float, Tensor]:
    """A loss, and N times its gradient, for answers (N, 1) or, if it takes no such, (N,)."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device, values in ((d, v) for d in devices for v in (answers[:, None], answers)):
        D_out = values.to(device, copy=True).requires_grad_()
        try:
            value = loss(D_out, **options)
        except (ValueError, RuntimeError) as error:
            failed = error
            continue
        settle(_check_loss_of(D_out, value, values))
        return value.item(), len(answers) * D_out.grad.cpu().flatten()
    raise failed


def _check_loss_of(D_out: Tensor, value: Any, values: Tensor) -> Claims:
    """Check that a loss of D_out, which had these values, is a number with a gradient."""
    hint = "Return the loss tensor itself: no .item(), detach() or numpy()."
    yield from _check_tensor(value, "the loss must be a tensor.", hint)
    shape = tuple(value.shape)
    yield value.numel() == 1, f"the loss must be one number, not {shape}. Take the mean."
    yield value.requires_grad, f"no gradient flows from it. {hint}"
    same = torch.equal(D_out.detach().cpu(), values)
    yield same, "it changes D_out in place. Work on a new tensor."
    value.sum().backward()
    yield D_out.grad is not None, f"no gradient reaches D_out. {hint}"


def _implied_labels(x: Tensor, value: float, g: Tensor) -> dict[str, Tensor]:
    """The labels (N,), for each kind of loss that fits, of answers with this loss and gradient.

    N times the gradient, g, is sigmoid(x) - label for cross entropy of logits and (x - label) /
    (x (1 - x)) of probabilities; for least squares, 2 (x - label) or half of it.
    """
    t, up = x.sigmoid() - g, bool((g < 0).any())
    kinds = {
        "of logits": (t, (F.softplus(x) - t * x).mean()),
        "hinge of logits": (torch.full_like(x, up), F.relu(1 - x if up else 1 + x).mean()),
        "least squares": (x - g / 2, (g / 2).square().mean()),
        "half least squares": (x - g, g.square().mean() / 2),
    }
    if 0 < x.min() and x.max() < 1:
        t = x - g * x * (1 - x)
        kinds["of probabilities"] = t, -(t * x.log() + (1 - t) * (1 - x).log()).mean()
    return {k: t for k, (t, v) in kinds.items() if abs(v - value) < 1e-3 * (1 + abs(value))}


def _check_loss(loss: Callable[..., Tensor], low: float, high: float, **options: Any) -> Claims:
    """Check that a loss is a usual one with labels in [low, high], for most of the images."""
    kind, right, smoothed, kinds = (
        ("real", 1, "0.7 to 1.2", "ones") if low > 0.5 else ("fake", 0, "0 to 0.3", "zeros")
    )
    called = "".join(f" with {name}={value}" for name, value in options.items())
    logits = True
    with suppress(Exception):
        logits = not _ends_in_sigmoid(
            _check_network(_context(loss)["Discriminator"](8), "it", *_IMAGE)
        )
    found: dict[str, list[Tensor]] = defaultdict(list)  # labels for each kind of loss
    sizes = (16, 7, 16, 16, 16)
    for n in sizes:
        x = torch.randn(n) * 2
        x = x if logits else x.sigmoid()
        value, g = _loss_and_gradient(loss, x, **options)
        for name, labels in _implied_labels(x, value, g).items():
            found[name].append(labels)
    # A few labels may be flipped on purpose, which makes D's task harder.
    pooled = [torch.cat(labels) for labels in found.values() if len(labels) == len(sizes)]
    if any(((low - 0.01 < t) & (t < high + 0.01)).float().mean() > 0.7 for t in pooled):
        return
    negated = _implied_labels(x, -value, -g).values() if value < 0 else ()
    flipped = any(low < t.mean() + 0.01 < high for t in negated)
    yield not flipped, f"the sign of the loss is flipped{called}. Remove the minus."
    squared = g.std() < 1e-4 * g.abs().mean() and any("least" in kind for kind in found)
    inside = "torch.mean((D_out - 1) ** 2)" if right else "torch.mean(D_out ** 2)"
    yield not squared, f"the square is outside of the mean{called}. Expected {inside}."
    if pooled:
        label = round(float(pooled[0].mean()), 2) + 0.0
        expected = f"Expected {right} (smoothed: {smoothed}), got {label:.2f}. Use torch.{kinds}."
        raise Wrong(f"the label{called} is wrong for {kind} images. {expected}")
    usual = f"binary cross entropy nor least squares nor hinge loss{called}"
    hint = "Use BCEWithLogitsLoss on D_out itself, without a sigmoid."
    raise Wrong(f"it is neither {usual}, averaged over the batch. {hint}")


@_rubric_test("real_loss(D_out) to take logits (N, 1) or (N,), for any N")
def test_real_loss(real_loss: Callable[..., Tensor]) -> Claims:
    """Cross entropy, least squares or hinge loss of D's answers for label 1, smoothed or not."""
    yield from _check_loss(real_loss, 0.7, 1.2)
    smooth = inspect.signature(real_loss).parameters.get("smooth")
    if smooth is not None and isinstance(smooth.default, bool):
        yield from _check_loss(real_loss, 0.7, 1.2, smooth=True)


@_rubric_test("fake_loss(D_out) to take logits (N, 1) or (N,), for any N")
def test_fake_loss(fake_loss: Callable[..., Tensor]) -> Claims:
    """Cross entropy, least squares or hinge loss of D's answers for label 0, smoothed or not."""
    yield from _check_loss(fake_loss, 0.0, 0.3)


# --------------------------------------------------------------------- optimizers, training


@_rubric_test("optimizers (two of them), and the networks D and G")
def test_optimizers(
    d_optimizer: torch.optim.Optimizer,
    g_optimizer: torch.optim.Optimizer,
    D: nn.Module,
    G: nn.Module,
) -> Claims:
    """Each optimizer holds exactly its own network's parameters, with usable settings."""
    networks = {id(p): name for name, net in (("D", D), ("G", G)) for p in net.parameters()}
    optimizers = {"D": ("d_optimizer", d_optimizer), "G": ("g_optimizer", g_optimizer)}
    held = {}
    for owner, (name, optimizer) in optimizers.items():
        is_one = isinstance(optimizer, torch.optim.Optimizer)
        yield is_one, f"{name} is not an optimizer, but {_kind(optimizer)}."
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        held[owner] = Counter(networks.get(id(p), "another network") for p in parameters)
    swapped = held["D"].keys() == {"G"} and held["G"].keys() == {"D"}
    yield not swapped, "the two optimizers are swapped: d_optimizer holds G, and g_optimizer D."
    for owner, (name, optimizer) in optimizers.items():
        expected = list(networks.values()).count(owner)
        got = " and ".join(f"{n} of {network}" for network, n in held[owner].items())
        got = f"Expected {expected} tensors of {owner}, got {got}"
        right = held[owner] == {owner: expected}
        yield right, f"{name} must hold exactly the parameters of {owner}. {got}."
        highest = 0.5 if isinstance(optimizer, torch.optim.SGD) else 0.01
        for group in optimizer.param_groups:
            lr, (beta1, beta2) = float(group["lr"]), group.get("betas", (0.5, 0.999))
            for right, what, use in (
                (1e-6 <= lr <= highest, f"learning rate {lr} is out of range", "0.0002 or so"),
                (not group.get("maximize"), "step maximizes the loss", "maximize=False"),
                (beta1 <= beta2, "betas are swapped", "(0.5, 0.999)"),
                (beta2 >= 0.9, f"beta2 of {beta2} is too small for steady steps", "0.999"),
                (group.get("weight_decay", 0) <= 0.1, "weight decay pulls all weights to 0", "0"),
            ):
                yield right, f"{name}'s {what}. Use {use}."
            steady = f"{name}'s beta1 is {beta1}; GANs train more steadily with 0.5."
            yield beta1 <= 0.8, Advice(steady)


_SAME_LATENTS = "are all the same. Draw z of shape (batch_size, z_size) inside the batch loop."
_FAULTY = {  # what many of a network's steps do to D's answers
    ("D", "real down"): "D learns to call real images fake. Do not swap real_loss and fake_loss.",
    ("D", "fake up", "fake down"): "D's step uses the gradients of G's loss too. Call "
    "d_optimizer.zero_grad() just before d_loss.backward().",
    ("D", "fake up"): "D learns to call generated images real. Use d_loss for D's step, with "
    "fake_loss(D(fake_images)).",
    ("G", "fake up", "fake down"): "G's step uses the gradients of D's loss too. Call "
    "g_optimizer.zero_grad() just before g_loss.backward().",
    ("G", "fake down"): "G's loss pushes D's answer on generated images down. Use flipped labels: "
    "g_loss = real_loss(D(fake_images)).",
}
_WANTED = {  # what some of a network's steps must do
    ("D", "real up"): "D never learns from real images. Add real_loss(D(real_images)) to d_loss",
    ("D", "fake down"): "D never learns from generated images. Add fake_loss(D(fakes)) to d_loss",
    ("G", "fake up"): "G never learns from D's answers. Use g_loss = real_loss(D(fake_images))",
}
_Mark = frozenset[int]  # what a row was made from: c for call c, ~i for the loader's image i


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that a value is, or holds."""
    values = value if isinstance(value, (list, tuple)) else []
    return [value] if isinstance(value, Tensor) else [t for v in values for t in _tensors(v)]


@dataclass(eq=False)
class _Call:
    """A call of D or G in train()."""

    network: str
    training: bool
    given: Tensor  # the latents or images, (N, anything)
    sources: _Mark  # of all that was given
    output: Tensor  # (N, anything)
    kinds: list[str] = field(default_factory=list)  # of D's images: "real", "fake" or "mixed"
    owners: set[str] = field(default_factory=set)  # the networks whose steps learned from it


@dataclass(eq=False)
class _Pass:
    """A backward pass in train()."""

    calls: set[_Call] = field(default_factory=set)  # through whose outputs it went
    pushes: set[str] = field(default_factory=set)  # of D's answers: "real up", "fake down", ...
    slopes: list[Tensor] = field(default_factory=list)  # of their gradients, by the mean size


@dataclass
class _Step:
    """A step of an optimizer in train()."""

    optimizer: torch.optim.Optimizer
    n_batches: int  # drawn from the loader by then
    passes: set[_Pass]  # whose gradients it is the first to use
    piled_up: bool  # whether earlier steps have used some of its gradient

    @property
    def pushes(self) -> set[str]:
        return set().union(*(p.pushes for p in self.passes))


@dataclass
class _Record:
    """What a run of train() did."""

    images: Tensor  # the loader's, from -1 to 1, (n, 3 * 32 * 32)
    expected: int  # how many batches all epochs have
    n_batches: int = 0  # how many were drawn from the loader
    calls: list[_Call] = field(default_factory=list)
    steps: dict[str, list[_Step]] = field(default_factory=lambda: {"D": [], "G": []})
    scalars: list[tuple[float, _Mark, int]] = field(default_factory=list)  # value, mark, batch
    seen: Counter[int] = field(default_factory=Counter)  # how often D was shown each of the images
    levels: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # quantiles

    def calls_of(self, sources: Iterable[int]) -> list[_Call]:
        return [self.calls[source] for source in sources if source >= 0]


class _Recorder(TorchFunctionMode):
    """Records a run of train(): what each step learned from, and which way it pushed D's answers.

    Each row of a tensor has a mark: what it was made from. Marks follow the rows through torch's
    functions, so that real, generated and mixed images are known however they are augmented or
    batched. To see where a function moves rows to, it is run once more, on numbers in their place.

    D's answers are replaced by numbers about 0.5, with the same gradients: there, a loss of any
    kind pushes the answers up for the label real, and down for fake. G's images are replaced by
    pictures in black and white, so that a wrong range shows. The largest weight of each network
    serves as a probe of its gradient: which backward passes it is the sum of.

    What a call or a step shows to be wrong is raised there: what follows from it says less.
    """

    def __init__(self, D: nn.Module, G: nn.Module, z_size: int, record: _Record) -> None:
        super().__init__()
        self.record = record
        self.networks = {"D": D, "G": G}
        self.z_size = z_size
        self.parameters = {name: list(net.parameters()) for name, net in self.networks.items()}
        self.probes = {name: max(ps, key=Tensor.numel) for name, ps in self.parameters.items()}
        self.inside = False  # whether D, G or an optimizer runs
        self.random = torch.Generator().manual_seed(0)
        self.summed: dict[str, list[_Pass]] = {"D": [], "G": []}  # in a network's gradient
        self.before = torch.empty(0)  # the probe of the network that takes a step

    def collate(self, pairs: list[tuple[Tensor, Tensor]]) -> Any:
        """Make a batch of the loader, mark its images, and count it."""
        self.record.n_batches += 1
        if self.record.n_batches >= 4 * self.record.expected:  # it may never end
            raise Wrong(_wrong_number(self.record, f"at least {self.record.n_batches}"))
        images, indices = default_collate(pairs)
        images.marks = [frozenset([~i]) for i in indices.tolist()]
        return [images, torch.zeros_like(indices)]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Install all hooks, and remove them again."""
        backward = functools.partial(self._backward, torch.autograd.backward)
        with mock.patch.object(torch.autograd, "backward", backward), ExitStack() as stack, self:
            for hook in (
                nn.modules.module.register_module_forward_pre_hook(self._before_forward),
                nn.modules.module.register_module_forward_hook(self._after_forward),
                optimizer_hooks.register_optimizer_step_pre_hook(self._before_step),
                optimizer_hooks.register_optimizer_step_post_hook(self._after_step),
            ):
                stack.callback(hook.remove)
            yield

    # Marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        func = torch.unbind if name == "__iter__" else func
        result = func(*args, **kwargs)
        outs = _tensors(args[:1] if name == "__setitem__" else result)
        given = [t for t in _tensors([*args, *kwargs.values()]) if any(getattr(t, "marks", ()))]
        made_anew = name.endswith("_like") or name.startswith("new_")
        if given and outs and not (self.inside or made_anew):
            self._mark(func, args, kwargs, given, outs)
        return iter(result) if name == "__iter__" else result

    def _mark(self, func: Any, args: Any, kwargs: Any, given: list[Any], outs: list[Any]) -> None:
        """Mark the results of a function by the rows that it moved there, or else row by row."""
        numbers = {id(t): torch.rand(t.shape[:1], generator=self.random) for t in given}
        rows = [(numbers[id(t)].view(-1).tolist(), t.marks) for t in given]
        known = {number: mark for row in rows for number, mark in zip(*row, strict=False)}

        def twin(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return (tuple if isinstance(value, tuple) else list)(map(twin, value))
            if id(value) in numbers:
                number = numbers[id(value)].to(value.device)
                return number.view(*number.shape, *[1] * (value.dim() - 1)).expand_as(value).clone()
            return value.clone() if isinstance(value, Tensor) else value

        moved: list[Tensor] = []
        with suppress(Exception):
            twins = twin(args)
            result = func(*twins, **{name: twin(value) for name, value in kwargs.items()})
            moved = _tensors(twins[:1] if result is None else result)
        for i, out in enumerate(outs):
            n, marks = out.shape[:1].numel(), []
            if moved:
                found = (row.unique().tolist() for row in moved[i].reshape(n, -1))
                marks = [[known[v] for v in values if v in known] for values in found]
            if not any(marks):
                marks = [known.values()] * n
                if all(len(t.marks) == n for t in given):
                    marks = zip(*[t.marks for t in given], strict=True)
            out.marks = [frozenset().union(*mark) for mark in marks]
            if out.numel() == 1 and out.is_floating_point():
                sources = frozenset().union(*out.marks)
                self.record.scalars.append((out.item(), sources, self.record.n_batches))

    # What D and G are given

    def _name(self, module: nn.Module) -> str:
        G = self.networks["G"]
        is_G = module is G or type(module) is type(G) is not nn.Sequential  # or a copy
        return "G" if is_G else "D" * (module is self.networks["D"])

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        name = self._name(module)
        self.inside |= bool(name)
        if name != "G" or not args or args[0].dim() < 2:
            return None
        z = args[0].flatten(1)  # its width may be of another G
        z = F.pad(z, (0, self.z_size - z.shape[1]))
        return z.view(len(z), -1, *args[0].shape[2:]), *args[1:]

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        name = self._name(module)
        if not name or not args or not isinstance(output, Tensor):
            return None
        record, given = self.record, args[0].detach().cpu().float().flatten(1)
        images = output.flatten(1) if name == "G" else given
        if images.shape[1] != record.images.shape[1]:
            raise Wrong(f"{name} is given no images, but shape {tuple(args[0].shape)}.")
        marks = getattr(args[0], "marks", [frozenset()] * len(given))
        call = _Call(name, module.training, given, frozenset().union(*marks), output)
        if name == "G":
            if call.training and len(given) > 1 and torch.equal(given[0], given[1]):
                raise Wrong(f"the latents of G's training {_SAME_LATENTS}")
            stand_in = -record.images[torch.arange(len(given)) % len(record.images)]
        else:
            call.kinds = self._kinds(given, marks)
            stand_in = 0.5 + 0.03 * torch.randn(output.shape, generator=self.random)
        call.output = output + (stand_in.view_as(output).to(output) - output).detach()
        call.output.marks = [frozenset([len(record.calls)])] * output.shape[:1].numel()
        record.calls.append(call)
        self.inside = False
        return call.output

    def _kinds(self, images: Tensor, marks: list[_Mark]) -> list[str]:
        """Tell real, generated and mixed images, and note where they have most values."""
        record, kinds = self.record, []
        levels = images.quantile(torch.tensor([0.1, 0.9]), dim=1).T
        for row, mark, level in zip(images, marks, levels, strict=True):
            if not mark:  # it came by NumPy
                centred = record.images - record.images.mean(1, keepdim=True)
                likeness, i = F.cosine_similarity(row - row.mean(), centred).max(0)
                mark = {~int(i)} if likeness > 0.9 else mark
            real = {source for source in mark if source < 0}
            record.seen.update(real)
            kinds.append("fake" if not real else "real" if real == mark else "mixed")
            if mark:
                record.levels[kinds[-1]].append(level)
        return kinds

    # What steps do

    def _backward(self, run: Any, tensors: Any, grad_tensors: Any = None, *args: Any, **kw: Any):
        """Run a backward pass; note which way it pushes D's answers."""
        watched = [*self.probes.values(), *(call.output for call in self.record.calls)]
        watched = [t for t in watched if t.requires_grad]
        found = torch.autograd.grad(tensors, watched, grad_tensors, True, allow_unused=True)
        gradients = {id(t): g for t, g in zip(watched, found, strict=True) if g is not None}
        this = _Pass({call for call in self.record.calls if id(call.output) in gradients})
        for call in this.calls:
            for kind in {"real", "fake"}.intersection(call.kinds):
                chosen = torch.tensor([k == kind for k in call.kinds])
                g, x = (
                    t.detach().cpu().float().reshape(len(chosen), -1).mean(1)
                    for t in (gradients[id(call.output)], call.output)
                )
                mean, centred = g[chosen].mean(), x[chosen] - x[chosen].mean()
                if abs(mean) > 0.25 * g[chosen].abs().sum() / len(chosen):
                    this.pushes.add(f"{kind} {'up' if mean < 0 else 'down'}")
                    slope = (g[chosen] * centred).sum() / centred.square().sum()
                    this.slopes.append(slope / mean.abs())
        for name, probe in self.probes.items():
            if probe.grad is None or not probe.grad.any():  # zero_grad() was called
                self.summed[name].clear()
            if id(probe) in gradients:
                self.summed[name].append(this)
        run(tensors, grad_tensors, *args, **kw)

    def _owner(self, optimizer: torch.optim.Optimizer) -> str:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owners = [name for name, ps in self.parameters.items() if held & set(map(id, ps))]
        if len(owners) > 1:
            raise Wrong("one optimizer holds the parameters of both networks. Make two of them.")
        return owners[0] if owners else ""

    def _fresh(self, name: str) -> set[_Pass]:
        """The passes in a network's gradient that none of its steps has used."""
        return set(self.summed[name]).difference(*(step.passes for step in self.record.steps[name]))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner(optimizer)
        if not owner:
            return
        fresh, probe = self._fresh(owner), self.probes[owner]
        if probe.grad is None or not probe.grad.any() or not fresh:
            other = self._fresh("G" if owner == "D" else "D")
            raise Wrong(_no_gradient(owner, set().union(*(p.pushes for p in other))))
        self.before = probe.detach().clone()
        for call in set().union(*(p.calls for p in fresh)):
            call.owners.add(owner)
        piled_up = len(fresh) < len(self.summed[owner])
        step = _Step(optimizer, self.record.n_batches, fresh, piled_up)
        self.record.steps[owner].append(step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner(optimizer)
        if owner and torch.equal(self.before, self.probes[owner]):
            raise Wrong(f"{owner}'s step leaves all weights of {owner} as they were.")


def _no_gradient(owner: str, pushes: set[str]) -> str:
    """Say why there is no gradient for a step; ``pushes`` are of the other network's gradient."""
    other, loss = {"D": "G", "G": "D"}[owner], f"{owner.lower()}_loss"
    if all(push in pushes for name, push in _WANTED if name == other):
        after = f"{other.lower()}_loss.backward() is followed by a step of {owner}"
        return f"the optimizers are swapped: {after}. Step that of {other}."
    step = f"{owner.lower()}_optimizer.step() runs, but no gradient of {loss} has reached {owner}"
    through = "D's answers." if owner == "D" else "D(G(z)) without detach()."
    return f"{step}. Call {loss}.backward() before it, through {through}"


def _wrong_number(record: _Record, got: str) -> str:
    what = f"Expected {record.expected} batches for n_epochs=2, got {got}"
    hint = "Loop over range(n_epochs) and, inside, over celeba_train_loader."
    return f"it does not train on each batch of n_epochs epochs. {what}. {hint}"


def _check_training(record: _Record, losses: Any, D: nn.Module) -> Claims:
    """Check what was recorded, and what train returned."""
    yield record.seen, "D is never shown the loader's images. Use real_loss(D(real_images))."
    for kind, what, hint in (
        ("real", "real images do not reach D in [-1, 1]", "Use scale(real_images) once."),
        ("fake", "generated images do not reach D as G makes them", "tanh gives [-1, 1]."),
    ):  # an augmentation may change them at random
        levels = torch.stack(record.levels[kind] or [torch.tensor([-1.0, 1.0])])
        low, high = levels.median(0).values.tolist()
        right = -1.4 < low < -0.5 and 0.5 < high < 1.4  # black and white, with noise
        yield right, f"{what}, but most values from {low:.2f} to {high:.2f}. {hint}"
    for (name, *pushes), message in _FAULTY.items():  # a few labels may be flipped on purpose
        wanted = {push for network, push in _WANTED if network == name}
        judged = [s for s in record.steps[name] if not (s.piled_up and s.pushes & wanted)]
        faulty = [s for s in judged if s.pushes.issuperset(pushes)]
        yield not judged or 3 * len(faulty) < len(judged), message
    for name, steps in record.steps.items():
        own = f"{name.lower()}_optimizer"
        yield steps, f"{name} is never updated. Call {own}.step() in the training loop."
        rare = 3 * sum(s.piled_up for s in steps) < len(steps)
        yield rare, f"gradients of {name} pile up from step to step. Use zero_grad()."
    for (name, push), message in _WANTED.items():
        wanted = any(push in s.pushes for s in record.steps[name])
        yield wanted, f"{message}, and call zero_grad() before backward(), not after it."
    yield record.n_batches >= record.expected, _wrong_number(record, str(record.n_batches))
    yield from _check_course(record)
    yield from _check_latents(record)
    yield from _check_losses(record, losses)
    # The gradient's slope is 0.4 to 0.8 times its size for cross entropy of logits of 0.5, and
    # twice its size or more for cross entropy and least squares of probabilities of 0.5.
    passes = set().union(*(s.passes for steps in record.steps.values() for s in steps))
    slope = torch.stack([x for p in passes for x in p.slopes]).median()
    once = slope >= 1 or not _ends_in_sigmoid(D)
    yield once, "D ends in a sigmoid, and its losses apply another one. Use nn.BCELoss."


def _check_course(record: _Record) -> Claims:
    """Check what is trained when, and in which mode."""
    n_images, n_D, n_G = len(record.images), len(record.steps["D"]), len(record.steps["G"])
    # D may take a step every few batches only: then some images can be left out.
    reused = record.seen.total() >= 2 * n_images or n_G < record.expected
    seen = f"D sees {len(record.seen)} of the {n_images}. Loop over the whole loader."
    yield len(record.seen) >= n_images or not reused, f"it does not train on all images: {seen}"
    for call in record.calls:
        name = call.network
        right = call.training or not call.owners
        yield right, f"{name} trains in eval mode. Call {name}.train() after the samples."
    for name, steps in record.steps.items():
        epochs: tuple[set[int], set[int]] = set(), set()
        for s in steps:
            epochs[s.n_batches > record.expected // 2].add(id(s.optimizer))
        kept = not all(epochs) or epochs[0] & epochs[1]
        yield kept, f"{name} gets a new optimizer each epoch. Make it before the loops."
    yield n_G > 2 or n_D < 4 * n_G, f"G is trained once an epoch: {n_G} steps of G for {n_D} of D."


def _check_latents(record: _Record) -> Claims:
    """Check the latents of the training and of the samples."""
    for name, use in (("D", "D's generated images"), ("G", "G's training")):
        shown = [c for c in record.calls if c.network == "D" and name in c.owners]
        sources = set().union(*(c.sources for c in shown))
        z = [call.given for call in record.calls_of(sources) if call.network == "G"]
        vary = len(z) < 2 or len(torch.cat(z).unique(dim=0)) > len(z[0])
        yield vary, f"the latents of {use} {_SAME_LATENTS}"
    train, fixed = (
        [c.given for c in record.calls if c.network == "G" and c.training is mode]
        for mode in (True, False)
    )
    yield fixed, "the fixed samples are not drawn in eval mode. Call G.eval() before."
    n_latents, n_different = len(torch.cat(fixed)), len(torch.cat(fixed).unique(dim=0))
    vary = n_different != 1 or len(fixed[0]) < 2
    yield vary, "the fixed latents of the samples are all the same. Draw fixed_z like z."
    same = n_different < n_latents or n_latents == len(fixed[0])
    yield same, "the samples of each epoch come from other latents. Draw fixed_z once."
    a, b = (torch.cat([z.flatten() for z in group]) for group in (train, fixed))
    ratio = float(a.std() / b.std().clamp(min=1e-6))
    alike = 1 / 1.3 < ratio < 1.3 and abs(a.mean() - b.mean()) <= 0.3 * a.std()
    yield alike, Advice("the latents of the samples come from another distribution than z's.")


def _check_losses(record: _Record, losses: Any) -> Claims:
    """Check the losses that train returned: by their values, which scalars of train are they?"""
    yield losses is not None, "it returns None. End with return losses."
    hint = "Use losses.append((d_loss.item(), g_loss.item()))."
    pairs = []
    with suppress(TypeError, ValueError):
        pairs = [(d, g) for d, g in losses]
    yield pairs, f"it must return the losses, not {_kind(losses)} without pairs. {hint}"
    graphs = any(isinstance(v, Tensor) and v.requires_grad for pair in pairs for v in pair)
    yield not graphs, f"the losses returned keep their graphs in memory. {hint}"
    numbers = torch.tensor([[float(d), float(g)] for d, g in pairs])
    yield torch.isfinite(numbers).all(), "a loss is not finite. Expected numbers, got NaN."
    values = torch.tensor([value for value, _, _ in record.scalars])
    owners, first = [], record.expected  # the batch that the first pair is of
    for column in numbers.T:
        same = (values - column[:, None]).abs() <= 1e-6 * (1 + column[:, None].abs())
        indices = same.nonzero()[:, 1].tolist() if same.any(1).all() else []
        found = [record.scalars[i] for i in indices]
        calls = record.calls_of(set().union(*(mark for _, mark, _ in found)))
        owners.append({o for c in calls if c.network == "D" for o in c.owners})
        first = min([first, *(batch for *_, batch in found)])
    swapped = owners == [{"G"}, {"D"}]
    yield not swapped, f"the losses are recorded in the wrong order, as (g_loss, d_loss). {hint}"
    for place, network, own in (("second", "D", owners[1]), ("first", "G", owners[0])):
        why = f"the {place} loss of each pair is {network}'s or a part of it."
        yield own != {network}, why
    if len(pairs) > 1 and not all(owners):
        return  # averages, perhaps
    late = first > record.expected // 2 and (len(pairs) > 1 or first == record.expected)
    yield not late, "the losses of the first epoch are lost. Put losses = [] before loops."


@functools.cache
def operands(code: types.CodeType, *operations: str) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname in operations}


def reached(code: types.CodeType, names: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The global names that code and the notebook's functions in it read; these and attributes."""
    codes: set[types.CodeType] = set()
    found, reads, used = {code}, set(), set()
    while not found <= codes:
        codes |= found
        reads = set().union(*(operands(c, "LOAD_GLOBAL", "LOAD_NAME") for c in codes))
        used = set().union(*(c.co_names for c in codes))
        values = [names[name] for name in reads & names.keys()]
        for kind in {k for v in values for k in (v if isinstance(v, type) else type(v)).__mro__}:
            if kind.__module__ == names.get("__name__"):
                methods = vars(kind).items()
                values += [m for n, m in methods if n in used | {"forward"} or n[:2] == "__"]
        functions = [inspect.unwrap(v) for v in values if callable(v)]
        found = {f.__code__ for f in functions if getattr(f, "__globals__", None) is names}
        found |= {c for outer in codes for c in outer.co_consts if isinstance(c, types.CodeType)}
    return reads, used


class _StandIns:
    """Small networks, optimizers and data in the place of a notebook's own."""

    def __init__(self, D: nn.Module, G: nn.Module, loader: DataLoader) -> None:
        self.networks = {"D": D, "G": G}
        self.loader = loader
        adam = functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
        self.optimizers = {name: adam(net.parameters()) for name, net in self.networks.items()}

    def of(self, name: str, value: Any = None) -> Any:
        """The stand-in of a global variable, or of one that is not defined yet: None if unknown."""
        missing = name if value is None else ""
        if isinstance(value, DataLoader) or re.search("loader|_dl$", missing, re.I):
            return self.loader
        if re.search("opt[a-z]*s$", missing, re.I):
            raise NotTestable(f"it needs {name}, which is not defined yet.")
        if isinstance(value, torch.optim.Optimizer) or re.search("opt|solver|adam", missing, re.I):
            groups = getattr(value, "param_groups", [])
            sizes = [p.dim() for group in groups for p in group["params"]]
            for owner, network in self.networks.items():
                if sizes == [p.dim() for p in network.parameters()]:
                    return self.optimizers[owner]
            return self.optimizers["G" if re.search("g", name, re.I) else "D"]
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            optimizer = self.of(name, value.optimizer)
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        for network in self.networks.values():
            if type(getattr(value, "_orig_mod", value)) is type(network):
                known = re.fullmatch("(net_?)?(d|g|discriminator|generator)(_?net)?", name, re.I)
                return network if known else copy.deepcopy(network)
        if isinstance(value, list):
            return [self.of("dg"[i % 2], v) for i, v in enumerate(value)]
        is_object = not isinstance(value, (type, types.ModuleType))
        if is_object and isinstance(getattr(value, "folder", None), Path):  # where it writes files
            value = copy.copy(value)
            value.folder = Path.cwd()
            return value
        if isinstance(value, types.SimpleNamespace) or (
            dataclasses.is_dataclass(value) and not isinstance(value, type)
        ):
            changed = copy.copy(value)
            vars(changed).update({key: self.of(key, v) for key, v in vars(value).items()})
            return changed
        changed = copy.copy(value) if isinstance(value, (dict, set)) else value
        if isinstance(value, dict):
            changed.update({key: self.of(str(key), v) for key, v in value.items()})
        return changed


@_rubric_test("train(D, G, n_epochs) to run with the notebook's functions and global variables")
def test_train(train: Callable[..., Any]) -> Claims:
    """Two epochs on small networks: each step trains its own network, the right way.

    ``train`` runs in an empty folder, with small stand-ins for the global variables that it reads
    (networks, optimizers, data); all global variables are as they were afterwards.
    """
    inner = _inner(train)
    names = getattr(inner, "__globals__", {})
    got = f"Expected train(D, G, n_epochs), got {_kind(train)}."
    yield hasattr(inner, "__globals__"), f"it is not a function. {got}"
    there = callable(names.get("build_network"))
    yield there, "there is no build_network. Expected it among the notebook's functions."
    check_written(names["build_network"])
    z_size = names["z_size"] if isinstance(names.get("z_size"), int) else 100
    with _blame_init(names, AttributeError, TypeError, ValueError, RuntimeError):
        D, G, width = _build(names["build_network"], 8, 8, z_size)
    images, batch_size = _chequers(128), 16  # so that dropout on D's answer leaves some of them
    record = _Record(images.flatten(1) * 2 - 1, expected=2 * len(images) // batch_size)
    recorder = _Recorder(D, G, width, record)
    dataset = TensorDataset(images, torch.arange(len(images)))
    loader = DataLoader(dataset, batch_size, shuffle=True, collate_fn=recorder.collate)
    stand_ins = _StandIns(D, G, loader)
    values = {"D": D, "G": G, "celeba_train_loader": loader, "z_size": z_size}
    values |= {f"{name.lower()}_optimizer": value for name, value in stand_ins.optimizers.items()}
    values |= {"batch_size": batch_size, "d_conv_dim": 8, "g_conv_dim": 8, "n_epochs": 2}
    if isinstance(names.get("output_dir"), (str, Path)):
        values["output_dir"] = type(names["output_dir"])(os.getcwd())
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    held = [_inner(cell.cell_contents) for cell in cells.values()]
    codes = [f.__code__ for f in (inner, *held) if hasattr(f, "__code__")]
    reads = set().union(*(reached(code, names)[0] for code in codes))
    device = names.get("device") if "device" in reads else None
    if not isinstance(device, (str, torch.device)):
        own = names.get("D")
        is_there = isinstance(own, nn.Module) and any(True for _ in own.parameters())
        device = _device(own if is_there else D)
    D.to(device), G.to(device)  # the optimizers go on with them
    for name in reads - values.keys() - set(dir(builtins)):
        if (stand_in := stand_ins.of(name, names.get(name))) is not None:
            values[name] = stand_in
    with ExitStack() as stack:
        for name, cell in cells.items():
            stack.callback(setattr, cell, "cell_contents", cell.cell_contents)
            cell.cell_contents = values.get(name, stand_ins.of(name, cell.cell_contents))
        with mock.patch.dict(names, values), recorder.watch():
            losses = train(**_arguments(train, names | values, stand_ins))
        yield from _check_training(record, losses, D)


def _arguments(
    train: Callable[..., Any], known: dict[str, Any], stand_ins: _StandIns
) -> dict[str, Any]:
    """Choose the arguments that train asks for by their usual names."""
    parameters = inspect.signature(train).parameters
    if list(parameters)[:2] == ["G", "D"]:
        raise Wrong("its arguments are swapped. Expected train(D, G, ...), got train(G, D, ...).")
    known = {**known, "print_every": 2}
    chosen = {"D", "G", "n_epochs", "print_every"}
    for name, p in parameters.items():
        if isinstance(p.default, (DataLoader, nn.Module, torch.optim.Optimizer)):
            known[name] = stand_ins.of(name, p.default)
            chosen.add(name)
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            chosen.add(name)
            if name not in known:
                raise Wrong(f"it has an unknown argument {name}. Use train(D, G, n_epochs).")
    return {name: known[name] for name in parameters if name in chosen & known.keys()}


# ------------------------------------------------------------- notebooks, and classes of them


def _grading() -> types.ModuleType:
    """The project's grader, which loads notebooks; where it is not, end the program and say so."""
    try:
        return importlib.import_module("faces.grading")
    except ModuleNotFoundError as error:
        if error.name not in ("faces", "faces.grading"):
            raise
        what = "The grader of notebooks lies in the project's folder faces, which is not here: put"
        hint = "that folder beside this file, or call the tests in a notebook."
        sys.exit(f"{what} {hint}")


def pytest_generate_tests(metafunc: Any) -> None:
    """Give a test what it takes of the notebook beside this file; pytest calls this."""
    from pytest import Collector

    if not NOTEBOOK.exists():
        sentence = f"there is no {NOTEBOOK.name} beside {Path(__file__).name} to test."
        raise Collector.CollectError(sentence)
    try:
        grading = _grading()
    except SystemExit as missing:
        raise Collector.CollectError(str(missing)) from None
    for name in inspect.signature(metafunc.function).parameters:
        metafunc.parametrize(name, [grading.find(grading.solution(NOTEBOOK), name)])


if __name__ == "__main__":
    sys.exit(_grading().main(sys.argv[1:]))
