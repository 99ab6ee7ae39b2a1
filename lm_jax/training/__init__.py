"""Training: from a config to a trained model in a run directory."""

from lm_jax.training.loop import train
from lm_jax.training.probing import Probe, probe
from lm_jax.training.proof import Proof, prove
from lm_jax.training.replay import Spike, spike, state_at
from lm_jax.training.runs import Run, load_run

__all__ = [
    "Probe",
    "Proof",
    "Run",
    "Spike",
    "load_run",
    "probe",
    "prove",
    "spike",
    "state_at",
    "train",
]
