"""The command `sweep`."""

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

import lm_jax
from lm_jax.commands.flags import own_flags
from lm_jax.commands.shared import ExperimentName, Flag, at_least, divide_cpu, either, only_with
from lm_jax.commands.stopping import explained, saved_of_sweep, without
from lm_jax.commands.trial import command_line
from lm_jax.config import Config, resolve
from lm_jax.config.layouts import told
from lm_jax.experiment import Experiment, notes
from lm_jax.report.lines import print_json, print_trial_rows
from lm_jax.report.page import LivePage
from lm_jax.report.run_page import write_about
from lm_jax.report.sweep import show_plan, show_sweep
from lm_jax.report.sweep_page import write_sweep
from lm_jax.report.sweep_progress import SweepDisplay
from lm_jax.settings import UserError, digest
from lm_jax.sweeps import Halving, executor_called, plan
from lm_jax.sweeps.plan import trial_dirs
from lm_jax.sweeps.processes import cores_here
from lm_jax.track import Name, together
from lm_jax.track import trials as track_trials
from lm_jax.training.journal import Watch


def sweep_command(
    default: Config, asked: Experiment | None, given: list[str], program: str
) -> Callable[..., int]:
    """Make the command `sweep`; the flags default to an experiment's settings.

    Args:
      default: the experiment's config.
      asked: the experiment; None if the command line names no experiment.
      given: words of the command line, to print a complete command for each point.
      program: the program as it was started, for the same command.
    """

    def sweep(
        experiment: ExperimentName,
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        dry_run: Flag = False,
        executor: str = "here",
        workers: int | None = None,
        cores: int | None = None,
        lanes: int | None = None,
        retries: int = 1,
        halving_first: int | None = None,
        halving_factor: int | None = None,
        suggest: Literal["optuna"] | None = None,
        batch: int | None = None,
        restart: Flag = False,
        quiet: Flag = False,
        json: Flag = False,
        track: tuple[Name, ...] = (),
    ) -> int:
        """Train a model at every point of a sweep, or resume a stopped sweep.

        The experiment's sweep() gives the points. Trials that differ only in numbers train side by
        side, as lanes of a single program.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: base settings, changed by the points.
          run_dir: directory of the sweep; runs/EXPERIMENT-sweep-DIGEST if not given.
          dry_run: only print each trial's command, the groups and memory. A group is the trials
            that share a program.
          executor: where to train: here, processes, ray or slurm; in this process, on all cores or
            devices; in several processes of this machine; on nodes of a cluster; as jobs of a
            cluster.
          workers: processes: number of processes; 1 per GPU, or 2 without a GPU, if not given.
          cores: ray, slurm: cores of each job; 1 if not given.
          lanes: largest number of trials side by side; as many as fit into half of the free memory
            if not given.
          retries: number of further attempts at a failed trial; each alone, in a fresh process.
          halving_first: successive halving: the update of the first rung; at a
            rung all but the best trials end. No halving if not given.
          halving_factor: successive halving: the best 1/factor continue, and each rung is factor
            times the rung before; 3 if not given.
          suggest: optuna: points that Optuna suggests in place of drawn ones. The number of
            points stays; each suggestion is based on the results of earlier points.
          batch: suggest: number of points trained together; 8 if not given.
          restart: begin anew; a sweep in the directory is kept as RUN_DIR.old-N.
          quiet: print only the sweep's directory, and errors.
          json: print each trial's rows of metrics.jsonl as JSON lines. A row has the trial's name;
            at the end come the rows of results.jsonl.
          track: write each trial's rows elsewhere, too; as `train` does, to csv, tensorboard or
            wandb, or some of these, in the trial's directory.
        """
        either(quiet=quiet, json=json)
        at_least(1, workers=workers, cores=cores, lanes=lanes, batch=batch)
        at_least(0, retries=retries)
        at_least(1, **{"halving-first": halving_first})
        at_least(2, **{"halving-factor": halving_factor})
        only_with("--halving-first", halving_first, **{"halving-factor": halving_factor})
        only_with("--suggest", suggest, batch=batch)
        name = Path(experiment).stem
        if asked is None or asked.points is None:
            raise UserError(f"{experiment} has no sweep()")
        claim = notes(asked.about).get("Claim", "")
        if not quiet and (said := told(config.data)):
            print(said, file=sys.stderr)
        if suggest is not None and asked.drawn is None:
            raise UserError(
                f"--suggest=optuna needs a sweep() made by draw(…); {experiment} lists its points"
            )
        run_dir = run_dir or Path("runs") / f"{name}-sweep-{digest(resolve(config))}"
        command = functools.partial(command_line, program, given, own_flags(sweep), config)
        halving = None
        if halving_first is not None:
            halving = Halving(halving_first, 3 if halving_factor is None else halving_factor)
        where = executor_called(executor, workers=workers, cores=cores)
        if executor == "here":
            # A JAX device for each core: the lanes are sharded over the devices.
            divide_cpu(len(cores_here()))
        planned = plan(config, asked.points)
        if dry_run:
            show_plan(planned, command, halving)
            return 0

        def draw() -> Path:
            write_about(run_dir, command=f"{program} sweep {shlex.join(given)}", claim=claim)
            return write_sweep(run_dir)

        saved = functools.partial(saved_of_sweep, run_dir, len(planned.trials))
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                explained(run_dir, f"{program} sweep", given, saved, restart=restart)
            )
            live = LivePage(draw)
            trials: list[Callable[[str], Watch]] = [lambda name: live.watch]
            if json:
                trials.append(print_trial_rows)
            elif not quiet:
                display = SweepDisplay(planned, growing=suggest is not None)
                trials.append(stack.enter_context(display).watch)
            if track:
                places = functools.partial(trial_dirs, run_dir)
                trials.append(stack.enter_context(track_trials(track, places)))
            rows = lm_jax.sweep(
                config,
                asked.points if suggest is None or asked.drawn is None else asked.drawn,
                run_dir,
                watch=lambda name: together(*(watch(name) for watch in trials)),
                executor=where,
                lanes=lanes,
                retries=retries,
                halving=halving,
                suggest=None if suggest is None else 8 if batch is None else batch,
                restart=restart,
            )
        failed = [row for row in rows if row["status"] == "failed"]
        page = draw()
        if json:
            for row in rows:
                print_json({"kind": "result", **row})
        else:
            if not quiet:
                show_sweep(rows, command)
                print(page)
            print(run_dir)
        for row in failed:
            said = f"failed: {row['name']}: {row['error']} ({row['trial']}/error.json)"
            print(said, file=sys.stderr)
        if failed:
            again = f"{program} sweep {shlex.join(without(given, '--restart'))}"
            print(f"to try {len(failed)} of {len(rows)} trials again: {again}", file=sys.stderr)
        return 1 if failed else 0

    return sweep
