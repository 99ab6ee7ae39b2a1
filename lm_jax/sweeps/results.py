"""Results of a sweep: results.jsonl, with a row per trial, in the trials' order.

Each row is computed from the trial's run directory, and a lost table can be written again:

    number, name, trial, point, flags     identity of the trial; `trial` is the run directory
    settings            values of all paths changed by any point, if the trial's config has the path
    status              finished, diverged, stopped, pruned or failed
    bad_step            if diverged: the update at which the run diverged
    error               if failed: the error in one line; error.json in the run directory has more
    step, steps         updates made, and updates requested
    seconds             training time
    best_validation, last_validation, test      mean nats per token (regression: squared error)
    probe, first_probe, gradient                summaries of the records, `lm_jax.sweeps.summaries`

and all entries of the trial's result.json. Means over seeds have the standard error s / √n, with s
the standard deviation of the n seeds, computed with n − 1 in the denominator.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_jax.fields import fields
from lm_jax.files import Row, read_row, write_rows
from lm_jax.settings import UserError, fits, plain
from lm_jax.sweeps import failures
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.points import flags, plain_point
from lm_jax.sweeps.summaries import summaries
from lm_jax.training.journal import (
    Known,
    Number,
    NumberOrNull,
    SplitMetrics,
    StepNumber,
    Whole,
    read_result,
    read_rows,
    validations,
)

FILE = "results.jsonl"


class ProbeSummary(Known):
    """Results of a live probe at an update."""

    horizon: dict[str, NumberOrNull] = {}
    spectral_radius: dict[str, list[NumberOrNull]] = {}
    lyapunov: NumberOrNull = None
    lag_norm: NumberOrNull = None


class TrialRow(Known):
    """Fields of a row of results.jsonl, checked on reading."""

    number: Whole
    name: str
    trial: str
    point: dict[str, Any]
    settings: dict[str, Any]
    status: str
    step: StepNumber
    seconds: Number
    splits: dict[str, SplitMetrics]
    best_validation: NumberOrNull
    last_validation: NumberOrNull
    test: NumberOrNull
    parameters: Whole | None = None
    tokens_per_second: NumberOrNull = None
    bad_step: StepNumber | None = None
    probe: ProbeSummary | None = None
    first_probe: ProbeSummary | None = None
    gradient: dict[str, NumberOrNull] | None = None


class Results:
    """The results table of a running sweep.

    Attributes:
      rows: rows of the trials that have ended, with any status.
    """

    def __init__(self, sweep_dir: Path, trials: Sequence[Trial]):
        """Reads the results of all trials at present."""
        self._sweep_dir = sweep_dir
        paths = {path.removesuffix(".kind") for trial in trials for path in trial.point}
        self._swept = sorted(paths)
        self._rows = {trial.number: self._row(trial) for trial in trials}

    @property
    def rows(self) -> list[Row]:
        return [row for row in self._rows.values() if row is not None]

    def ended(self, trial: Trial) -> None:
        """Updates the row of a trial after its end, and rewrites the table."""
        self._rows[trial.number] = self._row(trial)
        self.write()

    def write(self) -> None:
        """Writes the whole table."""
        write_rows(self._sweep_dir / FILE, self.rows)

    def _row(self, trial: Trial) -> Row | None:
        """Build a trial's row from the run directory; None if the trial has not ended."""
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
        # The sweep's own entries override the entries of result.json.
        return own | so_far | (_broken(failure) if failure else _ended(result or {})) | own


def _validated(rows: list[Row]) -> Row:
    nats = [row["nats"] for row in validations(rows)]
    known = [value for value in nats if value is not None]
    return {
        "best_validation": min(known, default=None),
        "last_validation": nats[-1] if nats else None,
    }


def _written(values: Row) -> Row:
    """Replace infinity by the string "inf" (strict JSON has no infinity; a config reads it)."""
    return {path: "inf" if value == math.inf else value for path, value in values.items()}


def _ended(result: Row) -> Row:
    diverged = {"bad_step": result["step"]} if result["status"] == "diverged" else {}
    return {**result, **diverged, "test": result["splits"].get("test", {}).get("nats")}


def _broken(failure: Row) -> Row:
    return {"test": None, "splits": {}, "status": "failed", "error": failure["error"]}


def read_results(sweep_dir: str | Path) -> list[Row]:
    """Read the rows of a sweep's results.jsonl.

    Raises:
      UserError: there is no such file, or the file is damaged.
    """
    path = Path(sweep_dir) / FILE
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{sweep_dir} has no {FILE}: no trial of a sweep has ended there") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = read_row(line, f"line {number}")
            if not fits(row, TrialRow):
                raise UserError(f"line {number} is no row of a trial")
        except UserError as error:
            raise UserError(f"{path} is damaged ({error}): the same sweep writes it anew") from None
        rows.append(row)
    return rows


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by best validation, best first; diverged and failed trials come last."""

    def place(row: Row) -> tuple[bool, float, int]:
        best = row["best_validation"]
        out = row["status"] in ("diverged", "failed")
        return out, math.inf if best is None else best, row["number"]

    return sorted(rows, key=place)


class Fold(NamedTuple):
    """Mean results of trials that differ only in the seed."""

    settings: dict[str, Any]
    """Common settings, among the paths changed by the sweep."""
    name: str
    """The common settings as flags of the command line."""
    best_validation: tuple[float, float]
    """Mean and standard error over the finished trials; NaN if there are too few."""
    test: tuple[float, float]
    success: tuple[float, float]
    """For tasks: accuracy, the share of correct test sequences."""
    finished: int
    """Number of finished trials, n of the means."""
    of: int
    """Number of all trials."""


def folded(rows: Iterable[Row]) -> list[Fold]:
    """Average rows over seeds, best first; empty if no two trials differ only in the seed."""
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
