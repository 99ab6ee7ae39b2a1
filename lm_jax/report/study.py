"""The file of a study of a run's gradient, probe.json; the run's page draws the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.analysis import Probe
from lm_jax.files import Row, write_json
from lm_jax.settings import VERSION
from lm_jax.training import Run


def write_study(run: Run, probe: Probe, stem: str) -> Path:
    """Write the numbers of a study into the directory of the run.

    Args:
      run: the run.
      probe: the results.
      stem: stem of the file's name, `probe`, `probe-1234` or `probe-lags`.

    Returns:
      the path of the file.
    """
    numbers = {"version": VERSION, **as_plain(probe)}
    for name in ("reach", "updates"):
        asked = {part: found for part, found in numbers.pop(name).items() if found is not None}
        numbers |= {name: asked} if asked else {}
    path = run.path / f"{stem}.json"
    write_json(path, numbers, indent=1)
    return path


def as_plain(value: Any) -> Any:
    """The value for JSON: named tuples as dicts, arrays as lists, complex as [real, imaginary]."""
    if hasattr(value, "_asdict"):
        return {name: as_plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): as_plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(inner) for inner in value]
    if hasattr(value, "shape"):
        array: Any = np.asarray(value)
        if np.iscomplexobj(array):
            array = np.stack([array.real, array.imag], axis=-1)
        return array.tolist()
    return value


def spike_in_words(spike: Row) -> str:
    """A sentence about the update with the largest rise of the loss."""
    changed = f"from {spike['before']:.4f} to {spike['after']:.4f} nats a token"
    if spike["after"] <= spike["before"]:
        return (
            f"No update raised its own batch's loss; {spike['step']:,} lowered it least, {changed}"
        )
    return f"Update {spike['step']:,} raised its own batch's loss most, {changed}"


def within(share: str) -> str:
    """The distance to the full gradient that is left for a share: «within 10 %»."""
    return f"within {100 * (1 - float(share)):.3g} %"


def numbers(values: Any) -> np.ndarray:
    """An array from JSON, in which null is a number that was not finite."""
    return np.array(values, dtype=object).astype(float)


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A number of all rows; NaN where it was not finite."""
    return numbers([row[name] for row in rows])


def is_pruned(ngrams: Sequence[Row]) -> bool:
    """True if an n-gram model, by the entry `ngrams` of result.json, left some n-grams out."""
    return any(row.get("kept", row["seen"]) < row["seen"] for row in ngrams[1:])
