"""A sweep: one run after another, each in a directory of its own, and a table over them.

    sweep.json            the points, and the digests of their configs
    trials/NAME/          a run directory a point
    results.jsonl         one row a finished trial, in the order of the points

A point is a mapping from dotted paths to values, {"model.cell": "lstm"}; what it is a point of is a
config. So each point is also a command line (`flags`), and killing a sweep costs nothing: called
again, it passes over the trials that are done and goes on with the one that was not.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_jax.config import Config, override, resolve
from lm_jax.settings import UserError, digest
from lm_jax.training import directory, journal
from lm_jax.training.loop import Watch, train

Point = Mapping[str, Any]


def configs(config: Config, points: Sequence[Point]) -> list[Config]:
    """The config of every point.

    Raises:
      UserError: there are no points, two are the same run, or one does not fit; names its number,
        counted from 1.
    """
    if not points:
        raise UserError("the sweep has no points")
    found: list[Config] = []
    for number, point in enumerate(points, 1):
        try:
            changed = resolve(override(config, point))
        except UserError as error:
            raise UserError(f"point {number} of the sweep: {error}") from None
        if changed in found:
            first = found.index(changed) + 1
            raise UserError(f"points {first} and {number} of the sweep are the same run")
        found.append(changed)
    return found


def flags(point: Point) -> str:
    """A point as flags of a command line."""
    words = []
    for path, value in point.items():
        flag = path.replace("_", "-")
        if isinstance(value, bool):
            *parents, name = flag.split(".")
            words.append("--" + ".".join([*parents, name if value else f"no-{name}"]))
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{flag}", *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)


def sweep(
    config: Config,
    points: Sequence[Point],
    sweep_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Callable[[int], Watch] | None = None,
) -> list[journal.Row]:
    """Trains a model at every point, or goes on where an earlier call stopped.

    Args:
      config: what the points change.
      points: what each trial changes.
      sweep_dir: where the sweep lives; made if it does not exist.
      text: with `data.source="memory"`, see `lm_jax.train`.
      watch: number of a trial, from 0 -> what `lm_jax.train` tells of it.

    Returns:
      the rows of results.jsonl, in the order of the points.

    Raises:
      UserError: a point, the text or the directory will not do; nothing has been changed.
    """
    sweep_dir, chosen = Path(sweep_dir), configs(config, points)
    plan = {"points": [dict(point) for point in points], "runs": [digest(run) for run in chosen]}
    rows: list[journal.Row] = []
    with directory.claimed(sweep_dir, "sweep", "sweep.json"):
        _settle(sweep_dir, json.loads(json.dumps(plan)))
        for number, (point, changed) in enumerate(zip(points, chosen, strict=True)):
            trial = f"trials/{number + 1:03d}-{digest(changed)}"
            told = watch(number) if watch else None
            result = train(changed, sweep_dir / trial, text=text, watch=told).result
            rows.append({"trial": trial, "point": dict(point), **(result or {})})
            lines = "".join(journal.as_json(row) + "\n" for row in rows)
            journal.write_whole(sweep_dir / "results.jsonl", lines)
    return rows


def _settle(sweep_dir: Path, plan: dict[str, Any]) -> None:
    """Writes down what a sweep is, or sees that it is the sweep that was written down."""
    path = sweep_dir / "sweep.json"
    if not path.exists():
        journal.write_whole(path, json.dumps(plan, indent=1) + "\n")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if known != plan:
        raise UserError(f"{sweep_dir} holds another sweep: its points or settings are others")
