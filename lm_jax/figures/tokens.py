"""Figures with a text's tokens on their axes: the next token, local exponents, the credit map."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from numpy.typing import ArrayLike

from lm_jax.figures.arguments import numbers, words_of
from lm_jax.figures.colours import colour_bar, log_norm
from lm_jax.figures.style import (
    BLUE,
    GREY,
    MAP,
    RED,
    WIDE,
    Figure,
    canvas,
    length_of,
    plain,
    room_below,
    styled,
    visible,
)

LEAST = 10  # pixels of a token beside a map


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
    p = numbers(probabilities, "probabilities")
    tokens = words_of(tokens, "tokens", len(p), "probabilities")
    if not 0 <= target < len(p):
        raise ValueError(f"target={target} is no number of a token, 0 to {len(p) - 1}")
    if count < 1:
        raise ValueError(f"count={count} must be 1 or more")
    order: list[int] = np.argsort(-p, kind="stable")[:count].tolist()
    if target not in order:
        order[-1] = target
    figure, axes = canvas(width, x="next token", y="probability")
    bars = axes.bar(
        np.arange(len(order)), p[order], color=[RED if k == target else BLUE for k in order]
    )
    for bar, token in zip(bars, order, strict=True):
        # On a phone the numbers would run into each other.
        if math.isfinite(p[token]) and (width > 500 or token == target):
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


@styled
def local_exponents(
    exponents: ArrayLike, words: Sequence[str] | None = None, *, width: int = WIDE
) -> Figure:
    """Draw the largest Lyapunov exponent of each window of a text.

    Args:
      exponents: [N], in nats a step.
      words: [N], the tokens of each window; written under the axis where there is room.
      width: pixels.
    """
    found = numbers(exponents, "exponents")
    words = None if words is None else words_of(words, "words", len(found), "exponents")
    colours = [RED if value > 0 else BLUE for value in found]
    if words is not None and width <= 500:
        return _bars_across(found, words, colours, width)
    figure, axes = canvas(width, x="window of the text", y="nats a step")
    axes.bar(np.arange(len(found)), found, color=colours)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.margins(x=0.01)
    if words is not None and len(words) * 14 <= width:
        axes.set_xticks(np.arange(len(found)), list(words), rotation=90)
        axes.tick_params(axis="x", labelsize=11)
        room_below(axes, length_of("m" * max(map(len, words))) - 12)
    return figure


def _bars_across(
    found: np.ndarray, words: Sequence[str], colours: Sequence[str], width: int
) -> Figure:
    """Horizontal bars from top to bottom, each with its words to the left."""
    left = 12 + int(0.6 * 11 * max(map(len, words)))
    figure, axes = canvas(
        width, 90 + 15 * len(found), x="nats a step", y="window of the text", left=left, whole=False
    )
    axes.barh(np.arange(len(found)), found, color=colours)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(np.arange(len(found)), list(words), fontsize=11)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(False)
    axes.grid(True, axis="x")
    return figure


@styled
def credit_map(
    credit: ArrayLike, read: Sequence[str], said: Sequence[str], *, width: int = WIDE
) -> Figure:
    """Draw how much the loss of each word to be said depends on each word read before it.

    A map that is too wide for readable words is cut into parts, the first words read at the top.

    Args:
      credit: [R, S], ‖∂J_t/∂h_k‖, a row for each word to be said; zero or NaN cells stay empty.
      read: [S], the words read.
      said: [R], the words to be said.
      width: pixels.
    """
    values = numbers(credit, "credit", axes=2)
    rows, columns = values.shape
    read, said = words_of(read, "read", columns, "credit"), words_of(said, "said", rows, "credit")
    left = 24 + int(0.6 * 11 * max(map(len, said)))
    room = width - left - 16
    parts = math.ceil(columns * LEAST / room)
    each = math.ceil(columns / parts)
    cell = room / each
    small = min(11.0, 0.85 * cell)
    longest = max(map(len, read))
    below = small * 0.6 * longest + 6 if longest > 1 else 20.0
    norm = log_norm(values)
    shown = [_part_of_map(values > norm.vmin, first, each) for first in range(0, columns, each)]
    tall = [cell * (rows.stop - rows.start) for rows, _ in shown]
    height = int(sum(tall) + below * (len(shown) - 1)) + 76
    figure, axes = canvas(width, height, x="", y="to be said", left=left)
    grid = figure.add_gridspec(
        len(shown), height_ratios=tall, hspace=below / (sum(tall) / len(tall))
    )
    axes.set_subplotspec(grid[0])
    for place, (rows, across) in enumerate(shown):
        if place:
            axes = figure.add_subplot(grid[place])
        axes.pcolormesh(
            np.arange(across.start, across.stop + 1),
            np.arange(rows.start, rows.stop + 1),
            np.ma.masked_where(~(values[rows, across] > 0), values[rows, across]),
            norm=norm,
            cmap=MAP,
            rasterized=True,
        )
        middle = (np.arange(part.start, part.stop) + 0.5 for part in (across, rows))
        axes.set_xticks(next(middle), [visible(word) for word in read[across]])
        axes.set_yticks(next(middle), [visible(word) for word in said[rows]])
        axes.tick_params(axis="x", labelsize=small, rotation=90 if longest > 1 else 0)
        axes.tick_params(axis="y", labelsize=small)
        axes.set_xlim(across.start, across.start + each)
        axes.set_ylim(rows.stop, rows.start)
        axes.grid(False)
    axes.set_xlabel("read")
    room_below(axes, below - 20)
    colour_bar(figure, ScalarMappable(norm, MAP), "‖∂J_t/∂h_k‖, nats per unit of the state", width)
    return figure


def _part_of_map(coloured: np.ndarray, first: int, count: int) -> tuple[slice, slice]:
    """The rows with a coloured cell in `count` columns from `first` on, and these columns."""
    columns = slice(first, min(first + count, coloured.shape[1]))
    filled = np.flatnonzero(coloured[:, columns].any(axis=1))
    rows = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, len(coloured))
    return rows, columns
