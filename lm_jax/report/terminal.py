"""Output in a terminal: progress bars, and tables of results."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lm_jax.analysis import Probe, Proof
from lm_jax.files import Row
from lm_jax.report.study import is_pruned, spike_in_words, within
from lm_jax.report.wording import FIGURES, SPACED, is_spaced, usual_figures
from lm_jax.training.runs import Run

NAMES = 16  # characters of a name that a narrow table keeps in one line
WIDE = 1000  # characters, more than the width of any table
NONE = "–"
PER_UNIT = ("perplexity_per_word", "bits_per_byte", "bits_per_character")
UNPAID = "every character must be paid for, and those of unknown tokens are not"
TEXT_COLUMNS = {**FIGURES, "tokens": ("tokens", ","), "unknown": ("unknown", ",")}
TASK_COLUMNS = {
    "nats": ("loss", ".4f"),
    "chance": ("chance", ".4f"),
    "success": ("right", ".1%"),
    "sequences": ("sequences", ","),
}


def stdout_console() -> Console:
    """The console on standard output; tables in a file or a pipe are not wrapped."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if narrow else WIDE)


def waiting(why: str) -> contextlib.AbstractContextManager:
    """Context with a spinner on standard error, if standard error is a terminal."""
    return Console(stderr=True).status(why)


def say(line: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True, highlight=False).print(escape(line), soft_wrap=True)


class Bars:
    """Progress bars on standard error, if it is a terminal or a notebook: a name, the progress, and
    `said`; elsewhere `say` alone has an effect.

    The bars stay until the context ends.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal or draws_in_notebook()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
            disable=not self.live,
        )

    def __enter__(self):
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        self.console.print(escape(line), soft_wrap=True)


def draws_in_notebook() -> bool:
    """True in a Jupyter notebook with ipywidgets; Rich redraws a bar with ipywidgets."""
    return Console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def literal(text: str) -> str:
    """The text with Rich's markup escaped."""
    return escape(text)


def show_result(run: Run) -> None:
    """Print the result of a run as a table."""
    result = run.result
    if result is None:
        return
    columns, rows = TASK_COLUMNS, result["splits"].values()
    if not run.config.data.generated:
        usual = (*usual_figures(run.vocabulary, rows), "tokens", "unknown")
        # A run of an earlier version has fewer figures.
        columns = {name: TEXT_COLUMNS[name] for name in usual if all(name in row for row in rows)}
    table = Table("split")
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for split, row in result["splits"].items():
        unpaid = dict.fromkeys(PER_UNIT, NONE) if row["unknown"] else {}
        row = {**row, **unpaid}
        table.add_row(split, *(formatted(row[name], form) for name, (_, form) in columns.items()))
    console = stdout_console()
    early = ", early" if result["stopped_early"] else ""
    kept = f"; parameters of step {result['parameters_step']:,}"
    console.print(f"{result['status']} at step {result['step']:,}{early}{kept}", soft_wrap=True)
    if result["splits"]:
        console.print(table)
    if any(row["unknown"] for row in result["splits"].values()):
        console.print(f"{NONE} bits a character: {UNPAID}", soft_wrap=True)
    if any(map(is_spaced, rows)):
        console.print(f"bits a character: {SPACED}", soft_wrap=True)
    if "vectors" in result:
        console.print(vectors_in_words(result["vectors"]), soft_wrap=True)
    if "ngrams" in result:
        console.print(_ngrams(result["ngrams"]))
    if "entropy_rate" in result:
        console.print(f"no model of this text has fewer than {result['entropy_rate']:.4f} nats")
    console.print(
        f"{result['parameters']:,} parameters, {result['seconds']:.1f} seconds of training",
        soft_wrap=True,
    )


def show_table(
    columns: dict[str, list[str]], *, text: bool = False, least: Sequence[str] = ()
) -> None:
    """Print a table.

    Args:
      columns: cells by heading; the first column is aligned left, the others right.
      text: if True, align all columns left, and wrap their text.
      least: headings of the columns to leave out, in this order, if a terminal is too narrow.
    """
    console, left_out = stdout_console(), []
    # Of numbers only the headings wrap, at blanks; of the first column the cells wrap, too.
    widths = {
        heading: max(map(len, [*heading.split(), *cells])) for heading, cells in columns.items()
    }
    first = next(iter(widths))
    widths[first] = min(widths[first], NAMES)
    for heading in least:
        if heading in widths and sum(widths.values()) + len(widths) + 1 > console.width:
            left_out.append(heading)
            del widths[heading]
    whole = [max(map(len, [heading, *columns[heading]])) for heading in widths]
    tight = not text and sum(whole) + 3 * len(whole) + 1 > console.width
    table = Table(padding=0 if tight else (0, 1))
    for heading, width in widths.items():
        table.add_column(
            heading,
            justify="left" if text or heading == first else "right",
            overflow="fold",
            width=width if tight and heading != first else None,
        )
    for cells in zip(*(columns[heading] for heading in widths), strict=True):
        table.add_row(*map(escape, cells))
    console.print(table)
    if left_out:
        print(f"too narrow for {', '.join(left_out)}")


