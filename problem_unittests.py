"""Rubric tests of the face generation project (DCGAN), for this notebook and any other solution.

In a solution's notebook, with this one file beside it::

    import problem_unittests as tests
    tests.test_discriminator(Discriminator)

In a shell, for the notebook beside it, or for a class: notebooks, scripts, and folders of them::

    pytest problem_unittests.py
    python problem_unittests.py [PATH ...]

A test prints ``Tests Passed`` or raises an AssertionError that says what is wrong. Inputs are drawn
from a fixed seed; the caller's random state, networks and global variables are left as they were.

Grading executes code of the notebook: what the rubric asks for and what that needs, no training.
Each notebook has a process of its own, with limits of time and memory and a temporary working
directory; one that hangs, ends its process or patches the tests has FAILED. Nothing else is
guarded (files, network, a forger who takes pains): use a container for strangers' code.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import csv
import dis
import functools
import hmac
import importlib
import inspect
import json
import linecache
import math
import multiprocessing.connection
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.hooks import unserializable_hook

try:
    import resource
except ModuleNotFoundError:  # Windows has no such limits
    resource = None
try:
    import pytest
except ModuleNotFoundError:  # a learner's notebook does not need it
    pytest = None

__all__ = [
    "test_get_dataloader",
    "test_scale",
    "test_discriminator",
    "test_generator",
    "test_weights_init_normal",
    "test_build_network",
    "test_real_loss",
    "test_fake_loss",
    "test_optimizers",
    "test_train",
]

NOTEBOOK = Path(__file__).with_name("dlnd_face_generation.ipynb")
IMAGE_SIZE = 32  # pixels; the rubric asks for 32 x 32 images

# ------------------------------------------------------------------------ how a test reports


class _Wrong(AssertionError):
    """A check that failed; the message says what is wrong, what was expected, and what to do."""


class _NotTestable(Exception):
    """What would be checked needs something that is not here: a GPU, data."""


_outcomes: list[tuple[str, str, str]] = []  # of each test run: its name, outcome and sentence


@contextmanager
def _fixed_randomness(seed: int = 20181115) -> Iterator[None]:
    """Seed all random number generators, and give them back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: networks this small gain nothing from more, and lose on a busy CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tested code prints, displays and plots out of sight."""
    with ExitStack() as stack:
        if "IPython" in sys.modules:
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output())
        else:
            stack.enter_context(redirect_stdout(StringIO()))
            stack.enter_context(redirect_stderr(StringIO()))
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            figures = set(pyplot.get_fignums())
            stack.enter_context(mock.patch.object(pyplot, "show"))
            stack.callback(lambda: [pyplot.close(n) for n in set(pyplot.get_fignums()) - figures])
        yield


def _describe(error: BaseException) -> str:
    """Say in one sentence what an exception of the tested code is, and where it was raised."""
    libraries = (sys.prefix, sys.base_prefix, os.path.dirname(torch.__file__), __file__, "<frozen")
    lines = str(error).strip().splitlines() or [""]
    text = lines[-1] if "Original Traceback" in str(error) else lines[0]
    text = text.rstrip(" .")
    text = text if len(text) < 200 else text[:200].rsplit(" ", 1)[0] + " ..."
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "ipykernel_" in frame.filename or not frame.filename.startswith(libraries):
            function = "" if frame.name == "<module>" else f", in {frame.name}"
            _, cell, number = frame.filename.rpartition(", cell ")
            line = f" ({frame.line.strip()})" if frame.line else ""
            place = function + (cell and cell + number) + f", line {frame.lineno}" + line
    return f"the code stopped with {type(error).__name__}: {text}".rstrip(": ") + place


def _rubric_test(name: str, call: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test under fixed randomness and report every outcome in one line.

    Args:
        name: what is tested.
        call: what it has to be able to do; said if it raises an exception.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True  # for pytest
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                print("Not tested: the tests need one process, and this is one of several.")
                return
            message = ""
            try:
                with _fixed_randomness(), _one_thread():
                    test(*args, **kwargs)
            except _NotTestable as reason:
                _outcomes.append((name, "NOT TESTABLE HERE", f"{name}: {reason}"))
                print(f"NOT TESTABLE HERE: {reason}")
                return
            except _Wrong as wrong:
                message = f"{name}: {wrong}"
            except (Exception, SystemExit) as error:
                message = f"{name}: {_describe(error)}. Expected {call}."
            _outcomes.append((name, "FAILED" if message else "PASSED", message))
            if message:
                raise AssertionError(message)
            print("Tests Passed")

        return run

    return decorate


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _span(tensor: Tensor) -> str:
    return f"values from {tensor.min():.2f} to {tensor.max():.2f}"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _require_tensor(value: Any, what: str, hint: str = "Do not leave torch.") -> None:
    """Check that a result is a tensor without NaN; ``what`` is a sentence that says so."""
    if not isinstance(value, Tensor):
        hint = "End with a return statement." if value is None else hint
        raise _Wrong(f"{what} Expected a tensor, got {_kind(value)}. {hint}")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise _Wrong("the result must be finite. Expected numbers, got NaN or infinity.")


# -------------------------------------------------------------------------------- data


def _write_pictures(folder: Path, n: int) -> Tensor:
    """Write ``n`` square JPEGs, each a random 4 x 4 chequer, in two nested folders.

    Returns:
        Their colours, float tensor (n, 3, 4, 4) in [0, 1].
    """
    colors = torch.rand(n, 3, 4, 4)
    colors = (colors - colors.amin((1, 2, 3), True)) / (
        colors.amax((1, 2, 3), True) - colors.amin((1, 2, 3), True)
    )
    for i, color in enumerate(colors):
        size = (64, 32, 96, 64, 128, 48)[i % 6]
        pixels = (color * 255).byte().permute(1, 2, 0).numpy().repeat(size // 4, 0)
        nested = folder / "celeba" / ("New Folder With Items" if i % 3 == 0 else "")
        nested.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels.repeat(size // 4, 1))
        picture.save(nested / f"{i:06d}.jpg", quality=98, subsampling=0)
    return colors


def _which_pictures(images: Tensor, colors: Tensor) -> list[int | None]:
    """Tell which picture each image shows (it may be mirrored); ``None`` if it shows none."""
    seen = nn.functional.adaptive_avg_pool2d(images.float().cpu(), 4).flatten(1)
    errors = torch.minimum(
        torch.cdist(seen, colors.flatten(1)), torch.cdist(seen, colors.flip(3).flatten(1))
    ) / math.sqrt(48)  # root mean square over 4 x 4 cells of 3 colours
    best = errors.min(1)
    return [
        int(i) if error < 0.12 else None for i, error in zip(best.indices, best.values, strict=True)
    ]


@_rubric_test(
    "get_dataloader",
    "get_dataloader(batch_size, image_size, data_dir) to load the images below data_dir",
)
def test_get_dataloader(get_dataloader: Callable[..., Any]) -> None:
    """Images of a folder come shuffled, in batches, resized, in [0, 1], each once an epoch.

    Raises:
        AssertionError: with what is wrong.
    """
    n, batch_size, size = 24, 6, 24
    folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # the loader may keep files
    with folders as temporary, _quiet():
        folder = Path(temporary, "pictures")
        colors = _write_pictures(folder, n)
        loader = get_dataloader(batch_size, size, f"{folder}/")
        if loader is None:
            raise _Wrong("it returns None. Expected a DataLoader. Make one and return it.")
        orders = []
        for _ in range(2):
            shown: list[int | None] = []
            starts: list[int] = []
            try:
                for batch in loader:
                    starts.append(len(shown))
                    shown += _check_batch(batch, batch_size, size, colors)
                    if len(shown) > n:
                        raise _Wrong(f"an epoch does not end. Expected {n} images, got more.")
            except (RuntimeError, TypeError) as error:
                if "found <class 'PIL" in str(error):
                    raise _Wrong(
                        "images of a batch must be tensors. Expected float tensors, got PIL images."
                        " Add transforms.ToTensor()."
                    ) from None
                if "equal size" not in str(error):
                    raise
                raise _Wrong(
                    f"images are not resized. Expected all of them {size} x {size} for "
                    f"image_size={size}, got different sizes, which cannot be stacked to a batch. "
                    "Use transforms.Resize(image_size)."
                ) from None
            if starts != list(range(0, len(shown), batch_size)):
                raise _Wrong(
                    f"batch_size={batch_size} is not respected. Expected {batch_size} images a "
                    f"batch, got {[b - a for a, b in pairwise([*starts, len(shown)])]}. Pass "
                    "batch_size to the DataLoader."
                )
            orders.append(shown)
        if orders[0] and not orders[1]:
            raise _Wrong(
                f"a second epoch gives nothing. Expected {n} images in each epoch, got none in the "
                "second. Return the DataLoader itself, not iter() of it."
            )
        for shown in orders:
            if len(shown) != n or len(set(shown)) != n:
                raise _Wrong(
                    "an epoch must hold each image of data_dir, at any folder depth, exactly "
                    f"once. Expected {n} images, got {len(shown)}, {len(set(shown))} of them "
                    "different. Use torchvision.datasets.ImageFolder(data_dir, transform)."
                )
        # 24 images come in the same order twice with probability 1 / 24! < 1e-23.
        if orders[0] == orders[1]:
            raise _Wrong(
                "two epochs give the images in the same order. Expected a new order each epoch, "
                "got the same order. Use DataLoader(..., shuffle=True)."
            )


def _check_batch(batch: Any, batch_size: int, size: int, colors: Tensor) -> list[int | None]:
    """Check one batch of the loader; return which pictures it shows."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise _Wrong(
            f"a batch must be a pair. Expected (images, labels), got {_kind(batch)}. "
            "ImageFolder gives such pairs; the training loop unpacks them."
        )
    images = batch[0]
    _require_tensor(images, "images of a batch must be tensors.", "Add transforms.ToTensor().")
    if images.dim() != 4:
        raise _Wrong(
            f"the images do not come in batches. Expected shape ({batch_size}, 3, {size}, "
            f"{size}), got {_shape(images)}. Return DataLoader(dataset, batch_size=batch_size, "
            "shuffle=True), not the dataset."
        )
    if images.shape[1:] != (3, size, size):
        raise _Wrong(
            f"images have the wrong size for image_size={size}. Expected shape ({batch_size}, 3, "
            f"{size}, {size}), got {_shape(images)}. Use transforms.Resize(image_size), and keep "
            "the 3 colour channels."
        )
    if not images.is_floating_point():
        raise _Wrong(
            f"images must be floating-point tensors. Expected torch.float32, got {images.dtype}. "
            "transforms.ToTensor() makes them."
        )
    if images.min() < -1e-3 or images.max() > 1 + 1e-3:
        raise _Wrong(
            f"pixel values must lie in [0, 1]. Expected 0 to 1, got {_span(images)}. Use "
            "transforms.ToTensor() and no Normalize: scale() goes to [-1, 1] later."
        )
    shown = _which_pictures(images, colors)
    if None in shown:
        raise _Wrong(
            "an image does not show a whole picture of data_dir. Expected the picture resized to "
            f"{size} x {size}, got another image, a part of it, or other colours. Use "
            "transforms.Resize(image_size) instead of a crop, read RGB, and read from data_dir."
        )
    return shown


