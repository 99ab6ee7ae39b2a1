"""Neural language models and their gradients through time, as pure functions in JAX."""

from lm_jax import data, exchange, generation, gradients, models, scoring, track
from lm_jax.analysis import probe
from lm_jax.config import Config
from lm_jax.report.progress import train
from lm_jax.settings import UserError
from lm_jax.sweeps import flags, sweep, sweep_configs, sweep_frame
from lm_jax.training import Run, load_run

__version__ = "0.1.0"
"""Version of the package; the version of the files of a run is `lm_jax.settings.VERSION`."""

__all__ = [
    "Config",
    "Run",
    "UserError",
    "__version__",
    "data",
    "exchange",
    "flags",
    "generation",
    "gradients",
    "load_run",
    "models",
    "probe",
    "scoring",
    "sweep",
    "sweep_configs",
    "sweep_frame",
    "track",
    "train",
]
