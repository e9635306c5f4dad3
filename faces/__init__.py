"""The lesson's tools, a subject a module; ``helpers.py`` is the map of them."""

import os

# PyTorch's threads wait for one another many times a step: briefly awake, then asleep, so that they
# do not keep a core from the thread they wait for. Its OpenMP library (libgomp) reads this once,
# when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
