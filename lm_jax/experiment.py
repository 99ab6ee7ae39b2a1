"""Experiment files: a config and a sweep that a Python file gives, and what flags make of them.

An experiment file has a function config() -> Config and may have a sweep() -> dict from names to
points, or a list of points, each a dict from dotted paths to values.
"""

import runpy
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.config import Config, with_kind
from lm_jax.settings import UserError, alternatives, nearest
from lm_jax.training import flags

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


class Experiment(NamedTuple):
    """What an experiment file says."""

    config: Config
    points: dict[str, dict[str, Any]]
    """Of its sweep, by their names; none where it has no sweep()."""


def load_experiment(name: str) -> Experiment:
    """An experiment: a path to a Python file, or the name of one in experiments/."""
    path = Path(name)
    if path.suffix != ".py":
        path = EXPERIMENTS / f"{name}.py"
    if not path.is_file():
        known = sorted(file.stem for file in EXPERIMENTS.glob("*.py"))
        raise UserError(
            f"there is no experiment {name!r}{nearest(name, known)} "
            f"(experiments/ holds {', '.join(known)}; or give a path to a .py file)"
        )
    try:
        names = runpy.run_path(str(path))
        if "config" not in names:
            raise UserError(f"{path}: it has no function config()")
        config = names["config"]()
        points = named(names["sweep"]()) if "sweep" in names else {}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: config() gives a {type(config).__name__}, not a Config")
    return Experiment(config, points)


def named(points: Any) -> dict[str, dict[str, Any]]:
    """The points of a sweep by their names; those of a list are named by their flags."""
    listed = list(points.values() if isinstance(points, dict) else points)
    for point in listed:
        if not isinstance(point, dict):
            raise UserError(f"sweep() gives {point!r}, not a dict from dotted paths to values")
    if not isinstance(points, dict):
        points = {flags(point): point for point in listed}
        if len(points) < len(listed):
            raise UserError("sweep() gives the same point twice")
    return points


def with_kinds(config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """The config with the alternatives that flags such as `--model.kind window` ask for.

    `--model window` says the same.

    What flags there are beside them depends on it, so it must be known before any is parsed.

    Returns:
      the config, and the arguments without the flags for kinds, which the config has seen to.
    """
    rest, chosen = [], {}
    words = iter(arguments)
    for word in words:
        flag, equals, kind = word.partition("=")
        path = flag.removeprefix("--").removesuffix(".kind").replace("-", "_")
        known = alternatives(Config, path)
        if not known:
            rest.append(word)
            continue
        kind = kind if equals else next(words, "")
        if kind not in known:
            raise UserError(f"{flag}={kind}: choose from {', '.join(known)}{nearest(kind, known)}")
        chosen[path] = kind
    return with_kind(config, chosen), rest
