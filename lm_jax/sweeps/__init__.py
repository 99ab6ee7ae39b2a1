"""Many runs of one experiment: their points, how they share programs, what they come to."""

from lm_jax.sweeps.plan import Group, Plan, Point, Trial, plan, sweep_configs

__all__ = ["Group", "Plan", "Point", "Trial", "plan", "sweep_configs"]
