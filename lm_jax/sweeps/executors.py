"""Executors: where the jobs of a sweep are done, and what happens when one fails.

here        in this process
processes   in several of this machine, each with cores, or a GPU, of its own
ray         on the nodes of a Ray cluster
slurm       as jobs of a Slurm cluster

A job that fails, or whose process dies, does not stop the others. When they are through, each trial
that it has left behind is tried again by itself in a fresh process, a stated number of times.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from lm_jax.settings import UserError, nearest_value
from lm_jax.sweeps.failures import Failure, record
from lm_jax.sweeps.jobs import Ended, Job, Watcher
from lm_jax.sweeps.plan import Texts
from lm_jax.sweeps.processes import Processes
from lm_jax.sweeps.ray_nodes import Ray
from lm_jax.sweeps.slurm import Slurm
from lm_jax.sweeps.work import do


@runtime_checkable
class Executor(Protocol):
    """What does jobs."""

    @property
    def workers(self) -> int:
        """How many jobs are done at once."""
        ...

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """Does jobs, and tells of each as it ends.

        Args:
          jobs: what to do.
          received: signals to stop, as they come in; what is being done is saved, the rest is left.
          watch: see `Watcher`.
        """
        ...

    def fresh(self) -> "Executor":
        """What does a job in a fresh process."""
        ...


class Here:
    """Does one job after another in this process."""

    workers = 1

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """See `Executor`."""
        parts = [part for job in jobs for part in job.parts()]  # each is told of as it ends
        parts.sort(key=lambda part: part.trials[0].number)
        texts = Texts(jobs[0].text) if jobs else None
        for part in parts:
            if received:
                return
            yield Ended(part, do(part, received, watch, texts))

    def fresh(self) -> Processes:
        """See `Executor`."""
        return Processes(1)


def execute(
    jobs: Sequence[Job],
    executor: Executor,
    received: list[signal.Signals],
    *,
    retries: int = 1,
    watch: Watcher | None = None,
) -> Iterator[Ended]:
    """Does the jobs of a sweep, and tells of each as it ends.

    A job's trials have then ended, or failed (error.json says how), or, where a signal has come,
    been saved. Those that have failed are told of again after each further attempt.

    Args:
      jobs: what to do; `divided` makes them.
      executor: where.
      received: signals to stop, as they come in (`lm_jax.training.signals.stop_signals`).
      retries: how often a trial that has failed is tried again.
      watch: see `Watcher`.
    """
    for _ in range(retries + 1):
        again: list[Job] = []
        for ended in executor.run(jobs, received, watch):
            told = ended if received else _with_lost(ended)
            again += [told.job.alone(t) for t in told.job.trials if t.number in told.failed]
            yield told
        if received or not again:
            return
        jobs, executor = again, executor.fresh()


def _with_lost(ended: Ended) -> Ended:
    """A job's end with the trials among the failed that have neither ended nor failed."""
    lost = [trial for trial in ended.job.unfinished() if trial.number not in ended.failed]
    failure = Failure(ended.how, "Lost", "")
    for trial in lost:
        record(ended.job.place(trial), failure, ended.job.attempt)
    return ended._replace(failed={**ended.failed, **{trial.number: failure for trial in lost}})


def executor_called(name: str, *, workers: int | None = None, cores: int | None = None) -> Executor:
    """An executor by its name; to be called before signals are collected.

    Args:
      name: here, processes, ray or slurm.
      workers: of processes, how many jobs at once; None: as many as there is room for.
      cores: of ray and slurm, how many a job has; None: one.

    Raises:
      UserError: there is none of that name, or what it needs is missing, or is not what it takes.
    """
    known: dict[str, Callable[[], Executor]] = {
        "here": Here,
        "processes": lambda: Processes(workers),
        "ray": lambda: Ray(1 if cores is None else cores),
        "slurm": lambda: Slurm(1 if cores is None else cores),
    }
    if name not in known:
        near = nearest_value("executor", name, known)
        raise UserError(f"--executor={name}: choose from {', '.join(known)}{near}")
    if workers is not None and name != "processes":
        raise UserError(f"--workers={workers} is for --executor processes; this is {name}")
    if cores is not None and name in ("here", "processes"):
        raise UserError(f"--cores={cores} is for --executor ray or slurm; this is {name}")
    return known[name]()
