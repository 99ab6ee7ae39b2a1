"""A run in the terminal: progress bars, and tables of results."""

import contextlib
import os
import sys

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
from lm_jax.report.study import spike_in_words
from lm_jax.training.runs import Run

TEXT_COLUMNS = {
    "nats a token": ("nats", ".4f"),
    "perplexity": ("perplexity", ".3f"),
    "bits a character": ("bits_per_character", ".4f"),
    "tokens": ("tokens", ","),
    "unknown": ("unknown", ","),
}
WIDE = 1000  # characters, more than the width of any table
NONE = "–"
UNPAID = "every character must be paid for, and those of unknown tokens are not"
TASK_COLUMNS = {
    "loss": ("nats", ".4f"),
    "chance": ("chance", ".4f"),
    "right": ("success", ".1%"),
    "sequences": ("sequences", ","),
}


def stdout_console() -> Console:
    """The console on standard output; tables in a file or a pipe are not wrapped."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if narrow else WIDE)


def waiting(why: str) -> contextlib.AbstractContextManager:
    """Context with a spinner on standard error, if standard error is a terminal."""
    return Console(stderr=True).status(why)


class Bars:
    """Progress bars on standard error, if it is a terminal: a name, the progress, and `said`.

    The bars stay until the context ends.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self):
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()


def literal(text: str) -> str:
    """The text with Rich's markup escaped."""
    return escape(text)


class Display(Bars):
    """Display of a training run on standard error: a progress bar in a terminal, else lines.

    Pass `display.watch` to `lm_jax.train`, inside `with Display(...) as display`.
    """

    def __init__(
        self, name: str, steps: int, epochs: int | None = None, unit: str = "nats a token"
    ):
        """Show a run of `steps` updates, or of `epochs` epochs; `unit` is the unit of the loss."""
        self.epochs, self.unit = epochs, unit
        super().__init__()
        self.task = self.progress.add_task(escape(name), total=steps, said="compiling")

    def watch(self, step: int, row: Row | None) -> None:
        """Show a step and row from `lm_jax.train`; the bar appears at the first call."""
        self.progress.start()
        if row is None:
            self.progress.update(self.task, completed=step)
        elif row["kind"] == "train":
            if self.epochs is not None:
                total = round(step / row["epoch"]) * self.epochs
                self.progress.update(self.task, total=total)
            speed = f"{row['tokens_per_second']:,.0f} tokens/s"
            loss = f"{formatted(row['nats'], '.3f')} {self.unit}, {speed}"
            self.progress.update(self.task, completed=step, said=loss)
            if not self.console.is_terminal:
                norm = f"gradient norm {row['grad_norm']:.3g}"
                self.console.print(f"step {step:,}: {loss}, {norm}", soft_wrap=True)
        elif row["kind"] == "vectors":
            self.console.print(_vectors(row), soft_wrap=True)
        elif row["kind"] == "probe":
            if not self.console.is_terminal:
                self.console.print(f"step {step:,}: {_reach(row)}", soft_wrap=True)
        elif row["kind"] == "restored":
            back = f"diverged at step {row['diverged']:,}, back to step {step:,}"
            self.progress.update(self.task, completed=step)
            self.console.print(f"{back} with {row['lr_scale']:.3g} of the learning rate")
        elif "success" in row:
            figures = f"loss {formatted(row['nats'], '.4f')} (chance {row['chance']:.4f})"
            right = f"{row['success']:.1%} of the sequences right"
            self.console.print(f"step {step:,}: {row['split']} {figures}, {right}", soft_wrap=True)
        else:
            figures = f"{row['nats']:.4f} nats a token, perplexity {row['perplexity']:.2f}"
            bits = row["bits_per_character"]
            bits = f"{row['unknown']:,} unknown" if bits is None else f"{bits:.3f} bits a character"
            self.console.print(f"step {step:,}: {row['split']} {figures}, {bits}", soft_wrap=True)


