"""The page of a sweep, report.html: what was found, maps over the settings, curves, the trials.

If two settings vary besides the seed, each measure has a map over the two settings, averaged over
the seeds. If one setting varies, each measure has a curve. If more vary, or more than 20 trials
have ended, each trial is a line through its settings. A cell shows the number of trials that
diverged or failed.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.measures import MeanOfTrials, Measure, at, cell, measures, varied
from lm_jax.report.page import FILE, Drawing, Section, Table, write_page
from lm_jax.report.run_page import about
from lm_jax.report.study import column
from lm_jax.report.wording import in_words, short
from lm_jax.settings import UserError
from lm_jax.sweeps.results import folded, ranked, read_results
from lm_jax.training.directory import read_config, read_vocabulary
from lm_jax.training.journal import read_rows, validations

CURVES = 100  # most trials whose learning curves are drawn, the best first
MANY = 20  # trials above which each is drawn as a line through its settings


def write_sweep(sweep_dir: str | Path) -> Path:
    """Write the page of a sweep into the sweep's directory, from results.jsonl and the trials.

    Args:
      sweep_dir: the directory of the sweep.

    Returns:
      the path of the page.

    Raises:
      UserError: the sweep has no results, or results.jsonl is damaged.
    """
    sweep_dir = Path(sweep_dir)
    rows = read_results(sweep_dir)
    if not rows:
        raise UserError(f"{sweep_dir} has no results: no trial has ended")
    told = about(sweep_dir)
    over = sum(row["status"] == "finished" for row in rows)
    ended = f"{len(rows)} trials have ended, {over} finished"
    for status in ("diverged", "failed", "pruned", "stopped"):
        if count := sum(row["status"] == status for row in rows):
            ended += f", {count} {status}"
    facts = {
        "command": told.get("command", ""),
        "trials": ended,
        "training": f"{sum(row['seconds'] for row in rows):,.0f} seconds in all",
    }
    claim = told.get("claim")
    lead = f"The experiment claims: {claim}" if claim else "A run for each choice of settings."
    sections = sweep_sections(rows, sweep_dir)
    return write_page(sweep_dir / FILE, sweep_dir.resolve().name, lead, sections, facts)


def sweep_sections(rows: Sequence[Row], sweep_dir: Path) -> list[Section]:
    """The sections of the page: the trials, maps or curves, the means over seeds.

    Args:
      rows: the rows of results.jsonl.
      sweep_dir: the sweep, for the trials' own records.
    """
    settings, guess = varied(rows), _uniform_guess(rows, sweep_dir)
    sections = [_found(rows, settings, guess)]
    for measure in measures(rows) if len(settings) in (1, 2) else []:
        draw = heat_map if len(settings) == 2 else curve
        words = f"{measure.words[0].upper()}{measure.words[1:]}."
        drawn = functools.partial(draw, rows, measure, settings, guess)
        parts = [Drawing(measure.name.replace(".", "-"), drawn, words)]
        sections.append(
            Section(words.rstrip("."), _extremes(rows, measure, settings), parts, MEANS)
        )
    sections += _curves(rows, sweep_dir, guess)
    scored = [row for row in rows if row["best_validation"] is not None]
    if len(settings) > 2 or (len(scored) > MANY and settings):
        sections += _coordinates(rows, settings)
    if folds := folded(rows):
        head = ["settings", "validation", "±", "test", "±", "right", "±", "finished", "of"]
        table = [
            [fold.name, *fold.best_validation, *fold.test, *fold.success, fold.finished, fold.of]
            for fold in folds
        ]
        words = "Mean and standard error over the trials that finished, best first."
        sections.append(Section("Over the seeds", words, [_table(head, table, 0)]))
    return sections


MEANS = (
    "A number is the mean over the seeds that finished, of norms the geometric mean; × counts the "
    "trials of a setting that diverged or failed."
)


def _found(rows: Sequence[Row], settings: dict[str, list[Any]], guess: float | None) -> Section:
    """The best trial in one sentence, and the table of trials."""
    first, *others = ranked(rows)
    best = first["best_validation"]
    if best is None or first["status"] in ("diverged", "failed"):
        said = "No trial has a validation loss."
    else:
        chosen = ", ".join(
            f"{short(path, settings)} {in_words(first['settings'][path])}"
            for path in settings
            if path in first["settings"]
        )
        said = f"{chosen or first['name']} is best, with a validation loss of {_digits(best)}"
        losses = [row["best_validation"] for row in others if row["best_validation"] is not None]
        if losses:
            middle = _digits(float(np.median(losses)))
            said += (
                f"; the next comes to {_digits(losses[0])}, the median of the others to {middle}"
            )
        said += "."
        if guess is not None and best > guess:
            said += f" No trial is better than a uniform guess ({guess:.3f})."
    return Section("What was found?", said, [_trials(ranked(rows), settings)])


def _extremes(rows: Sequence[Row], measure: Measure, settings: dict[str, list[Any]]) -> str:
    """Where a measure is lowest and highest over the settings."""
    means = {}
    for row in rows:
        chosen = {path: row["settings"][path] for path in settings if path in row["settings"]}
        mean = cell(at(rows, chosen), measure).mean
        if mean is not None:
            means[
                ", ".join(f"{short(path, settings)} {in_words(chosen[path])}" for path in chosen)
            ] = mean
    if len(means) < 2:
        return "Too few trials have this number to compare them."
    low, high = (pick(means, key=lambda one: means[one]) for pick in (min, max))
    ties = sum(mean == means[low] for mean in means.values()) - 1
    if means[low] == means[high]:
        return f"All trials have {means[low]:.4g}."
    others = f" and {ties} more" if ties else ""
    ends = f"Lowest at {low}{others} ({_digits(means[low])}), highest at {high}"
    return f"{ends} ({_digits(means[high])})."


def heat_map(
    rows: Sequence[Row],
    measure: Measure,
    settings: dict[str, list[Any]],
    guess: float | None = None,
    *,
    width: int = figures.WIDE,
) -> figures.Figure:
    """Draw a map of a measure over two settings.

    Args:
      rows: the rows of results.jsonl.
      measure: the measure shown as the colour.
      settings: path and values of the vertical axis, then of the horizontal axis.
      guess: the validation loss of a uniform guess; losses above have one colour.
      width: pixels.
    """
    (down, lines), (across, columns) = settings.items()
    cells = [
        [cell(at(rows, {down: line, across: one}), measure) for one in columns] for line in lines
    ]
    return figures.heat_map(
        [[math.nan if one.mean is None else one.mean for one in line] for line in cells],
        [in_words(value) for value in lines],
        [in_words(value) for value in columns],
        x=across,
        y=down,
        words=[[_words(one) for one in line] for line in cells],
        log=measure.log,
        worst=guess if measure.name == "validation" else None,
        width=width,
    )


def curve(
    rows: Sequence[Row],
    measure: Measure,
    settings: dict[str, list[Any]],
    guess: float | None = None,
    *,
    width: int = figures.WIDE,
) -> figures.Figure:
    """Draw a curve of a measure over a single setting: the means, and a dot for each trial.

    Args:
      rows: the rows of results.jsonl.
      measure: the measure on the vertical axis.
      settings: path and values of the horizontal axis.
      guess: the validation loss of a uniform guess, drawn if it is near the losses.
      width: pixels.
    """
    ((path, values),) = settings.items()
    means = [cell(at(rows, {path: value}), measure) for value in values]
    trials = [
        (value, found)
        for value in values
        for row in at(rows, {path: value})
        if row["status"] == "finished" and (found := measure.read(row)) is not None
    ]
    seen = [one.mean for one in means if one.mean is not None]
    level = {}
    if guess is not None and measure.name == "validation" and seen and max(seen) > 0.7 * guess:
        level = {"uniform guess": guess}
    return figures.setting_curve(
        [_cell(value) for value in values],
        [one.mean for one in means],
        x=path,
        y=measure.name,
        trials=[(_cell(value), found) for value, found in trials],
        words=[f"×{one.lost}" if one.lost else "" for one in means],
        log_y=measure.log,
        level=level,
        width=width,
    )


def _curves(rows: Sequence[Row], sweep_dir: Path, guess: float | None) -> list[Section]:
    """The validation losses of the trials over training; empty if fewer than two have them."""
    curves = {}
    for row in ranked(rows)[:CURVES]:
        judged = validations(read_rows(sweep_dir / row["trial"] / "metrics.jsonl"))
        if len(judged) > 1:
            curves[row["name"]] = (column(judged, "step"), column(judged, "nats"))
    if len(curves) < 2:
        return []
    diverged = [
        row["name"] for row in rows if row["status"] == "diverged" and row["name"] in curves
    ]
    best = next(iter(curves))
    early = {name: losses[0] for name, (_, losses) in curves.items() if np.isfinite(losses[0])}
    order = sorted(early, key=lambda name: early[name])
    place = order.index(best) + 1 if best in order else len(order)
    said = f"The best trial was number {place} of {len(order)} at its first validation"
    said += f"; {len(diverged)} of the trials drawn diverged." if diverged else "."
    level = {} if guess is None else {"uniform guess": guess}
    draw = functools.partial(
        figures.learning_curves, curves, diverged=diverged, best=best, level=level, y="validation"
    )
    words = "Each pale line is the validation loss of a trial; a cross marks one that diverged."
    off = sum(float(np.nanmin(losses)) > (guess or math.inf) for _, losses in curves.values())
    words += f" {off} never fell below a uniform guess." if off else ""
    return [
        Section("How did the trials learn?", said, [Drawing("learning-curves", draw, said)], words)
    ]


def _coordinates(rows: Sequence[Row], settings: dict[str, list[Any]]) -> list[Section]:
    """Each trial as a line through its settings."""
    whole = [row for row in rows if all(path in row["settings"] for path in settings)]
    columns = {path: [_cell(row["settings"][path]) for row in whole] for path in settings}
    scores = column(whole, "best_validation")
    if not np.isfinite(scores).any():
        return []
    top = scores <= np.nanquantile(scores, 0.1)
    parts = []
    for path, values in columns.items():
        chosen = [value for value, good in zip(values, top, strict=True) if good]
        numeric = all(isinstance(value, int | float) for value in values)
        if numeric:
            low, high = min(chosen), max(chosen)
            parts.append(
                f"{short(path, settings)} {low:.3g}{'' if low == high else f' to {high:.3g}'}"
            )
        else:
            parts.append(
                f"{short(path, settings)} {' or '.join(sorted(set(map(in_words, chosen))))}"
            )
    said = f"The best tenth of the trials, {top.sum()} of {len(scores)}, has {', '.join(parts)}."
    draw = functools.partial(figures.parallel_coordinates, columns, scores, score="validation")
    words = (
        "Each line is a trial, from its settings to its validation loss; the best tenth is blue."
    )
    return [Section("Which settings go together?", said, [Drawing("settings", draw, said)], words)]


def _uniform_guess(rows: Sequence[Row], sweep_dir: Path) -> float | None:
    """The loss of a uniform guess, ln V; None for generated sequences or if no trial tells V."""
    try:
        if read_config(sweep_dir / rows[0]["trial"]).data.generated:
            return None
        return math.log(len(read_vocabulary(sweep_dir / rows[0]["trial"])[0]))
    except UserError:
        return None


def _digits(value: float) -> str:
    """A number of four digits."""
    return figures.plain(float(f"{value:.4g}"))


def _words(one: MeanOfTrials) -> str:
    said = "" if one.mean is None else figures.plain(float(f"{one.mean:.3g}"))
    return f"{said} ×{one.lost}".strip() if one.lost else said


def _trials(rows: Sequence[Row], settings: dict[str, list[Any]]) -> Table:
    known = measures(rows)
    paths = [*settings, *(["seed"] if any("seed" in row["settings"] for row in rows) else [])]
    own = [one.name.replace(".", " ").replace("_", " ") for one in known]
    head = [*(short(path, paths) for path in paths), *own, "status", "steps", "seconds", "trial"]
    table = [
        [
            *(_cell(row["settings"].get(path, "")) for path in paths),
            *(one.read(row) for one in known),
            _status(row),
            row["step"],
            row["seconds"],
            Path(row["trial"]).name,
        ]
        for row in rows
    ]
    return _table(head, table, 0)


def _cell(value: Any) -> Any:
    """A setting's value for a table or an axis: words for what is no number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number else in_words(value)


def _status(row: Row) -> str:
    bad = row.get("bad_step")
    return row["status"] if bad is None else f"{row['status']} at {bad:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], best: int) -> Table:
    """A table without empty columns."""

    def said(value: Any) -> bool:
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    kept = [place for place in range(len(head)) if any(said(row[place]) for row in rows)]
    cells = [[row[place] if said(row[place]) else None for place in kept] for row in rows]
    return Table([head[place] for place in kept], cells, best)
