"""Follow the journals of trials in other processes."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence

from lm_jax.files import Row
from lm_jax.settings import UserError
from lm_jax.sweeps.jobs import Job, Watcher
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import Watch, read_row

BETWEEN_LOOKS = 1.0  # seconds


@dataclasses.dataclass
class _Place:
    """Position in a trial's journal: the rows read, and the rows passed on."""

    watch: Watch
    file: int = -1
    """Inode number of the file; a rewritten journal has another number."""
    seen: int = 0
    """Bytes read."""
    step: int = -1
    """Step of the last row passed on."""
    kinds: set[str] = dataclasses.field(default_factory=set)
    """Kinds of the rows passed on at `step`."""
    scales: set[float] = dataclasses.field(default_factory=set)
    """`lr_scale` of the rows passed on that tell of a return to a checkpoint."""

    def tell(self, row: Row) -> None:
        """Calls `watch` with a row not passed on before; only a restored run steps back."""
        step, kind = row["step"], row["kind"]
        if kind == "restored" and row["lr_scale"] not in self.scales:
            self.scales.add(row["lr_scale"])
            self.step, self.kinds = step, set()
        if step < self.step or (step == self.step and kind in self.kinds):
            return
        if step > self.step:
            self.step, self.kinds = step, set()
        self.kinds.add(kind)
        self.watch(step, row)


class Tail:
    """Calls `watch` with new rows of metrics.jsonl, as `lm_jax.train` does within a process.

    A run resumed from a checkpoint rewrites the journal without the rows after the checkpoint, and
    then computes these rows again. The follower does not pass such a row on twice.
    """

    def __init__(self, watch: Watcher):
        self._watch = watch
        self._places: dict[int, _Place] = {}
        self._next = 0.0

    def look(self, jobs: Sequence[Job], *, last: bool = False) -> None:
        """Reads the new rows of some jobs' trials, at most once per second, or if `last` is set."""
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
        if lines and not lines[-1].endswith(b"\n"):  # the line is still being written
            place.seen -= len(lines.pop())
        for line in lines:
            with contextlib.suppress(UserError):  # damaged
                place.tell(read_row(line)[1])
