"""The command `report`."""

import sys
from pathlib import Path
from typing import cast

import lm_jax
from lm_jax.commands.lists import RunDirs
from lm_jax.commands.shared import SAMPLE_LENGTH
from lm_jax.report.comparison import write_comparison
from lm_jax.report.run_page import sample_of, write_run
from lm_jax.report.sweep_page import write_sweep
from lm_jax.report.terminal import waiting
from lm_jax.settings import UserError
from lm_jax.sweeps.results import FILE
from lm_jax.training.checkpoint import steps_saved


def report(run_dirs: RunDirs, out: Path | None = None) -> int:
    """Write a page about a run or a sweep, or a page that compares several runs.

    The page opens without a network. A run's or sweep's page is report.html in its directory, with
    each figure as a file in figures/ beside it; `train`, `sweep` and `probe` write it, too.

    Args:
      run_dirs: directory of a run or of a sweep, or directories of several runs.
      out: page of a comparison; comparison.html if not given.
    """
    if not run_dirs:
        raise UserError("report needs the directory of a run or a sweep")
    sweeps = [path for path in run_dirs if (path / FILE).exists()]
    if len(run_dirs) > 1:
        if sweeps:
            raise UserError(f"{sweeps[0]} is a sweep: report a sweep alone, or compare its trials")
        print(write_comparison(run_dirs, out or Path("comparison.html")))
        return 0
    if out is not None:
        raise UserError("--out is for several runs; the page of one is in its directory")
    (path,) = cast(tuple[Path, ...], run_dirs)
    if sweeps:
        print(write_sweep(path))
        return 0
    with waiting("drawing"):
        run = None
        if steps_saved(path):
            try:
                run = lm_jax.load_run(path)
            except UserError as error:  # the page can do without the model
                print(f"without what the model says: {error}", file=sys.stderr)
        sample = None if run is None else sample_of(run, SAMPLE_LENGTH)
        print(write_run(path, run, sample))
    return 0
