"""Run jobs in processes of this machine, each with separate cores, or a separate GPU.

Each worker runs in a new session. An interrupt from the keyboard therefore reaches only this
process, and this process forwards the signal: the workers save and exit. A second interrupt ends
the workers at once.
"""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lm_jax
from lm_jax import files
from lm_jax.settings import UserError
from lm_jax.sweeps import worker
from lm_jax.sweeps.jobs import Ended, Job, Watcher
from lm_jax.sweeps.tail import Tail

BETWEEN_LOOKS = 0.1  # seconds


class Share(NamedTuple):
    """The cores and the GPU of a worker."""

    cores: list[int]
    gpu: str | None


class _Worker(NamedTuple):
    process: subprocess.Popen
    job: Job
    path: Path
    share: Share


class Processes:
    """Runs each job in a fresh process, several at the same time.

    Attributes:
      workers: number of simultaneous jobs.
    """

    def __init__(self, workers: int | None = None):
        """Divides the machine.

        Args:
          workers: number of workers; None: 1 per GPU, 1 on a machine with a TPU, or else 2.

        Raises:
          UserError: `workers` is below 1, or above the number of GPUs or cores, or above 1 on a
            machine with a TPU.
        """
        if workers is not None and workers < 1:
            raise UserError(f"workers={workers} must be 1 or more")
        gpus, cores = _gpus(), cores_here()
        if not gpus and _has_tpu():
            workers = workers or 1
            if workers > 1:
                raise UserError(
                    f"workers={workers}: only one process can use this machine's TPU: take "
                    "--executor here, which shares the trials among all its chips, or --workers 1"
                )
        workers = workers or len(gpus) or min(2, len(cores))
        if gpus and workers > len(gpus):
            raise UserError(f"workers={workers} is more than the {len(gpus)} GPUs of this machine")
        if workers > len(cores):
            raise UserError(f"workers={workers} is more than the {len(cores)} cores there are")
        bounds = [worker * len(cores) // workers for worker in range(workers + 1)]
        self.workers = workers
        self._shares = [
            Share(cores[bounds[i] : bounds[i + 1]], gpus[i] if gpus else None)
            for i in range(workers)
        ]

    def fresh(self) -> "Processes":
        """See `Executor`."""
        return self

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """See `Executor`."""
        waiting, free, working = deque(jobs), list(self._shares), list[_Worker]()
        follower = None if watch is None else Tail(watch)
        passed_on = 0
        try:
            while working or (waiting and not received):
                while waiting and free and not received:
                    working.append(_started(waiting.popleft(), free.pop(0)))
                for number in received[passed_on:]:
                    passed_on += 1
                    for one in working:
                        one.process.send_signal(number)
                if follower is not None:
                    follower.look([one.job for one in working])
                gone = [one for one in working if one.process.poll() is not None]
                for one in gone:
                    if follower is not None:
                        follower.look([one.job], last=True)
                    working.remove(one)
                    free.append(one.share)
                    _let_go(one)
                    yield worker.ended(one.job, one.path, _how(one))
                if not gone:
                    time.sleep(BETWEEN_LOOKS)
        finally:
            for one in working:
                one.process.kill()
                one.process.wait()
                _let_go(one)


def _started(job: Job, share: Share) -> _Worker:
    path = worker.written(job, len(share.cores), share.cores)
    root = str(Path(lm_jax.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, known] if known else [root])}
    if share.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = share.gpu
    with files.created(path.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__, str(path)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Worker(process, job, path, share)


def _let_go(one: _Worker) -> None:
    assert one.process.stdin is not None
    one.process.stdin.close()


def _how(one: _Worker) -> str:
    """Error message for the unfinished trials of a worker whose process has ended."""
    status, log = one.process.returncode, one.path.with_suffix(".log")
    if status >= 0:
        return f"its process ended with status {status}; see {log}"
    name = signal.Signals(-status).name
    hint = ", as happens when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}; see {log}"


def cores_here() -> list[int]:
    """Numbers of the CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    """List the GPUs visible to a JAX process, by the names of CUDA_VISIBLE_DEVICES.

    The list does not come from JAX, because JAX would reserve the GPU memory of the workers.
    """
    if not _may_use("cuda", "gpu") or not importlib.util.find_spec("jax_plugins"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA reads the names up to the first that names no GPU; -1 stands for none.
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _has_tpu() -> bool:
    """True if a JAX process would use a TPU; like `_gpus`, without a question to JAX.

    A driver shows the chips as /dev/accel0, … or, on newer machines, as numbered /dev/vfio files.
    """
    if not _may_use("tpu") or not importlib.util.find_spec("libtpu"):
        return False
    return any(any(Path("/dev").glob(chips)) for chips in ("accel[0-9]*", "vfio/[0-9]*"))


def _may_use(*platforms: str) -> bool:
    """True if JAX_PLATFORMS allows any of the platforms."""
    named = os.environ.get("JAX_PLATFORMS", "")
    return not named or any(platform in named.split(",") for platform in platforms)
