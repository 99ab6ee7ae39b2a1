"""What the trials of a sweep have come to: results.jsonl, one row a trial, in the trials' order.

A row is read off the trial's own directory, so the table can be had again whatever happened to it:

    number, name, trial, point, flags     which trial it is; `trial` is its directory
    settings            values of all paths that any point of the sweep changes, where it has them
    status              finished, diverged, stopped, pruned or failed
    bad_step            diverged: the first update whose loss, or validation, was not finite
    error               failed: in one line; the rest is in the trial's error.json
    step, steps         updates made, and asked for
    seconds             of training
    best_validation, last_validation, test      mean nats per token (of real tasks, squared error)
    probe, first_probe, gradient                what its records come to (`lm_jax.sweeps.summaries`)

and all that the trial's result.json holds. Means over seeds have the standard error s / √n, where
s is the standard deviation of the n seeds, with n − 1 in the denominator.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_jax.files import as_json, write_whole
from lm_jax.settings import UserError, fields, fits, parsed, plain
from lm_jax.sweeps import failures
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.points import flags, plain_point
from lm_jax.sweeps.summaries import summaries
from lm_jax.training.journal import (
    Figure,
    Known,
    Number,
    Row,
    Split,
    Step,
    Whole,
    read_result,
    read_rows,
)

FILE = "results.jsonl"


class Probed(Known):
    """One look of a live probe."""

    horizon: dict[str, Figure] = {}
    spectral_radius: dict[str, list[Figure]] = {}
    lyapunov: Figure = None
    lag_norm: Figure = None


class TrialRow(Known):
    """What is read again of a row."""

    number: Whole
    name: str
    trial: str
    point: dict[str, Any]
    settings: dict[str, Any]
    status: str
    step: Step
    seconds: Number
    splits: dict[str, Split]
    best_validation: Figure
    last_validation: Figure
    test: Figure
    parameters: Whole | None = None
    tokens_per_second: Figure = None
    bad_step: Step | None = None
    probe: Probed | None = None
    first_probe: Probed | None = None
    gradient: dict[str, Figure] | None = None


class Results:
    """The table of a sweep that is being run.

    Attributes:
      rows: of the trials that have come to an end, of whatever kind.
    """

    def __init__(self, sweep_dir: Path, trials: Sequence[Trial]):
        """Reads what the trials have come to so far."""
        self._sweep_dir = sweep_dir
        self._swept = sorted({path for trial in trials for path in trial.point})
        self._rows = {trial.number: self._row(trial) for trial in trials}

    @property
    def rows(self) -> list[Row]:
        return [row for row in self._rows.values() if row is not None]

    def ended(self, trial: Trial) -> None:
        """Takes note that a trial has come to an end, and writes the table anew."""
        self._rows[trial.number] = self._row(trial)
        self.write()

    def write(self) -> None:
        """Writes the table, whole."""
        lines = "".join(as_json(row) + "\n" for row in self.rows)
        write_whole(self._sweep_dir / FILE, lines)

    def _row(self, trial: Trial) -> Row | None:
        """What a trial's directory says; None where it has not come to an end."""
        run_dir = self._sweep_dir / trial.directory
        failure, result = failures.read(run_dir), read_result(run_dir)
        if failure is None and result is None:
            return None
        rows = read_rows(run_dir / "metrics.jsonl")
        values = {path: plain(value) for path, value, _ in fields(trial.config)}
        own = {
            "number": trial.number,
            "name": trial.name,
            "trial": trial.directory,
            "point": _written(plain_point(trial.point)),
            "flags": flags(trial.point),
            "settings": _written({path: values[path] for path in self._swept if path in values}),
            "steps": trial.config.train.steps if trial.config.train else 0,
            **_validated(rows),
            **summaries(rows),
        }
        so_far = {
            "step": rows[-1]["step"] if rows else 0,
            "seconds": max((row.get("seconds", 0.0) for row in rows), default=0.0),
        }
        # A result.json says nothing of what the sweep knows better.
        return own | so_far | (_broken(failure) if failure else _ended(result or {})) | own


def _validated(rows: list[Row]) -> Row:
    nats = [
        row["nats"] for row in rows if row["kind"] == "evaluation" and row["split"] == "validation"
    ]
    known = [value for value in nats if value is not None]
    return {
        "best_validation": min(known, default=None),
        "last_validation": nats[-1] if nats else None,
    }


def _written(values: Row) -> Row:
    """Values as strict JSON has them: what is infinite is a word, which a config reads back."""
    return {path: "inf" if value == math.inf else value for path, value in values.items()}


def _ended(result: Row) -> Row:
    diverged = {"bad_step": result["step"]} if result["status"] == "diverged" else {}
    return {**result, **diverged, "test": result["splits"].get("test", {}).get("nats")}


def _broken(failure: Row) -> Row:
    return {"test": None, "splits": {}, "status": "failed", "error": failure["error"]}


def read_results(sweep_dir: str | Path) -> list[Row]:
    """The rows of a sweep's results.jsonl.

    Raises:
      UserError: there are none, or the file is damaged.
    """
    path = Path(sweep_dir) / FILE
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{sweep_dir} has no {FILE}: no trial of a sweep has ended there") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parsed(line, f"line {number}")
            if not fits(row, TrialRow):
                raise UserError(f"line {number} is no row of a trial")
        except UserError as error:
            raise UserError(f"{path} is damaged ({error}): `run.py sweep` writes it anew") from None
        rows.append(row)
    return rows


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The rows, best first: by best validation, those that diverged or failed last."""

    def place(row: Row) -> tuple[bool, float, int]:
        best = row["best_validation"]
        out = row["status"] in ("diverged", "failed")
        return out, math.inf if best is None else best, row["number"]

    return sorted(rows, key=place)


class Fold(NamedTuple):
    """Trials that differ in nothing but the seed."""

    settings: dict[str, Any]
    """What they have in common, of what the sweep changes."""
    name: str
    """The flags that say so."""
    best_validation: tuple[float, float]
    """Mean and standard error over the trials that finished; NaN where there are too few."""
    test: tuple[float, float]
    success: tuple[float, float]
    """Of tasks: the share of the test's sequences that are right."""
    finished: int
    """Trials that finished, which the means are over."""
    of: int
    """Trials in all."""


def folded(rows: Iterable[Row]) -> list[Fold]:
    """The rows with the seeds folded, best first; nothing where no two differ in the seed alone."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {path: value for path, value in row["settings"].items() if path != "seed"}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    if all(len(own) < 2 for own in groups.values()):
        return []
    found = [_fold(own) for own in groups.values()]

    def place(fold: Fold) -> tuple[bool, float]:
        mean = fold.best_validation[0]
        return math.isnan(mean), mean

    return sorted(found, key=place)


def _fold(rows: list[Row]) -> Fold:
    over = [row for row in rows if row["status"] == "finished"]
    rest = {path: value for path, value in rows[0]["settings"].items() if path != "seed"}
    point = {path: value for path, value in rows[0]["point"].items() if path != "seed"}

    def figure(read: Callable[[Row], float | None]) -> tuple[float, float]:
        values = [value for row in over if (value := read(row)) is not None]
        mean = float(np.mean(values)) if values else math.nan
        if len(values) < 2:
            return mean, math.nan
        return mean, float(np.std(values, ddof=1) / math.sqrt(len(values)))

    return Fold(
        settings=rest,
        name=flags(point) or "as configured",
        best_validation=figure(lambda row: row["best_validation"]),
        test=figure(lambda row: row["test"]),
        success=figure(lambda row: row["splits"].get("test", {}).get("success")),
        finished=len(over),
        of=len(rows),
    )
