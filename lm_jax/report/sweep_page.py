"""The page of a sweep, sweep.html: the trials, best first, and maps over the varied fields.

If two fields vary besides the seed, each measure has a heat map over the two fields, averaged over
seeds. If a single field varies, each measure has a curve. A cell shows the number of diverged or
failed trials.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_jax.files import Row
from lm_jax.report.measures import MeanOfTrials, Measure, at, cell, measures, varied
from lm_jax.report.page import Figure, Section, Table, figure, number, write_page
from lm_jax.sweeps.results import folded, ranked, read_results

FILE = "sweep.html"


def write_sweep(sweep_dir: str | Path) -> Path:
    """Write the page of a sweep into the sweep's directory, from results.jsonl.

    Args:
      sweep_dir: the directory of the sweep.

    Returns:
      the path of the page.

    Raises:
      UserError: the sweep has no results, or results.jsonl is damaged.
    """
    rows = read_results(sweep_dir)
    over = sum(row["status"] == "finished" for row in rows)
    path = Path(sweep_dir) / FILE
    words = f"{Path(sweep_dir).resolve().name}: {len(rows)} trials that have ended, {over} finished"
    for status in ("diverged", "failed", "pruned", "stopped"):
        if count := sum(row["status"] == status for row in rows):
            words += f", {count} {status}"
    write_page(path, "A sweep", f"{words}. {MEANS}", sweep_sections(rows))
    return path


def sweep_sections(rows: Sequence[Row]) -> list[Section]:
    """The sections of the page: maps or curves, the means over seeds, and the trials."""
    fields = varied(rows)
    found = []
    for measure in measures(rows) if len(fields) in (1, 2) else []:
        draw = heat_map if len(fields) == 2 else curve
        words = f"{measure.words[0].upper()}{measure.words[1:]}."
        found.append(Section(measure.name, words, [draw(rows, measure, fields)]))
    if folds := folded(rows):
        head = ["settings", "validation", "±", "test", "±", "right", "±", "finished", "of"]
        table = [
            [fold.name, *fold.best_validation, *fold.test, *fold.success, fold.finished, fold.of]
            for fold in folds
        ]
        words = "Mean and standard error over the trials that finished, best first."
        found.append(Section("Over the seeds", words, [_table(head, table)]))
    words = "Best validation first; those that diverged or failed last."
    return [*found, Section("The trials", words, [_trials(ranked(rows), fields)])]


MEANS = (
    "A figure is the mean over the seeds that finished, of norms the geometric mean; × counts the "
    "trials of a setting that diverged or failed."
)


def heat_map(rows: Sequence[Row], measure: Measure, fields: dict[str, list[Any]]) -> Figure:
    """A heat map of a measure over two fields.

    Args:
      rows: the rows of results.jsonl.
      measure: the measure shown as the colour.
      fields: path and values of the vertical axis, then of the horizontal axis.
    """
    (down, lines), (across, columns) = fields.items()
    cells = [
        [cell(at(rows, {down: line, across: column}), measure) for column in columns]
        for line in lines
    ]
    unit = f"log₁₀ of {measure.name}" if measure.log else measure.name
    shown = {
        "type": "heatmap",
        "x": [_label(value) for value in columns],
        "y": [_label(value) for value in lines],
        "z": [[_height(one, log=measure.log) for one in line] for line in cells],
        "text": [[_words(one) for one in line] for line in cells],
        "customdata": [[[one.of - one.lost, one.of] for one in line] for line in cells],
        "texttemplate": "%{text}",
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": unit, "side": "right"}},
        "hoverongaps": False,
        "hovertemplate": f"{down} %{{y}}<br>{across} %{{x}}<br>%{{text}}<br>"
        "%{customdata[0]} of %{customdata[1]} trials<extra></extra>",
    }
    return figure(
        [shown],
        across,
        down,
        height=140 + 44 * max(5, len(lines)),
        xaxis={"type": "category", "title": {"text": across}, "showgrid": False},
        yaxis={"type": "category", "title": {"text": down}, "showgrid": False},
    )


def curve(rows: Sequence[Row], measure: Measure, fields: dict[str, list[Any]]) -> Figure:
    """A curve of a measure over a single field: the means, and a point per trial.

    Args:
      rows: the rows of results.jsonl.
      measure: the measure on the vertical axis.
      fields: path and values of the horizontal axis.
    """
    ((path, values),) = fields.items()
    means = [cell(at(rows, {path: value}), measure) for value in values]
    trials = [
        (value, figure_)
        for value in values
        for row in at(rows, {path: value})
        if row["status"] == "finished" and (figure_ := measure.read(row)) is not None
    ]
    # Python counts booleans as numbers, but Plotly drops them from a numeric axis.
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    axis: dict[str, Any] = {"type": "linear" if numeric else "category"}
    if numeric and values[0] > 0 and values[-1] >= 10 * values[0]:
        axis = {"type": "log"}

    def place(value: Any) -> Any:
        return value if numeric else _label(value)

    return figure(
        [
            {
                "type": "scatter",
                "mode": "markers",
                "name": "trials",
                "x": [place(value) for value, _ in trials],
                "y": [y for _, y in trials],
                "marker": {"color": "#bbb", "size": 6},
            },
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "name": "mean",
                "x": [place(value) for value in values],
                "y": [one.mean for one in means],
                "text": [f"×{one.lost}" if one.lost else "" for one in means],
                "textposition": "top center",
            },
        ],
        path,
        measure.name,
        log_y=measure.log,
        xaxis={**axis, "title": {"text": path}},
    )


def _height(one: MeanOfTrials, *, log: bool) -> float | None:
    if one.mean is None or not math.isfinite(one.mean):
        return None
    if not log:
        return one.mean
    return math.log10(one.mean) if one.mean > 0 else None


def _words(one: MeanOfTrials) -> str:
    figure_ = "" if one.mean is None else f"{one.mean:.3g}"
    return f"{figure_} ×{one.lost}".strip() if one.lost else figure_


def _label(value: Any) -> str:
    """The axis label of a field's value."""
    if value is None:
        return "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trials(rows: Sequence[Row], fields: dict[str, list[Any]]) -> Table:
    known = measures(rows)
    paths = [*fields, *(["seed"] if any("seed" in row["settings"] for row in rows) else [])]
    head = ["trial", "status", *paths, *(one.name for one in known), "steps", "seconds"]
    return _table(
        head,
        [
            [
                row["name"],
                _status(row),
                *(
                    _label(row["settings"][path]) if path in row["settings"] else ""
                    for path in paths
                ),
                *(one.read(row) for one in known),
                row["step"],
                row["seconds"],
            ]
            for row in rows
        ],
    )


def _status(row: Row) -> str:
    bad = row.get("bad_step")
    return row["status"] if bad is None else f"{row['status']} at {bad:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table without empty columns."""

    def said(value: Any) -> bool:
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    kept = [place for place in range(len(head)) if any(said(row[place]) for row in rows)]
    cells = [[number(row[place]) if said(row[place]) else "" for place in kept] for row in rows]
    return Table([head[place] for place in kept], cells)