@_rubric_test("scale", "scale(x) to take a tensor of any shape")
def test_scale(scale: Callable[..., Tensor]) -> None:
    """Values go linearly from [0, 1] to [-1, 1], whatever the range of the images at hand.

    A fixed ``2 * x - 1`` is right; a ``feature_range`` that is used must be used well.

    Raises:
        AssertionError: with what is wrong.
    """
    hint = "Use x * (max - min) + min, with min, max = feature_range."
    for shape, low, high in [((4, 3, 32, 32), 0.0, 1.0), ((3, 32, 32), 0.2, 0.7)]:
        x = torch.rand(shape) * (high - low) + low
        before = x.clone()
        scaled = scale(x)
        _require_tensor(scaled, "the result must be a tensor.")
        if not torch.equal(x, before):
            raise _Wrong("it changes x in place. Expected a new tensor. Avoid x *= 2, x.mul_(2).")
        if scaled.shape != x.shape:
            raise _Wrong(f"the shape changes. Expected {_shape(x)}, got {_shape(scaled)}. {hint}")
        if scaled.dtype != x.dtype:
            raise _Wrong(f"the type of numbers changes. Expected {x.dtype}, got {scaled.dtype}.")
        if not torch.allclose(scaled, 2 * x - 1, atol=1e-5):
            raise _Wrong(
                f"[0, 1] is not mapped to [-1, 1]. Expected values from {2 * low - 1:.2f} to "
                f"{2 * high - 1:.2f} for x from {low} to {high}, got {_span(scaled)}. {hint} The "
                "minimum and maximum of x itself must not matter."
            )
        if len(inspect.signature(scale).parameters) > 1:
            ranged = scale(x, (-3, 5))
            _require_tensor(ranged, "the result must be a tensor.")
            right = torch.allclose(ranged, 8 * x - 3, atol=1e-4)
            if not right and not torch.equal(ranged, scaled):
                raise _Wrong(
                    "feature_range=(-3, 5) is not respected. Expected values from "
                    f"{8 * low - 3:.2f} to {8 * high - 3:.2f}, got {_span(ranged)}. {hint}"
                )


# ---------------------------------------------------------------------------- networks


_NOT_LAST = re.compile("dropout|norm$|elu|glu|sig|tanh|soft|silu|mish|swish|threshold|shrink")
_LAYERS = ("conv2d", "conv_transpose2d", "linear")


