"""Rows as a data frame of polars or pandas; both are optional."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lm_jax.settings import UserError

Kind = Literal["polars", "pandas"]


def frame(rows: Sequence[dict[str, Any]], kind: Kind = "polars") -> Any:
    """Make a frame with a row for each dict, and a column for each name in any of them.

    Args:
      rows: dicts by name. A dict within a row gives a column for each of its names, such as
        `probe.lyapunov`.
      kind: library of the frame.

    Returns:
      the frame; a missing value is null.

    Raises:
      UserError: the library is not installed.
    """
    if kind not in ("polars", "pandas"):
        raise UserError(f"kind={kind!r} must be polars or pandas")
    try:
        if kind == "polars":
            import polars as library  # pyright: ignore[reportMissingImports]
        else:
            import pandas as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"a frame needs {kind}, which is not installed: pip install -r requirements-sweeps.txt"
        ) from None
    return library.DataFrame(columns(rows))


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of a frame, by name, each of a single type."""
    flat = [_flattened(row, "") for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: _of_one_type([row.get(name) for row in flat]) for name in names}


def _flattened(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
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
