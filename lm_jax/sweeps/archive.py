"""Run directories as bytes, for machines without a shared disk."""

import io
import tarfile

from lm_jax import files
from lm_jax.sweeps.jobs import Job


def packed(job: Job) -> bytes:
    """Pack the existing run directories of a job, with checkpoints, into a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for trial in job.trials:
            if job.place(trial).is_dir():
                tar.add(job.place(trial), arcname=trial.directory)
    return archive.getvalue()


def unpack(job: Job, archive: bytes) -> None:
    """Replaces the run directories of a job with the directories in an archive."""
    arrived = job.sweep_dir / "jobs" / f"{job.name}.archive"
    files.remove(arrived)
    arrived.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(arrived, filter="data")
    for trial in job.trials:
        if (arrived / trial.directory).is_dir():
            job.place(trial).parent.mkdir(parents=True, exist_ok=True)
            files.discard(job.place(trial), arrived / trial.directory)
    files.remove(arrived)
