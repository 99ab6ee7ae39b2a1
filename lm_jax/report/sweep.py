"""A sweep in the terminal: the plan before the sweep, and the results after the sweep."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lm_jax.config import train_of
from lm_jax.files import Row
from lm_jax.report.terminal import NONE, UNPAID, show_table
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
    each = lane_bytes(group)
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
    columns = _columns(best_first)
    show_table(columns)
    if NONE in columns.get("bits/char", ()):
        print(f"{NONE} bits a character: {UNPAID}")
    folds = folded(rows)
    if folds:
        print("over the seeds, mean ± standard error:")
        show_table(_means(folds))
    if best_first and best_first[0]["status"] not in ("diverged", "failed"):
        print(f"the best trial by itself: {command(best_first[0]['point'])}")


def _split(name: str, figure: str) -> Callable[[Row], Any]:
    return lambda row: row["splits"].get(name, {}).get(figure)


def _unknown(row: Row) -> bool:
    return bool(_split("test", "unknown")(row))


TRIAL_COLUMNS: dict[str, tuple[Callable[[Row], Any], str]] = {
    "parameters": (lambda row: row.get("parameters"), ","),
    "seconds": (lambda row: row["seconds"], ",.1f"),
    "tokens/s": (lambda row: row.get("tokens_per_second"), ",.0f"),
    "valid ppl": (_split("validation", "perplexity"), ".2f"),
    "test ppl": (_split("test", "perplexity"), ".2f"),
    "bits/char": (_split("test", "bits_per_character"), ".3f"),
    "right": (_split("test", "success"), ".1%"),
}
# For trials without perplexities: tasks, or sweeps without a finished trial.
LOSS_COLUMNS: dict[str, tuple[Callable[[Row], Any], str]] = {
    "validation": (lambda row: row["best_validation"], ".4f"),
    "test": (lambda row: row["test"], ".4f"),
}


def _columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The columns of the table of trials, without empty columns."""
    shown = {"trial": [row["name"] + _unfinished(row) for row in rows]}
    text = any(_split("test", "perplexity")(row) is not None for row in rows)
    columns = TRIAL_COLUMNS if text else LOSS_COLUMNS | TRIAL_COLUMNS
    for heading, (read, form) in columns.items():
        values = [read(row) for row in rows]
        if any(value is not None for value in values):
            shown[heading] = ["" if value is None else format(value, form) for value in values]
    if "bits/char" in shown:
        cells = zip(shown["bits/char"], rows, strict=True)
        shown["bits/char"] = [NONE if _unknown(row) else cell for cell, row in cells]
    return shown


def _unfinished(row: Row) -> str:
    if row["status"] == "diverged":
        return f" (diverged at step {row['bad_step']:,})"
    return "" if row["status"] == "finished" else f" ({row['status']})"


def _means(folds: Sequence[Fold]) -> dict[str, list[str]]:
    shown = {"trials": [fold.name for fold in folds]}
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