class _Calls(TorchFunctionMode):
    """Records the calls of torch functions inside it.

    With ``plain``, batch norm and dropout hand their input on, which leaves a network in which
    each output must depend on its own input alone.
    """

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.not_activated: dict[int, Any] = {}  # outputs of conv2d, also after batch norm
        self.stacked = False  # whether a conv2d was given one of them

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self.plain and (name == "batch_norm" or "dropout" in name):
            return args[0]
        self.calls.append((name, args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else (kwargs or {}).get("input")
        waiting = id(given) in self.not_activated
        passes_on = waiting and (name == "batch_norm" or "dropout" in name)
        if name == "conv2d":
            weight = self.weights()[-1]
            passes_on = weight.requires_grad and weight.shape[1] == given.shape[1]  # no groups
            self.stacked |= waiting and passes_on
        if passes_on:
            self.not_activated[id(result)] = result
        else:
            self.not_activated.pop(id(result), None)  # it may be the input, changed in place
        return result

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def weights(self) -> list[Tensor]:
        """The weights of convolutional and linear layers."""
        calls = [c for c in self.calls if c[0] in _LAYERS]
        return [kwargs["weight"] if "weight" in kwargs else args[1] for _, args, kwargs in calls]


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _check_network(network: Any, what: str) -> Any:
    """Check that something is a network with parameters, and return it."""
    if not isinstance(network, nn.Module):
        raise _Wrong(f"{what} is no network. Expected a torch.nn.Module, got {_kind(network)}.")
    if not any(True for _ in network.parameters()):
        raise _Wrong(
            f"{what} has no layers with weights. Expected convolutional layers among its "
            "parameters(), got none. Define them in __init__, as attributes (self.conv1 = ...), in "
            "nn.Sequential or in nn.ModuleList; a plain list hides them."
        )
    return network


def _trained(out: Tensor) -> list[Tensor]:
    """The tensors that the gradient of ``out`` ends in: weights, and the input."""
    nodes, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    return [node.variable for node in nodes if hasattr(node, "variable")]


def _check_forward(network: nn.Module, x: Tensor) -> tuple[Tensor, _Calls]:
    """Run a network in training mode on ``x``; return its output and the calls it made."""
    given = x.clone()
    network.train()
    with _Calls() as calls:
        out = network(given)
    _require_tensor(out, "forward must return a tensor.")
    if not torch.equal(given, x):
        raise _Wrong(
            "it changes its input in place. Expected x to stay as it was. Avoid x.mul_(), x += 1."
        )
    known = {id(x), *map(id, network.parameters())}
    for weight in _trained(out):
        if id(weight) not in known:
            raise _Wrong(
                "a layer is not registered, so no optimizer will train it. Expected its weights "
                f"among parameters(), got one of shape {_shape(weight)} outside of them. Make "
                "layers in __init__; keep lists of layers in nn.ModuleList, not in a list."
            )
    pooling = [name for name in calls.names() if "pool" in name]
    if pooling:
        raise _Wrong(
            f"it uses pooling. Expected strided convolutions, got {pooling[0]}. Change height "
            "and width with stride=2."
        )
    return out, calls


def _plain_run(network: nn.Module, x: Tensor) -> Tensor:
    """Outputs (N, anything) of a network in which batch norm and dropout do nothing."""
    with torch.no_grad(), _fixed_randomness(), _Calls(plain=True):
        return network.eval()(x.clone()).reshape(len(x), -1)


def _check_dependence(network: nn.Module, x: Tensor, row: str) -> None:
    """Check that output i depends on input i and, batch norm apart, on no other input."""
    changed = x.clone()
    changed[0] = torch.randn_like(x[0])
    before, after = (_plain_run(network, inputs) for inputs in (x, changed))
    change = (after - before).abs().amax(1)
    noise = 1e-3 * change.max() + 1e-7 * before.abs().max()
    changed_rows = (change > noise).nonzero().flatten().tolist()
    if change.max() == 0:
        raise _Wrong(
            f"the output does not depend on the input. Expected another output for "
            f"another {row}, got the same output. Check that forward passes the result of each "
            "layer on to the next."
        )
    if changed_rows != [0]:
        raise _Wrong(
            f"it mixes the {row}s of a batch. Expected a change of {row} 0 to change output 0 "
            f"alone (batch norm apart), got changes in outputs {changed_rows}. Keep the batch "
            "dimension first in view or reshape, and use no operation across it."
        )


def _check_gradients(network: nn.Module, x: Tensor, out: Tensor, calls: _Calls) -> None:
    """Check that gradients reach the input and the weights of each layer that ran."""
    hint = "Do not use detach(), .data, .numpy() or torch.no_grad() in forward."
    if not out.requires_grad:
        raise _Wrong(f"no gradient flows through it. Expected an output with a grad_fn. {hint}")
    (out * torch.randn_like(out)).sum().backward()
    if x.grad is None:
        raise _Wrong(f"no gradient reaches its input. Expected x.grad, got None. {hint}")
    used = {weight.data_ptr() for weight in calls.weights()}  # weight.data has the same
    for name, p in network.named_parameters():
        if p.data_ptr() in used and (p.grad is None or not p.grad.any()):
            raise _Wrong(f"no gradient reaches {name}. Expected one, got none. {hint}")


def _check_not_affine(outputs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Check that a network is more than one linear map: f(a) + f(b) != f(a + b) + f(0)."""
    a, b = x, x.flip(0)
    fa, fb, fab, f0 = (outputs(inputs) for inputs in (a, b, a + b, torch.zeros_like(a)))
    if (fa + fb - fab - f0).abs().max() <= 1e-3 * (fa - fb).abs().max():
        raise _Wrong(
            "it is linear: there is no activation between its layers. Expected leaky ReLU or "
            "ReLU after each hidden layer, got outputs that add up like those of a single linear "
            "layer. Apply F.leaky_relu(x, 0.2) or F.relu(x) in forward."
        )


def _outputs_for_random_weights(network: nn.Module, x: Tensor, draws: int = 24) -> Tensor:
    """Outputs of a network for large inputs and weights, to see the range that it can reach.

    A last layer without an activation gives both signs: with weights drawn symmetrically about 0,
    all outputs of a draw have a given sign with probability at most 1/2, those of 24 draws with at
    most 2 ** -24, and those of 24 draws have one sign, whichever, with at most 2 ** -23 = 1.2e-7.
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


def _check_conv_dim(sizes: dict[int, int]) -> None:
    if sizes[16] <= sizes[8]:
        raise _Wrong(
            "conv_dim is ignored. Expected more parameters for conv_dim=16 than for conv_dim=8, "
            f"got {sizes[16]:,} and {sizes[8]:,}. Make the numbers of channels multiples of it."
        )


@_rubric_test(
    "Discriminator", "Discriminator(conv_dim) to take images (N, 3, 32, 32), for any conv_dim and N"
)
def test_discriminator(Discriminator: Callable[..., nn.Module]) -> None:
    """A convolutional classifier from images (N, 3, 32, 32) in [-1, 1] to one logit each.

    Raises:
        AssertionError: with what is wrong.
    """
    sizes = {}
    for conv_dim, n in ((16, 4), (8, 6)):
        D = _check_network(Discriminator(conv_dim), "it")
        sizes[conv_dim] = _count(D)
        x = torch.rand(n, 3, IMAGE_SIZE, IMAGE_SIZE, device=_device(D)) * 2 - 1
        x.requires_grad_()
        out, calls = _check_forward(D, x)
        if out.numel() != n or out.shape[:1] != (n,):
            raise _Wrong(
                f"the output must be one number for each image. Expected shape ({n}, 1), got "
                f"{_shape(out)}. Flatten with x.view(-1, features) or x.flatten(1) and end with "
                "nn.Linear(features, 1)."
            )
        if calls.names().count("conv2d") < 2:
            raise _Wrong(
                "it is not convolutional. Expected several nn.Conv2d layers, got "
                f"{calls.names().count('conv2d')} that run in forward."
            )
        names = calls.names()
        last = max(i for i, name in enumerate(names) if name in _LAYERS)
        after = [name for name in names[last:] if _NOT_LAST.search(name)]
        if after:
            raise _Wrong(
                "the output must be a logit, with no sigmoid or other activation, dropout or batch "
                f"norm at the end. Expected any number, got {after[0]} after the last layer. "
                "Return the last layer's output: nn.BCEWithLogitsLoss applies the sigmoid."
            )
        if calls.stacked and not {"add", "__add__", "__iadd__", "cat"} & set(names):
            raise _Wrong(
                "there is no activation between two of its convolutions. Expected leaky ReLU after "
                "each hidden layer, got a conv2d on the output of another. Apply "
                "F.leaky_relu(x, 0.2) to each conv's output in forward."
            )
        _check_gradients(D, x, out, calls)
        seen = nn.functional.max_pool2d(x.grad.abs(), IMAGE_SIZE // 2)  # (n, 3, 2, 2): quarters
        if not seen.all():
            raise _Wrong(
                "it does not look at the whole image. Expected an output that depends on each "
                "colour channel and each quarter of the image, got no gradient at some of them."
            )
    answers = _outputs_for_random_weights(D, x.detach()[:2] * 1000)
    if answers.abs().max() <= 1 or not answers.min() < 0 < answers.max():
        raise _Wrong(
            "the output must be a logit, with no sigmoid or other activation at the end. Expected "
            f"any number, negative or positive, got {_span(answers)} whatever the weights. Return "
            "the last layer's output: nn.BCEWithLogitsLoss applies the sigmoid."
        )
    D = Discriminator(8).to(x.device)
    x = torch.rand(6, 3, IMAGE_SIZE, IMAGE_SIZE, device=x.device) * 2 - 1
    _check_dependence(D, x, "image")
    _check_not_affine(lambda inputs: _plain_run(D, inputs), x)
    _check_conv_dim(sizes)


@_rubric_test(
    "Generator",
    "Generator(z_size, conv_dim) to take latents (N, z_size), for any z_size, conv_dim and N",
)
def test_generator(Generator: Callable[..., nn.Module]) -> None:
    """A network from latents (N, z_size) to images (N, 3, 32, 32) in [-1, 1].

    Raises:
        AssertionError: with what is wrong.
    """
    sizes = {}
    for z_size, conv_dim, n in ((20, 16, 4), (33, 8, 5), (20, 8, 6)):
        G = _check_network(Generator(z_size, conv_dim), "it")
        sizes[conv_dim] = _count(G)
        z = (torch.rand(n, z_size, device=_device(G)) * 2 - 1).requires_grad_()
        out, calls = _check_forward(G, z)
        expected = (n, 3, IMAGE_SIZE, IMAGE_SIZE)
        if out.shape != expected:
            raise _Wrong(
                f"the output for latents of shape ({n}, {z_size}) must be images. Expected shape "
                f"{expected}, got {_shape(out)}. Each ConvTranspose2d with kernel 4, stride 2, "
                "padding 1 doubles height and width."
            )
        n_convs = calls.names().count("conv_transpose2d") + calls.names().count("conv2d")
        if n_convs < 2:
            raise _Wrong(
                "it is not convolutional. Expected several nn.ConvTranspose2d layers, "
                f"got {n_convs} that run in forward."
            )
        _check_gradients(G, z, out, calls)
        ignored = (z.grad == 0).all(0).sum()
        if ignored:
            raise _Wrong(
                f"part of z is ignored. Expected a gradient at all {z_size} numbers of z, "
                f"got none at {ignored} of them. Pass z whole to the first layer, e.g. "
                "nn.Linear(z_size, ...)."
            )
        last = next((c for c in reversed(calls.names()) if not c.startswith("__")), "")
        if last.startswith(("clamp", "clip", "hardtanh")):
            raise _Wrong(
                f"{last} cuts the output off, where the gradient is 0. Expected tanh, got {last}. "
                "End forward with torch.tanh(x)."
            )
    pixels = _outputs_for_random_weights(G, z.detach()[:2])
    hint = "End forward with torch.tanh(x): real images are scaled to [-1, 1] too."
    if pixels.abs().max() > 1:
        raise _Wrong(f"pixel values leave [-1, 1]. Expected -1 to 1, got {_span(pixels)}. {hint}")
    if pixels.min() > -0.5 or pixels.max() < 0.5:
        raise _Wrong(
            f"pixel values do not span [-1, 1]. Expected -1 to 1, got {_span(pixels)} whatever the "
            f"weights, as from a sigmoid or ReLU. {hint}"
        )
    G = Generator(20, 8).to(z.device)
    z = torch.rand(6, 20, device=z.device) * 2 - 1
    _check_dependence(G, z, "latent")
    _check_not_affine(lambda inputs: _plain_run(G, inputs).atanh(), z)
    with torch.no_grad():
        G.eval()
        if not torch.allclose(G(z), G(z), atol=1e-5):
            raise _Wrong(
                "in eval mode the same latents give other images each time. Expected the same "
                "images, got others. Use nn.Dropout or F.dropout(x, p, self.training), "
                "which eval() switches off."
            )
    _check_conv_dim(sizes)


def _check_normal(weight: Tensor, where: str) -> None:
    """Check that a weight tensor is a sample of N(0, 0.02).

    For n independent draws the standard errors are 0.02 / sqrt(n) of the mean, 0.02 / sqrt(2n) of
    the standard deviation and sqrt(24 / n) of the kurtosis (3 for a normal distribution). Bounds
    of 6.5 standard errors fail by chance with probability 8e-11 for the mean and, for the standard
    deviation, from 1.2e-10 at n = 768 to 6e-9 at n = 16 (chi-squared): below 1e-7 for a network of
    16 layers. Fewer numbers tell too little. The kurtosis, whose tails are heavier, gets 12
    standard errors (and is tested for n > 20,000 alone).
    """
    n = weight.numel()
    if n < 16:
        return
    values = weight.detach().double().flatten()
    mean, std = values.mean(), values.std()
    expected = "weights drawn from a normal distribution with mean 0 and standard deviation 0.02"
    hint = "Use nn.init.normal_(m.weight, 0.0, 0.02)."
    got = f"mean {mean:.4f} and standard deviation {std:.4f}"
    close = abs(mean) < 6.5 * 0.02 / n**0.5 and abs(std / 0.02 - 1) < 6.5 / (2 * n) ** 0.5
    if not close:
        raise _Wrong(
            f"{where} has the wrong distribution of weights. Expected {expected}, got {got}. {hint}"
        )
    if n > 20_000:
        kurtosis = ((values - mean) / std).pow(4).mean()
        if abs(kurtosis - 3) >= 12 * (24 / n) ** 0.5:
            raise _Wrong(
                f"the weights of {where} are not normally distributed. Expected {expected}, got "
                f"another shape (kurtosis {kurtosis:.2f} instead of 3). {hint}"
            )


@_rubric_test(
    "weights_init_normal",
    "weights_init_normal(m) to take any layer, with or without weight and bias",
)
def test_weights_init_normal(weights_init_normal: Callable[[nn.Module], Any]) -> None:
    """Weights of convolutional and linear layers become N(0, 0.02); nothing else turns wide.

    Biases may be left alone, set to 0 or drawn as narrowly; batch norm may be left alone or drawn
    from N(1, 0.02).

    Raises:
        AssertionError: with what is wrong.
    """
    layers = {
        "Conv2d": nn.Conv2d(32, 64, 4),
        "Conv2d without bias": nn.Conv2d(64, 32, 4, bias=False),
        "ConvTranspose2d": nn.ConvTranspose2d(64, 32, 4),
        "ConvTranspose2d without bias": nn.ConvTranspose2d(32, 64, 4, bias=False),
        "Linear": nn.Linear(200, 300),
        "Linear without bias": nn.Linear(300, 200, bias=False),
    }
    norms = {"BatchNorm2d": nn.BatchNorm2d(256), "BatchNorm1d": nn.BatchNorm1d(256)}
    network = nn.ModuleList([*layers.values(), *norms.values(), nn.LeakyReLU(0.2), nn.Dropout()])
    before = copy.deepcopy(layers)
    network.apply(weights_init_normal)
    for name, layer in layers.items():
        if torch.equal(layer.weight, before[name].weight):
            raise _Wrong(
                f"the weights of {name.split()[0]} are left as they were. Expected new weights "
                "from N(0, 0.02), got PyTorch's default. Initialise Conv2d, ConvTranspose2d and "
                "Linear (e.g. by m.__class__.__name__)."
            )
        _check_normal(layer.weight, name)
        if not isinstance(layer.weight, nn.Parameter) or not layer.weight.requires_grad:
            raise _Wrong(
                f"the weights of {name} can no longer be trained. Expected a parameter with "
                "requires_grad=True. Change the values in place: "
                "nn.init.normal_(m.weight, 0.0, 0.02)."
            )
        # Biases from N(0, 0.02) are narrow enough. One of them exceeds 6.5 standard deviations with
        # probability 8e-11, and there are 396; so does the mean of a layer's.
        bias, old_bias = layer.bias, before[name].bias
        if bias is not None and not torch.equal(bias, old_bias):
            too_far = abs(bias.mean()) >= 0.13 / bias.numel() ** 0.5
            if too_far or bias.abs().max() >= 0.13:
                raise _Wrong(
                    f"the biases of {name} are too far from 0. Expected 0, or left alone, got "
                    f"{_span(bias)}. Use nn.init.zeros_(m.bias)."
                )
    for name, norm in norms.items():
        if (norm.weight - 1).abs().max() >= 0.13 or norm.bias.abs().max() >= 0.13:
            raise _Wrong(
                f"{name} is drawn from the wrong distribution. Expected weights 1 (or N(1, 0.02)) "
                f"and biases 0, got weights with {_span(norm.weight)}, biases with "
                f"{_span(norm.bias)}. Leave batch norm alone: N(0, 0.02) is for convolutional and "
                "linear layers."
            )


def _build(build_network: Callable[..., Any], *sizes: int) -> tuple[nn.Module, nn.Module]:
    """Call build_network(d_conv_dim, g_conv_dim, z_size) and check that it returns D, G."""
    with _quiet():
        networks = build_network(*sizes)
    if not isinstance(networks, (tuple, list)) or len(networks) != 2:
        raise _Wrong(
            f"build_network must return both networks. Expected (D, G), got {_kind(networks)}. "
            "End it with return D, G."
        )
    return _check_network(networks[0], "D"), _check_network(networks[1], "G")


@_rubric_test("build_network", "build_network(d_conv_dim, g_conv_dim, z_size) to return D, G")
def test_build_network(build_network: Callable[..., Any]) -> None:
    """D and G, in this order, of the sizes asked for, with weights from N(0, 0.02).

    Raises:
        AssertionError: with what is wrong.
    """
    D, G = _build(build_network, 16, 16, 20)
    n = 4
    z = torch.rand(n, 20, device=_device(G)) * 2 - 1
    x = torch.rand(n, 3, IMAGE_SIZE, IMAGE_SIZE, device=_device(D)) * 2 - 1
    try:
        out, images = D(x), G(z)
        fits = out.numel() == n and images.shape == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise _Wrong(
            "the networks do not fit. Expected D to take images, and G to make such images from "
            "latents of z_size numbers. Return D, G in this order and pass z_size to G."
        )
    if {id(p) for p in D.parameters()} & {id(p) for p in G.parameters()}:
        raise _Wrong("D and G share parameters. Expected two networks with their own weights.")
    for network, what in ((D, "D"), (G, "G")):
        for name, layer in network.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                if not all(p.requires_grad for p in layer.parameters()):
                    raise _Wrong(
                        f"{name} of {what} cannot be trained. Expected parameters with "
                        "requires_grad=True, got False. Do not freeze the networks."
                    )
                if "weight" in dict(layer.named_parameters(recurse=False)):
                    _check_normal(layer.weight, f"{name} of {what}")
    wider_D, same_G = _build(build_network, 24, 16, 20)
    same_D, wider_G = _build(build_network, 16, 24, 20)
    for name, what, small, same, wide in (
        ("d_conv_dim", "D", D, same_D, wider_D),
        ("g_conv_dim", "G", G, same_G, wider_G),
    ):
        if not _count(small) == _count(same) < _count(wide):
            raise _Wrong(
                f"{name} must set the size of {what}. Expected {what} to grow with {name} and with "
                f"no other argument, got {_count(small):,}, {_count(same):,} and "
                f"{_count(wide):,} parameters for {name} of 16, 16 and 24. Use "
                "Discriminator(d_conv_dim) and Generator(z_size, g_conv_dim)."
            )
    if all(torch.equal(a, b) for a, b in zip(same_D.parameters(), D.parameters(), strict=True)):
        raise _Wrong(
            "a second call gives the same weights. Expected new networks at each call: make them "
            "inside build_network."
        )


# ------------------------------------------------------------------------------- losses


def _loss_and_gradient(
    loss: Callable[..., Tensor], logits: Tensor, **options: Any
) -> tuple[float, Tensor]:
    """A loss of logits and its gradient, for logits (N, 1) or, if it takes no such, (N,)."""
    errors = []
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device, values in ((d, v) for d in devices for v in (logits[:, None], logits)):
        D_out = values.to(device, copy=True).requires_grad_()
        try:
            value = loss(D_out, **options)
        except (ValueError, RuntimeError) as error:
            errors.append(error)
            continue
        hint = "Return the loss tensor itself: no .item(), detach() or numpy()."
        _require_tensor(value, "the loss must be a tensor.", hint)
        if value.numel() != 1:
            raise _Wrong(
                "the loss must be one number. Expected a scalar tensor, got shape "
                f"{_shape(value)}. Average over the batch."
            )
        if not value.requires_grad:
            raise _Wrong(f"no gradient flows from it. Expected a grad_fn, got none. {hint}")
        if not torch.equal(D_out.detach().cpu(), values):
            raise _Wrong("it changes D_out in place. Expected D_out to stay as it was.")
        value.sum().backward()
        if D_out.grad is None:
            raise _Wrong(f"no gradient reaches D_out. Expected D_out.grad, got None. {hint}")
        return value.item(), D_out.grad.cpu().flatten()
    raise errors[-1]


def _check_loss(loss: Callable[..., Tensor], low: float, high: float, **options: Any) -> None:
    """Check that a loss is binary cross entropy or least squares with labels in [low, high].

    The label of each image follows from the gradient: N g = sigmoid(x) - label for cross entropy,
    and N g = c (x - label) for least squares with c = 2 or, with a factor of one half, c = 1.
    """
    kind, right = ("real", 1) if low > 0.5 else ("fake", 0)
    labels = "0.7 to 1.2" if kind == "real" else "0 to 0.3"
    called = "".join(f" with {name}={value}" for name, value in options.items())
    for n in (16, 7):
        x = torch.randn(n) * 2
        value, gradient = _loss_and_gradient(loss, x, **options)
        bce, mse, half_mse = (x.sigmoid() - n * gradient, x - n * gradient / 2, x - n * gradient)
        implied = [
            (label, loss_value)
            for label, loss_value in (
                (bce, (nn.functional.softplus(x) - bce * x).mean()),
                (mse, (x - mse).square().mean()),
                (half_mse, (x - half_mse).square().mean() / 2),
            )
            if abs(loss_value - value) < 1e-3 * (1 + abs(value))
        ]
        if any(low - 0.01 < t.min() and t.max() < high + 0.01 for t, _ in implied):
            continue
        for label, _ in implied:
            if label.std() < 0.01:  # the right kind of loss for another label
                raise _Wrong(
                    f"the label{called} is wrong for {kind} images. Expected {right} (smoothed: "
                    f"{labels}), got {label.mean():.2f}. Use labels of torch."
                    f"{'ones' if right else 'zeros'}(D_out.size(0))."
                )
        bce_value = nn.functional.binary_cross_entropy_with_logits(x, torch.full_like(x, right))
        raise _Wrong(
            f"it is neither binary cross entropy nor least squares{called}, averaged over the "
            f"batch. Expected {bce_value:.3f} or {(x - right).square().mean():.3f} for {n} random "
            f"logits, got {value:.3f}. Use nn.BCEWithLogitsLoss() on D_out itself, without a "
            f"sigmoid, and labels of {right} (smoothed: {labels})."
        )


@_rubric_test("real_loss", "real_loss(D_out) to take logits (N, 1) or (N,), for any N")
def test_real_loss(real_loss: Callable[..., Tensor]) -> None:
    """Binary cross entropy (or least squares) of D's logits against label 1, smoothed or not.

    Raises:
        AssertionError: with what is wrong.
    """
    _check_loss(real_loss, 0.7, 1.2)
    smooth = inspect.signature(real_loss).parameters.get("smooth")
    if smooth is not None and isinstance(smooth.default, bool):
        _check_loss(real_loss, 0.7, 1.2, smooth=True)


@_rubric_test("fake_loss", "fake_loss(D_out) to take logits (N, 1) or (N,), for any N")
def test_fake_loss(fake_loss: Callable[..., Tensor]) -> None:
    """Binary cross entropy (or least squares) of D's logits against label 0.

    Raises:
        AssertionError: with what is wrong.
    """
    _check_loss(fake_loss, 0.0, 0.3)


# --------------------------------------------------------------------- optimizers, training


@_rubric_test("optimizers", "two optimizers and the networks D and G")
def test_optimizers(
    d_optimizer: torch.optim.Optimizer,
    g_optimizer: torch.optim.Optimizer,
    D: nn.Module,
    G: nn.Module,
) -> None:
    """Each optimizer holds exactly its own network's parameters, with usable settings.

    Raises:
        AssertionError: with what is wrong.
    """
    networks = {id(p): "D" for p in D.parameters()} | {id(p): "G" for p in G.parameters()}
    for name, optimizer, owner in (
        ("d_optimizer", d_optimizer, "D"),
        ("g_optimizer", g_optimizer, "G"),
    ):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise _Wrong(
                f"{name} is not an optimizer. Expected optim.Adam({owner}.parameters(), lr, "
                f"[beta1, beta2]), got {_kind(optimizer)}."
            )
        held = Counter(
            networks.get(id(p), "another network")
            for g in optimizer.param_groups
            for p in g["params"]
        )
        expected = list(networks.values()).count(owner)
        if held != {owner: expected}:
            got = " and ".join(f"{n} of {network}" for network, n in held.items())
            raise _Wrong(
                f"{name} must hold exactly the parameters of {owner}. Expected {expected} tensors "
                f"of {owner}, got {got}. Use optim.Adam({owner}.parameters(), ...), after {owner} "
                "has been made."
            )
        highest = 1 if isinstance(optimizer, torch.optim.SGD) else 0.01
        for group in optimizer.param_groups:
            if not 0 < group["lr"] <= highest:
                raise _Wrong(
                    f"the learning rate of {name} is out of range. Expected 0.0002 or so (above 0, "
                    f"at most {highest}), got {group['lr']}."
                )
            if group.get("maximize"):
                raise _Wrong(f"{name} maximizes the loss. Expected maximize=False.")
            beta1, beta2 = group.get("betas", (0.5, 0.999))
            if beta1 > beta2:
                raise _Wrong(
                    f"the betas of {name} are swapped. Expected beta1 below beta2, such as (0.5, "
                    f"0.999), got ({beta1}, {beta2})."
                )


_SAME_LATENTS = (
    "the latents that G trains on are all the same. Expected new random ones for each image. Draw "
    "z of shape (batch_size, z_size) inside the batch loop."
)
_NO_REAL = (
    "D is never shown the loader's images. Expected D(real_images) in the batch loop, got other "
    "images. Compute d_real_loss = real_loss(D(real_images))."
)
_FAULTY_PUSHES = [  # network, what its step does to D's answers, message
    (
        "D",
        {"real down"},
        "D learns to call real images fake. Expected real_loss(D(real_images)) in d_loss, got a "
        "loss that pushes D's answer on real images down. Do not swap real_loss and fake_loss.",
    ),
    (
        "D",
        {"fake up", "fake down"},
        "D's step uses the gradients of G's loss too. Expected the gradients of d_loss alone, got "
        "a sum with those of g_loss. Call d_optimizer.zero_grad() just before the losses of D's "
        "step.",
    ),
    (
        "D",
        {"fake up"},
        "D learns to call generated images real. Expected fake_loss(D(fake_images)) in d_loss, got "
        "a loss that pushes D's answer on generated images up. Use fake_loss in D's step, and step "
        "d_optimizer on d_loss only.",
    ),
    (
        "G",
        {"fake up", "fake down"},
        "G's step uses the gradients of D's loss too. Expected the gradients of g_loss alone, got "
        "a sum with those of d_loss. Call g_optimizer.zero_grad() just before g_loss, or use "
        "D(fake_images.detach()) in D's step.",
    ),
    (
        "G",
        {"fake down"},
        "G's loss pushes D's answer on generated images down. Expected flipped labels: g_loss = "
        "real_loss(D(fake_images)), got a loss that asks for fake.",
    ),
]
_WANTED_PUSHES = {"D": {"real up", "fake down"}, "G": {"fake up"}}


def _compare(rows: Tensor, references: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find for each row the reference that it is most alike, up to a gain and a shift.

    Returns:
        Its index, correlation, gain and shift, (N,) each: row = gain * reference + shift.
    """
    a, b = (t - t.mean(1, keepdim=True) for t in (rows, references))
    best = (nn.functional.normalize(a) @ nn.functional.normalize(b).T).max(1)
    match = b[best.indices]
    gain = (a * match).sum(1) / match.square().sum(1).clamp(min=1e-12)
    return best.indices, best.values, gain, rows.mean(1) - gain * references[best.indices].mean(1)


class _Training:
    """Watches train(): what D is shown, what each loss asks of D, which gradients a step uses.

    Which way a loss pushes D's answers follows from the loss function and the sign of the gradient
    that reaches it. The largest weight of each network serves as a probe: its gradients are noted
    at each backward pass, so that the gradient a step finds tells which passes it is the sum of.
    """

    def __init__(self, D: nn.Module, G: nn.Module, images: Tensor, n_batches: int) -> None:
        self.networks = {"D": D, "G": G}
        self.images = images.flatten(1)  # (n, 3 * 32 * 32) in [0, 1]
        self.parameters = {
            name: {id(p): p for p in network.parameters()}
            for name, network in self.networks.items()
        }
        self.probes = {
            name: max(network.parameters(), key=lambda p: p.numel())
            for name, network in self.networks.items()
        }
        self.expected = n_batches
        self.n_batches = 0
        self.seen: Counter[int] = Counter()  # how often D was shown each of the images
        self.n_backward = 0
        self.pushes: dict[int, set[str]] = defaultdict(set)  # of each backward pass
        self.gradients: dict[str, list[tuple[int, Tensor]]] = {"D": [], "G": []}
        self.n_used = {"D": 0, "G": 0}  # gradients that were there at the last step
        self.n_steps = Counter({"D": 0, "G": 0})
        self.used_pushes: dict[str, set[str]] = {"D": set(), "G": set()}
        self.answers: list[tuple[Tensor, list[str]]] = []  # D's outputs, kinds of its inputs
        self.through_loss: set[int] = set()  # which of them a loss function took
        self.losses: dict[str, list[float]] = defaultdict(list)  # e.g. "fake up": values
        self.generated = torch.empty(0)  # the last outputs of G, (N, 3 * 32 * 32)
        self.latents: dict[bool, list[Tensor]] = {True: [], False: []}  # by G.training
        self.eval_gradient = False
        self.before_step: dict[str, list[Tensor]] = {}

    def collate(self, pairs: list[tuple[Tensor, Tensor]]) -> Any:
        """Make a batch of the loader, and count it."""
        self.n_batches += 1
        if self.n_batches >= 4 * self.expected:  # it may never end
            raise self._wrong_number(f"at least {self.n_batches}")
        return default_collate(pairs)

    def _wrong_number(self, got: str) -> _Wrong:
        return _Wrong(
            f"it does not train on each batch of n_epochs epochs. Expected {self.expected} batches "
            f"for n_epochs=2, got {got}. Loop over range(n_epochs) and, inside, over "
            "celeba_train_loader."
        )

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Install all hooks, and remove them again."""
        backward = torch.autograd.backward

        def count_backward(*args: Any, **kwargs: Any) -> None:
            self.n_backward += 1
            backward(*args, **kwargs)

        hooks = [
            nn.modules.module.register_module_forward_hook(self._after_forward),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        for name, probe in self.probes.items():
            hooks.append(
                probe.register_hook(
                    lambda g, name=name: self.gradients[name].append((self.n_backward, g.clone()))
                )
            )
        try:
            with mock.patch.object(torch.autograd, "backward", count_backward):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def spy(self, loss: Callable[..., Tensor], towards: str) -> Callable[..., Tensor]:
        """Wrap real_loss (``towards="up"``) or fake_loss (``"down"``)."""
        away = {"up": "down", "down": "up"}[towards]

        @functools.wraps(loss)
        def spied(D_out: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            value = loss(D_out, *args, **kwargs)
            kinds = self._kinds_behind(D_out)
            if isinstance(value, Tensor) and value.requires_grad:
                for kind in kinds:
                    self.losses[f"{kind} {towards}"].append(value.item())
                value.register_hook(
                    lambda g: self.pushes[self.n_backward].update(
                        f"{kind} {towards if g.sum() > 0 else away}" for kind in kinds
                    )
                )
            return value

        return spied

    def _kinds_behind(self, D_out: Tensor) -> set[str]:
        """Find the kinds of images that outputs of D belong to."""
        values = D_out.detach().flatten().cpu()
        kinds = set()
        for call, (answers, answer_kinds) in reversed(list(enumerate(self.answers))):
            same = values[:, None] == answers[None]
            if same.any():
                kinds |= {k for k, s in zip(answer_kinds, same.any(0).tolist(), strict=True) if s}
                self.through_loss.add(call)
                values = values[~same.any(1)]
        return kinds

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        D, G = self.networks["D"], self.networks["G"]
        if not args or not isinstance(output, Tensor):
            return
        if module is D:
            self._after_D(args[0], output)
        elif module is G or type(module) is type(G) is not nn.Sequential:
            z = args[0].detach().cpu()
            self.generated = torch.cat([output.detach().flatten(1).cpu(), self.generated])[:64]
            self.latents[module.training].append(z)
            if module.training and len(z) > 1 and torch.equal(z[0], z[1]):
                raise _Wrong(_SAME_LATENTS)
            if output.requires_grad and not module.training:
                note = unserializable_hook(lambda gradient: setattr(self, "eval_gradient", True))
                output.register_hook(note)  # samples may be pickled, without this

    def _after_D(self, x: Tensor, output: Tensor) -> None:
        D = self.networks["D"]
        kinds = self._kinds_of(x)
        if output.requires_grad:
            if not D.training:
                raise _Wrong(
                    "D trains in eval mode. Expected training mode in the batch loop. Call "
                    "D.train() before it."
                )
            call = len(self.answers)
            output.register_hook(lambda g: self._after_answer_gradient(call, g))
        if output.numel() == len(kinds):
            self.answers.append((output.detach().flatten().cpu(), kinds))

    def _after_answer_gradient(self, call: int, gradient: Tensor) -> None:
        """Note the push of a loss that was computed without real_loss and fake_loss."""
        if call < len(self.answers) and call not in self.through_loss:
            rows = gradient.flatten().cpu()
            for kind in set(self.answers[call][1]):
                chosen = rows[torch.tensor([k == kind for k in self.answers[call][1]])]
                if abs(chosen.mean()) > 0.25 * chosen.abs().mean():
                    push = f"{kind} {'up' if chosen.mean() < 0 else 'down'}"
                    self.pushes[self.n_backward].add(push)

    def _kinds_of(self, x: Tensor) -> list[str]:
        """Tell real from fake images by their correlation with the loader's images."""
        rows = x.detach().flatten(1).cpu().float()
        if rows.shape[1] != self.images.shape[1]:
            raise _Wrong(
                f"D is given something that is not an image. Expected shape (N, 3, {IMAGE_SIZE}, "
                f"{IMAGE_SIZE}), got {_shape(x)}."
            )
        which, likeness, gain, shift = _compare(rows, 2 * self.images - 1)
        real = likeness > 0.9
        self.seen.update(which[real].tolist())
        changed = ((gain - 1).abs() > 0.1) | (shift.abs() > 0.2)
        if changed[real].any():
            raise _Wrong(
                "real images do not reach D in [-1, 1]. Expected values from -1 to 1, got "
                f"{_span(rows[real])}. Call real_images = scale(real_images) once, before "
                "D(real_images)."
            )
        if len(self.generated) and not real.all():
            _, likeness, gain, shift = _compare(rows[~real], self.generated)
            changed = (likeness > 0.999) & (((gain - 1).abs() > 0.1) | (shift.abs() > 0.2))
            if changed.any():
                raise _Wrong(
                    "generated images do not reach D as G makes them. Expected the output of G, "
                    f"got it times {gain[changed][0]:.1f}, shifted by {shift[changed][0]:.1f}. Do "
                    "not scale them: tanh gives [-1, 1]."
                )
        return ["real" if r else "fake" for r in real.tolist()]

    def _owner(self, optimizer: torch.optim.Optimizer) -> str:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owners = [name for name, parameters in self.parameters.items() if held & set(parameters)]
        if len(owners) > 1:
            raise _Wrong(
                "one optimizer holds the parameters of both networks. Expected d_optimizer for D "
                "and g_optimizer for G, got both in one."
            )
        return owners[0] if owners else ""

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner(optimizer)
        if not owner:
            return
        loss, own = {"D": ("d_loss", "d_optimizer"), "G": ("g_loss", "g_optimizer")}[owner]
        self.before_step = {
            name: [p.detach().clone() for p in parameters.values()]
            for name, parameters in self.parameters.items()
        }
        gradients, n_used = self.gradients[owner], self.n_used[owner]
        found = self.probes[owner].grad
        if found is None or not found.any() or len(gradients) <= n_used:
            raise _Wrong(
                f"{own}.step() runs, but no gradient of {loss} has reached {owner}. Expected "
                f"{loss}.backward() before {own}.step(), through "
                + ("D's answers." if owner == "D" else "D(G(z)) without detach().")
            )
        start = self._first_summand(found, gradients)
        summands = gradients[n_used if start is None else max(start, n_used) :]
        pushes = set().union(*(self.pushes[i] for i, _ in summands))
        piled_up = start is not None and start < n_used
        if not piled_up or not pushes & _WANTED_PUSHES[owner]:
            self._judge(owner, pushes)
        if piled_up:
            raise _Wrong(
                f"gradients of {owner} pile up from step to step. Expected the gradient of the "
                f"last {loss} alone, got a sum with those of earlier steps. Call "
                f"{own}.zero_grad() before {loss}.backward()."
            )
        self.n_used[owner] = len(gradients)
        self.n_steps[owner] += 1

    @staticmethod
    def _first_summand(found: Tensor, gradients: list[tuple[int, Tensor]]) -> int | None:
        """Find from which noted gradient on they add up to the one found (up to a factor)."""
        total = torch.zeros_like(found)
        for i in reversed(range(len(gradients))):
            total = total + gradients[i][1].to(found.device)
            factor = (found * total).sum() / total.square().sum()
            if factor > 0 and (found - factor * total).norm() <= 0.01 * found.norm():
                return i
        return None

    def _judge(self, owner: str, pushes: set[str]) -> None:
        """Check that a step's gradients push D's answers the right way."""
        if owner == "D" and "fake up" in pushes and not self.seen:
            raise _Wrong(_NO_REAL)
        for network, faulty, message in _FAULTY_PUSHES:
            if network == owner and faulty <= pushes:
                raise _Wrong(message)
        self.used_pushes[owner] |= pushes

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        owner = self._owner(optimizer)
        if owner:
            other = {"D": "G", "G": "D"}[owner]
            if self._changed(other):
                raise _Wrong(f"{owner}'s step changes {other}. Expected {other} left alone.")
            if not self._changed(owner):
                raise _Wrong(
                    f"{owner}'s step leaves all weights of {owner} as they were. Expected other "
                    "weights after the step. Use a learning rate above 0."
                )

    def _changed(self, name: str) -> bool:
        pairs = zip(self.before_step[name], self.parameters[name].values(), strict=True)
        return not all(torch.equal(before, after) for before, after in pairs)

    def check(self, losses: Any) -> None:
        """Check what was seen, and what train returned."""
        for name in ("D", "G"):
            if not self.n_steps[name]:
                raise _Wrong(
                    f"{name} is never updated. Expected {name.lower()}_optimizer.step() in the "
                    "training loop, got none."
                )
        if not self.seen:
            raise _Wrong(_NO_REAL)
        for owner, push, what, hint in (
            ("D", "real up", "D never learns from real images", "real_loss(D(real_images))"),
            ("D", "fake down", "D never learns from generated images", "fake_loss(D(fake_images))"),
            ("G", "fake up", "G never learns from D's answers", "real_loss(D(fake_images))"),
        ):
            if push not in self.used_pushes[owner]:
                raise _Wrong(
                    f"{what}. Expected {hint} in the loss of {owner}'s step, got no gradient of "
                    "it there. Add it to the loss, and call zero_grad() before backward(), not "
                    "after it."
                )
        if self.n_batches < self.expected:
            raise self._wrong_number(str(self.n_batches))
        n_images = len(self.images)
        # D may take a step every few batches only: then some images can be left out.
        reused = self.seen.total() >= 2 * n_images or self.n_steps["G"] < self.expected
        if len(self.seen) < n_images and reused:
            raise _Wrong(
                f"it does not train on all images. Expected D to see each of the {n_images} images "
                f"of celeba_train_loader, got {len(self.seen)} of them. Pass each batch to D."
            )
        if self.eval_gradient:
            raise _Wrong(
                "G trains in eval mode. Expected training mode in the batch loop. Call G.train() "
                "after each epoch's samples are drawn."
            )
        self._check_latents()
        self._check_losses(losses)

    def _check_latents(self) -> None:
        train, fixed = self.latents[True], self.latents[False]
        if len(train) > 1 and all(torch.equal(train[0], z) for z in train):
            raise _Wrong(_SAME_LATENTS)
        if not fixed:
            raise _Wrong(
                "the fixed samples are not drawn in eval mode. Expected G.eval() before "
                "G(fixed_z), once an epoch, got no call of G in eval mode. Use G.eval(), draw "
                "the samples, then G.train()."
            )
        if all(len(z) > 1 and torch.equal(z, z[:1].expand_as(z)) for z in fixed):
            raise _Wrong(
                "the fixed latents of the samples are all the same. Expected a random one for each "
                "sample, got equal ones, which give equal images. Draw fixed_z like z, once."
            )
        repeated = any(torch.equal(a, b) for i, a in enumerate(fixed) for b in fixed[:i])
        if len(fixed) > 1 and not repeated:
            raise _Wrong(
                "the samples of each epoch come from other latents. Expected the same fixed_z "
                "for each epoch's samples, got new latents. Draw fixed_z once, before the first "
                "epoch."
            )

    def _check_losses(self, losses: Any) -> None:
        if losses is None:
            raise _Wrong("it returns None. Expected the list of losses. End with return losses.")
        try:
            pairs = [(d, g) for d, g in losses]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            raise _Wrong(
                "it must return the losses. Expected a list of pairs (d_loss, g_loss), got "
                f"{_kind(losses)} without them. Use losses.append((d_loss.item(), g_loss.item()))."
            )
        if any(isinstance(v, Tensor) and v.requires_grad for pair in pairs for v in pair):
            raise _Wrong(
                "the losses returned keep their graphs in memory. Expected numbers, got tensors "
                "with a grad_fn. Use losses.append((d_loss.item(), g_loss.item()))."
            )
        numbers = torch.tensor([[float(d), float(g)] for d, g in pairs])
        if not torch.isfinite(numbers).all():
            raise _Wrong("a loss is not finite. Expected numbers, got NaN.")
        is_loss = {}  # whether all numbers of a column are values of one of train's losses
        for push in ("fake up", "fake down", "real up"):
            values = torch.tensor([math.inf, *self.losses[push]])
            is_loss[push] = ((numbers[:, :, None] - values).abs().amin(2).amax(0) < 1e-4).tolist()
        if is_loss["fake up"] == [True, False]:
            raise _Wrong(
                "the losses are recorded in the wrong order. Expected (d_loss, g_loss), got "
                "(g_loss, d_loss)."
            )
        if not is_loss["fake up"][1] and (is_loss["fake down"][1] or is_loss["real up"][1]):
            raise _Wrong(
                "the second loss of each pair is a part of D's. Expected (d_loss, g_loss), got "
                "D's loss on one kind of images. Use losses.append((d_loss.item(), g_loss.item()))."
            )


def _stand_in_images(n: int) -> Tensor:
    """Random chequers, left-right symmetric so that a flip does not hide them; (n, 3, 32, 32)."""
    left = torch.rand(n, 3, 4, 2).round() * 0.8 + torch.rand(n, 3, 4, 2) * 0.2
    return torch.cat([left, left.flip(3)], 3).repeat_interleave(8, 2).repeat_interleave(8, 3)


@functools.cache
def _operands(code: types.CodeType, *operations: str) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname in operations}


def _reached(code: types.CodeType, names: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Follow code into its inner functions and the notebook's own functions and methods.

    Args:
        code: where to start.
        names: the notebook's global variables.

    Returns:
        The global names that all this code reads, and those with the names of its attributes.
    """
    codes: set[types.CodeType] = set()
    found, reads, used = {code}, set(), set()
    while not found <= codes:
        codes |= found
        reads = set().union(*(_operands(c, "LOAD_GLOBAL", "LOAD_NAME") for c in codes))
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


@contextmanager
def _globals(namespace: dict[str, Any], values: dict[str, Any]) -> Iterator[None]:
    """Set global variables, and give all of them back as they were."""
    before = dict(namespace)
    namespace.update(values)
    try:
        yield
    finally:
        for name in namespace.keys() - before.keys():
            del namespace[name]
        namespace.update(before)


@contextmanager
def _working_directory(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _build_small(names: dict[str, Any], z_size: int) -> tuple[nn.Module, nn.Module]:
    """Build small networks with the solution's own build_network, on its device."""
    if not callable(names.get("build_network")):
        raise _Wrong("there is no build_network. Expected it among the notebook's functions.")
    D, G = _build(names["build_network"], 8, 8, z_size)
    device = names.get("device")
    if isinstance(device, (str, torch.device)):
        return D.to(device), G.to(device)
    if names.get("train_on_gpu") and torch.cuda.is_available():
        return D.cuda(), G.cuda()
    return D, G


@_rubric_test(
    "train", "train(D, G, n_epochs) to run with the notebook's functions and global variables"
)
def test_train(train: Callable[..., Any]) -> None:
    """Two epochs on small networks: each step trains its own network, the right way.

    ``train`` runs in an empty folder, with small stand-ins for the global variables that it reads
    (networks, optimizers, data); all global variables are as they were afterwards.

    Raises:
        AssertionError: with what is wrong.
    """
    inner = inspect.unwrap(train)
    names = getattr(inner, "__globals__", None)
    if names is None:
        raise _Wrong(f"it is not a function. Expected train(D, G, n_epochs), got {_kind(train)}.")
    images = _stand_in_images(48)
    batch_size = 8
    z_size = names["z_size"] if isinstance(names.get("z_size"), int) else 100
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_working_directory(folder))
        D, G = _build_small(names, z_size)
        training = _Training(D, G, images, 2 * len(images) // batch_size)
        dataset = TensorDataset(images, torch.zeros(len(images), dtype=torch.long))
        loader = DataLoader(dataset, batch_size, shuffle=True, collate_fn=training.collate)
        optimizers = {
            "d_optimizer": torch.optim.Adam(D.parameters(), 1e-3, (0.5, 0.999)),
            "g_optimizer": torch.optim.Adam(G.parameters(), 1e-3, (0.5, 0.999)),
        }
        values = {"D": D, "G": G, "celeba_train_loader": loader, "z_size": z_size, **optimizers}
        values |= {"batch_size": batch_size, "d_conv_dim": 8, "g_conv_dim": 8, "n_epochs": 2}
        values |= _copies_for(names, inner.__code__, values, folder)
        for name, towards in (("real_loss", "up"), ("fake_loss", "down")):
            if callable(names.get(name)):
                values[name] = training.spy(names[name], towards)
        arguments = {**values, "n_epochs": 2, "print_every": 2}
        with _globals(names, values), training.watch():
            losses = train(**_arguments(train, arguments))
        training.check(losses)


def _copies_for(
    names: dict[str, Any], code: types.CodeType, values: dict[str, Any], folder: str
) -> dict[str, Any]:
    """Stand-ins for the other global variables that train, or what it calls, could change."""
    copies: dict[str, Any] = {}
    for name in (_reached(code, names)[0] & names.keys()) - values.keys():
        value = names[name]
        if name == "output_dir":
            copies[name] = type(value)(folder) if isinstance(value, (str, Path)) else folder
        elif isinstance(value, DataLoader):
            copies[name] = values["celeba_train_loader"]
        elif type(value) in (type(values["G"]), type(values["D"])):
            copies[name] = copy.deepcopy(values["G" if type(value) is type(values["G"]) else "D"])
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            optimizer = values["d_optimizer" if name.lower().startswith("d") else "g_optimizer"]
            copies[name] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        elif isinstance(value, (list, dict, set)):
            copies[name] = copy.copy(value)
    return copies


def _arguments(train: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Choose the arguments that train asks for by their usual names."""
    parameters = inspect.signature(train).parameters.values()
    if [p.name for p in parameters][:2] == ["G", "D"]:
        raise _Wrong("its arguments are swapped. Expected train(D, G, ...), got train(G, D, ...).")
    usual = {"D", "G", "n_epochs", "print_every"}
    for p in parameters:
        optional = p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if not optional and p.name not in known:
            raise _Wrong(
                f"it has an unknown argument {p.name}. Expected train(D, G, n_epochs, "
                f"print_every=50), got train{inspect.signature(train)}."
            )
    return {
        p.name: known[p.name]
        for p in parameters
        if p.name in known and (p.name in usual or p.default is p.empty)
    }


# --------------------------------------------------------------- a notebook on disk

# What no constant is made with: what touches files, downloads, starts something, or trains.
# <Angle brackets> stand around modules; one without an attribute may be asked for any.
_WORK = re.compile(
    r"<[\w.]+>(?!\.)|\b(os|posix|nt)>?\.(?!(path|environ|getenv|getcwd|cpu_count)\b)|__dict__"
    r"|sys>?\.modules|builtins\.(eval|exec|__import__)|\b(\w*download\w*|backward|datasets|exit"
    r"|from_?file|hub|import_module|input|kill|load|loadtxt|makedirs|memmap|mkdir|open|popen|quit"
    r"|remove|rename|rmdir|save\w*|shutil|subprocess|system|tofile|touch|unlink|url\w+|write_\w+)\b"
)


class _Piece(NamedTuple):
    """A statement of a notebook that may define something."""

    code: types.CodeType
    defines: bool  # an import, a function or a class, not a value
    stores: set[str]  # global names; "*": any name may need it
    reads: set[str]  # global names, those that the functions inside it read too


def _cells(path: Path) -> Iterator[tuple[str, str]]:
    """Read the code of a notebook's cells, or a ``.py`` file: where it is, and its text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield path.name, text
        return
    try:
        notebook = json.loads(text)
        sheets = notebook.get("worksheets", [notebook])  # of notebooks before version 4
        for number, cell in enumerate((cell for sheet in sheets for cell in sheet["cells"]), 1):
            if cell["cell_type"] == "code":
                source = "".join(cell["source" if "source" in cell else "input"])
                yield f"{path.name}, cell {number}", source
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it has no cells ({type(error).__name__})") from None


def _pieces(where: str, source: str) -> Iterator[_Piece]:
    """Take the code of a cell apart.

    Raises:
        SyntaxError: if it is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # it may have commands of IPython: %matplotlib inline, files = !ls, help?
        magic = r"^(\s*)(\w+ *= *)?(!|%%?(?=\w)|% (?=matplotlib)|\?|[\w.]+\?+$).*"
        source = re.sub(magic, r"\1pass", source, flags=re.MULTILINE)
        tree = ast.parse(source)
    linecache.cache[where] = (len(source), None, source.splitlines(True), where)
    functions = _names_wanted() - {"D", "G", "d_optimizer", "g_optimizer"}
    for node in tree.body:
        imports = isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names if imports else [None]:  # a missing module costs no other
            if imports:
                node.names = [alias]
            code = compile(ast.Module([node], []), where, "exec")
            stores, reads = _operands(code, "STORE_NAME"), _reached(code, {})[0]
            constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and not reads
            if constant or re.match(r"from .* import \*|globals\(\)\.update", ast.unparse(node)):
                stores = stores | {"*"}
            defines = imports or isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if not isinstance(node, (ast.For, ast.While, ast.With)):
                yield _Piece(code, defines or bool(stores & functions), stores, reads)


def load_definitions(notebook: str | Path) -> types.ModuleType:
    """Define what the rubric asks for, and all that this needs of the notebook; nothing else.

    Needed are the imports, functions, classes and values that it reads, that these read, and so
    on. Values whose making touches files, downloads or trains are left out. All runs in a
    temporary folder, with made-up pictures for the data, but it does run: see above.

    Args:
        notebook: path of an ``.ipynb`` file, or of a ``.py`` file exported from one.

    Returns:
        A module. Its ``__broken__`` has what could not be defined: the names and an exception.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a notebook.
    """
    path = Path(notebook).resolve()
    module = types.ModuleType("(solution)")
    module.__file__, module.__broken__ = str(path), []
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    pieces: list[_Piece] = []
    for where, source in _cells(path):
        try:
            pieces += _pieces(where, source)
        except SyntaxError as error:
            would = set(re.findall(r"^(?:def |class )?(\w+) *(?=[=(:])", source, re.MULTILINE))
            line = f"line {error.lineno} ({(error.text or '').strip()})"
            message = f"{where} does not run: SyntaxError: {error.msg}, {line}."
            module.__broken__.append((would, AssertionError(message)))
    wanted, needed = _names_wanted() | {"*"}, set()
    while more := {i for i, piece in enumerate(pieces) if piece.stores & wanted} - needed:
        needed |= more
        wanted = wanted.union(*(pieces[i].reads for i in more))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        for context in (_quiet(), _fixed_randomness(), _one_thread(), _working_directory(folder)):
            stack.enter_context(context)
        _write_pictures(Path("processed_celeba_small"), 48)
        sys.path.insert(0, str(path.parent))
        stack.callback(sys.path.remove, str(path.parent))
        for i in sorted(needed):
            _define(pieces[i], module)
            for name in pieces[i].stores & {"data_dir", "output_dir"}:
                if isinstance(getattr(module, name, None), str):  # not the user's own folder
                    setattr(module, name, "processed_celeba_small/")
    return module


def _define(piece: _Piece, module: types.ModuleType) -> None:
    """Run a piece of a notebook in its module, or note in ``__broken__`` why it cannot run."""
    names = vars(module)
    try:
        reads, used = (set(), set()) if piece.defines else _reached(piece.code, names)
        if "train" in reads or any(map(_WORK.search, [_spelled(piece.code, names), *used])):
            where = piece.code.co_filename
            raise _NotTestable(f"{where} touches files, downloads or trains for it.")
        exec(piece.code, names)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, NameError) else None
        causes = [cause for left, cause in module.__broken__ if missing in left]
        if causes and piece.defines:
            setattr(module, missing, None)  # a default that only a run of the notebook gives
            _define(piece, module)
            delattr(module, missing)
        elif "get_dataloader" in piece.reads and len(piece.stores) == 1:
            stand_in = DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.zeros(8)))
            setattr(module, *piece.stores, stand_in)
        else:
            if not isinstance(error, _NotTestable):
                error = AssertionError(f"{_describe(error)}.")
            module.__broken__.append((piece.stores, (causes or [error])[0]))


def _spelled(code: types.CodeType, names: dict[str, Any]) -> str:
    """Spell out what names that code reads stand for; without the functions inside, run later."""
    text = ""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            value = names.get(step.argval, getattr(builtins, step.argval, None))
            real = getattr(value, "__name__", step.argval)
            module = isinstance(value, types.ModuleType)
            text += f" <{real}>" if module else f" {getattr(value, '__module__', None)}.{real}"
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            text += f".{step.argval}"
        elif step.opname.startswith("CALL"):
            text += "()"
        elif getattr(step.argval, "co_name", "").endswith(("comp>", "expr>")):
            text += _spelled(step.argval, names)
    return text


class Result(NamedTuple):
    """What a notebook got for a point of the rubric."""

    point: str
    outcome: str  # a key of _MARKS
    why: str = ""  # one line


# The outcomes, and how the table shows them.
_MARKS = {"PASSED": ".", "FAILED": "F", "ADVICE": "a", "NOT TESTABLE HERE": "?", "NOT FOUND": "-"}


def _find(module: types.ModuleType, name: str) -> Any:
    """Get an object of a notebook by its name.

    Raises:
        LookupError: if the notebook does not define it.
        AssertionError: if the code that defines it does not run.
        _NotTestable: if that code was left out.
    """
    if hasattr(module, name):
        return getattr(module, name)
    for names, error in module.__broken__:
        if name in names:
            raise type(error)(f"{name}: {error}")
    raise LookupError(f"the notebook does not define {name}.")


def _points() -> Iterator[tuple[str, Callable[..., None], list[str]]]:
    """The rubric points: name, test, names of the objects that it takes."""
    for name in __all__:
        test = globals()[name]
        yield name.removeprefix("test_"), test, list(inspect.signature(test).parameters)


def _names_wanted() -> set[str]:
    return {name for _, _, names in _points() for name in names}


def grade(path: str | Path) -> Iterator[Result]:
    """Run all rubric tests on a notebook; its code is executed, its training is not.

    Args:
        path: an ``.ipynb`` file, or a ``.py`` file exported from one.

    Yields:
        A result for each rubric point.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no notebook.
    """
    points = list(_points())
    guarded = [globals(), *map(vars, (builtins, os, torch, nn, nn.functional))]
    originals = [namespace.copy() for namespace in guarded]

    def restore() -> list[str]:  # what the notebook's code has patched
        changed = []
        for namespace, original in zip(guarded, originals, strict=True):
            changed += [name for name in original if namespace.get(name) is not original[name]]
            namespace.update(original)
        return changed

    module = load_definitions(path)
    restore()
    for point, test, names in points:
        _outcomes.append((point, "FAILED", f"{point}: the test came to no verdict."))
        try:
            objects = [_find(module, name) for name in names]
            with redirect_stdout(StringIO()):
                test(*objects)
            _, outcome, why = _outcomes[-1]
        except LookupError as missing:
            outcome, why = "NOT FOUND", str(missing)
        except _NotTestable as reason:
            outcome, why = "NOT TESTABLE HERE", str(reason)
        except AssertionError as failure:
            outcome, why = "FAILED", str(failure)
            missing = re.search(r"NameError: name '(\w+)' is not defined", why)
            for left, error in module.__broken__:
                if missing and missing[1] in left:
                    outcome = "NOT TESTABLE HERE" if isinstance(error, _NotTestable) else "FAILED"
                    why = f"{point}: {missing[1]} is missing, {error}"
        if changed := restore():
            outcome = "FAILED"
            why = f"{point}: the code replaces {changed[0]}, which the tests use."
        why = "".join(c if c.isprintable() else " " for c in why)  # no escapes, no surrogates
        yield Result(point, outcome, why)


# ------------------------------------------------------------------------- a whole class


def _grade_alone(path: Path, folder: str, key: bytes, gigabytes: float) -> None:
    """Grade a notebook in a process of its own; leave signed lines in a file, and end it."""
    sign = functools.partial(hmac.digest, key, digest="sha256")  # bound: cannot be patched

    def leave(*result: str) -> None:
        line = "\t".join(result).encode()
        with open(f"{folder}/verdicts", "ab") as file:
            file.write(sign(line).hex().encode() + b" " + line + b"\n")

    if hasattr(os, "setsid"):
        os.setsid()
    with open(os.devnull, "r+b") as null:
        for stream in (0, 1, 2):
            os.dup2(null.fileno(), stream)
    if resource is not None:
        for limit in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (int(gigabytes * 2**30), resource.getrlimit(limit)[1]))
    tempfile.tempdir = folder
    os.chdir(tempfile.mkdtemp())
    try:
        for result in grade(path):
            leave(*result)
    except (OSError, RecursionError, ValueError) as error:
        for point, _, _ in _points():
            leave(point, "FAILED", f"it cannot be read as a notebook: {error}")
    finally:
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)  # its threads, exit handlers and children too
        os._exit(0)


def _end(child: multiprocessing.Process) -> None:
    """Kill a process with all those that it has started."""
    with suppress(AttributeError, OSError):  # no groups on Windows, or all of them have ended
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _verdicts(file: Path, key: bytes, why: str) -> list[Result]:
    """Read the results that a process has signed; those that are missing FAILED."""
    found = {}
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        signature, _, text = line.partition(b" ")
        if signature == hmac.digest(key, text, "sha256").hex().encode():
            result = Result(*text.decode().split("\t"))
            found[result.point] = result
    return [found.get(point, Result(point, "FAILED", why)) for point, _, _ in _points()]


def _grade_all(
    paths: list[Path], seconds: float, gigabytes: float
) -> Iterator[tuple[Path, list[Result]]]:
    """Grade each notebook in a process of its own, on all cores; yield it when it is done."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting, running = list(paths), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root, ExitStack() as stack:
        stack.callback(lambda: [_end(child) for _, child, *_ in running.values()])
        while waiting or running:
            while waiting and len(running) < (cores or 1):
                path, key, folder = (
                    waiting.pop(0),
                    secrets.token_bytes(),
                    tempfile.mkdtemp(dir=root),
                )
                arguments = (path.absolute(), folder, key, gigabytes)
                child = context.Process(target=_grade_alone, args=arguments)
                child.start()
                deadline = time.monotonic() + seconds
                running[child.sentinel] = (deadline, child, path, folder, key)
            left = min(deadline for deadline, *_ in running.values()) - time.monotonic()
            ended = multiprocessing.connection.wait(running, max(0, left))
            for sentinel, (deadline, child, path, folder, key) in list(running.items()):
                if sentinel in ended or deadline < time.monotonic():
                    del running[sentinel]
                    _end(child)
                    why = f"there is no verdict: the process ended, exit code {child.exitcode}."
                    if sentinel not in ended:
                        why = f"not done after {seconds:g} s: it hangs or is slow (see --seconds)."
                    yield path, _verdicts(Path(folder, "verdicts"), key, why)
                    shutil.rmtree(folder, ignore_errors=True)


def _notebooks(path: Path) -> list[Path]:
    """A file itself; of a folder, all notebooks and scripts below it but this one."""
    if not path.is_dir():
        return [path] if path.exists() else []
    inside = [p for p in path.rglob("[!.]*") if p.suffix in (".ipynb", ".py")]
    return sorted(p for p in inside if p.name != Path(__file__).name and "/." not in p.as_posix())


def main(arguments: list[str] | None = None) -> int:
    """Grade notebooks: print what each got, then a table of all.

    Returns:
        1 if anything FAILED or was not found, else 0.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("PATH", nargs="*", type=Path, default=[NOTEBOOK])
    parser.add_argument("--seconds", type=float, default=60, help="time limit of each; default: 60")
    parser.add_argument("--gigabytes", type=float, default=4, help="memory of each; default: 4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write them for a spreadsheet")
    options = parser.parse_args(arguments)
    paths = []
    for path in options.PATH:
        if not (found := _notebooks(path)):
            parser.error(f"{path}: there is no notebook.")
        paths += found
    for file in (options.json, options.csv):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no such folder.")
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    os.environ.setdefault("MPLBACKEND", "Agg")  # no windows
    for name in ("matplotlib.pyplot", "torchvision"):  # once, for all of them
        with suppress(ImportError):
            importlib.import_module(name)
    table = {}
    for path, results in _grade_all(paths, options.seconds, options.gigabytes):
        table[path] = results
        print(f"{path}: {_totals(results)}", flush=True)
        for point, outcome, why in results:
            if outcome != "PASSED":
                print(f"    {point:<20} {outcome:<10} {why}", flush=True)
    _print_table({str(path): table[path] for path in paths})
    records = [{"notebook": str(p), **result._asdict()} for p in paths for result in table[p]]
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    if options.csv is not None:
        with options.csv.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    return int(any(record["outcome"] in ("FAILED", "NOT FOUND") for record in records))


def _totals(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _MARKS if counts[outcome])


def _print_table(table: dict[str, list[Result]]) -> None:
    """Print a row for each notebook, a column for each point, and the totals of both."""
    rows = {name: [_MARKS[result.outcome] for result in row] for name, row in table.items()}
    columns = list(zip(*rows.values(), strict=True))
    rows = {"": range(1, len(columns) + 1), **rows, "passed": [c.count(".") for c in columns]}
    width = max(map(len, rows))
    print()
    for name, cells in rows.items():
        print(f"{name:<{width}}" + "".join(f"{cell:>4}" for cell in cells))
    print("\n" + ", ".join(f"{i} {point}" for i, (point, _, _) in enumerate(_points(), 1)))
    print(", ".join(f"{mark} {outcome}" for outcome, mark in _MARKS.items()))
    print(f"\n{len(table)} graded: {_totals([result for row in table.values() for result in row])}")


if pytest is not None:

    def pytest_generate_tests() -> None:
        if not NOTEBOOK.exists():
            sentence = f"there is no {NOTEBOOK.name} beside {Path(__file__).name} to test."
            raise pytest.Collector.CollectError(sentence)

    @pytest.fixture(scope="module")
    def solution() -> types.ModuleType:
        """The definitions of the notebook beside this module."""
        return load_definitions(NOTEBOOK)

    def _fixture(name: str) -> Any:
        @pytest.fixture(name=name)
        def from_notebook(solution: types.ModuleType) -> Any:
            try:
                return _find(solution, name)
            except _NotTestable as reason:
                pytest.skip(str(reason))
            except (LookupError, AssertionError) as error:
                pytest.fail(str(error), pytrace=False)

        return from_notebook

    for _name in _names_wanted():
        globals()[f"_{_name}_fixture"] = _fixture(_name)


if __name__ == "__main__":
    sys.exit(main())
