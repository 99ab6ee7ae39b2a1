"""The commands `list` and `compare`: experiments, and runs side by side."""

import re
from pathlib import Path
from typing import Annotated

import tyro

from lm_jax.experiment import experiments, notes
from lm_jax.report.run_table import show_runs
from lm_jax.report.terminal import show_table
from lm_jax.settings import UserError
from lm_jax.sweeps.results import FILE as RESULTS

RunDirs = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")
]


def list_experiments() -> int:
    """List the experiments: what each shows, and how long it takes."""
    found = {name: notes(about) for name, about in experiments().items()}
    # Of the time, the first clause.
    times = [re.split(r"[.:;,(](?:\s|$)", one.get("Time", ""))[0] for one in found.values()]
    titles = [one["title"] for one in found.values()]
    show_table({"experiment": list(found), "shows": titles, "time": times}, text=True)
    return 0


def compare(run_dirs: RunDirs) -> int:
    """Compare runs in a table of differing settings and of results.

    Args:
      run_dirs: directories of the runs, finished or not.
    """
    if not run_dirs:
        raise UserError("compare needs a run directory, or several")
    for path in run_dirs:
        if (path / RESULTS).exists():
            trials = path / "trials"
            raise UserError(f"{path} is a sweep: compare its trials, {trials}/*, or report it")
    show_runs(run_dirs)
    return 0
