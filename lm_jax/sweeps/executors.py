"""Executors: run the jobs of a sweep, and retry failed trials.

- *here*: in this process;
- *processes*: in several processes of this machine, each with separate cores, or a separate GPU;
- *ray*: on the nodes of a Ray cluster;
- *slurm*: as jobs of a Slurm cluster.

If a job fails, or its process dies, the other jobs continue. Afterwards each unfinished trial of
the failed jobs is tried again, alone in a fresh process, a given number of times.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax

from lm_jax.settings import UserError
from lm_jax.suggestions import nearest_value
from lm_jax.sweeps.failures import Failure, record
from lm_jax.sweeps.jobs import Ended, Job, Watcher
from lm_jax.sweeps.plan import CorpusCache
from lm_jax.sweeps.processes import Processes
from lm_jax.sweeps.ray_nodes import Ray
from lm_jax.sweeps.run_job import run_job
from lm_jax.sweeps.slurm import Slurm


@runtime_checkable
class Executor(Protocol):
    """Protocol of an executor: runs jobs, on this machine or on others."""

    @property
    def workers(self) -> int:
        """Number of jobs run at the same time."""
        ...

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """Runs jobs, and yields each job as the job ends.

        Args:
          jobs: the jobs.
          received: stop signals; the list grows as signals arrive. After a signal, running jobs
            save and stop, and waiting jobs do not start.
          watch: see `Watcher`.
        """
        ...

    def fresh(self) -> "Executor":
        """Return an executor that runs each job in a fresh process."""
        ...


class Here:
    """Runs jobs in turn in this process."""

    workers = 1

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """See `Executor`."""
        parts = [part for job in jobs for part in job.parts()]  # to yield each trial as it ends
        parts.sort(key=lambda part: part.trials[0].number)
        texts = CorpusCache(jobs[0].text) if jobs else None
        for part in parts:
            if received:
                return
            yield Ended(part, run_job(part, received, watch, texts))

    def fresh(self) -> Executor:
        """See `Executor`; this process again if it holds an accelerator that no other could use."""
        return Processes(1) if jax.default_backend() == "cpu" else self


def execute(
    jobs: Sequence[Job],
    executor: Executor,
    received: list[signal.Signals],
    *,
    retries: int = 1,
    watch: Watcher | None = None,
) -> Iterator[Ended]:
    """Runs the jobs of a sweep, and yields each job as the job ends.

    By then each trial of the job has ended, has failed (see error.json), or, after a signal, has
    been saved. A failed trial is yielded again after each further attempt.

    Args:
      jobs: the jobs, made by `divided`.
      executor: runs the jobs.
      received: stop signals (`lm_jax.training.loop.stop_signals`); the list grows as signals
        arrive.
      retries: number of further attempts at a failed trial.
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
    """Add a "Lost" failure to `ended` for each trial that neither ended nor failed."""
    lost = [trial for trial in ended.job.unfinished() if trial.number not in ended.failed]
    failure = Failure(ended.how, "Lost", "")
    for trial in lost:
        record(ended.job.place(trial), failure, ended.job.attempt)
    return ended._replace(failed={**ended.failed, **{trial.number: failure for trial in lost}})


def executor_called(name: str, *, workers: int | None = None, cores: int | None = None) -> Executor:
    """Make the executor with a given name; call this before `stop_signals`.

    Args:
      name: here, processes, ray or slurm.
      workers: number of simultaneous jobs, for processes only; None: see `Processes`.
      cores: cores of each job, for ray and slurm only; None: 1.

    Raises:
      UserError: the name is unknown, the executor does not take the given option, or a package,
        cluster or device is missing.
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
