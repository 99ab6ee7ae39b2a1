"""A sweep in the terminal: the plan before the sweep, and the results after the sweep."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lm_jax.config import train_of
from lm_jax.files import Row
from lm_jax.report.run_table import (
    Columns,
    result_columns,
    settings_columns,
    show_columns,
    unfinished,
)
from lm_jax.report.terminal import show_table
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.memory import lane_bytes, lanes_that_fit
from lm_jax.sweeps.plan import Group, Plan, distinctions
from lm_jax.sweeps.points import Point
from lm_jax.sweeps.results import Fold, folded, ranked


def show_plan(plan: Plan, command: Callable[[Point], str], halving: Halving | None = None) -> None:
    """Print the trials of a sweep, the groups of trials, and the memory needed by each group.

    Args:
      plan: the plan of the sweep.
      command: returns the command line for training a point alone.
      halving: the schedule of successive halving; None without pruning.
    """
    for trial in plan.trials:
        print(f"{trial.number} {trial.name}: {command(trial.point)}")
    for number, (group, fields) in enumerate(
        zip(plan.groups, distinctions(plan.groups), strict=True), 1
    ):
        print(f"group {number}: {_as_lanes(group)}{_apart(fields)}")
        if halving is not None and group.config.train is not None:
            steps = train_of(group.trials[0].config).steps
            rungs = ", ".join(f"{rung:,}" for rung in halving.rungs(steps)) or "nowhere"
            print(f"  judged at {rungs}: one in {halving.factor} goes on")


def _as_lanes(group: Group) -> str:
    count = len(group.trials)
    trials = "1 trial" if count == 1 else f"{count} trials"
    if group.config.train is None:
        return f"{trials}, counted one by one" if count > 1 else f"{trials}, counted"
    each = lane_bytes(group.config, group.vocab)
    memory = f"about {_bytes(each)} each, of which {lanes_that_fit(each):,} fit"
    if not group.vectorised:
        return f"{trials} by itself, {memory}"
    return f"{trials} in one program, {memory}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e3:,.0f} kB"


def _apart(fields: dict[str, Any]) -> str:
    words = [
        f"{path} {'on' if value else 'off'}" if isinstance(value, bool) else f"{path}={value}"
        for path, value in fields.items()
    ]
    return f"; {', '.join(words)}" if words else ""


def show_sweep(rows: list[Row], command: Callable[[Point], str]) -> None:
    """Print the trials of a sweep, best first, and then the means over seeds.

    Args:
      rows: the rows returned by `lm_jax.sweep`.
      command: returns the command line for training a point alone.
    """
    best_first = ranked(rows)
    show_columns(_trial_columns(best_first))
    folds = folded(rows)
    if folds:
        print("over the seeds, mean ± standard error:")
        show_table(_means(folds))
    if best_first and best_first[0]["status"] not in ("diverged", "failed"):
        print(f"the best trial by itself: {command(best_first[0]['point'])}")


def _trial_columns(rows: Sequence[Row]) -> Columns:
    """The trials by their names; or, if the names are only the flags, by number and settings."""
    if all(row["flags"] in row["name"] or not row["point"] for row in rows):
        named = {"trial": [f"{row['number']}{unfinished(row)}" for row in rows]}
        named |= settings_columns(rows)
    else:
        named = {"trial": [row["name"] + unfinished(row) for row in rows]}
    return named | result_columns(rows)


def _means(folds: Sequence[Fold]) -> dict[str, list[str]]:
    shown = settings_columns([{"settings": fold.settings} for fold in folds])
    shown = shown or {"trials": [fold.name for fold in folds]}
    for heading, form in (("best_validation", ".4f"), ("test", ".4f"), ("success", ".1%")):
        values = [getattr(fold, heading) for fold in folds]
        if not all(math.isnan(mean) for mean, _ in values):
            shown[NAMES[heading]] = [_with_error(mean, error, form) for mean, error in values]
    shown["finished"] = [f"{fold.finished} of {fold.of}" for fold in folds]
    return shown


NAMES = {"best_validation": "validation", "test": "test", "success": "right"}


def _with_error(mean: float, error: float, form: str) -> str:
    if math.isnan(mean):
        return ""
    return format(mean, form) if math.isnan(error) else f"{mean:{form}} ± {error:{form}}"
