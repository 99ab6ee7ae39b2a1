"""Experiment files: Python files that give a config and a sweep.

An experiment file has a function config() -> Config. A second function, sweep(), is optional and
returns the points of a sweep (`lm_jax.sweeps.points`), as a dict by name or as a list. A point is a
dict from dotted paths to values.
"""

import ast
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.config import Config
from lm_jax.files import reading
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest
from lm_jax.sweeps import Drawn, flags

# An installed wheel holds the experiments inside the package, a clone beside the package.
EXPERIMENTS = Path(__file__).parent / "experiments"
if not EXPERIMENTS.is_dir():
    EXPERIMENTS = Path(__file__).parents[1] / "experiments"


class Experiment(NamedTuple):
    """Config and sweep of an experiment file."""

    config: Config
    points: dict[str, dict[str, Any]] | None
    """Points of the sweep, by name; None without a sweep()."""
    drawn: Drawn | None = None
    """Random points with the space of the draw, if sweep() returns the result of `draw`."""
    about: str = ""
    """Docstring of the file."""


def load_experiment(name: str) -> Experiment:
    """Load an experiment.

    Args:
      name: path of a Python file, or name of a file in experiments/ or experiments/published/
        without .py.

    Raises:
      UserError: the file is missing, raises an error, or gives no config or no valid sweep.
    """
    path = Path(name)
    if path.suffix != ".py":
        known = _files()
        if name not in known:
            raise UserError(
                f"there is no experiment {name!r}{nearest(name, known)} "
                f"(there are {', '.join(known)}; or give a path to a .py file)"
            )
        path = known[name]
    with reading(path, name):
        pass  # a missing or unreadable file is the user's mistake, not an error of the experiment
    try:
        names = runpy.run_path(str(path))
        if "config" not in names:
            raise UserError(f"{path}: it has no function config()")
        config = names["config"]()
        said = names["sweep"]() if "sweep" in names else None
        points = named(said) if "sweep" in names else None
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: {type(error).__name__}: {said}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: config() gives a {type(config).__name__}, not a Config")
    drawn = said if isinstance(said, Drawn) else None
    return Experiment(config, points, drawn, names.get("__doc__") or "")


def notes(about: str) -> dict[str, str]:
    """The paragraphs of an experiment's docstring by name, such as `Claim` and `Time`, and `title`.

    A paragraph begins with its name and two blanks or more.
    """
    title, _, rest = about.strip().partition("\n")
    parts = re.findall(r"^(\w+) {2,}(.*?)(?=^\w|\Z)", rest, re.MULTILINE | re.DOTALL)
    return {"title": title, **{name: " ".join(text.split()) for name, text in parts}}


def experiments() -> dict[str, str]:
    """The docstring of each experiment that lm_jax brings along, by name; no file is run."""
    trees = {name: ast.parse(file.read_text("utf-8")) for name, file in _files().items()}
    return {name: ast.get_docstring(tree) or "" for name, tree in trees.items()}


def _files() -> dict[str, Path]:
    """The files in experiments/, and then those in experiments/published/, by name."""
    found = [path for place in ("*.py", "published/*.py") for path in EXPERIMENTS.glob(place)]
    return {path.stem: path for path in sorted(found, key=lambda path: (path.parent, path.stem))}


def named(points: Any) -> dict[str, dict[str, Any]]:
    """Return the points of a sweep by name; a list's points are named after their flags.

    Raises:
      UserError: a point is no dict from dotted paths to values, or a list repeats a point.
    """
    listed = list(points.values() if isinstance(points, dict) else points)
    for point in listed:
        if not isinstance(point, dict) or not all(isinstance(path, str) for path in point):
            raise UserError(f"sweep() gives {point!r}, not a dict from dotted paths to values")
    if isinstance(points, dict):
        return {str(name): point for name, point in points.items()}
    found: dict[str, dict[str, Any]] = {}
    for number, point in enumerate(listed, 1):
        name = flags(point) or "as configured"
        if name in found:
            first = list(found).index(name) + 1
            raise UserError(f"sweep() gives the same point twice, as {first} and {number}: {name}")
        found[name] = point
    return found
