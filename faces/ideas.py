"""A file of ideas/ changes a lesson: its names, its networks once they are made, or both."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from faces.digests import digest_of
from faces.files import HERE

IDEAS = HERE / "ideas"


def apply_idea(
    idea: str, lesson: str | ModuleType, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Change a lesson by files of ideas/, or by files of the learner's own.

    A file defines ``names(lesson)``, which gives names of the lesson another meaning,
    ``networks(D, G)``, which changes the networks that ``build_network`` has made, or both.
    Called again, it first takes back what it changed before.

    Args:
        idea: names of files in ideas/, or paths that end in ".py", joined by "+"; "" for none.
        lesson: the module to change, or its name.
        settings: names and values of the lesson's settings.

    Returns:
        The settings with the values that the lesson has now, and a digest of each file.

    Raises:
        ValueError: if there is no such file, or it defines neither function.
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
    """Take back what was changed before, then change a lesson by loaded files."""
    names = vars(lesson)
    for name, (plain, changed) in names.pop("_changed_by_ideas", {}).items():
        if names.get(name) is changed:  # else its cell was run again
            names[name] = plain
    before = dict(names)
    for module in ideas:
        if hasattr(module, "names"):
            module.names(lesson)
        if hasattr(module, "networks"):
            lesson.build_network = _then(lesson.build_network, module.networks)
    changed = {name for name in before if names[name] is not before[name]}
    names["_changed_by_ideas"] = {name: (before[name], names[name]) for name in changed}


def load_ideas(idea: str) -> dict[str, ModuleType]:
    """Import the files of ideas, given as for ``apply_idea``.

    Raises:
        ValueError: as there.
    """
    return {part: _load(path) for part, path in find_ideas(idea).items()}


def idea_code(idea: str) -> dict[str, str]:
    """Digests of the files of ideas, given as for ``apply_idea``, by the files' names."""
    return {p.name: digest_of(p.read_text(encoding="utf-8")) for p in find_ideas(idea).values()}


def find_ideas(idea: str) -> dict[str, Path]:
    """Find the files of ideas, given as for ``apply_idea``.

    Raises:
        ValueError: if there is no such file.
    """
    return {part.strip(): find_idea(part.strip()) for part in str(idea).split("+") if part.strip()}


def find_idea(idea: str) -> Path:
    """Return the file of an idea: a name in ideas/, or a path that ends in ".py".

    Raises:
        ValueError: if there is no such file.
    """
    is_own = idea.endswith(".py")
    path = Path(idea).expanduser() if is_own else IDEAS / f"{idea}.py"
    if not path.is_file() or not (is_own or idea.isidentifier()):
        there = ", ".join(sorted(p.stem for p in IDEAS.glob("*.py")))
        raise ValueError(
            f"There is no idea {idea!r}: set idea to some of {there}, joined by '+', or to the "
            "path of a file of your own that ends in '.py'."
        )
    return path


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"idea_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (hasattr(module, "names") or hasattr(module, "networks")):
        raise ValueError(f"{path} must define names(lesson), networks(D, G), or both.")
    return module


def _then(
    build_network: Callable[..., tuple[nn.Module, nn.Module]],
    change: Callable[[nn.Module, nn.Module], None],
) -> Callable[..., tuple[nn.Module, nn.Module]]:
    @functools.wraps(build_network)
    def changed(*sizes: int, **named_sizes: int) -> tuple[nn.Module, nn.Module]:
        D, G = build_network(*sizes, **named_sizes)
        change(D, G)
        return D, G

    return changed
