"""Prepare an executed notebook for committing: no photographs, nothing of its machine, small.

    python .ci/save_notebook.py runs/executed.ipynb dlnd_face_generation.ipynb

Run it on the output of ``jupyter nbconvert --to notebook --execute``.
"""

import base64
import io
import sys

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image, ImageDraw, ImageFont

LARGE = 200_000  # characters of a PNG in base64
INSTEAD = "Photographs may not be published. Run this cell to see them."


def encode(image: Image.Image) -> str:
    """Encode an image as a PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def smaller(png: str) -> str:
    """Compress a PNG (base64) again; its alpha channel goes if all is opaque.

    A large one, as of many faces, gets a palette of the 256 colours that suit it best. An animated
    one stays as it is, since it has a palette.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.is_animated:
        return png
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if len(png) > LARGE:
        image = image.convert("RGB").quantize(256, kmeans=4)
    return encode(image)


def placeholder() -> Image.Image:
    """Draw a light grey box of 1000x200 pixels that says ``INSTEAD``."""
    image = Image.new("L", (500, 100), 225)
    font = ImageFont.load_default_imagefont()  # its dots are the same everywhere
    _, _, width, height = font.getbbox(INSTEAD)
    corner = (image.width - width) // 2, (image.height - height) // 2
    ImageDraw.Draw(image).text(corner, INSTEAD, fill=60, font=font)
    return image.resize((1000, 200), Image.Resampling.NEAREST)


def without_photographs(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs of a cell that shows photographs: what it printed, and a grey box."""
    printed = [output for output in cell.outputs if output.output_type == "stream"]
    data = {"image/png": encode(placeholder()), "text/plain": ""}
    metadata = {"placeholder": True}
    return [*printed, nbformat.v4.new_output("display_data", data, metadata=metadata)]


def main(executed: str, target: str) -> None:
    """Write ``executed`` to ``target``, with a grey box in the place of all photographs.

    Those are in cells tagged ``real-photos``. Each picture gets the text in its place, ``alt``, of
    its cell's metadata, unless it has its own. Lines printed one after the other become one output,
    and pictures take less room.
    """
    notebook = nbformat.read(executed, as_version=4)
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        sys.exit(f"{executed} was run with settings of its own: run the notebook as it is.")
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    for cell in notebook.cells:
        if "real-photos" in cell.metadata.get("tags", []):
            cell.outputs = without_photographs(cell)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
                about = output.metadata.setdefault("image/png", nbformat.NotebookNode())
                if "alt" not in about and "alt" in cell.metadata:
                    about.alt = output.data["text/plain"] = cell.metadata.alt
        for key in ("execution", "papermill"):  # times of day
            cell.metadata.pop(key, None)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
