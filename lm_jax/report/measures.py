"""What the trials of a sweep are compared by, and its mean over the seeds of each setting.

A measure reads one number off a row of results.jsonl. The trials that agree in the fields on the
axes of a map share a cell; a cell's figure is the mean over those of them that finished, of norms
the geometric mean: they span orders of magnitude, and what is added up along a chunk is their
logarithm.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lm_jax.training.journal import Row

OUT = ("diverged", "failed")
SHARE = "0.9"


class Measure(NamedTuple):
    """A number of each trial."""

    name: str
    words: str
    """What it is, for a figure's title."""
    read: Callable[[Row], float | None]
    """None where a trial does not have it, or it is not finite."""
    log: bool = False
    """Whether it is a norm: drawn and averaged by its logarithm."""


class Cell(NamedTuple):
    """The trials of one place of a map."""

    mean: float | None
    """None: none of them finished with that number."""
    lost: int
    """How many diverged or failed."""
    of: int
    """How many they are."""


def measures(rows: Sequence[Row]) -> list[Measure]:
    """Those of which some trial has a number, the result first."""
    return [one for one in _all() if any(one.read(row) is not None for row in rows)]


def _all() -> list[Measure]:
    found = [
        Measure("success", "share of the test's sequences that are right", _success),
        Measure(
            "validation",
            "best validation loss: nats a token, or a squared error",
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
                f"steps back to {float(SHARE):.0%} of the gradient {when}",
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


def cell(rows: Iterable[Row], measure: Measure) -> Cell:
    """The figure of the trials that share a place."""
    rows = list(rows)
    over = [row for row in rows if row["status"] == "finished"]
    values = [value for row in over if (value := measure.read(row)) is not None]
    lost = sum(row["status"] in OUT for row in rows)
    return Cell(_mean(values, log=measure.log), lost, len(rows))


def _mean(values: Sequence[float], *, log: bool) -> float | None:
    if not values:
        return None
    if not log:
        return math.fsum(values) / len(values)
    if min(values) <= 0:  # a product that underflowed
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def varied(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The fields in which trials differ beside their seeds, and the values of each, in order.

    Numbers rise; after them comes what is written in words, as it came, and None, which is off.
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
    """The rows whose settings are these."""
    return [
        row
        for row in rows
        if all(
            path in row["settings"] and row["settings"][path] == value
            for path, value in settings.items()
        )
    ]
