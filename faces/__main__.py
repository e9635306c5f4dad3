"""Faces from the command line: ``python -m faces``, or ``python /path/to/faces`` from elsewhere."""

# ruff: noqa: E402 (a folder that is run is on the path instead of the one that it lies in)
from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from faces import files, grading
from faces.data import ARCHIVE_URL
from faces.files import RECORD, WEIGHTS, atomic_write, build_once, printable
from faces.generator import generate_faces, walk
from faces.images import array_folder
from faces.measures import INCEPTION_URL
from faces.parallel import keep_printing
from faces.show import image_grid, show_animation, write_images
from faces.starter import make_starter

COMMAND = "python -m faces"
# Files in the cache, and of decoded images in "arrays" or a folder's ".NAME-arrays".
DOWNLOADS = {Path(url).name for url in (ARCHIVE_URL, INCEPTION_URL)}
HASHES = r"\.?[0-9a-f]{12}(-[0-9a-f]{12}){0,2}"
ARRAY = re.compile(HASHES + r"(-unfinished-[0-9a-f]{8})?\.(npy|lock|lock\.soft)")
SIDE = 64  # pixels of a walk's frames, of which the GIF has twice as many


def main(arguments: list[str] | None = None) -> int:
    """Do what a command line says; return the exit code. A wrong one raises ``SystemExit``."""
    keep_printing()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["grade"]:  # it has options of its own
        return grading.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (OSError, ValueError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    return 0


def draw(options: argparse.Namespace) -> None:
    """Write faces: a grid, an array or a folder of images, by the ending of ``out``."""
    out = _free(options.out, ".png", ".npy", "")
    drawn = (options.n, options.seed, options.weights, options.balanced, options.size)
    images = generate_faces(*drawn)
    if not out.suffix:
        build_once(out, lambda temporary: write_images(images, temporary / "faces"))
    else:
        with atomic_write(out) as temporary:
            if out.suffix == ".npy":
                np.save(temporary, images)
            else:
                grid = image_grid(images, math.ceil(math.sqrt(len(images))))
                Image.fromarray(grid).save(temporary)
    print(f"{len(images):,} faces: {out}")


def make_walk(options: argparse.Namespace) -> None:
    """Write a GIF of the way from face to face."""
    out = _free(options.out, ".gif")
    if len(options.seeds) < 2:
        raise ValueError("A walk needs at least two seeds, such as --seeds 1 2.")
    frames = [Image.fromarray(face) for face in walk(options.seeds, options.weights or WEIGHTS)]
    larger = [np.asarray(f.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for f in frames]
    show_animation(np.stack(larger), out, milliseconds=60)
    print(f"{len(frames)} frames: {out}")


def starter(options: argparse.Namespace) -> None:
    """Write the starter notebook, or the source version of an assignment for nbgrader."""
    out = _free(options.out, ".ipynb")
    notebook = make_starter(options.nbgrader)
    with atomic_write(out) as temporary:
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    if options.nbgrader:
        print(f"The source version for nbgrader, with the solutions: {out}")
    else:
        print(f"The starter notebook: {out}")
    if out.resolve().parent != files.HERE:
        print(f"It needs {files.HERE} in PYTHONPATH, or the project's files beside it.")


def cache(options: argparse.Namespace) -> None:
    """List what is kept for later runs, and how large it is; or delete it, and name the rest."""
    kept = sorted(files.CACHE.iterdir()) if files.CACHE.is_dir() else []
    kept += [folder for data in options.data if (folder := array_folder(data)).is_dir()]
    total, others = 0.0, []
    for path in kept:
        within = [path] if path.is_symlink() else [path, *path.rglob("*")]
        size = sum(p.lstat().st_size for p in within if not p.is_dir()) / 1e6
        if options.delete and (left := _delete(path)):
            others += left
            continue
        total += size
        print(f"{size:10,.1f} MB  {printable(str(path))}")
    print(f"{total:10,.1f} MB  {'deleted' if options.delete else 'in all'}")
    for path in others:
        print(f"Not deleted, since it is a link, behind one, or not ours: {printable(str(path))}")


def _delete(path: Path) -> list[Path]:
    """Delete what was made here, and follow no links; return what else is there."""
    if path.is_symlink() or (path.parent == files.CACHE and files.CACHE.is_symlink()):
        return [path]
    if path.is_file() and (path.name in DOWNLOADS or ARRAY.fullmatch(path.name)):
        path.unlink()
    elif (path / RECORD).is_file() or path.name.startswith(".unfinished-faces"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif path.is_dir() and re.fullmatch(r"arrays|\..*-arrays", path.name):
        if left := [other for child in sorted(path.iterdir()) for other in _delete(child)]:
            return left
        path.rmdir()
    else:
        return [path]
    return []


def _free(out: Path, *endings: str) -> Path:
    """Check that a file or folder can be made there, before long work."""
    if out.suffix not in endings:
        known = " or ".join(ending or "none (a folder)" for ending in endings)
        raise ValueError(f"{out} must have the ending {known}.")
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} already exists. Delete it, or choose another name.")
    if not out.parent.is_dir():
        raise ValueError(f"There is no folder {out.parent}. Make it, or choose another folder.")
    return out


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    def add(name: str, command: object, text: str, example: str) -> argparse.ArgumentParser:
        examples.append(f"  {COMMAND} {name} {example}")
        added = commands.add_parser(
            name, help=text, description=f"{text}.", epilog=f"example:\n{examples[-1]}", **style
        )
        added.set_defaults(command=command)
        return added

    examples: list[str] = []
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(COMMAND, description="Faces from trained weights.", **style)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "draw faces: a .png of all, a .npy, or a folder of images"
    drawing = add("draw", draw, text, "--n 64 --seed 1 --out faces.png")
    drawing.add_argument("--n", type=int, default=64, help="how many (64)")
    drawing.add_argument("--seed", type=_seed, default=1, help="the same gives the same faces (1)")
    text = "as many of each class of lightness"
    drawing.add_argument("--balanced", action="store_true", help=text)
    text = "walk from face to face: a .gif"
    text = "pixels of a side; the shipped weights then draw 64x64, which is made smaller"
    drawing.add_argument("--size", type=int, help=text)
    walking = add("walk", make_walk, text, "--seeds 1 2 3 --out walk.gif")
    walking.add_argument("--seeds", type=_seed, nargs="+", required=True, help="of the faces")
    for subparser in (drawing, walking):
        text = "a run's generator.safetensors (a shipped one)"
        subparser.add_argument("--weights", type=Path, help=text)
        text = "what to write; never over anything"
        subparser.add_argument("--out", type=Path, required=True, help=text)
    text = "write the starter notebook: the graded parts are left to write"
    starting = add("starter", starter, text, "mine.ipynb")
    text = "the source version of an assignment for nbgrader, with the solutions"
    starting.add_argument("--nbgrader", action="store_true", help=text)
    text = "what to write; never over anything"
    starting.add_argument("out", type=Path, metavar="NOTEBOOK", help=text)
    text = "list what is kept for later runs: downloads, unpacked zips, decoded images"
    caching = add("cache", cache, text, "processed_celeba_small")
    text = "folders of images, for the decoded images beside them"
    caching.add_argument("data", type=Path, nargs="*", metavar="FOLDER", help=text)
    caching.add_argument("--delete", action="store_true", help="delete what is listed and ours")
    text = "grade solutions of the project: notebooks, scripts, a whole class"
    add("grade", None, text, "class/")
    parser.epilog = "\n".join(["examples:", *examples])
    return parser


if __name__ == "__main__":
    sys.exit(main())
