"""Figures of a gradient's travel through time: lags, truncation, eigenvalues, exponents."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from lm_jax.figures.arguments import (
    alike,
    complex_numbers,
    marks,
    named,
    named_numbers,
    numbers,
)
from lm_jax.figures.colours import colour_bar, log_norm
from lm_jax.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MAP,
    RED,
    SERIES,
    WIDE,
    Curve,
    Figure,
    add_curves,
    canvas,
    curves,
    room_below,
    styled,
)

THROUGH = tuple(COLOURS[name] for name in ("pale", "sky", "blue", "purple", "red"))
"""The colours of some updates, from the first to the last."""


@styled
def lag_norms(
    measured: ArrayLike,
    predicted: Mapping[str, ArrayLike] | None = None,
    *,
    width: int = WIDE,
) -> Figure:
    """Draw ‖∂h_T/∂h_{T-l}‖ by lag l, beside what simple formulas predict.

    Args:
      measured: [L], from lag 0 on.
      predicted: name -> [L]. A prediction is drawn within a thousand times of what was measured.
      width: pixels.
    """
    norms = numbers(measured, "measured")
    rows = named_numbers(predicted, "predicted") if predicted else {}
    figure, axes = canvas(width, 340, x="lag l, steps", y="‖∂h_T/∂h_{T−l}‖")
    every = np.concatenate([values[values > 0] for values in (norms, *rows.values())])
    seen = norms[norms > 0]
    if len(seen):
        axes.set_ylim(
            max(every.min(), seen.min() / 1e3) / 1.5, min(every.max(), seen.max() * 1e3) * 1.5
        )
    drawn = [Curve("measured", norms, colour=INK, width=3)]
    drawn += [Curve(name, values, style="--") for name, values in rows.items()]
    add_curves(axes, drawn, log_y=True, width=width)
    return figure


@styled
def gradient_by_lag(norms: ArrayLike, *, width: int = WIDE) -> Figure:
    """Draw the norm of the gradient of the recurrent weights at each lag.

    Args:
      norms: [L], nats per unit of the weights, from lag 0 on.
      width: pixels.
    """
    return curves(
        [Curve("", numbers(norms, "norms"), colour=BLUE)],
        x="lag, steps",
        y="norm of the gradient at a lag",
        log_y=True,
        width=width,
    )


@styled
def truncation_curve(
    cosine: ArrayLike,
    relative_error: ArrayLike,
    horizons: Mapping[str, float] | None = None,
    *,
    width: int = WIDE,
) -> Figure:
    """Draw what truncation after k2 steps costs: cosine and distance to the full gradient.

    Args:
      cosine: [L], for k2 = 1 … L.
      relative_error: [L], ‖truncated − full‖ / ‖full‖.
      horizons: name -> k2, marked by a vertical line; left out if not finite.
      width: pixels.
    """
    near, error = numbers(cosine, "cosine"), numbers(relative_error, "relative_error")
    alike(cosine=near, relative_error=error)
    lengths = np.arange(1, 1 + len(error))
    figure, axes = canvas(width, x="k2, steps", y="truncated against full gradient")
    for row, (name, steps) in enumerate(marks(horizons, "horizons").items()):
        axes.axvline(steps, color=GREY, linestyle=":", linewidth=1)
        axes.annotate(
            name,
            (steps, 1),
            xytext=(3, -3 if width > 500 else -3 - 13 * row),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=GREY,
            fontsize=11,
            va="top",
        )
    drawn = [
        Curve("cosine", near, lengths, BLUE),
        Curve("relative error", error, lengths, RED),
    ]
    axes.set_ylim(min(0.0, float(np.nanmin(near, initial=0.0))) - 0.05, 1.25)
    add_curves(axes, drawn, width=width)
    return figure


@styled
def over_training_by_lag(
    steps: ArrayLike, norms: ArrayLike, what: str, *, by: str = "lag, steps", width: int = WIDE
) -> Figure:
    """Draw a norm by lag as it changes during training: a heat map, logarithmic colours.

    Args:
      steps: [N], updates.
      norms: [N, L], a row for each update.
      what: what the colour is.
      by: what the columns of `norms` are.
      width: pixels.
    """
    steps, norms = numbers(steps, "steps"), numbers(norms, "norms", axes=2)
    alike(steps=steps, norms=norms)
    placed = np.isfinite(steps)
    if not placed.any():
        raise ValueError("steps holds no finite number")
    steps, norms = steps[placed], norms[placed]
    figure, axes = canvas(width, 320, x="updates", y=by)
    image = axes.pcolormesh(
        edges(steps),
        np.arange(norms.shape[1] + 1) - 0.5,
        norms.T,
        norm=log_norm(norms),
        cmap=MAP,
        rasterized=True,
    )
    axes.grid(False)
    colour_bar(figure, image, what, width)
    return figure


def edges(places: np.ndarray) -> np.ndarray:
    """[N + 1], the borders between cells around N places."""
    if len(places) == 1:
        return places[0] + np.array([-0.5, 0.5])
    between = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - between[0]], between, [2 * places[-1] - between[-1]]])


@styled
def eigenvalues(blocks: Mapping[str, ArrayLike], *, width: int = WIDE) -> Figure:
    """Draw the eigenvalues of recurrent weights in the complex plane, with the unit circle.

    Args:
      blocks: name of a block -> [H], complex.
      width: pixels.
    """
    size = min(width, 480)
    figure, axes = canvas(size, size, x="real part", y="imaginary part", whole=False)
    _unit_circle(axes)
    given = {
        name: complex_numbers(one, f"blocks[{name!r}]")
        for name, one in named(blocks, "blocks").items()
    }
    for (name, places), colour in zip(given.items(), SERIES * len(given), strict=False):
        _add_eigenvalues(axes, places, colour, name)
    if len(given) > 1:
        columns = 2 if width > 500 else 1
        room_below(axes, 17 * math.ceil(len(given) / columns) + 6)
        figure.legend(loc="lower left", labelcolor="linecolor", ncols=columns, handlelength=0.8)
    return figure


@styled
def eigenvalues_over_training(
    blocks: Mapping[str, Mapping[int, ArrayLike]], *, width: int = WIDE
) -> Figure:
    """Draw the eigenvalues of recurrent weights at some updates, a unit circle for each block.

    Args:
      blocks: name of a block -> update -> [H], complex. Of many updates some are drawn, the first
        and the last among them.
      width: pixels.
    """
    given = {
        name: {
            step: complex_numbers(one, f"blocks[{name!r}][{step!r}]")
            for step, one in named(found, f"blocks[{name!r}]").items()
        }
        for name, found in named(blocks, "blocks").items()
    }
    steps = sorted({step for found in given.values() for step in found})
    most = len(THROUGH)
    shown = [steps[place] for place in np.unique(np.linspace(0, len(steps) - 1, most, dtype=int))]
    colours = dict(zip(shown, (*THROUGH[: len(shown) - 1], THROUGH[-1]), strict=True))
    every = np.concatenate([one for found in given.values() for one in found.values()])
    far = 1.08 * float(np.nanmax(np.abs(np.append(every, 1))))
    across = min(len(given), 2)
    down = math.ceil(len(given) / across)
    side = min((width - 68) / across, 412)
    size = int(across * side) + 68
    figure, axes = canvas(size, int(down * side) + 78, x="", y="imaginary part", whole=False)
    grid = figure.add_gridspec(down, across, hspace=0.2, wspace=0.2)
    axes.set_subplotspec(grid[0])
    for place, (name, found) in enumerate(given.items()):
        if place:
            axes = figure.add_subplot(grid[place])
        _unit_circle(axes)
        axes.set(xlim=(-far, far), ylim=(-far, far))
        axes.set_aspect("equal", "box")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for step, colour in colours.items():
            if step in found:
                label = "" if place else f"update {step:,}"
                _add_eigenvalues(axes, found[step], colour, label)
        if len(given) > 1:
            axes.set_title(name, fontsize=11, color=GREY)
    axes.set_xlabel("real part")
    room_below(axes, 17 * math.ceil(len(shown) / 2) + 6)
    figure.legend(loc="lower left", ncols=2, handlelength=0.8)
    return figure


def _unit_circle(axes: Axes) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linestyle=":", linewidth=1.5)
    axes.set_aspect("equal", "datalim")
    axes.grid(True, axis="both")
    axes.margins(0.08)


def _add_eigenvalues(axes: Axes, places: Any, colour: str, label: str) -> None:
    axes.plot(places.real, places.imag, "o", markersize=4, alpha=0.7, color=colour, label=label)


@styled
def lyapunov_convergence(exponents: ArrayLike, *, width: int = WIDE) -> Figure:
    """Draw the largest Lyapunov exponents as more of a text is read.

    Args:
      exponents: [N, k], in nats a step, after 1 … N tokens, the largest first.
      width: pixels.
    """
    found = numbers(exponents, "exponents", axes=2)
    names = ["λ₁", *[""] * (found.shape[1] - 2), f"λ{_small(found.shape[1])}"]
    drawn = [
        Curve(name, row, np.arange(1, 1 + len(found)), BLUE if k == 0 else GREY, width=2 - (k > 0))
        for k, (name, row) in enumerate(zip(names, found.T, strict=False))
    ]
    return curves(
        drawn, x="tokens read", y="exponents, nats a step", level={"no growth": 0.0}, width=width
    )


def _small(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


@styled
def by_lag(
    rows: Mapping[str, ArrayLike], y: str, *, x: str = "lag, steps", width: int = WIDE
) -> Figure:
    """Draw positive numbers by lag or step, a curve for each name, on a logarithmic axis.

    Args:
      rows: name -> [L].
      y, x: the words beside the axes.
      width: pixels.
    """
    drawn = [Curve(name, row) for name, row in named_numbers(rows, "rows").items()]
    return curves(drawn, x=x, y=y, log_y=True, width=width)
