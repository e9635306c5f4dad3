"""Copy a run's generator in half precision, if its faces stay the same.

python .ci/ship_weights.py runs/faces/generator.safetensors assets/generator.safetensors
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np

from faces.generator import generate_faces, read_weights, write_weights


def main(source: str, target: str) -> None:
    """Write the copy, unless a value of 1,000 faces changes by more than one grey level.

    The copy says that ``faces.generator.DCGAN`` draws it, so it does not need the notebook.
    """
    state, metadata = read_weights(source)
    state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        copy = Path(folder) / "generator.safetensors"
        write_weights(copy, state, metadata | {"architecture": "DCGAN"})
        before, after = (generate_faces(1000, 0, path) for path in (source, copy))
        change = np.abs(before.astype(np.int16) - after)
        print(f"{(change > 0).mean():.2%} of values change, by up to {change.max()} grey levels")
        if change.max() > 1:
            sys.exit(f"{target} is left as it is.")
        copy.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
