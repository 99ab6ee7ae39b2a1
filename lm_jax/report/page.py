"""Self-contained HTML pages with figures, tables and text, readable without a network.

A figure is a dict in Plotly's format, {"data": [...], "layout": {...}}, made without Plotly
(`figure`, `line`). No other module uses Plotly. A page contains Plotly's script once (4.8 MB).
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.io

from lm_jax.files import write_whole

Figure = Mapping[str, Any]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto;
  max-width: 62rem; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.5rem 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 1px solid #999; font-weight: 600; }
"""

LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 380,
    "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
    "legend": {"orientation": "h", "y": 1.12},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}


class Table(NamedTuple):
    """A table: a header and rows; cells are formatted by `number`."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Section(NamedTuple):
    """A section of a page: a title, an explanation, and figures or tables."""

    title: str
    words: str
    parts: Sequence[Figure | Table]


def line(name: str, y: Any, x: Any = None, **more: Any) -> dict[str, Any]:
    """A curve; by default x is 0, 1, 2, …"""
    values = [float(value) for value in y]
    places = list(range(len(values))) if x is None else [float(value) for value in x]
    return {"type": "scatter", "mode": "lines", "name": name, "x": places, "y": values, **more}


def figure(data: Sequence[dict[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure with axis titles x and y; log_y=True gives a logarithmic y axis."""
    kind = {"type": "log", "exponentformat": "power"} if layout.pop("log_y", False) else {}
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **kind}}
    return {"data": list(data), "layout": {**axes, **layout}}


def write_page(path: Path, title: str, words: str, sections: Iterable[Section]) -> None:
    """Write a page atomically.

    Args:
      path: path of the HTML file.
      title: title of the page.
      words: text under the title.
      sections: sections of the page, in order.
    """
    body, script = [], True
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>\n<p>{escape(section.words)}</p>")
        for part in section.parts:
            if isinstance(part, Table):
                body.append(_table(part))
                continue
            # The first figure includes Plotly's script.
            body.append(_figure(part, script))
            script = False
    head = f"<h1>{escape(title)}</h1>\n<p>{escape(words)}</p>"
    write_whole(
        path,
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n{head}\n" + "\n".join(body) + "\n</body></html>\n",
    )


def number(value: Any) -> str:
    """The text of a table cell: four digits for a float, all digits for an integer."""
    if isinstance(value, str):
        return value
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _figure(figure: Figure, script: bool) -> str:
    whole = {"data": figure["data"], "layout": {**LAYOUT, **figure["layout"]}}
    return plotly.io.to_html(
        whole,
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=script,
        full_html=False,
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(number(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>'
