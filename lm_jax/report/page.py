"""Self-contained HTML pages of findings, figures and tables, readable without a network.

A page follows the reader's light or dark theme, fits a phone and prints. Each figure is drawn for a
wide and for a narrow screen (`lm_jax.figures`), and is also a file, figures/NAME.svg, beside the
page; the file follows the theme, too.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.figures.style import COLOURS, NARROW, WIDE, Figure, themed
from lm_jax.files import Row, make_folder, refuse_links, write_whole
from lm_jax.settings import UserError

DARK = {
    "ink": "#e6e6e6",
    "grey": "#a3a3a3",
    "rule": "#343434",
    "paper": "#151515",
    "blue": "#6cb2f0",
    "red": "#ff8a6d",
    "green": "#55c79a",
    "orange": "#e8a94a",
    "purple": "#cf9be6",
    "sky": "#7fd0ec",
    "pale": "#4d5863",
}
FILE = "report.html"

SHEET = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


class Table(NamedTuple):
    """A table: a header and rows; cells are written by `number`. A click on a heading sorts it."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    best: int | None = None
    """The row to mark."""


class Drawing(NamedTuple):
    """A figure of a page."""

    name: str
    """Name of its SVG file."""
    draw: Callable[..., Figure]
    """Called with `width`, in pixels."""
    label: str
    """Description of the figure, for screen readers."""


class Surprise(NamedTuple):
    """A text whose words are coloured by the model's surprise."""

    tokens: Sequence[str]
    nats: Sequence[float]
    """-ln P of each token."""


class Quote(NamedTuple):
    """A text as it is, such as a sample."""

    name: str
    text: str


Part = Drawing | Table | Surprise | Quote


class Section(NamedTuple):
    """A section of a page."""

    title: str
    finding: str
    """The finding: a sentence computed from the numbers."""
    parts: Sequence[Part]
    words: str = ""
    """Advice on reading the figure."""
    level: int = 2
    """Level of the heading; 3 for a part of the section before."""


def write_page(
    path: Path,
    title: str,
    lead: str,
    sections: Iterable[Section],
    facts: Mapping[str, str] | None = None,
    folder: str = "figures",
) -> Path:
    """Write a page, and each of its figures as figures/NAME.svg.

    A figure that cannot be drawn, for example of a damaged file, leaves a sentence in its place.

    Args:
      path: path of the HTML file.
      title: title of the page.
      lead: text under the title.
      sections: sections of the page, in order.
      facts: what was done, and with what, by name.
      folder: folder of the figures, beside the page.

    Returns:
      the path.
    """
    sections = list(sections)
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
    if facts:
        said = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>"
            for name, what in facts.items()
            if what
        )
        body.append(f"<dl>{said}</dl>")
    links = "".join(
        f'<li class="l{section.level}"><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    for number, section in enumerate(sections):
        heading = f"h{section.level}"
        body.append(f'<section id="s{number}"><{heading}>{escape(section.title)}</{heading}>')
        if section.finding:
            body.append(f'<p class="finding">{escape(section.finding)}</p>')
        body += [_part(part, path, folder) for part in section.parts]
        if section.words:
            body.append(f'<p class="words">{escape(section.words)}</p>')
        body.append("</section>")
    light, dark = (
        " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        for colours in (COLOURS, DARK)
    )
    write_whole(
        path,
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>:root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ @media screen {{ :root {{ {dark} }} }} }}\n"
        f"{SHEET.read_text(encoding='utf-8')}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT.read_text(encoding='utf-8')}</script>\n</body></html>\n",
    )
    return path


