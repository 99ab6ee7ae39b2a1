"""Results of a sweep as a data frame of polars or pandas (both optional)."""

import math
from pathlib import Path
from typing import Any

from lm_jax.files import Row
from lm_jax.frames import Kind, frame
from lm_jax.sweeps.results import read_results

PLAIN = ("number", "name", "status", "best_validation", "last_validation", "test", "step", "steps")
REST = ("seconds", "bad_step", "error", "parameters", "trial", "flags")


def sweep_frame(sweep_dir: str | Path, kind: Kind = "polars") -> Any:
    """Return the results of a sweep as a data frame, a row per trial, in the trials' order.

    Args:
      sweep_dir: directory of the sweep.
      kind: library of the frame.

    Returns:
      a frame with the columns `number`, `name`, `status` and others; a column for each path changed
      by the sweep, such as `train.learning_rate`; `success` for tasks; and the results of the live
      probe, such as `probe.lyapunov`. A missing value is null.

    Raises:
      UserError: there is no sweep, or the library is not installed.
    """
    return frame([_plain(row) for row in read_results(sweep_dir)], kind)


def _plain(row: Row) -> Row:
    success = row["splits"].get("test", {}).get("success")
    return {
        **{name: row.get(name) for name in PLAIN},
        **{path: math.inf if value == "inf" else value for path, value in row["settings"].items()},
        **({} if success is None else {"success": success}),
        **{part: row[part] for part in ("probe", "first_probe", "gradient") if row.get(part)},
        **{name: row.get(name) for name in REST},
    }
