"""The directories of some trials as bytes, where two machines share no disk."""

import io
import shutil
import tarfile
from pathlib import Path

from lm_jax import files
from lm_jax.sweeps.jobs import Job


def packed(job: Job) -> bytes:
    """The directories of a job's trials, checkpoints included, as far as there are any."""
    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w") as tar:
        for trial in job.trials:
            if job.place(trial).is_dir():
                tar.add(job.place(trial), arcname=trial.directory)
    return parcel.getvalue()


def unpack(job: Job, parcel: bytes) -> None:
    """Puts directories that were packed elsewhere in the place of those that are here."""
    arrived = job.sweep_dir / "jobs" / f"{job.name}.parcel"
    files.remove(arrived)
    arrived.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(parcel)) as tar:
        tar.extractall(arrived, filter="data")
    for trial in job.trials:
        if (arrived / trial.directory).is_dir():
            _replace(job.place(trial), arrived / trial.directory)
    shutil.rmtree(arrived)


def _replace(old: Path, new: Path) -> None:
    trash = old.with_name(f"{old.name}.trash")
    files.remove(trash)
    old.parent.mkdir(parents=True, exist_ok=True)
    if old.exists():  # moved away at once: half a run must not be taken for a run
        old.rename(trash)
    new.rename(old)
    shutil.rmtree(trash, ignore_errors=True)
