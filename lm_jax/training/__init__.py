"""From a config to a trained model in a run directory; from many to a sweep."""

from lm_jax.training.loop import train
from lm_jax.training.runs import Run, load_run
from lm_jax.training.sweep import flags, sweep, sweep_configs

__all__ = ["Run", "flags", "load_run", "sweep", "sweep_configs", "train"]
