"""Jobs: units of work of a sweep, each done by a single worker.

A job goes to another process, on this or another machine, as JSON. A text given in memory is
written next to the job files, once for the whole sweep.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lm_jax.config import Config
from lm_jax.files import read_json, sha256, write_json, write_whole
from lm_jax.settings import from_json, to_json
from lm_jax.sweeps.failures import Failure
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import Watch, read_result

Watcher = Callable[[Trial], Watch]
"""Called with each trial as the trial begins; returns the `watch` of `lm_jax.train`."""


@runtime_checkable
class TrialGroup(Protocol):
    """A group of trials: the part of `lm_jax.sweeps.plan.Group` that jobs need."""

    @property
    def trials(self) -> Sequence[Trial]: ...

    @property
    def vectorised(self) -> bool:
        """True if the trials can train as lanes of a single program."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """Trials for a worker to train."""

    sweep_dir: Path
    trials: tuple[Trial, ...]
    """Trials of a single group, or, if not vectorised, of any groups."""
    vectorised: bool
    """If True, train the trials as lanes of a single program, even if only one trial is left."""
    lanes: int | None = None
    """Largest number of trials side by side; None: as many as fit into memory."""
    text: str | Sequence[str] | None = None
    """The text for `data.source="memory"`, as in `lm_jax.train`."""
    halving: Halving | None = None
    """Settings of successive halving; None: no halving."""
    attempt: int = 1

    @property
    def name(self) -> str:
        """Name of the job within the sweep: number of the first trial, and attempt."""
        return f"{self.trials[0].number:03d}-{self.attempt}"

    def place(self, trial: Trial) -> Path:
        """Return the run directory of a trial."""
        return self.sweep_dir / trial.directory

    def unfinished(self) -> list[Trial]:
        """List the trials whose runs have not ended."""
        return [trial for trial in self.trials if not is_over(self.place(trial), trial.config)]

    def parts(self) -> "list[Job]":
        """Split the job into a job per trial, unless the trials are lanes of a single program."""
        if self.vectorised:
            return [self]
        return [dataclasses.replace(self, trials=(trial,)) for trial in self.trials]

    def alone(self, trial: Trial) -> "Job":
        """Make the job of the next attempt at a trial, alone."""
        return dataclasses.replace(self, trials=(trial,), attempt=self.attempt + 1)


class Ended(NamedTuple):
    """A job that has ended, with success or failures."""

    job: Job
    failed: dict[int, Failure]
    """Failures of trials, by the trial's number."""
    how: str = "it was not come to"
    """Error message for trials that neither ended nor failed."""


def is_over(run_dir: Path, config: Config) -> bool:
    """True if a run has ended and, under `config`, has nothing left to do."""
    result = read_result(run_dir)
    if result is None or result["status"] == "stopped":
        return False
    if config.train is None or result["status"] != "finished" or result["stopped_early"]:
        return True
    return result["step"] >= config.train.steps


def divided(
    groups: Sequence[TrialGroup],
    sweep_dir: Path,
    *,
    workers: int = 1,
    lanes: int | None = None,
    text: str | Sequence[str] | None = None,
    halving: Halving | None = None,
) -> list[Job]:
    """Divide a sweep into jobs, at least one per worker if there are enough trials.

    Args:
      groups: groups of the sweep.
      sweep_dir: directory of the sweep.
      workers: number of workers. With several workers, a vectorised job has at most `lanes` trials:
        no finished trial waits for a second row of lanes.
      lanes: largest number of trials side by side; None: as many as fit into a worker's memory.
      text: the text for `data.source="memory"`, as in `lm_jax.train`.
      halving: settings of successive halving; None: no halving.
    """
    together = [group.trials for group in groups if group.vectorised]
    single = [trial for group in groups if not group.vectorised for trial in group.trials]
    shares = [(share, True) for trials in together for share in _parts(trials, workers, lanes)]
    # A worker takes several of these trials in one job, to load texts and libraries only once.
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
    """Writes a job and further settings (`more`) of the worker, for `read_job`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = None
    if job.text is not None:
        content = json.dumps(job.text if isinstance(job.text, str) else list(job.text))
        text = f"text-{sha256(content)[:8]}.json"
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
    write_json(path, {**told, **more})


def read_job(path: Path) -> tuple[Job, dict[str, Any]]:
    """Read a job and the further settings from a file; the trials' points are not in the file."""
    told = read_json(path)
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
        text=text and read_json(path.parent / text, str | list[str]),
    )
    return job, told
