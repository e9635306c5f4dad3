"""Makes a starter notebook of the finished one: the bodies of its graded parts are left to write.

A part is a function or the methods of a class, in a cell with the tag "graded". What
the part must do is told in ``TASKS``, and nowhere else.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from faces.files import NOTEBOOK

_WIDTH = 100  # characters of a line
_Cell = dict[str, Any]


class _Task(NamedTuple):
    """What a learner has to write."""

    write: str = ""  # one sentence without its subject, such as "return ..."
    must: tuple[str, ...] = ()  # what the rubric and the rest of the notebook ask of it


TASKS = {
    "get_dataloader": _Task(
        "return a DataLoader that shuffles the images below data_dir.",
        (
            "hand out batches of (images, labels). The images are float tensors of shape "
            "(batch_size, 3, image_size, image_size) with values in [0, 1]; the labels are 0",
            "find the images in all folders below data_dir, each image once an epoch. "
            "helpers.find_images(data_dir, max_images, seed, split) lists their paths",
            "show whole pictures in their own colours, resized to image_size and not just cut out. "
            "helpers.load_images(paths, resize, data_dir, skip_broken) decodes and resizes them",
            "shuffle the images, so that two epochs have different orders. With a torch.Generator "
            "of this seed as its generator, a DataLoader repeats the order in the next run",
            "have a dataset with the array of images, because later cells use it: "
            "helpers.FaceDataset(images) has one. Its collate, as collate_fn, makes batches faster",
            "leave out the last batch of an epoch if it is not full (drop_last)",
        ),
    ),
    "scale": _Task(
        "return x moved linearly from [0, 1] to feature_range.",
        (
            "map 0 to the lower end of feature_range and 1 to its upper end, linearly in between, "
            "whatever the smallest and largest values of x are",
            "return a new tensor of the shape and dtype of x, and leave x itself unchanged",
        ),
    ),
    "Discriminator": _Task(
        must=(
            "take images (N, 3, image_size, image_size) and return one logit for each, (N, 1)",
            "halve the sides with several strided convolutions (nn.Conv2d), without pooling, and "
            "have an activation between them. conv above makes such blocks",
            "end in a layer without a sigmoid, because the losses below apply one",
            "have numbers of channels that are multiples of conv_dim",
            "look at the whole image, and judge each image of a batch on its own (apart from batch "
            "norm in training mode)",
            "make all its layers in __init__, so that PyTorch finds their weights",
        )
    ),
    "Discriminator.__init__": _Task("make the layers, in sizes that are multiples of conv_dim."),
    "Discriminator.forward": _Task("return the logits (N, 1) of the images x."),
    "Generator": _Task(
        must=(
            "take latents (N, z_size), for any z_size, and return images "
            "(N, 3, image_size, image_size)",
            "double the sides with several transposed convolutions (nn.ConvTranspose2d), with "
            "activations in between. deconv above makes such blocks",
            "end in one torch.tanh, so that pixel values lie in [-1, 1]",
            "have numbers of channels that are multiples of conv_dim",
            "use all numbers of a latent, and draw each image from its own latent",
            "make all its layers in __init__, so that PyTorch finds their weights",
        )
    ),
    "Generator.__init__": _Task("make the layers, in sizes that are multiples of conv_dim."),
    "Generator.forward": _Task("return the images that the latents z stand for."),
    "weights_init_normal": _Task(
        "draw the weights of convolutional and linear layers from N(0, 0.02).",
        (
            "draw new weights, in place, for nn.Conv2d, nn.ConvTranspose2d and nn.Linear, from a "
            "normal distribution with mean 0 and standard deviation 0.02",
            "leave all other modules as they are, batch norm among them",
            "set biases to 0, or leave them as they are. A layer without a bias has None there",
            "set no seed, because each call must draw other numbers",
        ),
    ),
    "build_network": _Task(
        "return D, G with weights from weights_init_normal.",
        (
            "make a new Discriminator and a new Generator of the sizes asked for",
            "apply weights_init_normal to both of them",
            "return D and G, in this order",
        ),
    ),
    "real_loss": _Task(
        "return the mean cross entropy of the logits D_out with the label.",
        (
            "take the logits themselves, (N, 1) or (N,), without a sigmoid of your own",
            "give all N of them the label, and average over the batch",
            "return the loss as a tensor with a gradient: no .item(), no detach()",
        ),
    ),
    "fake_loss": _Task(
        "return the mean cross entropy of the logits D_out with the label 0.",
        ("do what real_loss does, with the label 0",),
    ),
    "train": _Task(
        "go through all batches of n_epochs epochs, take a step of D and of G in each, and return "
        "the losses.",
        (
            "keep an average of G's weights, G_ema, which begins as a copy of G in eval mode, and "
            "draw fixed_z, 1,000 latents, once, before the loops",
            "begin the run with D, G, G_ema, fixed_z and both optimizers, by these names, in a "
            "dictionary of parts: with run.start(n_epochs, parts, settings, train, "
            "discriminator_loss)",
            "train D and G in training mode",
            "loop over run.epochs() and, inside, over run.batches(celeba_train_loader, sample_z), "
            "which gives real images in [0, 1] and fresh latents",
            "for each batch call step, made fast by accelerator.capture(step, (D, G), "
            "(d_optimizer, g_optimizer)), with images and latents; hand both losses to "
            "run.end_batch; and move the average with update_ema(G_ema, G, run.n_steps)",
            "after each epoch renew G_ema's batch norm, update_bn(fixed_z.split(100), G_ema), and "
            "call run.end_epoch(G_ema, fixed_z, evaluator), which measures, saves and shows",
            "return run.losses, one pair (d_loss, g_loss) for each batch",
        ),
    ),
    "build_optimizers": _Task(
        "return two optimizers, the first for D and the second for G.",
        (
            "give the first optimizer exactly D's parameters, and the second exactly G's",
            "have the learning rates d_lr and g_lr, and (beta1, 0.999) as betas if they are Adam's",
        ),
    ),
}

_WELCOME = """**This is the starter notebook: {n} parts are left for you to write.** Look for "Your
part": the list there says what the part must do. Write your code in the place of `raise
NotImplementedError`, run the cell, then run the test that follows. Until a
part is written, the notebook stops there and tells you what is missing."""


def make_starter(nbgrader: bool = False) -> dict[str, Any]:
    """Make the starter notebook, in nbformat 4.5, without any outputs.

    Args:
        nbgrader: make the source version of an assignment for nbgrader instead. It has the
            solutions between the marks that nbgrader replaces, each test in a locked cell of its
            own that is worth a point, and nbgrader's metadata.

    Returns:
        The notebook as it is written to JSON.

    Raises:
        KeyError: if a graded part has no task.
    """
    made = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells: list[_Cell] = []
    n_parts = 0
    for cell in made["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
        if "graded" in cell["metadata"].get("tags", []):
            names, source = _emptied(source, nbgrader)
            n_parts += len(names)
            if nbgrader:
                cell["metadata"]["nbgrader"] = _grading("-".join(names), solution=True)
        cell["source"] = source
        tests = nbgrader and cell["cell_type"] == "code"
        cells += _tests_apart(cell) if tests else [cell]
    welcome = {"cell_type": "markdown", "id": "starter", "metadata": {}}
    cells.insert(1, welcome | {"source": _WELCOME.format(n=n_parts)})
    for cell in cells:
        cell["source"] = cell["source"].splitlines(keepends=True)
    return made | {"cells": cells}


def _grading(name: str, solution: bool) -> dict[str, Any]:
    """The metadata of nbgrader for a solution, or for a test that is worth a point."""
    grading = {"schema_version": 3, "grade_id": name, "solution": solution, "task": False}
    grading |= {"grade": not solution, "locked": not solution}
    return grading if solution else grading | {"points": 1}


def _tests_apart(cell: _Cell) -> Iterator[_Cell]:
    """Cut a cell at its calls of the rubric's tests, each of which gets a cell of its own."""
    lines = cell["source"].splitlines()
    pieces, first = [], 0  # lines and the name of a test, "" for what is none
    for statement in ast.parse(cell["source"]).body:
        match statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("tests"), name))):
                begin, end = statement.lineno - 1, statement.end_lineno
                pieces += [(lines[first:begin], ""), (lines[begin:end], name)]
                first = end
    n_others = 0
    for part, name in [*pieces, (lines[first:], "")]:
        if not (source := "\n".join(part).strip("\n")):
            continue
        if name:
            number, grading = f"-{name}", {"nbgrader": _grading(name, solution=False)}
        else:
            n_others += 1
            number, grading = f"-{n_others}" if n_others > 1 else "", {}
        changes = {"id": cell["id"] + number, "metadata": cell["metadata"] | grading}
        yield cell | changes | {"source": source}


def _emptied(source: str, keeps_solutions: bool) -> tuple[list[str], str]:
    """Take the bodies out of a graded cell; return its parts' names and the new source.

    With ``keeps_solutions`` the bodies stay, between the marks of nbgrader.
    """
    lines, edits, names = source.splitlines(), [], []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
            edits.append(_without_body(node, lines, node.name, keeps_solutions))
        elif isinstance(node, ast.ClassDef):
            names.append(node.name)
            told = _told(node.name, " " * node.body[0].col_offset)
            end = node.body[0].end_lineno  # of its docstring
            edits.append((end, end, ["", *told]))
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    name = f"{node.name}.{method.name}"
                    edits.append(_without_body(method, lines, name, keeps_solutions))
    for first, last, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[first:last] = new
    return names, "\n".join(lines)


def _without_body(
    node: ast.FunctionDef, lines: list[str], name: str, keeps_solution: bool
) -> tuple[int, int, list[str]]:
    """Say which lines of a cell are the body of a function, and what takes their place."""
    indent, kept = " " * node.body[0].col_offset, 0
    if ast.get_docstring(node) is not None:
        kept = 1
    if ast.unparse(node.body[kept]) == "super().__init__()":
        kept += 1
    first = node.body[kept - 1].end_lineno if kept else node.body[0].lineno - 1
    while not kept and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    new = _told(name, indent)
    if keeps_solution:
        new += _marked(lines[first : node.end_lineno], indent)
    else:
        new += _raise(f"{name} is not written yet: {TASKS[name].write}", indent)
    return first, node.end_lineno, new


def _told(name: str, indent: str) -> list[str]:
    """The comment that says what a part must do; no lines if there is nothing to say."""
    task, mark = TASKS[name], f"{indent}# "
    told = [f"{mark}Your part. It must"] if task.must else []
    for number, must in enumerate(task.must, 1):
        text = f"- {must}{'.' if number == len(task.must) else ';'}"
        told += textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark + "  ")
    return told


def _raise(sentence: str, indent: str) -> list[str]:
    """The lines that raise a NotImplementedError which says a sentence."""
    line = f'{indent}raise NotImplementedError("{sentence}")'
    if len(line) <= _WIDTH:
        return [line]
    pieces = textwrap.wrap(sentence, _WIDTH - len(indent) - 8)
    texts = [piece + " " for piece in pieces[:-1]] + pieces[-1:]
    texts = [f'{indent}    "{text}"' for text in texts]
    return [f"{indent}raise NotImplementedError(", *texts, f"{indent})"]


def _marked(lines: list[str], indent: str) -> list[str]:
    return [f"{indent}### BEGIN SOLUTION", *lines, f"{indent}### END SOLUTION"]
