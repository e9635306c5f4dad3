"""One live line that says how far a task has got."""

from __future__ import annotations

import io
from typing import Any

from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm

from faces.processes import is_first_process


class Progress(tqdm):
    """A tqdm line that also reads well in a saved notebook: one line of text, updated in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.handle = None
        kwargs.setdefault("disable", not is_first_process())
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
