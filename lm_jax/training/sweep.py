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
from lm_jax.settings import UserError, digest, plain
from lm_jax.training import directory, journal
from lm_jax.training.journal import Watch
from lm_jax.training.loop import prepared, train

Point = Mapping[str, Any]


def sweep_configs(config: Config, points: Mapping[str, Point]) -> dict[str, Config]:
    """The config of every point, by the point's name.

    Raises:
      UserError: there are no points, two are the same run, or one does not fit; names the point.
    """
    if not points:
        raise UserError("the sweep has no points")
    found: dict[str, Config] = {}
    for name, point in points.items():
        try:
            changed = resolve(override(config, point))
        except UserError as error:
            raise UserError(f"point {name!r} of the sweep: {error}") from None
        for other, run in found.items():
            if run == changed:
                raise UserError(f"points {other!r} and {name!r} of the sweep are the same run")
        found[name] = changed
    return found


def flags(point: Point) -> str:
    """A point as flags of a command line."""
    words = []
    for path, value in _plain(point).items():
        flag = path.replace("_", "-")
        if isinstance(value, bool):
            *parents, name = flag.split(".")
            words.append("--" + ".".join([*parents, name if value else f"no-{name}"]))
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)


def sweep(
    config: Config,
    points: Mapping[str, Point],
    sweep_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Callable[[str], Watch] | None = None,
) -> list[journal.Row]:
    """Trains a model at every point, or goes on where an earlier call stopped.

    Args:
      config: what the points change.
      points: what each trial changes, by the trial's name.
      sweep_dir: where the sweep lives; made if it does not exist.
      text: with `data.source="memory"`, see `lm_jax.train`.
      watch: called with a trial's name as it begins, for what `lm_jax.train` is to tell of it.

    Returns:
      the rows of results.jsonl, in the order of the points: `name`, `trial`, `point`, `flags` and
      what the trial's result.json holds.

    Raises:
      UserError: a point, the text or the directory will not do; nothing has been changed.
    """
    sweep_dir, chosen = Path(sweep_dir), sweep_configs(config, points)
    for name, run in chosen.items():
        try:
            prepared(run, text)
        except UserError as error:
            raise UserError(f"point {name!r} of the sweep: {error}") from None
    plan = {
        name: {"point": _plain(points[name]), "digest": digest(run)} for name, run in chosen.items()
    }
    rows: list[journal.Row] = []
    with directory.claimed(sweep_dir, "sweep", "sweep.json"):
        _settle(sweep_dir, json.loads(json.dumps(plan)))
        for number, (name, changed) in enumerate(chosen.items(), 1):
            trial = f"trials/{number:03d}-{digest(changed)}"
            told = watch(name) if watch else None
            result = train(changed, sweep_dir / trial, text=text, watch=told).result
            point = {"point": _plain(points[name]), "flags": flags(points[name])}
            rows.append({"name": name, "trial": trial, **point, **(result or {})})
            lines = "".join(journal.as_json(row) + "\n" for row in rows)
            journal.write_whole(sweep_dir / "results.jsonl", lines)
    return rows


def _plain(point: Point) -> dict[str, Any]:
    return {path: plain(value) for path, value in point.items()}


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
