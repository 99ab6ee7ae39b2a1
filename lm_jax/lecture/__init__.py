"""The lecture, told by experiments: each claim is a function with a finding.

A claim takes the folder of the trained models, measures, and returns a section of a page with the
finding in words. `run.py lecture` makes the page of all claims, or of the claims given by name.
"""

from collections.abc import Callable
from pathlib import Path

from lm_jax.lecture.context import growth, places, sharing, sparsity
from lm_jax.lecture.sequence import forcing, loss, million, speed
from lm_jax.lecture.through_time import bptt, clipping, distance, eigenvalue, gates, truncation
from lm_jax.report.page import Section

CLAIMS: dict[str, Callable[[Path], Section]] = {
    claim.__name__: claim
    for claim in (
        sparsity,
        growth,
        places,
        sharing,
        speed,
        forcing,
        loss,
        bptt,
        eigenvalue,
        clipping,
        gates,
        truncation,
        distance,
        million,
    )
}
"""The claims by name, in the order of the lecture."""

__all__ = ["CLAIMS"]
