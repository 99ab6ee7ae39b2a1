"""Figures of a sweep: maps over two settings, curves over one, the trials side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike

from lm_jax.figures.arguments import levels, named, numbers, pairs, words_of
from lm_jax.figures.colours import robust_norm
from lm_jax.figures.style import (
    BLUE,
    GREY,
    INK,
    MAP,
    PALE,
    PAPER,
    RED,
    WIDE,
    Curve,
    Figure,
    add_curves,
    canvas,
    length_of,
    limit,
    plain,
    room_below,
    styled,
)


@styled
def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x: str,
    y: str,
    words: Sequence[Sequence[str]] | None = None,
    log: bool = False,
    worst: float | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw a number over two settings; each cell holds its number.

    Values beyond twice the interquartile range share the colour of the nearest end, so one outlier
    does not hide the differences between the others.

    Args:
      values: [R, C]; NaN where there is no number.
      rows, columns: names of the values of the two settings.
      x, y: the settings on the horizontal and the vertical axis.
      words: [R][C], the text of each cell; the numbers if not given.
      log: logarithmic colours.
      worst: the end of the colours: values beyond, such as losses above that of a uniform guess,
        have one colour.
      width: pixels.
    """
    found = numbers(values, "values", axes=2)
    found = np.where((found > 0) | (not log), found, np.nan)
    rows = list(map(str, words_of(rows, "rows", len(found), "values")))
    columns = list(map(str, words_of(columns, "columns", found.shape[1], "values")))
    if words is not None:
        lines = words_of(words, "words", len(rows), "rows")
        words = [words_of(line, "words", len(columns), "columns") for line in lines]
    tall = 34 if width > 500 else 30
    left = 14 + int(max(map(length_of, rows)))
    figure, axes = canvas(width, 76 + tall * len(rows), x=x, y=y, left=left)
    norm = robust_norm(found, log=log, worst=worst)
    axes.pcolormesh(np.ma.masked_invalid(found), norm=norm, cmap=MAP, edgecolors=PAPER, lw=1.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    crowded = sum(len(column) for column in columns) * 7 > width - 80
    if crowded:
        axes.tick_params(axis="x", rotation=90)
        room_below(axes, max(map(length_of, columns)) - 10)
    axes.grid(False)
    size = min(12, 1.5 * (width - 80) / max(len(columns), 1) / 5)
    for down, across in np.ndindex(found.shape):
        value = found[down, across]
        own = plain(float(f"{value:.3g}")) if math.isfinite(value) else ""
        said: Any = own if words is None else words[down][across]
        shade = matplotlib.colormaps[MAP](norm(value)) if math.isfinite(value) else to_rgb(PAPER)
        bright = 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2]
        colour = INK if not math.isfinite(value) else "#101010" if bright > 0.5 else "#fdfdfd"
        axes.text(
            across + 0.5, down + 0.5, said, ha="center", va="center", color=colour, fontsize=size
        )
    return figure


