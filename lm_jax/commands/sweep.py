"""The command `sweep`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

import lm_jax
from lm_jax.commands.flags import own_flags
from lm_jax.commands.shared import Flag, at_least, divide_cpu, only_with, told
from lm_jax.commands.trial import command_line
from lm_jax.config import Config, resolve
from lm_jax.experiment import Experiment
from lm_jax.report.sweep import show_plan, show_sweep
from lm_jax.report.sweep_page import write_sweep
from lm_jax.report.sweep_progress import SweepDisplay
from lm_jax.settings import UserError, digest
from lm_jax.sweeps import Halving, executor_called, plan
from lm_jax.sweeps.processes import cores_here


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
        experiment: tyro.conf.Positional[str],
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
    ) -> int:
        """Train a model at every point of an experiment's sweep(), or resume a stopped sweep.

        Trials that differ only in numbers train side by side, as lanes of a single program.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: base settings, changed by the points.
          run_dir: directory of the sweep; runs/EXPERIMENT-sweep-DIGEST if not given.
          dry_run: only print the command line of each trial, the groups of trials that share a
            program, and the memory they need.
          executor: where to train: here, in this process, on all cores or devices; processes,
            several processes of this machine; ray, nodes of a cluster; slurm, jobs of a cluster.
          workers: processes: number of processes; 1 per GPU, or 2 without a GPU, if not given.
          cores: ray, slurm: cores of each job; 1 if not given.
          lanes: largest number of trials side by side; as many as fit into half of the free memory
            if not given.
          retries: number of further attempts at a failed trial, alone and in a fresh process.
          halving_first: successive halving (Li et al., 2020): the update of the first rung; at a
            rung all but the best trials end. No halving if not given.
          halving_factor: successive halving: the best 1/factor continue, and each rung is factor
            times the rung before; 3 if not given.
          suggest: optuna: replace the drawn points of sweep() by as many points suggested by
            Optuna, based on the results of earlier points.
          batch: suggest: number of points suggested and trained together; 8 if not given.
          restart: begin anew; a sweep in the directory is kept as RUN_DIR.old-N.
        """
        at_least(1, workers=workers, cores=cores, lanes=lanes, batch=batch)
        at_least(0, retries=retries)
        at_least(1, **{"halving-first": halving_first})
        at_least(2, **{"halving-factor": halving_factor})
        only_with("--halving-first", halving_first, **{"halving-factor": halving_factor})
        only_with("--suggest", suggest, batch=batch)
        name = Path(experiment).stem
        if asked is None or asked.points is None:
            raise UserError(f"{experiment} has no sweep()")
        if suggest is not None and asked.drawn is None:
            raise UserError(f"--suggest=optuna needs a sweep() that is draw(…): {experiment}'s not")
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
        steps = {t.name: t.config.train.steps if t.config.train else 0 for t in planned.trials}
        bars = [{trial.name: steps[trial.name] for trial in g.trials} for g in planned.groups]
        bars = [] if suggest else bars
        with told(run_dir, restart), SweepDisplay(bars, max(steps.values())) as display:
            rows = lm_jax.sweep(
                config,
                asked.points if suggest is None or asked.drawn is None else asked.drawn,
                run_dir,
                watch=display.watch,
                executor=where,
                lanes=lanes,
                retries=retries,
                halving=halving,
                suggest=None if suggest is None else 8 if batch is None else batch,
                restart=restart,
            )
        show_sweep(rows, command)
        print(write_sweep(run_dir))
        print(run_dir)
        return 1 if any(row["status"] == "failed" for row in rows) else 0

    return sweep
