"""Tables of runs side by side: a column for each differing setting, then the results.

A row has the entries of results.jsonl (`lm_jax.sweeps.results`). The best value of a column of
results has a star.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_jax.config import Config, with_kinds
from lm_jax.fields import Mark, alternatives, fields
from lm_jax.files import Row
from lm_jax.report.terminal import NONE, UNPAID, show_table
from lm_jax.report.wording import in_words, short
from lm_jax.settings import plain
from lm_jax.training import directory, journal

BEST = "*"
HUGE = 1e9
LENGTHS = ("train.steps", "train.epochs")
Columns = dict[str, list[str]]


def show_runs(run_dirs: Sequence[Path]) -> None:
    """Print a table of runs.

    Raises:
      UserError: a directory holds no run.
    """
    rows = [row_of(run_dir) for run_dir in run_dirs]
    named = {"run": [row["name"] + unfinished(row) for row in rows]}
    show_columns({**named, **settings_columns(rows), **result_columns(rows)})


def row_of(run_dir: Path) -> Row:
    """The row of a run; the settings are without cadences, which change no result."""
    config, result = directory.read_config(run_dir), journal.read_result(run_dir) or {}
    kinds = {path: value for path, value, _ in fields(config) if alternatives(Config, path)}
    usual = {path: value for path, value, _ in fields(with_kinds(Config(), kinds))}
    settings = {
        path: plain(value)
        for path, value, marks in fields(config)
        if Mark.ADJUSTABLE not in marks or path in LENGTHS
    }
    splits = result.get("splits", {})
    nats = {name: splits.get(name, {}).get("nats") for name in ("validation", "test")}
    return {
        **result,
        "name": str(run_dir),
        "settings": settings,
        "usual": {path for path, value in settings.items() if value == plain(usual.get(path))},
        "status": result.get("status", "unfinished"),
        "bad_step": result.get("step"),
        "best_validation": nats["validation"],
        "test": nats["test"],
        "splits": splits,
        "seconds": result.get("seconds"),
    }


def show_columns(columns: Columns) -> None:
    """Print columns, and the meaning of the marks."""
    show_table(columns, least=("tokens/s", "seconds", "parameters"))
    cells = [cell for column in columns.values() for cell in column]
    if any(cell.endswith(BEST) for cell in cells):
        print(f"{BEST} the best of its column")
    if NONE in columns.get("bits/char", ()):
        print(f"{NONE} bits a character: {UNPAID}")


def settings_columns(rows: Sequence[Row]) -> Columns:
    """A column for each setting with several values, under the end of the setting's path.

    A setting missing from some rows has a column, too, unless all others have the default (the
    entry `usual` of a row).
    """
    paths = list(dict.fromkeys(path for row in rows for path in row["settings"]))
    absent = object()
    columns = {path: [row["settings"].get(path, absent) for row in rows] for path in paths}

    def differs(path: str, values: list[Any]) -> bool:
        there = [row for row in rows if path in row["settings"]]
        if any(row["settings"][path] != there[0]["settings"][path] for row in there):
            return True
        return len(there) < len(values) and any(path not in row.get("usual", ()) for row in there)

    differing = {
        path: ["" if value is absent else in_words(value) for value in values]
        for path, values in columns.items()
        if differs(path, values)
    }
    return {short(path, differing): cells for path, cells in differing.items()}


def _split(name: str, figure: str) -> Callable[[Row], Any]:
    return lambda row: row["splits"].get(name, {}).get(figure)


Reads = Mapping[str, tuple[Callable[[Row], Any], str, Callable | None]]
"""By heading: the number of a row, its format, and which number is best (None: none is)."""
COLUMNS: Reads = {
    "parameters": (lambda row: row.get("parameters"), ",", None),
    "seconds": (lambda row: row["seconds"], ",.1f", None),
    "tokens/s": (lambda row: row.get("tokens_per_second"), ",.0f", None),
    "valid ppl": (_split("validation", "perplexity"), ".2f", min),
    "test ppl": (_split("test", "perplexity"), ".2f", min),
    "ppl/word": (_split("test", "perplexity_per_word"), ".2f", min),
    "bits/byte": (_split("test", "bits_per_byte"), ".3f", min),
    "bits/char": (_split("test", "bits_per_character"), ".3f", min),
    "right": (_split("test", "success"), ".1%", max),
}
# For trials without perplexities: tasks, or sweeps without a finished trial.
# Figures that are compared between tokens of different kinds; some are given for some kinds only.
PER_UNIT = {"ppl/word": {"bpe"}, "bits/byte": {"byte", "bpe"}, "bits/char": None}
LOSSES: Reads = {
    "validation": (lambda row: row["best_validation"], ".4f", min),
    "test": (lambda row: row["test"], ".4f", min),
}


def result_columns(rows: Sequence[Row]) -> Columns:
    """The results of the rows, without empty columns, the best of each marked."""
    shown: Columns = {}
    text = any(_split("test", "perplexity")(row) is not None for row in rows)
    # A model of fewer words, or of characters, has other tokens: perplexities are not compared.
    tokens = {(_split("test", "tokens")(row), _split("test", "unknown")(row)) for row in rows}
    same_tokens = len(tokens - {(None, None)}) <= 1
    for heading, (read, form, best) in (COLUMNS if text else {**LOSSES, **COLUMNS}).items():
        values = [read(row) for row in rows]
        if all(value is None for value in values) or not _fits(heading, rows):
            continue
        over = [row["status"] == "finished" and read(row) is not None for row in rows]
        there = [value for value, is_over in zip(values, over, strict=True) if is_over]
        compared = best if heading in PER_UNIT or same_tokens else None
        marked = compared(there) if compared is not None and len(there) > 1 else None
        cells = [_number(value, form) for value in values]
        if marked is not None:
            cells = [
                cell + (BEST if is_over and value == marked else " ")
                for cell, value, is_over in zip(cells, values, over, strict=True)
            ]
        shown[heading] = cells
    unknown = _split("test", "unknown")
    for heading in shown.keys() & PER_UNIT.keys():
        cells = zip(shown[heading], rows, strict=True)
        shown[heading] = [NONE if unknown(row) else cell for cell, row in cells]
    return shown


def _fits(heading: str, rows: Sequence[Row]) -> bool:
    """True if papers give the figure for the tokens of one of the runs."""
    kinds = PER_UNIT.get(heading)
    return kinds is None or any(row["settings"].get("data.tokenizer") in kinds for row in rows)


def _number(value: float | int | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form if abs(value) < HUGE else ".2e")


def unfinished(row: Row) -> str:
    """The status of a run, in brackets; empty for a finished run."""
    if row["status"] == "diverged":
        return f" (diverged at step {row['bad_step']:,})"
    return "" if row["status"] == "finished" else f" ({row['status']})"
