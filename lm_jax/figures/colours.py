"""The colours of a map: the range of its numbers, and the scale under it."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from lm_jax.figures.style import Figure, log_ticks, room_below


def log_norm(values: np.ndarray, decades: float = 8.0) -> LogNorm:
    """Logarithmic colours for the positive values, over the highest decades only."""
    seen = values[np.isfinite(values) & (values > 0)]
    if not len(seen):
        return LogNorm(0.1, 1)
    high = float(seen.max())
    return LogNorm(max(float(seen.min()), high / 10**decades) * (1 - 1e-9), high, clip=True)


def colour_bar(figure: Figure, image: Any, words: str, width: int) -> None:
    """Add the scale of the colours, under the figure."""
    axes = figure.axes[0]
    below = room_below(axes, 56)
    height = figure.get_size_inches()[1] * 72
    at = axes.get_position()
    share = 0.6 if width > 500 else 1.0
    scale = figure.add_axes((at.x0, (below - 64) / height, at.width * share, 8 / height))
    bar = figure.colorbar(image, cax=scale, orientation="horizontal")
    bar.outline.set_visible(False)  # type: ignore[operator]
    scale.set_xlabel(words)
    log_ticks(scale.xaxis)


def robust_norm(numbers: np.ndarray, *, log: bool, worst: float | None = None) -> Normalize:
    """The range of the colours: the values without outliers.

    Args:
      numbers: any shape; NaN is left out.
      log: take the quartiles of the logarithms.
      worst: an upper end of the range.
    """
    seen = numbers[np.isfinite(numbers)]
    if worst is not None and (seen < worst).any():
        seen = np.minimum(seen, worst)
    if not len(seen):
        return Normalize(0, 1)
    heights = np.log(seen) if log else seen
    low, high = np.quantile(heights, [0.25, 0.75])
    reach = 2 * (high - low) or max(abs(float(low)) * 0.1, 1e-9)
    low, high = max(float(heights.min()), low - reach), min(float(heights.max()), high + reach)
    if low == high:
        low, high = low - 0.5, high + 0.5
    if log:
        return LogNorm(math.exp(low), math.exp(high), clip=True)
    return Normalize(low, high, clip=True)
