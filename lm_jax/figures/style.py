"""One style for all figures: colours, axes, names beside their curves.

A figure is drawn for a width in pixels. A page draws each figure twice, for a wide screen and for
a phone, and replaces each colour by a CSS variable, so that the page's theme colours the figure
(`themed`). The colours can be told apart by colour-blind readers (after Okabe and Ito,
2008).
"""

import io
import itertools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lm_jax.figures.arguments import levels

WIDE, NARROW = 720, 340  # pixels

COLOURS = {
    "ink": "#1c1c1c",
    "grey": "#666666",
    "rule": "#e2e2e2",
    "paper": "#ffffff",
    "blue": "#1f6fb2",
    "red": "#c8442b",
    "green": "#14805e",
    "orange": "#b06a00",
    "purple": "#8a4fa3",
    "sky": "#3a9fc4",
    "pale": "#b9c4cf",
}
INK, GREY, RULE, PAPER = (COLOURS[name] for name in ("ink", "grey", "rule", "paper"))
BLUE, RED, GREEN = (COLOURS[name] for name in ("blue", "red", "green"))
ORANGE, PALE = (COLOURS[name] for name in ("orange", "pale"))
SERIES = tuple(COLOURS[name] for name in ("blue", "red", "green", "orange", "purple", "sky"))
MAP = "viridis"

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": GREY,
    "axes.labelsize": 12,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.0,
    "figure.facecolor": PAPER,
    "font.size": 12,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": GREY,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}

styled = matplotlib.rc_context(STYLE)
"""Decorator: the function draws in this style, whatever the caller's own settings are."""

_NUMBERS = itertools.count()


class Figure(matplotlib.figure.Figure):
    """A Matplotlib figure; `savefig` writes it as SVG, PDF or PNG. A notebook shows it as SVG."""

    def svg(self) -> str:
        """The figure as the text of an SVG file."""
        text = io.StringIO()
        # An identifier must not occur twice in a page of several figures.
        own: Any = {**STYLE, "svg.hashsalt": f"figure {next(_NUMBERS)}"}
        with matplotlib.rc_context(own), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font may have it
            self.savefig(text, format="svg", metadata={"Date": None}, dpi=144)
        return text.getvalue()

    def _repr_svg_(self) -> str:
        return self.svg()


def themed(svg: str) -> str:
    """The text of a figure's SVG file as an element for a page, with CSS variables for colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z]+2?d?_\d+"', "", svg)  # names of Matplotlib's own groups
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*? width="[^"]*)pt"', r'\1"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return svg


class Curve(NamedTuple):
    """A curve of a figure."""

    name: str
    """Written beside the curve's end; "" for none."""
    y: Any
    x: Any = None
    """0, 1, 2, … if not given."""
    colour: str | None = None
    """The next of `SERIES` if not given."""
    style: str = "-"
    """A line style of Matplotlib."""
    marker: str | None = None
    width: float = 2.0


def canvas(
    width: int,
    height: int | None = None,
    *,
    x: str,
    y: str,
    left: int = 52,
    whole: bool = True,
) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
      width: pixels.
      height: pixels; by default as fits the width.
      x: the words under the horizontal axis.
      y: the words above the vertical axis.
      left: pixels for the numbers of the vertical axis.
      whole: write only whole numbers on the horizontal axis.
    """
    if not width >= 150:
        raise ValueError(f"width={width} must be 150 pixels or more")
    height = height or (300 if width > 500 else 250)
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_subplot()
    place(axes, left=left, right=16, top=32, bottom=46)
    axes.set_xlabel(x)
    axes.annotate(
        y,
        (0, 1),
        xycoords="axes fraction",
        xytext=(2 - left, 13),
        textcoords="offset points",
        color=GREY,
    )
    axes.margins(y=0.08)
    steps = [1, 2, 2.5, 5, 10]
    many = 8 if width > 500 else 4
    axes.xaxis.set_major_locator(MaxNLocator(many, steps=steps, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=steps))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    return figure, axes


def place(axes: Axes, **pixels: int | float) -> None:
    """Set margins of the axes, in pixels: left, right, top, bottom."""
    figure = axes.figure
    width, height = (72 * size for size in figure.get_size_inches())  # type: ignore[union-attr]
    now = figure.subplotpars  # type: ignore[union-attr]
    figure.subplots_adjust(  # type: ignore[union-attr]
        left=pixels["left"] / width if "left" in pixels else now.left,
        right=1 - pixels["right"] / width if "right" in pixels else now.right,
        top=1 - pixels["top"] / height if "top" in pixels else now.top,
        bottom=pixels["bottom"] / height if "bottom" in pixels else now.bottom,
    )


def room_below(axes: Axes, pixels: int | float) -> float:
    """Make the figure higher by some pixels, under the axes.

    Returns:
      the pixels between the figure's lower edge and the axes.
    """
    figure = axes.figure
    width, height = (72 * size for size in figure.get_size_inches())  # type: ignore[union-attr]
    below = figure.subplotpars.bottom * height + pixels  # type: ignore[union-attr]
    top = (1 - figure.subplotpars.top) * height  # type: ignore[union-attr]
    figure.set_size_inches(width / 72, (height + pixels) / 72)  # type: ignore[union-attr]
    place(axes, top=top, bottom=below)
    return below


def length_of(words: str) -> float:
    """About the pixels that words take at the size of a figure's text."""
    return 7.2 * len(words)


