"""The plan of a sweep: the trials, grouped by compiled program.

A point is a mapping from dotted paths to values, {"model.cell": "lstm"}. A trial is a config with
the values of a point. If trials differ only in numbers (fields marked `Mark.LEAF`: learning
rate, thresholds, rates, gain, seed), they form a group: a single compiled program trains all trials
of the group, as lanes side by side. Any other difference puts trials into different groups, even a
difference in the number of updates or in how often a record is written.

The plan checks every point before any trial starts; an error names the trial's number and name.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lm_jax import files, models
from lm_jax.config import Config, Data, override, resolve
from lm_jax.data.characters import Vocab
from lm_jax.data.corpus import Corpus, load
from lm_jax.fields import Mark, fields
from lm_jax.settings import UserError, digest
from lm_jax.sweeps.points import Point, plain_point
from lm_jax.training.loop import completed


@dataclasses.dataclass(frozen=True, eq=False)  # equal by identity, to serve as a dict key
class Trial:
    """A point of a sweep, ready to run."""

    number: int
    """Counted from 1, in the order of the points."""
    name: str
    point: Point
    config: Config
    """Resolved config, with epochs converted to steps."""
    directory: str
    """Run directory, relative to the sweep's directory: trials/NNN-DIGEST."""

    def __str__(self) -> str:
        return f"point {self.number} of the sweep, {self.name!r}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials with the same compiled program, differing only in the program's arguments."""

    trials: tuple[Trial, ...]
    """At least one. Their configs have the same pytree structure."""
    vocab: Vocab
    """V, or the characters of the words of the text (`lm_jax.models.vocab_of`)."""

    @property
    def config(self) -> Config:
        """The config of the first trial, for everything in which the trials do not differ."""
        return self.trials[0].config

    @property
    def vectorised(self) -> bool:
        """True if the trials can train as lanes: several trials of a model trained by gradients."""
        return len(self.trials) > 1 and self.config.train is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The trials and groups of a sweep, after all checks."""

    trials: tuple[Trial, ...]
    groups: tuple[Group, ...]
    """Groups, in the order of their first trials."""


class CorpusCache:
    """Cache of the texts of a sweep: each text is read once."""

    def __init__(self, memory: str | Sequence[str] | None = None):
        """Makes an empty cache.

        Args:
          memory: the text for `data.source="memory"`, as `text` of `lm_jax.train`.
        """
        self._memory = memory
        self._known: dict[Data, Corpus] = {}

    def get(self, data: Data) -> Corpus:
        """Return the text of a data config.

        Raises:
          UserError: as `lm_jax.data.corpus.load`.
        """
        # The text does not depend on these fields, unless it is generated sequence by sequence.
        read = data
        if not data.generated:
            read = dataclasses.replace(
                data, batch_size=1, length=1, jitter=None, batching="streams"
            )
        if read not in self._known:
            self._known[read] = load(data, self._memory)
        return self._known[read]


def sweep_configs(config: Config, points: Mapping[str, Point]) -> dict[str, Config]:
    """Resolve the config of every point; the keys are the points' names.

    Raises:
      UserError: there are no points, two points give the same run, or a point is not valid; the
        message names the point.
    """
    if not points:
        raise UserError("the sweep has no points")
    found: dict[str, Config] = {}
    seen: dict[Config, tuple[int, str]] = {}
    for number, (name, point) in enumerate(points.items(), 1):
        try:
            _check_values(point)
            changed = resolve(override(config, point))
        except (ValueError, TypeError) as error:  # also for a value without a JSON form
            raise UserError(f"{_called(number, name)}: {error}") from None
        other, first = seen.setdefault(changed, (number, name))
        if other != number:
            raise UserError(
                f"points {other} and {number} of the sweep, {first!r} and {name!r}, are the same "
                "run"
            )
        found[name] = changed
    return found


def _check_values(point: Point) -> None:
    """Refuse a mapping or config as a value: a point sets single fields."""
    for path, value in point.items():
        if isinstance(value, Mapping):
            held = value
        elif dataclasses.is_dataclass(value):
            held = vars(value)
        else:
            continue
        one = f"{path}.{next(iter(held), 'FIELD')}"
        if "kind" in held:
            one = f"{path}={held['kind']!r}"
        raise UserError(f"{path}={value!r} holds settings: set each by its path, such as {one}")


def plan(
    config: Config, points: Mapping[str, Point], text: str | Sequence[str] | None = None
) -> Plan:
    """Plan the trials and groups of a sweep; each text is read once.

    Args:
      config: base config, changed by the points.
      points: settings of each trial; the keys are the trials' names.
      text: the text for `data.source="memory"`, as in `lm_jax.train`.

    Raises:
      UserError: as `sweep_configs`, or a point does not fit its text.
    """
    texts = CorpusCache(text)
    epochs: dict[Any, int] = {}
    trials: list[Trial] = []
    vocabs: list[Vocab] = []
    for number, (name, found) in enumerate(sweep_configs(config, points).items(), 1):
        try:
            corpus = texts.get(found.data)
            ready = completed(found, corpus, epochs)
        except UserError as error:
            raise UserError(f"{_called(number, name)}: {error}") from None
        place = trial_dir(number, digest(found))
        trials.append(Trial(number, name, points[name], ready, place))
        vocabs.append(models.vocab_of(ready.model, corpus.vocabulary))
    return Plan(tuple(trials), _groups(trials, vocabs))


def _called(number: int, name: str) -> str:
    return f"point {number} of the sweep, {name!r}"


def _groups(trials: Iterable[Trial], vocabs: Iterable[Vocab]) -> tuple[Group, ...]:
    members: dict[Any, list[Trial]] = {}
    for trial, vocab in zip(trials, vocabs, strict=True):
        key = jax.tree.structure(trial.config), _cadence(trial.config), vocab
        members.setdefault(key, []).append(trial)
    return tuple(Group(tuple(own), key[2]) for key, own in members.items())


def _cadence(config: Config) -> tuple[tuple[str, Any], ...]:
    """Values of the adjustable fields (steps, intervals), read by the host only."""
    return tuple((path, value) for path, value, marks in fields(config) if Mark.ADJUSTABLE in marks)


def distinctions(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """List, for each group, its values of the fields in which the groups differ.

    If some groups switch a number off, the value given for the number is a bool: True if on.
    """
    known = [_fields_that_part(group.trials[0].config) for group in groups]
    values: dict[str, set[str]] = {}
    for own in known:
        for path, value in own.items():
            values.setdefault(path, set()).add(repr(value))
    # A field that only some kinds have needs no mention: the kind itself differs.
    parting = [path for path, seen in values.items() if len(seen) > 1]
    return [{path: own[path] for path in parting if path in own} for own in known]


def _fields_that_part(config: Config) -> dict[str, Any]:
    return {
        path: value is not None if Mark.LEAF in marks else value
        for path, value, marks in fields(config)
    }


def written(trials: Iterable[Trial]) -> dict[str, Any]:
    """Entries of sweep.json: the point and the config's digest of each trial, by name."""
    return {
        trial.name: {"point": plain_point(trial.point), "digest": trial.directory.split("-")[-1]}
        for trial in trials
    }


