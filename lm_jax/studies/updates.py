"""What the next updates of a run would do to its loss: clipped or not, along the gradient or not.

The parameters are held still and the batches are those that the run would read next. What clipping
cuts off, how steep and how sharply curved the loss is there, and how the gradient would differ if
the model read its own tokens, are three looks at the same gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.data.batches import Batch
from lm_jax.gradients.audit import (
    Apply,
    ClipSummary,
    Thresholds,
    clip_audit,
    clip_summary,
    quantile_thresholds,
)
from lm_jax.gradients.bptt import explicit_bptt
from lm_jax.gradients.cliffs import Cliff, cliff
from lm_jax.gradients.clipping import Threshold
from lm_jax.gradients.exposed import ExposureCosines, exposure_cosines
from lm_jax.gradients.norms import norm
from lm_jax.gradients.surface import batch_loss
from lm_jax.inference.feeding import fed
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params

REACH = 10  # updates' lengths to each side of a slice through the loss
PLACES = 41  # of a slice
SHARE = 0.1  # of updates that thresholds would cut where a run has none


class Updates(NamedTuple):
    """What the next updates would do."""

    thresholds: Thresholds
    """Of the clipping that is audited."""
    suggested: Thresholds
    """Those that would cut about a tenth of the updates."""
    clipping: dict[str, ClipSummary]
    """By kind: norm, value, delta."""
    length: float
    """Of the first update, clipped as the run clips it not at all: ‖θ' - θ‖."""
    cliff: Cliff
    """Of the first batch's loss."""
    exposure: ExposureCosines
    """Of the first batch: the text's tokens against the model's own."""


def updates(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batches: Sequence[Batch],
    *,
    thresholds: tuple[Threshold | None, Threshold | None, Threshold | None],
    apply: Apply,
    seed: int = 0,
) -> Updates:
    """What some updates would do to the loss of a recurrent model, its dropout left out.

    Args:
      model, params: the model.
      carry: the model's, before the first batch.
      batches: that come next, of one shape.
      thresholds: of the run's clipping by norm, by value and within BPTT; one that is None is taken
        from `quantile_thresholds`.
      apply: (params, grads) -> params, the run's optimizer.
      seed: of the model's own tokens and of the first direction that is tried.

    Raises:
      UserError: there are no batches, or the parameters are not floating-point.
    """
    key = jax.random.key(seed)
    suggested = quantile_thresholds(model, params, carry, batches, share=SHARE)
    by_norm, value, delta = (
        own if given is None else jnp.asarray(given, float)
        for given, own in zip(thresholds, suggested, strict=True)
    )
    assert by_norm is not None
    assert value is not None
    chosen = Thresholds(by_norm, value, delta)
    audit = jax.jit(clip_audit, static_argnames=("model", "apply"))(
        model,
        params,
        carry,
        list(batches),
        norm=chosen.norm,
        value=chosen.value,
        delta=chosen.delta,
        apply=apply,
    )

    @jax.jit
    def first(params: Params, carry: Carry, batch: Batch) -> tuple:
        loss_fn = batch_loss(model, carry, batch)
        _, _, grads = explicit_bptt(model)(params, carry, batch)
        length = norm(jax.tree.map(jnp.subtract, apply(params, grads), params))
        distances = length * jnp.linspace(-REACH, REACH, PLACES)
        own = fed(model, params, carry, batch, key, jnp.ones(()))
        exposure = exposure_cosines(model, params, carry, batch, own)
        return length, cliff(loss_fn, params, key, distances=distances), exposure

    length, surroundings, exposure = first(params, carry, batches[0])
    return Updates(
        chosen,
        suggested,
        clip_summary(audit),
        float(length),
        *jax.tree.map(np.asarray, (surroundings, exposure)),
    )
