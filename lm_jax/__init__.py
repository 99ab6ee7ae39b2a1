"""Neural language models and their gradients through time, as pure functions in JAX."""

from lm_jax import data, gradients, inference, models
from lm_jax.config import Config
from lm_jax.settings import UserError
from lm_jax.training import Run, flags, load_run, probe, sweep, sweep_configs, train

__all__ = [
    "Config",
    "Run",
    "UserError",
    "data",
    "flags",
    "gradients",
    "inference",
    "load_run",
    "models",
    "probe",
    "sweep",
    "sweep_configs",
    "train",
]