@styled
def setting_curve(
    settings: Sequence[Any],
    means: Sequence[float | None],
    *,
    x: str,
    y: str,
    trials: Sequence[tuple[Any, float]] = (),
    words: Sequence[str] | None = None,
    log_y: bool = False,
    level: Mapping[str, float] | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw a number over one setting: the means, and a pale dot for each trial.

    Args:
      settings: [N], numbers (a logarithmic axis if they span a decade) or other values.
      means: [N]; None where no trial finished.
      x, y: the words beside the axes.
      trials: (setting, number) of each trial.
      words: [N], written above the means; "" for none.
      log_y: a logarithmic vertical axis.
      level: dotted horizontal lines by name.
      width: pixels.
    """
    given = numbers(means, "means")
    settings = words_of(settings, "settings", len(given), "means")
    above = words_of([""] * len(given) if words is None else words, "words", len(given), "means")
    if unknown := [str(v) for v, _ in trials if str(v) not in map(str, settings)]:
        raise ValueError(f"trials has {unknown[0]}, which is not in settings")
    figure, axes = canvas(width, x=x, y=y)
    numeric = all(map(_is_number, settings))
    places = [float(v) for v in settings] if numeric else list(range(len(settings)))
    where = dict(zip(map(str, settings), places, strict=True))
    if trials:
        dots = numbers([number for _, number in trials], "trials")
        axes.plot([where[str(v)] for v, _ in trials], dots, "o", color=PALE)
    line = "-" if numeric else ""
    drawn = [Curve("", given, places, BLUE, line, "o")]
    add_curves(axes, drawn, log_y=log_y, level=level, width=width)
    for place, mean, said in zip(places, given, above, strict=True):
        if said:
            high = mean if math.isfinite(mean) else axes.get_ylim()[0]
            axes.annotate(
                said,
                (place, high),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=RED,
            )
    if numeric and places[0] > 0 and places[-1] >= 10 * places[0]:
        axes.set_xscale("log")
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    else:
        room = 0.06 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
    if len(places) <= 10:
        axes.set_xticks(places, [f"{v:g}" if _is_number(v) else str(v) for v in settings])
    axes.minorticks_off()
    return figure


@styled
def learning_curves(
    trials: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    diverged: Sequence[str] = (),
    best: str | None = None,
    y: str = "nats a token",
    level: Mapping[str, float] | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw the losses of many trials: all pale, the best in blue, a cross where one diverged.

    Args:
      trials: name -> steps and losses.
      diverged: trials that diverged.
      best: the trial to bring out.
      y: unit of the loss.
      level: dotted horizontal lines by name, such as the loss of a uniform guess.
      width: pixels.
    """
    given = pairs(trials, "trials")
    if best is not None and best not in given:
        raise ValueError(f"best={best!r} is not in trials")
    figure, axes = canvas(width, x="updates", y=y)
    finite = []
    for name, (steps, losses) in given.items():
        if name != best:
            axes.plot(steps, losses, color=PALE, linewidth=1.2)
        seen = np.isfinite(losses)
        finite.append(losses[seen])
        if name in diverged and seen.any():
            axes.plot(steps[seen][-1:], losses[seen][-1:], "x", color=RED, markersize=7)
    shown = np.concatenate(finite)
    worst = max(levels(level).values(), default=np.inf)
    # A trial worse than every level, such as a uniform guess, would flatten all others.
    limit(axes, shown[shown <= worst] if (shown <= worst).any() else shown, level)
    axes.set_xlim(left=0)
    drawn = [] if best is None else [Curve("best", given[best][1], given[best][0], BLUE)]
    add_curves(axes, drawn, level=level, width=width)
    return figure


@styled
def parallel_coordinates(
    columns: Mapping[str, Sequence[Any]],
    scores: ArrayLike,
    *,
    score: str,
    width: int = WIDE,
) -> Figure:
    """Draw each trial as a line through its settings to its score, the best tenth in blue.

    Args:
      columns: setting -> [N], its value in each trial.
      scores: [N], the lower the better; NaN for a trial without one.
      score: name of the score.
      width: pixels.
    """
    found = numbers(scores, "scores")
    given = {
        name: words_of(column, f"columns[{name!r}]", len(found), "scores")
        for name, column in named(columns, "columns").items()
    }
    seen = np.isfinite(found)
    figure, axes = canvas(width, 320, x="", y="", left=16)
    heights, names = [], [*given, score]
    for name, values in [*given.items(), (score, found.tolist())]:
        height, ticks = _heights(values)
        heights.append(height)
        place = names.index(name)
        for at, words in ticks:
            axes.annotate(
                words,
                (place, at),
                xytext=(4, 0),
                textcoords="offset points",
                color=GREY,
                fontsize=10,
                va="center",
            )
        axes.axvline(place, color=GREY, linewidth=1)
    order = np.argsort(-np.where(seen, found, np.inf))  # the best last, above the others
    top = np.quantile(found[seen], 0.1) if seen.any() else -np.inf
    for trial in order:
        line = [height[trial] for height in heights]
        good = bool(seen[trial] and found[trial] <= top)
        axes.plot(
            range(len(names)), line, color=BLUE if good else PALE, linewidth=1.8 if good else 0.8
        )
    axes.set_xticks(
        range(len(names)), [name.rpartition(".")[2].replace("_", " ") for name in names]
    )
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 1 + 0.35)
    axes.spines["bottom"].set_visible(False)
    return figure


def _heights(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of a setting's values, and a few heights with their words."""
    if not all(map(_is_number, values)):
        words = [plain(v) if _is_number(v) else str(v) for v in values]
        kinds = sorted(set(words))
        step = 1 / max(len(kinds) - 1, 1)
        place = {kind: step * number for number, kind in enumerate(kinds)}
        return [place[word] for word in words], [(at, kind) for kind, at in place.items()]
    numbers = np.asarray(values, dtype=float)
    seen = numbers[np.isfinite(numbers)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    log = low > 0 and high >= 10 * low
    scaled = np.log(numbers) if log else numbers
    ends = (math.log(low), math.log(high)) if log else (low, high)
    span = ends[1] - ends[0] or 1.0
    ticks = []
    for share in (0.0, 0.5, 1.0):
        at = ends[0] + share * span
        ticks.append((share, plain(float(f"{math.exp(at) if log else at:.3g}"))))
    return ((scaled - ends[0]) / span).tolist(), ticks


def _is_number(value: Any) -> bool:
    """True for a finite number, which has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
