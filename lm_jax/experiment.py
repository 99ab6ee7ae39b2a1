"""Experiment files: Python files that give a config and a sweep; flags change the config.

An experiment file has a function config() -> Config. A second function, sweep(), is optional and
returns the points of a sweep (`lm_jax.sweeps.points`), as a dict by name or as a list. A point is a
dict from dotted paths to values.
"""

import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.commandline import Flags
from lm_jax.config import Config, with_kind
from lm_jax.settings import UserError, alternatives, fields, nearest
from lm_jax.sweeps import Drawn, Point, flags

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


class Experiment(NamedTuple):
    """Config and sweep of an experiment file."""

    config: Config
    points: dict[str, dict[str, Any]] | None
    """Points of the sweep, by name; None without a sweep()."""
    drawn: Drawn | None = None
    """Random points with the space of the draw, if sweep() returns the result of `draw`."""


def load_experiment(name: str) -> Experiment:
    """Load an experiment.

    Args:
      name: path of a Python file, or name of a file in experiments/ without .py.

    Raises:
      UserError: the file is missing, raises an error, or gives no config or no valid sweep.
    """
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
        said = names["sweep"]() if "sweep" in names else None
        points = named(said) if "sweep" in names else None
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: {type(error).__name__}: {said}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: config() gives a {type(config).__name__}, not a Config")
    return Experiment(config, points, said if isinstance(said, Drawn) else None)


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


def with_kinds(config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Apply the flags for kinds, `--model.kind window` or `--model window`, to a config.

    The kinds determine the other flags, and must therefore be known before the parser runs.

    Returns:
      the config, and the arguments without the flags for kinds.

    Raises:
      UserError: a kind is unknown.
    """
    rest, chosen = [], {}
    words = iter(arguments)
    for word in words:
        flag, equals, kind = word.partition("=")
        path = flag.removeprefix("--").removesuffix(".kind").replace("-", "_")
        known = alternatives(Config, path) if flag.startswith("--") else {}
        if not known:
            rest.append(word)
            continue
        kind = kind if equals else next(words, "")
        if said := Flags("train", {}, config).refused(flag, f"{path}.kind", kind):
            raise UserError(said)
        chosen[path] = kind
    return with_kind(config, chosen), rest


def command_line(given: Sequence[str], config: Config, point: Point) -> str:
    """Return the command line that trains a single point of a sweep.

    Args:
      given: the words after `run.py sweep`.
      config: the experiment's config after these words.
      point: the trial's changes to the config. If a change selects another kind, flags for the old
        kind's fields are left out.
    """
    there = {path: value for path, value, _ in fields(config)}
    gone = [
        path.removesuffix(".kind")
        for path, value in point.items()
        if path.endswith(".kind") and there.get(path) != value
    ]
    if "model" in gone and point["model.kind"] == "ngram":
        gone.append("train")
    kept, keeps = [], True
    for word in of_a_trial(given):
        if word.startswith("--"):
            path = word[2:].partition("=")[0].replace("-", "_") + "."
            keeps = not any(path.startswith(place + ".") for place in gone)
        if keeps:
            kept.append(word)
    return f"{shlex.join(['python', 'run.py', 'train', *kept])} {flags(point)}".rstrip()


SWEEPS_OWN = (
    "--run-dir",
    "--executor",
    "--workers",
    "--cores",
    "--lanes",
    "--retries",
    "--halving-first",
    "--halving-factor",
    "--suggest",
    "--batch",
)
"""Flags of `run.py sweep` that concern the sweep and not its trials; each flag has a value."""


def of_a_trial(words: Sequence[str]) -> list[str]:
    """Return the words of a sweep's command line that apply to each trial."""
    kept, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0].replace("_", "-") not in (*SWEEPS_OWN, "--dry-run"):
            kept.append(word)
        skip = word.replace("_", "-") in SWEEPS_OWN
    return kept


def in_one_line(box: str) -> str:
    """Return the first sentence of the flag parser's framed message, as a single line."""
    rule = re.compile(r"\W*[─-]{5,}\W*")  # some terminals draw the frame in ASCII
    lines = ["" if rule.fullmatch(line) else line.strip("│| ") for line in box.splitlines()[1:]]
    message = " ".join("\n".join(lines).split("\n\n")[0].split())
    # A refused setting: `Error parsing (…).config.model: hidden_size=-3: …`.
    refused = re.match(r"Error parsing \S*?config\.?(\S*): (.*)", message)
    if refused:
        where, message = refused.groups()
        field = re.match(r"(\w+)=", message)
        if field:
            flag = "--" + f"{where}.{field[1]}".strip(".").replace("_", "-")
            message = flag + message[field.end() - 1 :]
    return message
