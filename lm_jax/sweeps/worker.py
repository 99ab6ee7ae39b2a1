"""A worker: a Python process that does a single job and exits.

    python -m lm_jax.sweeps.worker JOBFILE

The worker writes an outcome file next to JOBFILE; if the outcome is missing, the worker has died.
The worker also saves and exits when standard input closes, and therefore never outlives the process
that started the worker, even if that process is killed.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from lm_jax.files import read_json, write_json
from lm_jax.settings import UserError
from lm_jax.sweeps.failures import Failure
from lm_jax.sweeps.jobs import Ended, Job, read_job, write_job
from lm_jax.sweeps.run_job import run_job
from lm_jax.training.loop import stop_signals

INHERITED = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_rank_promotion",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
"""Settings of JAX that affect the bits of results, and the place of the compilation cache."""


def inherited() -> dict[str, Any]:
    """Return the current values of the settings in `INHERITED`."""
    return {name: getattr(jax.config, name) for name in INHERITED}


def inherit(settings: dict[str, Any], devices: int) -> None:
    """Applies settings of JAX and the number of CPU devices; call this before any use of JAX."""
    for name, value in {**settings, "jax_num_cpu_devices": devices}.items():
        jax.config.update(name, value)


def written(job: Job, devices: int, cores: list[int] | None = None) -> Path:
    """Writes a job file for a worker; returns the absolute path of the file.

    Args:
      job: the job.
      devices: number of JAX devices on the CPU.
      cores: CPU cores for the worker; None: no restriction by the worker.
    """
    path = job.sweep_dir / "jobs" / f"{job.name}.json"
    _outcome(path).unlink(missing_ok=True)
    write_job(job, path, devices=devices, cores=cores, jax=inherited())
    return path.absolute()


def ended(job: Job, path: Path, how: str) -> Ended:
    """Read the outcome of a job after the worker's exit; `how` describes the exit."""
    try:
        told = read_json(_outcome(path), dict[int, Failure])
    except (FileNotFoundError, UserError):
        return Ended(job, {}, how)
    return Ended(job, told, how)


def run(path: Path) -> int:
    """Does the job of a job file; returns the exit status."""
    job, told = read_job(path)
    if told["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, told["cores"])
    inherit(told["jax"], told["devices"])
    with stop_signals() as received:
        failed = run_job(job, received)
    told = {number: failure._asdict() for number, failure in failed.items()}
    write_json(_outcome(path), told)
    return 128 + received[0] if received else 0


def _outcome(path: Path) -> Path:
    return path.with_suffix(".outcome.json")


def _leave_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.exit(run(Path(sys.argv[1])))
