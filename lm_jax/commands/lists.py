"""The commands `list` and `compare`: experiments, and runs side by side."""

import re
from pathlib import Path
from typing import Annotated

import tyro

from lm_jax.experiment import experiments
from lm_jax.report.run_table import show_runs
from lm_jax.report.terminal import show_table
from lm_jax.settings import UserError

RunDirs = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")
]


def list_experiments() -> int:
    """List the experiments, each with claim and time."""
    found = experiments()
    show_table(
        {
            "experiment": list(found),
            "claim": [about.partition("\n")[0] for about in found.values()],
            "time": [_time(about) for about in found.values()],
        },
        text=True,
    )
    return 0


def _time(about: str) -> str:
    """The first clause of the line `Time` in an experiment's docstring."""
    found = re.search(r"^Time +(.*?)(?:[.:;,(]\s|\.?\n\w|\.?\Z)", about, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def compare(run_dirs: RunDirs) -> int:
    """Compare runs in a table of differing settings and of results.

    Args:
      run_dirs: directories of the runs, finished or not.
    """
    if not run_dirs:
        raise UserError("compare needs a run directory, or several")
    show_runs(run_dirs)
    return 0