def show_probe(probe: Probe) -> None:
    """Print a summary of a gradient analysis."""
    reach, updates = probe.reach, probe.updates
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if reach.by_lag is not None:
        for share, steps in reach.by_lag.horizon.items():
            table.add_row(
                f"steps back, {within(share)} of the full gradient", formatted(steps, ".0f")
            )
    if reach.credit is not None:
        for share, steps in reach.credit.horizon.items():
            table.add_row(
                f"steps back to {float(share):.0%} of the credit", formatted(steps, ".1f")
            )
    if reach.dynamics is not None:
        for layer, spectra in reach.dynamics.spectra.items():
            radii = ", ".join(f"{block.radius:.3f}" for block in spectra.blocks)
            table.add_row(escape(f"spectral radius, {layer}"), radii)
        largest = float(reach.dynamics.convergence[-1, 0])
        table.add_row("largest Lyapunov exponent, nats a step", formatted(largest, ".4f"))
    if reach.lags is not None:
        table.add_row(
            "lag norm at half the chunk", formatted(float(reach.lags.measured[-1]), ".3g")
        )
    if updates.cliff is not None:
        eigenvalue = formatted(float(updates.cliff.eigenvalue), ".3g")
        table.add_row("largest eigenvalue of the Hessian", eigenvalue)
    for kind, said in (updates.clipping or {}).items():
        table.add_row(f"updates that clipping by {kind} cuts", f"{float(said.often):.0%}")
    console = stdout_console()
    if table.rows:
        console.print(table)
    if probe.spike is not None:
        console.print(spike_in_words(probe.spike._asdict()), soft_wrap=True)


def show_proof(proof: Proof) -> None:
    """Print the differences between the gradient methods as a table."""
    table = Table()
    for column in ("route", "against", "difference", "tolerance", "agrees"):
        table.add_column(
            column, justify="right" if column in ("difference", "tolerance") else "left"
        )
    for check in proof.checks:
        table.add_row(
            escape(check.route),
            escape(check.against),
            f"{check.difference:.1e}",
            f"{check.tolerance:.0e}",
            "yes" if check.agrees else "NO",
        )
    console = stdout_console()
    console.print(table)
    failed = sum(not check.agrees for check in proof.checks)
    verdict = f"{failed} of {len(proof.checks)} checks failed" if failed else "all routes agree"
    console.print(
        f"{verdict}: {proof.parameters:,} initial parameters, {proof.steps} tokens of "
        f"{proof.sequences} sequences, float64, largest relative differences",
        soft_wrap=True,
    )
    if proof.precision != "float32":
        console.print(
            f"verified at model.precision=float32, not at the run's {proof.precision}: rounding "
            "has no derivative",
            soft_wrap=True,
        )


def vectors_in_words(row: Row) -> str:
    """A sentence about the coverage of pretrained vectors."""
    found, of, covered = row["found"], row["of"], row["covered"]
    return f"pretrained vectors: of {found:,} of {of:,} tokens, {covered:.1%} of the training text"


def _ngrams(rows: list[Row]) -> Table:
    """A table of counts by n-gram order: sparsity and memory, the cost of longer n-grams."""
    table = Table()
    pruned = is_pruned(rows)
    kept = ["kept"] if pruned else []
    for column in ("n", "possible", "seen", "seen once", *kept, "unseen in test", "stored"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["order"]),
            f"{row['possible']:.3g}",
            f"{row['seen']:,}",
            f"{row['once']:,}",
            *([f"{row['kept']:,}"] if pruned else []),
            formatted(row["unseen_share"], ".1%"),
            f"{row['bytes'] / 1e6:,.2f} MB",
        )
    return table


def formatted(value: float | int | str | None, form: str) -> str:
    """The text of a number; "not finite" for None; a string is returned unchanged."""
    if isinstance(value, str):
        return value
    return "not finite" if value is None else format(value, form)
