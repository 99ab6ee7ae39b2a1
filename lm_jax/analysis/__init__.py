"""Questions to a run: its states, its gradient through time, the agreement of its gradients."""

from lm_jax.analysis.next_updates import Updates
from lm_jax.analysis.probing import Probe, probe
from lm_jax.analysis.proof import Proof, prove
from lm_jax.analysis.reach import Reach
from lm_jax.analysis.replay import Spike, spike, state_at

__all__ = [
    "Probe",
    "Proof",
    "Reach",
    "Spike",
    "Updates",
    "probe",
    "prove",
    "spike",
    "state_at",
]
