"""Figures of single updates: gradient estimators, the loss around the parameters, exposure bias."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from lm_jax.figures.arguments import alike, named_numbers, numbers
from lm_jax.figures.style import BLUE, GREY, RED, WIDE, Curve, Figure, canvas, curves, styled


@styled
def estimator_cosines(cosines: Mapping[str, ArrayLike], *, width: int = WIDE) -> Figure:
    """Draw the cosine of each estimator's gradient to full backpropagation, update by update.

    Args:
      cosines: estimator -> [N]. The level of 1 is the full gradient.
      width: pixels.
    """
    drawn = [
        Curve(name, row, np.arange(1, 1 + len(row)), marker="o")
        for name, row in named_numbers(cosines, "cosines").items()
    ]
    return curves(drawn, x="update", y="cosine to full BPTT", level={"full": 1.0}, width=width)


@styled
def loss_slices(
    places: ArrayLike, gradient: ArrayLike, sharpest: ArrayLike, *, width: int = WIDE
) -> Figure:
    """Draw the loss along its gradient and along the sharpest direction of the Hessian.

    Args:
      places: [N], distances from the parameters, in lengths of an update; downhill is negative.
      gradient, sharpest: [N], losses in nats a token.
      width: pixels.
    """
    at = numbers(places, "places")
    downhill, steep = numbers(gradient, "gradient"), numbers(sharpest, "sharpest")
    alike(places=at, gradient=downhill, sharpest=steep)
    figure = curves(
        [
            Curve("along the gradient", downhill, at, BLUE),
            Curve("along the sharpest direction", steep, at, RED),
        ],
        x="distance, lengths of an update",
        y="nats a token",
        whole=False,
        width=width,
    )
    figure.axes[0].axvline(0, color=GREY, linestyle=":", linewidth=1)
    return figure


@styled
def exposure(cosine: ArrayLike, *, width: int = WIDE) -> Figure:
    """Draw the cosine between the gradient on the text and that on the model's own samples.

    Args:
      cosine: [T], by position in the chunk.
      width: pixels.
    """
    values = numbers(cosine, "cosine")
    figure, axes = canvas(width, x="position, steps", y="cosine")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(np.arange(len(values)), values, color=BLUE, marker="o", markersize=3, linewidth=1)
    axes.set_ylim(min(-0.1, float(np.nanmin(values, initial=0.0)) - 0.05), 1.05)
    return figure
