"""Figures of a training run: loss, gradient norms, anything else over the updates."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from lm_jax.figures.arguments import alike, named_numbers, numbers, pair, pairs
from lm_jax.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    RED,
    WIDE,
    Curve,
    Figure,
    add_curves,
    canvas,
    curves,
    limit,
    plain,
    styled,
)


@styled
def loss_curve(
    steps: ArrayLike,
    nats: ArrayLike,
    *,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    level: Mapping[str, float] | None = None,
    perplexity: bool = True,
    y: str = "nats a token",
    width: int = WIDE,
) -> Figure:
    """Draw the loss over training: the mean of each record pale, a running mean over it.

    Args:
      steps: [N], updates at each record.
      nats: [N], the mean training loss since the record before.
      validation: steps and validation losses.
      level: losses to compare with, by name: a uniform guess, the entropy of the text.
      perplexity: write the perplexity, e to the loss, beside the loss on the vertical axis.
      y: unit of the loss.
      width: pixels.
    """
    steps, nats = numbers(steps, "steps"), numbers(nats, "nats")
    alike(steps=steps, nats=nats)
    held = None if validation is None else pair(validation, "validation")
    words, left = (f"{y} (perplexity)", 92) if perplexity else (y, 52)
    figure, axes = canvas(width, x="updates", y=words, left=left)
    axes.plot(steps, nats, color=PALE, linewidth=1.2)
    drawn = [Curve("training", smoothed(nats), steps, BLUE)]
    if held is not None:
        drawn.append(Curve("validation", held[1], held[0], RED, marker="o"))
    # The first losses may be far above all others: leave room for what is learnt.
    limit(axes, np.concatenate([nats, [] if held is None else held[1]]), level)
    axes.set_xlim(left=0)
    add_curves(axes, drawn, level=level, width=width)
    if perplexity:
        axes.yaxis.set_major_formatter(lambda at, _: f"{plain(at)} ({_perplexity(at)})")
    return figure


def _perplexity(nats: float) -> str:
    """The perplexity of a loss, three digits."""
    return plain(float(f"{np.exp(min(nats, 700.0)):.3g}"))


def smoothed(values: ArrayLike) -> np.ndarray:
    """A running mean over a twentieth of the values, as many before as after each value.

    Args:
      values: [N]; values that are not finite are left out of the means.
    """
    given = numbers(values, "values")
    half = len(given) // 40
    seen = np.isfinite(given)
    sums = np.cumsum([0.0, *np.where(seen, given, 0.0)])
    counts = np.cumsum([0, *seen])
    first = np.maximum(np.arange(len(given)) - half, 0)
    last = np.minimum(np.arange(len(given)) + half, len(given) - 1) + 1
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


@styled
def gradient_norms(
    steps: ArrayLike,
    mean: ArrayLike,
    largest: ArrayLike,
    clipped: ArrayLike | None = None,
    *,
    threshold: float | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw the norm of the gradient over training, before and after clipping.

    Args:
      steps: [N], updates at each record.
      mean, largest: [N], the mean and the largest norm before clipping since the record before.
      clipped: [N], the mean norm after clipping.
      threshold: the clipping threshold.
      width: pixels.
    """
    at, means = numbers(steps, "steps"), numbers(mean, "mean")
    peaks = numbers(largest, "largest")
    alike(steps=at, mean=means, largest=peaks)
    figure, axes = canvas(width, x="updates", y="norm of the gradient")
    drawn = [Curve("largest", peaks, at, ORANGE, width=1), Curve("mean", means, at, BLUE)]
    if clipped is not None:
        shorter = numbers(clipped, "clipped")
        alike(steps=at, clipped=shorter)
        drawn.append(Curve("mean after clipping", shorter, at, RED, "--"))
    level = {} if threshold is None else {f"threshold {plain(threshold)}": threshold}
    add_curves(axes, drawn, log_y=True, level=level, width=width)
    return figure


@styled
def over_training(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike] | ArrayLike,
    y: str,
    *,
    log_y: bool = False,
    level: Mapping[str, float] | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw numbers over the updates: a learning rate, tokens a second, a spectral radius.

    Args:
      steps: [N], updates.
      values: [N], or several such arrays by name.
      y: what is drawn, with its unit.
      log_y: a logarithmic vertical axis.
      level: dotted horizontal lines by name.
      width: pixels.
    """
    at = numbers(steps, "steps")
    if isinstance(values, Mapping):
        rows = named_numbers(values, "values")
        drawn = [Curve(name, one, at) for name, one in rows.items()]
    else:
        drawn = [Curve("", numbers(values, "values"), at, BLUE)]
    for curve in drawn:
        alike(steps=at, values=curve.y)
    return curves(drawn, x="updates", y=y, log_y=log_y, level=level, width=width)


@styled
def horizon(steps: ArrayLike, horizons: Mapping[str, ArrayLike], *, width: int = WIDE) -> Figure:
    """Draw how many steps back the gradient comes within a distance of the full gradient.

    Args:
      steps: [N], updates.
      horizons: name -> [N], steps back; not finite where no length suffices.
      width: pixels.
    """
    at, rows = numbers(steps, "steps"), named_numbers(horizons, "horizons")
    colours = dict(zip(rows, (GREEN, BLUE, RED, INK), strict=False))
    for found in rows.values():
        alike(steps=at, horizons=found)
    drawn = [Curve(name, found, at, colours.get(name), marker="o") for name, found in rows.items()]
    return curves(drawn, x="updates", y="steps back", width=width)


@styled
def runs(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], y: str, *, width: int = WIDE) -> Figure:
    """Draw a number of several runs over their updates, on the same axes.

    Args:
      curves: run -> updates [N], values [N].
      y: what is drawn, with its unit.
      width: pixels.
    """
    given = pairs(curves, "curves")
    figure, axes = canvas(width, x="updates", y=y)
    drawn = [Curve(name, own, steps) for name, (steps, own) in given.items()]
    add_curves(axes, drawn, width=width)
    axes.set_xlim(left=0)
    return figure