def show_result(run: Run) -> None:
    """Print the result of a run as a table."""
    result = run.result
    if result is None:
        return
    columns = TASK_COLUMNS if run.config.data.generated else TEXT_COLUMNS
    table = Table("split")
    for heading in columns:
        table.add_column(heading, justify="right")
    for split, row in result["splits"].items():
        if row["unknown"]:
            row = {**row, "bits_per_character": NONE}
        table.add_row(split, *(formatted(row[name], form) for name, form in columns.values()))
    console = stdout_console()
    early = ", early" if result["stopped_early"] else ""
    kept = f"; parameters of step {result['parameters_step']:,}"
    console.print(f"{result['status']} at step {result['step']:,}{early}{kept}", soft_wrap=True)
    if result["splits"]:
        console.print(table)
    if any(row["unknown"] for row in result["splits"].values()):
        console.print(f"{NONE} bits a character: {UNPAID}", soft_wrap=True)
    if "vectors" in result:
        console.print(_vectors(result["vectors"]), soft_wrap=True)
    if "ngrams" in result:
        console.print(_ngrams(result["ngrams"]))
    if "entropy_rate" in result:
        console.print(f"no model of this text has fewer than {result['entropy_rate']:.4f} nats")
    console.print(
        f"{result['parameters']:,} parameters, {result['seconds']:.1f} seconds of training",
        soft_wrap=True,
    )


def show_table(columns: dict[str, list[str]]) -> None:
    """Print a table from columns by heading; the first column is aligned left."""
    table = Table()
    for number, heading in enumerate(columns):
        table.add_column(
            heading, justify="right" if number else "left", min_width=None if number else 16
        )
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, cells))
    stdout_console().print(table)


def show_probe(probe: Probe) -> None:
    """Print a summary of a gradient analysis."""
    reach, updates = probe.reach, probe.updates
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if reach.by_lag is not None:
        for share, steps in reach.by_lag.horizon.items():
            table.add_row(
                f"steps back to {float(share):.0%} of the gradient", formatted(steps, ".0f")
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


def _reach(row: Row) -> str:
    """A line about a row of kind "probe"."""
    parts = []
    if "horizon" in row:
        steps = ", ".join(
            f"{float(share):.0%} {formatted(back, '.0f')}" for share, back in row["horizon"].items()
        )
        parts.append(f"steps back to a share of the gradient: {steps}")
    if "lag_norms" in row:
        norms = row["lag_norms"]
        longest = formatted(norms[-1], ".3g")
        parts.append(f"∂h_T/∂h_(T−{len(norms) - 1}) has norm {longest}")
    if "spectral_radius" in row:
        radii = [radius for blocks in row["spectral_radius"].values() for radius in blocks]
        parts.append(f"spectral radii {', '.join(formatted(radius, '.3f') for radius in radii)}")
    if "lyapunov" in row:
        parts.append(f"largest Lyapunov exponent {formatted(row['lyapunov'], '.3f')} nats a step")
    return "; ".join(parts)


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


def _vectors(row: Row) -> str:
    found, of, covered = row["found"], row["of"], row["covered"]
    return f"pretrained vectors: of {found:,} of {of:,} tokens, {covered:.1%} of the training text"


def _ngrams(rows: list[Row]) -> Table:
    """A table of counts by n-gram order: sparsity and memory, the cost of longer n-grams."""
    table = Table()
    for column in ("n", "possible", "seen", "seen once", "unseen in test", "stored"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["order"]),
            f"{row['possible']:.3g}",
            f"{row['seen']:,}",
            f"{row['once']:,}",
            formatted(row["unseen_share"], ".1%"),
            f"{row['bytes'] / 1e6:,.2f} MB",
        )
    return table


def formatted(value: float | int | str | None, form: str) -> str:
    """The text of a number; "not finite" for None; a string is returned unchanged."""
    if isinstance(value, str):
        return value
    return "not finite" if value is None else format(value, form)
