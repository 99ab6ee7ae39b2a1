"""Sweeps: many runs of an experiment, from the points to the table of results."""

from lm_jax.sweeps.executors import executor_called
from lm_jax.sweeps.frame import sweep_frame
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.plan import Group, Plan, Trial, plan, sweep_configs
from lm_jax.sweeps.points import (
    Drawn,
    Point,
    chain,
    choice,
    crossed,
    draw,
    flags,
    grid,
    integers,
    lanes,
    log_uniform,
    uniform,
    zipped,
)
from lm_jax.sweeps.results import folded, ranked, read_results
from lm_jax.sweeps.sweep import sweep

__all__ = [
    "Drawn",
    "Group",
    "Halving",
    "Plan",
    "Point",
    "Trial",
    "chain",
    "choice",
    "crossed",
    "draw",
    "executor_called",
    "flags",
    "folded",
    "grid",
    "integers",
    "lanes",
    "log_uniform",
    "plan",
    "ranked",
    "read_results",
    "sweep",
    "sweep_configs",
    "sweep_frame",
    "uniform",
    "zipped",
]
