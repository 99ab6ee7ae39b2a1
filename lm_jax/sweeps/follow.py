"""What trials in other processes do, read from their directories as it is written."""

import dataclasses
import os
import time
from collections.abc import Sequence

from lm_jax.sweeps.jobs import Job, Watcher
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import Row, Watch, is_row, whole_rows

BETWEEN_LOOKS = 1.0  # seconds


@dataclasses.dataclass
class _Place:
    """How far a trial's journal has been read, and told."""

    watch: Watch
    file: int = -1
    """The number of the file that was read: a journal that is written anew has another."""
    seen: int = 0
    """Bytes of it that have been read."""
    step: int = -1
    """Of the last row that was told."""
    kinds: set[str] = dataclasses.field(default_factory=set)
    """Of the rows at that step that were told."""

    def tell(self, row: Row) -> None:
        """Tells of a row, unless it has been told; the steps of a journal never fall."""
        step, kind = row["step"], row["kind"]
        if step < self.step or (step == self.step and kind in self.kinds):
            return
        if step > self.step:
            self.step, self.kinds = step, set()
        self.kinds.add(kind)
        self.watch(step, row)


class Follower:
    """Tells of new rows in metrics.jsonl as `lm_jax.train` would in this process.

    A run that goes on from a checkpoint writes its journal anew, without the rows after it. Those
    that it makes again are not told again.
    """

    def __init__(self, watch: Watcher):
        self._watch = watch
        self._places: dict[int, _Place] = {}
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
        if trial.number not in self._places:
            self._places[trial.number] = _Place(self._watch(trial))
        place = self._places[trial.number]
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            if now.st_ino != place.file or now.st_size < place.seen:
                place.file, place.seen = now.st_ino, 0
            file.seek(place.seen)
            lines = file.read().splitlines(keepends=True)
            place.seen = file.tell()
        if lines and not lines[-1].endswith(b"\n"):  # it is just being written
            place.seen -= len(lines.pop())
        for row, _ in whole_rows(lines, is_row):
            place.tell(row)
