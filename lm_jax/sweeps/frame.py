"""Results of a sweep as a data frame of polars or pandas (both optional)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lm_jax.files import Row
from lm_jax.settings import UserError
from lm_jax.sweeps.results import read_results

PLAIN = ("number", "name", "status", "best_validation", "last_validation", "test", "step", "steps")
REST = ("seconds", "bad_step", "error", "parameters", "trial", "flags")


def sweep_frame(sweep_dir: str | Path, kind: Literal["polars", "pandas"] = "polars") -> Any:
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
    if kind not in ("polars", "pandas"):
        raise UserError(f"kind={kind!r} must be polars or pandas")
    columns = _columns(read_results(sweep_dir))
    try:
        if kind == "polars":
            import polars as library  # pyright: ignore[reportMissingImports]
        else:
            import pandas as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"sweep_frame needs {kind}, which is not installed: pip install -r "
            "requirements-sweeps.txt"
        ) from None
    return library.DataFrame(columns)


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys([*PLAIN, *(name for row in flat for name in row)]))
    return {name: _of_one_type([row.get(name) for row in flat]) for name in names}


def _flat(row: Row) -> Row:
    success = row["splits"].get("test", {}).get("success")
    return {
        **{name: row.get(name) for name in PLAIN},
        **{path: math.inf if value == "inf" else value for path, value in row["settings"].items()},
        **({} if success is None else {"success": success}),
        **_flattened(row.get("probe", {}), "probe."),
        **_flattened(row.get("first_probe", {}), "first_probe."),
        **_flattened(row.get("gradient", {}), "gradient."),
        **{name: row.get(name) for name in REST},
    }


def _flattened(values: Any, prefix: str) -> Row:
    found: Row = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flattened(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _of_one_type(values: Iterable[Any]) -> list[Any]:
    """Convert a column to a single type: int and float to float, any other mixture to str."""
    values = list(values)
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    cast = float if kinds == {int, float} else str
    return [None if value is None else cast(value) for value in values]
