"""Run jobs on the nodes of a Ray cluster. No other module uses Ray.

The nodes need no shared disk, and use a copy of lm_jax made when this process joins the cluster:
the code on this machine may change while a sweep runs. A job carries the existing run directories
of the trials to a node, works in a temporary directory there, and returns the run directories at
the end, or after a stop signal. If the node dies, the job starts again on another node, from the
run directories on this machine.
"""

import dataclasses
import io
import os
import signal
import sys
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_jax
from lm_jax import files
from lm_jax.settings import UserError
from lm_jax.sweeps import worker
from lm_jax.sweeps.failures import Failure
from lm_jax.sweeps.jobs import Ended, Job, Watcher
from lm_jax.sweeps.run_job import run_job
from lm_jax.sweeps.tail import Tail

BETWEEN_LOOKS = 1.0  # seconds
MOVES = 3  # nodes that may die under a job before it counts as a failure


class Ray:
    """Runs each job as a task of a Ray cluster, in a fresh process on a node."""

    def __init__(self, cores: int = 1):
        """Joins the Ray cluster at RAY_ADDRESS, or starts a cluster on this machine.

        Call this before `stop_signals`, because Ray installs signal handlers.

        Args:
          cores: cores of each job. If the cluster has GPUs, each job also gets a GPU.

        Raises:
          UserError: Ray is not installed, the cluster cannot be reached, `cores` is below 1, or no
            node has room for a job.
        """
        if cores < 1:
            raise UserError(f"cores={cores} must be 1 or more")
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--executor ray needs Ray: pip install ray") from None
        self._ray, self._cores = ray, cores
        self._dead: set[str] = set()  # nodes under which a job died; Ray lists them as alive longer
        if not ray.is_initialized():
            # The nodes use this copy of lm_jax, not the one that they have; see `_on_nodes`.
            code = {"py_modules": [str(Path(lm_jax.__file__).parent)]}
            quiet = {"log_to_driver": False, "logging_level": "error"}
            try:
                ray.init(address="auto", runtime_env=code, **quiet)
            except ConnectionError as error:
                if "RAY_ADDRESS" in os.environ:
                    raise UserError(f"there is no Ray cluster to be reached: {error}") from None
                ray.init(address="local", include_dashboard=False, runtime_env=code, **quiet)
        if not self.workers:
            raise UserError(f"no job of {cores} cores fits into the Ray cluster")

    @property
    def workers(self) -> int:
        """Number of jobs that fit into the cluster at present."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in alive if node["NodeID"] not in self._dead]
        has_gpus = self._gpus > 0
        room = [int(node.get("CPU", 0) // self._cores) for node in nodes]
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        return sum(map(min, room, gpus) if has_gpus else room)

    @property
    def _gpus(self) -> int:
        """Number of GPUs of each job, 0 or 1."""
        return int(self._ray.cluster_resources().get("GPU", 0) > 0)

    def fresh(self) -> "Ray":
        """See `Executor`."""
        return self

    def run(
        self, jobs: Sequence[Job], received: list[signal.Signals], watch: Watcher | None = None
    ) -> Iterator[Ended]:
        """See `Executor`; `watch` receives the rows of a trial only after the job has returned."""
        ray = self._ray
        follower = None if watch is None else Tail(watch)
        waiting = deque((job, MOVES) for job in jobs)
        away: dict[Any, tuple[Job, int]] = {}
        work, stop_class = _on_nodes()
        # A fresh process for each task (max_calls=1); `execute` decides about retries.
        once = {"max_calls": 1, "max_retries": 0}
        task = ray.remote(num_cpus=self._cores, num_gpus=self._gpus, **once)(work)
        actor = ray.remote(num_cpus=0, scheduling_strategy=self._at_home())(stop_class)
        stop_event = actor.remote()
        texts = {id(job.text): ray.put(job.text) for job in jobs}
        stopping = False
        try:
            while away or (waiting and not received):
                if received and not stopping:
                    stop_event.set.remote()
                    stopping = True
                while waiting and not received and len(away) < max(1, self.workers):
                    job, moves = waiting.popleft()
                    bare, own = dataclasses.replace(job, text=None), worker.inherited()
                    call = [ray.put((_worked, bare, packed(job), own, self._cores))]
                    away[task.remote(call, texts[id(job.text)], stop_event)] = job, moves
                home, _ = ray.wait(list(away), timeout=BETWEEN_LOOKS)
                for sent in home:
                    job, moves = away.pop(sent)
                    try:
                        archive, failed = ray.get(sent)
                    except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
                        ids = {node["NodeID"] for node in ray.nodes()}
                        self._dead |= {node for node in ids if node in str(error)}
                        if moves:
                            waiting.appendleft((job, moves - 1))
                        else:
                            yield Ended(job, {}, _told(error))
                    except ray.exceptions.RayError as error:
                        yield Ended(job, {}, _told(error))
                    else:
                        unpack(job, archive)
                        if follower is not None:
                            follower.look([job], last=True)
                        yield Ended(job, failed)
        finally:
            for sent in away:
                ray.cancel(sent, force=True)
            ray.kill(stop_event)

    def _at_home(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore

        here = self._ray.get_runtime_context().get_node_id()
        return NodeAffinitySchedulingStrategy(here, soft=True)


def _on_nodes() -> tuple[Callable, type]:
    """Make the function that runs a task, and the class of the actor that tells the tasks to stop.

    Both are made within a function, so that Ray sends them by value: a node can load them without
    lm_jax. The task first puts the copy of lm_jax that Ray has sent at the front of sys.path.
    """

    def work(call: list[Any], *more: Any) -> Any:
        import ray  # pyright: ignore[reportMissingImports]

        # PYTHONPATH begins with the copy, but Ray has put the folder of the sweep's program first.
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        function, *given = ray.get(call[0])  # within a list, Ray sends a reference as it is
        return function(*given, *more)

    class StopEvent:
        def __init__(self):
            self._is_set = False

        def set(self) -> None:
            self._is_set = True

        def is_set(self) -> bool:
            return self._is_set

    return work, StopEvent


def _worked(
    job: Job, archive: bytes, settings: dict[str, Any], cores: int, text: Any, stop_event: Any
) -> tuple[bytes, dict[int, Failure]]:
    """Run a job on a node; return the packed run directories, and the failures by trial."""
    # No compilation cache: a compiled program may not suit the processor of another node.
    worker.inherit({**settings, "jax_compilation_cache_dir": None}, cores)
    with tempfile.TemporaryDirectory(prefix="lm_jax-") as folder:
        job = dataclasses.replace(job, text=text, sweep_dir=Path(folder))
        unpack(job, archive)
        received: list[signal.Signals] = []
        threading.Thread(target=_listen, args=(stop_event, received), daemon=True).start()
        failed = run_job(job, received)
        return packed(job), failed


def packed(job: Job) -> bytes:
    """Pack the existing run directories of a job, with checkpoints, into a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for trial in job.trials:
            if job.place(trial).is_dir():
                tar.add(job.place(trial), arcname=trial.directory)
    return archive.getvalue()


def unpack(job: Job, archive: bytes) -> None:
    """Replace the run directories of a job with the directories in an archive."""
    arrived = job.sweep_dir / "jobs" / f"{job.name}.archive"
    files.remove(arrived)
    arrived.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(arrived, filter="data")
    files.tree_to_disk(arrived)
    for trial in job.trials:
        if (arrived / trial.directory).is_dir():
            files.make_folder(job.place(trial).parent)
            files.discard(job.place(trial), arrived / trial.directory)
    files.remove(arrived)


def _listen(stop_event: Any, received: list[signal.Signals]) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    while not ray.get(stop_event.is_set.remote()):
        time.sleep(BETWEEN_LOOKS)
    received.append(signal.SIGTERM)


def _told(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error  # the exception raised within the task
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
