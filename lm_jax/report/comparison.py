"""The page of several runs side by side: their settings, results and curves on the same axes."""

import functools
from collections.abc import Sequence
from pathlib import Path

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.page import Drawing, Section, Table, write_page
from lm_jax.report.run_table import row_of, settings_columns
from lm_jax.report.study import column, numbers, within
from lm_jax.settings import UserError
from lm_jax.training.directory import read_vocabulary
from lm_jax.training.journal import read_rows, validations


def write_comparison(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write a page that compares runs.

    Args:
      run_dirs: directories of two or more runs, each once.
      path: the page to write.

    Returns:
      the path.

    Raises:
      UserError: a directory holds no run, or is given twice.
    """
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UserError("a run directory is given twice")
    named = dict(zip(names(run_dirs), run_dirs, strict=True))
    ended = {name: row_of(run_dir) for name, run_dir in named.items()}
    rows = {name: read_rows(run_dir / "metrics.jsonl") for name, run_dir in named.items()}
    alike = len({_predicted(run_dir) for run_dir in run_dirs}) == 1
    sections = [_results(ended, alike), *(_curves(rows) if alike else []), *_horizons(rows)]
    lead = f"{len(run_dirs)} runs on the same axes."
    folder = f"{path.stem}-figures"  # a run's own figures may be beside the page
    return write_page(path, " and ".join(named), lead, sections, folder=folder)


def _predicted(run_dir: Path) -> tuple[object, ...]:
    """The tokens and the text that a run predicts: what makes losses comparable."""
    vocabulary, corpus = read_vocabulary(run_dir)
    return tuple(vocabulary.tokens), corpus


def names(run_dirs: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell the paths apart."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    count = 1
    while len({part[-count:] for part in parts}) < len(parts):
        count += 1
    return ["/".join(part[-count:]) for part in parts]


def _results(rows: dict[str, Row], alike: bool) -> Section:
    """The settings that differ and the results, a row for each run.

    Args:
      rows: run -> row.
      alike: True if the runs predict the same, and their losses can be compared.
    """
    changed = settings_columns(list(rows.values()))
    measured = {
        "validation": "best_validation",
        "test": "test",
        "parameters": "parameters",
        "seconds": "seconds",
        "status": "status",
    }
    head = ["run", *changed, *measured]
    table = [
        [name, *(cells[place] for cells in changed.values())]
        + [row.get(entry) for entry in measured.values()]
        for place, (name, row) in enumerate(rows.items())
    ]
    losses = {
        name: row["best_validation"]
        for name, row in rows.items()
        if row["best_validation"] is not None
    }
    said, best = f"The runs differ in {len(changed)} setting{'s' * (len(changed) != 1)}.", None
    if not alike:
        said += " Their losses cannot be compared: the runs predict other texts, tokens or tasks."
    elif len(set(losses.values())) > 1:
        name = min(losses, key=lambda one: losses[one])
        said += f" {name} has the lowest validation loss, {losses[name]:.4f}."
        best = list(rows).index(name)
    return Section("How do the runs differ?", said, [Table(head, table, best)])


def _curves(rows: dict[str, list[Row]]) -> list[Section]:
    """The losses of all runs; empty if fewer than two runs have validated twice."""
    found = []
    for what, of in (("validation", validations), ("training", _trained)):
        curves = {}
        for name, own in rows.items():
            kept = of(own)
            if len(kept) > 1:
                losses = column(kept, "nats")
                curves[name] = (column(kept, "step"), losses)
        if len(curves) < 2:
            continue
        ends = {name: float(losses[-1]) for name, (_, losses) in curves.items()}
        order = sorted(ends, key=lambda name: ends[name])
        said = f"The last {what} losses, lowest first: "
        said += ", ".join(f"{name} {ends[name]:.4f}" for name in order) + "."
        draw = functools.partial(figures.runs, curves, f"{what} loss")
        found.append(Section(f"{what.capitalize()} loss", said, [Drawing(what, draw, said)]))
    return found


def _trained(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "train"]


def _horizons(rows: dict[str, list[Row]]) -> list[Section]:
    """The horizons of the runs that were probed live; empty if fewer than two were."""
    curves = {}
    for name, own in rows.items():
        kept = [row for row in own if row["kind"] == "probe" and "horizon" in row]
        if len(kept) > 1:
            steps = numbers([row["horizon"]["0.9"] for row in kept])
            curves[name] = (column(kept, "step"), steps)
    if len(curves) < 2:
        return []
    ends = ", ".join(f"{name} {steps[-1]:.0f}" for name, (_, steps) in curves.items())
    said = f"In the end the gradient comes {within('0.9')} of the full one after, in steps: {ends}."
    draw = functools.partial(figures.runs, curves, "steps back")
    return [Section("How far does the gradient reach?", said, [Drawing("horizon", draw, said)])]
