"""Figures of any numbers over a number."""

from collections.abc import Collection, Mapping

from numpy.typing import ArrayLike

from lm_jax.figures.arguments import pairs
from lm_jax.figures.style import (
    INK,
    WIDE,
    Curve,
    Figure,
    add_curves,
    canvas,
    log_ticks,
    styled,
)


@styled
def lines(
    rows: Mapping[str, tuple[ArrayLike, ArrayLike]],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    dots: Collection[str] = (),
    level: Mapping[str, float] | None = None,
    width: int = WIDE,
) -> Figure:
    """Draw numbers over a number, a named line for each row.

    Args:
      rows: name -> places [N], numbers [N].
      x, y: the words beside the axes, with units.
      log_x, log_y: logarithmic axes.
      dots: names of the rows drawn as black dots without a line, for measurements beside a
        prediction.
      level: dotted horizontal lines by name.
      width: pixels.
    """
    given = pairs(rows, "rows")
    figure, axes = canvas(width, x=x, y=y)
    drawn = [
        Curve(name, numbers, places, INK, "", "o") if name in dots else Curve(name, numbers, places)
        for name, (places, numbers) in given.items()
    ]
    add_curves(axes, drawn, log_y=log_y, level=level, width=width)
    if log_x:
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
    return figure
