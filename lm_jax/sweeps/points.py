"""Points of a sweep: the settings of each trial, as mappings from dotted paths to values.

    grid({"train.learning_rate": [0.1, 0.01], "seed": [0, 1, 2]})       every combination: 6 points
    zipped({"model.hidden_size": [64, 512], "data.batch_size": [32, 8]})     the nth with the nth: 2
    draw({"train.learning_rate": log_uniform(1e-4, 1e-1)}, count=32)    at random, by a fixed seed
    chain(a, b)        the points of a, then the points of b
    crossed(a, b)      each point of a with each point of b
    lanes({"seed": range(64)})      a grid, checked to train as a single compiled program

Each result is a list of dicts; a list written by hand works as well.
"""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_jax.config import Config
from lm_jax.fields import Mark, marks_at, paths
from lm_jax.settings import UserError, plain
from lm_jax.suggestions import nearest_field

Point = Mapping[str, Any]
Points = list[dict[str, Any]]
Values = Mapping[str, Any]  # by path: an iterable of values


@dataclasses.dataclass(frozen=True)
class Range:
    """A distribution over numbers from `low` to `high`.

    Real numbers, uniform by default; with `log`, the logarithm is uniform instead. With `whole`,
    integers, uniform, including both ends.
    """

    low: float | int
    high: float | int
    log: bool = False
    whole: bool = False

    def draw(self, generator: np.random.Generator) -> float | int:
        """Draw a number."""
        if self.whole:
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.log:
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
            return min(max(drawn, self.low), self.high)  # exp(log(x)) may miss x by a bit
        return float(generator.uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Choice:
    """A uniform distribution over a list of values."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value."""
        return self.values[int(generator.integers(len(self.values)))]


Space = Mapping[str, Range | Choice]


class Drawn(list[dict[str, Any]]):
    """Random points, with their space and seed for an Optuna search.

    Attributes:
      space: the distribution of each path.
      seed: seed of the draws.
    """

    def __init__(self, space: Space, count: int, seed: int):
        """Draws `count` points of a space, value by value in the order of the paths."""
        self.space, self.seed = dict(space), seed
        generator = np.random.default_rng(seed)
        super().__init__(
            {path: values.draw(generator) for path, values in self.space.items()}
            for _ in range(count)
        )


def log_uniform(low: float | int, high: float | int) -> Range:
    """Distribution of x with log x uniform between log `low` and log `high`, both positive."""
    return _range("log_uniform", low, high, log=True)


def uniform(low: float | int, high: float | int) -> Range:
    """Uniform distribution of real numbers between `low` and `high`."""
    return _range("uniform", low, high)


def integers(low: float | int, high: float | int) -> Range:
    """Uniform distribution of integers from `low` to `high`, including both ends."""
    if int(low) != low or int(high) != high:
        raise UserError(f"integers({low}, {high}): both ends must be integers")
    return _range("integers", low, high, whole=True)


def choice(values: Iterable[Any]) -> Choice:
    """Uniform distribution over the given values."""
    return Choice(tuple(_listed("choice", "of", values)))


def _range(
    name: str, low: float | int, high: float | int, *, log: bool = False, whole: bool = False
) -> Range:
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite or low >= high or (log and low <= 0):
        above = "0 < low < high" if log else "low < high"
        raise UserError(f"{name}({low}, {high}): it must be {above}")
    return Range(low, high, log, whole)


def grid(values: Values) -> Points:
    """List every combination of the values of all paths; the last path changes fastest.

    Raises:
      UserError: the values of a path are not a list, or are empty; the message names the path.
    """
    columns = {path: _listed("grid", path, own) for path, own in values.items()}
    return [dict(zip(columns, row, strict=True)) for row in itertools.product(*columns.values())]


def zipped(values: Values) -> Points:
    """Combine the nth values of all paths, for n = 1, 2, …

    Raises:
      UserError: the values of a path are not a list, or two paths differ in the number of values.
    """
    columns = {path: _listed("zipped", path, own) for path, own in values.items()}
    counts = {path: len(own) for path, own in columns.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {path}" for path, count in counts.items())
        raise UserError(f"zipped: each path must have as many values as the others, not {told}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def chain(*parts: Iterable[Point]) -> Points:
    """Concatenate the points of all parts."""
    return [dict(point) for part in parts for point in part]


def crossed(first: Iterable[Point], *others: Iterable[Point]) -> Points:
    """Merge points of all parts, in every combination; the last part changes fastest.

    Raises:
      UserError: two parts change the same path.
    """
    found = [dict(point) for point in first]
    for other in map(list, others):
        for a, b in itertools.product(found, other):
            if both := a.keys() & b.keys():
                raise UserError(f"crossed: {min(both)} is changed by two of its parts")
        found = [{**a, **b} for a, b in itertools.product(found, other)]
    return found


def draw(space: Mapping[str, Any], *, count: int = 32, seed: int = 0) -> Drawn:
    """Draw points at random, always the same points for a given seed.

    Args:
      space: the distribution of each path: `log_uniform`, `uniform`, `integers` or `choice`.
      count: number of points.
      seed: seed of the draws.

    Raises:
      UserError: a path has anything else, or `count` is not positive.
    """
    for path, values in space.items():
        if not isinstance(values, Range | Choice):
            raise UserError(
                f"draw: {path}={values!r} must be log_uniform, uniform, integers or choice"
            )
    if count < 1:
        raise UserError(f"draw: count={count} must be 1 or more")
    return Drawn(space, count, seed)


def lanes(values: Values) -> Points:
    """Make a grid over numbers only: all points train as lanes of a single compiled program.

    Raises:
      UserError: a path is not a field, or its values change the compiled program; the message
        names the path.
    """
    points = grid(values)
    for path in values:
        marks = marks_at(Config, path)
        if marks is None:
            raise UserError(f"lanes: there is no field {path}{nearest_field(path, paths(Config))}")
        if Mark.LEAF not in marks:
            raise UserError(f"lanes: {path} changes the compiled program: put it into a grid")
        if any(point[path] is None for point in points):
            raise UserError(
                f"lanes: {path}=None switches it off, which changes the compiled program: put it "
                "into a grid"
            )
    return points


def _listed(what: str, path: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UserError(f"{what}: {path}={values!r} must be a list of values")
    found = [plain(value) for value in values]
    if not found:
        raise UserError(f"{what}: {path} has no values")
    return found


def plain_point(point: Point) -> dict[str, Any]:
    """Convert the values of a point to plain JSON values."""
    return {path: plain(value) for path, value in point.items()}


def flags(point: Point) -> str:
    """Format a point as flags of a command line."""
    words = []
    for path, value in plain_point(point).items():
        flag = path.replace("_", "-")
        if isinstance(value, bool):
            *parents, name = flag.split(".")
            words.append("--" + ".".join([*parents, name if value else f"no-{name}"]))
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)
