"""Neural language models and their gradients through time, as pure functions in JAX."""

from lm_jax import data, gradients, inference, models
from lm_jax.config import Config
from lm_jax.settings import UserError
from lm_jax.sweeps import flags, sweep, sweep_configs, sweep_frame
from lm_jax.training import Run, load_run, probe, train

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
    "sweep_frame",
    "train",
]
