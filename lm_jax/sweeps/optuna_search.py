"""Points suggested by Optuna: each batch depends on the results of the earlier batches.

The tree-structured Parzen estimator fits a density to the good points and another to the bad
points, and suggests points with a large ratio of the densities. The space is as for
`lm_jax.sweeps.points.draw`. The points of a batch train side by side; while a batch is drawn, each
pending point counts as bad, to keep the next points of the batch away from the pending points.

    asked.jsonl      the space and the seed; then each batch of points, and its results
    study.db         the trials as an Optuna study named "sweep", for Optuna's own tools

A batch depends only on the space, the seed and the earlier results, and is on disk before any of
its trials starts. A search killed at any time therefore continues with the same points as a search
that was never killed.

Source: Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization", NeurIPS, section 4.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_jax import files
from lm_jax.files import Row, as_json, finite, read_row, write_rows
from lm_jax.settings import UserError
from lm_jax.sweeps.points import Choice, Point, Range, Space

ASKED, STUDY = "asked.jsonl", "study.db"
NAME = "sweep"  # name of the Optuna study
TRIES = 20  # suggestions tried for a new point, before a new point is drawn at random


class Outcome(NamedTuple):
    """Result of a trial."""

    status: str
    """finished, pruned, diverged or failed."""
    step: int
    nats: float | None
    """Validation nats per token: the best of the run, or, of a pruned trial, the last."""


class OptunaSearch:
    """An Optuna search, batch by batch, saved in the directory of a sweep.

    Attributes:
      asked: all points suggested until now, by the trial's number, counted from 1.
      told: results of trials, by the trial's number.
    """

    def __init__(
        self, space: Space, count: int, sweep_dir: str | Path, *, batch: int = 8, seed: int = 0
    ):
        """Begins a search, or resumes the search in the directory; writes nothing yet.

        Args:
          space: the distribution of each path.
          count: total number of points; may be larger when a search is resumed.
          sweep_dir: directory of the sweep, with asked.jsonl.
          batch: number of points in a batch.
          seed: seed of all draws.

        Raises:
          UserError: Optuna is not installed, the space has fewer than `count` points, or the
            directory holds another search.
        """
        for name, value in (("count", count), ("batch", batch)):
            if value < 1:
                raise UserError(f"suggest: {name}={value} must be 1 or more")
        _optuna()
        size = math.prod(_size(values) for values in space.values())
        if count > size:
            raise UserError(f"suggest: the space has {size} points, which is less than {count}")
        self._space, self._count, self._batch, self._seed = dict(space), count, batch, seed
        self._path = Path(sweep_dir) / ASKED
        self._published: set[int] = set()
        self.asked: dict[int, Point] = {}
        self.told: dict[int, Outcome] = {}
        kinds = {path: dataclasses.asdict(values) for path, values in space.items()}
        self._rows: list[Row] = [finite({"space": kinds, "seed": seed})]
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        """Reads asked.jsonl, and refuses the file of another search."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            first, *rows = [read_row(line, str(self._path)) for line in lines]
            for row in rows:
                self._take(row)
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{self._path} is damaged") from None
        for name, value in self._rows[0].items():
            if first.get(name) != value:
                raise UserError(f"{self._path} is of another search: its {name} is another")
        self._rows += rows

    def _take(self, row: Row) -> None:
        self.asked |= {int(number): dict(point) for number, point in row.get("asked", {}).items()}
        self.told |= {int(number): Outcome(*came) for number, came in row.get("told", {}).items()}

    def _write(self, row: Row) -> None:
        self._rows.append(row)
        write_rows(self._path, self._rows)
        self._take(row)

    def ask(self) -> dict[int, Point]:
        """Return the next points to train, by trial number; empty if the search is over.

        As long as earlier points have no result, `ask` returns these points and draws no new batch.
        """
        with _quiet() as optuna:
            self._publish(optuna)
            if len(self.asked) == len(self.told) < self._count:
                first = len(self.asked) + 1
                batch = self._drawn(optuna, min(self._batch, self._count - len(self.asked)))
                self._write({"asked": {str(n): point for n, point in enumerate(batch, first)}})
        return {number: self.asked[number] for number in sorted(self.asked.keys() - self.told)}

    def tell(self, rows: Iterable[Row]) -> None:
        """Records the results of trials.

        Args:
          rows: rows of results.jsonl. Rows of unknown, stopped or already recorded trials are
            ignored.
        """
        new = {
            str(row["number"]): [row["status"], row["step"], _nats(row)]
            for row in rows
            if row["number"] in self.asked.keys() - self.told and row["status"] != "stopped"
        }
        if new:
            self._write({"told": new})

    def _drawn(self, optuna: Any, count: int) -> list[Point]:
        """Draw `count` points, all new to the search."""
        seed, random = np.random.SeedSequence([self._seed, len(self.asked)]).generate_state(2)
        sampler = optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        study.add_trials(self._trials(optuna))
        generator = np.random.default_rng(random)
        known, found = {as_json(point) for point in self.asked.values()}, []
        for _ in range(count):
            found.append(self._new(optuna, study, known, generator))
            known.add(as_json(found[-1]))
        return found

    def _new(
        self, optuna: Any, study: Any, known: set[str], generator: np.random.Generator
    ) -> Point:
        """Draw a new point: by the estimator, or at random after `TRIES` known suggestions."""
        for _ in range(TRIES):
            point = self._point(study.ask(self._distributions(optuna)).params)
            if as_json(point) not in known:
                return point
        while True:
            point = {path: values.draw(generator) for path, values in self._space.items()}
            if as_json(point) not in known:
                return point

    def _trials(self, optuna: Any) -> list[Any]:
        """Convert the trials with a result to Optuna trials."""
        states, found = optuna.trial.TrialState, []
        for number, (status, step, nats) in sorted(self.told.items()):
            here: dict[str, Any]
            if status == "finished":
                here = {"state": states.COMPLETE, "value": math.inf if nats is None else nats}
            elif status == "diverged":  # worse than any finished trial
                here = {"state": states.COMPLETE, "value": math.inf}
            elif status == "pruned":
                at = {} if nats is None else {step: nats}
                here = {"state": states.PRUNED, "intermediate_values": at}
            else:  # an error says nothing about the point
                here = {"state": states.FAIL}
            params = {
                path: json.dumps(value) if isinstance(self._space[path], Choice) else value
                for path, value in self.asked[number].items()
            }
            found.append(
                optuna.trial.create_trial(
                    params=params,
                    distributions=self._distributions(optuna),
                    user_attrs={"trial": number, "status": status},
                    **here,
                )
            )
        return found

    def _publish(self, optuna: Any) -> None:
        """Adds missing trials to study.db."""
        if self.told.keys() <= self._published:
            return
        place = self._path.with_name(STUDY).absolute()
        files.refuse_links(place)
        storage = optuna.storages.RDBStorage(f"sqlite:///{place}")
        try:
            study = optuna.create_study(study_name=NAME, storage=storage, load_if_exists=True)
            there = {trial.user_attrs["trial"] for trial in study.get_trials(deepcopy=False)}
            for trial in self._trials(optuna):
                if trial.user_attrs["trial"] not in there:
                    study.add_trial(trial)
        finally:
            storage.engine.dispose()
        self._published = set(self.told)

    def _distributions(self, optuna: Any) -> dict[str, Any]:
        """Convert the space to Optuna distributions; a choice becomes a choice of JSON strings.

        Optuna does not take lists as the values of a choice.
        """
        kinds, found = optuna.distributions, {}
        for path, values in self._space.items():
            if isinstance(values, Choice):
                texts = dict.fromkeys(map(json.dumps, values.values))
                found[path] = kinds.CategoricalDistribution(tuple(texts))
            elif values.whole:
                found[path] = kinds.IntDistribution(int(values.low), int(values.high))
            else:
                found[path] = kinds.FloatDistribution(values.low, values.high, log=values.log)
        return found

    def _point(self, params: Mapping[str, Any]) -> Point:
        return {
            path: json.loads(params[path]) if isinstance(values, Choice) else params[path]
            for path, values in self._space.items()
        }


def _size(values: Range | Choice) -> float | int:
    """Number of values of a distribution; infinite for real numbers."""
    if isinstance(values, Choice):
        return len(set(map(json.dumps, values.values)))
    return int(values.high) - int(values.low) + 1 if values.whole else math.inf


def _nats(row: Row) -> float | None:
    return row["last_validation" if row["status"] == "pruned" else "best_validation"]


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "suggest: Optuna is not installed: pip install -r requirements-sweeps.txt"
        ) from None
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Yield the optuna module, with info messages switched off meanwhile."""
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)
