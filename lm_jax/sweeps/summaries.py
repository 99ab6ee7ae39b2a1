"""Summaries of a trial's records for results.jsonl.

    probe           horizon, spectral_radius, lyapunov and lag_norm of the last live probe
    first_probe     horizon, … of the first live probe, before the first update
    gradient        clipped, the share of updates with a clipped gradient; the mean gradient norm
                    before clipping (grad_norm) and after clipping (grad_norm_clipped); the largest
                    norm before clipping (grad_norm_max)

lag_norm is ‖∂h_T/∂h_{T-l}‖₂ at the longest lag of the chunk, l = T - 1.
"""

import itertools
from collections.abc import Sequence

from lm_jax.files import Row

PROBED = ("horizon", "spectral_radius", "lyapunov")
MEANS = ("clipped", "grad_norm", "grad_norm_clipped")


def summaries(rows: Sequence[Row]) -> Row:
    """Summarise the records of a trial.

    Args:
      rows: rows of metrics.jsonl.

    Returns:
      `probe`, `first_probe` and `gradient`, as far as there are records; a value is None if a
      record was not finite.
    """
    found: Row = {}
    probes = [row for row in rows if row["kind"] == "probe"]
    if probes and (last := _of_probe(probes[-1])):
        found |= {"probe": last, "first_probe": _of_probe(probes[0])}
    records = [row for row in rows if row["kind"] == "train"]
    if records:
        found["gradient"] = _of_gradient(records)
    return found


def _of_probe(row: Row) -> Row:
    found = {name: row[name] for name in PROBED if name in row}
    if "lag_norms" in row:
        found["lag_norm"] = row["lag_norms"][-1]
    return found


def _of_gradient(records: Sequence[Row]) -> Row:
    ends = [row["step"] for row in records]
    updates = [end - start for start, end in itertools.pairwise([0, *ends])]
    found: Row = {}
    for name in MEANS:
        values = [row[name] for row in records]
        known = None not in values
        # Weighted: each record is a mean over its updates, and the first record has fewer.
        found[name] = (
            sum(value * made for value, made in zip(values, updates, strict=True)) / ends[-1]
            if known
            else None
        )
    largest = [row["grad_norm_max"] for row in records]
    found["grad_norm_max"] = None if None in largest else max(largest)
    return found
