"""Points that Optuna suggests: each batch is asked for with what came of the earlier ones in view.

Of a space, as `lm_jax.sweeps.points.draw` takes it, the tree-structured Parzen estimator draws
points that the good ones so far make likely and the others do not. Those of one batch are trained
side by side, so while they are drawn each counts as a bad one to those that follow it.

    asked.jsonl      the space and the seed; then each batch that was asked for, and what it came to
    study.db         the same as a study of Optuna's, named "sweep", for its own tools to look at

A batch depends on the space, the seed and what was told before it, and on nothing else. It is on
the disk before it is handed out. So a search that is killed anywhere goes on as if it had not been.

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
from lm_jax.files import as_json, write_whole
from lm_jax.settings import UserError, parsed
from lm_jax.sweeps.points import Choice, Point, Range, Space
from lm_jax.training.journal import Row

ASKED, STUDY = "asked.jsonl", "study.db"
NAME = "sweep"  # of the study
TRIES = 20  # of the estimator, before a point that was not asked for yet is drawn at random


class Outcome(NamedTuple):
    """What a trial has come to."""

    status: str
    """finished, pruned, diverged or failed."""
    step: int
    nats: float | None
    """Of validation, a token: the best of a finished trial, the last of a pruned one."""


class Search:
    """Points that are asked for batch by batch, in the directory of a sweep.

    Attributes:
      asked: the points so far, by the trial's number, from 1 on.
      told: what came of them.
    """

    def __init__(
        self, space: Space, count: int, sweep_dir: str | Path, *, batch: int = 8, seed: int = 0
    ):
        """Begins a search, or goes on with the one that is there; writes nothing yet.

        Args:
          space: by path, what its values are drawn from.
          count: points in all; there may be more of them when a search goes on.
          sweep_dir: where asked.jsonl is.
          batch: points that are asked for together.
          seed: of all draws.

        Raises:
          UserError: Optuna is not installed, the space has fewer points than are asked for, or the
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
        self._rows: list[Row] = [json.loads(json.dumps({"space": kinds, "seed": seed}))]
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        """Takes over the search that is there, if it is this one."""
        try:
            lines = self._path.read_bytes().splitlines()
            first, *rows = [parsed(line, str(self._path)) for line in lines]
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
        write_whole(self._path, "".join(as_json(row) + "\n" for row in self._rows))
        self._take(row)

    def ask(self) -> dict[int, Point]:
        """The trials that are to be trained next, by number; none when the search is over.

        Those that were asked for and have not been told of come first.
        """
        with _quiet() as optuna:
            self._publish(optuna)
            if len(self.asked) == len(self.told) < self._count:
                first = len(self.asked) + 1
                batch = self._drawn(optuna, min(self._batch, self._count - len(self.asked)))
                self._write({"asked": {str(n): point for n, point in enumerate(batch, first)}})
        return {number: self.asked[number] for number in sorted(self.asked.keys() - self.told)}

    def tell(self, rows: Iterable[Row]) -> None:
        """Takes note of what trials have come to.

        Args:
          rows: of results.jsonl; of them, those count that were asked for, are over, and have not
            been told of.
        """
        new = {
            str(row["number"]): [row["status"], row["step"], _nats(row)]
            for row in rows
            if row["number"] in self.asked.keys() - self.told and row["status"] != "stopped"
        }
        if new:
            self._write({"told": new})

    def _drawn(self, optuna: Any, count: int) -> list[Point]:
        """As many points as that, none of which has been asked for."""
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
        """A point that is not known: the estimator's, unless it stays where it has been."""
        for _ in range(TRIES):
            point = self._point(study.ask(self._distributions(optuna)).params)
            if as_json(point) not in known:
                return point
        while True:
            point = {path: values.draw(generator) for path, values in self._space.items()}
            if as_json(point) not in known:
                return point

    def _trials(self, optuna: Any) -> list[Any]:
        """The trials that have been told of, as Optuna's."""
        states, found = optuna.trial.TrialState, []
        for number, (status, step, nats) in sorted(self.told.items()):
            here: dict[str, Any]
            if status == "finished":
                here = {"state": states.COMPLETE, "value": math.inf if nats is None else nats}
            elif status == "diverged":  # worse than whatever has an end
                here = {"state": states.COMPLETE, "value": math.inf}
            elif status == "pruned":
                at = {} if nats is None else {step: nats}
                here = {"state": states.PRUNED, "intermediate_values": at}
            else:  # which says nothing about the point
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
        """Adds to study.db what it does not hold yet."""
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
        """The space in Optuna's words; a choice is one of JSON texts, for it takes no lists."""
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
    """How many values there are."""
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
    """Optuna, which does not tell of each study that it makes."""
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)
