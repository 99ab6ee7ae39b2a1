"""Run a sweep: a run at every point, in a common directory, and a table of the results.

    sweep.json            the points, and the digests of their configs
    trials/NAME/          a run directory per point
    results.jsonl         a row per ended trial (lm_jax.sweeps.results)

Trials that differ only in numbers are lanes of a single program (`lm_jax.sweeps.group`). The number
of lanes and the executor are not part of the sweep, and may change when a sweep is resumed. A
killed sweep loses nothing: called again, `sweep` skips the trials that have ended, resumes the
unfinished trials, and tries the failed trials once more.
"""

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lm_jax import files
from lm_jax.config import Config
from lm_jax.files import Row
from lm_jax.settings import UserError
from lm_jax.sweeps.executors import Executor, Here, execute
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.jobs import divided
from lm_jax.sweeps.optuna_search import OptunaSearch
from lm_jax.sweeps.plan import Plan, plan, write_or_check_manifest
from lm_jax.sweeps.points import Drawn, Point, flags
from lm_jax.sweeps.ray_nodes import Ray
from lm_jax.sweeps.results import Results
from lm_jax.training import directory
from lm_jax.training.journal import Watch
from lm_jax.training.loop import leave, stop_signals

KIND = "sweep", "sweep.json"  # for `directory.locked_dir`


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
    restart: bool = False,
) -> list[Row]:
    """Trains a model at every point, or resumes after an earlier call.

    If a trial fails, the other trials continue, and the row of the trial has the error. SIGTERM
    saves and raises SystemExit(143). SIGINT saves and raises KeyboardInterrupt; a second SIGINT
    raises at once.

    Args:
      config: base config, changed by the points.
      points: settings of each trial, by the trial's name; with `suggest`, a result of `draw`.
      sweep_dir: directory of the sweep; made if missing.
      text: the text for `data.source="memory"`, as in `lm_jax.train`.
      watch: called with a trial's name as the trial begins; returns the `watch` of `lm_jax.train`.
      executor: runs the trials (`lm_jax.sweeps.executors`); None: in this process.
      lanes: largest number of trials side by side; there are fewer if the estimated memory of so
        many is more than half of the free memory.
      retries: number of further attempts at a failed trial, alone and in a fresh process.
      halving: settings of successive halving; None: no halving.
      suggest: batch size of an Optuna search; the search replaces the drawn points by as many
        suggested points. None: no search.
      restart: begin anew. If the directory holds a sweep, rename it to `sweep_dir.old-1` first (the
        first free number).

    Returns:
      the rows of results.jsonl, in the order of the points (`lm_jax.sweeps.results`).

    Raises:
      UserError: a point, the text or the directory is not valid; nothing has been changed.
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
        if restart:
            directory.set_aside(sweep_dir, *KIND)
        searching = OptunaSearch(
            points.space, len(points), sweep_dir, batch=suggest, seed=points.seed
        )
        planned = plan(config, _by_name(searching.asked), text) if searching.asked else None
    if halving is not None:
        halving.check([config] if planned is None else [t.config for t in planned.trials])
    if restart and suggest is None:
        directory.set_aside(sweep_dir, *KIND)
    judged = halving and dataclasses.asdict(halving)

    def settled(planned: Plan | None) -> Results:
        trials = () if planned is None else planned.trials
        write_or_check_manifest(sweep_dir, trials, halving=judged, growing=searching is not None)
        for trial in trials:  # a kill may have come while a run directory was replaced
            files.restore(sweep_dir / trial.directory)
        return Results(sweep_dir, trials)

    def go(planned: Plan, results: Results, received: list[signal.Signals]) -> None:
        # Trials that cannot be lanes are divided among the workers together, across groups.
        apart = [group for group in planned.groups if not group.vectorised]
        shares = [[group] for group in planned.groups if group.vectorised]
        jobs = [
            job
            for groups in ([apart, *shares] if apart else shares)
            for job in divided(
                groups,
                sweep_dir,
                workers=executor.workers,
                lanes=lanes,
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

    with directory.locked_dir(sweep_dir, *KIND), stop_signals() as received:
        results = settled(planned)
        if searching is None:
            assert planned is not None
            go(planned, results, received)
        else:
            # Retry the failed trials of an earlier call, even if there is nothing left to ask.
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
    """Name the points: names stay, numbered points get number and flags, drawn points get flags.

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
