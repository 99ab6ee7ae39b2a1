"""Measures for the comparison of trials in a sweep, and their means over the seeds of a setting.

A measure reads a number from a row of results.jsonl. Trials with equal values of the fields on the
axes of a map share a cell. A cell shows the mean over the finished trials of the cell. For norms
the mean is geometric: norms span orders of magnitude, and along a chunk their logarithms add up.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lm_jax.files import Row
from lm_jax.report.study import within

OUT = ("diverged", "failed")
SHARE = "0.9"


class Measure(NamedTuple):
    """A number to compare trials by."""

    name: str
    words: str
    """Description, for the title of a figure."""
    read: Callable[[Row], float | None]
    """Number of a trial; None if the trial does not have the number or the number is not finite."""
    log: bool = False
    """True for a norm: drawn on a logarithmic scale, with a geometric mean."""


class MeanOfTrials(NamedTuple):
    """Summary of the trials in a cell of a map."""

    mean: float | None
    """Mean over the finished trials; None if no finished trial has the number."""
    lost: int
    """Number of diverged or failed trials."""
    of: int
    """Number of trials."""


def measures(rows: Sequence[Row]) -> list[Measure]:
    """The measures with a number in at least one trial, with the results of the runs first."""
    return [one for one in _all() if any(one.read(row) is not None for row in rows)]


def _all() -> list[Measure]:
    found = [
        Measure("success", "share of the test's sequences that are right", _success),
        Measure(
            "validation",
            "best validation loss",
            _named("best_validation"),
        ),
    ]
    for part, when in (("first_probe", "before the first update"), ("probe", "after the last")):
        found += [
            Measure(
                f"{part}.lag_norm",
                f"‖∂h_T/∂h_1‖ {when}: what is left of a gradient at the chunk's start",
                _named(part, "lag_norm"),
                log=True,
            ),
            Measure(
                f"{part}.lyapunov",
                f"largest Lyapunov exponent {when}, nats a step",
                _named(part, "lyapunov"),
            ),
            Measure(
                f"{part}.spectral_radius", f"spectral radius of W_hh {when}", _largest_radius(part)
            ),
            Measure(
                f"{part}.horizon",
                f"steps back, {within(SHARE)} of the full gradient, {when}",
                _named(part, "horizon", SHARE),
            ),
        ]
    return [
        *found,
        Measure("gradient.clipped", "share of the updates clipped", _named("gradient", "clipped")),
        Measure(
            "gradient.grad_norm_max",
            "largest norm of a gradient before clipping",
            _named("gradient", "grad_norm_max"),
            log=True,
        ),
        Measure(
            "gradient.grad_norm",
            "mean norm of the gradient before clipping",
            _named("gradient", "grad_norm"),
            log=True,
        ),
        Measure(
            "gradient.grad_norm_clipped",
            "mean norm of the gradient after clipping",
            _named("gradient", "grad_norm_clipped"),
            log=True,
        ),
    ]


def _success(row: Row) -> float | None:
    return row.get("splits", {}).get("test", {}).get("success")


def _named(*path: str) -> Callable[[Row], float | None]:
    def read(row: Row) -> float | None:
        value: Any = row
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    return read


def _largest_radius(part: str) -> Callable[[Row], float | None]:
    def read(row: Row) -> float | None:
        layers = row.get(part, {}).get("spectral_radius", {})
        radii = [radius for blocks in layers.values() for radius in blocks]
        return None if not radii or None in radii else max(radii)

    return read


def cell(rows: Iterable[Row], measure: Measure) -> MeanOfTrials:
    """Summarise the trials of a cell by a measure."""
    rows = list(rows)
    over = [row for row in rows if row["status"] == "finished"]
    values = [value for row in over if (value := measure.read(row)) is not None]
    lost = sum(row["status"] in OUT for row in rows)
    return MeanOfTrials(_mean(values, log=measure.log), lost, len(rows))


def _mean(values: Sequence[float], *, log: bool) -> float | None:
    if not values:
        return None
    if not log:
        return math.fsum(values) / len(values)
    if min(values) <= 0:  # a product that underflowed
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def varied(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The fields that differ between trials, except the seed, with the sorted values of each.

    Numbers come first, in increasing order; then words, in the order of the rows; then None (off).
    """
    found: dict[str, list[Any]] = {}
    for row in rows:
        for path, value in row["settings"].items():
            seen = found.setdefault(path, [])
            if path != "seed" and value not in seen:
                seen.append(value)
    return {path: sorted(seen, key=_place) for path, seen in found.items() if len(seen) > 1}


def _place(value: Any) -> tuple[int, float | int]:
    if isinstance(value, int | float):
        return 0, value
    if value == "inf":
        return 0, math.inf
    return (2 if value is None else 1), 0.0


def at(rows: Iterable[Row], settings: dict[str, Any]) -> list[Row]:
    """The rows with the given settings."""
    return [
        row
        for row in rows
        if all(
            path in row["settings"] and row["settings"][path] == value
            for path, value in settings.items()
        )
    ]
