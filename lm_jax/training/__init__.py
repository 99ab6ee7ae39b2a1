"""From a config to a trained model in a run directory."""

from lm_jax.training.loop import Run, load_run, train

__all__ = ["Run", "load_run", "train"]
