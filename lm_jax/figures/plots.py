"""Figures of any numbers: lines over a number, and the probabilities of the next token."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lm_jax.figures.style import (
    BLUE,
    GREY,
    INK,
    RED,
    WIDE,
    Curve,
    Figure,
    add_curves,
    canvas,
    log_ticks,
    plain,
    styled,
    visible,
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
    figure, axes = canvas(width, x=x, y=y)
    drawn = [
        Curve(name, numbers, places, INK, "", "o") if name in dots else Curve(name, numbers, places)
        for name, (places, numbers) in rows.items()
    ]
    add_curves(axes, drawn, log_y=log_y, level=level, width=width)
    if log_x:
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
    return figure


@styled
def next_token(
    probabilities: ArrayLike,
    tokens: Sequence[str],
    target: int,
    *,
    count: int = 12,
    width: int = WIDE,
) -> Figure:
    """Draw the probabilities of the likeliest next tokens, and of the true next token.

    Args:
      probabilities: [V].
      tokens: [V], the tokens as text.
      target: number of the true next token, with a red bar.
      count: number of bars.
      width: pixels.
    """
    p = np.asarray(probabilities, dtype=float)
    order: list[int] = np.argsort(-p, kind="stable")[:count].tolist()
    if target not in order:
        order[-1] = target
    figure, axes = canvas(width, x="next token", y="probability")
    bars = axes.bar(
        np.arange(len(order)), p[order], color=[RED if k == target else BLUE for k in order]
    )
    for bar, token in zip(bars, order, strict=True):
        if width > 500 or token == target:  # on a phone the numbers would run into each other
            axes.annotate(
                plain(float(f"{p[token]:.2g}")),
                (bar.get_x() + bar.get_width() / 2, bar.get_height()),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                color=RED if token == target else GREY,
            )
    axes.set_xticks(np.arange(len(order)), [visible(tokens[token]) for token in order])
    axes.set_xlim(-0.6, len(order) - 0.4)
    return figure
