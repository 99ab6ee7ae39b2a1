"""Jobs: what of a sweep one worker does at a time, and what became of it.

A job is told to another process, here or on another machine, as JSON. A text that is only in memory
is kept beside it, once for the whole sweep.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lm_jax.config import Config
from lm_jax.files import write_whole
from lm_jax.settings import from_json, parsed, to_json
from lm_jax.sweeps.failures import Failure
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import Watch, read_result

Watcher = Callable[[Trial], Watch]
"""Called with each trial as it begins, for what `lm_jax.train` is to tell of it."""


@runtime_checkable
class Group(Protocol):
    """Trials that belong together."""

    @property
    def trials(self) -> Sequence[Trial]: ...

    @property
    def vectorised(self) -> bool:
        """Whether they are lanes of one program."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """What one worker does at a time."""

    sweep_dir: Path
    trials: tuple[Trial, ...]
    """Of one group, or of several where they are not vectorised."""
    vectorised: bool
    """Whether they are lanes of one program; a trial that is left of such a group still is."""
    lanes: int | None = None
    """Most trials side by side; None: all."""
    text: str | Sequence[str] | None = None
    """With `data.source="memory"`, see `lm_jax.train`."""
    halving: Halving | None = None
    """When trials are judged; None: never."""
    attempt: int = 1

    @property
    def name(self) -> str:
        """Of the job, in its sweep."""
        return f"{self.trials[0].number:03d}-{self.attempt}"

    def place(self, trial: Trial) -> Path:
        """The run directory of a trial."""
        return self.sweep_dir / trial.directory

    def unfinished(self) -> list[Trial]:
        """The trials that have not come to their ends."""
        return [trial for trial in self.trials if not is_over(self.place(trial), trial.config)]

    def parts(self) -> "list[Job]":
        """The job as several, of which each trial is one, where they are not lanes of a program."""
        if self.vectorised:
            return [self]
        return [dataclasses.replace(self, trials=(trial,)) for trial in self.trials]

    def alone(self, trial: Trial) -> "Job":
        """The next attempt at one of the trials."""
        return dataclasses.replace(self, trials=(trial,), attempt=self.attempt + 1)


class Ended(NamedTuple):
    """A job that has come to an end, good or bad."""

    job: Job
    failed: dict[int, Failure]
    """What went wrong with a trial, by the trial's number."""
    how: str = "it was not come to"
    """What is to be said of trials that have neither ended nor failed."""


def is_over(run_dir: Path, config: Config) -> bool:
    """Whether a run's result.json is its last word under a config."""
    result = read_result(run_dir)
    if result is None or result["status"] == "stopped":
        return False
    if config.train is None or result["status"] != "finished" or result["stopped_early"]:
        return True
    return result["step"] >= config.train.steps


def divided(
    groups: Sequence[Group],
    sweep_dir: Path,
    *,
    workers: int = 1,
    lanes: int | None = None,
    text: str | Sequence[str] | None = None,
    halving: Halving | None = None,
) -> list[Job]:
    """A sweep as jobs, enough of them that every worker has one.

    Args:
      groups: of the sweep.
      sweep_dir: where its trials are.
      workers: how many there are to do the jobs. With several, no job is longer than its lanes are
        wide, so that what is done is done.
      lanes: most trials of a group side by side; None: all that a worker has of it.
      text: with `data.source="memory"`, see `lm_jax.train`.
      halving: when trials are judged, if they are.
    """
    together = [group.trials for group in groups if group.vectorised]
    single = [trial for group in groups if not group.vectorised for trial in group.trials]
    shares = [(share, True) for trials in together for share in _parts(trials, workers, lanes)]
    # Dealt out: a worker does several, and loads everything that they need but once.
    dealt = [single[first::workers] for first in range(min(workers, len(single)))]
    shares += [(share, False) for share in dealt]
    shares.sort(key=lambda share: share[0][0].number)
    return [
        Job(sweep_dir, tuple(trials), vectorised, lanes, text, halving)
        for trials, vectorised in shares
    ]


def _parts(trials: Sequence[Trial], workers: int, lanes: int | None) -> Iterator[Sequence[Trial]]:
    if workers == 1:
        yield trials
        return
    each = math.ceil(len(trials) / workers)
    each = min(each, lanes) if lanes else each
    for first in range(0, len(trials), each):
        yield trials[first : first + each]


def write_job(job: Job, path: Path, **more: Any) -> None:
    """Writes a job, and what else a worker is to know of, for `read_job`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = None
    if job.text is not None:
        content = json.dumps(job.text if isinstance(job.text, str) else list(job.text))
        text = f"text-{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
        if not (path.parent / text).exists():
            write_whole(path.parent / text, content)
    trials = [
        {
            "number": trial.number,
            "name": trial.name,
            "directory": trial.directory,
            "config": to_json(trial.config),
        }
        for trial in job.trials
    ]
    told = {
        "sweep_dir": str(job.sweep_dir.absolute()),
        "trials": trials,
        "vectorised": job.vectorised,
        "lanes": job.lanes,
        "halving": job.halving and dataclasses.asdict(job.halving),
        "attempt": job.attempt,
        "text": text,
    }
    write_whole(path, json.dumps({**told, **more}))


def read_job(path: Path) -> tuple[Job, dict[str, Any]]:
    """A job that was written, and what else was; the trials' points stay at home."""
    told = parsed(path.read_bytes(), str(path))
    trials = [
        Trial(
            number=trial["number"],
            name=trial["name"],
            point={},
            config=from_json(Config, trial["config"], f"{path}, trial {trial['number']}"),
            directory=trial["directory"],
        )
        for trial in told.pop("trials")
    ]
    text, halving = told.pop("text"), told.pop("halving")
    job = Job(
        sweep_dir=Path(told.pop("sweep_dir")),
        trials=tuple(trials),
        vectorised=told.pop("vectorised"),
        lanes=told.pop("lanes"),
        halving=halving and Halving(**halving),
        attempt=told.pop("attempt"),
        text=text and parsed((path.parent / text).read_bytes(), text, str | list[str]),
    )
    return job, told