def curves(
    drawn: Sequence[Curve],
    *,
    x: str,
    y: str,
    log_y: bool = False,
    level: Mapping[str, float] | None = None,
    whole: bool = True,
    width: int = WIDE,
) -> Figure:
    """A figure of curves, each with its name at its end.

    Args:
      drawn: the curves.
      x, y: the words beside the axes, with units.
      log_y: a logarithmic vertical axis; values of zero or less are left out.
      level: dotted horizontal lines with their names: a baseline, a threshold, chance.
      whole: write only whole numbers on the horizontal axis.
      width: pixels.
    """
    figure, axes = canvas(width, x=x, y=y, whole=whole)
    add_curves(axes, drawn, log_y=log_y, level=level, width=width)
    return figure


def add_curves(
    axes: Axes,
    drawn: Sequence[Curve],
    *,
    log_y: bool = False,
    level: Mapping[str, float] | None = None,
    width: int = WIDE,
) -> None:
    """Add curves and levels to axes, with their names."""
    if log_y:
        axes.set_yscale("log")
    colours = itertools.cycle(SERIES)
    ends: list[tuple[str, float, str, Any]] = []
    for curve in drawn:
        values = np.asarray(curve.y, dtype=float)
        places = np.arange(len(values)) if curve.x is None else np.asarray(curve.x, dtype=float)
        if log_y:
            values = np.where(values > 0, values, np.nan)
        colour = curve.colour or next(colours)
        axes.plot(
            places,
            values,
            color=colour,
            linestyle=curve.style,
            linewidth=curve.width,
            marker=curve.marker or ("o" if len(values) == 1 else None),
            markersize=5,
        )
        seen = np.flatnonzero(np.isfinite(values))
        if curve.name and len(seen):
            ends.append((curve.name, float(values[seen[-1]]), colour, curve.style))
    for name, value in levels(level).items():
        axes.axhline(value, color=GREY, linestyle=":", linewidth=1.5)
        ends.append((name, value, GREY, ":"))
    if log_y:
        log_ticks(axes.yaxis)
    name_ends(axes, ends, width=width)


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, str, Any]], *, width: int) -> None:
    """Write the names of curves: beside their ends, or under the figure if it is narrow.

    Args:
      axes: axes with all curves.
      ends: name, last value, colour and line style of each curve.
      width: pixels of the figure.
    """
    if not ends or (len(ends) == 1 and ends[0][3] == "-" and ends[0][2] == BLUE):
        return
    figure = axes.figure
    ends = [(_shortened(name), height, colour, style) for name, height, colour, style in ends]
    if width <= 500:
        lines = [Line2D([], [], color=colour, linestyle=style) for _, _, colour, style in ends]
        room_below(axes, 17 * len(ends) + 6)
        figure.legend(  # type: ignore[union-attr]
            lines,
            [name for name, *_ in ends],
            loc="lower left",
            labelcolor="linecolor",
            handlelength=1.4,
            borderaxespad=0.2,
        )
        return
    place(axes, right=14 + max(length_of(name) for name, *_ in ends))
    inner = axes.get_position().height * figure.get_size_inches()[1] * 72  # type: ignore[union-attr]
    heights = axes.transAxes.inverted().transform(
        axes.transData.transform([(axes.get_xlim()[0], value) for _, value, _, _ in ends])
    )[:, 1]
    placed = spread([float(np.clip(height, 0, 1)) for height in heights], 15 / inner)
    for (name, _, colour, _), height in zip(ends, placed, strict=True):
        axes.annotate(
            name,
            (1, height),
            xytext=(8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _shortened(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights as little as needed to lie at least `gap` apart, within 0 … 1 if they can."""
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, dtype=float)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(placed))):
        if placed[i] <= top:
            break
        placed[i], top = top, top - gap
    found = np.empty_like(placed)
    found[order] = placed
    return found.tolist()


def limit(axes: Axes, losses: np.ndarray, level: Mapping[str, float] | None = None) -> None:
    """Limit the vertical axis to the losses without the few highest, and to the levels."""
    seen = losses[np.isfinite(losses)]
    if not len(seen):
        return
    given = levels(level).values()
    low = min([float(seen.min()), *given])
    high = max([float(np.quantile(seen, 0.98)), *given])
    room = 0.05 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)


def log_ticks(axis: Axis) -> None:
    """Write powers of ten on a logarithmic axis, and more numbers if these are few."""
    axes: Any = axis.axes
    low, high = sorted(axes.get_ylim() if axis is axes.yaxis else axes.get_xlim())
    decades = np.log10(high / low) if low > 0 else np.inf
    between = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2 else (1,)
    # In a third of a decade none of these numbers may lie.
    few = MaxNLocator(3) if decades < 1 / 3 else LogLocator(subs=between, numticks=6)
    axis.set_major_locator(few)
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_locator(NullLocator())


def plain(value: int | float) -> str:
    """A number as a reader writes it: 1,500, 0.25, 10⁻⁷."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    power = math.log10(abs(value))
    if power >= 6 or power < -4:
        exponent = math.floor(power + 1e-9)
        times = value / 10.0**exponent
        raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        first = "" if math.isclose(abs(times), 1) else f"{abs(times):.3g}·"
        return f"{'−' if value < 0 else ''}{first}10{raised}"
    return f"{value:,.6g}".replace("-", "−")


def visible(word: str) -> str:
    """The word with signs for spaces and ends of lines."""
    return word.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH TIP LEFTWARDS}")
