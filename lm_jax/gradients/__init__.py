"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads)."""

from lm_jax.config import Train
from lm_jax.gradients.bptt import Estimator, clip_cotangent, full_bptt, truncated_bptt
from lm_jax.gradients.credit import credit_map, gradient_by_lag
from lm_jax.gradients.horizon import credit_horizon, horizon
from lm_jax.gradients.sensitivity import Probed, sensitivity, sensitivity_by_probes
from lm_jax.gradients.truncations import Truncations, truncations, truncations_by_block
from lm_jax.gradients.word_credit import ClassCredit, credit_by_class, frequency_bands
from lm_jax.models import LanguageModel

__all__ = [
    "ClassCredit",
    "Estimator",
    "Probed",
    "Truncations",
    "clip_cotangent",
    "credit_by_class",
    "credit_horizon",
    "credit_map",
    "frequency_bands",
    "full_bptt",
    "gradient_by_lag",
    "horizon",
    "make",
    "sensitivity",
    "sensitivity_by_probes",
    "truncated_bptt",
    "truncations",
    "truncations_by_block",
]


def make(train: Train, model: LanguageModel) -> Estimator:
    """The estimator that a config names.

    Args:
      train: `Config.train`, resolved; its numbers may be tracers.
      model: the language model.
    """
    if train.gradient == "full" or train.k1 is None or train.k2 is None:
        return full_bptt(model, clip_delta=train.clip_delta)
    return truncated_bptt(model, k1=train.k1, k2=train.k2, clip_delta=train.clip_delta)
