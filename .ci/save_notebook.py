"""Prepare an executed notebook for committing: no photographs, nothing of the machine it ran on.

    python .ci/save_notebook.py runs/executed.ipynb dlnd_face_generation.ipynb

Run it on the output of ``jupyter nbconvert --to notebook --execute``.
"""

import sys

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor


def main(executed: str, target: str) -> None:
    """Write ``executed`` to ``target`` without the outputs of cells tagged ``real-photos``.

    Lines printed one after the other become one output.
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
        for key in ("execution", "papermill"):  # times of day
            cell.metadata.pop(key, None)
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
