"""A sweep: a run at every point, group by group, in one directory, and a table over them.

    sweep.json            the points, and the digests of their configs
    trials/NAME/          a run directory a point
    results.jsonl         one row a trial that has ended (lm_jax.sweeps.results)

Trials that differ in numbers alone are lanes of one program (`lm_jax.sweeps.group`); how many, and
in which process, is no matter of the sweep, so that it may change when a sweep goes on. Killing one
costs nothing: called again, it passes over the trials that are done, goes on with those that were
not, and tries once more those that broke off with an error.
"""

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lm_jax.config import Config
from lm_jax.settings import UserError
from lm_jax.sweeps.executors import Executor, Here, execute
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.jobs import divided
from lm_jax.sweeps.memory import lane_bytes, lanes_that_fit
from lm_jax.sweeps.plan import Group, Plan, plan, settle
from lm_jax.sweeps.points import Drawn, Point, flags
from lm_jax.sweeps.ray_nodes import Ray
from lm_jax.sweeps.results import Results
from lm_jax.sweeps.suggest import Search
from lm_jax.training import directory
from lm_jax.training.journal import Row, Watch
from lm_jax.training.loop import leave
from lm_jax.training.signals import stop_signals


def sweep(
    config: Config,
    points: Mapping[str, Point] | Drawn,
    sweep_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Callable[[str], Watch] | None = None,
    executor: Executor | None = None,
    lanes: int | None = None,
    retries: int = 1,
    halving: Halving | None = None,
    suggest: int | None = None,
) -> list[Row]:
    """Trains a model at every point, or goes on where an earlier call stopped.

    A trial that breaks off with an error does not stop the others: its row says so. SIGTERM saves
    and raises SystemExit(143); SIGINT saves and raises KeyboardInterrupt, a second one at once.

    Args:
      config: what the points change.
      points: what each trial changes, by the trial's name; with `suggest`, what `draw` gives.
      sweep_dir: where the sweep lives; made if it does not exist.
      text: with `data.source="memory"`, see `lm_jax.train`.
      watch: called with a trial's name as it begins, for what `lm_jax.train` is to tell of it.
      executor: where trials are trained (`lm_jax.sweeps.executors`); None: in this process.
      lanes: most trials side by side; None: as many as are thought to fit into half of the memory.
      retries: how often a trial that has failed is tried again, alone and in a fresh process.
      halving: when those that do badly are ended; None: never.
      suggest: instead of the points drawn, as many that Optuna suggests, so many at a time.

    Returns:
      the rows of results.jsonl, in the order of the points (`lm_jax.sweeps.results`).

    Raises:
      UserError: a point, the text or the directory will not do; nothing has been changed.
    """
    sweep_dir, executor = Path(sweep_dir), executor or Here()
    for name, value, least in (("lanes", lanes, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be {least} or more")
    if halving is not None and isinstance(executor, Ray):
        raise UserError("halving needs one directory for all trials, which nodes of Ray have not")
    if suggest is None:
        searching = None
        planned = plan(config, _by_name(points), text)
    else:
        if not isinstance(points, Drawn):
            raise UserError("suggest needs a sweep that is drawn, sweep() -> draw(…)")
        searching = Search(points.space, len(points), sweep_dir, batch=suggest, seed=points.seed)
        planned = plan(config, _by_name(searching.asked), text) if searching.asked else None
    if halving is not None:
        halving.check([config] if planned is None else [t.config for t in planned.trials])
    judged = halving and dataclasses.asdict(halving)

    def settled(planned: Plan | None) -> Results:
        trials = () if planned is None else planned.trials
        settle(sweep_dir, trials, halving=judged, growing=searching is not None)
        return Results(sweep_dir, trials)

    def go(planned: Plan, results: Results, received: list[signal.Signals]) -> None:
        # Those that share no program are dealt out together, whatever groups they are.
        apart = [group for group in planned.groups if not group.vectorised]
        shares = [[group] for group in planned.groups if group.vectorised]
        jobs = [
            job
            for groups in ([apart, *shares] if apart else shares)
            for job in divided(
                groups,
                sweep_dir,
                workers=executor.workers,
                lanes=_lanes(groups[0], lanes),
                text=text,
                halving=halving,
            )
        ]
        jobs.sort(key=lambda job: job.trials[0].number)
        names = {trial.number: trial for trial in planned.trials}
        told = watch and (lambda trial, watch=watch: watch(trial.name))
        for ended in execute(jobs, executor, received, retries=retries, watch=told):
            for trial in ended.job.trials:
                results.ended(names[trial.number])

    with directory.claimed(sweep_dir, "sweep", "sweep.json"), stop_signals() as received:
        results = settled(planned)
        if searching is None:
            assert planned is not None
            go(planned, results, received)
        else:
            # What broke off earlier is tried once more, also where nothing is left to be asked for.
            again = any(row["status"] == "failed" for row in results.rows)
            while not received and (searching.ask() or again):
                again = False
                planned = plan(config, _by_name(searching.asked), text)
                results = settled(planned)
                go(planned, results, received)
                searching.tell(results.rows)
        results.write()
    leave(received)
    return results.rows


def _by_name(points: Mapping[str, Point] | Mapping[int, Point] | Drawn) -> dict[str, Point]:
    """Points by their names; those without are called by their flags.

    Raises:
      UserError: a point was drawn twice.
    """
    if isinstance(points, Mapping):
        return {
            name if isinstance(name, str) else f"{name}: {flags(point)}": point
            for name, point in points.items()
        }
    found: dict[str, Point] = {}
    for number, point in enumerate(points, 1):
        name = flags(point)
        if name in found:
            first = list(found).index(name) + 1
            raise UserError(f"draw: the same point comes twice, as {first} and {number}: {name}")
        found[name] = point
    return found


def _lanes(group: Group, most: int | None) -> int | None:
    """How many trials of a group go side by side."""
    if not group.vectorised:
        return None
    fit = lanes_that_fit(lane_bytes(group))
    return fit if most is None else min(most, fit)