class LivePage:
    """A page that is written again while a run or a sweep goes on.

    Writing takes at most about a twentieth of the time.
    """

    def __init__(self, write: Callable[[], object]):
        """`write` writes the page from the files that are there."""
        self._write = write
        self._due = 0.0

    def watch(self, step: int, row: Row | None) -> None:
        """Write the page at an evaluation, if it is due; see `watch` of `lm_jax.train`."""
        if row is None or row["kind"] != "evaluation" or time.monotonic() < self._due:
            return
        began = time.monotonic()
        try:
            self._write()
        except UserError:
            pass  # there is nothing to show yet: no trial of the sweep has ended
        except Exception as error:  # training goes on without a page
            warnings.warn(f"the page is not written: {type(error).__name__}: {error}", stacklevel=2)
        self._due = time.monotonic() + 20 * (time.monotonic() - began)


def number(value: Any) -> str:
    """The text of a table cell: four digits for a float, all digits for an integer."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}".replace("-", "−")


def _part(part: Part, path: Path, folder: str) -> str:
    if isinstance(part, Drawing):
        try:
            wide, narrow = part.draw(width=WIDE), part.draw(width=NARROW)
            return _drawing(part, wide, narrow, path, folder)
        except (ValueError, TypeError, IndexError, OverflowError, FloatingPointError) as error:
            return f'<p class="words">{escape(f"No figure {part.name}: {error}")}</p>'
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Quote):
        name, text = map(escape, part)
        return f"<figure><figcaption>{name}</figcaption><pre>{text}</pre></figure>"
    return _surprise(part)


def _drawing(part: Drawing, wide: Figure, narrow: Figure, path: Path, folder: str) -> str:
    place = path.parent / folder
    refuse_links(place)
    make_folder(place)
    svg = wide.svg()
    write_whole(place / f"{part.name}.svg", with_dark_colours(svg))
    file = f"{path.resolve().parent.name}-{part.name}.svg"
    return (
        f'<figure role="img" aria-label="{escape(part.label)}">'
        f'<div class="wide">{themed(svg)}</div><div class="narrow">{themed(narrow.svg())}</div>'
        f'<button type="button" data-file="{escape(file)}">save as SVG</button></figure>'
    )


def with_dark_colours(svg: str) -> str:
    """An SVG file that a page shows in dark colours if the reader's theme is dark."""
    rules = "".join(
        f'[style*="{what}: {colour}"] {{ {what}: {DARK[name]} !important }}\n'
        for what in ("fill", "stroke")
        for name, colour in COLOURS.items()
    )
    style = f"<style>\n@media (prefers-color-scheme: dark) {{\n{rules}}}\n</style>"
    end = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:end]}\n{style}{svg[end:]}"


def _table(table: Table) -> str:
    head = "".join(f'<th><button type="button">{escape(name)}</button></th>' for name in table.head)
    rows = "\n".join(
        f'<tr class="{"best" if place == table.best else ""}">{"".join(map(_cell, row))}</tr>'
        for place, row in enumerate(table.rows)
    )
    table_ = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f'<div class="scroll" style="--characters: {_characters(table)}">{table_}</div>'


def _cell(cell: Any) -> str:
    text = ' class="text"' if isinstance(cell, str) and " " in cell else ""
    return f'<td{text} data-value="{_value(cell)}">{escape(number(cell))}</td>'


def _characters(table: Table) -> int:
    """The least width of a table in characters: the longest words, the numbers and the gaps."""
    columns = zip(table.head, *table.rows, strict=True)
    return sum(2 + max(map(len, " ".join(map(number, column)).split())) for column in columns)


def _value(cell: Any) -> str:
    """The sort key of a cell, as text."""
    return escape(cell) if isinstance(cell, str) else "" if cell is None else repr(float(cell))


def _surprise(part: Surprise) -> str:
    """Words behind which the colour deepens with surprise, up to 8 nats."""
    words = "".join(
        f'<span style="--n:{min(max(nats, 0.0) / 8, 1.0):.2f}" title="{nats:.2f} nats">'
        f"{escape(token.replace(chr(10), '↲' + chr(10)))}</span>"
        for token, nats in zip(part.tokens, part.nats, strict=True)
    )
    return f'<p class="surprise">{words}</p>'
