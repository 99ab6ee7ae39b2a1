"""The page of several runs side by side: their settings, results and curves on the same axes."""

import functools
from collections.abc import Sequence
from pathlib import Path

from lm_jax import figures
from lm_jax.config import Config
from lm_jax.fields import fields
from lm_jax.files import Row
from lm_jax.report.page import Drawing, Section, Table, write_page
from lm_jax.report.reach_sections import column, numbers, within
from lm_jax.settings import UserError
from lm_jax.training.directory import read_config
from lm_jax.training.journal import read_result, read_rows


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
        raise UserError("a directory is given twice")
    named = dict(zip(names(run_dirs), run_dirs, strict=True))
    configs = {name: read_config(run_dir) for name, run_dir in named.items()}
    rows = {name: read_rows(run_dir / "metrics.jsonl") for name, run_dir in named.items()}
    results = {name: read_result(run_dir) for name, run_dir in named.items()}
    sections = [_results(configs, results), *_curves(rows), *_horizons(rows)]
    lead = f"{len(run_dirs)} runs on the same axes."
    return write_page(path, " and ".join(configs), lead, sections)


def names(run_dirs: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell the paths apart."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    count = 1
    while len({part[-count:] for part in parts}) < len(parts):
        count += 1
    return ["/".join(part[-count:]) for part in parts]


def differing(configs: dict[str, Config]) -> dict[str, dict[str, object]]:
    """path -> run -> value, for each setting in which the runs differ."""
    values = {
        name: {path: value for path, value, _ in fields(config)} for name, config in configs.items()
    }
    paths = dict.fromkeys(path for own in values.values() for path in own)
    found = {path: {name: own.get(path, "–") for name, own in values.items()} for path in paths}
    return {path: row for path, row in found.items() if len(set(map(repr, row.values()))) > 1}


def _results(configs: dict[str, Config], results: dict[str, Row | None]) -> Section:
    changed = differing(configs)
    measured: dict[str, dict[str, object]] = {}
    for name, result in results.items():
        splits = {} if result is None else result["splits"]
        for split in ("validation", "test"):
            if split in splits:
                measured.setdefault(f"{split} loss", {})[name] = splits[split]["nats"]
        if result is not None:
            measured.setdefault("parameters", {})[name] = result["parameters"]
            measured.setdefault("seconds", {})[name] = result["seconds"]
            measured.setdefault("status", {})[name] = result["status"]
    head = ["", *configs]
    table = [
        [path, *("off" if row[name] is None else _plain(row[name]) for name in configs)]
        for path, row in changed.items()
    ]
    table += [[what, *(row.get(name) for name in configs)] for what, row in measured.items()]
    losses = {
        name: loss for name, loss in measured.get("validation loss", {}).items() if loss is not None
    }
    said = f"The runs differ in {len(changed)} settings."
    if len(losses) > 1:
        best = min(losses, key=lambda name: losses[name])  # type: ignore[arg-type,return-value]
        said += f" {best} has the lowest validation loss, {losses[best]:.4f}."
    return Section("How do the runs differ?", said, [Table(head, table)])


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str) else str(value)


def _curves(rows: dict[str, list[Row]]) -> list[Section]:
    """The losses of all runs; empty if fewer than two runs have validated twice."""
    found = []
    for what, kind in (("validation", "evaluation"), ("training", "train")):
        curves = {}
        for name, own in rows.items():
            kept = [row for row in own if row["kind"] == kind and row["split"] in (what, "train")]
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
