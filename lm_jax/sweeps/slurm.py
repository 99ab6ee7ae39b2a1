"""Run jobs as jobs of a Slurm cluster. No other module uses submitit.

All nodes must see the sweep's directory: jobs train, save and resume in this directory.
"""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_jax.settings import UserError
from lm_jax.sweeps import worker
from lm_jax.sweeps.jobs import Ended, Job, Watcher
from lm_jax.sweeps.tail import Tail

BETWEEN_LOOKS = 1.0  # seconds


class Slurm:
    """Submits every job to Slurm; Slurm decides how many jobs run at the same time.

    Attributes:
      workers: number of jobs for the trials of a large group.
    """

    def __init__(
        self,
        cores: int = 1,
        *,
        workers: int = 16,
        parameters: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ):
        """Prepares the submission.

        Args:
          cores: cores of each job.
          workers: number of jobs for the trials of a large group.
          parameters: further arguments of submitit.AutoExecutor.update_parameters, for example
            {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 600}.
          cluster: "slurm", or "local" to run the jobs as processes of this machine.

        Raises:
          UserError: submitit is not installed, this machine has no Slurm, or a number is below 1.
        """
        for name, value in (("cores", cores), ("workers", workers)):
            if value < 1:
                raise UserError(f"{name}={value} must be 1 or more")
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install submitit") from None
        self.workers, self._cores = workers, cores
        self._submitit, self._cluster = submitit, cluster
        self._parameters = {"name": "lm_jax", "cpus_per_task": cores, **(parameters or {})}
        try:
            submitit.AutoExecutor(folder="unused", cluster=cluster)
        except RuntimeError as error:
            raise UserError(f"there is no Slurm on this machine: {error}") from None

    def fresh(self) -> "Slurm":
        """See `Executor`."""
        return self

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """See `Executor`."""
        follower = None if watch is None else Tail(watch)
        queued = [] if received else [self._submitted(job) for job in jobs]
        told = False
        try:
            while queued:
                if received and not told:
                    told = True
                    for task, _, _ in queued:
                        task.cancel()
                if follower is not None:
                    follower.look([job for _, job, _ in queued])
                over = [one for one in queued if one[0].done()]
                for one in over:
                    queued.remove(one)
                    task, job, path = one
                    if follower is not None:
                        follower.look([job], last=True)
                    how = f"its Slurm job {task.job_id} ended as {task.state}"
                    yield worker.ended(job, path, f"{how}; see {task.paths.stderr}")
                if not over:
                    time.sleep(BETWEEN_LOOKS)
        finally:
            for task, _, _ in queued:
                task.cancel()

    def _submitted(self, job: Job) -> tuple[Any, Job, Path]:
        path = worker.written(job, self._cores)
        executor = self._submitit.AutoExecutor(folder=path.parent / "slurm", cluster=self._cluster)
        executor.update_parameters(**self._parameters)
        return executor.submit(worker.run, path), job, path