def trial_dirs(sweep_dir: Path) -> dict[str, Path]:
    """The run directories of a sweep's trials, by name, from sweep.json.

    Raises:
      UserError: sweep.json is damaged.
    """
    trials = files.read_sealed(sweep_dir / "sweep.json")["trials"]
    return {
        name: sweep_dir / trial_dir(number, trial["digest"])
        for number, (name, trial) in enumerate(trials.items(), 1)
    }


def trial_dir(number: int, config_digest: str) -> str:
    """The run directory of a trial, relative to the sweep's."""
    return f"trials/{number:03d}-{config_digest}"


def write_or_check_manifest(
    sweep_dir: Path,
    trials: Iterable[Trial],
    *,
    halving: Mapping[str, int] | None = None,
    growing: bool = False,
) -> None:
    """Writes sweep.json, or checks the sweep against an existing sweep.json.

    Args:
      sweep_dir: directory of the sweep.
      trials: all trials of the sweep.
      halving: fields of the sweep's `Halving`; None: no halving.
      growing: if True, the sweep may have more trials than sweep.json lists.

    Raises:
      UserError: the directory holds another sweep (the message names the difference), or a
        symbolic link stands in place of a directory of the sweep.
    """
    path, trials = sweep_dir / "sweep.json", list(trials)
    places = (sweep_dir / trial.directory for trial in trials)
    files.refuse_links(sweep_dir / "trials", sweep_dir / "jobs", *places)
    here = files.finite({"halving": halving, "trials": written(trials)})
    if path.exists():
        try:
            there = files.read_sealed(path)
        except UserError:
            there = {}
        if not isinstance(there.get("trials"), dict):
            raise UserError(f"{path} is damaged: it is no list of points")
        old, new = list(there["trials"].items()), list(here["trials"].items())
        if there == here and old == new:  # dicts are equal in any order
            return
        if there.get("halving") != halving:
            what = f"its halving is {there.get('halving')}, not {halving}"
            raise UserError(f"{sweep_dir} holds another sweep: {what}")
        if not growing or old != new[: len(old)]:
            difference = _difference(there["trials"], here["trials"])
            raise UserError(f"{sweep_dir} holds another sweep: {difference}")
    files.write_sealed(path, here, indent=1)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    if len(there) != len(here):
        return f"its points are {len(there)}, not {len(here)}"
    if there == here:
        return "its points are in another order"
    number, old, new = next(
        (number, old, new)
        for number, (old, new) in enumerate(zip(there, here, strict=True), 1)
        if (old, there[old]) != (new, here[new])
    )
    what = f"was {old!r}" if old != new else "has other settings"
    return f"point {number}, {new!r}, {what}"
