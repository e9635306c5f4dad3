"""What would interrupt the lesson; each name comes from a module of ``faces/``, by subject.

Data: ``download`` gets them, ``archive`` unpacks a zip, ``decoding`` opens one image,
``images`` makes one array of all, ``arrays`` makes batches of it.
Lesson: ``settings`` takes a preset's values, ``ideas`` changes the lesson by a file of ``ideas/``,
``notebook`` loads its definitions, ``drawing`` draws faces from trained weights.
Speed: ``processes`` spreads networks, ``speed`` and ``cuda_graph`` make them and their step fast.
Training: ``training`` surrounds the loop; ``folders``, ``stopping``, ``steps``, ``record``,
``checkpoints``, ``weights`` and ``watching`` each do a part of that.
Measures: ``measures`` judges faces, ``inception`` has FID and KID, ``skin`` tells light from dark.
Directions: ``directions`` measures properties of faces, ``explorer`` has a slider for each.
Pictures: ``pictures`` shows images, ``diagrams`` draws networks.
Below them: ``files`` knows where things lie and writes them whole, ``digests`` notices a change of
code, ``progress`` is the live line.
"""

# ruff: noqa: I001 (by subject)
# Data
from faces.download import get_data
from faces.images import find_images, load_images
from faces.arrays import ImageArray, content_of, to_uint8

# Lesson
from faces.settings import choose_settings
from faces.ideas import apply_idea
from faces.drawing import generate_faces

# Speed
from faces.processes import Processes
from faces.speed import Speed

# Training
from faces.folders import run_folder
from faces.training import TrainingRun
from faces.watching import loss_range

# Measures
from faces.measures import Judge, nearest_images
from faces.inception import inception_distances
from faces.skin import TYPOLOGY, balancing_weights, draw_balanced, typology_angles, typology_shares

# Directions
from faces.directions import MEASURES
from faces.explorer import explore

# Pictures
from faces.pictures import image_grid, save_figure, show_animation, show_images
from faces.diagrams import draw_game, draw_network, layer_table

__all__ = [
    "get_data",
    "find_images",
    "load_images",
    "ImageArray",
    "content_of",
    "to_uint8",
    "choose_settings",
    "apply_idea",
    "generate_faces",
    "Processes",
    "Speed",
    "run_folder",
    "TrainingRun",
    "loss_range",
    "Judge",
    "nearest_images",
    "inception_distances",
    "TYPOLOGY",
    "balancing_weights",
    "draw_balanced",
    "typology_angles",
    "typology_shares",
    "MEASURES",
    "explore",
    "image_grid",
    "save_figure",
    "show_animation",
    "show_images",
    "draw_game",
    "draw_network",
    "layer_table",
]
