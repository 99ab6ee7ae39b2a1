"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads)."""

from lm_jax.config import Train
from lm_jax.gradients.bptt import Estimator, clip_cotangent, full_bptt, truncated_bptt
from lm_jax.models import LanguageModel

__all__ = ["Estimator", "clip_cotangent", "full_bptt", "make", "truncated_bptt"]


def make(train: Train, model: LanguageModel) -> Estimator:
    """The estimator that a config names.

    Args:
      train: `Config.train`, resolved; its numbers may be tracers.
      model: the language model.
    """
    if train.gradient == "full" or train.k1 is None or train.k2 is None:
        return full_bptt(model, clip_delta=train.clip_delta)
    return truncated_bptt(model, k1=train.k1, k2=train.k2, clip_delta=train.clip_delta)
