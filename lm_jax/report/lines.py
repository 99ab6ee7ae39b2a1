"""Rows as lines of JSON on standard output, for programs.

A program that reads no further closes the pipe; a run or sweep then stops as after SIGTERM.
"""

import os
import signal
import sys

from lm_jax.files import Row, as_json
from lm_jax.training.journal import Watch


def print_row(step: int, row: Row | None) -> None:
    """Print a row of metrics.jsonl as a line of JSON; a `watch` of `lm_jax.train`."""
    if row is None:
        return
    try:
        print_json(row)
    except BrokenPipeError:
        silence()
        signal.raise_signal(signal.SIGTERM)


def silence() -> None:
    """Send later output to null, or Python complains at exit about a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(row: Row) -> None:
    """Print a row as a line of JSON."""
    print(as_json(row), flush=True)


def print_trial_rows(name: str) -> Watch:
    """Print the rows of a trial as lines of JSON with its name; a `watch` of `lm_jax.sweep`."""
    return lambda step, row: print_row(step, row and {"name": name, **row})
