"""A sweep: a run at every point, group by group, in one directory, and a table over them.

    sweep.json            the points, and the digests of their configs
    trials/NAME/          a run directory a point
    results.jsonl         one row a trial that has ended (lm_jax.sweeps.results)

Killing a sweep costs nothing: called again, it passes over the trials that are done, goes on with
those that were not, and tries once more those that broke off with an error.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lm_jax.config import Config
from lm_jax.sweeps import failures
from lm_jax.sweeps.plan import Trial, plan, settle
from lm_jax.sweeps.points import Point
from lm_jax.sweeps.results import Results
from lm_jax.training import directory
from lm_jax.training.journal import Row, Watch
from lm_jax.training.loop import train


def sweep(
    config: Config,
    points: Mapping[str, Point],
    sweep_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Callable[[str], Watch] | None = None,
) -> list[Row]:
    """Trains a model at every point, or goes on where an earlier call stopped.

    A trial that breaks off with an error does not stop the others: its row says so.

    Args:
      config: what the points change.
      points: what each trial changes, by the trial's name.
      sweep_dir: where the sweep lives; made if it does not exist.
      text: with `data.source="memory"`, see `lm_jax.train`.
      watch: called with a trial's name as it begins, for what `lm_jax.train` is to tell of it.

    Returns:
      the rows of results.jsonl, in the order of the points (`lm_jax.sweeps.results`).

    Raises:
      UserError: a point, the text or the directory will not do; nothing has been changed.
    """
    sweep_dir, planned = Path(sweep_dir), plan(config, points, text)
    with directory.claimed(sweep_dir, "sweep", "sweep.json"):
        settle(sweep_dir, planned.trials)
        results = Results(sweep_dir, planned.trials)
        for group in planned.groups:
            run_group(group.trials, sweep_dir, text, watch, results.ended)
    return results.rows


def run_group(
    trials: Sequence[Trial],
    sweep_dir: Path,
    text: str | Sequence[str] | None,
    watch: Callable[[str], Watch] | None,
    ended: Callable[[Trial], None],
) -> None:
    """Runs trials of one group, one after another.

    Args:
      trials: of one group.
      sweep_dir: where the sweep lives.
      text: see `sweep`.
      watch: see `sweep`.
      ended: called with each trial that has come to an end.
    """
    for trial in trials:
        run_dir = sweep_dir / trial.directory
        failures.forget(run_dir)
        try:
            train(trial.config, run_dir, text=text, watch=watch(trial.name) if watch else None)
        except Exception as error:
            failures.record(run_dir, error)
        ended(trial)
