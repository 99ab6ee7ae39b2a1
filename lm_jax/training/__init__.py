"""Training: from a config to a trained model in a run directory."""

from lm_jax.training.loop import train
from lm_jax.training.runs import Run, load_run

__all__ = ["Run", "load_run", "train"]
