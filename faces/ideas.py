"""A file of ideas/ changes a lesson: its names, its loader, its networks once they are made."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import DataLoader

from faces.digests import digest_of
from faces.files import HERE

IDEAS = HERE / "ideas"


def apply_idea(
    idea: str, lesson: str | ModuleType, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Change a lesson by files of ideas/, or by files of the learner's own.

    A file defines at least one of ``names(lesson)``, which gives names of the lesson another
    meaning, ``loader(plain)``, which returns the arguments of ``DataLoader`` that differ from those
    of the plain one, and ``networks(D, G)``, which changes the networks that ``build_network`` has
    made. Called again, it first takes back what it changed before.

    Args:
        idea: names of files in ideas/, or paths that end in ".py", joined by "+"; "" for none.
        lesson: the module to change, or its name.
        settings: names and values of the lesson's settings.

    Returns:
        The settings with the values that the lesson has now, and a digest of each file.

    Raises:
        ValueError: if there is no such file, or it defines none of the functions.
    """
    lesson = sys.modules[lesson] if isinstance(lesson, str) else lesson
    found = load_ideas(idea)
    change_lesson(lesson, found.values())
    for module in found.values():
        print("idea:", (module.__doc__ or module.__name__).strip().splitlines()[0])
    now = {name: getattr(lesson, name, value) for name, value in (settings or {}).items()}
    kept = {name: value for name, value in now.items() if not name.startswith("the code of ")}
    digests = {f"the code of {name}": digest for name, digest in idea_code(idea).items()}
    return kept | {"idea": "+".join(found)} | digests


def change_lesson(lesson: ModuleType, ideas: Iterable[ModuleType]) -> None:
    """Take back what was changed before, then change a lesson by loaded files.

    Without a loader, as where faces are drawn from trained weights, there is none to change.
    """
    names = vars(lesson)
    for name, (plain, changed) in names.pop("_changed_by_ideas", {}).items():
        if names.get(name) is changed:  # else its cell was run again
            names[name] = plain
    before = dict(names)
    for module in ideas:
        if hasattr(module, "names"):
            module.names(lesson)
        if hasattr(module, "loader") and "celeba_train_loader" in names:
            plain = lesson.celeba_train_loader
            lesson.celeba_train_loader = _loader_like(plain, **module.loader(plain))
        if hasattr(module, "networks"):
            lesson.build_network = _then(lesson.build_network, module.networks)
    changed = {name for name in before if names[name] is not before[name]}
    names["_changed_by_ideas"] = {name: (before[name], names[name]) for name in changed}


def load_ideas(idea: str) -> dict[str, ModuleType]:
    """Import the files of ideas, given as for ``apply_idea``, which says what is refused."""
    return {part: _load(path) for part, path in find_ideas(idea).items()}


def idea_code(idea: str) -> dict[str, str]:
    """Digests of the files of ideas, given as for ``apply_idea``, and of those that they load."""
    files = {path for module in load_ideas(idea).values() for path in _files_of(module)}
    return {path.name: digest_of(path.read_text(encoding="utf-8")) for path in sorted(files)}


def find_ideas(idea: str) -> dict[str, Path]:
    """Find the files of ideas, given as for ``apply_idea``; ``ValueError`` if one is not there."""
    found = {}
    for part in filter(None, map(str.strip, str(idea).split("+"))):
        is_own = part.endswith(".py")
        found[part] = path = Path(part).expanduser() if is_own else IDEAS / f"{part}.py"
        if not path.is_file() or not (is_own or part.isidentifier()):
            there = ", ".join(sorted(p.stem for p in IDEAS.glob("*.py")))
            raise ValueError(
                f"There is no idea {part!r}: set idea to some of {there}, joined by '+', or to the "
                "path of a file of your own that ends in '.py'."
            )
    return found


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"idea_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not any(hasattr(module, name) for name in ("names", "loader", "networks")):
        raise ValueError(
            f"{path} must define at least one of names(lesson), loader(plain) and networks(D, G)."
        )
    return module


def _files_of(module: ModuleType) -> set[Path]:
    """The file of an idea, and those of the ideas that it has loaded itself."""
    modules = [module, *(v for v in vars(module).values() if isinstance(v, ModuleType))]
    files = [Path(each.__file__) for each in modules if getattr(each, "__file__", None)]
    return {files[0], *(path for path in files if path.parent == IDEAS)}


def _loader_like(plain: DataLoader, **changes: Any) -> DataLoader:
    names = ("dataset", "batch_size", "sampler", "drop_last", "generator", "collate_fn")
    return DataLoader(**{name: getattr(plain, name) for name in names} | changes)


def _then(build_network: Callable[..., Any], change: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(build_network)
    def changed(*sizes: int, **named_sizes: int) -> Any:
        networks = build_network(*sizes, **named_sizes)
        change(*networks)
        return networks

    return changed
