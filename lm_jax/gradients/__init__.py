"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads)."""

from jaxtyping import Array

from lm_jax.config import Train
from lm_jax.gradients.bptt import (
    Estimator,
    clip_cotangent,
    explicit_bptt,
    full_bptt,
    truncated_bptt,
)
from lm_jax.gradients.compare import Comparison, compare
from lm_jax.gradients.lane import Lane, one_lane
from lm_jax.gradients.proof import Check, verify
from lm_jax.gradients.randomised import randomised_bptt
from lm_jax.gradients.rtrl import rtrl
from lm_jax.gradients.snap import snap1
from lm_jax.gradients.uoro import uoro
from lm_jax.models import LanguageModel

__all__ = [
    "Check",
    "Comparison",
    "Estimator",
    "Lane",
    "clip_cotangent",
    "compare",
    "explicit_bptt",
    "full_bptt",
    "make",
    "one_lane",
    "randomised_bptt",
    "rtrl",
    "snap1",
    "truncated_bptt",
    "uoro",
    "verify",
]


def make(train: Train, model: LanguageModel, *, key: Array) -> Estimator:
    """The estimator that a config names.

    Args:
      train: `Config.train`, resolved; its numbers may be tracers.
      model: the language model.
      key: of what an estimator draws.
    """
    if train.gradient == "truncated" and train.k1 is not None and train.k2 is not None:
        return truncated_bptt(model, k1=train.k1, k2=train.k2, clip_delta=train.clip_delta)
    if train.gradient == "artbp" and train.cut_rate is not None:
        return randomised_bptt(model, rate=train.cut_rate, key=key)
    if train.gradient == "uoro":
        return uoro(model, key=key)
    if train.gradient in ("rtrl", "snap1"):
        return rtrl(model) if train.gradient == "rtrl" else snap1(model)
    whole = full_bptt if train.gradient == "full" else explicit_bptt
    return whole(model, clip_delta=train.clip_delta)
