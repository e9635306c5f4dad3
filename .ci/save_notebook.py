"""Prepare an executed notebook for committing: no photographs, nothing of its machine, small.

    python .ci/save_notebook.py runs/executed.ipynb dlnd_face_generation.ipynb

Run it on the output of ``jupyter nbconvert --to notebook --execute``.
"""

import base64
import io
import sys

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor
from PIL import Image


def smaller(png: str) -> str:
    """Compress a PNG (base64) again, without loss; its alpha channel goes if all is opaque.

    An animated one stays as it is.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.is_animated:
        return png
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(executed: str, target: str) -> None:
    """Write ``executed`` to ``target`` without the outputs of cells tagged ``real-photos``.

    Lines printed one after the other become one output, and pictures take less room.
    """
    notebook = nbformat.read(executed, as_version=4)
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        sys.exit(f"{executed} was run with settings of its own: run the notebook as it is.")
    counts = [cell.get("execution_count") for cell in notebook.cells]
    strip = TagRemovePreprocessor(enabled=True, remove_all_outputs_tags={"real-photos"})
    notebook, _ = strip.preprocess(notebook, {})
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    for cell, count in zip(notebook.cells, counts, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = count  # these cells did run: only their pictures are left out
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
        for key in ("execution", "papermill"):  # times of day
            cell.metadata.pop(key, None)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
