"""What trials in other processes do, read from their directories as it is written."""

import json
import time
from collections.abc import Sequence

from lm_jax.sweeps.jobs import Job, Watcher
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import Watch

BETWEEN_LOOKS = 1.0  # seconds


class Follower:
    """Tells of new rows in metrics.jsonl as `lm_jax.train` would in this process."""

    def __init__(self, watch: Watcher):
        self._watch = watch
        self._told: dict[int, tuple[Watch, int]] = {}  # and how far each file has been read
        self._next = 0.0

    def look(self, jobs: Sequence[Job], *, last: bool = False) -> None:
        """Reads what is new of some jobs' trials, if it is time, or if it is the last time."""
        if time.monotonic() < self._next and not last:
            return
        for job in jobs:
            for trial in job.trials:
                self._read(job, trial)
        if not last:
            self._next = time.monotonic() + BETWEEN_LOOKS

    def _read(self, job: Job, trial: Trial) -> None:
        path = job.place(trial) / "metrics.jsonl"
        if not path.exists():
            return
        watch, seen = self._told.get(trial.number) or (self._watch(trial), 0)
        with path.open("rb") as file:
            # A run that goes on from a checkpoint takes the rows after it away first.
            file.seek(min(seen, path.stat().st_size))
            lines = file.read().splitlines(keepends=True)
            seen = file.tell()
        if lines and not lines[-1].endswith(b"\n"):  # it is just being written
            seen -= len(lines.pop())
        self._told[trial.number] = watch, seen
        for line in lines:
            row = json.loads(line)
            watch(row["step"], row)
