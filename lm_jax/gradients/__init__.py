"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads)."""

from lm_jax.config import Train
from lm_jax.gradients.bptt import (
    Estimator,
    clip_cotangent,
    explicit_bptt,
    full_bptt,
    truncated_bptt,
)
from lm_jax.gradients.lane import Lane, one_lane
from lm_jax.models import LanguageModel

__all__ = [
    "Estimator",
    "Lane",
    "clip_cotangent",
    "explicit_bptt",
    "full_bptt",
    "make",
    "one_lane",
    "truncated_bptt",
]


def make(train: Train, model: LanguageModel) -> Estimator:
    """The estimator that a config names.

    Args:
      train: `Config.train`, resolved; its numbers may be tracers.
      model: the language model.
    """
    if train.gradient == "truncated" and train.k1 is not None and train.k2 is not None:
        return truncated_bptt(model, k1=train.k1, k2=train.k2, clip_delta=train.clip_delta)
    whole = full_bptt if train.gradient == "full" else explicit_bptt
    return whole(model, clip_delta=train.clip_delta)
