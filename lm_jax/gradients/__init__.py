"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads)."""

from lm_jax.config import Train
from lm_jax.gradients.audit import (
    ClipAudit,
    Clipped,
    ClipSummary,
    Thresholds,
    clip_audit,
    clip_summary,
    quantile_thresholds,
    sgd,
)
from lm_jax.gradients.bptt import (
    Estimator,
    clip_cotangent,
    explicit_bptt,
    full_bptt,
    truncated_bptt,
)
from lm_jax.gradients.cliffs import (
    Cliff,
    Sharpest,
    cliff,
    hessian_vector_product,
    sharpest,
    slices,
)
from lm_jax.gradients.exposed import ExposureCosines, exposure_cosines
from lm_jax.gradients.lane import Lane, one_lane
from lm_jax.gradients.surface import batch_loss
from lm_jax.models import LanguageModel

__all__ = [
    "Cliff",
    "ClipAudit",
    "ClipSummary",
    "Clipped",
    "Estimator",
    "ExposureCosines",
    "Lane",
    "Sharpest",
    "Thresholds",
    "batch_loss",
    "cliff",
    "clip_audit",
    "clip_cotangent",
    "clip_summary",
    "explicit_bptt",
    "exposure_cosines",
    "full_bptt",
    "hessian_vector_product",
    "make",
    "one_lane",
    "quantile_thresholds",
    "sgd",
    "sharpest",
    "slices",
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
