"""Gathers what the notebook needs; each name comes from the module of ``faces/`` on its subject.

Data: ``data`` gets the photographs, ``images`` decodes them and makes batches.
The notebook itself: ``notebook`` has its settings and the ideas that change it.
Training: ``speed`` makes networks and the step fast, on one device or (``parallel``) several;
``training`` surrounds the loop; ``checkpoints`` keeps a run on the disk.
Faces: ``generator`` draws them from trained weights, ``measures`` compares them with photographs,
``properties`` tells what they show, ``explorer`` has a slider for each property.
``show`` shows images, networks and a training; ``files`` knows where things lie and writes them
whole. Beside the lesson, ``starter`` makes an exercise of it, and ``grading`` grades other people's
solutions.
"""

# ruff: noqa: I001 (by subject)
from faces.data import get_data
from faces.images import FaceDataset, find_images, fingerprint, load_images, to_uint8
from faces.notebook import apply_idea, choose_settings
from faces.speed import Accelerator
from faces.training import Run
from faces.generator import generate_faces
from faces.measures import Evaluator, inception_distances, nearest_images
from faces import properties
from faces.explorer import explore
from faces.show import (
    animate_points,
    draw_points,
    show_animation,
    show_figure,
    show_images,
    show_network,
)

__all__ = [
    "get_data",
    "find_images",
    "load_images",
    "FaceDataset",
    "fingerprint",
    "to_uint8",
    "choose_settings",
    "apply_idea",
    "Accelerator",
    "Run",
    "generate_faces",
    "Evaluator",
    "nearest_images",
    "inception_distances",
    "properties",
    "explore",
    "show_images",
    "show_figure",
    "show_animation",
    "animate_points",
    "draw_points",
    "show_network",
]
